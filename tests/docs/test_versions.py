"""The tables of versions agree with what is declared."""

import re

import pytest
from pages import EXTRAS, REPOSITORY

import sb3_grpo

PROJECT = (REPOSITORY / "pyproject.toml").read_text()
DECLARED = dict(re.findall(r'^    "([a-z0-9-]+)(>=[^"]+)",$', PROJECT, re.MULTILINE))
TABLE = dict(re.findall(r"^\| ([\w-]+) \| `([^`]+)` \|", (REPOSITORY / "docs/compatibility.md").read_text(), re.MULTILINE))
PACKAGES = {"Stable-Baselines3": "stable-baselines3", "Gymnasium": "gymnasium", "NumPy": "numpy", "torch": "torch"}


def test_compatible_versions() -> None:
    python = re.search(r'requires-python = "(.*)"', PROJECT)
    assert python
    assert {"Python": python[1], **{shown: DECLARED[name] for shown, name in PACKAGES.items()}} == TABLE


@pytest.mark.parametrize("extra", EXTRAS)
def test_extras_are_explained(extra: str) -> None:
    assert f"`{extra}`" in (REPOSITORY / "docs/compatibility.md").read_text()


@pytest.mark.parametrize(
    ("file", "pattern"), [("CITATION.cff", r"^version: (.+)$"), ("docs/citing.md", r"version = \{(.+)\}")]
)
def test_cited_version(file: str, pattern: str) -> None:
    assert re.findall(pattern, (REPOSITORY / file).read_text(), re.MULTILINE) == [sb3_grpo.__version__]
