"""The examples run, at small size."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch as th

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_hidden_types(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load("hidden_types").main(8192, str(tmp_path / "picture.png"))
    assert (tmp_path / "picture.png").stat().st_size > 0
    assert "of 500" in capsys.readouterr().out
    assert len(model.policy.grouping.cell_to_group) == 10


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_door_key() -> None:
    example = load("door_key")
    model = example.main(4096)
    assert [record.cells for record in model.groups] == [[0], [1], [2]]
    assert sum(record.steps for record in model.groups) == 2048


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_phases_of_door_key() -> None:
    example = load("door_key")
    empty, key, door, agent = (1, 0, 0), (5, 4, 0), (4, 4, 2), (10, 0, 0)
    before, carried, opened = [empty, key, door, agent], [empty, empty, door, agent], [empty, empty, (4, 4, 0), agent]
    obs = th.as_tensor(np.array([before, carried, opened], np.float32).reshape(3, -1) / example.SCALE)
    assert example.phase(obs).tolist() == [0, 1, 2]
