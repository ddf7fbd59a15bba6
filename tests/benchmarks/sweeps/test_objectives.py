"""Runs and tables of several objectives."""

from typing import Any

import numpy as np
import pytest

from benchmarks.sweeps import objectives
from benchmarks.sweeps.objectives import METHODS, PROBLEMS
from sb3_grpo import GRPO

pytest.importorskip("mo_gymnasium")
pytestmark = [
    # MO-Gymnasium's own
    pytest.mark.filterwarnings("ignore:.*precision lowered by casting:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*from the environment registry:UserWarning"),
]


@pytest.mark.parametrize("method", ["PPO, fixed 0.25 : 0.75", "GRPO"])
def test_a_run(method: str) -> None:
    result = objectives.run("treasure", method, 100, total_timesteps=2048, n_evaluations=2, eval_episodes=1)
    assert result["steps"] == [1024, 2048]
    for treasure, time in result["returns"]:
        assert 0 <= treasure <= 23.7
        assert -1000 <= time <= -1
    assert [len(weights) for weights in result["weights"]] == ([2, 2] if method == "GRPO" else [0, 0])
    assert len(result["deterministic"]) == 2


@pytest.mark.parametrize(
    ("method", "rewards"),
    [
        ("PPO, sum", [0.7 - 1, 8.2 - 3]),
        # the treasures in units of 23, steps in units of 18
        ("PPO, fixed 0.25 : 0.75", [0.25 * 0.7 / 23 - 0.75 / 18, 0.25 * 8.2 / 23 - 3 * 0.75 / 18]),
        ("PPO, fixed 1 : 0", [0.7 / 23, 8.2 / 23]),
    ],
)
def test_rewards(method: str, rewards: list[float]) -> None:
    """One step down, and one to the right and two down."""
    for actions, expected in zip(([1], [3, 1, 1]), rewards, strict=True):
        env = objectives.make_env("treasure", METHODS[method].weights)()
        env.reset(seed=0)
        total, ended, found = 0.0, False, np.zeros(2)
        for action in actions:
            assert not ended
            _, reward, ended, _, info = env.step(action)
            total, found = total + float(reward), found + info["objectives"]
        assert ended
        assert total == pytest.approx(expected, rel=1e-5)
        assert found.tolist() == pytest.approx([0.7, -1] if len(actions) == 1 else [8.2, -3])


@pytest.mark.parametrize("method", [run["method"] for run in objectives.make_runs("treasure", [0])])
def test_models(method: str) -> None:
    model: Any = objectives.make_model("treasure", method, 100)
    assert (model.n_envs, model.n_steps, model.batch_size, model.learning_rate) == (8, 128, 256, 1e-3)
    assert isinstance(model, GRPO) == (not method.startswith("PPO"))
    if isinstance(model, GRPO):
        assert model.objective_names == list(PROBLEMS["treasure"].ranges)
        assert (model.group_targets is None) == (method in ("lambda 0", "GRPO, no ranges"))


def row(method: str, seed: int, *returns: float) -> dict[str, Any]:
    result = {"steps": [1000, 2000], "returns": [[0.7, -19.0], list(returns)], "weights": [[1.0, 1.0], [1.5, 0.5]]}
    result["deterministic"] = [23.7, -14.5]
    return {"run": dict(problem="treasure", method=method, seed=seed), "result": result}


def test_table_by_hand() -> None:
    # 1/2 and 3/4 of the ranges, and beyond the first
    rows = [row("GRPO", 0, 12.2, -5.5), row("PPO, sum", 0, 24.85, -10.0)]
    table = objectives.objectives_table(rows, "treasure")
    lines = [list(map(str, line)) for line in zip(*(column.cells for column in table.columns), strict=True)]
    assert lines == [
        ["PPO, sum", "1", "0.50", "0.25", "0.78", "0.50", "24.9", "-10.0"],
        ["GRPO", "1", "0.50", "0.25", "0.62", "0.38", "12.2", "-5.5"],
    ]


def test_picture(tmp_path) -> None:
    rows = [row(run["method"], run["seed"], 12.2, -5.5) for run in objectives.make_runs("treasure", range(2))]
    objectives.draw_objectives(rows, "treasure", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_grids_have_a_weight_for_each_objective() -> None:
    for problem, (_, ranges, *_) in PROBLEMS.items():
        if PROBLEMS[problem].copies:
            # merging is all that is compared
            continue
        weights = [METHODS[run["method"]].weights for run in objectives.make_runs(problem, [0])]
        found = [each for each in weights if each is not None]
        assert len(found) == 5
        assert {len(each) for each in found} == {len(ranges)}
