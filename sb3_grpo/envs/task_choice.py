"""Choose the task of each episode."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import ArrayLike

from sb3_grpo.envs.task_observation import HiddenTask

# What may be said instead of a task
RANDOM, IN_TURN = "random", "in_turn"


class TaskChoosingEnv(gym.Env[Any, Any]):
    """
    An environment that plays one of several tasks in each episode.

    A subclass calls :meth:`choose_task` in its ``reset``, and has ``display``, which shows the task in observations.

    :param n_tasks: number of tasks
    :param task_names: of the tasks, different from each other; ``None``: they have numbers only
    :param task: as in :meth:`set_task`
    :raises ValueError: for names that are not valid, or a task that does not exist
    """

    task: int  # of the episode that is played
    display: HiddenTask

    def __init__(self, n_tasks: int, task_names: Sequence[str] | None, task: int | str):
        self.n_tasks = n_tasks
        self.task_names = None if task_names is None else check_names(task_names)
        self._task_random = np.random.default_rng()
        self._task_probabilities = np.full(n_tasks, 1 / n_tasks)
        self.set_task(task)

    @property
    def task_columns(self) -> tuple[int, int] | None:
        """Columns of the observation that are a one-hot code of the task, ``(start, stop)``; ``None``: there are none."""
        return self.display.columns

    def set_task(self, task: int | str) -> None:
        """
        Choose the task of the next episodes; the current episode keeps its own.

        :param task: ``"random"``: drawn at each reset; ``"in_turn"``: one after the other; a number or a name: always this
            task
        :raises ValueError: if the task does not exist
        """
        self.task_choice = task if task in (RANDOM, IN_TURN) else self._number_of(task)
        self._next_in_turn = 0

    def begin_turn(self, task: int | str) -> None:
        """
        Play the tasks one after the other.

        :param task: number or name of the first one
        :raises ValueError: if the task does not exist
        """
        self.task_choice, self._next_in_turn = IN_TURN, self._number_of(task)

    def _number_of(self, task: int | str) -> int:
        if self.task_names is not None and task in self.task_names:
            return self.task_names.index(task)
        # True is no number of a task, although it is equal to 1
        if isinstance(task, (str, bool)) or task not in range(self.n_tasks):
            named = "" if self.task_names is None else f", or one of {self.task_names}"
            raise ValueError(
                f'`task` must be "random", "in_turn" or a number from 0 to {self.n_tasks - 1}{named}, got {task!r}'
            )
        return int(task)

    def get_task_probabilities(self) -> np.ndarray:
        """
        Return the probabilities with which ``task="random"`` draws.

        :return: probability of each task at the next reset, shape ``(n_tasks,)``; a copy
        """
        return self._task_probabilities.copy()

    def set_task_probabilities(self, probabilities: ArrayLike) -> None:
        """
        Set the probabilities with which ``task="random"`` draws; other choices stay.

        :param probabilities: shape ``(n_tasks,)``, at least 0, with sum 1
        :raises ValueError: if they are not
        """
        given = np.asarray(probabilities, dtype=float)
        if given.shape != (self.n_tasks,) or not (given >= 0).all() or not np.isclose(given.sum(), 1):
            raise ValueError(f"`probabilities` must be {self.n_tasks} numbers of at least 0 with sum 1, got {given.tolist()}")
        self._task_probabilities = given / given.sum()

    def choose_task(self, seed: int | None) -> dict[str, Any]:
        """
        Choose the task of an episode that begins: ``self.task``.

        :param seed: of the tasks that are drawn from now on; ``None``: go on
        :return: entries of ``info``: ``"task"``, its number, and ``"task_name"`` if tasks have names
        """
        if seed is not None:
            # a generator of its own, so that the environment's random numbers do not depend on how tasks are drawn
            self._task_random = np.random.default_rng(seed)
        drawn = int(self._task_random.choice(self.n_tasks, p=self._task_probabilities))
        if self.task_choice == RANDOM:
            self.task = drawn
        elif self.task_choice == IN_TURN:
            self.task = self._next_in_turn
            self._next_in_turn = (self.task + 1) % self.n_tasks
        else:
            self.task = int(self.task_choice)
        return self.task_info()

    def task_info(self) -> dict[str, Any]:
        """Return the entries of ``info`` that tell the task: ``"task"``, and ``"task_name"`` if tasks have names."""
        return {"task": self.task} if self.task_names is None else {"task": self.task, "task_name": self.task_names[self.task]}


def check_names(names: Sequence[str]) -> list[str]:
    """
    Check the names of tasks.

    :param names: the names
    :return: the names
    :raises ValueError: if one is no string or empty, if two are the same, or if one says how tasks are chosen
    """
    found = list(names)
    if not all(isinstance(name, str) and name for name in found):
        raise ValueError(f"names of `tasks` must be strings that are not empty, got {found}")
    if len(set(found)) < len(found):
        raise ValueError(f"names of `tasks` must be different from each other, got {found}")
    if reserved := [name for name in found if name in (RANDOM, IN_TURN)]:
        raise ValueError(f'names of `tasks` must not be "random" or "in_turn", which say how tasks are chosen, got {reserved}')
    return found
