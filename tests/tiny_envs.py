"""Environments whose returns and tasks can be checked on paper."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class CountingEnv(gym.Env[np.ndarray, np.int64]):
    """
    In task ``k`` every step pays ``pay[k]`` and an episode lasts ``length[k]`` steps. Observation: ``(time / 10,
    one-hot task)``. Each reset plays the next task, or the one that was set.

    :param report: whether ``info["task"]`` tells the task
    """

    def __init__(self, pay=(1.0, 2.0), length=(3, 5), report=True, first_task=0):
        self.pay, self.length, self.report = pay, length, report
        self.n_tasks = len(pay)
        self.observation_space = spaces.Box(-10, 10, (1 + self.n_tasks,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.task, self.time = first_task - 1, 0

    def _obs(self) -> np.ndarray:
        return np.concatenate([[self.time / 10], np.eye(self.n_tasks)[self.task]]).astype(np.float32)

    def _info(self) -> dict[str, Any]:
        return {"task": self.task} if self.report else {}

    def _next_task(self) -> int:
        return (self.task + 1) % self.n_tasks

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.task, self.time = self._next_task(), 0
        return self._obs(), self._info()

    def step(self, action):
        self.time += 1
        return self._obs(), self.pay[self.task], self.time >= self.length[self.task], False, self._info()


class ChoosableEnv(CountingEnv):
    """``CountingEnv`` with ``set_task``; when nothing is chosen it plays task 0."""

    task_choice: Any = "random"

    def set_task(self, task: Any) -> None:
        self.task_choice = task

    def _next_task(self) -> int:
        return 0 if self.task_choice == "random" else self.task_choice


class FaultyEnv(CountingEnv):
    """``CountingEnv`` of two tasks that puts ``value`` into the reward or the observation of one step of task 1."""

    def __init__(self, where: str, value: float, after: int):
        super().__init__(length=(3, 3))
        self.where, self.value, self.after = where, value, after
        self.n_steps, self.done = 0, False

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        self.n_steps += 1
        if self.n_steps > self.after and self.task == 1 and not terminated and not self.done:
            self.done = True
            if self.where == "reward":
                reward = self.value
            else:
                obs[0] = self.value
        return obs, reward, terminated, truncated, info


class MaskedEnv(gym.Env[Any, Any]):
    """
    Each step allows some values of each variable of the action, drawn anew, and refuses others with a ``ValueError``.

    Observation: ``obs``, two random numbers, ``action_mask``, and the ``task`` in which low or high values are paid. Of the
    last observation of an episode, at a time limit, the mask allows nothing, since there is nothing left to do.

    :param action_space: Discrete or MultiDiscrete
    :param mask_space: of ``action_mask``; ``None``: MultiBinary
    """

    def __init__(self, action_space: Any = None, mask_space: Any = None, n_tasks=2, length=10):
        self.action_space = spaces.Discrete(4) if action_space is None else action_space
        space: Any = self.action_space
        self.sizes = [int(space.n)] if isinstance(space, spaces.Discrete) else space.nvec.tolist()
        mask_space = spaces.MultiBinary(sum(self.sizes)) if mask_space is None else mask_space
        entries = {"obs": spaces.Box(-1, 1, (2,)), "action_mask": mask_space, "task": spaces.Discrete(n_tasks)}
        self.observation_space, self.mask_type = spaces.Dict(entries), mask_space.dtype
        self.n_tasks, self.length, self.time, self.task = n_tasks, length, 0, -1

    def action_masks(self) -> np.ndarray:
        return self.mask.astype(bool)

    def _obs(self) -> dict[str, Any]:
        mask = self.np_random.random(sum(self.sizes)) < 0.4
        for part in np.split(mask, np.cumsum(self.sizes)[:-1]):
            part[self.np_random.integers(len(part))] = True
        self.mask = mask & (self.time < self.length)
        numbers = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return {"obs": numbers, "action_mask": self.mask.astype(self.mask_type), "task": self.task}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.task = 0, (self.task + 1) % self.n_tasks
        return self._obs(), {"task": self.task}

    def step(self, action):
        chosen = np.atleast_1d(action)
        if not self.mask[chosen + np.cumsum([0, *self.sizes[:-1]])].all():
            raise ValueError(f"action {action} is not allowed")
        self.time += 1
        reward = float(chosen.sum()) * (1 if self.task == 0 else -1)
        return self._obs(), reward, False, self.time >= self.length, {"task": self.task}


class RandomEnv(gym.Env[Any, Any]):
    """Observations drawn from a space, rewards from the action; any action space."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], length: int = 10):
        self.observation_space, self.action_space, self.length = observation_space, action_space, length
        self.time = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.time += 1
        return self.observation_space.sample(), float(np.sum(action)), False, self.time >= self.length, {}
