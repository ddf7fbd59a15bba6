"""Targets: the returns that groups are to reach, and those that they are measured from."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sb3_grpo.rules import Rule, is_finite, is_range, or_none
from sb3_grpo.scores import SCORES

# A return to be reached, or a range of returns (low, high)
Target = float | Sequence[float]
Targets = Sequence[Target] | Mapping[str, Target]


def is_targets(value: Any) -> bool:
    """Return whether a value holds targets only, in an order or by name."""
    if isinstance(value, Mapping):
        return all(isinstance(name, str) for name in value) and is_targets(list(value.values()))
    values = value.tolist() if isinstance(value, np.ndarray) else value
    return isinstance(values, (list, tuple)) and all(is_finite(each) or is_range(each) for each in values)


TARGETS = or_none(
    Rule(
        "a sequence or a dict by name, of finite numbers or pairs (low, high) with low below high, one for each cell",
        is_targets,
    )
)


def check_targets(group_targets: Targets | None, group_score: Any) -> None:
    """
    Check that targets are not ignored.

    :param group_targets: targets of the cells, or ``None``
    :param group_score: what groups are compared by
    :raises ValueError: if there are targets for a score that has none
    """
    if group_targets is not None and group_score in SCORES and not SCORES[group_score].uses_targets:
        raise ValueError(f'`group_targets` needs `group_score="gap"`, got {group_targets!r} and {group_score!r}')


def target_ranges(group_targets: Targets | None, n_cells: int, names: Sequence[str] = ()) -> np.ndarray | None:
    """
    Return the argument ``group_targets`` as an array.

    :param group_targets: targets of the cells, or ``None``
    :param n_cells: number of cells
    :param names: of the cells; empty: they have none
    :return: low and high return of each cell, shape ``(n_cells, 2)``; low is NaN where only a target is given
    :raises ValueError: if there are more or fewer than cells, or the names are not those of the cells
    """
    if group_targets is None:
        return None
    if isinstance(group_targets, Mapping):
        if set(group_targets) != set(names):
            expected = f"one for each of {list(names)}" if names else "a sequence, since the cells have no names"
            raise ValueError(f"`group_targets` must be {expected}, got {group_targets!r}")
        group_targets = [group_targets[name] for name in names]
    if len(group_targets) != n_cells:
        raise ValueError(f"`group_targets` must have one target for each of the {n_cells} cells, got {group_targets!r}")
    return np.array([(np.nan, each) if is_finite(each) else each for each in group_targets], dtype=float).reshape(-1, 2)
