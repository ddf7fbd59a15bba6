"""
Which groups to merge and which to split: pure functions of Kullback-Leibler divergences; no network is touched.

Notation: ``C`` cells, ``K`` heads, of which some belong to active groups; a group is a set of cells.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch as th

# A contradiction must be this many standard errors away from none
MIN_STANDARD_ERRORS = 3.0
# Each half of the data must put cells with this share of the steps into the same halves of the group
MIN_AGREEMENT = 0.95


# What the overhead of one more matrix product is worth, in multiplications
OVERHEAD = 2**20


class Divergences(NamedTuple):
    """How policies differ on the measured steps, in nats, on the CPU; NaN where nothing was measured."""

    between: th.Tensor  # of groups, the larger direction, symmetric, shape (K, K)
    within: th.Tensor  # of each group's cells from what suits all of them, shape (K,)
    within_error: th.Tensor  # its standard error, shape (K,)
    cells: th.Tensor  # KL(c || d) on the steps of cell c, within groups to be divided, shape (C, C); diagonal NaN or 0
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


def sum_products_by(left: th.Tensor, right: th.Tensor, member: th.Tensor, n: int) -> th.Tensor:
    """
    Add up the outer products of the steps of each group or cell.

    The same numbers on every device and in every run, which ``index_add_`` does not promise on GPUs: steps of the same
    member are put side by side, and each chunk of them is one matrix product. Costs grow with ``B``, not with ``B * n``.

    :param left: shape ``(B, l)``
    :param right: shape ``(B, r)``
    :param member: group or cell of each step, shape ``(B,)``
    :param n: number of groups or cells
    :return: shape ``(n, l, r)``
    """
    sums = left.new_zeros(n, left.shape[1], right.shape[1])
    # in a longer chunk there are more members, and each of them meets the steps of all others
    length = math.isqrt(OVERHEAD * len(member) // max(1, min(n, len(member)) * sums[0].numel()))
    for chunk in member.argsort(stable=True).split(max(32, length)):
        names, rank = member[chunk].unique_consecutive(return_inverse=True)
        belongs = rank == th.arange(len(names), device=rank.device).unsqueeze(1)
        own_left = (belongs.unsqueeze(1) * left[chunk].T).flatten(0, 1)
        sums[names] += (own_left @ right[chunk]).view(len(names), *sums.shape[1:])
    return sums


def sum_by(values: th.Tensor, member: th.Tensor, n: int) -> th.Tensor:
    """
    Add up the values of the steps of each group or cell.

    :param values: shape ``(B, ...)``
    :param member: group or cell of each step, shape ``(B,)``
    :param n: number of groups or cells
    :return: shape ``(n, ...)``
    """
    ones = values.new_ones(len(values), 1)
    return sum_products_by(ones, values.reshape(len(values), -1), member, n).view(n, *values.shape[1:])


def is_contradiction(within: th.Tensor, within_error: th.Tensor, split_kl: float | None) -> th.Tensor:
    """
    Say which groups contradict themselves: above the threshold, and certainly above 0.

    :param within: contradiction of each group, nats, shape ``(K,)``
    :param within_error: its standard error
    :param split_kl: nats; ``None``: no group does
    :return: shape ``(K,)``, boolean; what is NaN is no contradiction
    """
    if split_kl is None:
        return th.zeros_like(within, dtype=th.bool)
    return (within > split_kl) & (within > MIN_STANDARD_ERRORS * within_error)


def plan_regrouping(
    divergences: Divergences,
    cell_to_group: th.Tensor,
    mature: th.Tensor,
    merge_kl: float | None,
    split_kl: float | None,
) -> list[Merge | Split]:
    """
    Split what contradicts itself, merge what is alike: ``KL(within i) > split_kl``, ``KL(i || j) < merge_kl``
    in both directions. No group takes part in more than one event: measure again after these. Of groups and cells without
    steps nothing is known: they stay as they are.

    :param divergences: from the last measurement
    :param cell_to_group: group of each cell, shape ``(C,)``
    :param mature: groups that are old enough to be merged, shape ``(K,)``: young ones are alike because they have not
        had the time to differ
    :param merge_kl: nats; ``None``: no merging
    :param split_kl: nats; ``None``: no splitting
    :return: the events, splits first
    """
    cell_to_group, mature = cell_to_group.to(divergences.cell_steps.device), mature.to(divergences.cell_steps.device)
    steps = sum_by(divergences.cell_steps, cell_to_group, len(mature))
    active = cell_to_group.bincount(minlength=len(mature)) > 0
    free = (~active).nonzero().flatten().tolist()
    changed: set[int] = set()
    events: list[Merge | Split] = []
    contradicting = active & is_contradiction(divergences.within, divergences.within_error, split_kl)
    strongest = divergences.within.where(contradicting, -th.inf).argsort(descending=True, stable=True)
    for group in strongest[: int(contradicting.sum())].tolist():
        if free and (moving := _cells_to_move(divergences, cell_to_group == group)):
            events.append(Split(group, free.pop(0), moving, divergences.within[group].item()))
            changed.add(group)
    if merge_kl is not None:
        old_enough = active & mature & (steps > 0)
        # NaN compares as false
        alike = (divergences.between < merge_kl) & old_enough & old_enough.unsqueeze(1)
        pairs = alike.triu(diagonal=1).nonzero()
        kls = divergences.between[pairs[:, 0], pairs[:, 1]]
        for kl, (keep, gone) in sorted(zip(kls.tolist(), pairs.tolist(), strict=True)):
            if not {keep, gone} & changed:
                events.append(Merge(keep, gone, (steps[keep] / (steps[keep] + steps[gone])).item(), kl))
                changed |= {keep, gone}
    return events


def _cells_to_move(divergences: Divergences, members: th.Tensor) -> list[int]:
    """
    :param members: whether each cell belongs to the group that contradicts itself, shape ``(C,)``
    :return: the cells that are to leave it; none as long as it is not certain how to divide the cells
    """
    steps, known = divergences.cell_steps, ~divergences.cells.diagonal().isnan()
    cells = (members & known & (steps > 0)).nonzero().flatten().tolist()
    if len(cells) < 2:
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
    to_centre = distance.T.contiguous()
    costs = kl.new_full((len(cells), len(cells)), th.inf)
    for a in range(len(cells) - 1):
        costs[a, a + 1 :] = th.minimum(to_centre[a], to_centre[a + 1 :]).sum(dim=1)
    a, b = divmod(int(costs.argmin()), len(cells))
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
