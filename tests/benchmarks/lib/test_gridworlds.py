from collections import deque
from typing import Any

import numpy as np
import pytest
from gridworld_policies import make_linear, set_way
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks.lib.gridworlds import WALLS, TaskGridWorld, success_probabilities
from sb3_grpo import GRPO

UP, DOWN, LEFT, RIGHT = range(4)


def play(task: int, actions: list[int]) -> tuple[list[Any], dict[str, Any]]:
    """Return rewards until the episode ends or no action is left, and the last step with its end and info."""
    env = TaskGridWorld(task=task)
    env.reset(seed=0)
    rewards: list[float] = []
    for action in actions:
        obs, reward, terminated, truncated, info = env.step(action)
        rewards.append(reward)
        if terminated:
            break
    return rewards, dict(obs=obs, terminated=terminated, truncated=truncated, **info)


class TestTaskGridWorld:
    def test_it_is_a_gymnasium_environment(self):
        check_env(TaskGridWorld(), skip_render_check=True)

    @pytest.mark.parametrize("task", range(4))
    def test_the_way_round_the_wall_is_paid(self, task):
        n = WALLS[task]
        rewards, last = play(task, [DOWN] * n + [RIGHT] * 4 + [UP] * n)
        assert len(rewards) == 2 * n + 4
        assert rewards == [-0.001] * (2 * n + 3) + [1.0]
        assert last["terminated"]
        assert not last["truncated"]
        assert last["is_success"] is True
        assert last["task"] == task

    @pytest.mark.parametrize("task", range(1, 4))
    def test_the_way_of_an_easier_task_ends_at_the_wall(self, task):
        n = WALLS[task - 1]
        _, last = play(task, [DOWN] * n + [RIGHT] * 4)
        # row n, column 1, and the task
        expected = np.zeros(29)
        expected[[5 * n + 1, 25 + task]] = 1
        np.testing.assert_array_equal(last["obs"], expected)
        assert not last["terminated"]

    @pytest.mark.parametrize("action", [UP, LEFT])
    def test_an_episode_ends_without_success_after_15_steps(self, action):
        rewards, last = play(0, [action] * 20)
        assert rewards == [-0.001] * 15
        assert last["obs"][0] == 1
        assert last["terminated"]
        assert last["is_success"] is False

    @pytest.mark.parametrize(("task", "steps"), [(0, 6), (1, 8), (2, 10), (3, 12)])
    def test_shortest_way(self, task, steps):
        env = TaskGridWorld(task=task)
        env.reset(seed=0)
        ways: deque[tuple[int, ...]] = deque([()])
        seen = {0}
        found = None
        while found is None:
            way = ways.popleft()
            for action in range(4):
                env.reset()
                for before in way:
                    env.step(before)
                obs, _, _, _, info = env.step(action)
                if info["is_success"]:
                    found = len(way) + 1
                elif obs[:25].argmax() not in seen:
                    seen.add(obs[:25].argmax())
                    ways.append((*way, action))
        assert found == steps


def played_success(model: Any, task: int, n_episodes: int) -> float:
    """Return the share of episodes that reach the goal, played with drawn actions."""
    env = DummyVecEnv([lambda: TaskGridWorld(task=task)] * n_episodes)
    obs: Any = env.reset()
    successes = np.zeros(n_episodes, dtype=bool)
    running = np.ones(n_episodes, dtype=bool)
    for _ in range(15):
        actions, _ = model.predict(obs, deterministic=False)
        obs, _, dones, infos = env.step(actions)
        successes |= running & [info["is_success"] for info in infos]
        running &= ~dones
    assert not running.any()
    return successes.mean()


class TestSuccessProbabilities:
    @pytest.mark.parametrize("wall", WALLS)
    def test_a_certain_way_solves_the_tasks_with_a_shorter_wall(self, wall):
        model = make_linear(PPO)
        set_way(model, wall, 100.0)
        np.testing.assert_allclose(success_probabilities(model), [float(wall >= other) for other in WALLS], atol=1e-6)

    def test_of_an_uncertain_way_are_those_played(self):
        model = make_linear(PPO)
        set_way(model, 2, 2.0)
        found = success_probabilities(model)
        assert 0.4 < found[0] < 0.6
        assert found[3] < 0.01
        for task, expected in enumerate(found):
            assert played_success(model, task, 400) == pytest.approx(expected, abs=0.1)

    def test_each_task_has_its_own_head(self):
        model = make_linear(GRPO, router="one_hot", router_kwargs=dict(columns=(25, 29)))
        set_way(model, 1, 100.0, head=0)
        set_way(model, 4, 100.0, head=1)
        set_way(model, 2, 100.0, head=2)
        set_way(model, 4, 100.0, head=3)
        np.testing.assert_allclose(success_probabilities(model), [1, 1, 0, 1], atol=1e-6)
