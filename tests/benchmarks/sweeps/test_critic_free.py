"""Test runs and tables of advantages without a critic, and the published baseline."""

from typing import Any

import numpy as np
import pytest

from benchmarks.lib.batch_mean import BatchMeanEstimator
from benchmarks.sweeps import critic_free
from sb3_grpo.buffers import Rollout
from sb3_grpo.estimators.critic_free import Returns
from sb3_grpo.estimators.sampling_groups import Steps, Trajectories


@pytest.mark.parametrize("method", critic_free.METHODS)
def test_the_protocol(method: str) -> None:
    # schedules are floats to the type checker
    model: Any = critic_free.make_model("CartPole-v1", critic_free.METHODS[method], 8, seed=100)
    assert type(model).__name__ == ("PPO" if method == "PPO" else "GRPO")
    assert model.learning_rate(1.0) == 2.5e-4
    assert model.learning_rate(0.5) == 1.25e-4
    assert (model.n_epochs, model.batch_size, model.ent_coef, model.clip_range(1.0)) == (4, 256, 0.01, 0.2)
    assert (model.n_steps, model.n_envs) == (128 if method == "PPO" else 512, 8)
    assert any("value_net" in name for name in model.policy.state_dict()) == (method == "PPO")


@pytest.mark.parametrize("method", ["PPO", "batch mean"])
def test_a_run(method: str) -> None:
    result = critic_free.run("CartPole-v1", method, 8, seed=100, total_timesteps=1600, n_evaluations=2)
    assert result["steps"][:2] == [800, 1600]
    assert all(8 <= each <= 500 for each in result["returns"])


def test_batch_mean_by_hand() -> None:
    """Five episodes of one step, compared with those of their own batch; the last batch takes what is left over."""
    numbers, outcomes = np.arange(5), np.array([1.0, 3.0, 0.0, 0.0, 3.0])
    steps = Steps(Rollout(*[None] * 8), numbers, outcomes, numbers, np.zeros(5, dtype=int))  # type: ignore[arg-type]  # not read
    found = Trajectories(steps, numbers, np.ones(5, dtype=int), numbers, np.zeros(5, dtype=bool))
    relative = BatchMeanEstimator(2, 1.0, batch_of=2, scale="none").compare(found, Returns(outcomes, outcomes))
    np.testing.assert_allclose(relative.values, [-1, 1, -1, -1, 2])


def row(env_id: str, method: str, seed: int, returns: list[float]) -> dict[str, Any]:
    run = dict(env_id=env_id, method=method, group_size=8, seed=seed)
    return {"run": run, "result": {"steps": [1000, 2000], "returns": returns}}


def test_table() -> None:
    rows = [row("CartPole-v1", "PPO", 0, [100.0, 300.0]), row("CartPole-v1", "outcome", 0, [100.0, 120.0])]
    table = critic_free.returns_table(rows, "classic")
    cells = [list(map(str, line)) for line in zip(*(column.cells for column in table.columns), strict=True)]
    assert cells == [
        ["CartPole-v1", "8", "PPO", "1", "200", "300"],
        ["CartPole-v1", "8", "outcome", "1", "110.0", "120.0"],
    ]


def test_every_part_has_every_run_once() -> None:
    for part, (methods, problems, sizes) in critic_free.PARTS.items():
        runs = critic_free.make_runs(part, range(3))
        without = 3 * (part == "classic")  # process on CartPole is outcome
        assert len({str(run) for run in runs}) == len(runs) == 3 * len(methods) * len(problems) * len(sizes) - without
