"""
Learn without a critic from a reward at the end: switch off all lights of a puzzle.

Whoever presses a light switches it and its neighbours; the only reward is 1 for a dark board. Some boards are easier than
others. Eight environments play the same board at a time, so that an episode is compared with others of equal difficulty:
their mean is the baseline, and no value function has to learn how hard each board is.

``python examples/lights_out.py`` (about a minute)
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_grpo import GRPO, make_group_vec_env

ROWS, COLUMNS = 2, 3
MAX_PRESSES = 6


class LightsOut(gym.Env[np.ndarray, int]):
    """Board of lights; each press switches a light and those beside, above and below it."""

    observation_space = spaces.Box(0, 1, (ROWS * COLUMNS + 1,), np.float32)
    action_space = spaces.Discrete(ROWS * COLUMNS)  # type: ignore[assignment]  # its actions are NumPy's integers

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin with a board that can be solved, because it is made by pressing."""
        super().reset(seed=seed)
        self.lights, self.presses = np.zeros((ROWS, COLUMNS), dtype=int), 0
        while not self.lights.any():
            for light in np.flatnonzero(self.np_random.random(ROWS * COLUMNS) < 0.5):
                self.press(int(light))
        return self.observe(), {}

    def press(self, light: int) -> None:
        """Switch a light and its neighbours."""
        row, column = divmod(light, COLUMNS)
        for i, j in ((row, column), (row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if 0 <= i < ROWS and 0 <= j < COLUMNS:
                self.lights[i, j] ^= 1

    def observe(self) -> np.ndarray:
        """Return the lights, and the share of the presses that are used up."""
        return np.append(self.lights.ravel(), self.presses / MAX_PRESSES).astype(np.float32)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Press a light."""
        self.press(int(action))
        self.presses += 1
        dark = not self.lights.any()
        return self.observe(), float(dark), dark or self.presses == MAX_PRESSES, False, {}


def main(total_timesteps: int = 200_000) -> GRPO:
    """
    Train, then print the share of boards that are solved.

    :param total_timesteps: environment steps to train for
    :return: the trained model
    """
    env = make_group_vec_env(LightsOut, group_size=8, n_starts=2, seed=0)
    model = GRPO(
        "MlpPolicy",
        env,
        advantage_estimator="outcome",
        group_size=8,
        n_steps=64,
        batch_size=256,
        learning_rate=1e-3,
        gamma=1.0,
        ent_coef=0.01,
        seed=0,
        device="cpu",
    )
    model.learn(total_timesteps)
    solved, _ = evaluate_policy(model, Monitor(LightsOut()), 200)
    print(f"solved: {solved:.0%} of 200 boards")
    return model


if __name__ == "__main__":
    main()
