"""Evaluate an agent task by task, or objective by objective."""

import math
import numbers
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_grpo.env_tasks import env_has, task_names_of
from sb3_grpo.interrupts import interrupts_delayed
from sb3_grpo.objectives.wrapper import OBJECTIVES

# Number or name of a task as the environment reports it, or number of a cell
TaskLabel = Any


class GroupEvaluation(NamedTuple):
    """Statistics of the evaluated episodes of one task or cell."""

    mean: float  #: mean return
    std: float  #: population standard deviation of the returns
    mean_length: float  #: steps
    n_episodes: int  #: episodes that were played
    success_rate: float | None = None  #: share with ``info["is_success"]`` at the end; ``None``: environments do not tell


class EpisodeCollector:
    """
    Record the return, length and success of each episode by task, as a callback of SB3's ``evaluate_policy``.

    The task of an episode is ``info["task"]``, or without it the cell of the episode's first observation. If all
    environments change their tasks and have ``set_task`` (as those of this package), the tasks are scheduled round-robin
    while the callback is used as a context manager, so that every task is played.

    :param model: the agent; without ``info["task"]`` its policy needs a router
    :param env: the evaluation environments
    """

    prefix = "task"  # of the names of curves

    def __init__(self, model: PolicyPredictor, env: VecEnv):
        self.model = model
        self.env = env
        self.episodes: dict[TaskLabel, list[tuple[float, int]]] = {}  # return and length of each episode
        self.successes: dict[TaskLabel, list[bool]] = {}  # of the episodes that end with info["is_success"]
        self._first_cells = np.zeros(env.num_envs, dtype=int)
        self._names = task_names_of(env)
        self._choices = task_choices(env)  # to be restored; empty: tasks are not scheduled
        self._n_scheduled = 0

    def __enter__(self) -> "EpisodeCollector":
        try:
            for index in range(len(self._choices)):
                self._schedule(index)
        except BaseException:
            self._restore_choices(ignore_dead=True)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore_choices(ignore_dead=error is not None)

    def _restore_choices(self, ignore_dead: bool) -> None:
        """
        Let the environments choose their tasks again as before.

        :param ignore_dead: suppress the errors of processes that have ended, because Ctrl-C ends those of ``SubprocVecEnv``
        """
        with interrupts_delayed(), suppress(*((OSError, EOFError) if ignore_dead else ())):
            for index, choice in enumerate(self._choices):
                self.env.env_method("set_task", choice, indices=index)

    def _schedule(self, index: int) -> None:
        """Set the task of the next episode of an environment."""
        n_tasks = self.env.get_attr("n_tasks", indices=index)[0]
        self.env.env_method("set_task", self._n_scheduled % n_tasks, indices=index)
        self._n_scheduled += 1

    def __call__(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        """
        Record one step of one environment, as ``evaluate_policy`` calls it.

        :param locals_: local variables of ``evaluate_policy``
        :param globals_: not used
        :raises ValueError: if neither the environment nor the policy tells the task, or its label is invalid
        """
        index, info = locals_["i"], locals_["info"]
        if locals_["current_lengths"][index] == 1:
            # set the task of the next episode, unless this is the last one that counts in this environment
            if self._choices and locals_["episode_counts"][index] + 1 < locals_["episode_count_targets"][index]:
                self._schedule(index)
            if "task" not in info:
                self._first_cells[index] = self._cells(locals_["observations"])[index]
        # episodes and returns exactly as evaluate_policy counts them
        if locals_["done"] and ("episode" in info or not locals_["is_monitor_wrapped"]):
            unmonitored = {"r": locals_["current_rewards"][index], "l": locals_["current_lengths"][index]}
            episode = info["episode"] if locals_["is_monitor_wrapped"] else unmonitored
            self._add(index, info, float(episode["r"]), int(episode["l"]))

    def _add(self, index: int, info: dict[str, Any], episode_return: float, length: int) -> None:
        """Record an episode that has ended."""
        task = read_label(info.get("task", self._first_cells[index]))
        if self._names and task in range(len(self._names)):
            task = self._names[task]
        self.episodes.setdefault(task, []).append((episode_return, length))
        if info.get("is_success") is not None:
            self.successes.setdefault(task, []).append(bool(info["is_success"]))

    def _cells(self, observations: Any) -> np.ndarray:
        policy: Any = getattr(self.model, "policy", self.model)
        if not hasattr(policy, "grouping"):
            raise ValueError('the environment does not report info["task"], and the model\'s policy has no router')
        with th.no_grad():
            return policy.grouping.router(obs_as_tensor(observations, policy.device)).cpu().numpy()

    def summarize(self) -> dict[TaskLabel, GroupEvaluation]:
        """Return the statistics of each task or cell played so far, in the environments' order, or numbers before names."""
        summary = {}
        for task in self._in_order():
            returns, lengths = np.array(self.episodes[task]).T
            success_rate = float(np.mean(self.successes[task])) if task in self.successes else None
            summary[task] = GroupEvaluation(
                float(returns.mean()), float(returns.std()), float(lengths.mean()), len(self.episodes[task]), success_rate
            )
        return summary

    def _in_order(self) -> list[TaskLabel]:
        places = {name: place for place, name in enumerate(self._names)}
        return sorted(self.episodes, key=lambda task: (places.get(task, len(places)), isinstance(task, str), task))


class ObjectiveCollector(EpisodeCollector):
    """
    The same for objectives: record the return of each episode for each of them, under its name.

    :param model: the agent
    :param env: the evaluation environments, wrapped in :class:`~sb3_grpo.objectives.ObjectivesWrapper`
    """

    prefix = "objective"

    def __init__(self, model: PolicyPredictor, env: VecEnv):
        super().__init__(model, env)
        self.names = objective_names_of(env)
        self._returns = np.zeros((env.num_envs, len(self.names)))

    def __call__(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        """
        Record one step of one environment, as ``evaluate_policy`` calls it.

        :param locals_: local variables of ``evaluate_policy``
        :param globals_: not used
        """
        index = locals_["i"]
        if locals_["current_lengths"][index] == 1:
            self._returns[index] = 0.0
        self._returns[index] += locals_["info"][OBJECTIVES]
        super().__call__(locals_, globals_)

    def _cells(self, observations: Any) -> np.ndarray:
        # nobody asks which cell an episode belongs to
        return self._first_cells

    def _in_order(self) -> list[TaskLabel]:
        return list(self.episodes)

    def _add(self, index: int, info: dict[str, Any], episode_return: float, length: int) -> None:
        for name, value in zip(self.names, self._returns[index].tolist(), strict=True):
            self.episodes.setdefault(name, []).append((value, length))


def make_collector(model: PolicyPredictor, env: VecEnv) -> EpisodeCollector:
    """
    Make what records the episodes of an evaluation: by objective, if the environments have several, else by task.

    :param model: the agent
    :param env: the evaluation environments
    """
    return ObjectiveCollector(model, env) if objective_names_of(env) else EpisodeCollector(model, env)


def objective_names_of(env: VecEnv) -> list[str]:
    """
    Return the names of the objectives; none if there are not several, since one is the reward.

    :param env: vectorised environments
    """
    names = list(env.get_attr("objective_names", indices=0)[0]) if env_has(env, "objective_names") else []
    return names if len(names) > 1 else []


def read_label(task: Any) -> TaskLabel:
    """
    Return the label of a task as a Python number or string.

    :param task: ``info["task"]``
    :raises ValueError: if it is neither a finite number nor a string
    """
    # scalars of NumPy and torch have ndim 0
    label = task.item() if getattr(task, "ndim", None) == 0 else task
    if not isinstance(label, int | float | str) or (isinstance(label, float) and not math.isfinite(label)):
        raise ValueError(f'info["task"] must be a number or a name, got {task!r}')
    return label


def check_count(name: str, value: Any, least: int) -> None:
    """
    Validate an argument that counts something.

    :param name: name of the argument
    :param value: its value
    :param least: smallest valid value
    :raises ValueError: if it is not an integer of at least ``least``
    """
    if not (isinstance(value, numbers.Integral) and int(value) >= least):
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}")


def task_choices(env: VecEnv) -> list[str]:
    """
    Return how each environment chooses its tasks: ``"random"`` or ``"in_turn"``; none unless all do, and let it be set.

    :param env: vectorised environments
    """
    if not env_has(env, "task_choice", "n_tasks", "set_task"):
        return []
    choices = env.get_attr("task_choice")
    return choices if all(isinstance(choice, str) for choice in choices) else []


def enough_episodes(env: VecEnv, n_eval_episodes: int) -> int:
    """
    Return the number of episodes, raised to the number of tasks or environments if it is smaller.

    Every task is then evaluated: with tasks that can be set one episode of each is played, otherwise one in each
    environment, because each may have a task of its own.

    :param env: the evaluation environments
    :param n_eval_episodes: number of episodes over all tasks
    :raises ValueError: if it is not an integer of at least 1
    """
    check_count("n_eval_episodes", n_eval_episodes, least=1)
    least = max(env.get_attr("n_tasks")) if task_choices(env) else env.num_envs
    return max(n_eval_episodes, least)


def evaluate_groups(
    model: PolicyPredictor,
    env: gym.Env | VecEnv,
    n_eval_episodes: int = 20,
    deterministic: bool = True,
    warn: bool = True,
) -> dict[TaskLabel, GroupEvaluation]:
    """
    Evaluate an agent of any SB3 algorithm task by task, or objective by objective.

    :param model: the agent
    :param env: environment that reports ``info["task"]``, a number or a name; without it the model needs a router, and
        an episode counts for the cell of its first observation. If it is wrapped in
        :class:`~sb3_grpo.objectives.ObjectivesWrapper`, with several objectives, an episode counts for each of them
    :param n_eval_episodes: number of episodes over all tasks, at least 1; raised to the number of tasks (if they can be
        set) or of environments if it is smaller
    :param deterministic: whether to use deterministic actions
    :param warn: whether to warn if the environment has no ``Monitor`` wrapper, as ``evaluate_policy`` does
    :return: mean and standard deviation of the returns, mean length, number of episodes and share of successes, by name of
        the task or its label in ``info``, number of the cell or name of the objective, for those that were played
    :raises ValueError: if ``n_eval_episodes`` is below 1, if there is neither ``info["task"]`` nor a router, or if a label is
        neither a finite number nor a string
    """
    vec_env = env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env])
    n_episodes = enough_episodes(vec_env, n_eval_episodes)
    with make_collector(model, vec_env) as collector:
        evaluate_policy(model, vec_env, n_episodes, deterministic=deterministic, callback=collector, warn=warn)
    return collector.summarize()
