"""Draw tasks with a low score more often: balance the data instead of the loss."""

import math
from collections import deque
from contextlib import suppress
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_grpo.balancing import BALANCERS
from sb3_grpo.env_tasks import env_has, task_names_of
from sb3_grpo.estimators import ESTIMATORS
from sb3_grpo.interrupts import interrupts_delayed
from sb3_grpo.recording import Outcome, RolloutRecorder
from sb3_grpo.rules import NOT_NEGATIVE, KeyOf, Rule, check, is_number
from sb3_grpo.scores import SCORES, GroupScores, ScoreHistory
from sb3_grpo.targets import TARGETS, Targets, check_targets, target_ranges

UNIFORM_SHARE = Rule("between 0.1 and 1", lambda value: is_number(value) and 0.1 <= value <= 1)
# Number of recent episodes of a task whose mean length estimates the length of its episodes
N_RECENT_EPISODES = 20


class TaskStatistics(NamedTuple):
    """Statistics of the tasks; arrays have shape ``(n_tasks,)``."""

    probabilities: np.ndarray  # of the tasks at the next resets, sum 1
    lengths: list[deque[int]]  # of the recent episodes of each task, steps
    scores: np.ndarray  # mean score in the last rollout with the task; NaN before the first
    history: ScoreHistory  # of each task

    @classmethod
    def empty(cls, probabilities: np.ndarray) -> "TaskStatistics":
        """
        Return the statistics before the first step.

        :param probabilities: initial probabilities of the tasks, shape ``(n_tasks,)``
        """
        n_tasks = len(probabilities)
        lengths: list[deque[int]] = [deque(maxlen=N_RECENT_EPISODES) for _ in range(n_tasks)]
        return cls(probabilities, lengths, np.full(n_tasks, np.nan), ScoreHistory(n_tasks))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as lists of numbers, which SB3 saves with a model as JSON instead of pickling them."""
        return {
            "probabilities": self.probabilities.tolist(),
            "lengths": [list(lengths) for lengths in self.lengths],
            "scores": self.scores.tolist(),
            "history": {name: buffer.tolist() for name, buffer in self.history.named_buffers()},
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "TaskStatistics":
        """
        Return the statistics from the fields in a saved model.

        :param fields: from :meth:`to_json`
        """
        statistics = cls.empty(np.array(fields["probabilities"], dtype=float))
        for lengths, saved in zip(statistics.lengths, fields["lengths"], strict=True):
            lengths.extend(saved)
        for name, buffer in statistics.history.named_buffers():
            buffer.copy_(th.tensor(fields["history"][name]))
        return statistics._replace(scores=np.array(fields["scores"], dtype=float))


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


def check_starts(model: OnPolicyAlgorithm) -> None:
    """
    Refuse to change the odds of tasks where episodes must begin alike: members that begin later would have other odds.

    :param model: what is trained
    :raises ValueError: if its advantages are those of episodes that begin alike
    """
    name = getattr(model, "advantage_estimator", "gae")
    if name in ESTIMATORS and ESTIMATORS[name].needs_shared_start:
        raise ValueError(
            f"TaskSamplingCallback changes how episodes begin, and advantage_estimator={name!r} compares episodes that begin "
            "alike; 'time_step' and 'gae' work with it"
        )


class TaskSamplingCallback(RolloutRecorder):
    """
    Draw tasks with a low score more often: set the environments' task probabilities after every rollout.

    Works with any on-policy algorithm, and with any environment that has ``get_task_probabilities()`` and
    ``set_task_probabilities(probabilities)`` and reports ``info["task"]`` at every step (as those of this package).

    Each task gets a share of the *steps* that grows as its score falls behind: its original probability, times the weight
    that the balancer gives it. The probabilities at reset follow from it by dividing by the mean length of the task's
    episodes: with equal probabilities, a task that fails early would get the fewest steps. Scores and balancers are those of
    ``GRPO``, with tasks in place of groups.

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
    :param balancer: rule by which tasks are weighed, a key of :data:`sb3_grpo.balancing.BALANCERS`
    :param group_score: what tasks are compared by, a key of :data:`sb3_grpo.scores.SCORES`
    :param group_targets: for ``group_score="gap"``, the return of an episode that is to be reached in each task, or a pair
        (low, high) from where to where it is to go, in the order of the tasks, or a dict by name
    :param verbose: as in SB3
    :raises ValueError: if an argument is out of its range, or at the start of training if the algorithm is not on-policy or
        an environment lacks a required method
    """

    def __init__(
        self,
        group_coef: float = 0.1,
        uniform_share: float = 0.1,
        verbose: int = 0,
        balancer: str = "relative_penalty",
        group_score: str = "return",
        group_targets: Targets | None = None,
    ):
        super().__init__(verbose)
        check("group_coef", NOT_NEGATIVE, group_coef)
        check("uniform_share", UNIFORM_SHARE, uniform_share)
        check("balancer", KeyOf(BALANCERS), balancer)
        check("group_score", KeyOf(SCORES), group_score)
        check("group_targets", TARGETS, group_targets)
        check_targets(group_targets, group_score)
        self.group_coef, self.uniform_share = group_coef, uniform_share
        self.balancer, self.group_score, self.group_targets = balancer, group_score, group_targets
        self._statistics = TaskStatistics.empty(np.empty(0))
        self._base_by_env: list[np.ndarray] = []  # original probabilities of each environment

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
        check_starts(self.model)
        for name in ("get_task_probabilities", "set_task_probabilities"):
            if not env_has(env, name):
                raise ValueError(f"TaskSamplingCallback needs environments with the method `{name}`")
        self._base_by_env, self._names = base_probabilities(env), task_names_of(env)
        saved = getattr(self.model, "task_sampling_state", None) if self.model.num_timesteps > 0 else None
        if saved is not None:
            self._statistics = TaskStatistics.from_json(saved)
        if len(self._statistics.probabilities) != len(self._base):
            self._statistics = TaskStatistics.empty(self._base)
        self._score = SCORES[self.group_score](target_ranges(self.group_targets, len(self._base), self._names))
        self._balancer = BALANCERS[self.balancer](lambda progress: self.group_coef)
        super()._on_training_start()
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
        super()._on_rollout_start()
        self._tasks: list[np.ndarray] = []

    def _on_step(self) -> bool:
        self._tasks.append(self._read_tasks(self.locals["infos"]))
        return super()._on_step()

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
        outcome = self._outcome()
        if not all(np.isfinite(values).all() for values in (outcome.paid, outcome.returns, outcome.advantages)):
            # NaN in rewards or observations: the algorithm's own error names the cause
            return
        statistics, tasks = self._statistics, outcome.cells
        statistics.history.update(outcome)
        for step, length in zip(outcome.episodes.steps, outcome.episodes.lengths.tolist(), strict=True):
            statistics.lengths[tasks[step]].append(length)
        counts = np.bincount(tasks, minlength=len(self._base))
        shares = self._compare_tasks(outcome)
        lengths = np.array([np.mean(lengths) if lengths else np.nan for lengths in statistics.lengths])
        # a task without a finished episode gets the mean length of the others
        lengths = np.where(np.isnan(lengths), np.nanmean(lengths) if np.isfinite(lengths).any() else 1.0, lengths)
        odds = shares / lengths
        probabilities = (1 - self.uniform_share) * odds / odds.sum() + self.uniform_share * self._base
        self._statistics = self._statistics._replace(probabilities=probabilities)
        self._store_state()
        override_probabilities(self.training_env, self.probabilities, self._base_by_env)
        self._log(counts / counts.sum())

    def _log(self, step_shares: np.ndarray) -> None:
        columns = {"score": self._statistics.scores, "probability": self.probabilities, "share": step_shares}
        for name, values in columns.items():
            for task, value in enumerate(values.tolist()):
                self.logger.record(f"tasks/{name}_{self._label(task)}", value, exclude="stdout")
        for name, drawn in {"most": int(self.probabilities.argmax()), "least": int(self.probabilities.argmin())}.items():
            # printed only: two lines for any number of tasks
            line = f"task {self._label(drawn)} ({self.probabilities[drawn]:.0%})"
            self.logger.record(f"tasks/drawn_{name}", line, exclude=("tensorboard", "csv", "json"))

    def _label(self, task: int) -> int | str:
        return self._names[task] if self._names else task

    def _outcome(self) -> Outcome:
        """Return what the steps of the rollout brought, with tasks as cells."""
        buffer = self.locals["rollout_buffer"]
        # SB3's arrays are not yet flat when a rollout ends
        return Outcome(
            cells=np.asarray(self._tasks).T.ravel(),
            returns=buffer.returns.T.ravel(),
            rewards=buffer.rewards.T.ravel(),
            paid=np.asarray(self._rewards).T.ravel(),
            advantages=buffer.advantages.T.ravel(),
            episodes=self.episodes(buffer.buffer_size),
        )

    def _compare_tasks(self, outcome: Outcome) -> np.ndarray:
        """
        Compare the tasks, and update their scores.

        :param outcome: of the rollout
        :return: target share of each task in the steps, shape ``(n_tasks,)``
        """
        found = self._score.compare(outcome, np.arange(len(self._base)), self._statistics.history)
        # a task without a step in this rollout keeps its last score
        self._statistics.scores[found.groups] = found.scores
        scores = self._statistics.scores
        (compared,) = ((self._base > 0) & ~np.isnan(scores)).nonzero()
        # the share that a task is to have, not the one that it had, is what its weight multiplies
        base, normal = self._base[compared], np.full(len(compared), found.advantage_scale.max())
        comparison = GroupScores(compared, base, scores[compared], found.scale, normal, found.eta_squared)
        weights, _ = self._balancer(comparison, 1.0)
        shares = self._base.copy()
        shares[compared] = base.sum() * base * weights / (base * weights).sum()
        return shares
