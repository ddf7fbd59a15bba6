"""What ruff cannot check of docstrings: a public method has its own or that of the method which it overrides."""

import importlib
import inspect
import pkgutil
from types import FunctionType

import pytest

import sb3_grpo

# modules that need an extra are left out
MODULES = [
    module.name
    for module in pkgutil.walk_packages(sb3_grpo.__path__, "sb3_grpo.")
    if module.name.split(".")[1] != "zoo" and module.name != "sb3_grpo.envs.lunar_lander"
]


@pytest.mark.parametrize("name", MODULES)
def test_public_methods_are_documented(name):
    classes = [cls for _, cls in inspect.getmembers(importlib.import_module(name), inspect.isclass) if cls.__module__ == name]
    methods = [
        getattr(cls, attribute)
        for cls in classes
        for attribute, value in vars(cls).items()
        if not attribute.startswith("_") and isinstance(value, (property, classmethod, staticmethod, FunctionType))
    ]
    assert [method for method in methods if not inspect.getdoc(method)] == []
