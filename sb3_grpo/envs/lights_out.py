"""A puzzle whose only reward comes at its end."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class LightsOut(gym.Env[np.ndarray, int]):
    """
    Board of lights; each press switches a light and those beside, above and below it.

    The only reward is 1 for a dark board. An episode ends with it, or after as many presses as there are lights.
    ``info["is_success"]`` says which.

    :param rows: number of rows
    :param columns: number of columns
    """

    def __init__(self, rows: int = 2, columns: int = 3):
        self.shape, self.max_presses = (rows, columns), rows * columns
        self.observation_space = spaces.Box(0, 1, (rows * columns + 1,), np.float32)
        self.action_space = spaces.Discrete(rows * columns)  # type: ignore[assignment]  # its actions are NumPy's integers

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin with a board that can be solved, because it is made by pressing."""
        super().reset(seed=seed)
        self.lights, self.presses = np.zeros(self.shape, dtype=int), 0
        while not self.lights.any():
            for light in np.flatnonzero(self.np_random.random(self.lights.size) < 0.5):
                self.press(int(light))
        return self.observe(), {}

    def press(self, light: int) -> None:
        """Switch a light and its neighbours."""
        rows, columns = self.shape
        row, column = divmod(light, columns)
        for i, j in ((row, column), (row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if 0 <= i < rows and 0 <= j < columns:
                self.lights[i, j] ^= 1

    def observe(self) -> np.ndarray:
        """Return the lights, and the share of the presses that are used up."""
        return np.append(self.lights.ravel(), self.presses / self.max_presses).astype(np.float32)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Press a light."""
        self.press(int(action))
        self.presses += 1
        dark = not self.lights.any()
        done = bool(dark or self.presses == self.max_presses)
        return self.observe(), float(dark), done, False, {"is_success": bool(dark)} if done else {}
