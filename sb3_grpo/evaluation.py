"""Evaluation by task: which of its jobs an agent can do."""

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

from sb3_grpo.interrupts import interrupts_delayed

# What an environment calls a task, a number or a name; or the number of a cell
TaskLabel = Any


class GroupEvaluation(NamedTuple):
    """Returns of the episodes of one task or cell."""

    mean: float
    std: float
    mean_length: float
    n_episodes: int


def env_has(env: VecEnv, *names: str) -> bool:
    """
    Tell whether all environments have these attributes or methods.

    :param env: vectorised environments; those that do not implement ``get_attr``, as simulators on a GPU, have none
    :param names: of attributes and methods
    """
    try:
        return all(env.has_attr(name) for name in names)
    except NotImplementedError:
        return False


class EpisodeCollector:
    """
    Callback of SB3's ``evaluate_policy`` that notes to which task each episode belongs: ``info["task"]``, or
    where the environment does not say, the cell in which the episode began.

    Where all environments draw their tasks at random and have ``set_task`` (as those of this package), the
    tasks are played in turn instead, so that none is missed. Use it as a context manager.

    :param model: the agent; without ``info["task"]`` its policy needs a router
    :param env: the evaluation environments
    """

    def __init__(self, model: PolicyPredictor, env: VecEnv):
        self.model = model
        self.env = env
        self.episodes: dict[TaskLabel, list[tuple[float, int]]] = {}  # return and length
        self._first_cells = np.zeros(env.num_envs, dtype=int)
        self._in_turn = draws_tasks(env)
        self._n_scheduled = 0

    def __enter__(self) -> "EpisodeCollector":
        try:
            for index in range(self.env.num_envs if self._in_turn else 0):
                self._schedule(index)
        except BaseException:
            self._draw_again(suppress_dead=True)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._draw_again(suppress_dead=error is not None)

    def _draw_again(self, suppress_dead: bool) -> None:
        """
        :param suppress_dead: say nothing of processes that have ended: Ctrl-C ends those of ``SubprocVecEnv``
        """
        if self._in_turn:
            with interrupts_delayed(), suppress(*((OSError, EOFError) if suppress_dead else ())):
                self.env.env_method("set_task", "random")

    def _schedule(self, index: int) -> None:
        n_tasks = self.env.get_attr("n_tasks", indices=index)[0]
        self.env.env_method("set_task", self._n_scheduled % n_tasks, indices=index)
        self._n_scheduled += 1

    def __call__(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        index, info = locals_["i"], locals_["info"]
        if locals_["current_lengths"][index] == 1:
            # the task of the next episode, if another one of this environment counts
            if self._in_turn and locals_["episode_counts"][index] + 1 < locals_["episode_count_targets"][index]:
                self._schedule(index)
            if "task" not in info:
                self._first_cells[index] = self._cells(locals_["observations"])[index]
        # what evaluate_policy counts as an episode, and as its return
        if locals_["done"] and ("episode" in info or not locals_["is_monitor_wrapped"]):
            plain = {"r": locals_["current_rewards"][index], "l": locals_["current_lengths"][index]}
            episode = info["episode"] if locals_["is_monitor_wrapped"] else plain
            task = read_label(info.get("task", self._first_cells[index]))
            self.episodes.setdefault(task, []).append((float(episode["r"]), int(episode["l"])))

    def _cells(self, observations: Any) -> np.ndarray:
        policy: Any = getattr(self.model, "policy", self.model)
        if not hasattr(policy, "router"):
            raise ValueError('the environment does not report info["task"], and the model\'s policy has no router')
        with th.no_grad():
            return policy.router(obs_as_tensor(observations, policy.device)).cpu().numpy()

    def summarize(self) -> dict[TaskLabel, GroupEvaluation]:
        """
        :return: evaluation of each task or cell met so far, numbers before names
        """
        summary = {}
        for task, episodes in sorted(self.episodes.items(), key=lambda item: (isinstance(item[0], str), item[0])):
            returns, lengths = np.array(episodes).T
            summary[task] = GroupEvaluation(float(returns.mean()), float(returns.std()), float(lengths.mean()), len(episodes))
        return summary


def read_label(task: Any) -> TaskLabel:
    """
    :param task: what the environment reports as ``info["task"]``
    :return: the same as a plain number or name
    :raises ValueError: if it is neither
    """
    # a number of numpy or torch
    label = task.item() if getattr(task, "ndim", None) == 0 else task
    if not isinstance(label, int | float | str) or (isinstance(label, float) and not math.isfinite(label)):
        raise ValueError(f'info["task"] must be a number or a name, got {task!r}')
    return label


def check_count(name: str, value: Any, least: int) -> None:
    """
    :raises ValueError: if an argument is not an integer of at least ``least``
    """
    if not (isinstance(value, numbers.Integral) and int(value) >= least):
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}")


def draws_tasks(env: VecEnv) -> bool:
    """
    :param env: vectorised environments
    :return: whether all of them draw their tasks at random and can be told which one to play
    """
    if not env_has(env, "task_choice", "n_tasks", "set_task"):
        return False
    return all(isinstance(choice, str) and choice == "random" for choice in env.get_attr("task_choice"))


def enough_episodes(env: VecEnv, n_eval_episodes: int) -> int:
    """
    Raise a number of episodes so that an evaluation meets what it is to compare.

    :param env: the evaluation environments
    :param n_eval_episodes: the number that was asked for, over all tasks
    :return: at least one episode of each task where tasks can be chosen, elsewhere one of each environment, which may
        have a task of its own
    :raises ValueError: if it is not an integer of at least 1
    """
    check_count("n_eval_episodes", n_eval_episodes, least=1)
    least = max(env.get_attr("n_tasks")) if draws_tasks(env) else env.num_envs
    return max(n_eval_episodes, least)


def evaluate_groups(
    model: PolicyPredictor,
    env: gym.Env | VecEnv,
    n_eval_episodes: int = 20,
    deterministic: bool = True,
    warn: bool = True,
) -> dict[TaskLabel, GroupEvaluation]:
    """
    Evaluate an agent (of any SB3 algorithm) task by task.

    :param model: the agent
    :param env: environment that reports ``info["task"]``, a number or a name; otherwise the model needs a router, and
        episodes are sorted by the cell in which they begin
    :param n_eval_episodes: number of episodes, over all tasks, at least 1; a smaller number than there are tasks (where
        the environment lets them be chosen) or environments is raised to that
    :param deterministic: whether to use deterministic actions
    :param warn: warn if the environment has no ``Monitor`` wrapper, as ``evaluate_policy`` does
    :return: mean and standard deviation of the returns, mean length and number of the episodes of each task or
        cell that was met, by the label that the environment gives the task
    :raises ValueError: if `n_eval_episodes` is below 1, if neither the environment nor the model can tell tasks apart, or if
        a label is neither a number nor a name
    """
    vec_env = env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env])
    n_episodes = enough_episodes(vec_env, n_eval_episodes)
    with EpisodeCollector(model, vec_env) as collector:
        evaluate_policy(model, vec_env, n_episodes, deterministic=deterministic, callback=collector, warn=warn)
    return collector.summarize()
