"""Arguments: one rule for each argument of ``GRPO``, checked before anything is built."""

import math
import numbers
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule
from torch import nn

from sb3_grpo.balancing import BALANCERS, Balancer
from sb3_grpo.buffers import GroupBufferMixin
from sb3_grpo.envs.entries import TASK
from sb3_grpo.episode_arguments import check_estimator
from sb3_grpo.estimators import ESTIMATORS
from sb3_grpo.objectives.arguments import check_group_by
from sb3_grpo.policies import POLICIES, GroupActorCriticPolicy
from sb3_grpo.routing import ROUTERS
from sb3_grpo.rules import (
    CLIP_RANGE,
    FINITE,
    FLAG,
    FRACTION,
    MAPPING,
    NOT_NAN,
    NOT_NEGATIVE,
    POSITIVE,
    KeyOf,
    Rule,
    check,
    choice,
    integer_from,
    is_callback,
    is_constant,
    is_device,
    is_integer,
    is_net_arch,
    is_number,
    makes_layer,
    or_none,
)
from sb3_grpo.scores import SCORES
from sb3_grpo.targets import TARGETS, Targets, check_targets

# What SB3's ``preprocess_obs`` knows
OBSERVATION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
MAX_SEED = 2**32 - 1  # of NumPy's generators


RULES: dict[str, Rule | KeyOf] = {
    "policy": Rule(
        "the name of a policy or a subclass of GroupActorCriticPolicy", lambda value: isinstance(value, (str, type, nn.Module))
    ),
    "policy_class": Rule("a subclass of GroupActorCriticPolicy", lambda value: isinstance(value, type)),
    "learning_rate": Rule(
        "a float or an int, finite and at least 0, or a function of the remaining progress",
        lambda value: callable(value) or (is_constant(value) and 0 <= value < math.inf),
    ),
    "n_steps": integer_from(1),
    "batch_size": integer_from(1),
    "n_epochs": integer_from(1),
    "gamma": FRACTION,
    "gae_lambda": FRACTION,
    "clip_range": CLIP_RANGE,
    "clip_range_vf": or_none(CLIP_RANGE),
    "normalize_advantage": choice(True, False, "group"),
    "ent_coef": FINITE,
    "vf_coef": FINITE,
    "max_grad_norm": POSITIVE,
    "use_sde": FLAG,
    "sde_sample_freq": integer_from(-1),
    "rollout_buffer_class": or_none(
        Rule("a subclass of GroupRolloutBuffer or GroupDictRolloutBuffer", lambda value: isinstance(value, type))
    ),
    "rollout_buffer_kwargs": or_none(MAPPING),
    "target_kl": or_none(POSITIVE),
    # a window without an end is what None means to a deque
    "stats_window_size": or_none(integer_from(1)),
    "tensorboard_log": or_none(Rule("a path", lambda value: isinstance(value, (str, os.PathLike)))),
    "policy_kwargs": or_none(MAPPING),
    "verbose": Rule("an integer", lambda value: isinstance(value, numbers.Integral)),
    # Python's own generator takes no integers of NumPy
    "seed": or_none(
        Rule(
            f"a Python integer from 0 to {MAX_SEED}",
            lambda value: isinstance(value, int) and is_integer(value) and 0 <= value <= MAX_SEED,
        )
    ),
    "device": Rule('"auto" or a device that torch knows', is_device),
    "group_by": choice("decisions", "objectives"),
    # the ranges of these two depend on the number of cells
    "n_groups": or_none(Rule("an integer", is_integer)),
    "max_groups": or_none(Rule("an integer", is_integer)),
    "router": Rule(
        f"one of {[*ROUTERS, TASK]} or a callable",
        lambda value: value in {*ROUTERS, TASK} if isinstance(value, str) else callable(value),
    ),
    "router_kwargs": or_none(MAPPING),
    "advantage_estimator": KeyOf(ESTIMATORS),
    "group_size": or_none(integer_from(2)),
    "estimator_kwargs": or_none(MAPPING),
    "clip_range_high": or_none(POSITIVE),
    "kl_coef": NOT_NEGATIVE,
    "ref_update_freq": or_none(integer_from(1)),
    "ref_tau": Rule("above 0 and at most 1", lambda value: is_number(value) and 0 < value <= 1),
    "balancer": KeyOf(BALANCERS, may_be_none=True),
    "group_score": KeyOf(SCORES, may_be_none=True),
    "group_targets": TARGETS,
    "group_scale": choice("std", "range"),
    "merge_kl": or_none(NOT_NEGATIVE),
    "split_kl": or_none(NOT_NEGATIVE),
    "regroup_freq": or_none(integer_from(1)),
    "regroup_warmup": or_none(integer_from(0)),
    "probe_kl_coef": Rule("finite and above 0", lambda value: is_number(value) and 0 < value < math.inf),
    "action_mask_key": or_none(Rule("a string", lambda value: isinstance(value, str))),
    "compile": FLAG,
}

