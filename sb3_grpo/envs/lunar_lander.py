"""Define LunarLander with several contexts of gravity and wind; needs ``gymnasium[box2d]``."""

from typing import Any, ClassVar

from gymnasium.envs.box2d.lunar_lander import LunarLander

from sb3_grpo.envs.tasks import Task, TaskEnv, Tasks

FOUR_CONTEXTS: tuple[Task, ...] = (
    {},
    {"gravity": -4.0},
    {"wind_power": 15.0, "turbulence_power": 1.5},
    {"gravity": -11.5, "wind_power": 15.0, "turbulence_power": 1.5},
)


class TaskLunarLander(TaskEnv):
    """
    LunarLander with tasks, ``sb3_grpo/TaskLunarLander-v0``, with episodes of at most 1000 steps.

    A task sets ``gravity`` (above -12, below 0), ``wind_power`` (0 to 20, 0: no wind), ``turbulence_power`` (0 to 2) and the
    scale of the rewards (``reward_scale``).

    :param tasks: default: plain, low gravity, wind, high gravity with wind
    :param continuous: continuous actions instead of four discrete ones
    :param render_mode: ``None``, ``"human"`` or ``"rgb_array"``
    :param kwargs: ``task``, ``task_observation``: see :class:`~sb3_grpo.envs.tasks.TaskEnv`
    :raises ValueError: if ``gravity`` of a task is outside of its range, and as :class:`~sb3_grpo.envs.tasks.TaskEnv` does
    """

    metadata = LunarLander.metadata
    TASK_DEFAULTS: ClassVar[dict[str, Any]] = {
        **TaskEnv.TASK_DEFAULTS,
        "gravity": -10.0,
        "wind_power": 0.0,
        "turbulence_power": 0.0,
    }

    def __init__(self, tasks: Tasks = FOUR_CONTEXTS, render_mode: str | None = None, continuous: bool = False, **kwargs: Any):
        self.lander = LunarLander(render_mode=render_mode, continuous=continuous)
        super().__init__(self.lander, tasks, **kwargs)
        for context in self.tasks:
            if not -12 < context["gravity"] < 0:
                raise ValueError(f"`gravity` must lie between -12 and 0, got {context['gravity']}")

    def _apply_task(self, task: Task) -> None:
        for name in ("gravity", "wind_power", "turbulence_power"):
            setattr(self.lander, name, task[name])
        self.lander.enable_wind = task["wind_power"] > 0 or task["turbulence_power"] > 0
