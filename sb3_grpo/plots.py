"""Pictures of the groups: how different they are, and which cell belonged to which group when."""

from collections.abc import Sequence

import numpy as np
import torch as th
from matplotlib import colormaps
from matplotlib.axes import Axes

from sb3_grpo.grouping import RegroupEvent


def draw_kl(axes: Axes, between: th.Tensor, groups: Sequence[int]) -> None:
    """
    Heat map of the KL divergences between groups.

    :param axes: where to draw
    :param between: nats, shape ``(K, K)``; NaN where nothing could be measured
    :param groups: the groups to show
    """
    values = between[list(groups)][:, list(groups)].cpu().numpy()
    # a group does not differ from itself, whatever the estimate says
    np.fill_diagonal(values, 0)
    image = axes.imshow(values, cmap="Blues", vmin=0)
    for (row, column), value in np.ndenumerate(values):
        color = "white" if value > np.nanmax(values) / 2 else "black"
        axes.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=8, color=color)
    axes.set(xticks=range(len(groups)), yticks=range(len(groups)), xlabel="group", ylabel="group", title="KL (nats)")
    names = [str(group) for group in groups]
    axes.set_xticklabels(names)
    axes.set_yticklabels(names)
    assert axes.figure is not None
    axes.figure.colorbar(image, ax=axes)


def draw_timeline(axes: Axes, start: Sequence[int], history: Sequence[RegroupEvent], now: int) -> None:
    """
    Which cell belonged to which group: a row per cell, a colour per group.

    :param axes: where to draw
    :param start: group of each cell before the first event
    :param history: the events, in order
    :param now: where the picture ends, environment steps
    """
    groupings = [list(start), *(event.cell_to_group for event in history)]
    edges = [0, *(event.timestep for event in history), max([now, 1, *(event.timestep for event in history)])]
    for first, last, groups in zip(edges, edges[1:], groupings, strict=False):
        for cell, group in enumerate(groups):
            axes.barh(cell, last - first, left=first, height=0.9, color=colormaps["tab10"](group % 10))
    for event in history:
        axes.axvline(event.timestep, color="black", lw=0.6, ls="-" if event.kind == "split" else ":")
    axes.set(xlabel="environment steps", ylabel="cell", title="groups (solid: split, dotted: merge)", yticks=range(len(start)))
    axes.invert_yaxis()
