"""A ``VecEnv`` of environments that play several tasks: drawn, in turn, or one each."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.vector import SyncVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_grpo import (
    GRPO,
    LeanVecEnv,
    MultiTaskEnv,
    TaskSamplingCallback,
    adapt_vector_env,
    evaluate_groups,
    make_multi_task_vec_env,
)
from sb3_grpo.envs.cartpole import TaskCartPole
from sb3_grpo.envs.multi_task import TaskSource

# seven steps, then two: the first task fills more of the time
TASKS: dict[str, TaskSource] = {
    "long": partial(gym.make, "Pendulum-v1", max_episode_steps=7),
    "short": partial(gym.make, "MountainCarContinuous-v0", max_episode_steps=2),
}


def tasks_played(env, n_steps=20):
    """Numbers of the tasks of each environment, step by step, shape (n_steps, n_envs)."""
    env.reset()
    actions = np.zeros((env.num_envs, 1), np.float32)
    return np.array([[info["task"] for info in env.step(actions)[3]] for _ in range(n_steps)])


class TestWhichTaskIsPlayed:
    def test_fixed(self):
        tasks = tasks_played(make_multi_task_vec_env(TASKS, 3, task="fixed"))
        assert (tasks == [0, 1, 0]).all()

    def test_in_turn(self):
        tasks = tasks_played(make_multi_task_vec_env(TASKS, 2, task="in_turn"))
        # an episode of seven steps, one of two, and so on; the second environment begins with the second task
        assert tasks[:, 0].tolist() == ([0] * 7 + [1] * 2) * 2 + [0] * 2
        assert tasks[:, 1].tolist() == ([1] * 2 + [0] * 7) * 2 + [1] * 2

    def test_drawn(self):
        env = make_multi_task_vec_env(TASKS, 4, seed=1)
        tasks = tasks_played(env, 200)
        assert set(tasks.ravel()) == {0, 1}
        assert (tasks_played(make_multi_task_vec_env(TASKS, 4, seed=1), 200) == tasks).all()
        assert not (tasks_played(make_multi_task_vec_env(TASKS, 4, seed=2), 200) == tasks).all()


class TestKindsOfVecEnvs:
    @pytest.mark.parametrize("vec_env_cls", [None, DummyVecEnv, SubprocVecEnv])
    def test_the_same_episodes_in_all(self, vec_env_cls):
        env = make_multi_task_vec_env(TASKS, 2, "in_turn", seed=0, vec_env_cls=vec_env_cls)
        assert type(env) is (vec_env_cls or LeanVecEnv)
        expected = make_multi_task_vec_env(TASKS, 2, "in_turn", seed=0)
        np.testing.assert_array_equal(env.reset(), expected.reset())
        for _ in range(9):
            obs, rewards, dones, infos = env.step(np.full((2, 1), 0.5, np.float32))
            expected_obs, expected_rewards, expected_dones, _ = expected.step(np.full((2, 1), 0.5, np.float32))
            np.testing.assert_array_equal(obs, expected_obs)
            # processes hand rewards over as float64
            np.testing.assert_allclose(rewards, expected_rewards, rtol=1e-6)
            assert dones.tolist() == expected_dones.tolist()
            assert {info["task_name"] for info in infos} <= set(TASKS)
        env.close()

    def test_vectorised_by_gymnasium(self):
        envs = SyncVectorEnv([partial(MultiTaskEnv, TASKS, task=task) for task in range(2)])
        env = adapt_vector_env(envs, info_keywords=("task", "task_name"))
        assert (tasks_played(env) == [0, 1]).all()
        assert env.get_attr("task_names") == [list(TASKS)] * 2
        _, _, _, infos = env.step(np.zeros((2, 1), np.float32))
        assert [info["task_name"] for info in infos] == list(TASKS)

    def test_ppo_learns_on_normalised_observations(self):
        env = VecNormalize(make_multi_task_vec_env(TASKS, 2, "fixed"))
        PPO("MlpPolicy", env, n_steps=16, batch_size=16).learn(64)
        obs = env.normalize_obs(np.full(5, 1e3, np.float32))
        assert isinstance(obs, np.ndarray)
        assert obs.shape == (5,)
        assert (np.abs(obs) <= env.clip_obs).all()

    def test_ppo_takes_actions_that_a_task_does_not_have(self):
        actions = []

        class Noting(CartPoleEnv):
            def step(self, action):
                actions.append(int(action))
                return super().step(action)

        env = make_multi_task_vec_env({"balance": Noting, "swing": "Acrobot-v1"}, 2, "fixed")
        PPO("MultiInputPolicy", env, n_steps=64, batch_size=64, seed=0).learn(128)
        # CartPole would not have taken the third action of Acrobot
        assert len(actions) == 64
        assert set(actions) == {0, 1}

    @pytest.mark.parametrize("n_groups", [1, 2])
    def test_grpo_takes_none_of_them(self, n_groups):
        class Strict(MultiTaskEnv):
            def step(self, action):
                assert self.current_env.action_space.contains(action)
                return super().step(action)

        def play(algorithm, **kwargs):
            env = DummyVecEnv([partial(Strict, {"balance": "CartPole-v1", "swing": "Acrobot-v1"}, task=k) for k in range(2)])
            model = algorithm("MultiInputPolicy", env, n_steps=64, batch_size=64, seed=0, **kwargs).learn(256)
            evaluate_groups(model, env, 2, deterministic=False, warn=False)

        play(GRPO, router="task", n_groups=n_groups)
        with pytest.raises(AssertionError):
            play(PPO)

    def test_sampling_changes_how_often_a_task_is_drawn(self):
        env = make_multi_task_vec_env(TASKS, 4, seed=0)
        callback = TaskSamplingCallback(group_coef=0.0)
        PPO("MlpPolicy", env, n_steps=64, batch_size=64, seed=0).learn(1024, callback)
        # equal shares of the steps: the shorter task is to be drawn 3.5 times as often
        ratio = callback.probabilities[1] / callback.probabilities[0]
        assert ratio == pytest.approx((0.9 * 7 / 9 + 0.05) / (0.9 * 2 / 9 + 0.05), rel=1e-6)
        # afterwards as before
        assert env.env_method("get_task_probabilities")[0].tolist() == [0.5, 0.5]


def test_monitor_and_arguments_are_handed_on():
    env = make_multi_task_vec_env(TASKS, 2, "fixed", multi_task_kwargs={"task_observation": None})
    assert env.observation_space.shape == (3,)
    assert env.env_is_wrapped(Monitor) == [True, True]


def test_one_environment_may_be_given_itself():
    env = make_multi_task_vec_env({"a": gym.make("CartPole-v1"), "b": "Acrobot-v1"}, 1)
    assert env.num_envs == 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(task="all"), r"`task` must be one of \['random', 'in_turn', 'fixed'\], got 'all'"),
        (dict(task="fixed", n_envs=1), r"`n_envs` must be at least the number of tasks, 2, with task='fixed', got 1"),
        (dict(tasks={"a": TaskCartPole()}), r"`tasks` must hold ids or functions, since each of 2 environments has its own"),
        (dict(tasks={}), r"`tasks` must be environments by name"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_multi_task_vec_env(**{"tasks": TASKS, "n_envs": 2, **kwargs})
