"""Change how RL Zoo runs experiments and studies: trials judged by their worst task, fixed hyper-parameters, clear errors."""

import os
import time
from typing import Any, ClassVar

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler
from rl_zoo3 import exp_manager, hyperparams_opt
from rl_zoo3.callbacks import TrialEvalCallback

from sb3_grpo.callbacks import GroupEvalCallback
from sb3_grpo.routing import NonFiniteError


class WorstTaskEvalCallback(GroupEvalCallback):
    """An evaluation by task that reports the return of the worst task as ``last_mean_reward``."""

    def _on_step(self) -> bool:
        continue_training = super()._on_step()
        if self.last_evaluation:
            self.last_mean_reward = self.last_worst_reward
        return continue_training


class WorstTaskTrialEvalCallback(TrialEvalCallback, WorstTaskEvalCallback):
    """RL Zoo's evaluation of a trial, which reports the return of the worst task to the study."""


class TrialNumber(int):
    """A number of a trial that is true even if it is 0, because RL Zoo tests ``if trial_id`` for "no trial"."""

    def __bool__(self) -> bool:
        return True


class GroupExperimentManager(exp_manager.ExperimentManager):
    """RL Zoo's experiment manager for studies of several workers, with fixed hyper-parameters; parameters as there."""

    # values that all trials of a study share, by the names of the search space; set by `install_manager`, because RL Zoo's
    # script constructs the manager
    fixed_params: ClassVar[dict[str, Any]] = {}

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.trial_id is not None:
            self.trial_id = TrialNumber(self.trial_id)

    def load_trial(self, storage: str, study_name: str, trial_id: int | None = None, convert: bool = True) -> dict[str, Any]:
        """
        Return the hyper-parameters of a trial; parameters as in RL Zoo.

        :return: arguments by name
        :raises ValueError: if there is no such study or trial, or if it failed before all values were suggested
        """
        try:
            return super().load_trial(storage, study_name, trial_id, convert)
        except (IndexError, KeyError) as error:
            wrong = "there is no such study or trial, or it failed before it was given values for all hyper-parameters"
            raise ValueError(f"trial {trial_id} of study {study_name!r} cannot be used: {wrong}") from error

    def objective(self, trial: optuna.Trial) -> float:
        """
        Train and evaluate one trial.

        :param trial: the trial
        :return: what the study maximises
        :raises optuna.TrialPruned: if the trial is worse than others, or if its numbers became NaN or infinite
        :raises RuntimeError: if it could not be run for another reason, which RL Zoo would count as pruned
        """
        try:
            return super().objective(trial)
        except optuna.TrialPruned as pruned:
            if self.algo == "grpo" and pruned.__cause__ is not None and not isinstance(pruned.__cause__, NonFiniteError):
                raise RuntimeError(f"the trial could not be run: {pruned.__cause__}") from pruned.__cause__
            raise

    def _create_sampler(self, sampler_method: str) -> BaseSampler:
        seed = self.seed
        if self.storage is not None:
            # workers of one study with the same seed would be suggested the same values
            self.seed = int(np.random.SeedSequence([seed, os.getpid(), time.time_ns()]).generate_state(1)[0])
        try:
            sampler = super()._create_sampler(sampler_method)
        finally:
            self.seed = seed
        if not self.fixed_params:
            return sampler
        # checked before the study is created, which would keep the failed trial
        check_fixed(self.fixed_params, self._search_space())
        return PartialFixedSampler(self.fixed_params, sampler)

    def _search_space(self) -> dict[str, BaseDistribution]:
        """
        Return what a trial of this algorithm is suggested.

        :return: distributions by the names of the search space
        """
        trial = optuna.create_study(sampler=RandomSampler()).ask()
        with_her = self._hyperparams.get("replay_buffer_class") is exp_manager.HerReplayBuffer
        her = {"using_her_replay_buffer": with_her, "her_kwargs": dict(self._hyperparams.get("replay_buffer_kwargs", {}))}
        hyperparams_opt.HYPERPARAMS_SAMPLER[self.algo](trial, self.n_actions, 1, her)
        return trial.distributions


def check_fixed(params: dict[str, Any], space: dict[str, BaseDistribution]) -> None:
    """
    Raise an error for fixed hyper-parameters that the search space does not contain.

    :param params: values by the names of the search space
    :param space: what a trial is suggested, by name
    :raises ValueError: if the space has no such name or does not contain the value
    """
    unknown = sorted(set(params) - set(space))
    if unknown:
        raise ValueError(f"`--fix` must name what the search space has, {sorted(space)}; got {unknown}")
    for name, value in params.items():
        match space[name]:
            case CategoricalDistribution(choices=choices):
                # 1 is not True
                offered, wanted = any(value == c and type(value) is type(c) for c in choices), f"one of {list(choices)}"
            case IntDistribution(low=low, high=high, step=step):
                offered = type(value) is int and low <= value <= high and (value - low) % step == 0
                wanted = f"an integer from {low} to {high}" + (f" in steps of {step}" if step > 1 else "")
            case FloatDistribution(low=low, high=high):
                offered, wanted = type(value) in (int, float) and low <= value <= high, f"from {low} to {high}"
        if not offered:
            raise ValueError(f"`--fix {name}` must be {wanted}, as in the search space; got {value!r}")


def install_manager(objective: str, fixed_params: dict[str, Any]) -> None:
    """
    Replace RL Zoo's experiment manager in this process by :class:`GroupExperimentManager`.

    :param objective: ``"mean"``: a trial is judged by its mean return, as in RL Zoo; ``"worst"``: by its worst task
    :param fixed_params: values that all trials share, by the names of the search space
    """
    GroupExperimentManager.fixed_params = fixed_params
    vars(exp_manager)["ExperimentManager"] = GroupExperimentManager
    if objective == "worst":
        vars(exp_manager)["TrialEvalCallback"] = WorstTaskTrialEvalCallback
