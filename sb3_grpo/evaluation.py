"""Evaluation by task: which of its jobs an agent can do."""

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv


class GroupEvaluation(NamedTuple):
    """Returns of the episodes of one task or cell."""

    mean: float
    std: float
    mean_length: float
    n_episodes: int


class EpisodeCollector:
    """
    Callback of SB3's ``evaluate_policy`` that notes to which task each episode belongs: ``info["task"]``, or
    where the environment does not say, the cell in which the episode began.

    Where all environments draw their tasks at random and have ``set_task`` (as those of this package), the
    tasks are played in turn instead, so that none is missed. Use it as a context manager.

    :param model: the agent; without ``info["task"]`` its policy needs a router
    :param env: the evaluation environments
    """

    def __init__(self, model: PolicyPredictor, env: VecEnv):
        self.model = model
        self.env = env
        self.episodes: dict[int, list[tuple[float, int]]] = {}  # return and length
        self._first_cells = np.zeros(env.num_envs, dtype=int)
        self._in_turn = env.has_attr("task_choice") and all(choice == "random" for choice in env.get_attr("task_choice"))
        self._n_scheduled = 0

    def __enter__(self) -> "EpisodeCollector":
        for index in range(self.env.num_envs if self._in_turn else 0):
            self._schedule(index)
        return self

    def __exit__(self, *_: object) -> None:
        if self._in_turn:
            self.env.env_method("set_task", "random")

    def _schedule(self, index: int) -> None:
        n_tasks = self.env.get_attr("n_tasks", indices=index)[0]
        self.env.env_method("set_task", self._n_scheduled % n_tasks, indices=index)
        self._n_scheduled += 1

    def __call__(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        index, info = locals_["i"], locals_["info"]
        if locals_["current_lengths"][index] == 1:
            # the task of the next episode, if another one of this environment counts
            if self._in_turn and locals_["episode_counts"][index] + 1 < locals_["episode_count_targets"][index]:
                self._schedule(index)
            if "task" not in info:
                self._first_cells[index] = self._cells(locals_["observations"])[index]
        # what evaluate_policy counts as an episode, and as its return
        if locals_["done"] and ("episode" in info or not locals_["is_monitor_wrapped"]):
            plain = {"r": locals_["current_rewards"][index], "l": locals_["current_lengths"][index]}
            episode = info["episode"] if locals_["is_monitor_wrapped"] else plain
            task = int(info.get("task", self._first_cells[index]))
            self.episodes.setdefault(task, []).append((float(episode["r"]), int(episode["l"])))

    def _cells(self, observations: Any) -> np.ndarray:
        policy: Any = getattr(self.model, "policy", self.model)
        if not hasattr(policy, "router"):
            raise ValueError('the environment does not report info["task"], and the model\'s policy has no router')
        with th.no_grad():
            return policy.router(obs_as_tensor(observations, policy.device)).cpu().numpy()

    def summarize(self) -> dict[int, GroupEvaluation]:
        """
        :return: evaluation of each task or cell met so far
        """
        summary = {}
        for task, episodes in sorted(self.episodes.items()):
            returns, lengths = np.array(episodes).T
            summary[task] = GroupEvaluation(float(returns.mean()), float(returns.std()), float(lengths.mean()), len(episodes))
        return summary


def evaluate_groups(
    model: PolicyPredictor,
    env: gym.Env | VecEnv,
    n_eval_episodes: int = 20,
    deterministic: bool = True,
    warn: bool = True,
) -> dict[int, GroupEvaluation]:
    """
    Evaluate an agent (of any SB3 algorithm) task by task.

    :param model: the agent
    :param env: environment that reports ``info["task"]``; otherwise the model needs a router, and episodes are
        sorted by the cell in which they begin
    :param n_eval_episodes: number of episodes, over all tasks
    :param deterministic: whether to use deterministic actions
    :param warn: warn if the environment has no ``Monitor`` wrapper, as ``evaluate_policy`` does
    :return: mean and standard deviation of the returns, mean length and number of the episodes of each task or
        cell that was met
    :raises ValueError: if neither the environment nor the model can tell tasks apart
    """
    vec_env = env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env])
    with EpisodeCollector(model, vec_env) as collector:
        evaluate_policy(model, vec_env, n_eval_episodes, deterministic=deterministic, callback=collector, warn=warn)
    return collector.summarize()