# What stands in ``router_kwargs``; the router knows the ranges
ROUTER_RULES = {
    "n_cells": Rule("an integer", is_integer),
    "columns": Rule(
        "two integers (start, stop)",
        lambda value: isinstance(value, (tuple, list, np.ndarray)) and len(value) == 2 and all(map(is_integer, value)),
    ),
    "key": Rule("a string", lambda value: isinstance(value, str)),
    "hide": FLAG,
}

LEARN_RULES = {
    "env": Rule(
        "an environment before training starts: give it to `load`, or call `set_env`", lambda value: value is not None
    ),
    "total_timesteps": Rule("a number of at least 0", lambda value: is_number(value) and value >= 0),
    "callback": or_none(Rule("a callback (an instance, not its class), a function, or a list of these", is_callback)),
    "log_interval": or_none(POSITIVE),
    "reset_num_timesteps": FLAG,
    "progress_bar": FLAG,
}

# What SB3's policies need of ``policy_kwargs``; None is their own default
POLICY_RULES = {
    "activation_fn": Rule("a class of layers like nn.Tanh", makes_layer),
    "optimizer_class": Rule("an optimizer class", callable),
    "optimizer_kwargs": or_none(MAPPING),
    "features_extractor_class": Rule("a class of features extractors", callable),
    "features_extractor_kwargs": or_none(MAPPING),
    "log_std_init": FINITE,
}
# Of a policy of this package: one that somebody wrote may read it in its own way
NET_ARCH = or_none(Rule("layer sizes like [64, 64] or dict(pi=[64], vf=[64]), integers of at least 1", is_net_arch))


class GroupArguments:
    """The arguments of ``GRPO`` that PPO does not have; ``GRPO`` documents them."""

    group_by: Literal["decisions", "objectives"]
    n_groups: int | None
    max_groups: int | None
    router: str | Callable[[Any], Any]
    router_kwargs: dict[str, Any] | None
    advantage_estimator: str
    group_size: int | None
    estimator_kwargs: dict[str, Any] | None
    clip_range_high: float | None
    kl_coef: float
    ref_update_freq: int | None
    ref_tau: float
    balancer: str | None
    group_coef: float | Schedule | str | None
    group_score: str | None
    group_targets: Targets | None
    group_scale: Literal["std", "range"]
    merge_kl: float | None
    split_kl: float | None
    regroup_freq: int | None
    regroup_warmup: int | None
    probe_kl_coef: float
    action_mask_key: str | None
    compile: bool


# What GRPO hands to its policy, and where it comes from
GROUP_KWARGS = {
    "n_groups": "`n_groups`",
    "max_groups": "`max_groups`",
    "router": "`router`",
    "router_kwargs": "`router_kwargs`",
    "group_seed": "`seed`",
    "use_critic": "`advantage_estimator`",
    "n_objectives": "`group_by`",
    "action_mask_key": "`action_mask_key`",
}


def keep_group_arguments(model: GroupArguments, values: dict[str, Any]) -> dict[str, Any]:
    """
    Check the arguments of the constructor of ``GRPO``, and write into the model those that PPO does not have.

    :param model: the model, under construction
    :param values: ``locals()`` of the constructor
    :return: PPO's arguments by name
    :raises ValueError: see :func:`check_arguments`
    """
    arguments = {name: value for name, value in values.items() if name not in ("self", "__class__")}
    check_arguments(arguments)
    for name in GroupArguments.__annotations__:
        setattr(model, name, arguments.pop(name))
    return arguments


