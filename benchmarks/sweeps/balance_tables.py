"""Make the tables and pictures of ``balance.py`` from its rows."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from rich.table import Table

from benchmarks.lib.measures import describe, describe_steps, iqm, iqm_interval
from benchmarks.lib.plots import save
from benchmarks.lib.rows import Row, by_method, curves, select
from benchmarks.lib.tasks import is_lander
from benchmarks.sweeps.balance_methods import LAMBDAS, LEVERS, METHODS

SOLVED = 400


def steps_to_solve(rows: list[Row]) -> list[float]:
    """
    Return, for each run, the steps of the first evaluation in which every task reached :data:`SOLVED`; infinite without one.

    :param rows: rows of one method
    """
    steps = [np.append(row["result"]["steps"], np.inf) for row in rows]
    solved = [np.append(worst >= SOLVED, True) for worst in curves(rows, np.min)]
    return [float(given[when.argmax()]) for given, when in zip(steps, solved, strict=True)]


def largest_drop(rows: list[Row]) -> float:
    """
    Return the largest difference, over tasks and runs, between the return half way through training and after it.

    :param rows: rows of one method
    """
    returns = np.array([row["result"]["returns"] for row in rows])
    return float((returns[:, returns.shape[1] // 2 - 1] - returns[:, -1]).max())


def results_table(rows: list[Row], title: str = "") -> Table:
    """
    Return the table of one setting: worst task, mean of the tasks, and drops, by method.

    :param rows: rows of one setting
    :param title: title of the table
    """
    columns = (
        "method",
        "seeds",
        "worst, half way",
        "worst, end",
        "mean, end",
        "worst over training",
        f"all above {SOLVED}",
        "largest drop",
    )
    table = Table(*columns, title=title)
    for method, own in by_method(rows, METHODS).items():
        worst, mean = curves(own, np.min), curves(own, np.mean)
        half_way = worst.shape[1] // 2 - 1
        values = map(describe, (worst[:, half_way], worst[:, -1], mean[:, -1], worst.mean(axis=1)))
        solved = "" if is_lander(own[0]["run"]["setting"]) else describe_steps(steps_to_solve(own))
        table.add_row(method, str(len(own)), *values, solved, f"{largest_drop(own):.0f}")
    return table


def ablation_values(rows: list[Row], setting: str) -> dict[str, dict[float, np.ndarray]]:
    """
    Return the worst task's return, mean over training, of each run, by lever and lambda; empty where there is no run.

    :param rows: rows of the ablation
    :param setting: ``"drawn"`` or ``"rare"``
    """
    found = by_method(select(rows, setting=setting), LEVERS)

    def values(lever: str, coef: float) -> np.ndarray:
        own = select(found.get(lever, []), group_coef=coef)
        return curves(own, np.min).mean(axis=1) if own else np.array([])

    # with lambda 0 all levers on the model are equal, and so are those on the data
    return {
        lever: {0.0: values("data" if LEVERS[lever][2] else "loss", 0.0), **{coef: values(lever, coef) for coef in LAMBDAS}}
        for lever in found
    }


def ablation_table(rows: list[Row], setting: str) -> Table:
    """
    Return the table of one setting: the worst task over training, by lever and lambda.

    :param rows: rows of the ablation
    :param setting: ``"drawn"`` or ``"rare"``
    """
    table = Table("lever", *(f"lambda {coef}" for coef in (0, *LAMBDAS)), title=f"{setting}: worst task over training")
    for lever, runs in ablation_values(rows, setting).items():
        table.add_row(lever, *(describe(values) if len(values) else "" for values in runs.values()))
    return table


def plot_ablation(rows: list[Row], path: Path) -> None:
    """
    Draw the worst task's return, mean over training, by lever and lambda.

    :param rows: rows of the ablation
    :param path: PNG file
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    for axis, setting in zip(axes, ("drawn", "rare"), strict=True):
        for offset, (lever, runs) in enumerate(ablation_values(rows, setting).items()):
            places, values = zip(*((place, x) for place, x in enumerate(runs.values()) if len(x)), strict=True)
            middle, (low, high) = np.array([iqm(x) for x in values]), np.array([iqm_interval(x) for x in values]).T
            axis.errorbar(
                np.array(places) + 0.08 * (offset - 2),
                middle,
                (middle - low, high - middle),
                label=lever,
                marker="o",
                ms=3,
                capsize=2,
            )
        axis.set(title=f"{setting}: worst task, mean over training", xlabel="lambda")
        axis.set_xticks(range(1 + len(LAMBDAS)), [str(coef) for coef in (0, *LAMBDAS)])
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    save(figure, path, dpi=110)
