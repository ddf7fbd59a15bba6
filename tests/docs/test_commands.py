"""What README and documentation tell to type exists: modules, scripts, targets, extras, files."""

import importlib.util
import re
from pathlib import Path

import gymnasium as gym
import pytest
from pages import EXTRAS, NAMES, REPOSITORY, blocks_of

from sb3_grpo.zoo.scripts import SCRIPTS

TEXTS = {name: (REPOSITORY / name).read_text() for name in NAMES}
TEXT = "\n".join(TEXTS.values())
COMMANDS = "".join(block.code for text in TEXTS.values() for block in blocks_of(text) if block.language == "bash")
INLINE = re.findall(r"`([^`\n]+)`", TEXT)
LANGUAGES = {"bash", "python", "text", "yaml"}


def found(pattern: str) -> list[str]:
    """
    Return what a pattern finds in lines of bash blocks and in inline code, each once.

    :param pattern: has one group, and begins at the beginning of the code
    """
    return sorted({name for code in (*COMMANDS.splitlines(), *INLINE) for name in re.findall(rf"^\s*{pattern}", code)})


def module_file(name: str) -> Path | None:
    """
    Find the file that ``python -m`` runs, without importing it or the packages around it.

    :param name: of a module or package
    :return: ``None``: there is none
    """
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    for folder in folders:
        for file in (folder.joinpath(*rest).with_suffix(".py"), folder.joinpath(*rest, "__main__.py")):
            if file.is_file():
                return file
    return None


@pytest.mark.parametrize("name", found(r"(?:OMP_NUM_THREADS=1 )?(?:\S*/)?python -m ([\w.]+)"))
def test_modules_exist(name: str) -> None:
    assert module_file(name)


@pytest.mark.parametrize("name", ["benchmarks.sweeps.balanced", "sb3_grpo.zoos", "no_such_package", "sb3_grpo"])
def test_modules_that_cannot_be_run_are_found(name: str) -> None:
    assert module_file(name) is None


def test_scripts_of_the_zoo_exist() -> None:
    scripts = found(r"python -m sb3_grpo\.zoo ([\w-]+)")
    assert {"train", "enjoy"} <= set(scripts) <= SCRIPTS.keys()


def test_targets_exist() -> None:
    targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "test", "docs"} <= set(found(r"make ([\w-]+)")) <= set(targets)


def test_extras_exist() -> None:
    package = "".join(file.read_text() for file in REPOSITORY.glob("sb3_grpo/**/*.py"))
    assert {"extra", "zoo"} <= set(re.findall(r"sb3-grpo\[(\w+)\]", TEXT + package)) <= set(EXTRAS)


def test_files_exist() -> None:
    files = found(r"(?:python )?((?:\.ci|benchmarks|docs|examples|sb3_grpo|tests|zoo_configs)/[\w./*-]*)")
    # `docs/_build` is what `make docs` makes
    named = [file for file in files if file not in gym.registry and not file.startswith("docs/_build")]
    assert len(named) > 20
    assert [file for file in named if not list(REPOSITORY.glob(file.rstrip("/")))] == []


def test_blocks_say_what_they_are() -> None:
    assert {block.language for text in TEXTS.values() for block in blocks_of(text)} == LANGUAGES
