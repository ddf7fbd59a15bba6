"""
Kill a process (SIGKILL) at a random moment, and load the newest files that it has left.

The process trains with checkpoints and a best model, or saves over one file again and again.
"""

import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from rich.table import Table
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.lib.rows import Run
from benchmarks.robustness.guards import silenced
from benchmarks.robustness.models import ALGORITHMS, TASKS, make_model, package_commit
from benchmarks.robustness.records import Record, by_kind
from sb3_grpo import GroupEvalCallback

KILLS_PER_ROW = 10
LONGEST_WAIT = 60.0  # seconds that a child process may take to get ready


def train_with_checkpoints(algorithm: str, folder: str, seed: int) -> None:
    """
    Train until killed, with a checkpoint every 16 steps and an evaluation every 32.

    :param algorithm: ``"PPO"`` or ``"GRPO"``
    :param folder: folder of the files
    :param seed: seed of the training
    """
    th.set_num_threads(1)
    env, eval_env = make_vec_env(TASKS, 4, seed), make_vec_env(TASKS, 2, seed)
    evaluation: Any = EvalCallback if algorithm == "PPO" else GroupEvalCallback
    callbacks = [
        CheckpointCallback(16, folder, name_prefix="model"),
        evaluation(eval_env, eval_freq=32, n_eval_episodes=2, best_model_save_path=folder, verbose=0),
    ]
    with silenced():
        make_model(algorithm, env, seed).learn(10**9, callbacks)


def save_over_and_over(algorithm: str, folder: str, seed: int) -> None:
    """
    Save a model to one file until killed.

    :param algorithm: ``"PPO"`` or ``"GRPO"``
    :param folder: folder of the file
    :param seed: seed of the training
    """
    th.set_num_threads(1)
    with silenced():
        model = make_model(algorithm, make_vec_env(TASKS, 4, seed), seed).learn(128)
        while True:
            model.save(Path(folder) / "model_steps")


CHILDREN: dict[str, Callable[[str, str, int], None]] = {"training": train_with_checkpoints, "saving": save_over_and_over}


def kill(kind: str, algorithm: str, code: str, seed: int, n_kills: int) -> dict[str, Any]:
    """
    Kill processes at random moments, and load the newest files of each.

    :param kind: ``"training"`` or ``"saving"``
    :param algorithm: ``"PPO"`` or ``"GRPO"``
    :param code: ``"before"`` or ``"after"``, which names the package that is measured
    :param seed: seed of the moments
    :param n_kills: number of kills
    :return: how many of the newest checkpoints and best models could not be loaded, and how many files were left behind
    """
    random = np.random.default_rng(seed)
    destroyed: Counter[str] = Counter()
    n_left, errors = 0, []
    for index in range(n_kills):
        with tempfile.TemporaryDirectory() as folder:
            kill_one(kind, algorithm, folder, seed * 1000 + index, random)
            newest = max(Path(folder).glob("model_*.zip"), key=lambda path: path.stat().st_mtime_ns)
            for path in (newest, Path(folder) / "best_model.zip"):
                if path.exists():
                    try:
                        ALGORITHMS[algorithm].load(path, device="cpu")
                    except Exception as error:  # any: the file is lost to the user
                        destroyed["best model" if path.name == "best_model.zip" else "newest"] += 1
                        errors.append(f"{type(error).__name__}: {error}"[:100])
            n_left += len(list(Path(folder).glob(".*.part")))
    package = package_commit()
    return {"kills": n_kills, "destroyed": dict(destroyed), "left_behind": n_left, "errors": errors[:3], "package": package}


def kill_one(kind: str, algorithm: str, folder: str, seed: int, random: np.random.Generator) -> None:
    """
    Start a process, and kill it within a second (0.2 seconds where it only saves) after its first file.

    :param kind: a name of :data:`CHILDREN`
    :param algorithm: ``"PPO"`` or ``"GRPO"``
    :param folder: folder of the files
    :param seed: seed of the process
    :param random: draws the moment
    """
    context = multiprocessing.get_context("forkserver")
    # children are forked from a process that has imported what takes time
    context.set_forkserver_preload(["sb3_grpo.envs.cartpole", "joblib", "tqdm.auto", "rich.table"])
    child = context.Process(target=CHILDREN[kind], args=(algorithm, folder, seed), daemon=True)
    child.start()
    try:
        wait_for(lambda: bool(list(Path(folder).glob("model_*.zip"))), child.is_alive)
        time.sleep(float(random.uniform(0, 1.0 if kind == "training" else 0.2)))
        assert child.is_alive()
    finally:
        child.kill()
        child.join()


def wait_for(condition: Callable[[], bool], alive: Callable[[], bool]) -> None:
    """
    Wait until a condition is met.

    :param condition: asked again and again
    :param alive: whether the process still runs
    :raises TimeoutError: if the condition is not met within ``LONGEST_WAIT`` seconds, or the process has ended
    """
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > LONGEST_WAIT or not alive():
            raise TimeoutError("the child process has not got ready")
        time.sleep(0.002)


def kill_runs(code: str) -> list[Run]:
    """
    Return the runs of both kinds and algorithms.

    :param code: ``"before"`` or ``"after"``
    """
    rows = {"training": 5, "saving": 10}
    return [
        dict(kind=kind, algorithm=algorithm, code=code, seed=seed, n_kills=KILLS_PER_ROW)
        for algorithm in ALGORITHMS
        for kind, n in rows.items()
        for seed in range(n)
    ]


def kill_table(records: list[Record]) -> Table:
    """
    Return the table of destroyed files.

    :param records: records of this part
    """
    columns = ("killed while", "algorithm", "code", "kills", "newest file lost", "best model lost", "parts left behind")
    table = Table(*columns, title="Kills")
    for kind, algorithm, code, chosen in by_kind(records, CHILDREN):
        lost: Counter[str] = sum((Counter(row["destroyed"]) for row in chosen), Counter())
        kills, left_behind = (sum(row[key] for row in chosen) for key in ("kills", "left_behind"))
        table.add_row(kind, algorithm, code, *map(str, (kills, lost["newest"], lost["best model"], left_behind)))
    return table
