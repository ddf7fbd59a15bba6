"""Define Acrobot with several tasks."""

from typing import Any, ClassVar

from gymnasium.envs.classic_control.acrobot import AcrobotEnv

from sb3_grpo.envs.tasks import Task, TaskEnv, Tasks

# Three orders of the actions, in each of which another action pushes left, right or not at all
THREE_ORDERS: tuple[Task, ...] = ({}, {"actions": (1, 2, 0)}, {"actions": (2, 0, 1)})


class TaskAcrobot(TaskEnv):
    """
    Acrobot with tasks, ``sb3_grpo/TaskAcrobot-v0``, with episodes of at most 500 steps.

    A task sets which torque an action means (``actions``: for each action the action of Acrobot that is taken), the length
    and the masses of the links (``LINK_LENGTH_1``, ``LINK_MASS_1``, ``LINK_MASS_2``; units as in Acrobot), and the scale of
    the rewards (``reward_scale``).

    :param tasks: default: three orders of the actions
    :param render_mode: ``None``, ``"human"`` or ``"rgb_array"``
    :param kwargs: ``task``, ``task_observation``: see :class:`~sb3_grpo.envs.tasks.TaskEnv`
    :raises ValueError: if ``actions`` of a task is not an order of 0, 1 and 2, and as
        :class:`~sb3_grpo.envs.tasks.TaskEnv` does
    """

    metadata = AcrobotEnv.metadata
    TASK_DEFAULTS: ClassVar[dict[str, Any]] = {
        **TaskEnv.TASK_DEFAULTS,
        "actions": (0, 1, 2),
        "LINK_LENGTH_1": 1.0,
        "LINK_MASS_1": 1.0,
        "LINK_MASS_2": 1.0,
    }

    def __init__(self, tasks: Tasks = THREE_ORDERS, render_mode: str | None = None, **kwargs: Any):
        self.acrobot = AcrobotEnv(render_mode=render_mode)
        super().__init__(self.acrobot, tasks, **kwargs)
        for task in self.tasks:
            if sorted(task["actions"]) != [0, 1, 2]:
                raise ValueError(f"`actions` must hold 0, 1 and 2, each once, got {task['actions']}")

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        Take the action that the given one means in the current task.

        :param action: 0, 1 or 2
        :return: as :meth:`~sb3_grpo.envs.tasks.TaskEnv.step`
        """
        return super().step(self.tasks[self.task]["actions"][int(action)])

    def _apply_task(self, task: Task) -> None:
        for name in ("LINK_LENGTH_1", "LINK_MASS_1", "LINK_MASS_2"):
            setattr(self.acrobot, name, task[name])
