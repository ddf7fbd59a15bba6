"""Read and filter result rows, ``{"run": arguments, "result": measurements, ...}``, one per run."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"

Run = dict[str, Any]
Row = dict[str, Any]

REDUCTIONS: dict[str, Callable[..., Any]] = {"worst task": np.min, "mean of the tasks": np.mean}


def read_rows(path: Path) -> list[Row]:
    """
    Return the rows of a file, in the order in which the runs ended.

    :param path: JSON lines; a file that does not exist has no rows
    """
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def rows_by_seed(folder: Path, name: str) -> list[Row]:
    """
    Return the rows of a file sorted by seed, so that paired comparisons meet the same seeds in the same order.

    :param folder: folder of the file
    :param name: name of the file without its ending
    """
    return sorted(read_rows(folder / f"{name}.jsonl"), key=lambda row: row["run"]["seed"])


def select(rows: Iterable[Row], **arguments: Any) -> list[Row]:
    """
    Return the rows whose runs had all of these arguments.

    :param rows: rows of a sweep
    :param arguments: names and values
    """
    return [row for row in rows if arguments.items() <= row["run"].items()]


def results(rows: Iterable[Row], **arguments: Any) -> list[dict[str, Any]]:
    """
    Return the measurements of the rows whose runs had all of these arguments.

    :param rows: rows of a sweep
    :param arguments: names and values
    """
    return [row["result"] for row in select(rows, **arguments)]


def group_rows(rows: Iterable[Row], argument: str, values: Iterable[Any]) -> dict[Any, list[Row]]:
    """
    Return the rows by the value of one argument; values without a row are left out.

    :param rows: rows of a sweep
    :param argument: name of the argument
    :param values: its values in the order that is wanted
    """
    rows = list(rows)
    found = {value: select(rows, **{argument: value}) for value in values}
    return {value: own for value, own in found.items() if own}


def by_method(rows: Iterable[Row], methods: Iterable[str]) -> dict[str, list[Row]]:
    """
    Return the rows by method; methods without a row are left out.

    :param rows: rows of a sweep
    :param methods: names of the methods in the order that is wanted
    """
    return group_rows(rows, "method", methods)


def curves(rows: Iterable[Row], reduce: Callable[..., Any]) -> np.ndarray:
    """
    Return the worst or mean return over the tasks, shape ``(n_runs, n_evaluations)``.

    :param rows: rows whose ``returns`` have shape ``(n_evaluations, n_tasks)``
    :param reduce: ``np.min`` or ``np.mean``
    """
    return reduce(np.array([row["result"]["returns"] for row in rows]), axis=2)


def has_split(result: dict[str, Any]) -> bool:
    """
    Return whether a group was split during the run.

    :param result: measurements with ``events`` from :func:`benchmarks.lib.groups.events_of`; PPO's have none
    """
    return any(event[1] == "split" for event in result.get("events", []))


def n_groups(result: dict[str, Any]) -> int:
    """
    Return the number of groups after training.

    :param result: measurements of one run
    """
    return len(set(result["cell_to_group"]))
