"""
Train one agent for three objectives at once: an answer is to be accurate, fluent and fast.

Care makes an answer accurate, polish makes it fluent, and both take time. PPO on the sum of the three takes so much care that
answers are slow. GRPO compares the objectives, and moves weight from those that lead to those that are behind.

With care ``c`` and polish ``p``, accuracy is ``1 - (1 - c)^2``, fluency ``1 - (1 - p)^2``, and speed ``1 - (c + p) / 2``.
The best sum has ``c = p = 3/4``, where speed is 1/4. The best worst objective has ``c = p = (3 - sqrt 5) / 2``, where all of
them are ``(sqrt 5 - 1) / 2 = 0.618``.

``python examples/answers.py`` (a quarter of a minute)
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import LinearSchedule

from sb3_grpo import GRPO, LeanVecEnv, ObjectivesWrapper, evaluate_groups

OBJECTIVES = ("accuracy", "fluency", "speed")
N_ANSWERS = 8


class Answers(gym.Env[np.ndarray, np.ndarray]):
    """A conversation of eight answers; each is given with some care and some polish, and brings a vector of three rewards."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Box(0, 1, (2,), np.float32)
    reward_space = spaces.Box(0, 1, (3,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a conversation."""
        super().reset(seed=seed)
        self.n_answers = 0
        return self.observe(), {}

    def observe(self) -> np.ndarray:
        """Return how much of the conversation is over."""
        return np.array([self.n_answers / N_ANSWERS], dtype=np.float32)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """Give an answer."""
        care, polish = action
        self.n_answers += 1
        rewards = np.array([1 - (1 - care) ** 2, 1 - (1 - polish) ** 2, 1 - (care + polish) / 2])
        return self.observe(), rewards, self.n_answers == N_ANSWERS, False, {}


def make_env() -> gym.Env[Any, Any]:
    """Make the environment: the parts of its reward get names, and everybody else sees their sum."""
    return Monitor(ObjectivesWrapper(Answers(), OBJECTIVES))


def make_model(algorithm: type[PPO], seed: int = 0, **kwargs: Any) -> PPO:
    """
    Make an untrained agent.

    :param algorithm: PPO, which learns from the sum of the objectives, or GRPO
    :param seed: of model and environments
    :param kwargs: what only one of them knows
    """
    return algorithm(
        "MlpPolicy",
        LeanVecEnv([make_env] * 8),
        n_steps=128,
        batch_size=256,
        n_epochs=4,
        learning_rate=LinearSchedule(1e-2, 0, 1),
        gamma=0.0,  # an answer does not change the next one
        policy_kwargs=dict(net_arch=[32], log_std_init=-2.5),
        seed=seed,
        device="cpu",
        **kwargs,
    )


def main(total_timesteps: int = 40_000) -> dict[str, list[float]]:
    """
    Train PPO and GRPO, and print what an answer brings.

    :param total_timesteps: environment steps to train for
    :return: mean of each objective by agent
    """
    # the three objectives have one unit: their returns can be compared as they are
    agents = {"PPO": make_model(PPO), "GRPO": make_model(GRPO, group_by="objectives", group_score="raw_return")}
    found = {}
    for name, model in agents.items():
        results = evaluate_groups(model.learn(total_timesteps), LeanVecEnv([make_env]), 4)
        found[name] = [result.mean / N_ANSWERS for result in results.values()]
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in zip(results, found[name], strict=True)))
    return found


if __name__ == "__main__":
    main()
