"""Build the MiniGrid tasks and the networks of MOORE's protocol (https://arxiv.org/abs/2311.11385)."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import nn

ENVS_PER_TASK = 4
HIDDEN = 128


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


def remember_views(env: gym.Env[Any, int]) -> gym.Env[Any, int]:
    """
    Cache the views of an environment, and return the same environment.

    MiniGrid renders the view after each step, which takes most of the time of a step; a task has few different views.

    :param env: a MiniGrid environment whose mission does not change
    """
    world: Any = env.unwrapped
    draw, drawn = world.gen_obs, {}

    def gen_obs() -> dict[str, Any]:
        encoded = tuple(cell and cell.encode() for cell in (world.carrying, *world.grid.grid))
        situation = (*world.agent_pos, world.agent_dir, encoded)
        if situation not in drawn:
            drawn[situation] = draw()
        view = drawn[situation]
        return {**view, "image": view["image"].copy()}  # Gymnasium warns of observations that are one object

    world.gen_obs = gen_obs
    return env


def make_env(names: list[str], seed: int) -> VecEnv:
    """
    Return ``ENVS_PER_TASK`` environments of each task.

    :param names: registered names of the tasks
    :param seed: seed of the environments
    """

    def make(task: int) -> gym.Env[dict[str, Any], int]:
        # with the prefix Gymnasium imports `minigrid` in the processes of a sweep too
        return Monitor(TaskView(remember_views(gym.make(f"minigrid:{names[task]}")), task, len(names)))

    env = DummyVecEnv([partial(make, task) for task in range(len(names)) for _ in range(ENVS_PER_TASK)])
    env.seed(seed)
    return env
