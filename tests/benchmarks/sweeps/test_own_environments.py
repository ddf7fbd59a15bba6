"""Runs and table of three environments that have nothing to do with each other."""

import math
from typing import Any

import numpy as np
import pytest

from benchmarks.sweeps import own_environments


def test_a_run() -> None:
    result = own_environments.run("GRPO", 100, total_timesteps=3072, n_evaluations=2, eval_episodes=1)
    assert result["steps"] == [1536, 3072]
    ((balance, swing, lights), _) = result["returns"]
    assert 8 <= balance <= 500
    assert -500 <= swing <= -60
    assert lights in (0, 1)


@pytest.mark.parametrize("method", own_environments.METHODS)
def test_models(method: str) -> None:
    model: Any = own_environments.make_model(method, 100)
    assert (model.n_envs, model.n_steps, model.batch_size, model.learning_rate) == (12, 128, 256, 3e-4)
    if method != "PPO":
        assert len(model.groups) == (1 if method == "one group" else 3)
        assert model.policy.action_masks is not None


def test_progress_by_hand() -> None:
    returns = np.array([[0.0, -500.0, 0.0], [237.5, -300.0, 0.475], [475.0, -100.0, 0.95], [500.0, -70.0, 1.0]])
    assert own_environments.progress_of(returns).tolist() == [[0.0] * 3, [0.5] * 3, [1.0] * 3, [1.0] * 3]


def test_steps_until_solved() -> None:
    solved, not_quite = [480.0, -90.0, 1.0], [480.0, -100.5, 1.0]
    steps = [1000, 2000, 3000]
    assert own_environments.steps_until_solved({"steps": steps, "returns": [not_quite, solved, not_quite]}) == 2000
    assert own_environments.steps_until_solved({"steps": steps, "returns": [not_quite] * 3}) == math.inf


def test_table() -> None:
    ends = ([500.0, -80.0, 1.0], [500.0, -80.0, 1.0], [500.0, -200.0, 1.0])
    rows = [
        {"run": dict(method="GRPO", seed=0), "result": {"steps": [1000, 2000], "returns": [[0.0, -500.0, 0.0], end]}}
        for end in ends
    ]
    table = own_environments.returns_table(rows)
    (cells,) = [list(map(str, line)) for line in zip(*(column.cells for column in table.columns), strict=True)]
    assert cells[:3] == ["GRPO", "3", "2k (2 of 3)"]
    # means of 0 and 1, 1, 0.75
    assert cells[3].startswith("0.46")
    assert cells[4].startswith("500 ")