def check_arguments(values: Mapping[str, Any]) -> None:
    """
    Check the arguments of ``GRPO``, those of PPO included.

    They may come from the constructor, or be the attributes of a model into which ``load`` or an assignment has written:
    then ``policy`` may be built already, learning rate and clip ranges may be schedules, and there are spaces to check.

    :param values: arguments by name; other names are ignored, and what is missing is not checked
    :raises ValueError: if an argument has the wrong type, is out of its range, or contradicts another; the message names
        the argument, the rule and the value
    """
    for name, rule in RULES.items():
        if name in values:
            check(name, rule, values[name])
    check_router_kwargs(values.get("router_kwargs"))
    check_policy_kwargs(values.get("policy_kwargs"), isinstance(values.get("policy"), str))
    if values.get("_init_setup_model") and "env" in values and values["env"] is None:
        raise ValueError("`env` must be an environment or its name unless `_init_setup_model` is False, got None")
    if "observation_space" in values:
        check_spaces(values["observation_space"], values["action_space"])
        check_dict_policy(values["observation_space"], values["policy_class"], values["policy_kwargs"] or {})
    if values.get("group_coef") is not None:
        make_group_coef_schedule(values["group_coef"])
    for name, rule in {"learning_rate": FINITE, "clip_range": NOT_NAN, "clip_range_vf": NOT_NAN}.items():
        if callable(values.get(name)):
            schedule_value(name, values[name], 1.0, rule)
    merge_kl, split_kl = values.get("merge_kl"), values.get("split_kl")
    if merge_kl is not None and split_kl is not None and not merge_kl < split_kl:
        raise ValueError(f"`merge_kl` must be below `split_kl`, got {merge_kl!r} and {split_kl!r}")
    check_targets(values.get("group_targets"), name_of_score(values.get("group_score"), values.get("group_by")))
    check_estimator(values)
    check_group_by(values)
    if values.get("normalize_advantage") and values.get("batch_size") == 1:
        raise ValueError("`batch_size` must be at least 2 where `normalize_advantage` is not False, got 1")


def check_router_kwargs(router_kwargs: Mapping[str, Any] | None) -> None:
    """
    Check the types of the arguments of routers; their ranges the router checks itself.

    :param router_kwargs: arguments of a router by name
    :raises ValueError: if an argument that a router of this package has is of the wrong type
    """
    for name, value in (router_kwargs or {}).items():
        if name in ROUTER_RULES:
            check(name, ROUTER_RULES[name], value)


def check_policy_kwargs(policy_kwargs: Mapping[str, Any] | None, own_policy: bool = False) -> None:
    """
    Check the arguments of policies.

    :param policy_kwargs: arguments of a policy by name
    :param own_policy: whether the policy is one of this package
    :raises ValueError: if it holds what is an argument of ``GRPO``, where it would be ignored, or something of the wrong type
    """
    for name, value in (policy_kwargs or {}).items():
        if name in GROUP_KWARGS:
            raise ValueError(
                f"`policy_kwargs` must not hold {name!r}: GRPO passes it on from its own argument {GROUP_KWARGS[name]}, "
                f"got policy_kwargs={policy_kwargs!r}"
            )
        if name in POLICY_RULES:
            check(name, POLICY_RULES[name], value)
        if name == "net_arch" and own_policy:
            check(name, NET_ARCH, value)


def check_spaces(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """
    Check what SB3 would fail on with an error from inside, or misread.

    :raises ValueError: if a space is of another kind than SB3's policies know, is empty, or counts from another number than 0
    """
    entries = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"": observation_space}
    for key, space in entries.items():
        name = f"entry {key!r} of the observation space" if key else "the observation space"
        if not isinstance(space, OBSERVATION_SPACES):
            known = ", ".join(kind.__name__ for kind in OBSERVATION_SPACES)
            raise ValueError(f"{name} must be one of {known}, or a Dict of these, got {space}")
        check_space(name, space)
    check_space("the action space", action_space)


def check_dict_policy(observation_space: spaces.Space[Any], policy_class: type, policy_kwargs: Mapping[str, Any]) -> None:
    """
    Check that a policy for Dict observations gets them.

    :param observation_space: of the environment
    :param policy_class: class of the policy
    :param policy_kwargs: its arguments by name
    :raises ValueError: if SB3's features extractor for Dict observations would get others
    """
    for_dicts = issubclass(policy_class, MultiInputActorCriticPolicy) and "features_extractor_class" not in policy_kwargs
    if for_dicts and not isinstance(observation_space, spaces.Dict):
        raise ValueError(f"`policy` MultiInputPolicy needs a Dict observation space, got {observation_space}")


