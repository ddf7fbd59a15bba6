"""Read the groups of a model: the only place in which the benchmarks access them."""

from typing import Any

from sb3_grpo import GRPO


def groups_of(model: GRPO) -> list[int]:
    """
    Return the group of each cell, shape ``(n_cells,)``.

    :param model: model whose groups are wanted
    """
    return model.policy.grouping.cell_to_group.tolist()


def n_groups(model: GRPO) -> int:
    """
    Return the number of groups in use.

    :param model: model whose groups are counted
    """
    return len(set(groups_of(model)))


def weights_of(model: GRPO) -> list[float]:
    """
    Return the weight of the group of each cell in the last update, shape ``(n_cells,)``.

    :param model: model whose groups are weighed
    """
    by_cell = {cell: record.weight for record in model.groups for cell in record.cells}
    return [round(by_cell[cell], 4) for cell in sorted(by_cell)]


def events_of(model: Any) -> list[list[Any]]:
    """
    Return the merges and splits as JSON values ``[timestep, kind, *groups, kl]``, oldest first.

    :param model: a ``GRPO`` model
    """
    return [[event.timestep, event.kind, *event.groups, event.kl] for event in model.regroup_history]


def groupings_of(model: Any) -> list[list[int]]:
    """
    Return the group of each cell after each of :func:`events_of`, shape ``(n_events, n_cells)``.

    :param model: a ``GRPO`` model
    """
    return [event.cell_to_group for event in model.regroup_history]
