"""Reach the environments within a vector environment: their attributes, methods, seeds and images."""

from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from stable_baselines3.common.env_util import is_wrapped

from sb3_grpo.vec_env.resets import is_envpool, layers


class NativeSubEnvs:
    """
    Environments that are only rows of the arrays of a vector environment: what it has, each of them has.

    :param env: the vector environment, wrapped or not
    """

    def __init__(self, env: VectorEnv):
        self.env = env

    def seed_argument(self, seeds: Sequence[int | None]) -> Any:
        """
        Return what the vector environment's ``reset`` takes as seed.

        :param seeds: seeds of the environments, or None for each; shape ``(num_envs,)``
        """
        return seeds[0]

    def owner(self, name: str) -> Any:
        """
        Return the outermost of the vector environment and its wrappers that has an attribute.

        :param name: of the attribute
        :raises AttributeError: if none has it
        """
        for layer in layers(self.env):
            if hasattr(layer, name):
                return layer
        raise AttributeError(f"{self.env} has no attribute {name!r}; its environments cannot be reached one by one")

    def check_all(self, indices: Iterable[int], name: str) -> None:
        """
        Refuse an action that would reach other environments than those that were asked for.

        :param indices: of the environments that were asked for
        :param name: of the attribute or method
        :raises ValueError: if some environments are missing
        """
        if set(indices) != set(range(self.env.num_envs)):
            base = type(self.env.unwrapped).__name__
            raise ValueError(
                f"indices must be None for {name!r}: {base} reaches all environments at once, got {list(indices)}"
            )

    def has_attr(self, name: str) -> bool:
        """
        Return whether all environments have an attribute.

        :param name: of the attribute
        """
        return any(hasattr(layer, name) for layer in layers(self.env))

    def get_attr(self, name: str, indices: Sequence[int]) -> list[Any]:
        """
        Return the values of an attribute.

        :param name: of the attribute
        :param indices: of the environments
        :raises AttributeError: if there is no such attribute
        """
        return [getattr(self.owner(name), name)] * len(indices)

    def set_attr(self, name: str, value: Any, indices: Sequence[int]) -> None:
        """
        Set an attribute.

        :param name: of the attribute
        :param value: the same for all environments
        :param indices: of the environments
        :raises AttributeError: if there is no such attribute where environments cannot be reached one by one
        :raises ValueError: if only all environments can be reached, and some are missing
        """
        self.check_all(indices, name)
        setattr(self.owner(name), name, value)

    def call(self, name: str, indices: Sequence[int], *args: Any, **kwargs: Any) -> list[Any]:
        """
        Call a method.

        :param name: of the method
        :param indices: of the environments
        :param args: of the method
        :param kwargs: of the method
        :return: a result for each index
        :raises AttributeError: if there is no such method
        :raises ValueError: if only all environments can be reached, and some are missing
        """
        self.check_all(indices, name)
        return [getattr(self.owner(name), name)(*args, **kwargs)] * len(indices)

    def is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Sequence[int]) -> list[bool]:
        """
        Return whether environments are wrapped in a wrapper of one environment; False where this cannot be known.

        :param wrapper_class: the wrapper
        :param indices: of the environments
        """
        return [False for _ in indices]

    def images(self) -> Sequence[Any]:
        """Return an image of each environment, or None, as its ``render`` gives them."""
        images = self.env.render()
        return [None] * self.env.num_envs if images is None else list(images)


class EnvPoolSubEnvs(NativeSubEnvs):
    """Environments of EnvPool."""

    def seed_argument(self, seeds: Sequence[int | None]) -> Any:
        return None  # they were seeded when they were made

    def images(self) -> Sequence[Any]:
        base: Any = self.env.unwrapped
        return list(base.render(base.all_env_ids))  # without numbers it renders one


class SyncSubEnvs(NativeSubEnvs):
    """Environments of a ``SyncVectorEnv``, objects of this process."""

    def __init__(self, env: VectorEnv):
        super().__init__(env)
        base = env.unwrapped
        assert isinstance(base, SyncVectorEnv)
        self.envs = base.envs

    def seed_argument(self, seeds: Sequence[int | None]) -> Any:
        return list(seeds)

    def has_attr(self, name: str) -> bool:
        return all(env.has_wrapper_attr(name) for env in self.envs)

    def get_attr(self, name: str, indices: Sequence[int]) -> list[Any]:
        return [self.envs[i].get_wrapper_attr(name) for i in indices]

    def set_attr(self, name: str, value: Any, indices: Sequence[int]) -> None:
        for i in indices:
            self.envs[i].set_wrapper_attr(name, value)

    def call(self, name: str, indices: Sequence[int], *args: Any, **kwargs: Any) -> list[Any]:
        return [self.envs[i].get_wrapper_attr(name)(*args, **kwargs) for i in indices]

    def is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Sequence[int]) -> list[bool]:
        return [is_wrapped(self.envs[i], wrapper_class) for i in indices]


class AsyncSubEnvs(NativeSubEnvs):
    """
    Environments of an ``AsyncVectorEnv``, in processes of their own.

    A worker whose environment raises an error ends, and with it the vector environment: it is asked before whether an
    attribute is there.
    """

    def __init__(self, env: VectorEnv):
        super().__init__(env)
        base = env.unwrapped
        assert isinstance(base, AsyncVectorEnv)
        self.base = base

    def seed_argument(self, seeds: Sequence[int | None]) -> Any:
        return list(seeds)

    def has_attr(self, name: str) -> bool:
        return all(self.base.call("has_wrapper_attr", name))

    def check_attr(self, name: str) -> None:
        """
        Refuse an attribute that is not there.

        :param name: of the attribute
        :raises AttributeError: if an environment does not have it
        """
        if not self.has_attr(name):
            raise AttributeError(f"the environments of {self.env} have no attribute {name!r}")

    def get_attr(self, name: str, indices: Sequence[int]) -> list[Any]:
        self.check_attr(name)
        # not `base.get_attr`, which calls the attribute if it is a method
        values = self.base.call("get_wrapper_attr", name)
        return [values[i] for i in indices]

    def set_attr(self, name: str, value: Any, indices: Sequence[int]) -> None:
        everyone = range(self.base.num_envs)
        values = [value] * len(everyone) if set(indices) == set(everyone) else self.get_attr(name, everyone)
        for i in indices:
            values[i] = value
        self.base.set_attr(name, values)

    def call(self, name: str, indices: Sequence[int], *args: Any, **kwargs: Any) -> list[Any]:
        self.check_all(indices, name)
        if name in ("reset", "step", "close"):
            raise ValueError(f"method_name must not be {name!r}, which AsyncVectorEnv calls itself")
        self.check_attr(name)
        results = self.base.call(name, *args, **kwargs)
        return [results[i] for i in indices]


def find_sub_envs(env: VectorEnv) -> NativeSubEnvs:
    """
    Return what reaches the environments of a vector environment.

    :param env: the vector environment, wrapped or not
    """
    base = env.unwrapped
    if isinstance(base, SyncVectorEnv):
        return SyncSubEnvs(env)
    if isinstance(base, AsyncVectorEnv):
        return AsyncSubEnvs(env)
    return EnvPoolSubEnvs(env) if is_envpool(env) else NativeSubEnvs(env)
