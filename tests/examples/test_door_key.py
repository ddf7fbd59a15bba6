"""The example of a door and its key runs, at small size; needs MiniGrid."""

import importlib
from types import ModuleType

import numpy as np
import pytest
import torch as th

# MiniGrid's own
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture
def door_key() -> ModuleType:
    """The example, imported where warnings are ignored."""
    return importlib.import_module("door_key")


def test_door_key(door_key: ModuleType) -> None:
    model = door_key.main(4096)
    assert [record.cells for record in model.groups] == [[0], [1], [2]]
    assert sum(record.steps for record in model.groups) == 2048


def test_phases(door_key: ModuleType) -> None:
    empty, key, door, agent = (1, 0, 0), (5, 4, 0), (4, 4, 2), (10, 0, 0)
    before, carried, opened = [empty, key, door, agent], [empty, empty, door, agent], [empty, empty, (4, 4, 0), agent]
    obs = th.as_tensor(np.array([before, carried, opened], np.float32).reshape(3, -1) / door_key.SCALE)
    assert door_key.phase(obs).tolist() == [0, 1, 2]
