"""
Train the parts of an answer as groups, with a reward after each: what is said, how, and how long it takes.

A toy of a chat: for each question there is one right content, one fitting style, and a length that a hurried or a patient user
wants. Each decision belongs to a group with its own head, and gets its own reward (process supervision). Eight environments
answer the same question at a time, so that an answer is compared with other answers to it; there is no critic.

``python examples/chat.py`` (half a minute)
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_grpo import GRPO, evaluate_groups, make_group_vec_env

PARTS = ("content", "style", "length")
N_QUESTIONS, N_CHOICES = 6, 4


class Chat(gym.Env[np.ndarray, int]):
    """One question, three decisions; the observation is the question and the part of the answer, both one-hot."""

    observation_space = spaces.Box(0, 1, (N_QUESTIONS + len(PARTS),), np.float32)
    action_space = spaces.Discrete(N_CHOICES)  # type: ignore[assignment]  # its actions are NumPy's integers
    # for each question: the right content, the fitting style, the wanted length
    wanted = np.array([[0, 1, 3], [2, 1, 0], [1, 3, 0], [3, 0, 2], [2, 2, 1], [0, 3, 3]])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Ask a question."""
        super().reset(seed=seed)
        self.question, self.part = int(self.np_random.integers(N_QUESTIONS)), 0
        return self.observe(), {}

    def observe(self) -> np.ndarray:
        """Return question and part."""
        return np.concatenate([np.eye(N_QUESTIONS)[self.question], np.eye(len(PARTS))[self.part]]).astype(np.float32)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Decide about one part: a content is right or wrong, style and length can be nearly right."""
        missed = abs(int(action) - self.wanted[self.question, self.part])
        reward = float(missed == 0) if self.part == 0 else 1 - missed / (N_CHOICES - 1)
        done = self.part == len(PARTS) - 1
        self.part = min(self.part + 1, len(PARTS) - 1)
        return self.observe(), reward, done, False, {}


def main(total_timesteps: int = 60_000) -> GRPO:
    """
    Train, then print the groups, and the mean return of an answer.

    :param total_timesteps: environment steps to train for
    :return: the trained model
    """
    env = make_group_vec_env(Chat, group_size=8, n_starts=4, seed=0)
    model = GRPO(
        "MlpPolicy",
        env,
        advantage_estimator="process",
        group_size=8,
        router="one_hot",
        router_kwargs=dict(columns=(N_QUESTIONS, N_QUESTIONS + len(PARTS))),
        merge_kl=None,
        split_kl=None,
        n_steps=48,
        batch_size=256,
        learning_rate=1e-3,
        gamma=0.0,  # a decision is judged by its own reward
        seed=0,
        device="cpu",
    )
    model.learn(total_timesteps)
    for record in model.groups:
        print(f"{PARTS[record.cells[0]]}: score {record.score:.2f}, weight {record.weight:.2f}")
    mean = np.mean([result.mean for result in evaluate_groups(model, make_group_vec_env(Chat, 2), 100).values()])
    print(f"mean return of an answer: {mean:.2f} of {len(PARTS)}")
    return model


if __name__ == "__main__":
    main()
