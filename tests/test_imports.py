"""Imports point one way: mathematics and routers at the bottom, the algorithm at the top."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sb3_grpo

PACKAGE = Path(sb3_grpo.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# What a module may import of the package when it is imported, in the order in which modules build on each other. `BELOW`:
# any module above its own line. Only the zoo is beyond the last line
BELOW = None
ALLOWED: dict[str, set[str] | None] = {
    # pure functions, and what stands alone
    "losses": set(),
    "distributions": set(),
    "envs": set(),
    "action_masks": {"distributions", "envs"},
    "vec_env": {"action_masks", "envs"},
    "heads": set(),
    "regroup_plan": set(),
    "interrupts": set(),
    "saving": set(),
    "tensorboard": set(),
    "env_tasks": {"envs"},
    # what is known of rewards, values, groups and probes
    "reward_scale": set(),
    "episode_history": set(),
    "value_scale": {"losses"},
    "preprocessing": set(),
    "routing": {"preprocessing"},
    "compilation": set(),
    "grouping": {"regroup_plan", "routing"},
    "probe_math": {"distributions", "regroup_plan"},
    "probes": {"distributions", "probe_math", "regroup_plan"},
    "agreement": {"probe_math", "regroup_plan"},
    "plots": {"regroup_plan"},
    "buffers": set(),
    "advantages": {"losses"},
    "recording": {"buffers"},
    "objectives": {"buffers", "recording"},
    "evaluation": {"env_tasks", "interrupts", "objectives"},
    "estimators": {"buffers", "losses", "recording"},
    "scores": {"episode_history", "losses", "recording", "reward_scale"},
    "balancing": {"losses", "scores"},
    "diagnostics": {"buffers", "env_tasks", "heads", "losses", "routing"},
    # the policy, and what is done with it
    "headed_policy": {
        "action_masks",
        "buffers",
        "diagnostics",
        "distributions",
        "envs",
        "grouping",
        "heads",
        "interrupts",
        "preprocessing",
        "regroup_plan",
        "routing",
        "value_scale",
    },
    "policies": {"compilation", "diagnostics", "distributions", "headed_policy"},
    "regrouping": {
        "agreement",
        "buffers",
        "distributions",
        "grouping",
        "interrupts",
        "policies",
        "probes",
        "regroup_plan",
        "reward_scale",
    },
    "group_kinds": {
        "balancing",
        "buffers",
        "diagnostics",
        "env_tasks",
        "grouping",
        "headed_policy",
        "objectives",
        "policies",
        "recording",
        "regrouping",
        "scores",
    },
    "objective": {"buffers", "losses", "policies"},
    "reference": {"buffers", "policies"},
    "export": {"policies", "reference", "routing", "saving"},
    "update": {"buffers", "compilation", "interrupts", "losses", "objective", "policies"},
    "epochs": {"buffers", "diagnostics", "losses", "policies", "update"},
    "rules": set(),
    "targets": {"rules", "scores"},
    "episode_arguments": {"estimators", "rules"},
    "arguments": {
        "balancing",
        "buffers",
        "envs",
        "episode_arguments",
        "estimators",
        "objectives",
        "policies",
        "routing",
        "rules",
        "scores",
        "targets",
    },
    "callbacks": {"evaluation", "interrupts", "plots", "regroup_plan", "regrouping", "rules", "saving", "tensorboard"},
    "episode_log": {"env_tasks", "envs"},
    "task_sampling": {
        "balancing",
        "env_tasks",
        "estimators",
        "interrupts",
        "recording",
        "rules",
        "scores",
        "targets",
    },
    # the algorithm
    "model_files": BELOW,
    "grpo": BELOW,
    "__init__": BELOW,
}
# What a module names in annotations only, although it is not below it: these imports are never executed
ANNOTATED: dict[str, set[str]] = {"diagnostics": {"balancing", "policies", "scores", "update"}, "preprocessing": {"routing"}}
ZOO = {"zoo", "zoo_configs"}


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


def files_of(name: str) -> list[Path]:
    """The module, or the modules of the subpackage."""
    return sorted((PACKAGE / name).glob("*.py")) or [PACKAGE / f"{name}.py"]


def executed_modules(name: str) -> set[str]:
    """Modules of the package that are imported with this one or by its functions, without those of annotations only."""
    trees = [ast.parse(path.read_text()) for path in files_of(name)]
    sources = [ast.unparse(RemoveAnnotated().visit(tree)) for tree in trees]
    return set().union(*(own_modules(imported_names(source, "sb3_grpo")) for source in sources)) - {name}


class RemoveAnnotated(ast.NodeTransformer):
    """Without ``if TYPE_CHECKING:``."""

    def visit_If(self, node: ast.If) -> ast.AST:
        is_annotation = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return ast.Pass() if is_annotation else self.generic_visit(node)


def test_every_module_is_listed():
    modules = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert modules - ZOO == ALLOWED.keys()


@pytest.mark.parametrize("name", ALLOWED)
def test_a_module_imports_only_what_is_below_it(name):
    names = list(ALLOWED)
    below = set(names[: names.index(name)])
    allowed = ALLOWED[name]
    assert allowed is BELOW or allowed <= below, "the list itself must be in order"
    assert executed_modules(name) <= (below if allowed is BELOW else allowed)


@pytest.mark.parametrize("name", [name for name, allowed in ALLOWED.items() if allowed])
def test_the_list_allows_nothing_that_is_not_used(name):
    assert executed_modules(name) == ALLOWED[name]


@pytest.mark.parametrize("name", ALLOWED)
def test_other_modules_are_named_in_annotations_only_where_it_is_listed(name):
    named = set().union(*(own_modules(imports_of(path)) for path in files_of(name))) - executed_modules(name) - {name}
    assert named == ANNOTATED.get(name, set())


def test_an_annotation_is_told_from_an_import(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    for name in ("policies", "losses", "heads"):
        (tmp_path / f"{name}.py").touch()
    source = (
        "from typing import TYPE_CHECKING\nfrom sb3_grpo.losses import f\nif TYPE_CHECKING:\n    import sb3_grpo.policies\n"
    )
    (tmp_path / "module.py").write_text(f"{source}def g():\n    from sb3_grpo import heads\n")
    assert executed_modules("module") == {"losses", "heads", "__init__"}


@pytest.mark.parametrize(
    "path", [path for path in MODULES if "zoo" not in str(path.relative_to(PACKAGE))], ids=lambda p: p.stem
)
def test_only_the_zoo_modules_import_the_zoo(path):
    assert not {name for name in imports_of(path) if name.split(".")[0] == "rl_zoo3"}
    assert not own_modules(imports_of(path)) & ZOO


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


# RL Zoo is an extra: functions of `zoo/__init__.py` load the other modules of the folder
@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if path.parent.name != "zoo" or path.stem.startswith("__")],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_only_declared_packages_are_imported_at_once(path):
    imported = set(executed_imports(ast.parse(path.read_text()).body))
    assert imported <= {*DECLARED, *sys.stdlib_module_names, "sb3_grpo"}
