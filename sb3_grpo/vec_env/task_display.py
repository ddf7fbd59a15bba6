"""Show the number of an environment's task in its observations, and its label in its infos."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_grpo.envs.entries import TASK
from sb3_grpo.envs.task_observation import with_columns

TaskLabel = int | float | str


class TaskDisplay:
    """
    Show no task: observations and infos stay as they are.

    :param observation_space: of the environments
    """

    def __init__(self, observation_space: spaces.Space):
        self.observation_space = observation_space
        self.attributes: dict[str, Any] = {}  # what environments say of their tasks, see `sb3_grpo.env_tasks`

    def mark(self, observations: Any) -> Any:
        """
        Return the observations of all environments, with the tasks.

        :param observations: one array of shape ``(num_envs, ...)``, or a dictionary of arrays
        """
        return observations

    def mark_infos(self, infos: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """
        Return the infos of all environments, with the tasks.

        :param infos: one for each environment; they are not changed
        """
        return infos


class LabelledDisplay(TaskDisplay, ABC):
    """
    Show the task in the infos; subclasses show it in observations.

    :param observation_space: of the environments, with the tasks
    :param numbers: number of each environment's task, shape ``(num_envs,)``
    :param labels: labels of the tasks, shape ``(n_tasks,)``
    """

    def __init__(self, observation_space: spaces.Space, numbers: np.ndarray, labels: Sequence[TaskLabel]):
        super().__init__(observation_space)
        self.numbers = numbers
        self.labels = [labels[number] for number in numbers]
        has_names = all(isinstance(label, str) for label in labels)
        self.attributes = {"task_names": list(labels) if has_names else None, "task_columns": None}

    def mark_infos(self, infos: list[dict[str, Any]]) -> list[dict[str, Any]]:
        marked = [{**info, TASK: label} for info, label in zip(infos, self.labels, strict=True)]
        for index, info in enumerate(marked):
            if "terminal_observation" in info:
                info["terminal_observation"] = self.mark_last(info["terminal_observation"], index)
        return marked

    @abstractmethod
    def mark_last(self, observation: Any, index: int) -> Any:
        """
        Return the last observation of an episode, with the task.

        :param observation: of one environment
        :param index: of the environment, in ``[0, num_envs)``
        """


class DictDisplay(LabelledDisplay):
    """
    Show the task as entry ``"task"`` of a Dict observation.

    :param space: observation space of the environments, without that entry
    :param numbers: number of each environment's task, shape ``(num_envs,)``
    :param labels: labels of the tasks, shape ``(n_tasks,)``
    """

    def __init__(self, space: spaces.Dict, numbers: np.ndarray, labels: Sequence[TaskLabel]):
        super().__init__(spaces.Dict({**space.spaces, TASK: spaces.Discrete(len(labels))}), numbers, labels)

    def mark(self, observations: Any) -> Any:
        return {**observations, TASK: self.numbers.copy()}

    def mark_last(self, observation: Any, index: int) -> Any:
        return {**observation, TASK: self.numbers[index]}


class BoxDisplay(LabelledDisplay):
    """
    Show the task as one-hot columns behind those of a Box observation.

    :param space: observation space of the environments, shape ``(n,)``
    :param numbers: number of each environment's task, shape ``(num_envs,)``
    :param labels: labels of the tasks, shape ``(n_tasks,)``
    """

    def __init__(self, space: spaces.Box, numbers: np.ndarray, labels: Sequence[TaskLabel]):
        super().__init__(with_columns(space, len(labels)), numbers, labels)
        self.attributes["task_columns"] = (space.shape[0], space.shape[0] + len(labels))
        self.columns = np.eye(len(labels), dtype=space.dtype)[numbers]

    def mark(self, observations: Any) -> Any:
        return np.concatenate([observations, self.columns], axis=1)

    def mark_last(self, observation: Any, index: int) -> Any:
        return np.concatenate([observation, self.columns[index]])


def make_display(space: spaces.Space, counts: Sequence[int], tasks: Sequence[TaskLabel] | None) -> TaskDisplay:
    """
    Return what shows the tasks.

    :param space: observation space of the environments
    :param counts: number of environments of each task, shape ``(n_tasks,)``
    :param tasks: labels of the tasks, or None if tasks are not shown
    :raises ValueError: if the labels are not valid, or if the observation cannot show a task
    """
    if tasks is None:
        return TaskDisplay(space)
    labels = list(tasks)
    if len(labels) != len(counts) or len(set(labels)) < len(labels) or not all(isinstance(x, TaskLabel) for x in labels):
        raise ValueError(f"tasks must be {len(counts)} different names or numbers, one for each VecEnv, got {tasks!r}")
    numbers = np.repeat(np.arange(len(counts)), counts)
    if isinstance(space, spaces.Dict) and TASK not in space.spaces:
        return DictDisplay(space, numbers, labels)
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return BoxDisplay(space, numbers, labels)
    raise ValueError(
        f"tasks must be None unless observations are a Dict without {TASK!r} or a Box of shape (n,), which can show them; "
        f"got {space}"
    )
