"""
Solve for probes and measure the KL divergences between them, as pure functions of sums over steps.

A probe is the head that the data of one cell ask for, see :class:`sb3_grpo.probes.Probes`. Divergences are those at
``kl_coef = 1`` where nothing else is said; :func:`limited_scale` converts them to another coefficient.

Notation: ``P`` cells or sets of cells, ``G`` groups, ``n`` outputs of a head, ``d`` entries of a latent vector with a
constant 1 appended, ``grad`` the gradient of the log-likelihood of the action with respect to the outputs of the head.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch as th

from sb3_grpo.distributions import ActionDistribution, mask_outputs
from sb3_grpo.regroup_plan import sum_by

# Number of folds into which the data of a cell are divided
N_FOLDS = 8
# Minimum share of the pairs of steps that lie in different folds; with a smaller one no squared norm can be estimated
MIN_CROSS_FOLD_SHARE = 0.01
# Regularises the second moment of latent vectors: this share of its mean eigenvalue is added to all eigenvalues
RIDGE = 0.1
# Regularises the second moment of grad: added to all eigenvalues, which are near 0 for a nearly deterministic policy
GRAD_FLOOR = 0.05
# Maximum mean KL divergence of probes from the head, nats. Probes that would be further away get a larger coefficient
MAX_PROBE_KL = 1.0
# Maximum number of head outputs that are computed at once
MAX_OUTPUTS = 2**20
# Maximum number of pairs of groups for which the KL within their union is measured, and of pairs in one chunk
MAX_PAIRS, PAIRS_PER_CHUNK = 512, 64
# ... and of all entries of the contributions to the probes of their unions: with large heads there are fewer pairs
MAX_UNION_ENTRIES = 2**22

# Maps latent vectors, shape (B, latent_dim), and groups, shape (G,), to the outputs of the action heads of these groups,
# shape (B, G, n), and for Box actions to the log standard deviations, same shape
HeadOutputs = Callable[[th.Tensor, th.Tensor], tuple[th.Tensor, th.Tensor | None]]


class Solution(NamedTuple):
    """Probes of ``P`` cells or sets of cells, by fold: a probe is the sum of its contributions."""

    contributions: th.Tensor  # shape (P, N_FOLDS, n, d)
    shares: th.Tensor  # share of each fold in the steps, shape (P, N_FOLDS)


class FoldMeans(NamedTuple):
    """Probe from each fold alone, and from all other folds; both have shape ``(P, N_FOLDS, n, d)``, NaN without steps."""

    own: th.Tensor
    others: th.Tensor


class Sums(NamedTuple):
    """Sums over the steps of ``P`` cells or sets of cells."""

    gradient: th.Tensor  # of advantage * grad x latent, by fold, shape (P, N_FOLDS, n, d)
    counts: th.Tensor  # number of steps, by fold, shape (P, N_FOLDS)
    grad_moment: th.Tensor  # of grad x grad, shape (P, n, n)
    latent_moment: th.Tensor  # of latent x latent, shape (P, d, d)

    def pick(self, indices: th.Tensor) -> "Sums":
        """
        Return the sums of some of the cells.

        :param indices: shape ``(Q,)``
        """
        return Sums(*(sums[indices] for sums in self))

    def pooled(self, sets: th.Tensor) -> "Sums":
        """
        Return the sums over the cells of each set.

        :param sets: whether each cell is in each set, shape ``(Q, P)``, 0 or 1
        """
        return Sums(*(th.einsum("qp,p...->q...", sets, sums) for sums in self))

    def moments(self) -> tuple[th.Tensor, th.Tensor]:
        """
        Return the second moments of grad and of the latent vector, as means over steps.

        :return: shapes ``(P, n, n)`` and ``(P, d, d)``
        """
        counts = self.counts.sum(dim=1).clamp(min=1)[:, None, None]
        return self.grad_moment / counts, self.latent_moment / counts

    def solve(self) -> Solution:
        """
        Solve for the probes at ``kl_coef = 1``: one natural-gradient step with the regularised moments.

        :return: contribution of each fold to the probes, and its share of the steps
        """
        counts = self.counts.sum(dim=1).clamp(min=1)
        grad_moment, latent_moment = self.moments()
        grad_moment = grad_moment + GRAD_FLOOR * th.eye(grad_moment.shape[1], device=counts.device)
        # the minimum makes the moment of a set without steps invertible
        ridge = (RIDGE * latent_moment.diagonal(dim1=1, dim2=2).mean(dim=1)).clamp(min=1e-6)
        latent_moment = latent_moment + ridge[:, None, None] * th.eye(latent_moment.shape[1], device=counts.device)
        # one inverse serves all outputs and folds; it is accurate, because the ridge bounds the condition number
        latent_inverse = th.cholesky_inverse(th.linalg.cholesky(latent_moment))
        gradient = self.gradient / counts[:, None, None, None]
        probes = th.linalg.solve(grad_moment.unsqueeze(1), th.einsum("pfik,pkj->pfij", gradient, latent_inverse))
        return Solution(probes, self.counts / counts.unsqueeze(1))


def leave_one_out(contributions: th.Tensor, shares: th.Tensor) -> FoldMeans:
    """
    Return for each fold the mean of its own data and the mean of all other folds.

    :param contributions: of each fold to the mean over all data, shape ``(P, N_FOLDS, n, d)``
    :param shares: share of each fold in the steps, shape ``(P, N_FOLDS)``
    """
    shares = shares[:, :, None, None]
    return FoldMeans(contributions / shares, (contributions.sum(dim=1, keepdim=True) - contributions) / (1 - shares))


def product(left: th.Tensor, right: th.Tensor, grad_moment: th.Tensor, latent_moment: th.Tensor) -> th.Tensor:
    """
    Compute ``<X, G Y S> / 2``; for ``X = Y`` the KL divergence, to second order, between heads that differ by ``X``.

    :param left: ``X``, shape ``(P, F, n, d)``
    :param right: ``Y``, same shape
    :param grad_moment: ``G``, shape ``(P, n, n)``
    :param latent_moment: ``S``, shape ``(P, d, d)``
    :return: nats, shape ``(P, F)``
    """
    return 0.5 * (left * (grad_moment.unsqueeze(1) @ th.einsum("pfik,pkj->pfij", right, latent_moment))).sum(dim=(-2, -1))


def limited_scale(probe_kl: th.Tensor, kl_coef: float) -> th.Tensor:
    """
    Return the factor that converts divergences from ``kl_coef = 1`` to ``kl_coef``, or to a larger, sufficient coefficient.

    A coefficient is sufficient if the probes are on average at most ``MAX_PROBE_KL`` from the head.

    :param probe_kl: mean KL divergence of the probes from the head at ``kl_coef = 1``, nats, any shape; can be negative
    :param kl_coef: smallest coefficient, above 0
    :return: ``1 / coefficient**2``, same shape
    """
    return MAX_PROBE_KL / probe_kl.clamp(min=MAX_PROBE_KL * kl_coef**2)


class Within(NamedTuple):
    """Divergences of the cells' probes in each of ``Q`` groups, step-weighted means over cells, nats, shape ``(Q,)``."""

    kl: th.Tensor  # from the joint probe of the group
    error: th.Tensor  # standard error of `kl`
    probe_kl: th.Tensor  # from the head of the group


