"""Make one environment of several: each of them is a task."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor

from sb3_grpo.envs.entries import ACTION_MASK, ExtraEntry
from sb3_grpo.envs.task_choice import TaskChoosingEnv
from sb3_grpo.envs.task_observation import SHOWN, HiddenTask, OneHotTask, TaskEntry
from sb3_grpo.envs.united_spaces import UnitedActions, fit, unite_actions, unite_observations

# What makes an environment: its id, a function or class that returns one, or the environment
TaskSource = str | Callable[[], gym.Env[Any, Any]] | gym.Env[Any, Any]
# TaskSource by name, or a list of them. (A dict of an id and a class is one of objects to a type checker.)
Tasks = Mapping[str, Any] | Sequence[Any]


class MultiTaskEnv(TaskChoosingEnv):
    """
    Several environments as the tasks of one.

    At each reset a task is chosen; its environment plays the episode. ``info["task"]`` is the number of the task,
    ``info["task_name"]`` its name.

    *Observations*: vectors of different lengths get zeros behind them. *Actions*: with different numbers of discrete actions
    there are as many as the task with the most has, and the observation becomes a Dict with ``"action_mask"``, which says
    those that exist. An agent that knows no masks may choose others; counting then begins again (with three actions 3 is 0).
    Continuous actions with different bounds become -1 to 1. What cannot be united is refused.

    :param tasks: environments by name, or a list of them: ids, functions or classes that return one, or environments. Names
        are made of ids and classes where there are none
    :param task: as in :meth:`~sb3_grpo.envs.task_choice.TaskChoosingEnv.set_task`
    :param task_observation: how the task is shown: ``"one_hot"`` appends columns to a vector, ``"dict"`` is an entry
        ``"task"`` of a Dict beside the environment's own entries, or ``"obs"``; ``"auto"`` is the first where that is
        possible, else the second; ``None`` does not show it
    :param reward_scales: factor on the rewards of a task, by name; others stay as they are
    :param render_mode: of the environments that are made from ids
    :raises ValueError: if there are no tasks, if names, spaces or an argument break their rule
    """

    def __init__(
        self,
        tasks: Tasks,
        task: int | str = "random",
        task_observation: Literal["auto", "one_hot", "dict"] | None = "auto",
        reward_scales: Mapping[str, float] | None = None,
        render_mode: str | None = None,
    ):
        if isinstance(tasks, str) or not isinstance(tasks, (Mapping, Sequence)) or not tasks:
            raise ValueError(f"`tasks` must be environments by name, or a list of them, at least one, got {tasks!r}")
        sources = list(tasks.values() if isinstance(tasks, Mapping) else tasks)
        self.envs = [make_task_env(source, render_mode) for source in sources]
        names = list(tasks) if isinstance(tasks, Mapping) else name_envs(self.envs)
        super().__init__(len(self.envs), names, task)
        self.reward_scales = read_scales(reward_scales, names)
        by_name = dict(zip(names, self.envs, strict=True))
        self.actions = unite_actions({name: env.action_space for name, env in by_name.items()})
        self.action_space = self.actions.space
        self._env_space = unite_observations({name: env.observation_space for name, env in by_name.items()})
        self._mask = ActionMask(self._env_space, self.actions)
        self.display = make_display(self._mask.space, self.n_tasks, task_observation)
        self.observation_space = self.display.space
        modes = [env.render_mode for env in self.envs]
        self.render_mode = modes[0] if len(set(modes)) == 1 else None
        self.metadata = self.envs[0].metadata
        self._seeds: list[int | None] = [None] * self.n_tasks  # of each environment's next reset
        self.current_env = self.envs[0]  # which plays the episode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        Choose a task, and begin an episode of its environment.

        :param seed: of the choice, and of each environment when its next episode begins; ``None``: go on
        :param options: of the environment
        :return: observation, and the environment's ``info`` with ``"task"`` and ``"task_name"``
        """
        super().reset(seed=seed)
        if seed is not None:
            self._seeds = [seed] * self.n_tasks
        chosen = self.choose_task(seed)
        self.current_env, own_seed = self.envs[self.task], self._seeds[self.task]
        self._seeds[self.task] = None
        # without options none are named: some environments have a reset that does not know the argument
        named = {} if options is None else {"options": options}
        obs, info = self.current_env.reset(seed=own_seed, **named)
        return self._show(obs), {**info, **chosen}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        Take one step of the task's environment.

        :param action: element of the action space
        :return: observation, reward times the task's scale, whether the episode is terminated, whether it is truncated, and
            the environment's ``info`` with ``"task"`` and ``"task_name"``
        """
        obs, reward, terminated, truncated, info = self.current_env.step(self.actions.own(action, self.task))
        reward = self.reward_scales[self.task] * float(reward)
        return self._show(obs), reward, terminated, truncated, {**info, **self.task_info()}

    def _show(self, obs: Any) -> Any:
        return self.display.show(self._mask.add(fit(obs, self._env_space), self.task), self.task)

    def render(self) -> Any:
        """Draw the environment of the task, as its ``render_mode`` says."""
        return self.current_env.render()

    def close(self) -> None:
        """Close all environments."""
        for env in self.envs:
            env.close()


class ActionMask:
    """
    Say in the observation which actions a task has.

    Observations stay as they are where all tasks have the same actions, and where environments report masks themselves.

    :param space: united observation space of the environments
    :param actions: their united actions
    :raises ValueError: if environments report masks of their own for sets of several variables, which cannot be united
    """

    def __init__(self, space: spaces.Space[Any], actions: UnitedActions):
        self.space, self._entry = space, None
        if actions.masks is None:
            return
        if isinstance(space, spaces.Dict) and ACTION_MASK in space.spaces:
            if not isinstance(actions.space, spaces.Discrete):
                raise ValueError(
                    f'`tasks` with an entry "{ACTION_MASK}" must have the same actions, or Discrete ones, got {actions.space}'
                )
            return
        self.masks = actions.masks.astype(np.int8)
        self._entry = ExtraEntry(space, ACTION_MASK, spaces.MultiBinary(self.masks.shape[1]))
        self.space = self._entry.space

    def add(self, obs: Any, task: int) -> Any:
        """
        Return an observation with the mask.

        :param obs: of the environment, an element of the united space
        :param task: number of the task
        """
        return obs if self._entry is None else self._entry.add(obs, self.masks[task].copy())


def make_task_env(source: TaskSource, render_mode: str | None) -> gym.Env[Any, Any]:
    """
    Make the environment of a task.

    :param source: id, function or class, or environment
    :param render_mode: of an environment that is made from an id
    :raises ValueError: if it is none of these
    """
    if isinstance(source, str):
        return gym.make(source) if render_mode is None else gym.make(source, render_mode=render_mode)
    made = source if isinstance(source, gym.Env) else source() if callable(source) else None
    if not isinstance(made, gym.Env):
        raise ValueError(f"`tasks` must hold ids, functions that return an environment, or environments, got {source!r}")
    return made


def name_envs(envs: Sequence[gym.Env[Any, Any]]) -> list[str]:
    """
    Name environments by id or class, with a number behind those that have the same.

    :param envs: the environments
    """
    names = [env.spec.id if env.spec is not None else type(env.unwrapped).__name__ for env in envs]
    return [name if names.count(name) == 1 else f"{name} {names[:index].count(name)}" for index, name in enumerate(names)]


def read_scales(reward_scales: Mapping[str, float] | None, names: Sequence[str]) -> list[float]:
    """
    Return the factor on the rewards of each task.

    :param reward_scales: factors by name; ``None``: none
    :param names: of the tasks
    :raises ValueError: if a name is not that of a task, or a factor is not a finite number
    """
    given = dict(reward_scales or {})
    if unknown := [name for name in given if name not in names]:
        raise ValueError(f"`reward_scales` must name tasks, {list(names)}, got {unknown}")
    if wrong := {name: scale for name, scale in given.items() if not np.isfinite(scale)}:
        raise ValueError(f"`reward_scales` must be finite numbers, got {wrong}")
    return [float(given.get(name, 1.0)) for name in names]


def make_display(space: spaces.Space[Any], n_tasks: int, task_observation: str | None) -> HiddenTask:
    """
    Return what shows the task.

    :param space: observation space without the task
    :param n_tasks: number of tasks
    :param task_observation: as the argument of :class:`MultiTaskEnv`
    :raises ValueError: if it is none of these, or the observation cannot show the task so
    """
    if task_observation == "auto":
        is_vector = isinstance(space, spaces.Box) and len(space.shape) == 1
        return OneHotTask(space, n_tasks) if is_vector else TaskEntry(space, n_tasks)
    if task_observation not in SHOWN:
        raise ValueError(f'`task_observation` must be "auto", "one_hot", "dict" or None, got {task_observation!r}')
    return SHOWN[task_observation](space, n_tasks)


def add_tasks(
    env: gym.Env[Any, Any], tasks: Mapping[str, TaskSource], name: str | None = None, **kwargs: Any
) -> gym.Env[Any, Any]:
    """
    Add tasks to an environment: a wrapper for RL Zoo's ``env_wrapper``.

    An environment in ``Monitor``, as RL Zoo hands it over, is returned in ``Monitor``, which then sees all tasks.

    :param env: the first task
    :param tasks: the others, by name
    :param name: of the first task; ``None``: its id or class
    :param kwargs: of :class:`MultiTaskEnv`
    :return: a :class:`MultiTaskEnv`, in ``Monitor`` if ``env`` is
    :raises ValueError: if a task has the name of the first one, or as :class:`MultiTaskEnv` does
    """
    first_env = env.env if isinstance(env, Monitor) else env
    first = name_envs([first_env])[0] if name is None else name
    if first in tasks:
        raise ValueError(f"`name` must not be that of another task, got {first!r} and tasks {list(tasks)}")
    multi_task = MultiTaskEnv({first: first_env, **tasks}, **kwargs)
    if not isinstance(env, Monitor):
        return multi_task
    env.env = multi_task
    return env
