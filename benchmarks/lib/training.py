"""Train a model in parts of equal length, and evaluate it after each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm


class Method(NamedTuple):
    """What is compared: an algorithm, its arguments, and what makes the callbacks of its training."""

    algorithm: type[PPO]
    kwargs: Mapping[str, Any] = {}
    callbacks: Sequence[Callable[[], BaseCallback]] = ()


def train_and_evaluate(
    model: OnPolicyAlgorithm,
    parts: Sequence[int],
    evaluate: Callable[[int], Any],
    callbacks: list[Any] | None = None,
) -> dict[str, Any]:
    """
    Train for some steps and evaluate, again and again.

    :param model: model to train
    :param parts: number of environment steps before each evaluation
    :param evaluate: called with the index of the evaluation; returns what was measured, for instance the return of each task
    :param callbacks: callbacks of the training
    :return: ``steps``, environment steps at each evaluation, and ``returns``, what ``evaluate`` returned
    """
    result: dict[str, Any] = {"steps": [], "returns": []}
    for index, steps in enumerate(parts):
        model.learn(steps, callbacks, reset_num_timesteps=index == 0)
        result["steps"].append(model.num_timesteps)
        result["returns"].append(evaluate(index))
    return result


def equal_parts(total_timesteps: int, n_evaluations: int) -> list[int]:
    """
    Return the steps before each of ``n_evaluations`` evaluations.

    :param total_timesteps: steps of the whole training; a remainder is left out
    :param n_evaluations: number of parts
    """
    return [total_timesteps // n_evaluations] * n_evaluations
