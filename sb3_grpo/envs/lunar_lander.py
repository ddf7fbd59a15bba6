"""LunarLander with several contexts of gravity and wind; needs ``gymnasium[box2d]``."""

from collections.abc import Sequence
from typing import Any, ClassVar

from gymnasium.envs.box2d.lunar_lander import LunarLander

from sb3_grpo.envs.tasks import Task, TaskEnv

FOUR_CONTEXTS: tuple[Task, ...] = (
    {},
    {"gravity": -4.0},
    {"wind_power": 15.0, "turbulence_power": 1.5},
    {"gravity": -11.5, "wind_power": 15.0, "turbulence_power": 1.5},
)


class TaskLunarLander(TaskEnv, LunarLander):
    """
    ``sb3_grpo/TaskLunarLander-v0``: LunarLander in which a task sets ``gravity`` (above -12, below 0),
    ``wind_power`` (0 to 20, 0: no wind), ``turbulence_power`` (0 to 2) and the scale of the rewards (``reward_scale``).

    :param tasks: default: plain, low gravity, wind, high gravity with wind
    :param kwargs: ``task``, ``task_observation``: see :class:`~sb3_grpo.envs.tasks.TaskEnv`; others: of LunarLander
    """

    TASK_DEFAULTS: ClassVar[dict[str, Any]] = {
        "gravity": -10.0,
        "wind_power": 0.0,
        "turbulence_power": 0.0,
        "reward_scale": 1.0,
    }

    def __init__(self, tasks: Sequence[Task] = FOUR_CONTEXTS, **kwargs: Any):
        super().__init__(tasks, **kwargs)
        for context in self.tasks:
            if not -12 < context["gravity"] < 0:
                raise ValueError(f"`gravity` must lie between -12 and 0, got {context['gravity']}")

    def _apply_task(self, task: Task) -> None:
        self.gravity = task["gravity"]
        self.wind_power, self.turbulence_power = task["wind_power"], task["turbulence_power"]
        self.enable_wind = task["wind_power"] > 0 or task["turbulence_power"] > 0
        self.reward_scale = task["reward_scale"]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, self.reward_scale * reward, terminated, truncated, info
