"""What the benchmarks share: resumable sweeps with one result row per run."""

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

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("sb3-grpo", "stable-baselines3", "torch", "gymnasium", "numpy")

Run = dict[str, Any]


def sweep(
    function: Callable[..., dict[str, Any]], runs: Iterable[Run], path: Path, jobs: int = 2, ray: bool = False
) -> list[dict[str, Any]]:
    """
    Call ``function(**run)`` for every run whose row is not yet in the file, and append each row as soon as its
    run has ended: a sweep that was cut goes on where it stopped.

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
    missing = [run for run in wanted if run not in [row["run"] for row in done]]
    commit = current_commit()
    rows = _rows_from_ray(function, missing) if ray else _rows_from_here(function, missing, jobs)
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


def _rows_from_here(function: Callable[..., dict[str, Any]], runs: list[Run], jobs: int) -> Iterable[dict[str, Any]]:
    return Parallel(n_jobs=jobs, return_as="generator_unordered")(delayed(_one_run)(function, run) for run in runs)


def _rows_from_ray(function: Callable[..., dict[str, Any]], runs: list[Run]) -> Iterable[dict[str, Any]]:
    """On the cluster that the environment variable ``RAY_ADDRESS`` names, or one that is started on this machine."""
    import ray  # noqa: PLC0415 (only where a cluster is wanted)

    # the nodes must find this module; benchmarks run in its folder
    ray.init(log_to_driver=False, ignore_reinit_error=True, runtime_env={"env_vars": {"PYTHONPATH": str(RESULTS.parent)}})
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


def read_rows(path: Path) -> list[dict[str, Any]]:
    """
    :param path: file written by :func:`sweep`; need not exist
    """
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def parse_parts(description: str | None, parts: Iterable[str]) -> argparse.Namespace:
    """
    :param description: of the script
    :param parts: names of its parts
    :return: what the command line says: ``parts``, ``seeds`` (``None``: those of the tables), and what :func:`run_part` needs
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--parts", nargs="*", choices=list(parts), default=list(parts))
    parser.add_argument("--seeds", nargs="*", type=int, help="default: those of the tables")
    parser.add_argument(
        "--only", nargs="*", type=name_and_value, default=[], metavar="NAME=VALUE", help="runs with these arguments only"
    )
    parser.add_argument("--jobs", type=int, default=2, help="number of processes on this machine")
    parser.add_argument("--ray", action="store_true", help="run on a Ray cluster")
    parser.add_argument("--smoke", type=Path, metavar="FOLDER", help="very short runs, one of each kind, rows in this folder")
    return parser.parse_args()


def name_and_value(text: str) -> tuple[str, str]:
    """
    :param text: ``"name=value"``
    :raises ValueError: if it is not
    """
    name, value = text.split("=", 1)
    return name, value


def one_of_each_kind(runs: list[Run]) -> list[Run]:
    """
    :param runs: arguments of runs; among them ``seed``
    :return: the runs of the first seed, with one value only of the real numbers that are varied
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
    :param function: one run, see :func:`sweep`
    :param runs: its arguments; among them ``seed``
    :param name: of the file of rows, without ending
    :param arguments: from :func:`parse_parts`
    :param short: arguments that make a run short enough to see whether it works
    :return: the rows
    :raises ValueError: if ``--only`` leaves no run
    """
    folder = arguments.smoke or RESULTS
    runs = [run for run in runs if all(str(run.get(argument)) == value for argument, value in arguments.only)]
    if not runs:
        raise ValueError(f"`--only` must leave some runs of {name}, got {arguments.only}")
    if arguments.smoke:
        runs = [{**run, **short} for run in one_of_each_kind(runs)]
    return sweep(function, runs, folder / f"{name}.jsonl", arguments.jobs, arguments.ray)
