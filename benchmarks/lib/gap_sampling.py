"""Draw tasks by how far they are from being solved, after DRATS (https://arxiv.org/abs/2605.14350)."""

import numpy as np
from scipy.special import softmax
from stable_baselines3.common.callbacks import BaseCallback


def raise_to_floor(probabilities: np.ndarray, floor: float) -> np.ndarray:
    """
    Raise the probabilities below a floor to it, and multiply the others by the factor with which the sum is 1 again.

    Of all distributions with the floor the result has the smallest KL divergence to the one given.

    :param probabilities: above 0 and with sum 1, shape ``(n_tasks,)``
    :param floor: smallest probability, below ``1 / n_tasks``
    :return: shape ``(n_tasks,)``
    """
    low = np.zeros(len(probabilities), dtype=bool)
    while True:
        others = probabilities * (1 - floor * low.sum()) / probabilities[~low].sum()
        below = low | (others < floor)
        if (below == low).all():
            return np.where(low, floor, others)
        low = below


class GapSamplingCallback(BaseCallback):
    """
    Draw a task the more often the fewer of its last episodes were successful: the published rule, in its own form.

    The gap of a task is 1 minus the share of its episodes of this rollout that were successful; without an episode it is 1.
    The new probabilities are ``p^(1 - step_size) * exp(step_size * eta * gap)``, normalised: with constant gaps they converge
    to ``softmax(eta * gap)``.

    The environments must have ``get_task_probabilities`` and ``set_task_probabilities``, and report ``info["task"]`` and
    ``info["is_success"]``.

    :param eta: how much more often the tasks with the larger gaps are drawn, at least 0
    :param step_size: how far the logarithms of the probabilities move in each rollout, 0 to 1
    :param floor: smallest probability of a task
    """

    def __init__(self, eta: float = 16.0, step_size: float = 0.2, floor: float = 0.01):
        super().__init__()
        self.eta, self.step_size, self.floor = eta, step_size, floor

    def _on_training_start(self) -> None:
        self.probabilities = self.training_env.env_method("get_task_probabilities", indices=0)[0]

    def _on_rollout_start(self) -> None:
        # number of episodes of each task, and how many of them were successful
        self._counts = np.zeros((2, len(self.probabilities)))

    def _on_step(self) -> bool:
        for index in self.locals["dones"].nonzero()[0]:
            info = self.locals["infos"][index]
            self._counts[:, info["task"]] += 1, info["is_success"]
        return True

    def _on_rollout_end(self) -> None:
        episodes, successes = self._counts
        gaps = 1 - successes / np.maximum(episodes, 1)
        log_odds = (1 - self.step_size) * np.log(self.probabilities) + self.step_size * self.eta * gaps
        self.probabilities = raise_to_floor(softmax(log_odds), self.floor)
        self.training_env.env_method("set_task_probabilities", self.probabilities)
