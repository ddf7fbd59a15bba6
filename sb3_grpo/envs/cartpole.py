"""CartPole with several tasks."""

from collections.abc import Sequence
from typing import Any, ClassVar

from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from sb3_grpo.envs.tasks import Task, TaskEnv

# Two kinds of physics, each with normal and with inverted actions
FOUR_TASKS: tuple[Task, ...] = (
    {},
    {"invert": True},
    {"length": 1.0, "masspole": 0.3},
    {"length": 1.0, "masspole": 0.3, "invert": True},
)


class TaskCartPole(TaskEnv, CartPoleEnv):
    """
    ``sb3_grpo/TaskCartPole-v0``: CartPole (500 steps) in which a task sets the physics (``gravity``, ``masscart``,
    ``masspole``, ``length``, ``force_mag``; units as in CartPole), whether the actions are inverted
    (``invert``), and the scale of the rewards (``reward_scale``).

    :param tasks: default: two kinds of physics, each with normal and with inverted actions
    :param kwargs: ``task``, ``task_observation``: see :class:`~sb3_grpo.envs.tasks.TaskEnv`; others: of CartPole
    """

    TASK_DEFAULTS: ClassVar[dict[str, Any]] = {
        "gravity": 9.8,
        "masscart": 1.0,
        "masspole": 0.1,
        "length": 0.5,
        "force_mag": 10.0,
        "invert": False,
        "reward_scale": 1.0,
    }

    def __init__(self, tasks: Sequence[Task] = FOUR_TASKS, **kwargs: Any):
        super().__init__(tasks, **kwargs)

    def _apply_task(self, task: Task) -> None:
        self.gravity = task["gravity"]
        self.masscart, self.masspole, self.length = task["masscart"], task["masspole"], task["length"]
        self.total_mass = self.masspole + self.masscart
        self.polemass_length = self.masspole * self.length
        self.force_mag = -task["force_mag"] if task["invert"] else task["force_mag"]
        self.reward_scale = task["reward_scale"]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, self.reward_scale * reward, terminated, truncated, info
