"""Play environments, and check what holds for every environment with tasks."""

from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env


def play(env, actions, seed=0, columns=4):
    """Observations (the first columns) and rewards."""
    observations, rewards = [env.reset(seed=seed)[0][:columns]], []
    for action in actions:
        obs, reward, *_ = env.step(action)
        observations.append(obs[:columns])
        rewards.append(reward)
    return np.stack(observations), rewards


def same_play(one, other):
    """Whether two results of ``play`` are equal to the last bit."""
    return np.array_equal(one[0], other[0]) and one[1] == other[1]


def sample_actions(env, n=8):
    env.action_space.seed(0)
    return [env.action_space.sample() for _ in range(n)]


class TaskEnvChecks:
    """What holds for every environment with tasks; a subclass names one."""

    env_id: ClassVar[str]
    time_limit: ClassVar[int]

    # CartPole's observation space has infinite bounds by design
    @pytest.mark.filterwarnings("ignore:.*A Box observation space (minimum|maximum) value is:UserWarning")
    # and the torque of the pendulum is not normalised
    @pytest.mark.filterwarnings("ignore:.*For Box action spaces, we recommend using a symmetric and normalized:UserWarning")
    @pytest.mark.parametrize("task_observation", ["one_hot", "dict", None])
    def test_checker_of_gymnasium(self, task_observation):
        env = gym.make(self.env_id, task_observation=task_observation).unwrapped
        gymnasium_check_env(env, skip_render_check=True)

    @pytest.mark.filterwarnings("ignore:We recommend you to use a symmetric and normalized Box action space:UserWarning")
    @pytest.mark.parametrize("task_observation", ["one_hot", "dict", None])
    def test_checker_of_sb3(self, task_observation):
        sb3_check_env(gym.make(self.env_id, task_observation=task_observation))

    def test_registered_time_limit(self):
        spec = gym.make(self.env_id).spec
        assert spec is not None
        assert spec.max_episode_steps == self.time_limit

    def test_info_tells_the_task(self):
        env = gym.make(self.env_id, task=1)
        assert env.reset()[1]["task"] == 1
        assert env.step(*sample_actions(env, 1))[4]["task"] == 1

    def test_same_seed_same_episode(self):
        one, other = (play(env, sample_actions(env), seed=4) for env in (gym.make(self.env_id), gym.make(self.env_id)))
        np.testing.assert_array_equal(one[0], other[0])
        assert one[1] == other[1]