def within_kl(cell_sums: Sums, group_sums: Sums, members: th.Tensor, indices: th.Tensor) -> Within:
    """
    Measure how far the probes of a group's cells are from the joint probe (the within-group KL) and from the head.

    Each fold's probe is multiplied with that of all other folds. Their noise is independent, so the estimate is unbiased;
    it can be negative.

    :param cell_sums: sums of ``P`` cells
    :param group_sums: sums of ``G`` groups
    :param members: whether each cell belongs to each group, shape ``(G, P)``, 0 or 1
    :param indices: the groups to measure, shape ``(Q,)``
    """
    members = members[indices]
    cells = members.sum(dim=0).nonzero().flatten()
    members, cell_sums = members[:, cells], cell_sums.pick(cells)
    of_cells, of_groups = (leave_one_out(*sums.solve()) for sums in (cell_sums, group_sums.pick(indices)))
    group = members.T.nonzero()[:, 1]
    own, others = of_cells.own - of_groups.own[group], of_cells.others - of_groups.others[group]
    moments = cell_sums.moments()
    kl, probe_kl = (product(*means, *moments).nan_to_num() for means in ((own, others), of_cells))
    counts = members @ cell_sums.counts
    by_fold, share = (values / counts.sum(dim=1, keepdim=True) for values in (members @ (cell_sums.counts * kl), counts))
    mean = by_fold.sum(dim=1)
    error = ((by_fold - share * mean.unsqueeze(1)).square().sum(dim=1) * N_FOLDS / (N_FOLDS - 1)).sqrt()
    # factor 2: the noise of a fold enters its own term and the terms of all others, but the spread shows the first only
    return Within(mean, 2 * error, (members @ (cell_sums.counts * probe_kl)).sum(dim=1) / counts.sum(dim=1))


