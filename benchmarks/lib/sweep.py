"""Run sweeps that resume where they stopped, with one result row per run."""

import argparse
import importlib.metadata
import json
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch as th
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from benchmarks.lib.rows import RESULTS, ROOT, Row, Run, read_rows

PACKAGES = ("sb3-grpo", "stable-baselines3", "torch", "gymnasium", "numpy")


def sweep(
    function: Callable[..., dict[str, Any]], runs: Iterable[Run], path: Path, jobs: int = 2, ray: bool = False
) -> list[Row]:
    """
    Call ``function(**run)`` for every run whose row is not yet in the file, and return the rows of all runs.

    Each row is appended as soon as its run has ended, so that a sweep that was cut goes on where it stopped.

    :param function: one run; returns what was measured
    :param runs: keyword arguments of each run (plain JSON values)
    :param path: file of rows ``{"run": ..., "result": ..., "seconds": ..., "versions": ..., "commit": ...}``
    :param jobs: number of processes on this machine
    :param ray: on all CPUs of a Ray cluster instead, whose nodes have this repository in the same folder
    :return: the rows of all runs, in their order
    """
    wanted = [json.loads(json.dumps(run)) for run in runs]
    path.parent.mkdir(parents=True, exist_ok=True)
    done = read_rows(path)
    missing = missing_runs(wanted, done)
    commit = commit_of(ROOT, ":/sb3_grpo", ":/benchmarks/*.py")
    rows = _rows_from_ray(function, missing) if ray else _rows_from_here(function, missing, jobs)
    for row in tqdm(rows, total=len(missing), desc=path.stem, disable=not missing):
        row["commit"] = commit
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        done.append(row)
    return [next(row for row in done if row["run"] == run) for run in wanted]


def missing_runs(runs: Iterable[Run], rows: Iterable[Row]) -> list[Run]:
    """
    Return the runs that have no row yet.

    :param runs: arguments of each run, plain JSON values (lists, not tuples)
    :param rows: rows that exist
    """
    done = [row["run"] for row in rows]
    return [run for run in runs if run not in done]


def commit_of(folder: Path, *paths: str) -> str:
    """
    Return the commit of a repository, with "-dirty" where files differ from it; "unknown" outside of a repository.

    :param folder: a folder of the repository
    :param paths: git's path specifications of the files that count
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603 (git with arguments from here)

    try:
        changed = git("diff", "--name-only", "HEAD", "--", *paths)
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _rows_from_here(function: Callable[..., dict[str, Any]], runs: list[Run], jobs: int) -> Iterable[dict[str, Any]]:
    return Parallel(n_jobs=jobs, return_as="generator_unordered")(delayed(_one_run)(function, run) for run in runs)


def _rows_from_ray(function: Callable[..., dict[str, Any]], runs: list[Run]) -> Iterable[dict[str, Any]]:
    """Run on the cluster that the environment variable ``RAY_ADDRESS`` names, or on one that is started on this machine."""
    import ray  # noqa: PLC0415 (only where a cluster is wanted)

    # the nodes import `benchmarks` from the repository
    ray.init(log_to_driver=False, ignore_reinit_error=True, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    # joblib's backend for Ray would keep all rows until the last run has ended
    run_there = ray.remote(_one_run)
    pending = [run_there.remote(function, run) for run in runs]
    while pending:
        done, pending = ray.wait(pending)
        yield from ray.get(done)


def _one_run(function: Callable[..., dict[str, Any]], run: Run) -> dict[str, Any]:
    # several processes on few cores are faster with one thread each
    th.set_num_threads(1)
    start = time.perf_counter()
    result = function(**run)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"run": run, "result": result, "seconds": round(time.perf_counter() - start, 1), "versions": versions}


def parse_parts(description: str | None, parts: Iterable[str]) -> argparse.Namespace:
    """
    Return the command line's ``parts``, ``seeds`` (``None``: those of the tables), and what :func:`run_part` needs.

    :param description: description of the script
    :param parts: names of its parts
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--parts", nargs="*", choices=list(parts), default=list(parts))
    parser.add_argument("--seeds", nargs="*", type=int, help="default: those of the tables")
    parser.add_argument(
        "--only",
        nargs="*",
        type=name_and_value,
        default=[],
        metavar="NAME=VALUE",
        help="only runs in which each argument has one of its values",
    )
    parser.add_argument("--jobs", type=int, default=2, help="number of processes on this machine")
    parser.add_argument("--ray", action="store_true", help="run on a Ray cluster")
    parser.add_argument("--smoke", type=Path, metavar="FOLDER", help="very short runs, one of each kind, rows in this folder")
    return parser.parse_args()


def name_and_value(text: str) -> tuple[str, str]:
    """
    Split a restriction of the command line into name and value.

    :param text: ``"name=value"``
    :raises ValueError: if it is not
    """
    name, value = text.split("=", 1)
    return name, value


def one_of_each_kind(runs: list[Run]) -> list[Run]:
    """
    Return the runs of the first seed, with only one value of each real number that is varied.

    :param runs: arguments of runs; among them ``seed``
    """
    kinds: dict[str, Run] = {}
    for run in runs:
        if run["seed"] == runs[0]["seed"]:
            kinds.setdefault(str([value for value in run.values() if not isinstance(value, float)]), run)
    return list(kinds.values())


def run_part(
    function: Callable[..., dict[str, Any]], runs: list[Run], name: str, arguments: argparse.Namespace, **short: Any
) -> list[dict[str, Any]]:
    """
    Run what has no row yet of one part of a script, and return the rows of the part.

    :param function: one run, see :func:`sweep`
    :param runs: its arguments; among them ``seed``
    :param name: name of the file of rows, without ending
    :param arguments: command line from :func:`parse_parts`
    :param short: arguments that replace those of a run with ``--smoke``, so that it ends within seconds
    :raises ValueError: if ``--only`` leaves no run
    """
    wanted: dict[str, set[str]] = {}
    for argument, value in arguments.only:
        wanted.setdefault(argument, set()).add(value)
    runs = [run for run in runs if all(str(run.get(argument)) in values for argument, values in wanted.items())]
    if not runs:
        raise ValueError(f"`--only` must leave some runs of {name}, got {arguments.only}")
    if arguments.smoke:
        runs = [{**run, **short} for run in one_of_each_kind(runs)]
    return sweep(function, runs, result_folder(arguments) / f"{name}.jsonl", arguments.jobs, arguments.ray)


def result_folder(arguments: argparse.Namespace) -> Path:
    """
    Return the folder of rows and pictures: that of ``--smoke``, else ``benchmarks/results``.

    :param arguments: command line from :func:`parse_parts`
    """
    return arguments.smoke or RESULTS
