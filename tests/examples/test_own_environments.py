"""The example of the README is the file of the examples, has at most 25 lines, and solves its three tasks."""

import os
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/own_environments.py"


def test_the_readme_shows_it() -> None:
    code = EXAMPLE.read_text().split('"""\n', 1)[1].lstrip("\n")
    assert f"```python\n{code}```" in (ROOT / "README.md").read_text()
    assert len([line for line in code.splitlines() if line]) <= 25


@pytest.mark.slow
def test_all_tasks_are_solved(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(os.fspath(EXAMPLE))
    lines = capsys.readouterr().out.splitlines()[-3:]
    found = {name: float(value) for name, value in (line.split(": ") for line in lines)}
    # random actions: 22, -300, 0.2
    assert found["balance"] > 400
    assert found["swing"] > -120
    assert found["lights"] > 0.9
    assert {path.name for path in tmp_path.iterdir()} == {"best", "tasks.png"}
