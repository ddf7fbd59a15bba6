"""Imports point one way: mathematics and routers at the bottom, the algorithm at the top."""

import ast
from pathlib import Path

import pytest

import sb3_grpo

PACKAGE = Path(sb3_grpo.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# What a module of the package may import of the package; modules not listed may import anything
ALLOWED: dict[str, set[str]] = {
    "losses": set(),
    "routing": set(),
    "distributions": set(),
    "grouping": set(),
    "heads": set(),
    "plots": {"grouping"},
    "probes": {"distributions", "grouping"},
    "buffers": {"losses", "routing", "distributions"},
    "policies": {"losses", "routing", "distributions", "buffers", "grouping", "heads", "probes"},
    "update": {"losses", "routing", "distributions", "buffers", "grouping", "heads", "probes", "policies"},
    "evaluation": {"losses", "routing", "distributions", "buffers", "policies"},
    "callbacks": {"evaluation", "grouping", "plots"},
    "task_sampling": {"losses"},
}
TOP = {"grpo", "callbacks", "rl_zoo", "zoo"}


def imported_names(source: str, package: str) -> set[str]:
    """Absolute names of all imported modules, wherever in the file the import stands."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            # `from package import module` imports a module too
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names


def imports_of(path: Path) -> set[str]:
    package = ".".join(["sb3_grpo", *path.parent.relative_to(PACKAGE).parts])
    return imported_names(path.read_text(), package)


def own_modules(names: set[str]) -> set[str]:
    """Top-level modules and subpackages of this package among the names."""
    known = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "sb3_grpo" and len(part) > 1 and part[1] in known} | (
        {"__init__"} if any(part[0] == "sb3_grpo" and (len(part) == 1 or part[1] not in known) for part in parts) else set()
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import sb3_grpo.losses", {"losses"}),
        ("from sb3_grpo.losses import group_penalty", {"losses"}),
        ("from .losses import group_penalty", {"losses"}),
        ("from . import losses", {"losses", "__init__"}),
        ("def f():\n    from sb3_grpo import GRPO", {"__init__"}),
        ("import numpy\nfrom torch import nn", set()),
    ],
)
def test_imports_are_found(source, expected):
    assert own_modules(imported_names(source, "sb3_grpo")) == expected


@pytest.mark.parametrize("name", ALLOWED)
def test_a_module_imports_only_what_is_below_it(name):
    assert own_modules(imports_of(PACKAGE / f"{name}.py")) <= ALLOWED[name]


@pytest.mark.parametrize("path", [p for p in PACKAGE.glob("*.py") if p.stem not in {*TOP, "__init__"}], ids=lambda p: p.stem)
def test_nothing_below_imports_the_algorithm(path):
    assert not own_modules(imports_of(path)) & TOP


def test_callbacks_do_not_import_the_algorithm():
    assert "grpo" not in own_modules(imports_of(PACKAGE / "callbacks.py"))


def test_the_algorithm_does_not_import_the_zoo():
    assert not own_modules(imports_of(PACKAGE / "grpo.py")) & {"rl_zoo", "zoo"}


@pytest.mark.parametrize(
    "path", [path for path in MODULES if "zoo" not in str(path.relative_to(PACKAGE))], ids=lambda p: p.stem
)
def test_only_the_zoo_modules_import_the_zoo(path):
    assert not {name for name in imports_of(path) if name.split(".")[0] == "rl_zoo3"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "envs").glob("*.py")), ids=lambda path: path.stem)
def test_environments_import_nothing_of_the_package_but_environments(path):
    assert own_modules(imports_of(path)) <= {"envs"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_nobody_imports_the_package_itself(path):
    assert "__init__" not in own_modules(imports_of(path))
