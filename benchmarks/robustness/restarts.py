"""
Go on with a training in a new process, with another number of environments, and see what it has lost.

What can be lost are the odds of ``TaskSamplingCallback``, and the best model of ``GroupEvalCallback``.
"""

import math
import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from rich.table import Table
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.lib.rows import Run
from benchmarks.robustness.guards import silenced
from benchmarks.robustness.models import ALGORITHMS, TASKS, make_model, package_commit
from benchmarks.robustness.records import Record, by_kind
from sb3_grpo import GroupEvalCallback, TaskSamplingCallback


class FirstOdds(BaseCallback):
    """Record the odds of the tasks with which the environments begin the first rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.odds: list[list[float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if not self.odds:
            self.odds = [np.asarray(each).tolist() for each in self.training_env.env_method("get_task_probabilities")]


def continue_sampling(algorithm: str, folder: str, n_envs: int) -> dict[str, Any]:
    """
    Load a model and train, and return the odds of the tasks that it begins with.

    :param algorithm: ``"PPO"`` or ``"GRPO"``
    :param folder: folder of the model
    :param n_envs: number of environments
    """
    first = FirstOdds()
    model = ALGORITHMS[algorithm].load(Path(folder) / "model", env=make_vec_env(TASKS, n_envs, 1))
    model.learn(model.n_steps * n_envs, [TaskSamplingCallback(), first], reset_num_timesteps=False)
    return {"odds": first.odds}


def continue_evaluating(algorithm: str, folder: str, n_envs: int) -> dict[str, Any]:
    """
    Load a model, set its weights to 0, and evaluate it while training with learning rate 0.

    :param algorithm: ``"PPO"`` or ``"GRPO"``
    :param folder: folder of the model
    :param n_envs: number of environments
    """
    model = ALGORITHMS[algorithm].load(Path(folder) / "model", env=make_vec_env(TASKS, n_envs, 1), learning_rate=0.0)
    for parameter in model.policy.parameters():
        parameter.data.zero_()
    model.learn(4 * model.n_steps * n_envs, best_model_callback(algorithm, folder), reset_num_timesteps=False)
    return {}


def best_model_callback(algorithm: str, folder: str) -> Any:
    """
    Return the callback of an evaluation that saves the best model.

    :param algorithm: ``"PPO"`` or ``"GRPO"``
    :param folder: folder of the model
    """
    kwargs: dict[str, Any] = dict(eval_freq=64, n_eval_episodes=8, best_model_save_path=folder, verbose=0)
    if algorithm == "PPO":
        return EvalCallback(make_vec_env(TASKS, 4, 1), **kwargs)
    return GroupEvalCallback(make_vec_env(TASKS, 4, 1), best_by="worst", **kwargs)


CONTINUED: dict[str, Callable[[str, str, int], dict[str, Any]]] = {
    "task sampling": continue_sampling,
    "best model": continue_evaluating,
}


def restart(kind: str, algorithm: str, code: str, n_envs: int, seed: int) -> dict[str, Any]:
    """
    Train, go on in a new process, and compare what is known before and after.

    :param kind: ``"task sampling"`` or ``"best model"``
    :param algorithm: ``"PPO"`` or ``"GRPO"``
    :param code: ``"before"`` or ``"after"``, which names the package that is measured
    :param n_envs: number of environments after the restart; it is 4 before
    :param seed: seed of the training
    :return: whether what was known before is ``lost``, and how that shows
    """
    with tempfile.TemporaryDirectory() as folder, silenced():
        env = make_vec_env(TASKS, 4, seed)
        model = make_model(algorithm, env, seed)
        best = best_model_callback(algorithm, folder)
        sampling = TaskSamplingCallback()
        model.learn(2048, [sampling] if kind == "task sampling" else best)
        model.save(Path(folder) / "model")
        file = Path(folder) / "best_model.zip"
        content = file.read_bytes() if file.exists() else b""
        error, continued = in_new_process(kind, algorithm, folder, n_envs)
        result: dict[str, Any] = {"error": error, "package": package_commit()}
        if kind == "task sampling":
            odds = np.asarray(continued.get("odds", [[math.nan] * 4]))
            difference = float(np.abs(odds - sampling.probabilities).max())
            result.update(odds_before=sampling.probabilities.round(4).tolist(), odds_after=odds[0].round(4).tolist())
            result["lost"] = bool(error) or not difference < 1e-6
        else:
            result["lost"] = bool(error) or file.read_bytes() != content
        return result


def in_new_process(kind: str, algorithm: str, folder: str, n_envs: int) -> tuple[str, dict[str, Any]]:
    """
    Go on in a new process, and return its error, empty without one, and what it has found.

    :param kind: a name of :data:`CONTINUED`
    :param algorithm: ``"PPO"`` or ``"GRPO"``
    :param folder: folder of the model
    :param n_envs: number of environments
    """
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe(duplex=False)
    child = context.Process(target=tell, args=(its, kind, algorithm, folder, n_envs))
    child.start()
    its.close()
    try:
        return mine.recv()
    finally:
        child.join()


def tell(connection: Any, kind: str, algorithm: str, folder: str, n_envs: int) -> None:
    """
    Go on in this process, and send what was found.

    :param connection: end of a pipe
    :param kind: a name of :data:`CONTINUED`
    :param algorithm: ``"PPO"`` or ``"GRPO"``
    :param folder: folder of the model
    :param n_envs: number of environments
    """
    th.set_num_threads(1)
    try:
        with silenced():
            connection.send(("", CONTINUED[kind](algorithm, folder, n_envs)))
    except Exception as error:  # any: it is what was found
        connection.send((f"{type(error).__name__}: {error}"[:150], {}))


def restart_runs(code: str) -> list[Run]:
    """
    Return the runs of both kinds and algorithms.

    :param code: ``"before"`` or ``"after"``
    """
    return [
        dict(kind=kind, algorithm=algorithm, code=code, n_envs=n_envs, seed=0)
        for kind in CONTINUED
        for algorithm in ALGORITHMS
        for n_envs in (4, 2, 8)
    ]


def restart_table(records: list[Record]) -> Table:
    """
    Return the table of what restarts have lost.

    :param records: records of this part
    """
    table = Table("what", "algorithm", "code", "restarts", "lost", "errors", title="Restarts")
    for kind, algorithm, code, chosen in by_kind(records, CONTINUED):
        errors = sorted({row["error"] for row in chosen} - {""})
        lost = sum(row["lost"] for row in chosen)
        table.add_row(kind, algorithm, code, str(len(chosen)), str(lost), "; ".join(errors))
    return table
