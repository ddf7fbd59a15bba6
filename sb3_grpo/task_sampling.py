"""Effort as data: tasks that are behind are drawn more often."""

import math
from collections import deque

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_grpo.losses import effort_shares

# The length of a task's episodes is the mean of its last ones
N_RECENT_EPISODES = 20
# Tasks beyond this number are logged to TensorBoard and files, but not printed.
MAX_PRINTED_TASKS = 8


class TaskSamplingCallback(BaseCallback):
    """
    Moves data to the tasks that are behind: before every rollout it sets the odds with which the environments draw their
    tasks. For any on-policy algorithm, and any environment that has ``get_task_probabilities()`` and
    ``set_task_probabilities(probabilities)`` and reports ``info["task"]`` at every step (as those of this package).

    Each task is to get a share of the *steps* that says how far it is behind (:func:`sb3_grpo.losses.effort_shares`).
    Where failing means short episodes, equal odds at reset would give failing tasks the fewest steps. Scores
    are mean returns-to-go in units of the task's rewards (the root of the mean square of those that are not 0), so
    that tasks with larger rewards do not look better for that. Tasks that are paid for the same thing with rewards of
    opposite sign cannot be compared.

    When the training ends, the environments have their own odds again.

    :param group_coef: lambda, at least 0; 0: all tasks get the same number of steps, or as many as the odds of the
        environment say
    :param uniform_share: share of the draws that follows the environment's own odds (usually all alike), 0.1 to 1: a task
        that is not played at all would be forgotten
    :param verbose: as in SB3
    :raises ValueError: if an argument is out of its range, or when training starts with an algorithm or an environment
        that cannot do this
    """

    def __init__(self, group_coef: float = 0.1, uniform_share: float = 0.1, verbose: int = 0):
        super().__init__(verbose)
        if not 0 <= group_coef < math.inf:
            raise ValueError(f"`group_coef` must be finite and at least 0, got {group_coef}")
        if not 0.1 <= uniform_share <= 1:
            raise ValueError(f"`uniform_share` must be between 0.1 and 1, got {uniform_share}")
        self.group_coef, self.uniform_share = group_coef, uniform_share
        self.probabilities = np.empty(0)  # of the tasks at the next resets, shape (n_tasks,); empty before training
        self._own = np.empty(0)  # those of the environment itself

    def _on_training_start(self) -> None:
        env = self.training_env
        if not isinstance(self.model, OnPolicyAlgorithm):
            raise ValueError(f"TaskSamplingCallback needs an on-policy algorithm, got {type(self.model).__name__}")
        for name in ("get_task_probabilities", "set_task_probabilities"):
            if not env.has_attr(name):
                raise ValueError(f"TaskSamplingCallback needs environments with the method `{name}`")
        if not len(self._own):
            self.probabilities = self._own = np.asarray(env.env_method("get_task_probabilities")[0], dtype=float)
            n_tasks = len(self._own)
            self._env_steps = np.zeros(env.num_envs, dtype=int)  # of the episodes that are being played
            self._lengths: list[deque[int]] = [deque(maxlen=N_RECENT_EPISODES) for _ in range(n_tasks)]
            self._squared_rewards, self._n_rewards = np.zeros(n_tasks), np.zeros(n_tasks)
            self._scores = np.full(n_tasks, np.nan)
        # where SB3 has reset the environments
        self._env_steps[self.model._last_episode_starts] = 0
        env.env_method("set_task_probabilities", self.probabilities)

    def _on_training_end(self) -> None:
        self.training_env.env_method("set_task_probabilities", self._own)

    def _on_rollout_start(self) -> None:
        self._tasks: list[list[int]] = []
        self._rewards: list[np.ndarray] = []

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        if any("task" not in info for info in infos):
            raise ValueError('TaskSamplingCallback needs environments that report info["task"] at every step')
        tasks = [int(info["task"]) for info in infos]
        if not all(0 <= task < len(self._lengths) for task in tasks):
            raise ValueError(f'info["task"] must be a number from 0 to {len(self._lengths) - 1}, got {tasks}')
        self._tasks.append(tasks)
        # a copy: SB3 will add the value of the last observation to them where a time limit ends an episode
        self._rewards.append(np.array(self.locals["rewards"], dtype=float))
        self._env_steps += 1
        for index in self.locals["dones"].nonzero()[0]:
            self._lengths[tasks[index]].append(int(self._env_steps[index]))
            self._env_steps[index] = 0
        return True

    def _on_rollout_end(self) -> None:
        steps, share = self._compare_tasks()
        if not np.isfinite(share).all():
            # NaN in rewards or observations: what the algorithm says of them is clearer
            return
        lengths = np.array([np.mean(lengths) if lengths else np.nan for lengths in self._lengths])
        # a task of which nothing is known counts like the others
        lengths = np.where(np.isnan(lengths), np.nanmean(lengths) if np.isfinite(lengths).any() else 1.0, lengths)
        odds = share / lengths
        self.probabilities = (1 - self.uniform_share) * odds / odds.sum() + self.uniform_share * self._own
        self.training_env.env_method("set_task_probabilities", self.probabilities)
        exclude = "stdout" if len(steps) > MAX_PRINTED_TASKS else None
        for task, values in enumerate(zip(self._scores, self.probabilities, steps / steps.sum(), strict=True)):
            for name, value in zip(("score", "probability", "share"), values, strict=True):
                self.logger.record(f"tasks/{name}_{task}", float(value), exclude)

    def _compare_tasks(self) -> tuple[np.ndarray, np.ndarray]:
        """
        :return: steps of each task in the rollout, and the share of the steps that it is to get
        """
        buffer, tasks, rewards = self.locals["rollout_buffer"], np.asarray(self._tasks), np.asarray(self._rewards)

        def sum_by_task(values: np.ndarray) -> np.ndarray:
            return np.bincount(tasks.ravel(), values.ravel(), minlength=len(self._lengths))

        # rewards of 0 would make the unit of a task depend on how often it is solved
        self._squared_rewards += sum_by_task(np.square(rewards))
        self._n_rewards += sum_by_task(rewards != 0)
        units = np.sqrt(self._squared_rewards / np.maximum(self._n_rewards, 1))
        # without rewards there is no unit, and nothing to be measured by it
        scale = np.divide(1, units, out=np.zeros_like(units), where=units > 0)[tasks]
        scores, advantages = buffer.returns * scale, buffer.advantages * scale
        steps = sum_by_task(np.ones_like(rewards))
        # a task without a step in this rollout is as good as it was
        self._scores = np.where(steps > 0, sum_by_task(scores) / np.maximum(steps, 1), self._scores)
        known = ~((steps == 0) & np.isnan(self._scores)) & (self._own > 0)
        share, total = self._own.copy(), self._own[known].sum()
        known_scores, reference = th.as_tensor(self._scores[known]), th.as_tensor(self._own[known] / total)
        balanced = effort_shares(known_scores, scores.std(), reference, float(advantages.std()), self.group_coef)
        share[known] = balanced.numpy() * total
        return steps, share
