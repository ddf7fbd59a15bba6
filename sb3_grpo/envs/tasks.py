"""Draw a task at each reset and show it in the observation, for all multi-task environments."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import gymnasium as gym

from sb3_grpo.envs.task_choice import TaskChoosingEnv
from sb3_grpo.envs.task_observation import SHOWN

Task = Mapping[str, Any]
Tasks = Sequence[Task] | Mapping[str, Task]


class TaskEnv(TaskChoosingEnv, ABC):
    """
    An environment whose tasks are values that it plays with.

    A subclass defines in :meth:`_apply_task` what a task changes. ``info["task"]`` is the number of the task,
    ``info["task_name"]`` its name if it has one.

    :param env: the environment, with a Box observation of one dimension
    :param tasks: the tasks, each a mapping from names in ``TASK_DEFAULTS`` to values; a list of them, or by name
    :param task: as in :meth:`~sb3_grpo.envs.task_choice.TaskChoosingEnv.set_task`
    :param task_observation: how the task is shown: ``"one_hot"`` appends columns to the observation, ``"dict"``
        gives ``{"obs": observation, "task": number}``, ``None`` does not show it
    :raises ValueError: for no tasks, unknown names in a task, or a task that does not exist
    """

    # Everything a task may set, with the values of the plain environment
    TASK_DEFAULTS: ClassVar[dict[str, Any]] = {"reward_scale": 1.0}

    def __init__(
        self,
        env: gym.Env[Any, Any],
        tasks: Tasks,
        task: int | str = "random",
        task_observation: Literal["one_hot", "dict"] | None = "one_hot",
    ):
        if not tasks:
            raise ValueError("`tasks` must hold at least one task, got none")
        names = list(tasks) if isinstance(tasks, Mapping) else None
        given = list(tasks.values()) if isinstance(tasks, Mapping) else list(tasks)
        for values in given:
            if unknown := set(values) - set(self.TASK_DEFAULTS):
                raise ValueError(f"`tasks` may set {list(self.TASK_DEFAULTS)}, got {sorted(unknown)}")
        if task_observation not in SHOWN:
            raise ValueError(f'`task_observation` must be "one_hot", "dict" or None, got {task_observation!r}')
        self.tasks = [{**self.TASK_DEFAULTS, **values} for values in given]
        super().__init__(len(self.tasks), names, task)
        self.env = env
        self.action_space = env.action_space
        self.display = SHOWN[task_observation](env.observation_space, self.n_tasks)
        self.observation_space = self.display.space
        self.render_mode = env.render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        Draw a task, unless it is fixed, and begin an episode of it.

        :param seed: of the environment and, separately, of the tasks that are drawn from now on; ``None``: go on with both
        :param options: of the environment
        :return: observation with the task, and the environment's ``info`` with ``"task"``
        """
        super().reset(seed=seed)
        chosen = self.choose_task(seed)
        self._apply_task(self.tasks[self.task])
        obs, info = self.env.reset(seed=seed, options=options)
        return self.display.show(obs, self.task), {**info, **chosen}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        Take one step of the environment and scale its reward by ``reward_scale`` of the task.

        :param action: of the environment
        :return: observation with the task, reward, whether the episode is terminated, whether it is truncated, and the
            environment's ``info`` with ``"task"``
        """
        obs, reward, terminated, truncated, info = self.env.step(action)
        reward = self.tasks[self.task]["reward_scale"] * float(reward)
        return self.display.show(obs, self.task), reward, terminated, truncated, {**info, **self.task_info()}

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
