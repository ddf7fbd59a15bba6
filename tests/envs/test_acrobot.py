"""Acrobot with tasks is Acrobot, changed by the task as the task says."""

import gymnasium as gym
import numpy as np
import pytest
from envs.checks import TaskEnvChecks, play, same_play

from sb3_grpo.envs.acrobot import THREE_ORDERS, TaskAcrobot


class TestAcrobot(TaskEnvChecks):
    env_id = "sb3_grpo/TaskAcrobot-v0"
    time_limit = 500
    actions = (0, 1, 2, 2, 0, 1, 2, 2, 2, 0)

    def play(self, env, actions=actions):
        return play(env, actions, columns=6)

    def test_plain_task_is_acrobot(self):
        assert same_play(self.play(TaskAcrobot(task=0)), self.play(gym.make("Acrobot-v1")))

    @pytest.mark.parametrize("task", [1, 2])
    def test_another_order_is_acrobot_with_other_actions(self, task):
        order = THREE_ORDERS[task]["actions"]
        other = self.play(gym.make("Acrobot-v1"), [order[action] for action in self.actions])
        assert same_play(self.play(TaskAcrobot(task=task)), other)
        assert not same_play(self.play(TaskAcrobot(task=task)), self.play(TaskAcrobot(task=0)))

    def test_in_the_default_tasks_no_action_means_the_same_twice(self):
        env = TaskAcrobot()
        assert env.n_tasks == len(THREE_ORDERS) == 3
        for action in range(3):
            assert {task["actions"][action] for task in env.tasks} == {0, 1, 2}

    @pytest.mark.parametrize("name", ["LINK_LENGTH_1", "LINK_MASS_1", "LINK_MASS_2"])
    def test_links_change_the_motion(self, name):
        env, reference = TaskAcrobot(tasks=[{}, {name: 2.0}], task=1), gym.make("Acrobot-v1")
        setattr(reference.unwrapped, name, 2.0)
        assert same_play(self.play(env), self.play(reference))
        assert getattr(env.acrobot, name) == 2.0
        assert not same_play(self.play(env), self.play(TaskAcrobot(task=0)))

    def test_the_last_task_leaves_nothing_behind(self):
        changed = dict(actions=(2, 1, 0), LINK_LENGTH_1=2.0, LINK_MASS_1=3.0, LINK_MASS_2=0.5, reward_scale=7.0)
        env = TaskAcrobot(tasks=[{}, changed], task=1)
        self.play(env)
        env.set_task(0)
        assert same_play(self.play(env), self.play(gym.make("Acrobot-v1")))

    def test_reward_scale(self):
        assert self.play(TaskAcrobot(tasks=[{"reward_scale": 0.1}]))[1] == [-0.1] * len(self.actions)

    @pytest.mark.parametrize("action", [np.int64(2), np.array(2)])
    def test_actions_may_be_numbers_of_numpy(self, action):
        assert same_play(self.play(TaskAcrobot(task=1), [action] * 3), self.play(TaskAcrobot(task=1), [2] * 3))

    @pytest.mark.parametrize("actions", [(0, 1), (0, 1, 1), (1, 2, 3), (0, 1, 2, 2), ()])
    def test_impossible_orders(self, actions):
        with pytest.raises(ValueError, match=r"`actions` must hold 0, 1 and 2, each once, got \("):
            TaskAcrobot(tasks=[{}, {"actions": actions}])

    def test_unknown_names(self):
        with pytest.raises(ValueError, match=r"`tasks` may set .*'LINK_MASS_2'.*got \['LINK_MASS_3'\]"):
            TaskAcrobot(tasks=[{"LINK_MASS_3": 2.0}])
