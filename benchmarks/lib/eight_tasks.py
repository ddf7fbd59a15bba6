"""Hold eight CartPole tasks of unequal difficulty, an environment that steps them all at once, and their evaluation."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_grpo.envs.cartpole import TaskCartPole
from sb3_grpo.envs.tasks import Task
from sb3_grpo.vec_env import LeanVecEnv

MAX_EPISODE_STEPS = 500
# seven poles of half lengths 0.45 to 0.7 m, every second one with inverted actions, and one that is hard: short, with a
# strong and inverted force
EIGHT_TASKS: tuple[Task, ...] = (
    *({"length": float(length), "invert": bool(i % 2)} for i, length in enumerate(np.linspace(0.45, 0.7, 7).round(3))),
    {"length": 0.12, "force_mag": 20.0, "invert": True},
)
# what a task sets in Gymnasium's CartPole
PHYSICS = ("gravity", "masscart", "masspole", "total_mass", "length", "polemass_length", "force_mag")


def with_scales(tasks: Sequence[Task], scales: Sequence[float]) -> list[Task]:
    """
    Return tasks whose rewards are multiplied by given factors.

    :param tasks: the tasks
    :param scales: one factor for each task
    """
    return [{**task, "reward_scale": float(scale)} for task, scale in zip(tasks, scales, strict=True)]


def draw_scales(n_tasks: int, seed: int) -> list[float]:
    """
    Return reward scales between 0.01 and 100, whose logarithms are uniformly distributed.

    :param n_tasks: number of tasks
    :param seed: same seed, same scales
    :return: one for each task
    """
    return (10 ** np.random.default_rng(seed).uniform(-2, 2, n_tasks)).round(6).tolist()


class CartPoleVecEnv(LeanVecEnv):
    """
    Environments of ``sb3_grpo/TaskCartPole-v0``, with episodes of at most 500 steps, whose physics are computed all at once.

    Each environment is a ``TaskCartPole``, which draws tasks and first states, so that a seed gives the trajectories that
    ``DummyVecEnv`` gives. Between two resets only the arrays here change, not the ``TaskCartPole``.

    :param tasks: the tasks, shown one-hot behind the four columns of the state
    :param play: for each environment the number of its task, or ``"random"``: drawn at each reset
    :param seed: seed of the first environment; the next one has ``seed + 1``, and so on
    """

    envs: list[TaskCartPole]  # type: ignore[assignment]  # DummyVecEnv says gym.Env

    def __init__(self, tasks: Sequence[Task], play: Sequence[int | Literal["random"]], seed: int):
        super().__init__([partial(TaskCartPole, tasks, task=task) for task in play])
        self.physics: Any = CartPoleVectorEnv(self.num_envs, MAX_EPISODE_STEPS)
        # arrays where Gymnasium has numbers
        for name, shape in {"state": (4, self.num_envs), **dict.fromkeys(PHYSICS, (self.num_envs,))}.items():
            setattr(self.physics, name, np.zeros(shape))
        self.reward_scales = np.ones(self.num_envs, np.float32)
        self.task_columns = np.zeros((self.num_envs, len(tasks)), np.float32)
        self.seed(seed)

    def reset(self) -> VecEnvObs:
        obs = super().reset()
        for index in range(self.num_envs):
            self._begin_episode(index)
        return obs

    def step_wait(self) -> VecEnvStepReturn:
        states, _, terminated, truncated, _ = self.physics.step(self.actions)
        obs = np.concatenate([states, self.task_columns], axis=1)
        rewards, dones = self.reward_scales.copy(), terminated | truncated
        infos: list[dict[str, Any]] = [{"task": env.task, "TimeLimit.truncated": False} for env in self.envs]
        for index in dones.nonzero()[0].tolist():
            infos[index]["TimeLimit.truncated"] = bool(truncated[index] and not terminated[index])
            infos[index]["terminal_observation"] = obs[index].copy()
            obs[index], self.reset_infos[index] = self.envs[index].reset()
            self._begin_episode(index)
        return obs, rewards, dones, infos

    def _begin_episode(self, index: int) -> None:
        """Take over state and task of an environment that has just been reset."""
        env, physics = self.envs[index], self.physics
        physics.state[:, index] = env.cartpole.state
        physics.steps[index] = 0
        # otherwise Gymnasium would reset it in its next step
        physics.prev_done[index] = False
        for name in PHYSICS:
            getattr(physics, name)[index] = getattr(env.cartpole, name)
        self.reward_scales[index] = env.tasks[env.task]["reward_scale"]
        self.task_columns[index] = np.arange(env.n_tasks) == env.task


class FallCost(VecEnvWrapper):
    """
    Pay some tasks -1 for a fall and nothing else: the same goal, in a reward of another kind and sign.

    :param venv: environments that report ``info["task"]``
    :param tasks: numbers of these tasks
    """

    def __init__(self, venv: VecEnv, tasks: Sequence[int]):
        super().__init__(venv)
        self.tasks = frozenset(tasks)

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        obs, rewards, dones, infos = self.venv.step_wait()
        for index, info in enumerate(infos):
            if info["task"] in self.tasks:
                rewards[index] = -float(dones[index] and not info["TimeLimit.truncated"])
        return obs, rewards, dones, infos


class TaskEvaluation:
    """
    Evaluation of an agent on each task, all episodes at once.

    :param tasks: the tasks; rewards count as 1 per step, whatever their scale
    :param episodes: number of episodes of each task
    :param seed: seed of the first environment
    """

    def __init__(self, tasks: Sequence[Task], episodes: int, seed: int):
        self.shape = (len(tasks), episodes)
        self.env = CartPoleVecEnv(tasks, np.repeat(np.arange(len(tasks)), episodes).tolist(), seed)

    def __call__(self, model: BaseAlgorithm) -> list[float]:
        """
        Play one deterministic episode in each environment.

        :param model: the agent
        :return: mean return of each task
        """
        obs = np.asarray(self.env.reset())
        returns, running = np.zeros(self.env.num_envs), np.ones(self.env.num_envs, bool)
        while running.any():
            actions, _ = model.predict(obs, deterministic=True)
            # the physics only: environments whose episode has ended need not be reset
            obs[:, :4], _, terminated, truncated, _ = self.env.physics.step(actions)
            returns += running
            running &= ~(terminated | truncated)
        return returns.reshape(self.shape).mean(axis=1).round(1).tolist()


class BalanceRecord(BaseCallback):
    """Record what GRPO logs of its balance: the weight of each group and the effective lambda of each update."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[list[float]] = []  # by update and group; NaN for a group without steps
        self.coefs: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        # the logger has the values of the last update until it writes them, at the end of this rollout
        logged = self.logger.name_to_value
        if "groups/coef_effective" in logged:
            self.coefs.append(logged["groups/coef_effective"])
            n_groups = int(logged["groups/n_active"])
            # a task that was not played in the rollout has no weight
            self.weights.append([logged.get(f"groups/weight_{group}", math.nan) for group in range(n_groups)])

    def _on_training_end(self) -> None:
        self._on_rollout_start()

    def summary(self) -> dict[str, Any]:
        """
        Return means over the updates; nothing for an algorithm without groups.

        :return: ``weights``, the mean of each group, ``coef_effective``, and ``capped``: the share of the updates in which a
            group had weight 0, because a larger lambda would train it to become worse
        """
        if not self.coefs:
            return {}
        weights = np.array(self.weights)
        return dict(
            weights=np.nanmean(weights, axis=0).round(3).tolist(),
            coef_effective=float(np.mean(self.coefs)),
            capped=float((np.nanmin(weights, axis=1) < 1e-6).mean()),
        )
