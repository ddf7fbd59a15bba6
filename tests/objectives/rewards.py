"""Environments with several objectives whose returns can be checked on paper."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_grpo import ObjectivesWrapper

NAMES = ["speed", "cost", "comfort"]


class Journey(gym.Env[np.ndarray, np.ndarray]):
    """
    The action says how fast; speed pays it, its square is the cost, comfort is 1 minus the change. A time limit ends it.

    :param length: steps of an episode
    :param factors: what each objective is multiplied by
    :param where: whether the objectives are the ``"reward"``, a ``"vector"`` or ``"numbers"`` by name in ``info``
    """

    observation_space = spaces.Box(-10, 10, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, length: int = 5, factors: tuple[float, ...] = (1.0, 1.0, 1.0), where: str = "reward"):
        self.length, self.factors, self.where = length, np.array(factors), where
        if where == "reward":
            self.reward_space = spaces.Box(-np.inf, np.inf, (len(factors),), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.time, self.before = 0, float(self.np_random.uniform(-1, 1))
        return self.observe(), {}

    def observe(self) -> np.ndarray:
        return np.array([self.time / 5, self.before], dtype=np.float32)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        fast = float(np.clip(action[0], -1, 1))
        parts = self.factors * np.array([fast, -(fast**2), 1 - abs(fast - self.before)])[: len(self.factors)]
        self.time, self.before = self.time + 1, fast
        named = {"other": 7.0, **dict(zip(NAMES, parts, strict=False))}
        info = {"reward": {}, "vector": {"parts": parts}, "numbers": {"parts": named}}[self.where]
        reward = parts if self.where == "reward" else float(fast)
        return self.observe(), reward, False, self.time == self.length, info


def make_env(n_envs: int = 2, names: list[str] | None = None, seed: int = 3, **kwargs: Any) -> VecEnv:
    """Return vectorised environments with three objectives, whose episodes end at different times."""
    names = NAMES if names is None else names

    def make(index: int) -> gym.Env[Any, Any]:
        return Monitor(ObjectivesWrapper(Journey(length=5 + 2 * index, **kwargs), names))

    env = DummyVecEnv([partial(make, index) for index in range(n_envs)])
    env.seed(seed)
    return env
