"""Effort as data: tasks that are behind are drawn more often."""

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
# The length of a task's episodes is the mean of its last ones
N_RECENT_EPISODES = 20


class Known(NamedTuple):
    """What is known of the tasks; arrays have shape ``(n_tasks,)``."""

    probabilities: np.ndarray  # at the next resets
    lengths: list[deque[int]]  # of the last episodes
    squared_rewards: np.ndarray  # sum over all steps
    n_rewards: np.ndarray  # of them that are not 0
    scores: np.ndarray  # NaN before a task has been played

    @classmethod
    def nothing(cls, probabilities: np.ndarray) -> "Known":
        """
        :param probabilities: to begin with
        """
        n_tasks = len(probabilities)
        lengths: list[deque[int]] = [deque(maxlen=N_RECENT_EPISODES) for _ in range(n_tasks)]
        return cls(probabilities, lengths, np.zeros(n_tasks), np.zeros(n_tasks), np.full(n_tasks, np.nan))

    def to_plain(self) -> dict[str, Any]:
        """
        :return: the same as lists of numbers, which SB3 saves with a model without pickling them
        """
        return {
            name: [list(lengths) for lengths in value] if name == "lengths" else value.tolist()
            for name, value in self._asdict().items()
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "Known":
        """
        :param plain: from :meth:`to_plain`
        """
        lengths = [deque(lengths, maxlen=N_RECENT_EPISODES) for lengths in plain["lengths"]]
        return cls(
            **{name: np.array(value, dtype=float) for name, value in plain.items() if name != "lengths"}, lengths=lengths
        )


# The odds of environments that have been given others: what each of them had, and what all of them were given last.
# They are kept beside the environments, because an interrupted training may not have given them back.
_own_odds: "WeakKeyDictionary[VecEnv, tuple[list[np.ndarray], np.ndarray]]" = WeakKeyDictionary()


def own_odds(env: VecEnv) -> list[np.ndarray]:
    """
    :param env: vectorised environments that draw tasks
    :return: odds of each environment that are its own, whether or not it has others at the moment
    :raises ValueError: if they are no probabilities
    """
    odds = [np.asarray(each, dtype=float) for each in env.env_method("get_task_probabilities")]
    own, given = _own_odds.get(env.unwrapped, (odds, odds[0]))
    # whoever has set other odds since then means these
    if any(each.shape != given.shape or not np.allclose(each, given, rtol=1e-6, atol=1e-9) for each in odds):
        own = odds
    for each in own:
        if each.ndim != 1 or not each.size or not (each >= 0).all() or not math.isclose(each.sum(), 1, rel_tol=1e-3):
            raise ValueError(f"`get_task_probabilities` must return probabilities that sum to 1, got {each}")
    return own


def set_odds(env: VecEnv, probabilities: np.ndarray, own: list[np.ndarray]) -> None:
    """
    :param env: vectorised environments that draw tasks
    :param probabilities: for all of them, until :func:`give_back_odds`
    :param own: what that will give back to each of them
    """
    with interrupts_delayed():
        _own_odds[env.unwrapped] = own, probabilities
        env.env_method("set_task_probabilities", probabilities)


def give_back_odds(env: VecEnv) -> None:
    """
    :param env: vectorised environments, which get their own odds back
    """
    with interrupts_delayed():
        own, _ = _own_odds.pop(env.unwrapped, ([], None))
        for index, odds in enumerate(own):
            env.env_method("set_task_probabilities", odds, indices=index)


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

    What it has learnt is part of the model, as the plain values in ``model.task_sampling_state``, and is saved with it.
    A training that continues (``reset_num_timesteps=False``) goes on with that, in another process and with another number
    of environments too; one that counts its steps from 0 goes on with what this object has learnt before. Where the number
    of tasks is another one, everything is learnt anew.

    When the training ends, the environments have their own odds again. An interrupt (Ctrl-C) ends ``GRPO``'s training in
    the same way. Other algorithms tell nobody: there the environments keep the last odds until they are trained on again,
    with this callback, in the same process.

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
        check("group_coef", NOT_NEGATIVE, group_coef)
        check("uniform_share", UNIFORM_SHARE, uniform_share)
        self.group_coef, self.uniform_share = group_coef, uniform_share
        self._known = Known.nothing(np.empty(0))
        self._own_by_env: list[np.ndarray] = []  # odds of the environments themselves
        self._env_steps = np.empty(0)  # of the episodes that are being played; NaN where the beginning is not known
        self._trained: Any = None  # the model whose episodes these are

    @property
    def probabilities(self) -> np.ndarray:
        """Odds of the tasks at the next resets, shape ``(n_tasks,)``; empty before training."""
        return self._known.probabilities

    @property
    def _own(self) -> np.ndarray:
        return self._own_by_env[0]

    def _on_training_start(self) -> None:
        env = self.training_env
        if not isinstance(self.model, OnPolicyAlgorithm):
            raise ValueError(f"TaskSamplingCallback needs an on-policy algorithm, got {type(self.model).__name__}")
        for name in ("get_task_probabilities", "set_task_probabilities"):
            if not env_has(env, name):
                raise ValueError(f"TaskSamplingCallback needs environments with the method `{name}`")
        self._own_by_env = own_odds(env)
        saved = getattr(self.model, "task_sampling_state", None) if self.model.num_timesteps > 0 else None
        if saved is not None:
            self._known = Known.from_plain(saved)
        if len(self._known.probabilities) != len(self._own):
            self._known = Known.nothing(self._own)
        if self._trained is not self.model or len(self._env_steps) != env.num_envs:
            self._env_steps = np.full(env.num_envs, np.nan)
        self._trained = self.model
        # where SB3 has reset the environments
        self._env_steps[self.model._last_episode_starts] = 0
        self._remember()
        set_odds(env, self.probabilities, self._own_by_env)

    def _remember(self) -> None:
        self.model.task_sampling_state = self._known.to_plain()  # type: ignore[attr-defined]  # SB3 saves all attributes

    def _on_training_end(self) -> None:
        self._remember()
        give_back_odds(self.training_env)

    def on_training_interrupted(self) -> None:
        """
        Leave model and environments as the end of training does. ``GRPO.learn`` calls it when an exception ends the training.
        """
        if self._trained is None or self._trained is not self.model:
            # the training of this model had not started
            return
        self._remember()
        with suppress(OSError, EOFError):  # Ctrl-C ends the processes of ``SubprocVecEnv`` too
            give_back_odds(self.training_env)

    def _on_rollout_start(self) -> None:
        self._tasks: list[np.ndarray] = []
        self._rewards: list[np.ndarray] = []

    def _on_step(self) -> bool:
        tasks = self._read_tasks(self.locals["infos"])
        self._tasks.append(tasks)
        # a copy: SB3 will add the value of the last observation to them where a time limit ends an episode
        self._rewards.append(np.array(self.locals["rewards"], dtype=float))
        self._env_steps += 1
        for index in self.locals["dones"].nonzero()[0]:
            if np.isfinite(self._env_steps[index]):
                self._known.lengths[tasks[index]].append(int(self._env_steps[index]))
            self._env_steps[index] = 0
        return True

    def _read_tasks(self, infos: list[dict[str, Any]]) -> np.ndarray:
        """
        :return: task of each environment, shape ``(n_envs,)``
        """
        if any("task" not in info for info in infos):
            raise ValueError('TaskSamplingCallback needs environments that report info["task"] at every step')
        labels = [info["task"] for info in infos]
        tasks, n_tasks = np.asarray(labels), len(self._own)
        if tasks.shape != (len(infos),) or tasks.dtype.kind not in "biuf" or not np.isin(tasks, np.arange(n_tasks)).all():
            raise ValueError(f'info["task"] must be a number from 0 to {n_tasks - 1}, got {labels}')
        return tasks.astype(int)

    def _on_rollout_end(self) -> None:
        steps, known, share = self._compare_tasks()
        if not np.isfinite(share).all():
            # NaN in rewards or observations: what the algorithm says of them is clearer
            return
        lengths = np.array([np.mean(lengths) if lengths else np.nan for lengths in known.lengths])
        # a task of which nothing is known counts like the others
        lengths = np.where(np.isnan(lengths), np.nanmean(lengths) if np.isfinite(lengths).any() else 1.0, lengths)
        odds = share / lengths
        probabilities = (1 - self.uniform_share) * odds / odds.sum() + self.uniform_share * self._own
        self._known = known._replace(probabilities=probabilities)
        self._remember()
        set_odds(self.training_env, self.probabilities, self._own_by_env)
        self._log(steps / steps.sum())

    def _log(self, step_shares: np.ndarray) -> None:
        columns = {"score": self._known.scores, "probability": self.probabilities, "share": step_shares}
        for name, values in columns.items():
            for task, value in enumerate(values.tolist()):
                self.logger.record(f"tasks/{name}_{task}", value, exclude="stdout")
        for name, drawn in {"most": self.probabilities.argmax(), "least": self.probabilities.argmin()}.items():
            # for people: two lines, however many tasks there are
            line = f"task {drawn} ({self.probabilities[drawn]:.0%})"
            self.logger.record(f"tasks/drawn_{name}", line, exclude=("tensorboard", "csv", "json"))

    def _compare_tasks(self) -> tuple[np.ndarray, "Known", np.ndarray]:
        """
        :return: steps of each task in the rollout, what is known with this rollout, and the share of the steps that each task
            is to get; NaN where rewards or values are
        """
        buffer, tasks, rewards = self.locals["rollout_buffer"], np.asarray(self._tasks), np.asarray(self._rewards)

        def sum_by_task(values: np.ndarray) -> np.ndarray:
            return np.bincount(tasks.ravel(), values.ravel(), minlength=len(self._own))

        # rewards of 0 would make the unit of a task depend on how often it is solved
        squared_rewards = self._known.squared_rewards + sum_by_task(np.square(rewards))
        n_rewards = self._known.n_rewards + sum_by_task(rewards != 0)
        units = np.sqrt(squared_rewards / np.maximum(n_rewards, 1))
        # without rewards there is no unit, and nothing to be measured by it
        scale = np.divide(1, units, out=np.zeros_like(units), where=units > 0)[tasks]
        returns, advantages = buffer.returns * scale, buffer.advantages * scale
        steps = sum_by_task(np.ones_like(rewards))
        # a task without a step in this rollout is as good as it was
        scores = np.where(steps > 0, sum_by_task(returns) / np.maximum(steps, 1), self._known.scores)
        compared = ~((steps == 0) & np.isnan(scores)) & (self._own > 0)
        share, total = self._own.copy(), self._own[compared].sum()
        own, std = th.as_tensor(self._own[compared] / total), float(advantages.std())
        share[compared] = effort_shares(th.as_tensor(scores[compared]), returns.std(), own, std, self.group_coef) * total
        known = self._known._replace(squared_rewards=squared_rewards, n_rewards=n_rewards, scores=scores)
        return steps, known, share
