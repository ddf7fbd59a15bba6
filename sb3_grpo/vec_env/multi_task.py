"""Make a ``VecEnv`` of environments that play several tasks."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_grpo.envs.multi_task import MultiTaskEnv, Tasks
from sb3_grpo.vec_env.lean import LeanVecEnv

CHOICES = ("random", "in_turn", "fixed")


def make_multi_task_vec_env(
    tasks: Tasks,
    n_envs: int = 1,
    task: str = "random",
    seed: int | None = None,
    vec_env_cls: type[VecEnv] | None = None,
    multi_task_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> VecEnv:
    """
    Make a ``VecEnv`` whose environments play the same tasks, see :class:`~sb3_grpo.envs.multi_task.MultiTaskEnv`.

    :param tasks: environments by name, or a list of them: ids, or functions or classes that return one
    :param n_envs: number of environments; with ``task="fixed"`` at least that of the tasks
    :param task: which task an episode is: ``"random"``: drawn; ``"in_turn"``: one after the other, environment ``i``
        beginning with task ``i``; ``"fixed"``: always task ``i``; both count again from 0 where there are more environments
    :param seed: of the environments; ``None``: none
    :param vec_env_cls: class of the ``VecEnv``; ``None``: ``LeanVecEnv``
    :param multi_task_kwargs: other arguments of ``MultiTaskEnv``, such as ``task_observation`` and ``reward_scales``
    :param kwargs: other arguments of SB3's ``make_vec_env``
    :return: the environments, each in ``Monitor``
    :raises ValueError: if an argument breaks its rule, if a task would not be played by any environment, or as
        ``MultiTaskEnv`` does
    """
    if task not in CHOICES:
        raise ValueError(f"`task` must be one of {list(CHOICES)}, got {task!r}")
    sources = list(tasks.values() if isinstance(tasks, Mapping) else tasks)
    if n_envs > 1 and any(isinstance(source, gym.Env) for source in sources):
        raise ValueError(f"`tasks` must hold ids or functions, since each of {n_envs} environments has its own, got {tasks!r}")
    if task == "fixed" and n_envs < len(sources):
        raise ValueError(f"`n_envs` must be at least the number of tasks, {len(sources)}, with task='fixed', got {n_envs}")
    env_kwargs = {**(multi_task_kwargs or {}), "tasks": tasks}
    cls: Any = LeanVecEnv if vec_env_cls is None else vec_env_cls
    env = make_vec_env(MultiTaskEnv, n_envs, seed, env_kwargs=env_kwargs, vec_env_cls=cls, **kwargs)
    for index in range(n_envs if task != "random" else 0):
        env.env_method("begin_turn" if task == "in_turn" else "set_task", index % len(sources), indices=index)
    return env
