"""What the benchmarks share: resumable sweeps with one result row per run, and statistics over seeds."""

import argparse
import importlib.metadata
import json
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from joblib import Parallel, delayed
from scipy import stats
from tqdm.auto import tqdm

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("sb3-grpo", "stable-baselines3", "torch", "gymnasium", "numpy")

Run = dict[str, Any]


def sweep(function: Callable[..., dict[str, Any]], runs: Iterable[Run], path: Path, jobs: int = 2) -> list[dict[str, Any]]:
    """
    Call ``function(**run)`` for every run whose row is not yet in the file, and append each row as soon as its
    run has ended: a sweep that was cut goes on where it stopped.

    :param function: one run; returns what was measured
    :param runs: keyword arguments of each run (plain JSON values)
    :param path: file of rows ``{"run": ..., "result": ..., "seconds": ..., "versions": ..., "commit": ...}``
    :param jobs: number of processes
    :return: the rows of all runs, in their order
    """
    wanted = [json.loads(json.dumps(run)) for run in runs]
    path.parent.mkdir(parents=True, exist_ok=True)
    done = read_rows(path)
    missing = [run for run in wanted if run not in [row["run"] for row in done]]
    commit = current_commit()
    rows = Parallel(n_jobs=jobs, return_as="generator_unordered")(delayed(_one_run)(function, run) for run in missing)
    for row in tqdm(rows, total=len(missing), desc=path.stem, disable=not missing):
        row["commit"] = commit
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        done.append(row)
    return [next(row for row in done if row["run"] == run) for run in wanted]


def current_commit() -> str:
    """
    :return: the commit of this code, with "-dirty" where the code differs from it; "unknown" outside of a repository
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603 (git with arguments from here)

    try:
        changed = git("diff", "--name-only", "HEAD", "--", ":/sb3_grpo", ":/benchmarks/*.py")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _one_run(function: Callable[..., dict[str, Any]], run: Run) -> dict[str, Any]:
    # several processes on few cores are faster with one thread each
    th.set_num_threads(1)
    start = time.perf_counter()
    result = function(**run)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"run": run, "result": result, "seconds": round(time.perf_counter() - start, 1), "versions": versions}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """
    :param path: file written by :func:`sweep`; need not exist
    """
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def parse_parts(description: str | None, parts: Iterable[str]) -> argparse.Namespace:
    """
    :param description: of the script
    :param parts: names of its parts
    :return: ``parts``, ``seeds`` (``None``: those of the tables) and ``jobs`` from the command line
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--parts", nargs="*", choices=list(parts), default=list(parts))
    parser.add_argument("--seeds", nargs="*", type=int, help="default: those of the tables")
    parser.add_argument("--jobs", type=int, default=2)
    return parser.parse_args()


def iqm(values: Iterable[float]) -> float:
    """Interquartile mean: the mean of the middle half."""
    return float(stats.trim_mean(np.asarray(list(values), dtype=float), 0.25))


def iqm_interval(values: Iterable[float]) -> tuple[float, float]:
    """
    :return: 95 % bootstrap interval (percentile) of the interquartile mean over seeds
    """
    sample = np.asarray(list(values), dtype=float)
    if np.ptp(sample) == 0:
        return float(sample[0]), float(sample[0])

    def statistic(x: np.ndarray, axis: int) -> np.ndarray:
        return stats.trim_mean(x, 0.25, axis=axis)

    interval = stats.bootstrap(
        (sample,), statistic, n_resamples=5000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(interval.low), float(interval.high)


def ratio_of_iqms(values: Iterable[float], base: Iterable[float], zero: float) -> tuple[float, float, float]:
    """
    :param values: one per seed
    :param base: those to compare with, of the same seeds: seeds are drawn together
    :param zero: what counts as nothing
    :return: ratio of the interquartile means, and its 95 % bootstrap interval (percentile)
    """

    def ratio(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        return stats.trim_mean(x - zero, 0.25, axis=axis) / stats.trim_mean(y - zero, 0.25, axis=axis)

    x, y = (np.asarray(list(sample), dtype=float) for sample in (values, base))
    if np.array_equal(x, y):
        return 1.0, 1.0, 1.0
    interval = stats.bootstrap(
        (x, y), ratio, paired=True, n_resamples=5000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(ratio(x, y)), float(interval.low), float(interval.high)


def describe(values: Iterable[float]) -> str:
    """
    :return: ``"IQM [low, high]"``
    """
    values = list(values)
    low, high = iqm_interval(values)
    return f"{iqm(values):.0f} [{low:.0f}, {high:.0f}]"
