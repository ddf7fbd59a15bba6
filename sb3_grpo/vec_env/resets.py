"""Decide how environments whose episode has ended are reset within the step, as SB3's ``VecEnv`` asks for."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.wrappers import vector as vector_wrappers

# (env, mask) -> observations and infos, as `env.reset` returns them; rows that are not under the mask are not read
ResetSome = Callable[[VectorEnv, np.ndarray], tuple[Any, dict[str, Any]]]

HOW_TO_SERVE = (
    "make it with AutoresetMode.SAME_STEP or AutoresetMode.DISABLED, or give reset_some=function(env, mask), which resets "
    "the environments under the mask at once and returns observations and infos of all, as env.reset does"
)


def layers(env: VectorEnv) -> Iterator[VectorEnv]:
    """
    Yield a vector environment's wrappers from outside to inside, and then the vector environment itself.

    :param env: the vector environment, wrapped or not
    """
    yield env
    while isinstance(env, VectorWrapper):
        env = env.env
        yield env


def is_envpool(env: VectorEnv) -> bool:
    """
    Return whether a vector environment is one of EnvPool's, without importing EnvPool.

    :param env: the vector environment, wrapped or not
    """
    return any(cls.__module__.split(".")[0] == "envpool" for cls in type(env.unwrapped).__mro__)


class LastingOptions(dict):
    """
    Options of a reset from which nothing is removed.

    ``SyncVectorEnv`` pops ``"reset_mask"`` before ``RecordEpisodeStatistics``, which is around it, looks for the mask;
    without a mask the wrapper clears the statistics of all environments.
    """

    def pop(self, key: str, *default: Any) -> Any:
        """
        Return a value, and keep it.

        :param key: of the value
        :param default: what is returned if there is no such key
        """
        return self.get(key, *default)


def reset_by_mask(env: VectorEnv, mask: np.ndarray) -> tuple[Any, dict[str, Any]]:
    """
    Reset some environments by the option ``"reset_mask"`` of Gymnasium's vector environments.

    :param env: the vector environment
    :param mask: which to reset, booleans of shape ``(num_envs,)``
    :return: observations and infos of all environments
    """
    keeps_mask = any(isinstance(layer, vector_wrappers.RecordEpisodeStatistics) for layer in layers(env))
    return env.reset(options=LastingOptions(reset_mask=mask) if keeps_mask else {"reset_mask": mask})


def reset_envpool(env: VectorEnv, mask: np.ndarray) -> tuple[Any, dict[str, Any]]:
    """
    Reset some environments of EnvPool, which returns rows for these alone.

    :param env: the vector environment
    :param mask: which to reset, booleans of shape ``(num_envs,)``
    :return: observations and infos of all environments; zeros where the mask is false
    """
    observations, infos = reset_by_mask(env, mask)
    rows = infos["env_id"]

    def spread(values: Any) -> Any:
        if isinstance(values, dict):
            return {key: spread(value) for key, value in values.items()}
        all_rows = np.zeros((len(mask), *values.shape[1:]), dtype=values.dtype)
        all_rows[rows] = values
        return all_rows

    return spread(observations), spread(infos)


def reset_cartpole(env: VectorEnv, mask: np.ndarray) -> tuple[Any, dict[str, Any]]:
    """
    Reset some environments of Gymnasium's vectorised CartPole, which takes no mask, as its own next step would do it.

    :param env: a ``CartPoleVectorEnv`` without wrappers
    :param mask: which to reset, booleans of shape ``(num_envs,)``
    :return: observations of all environments, shape ``(num_envs, 4)``, and infos
    """
    assert isinstance(env, CartPoleVectorEnv)
    assert env.state is not None  # it has been reset
    env.state[:, mask] = env.np_random.uniform(low=env.low, high=env.high, size=(4, mask.sum()))
    env.steps[mask] = 0
    env.prev_done[mask] = False
    return env.state.T.astype(np.float32), {}


def find_reset(env: VectorEnv, reset_some: ResetSome | None) -> ResetSome | None:
    """
    Return what resets environments whose episode has ended, or None if the vector environment does it within its step.

    :param env: the vector environment, wrapped or not
    :param reset_some: the user's function, which comes before what is known of the vector environment
    :raises ValueError: if the vector environment has no autoreset mode that can be served, if a function is given for one
        that resets by itself, or if a wrapper does not bear that only some environments are reset
    """
    mode = env.metadata.get("autoreset_mode")
    name = getattr(mode, "name", mode)  # by name: Gymnasium has the type since 1.1
    if name == "SAME_STEP":
        if reset_some is not None:
            raise ValueError("reset_some must be None for AutoresetMode.SAME_STEP, where the step resets environments itself")
        return None
    for layer in layers(env):
        if isinstance(layer, (vector_wrappers.NormalizeObservation, vector_wrappers.NormalizeReward)):
            wrapper = type(layer).__name__
            raise ValueError(
                f"env must not be wrapped in {wrapper} unless its autoreset mode is SAME_STEP, but it is {name}: the wrapper "
                "forgets the statistics of all environments when some are reset, or refuses to; use SB3's VecNormalize"
            )
    reset = reset_some or (reset_by_mask if name == "DISABLED" else None) or find_early_reset(env)
    if reset is None and mode is None:
        raise ValueError(
            f"env.metadata must have the key 'autoreset_mode' (Gymnasium 1.1 or newer), got {env}; {HOW_TO_SERVE}"
        )
    if reset is None:
        raise ValueError(
            f"env must be able to reset some of its environments at once, as SB3's VecEnv does, but {env} resets them in "
            f"the step after the episode's last one (AutoresetMode.{name}); {HOW_TO_SERVE}"
        )
    return reset


def find_early_reset(env: VectorEnv) -> ResetSome | None:
    """
    Return what resets environments before the step that would do it (``AutoresetMode.NEXT_STEP``), if anything does.

    :param env: the vector environment, wrapped or not
    """
    base = env.unwrapped
    if env.metadata.get("autoreset_mode") is None:
        return None
    if is_envpool(env):
        return reset_envpool
    # without shared memory the workers forget to clear the flag by which they reset again in the next step
    if isinstance(base, SyncVectorEnv) or (isinstance(base, AsyncVectorEnv) and base.shared_memory):
        return reset_by_mask
    # a reset around the wrappers would not be seen by them
    return reset_cartpole if base is env and isinstance(base, CartPoleVectorEnv) else None
