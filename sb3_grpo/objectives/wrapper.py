"""Wrapper that hands the parts of a reward on, beside the number that SB3 works with."""

from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor

# Entry of ``info`` with the parts of the reward, shape (K,)
OBJECTIVES = "objectives"


class ObjectivesWrapper(gym.Wrapper[Any, Any, Any, Any]):
    """
    Put the objectives of each step into ``info["objectives"]``, and return a single number as its reward.

    The objectives are the entries of a reward that is a vector, as in MO-Gymnasium; the reward becomes their sum. Or they
    stand in ``info[key]``, as a vector or under their names, and the reward stays what it is. Everything that knows numbers
    only (``Monitor``, ``VecNormalize``, PPO) works with the reward, and belongs around this wrapper, not inside of it;
    :func:`add_objectives` puts it there.

    :param env: an environment whose reward is a vector, or which reports the objectives in ``info``
    :param names: of the ``K`` objectives, different from each other, in their order in a vector. They name curves and errors,
        and what is taken from a dict. ``None``: ``"0"``, ``"1"`` ..., as many as ``reward_space`` says
    :param key: entry of ``info`` that holds the objectives, at least 2 of them; ``None``: they are the reward
    :raises ValueError: if there is no name, or two are the same, or a vector would have to pass ``Monitor``; later if a step
        does not bring one finite number for each objective
    """

    def __init__(self, env: gym.Env[Any, Any], names: Sequence[str] | None = None, key: str | None = None):
        super().__init__(env)
        if key is None and find_monitor(env) is not None:
            raise ValueError(f"`env` must not be in Monitor, which knows numbers only: use add_objectives, got {env}")
        self.key = key
        self.objective_names = read_names(names, getattr(env.unwrapped, "reward_space", None) if key is None else None)
        if key is not None and len(self.objective_names) < 2:
            raise ValueError(
                f"`names` must be at least 2 where `key` is given, since one objective is the reward itself, got {names!r}"
            )

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        Take a step.

        :param action: of the environment
        :return: as Gymnasium; ``info["objectives"]`` has the shape ``(K,)``
        :raises ValueError: if an objective is missing, or NaN or infinite
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self.key is None:
            objectives = read_objectives(reward, self.objective_names, "the reward")
            reward = float(objectives.sum())
        else:
            where = f"info[{self.key!r}]"
            if self.key not in info:
                raise ValueError(f"`info` must hold {self.key!r} in every step, got {sorted(info)}")
            objectives = read_objectives(info[self.key], self.objective_names, where)
        return observation, reward, terminated, truncated, {**info, OBJECTIVES: objectives}


def add_objectives(env: gym.Env[Any, Any], names: Sequence[str] | None = None, key: str | None = None) -> gym.Env[Any, Any]:
    """
    Wrap an environment in :class:`ObjectivesWrapper`, inside of ``Monitor`` if it is in one.

    For SB3's ``make_vec_env(wrapper_class=add_objectives)`` and RL Zoo's ``env_wrapper``, which hand over an environment that
    is in ``Monitor`` already.

    :param env: as the argument of :class:`ObjectivesWrapper`, or around it ``Monitor`` and other wrappers
    :param names: as the argument of :class:`ObjectivesWrapper`
    :param key: as the argument of :class:`ObjectivesWrapper`
    :return: ``env``, with the wrapper inside; if there is no ``Monitor``, the wrapper
    :raises ValueError: as :class:`ObjectivesWrapper`
    """
    monitor = find_monitor(env)
    if monitor is None:
        return ObjectivesWrapper(env, names, key)
    monitor.env = ObjectivesWrapper(monitor.env, names, key)
    return env


def find_monitor(env: gym.Env[Any, Any]) -> Monitor | None:
    """
    Return the outermost ``Monitor`` that an environment is in.

    :param env: the environment
    :return: ``None`` if there is none
    """
    layer = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, Monitor):
            return layer
        layer = layer.env
    return None


def read_names(names: Sequence[str] | None, reward_space: Any) -> list[str]:
    """
    Return the names of the objectives.

    :param names: as the argument of :class:`ObjectivesWrapper`
    :param reward_space: of the environment; ``None``: it has none
    :raises ValueError: if there are none, or two are the same
    """
    if names is None:
        shape = getattr(reward_space, "shape", None)
        if shape is None or len(shape) != 1:
            raise ValueError("`names` must be given where the environment has no `reward_space` of one dimension, got None")
        names = [str(index) for index in range(shape[0])]
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"`names` must be a sequence of strings, got {names!r}")
    found = list(names)
    if not found or len(set(found)) < len(found):
        raise ValueError(f"`names` must be at least one, and different from each other, got {found}")
    return found


def read_objectives(values: Any, names: Sequence[str], where: str) -> np.ndarray:
    """
    Read the objectives of one step.

    :param values: a vector, or numbers by name, among them those of ``names``
    :param names: of the ``K`` objectives
    :param where: what to call ``values`` in the message
    :return: shape ``(K,)``, float64
    :raises ValueError: if there is not one finite number for each objective
    """
    if isinstance(values, Mapping):
        if missing := [name for name in names if name not in values]:
            raise ValueError(f"{where} must hold the objectives {list(names)}, got {list(values)} without {missing}")
        values = [values[name] for name in names]
    objectives = np.asarray(values, dtype=np.float64)
    if objectives.shape != (len(names),):
        raise ValueError(f"{where} must hold {len(names)} objectives, {list(names)}, got the shape {objectives.shape}")
    # rollouts are kept in float32; NaN is not below the limit either
    held = np.abs(objectives) <= np.finfo(np.float32).max
    if not held.all():
        broken = [name for name, fits in zip(names, held.tolist(), strict=True) if not fits]
        raise ValueError(f"objectives must be finite in float32, got {objectives.tolist()} in {where}, refused {broken}")
    return objectives
