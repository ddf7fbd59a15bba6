"""Draw curves and bands, and save pictures."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.lib.measures import iqm, iqm_interval
from benchmarks.lib.rows import REDUCTIONS, Row, by_method, curves


def draw_band(
    axis: Axes,
    x: Any,
    samples: Iterable[Iterable[float]],
    label: str,
    limits: Iterable[tuple[float, float]] | None = None,
    alpha: float = 0.2,
    **line: Any,
) -> None:
    """
    Draw the interquartile mean of one sample per place, with a band around it.

    :param axis: axis to draw on
    :param x: places, shape ``(n_places,)``
    :param samples: for each place one value per seed
    :param label: entry of the legend
    :param limits: ends of the band at each place; ``None``: the 95 % intervals
    :param alpha: opacity of the band
    :param line: properties of the line
    """
    samples = [list(sample) for sample in samples]
    drawn = axis.plot(x, [iqm(sample) for sample in samples], label=label, **line)[0]
    low, high = np.array(list(limits) if limits is not None else [iqm_interval(sample) for sample in samples]).T
    axis.fill_between(x, low, high, alpha=alpha, color=drawn.get_color())


def save(figure: Figure, path: Path, dpi: int) -> None:
    """
    Write a figure as PNG and close it.

    :param figure: figure to write
    :param path: PNG file
    :param dpi: pixels per inch
    """
    figure.savefig(path, dpi=dpi)
    plt.close(figure)


def plot_curves(rows: Sequence[Row], methods: Iterable[str], title: str, limits: tuple[float, float], path: Path) -> None:
    """
    Draw the worst task and the mean of the tasks over steps: interquartile mean and its 95 % interval.

    :param rows: rows of a sweep over methods
    :param methods: names in the order of the legend
    :param title: title of the vertical axes
    :param limits: limits of the vertical axes; single early runs can be far below
    :param path: PNG file
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), sharey=True, layout="constrained")
    for axis, (name, reduce) in zip(axes, REDUCTIONS.items(), strict=True):
        for method, own in by_method(rows, methods).items():
            steps = np.array(own[0]["result"]["steps"]) / 1000
            draw_band(axis, steps, curves(own, reduce).T, method, alpha=0.15)
        axis.set(title=name, xlabel="environment steps (thousands)", ylim=limits)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(title)
    axes[0].legend(fontsize=8)
    save(figure, path, dpi=110)
