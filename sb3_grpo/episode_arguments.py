"""Arguments of estimators without a critic, and what they ask of environments."""

import inspect
from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from sb3_grpo.estimators import ESTIMATORS, AdvantageEstimator, CriticFreeEstimator
from sb3_grpo.rules import check, choice, integer_from

# What stands in ``estimator_kwargs``
OPTION_RULES = {
    "scale": choice("group", "batch", "none"),
    "aggregation": choice("trajectory", "step", "constant"),
    "ratio": choice("step", "trajectory"),
    "alike": choice("keep", "skip"),
    "truncated": choice("keep", "mask"),
    "max_rollouts": integer_from(1),
}
# Arguments of PPO that only a critic uses, with PPO's defaults
CRITIC_DEFAULTS = {"gae_lambda": 0.95, "vf_coef": 0.5, "clip_range_vf": None}


def check_estimator(values: Mapping[str, Any]) -> None:
    """
    Check the options of an estimator of advantages, and the arguments that do not go together with it.

    :param values: arguments of ``GRPO`` by name
    :raises ValueError: if an option is not one of the estimator, has no effect, or is out of its range
    """
    if "advantage_estimator" not in values:
        return
    name, options = values["advantage_estimator"], values.get("estimator_kwargs") or {}
    estimator = ESTIMATORS[name]
    known = [option for option in inspect.signature(estimator).parameters if option not in ("group_size", "gamma")]
    if unknown := sorted(options.keys() - set(known)):
        raise ValueError(
            f"`estimator_kwargs` must hold options of advantage_estimator={name!r}, which are {known}, got {unknown}"
        )
    check_critic_arguments(values, name)
    if issubclass(estimator, CriticFreeEstimator):
        for option in options.keys() & OPTION_RULES.keys():
            check(option, OPTION_RULES[option], options[option])
    if values.get("compile") and options.get("ratio") == "trajectory":
        raise ValueError("`compile` must be False with ratio='trajectory', whose minibatches differ in size, got True")
    if values.get("ref_update_freq") is not None and values.get("kl_coef") == 0:
        raise ValueError(f"`ref_update_freq` must be None where `kl_coef` is 0, got {values['ref_update_freq']!r}")


def check_critic_arguments(values: Mapping[str, Any], name: str) -> None:
    """
    Check the arguments that have an effect with a critic only, or without one only.

    :param values: arguments of ``GRPO`` by name
    :param name: of the estimator
    :raises ValueError: if one of them has no effect, but is not left as it is by default
    """
    uses_critic = ESTIMATORS[name].uses_critic
    has = "a critic, so that no episodes are compared" if uses_critic else "no critic"
    for argument, default in ({"group_size": None} if uses_critic else CRITIC_DEFAULTS).items():
        if argument in values and values[argument] != default:
            raise ValueError(
                f"`{argument}` must be {default} with advantage_estimator={name!r}, which has {has}, got {values[argument]!r}"
            )
    if not uses_critic and values.get("normalize_advantage") == "group":
        raise ValueError(
            f"`normalize_advantage` must be True or False, which have no effect, with advantage_estimator={name!r}, which has "
            "no critic whose values could be scaled, got 'group'"
        )


def check_episodes(env: VecEnv | None, estimator: AdvantageEstimator, n_steps: int) -> None:
    """
    Check that the environments have the episodes that an estimator without a critic compares.

    :param env: the environments; ``None``: there are none yet
    :param estimator: of the advantages
    :param n_steps: steps of a rollout in each environment
    :raises ValueError: if their number, or how they begin, does not fit, or their episodes are too long
    """
    if env is None or not isinstance(estimator, CriticFreeEstimator):
        return
    size = estimator.group_size
    if size < 2 or env.num_envs % size:
        raise ValueError(
            f"`group_size` must be at least 2 and divide the number of environments, whose episodes are compared; got {size} "
            f"for {env.num_envs}"
        )
    if estimator.needs_shared_start and not env.has_attr("skip_to"):
        raise ValueError(
            "`env` must be made by make_group_vec_env, so that episodes begin alike, which advantage_estimator='outcome' and "
            "'process' compare; 'time_step' needs no such environments"
        )
    if estimator.needs_shared_start:
        starts, wanted = list(env.get_attr("start")), [index // size for index in range(env.num_envs)]
        if starts != wanted:
            raise ValueError(
                f"`group_size` must be that of make_group_vec_env, got {size} for environments with starts {starts}"
            )
    # of Gymnasium's TimeLimit: a spec can hold arguments that cannot be sent from a subprocess
    longest = max(env.get_attr("_max_episode_steps")) if env.has_attr("_max_episode_steps") else 0
    if longest > n_steps * estimator.groups.max_rollouts:
        raise ValueError(
            f"`n_steps` must be at least {longest}, the length of the longest episode, with an estimator that has no critic: "
            f"nothing is known of an episode before it ends; got {n_steps}. estimator_kwargs=dict(max_rollouts=...) allows "
            "episodes of several rollouts, whose first actions are those of older policies"
        )


def check_reference(ref_update_freq: int | None, n_rollouts: int) -> None:
    """
    Check that the reference policy is updated before the training is over.

    :param ref_update_freq: rollouts between two updates; ``None``: there are none
    :param n_rollouts: rollouts of the training, those before it included if it goes on; 0: nothing is trained
    :raises ValueError: if there would be no update
    """
    if ref_update_freq is not None and 0 < n_rollouts < ref_update_freq:
        raise ValueError(
            f"`ref_update_freq` must be at most {n_rollouts}, the rollouts of the training, got {ref_update_freq}"
        )
