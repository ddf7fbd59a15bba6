"""Draw tasks with a low score more often: balance the data instead of the loss."""

import math
from collections import deque
from contextlib import suppress
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_grpo.arguments import NOT_NEGATIVE, Rule, check, is_number
from sb3_grpo.evaluation import env_has
from sb3_grpo.interrupts import interrupts_delayed
from sb3_grpo.losses import effort_shares

UNIFORM_SHARE = Rule("between 0.1 and 1", lambda value: is_number(value) and 0.1 <= value <= 1)
# Number of recent episodes of a task whose mean length estimates the length of its episodes
N_RECENT_EPISODES = 20


class TaskStatistics(NamedTuple):
    """Statistics of the tasks; arrays have shape ``(n_tasks,)``."""

    probabilities: np.ndarray  # of the tasks at the next resets, sum 1
    lengths: list[deque[int]]  # of the recent episodes of each task, steps
    squared_rewards: np.ndarray  # sum over all steps
    n_rewards: np.ndarray  # number of steps with a reward other than 0
    scores: np.ndarray  # mean score in the last rollout with the task; NaN before the first

    @classmethod
    def empty(cls, probabilities: np.ndarray) -> "TaskStatistics":
        """
        Return the statistics before the first step.

        :param probabilities: initial probabilities of the tasks, shape ``(n_tasks,)``
        """
        n_tasks = len(probabilities)
        lengths: list[deque[int]] = [deque(maxlen=N_RECENT_EPISODES) for _ in range(n_tasks)]
        return cls(probabilities, lengths, np.zeros(n_tasks), np.zeros(n_tasks), np.full(n_tasks, np.nan))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as lists of numbers, which SB3 saves with a model as JSON instead of pickling them."""
        return {
            name: [list(lengths) for lengths in value] if name == "lengths" else value.tolist()
            for name, value in self._asdict().items()
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "TaskStatistics":
        """
        Return the statistics from the fields in a saved model.

        :param fields: from :meth:`to_json`
        """
        arrays = {name: np.array(value, dtype=float) for name, value in fields.items() if name != "lengths"}
        return cls(**arrays, lengths=[deque(lengths, maxlen=N_RECENT_EPISODES) for lengths in fields["lengths"]])


# For environments whose probabilities are overridden: the original ones of each environment, and those that replace them.
# Stored by environment and not in the callback, because an interrupted training may not have restored them
_overridden: "WeakKeyDictionary[VecEnv, tuple[list[np.ndarray], np.ndarray]]" = WeakKeyDictionary()


def base_probabilities(env: VecEnv) -> list[np.ndarray]:
    """
    Return the original task probabilities of each environment, whether or not they are overridden at the moment.

    :param env: vectorised environments that draw tasks
    :return: one array of shape ``(n_tasks,)`` per environment
    :raises ValueError: if they are not probabilities
    """
    current = [np.asarray(each, dtype=float) for each in env.env_method("get_task_probabilities")]
    base, replacement = _overridden.get(env.unwrapped, (current, current[0]))
    # probabilities that are not those of the override were set by the user afterwards
    if any(each.shape != replacement.shape or not np.allclose(each, replacement, rtol=1e-6, atol=1e-9) for each in current):
        base = current
    for each in base:
        if each.ndim != 1 or not each.size or not (each >= 0).all() or not math.isclose(each.sum(), 1, rel_tol=1e-3):
            raise ValueError(f"`get_task_probabilities` must return probabilities that sum to 1, got {each}")
    return base


def override_probabilities(env: VecEnv, probabilities: np.ndarray, base: list[np.ndarray]) -> None:
    """
    Set the task probabilities of all environments until :func:`restore_probabilities` is called.

    :param env: vectorised environments that draw tasks
    :param probabilities: shape ``(n_tasks,)``
    :param base: original probabilities of each environment, to be restored
    """
    with interrupts_delayed():
        _overridden[env.unwrapped] = base, probabilities
        env.env_method("set_task_probabilities", probabilities)


def restore_probabilities(env: VecEnv) -> None:
    """
    Restore the original task probabilities of each environment.

    :param env: vectorised environments
    """
    with interrupts_delayed():
        base, _ = _overridden.pop(env.unwrapped, ([], None))
        for index, probabilities in enumerate(base):
            env.env_method("set_task_probabilities", probabilities, indices=index)


class TaskSamplingCallback(BaseCallback):
    """
    Draw tasks with a low score more often: set the environments' task probabilities after every rollout.

    Works with any on-policy algorithm, and with any environment that has ``get_task_probabilities()`` and
    ``set_task_probabilities(probabilities)`` and reports ``info["task"]`` at every step (as those of this package).

    Each task gets a share of the *steps* that grows as its score falls behind (:func:`sb3_grpo.losses.effort_shares`). The
    probabilities at reset follow from it by dividing by the mean length of the task's episodes: with equal probabilities, a
    task that fails early would get the fewest steps. Scores are mean returns-to-go divided by the scale of the task's
    rewards (the root mean square of those that are not 0), so that the unit of a reward does not matter. Tasks with rewards
    of opposite sign for the same result cannot be compared.

    The statistics are saved with the model, as JSON-compatible values in ``model.task_sampling_state``. Training that
    continues (``reset_num_timesteps=False``) uses them, also in another process and with another number of environments.
    Training that starts at step 0 uses what this object has collected before. If the number of tasks has changed, the
    statistics start empty.

    The original probabilities are restored when training ends, also after an interrupt (Ctrl-C) of ``GRPO.learn``. Other
    algorithms do not report an interrupt to callbacks: their environments keep the last probabilities until they are
    trained on again in the same process with this callback.

    :param group_coef: lambda, at least 0; 0: the shares of the steps are the environments' original task probabilities,
        usually all equal
    :param uniform_share: weight of the environments' original task probabilities in the mixture, 0.1 to 1; it must be above
        0, because the policy forgets a task that is never played
    :param verbose: as in SB3
    :raises ValueError: if an argument is out of its range, or at the start of training if the algorithm is not on-policy or
        an environment lacks a required method
    """

    def __init__(self, group_coef: float = 0.1, uniform_share: float = 0.1, verbose: int = 0):
        super().__init__(verbose)
        check("group_coef", NOT_NEGATIVE, group_coef)
        check("uniform_share", UNIFORM_SHARE, uniform_share)
        self.group_coef, self.uniform_share = group_coef, uniform_share
        self._statistics = TaskStatistics.empty(np.empty(0))
        self._base_by_env: list[np.ndarray] = []  # original probabilities of each environment
        self._episode_lengths = np.empty(0)  # of the running episode of each environment; NaN if its start was not seen
        self._last_model: Any = None  # model to which the running episodes belong

    @property
    def probabilities(self) -> np.ndarray:
        """Return the probabilities of the tasks at the next resets, shape ``(n_tasks,)``; empty before training."""
        return self._statistics.probabilities

    @property
    def _base(self) -> np.ndarray:
        """Return the original probabilities of the first environment, which serve for all of them."""
        return self._base_by_env[0]

    def _on_training_start(self) -> None:
        env = self.training_env
        if not isinstance(self.model, OnPolicyAlgorithm):
            raise ValueError(f"TaskSamplingCallback needs an on-policy algorithm, got {type(self.model).__name__}")
        for name in ("get_task_probabilities", "set_task_probabilities"):
            if not env_has(env, name):
                raise ValueError(f"TaskSamplingCallback needs environments with the method `{name}`")
        self._base_by_env = base_probabilities(env)
        saved = getattr(self.model, "task_sampling_state", None) if self.model.num_timesteps > 0 else None
        if saved is not None:
            self._statistics = TaskStatistics.from_json(saved)
        if len(self._statistics.probabilities) != len(self._base):
            self._statistics = TaskStatistics.empty(self._base)
        if self._last_model is not self.model or len(self._episode_lengths) != env.num_envs:
            self._episode_lengths = np.full(env.num_envs, np.nan)
        self._last_model = self.model
        # environments that SB3 has just reset
        self._episode_lengths[self.model._last_episode_starts] = 0
        self._store_state()
        override_probabilities(env, self.probabilities, self._base_by_env)

    def _store_state(self) -> None:
        self.model.task_sampling_state = self._statistics.to_json()  # type: ignore[attr-defined]  # SB3 saves all attributes

    def _on_training_end(self) -> None:
        self._store_state()
        restore_probabilities(self.training_env)

    def on_training_interrupted(self) -> None:
        """
        Store the statistics and restore the original probabilities, as the end of training does.

        ``GRPO.learn`` calls this when an exception ends the training.
        """
        if self._last_model is None or self._last_model is not self.model:
            # the training of this model had not started
            return
        self._store_state()
        with suppress(OSError, EOFError):  # Ctrl-C also ends the processes of ``SubprocVecEnv``
            restore_probabilities(self.training_env)

    def _on_rollout_start(self) -> None:
        self._tasks: list[np.ndarray] = []
        self._rewards: list[np.ndarray] = []

    def _on_step(self) -> bool:
        tasks = self._read_tasks(self.locals["infos"])
        self._tasks.append(tasks)
        # a copy, because SB3 adds the value of the last observation in place where a time limit ends an episode
        self._rewards.append(np.array(self.locals["rewards"], dtype=float))
        self._episode_lengths += 1
        for index in self.locals["dones"].nonzero()[0]:
            if np.isfinite(self._episode_lengths[index]):
                self._statistics.lengths[tasks[index]].append(int(self._episode_lengths[index]))
            self._episode_lengths[index] = 0
        return True

    def _read_tasks(self, infos: list[dict[str, Any]]) -> np.ndarray:
        """Return the task of each environment, shape ``(n_envs,)``."""
        if any("task" not in info for info in infos):
            raise ValueError('TaskSamplingCallback needs environments that report info["task"] at every step')
        labels = [info["task"] for info in infos]
        tasks, n_tasks = np.asarray(labels), len(self._base)
        if tasks.shape != (len(infos),) or tasks.dtype.kind not in "biuf" or not np.isin(tasks, np.arange(n_tasks)).all():
            raise ValueError(f'info["task"] must be a number from 0 to {n_tasks - 1}, got {labels}')
        return tasks.astype(int)

    def _on_rollout_end(self) -> None:
        counts, statistics, shares = self._compare_tasks()
        if not np.isfinite(shares).all():
            # NaN in rewards or observations: the algorithm's own error names the cause
            return
        lengths = np.array([np.mean(lengths) if lengths else np.nan for lengths in statistics.lengths])
        # a task without a finished episode gets the mean length of the others
        lengths = np.where(np.isnan(lengths), np.nanmean(lengths) if np.isfinite(lengths).any() else 1.0, lengths)
        odds = shares / lengths
        probabilities = (1 - self.uniform_share) * odds / odds.sum() + self.uniform_share * self._base
        self._statistics = statistics._replace(probabilities=probabilities)
        self._store_state()
        override_probabilities(self.training_env, self.probabilities, self._base_by_env)
        self._log(counts / counts.sum())

    def _log(self, step_shares: np.ndarray) -> None:
        columns = {"score": self._statistics.scores, "probability": self.probabilities, "share": step_shares}
        for name, values in columns.items():
            for task, value in enumerate(values.tolist()):
                self.logger.record(f"tasks/{name}_{task}", value, exclude="stdout")
        for name, drawn in {"most": self.probabilities.argmax(), "least": self.probabilities.argmin()}.items():
            # printed only: two lines for any number of tasks
            line = f"task {drawn} ({self.probabilities[drawn]:.0%})"
            self.logger.record(f"tasks/drawn_{name}", line, exclude=("tensorboard", "csv", "json"))

    def _compare_tasks(self) -> tuple[np.ndarray, TaskStatistics, np.ndarray]:
        """
        Compute scores and target shares of the tasks from the last rollout.

        :return: number of steps of each task in the rollout, the statistics with this rollout, and the target share of each
            task in the steps; NaN where rewards or values are NaN
        """
        buffer, tasks, rewards = self.locals["rollout_buffer"], np.asarray(self._tasks), np.asarray(self._rewards)

        def sum_by_task(values: np.ndarray) -> np.ndarray:
            return np.bincount(tasks.ravel(), values.ravel(), minlength=len(self._base))

        # rewards of 0 are left out, because with them the scale would depend on how often the task is solved
        squared_rewards = self._statistics.squared_rewards + sum_by_task(np.square(rewards))
        n_rewards = self._statistics.n_rewards + sum_by_task(rewards != 0)
        reward_scale = np.sqrt(squared_rewards / np.maximum(n_rewards, 1))
        # the score of a task without rewards is 0
        inverse_scale = np.divide(1, reward_scale, out=np.zeros_like(reward_scale), where=reward_scale > 0)[tasks]
        returns, advantages = buffer.returns * inverse_scale, buffer.advantages * inverse_scale
        counts = sum_by_task(np.ones_like(rewards))
        # a task without a step in this rollout keeps its last score
        scores = np.where(counts > 0, sum_by_task(returns) / np.maximum(counts, 1), self._statistics.scores)
        compared = ~((counts == 0) & np.isnan(scores)) & (self._base > 0)
        shares, total = self._base.copy(), self._base[compared].sum()
        base, std = th.as_tensor(self._base[compared] / total), float(advantages.std())
        shares[compared] = effort_shares(th.as_tensor(scores[compared]), returns.std(), base, std, self.group_coef) * total
        statistics = self._statistics._replace(squared_rewards=squared_rewards, n_rewards=n_rewards, scores=scores)
        return counts, statistics, shares
