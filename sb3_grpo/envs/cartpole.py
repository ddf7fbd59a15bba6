"""Define CartPole with several tasks."""

from typing import Any, ClassVar

from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from sb3_grpo.envs.tasks import Task, TaskEnv, Tasks

# Two kinds of physics, each with normal and with inverted actions
FOUR_TASKS: tuple[Task, ...] = (
    {},
    {"invert": True},
    {"length": 1.0, "masspole": 0.3},
    {"length": 1.0, "masspole": 0.3, "invert": True},
)


class TaskCartPole(TaskEnv):
    """
    CartPole with tasks, ``sb3_grpo/TaskCartPole-v0``, with episodes of at most 500 steps.

    A task sets the physics (``gravity``, ``masscart``, ``masspole``, ``length``, ``force_mag``; units as in CartPole),
    whether the actions are inverted (``invert``), and the scale of the rewards (``reward_scale``).

    :param tasks: default: two kinds of physics, each with normal and with inverted actions
    :param render_mode: ``None``, ``"human"`` or ``"rgb_array"``
    :param kwargs: ``task``, ``task_observation``: see :class:`~sb3_grpo.envs.tasks.TaskEnv`
    :raises ValueError: as :class:`~sb3_grpo.envs.tasks.TaskEnv` does
    """

    metadata = CartPoleEnv.metadata
    TASK_DEFAULTS: ClassVar[dict[str, Any]] = {
        **TaskEnv.TASK_DEFAULTS,
        "gravity": 9.8,
        "masscart": 1.0,
        "masspole": 0.1,
        "length": 0.5,
        "force_mag": 10.0,
        "invert": False,
    }

    def __init__(self, tasks: Tasks = FOUR_TASKS, render_mode: str | None = None, **kwargs: Any):
        self.cartpole = CartPoleEnv(render_mode=render_mode)
        super().__init__(self.cartpole, tasks, **kwargs)

    def _apply_task(self, task: Task) -> None:
        cartpole = self.cartpole
        for name in ("gravity", "masscart", "masspole", "length"):
            setattr(cartpole, name, task[name])
        cartpole.total_mass = task["masspole"] + task["masscart"]
        cartpole.polemass_length = task["masspole"] * task["length"]
        cartpole.force_mag = -task["force_mag"] if task["invert"] else task["force_mag"]
