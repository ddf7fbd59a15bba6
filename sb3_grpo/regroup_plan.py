"""
Plan merges and splits from Kullback-Leibler divergences, as pure functions that touch no network.

Notation: ``C`` cells, ``K`` group IDs (``max_groups``), some of which are in use. A group is a set of cells.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch as th

# Minimum z-score of the within-group KL for a split
MIN_Z_SCORE = 3.0
# Number of standard errors, where they are known, by which the KL between groups must be below the threshold of a merge
MERGE_Z_SCORE = 2.0
# Minimum share of the steps whose cell each half of the data assigns to the same side of a split
MIN_AGREEMENT = 0.95
# Fixed cost of launching one matrix product, in multiplications; sets the chunk length of `sum_products_by`
MATMUL_OVERHEAD = 2**20


class Divergences(NamedTuple):
    """Measured KL divergences between and within groups, in nats, on the CPU; NaN where nothing was measured."""

    between: th.Tensor  # between groups, the larger direction, symmetric, shape (K, K)
    within: th.Tensor  # within each group: mean KL(probe of a cell || joint probe of the group), shape (K,)
    within_error: th.Tensor  # standard error of `within`, shape (K,)
    cells: th.Tensor  # KL(c || d) on the steps of cell c, measured within groups to be split, shape (C, C); diagonal NaN or 0
    cells_by_half: th.Tensor  # the same from each half of the data, shape (2, C, C)
    cell_counts: th.Tensor  # number of steps of each cell, decayed; 0 for cells below the minimum, shape (C,)
    between_error: th.Tensor | None = None  # standard error of `between`, shape (K, K); None: not known


class Merge(NamedTuple):
    """A merge of two groups: all cells of ``dropped`` move to ``keep``."""

    keep: int
    dropped: int
    share: float  # share of `keep` in the steps of both groups, 0 to 1
    kl: float  # KL between them, nats


class Split(NamedTuple):
    """A split of one group: some of its cells move to a new group, which gets a head of its own."""

    group: int
    new_group: int
    cells: list[int]  # cells that move to the new group
    kl: float  # KL within the group, nats


class RegroupEvent(NamedTuple):
    """A merge or split that was applied, as ``model.regroup_history`` records it."""

    timestep: int  #: steps of the training at the event
    kind: str  #: "merge" or "split"
    groups: tuple[int, int]  #: merge: kept and dropped group; split: old and new group
    kl: float  #: nats
    cell_to_group: list[int]  #: group of each cell after the event

    @classmethod
    def from_json(cls, event: Sequence[Any]) -> "RegroupEvent":
        """
        Return an event from the list of fields in a saved model.

        :param event: the five fields in order, as JSON stores a tuple
        """
        timestep, kind, (first, second), kl, cells = event
        return cls(int(timestep), str(kind), (int(first), int(second)), float(kl), [int(group) for group in cells])


def sum_products_by(left: th.Tensor, right: th.Tensor, member: th.Tensor, n: int) -> th.Tensor:
    """
    Sum the outer products of the steps of each group or cell.

    Steps are sorted by member, and each chunk of them is summed by one matrix product. The result is therefore
    deterministic on every device, unlike that of ``index_add_`` on GPUs. The cost grows with ``B``, not with ``B * n``.

    :param left: shape ``(B, l)``
    :param right: shape ``(B, r)``
    :param member: group or cell of each step, shape ``(B,)``, integers in ``[0, n)``
    :param n: number of groups or cells
    :return: shape ``(n, l, r)``
    """
    sums = left.new_zeros(n, left.shape[1], right.shape[1])
    # A longer chunk saves launches but holds more members, and the product computes every member with every step
    length = math.isqrt(MATMUL_OVERHEAD * len(member) // max(1, min(n, len(member)) * sums[0].numel()))
    for chunk in member.argsort(stable=True).split(max(32, length)):
        members, rank = member[chunk].unique_consecutive(return_inverse=True)
        belongs = rank == th.arange(len(members), device=rank.device).unsqueeze(1)
        own_left = (belongs.unsqueeze(1) * left[chunk].T).flatten(0, 1)
        sums[members] += (own_left @ right[chunk]).view(len(members), *sums.shape[1:])
    return sums


def sum_by(values: th.Tensor, member: th.Tensor, n: int) -> th.Tensor:
    """
    Sum the values of the steps of each group or cell.

    :param values: shape ``(B, ...)``
    :param member: group or cell of each step, shape ``(B,)``, integers in ``[0, n)``
    :param n: number of groups or cells
    :return: shape ``(n, ...)``
    """
    ones = values.new_ones(len(values), 1)
    return sum_products_by(ones, values.reshape(len(values), -1), member, n).view(n, *values.shape[1:])


def is_contradiction(within: th.Tensor, within_error: th.Tensor, split_kl: float | None) -> th.Tensor:
    """
    Tell which groups have a within-group KL above the threshold that is also significantly above 0.

    :param within: within-group KL, nats, shape ``(K,)``
    :param within_error: its standard error, nats, shape ``(K,)``
    :param split_kl: threshold, nats; ``None``: no splits, hence no group
    :return: shape ``(K,)``, boolean; ``False`` where ``within`` or its error is NaN
    """
    if split_kl is None:
        return th.zeros_like(within, dtype=th.bool)
    return (within > split_kl) & (within > MIN_Z_SCORE * within_error)


def plan_regrouping(
    divergences: Divergences,
    cell_to_group: th.Tensor,
    mergeable: th.Tensor,
    merge_kl: float | None,
    split_kl: float | None,
    comparable: th.Tensor | None = None,
) -> list[Merge | Split]:
    """
    Plan splits where ``KL(within i) > split_kl`` and merges where ``KL(i || j) < merge_kl`` in both directions.

    Splits by ``MIN_Z_SCORE`` standard errors, merges by ``MERGE_Z_SCORE`` where errors are known. No group takes part in more
    than one event, because an event changes the divergences of its groups: measure again after applying the plan. Groups and
    cells without steps are left unchanged.

    :param divergences: the last measurement
    :param cell_to_group: group of each cell, shape ``(C,)``, integers in ``[0, K)``
    :param mergeable: whether each group may be merged, shape ``(K,)``, boolean; a recently split group may not, because
        its head has not had the time to diverge from its sibling's
    :param merge_kl: nats; ``None``: no merges
    :param split_kl: nats; ``None``: no splits
    :param comparable: which two groups may be merged with each other, shape ``(K, K)``, boolean; ``None``: all
    :return: the events, splits first, the largest within-group KL first; then merges, the smallest KL first
    """
    device = divergences.cell_counts.device
    cell_to_group, mergeable = cell_to_group.to(device), mergeable.to(device)
    active = cell_to_group.bincount(minlength=len(mergeable)) > 0
    splits = _plan_splits(divergences, cell_to_group, active, split_kl)
    if merge_kl is None:
        return [*splits]
    counts = sum_by(divergences.cell_counts, cell_to_group, len(mergeable))
    changed = {split.group for split in splits}
    candidates = active & mergeable & (counts > 0)
    between, error = divergences.between, divergences.between_error
    certain = between if error is None else between.where(between + MERGE_Z_SCORE * error < merge_kl, th.nan)
    if comparable is not None:
        certain = certain.where(comparable.to(device), th.nan)
    return [*splits, *_plan_merges(certain, counts, candidates, changed, merge_kl)]


def _plan_splits(divergences: Divergences, cell_to_group: th.Tensor, active: th.Tensor, split_kl: float | None) -> list[Split]:
    """
    Plan splits in the order of the within-group KL, as long as there are unused group IDs.

    :param active: whether each group has cells, shape ``(K,)``
    :return: at most one split per group
    """
    unused = (~active).nonzero().flatten().tolist()
    contradicting = active & is_contradiction(divergences.within, divergences.within_error, split_kl)
    by_kl = divergences.within.where(contradicting, -th.inf).argsort(descending=True, stable=True)
    splits: list[Split] = []
    for group in by_kl[: int(contradicting.sum())].tolist():
        if unused and (moving := _cells_to_move(divergences, cell_to_group == group)):
            splits.append(Split(group, unused.pop(0), moving, divergences.within[group].item()))
    return splits


def _plan_merges(
    between: th.Tensor, counts: th.Tensor, candidates: th.Tensor, changed: set[int], merge_kl: float
) -> list[Merge]:
    """
    Plan merges of disjoint pairs, the pair with the smallest KL first.

    :param between: KL between groups, nats, shape ``(K, K)``
    :param counts: number of steps of each group, shape ``(K,)``
    :param candidates: whether each group may be merged, shape ``(K,)``
    :param changed: groups that are split in the same plan and therefore left out
    """
    # a comparison with NaN is false, so unmeasured pairs are left out
    alike = (between < merge_kl) & candidates & candidates.unsqueeze(1)
    pairs = alike.triu(diagonal=1).nonzero()
    kls = between[pairs[:, 0], pairs[:, 1]]
    merges: list[Merge] = []
    for kl, (keep, dropped) in sorted(zip(kls.tolist(), pairs.tolist(), strict=True)):
        if not {keep, dropped} & changed:
            merges.append(Merge(keep, dropped, (counts[keep] / (counts[keep] + counts[dropped])).item(), kl))
            changed = changed | {keep, dropped}
    return merges


def _cells_to_move(divergences: Divergences, members: th.Tensor) -> list[int]:
    """
    Return the cells that leave a group in a split.

    :param members: whether each cell belongs to the group, shape ``(C,)``
    :return: empty if fewer than two cells can be compared, or if the halves of the data disagree on the partition
    """
    counts, measured = divergences.cell_counts, ~divergences.cells.diagonal().isnan()
    cells = (members & measured & (counts > 0)).nonzero().flatten().tolist()
    if len(cells) < 2:
        return []
    moving = bipartition(cells, divergences.cells, counts)
    stable = all(agreement(cells, moving, kl, counts) >= MIN_AGREEMENT for kl in divergences.cells_by_half)
    return moving if stable else []


def bipartition(cells: list[int], kl: th.Tensor, counts: th.Tensor) -> list[int]:
    """
    Partition cells into two clusters by their KL divergences: 2-medoids, then reassignment by average linkage.

    The medoids are the two cells that minimise the mean over steps of ``KL(cell || nearer medoid)``.

    :param cells: at least two cells, all of them with steps
    :param kl: ``KL(c || d)`` on the steps of cell ``c``, nats, shape ``(C, C)``
    :param counts: number of steps of each cell, shape ``(C,)``
    :return: the cells of the cluster that does not contain the first cell; not empty
    """
    distance = kl[cells][:, cells] * counts[cells].unsqueeze(1)
    to_medoid = distance.T.contiguous()
    costs = kl.new_full((len(cells), len(cells)), th.inf)
    for a in range(len(cells) - 1):
        costs[a, a + 1 :] = th.minimum(to_medoid[a], to_medoid[a + 1 :]).sum(dim=1)
    a, b = divmod(int(costs.argmin()), len(cells))
    in_b = distance[:, b] < distance[:, a]
    in_b[a], in_b[b] = False, True
    in_b = _reassign(in_b, kl[cells][:, cells], counts[cells])
    return [cell for cell, moves in zip(cells, in_b.tolist(), strict=True) if moves != in_b[0]]


def _reassign(in_b: th.Tensor, kl: th.Tensor, counts: th.Tensor) -> th.Tensor:
    """
    Move cells to the cluster with the smaller mean KL until no cell moves.

    The probe of a single medoid is noisy; the mean over a cluster is less so.

    :param in_b: cluster of each cell, shape ``(N,)``, boolean
    :param kl: shape ``(N, N)``
    :param counts: number of steps of each cell, shape ``(N,)``
    :return: the final clusters, shape ``(N,)``, neither of them empty
    """
    for _ in range(len(counts)):
        moved = _nearer_b(in_b, kl, counts)
        if moved.equal(in_b) or moved.all() or not moved.any():
            break
        in_b = moved
    return in_b


def _nearer_b(in_b: th.Tensor, kl: th.Tensor, counts: th.Tensor) -> th.Tensor:
    """
    Return the cluster with the smaller step-weighted mean KL to each cell, the cell itself left out.

    :return: shape ``(N,)``, boolean; the present cluster where a cell is alone in it, or no KL is known
    """
    others = counts.expand(len(counts), -1) * (1 - th.eye(len(counts), device=counts.device)) * ~kl.isnan()
    to_a, to_b = ((kl.nan_to_num() * others * half).sum(dim=1) / (others * half).sum(dim=1) for half in (~in_b, in_b))
    return th.where(th.isnan(to_a) | th.isnan(to_b), in_b, to_b < to_a)


def agreement(cells: list[int], moving: list[int], kl: th.Tensor, counts: th.Tensor) -> float:
    """
    Measure how far a part of the data agrees with a partition.

    :param cells: all cells of a group
    :param moving: the cells that leave it
    :param kl: ``KL(c || d)`` from the part of the data, nats, shape ``(C, C)``
    :param counts: number of steps of each cell, shape ``(C,)``
    :return: share of the steps, 0 to 1, whose cell is also by these data nearer to its own cluster; a cell without a
        measurement in these data does not agree
    """
    in_b = th.tensor([cell in moving for cell in cells], device=kl.device)
    same = _nearer_b(in_b, kl[cells][:, cells], counts[cells]) == in_b
    same &= ~kl.diagonal()[cells].isnan()
    return ((counts[cells] * same).sum() / counts[cells].sum()).item()


def apply_plan(events: list[Merge | Split], cell_to_group: th.Tensor) -> th.Tensor:
    """
    Return the map from cells to groups after the events.

    :param events: from :func:`plan_regrouping`
    :param cell_to_group: group of each cell, shape ``(C,)``; left unchanged
    :return: group of each cell afterwards, shape ``(C,)``
    """
    cell_to_group = cell_to_group.clone()
    for event in events:
        if isinstance(event, Merge):
            cell_to_group[cell_to_group == event.dropped] = event.keep
        else:
            cell_to_group[event.cells] = event.new_group
    return cell_to_group
