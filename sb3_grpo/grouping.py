"""
Which groups to merge and which to split: pure functions of Kullback-Leibler divergences; no network is touched.

Notation: ``C`` cells, ``K`` heads, of which some belong to active groups; a group is a set of cells.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch as th

# A contradiction must be this many standard errors away from none
MIN_STANDARD_ERRORS = 3.0
# Each half of the data must put cells with this share of the steps into the same halves of the group
MIN_AGREEMENT = 0.95


class Divergences(NamedTuple):
    """How policies differ on the measured steps, in nats; NaN where there are no steps to measure on."""

    between: th.Tensor  # of groups, the larger direction, symmetric, shape (K, K)
    within: th.Tensor  # of each group's cells from what suits all of them, shape (K,)
    within_error: th.Tensor  # its standard error, shape (K,)
    cells: th.Tensor  # KL(c || d) on the steps of cell c, shape (C, C); on the diagonal NaN or 0
    cells_by_half: th.Tensor  # the same from each half of the data, shape (2, C, C)
    cell_steps: th.Tensor  # shape (C,)


class Merge(NamedTuple):
    """Two groups become one."""

    keep: int
    gone: int
    share: float  # of `keep` in the steps of both
    kl: float  # between them


class Split(NamedTuple):
    """Some cells of a group get a head of their own."""

    group: int
    new_group: int
    cells: list[int]  # that move to the new group
    kl: float  # within the group


class RegroupEvent(NamedTuple):
    """A merge or split that has happened, as ``model.regroup_history`` keeps it."""

    timestep: int
    kind: str  # "merge" or "split"
    groups: tuple[int, int]  # merge: the one that stays, the one that ends; split: the old one, the new one
    kl: float  # nats
    cell_to_group: list[int]  # afterwards

    @classmethod
    def from_json(cls, event: Sequence[Any]) -> "RegroupEvent":
        """
        :param event: the fields in order, as a saved model has them
        """
        timestep, kind, (first, second), kl, cells = event
        return cls(int(timestep), str(kind), (int(first), int(second)), float(kl), [int(group) for group in cells])


def sum_by(values: th.Tensor, member: th.Tensor, n: int) -> th.Tensor:
    """
    :param values: shape ``(B, ...)``
    :param member: group or cell of each step, shape ``(B,)``
    :param n: number of groups or cells
    :return: sums over the steps of each, shape ``(n, ...)``
    """
    return values.new_zeros(n, *values.shape[1:]).index_add_(0, member, values)


def plan_regrouping(
    divergences: Divergences,
    cell_to_group: th.Tensor,
    mature: th.Tensor,
    merge_kl: float | None,
    split_kl: float | None,
) -> list[Merge | Split]:
    """
    Split what contradicts itself, merge what is alike: ``KL(within i) > split_kl``, ``KL(i || j) < merge_kl``
    in both directions. No group takes part in more than one event: measure again after these.

    :param divergences: from the last measurement
    :param cell_to_group: group of each cell, shape ``(C,)``
    :param mature: groups that are old enough to be merged, shape ``(K,)``: young ones are alike because they have not
        had the time to differ
    :param merge_kl: nats; ``None``: no merging
    :param split_kl: nats; ``None``: no splitting
    :return: the events, splits first
    """
    active = set(cell_to_group.tolist())
    free = [group for group in range(len(mature)) if group not in active]
    events: list[Merge | Split] = []
    if split_kl is not None:
        # NaN compares as false: what has not been seen stays as it is
        contradicting = [group for group in active if divergences.within[group] > split_kl]
        for group in sorted(contradicting, key=lambda group: -divergences.within[group].item()):
            moving = _cells_to_move(divergences, cell_to_group == group, group)
            if moving and free:
                events.append(Split(group, free.pop(0), moving, divergences.within[group].item()))
    if merge_kl is not None:
        changed = {event.group for event in events if isinstance(event, Split)}
        steps = sum_by(divergences.cell_steps, cell_to_group, len(mature))
        pairs = itertools.combinations([group for group in sorted(active) if mature[group]], 2)
        alike = [(kl, i, j) for i, j in pairs if (kl := divergences.between[i, j].item()) < merge_kl]
        for kl, keep, gone in sorted(alike):
            if not {keep, gone} & changed:
                events.append(Merge(keep, gone, (steps[keep] / (steps[keep] + steps[gone])).item(), kl))
                changed |= {keep, gone}
    return events


def _cells_to_move(divergences: Divergences, members: th.Tensor, group: int) -> list[int]:
    """
    :param members: whether each cell belongs to the group, shape ``(C,)``
    :return: the cells that are to leave a group that contradicts itself; none as long as that, or how to divide
        the cells, is not certain
    """
    steps, known = divergences.cell_steps, ~divergences.cells.diagonal().isnan()
    cells = (members & known & (steps > 0)).nonzero().flatten().tolist()
    certain = divergences.within[group] > MIN_STANDARD_ERRORS * divergences.within_error[group]
    if len(cells) < 2 or not certain:
        return []
    moving = bipartition(cells, divergences.cells, steps)
    stable = all(agreement(cells, moving, kl, steps) >= MIN_AGREEMENT for kl in divergences.cells_by_half)
    return moving if stable else []


def bipartition(cells: list[int], kl: th.Tensor, steps: th.Tensor) -> list[int]:
    """
    Divide cells in two by what they want: those two cells are the centres (medoids) for which the mean over
    steps of ``KL(cell || nearer centre)`` is smallest.

    :param cells: at least two cells, all of them with steps
    :param kl: ``KL(c || d)`` on the steps of cell ``c``, shape ``(C, C)``
    :param steps: steps of each cell, shape ``(C,)``
    :return: the cells of the half that does not contain the first cell
    """
    distance = kl[cells][:, cells] * steps[cells].unsqueeze(1)
    pairs = list(itertools.combinations(range(len(cells)), 2))
    costs = th.stack([th.minimum(distance[:, a], distance[:, b]).sum() for a, b in pairs])
    a, b = pairs[int(costs.argmin())]
    in_b = distance[:, b] < distance[:, a]
    in_b[a], in_b[b] = False, True
    in_b = _settle(in_b, kl[cells][:, cells], steps[cells])
    return [cell for cell, moves in zip(cells, in_b.tolist(), strict=True) if moves != in_b[0]]


def _settle(in_b: th.Tensor, kl: th.Tensor, steps: th.Tensor) -> th.Tensor:
    """
    A single cell's probe is a noisy centre: let cells move to the half whose other cells are nearer on average.

    :param in_b: which of two halves each cell is in, shape ``(N,)``
    :param kl: shape ``(N, N)``
    :param steps: steps of each cell, shape ``(N,)``
    :return: the halves when nothing moves any more, shape ``(N,)``; none of them is empty
    """
    for _ in range(len(steps)):
        settled = _nearer_b(in_b, kl, steps)
        if settled.equal(in_b) or settled.all() or not settled.any():
            break
        in_b = settled
    return in_b


def _nearer_b(in_b: th.Tensor, kl: th.Tensor, steps: th.Tensor) -> th.Tensor:
    """
    :return: whether the other cells of half b are nearer on average than those of half a, shape ``(N,)``; as it is
        where a cell is alone in its half, or nothing is known
    """
    others = steps.expand(len(steps), -1) * (1 - th.eye(len(steps), device=steps.device)) * ~kl.isnan()
    to_a, to_b = ((kl.nan_to_num() * others * half).sum(dim=1) / (others * half).sum(dim=1) for half in (~in_b, in_b))
    return th.where(th.isnan(to_a) | th.isnan(to_b), in_b, to_b < to_a)


def agreement(cells: list[int], moving: list[int], kl: th.Tensor, steps: th.Tensor) -> float:
    """
    :param cells: all cells of a group
    :param moving: those that are to leave it
    :param kl: ``KL(c || d)`` from part of the data, shape ``(C, C)``
    :param steps: steps of each cell, shape ``(C,)``
    :return: share of the steps whose cell is, by these data too, nearer to the half in which it is; a cell of which
        these data say nothing does not agree
    """
    in_b = th.tensor([cell in moving for cell in cells], device=kl.device)
    same = _nearer_b(in_b, kl[cells][:, cells], steps[cells]) == in_b
    same &= ~kl.diagonal()[cells].isnan()
    return ((steps[cells] * same).sum() / steps[cells].sum()).item()


def apply_plan(events: list[Merge | Split], cell_to_group: th.Tensor) -> th.Tensor:
    """
    :param events: from :func:`plan_regrouping`
    :param cell_to_group: group of each cell, shape ``(C,)``
    :return: group of each cell afterwards, shape ``(C,)``
    """
    cell_to_group = cell_to_group.clone()
    for event in events:
        if isinstance(event, Merge):
            cell_to_group[cell_to_group == event.gone] = event.keep
        else:
            cell_to_group[event.cells] = event.new_group
    return cell_to_group
