"""Imports point one way: mathematics and routers at the bottom, the algorithm at the top."""

import ast
import sys
from collections.abc import Iterator
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
    "regroup_plan": set(),
    "probe_math": {"distributions", "regroup_plan"},
    "heads": set(),
    "plots": {"regroup_plan"},
    "probes": {"distributions", "probe_math", "regroup_plan"},
    "buffers": {"losses", "routing", "distributions"},
    "reward_units": set(),
    "policies": {
        "losses",
        "routing",
        "distributions",
        "buffers",
        "regroup_plan",
        "heads",
        "interrupts",
        "probes",
        "reward_units",
    },
    "update": {"losses", "routing", "distributions", "buffers", "regroup_plan", "heads", "interrupts", "probes", "policies"},
    "interrupts": set(),
    "arguments": {"routing"},
    "saving": set(),
    "tensorboard": set(),
    "evaluation": {"interrupts"},
    "callbacks": {"evaluation", "regroup_plan", "interrupts", "plots", "saving", "tensorboard"},
    "task_sampling": {"arguments", "evaluation", "interrupts", "losses"},
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


# What `pip install sb3-grpo` brings
DECLARED = {"gymnasium", "numpy", "stable_baselines3", "torch"}


def executed_imports(statements: list[ast.stmt]) -> Iterator[str]:
    """Top-level names of what is imported when the module is: neither in functions, nor for type checkers only."""
    for statement in statements:
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.If(test=ast.Name(id="TYPE_CHECKING")):
                pass
            case ast.Import() | ast.ImportFrom():
                yield from {name.split(".")[0] for name in imported_names(ast.unparse(statement), "sb3_grpo")}
            case _:
                for part in ("body", "orelse", "finalbody"):
                    yield from executed_imports(getattr(statement, part, []))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch.nn as nn", {"torch"}),
        ("class A:\n    import torch", {"torch"}),
        ("try:\n    import torch\nexcept ImportError:\n    pass\nelse:\n    import numpy", {"torch", "numpy"}),
        ("def f():\n    import torch", set()),
        ("if TYPE_CHECKING:\n    import torch", set()),
        ("if True:\n    import torch", {"torch"}),
    ],
)
def test_imports_that_are_executed_are_found(source, expected):
    assert set(executed_imports(ast.parse(source).body)) == expected


# RL Zoo is an extra, and `zoo` loads these two
@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if path.stem != "rl_zoo" and path.parent.name != "zoo_configs"],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_only_declared_packages_are_imported_at_once(path):
    imported = set(executed_imports(ast.parse(path.read_text()).body))
    assert imported <= {*DECLARED, *sys.stdlib_module_names, "sb3_grpo"}
