"""Make tables and pictures of the runs of ``benchmarks.sweeps.minigrid_tasks``."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from rich.table import Table

from benchmarks.lib.measures import describe
from benchmarks.lib.plots import draw_band, save
from benchmarks.lib.rows import REDUCTIONS, Row, by_method

SPARSE_TASK = 1  # of MT3: the one that is hardly ever solved at first
NEEDS_MEMORY = "MiniGrid-MemoryS11-v0"  # agents without memory can do no better than guess
GIVEN_UP = 0.1  # score below which a task is given up
# what moves the effort of methods, an entry of their results
LEVERS = {"GRPO": "weights", "GRPO, targets": "weights", "PPO, task sampling": "shares", "GRPO, task sampling": "shares"}


def short(name: str) -> str:
    """
    Return the name of a task as tables show it.

    :param name: registered name
    """
    return name.removeprefix("MiniGrid-").removesuffix("-v0")


def scores_of(rows: list[Row]) -> np.ndarray:
    """
    Return scores by run, evaluation and task.

    :param rows: rows of one method
    """
    return np.array([row["result"]["returns"] for row in rows])


def given_up(scores: np.ndarray) -> np.ndarray:
    """
    Return which tasks each run has given up: those that are not solved once in the second half of the evaluations.

    :param scores: by run, evaluation and task
    :return: by run and task
    """
    return (scores[:, scores.shape[1] // 2 :] == 0).all(axis=1)


def second_half(scores: np.ndarray) -> np.ndarray:
    """
    Return the mean score of each task over the second half of the evaluations, by run and task.

    An evaluation has few episodes, of which these are many.

    :param scores: by run, evaluation and task
    """
    return scores[:, scores.shape[1] // 2 :].mean(axis=1)


def scores_table(rows: list[Row], names: Sequence[str], methods: Iterable[str], title: str) -> Table:
    """
    Return the table of scores by method.

    :param rows: rows of a part
    :param names: registered names of the tasks
    :param methods: methods in the order of the table
    :param title: title of the table
    """
    reduced = (f"{name}, {when}" for name in REDUCTIONS for when in ("half way", "end", "second half"))
    solvable = [task for task, name in enumerate(names) if name != NEEDS_MEMORY]
    without = [f"worst but {short(NEEDS_MEMORY)}, second half"] if len(solvable) < len(names) else []
    columns = ("method", "seeds", *reduced, *without, "runs that give up a task", "minutes a run")
    table = Table(*columns, title=title)
    for method, own in by_method(rows, methods).items():
        returns = scores_of(own)
        scores = (returns[:, returns.shape[1] // 2 - 1], returns[:, -1], second_half(returns))
        values = [reduce(score, axis=1) for reduce in REDUCTIONS.values() for score in scores]
        values += [scores[-1][:, solvable].min(axis=1) for _ in without]
        cells = (describe(column, 2) for column in values)
        minutes = np.median([row["seconds"] for row in own]) / 60
        table.add_row(method, str(len(own)), *cells, str(given_up(returns).any(axis=1).sum()), f"{minutes:.0f}")
    return table


def tasks_table(rows: list[Row], names: Sequence[str], methods: Iterable[str]) -> Table:
    """
    Return the table of each task's score over the second half of training by method.

    :param rows: rows of a part
    :param names: registered names of the tasks
    :param methods: methods in the order of the table
    """
    table = Table("method", *map(short, names), title="each task, second half")
    for method, own in by_method(rows, methods).items():
        table.add_row(method, *(describe(scores, 2) for scores in second_half(scores_of(own)).T))
    return table


def sparse_table(rows: list[Row], methods: Iterable[str]) -> Table:
    """
    Return the table of how often each method gave up the sparse task, and of the scores after training.

    :param rows: rows of the part ``sparse``
    :param methods: methods in the order of the table
    """
    columns = ("given up", "sparse task, end", *(f"{name}, end" for name in REDUCTIONS))
    table = Table("method", "seeds", *columns, title="sparse")
    for method, own in by_method(rows, methods).items():
        end = np.array([row["result"]["returns"][-1] for row in own])  # by run and task
        n_given_up = int((end[:, SPARSE_TASK] < GIVEN_UP).sum())
        values = [end[:, SPARSE_TASK], *(reduce(end, axis=1) for reduce in REDUCTIONS.values())]
        table.add_row(method, str(len(own)), f"{n_given_up} of {len(own)}", *(describe(column, 2) for column in values))
    return table


def draw_tasks(rows: list[Row], names: Sequence[str], methods: Iterable[str], path: Path) -> None:
    """
    Draw the score of each task over steps, and beside it the weights of GRPO and the shares of task sampling.

    :param rows: rows of a suite
    :param names: registered names of the tasks
    :param methods: methods in the order of the legend
    :param path: PNG file
    """
    found = by_method(rows, methods)
    levers = {method: lever for method, lever in LEVERS.items() if method in found}
    n_columns = -(-(len(names) + len(levers)) // 2)
    figure, axes = plt.subplots(2, n_columns, figsize=(16, 6.4), layout="constrained", squeeze=False)
    panels: list[Axes] = axes.ravel().tolist()
    for task, name in enumerate(names):
        for method, own in found.items():
            draw_band(panels[task], steps_of(own), scores_of(own)[:, :, task].T, method, alpha=0.12)
        panels[task].set(title=short(name), ylim=(-0.05, 1.05))
    for panel, (method, lever) in zip(panels[len(names) :], levers.items(), strict=False):
        panel.set_title(f"{lever} in {method}")
        for task, name in enumerate(names):
            values = np.array([row["result"][lever] for row in found[method]])[:, :, task]
            draw_band(panel, steps_of(found[method]), values.T, short(name), alpha=0.12, linestyle="--")
        panel.legend(fontsize=6)
    for panel in panels[len(names) + len(levers) :]:
        panel.set_visible(False)
    panels[0].legend(fontsize=6)
    for panel in panels:
        panel.grid(alpha=0.3)
    for panel in axes[-1]:
        panel.set_xlabel("environment steps (thousands)")
    save(figure, path, dpi=100)


def steps_of(rows: list[Row]) -> np.ndarray:
    """
    Return the thousands of steps at each evaluation.

    :param rows: rows of one method
    """
    return np.array(rows[0]["result"]["steps"]) / 1000


def draw_groups(rows: list[Row], names: Sequence[str], methods: Iterable[str], path: Path) -> None:
    """
    Draw in how many runs each two tasks share a group at the end, for the methods whose groups merge and split.

    :param rows: rows of a suite
    :param names: registered names of the tasks
    :param methods: methods in the order of the pictures
    :param path: PNG file
    """
    found: dict[str, Any] = {}
    for method, own in by_method([row for row in rows if "cell_to_group" in row["result"]], methods).items():
        if method.startswith("GRPO"):
            groups = np.array([row["result"]["cell_to_group"] for row in own])
            found[method] = (groups[:, :, np.newaxis] == groups[:, np.newaxis]).sum(axis=0), len(own)
    figure, axes = plt.subplots(
        1, max(1, len(found)), figsize=(5 * max(1, len(found)), 4.6), layout="constrained", squeeze=False
    )
    for axis, (method, (together, n_runs)) in zip(axes[0], found.items(), strict=False):
        axis.imshow(together, vmin=0, vmax=n_runs, cmap="Blues")
        for place, count in np.ndenumerate(together):
            axis.text(
                place[1], place[0], str(count), ha="center", va="center", color="white" if count > n_runs / 2 else "black"
            )
        axis.set_xticks(range(len(names)), [short(name) for name in names], rotation=45, ha="right", fontsize=7)
        axis.set_yticks(range(len(names)), [short(name) for name in names], fontsize=7)
        axis.set_title(f"{method}: tasks in one group, of {n_runs} runs", fontsize=9)
    save(figure, path, dpi=100)
