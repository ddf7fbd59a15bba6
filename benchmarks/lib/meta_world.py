"""Build the ten tasks of Meta-World's MT10 (https://arxiv.org/abs/1910.10897, version 3) from EnvPool's environments."""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_grpo import JoinedVecEnv, adapt_vector_env, make_multi_task_vec_env

TASKS = (
    "Reach",
    "Push",
    "PickPlace",
    "DoorOpen",
    "DrawerOpen",
    "DrawerClose",
    "ButtonPressTopdown",
    "PegInsertSide",
    "WindowOpen",
    "WindowClose",
)


def make_pool(task: str, num_envs: int, seed: int) -> Any:
    """
    Return environments of one task, whose observations show the goal, which is drawn at each reset.

    :param task: a name of :data:`TASKS`
    :param num_envs: number of environments
    :param seed: seed of the first one
    """
    import envpool  # noqa: PLC0415 (an extra)

    with warnings.catch_warnings():
        # EnvPool makes its spaces of float32 out of bounds in float64
        warnings.filterwarnings("ignore", ".*precision lowered by casting", UserWarning)
        kwargs = dict(num_envs=num_envs, num_threads=1, seed=seed, partially_observable=False)
        return envpool.make(f"MetaWorld/{task}-v3", env_type="gymnasium", **kwargs)


class EpisodeSuccess(VecEnvWrapper):
    """
    Say at the end of an episode, as ``info["is_success"]``, whether the task was solved in any of its steps.

    :param venv: whose infos have ``"success"``
    """

    def __init__(self, venv: VecEnv):
        super().__init__(venv)
        self._solved = np.zeros(venv.num_envs, bool)

    def reset(self) -> VecEnvObs:
        self._solved[:] = False
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = self.venv.step_wait()
        self._solved |= [info["success"] > 0 for info in infos]
        for index in np.flatnonzero(dones):
            infos[index]["is_success"] = bool(self._solved[index])
        self._solved &= ~dones
        return observations, rewards, dones, infos


def make_fixed_envs(seed: int, envs_per_task: int, tasks: Sequence[str] = TASKS) -> VecEnv:
    """
    Return environments that play one task each; the observation has the task one-hot behind its own columns.

    :param seed: seed of the first environment; a model on them has the same seed, because SB3 seeds environments
    :param envs_per_task: number of environments of each task
    :param tasks: names of :data:`TASKS`
    """
    pools = [make_pool(task, envs_per_task, seed + place * envs_per_task) for place, task in enumerate(tasks)]
    return EpisodeSuccess(JoinedVecEnv([adapt_vector_env(pool, info_keywords=("success",)) for pool in pools], tasks=tasks))


class PooledEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    One environment of EnvPool, as Gymnasium's interface has it.

    It is made, and seeded, at its first reset: EnvPool takes seeds then only.

    :param task: a name of :data:`TASKS`
    """

    action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
    observation_space = spaces.Box(-np.inf, np.inf, (39,), np.float64)

    def __init__(self, task: str):
        self._task = task
        self._pool: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Begin an episode with a new goal.

        :param seed: of the environment, which counts once
        :param options: not used
        """
        super().reset(seed=seed)
        if self._pool is None:
            self._pool = make_pool(self._task, 1, int(self.np_random.integers(2**31 - 1)))
        observations, _ = self._pool.reset()
        return observations[0].copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        Take a step.

        :param action: shape ``(4,)``
        """
        observations, rewards, terminated, truncated, infos = self._pool.step(np.asarray(action, np.float32)[np.newaxis])
        info = {"success": float(infos["success"][0])}
        return observations[0].copy(), float(rewards[0]), bool(terminated[0]), bool(truncated[0]), info


def make_drawn_envs(seed: int, n_envs: int, tasks: Sequence[str] = TASKS) -> VecEnv:
    """
    Return environments that draw a task at each reset, so that tasks can be sampled; the task is one-hot, as above.

    :param seed: seed of the first environment
    :param n_envs: number of environments
    :param tasks: names of :data:`TASKS`
    """
    envs = make_multi_task_vec_env({task: partial(PooledEnv, task) for task in tasks}, n_envs, seed=seed)
    return EpisodeSuccess(envs)