def check_space(name: str, space: spaces.Space[Any]) -> None:
    """
    Check one space, or one entry of a Dict space.

    :param name: what to call it in the message
    :param space: the space
    :raises ValueError: if the space has no values, or does not count from 0
    """
    if isinstance(space, spaces.Discrete) and space.start != 0:
        raise ValueError(f"{name} must start at 0, got {space}: SB3 would take its values for those of Discrete({space.n})")
    if isinstance(space, spaces.Box) and space.shape == ():
        raise ValueError(f"{name} must have at least one dimension, got {space}; shape=(1,) holds one number")
    if space.shape is not None and 0 in space.shape:
        raise ValueError(f"{name} must hold at least one number, got {space}")


def check_learn_arguments(values: Mapping[str, Any]) -> None:
    """
    Check the arguments of ``learn``.

    :param values: arguments by name, and ``env``, that of the model; what is missing is not checked
    :raises ValueError: if one has the wrong type or is out of its range
    """
    for name, rule in LEARN_RULES.items():
        if name in values:
            check(name, rule, values[name])


def make_group_coef_schedule(group_coef: float | Schedule | str) -> Callable[[float], float]:
    """
    Make a schedule of the argument ``group_coef``.

    :param group_coef: a number, a function of the remaining progress (from 1 to 0), or ``"lin_0.05"``
    :return: a schedule
    :raises ValueError: if it is none of these, or its value at the start is negative or not finite
    """
    try:
        if isinstance(group_coef, str):
            kind, start = group_coef.split("_")
            if kind != "lin":
                raise ValueError(kind)
            schedule = FloatSchedule(LinearSchedule(float(start), 0.0, 1.0))
        elif isinstance(group_coef, bool):
            raise TypeError(group_coef)
        else:
            schedule = FloatSchedule(float(group_coef) if isinstance(group_coef, numbers.Real) else group_coef)
        first = schedule(1.0)
    except (ValueError, TypeError, AssertionError) as error:
        raise ValueError(
            f'`group_coef` must be a number, a schedule or a string like "lin_0.05", got {group_coef!r}'
        ) from error
    check_group_coef(first)
    return schedule


def make_balancer(balancer: str | None, group_coef: float | Schedule | str | None, group_by: str, score: str) -> Balancer:
    """
    Make what the arguments ``balancer`` and ``group_coef`` stand for.

    :param balancer: key of ``BALANCERS``; ``None``: the penalty, but the odds for objectives that are compared by gaps
    :param group_coef: as :func:`make_group_coef_schedule` takes it; ``None``: the default of the rule
    :param group_by: what groups consist of
    :param score: what they are compared by, from :func:`name_of_score`
    :raises ValueError: as :func:`make_group_coef_schedule` does
    """
    if balancer is None:
        # of scores in other units than gaps it would depend on the unit how strong the odds are
        balancer = "gap_odds" if (group_by, score) == ("objectives", "gap") else "relative_penalty"
    rule = BALANCERS[balancer]
    schedule = make_group_coef_schedule(rule.DEFAULT_COEF if group_coef is None else group_coef)
    return rule(lambda progress: group_coef_at(schedule, progress))


def name_of_score(group_score: str | None, group_by: str | None) -> str:
    """
    Fill in the default of the argument ``group_score``.

    :param group_score: what groups are compared by; ``None``: not given
    :param group_by: what groups consist of
    :return: key of ``SCORES``. Objectives differ in sign, such as a speed and a cost, which only gaps can compare
    """
    if group_score is not None:
        return group_score
    return "gap" if group_by == "objectives" else "return"


def check_group_coef(value: float) -> float:
    """
    Check a value of lambda.

    :param value: the value
    :return: ``value``
    :raises ValueError: if lambda is negative or not finite
    """
    check("group_coef", NOT_NEGATIVE, value)
    return value


def group_coef_at(schedule: Schedule, progress: float) -> float:
    """
    Evaluate the schedule of ``group_coef``.

    :param schedule: from :func:`make_group_coef_schedule`
    :param progress: what remains of the training; below 0 where it ends inside a rollout, which counts as 0
    :return: lambda
    :raises ValueError: if the schedule returns what is not a number, is negative or not finite
    """
    return schedule_value("group_coef", schedule, min(max(progress, 0.0), 1.0), NOT_NEGATIVE)


