"""Build the MiniGrid tasks of MOORE's protocol (https://arxiv.org/abs/2311.11385), from EnvPool or from MiniGrid."""

import warnings
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_grpo import JoinedVecEnv, adapt_vector_env, make_multi_task_vec_env

ENVS_PER_TASK = 20
MAX_REMEMBERED = 20_000  # views of one task

# positions, direction and cells by which a view is remembered
Situation = tuple[Any, ...]


class TaskView(gym.Wrapper[dict[str, Any], int, Any, int]):
    """
    Show the agent its view, channels first, and the number of its task.

    :param env: a MiniGrid environment
    :param task: number of the task
    :param n_tasks: how many there are
    """

    def __init__(self, env: gym.Env[Any, int], task: int, n_tasks: int):
        super().__init__(env)
        self.task = task
        self.observation_space = spaces.Dict(
            {"view": spaces.Box(0, 255, (3, 7, 7), np.float32), "task": spaces.Discrete(n_tasks)}
        )

    def _observe(self, obs: dict[str, Any]) -> dict[str, Any]:
        return {"view": obs["image"].transpose(2, 0, 1).astype(np.float32), "task": self.task}

    def reset(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Start an episode.

        :param kwargs: see Gymnasium
        """
        obs, info = self.env.reset(**kwargs)
        return self._observe(obs), {**info, "task": self.task}

    def step(self, action: int) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        """
        Take one step.

        :param action: number of the action
        """
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._observe(obs), reward, terminated, truncated, {**info, "task": self.task}


def remember_views(env: gym.Env[Any, int], drawn: dict[Situation, Any] | None = None) -> gym.Env[Any, int]:
    """
    Cache the views of an environment, and return the same environment.

    MiniGrid renders the view after each step, which takes most of the time of a step; most tasks have few different views.

    :param env: a MiniGrid environment whose mission does not change
    :param drawn: views that environments of the same task have in common; ``None``: this environment has its own
    """
    world: Any = env.unwrapped
    draw, drawn = world.gen_obs, {} if drawn is None else drawn

    def gen_obs() -> dict[str, Any]:
        encoded = tuple(cell and cell.encode() for cell in (world.carrying, *world.grid.grid))
        situation = (*world.agent_pos, world.agent_dir, encoded)
        if situation not in drawn:
            if len(drawn) >= MAX_REMEMBERED:
                drawn.clear()
            drawn[situation] = draw()
        view = drawn[situation]
        return {**view, "image": view["image"].copy()}  # Gymnasium warns of observations that are one object

    world.gen_obs = gen_obs
    return env


class PoolView(VecEnvWrapper):
    """
    Show the agent of EnvPool's MiniGrid what :class:`TaskView` shows: its view, channels first, and the number of its task.

    :param venv: whose observations have ``image`` and ``task``
    """

    def __init__(self, venv: VecEnv):
        assert isinstance(venv.observation_space, spaces.Dict)
        view = spaces.Box(0, 255, (3, 7, 7), np.float32)
        super().__init__(venv, spaces.Dict({"view": view, "task": venv.observation_space["task"]}))

    def _observe(self, obs: Any) -> dict[str, Any]:
        return {"view": np.moveaxis(obs["image"], -1, -3).astype(np.float32, order="C"), "task": obs["task"]}

    def reset(self) -> VecEnvObs:
        return self._observe(self.venv.reset())

    def step_wait(self) -> VecEnvStepReturn:
        obs, rewards, dones, infos = self.venv.step_wait()
        for index in np.flatnonzero(dones):
            infos[index]["terminal_observation"] = self._observe(infos[index]["terminal_observation"])
        return self._observe(obs), rewards, dones, infos


def make_pools(names: Sequence[str], seed: int, envs_per_task: int = ENVS_PER_TASK) -> VecEnv:
    """
    Return environments of EnvPool, one pool for each task.

    :param names: registered names of the tasks
    :param seed: seed of the first environment; a model on them has the same seed, because SB3 seeds environments
    :param envs_per_task: number of environments of each task
    """
    import envpool  # noqa: PLC0415 (an extra)

    with warnings.catch_warnings():
        # EnvPool makes its spaces of float32 out of bounds in float64
        warnings.filterwarnings("ignore", ".*precision lowered by casting", UserWarning)
        pools: list[Any] = [
            envpool.make(name, env_type="gymnasium", num_envs=envs_per_task, num_threads=1, seed=seed + task * envs_per_task)
            for task, name in enumerate(names)
        ]
        return PoolView(JoinedVecEnv([adapt_vector_env(pool) for pool in pools], tasks=range(len(pools))))


def make_python_envs(names: Sequence[str], seed: int, envs_per_task: int = ENVS_PER_TASK) -> VecEnv:
    """
    Return MiniGrid's own environments, which take some ten times as long for a step.

    :param names: registered names of the tasks
    :param seed: seed of the first environment
    :param envs_per_task: number of environments of each task
    """

    def make(task: int) -> gym.Env[dict[str, Any], int]:
        # with the prefix Gymnasium imports `minigrid` in the processes of a sweep too
        return Monitor(TaskView(remember_views(gym.make(f"minigrid:{names[task]}")), task, len(names)))

    env = DummyVecEnv([partial(make, task) for task in range(len(names)) for _ in range(envs_per_task)])
    env.seed(seed)
    return env


def make_drawn_envs(names: Sequence[str], seed: int, envs_per_task: int = ENVS_PER_TASK) -> VecEnv:
    """
    Return environments of MiniGrid that draw a task at each reset, so that tasks can be sampled.

    :param names: registered names of the tasks
    :param seed: seed of the first environment
    :param envs_per_task: number of environments, divided by that of the tasks
    """

    def make(task: int, drawn: dict[Situation, Any]) -> gym.Env[dict[str, Any], int]:
        return TaskView(remember_views(gym.make(f"minigrid:{names[task]}"), drawn), task, len(names))

    tasks = {name: partial(make, task, {}) for task, name in enumerate(names)}
    # the observation of an environment shows its task
    options = dict(task_observation=None)
    return make_multi_task_vec_env(tasks, envs_per_task * len(names), seed=seed, multi_task_kwargs=options)


def make_env(names: Sequence[str], seed: int, envs_per_task: int = ENVS_PER_TASK) -> VecEnv:
    """
    Return environments of EnvPool where it is installed (it has wheels for Linux alone), else MiniGrid's own.

    :param names: registered names of the tasks
    :param seed: seed of the first environment
    :param envs_per_task: number of environments of each task
    """
    make = make_pools if find_spec("envpool") else make_python_envs
    return make(names, seed, envs_per_task)
