"""A choice in the first step decides over the reward of the last, after many steps of noise: bsuite's umbrella chain."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class UmbrellaChain(gym.Env[np.ndarray, int]):
    """
    Take an umbrella or not in the first step; the last step rewards with 1 or -1, after whether it rained.

    The rewards between are 1 or -1, whatever is done; they are drawn by the generator that the seed of the reset sets. The
    observation: whether it will rain, whether the umbrella was taken, how much time is left, and bits without a meaning.
    After https://arxiv.org/abs/1908.03568 (umbrella_length).

    :param length: steps of an episode
    :param n_distractors: number of bits without a meaning
    :param noise: whether the rewards between are drawn; else they are 0
    """

    def __init__(self, length: int, n_distractors: int, noise: bool = True):
        self.observation_space = spaces.Box(0, 1, (3 + n_distractors,), np.float32)
        self.action_space = spaces.Discrete(2)  # type: ignore[assignment]  # its actions are NumPy's integers
        self.length, self.n_distractors, self.noise = length, n_distractors, noise

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw whether it will rain, and whether an umbrella is at hand before the choice."""
        super().reset(seed=seed)
        self.n_steps = 0
        self.rain, self.umbrella = self.np_random.integers(2, size=2)
        return self.observe(), {}

    def observe(self) -> np.ndarray:
        """Return the observation."""
        known = [self.rain, self.umbrella, 1 - self.n_steps / self.length]
        return np.array([*known, *self.np_random.integers(2, size=self.n_distractors)], dtype=np.float32)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Choose in the first step, wait in the others."""
        if self.n_steps == 0:
            self.umbrella = int(action)
        self.n_steps += 1
        done, right = self.n_steps == self.length, bool(self.umbrella == self.rain)
        noise = 2.0 * self.np_random.integers(2) - 1.0 if self.noise else 0.0
        reward = (1.0 if right else -1.0) if done else noise
        return self.observe(), reward, done, False, {"is_success": right} if done else {}
