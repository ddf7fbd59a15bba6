"""Draw a task at each reset and show it in the observation, for all multi-task environments."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike

Task = Mapping[str, Any]


class TaskEnv(gym.Env[Any, Any], ABC):
    """
    An environment that plays one of several tasks in each episode.

    A subclass defines in :meth:`_apply_task` what a task changes. ``info["task"]`` is the number of the task.

    :param env: the environment, with a Box observation of one dimension
    :param tasks: the tasks, each a mapping from names in ``TASK_DEFAULTS`` to values
    :param task: ``"random"``: drawn at each reset; a number: always this task
    :param task_observation: how the task is shown: ``"one_hot"`` appends columns to the observation, ``"dict"``
        gives ``{"obs": observation, "task": number}``, ``None`` does not show it
    :raises ValueError: for no tasks, unknown names in a task, or a task that does not exist
    """

    # Everything a task may set, with the values of the plain environment
    TASK_DEFAULTS: ClassVar[dict[str, Any]] = {"reward_scale": 1.0}

    def __init__(
        self,
        env: gym.Env[Any, Any],
        tasks: Sequence[Task],
        task: int | Literal["random"] = "random",
        task_observation: Literal["one_hot", "dict"] | None = "one_hot",
    ):
        if not tasks:
            raise ValueError("`tasks` must hold at least one task, got none")
        for values in tasks:
            if unknown := set(values) - set(self.TASK_DEFAULTS):
                raise ValueError(f"`tasks` may set {list(self.TASK_DEFAULTS)}, got {sorted(unknown)}")
        if task_observation not in ("one_hot", "dict", None):
            raise ValueError(f'`task_observation` must be "one_hot", "dict" or None, got {task_observation!r}')
        self.tasks = [{**self.TASK_DEFAULTS, **values} for values in tasks]
        self.task_observation = task_observation
        self.env = env
        self.action_space = env.action_space
        self.observation_space = self._task_space(env.observation_space)
        self.render_mode = env.render_mode
        self._task_random = np.random.default_rng()
        self._task_probabilities = np.full(self.n_tasks, 1 / self.n_tasks)
        self.set_task(task)

    @property
    def n_tasks(self) -> int:
        """Return the number of tasks."""
        return len(self.tasks)

    def set_task(self, task: int | Literal["random"]) -> None:
        """
        Choose the task of the next episodes; the current episode keeps its own.

        :param task: ``"random"``: drawn at each reset; a number: always this task
        :raises ValueError: if the task does not exist
        """
        if task != "random" and task not in range(self.n_tasks):
            raise ValueError(f'`task` must be "random" or a number from 0 to {self.n_tasks - 1}, got {task!r}')
        self.task_choice = task

    def get_task_probabilities(self) -> np.ndarray:
        """
        Return the probabilities with which ``task="random"`` draws.

        :return: probability of each task at the next reset, shape ``(n_tasks,)``; a copy
        """
        return self._task_probabilities.copy()

    def set_task_probabilities(self, probabilities: ArrayLike) -> None:
        """
        Set the probabilities with which ``task="random"`` draws; a fixed task stays.

        :param probabilities: shape ``(n_tasks,)``, at least 0, with sum 1
        :raises ValueError: if they are not
        """
        given = np.asarray(probabilities, dtype=float)
        if given.shape != (self.n_tasks,) or not (given >= 0).all() or not np.isclose(given.sum(), 1):
            raise ValueError(f"`probabilities` must be {self.n_tasks} numbers of at least 0 with sum 1, got {given.tolist()}")
        self._task_probabilities = given / given.sum()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        Draw a task, unless it is fixed, and begin an episode of it.

        :param seed: of the environment and, separately, of the tasks that are drawn from now on; ``None``: go on with both
        :param options: of the environment
        :return: observation with the task, and the environment's ``info`` with ``"task"``
        """
        super().reset(seed=seed)
        if seed is not None:
            # a generator of its own, so that the environment's random numbers do not depend on how tasks are drawn
            self._task_random = np.random.default_rng(seed)
        drawn = int(self._task_random.choice(self.n_tasks, p=self._task_probabilities))
        self.task = drawn if self.task_choice == "random" else int(self.task_choice)
        self._apply_task(self.tasks[self.task])
        obs, info = self.env.reset(seed=seed, options=options)
        return self._with_task(obs), {**info, "task": self.task}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        Take one step of the environment and scale its reward by ``reward_scale`` of the task.

        :param action: of the environment
        :return: observation with the task, reward, whether the episode is terminated, whether it is truncated, and the
            environment's ``info`` with ``"task"``
        """
        obs, reward, terminated, truncated, info = self.env.step(action)
        reward = self.tasks[self.task]["reward_scale"] * float(reward)
        return self._with_task(obs), reward, terminated, truncated, {**info, "task": self.task}

    def render(self) -> Any:
        """Draw the environment, as its ``render_mode`` says."""
        return self.env.render()

    def close(self) -> None:
        """Close the environment and its window."""
        self.env.close()

    @abstractmethod
    def _apply_task(self, task: Task) -> None:
        """
        Set what the task changes in the environment, before the environment is reset.

        :param task: values of all names in ``TASK_DEFAULTS``, for the episode that starts now
        """

    def _task_space(self, space: spaces.Space[Any]) -> spaces.Space[Any]:
        assert isinstance(space, spaces.Box)
        if self.task_observation == "dict":
            return spaces.Dict({"obs": space, "task": spaces.Discrete(self.n_tasks)})
        if self.task_observation is None:
            return space
        low, high = np.zeros(self.n_tasks, space.dtype), np.ones(self.n_tasks, space.dtype)
        return spaces.Box(np.concatenate([space.low, low]), np.concatenate([space.high, high]), dtype=space.dtype)

    def _with_task(self, obs: np.ndarray) -> Any:
        if self.task_observation == "dict":
            return {"obs": obs, "task": self.task}
        if self.task_observation is None:
            return obs
        return np.concatenate([obs, np.eye(self.n_tasks, dtype=obs.dtype)[self.task]])
