"""Test scores and the table of the MiniGrid tasks."""

from types import SimpleNamespace

import pytest
from stable_baselines3 import PPO

from benchmarks.sweeps import minigrid_tasks


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
