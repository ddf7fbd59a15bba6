"""Describe one kind of bad input, and what a case needs: small models, files, names."""

import math
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sb3_grpo.envs.cartpole import TaskCartPole

NAN, INF = math.nan, math.inf
# words of a clear message about observations
OBS = ("observation", "observations", "obs")

OPTIONS: dict[str, Any] = dict(n_steps=32, batch_size=16, n_epochs=2, seed=0, device="cpu")
ONE_HOT: dict[str, Any] = dict(router="one_hot", router_kwargs=dict(columns=(4, 8)))
DISCRETE: dict[str, Any] = dict(router="discrete", router_kwargs=dict(key="task"))

Algorithm = Any  # type[PPO] or its subclass
Action = Callable[[Algorithm, Path], Any]


class Case(NamedTuple):
    """One kind of bad input."""

    name: str
    act: Action  # called with the algorithm and an empty folder; the weights of a model that it returns must be finite
    words: tuple[str, ...]  # a clear message has one of them
    fine: bool | None = False  # whether it only looks bad; None: to train with it and to refuse it are both right
    own: bool = False  # whether only GRPO has it


def make(algorithm: Algorithm, env: Any = "CartPole-v1", policy: Any = "MlpPolicy", **kwargs: Any) -> Any:
    """
    Return a small model.

    :param algorithm: PPO or GRPO
    :param env: environment, or its registered name
    :param policy: policy, or its name
    :param kwargs: arguments that differ from :data:`OPTIONS`
    """
    return algorithm(policy, env, **{**OPTIONS, **kwargs})


def train(algorithm: Algorithm, env: Any = "CartPole-v1", policy: Any = "MlpPolicy", **kwargs: Any) -> Any:
    """
    Return a small model after three rollouts.

    :param algorithm: PPO or GRPO
    :param env: environment, or its registered name
    :param policy: policy, or its name
    :param kwargs: arguments that differ from :data:`OPTIONS`
    """
    return make(algorithm, env, policy, **kwargs).learn(96)


def tasks(**kwargs: Any) -> Any:
    """
    Return an environment of four tasks, which the last columns of the observation show.

    :param kwargs: arguments of the environment
    """
    return TaskCartPole(**kwargs)


def dict_tasks() -> Any:
    """Return an environment of four tasks whose observation is a dict."""
    return TaskCartPole(task_observation="dict")


def argument(
    name: str, value: Any, fine: bool | None = False, own: bool = False, env: Any = "CartPole-v1", **others: Any
) -> Case:
    """
    Return the case of one argument of the constructor.

    :param name: name of the argument
    :param value: its value
    :param fine: see :class:`Case`
    :param own: see :class:`Case`
    :param env: environment, its registered name, or a function that makes it
    :param others: further arguments
    """

    def act(algorithm: Algorithm, folder: Path) -> Any:
        made = env() if isinstance(env, types.FunctionType) else env
        return train(algorithm, made, **{**others, name: value})

    return Case(f"{name}={shown(value)}", act, (name, name.replace("_", " ")), fine, own)


def shown(value: Any) -> str:
    """
    Return a value as the name of a case has it, the same in every process.

    :param value: value of an argument; functions have their ``__name__``
    """
    return value.__name__ if callable(value) else repr(value)


def function(returns: Any) -> Callable[[float], Any]:
    """
    Return a schedule that is right at first.

    :param returns: its value after the first rollout
    """

    def schedule(progress: float) -> Any:
        return returns if progress < 1 else 3e-4

    schedule.__name__ = f"a function that returns {returns!r} later"
    return schedule


def without_arguments() -> Any:
    """Return a constant, without taking the argument that a schedule or router must take."""
    return 1e-3


without_arguments.__name__ = "a function without arguments"


def arguments(values: dict[str, list[Any]], **others: Any) -> list[Case]:
    """
    Return a case for each value of each argument.

    :param values: values by the name of the argument
    :param others: see :func:`argument`
    """
    return [argument(name, value, **others) for name, several in values.items() for value in several]


def saved(algorithm: Algorithm, folder: Path, *args: Any, **kwargs: Any) -> Path:
    """
    Return the file of a model that was trained.

    :param algorithm: PPO or GRPO
    :param folder: folder of the file
    :param args: see :func:`train`
    :param kwargs: see :func:`train`
    """
    train(algorithm, *args, **kwargs).save(folder / "model.zip")
    return folder / "model.zip"


def own(name: str, act: Action, *words: str, fine: bool | None = False) -> Case:
    """
    Return a case that only GRPO has.

    :param name: see :class:`Case`
    :param act: see :class:`Case`
    :param words: see :class:`Case`
    :param fine: see :class:`Case`
    """
    return Case(name, act, words, fine, own=True)
