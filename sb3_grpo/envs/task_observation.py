"""Show the task in the observation."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_grpo.envs.entries import TASK, ExtraEntry


class HiddenTask:
    """
    Show no task.

    :param space: observation space of the environment
    :param n_tasks: number of tasks
    """

    columns: tuple[int, int] | None = None  # of the one-hot code of the task, (start, stop)

    def __init__(self, space: spaces.Space[Any], n_tasks: int):
        self.space = space

    def show(self, obs: Any, task: int) -> Any:
        """
        Return an observation with the task.

        :param obs: of the environment
        :param task: number of the task
        """
        return obs


class OneHotTask(HiddenTask):
    """
    Show the task as one-hot columns behind those of the observation.

    :param space: observation space of the environment, a Box of one dimension
    :param n_tasks: number of tasks
    :raises ValueError: if the space is another one
    """

    def __init__(self, space: spaces.Space[Any], n_tasks: int):
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ValueError(f'`task_observation` must not be "one_hot" unless observations have one dimension, got {space}')
        self.columns, self.codes = (space.shape[0], space.shape[0] + n_tasks), np.eye(n_tasks, dtype=space.dtype)
        super().__init__(with_columns(space, n_tasks), n_tasks)

    def show(self, obs: Any, task: int) -> Any:
        return np.concatenate([obs, self.codes[task]])


class TaskEntry(HiddenTask):
    """
    Show the number of the task as entry ``"task"`` of a Dict.

    :param space: observation space of the environment; one that is no Dict becomes entry ``"obs"``
    :param n_tasks: number of tasks
    :raises ValueError: if the space has such an entry already
    """

    def __init__(self, space: spaces.Space[Any], n_tasks: int):
        self._entry = ExtraEntry(space, TASK, spaces.Discrete(n_tasks))
        super().__init__(self._entry.space, n_tasks)

    def show(self, obs: Any, task: int) -> Any:
        return self._entry.add(obs, task)


# Values of the argument `task_observation`
SHOWN: Mapping[str | None, type[HiddenTask]] = {"one_hot": OneHotTask, "dict": TaskEntry, None: HiddenTask}


def with_columns(space: spaces.Box, n: int) -> spaces.Box:
    """
    Return a space with more columns, of numbers from 0 to 1.

    :param space: shape ``(m,)``
    :param n: number of the new columns
    :return: shape ``(m + n,)``
    """
    dtype: Any = space.dtype
    low, high = np.zeros(n, dtype), np.ones(n, dtype)
    return spaces.Box(np.concatenate([space.low, low]), np.concatenate([space.high, high]), dtype=dtype)