def finite_schedule_value(name: str, schedule: Schedule, progress: float) -> float:
    """
    Evaluate a schedule whose values must be finite.

    :param name: the argument that the schedule was given as
    :param schedule: function of the remaining progress
    :param progress: what remains of the training, from 1 to 0; slightly below 0 where it ends inside a rollout
    :return: what the schedule returns
    :raises ValueError: if that is not a number, or not a finite one
    """
    return schedule_value(name, schedule, progress, FINITE)


def schedule_value(name: str, schedule: Schedule, progress: float, rule: Rule) -> float:
    """
    Evaluate a schedule.

    :param name: the argument that the schedule was given as
    :param schedule: function of the remaining progress
    :param progress: what it is called with
    :param rule: what its value must be; ``NOT_NAN`` for clip ranges, where infinity means no clipping
    :return: what the schedule returns
    :raises ValueError: if that is not a number, or the rule does not hold
    """
    try:
        value = float(schedule(progress))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must return numbers, but failed at remaining progress {progress:g}: {error}") from error
    if not rule.holds(value):
        raise ValueError(f"`{name}` must be {rule.text}, got {value!r} from the schedule at remaining progress {progress:g}")
    return value


def refuse_change(built: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """
    Refuse to change what decides the shapes or the meaning of saved parameters.

    :param built: what a saved model was built with; empty for a new model
    :param given: what it is to be built with; ``None``: as before
    :raises ValueError: if they differ
    """
    for name, value in given.items():
        saved = built.get(name)
        if value is not None and saved is not None and value != saved:
            raise ValueError(f"`{name}` of a saved model cannot be changed: it was built with {saved!r}, got {value!r}")


def check_classes(policy_class: type, rollout_buffer_class: type) -> None:
    """
    Refuse classes that do not know of groups.

    :param policy_class: class of the policy
    :param rollout_buffer_class: class of the rollout buffer
    :raises ValueError: if one of them is not derived from a class of this package
    """
    if not issubclass(rollout_buffer_class, GroupBufferMixin):
        wanted = "`rollout_buffer_class` must be a subclass of GroupRolloutBuffer or GroupDictRolloutBuffer"
        raise ValueError(f"{wanted}, got {rollout_buffer_class.__name__}")
    if not issubclass(policy_class, GroupActorCriticPolicy):
        raise ValueError(policy_refusal(policy_class.__name__))


def policy_refusal(name: str) -> str:
    """
    Say which policies GRPO takes, and what to do instead of giving another one.

    :param name: of the policy that was given
    """
    known = f"one of {list(POLICIES)} or a subclass of GroupActorCriticPolicy"
    advice = "derive your class from sb3_grpo.policies.GroupActorCriticPolicy, which is SB3's ActorCriticPolicy with heads"
    if "lstm" in name.lower() or "recurrent" in name.lower():
        advice = "recurrent policies have no groups; show the policy the last observations with SB3's VecFrameStack"
    return f"`policy` must be {known}, got {name!r}: {advice}"


def check_built(model: Any) -> None:
    """
    Check what has been assigned to a model since it was built.

    :param model: a ``GRPO`` model
    :raises ValueError: if a value is out of its range, or cannot be changed any more
    """
    check_arguments(vars(model))
    for name, built in dict(group_by=model._built_groups["group_by"], action_mask_key=model.policy.action_mask_key).items():
        if getattr(model, name) != built:
            raise ValueError(f"`{name}` of a model that is built cannot be changed, got {getattr(model, name)!r}")
    given = (model.advantage_estimator, model.group_size, model.estimator_kwargs)
    if given != model.built_estimator:
        raise ValueError(
            "`advantage_estimator`, `group_size` and `estimator_kwargs` of a model that is built cannot be assigned, got "
            f"{given} instead of {model.built_estimator}; give them to `load`"
        )
    if model.normalizes_by_group and model.policy.value_scale is None:
        raise ValueError(
            "`normalize_advantage` of a model whose values have no scale cannot be assigned, got "
            f"{model.normalize_advantage!r}; give it to `load`"
        )
    if model.n_steps != model.rollout_buffer.buffer_size:
        raise ValueError(
            f"`n_steps` of a model that is built cannot be assigned, since its rollout buffer holds "
            f"{model.rollout_buffer.buffer_size} steps, got {model.n_steps}; give it to `load`"
        )
