"""LunarLander with tasks is LunarLander, changed by the task as the task says; needs ``gymnasium[box2d]``."""

import gymnasium as gym
import numpy as np
import pytest
from envs.checks import TaskEnvChecks
from gymnasium import spaces

from sb3_grpo.envs.lunar_lander import FOUR_CONTEXTS, TaskLunarLander


class TestLunarLander(TaskEnvChecks):
    env_id = "sb3_grpo/TaskLunarLander-v0"
    time_limit = 1000

    def fall(self, task):
        """Vertical and horizontal speed after 30 steps without engines."""
        env = TaskLunarLander(tasks=[{}, *FOUR_CONTEXTS[1:]], task=task)
        env.reset(seed=3)
        speeds = np.array([env.step(0)[0][2:4] for _ in range(30)])
        return env, speeds[-1]

    def test_gravity(self):
        (_, plain), (low_env, low), (high_env, high) = (self.fall(task) for task in (0, 1, 3))
        assert low[1] > plain[1] > high[1]
        assert low_env.lander.gravity == -4.0
        assert high_env.lander.gravity == -11.5

    def test_wind(self):
        (plain_env, plain), (windy_env, windy) = self.fall(0), self.fall(2)
        assert not plain_env.lander.enable_wind
        assert windy_env.lander.enable_wind
        assert (windy_env.lander.wind_power, windy_env.lander.turbulence_power) == (15.0, 1.5)
        assert windy[0] != plain[0]

    def test_wind_stops_with_its_task(self):
        env = TaskLunarLander(task=2)
        env.reset(seed=3)
        env.set_task(0)
        env.reset(seed=3)
        speeds = [env.step(0)[0][2] for _ in range(5)]
        plain = gym.make("LunarLander-v3")
        plain.reset(seed=3)
        assert speeds == [plain.step(0)[0][2] for _ in range(5)]

    def test_continuous_actions(self):
        assert isinstance(TaskLunarLander(continuous=True).action_space, spaces.Box)
        assert isinstance(TaskLunarLander().action_space, spaces.Discrete)

    @pytest.mark.parametrize("gravity", [-12.0, 0.0, 1.0])
    def test_impossible_gravity(self, gravity):
        with pytest.raises(ValueError, match=rf"`gravity` must lie between -12 and 0, got {gravity}"):
            TaskLunarLander(tasks=[{"gravity": gravity}])
