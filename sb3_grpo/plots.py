"""Draw the groups: KL divergences between them, and the group of each cell over time."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch as th

from sb3_grpo.regroup_plan import RegroupEvent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

# Above these numbers not every row has a label, the heat map shows no values, and events have no lines
MAX_LABELLED_ROWS, MAX_NUMBERED_GROUPS, MAX_LINES = 20, 12, 30
# Panels side by side in the picture of the tasks
MAX_COLUMNS = 4
# Number of columns of the timeline
N_MOMENTS = 1000
# The timeline is extended by this share of its length, so that the groups after an event at its end are visible
AFTER_NOW = 0.04


class EvaluationMoment(NamedTuple):
    """What an evaluation during training has found."""

    timestep: int  #: number of environment steps so far
    returns: Mapping[str, float]  #: mean return of each task, by its label
    weights: Mapping[str, float]  #: of the group of each task or objective, by its name, or of each group by its number


def new_figure(width: float, height: float) -> "Figure":
    """
    Make an empty figure without a window.

    :param width: inches
    :param height: inches
    :raises ImportError: if matplotlib is not installed
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 (matplotlib is an optional dependency)
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "sb3-grpo[extra]"') from error
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def timeline_height(n_cells: int) -> float:
    """
    Return a height of the timeline at which its labels are legible.

    :param n_cells: number of rows
    :return: inches, 3 to 6
    """
    return min(max(3.0, 1.4 + 0.2 * n_cells), 6.0)


def draw_kl(axes: "Axes", between: th.Tensor, groups: Sequence[int], labels: Sequence[str] = ()) -> None:
    """
    Draw a heat map of the KL divergences between groups.

    :param axes: where to draw
    :param between: nats, shape ``(K, K)``; NaN where nothing was measured. Negative estimates, which noise can cause, are
        shown as 0
    :param groups: the groups to show
    :param labels: of these groups; empty: their numbers
    """
    values = between[list(groups)][:, list(groups)].cpu().numpy().clip(min=0)
    # the KL of a group from itself is 0 by definition
    np.fill_diagonal(values, 0)
    largest = values[np.isfinite(values)].max()
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=max(largest, 1e-6))
    if len(groups) <= MAX_NUMBERED_GROUPS:
        for (row, column), value in np.ndenumerate(values):
            color = "white" if value > largest / 2 else "black"
            axes.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=9, color=color)
    axes.set(xlabel="group", ylabel="group", title="KL between groups (nats)")
    shown = _labelled_rows(len(groups), MAX_NUMBERED_GROUPS)
    names = [labels[index] if labels else str(groups[index]) for index in shown]
    axes.set_xticks(shown, names, rotation=30 if labels else 0)
    axes.set_yticks(shown, names)
    assert axes.figure is not None
    axes.figure.colorbar(image, ax=axes)


def draw_timeline(
    axes: "Axes", start: Sequence[int], history: Sequence[RegroupEvent], now: int, cell_names: Sequence[str] = ()
) -> None:
    """
    Draw the group of each cell over time: one row per cell, one colour per group.

    :param axes: where to draw
    :param start: group of each cell before the first event
    :param history: the events, in order
    :param now: number of environment steps so far; the time axis ends a little later
    :param cell_names: of the cells; empty: their numbers
    """
    n_cells, times = len(start), [event.timestep for event in history]
    end = max(now, 1, *times) * (1 + AFTER_NOW)
    groupings = np.array([start, *(event.cell_to_group for event in history)])
    # one column per moment instead of one patch per event, so that the time to draw does not grow with the events
    moments = (np.arange(N_MOMENTS) + 0.5) * end / N_MOMENTS
    groups = groupings[np.searchsorted(times, moments, side="right")].T
    n_colors = int(groupings.max()) + 1
    extent = (0, end, n_cells - 0.5, -0.5)
    style: dict[str, Any] = dict(cmap=_group_colors(n_colors), vmin=-0.5, vmax=n_colors - 0.5, interpolation="nearest")
    axes.imshow(groups, aspect="auto", extent=extent, **style)
    if len(history) <= MAX_LINES:
        for event in history:
            axes.axvline(event.timestep, color="black", linewidth=1, linestyle="-" if event.kind == "split" else ":")
    axes.set(
        xlabel="environment steps",
        ylabel="" if cell_names else "cell",
        title="group of each cell (solid line: split, dotted: merge)",
    )
    shown = _labelled_rows(n_cells, MAX_LABELLED_ROWS)
    axes.set_yticks(shown, [cell_names[cell] if cell_names else str(cell) for cell in shown])
    if n_cells <= MAX_LABELLED_ROWS:
        axes.hlines(np.arange(1, n_cells) - 0.5, 0, end, colors="white", linewidth=1)
    right = axes.secondary_yaxis("right")
    right.set_yticks(shown, [str(groupings[-1][cell]) for cell in shown])
    right.set_ylabel("group now")


def draw_tasks(moments: Sequence[EvaluationMoment]) -> "Figure":
    """
    Draw the return of each task over time, each in axes of its own, since units differ; and the weights of the groups.

    :param moments: of one training, in order
    """
    labels = list(dict.fromkeys(label for moment in moments for label in moment.returns))
    groups = list(dict.fromkeys(label for moment in moments for label in moment.weights))
    n_panels = len(labels) + bool(groups)
    n_columns = min(n_panels, MAX_COLUMNS)
    n_rows = math.ceil(n_panels / n_columns)
    figure = new_figure(3.6 * n_columns, 2.6 * n_rows)
    panels = list(figure.subplots(n_rows, n_columns, squeeze=False, sharex=True).flat)
    steps = [moment.timestep for moment in moments]
    for label, axes in zip(labels, panels, strict=False):
        axes.plot(steps, [moment.returns.get(label, math.nan) for moment in moments], marker=".")
        axes.set(title=label, ylabel="mean return")
    for group in groups:
        panels[len(labels)].plot(steps, [moment.weights.get(group, math.nan) for moment in moments], marker=".", label=group)
    if groups:
        panels[len(labels)].set(title="weights of the groups", ylabel="weight (1: PPO)")
        panels[len(labels)].legend(fontsize="small")
    for axes in panels[n_panels:]:
        axes.set_visible(False)
    for axes in panels[max(0, n_panels - n_columns) : n_panels]:
        axes.set_xlabel("environment steps")
        axes.tick_params(labelbottom=True)
    return figure


def _labelled_rows(n: int, max_rows: int) -> list[int]:
    """Return at most ``max_rows`` of ``n`` rows, evenly spaced by a round number."""
    spacing = next(step for step in (1, 2, 5, 10, 20, 50, 100, n) if n <= max_rows * step)
    return list(range(0, n, spacing))


def _group_colors(n: int) -> "ListedColormap":
    """
    Return distinct colours for groups ``0`` to ``n - 1``.

    The colours of the first ten groups do not depend on ``n``.
    """
    from matplotlib import colormaps  # noqa: PLC0415 (matplotlib is an optional dependency)
    from matplotlib.colors import ListedColormap  # noqa: PLC0415 (matplotlib is an optional dependency)

    colors: list[Any] = [colormaps["tab10"](index) for index in range(min(n, 10))]
    # multiples of the golden ratio modulo 1 are spread evenly for every n
    colors += [colormaps["turbo"](index * 0.618034 % 1) for index in range(n - 10)]
    return ListedColormap(colors)
