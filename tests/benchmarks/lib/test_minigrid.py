from collections import Counter
from copy import deepcopy
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
from minigrid.core.world_object import Ball, Key
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv
from vec_env.recording import assert_same_observation

from benchmarks.lib import minigrid
from benchmarks.lib.minigrid import PoolView, make_drawn_envs, make_env, make_pools, make_python_envs, remember_views
from benchmarks.sweeps.minigrid_tasks import METHODS, TASKS
from sb3_grpo import evaluate_groups

NAMES = list(TASKS)
EMPTY = "MiniGrid-Empty-5x5-v0"  # always begins in the same state


@pytest.mark.parametrize("name", TASKS)
def test_remembered_views_are_those_drawn_anew(name):
    plain: Any
    other: Any
    plain, other = gym.make(f"minigrid:{name}"), remember_views(gym.make(f"minigrid:{name}"))
    draw = mock.Mock(side_effect=other.unwrapped.gen_obs_grid)
    other.unwrapped.gen_obs_grid = draw
    rng = np.random.default_rng(0)
    ended = True
    for step in range(1000):
        if ended:
            carried = [None, Key("grey"), Ball("green")][rng.integers(3)]
            for env in (plain, other):
                env.reset(seed=step)
                env.unwrapped.carrying = deepcopy(carried)
        # turns, walks, and opens doors
        action = rng.choice([0, 1, 2, 5], p=[0.2, 0.2, 0.5, 0.1])
        (obs, *outcome, _), (remembered, *same, _) = (env.step(action) for env in (plain, other))
        assert outcome == same
        np.testing.assert_array_equal(obs["image"], remembered["image"])
        remembered["image"][:] = 255  # what is returned is the caller's
        ended = any(outcome[1:])
    assert 50 < draw.call_count < 1000


