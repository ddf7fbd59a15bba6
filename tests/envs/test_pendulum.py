"""Pendulum with tasks is Pendulum, changed by the task as the task says."""

import gymnasium as gym
import numpy as np
import pytest
from envs.checks import TaskEnvChecks, play, same_play

from sb3_grpo.envs.pendulum import TWO_DIRECTIONS, TaskPendulum


class TestPendulum(TaskEnvChecks):
    env_id = "sb3_grpo/TaskPendulum-v0"
    time_limit = 200
    actions = tuple(np.array([torque], np.float32) for torque in (0.5, -2.0, 1.5, 3.0, -0.1, 0.0, 2.0))

    def play(self, env, actions=actions):
        return play(env, actions, columns=3)

    def test_plain_task_is_pendulum(self):
        assert same_play(self.play(TaskPendulum(task=0)), self.play(gym.make("Pendulum-v1")))

    def test_inverted_task_is_pendulum_with_the_opposite_torque(self):
        opposite = self.play(gym.make("Pendulum-v1"), [-action for action in self.actions])
        assert same_play(self.play(TaskPendulum(task=1)), opposite)
        assert not same_play(self.play(TaskPendulum(task=1)), self.play(TaskPendulum(task=0)))

    def test_default_tasks(self):
        assert TaskPendulum().n_tasks == len(TWO_DIRECTIONS) == 2
        assert [bool(task.get("invert")) for task in TWO_DIRECTIONS] == [False, True]

    @pytest.mark.parametrize("name", ["g", "m", "l"])
    def test_physics_change_the_motion(self, name):
        doubled = 2 * TaskPendulum.TASK_DEFAULTS[name]
        env, reference = TaskPendulum(tasks=[{}, {name: doubled}], task=1), gym.make("Pendulum-v1")
        setattr(reference.unwrapped, name, doubled)
        assert same_play(self.play(env), self.play(reference))
        assert getattr(env.pendulum, name) == doubled
        assert not same_play(self.play(env), self.play(TaskPendulum(task=0)))

    def test_the_last_task_leaves_nothing_behind(self):
        env = TaskPendulum(tasks=[{}, dict(g=1.0, m=3.0, l=2.0, invert=True, reward_scale=7.0)], task=1)
        self.play(env)
        env.set_task(0)
        assert same_play(self.play(env), self.play(gym.make("Pendulum-v1")))

    def test_reward_scale(self):
        plain, scaled = (self.play(TaskPendulum(tasks=[task]))[1] for task in ({}, {"reward_scale": 0.1}))
        assert scaled == pytest.approx([0.1 * reward for reward in plain])

    def test_the_given_action_stays_as_it_is(self):
        action = np.array([0.5], np.float32)
        self.play(TaskPendulum(task=1), [action])
        assert action.tolist() == [0.5]

    def test_unknown_names(self):
        with pytest.raises(ValueError, match=r"`tasks` may set .*'invert'.*got \['length'\]"):
            TaskPendulum(tasks=[{"length": 2.0}])
