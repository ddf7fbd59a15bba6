"""Callbacks: evaluation by task."""

import os
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_grpo.evaluation import EpisodeCollector, GroupEvaluation


class GroupEvalCallback(EvalCallback):
    """
    ``EvalCallback`` that also logs each task (``eval/task_0`` ...), or where the environment does not report
    ``info["task"]`` each cell, and the worst of them (``eval/worst_reward``).

    :param eval_env: The environment used for evaluation
    :param best_by: what decides which model is the best: ``"mean"`` reward as in SB3, or the ``"worst"`` task's
    :param kwargs: as in ``EvalCallback``; ``n_eval_episodes`` are those of all tasks together
    :raises ValueError: if ``best_by`` is neither
    """

    def __init__(self, eval_env: gym.Env | VecEnv, *, best_by: Literal["mean", "worst"] = "mean", **kwargs: Any):
        super().__init__(eval_env, **kwargs)
        if best_by not in ("mean", "worst"):
            raise ValueError(f'`best_by` must be "mean" or "worst", got {best_by!r}')
        self.best_by = best_by
        self.best_worst_reward = -np.inf
        self.last_evaluation: dict[int, GroupEvaluation] = {}
        self._collector: EpisodeCollector

    def _log_success_callback(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        super()._log_success_callback(locals_, globals_)
        self._collector(locals_, globals_)
        if locals_["done"]:
            # kept up to date, because EvalCallback writes the log before it returns
            self.last_evaluation = self._collector.summarize()
            for task, evaluation in self.last_evaluation.items():
                self.logger.record(f"eval/task_{task}", evaluation.mean)
            self.logger.record("eval/worst_reward", self.last_worst_reward)

    @property
    def last_worst_reward(self) -> float:
        """Mean reward of the worst task in the last evaluation; -inf before the first."""
        return min((evaluation.mean for evaluation in self.last_evaluation.values()), default=-np.inf)

    def _on_step(self) -> bool:
        if self.eval_freq <= 0 or self.n_calls % self.eval_freq != 0:
            return True
        with EpisodeCollector(self.model, self.eval_env) as self._collector:
            return super()._on_step() if self.best_by == "mean" else self._evaluate_by_worst()

    def _evaluate_by_worst(self) -> bool:
        path, on_new_best = self.best_model_save_path, self.callback_on_new_best
        # EvalCallback would keep the best mean
        self.best_model_save_path, self.callback_on_new_best = None, None
        try:
            continue_training = super()._on_step()
        finally:
            self.best_model_save_path, self.callback_on_new_best = path, on_new_best
        if self.last_worst_reward > self.best_worst_reward:
            self.best_worst_reward = self.last_worst_reward
            if path is not None:
                self.model.save(os.path.join(path, "best_model"))
            if on_new_best is not None:
                continue_training = on_new_best.on_step() and continue_training
        return continue_training
