"""Test scores, tables and pictures of the MiniGrid tasks."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CallbackList

from benchmarks.lib.minigrid import make_drawn_envs, make_env
from benchmarks.lib.task_training import TaskShares
from benchmarks.lib.variants import OwnDeviationGRPO
from benchmarks.sweeps import minigrid_tables, minigrid_tasks
from sb3_grpo import GRPO

MT3 = minigrid_tasks.SUITES["mt3"]
# the protocol's minibatches do not divide its rollouts
pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")


def test_scores_are_shares_of_what_can_be_achieved(monkeypatch: pytest.MonkeyPatch) -> None:
    returned = {task: SimpleNamespace(mean=best / 2) for task, best in enumerate(minigrid_tasks.TASKS.values())}
    monkeypatch.setattr(minigrid_tasks, "evaluate_groups", lambda *_, **__: returned)
    monkeypatch.setattr(PPO, "learn", lambda self, *_, **__: self)
    assert minigrid_tasks.run("mt3", "PPO", seed=0, n_evaluations=2)["returns"] == [[0.5, 0.5, 0.5]] * 2
    assert minigrid_tasks.run("mt7", "PPO", seed=0, n_evaluations=1)["returns"] == [[0.5] * 7]


def test_the_best_possible_returns() -> None:
    """The reward is 1 - 0.9 steps / max_steps: what MOORE calls achievable leaves each task a possible number of steps."""
    for name, best in minigrid_tasks.TASKS.items():
        unwrapped: Any = gym.make(f"minigrid:{name}").unwrapped
        assert 3 < (1 - best) / 0.9 * unwrapped.max_steps < 30


def test_table_has_half_way_end_and_second_half() -> None:
    result = {"returns": [[0.9, 0.9, 0.9], [0.0, 0.2, 0.4], [0.5, 0.1, 0.6], [0.3, 0.6, 0.9]]}
    rows = [{"run": {"method": "PPO"}, "result": result, "seconds": 170}]
    table = minigrid_tables.scores_table(rows, MT3, ["PPO"], "mt3")
    cells = [str(next(iter(column.cells))) for column in table.columns]
    # of the last two evaluations task by task: 0.4, 0.35 and 0.75, the last of which needs memory
    assert cells == ["PPO", "1", "0.00", "0.30", "0.35", "0.20", "0.60", "0.50", "0.35", "0", "3"]
    by_task = minigrid_tables.tasks_table(rows, MT3, ["PPO"])
    assert [str(next(iter(column.cells))) for column in by_task.columns] == ["PPO", "0.40", "0.35", "0.75"]
    assert [column.header for column in by_task.columns[1:]] == ["LavaGapS7", "RedBlueDoors-6x6", "MemoryS11"]
    without = minigrid_tables.scores_table(rows, minigrid_tasks.SUITES["mt2"] + ["another"], ["PPO"], "")
    assert len(without.columns) == len(table.columns) - 1


def test_a_task_is_given_up_if_it_is_never_solved_in_the_second_half() -> None:
    scores = np.ones((3, 4, 2))
    scores[0, 2:, 1] = 0  # given up
    scores[1, :3, 1] = 0  # solved at the end
    scores[2, :2] = 0  # solved in the second half
    assert minigrid_tables.given_up(scores).tolist() == [[False, True], [False, False], [False, False]]


def test_table_counts_runs_that_gave_up_the_sparse_task() -> None:
    ends = [[0.9, 0.05, 0.4], [0.9, 0.0, 0.7], [0.9, 0.5, 0.4]]
    rows = [{"run": {"method": "GRPO"}, "result": {"returns": [[0.0, 0.9, 0.0], end]}} for end in ends]
    table = minigrid_tables.sparse_table(rows, ["GRPO"])
    found = [str(next(iter(column.cells))) for column in table.columns[:3]]
    assert found == ["GRPO", "3", "2 of 3"]
    # one run: the scores of its last evaluation
    one = [str(next(iter(column.cells))) for column in minigrid_tables.sparse_table(rows[2:], ["GRPO"]).columns]
    assert one == ["GRPO", "1", "0 of 1", "0.50", "0.40", "0.60"]


def test_methods_have_their_algorithms() -> None:
    env = make_env(MT3, 0, 1)
    methods = {run["method"] for part in minigrid_tasks.PARTS for run in minigrid_tasks.make_runs(part, [0])}
    made = {method: type(minigrid_tasks.make_model(method, env, 0)) for method in methods}
    others = {"GRPO, advantages divided by their own deviation": OwnDeviationGRPO}
    assert made == {**dict.fromkeys(methods, GRPO), "PPO": PPO, "PPO, task sampling": PPO, **others}
    aimed = minigrid_tasks.make_model("GRPO, targets", env, 0)
    assert isinstance(aimed, GRPO)
    assert aimed.group_targets == [(0, 0.9633), (0, 0.99), (0, 0.5)]
    one = minigrid_tasks.make_model("GRPO, starts with one group", env, 0)
    assert isinstance(one, GRPO)
    assert (len(one.groups), one.groups[0].cells) == (1, [0, 1, 2])


def test_steps_of_each_task_are_counted() -> None:
    """Two of three environments play task 1, whatever the algorithm asks for."""
    env = make_drawn_envs(MT3[:2], 0, 2)
    for index, task in enumerate((0, 1, 1, 1)):
        env.env_method("set_task", task, indices=index)
    counter = TaskShares(2)
    model = PPO("MultiInputPolicy", env, n_steps=8, batch_size=32, device="cpu", **minigrid_tasks.METHODS["PPO"])
    model.learn(32, CallbackList([counter]))
    assert counter.take() == [0.25, 0.75]
    assert counter.counts.sum() == 0


def test_a_short_run_of_each_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture needs what a run returns: with sampling the shares of the tasks, of GRPO their weights and groups."""
    for name, value in dict(STEPS_PER_ROLLOUT=64, ENVS_PER_TASK=4, EVAL_EPISODES=1).items():
        monkeypatch.setattr(minigrid_tasks, name, value)
    runs = [run for run in minigrid_tasks.make_runs("mt2", [0]) if run["method"] in ("PPO", "GRPO, task sampling")]
    rows = [{"run": run, "result": minigrid_tasks.run(**run, steps_per_task=128, n_evaluations=1)} for run in runs]
    plain, sampled = (row["result"] for row in rows)
    assert set(plain) == {"steps", "returns"}
    assert sum(sampled["shares"][0]) == pytest.approx(1)
    assert np.shape(sampled["weights"]) == (1, 2)
    assert sampled["cell_to_group"] == [0, 1]
    for draw in (minigrid_tables.draw_tasks, minigrid_tables.draw_groups):
        draw(rows, minigrid_tasks.SUITES["mt2"], minigrid_tasks.METHODS, tmp_path / f"{draw.__name__}.png")
        assert (tmp_path / f"{draw.__name__}.png").stat().st_size > 10_000
