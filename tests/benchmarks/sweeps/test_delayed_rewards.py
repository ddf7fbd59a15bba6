"""Runs and table of late rewards."""

import math
from typing import Any

import pytest

from benchmarks.sweeps import delayed_rewards


@pytest.mark.parametrize("method", ["PPO", "outcome", "batch mean"])
def test_a_run(method: str) -> None:
    result = delayed_rewards.run("umbrella", method, 100, total_timesteps=3200, n_evaluations=2, eval_episodes=20)
    assert result["steps"] == [1600, 3200]
    assert all(0 <= share <= 1 for share in result["successes"])


@pytest.mark.parametrize("method", delayed_rewards.METHODS)
@pytest.mark.parametrize("problem", delayed_rewards.PROBLEMS)
def test_models(problem: str, method: str) -> None:
    model: Any = delayed_rewards.make_model(problem, method, 100)
    learning_rate = {"lights out": 3e-3, "umbrella": 1e-3, "umbrella, distractors": 3e-4}[problem]
    assert (model.n_envs, model.learning_rate, model.ent_coef) == (16, learning_rate, 0.01)
    assert model.gamma == (0.99 if method == "PPO" else 1.0)
    assert any("value_net" in name for name in model.policy.state_dict()) == method.startswith("PPO")
    # whole episodes fit into a rollout, and a rollout into minibatches
    assert model.n_steps % {"lights out": 9}.get(problem, 50) == 0
    assert model.n_steps * 16 % model.batch_size == 0


def test_steps_until_solved() -> None:
    steps = [1000, 2000, 3000]
    assert delayed_rewards.steps_until_solved({"steps": steps, "successes": [0.2, 0.9, 0.5]}) == 2000
    assert delayed_rewards.steps_until_solved({"steps": steps, "successes": [0.2, 0.89, 0.5]}) == math.inf


def test_table() -> None:
    rows = [
        {"run": dict(problem="umbrella", method="outcome", seed=0), "result": {"steps": [1000, 2000], "successes": shares}}
        for shares in ([0.5, 1.0], [0.5, 0.5], [0.9, 1.0])
    ]
    table = delayed_rewards.successes_table(rows)
    cells = [list(map(str, line)) for line in zip(*(column.cells for column in table.columns), strict=True)]
    assert [line[:4] for line in cells] == [["umbrella", "outcome", "3", "2k (2 of 3)"]]
