"""The environment and the arithmetic of the growth measurement."""

from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env

from benchmarks.performance.growth import N_FREQUENT, Tasks, make, summarize


def test_the_environment_is_one_of_gymnasiums():
    check_env(Tasks(3, 2))


def test_a_task_is_shown_and_rewards_its_action():
    env = Tasks(5, 2)
    seen = set()
    for seed in range(40):
        observation = env.reset(seed=seed)[0]
        (task,) = np.flatnonzero(observation[2:])
        seen.add(task)
        for step in range(8):
            action = int(env.np_random.integers(4))
            observation, reward, terminated, truncated, _ = env.step(action)
            assert np.flatnonzero(observation[2:]).tolist() == [task]
            assert reward == (action == task % 4)
            assert (terminated, truncated) == (step == 7, False)
    assert seen == {0, 1, 2, 3, 4}


def test_some_tasks_are_frequent_where_there_are_many():
    env, counts = Tasks(256, 1), np.zeros(256)
    for seed in range(2000):
        counts[np.argmax(env.reset(seed=seed)[0][1:])] += 1
    # 3/4 and a quarter of the rest
    assert counts[:N_FREQUENT].sum() / counts.sum() == pytest.approx(0.75 + 0.25 / 4, abs=0.03)


def test_each_task_has_a_group_to_begin_with():
    model: Any = make("GRPO", {"n_tasks": 3, "n_envs": 2, "width": 2})
    assert [record.cells for record in model.groups] == [[0], [1], [2]]
    assert model.n_steps * model.n_envs == 2048


def test_medians_of_ratios_in_one_turn():
    """The machine was twice as slow in the second turn, and three times in the third."""
    repeats = {
        "PPO": [{"training": t, "probes and regrouping": 0.0} for t in (2.0, 4.0, 6.0)],
        "GRPO": [{"training": t, "probes and regrouping": s} for t, s in ((1.0, 0.1), (2.0, 0.1), (4.0, 0.1))],
    }
    summary = summarize({"repeats": repeats, "peak_mib": {"PPO": 400.0, "GRPO": 410.0}})
    assert summary["GRPO"]["ratio_to_ppo"] == 2
    assert summary["GRPO"]["regrouping"] == pytest.approx(0.05)
    assert summary["GRPO"]["steps_per_second"] == 1024
    assert summary["GRPO"]["memory"] == pytest.approx(1.025)
    assert summary["PPO"]["ratio_to_ppo"] == summary["PPO"]["memory"] == 1
