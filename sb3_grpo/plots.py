"""Pictures of the groups: how different they are, and which cell belonged to which group when."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th

from sb3_grpo.regroup_plan import RegroupEvent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

# With more rows not every one has a label, with more groups the heat map has no numbers, with more events there are no lines
MAX_LABELLED_ROWS, MAX_NUMBERED_GROUPS, MAX_LINES = 20, 12, 30
# Columns of the timeline
N_MOMENTS = 1000
# The timeline goes on for this share of its length, so that an event that has just happened can be seen
AFTER_NOW = 0.04


def new_figure(width: float, height: float) -> "Figure":
    """
    Make an empty figure that belongs to no window.

    :param width: inches
    :param height: inches
    :raises ImportError: if matplotlib is not installed
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 (training needs no pictures)
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "sb3-grpo[extra]"') from error
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def timeline_height(n_cells: int) -> float:
    """
    :param n_cells: rows of the timeline
    :return: inches in which its labels can be read
    """
    return min(max(3.0, 1.4 + 0.2 * n_cells), 6.0)


def draw_kl(axes: "Axes", between: th.Tensor, groups: Sequence[int]) -> None:
    """
    Draw a heat map of the KL divergences between groups.

    :param axes: where to draw
    :param between: nats, shape ``(K, K)``; NaN where nothing could be measured. Estimates below 0, where noise is larger
        than the divergence, are shown as 0
    :param groups: the groups to show
    """
    values = between[list(groups)][:, list(groups)].cpu().numpy().clip(min=0)
    # a group does not differ from itself, whatever the estimate says
    np.fill_diagonal(values, 0)
    largest = values[np.isfinite(values)].max()
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=max(largest, 1e-6))
    if len(groups) <= MAX_NUMBERED_GROUPS:
        for (row, column), value in np.ndenumerate(values):
            color = "white" if value > largest / 2 else "black"
            axes.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=9, color=color)
    axes.set(xlabel="group", ylabel="group", title="KL between groups (nats)")
    shown = _some_rows(len(groups), MAX_NUMBERED_GROUPS)
    names = [str(groups[index]) for index in shown]
    axes.set_xticks(shown, names)
    axes.set_yticks(shown, names)
    assert axes.figure is not None
    axes.figure.colorbar(image, ax=axes)


def draw_timeline(axes: "Axes", start: Sequence[int], history: Sequence[RegroupEvent], now: int) -> None:
    """
    Draw which cell belonged to which group: a row per cell, a colour per group.

    :param axes: where to draw
    :param start: group of each cell before the first event
    :param history: the events, in order
    :param now: environment steps so far; the picture ends a little later
    """
    n_cells, times = len(start), [event.timestep for event in history]
    end = max(now, 1, *times) * (1 + AFTER_NOW)
    groupings = np.array([start, *(event.cell_to_group for event in history)])
    # the grouping at each of many moments: as quick for a thousand events as for one
    moments = (np.arange(N_MOMENTS) + 0.5) * end / N_MOMENTS
    groups = groupings[np.searchsorted(times, moments, side="right")].T
    n_colors = int(groupings.max()) + 1
    extent = (0, end, n_cells - 0.5, -0.5)
    look: dict[str, Any] = dict(cmap=_group_colors(n_colors), vmin=-0.5, vmax=n_colors - 0.5, interpolation="nearest")
    axes.imshow(groups, aspect="auto", extent=extent, **look)
    if len(history) <= MAX_LINES:
        for event in history:
            axes.axvline(event.timestep, color="black", linewidth=1, linestyle="-" if event.kind == "split" else ":")
    axes.set(xlabel="environment steps", ylabel="cell", title="group of each cell (solid line: split, dotted: merge)")
    shown = _some_rows(n_cells, MAX_LABELLED_ROWS)
    axes.set_yticks(shown, [str(cell) for cell in shown])
    if n_cells <= MAX_LABELLED_ROWS:
        axes.hlines(np.arange(1, n_cells) - 0.5, 0, end, colors="white", linewidth=1)
    right = axes.secondary_yaxis("right")
    right.set_yticks(shown, [str(groupings[-1][cell]) for cell in shown])
    right.set_ylabel("group now")


def _some_rows(n: int, most: int) -> list[int]:
    """
    :return: evenly spaced ones of ``n`` rows, at most ``most``, a round number apart
    """
    apart = next(step for step in (1, 2, 5, 10, 20, 50, 100, n) if n <= most * step)
    return list(range(0, n, apart))


def _group_colors(n: int) -> "ListedColormap":
    """
    :return: colours of groups ``0`` to ``n - 1``, as different as so many can be; those of the first ten are always the same
    """
    from matplotlib import colormaps  # noqa: PLC0415 (as above)
    from matplotlib.colors import ListedColormap  # noqa: PLC0415 (as above)

    colors: list[Any] = [colormaps["tab10"](index) for index in range(min(n, 10))]
    # steps of the golden section fall between those that were there before
    colors += [colormaps["turbo"](index * 0.618034 % 1) for index in range(n - 10)]
    return ListedColormap(colors)
