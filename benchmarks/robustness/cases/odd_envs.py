"""Build environments in which something is wrong."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class OddEnv(gym.Env[Any, Any]):
    """
    Environment with episodes of 8 steps, in which something is wrong from step ``after`` on.

    :param observation_space: default: a vector of 4 numbers
    :param action_space: default: two actions
    :param obs: observations from then on; ``None``: drawn from the space
    :param reward: rewards from then on
    :param result: what ``step`` returns from then on
    :param first: what ``reset`` returns
    :param after: number of the step
    """

    def __init__(
        self,
        observation_space: Any = None,
        action_space: Any = None,
        obs: Callable[[], Any] | None = None,
        reward: Any = 1.0,
        result: Callable[[Any], Any] | None = None,
        first: Callable[[Any], Any] | None = None,
        after: int = 40,
    ):
        self.observation_space = observation_space or spaces.Box(-1, 1, (4,), np.float32)
        self.action_space = action_space or spaces.Discrete(2)
        self.observation_space.seed(0)
        self.obs, self.reward, self.result, self.first, self.after = obs, reward, result, first, after
        self.time = 0

    def _observe(self) -> Any:
        return self.obs() if self.obs is not None and self.time >= self.after else self.observation_space.sample()

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """
        Start an episode.

        :param seed: see Gymnasium
        :param options: see Gymnasium
        """
        super().reset(seed=seed)
        obs = self._observe()
        return (obs, {}) if self.first is None else self.first(obs)

    def step(self, action: Any) -> Any:
        """
        Take one step.

        :param action: not used
        """
        self.time += 1
        obs, odd = self._observe(), self.time >= self.after
        if odd and self.result is not None:
            return self.result(obs)
        return obs, self.reward if odd else 1.0, self.time % 8 == 0, False, {}


class BrokenOneHot(OddEnv):
    """
    Environment whose columns 4 to 8 are a one-hot block, and later something else.

    :param block: those columns from step ``after`` on
    :param after: number of the step
    """

    def __init__(self, block: list[float], after: int = 40):
        super().__init__(spaces.Box(-10, 10, (8,), np.float32), after=after)
        self.block = np.array(block)

    def _observe(self) -> Any:
        block = self.block if self.time >= self.after else np.eye(4)[self.time // 8 % 4]
        return np.concatenate([self.observation_space.sample()[:4], block]).astype(np.float32)


class NoSpaces:
    """Object without the attributes of an environment."""


def box(*shape: int, low: float = -1.0, high: float = 1.0) -> spaces.Box:
    """
    Return a space of real numbers.

    :param shape: shape of its elements
    :param low: smallest number
    :param high: largest number
    """
    return spaces.Box(low, high, shape, np.float32)


def full(value: float, *shape: int) -> Callable[[], np.ndarray]:
    """
    Return a function that makes constant observations.

    :param value: all of their numbers
    :param shape: their shape; default: 4 numbers
    """
    return lambda: np.full(shape or (4,), value, np.float32)
