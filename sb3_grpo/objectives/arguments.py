"""Arguments of objectives, and what they ask of environments."""

from collections.abc import Mapping, Sequence
from typing import Any

from stable_baselines3.common.vec_env import VecEnv

# Arguments that say which group a decision belongs to, and what they must be where each decision belongs to all groups
DECISION_DEFAULTS: Mapping[str, Any] = {
    "router": "random",
    "router_kwargs": None,
    "advantage_estimator": "gae",
}


def check_group_by(values: Mapping[str, Any]) -> None:
    """
    Check the arguments that do not go together with groups of objectives.

    :param values: arguments of ``GRPO`` by name
    :raises ValueError: if one of them would have no effect
    """
    if values.get("group_by") != "objectives":
        return
    for name, default in DECISION_DEFAULTS.items():
        if name in values and values[name] != default:
            raise ValueError(f"`{name}` must be {default!r} with group_by='objectives', got {values[name]!r}")
    # a model that is built has one group of decisions
    for name in ("n_groups", "max_groups"):
        if values.get(name) not in (None, 1):
            raise ValueError(f"`{name}` must be None or 1 with group_by='objectives', got {values[name]!r}")


def read_objective_names(env: VecEnv | None, known: Sequence[str]) -> list[str]:
    """
    Read the names of the objectives from the environments.

    :param env: the environments; ``None``: there are none yet
    :param known: names with which the model was built; empty for a new model
    :return: the names; those that are known, if there are no environments
    :raises ValueError: if the environments have none, or others than each other or than the model
    """
    if env is None:
        if not known:
            raise ValueError("`env` must be given with group_by='objectives', since it names the objectives, got None")
        return list(known)
    if not env.has_attr("objective_names"):
        raise ValueError("`env` must be wrapped in ObjectivesWrapper with group_by='objectives', got one that is not")
    found = [list(names) for names in env.get_attr("objective_names")]
    if any(names != found[0] for names in found):
        raise ValueError(f"`env` must have the same objectives in all environments, got {found}")
    if known and list(known) != found[0]:
        raise ValueError(f"`env` must have the objectives that the model was built with, {list(known)}, got {found[0]}")
    return found[0]
