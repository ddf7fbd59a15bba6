"""Define Pendulum with several tasks."""

from typing import Any, ClassVar

from gymnasium.envs.classic_control.pendulum import PendulumEnv

from sb3_grpo.envs.tasks import Task, TaskEnv, Tasks

TWO_DIRECTIONS: tuple[Task, ...] = ({}, {"invert": True})


class TaskPendulum(TaskEnv):
    """
    Pendulum with tasks, ``sb3_grpo/TaskPendulum-v0``, with episodes of 200 steps.

    A task sets the physics (``g``, ``m``, ``l``; units as in Pendulum), whether the torque is inverted (``invert``), and the
    scale of the rewards (``reward_scale``).

    :param tasks: default: normal and inverted torque
    :param render_mode: ``None``, ``"human"`` or ``"rgb_array"``
    :param kwargs: ``task``, ``task_observation``: see :class:`~sb3_grpo.envs.tasks.TaskEnv`
    :raises ValueError: as :class:`~sb3_grpo.envs.tasks.TaskEnv` does
    """

    metadata = PendulumEnv.metadata
    TASK_DEFAULTS: ClassVar[dict[str, Any]] = {**TaskEnv.TASK_DEFAULTS, "g": 10.0, "m": 1.0, "l": 1.0, "invert": False}

    def __init__(self, tasks: Tasks = TWO_DIRECTIONS, render_mode: str | None = None, **kwargs: Any):
        self.pendulum = PendulumEnv(render_mode=render_mode)
        super().__init__(self.pendulum, tasks, **kwargs)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        Apply the torque, or the opposite one in a task with ``invert``.

        :param action: torque, shape ``(1,)``; Pendulum clips it to -2 to 2
        :return: as :meth:`~sb3_grpo.envs.tasks.TaskEnv.step`
        """
        return super().step(-action if self.tasks[self.task]["invert"] else action)

    def _apply_task(self, task: Task) -> None:
        for name in ("g", "m", "l"):
            setattr(self.pendulum, name, task[name])
