from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_envs import ChoosableEnv

from sb3_grpo import adapt_vector_env

# Python 3.12 warns of any process that is forked where there are threads, and torch has some
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


class PictureEnv(ChoosableEnv):
    """``ChoosableEnv`` that is drawn as a number: of its reset, times 10, plus its time."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  # as gymnasium's own classes have it
    render_mode = "rgb_array"

    def render(self):
        return np.full((2, 2, 3), 10 * self.task + self.time, np.uint8)


def limited():
    return TimeLimit(PictureEnv(), 4)


KINDS = {
    "dummy": lambda: DummyVecEnv([limited] * 3),
    "sync": lambda: adapt_vector_env(SyncVectorEnv([limited] * 3)),
    "async": lambda: adapt_vector_env(AsyncVectorEnv([limited] * 3)),
}


@pytest.fixture
def cartpole():
    return adapt_vector_env(gym.make_vec("CartPole-v1", num_envs=3, vectorization_mode="vector_entry_point"))


@pytest.fixture(params=KINDS)
def env(request):
    made = KINDS[request.param]()
    made.reset()
    yield made
    made.close()


def test_attributes(env):
    assert env.get_attr("n_tasks") == [2] * 3
    env.set_attr("pay", (5, 6))
    if not isinstance(env, DummyVecEnv):  # which sets it on TimeLimit, where the environment does not look
        assert env.step(np.zeros(3, int))[1].tolist() == [5] * 3
    env.set_attr("pay", (7, 8), indices=[1])
    assert env.get_attr("pay") == [(5, 6), (7, 8), (5, 6)]
    assert env.get_attr("pay", indices=1) == [(7, 8)]
    assert env.has_attr("n_tasks")


def test_attributes_that_are_not_there(env):
    assert not env.has_attr("speed")
    with pytest.raises(AttributeError, match="speed"):
        env.get_attr("speed")
    with pytest.raises(AttributeError, match="speed"):
        env.env_method("speed")
    assert env.step(np.zeros(3, int))[1].tolist() == [1] * 3  # it still works, workers too


def test_methods_are_not_called_when_they_are_looked_up(env):
    assert env.has_attr("set_task")
    assert env.has_attr("step")
    assert all(callable(method) for method in env.get_attr("set_task"))
    assert env.step(np.zeros(3, int))[1].tolist() == [1] * 3


def test_methods(env):
    env.env_method("set_task", 1)
    env.reset()
    assert env.step(np.zeros(3, int))[1].tolist() == [2] * 3
    assert env.env_method("get_wrapper_attr", "n_tasks") == [2] * 3


def test_images(env):
    assert env.render_mode == "rgb_array"
    env.step(np.zeros(3, int))
    assert [image.max() for image in env.get_images()] == [1] * 3
    assert env.render().shape == (4, 4, 3)


def test_methods_of_single_environments():
    env = KINDS["sync"]()
    env.env_method("set_task", 1, indices=[0, 2])
    env.reset()
    assert env.step(np.zeros(3, int))[1].tolist() == [2, 1, 2]


def test_processes_are_called_together():
    env = KINDS["async"]()
    try:
        with pytest.raises(ValueError, match=r"indices must be None for 'set_task': AsyncVectorEnv .* got \[0, 2\]"):
            env.env_method("set_task", 1, indices=[0, 2])
        for name in ("step", "reset", "close"):
            with pytest.raises(ValueError, match=f"method_name must not be '{name}'"):
                env.env_method(name)
    finally:
        env.close()


def test_wrappers_of_single_environments():
    env = adapt_vector_env(SyncVectorEnv([limited, lambda: Monitor(PictureEnv())]), episode_statistics=False)
    assert env.env_is_wrapped(TimeLimit) == [True, False]
    assert env.env_is_wrapped(Monitor) == [False, True]
    assert env.env_is_wrapped(TimeLimit, indices=1) == [False]
    assert adapt_vector_env(SyncVectorEnv([limited] * 2)).env_is_wrapped(Monitor) == [True, True]


def test_attributes_of_a_vector_environment(cartpole):
    assert cartpole.get_attr("gravity") == [9.8] * 3
    cartpole.set_attr("gravity", 20.0)
    assert cartpole.get_attr("gravity", indices=[0, 1]) == [20.0] * 2
    assert not cartpole.has_attr("speed")
    for use in (partial(cartpole.set_attr, "speed", 1), partial(cartpole.get_attr, "speed")):
        with pytest.raises(AttributeError, match=r"CartPoleVectorEnv.* has no attribute 'speed'"):
            use()
    with pytest.raises(ValueError, match="indices must be None for 'gravity': CartPoleVectorEnv reaches all"):
        cartpole.set_attr("gravity", 1.0, indices=0)
    assert cartpole.env_is_wrapped(TimeLimit) == [False] * 3
    assert cartpole.env_method("close") == [None] * 3
    assert cartpole.render_mode is None
    with pytest.raises(ValueError, match="indices must be None for 'render'"):
        cartpole.env_method("render", indices=[1])


def test_attributes_of_vector_wrappers():
    class Named(gym.vector.VectorWrapper):
        name = "inner"

    class WithoutEnvs(gym.vector.VectorEnv):
        metadata = {"autoreset_mode": gym.vector.AutoresetMode.DISABLED}  # noqa: RUF012  # as gymnasium's own classes
        num_envs = 1
        single_observation_space = single_action_space = gym.spaces.Discrete(2)

    named = Named(WithoutEnvs())
    env = adapt_vector_env(RecordEpisodeStatistics(named))
    assert env.get_attr("name") == ["inner"]
    env.set_attr("name", "other")
    assert named.name == "other"


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_closing_twice(kind):
    env = KINDS[kind]()
    env.close()
    env.close()
