"""CartPole with tasks is CartPole, changed by the task as the task says."""

import gymnasium as gym
import numpy as np
import pytest
from envs.checks import TaskEnvChecks, play

from sb3_grpo.envs.cartpole import FOUR_TASKS, TaskCartPole

ACTIONS = [0, 1, 1, 0, 1, 0, 0, 1]


class TestCartPole(TaskEnvChecks):
    env_id = "sb3_grpo/TaskCartPole-v0"
    time_limit = 500

    def test_plain_task_is_cartpole(self):
        expected, rewards = play(gym.make("CartPole-v1"), ACTIONS)
        actual, task_rewards = play(TaskCartPole(task=0), ACTIONS)
        np.testing.assert_array_equal(actual, expected)
        assert rewards == task_rewards

    def test_inverted_task_is_cartpole_with_flipped_actions(self):
        flipped, _ = play(gym.make("CartPole-v1"), [1 - action for action in ACTIONS])
        inverted, _ = play(TaskCartPole(task=1), ACTIONS)
        np.testing.assert_allclose(inverted, flipped, rtol=1e-6)
        assert not np.allclose(inverted, play(TaskCartPole(task=0), ACTIONS)[0])

    @pytest.mark.parametrize("name", ["gravity", "masscart", "masspole", "length", "force_mag"])
    def test_physics_change_the_motion(self, name):
        plain = TaskCartPole.TASK_DEFAULTS[name]
        env = TaskCartPole(tasks=[{}, {name: 2 * plain}], task=1)
        motion, _ = play(env, ACTIONS)
        assert getattr(env.cartpole, name) == 2 * plain
        assert not np.allclose(motion, play(TaskCartPole(task=0), ACTIONS)[0])

    def test_physics_by_the_equations_of_cartpole(self):
        reference: gym.Env = gym.make("CartPole-v1")
        cartpole = reference.unwrapped
        for name, value in dict(masspole=0.3, length=1.0, total_mass=1.3, polemass_length=0.3).items():
            setattr(cartpole, name, value)
        np.testing.assert_array_equal(play(TaskCartPole(task=2), ACTIONS)[0], play(reference, ACTIONS)[0])

    def test_the_last_task_leaves_nothing_behind(self):
        env = TaskCartPole(tasks=[{}, dict(gravity=1, masscart=5, masspole=2, length=2, force_mag=1, invert=True)], task=1)
        play(env, ACTIONS)
        env.set_task(0)
        np.testing.assert_array_equal(play(env, ACTIONS)[0], play(gym.make("CartPole-v1"), ACTIONS)[0])

    def test_reward_scale(self):
        assert play(TaskCartPole(tasks=[{}, {"reward_scale": 0.1}], task=1), ACTIONS)[1] == [0.1] * len(ACTIONS)
        assert play(TaskCartPole(tasks=[{}, {"reward_scale": 0.1}], task=0), ACTIONS)[1] == [1.0] * len(ACTIONS)

    def test_default_tasks(self):
        assert TaskCartPole().n_tasks == len(FOUR_TASKS) == 4
        assert [bool(task.get("invert")) for task in FOUR_TASKS] == [False, True, False, True]

    def test_start_state_depends_on_the_seed_only(self):
        starts = [TaskCartPole(task=task).reset(seed=5)[0][:4] for task in range(4)]
        assert all((start == starts[0]).all() for start in starts)
        assert (TaskCartPole().reset(seed=6)[0][:4] != starts[0]).any()
