from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tiny_envs import RandomEnv
from vec_env.recording import assert_same

from sb3_grpo.vec_env.lean import LeanVecEnv

OBSERVATION_SPACES = {
    "box": spaces.Box(-1, 1, (3,), np.float64),
    "image": spaces.Box(0, 255, (8, 8, 3), np.uint8),
    "discrete": spaces.Discrete(5),
    "multi-discrete": spaces.MultiDiscrete([3, 4]),
    "multi-binary": spaces.MultiBinary(4),
    "dict": spaces.Dict(a=spaces.Box(-1, 1, (2,), np.float32), b=spaces.Discrete(3)),
    "tuple": spaces.Tuple([spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(3)]),
}


class Steps(gym.Env):
    """
    Count the steps of the episode in one array and one info dict, which every step changes in place.

    Episodes have two steps. The second ends the episode by itself if the action is 1, else by its time limit.
    """

    observation_space = spaces.Box(0, 100, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self):
        self.obs, self.info = np.zeros(1, np.float32), {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.obs[0] = 0
        return self.obs, self.info

    def step(self, action):
        self.obs[0] += 1
        self.info["time"] = int(self.obs[0])
        done = self.obs[0] == 2
        return self.obs, 1.0, bool(done and action == 1), bool(done), self.info


def with_both(env, **kwargs):
    return [make_vec_env(env, 3, seed=7, vec_env_cls=cls, **kwargs) for cls in (LeanVecEnv, DummyVecEnv)]


def without_wall_time(infos):
    for info in infos:
        info.get("episode", {}).pop("t", None)
    return infos


def assert_same_trajectories(lean, dummy, n_steps=40):
    assert_same(lean.reset(), dummy.reset())
    for _ in range(n_steps):
        actions = np.stack([dummy.action_space.sample() for _ in range(dummy.num_envs)])
        actual, expected = lean.step(actions), dummy.step(actions)
        assert_same(actual[:3], expected[:3])
        assert_same(without_wall_time(actual[3]), without_wall_time(expected[3]))
        assert_same(lean.reset_infos, dummy.reset_infos)


@pytest.mark.parametrize("space", OBSERVATION_SPACES.values(), ids=OBSERVATION_SPACES.keys())
def test_trajectories_are_those_of_dummy_vec_env(space):
    assert_same_trajectories(*with_both(lambda: RandomEnv(deepcopy(space), spaces.Discrete(3), length=7)))


@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1", "Pendulum-v1"])
def test_environments_that_end_and_are_truncated(env_id):
    lean, dummy = with_both(env_id, env_kwargs={"max_episode_steps": 15})
    assert_same_trajectories(lean, dummy, n_steps=60)


def test_seeds_and_options_reach_the_first_reset_only():
    lean, dummy = with_both("CartPole-v1")
    for env in (lean, dummy):
        env.seed(3)
        env.set_options({"low": 0.01, "high": 0.02})
    first = lean.reset()
    assert_same(first, dummy.reset())
    assert (first > 0).all()
    assert not (lean.reset() > 0).all()


def test_ppo_learns_the_same_weights():
    weights = []
    for env in with_both("CartPole-v1", env_kwargs={"max_episode_steps": 15}):
        model = PPO("MlpPolicy", VecNormalize(env), n_steps=64, batch_size=32, n_epochs=2, seed=0, device="cpu").learn(384)
        weights.append(model.policy.state_dict())
    for name, tensor in weights[0].items():
        assert th.equal(tensor, weights[1][name]), name


def test_methods_of_dummy_vec_env():
    env = LeanVecEnv([lambda: Monitor(Steps()) for _ in range(2)])
    env.set_attr("marked", True, indices=1)
    assert [env.has_attr("marked"), env.get_attr("marked", 1), env.env_is_wrapped(Monitor)] == [False, [True], [True, True]]
    assert env.env_method("get_wrapper_attr", "marked", indices=[1]) == [True]


def test_returned_arrays_are_new_at_each_step():
    env = LeanVecEnv([Steps, Steps])
    arrays: list[Any] = [env.reset()]
    for _ in range(3):
        arrays += env.step(np.zeros(2, int))[:3]
    assert [float(obs[0, 0]) for obs in (arrays[0], *arrays[1::3])] == [0, 1, 0, 1]  # the third is that of the reset
    assert [dones.tolist() for dones in arrays[3::3]] == [[False] * 2, [True] * 2, [False] * 2]
    assert not any(np.shares_memory(one, other) for i, one in enumerate(arrays) for other in arrays[:i])
    arrays[-3][:] = 50  # the caller's own
    assert env.step(np.zeros(2, int))[3][0]["terminal_observation"] == 2


def test_the_terminal_observation_survives_the_reset_of_the_same_array():
    env, dummy = LeanVecEnv([Steps]), DummyVecEnv([Steps])
    for vec_env in (env, dummy):
        vec_env.reset()
        vec_env.step(np.zeros(1, int))
    actual, expected = env.step(np.zeros(1, int)), dummy.step(np.zeros(1, int))
    assert actual[3][0]["terminal_observation"] == 2
    assert expected[3][0]["terminal_observation"] == 0  # DummyVecEnv copies after the reset


def test_what_sb3_writes_does_not_stay_in_an_info_that_is_used_again():
    env, dummy = LeanVecEnv([Steps]), DummyVecEnv([Steps])
    infos = []
    for vec_env in (env, dummy):
        vec_env.reset()
        infos.append([vec_env.step(np.array([action]))[3][0] for action in (0, 0, 0, 1, 0)])
    assert [info["time"] for info in infos[0]] == [1, 2, 1, 2, 1]
    # the first episode ends by its time limit, the second by itself
    assert [info["TimeLimit.truncated"] for info in infos[0]] == [False, True, False, False, False]
    assert ["terminal_observation" in info for info in infos[0]] == [False, True, False, True, False]
    assert "terminal_observation" in infos[1][2]  # that of the episode before
    assert not {"TimeLimit.truncated", "terminal_observation"} & env.get_attr("info")[0].keys()


def test_errors_of_bad_arguments():
    with pytest.raises(ValueError, match="env_fns must hold at least one function"):
        LeanVecEnv([])
    one = Steps()
    with pytest.raises(ValueError, match="returned the same instance"):
        LeanVecEnv([lambda: one, lambda: one])


def test_an_error_of_an_environment_is_its_own_and_can_be_recovered_from():
    env = LeanVecEnv([Steps, Steps])
    env.reset()
    with pytest.raises(ValueError):
        env.step(np.zeros(1, int))  # one action is missing
    np.testing.assert_array_equal(env.reset(), [[0], [0]])
