"""Register GRPO in RL Zoo, and define what its trials are suggested."""

from typing import Any

import optuna
from rl_zoo3 import hyperparams_opt, utils

from sb3_grpo.grpo import GRPO

# What a trial is suggested beside PPO's hyper-parameters
GROUP_NAMES = ("groups", "group_coef", "normalize_advantage", "split_kl", "merge_to_split")


def register() -> None:
    """Make ``grpo`` one of RL Zoo's algorithms in this process, with its search space."""
    utils.ALGOS["grpo"] = GRPO
    hyperparams_opt.HYPERPARAMS_SAMPLER["grpo"] = sample_grpo_params
    hyperparams_opt.HYPERPARAMS_CONVERTER["grpo"] = convert_grpo_params


def sample_grpo_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Suggest PPO's hyper-parameters and those of the groups to a trial.

    :param trial: the trial
    :param n_actions: as in RL Zoo's ``sample_ppo_params``
    :param n_envs: as there
    :param additional_args: as there
    :return: arguments of :class:`~sb3_grpo.grpo.GRPO`
    """
    ppo_params = hyperparams_opt.sample_ppo_params(trial, n_actions, n_envs, additional_args)
    trial.suggest_categorical("groups", ["default", "one", "two"])
    trial.suggest_float("group_coef", 1e-4, 0.5, log=True)
    trial.suggest_categorical("normalize_advantage", ["minibatch", "group"])
    trial.suggest_float("split_kl", 0.1, 1.0, log=True)
    trial.suggest_float("merge_to_split", 0.1, 0.9)
    return {**ppo_params, **convert_group_params(trial.params)}


def convert_grpo_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Return the arguments of :class:`~sb3_grpo.grpo.GRPO` that a trial stands for.

    :param sampled_params: what a trial of :func:`sample_grpo_params` was suggested, by name
    :return: arguments by name, those of PPO included
    """
    ppo_params = {name: value for name, value in sampled_params.items() if name not in GROUP_NAMES}
    return {**hyperparams_opt.convert_onpolicy_params(ppo_params), **convert_group_params(sampled_params)}


def convert_group_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Return the arguments of :class:`~sb3_grpo.grpo.GRPO` that PPO does not have, or has with other values.

    :param sampled_params: what a trial of :func:`sample_grpo_params` was suggested, by name
    :return: arguments by name
    """
    return {
        "n_groups": {"default": None, "one": 1, "two": 2}[sampled_params["groups"]],
        "group_coef": sampled_params["group_coef"],
        "normalize_advantage": {"minibatch": True, "group": "group"}[sampled_params["normalize_advantage"]],
        "split_kl": sampled_params["split_kl"],
        # suggested as a share of `split_kl`, so that `merge_kl` is always below it
        "merge_kl": sampled_params["merge_to_split"] * sampled_params["split_kl"],
    }
