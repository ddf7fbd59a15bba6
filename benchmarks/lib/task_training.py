"""Train a model on several tasks, and record what moves its effort between them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from benchmarks.lib.groups import events_of, groups_of, weights_of
from benchmarks.lib.training import train_and_evaluate
from sb3_grpo import GRPO, TaskSamplingCallback


class TaskShares(BaseCallback):
    """
    Count the steps of each task.

    :param n_tasks: number of tasks
    """

    def __init__(self, n_tasks: int):
        super().__init__()
        self.counts = np.zeros(n_tasks, np.int64)

    def _on_step(self) -> bool:
        self.counts += np.bincount([info["task"] for info in self.locals["infos"]], minlength=len(self.counts))
        return True

    def take(self) -> list[float]:
        """Return the share of each task since this was last called."""
        shares = self.counts / self.counts.sum()
        self.counts[:] = 0
        return shares.round(4).tolist()


def train_by_task(
    model: PPO, parts: Sequence[int], evaluate: Callable[[], list[float]], sampled_tasks: int | None
) -> dict[str, Any]:
    """
    Train for some steps and evaluate each task, again and again.

    :param model: model to train
    :param parts: number of environment steps before each evaluation
    :param evaluate: returns the score of each task
    :param sampled_tasks: number of tasks, which are sampled by how far they are behind; ``None``: they are not
    :return: ``steps`` and ``returns`` of each evaluation; with sampling ``shares``, those of each task in the steps since the
        last evaluation; of GRPO ``weights`` of each task at each evaluation, ``events``, and ``cell_to_group``, the group of
        each task at the end
    """
    counter = None if sampled_tasks is None else TaskShares(sampled_tasks)
    moved: dict[str, list[list[float]]] = {}

    def evaluate_and_record(_: int) -> list[float]:
        if counter is not None:
            moved.setdefault("shares", []).append(counter.take())
        if isinstance(model, GRPO):
            moved.setdefault("weights", []).append(weights_of(model))
        return evaluate()

    callbacks = None if counter is None else [TaskSamplingCallback(), counter]
    result = train_and_evaluate(model, parts, evaluate_and_record, callbacks) | moved
    return result | dict(events=events_of(model), cell_to_group=groups_of(model)) if isinstance(model, GRPO) else result