def between_kl(heads: th.Tensor, group_sums: Sums, mergeable: th.Tensor, kl_coef: float, merge_kl: float) -> th.Tensor:
    """
    Combine the KL between heads with the KL that the union of two groups would have within itself.

    The latter is measured for pairs of mergeable groups whose heads differ by less than ``merge_kl``, at most for
    ``MAX_PAIRS`` of them (fewer where heads are large), those with the most similar heads.

    :param heads: KL between the heads of ``G`` groups, nats, symmetric, shape ``(G, G)``
    :param group_sums: sums of these groups
    :param mergeable: whether each of them may be merged, shape ``(G,)``
    :param kl_coef: coefficient of the KL in the probes' objective, above 0
    :param merge_kl: nats
    :return: nats, shape ``(G, G)``: the KL between the heads where it is at least ``merge_kl``, elsewhere the larger of the
        two KLs; NaN where the second was not measured
    """
    shares = group_sums.counts / group_sums.counts.sum(dim=1, keepdim=True)
    usable = mergeable & (1 - shares.square().sum(dim=1) > MIN_CROSS_FOLD_SHARE)
    pairs = ((heads < merge_kl) & usable & usable.unsqueeze(1)).triu(diagonal=1).nonzero()
    n_pairs = min(MAX_PAIRS, max(1, MAX_UNION_ENTRIES // math.prod(group_sums.gradient.shape[1:])))
    pairs = pairs[heads[pairs[:, 0], pairs[:, 1]].argsort(stable=True)][:n_pairs]
    between = heads.where(heads >= merge_kl, th.nan).fill_diagonal_(0.0)
    in_pairs, pairs = pairs.unique(return_inverse=True)
    candidates = group_sums.pick(in_pairs)
    probes = leave_one_out(*candidates.solve())
    for chunk in pairs.split(PAIRS_PER_CHUNK):
        unions = _union_kl(candidates, probes, chunk, kl_coef)
        first, second = in_pairs[chunk].T
        between[first, second] = between[second, first] = th.maximum(heads[first, second], unions)
    return between


def _union_kl(sums: Sums, probes: FoldMeans, pairs: th.Tensor, kl_coef: float) -> th.Tensor:
    """
    Measure the KL that the union of two groups would have within itself, at the coefficient of :func:`limited_scale`.

    :param sums: sums of groups
    :param probes: their joint probes
    :param pairs: indices of two groups each, shape ``(Q, 2)``
    :param kl_coef: smallest coefficient of the KL in the probes' objective, above 0
    :return: step-weighted mean of ``KL(joint probe of a group || joint probe of the union)``, nats, shape ``(Q,)``
    """
    first, second = (sums.pick(group) for group in pairs.T)
    union = Sums(*(x + y for x, y in zip(first, second, strict=True)))
    of_unions = leave_one_out(*union.solve())
    kl, probe_kl = union.counts.new_zeros(2, len(pairs))
    for group, group_sums in zip(pairs.T, (first, second), strict=True):
        of_group = FoldMeans(*(x[group] for x in probes))
        apart = FoldMeans(of_group.own - of_unions.own, of_group.others - of_unions.others)
        moments = group_sums.moments()
        kl += (group_sums.counts * product(*apart, *moments).nan_to_num()).sum(dim=1)
        probe_kl += (group_sums.counts * product(*of_group, *moments).nan_to_num()).sum(dim=1)
    counts = union.counts.sum(dim=1)
    return kl / counts * limited_scale(probe_kl / counts, kl_coef)


def cells_kl(sums: Sums, parts: Sequence[slice]) -> th.Tensor:
    """
    Measure the KL divergence between the probes of each two cells, without the bias that noise adds to a square.

    :param sums: sums of ``P`` cells
    :param parts: for each result, the folds whose data are used
    :return: ``KL(a || b)`` on the data of ``a``, nats, shape ``(len(parts), P, P)``; NaN for a cell whose data all lie in
        one fold
    """
    contributions, shares = sums.solve()
    totals = [shares[:, part].sum(dim=1) for part in parts]
    cross_fold_shares = [
        1 - (shares[:, part] / total.unsqueeze(1)).square().sum(dim=1) for part, total in zip(parts, totals, strict=True)
    ]
    # outputs first: one matrix product each applies both moments of a cell to the probes of all cells
    contributions = contributions.permute(2, 1, 0, 3).contiguous()
    probes = [contributions[:, part].sum(dim=1) for part in parts]
    kl = shares.new_empty(len(parts), len(shares), len(shares))
    for a, (grad_moment, latent_moment) in enumerate(zip(*sums.moments(), strict=True)):
        transformed = 0.5 * (grad_moment @ contributions.flatten(1)).view_as(contributions) @ latent_moment
        same_fold = (contributions * transformed).sum(dim=(0, 3))
        for row, part, probe, total, cross in zip(kl[:, a], parts, probes, totals, cross_fold_shares, strict=True):
            other = transformed[:, part].sum(dim=1)
            # the square of probe b, without the products of a fold with itself, whose noise does not cancel
            squares = (probe * other).sum(dim=(0, 2)) - same_fold[part].sum(dim=0)
            squares = squares / total.square() / cross.where(cross > MIN_CROSS_FOLD_SHARE, th.nan)
            # the noise of two cells is independent: products of different probes need no correction
            mixed = (probe[:, a : a + 1] * other).sum(dim=(0, 2)) / (total[a] * total)
            row[:] = squares[a] + squares - 2 * mixed
    return kl


def heads_kl(
    latent: th.Tensor,
    member: th.Tensor,
    groups: th.Tensor,
    head_outputs: HeadOutputs,
    family: ActionDistribution,
    n_outputs: int,
    masks: th.Tensor | None = None,
) -> th.Tensor:
    """
    Measure the KL divergence between the heads of groups, in closed form, on latent vectors of these groups.

    :param latent: shape ``(B, latent_dim)``
    :param member: index into ``groups`` of the group of each latent vector, shape ``(B,)``
    :param groups: the groups to compare, shape ``(G,)``; no other heads are computed
    :param head_outputs: computes the outputs of heads
    :param family: action distributions
    :param n_outputs: number of outputs of one head
    :param masks: which actions were allowed at each latent vector, shape ``(B, n)``; ``None``: all
    :return: mean of ``KL(head i || head j)`` over the vectors of groups ``i`` and ``j``, the larger direction, nats, on the
        CPU, shape ``(G, G)``; 0 on the diagonal, NaN for groups without vectors
    """
    n_groups = len(groups)
    # sums over the vectors of one group (rows): from its own head to all others, and back
    there, back = latent.new_zeros(2, n_groups, n_groups)
    size = max(1, MAX_OUTPUTS // max(1, n_groups * n_outputs))
    columns = [latent, member] if masks is None else [latent, member, masks.unsqueeze(1)]
    parts = zip(*(column.split(size) for column in columns), strict=True)
    for points, index, *allowed in parts if n_groups > 1 else ():
        outputs, log_std = head_outputs(points, groups)
        outputs = mask_outputs(outputs, *allowed) if allowed else outputs
        step = th.arange(len(points), device=latent.device)
        own_log_std = None if log_std is None else log_std[step, index].unsqueeze(1)
        own = family.params(outputs[step, index].unsqueeze(1), own_log_std)
        every = family.params(outputs, log_std)
        there += sum_by(family.kl(own, every), index, n_groups)
        back += sum_by(family.kl(every, own), index, n_groups)
    counts = member.bincount(minlength=n_groups)
    kl = ((there + back.T) / (counts + counts.unsqueeze(1))).cpu()
    measured = (counts > 0).cpu()
    return th.maximum(kl, kl.T).where(measured & measured.unsqueeze(1), th.nan).fill_diagonal_(0.0)


def random_projection(size: int, dim: int, seed: int, unit: int) -> th.Tensor | None:
    """
    Return a fixed Gaussian projection, the same at every call.

    :param size: length of the vectors to project
    :param dim: length of the projected vectors
    :param seed: seed of the projection's own generator
    :param unit: on average the squared length of a projected vector is ``dim / unit`` times what it was
    :return: shape ``(size, dim)``; ``None`` if the vectors are no longer than ``dim``
    """
    if size <= dim:
        return None
    return th.randn(size, dim, generator=th.Generator().manual_seed(seed)) / math.sqrt(unit)


def pack_symmetric(matrices: th.Tensor) -> th.Tensor:
    """
    Return the lower triangles of symmetric matrices.

    :param matrices: shape ``(..., n, n)``
    :return: shape ``(..., n * (n + 1) / 2)``
    """
    row, column = th.tril_indices(*matrices.shape[-2:], device=matrices.device)
    return matrices[..., row, column]


def unpack_symmetric(triangles: th.Tensor) -> th.Tensor:
    """
    Return the symmetric matrices of which :func:`pack_symmetric` took the lower triangles.

    :param triangles: shape ``(..., n * (n + 1) / 2)``
    :return: shape ``(..., n, n)``
    """
    size = (math.isqrt(8 * triangles.shape[-1] + 1) - 1) // 2
    row, column = th.tril_indices(size, size, device=triangles.device)
    matrices = triangles.new_empty(*triangles.shape[:-1], size, size)
    matrices[..., row, column] = matrices[..., column, row] = triangles
    return matrices


def std_by(values: th.Tensor, member: th.Tensor, n: int) -> th.Tensor:
    """
    Return the population standard deviation of the values of each cell.

    :param values: shape ``(B,)``
    :param member: cell of each value, shape ``(B,)``, integers in ``[0, n)``
    :param n: number of cells
    :return: shape ``(n,)``; 0 for cells without values
    """
    counts = sum_by(th.ones_like(values), member, n).clamp(min=1)
    mean = sum_by(values, member, n) / counts
    return (sum_by((values - mean[member]).square(), member, n) / counts).sqrt()
