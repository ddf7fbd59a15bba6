"""Train a model in parts of equal length, and evaluate it after each."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv


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


def learn_with_evaluations(
    model: OnPolicyAlgorithm, total_timesteps: int, eval_env: VecEnv, n_evaluations: int, eval_episodes: int
) -> dict[str, np.ndarray]:
    """
    Train in one piece, so that schedules run to their end, and evaluate from time to time.

    :param model: model to train
    :param total_timesteps: environment steps
    :param eval_env: environments of the evaluations
    :param n_evaluations: number of evaluations
    :param eval_episodes: number of deterministic episodes of each
    :return: the arrays that ``EvalCallback`` saves: ``timesteps``, shape ``(n_evaluations,)``, and ``results``, shape
        ``(n_evaluations, eval_episodes)``; ``successes`` where environments report them
    """
    assert model.env is not None
    frequency = total_timesteps // n_evaluations // model.env.num_envs
    with tempfile.TemporaryDirectory() as folder:
        callback = EvalCallback(eval_env, n_eval_episodes=eval_episodes, eval_freq=frequency, log_path=folder, verbose=0)
        model.learn(total_timesteps, callback)
        return dict(np.load(Path(folder) / "evaluations.npz"))
