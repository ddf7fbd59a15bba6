"""Read from environments which tasks they have, and where an observation shows its task."""

from collections.abc import Mapping, Sequence
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_grpo.envs.entries import TASK


def env_has(env: VecEnv, *names: str) -> bool:
    """
    Tell whether all environments have these attributes or methods.

    :param env: vectorised environments; if they do not implement ``has_attr``, as simulators on a GPU, the answer is no
    :param names: names of attributes and methods
    """
    try:
        return all(env.has_attr(name) for name in names)
    except NotImplementedError:
        return False


def same_in_all(env: VecEnv, name: str) -> list[Any]:
    """
    Return a list that all environments have as an attribute; an empty one if they do not have it, or it is ``None``.

    :param env: vectorised environments
    :param name: of the attribute
    :raises ValueError: if environments differ, since a number would then mean another task in each
    """
    if not env_has(env, name):
        return []
    found = [list(values or []) for values in env.get_attr(name)]
    if any(values != found[0] for values in found):
        raise ValueError(f"`env` must have the same `{name}` in all environments, got {found}")
    return found[0]


def task_names_of(env: VecEnv) -> list[str]:
    """
    Return the names of the environments' tasks; none if they have numbers only.

    :param env: vectorised environments
    :raises ValueError: if environments have other names than each other, or in another order
    """
    return same_in_all(env, "task_names")


def label_cells(cells: Sequence[int], names: Sequence[str]) -> str | None:
    """
    Return a label of a group: the names of its cells.

    :param cells: of the group
    :param names: of all cells; empty: they have none
    :return: such as ``"walk"``, ``"walk+turn"`` or ``"walk+4 more"``; ``None`` without names
    """
    if not names:
        return None
    own = [names[cell] for cell in cells]
    return "+".join(own) if len(own) <= 2 else f"{own[0]}+{len(own) - 1} more"


def find_task(env: VecEnv | None, space: spaces.Space[Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """
    Find out where observations show the task.

    :param env: the environments; ``None``: there are none yet
    :param space: their observation space
    :param known: what was found when the model was built; empty for a new one
    :return: ``router`` and ``router_kwargs`` for :func:`sb3_grpo.routing.make_router`, and ``names`` of the tasks, empty if
        they have numbers only. If there are no environments, what is known
    :raises ValueError: if the task is not shown, or the environments have other tasks than each other or than the model
    """
    if env is None and known:
        return dict(known)
    found: dict[str, Any] = {"names": [] if env is None else task_names_of(env)}
    if isinstance(space, spaces.Dict) and isinstance(space.spaces.get(TASK), spaces.Discrete):
        found |= {"router": "discrete", "router_kwargs": {"key": TASK}}
    elif env is not None and (columns := same_in_all(env, "task_columns")):
        found |= {"router": "one_hot", "router_kwargs": {"columns": columns}}
    else:
        raise ValueError(
            "`router` must not be 'task' unless the environments show their task, as entry 'task' of a Dict observation or as "
            f"the columns that their attribute `task_columns` names, got {space}"
        )
    if known and found != dict(known):
        raise ValueError(f"`env` must have the tasks that the model was built with, {dict(known)}, got {found}")
    return found
