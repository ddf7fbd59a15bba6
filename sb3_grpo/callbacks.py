"""Callbacks: evaluation by task, and groups that merge and split."""

import math
import os
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch as th
from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.logger import Figure as LoggedFigure
from stable_baselines3.common.logger import TensorBoardOutputFormat
from stable_baselines3.common.vec_env import VecEnv

from sb3_grpo.evaluation import EpisodeCollector, GroupEvaluation
from sb3_grpo.grouping import Divergences, Merge, RegroupEvent, Split, plan_regrouping
from sb3_grpo.plots import draw_kl, draw_timeline


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


class RegroupCallback(BaseCallback):
    """
    Merges groups that turned out alike and splits groups that contradict themselves, at the start of a rollout:
    between a rollout and its update the stored log-likelihoods would become stale.

    ``GRPO`` adds one by itself. The thresholds are arguments of ``GRPO``, so that they can be tuned like any other
    hyper-parameter. Pass one of your own to change what is printed or drawn, or a subclass to change more.

    :param figure_freq: TensorBoard gets new pictures after every event, and every so many times that the groups were
        looked at; 0: never
    :param verbose: 1: one line per event; ``None``: as the model
    """

    def __init__(self, figure_freq: int = 50, verbose: int | None = None):
        super().__init__(verbose or 0)
        self.figure_freq = figure_freq
        self._verbose_as_model = verbose is None
        self._n_looks = 0

    @property
    def _grpo(self) -> Any:
        return self.model

    def _init_callback(self) -> None:
        if self._verbose_as_model:
            self.verbose = self.model.verbose

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self._grpo.regrouping_due:
            self._regroup()
        # the probes will learn from them
        self._grpo.policy.kept_latents = [] if self._grpo.regroups else None

    def _on_training_end(self) -> None:
        self._grpo.policy.kept_latents = None

    def _regroup(self) -> None:
        n_events, divergences = len(self._grpo.regroup_history), measure_groups(self._grpo)
        # an event changes what is alike: measure again until nothing is left to do
        for _ in range(self._grpo.max_groups):
            events = self._plan(divergences)
            if not events:
                break
            for event in events:
                self._apply(event)
            divergences = measure_groups(self._grpo)
        self._log(divergences)
        self._n_looks += 1
        changed = len(self._grpo.regroup_history) > n_events
        if self.figure_freq > 0 and (changed or self._n_looks % self.figure_freq == 0):
            self._log_figures(divergences)

    def _plan(self, divergences: Divergences) -> list[Merge | Split]:
        model = self._grpo
        mature = model.policy.group_age >= model.warmup_rollouts
        return plan_regrouping(divergences, model.policy.cell_to_group, mature, model.merge_kl, model.split_kl)

    def _apply(self, event: Merge | Split) -> None:
        model = self._grpo
        model.policy.regroup(event)
        if model.use_sde:
            # the noise of this rollout was drawn for the groups before
            model.policy.reset_noise(model.n_envs)
        if isinstance(event, Merge):
            kind, groups = "merge", (event.keep, event.gone)
        else:
            kind, groups = "split", (event.group, event.new_group)
        cell_to_group = model.policy.cell_to_group.tolist()
        model.regroup_history.append(RegroupEvent(self.num_timesteps, kind, groups, event.kl, cell_to_group))
        if self.verbose >= 1:
            print(f"{kind} of groups {groups} (KL {event.kl:.3f}) after {self.num_timesteps} steps; {cell_to_group=}")

    def _log(self, divergences: Divergences) -> None:
        active = self._grpo.policy.active_groups
        within, errors = divergences.within[active], divergences.within_error[active]
        if within.isfinite().any():
            worst = within.nan_to_num(-math.inf).argmax()
            self.logger.record("groups/kl_within", within[worst].item())
            self.logger.record("groups/kl_within_error", errors[worst].item())
        between = divergences.between[active][:, active].fill_diagonal_(th.nan)
        if between.isfinite().any():
            self.logger.record("groups/kl_between", between[between.isfinite()].min().item())
        for kind in ("merge", "split"):
            self.logger.record(f"groups/n_{kind}s", sum(event.kind == kind for event in self._grpo.regroup_history))

    def _log_figures(self, divergences: Divergences) -> None:
        model = self._grpo
        if not any(isinstance(output, TensorBoardOutputFormat) for output in self.logger.output_formats):
            return
        not_pictures = ("stdout", "log", "json", "csv")
        active = model.policy.active_groups
        figures = {"kl": Figure(layout="constrained"), "timeline": Figure(layout="constrained")}
        draw_kl(figures["kl"].subplots(), divergences.between, active)
        timeline = (model.first_grouping, model.regroup_history, self.num_timesteps)
        draw_timeline(figures["timeline"].subplots(), *timeline)
        for name, figure in figures.items():
            self.logger.record(f"groups/figure_{name}", LoggedFigure(figure, close=False), not_pictures)


def measure_groups(model: Any) -> Divergences:
    """
    :param model: a ``GRPO`` model with more than one head
    :return: how its groups and cells differ, by what its probes have learnt
    """
    policy, probes = model.policy, model.policy.probes
    with th.no_grad():
        mature = policy.group_age >= model.warmup_rollouts
        return probes.measure(
            policy.cell_to_group, model.probe_leash, policy.head_outputs, mature, model.merge_kl, model.split_kl
        )


def plot_regrouping(model: Any, path: str | Path | None = None) -> Figure:
    """
    Both pictures for a model that has been trained.

    :param model: a ``GRPO`` model with more than one head
    :param path: PNG to write; ``None``: none
    :return: the figure
    :raises ValueError: if the model has one head only
    """
    if model.policy.probes is None:
        raise ValueError("`model` must have more than one head (`max_groups`), got 1: its groups cannot change")
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    draw_timeline(left, model.first_grouping, model.regroup_history, model.num_timesteps)
    draw_kl(right, measure_groups(model).between, model.policy.active_groups)
    if path is not None:
        figure.savefig(path, dpi=110)
    return figure


def contains_regroup_callback(callback: Any) -> bool:
    """
    :param callback: whatever ``learn`` takes
    :return: whether a :class:`RegroupCallback` is in it, where it is told of the start of rollouts (SB3's
        ``EventCallback`` tells its child of events only)
    """
    children = callback if isinstance(callback, list) else callback.callbacks if isinstance(callback, CallbackList) else []
    return isinstance(callback, RegroupCallback) or any(contains_regroup_callback(child) for child in children)
