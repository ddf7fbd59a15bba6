"""What all environments with tasks share: drawing a task, and showing it in the observation."""

import numpy as np
import pytest
from gymnasium import spaces

from sb3_grpo.envs.acrobot import TaskAcrobot
from sb3_grpo.envs.cartpole import TaskCartPole
from sb3_grpo.envs.pendulum import TaskPendulum


class TestChoiceOfTask:
    def frequencies(self, env, n=2000):
        env.reset(seed=0)
        return np.bincount([env.reset()[1]["task"] for _ in range(n)], minlength=env.n_tasks) / n

    def test_uniform_at_first(self):
        # standard error of a frequency 1/4 in 2000 draws: 0.01
        np.testing.assert_allclose(self.frequencies(TaskCartPole()), [0.25] * 4, atol=0.04)

    def test_probabilities(self):
        env = TaskCartPole()
        env.set_task_probabilities([0.7, 0.2, 0.1, 0.0])
        assert env.get_task_probabilities().tolist() == pytest.approx([0.7, 0.2, 0.1, 0.0])
        frequencies = self.frequencies(env)
        np.testing.assert_allclose(frequencies, [0.7, 0.2, 0.1, 0.0], atol=0.04)
        assert frequencies[3] == 0

    def test_returned_probabilities_are_a_copy(self):
        env = TaskCartPole()
        env.get_task_probabilities()[0] = 5
        assert env.get_task_probabilities().tolist() == [0.25] * 4

    def test_fixed_by_argument(self):
        env = TaskCartPole(task=2)
        env.set_task_probabilities([1, 0, 0, 0])
        assert {env.reset(seed=seed)[1]["task"] for seed in range(5)} == {2}

    def test_set_task_takes_effect_at_the_next_reset(self):
        env = TaskCartPole(task=0)
        env.reset(seed=0)
        env.set_task(3)
        assert env.step(0)[4]["task"] == 0
        assert env.reset()[1]["task"] == 3
        env.set_task("random")
        assert len({env.reset()[1]["task"] for _ in range(50)}) == 4

    def test_seeded(self):
        def tasks(seed):
            env = TaskCartPole()
            env.reset(seed=seed)
            return [env.reset()[1]["task"] for _ in range(20)]

        assert tasks(1) == tasks(1) != tasks(2)


class TestObservation:
    def test_one_hot(self):
        env = TaskCartPole(task=2)
        obs, _ = env.reset(seed=0)
        assert env.observation_space.shape == (8,)
        assert obs[4:].tolist() == [0, 0, 1, 0]
        assert env.step(0)[0][4:].tolist() == [0, 0, 1, 0]

    def test_dict(self):
        env = TaskCartPole(task=2, task_observation="dict")
        obs, _ = env.reset(seed=0)
        assert isinstance(env.observation_space, spaces.Dict)
        assert env.observation_space["task"] == spaces.Discrete(4)
        assert obs["task"] == 2
        assert obs["obs"].tolist() == TaskCartPole(task=2).reset(seed=0)[0][:4].tolist()

    def test_none(self):
        env = TaskCartPole(task=2, task_observation=None)
        assert env.reset(seed=0)[0].shape == env.observation_space.shape == (4,)


@pytest.mark.parametrize("make_env", [TaskAcrobot, TaskPendulum])
class TestTasksInObservations:
    def test_one_hot(self, make_env):
        env = make_env(task=1)
        obs, _ = env.reset(seed=0)
        assert obs[-env.n_tasks :].tolist() == np.eye(env.n_tasks)[1].tolist()
        assert obs.shape == env.observation_space.shape
        assert obs.dtype == np.float32

    def test_dict(self, make_env):
        env = make_env(task=1, task_observation="dict")
        obs, _ = env.reset(seed=0)
        assert obs["task"] == 1
        assert env.observation_space["task"] == spaces.Discrete(env.n_tasks)
        assert obs["obs"].tolist() == make_env(task=1).reset(seed=0)[0][: -env.n_tasks].tolist()

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            (dict(tasks=[]), r"`tasks` must hold at least one task, got none"),
            (dict(task=9), r'`task` must be "random", "in_turn" or a number from 0 to [12], got 9'),
            (dict(task_observation="onehot"), r"`task_observation` must be .* got 'onehot'"),
        ],
    )
    def test_bad_arguments(self, make_env, kwargs, message):
        with pytest.raises(ValueError, match=message):
            make_env(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(tasks=[]), r"`tasks` must hold at least one task, got none"),
        (dict(tasks=[{}, {"gravty": 3}]), r"`tasks` may set .*'gravity'.*got \['gravty'\]"),
        (dict(task=4), r'`task` must be "random", "in_turn" or a number from 0 to 3, got 4'),
        (dict(task=-1), r'`task` must be "random", "in_turn" or a number from 0 to 3, got -1'),
        (dict(task="all"), r"`task` must be .* got 'all'"),
        (dict(task_observation="onehot"), r"`task_observation` must be .* got 'onehot'"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        TaskCartPole(**kwargs)


@pytest.mark.parametrize(
    "probabilities", [[0.5, 0.5], [0.5, 0.5, 0.5, 0.5], [1.5, -0.5, 0, 0], [np.nan, 0, 0, 1], [[0.25] * 4], 1.0]
)
def test_bad_probabilities(probabilities):
    env = TaskCartPole()
    with pytest.raises(ValueError, match="`probabilities` must be 4 numbers of at least 0 with sum 1, got"):
        env.set_task_probabilities(probabilities)
    assert env.get_task_probabilities().tolist() == [0.25] * 4