def test_environments_that_draw_tasks_are_those_of_minigrid():
    """An environment that plays one task only is MiniGrid's, also where others have seen the same views."""
    names = [EMPTY, *NAMES[:1]]
    drawn = make_drawn_envs(names, 0, 2)
    theirs = make_python_envs(names, 0, 2)
    assert drawn.observation_space == theirs.observation_space
    for index in range(4):
        drawn.env_method("set_task", index // 2, indices=index)
    # both seed environment i with i
    for (obs, *outcome), (other, *others) in zip(
        *(zip(*play(env, 300)[:3], strict=False) for env in (drawn, theirs)), strict=True
    ):
        assert_same_observation(obs, other)
        np.testing.assert_array_equal(outcome, others)


def test_no_more_views_are_remembered_than_allowed(monkeypatch):
    monkeypatch.setattr(minigrid, "MAX_REMEMBERED", 10)
    drawn: dict[Any, Any] = {}
    env = remember_views(gym.make("minigrid:MiniGrid-SimpleCrossingS9N2-v0"), drawn)
    sizes = []
    for seed in range(50):
        env.reset(seed=seed)
        env.step(0)
        sizes.append(len(drawn))
    assert max(sizes) <= 10
    assert max(sizes) > 5


def play(env, n_steps, seed=0):
    """Observations, rewards, ends and infos of a policy that turns, walks, picks up, and opens doors."""
    observations: list[Any] = [env.reset()]
    rewards: list[Any] = []
    dones: list[Any] = []
    infos: list[Any] = []
    rng = np.random.default_rng(seed)
    for _ in range(n_steps):
        obs, *outcome = env.step(rng.choice([0, 1, 2, 3, 5], p=[0.2, 0.2, 0.4, 0.1, 0.1], size=env.num_envs))
        observations.append(obs)
        for values, value in zip((rewards, dones, infos), outcome, strict=True):
            values.append(value)
    return observations, np.array(rewards), np.array(dones), infos


class TestPools:
    @pytest.fixture(autouse=True)
    def envpool(self):
        pytest.importorskip("envpool")

    def test_spaces_are_those_of_minigrid(self):
        pools, theirs = make_pools(NAMES, 0, 1), make_python_envs(NAMES, 0, 1)
        assert pools.observation_space == theirs.observation_space
        assert pools.action_space == theirs.action_space

    def test_trajectories_from_a_fixed_state_are_those_of_minigrid(self):
        mine, theirs = (play(make([EMPTY, EMPTY], 0, 2), 400) for make in (make_pools, make_python_envs))
        for obs, other in zip(mine[0], theirs[0], strict=True):
            assert_same_observation(obs, other)
        np.testing.assert_allclose(mine[1], theirs[1], rtol=1e-6)  # EnvPool computes rewards in float32
        np.testing.assert_array_equal(mine[2], theirs[2])
        truncated = set()
        for t, i in zip(*np.nonzero(theirs[2]), strict=True):
            info, other = mine[3][t][i], theirs[3][t][i]
            assert_same_observation(info["terminal_observation"]["view"], other["terminal_observation"]["view"])
            assert info["terminal_observation"]["task"] == info["task"] == other["task"] == i // 2
            # a goal in the very last step is a truncation too for EnvPool
            if theirs[1][t, i] == 0:
                assert info["TimeLimit.truncated"] == other["TimeLimit.truncated"]
            assert info["episode"]["l"] == other["episode"]["l"]
            assert info["episode"]["r"] == pytest.approx(other["episode"]["r"], abs=1e-6)
            truncated.add(info["TimeLimit.truncated"])
        assert truncated == {True, False}

    def test_another_walk_differs(self):
        mine, theirs = play(make_pools([EMPTY], 0, 2), 50, 0), play(make_python_envs([EMPTY], 0, 2), 50, 1)
        assert any((obs["view"] != other["view"]).any() for obs, other in zip(mine[0], theirs[0], strict=True))

    @pytest.mark.parametrize("name", TASKS)
    def test_episodes_begin_with_the_views_of_minigrid(self, name):
        def first_views(env):
            return Counter(view.tobytes() for _ in range(30) for view in env.reset()["view"])

        theirs = first_views(make_python_envs([name], 0, 20))
        others = first_views(make_python_envs([name], 1000, 20))
        # as often as in MiniGrid's environments with another seed, but for chance
        expected = (theirs & others).total()
        assert (theirs & first_views(make_pools([name], 0, 20))).total() > 0.9 * expected
        for other in TASKS.keys() - {name}:
            assert (theirs & first_views(make_pools([other], 0, 20))).total() < 0.5 * expected

    @pytest.mark.parametrize("name", TASKS)
    def test_a_random_walk_is_paid_as_in_minigrid(self, name):
        unwrapped: Any = gym.make(f"minigrid:{name}").unwrapped
        limit = unwrapped.max_steps
        found = []
        for env in (make_pools([name], 0, 8), make_python_envs([name], 0, 8)):
            observations, rewards, dones, infos = play(env, 800)
            episodes = np.array(
                [(infos[t][i]["episode"]["r"], infos[t][i]["episode"]["l"]) for t, i in zip(*np.nonzero(dones), strict=True)]
            )
            paid = episodes[episodes[:, 0] > 0]
            np.testing.assert_allclose(paid[:, 0], 1 - 0.9 * paid[:, 1] / limit, atol=1e-5)
            assert episodes[:, 1].max() <= limit
            for t, i in zip(*np.nonzero(dones), strict=True):
                if infos[t][i]["episode"]["l"] < limit or rewards[t, i] == 0:
                    assert infos[t][i]["TimeLimit.truncated"] == (infos[t][i]["episode"]["l"] == limit)
            cells = {cell.tobytes() for obs in observations[::5] for cell in np.moveaxis(obs["view"], 1, -1).reshape(-1, 3)}
            found.append((episodes, cells))
        (mine, my_cells), (theirs, their_cells) = found
        assert my_cells == their_cells
        errors = np.sqrt(mine.var(0) / len(mine) + theirs.var(0) / len(theirs))
        assert (abs(mine.mean(0) - theirs.mean(0)) <= 3.5 * errors).all()

    def test_a_model_is_evaluated_by_task(self):
        env = make_pools([EMPTY, *NAMES[:1]], 0, 2)
        model = PPO("MultiInputPolicy", env, n_steps=8, batch_size=16, seed=0, device="cpu", **METHODS["PPO"])
        model.learn(32)
        found = evaluate_groups(model, make_pools([EMPTY, *NAMES[:1]], 1, 1), 2, deterministic=False)
        assert {task: result.n_episodes for task, result in found.items()} == {0: 1, 1: 1}

    def test_they_are_taken_where_they_are(self, monkeypatch):
        assert isinstance(make_env(NAMES, 0, 1), PoolView)
        monkeypatch.setattr(minigrid, "find_spec", lambda name: None)
        assert isinstance(make_env(NAMES, 0, 1), DummyVecEnv)
