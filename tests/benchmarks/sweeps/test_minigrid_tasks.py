"""Test scores and the table of the MiniGrid tasks."""

from types import SimpleNamespace

import pytest
from stable_baselines3 import PPO

from benchmarks.lib.minigrid import make_env
from benchmarks.lib.variants import OwnDeviationGRPO
from benchmarks.sweeps import minigrid_tasks
from sb3_grpo import GRPO


# the protocol's minibatches do not divide its rollouts
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size of 768")
def test_scores_are_shares_of_what_can_be_achieved(monkeypatch: pytest.MonkeyPatch) -> None:
    returned = {task: SimpleNamespace(mean=best / 2) for task, best in enumerate(minigrid_tasks.TASKS.values())}
    monkeypatch.setattr(minigrid_tasks, "evaluate_groups", lambda *_, **__: returned)
    monkeypatch.setattr(PPO, "learn", lambda self, *_, **__: self)
    assert minigrid_tasks.run("mt3", "PPO", seed=0, n_evaluations=2)["returns"] == [[0.5, 0.5, 0.5]] * 2


def test_table_has_half_way_end_and_second_half() -> None:
    result = {"returns": [[0.9, 0.9, 0.9], [0.0, 0.2, 0.4], [0.5, 0.1, 0.6], [0.3, 0.6, 0.9]]}
    table = minigrid_tasks.scores_table([{"run": {"method": "PPO"}, "result": result}], "mt3")
    cells = [str(next(iter(column.cells))) for column in table.columns]
    # of the last two evaluations task by task: 0.4, 0.35 and 0.75
    assert cells == ["PPO", "1", "0.00", "0.30", "0.35", "0.20", "0.60", "0.50", "0.30", "0.60", "0.90"]


def test_table_counts_runs_that_gave_up_the_sparse_task() -> None:
    ends = [[0.9, 0.05, 0.4], [0.9, 0.0, 0.7], [0.9, 0.5, 0.4]]
    rows = [{"run": {"method": "GRPO"}, "result": {"returns": [[0.0, 0.9, 0.0], end]}} for end in ends]
    table = minigrid_tasks.sparse_table(rows)
    found = [str(next(iter(column.cells))) for column in table.columns[:3]]
    assert found == ["GRPO", "3", "2 of 3"]
    # one run: the scores of its last evaluation
    one = [str(next(iter(column.cells))) for column in minigrid_tasks.sparse_table(rows[2:]).columns]
    assert one == ["GRPO", "1", "0 of 1", "0.50", "0.40", "0.60"]


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size of 768")
def test_methods_have_their_algorithms() -> None:
    env = make_env(list(minigrid_tasks.TASKS), 0, 1)
    methods = {run["method"] for suite in minigrid_tasks.SUITES for run in minigrid_tasks.make_runs(suite, [0])}
    made = {method: type(minigrid_tasks.make_model(method, env, 0)) for method in methods}
    others = {"PPO": PPO, "GRPO, advantages divided by their own deviation": OwnDeviationGRPO}
    assert made == {**dict.fromkeys(methods, GRPO), **others}
