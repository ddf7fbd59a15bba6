"""Probes: what single cells would do with their group's head, if they had it for themselves."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_grpo.distributions import ActionFamily
from sb3_grpo.grouping import Divergences, is_contradiction, sum_by, sum_products_by

# Steps after which what was learnt counts half
HALF_LIFE = 8000
# Parts in which the data of a cell are kept
N_FOLDS = 8
# A cell takes part as soon as its data count as much as this many steps
MIN_STEPS = 100
# And a group as soon as the data of all its cells count as much as this many steps
MIN_GROUP_STEPS = 4000
# And can be compared if at least this share of the products of its data are products of different parts
MIN_DIFFERENT = 0.01
# Advantages are measured by the largest standard deviation that a rollout has had; after this many steps it counts half
SCALE_HALF_LIFE = 100_000
# Single steps with extreme advantages (in standard deviations) must not decide what a probe wants
MAX_ADVANTAGE = 3.0
# Part of the mean eigenvalue that is added to all eigenvalues of the latent vectors' second moment before it is inverted
RIDGE = 0.1
# The same for scores, in their own unit: a policy that is nearly deterministic has next to no scores to learn from
SCORE_FLOOR = 0.05
# Trunks and heads with more outputs are projected (fixed, at random) to this many
MAX_DIM = 64
# And to fewer where there are many cells, so that neither second moments nor gradients have more numbers than this
MAX_MOMENT, MAX_GRADIENT = 2**20, 2**22
# But not to fewer than this
MIN_DIM = 8
# Latent vectors kept for measuring heads, the newest: this many, and where there are many cells this many for each. They are
# the largest part of what is saved
N_KEPT, N_KEPT_PER_CELL = 512, 4
# A rollout whose squares add up to more is not learnt from: its sums would overflow
MAX_SQUARES = 1e30
# Numbers in the outputs of heads that are looked at together
MAX_OUTPUTS = 2**22
# Pairs of groups whose union is measured at one look, those with the most similar heads, and how many of them together
MAX_PAIRS, PAIRS_TOGETHER = 512, 64

# Contribution of each fold to probes, shape (P, N_FOLDS, n, d), and its share of the steps, shape (P, N_FOLDS)
Solution = tuple[th.Tensor, th.Tensor]
# From latent vectors, shape (B, latent_dim), to the outputs of all action heads, shape (B, K, n), and for Box actions the
# logarithms of their standard deviations, same shape
HeadOutputs = Callable[[th.Tensor], tuple[th.Tensor, th.Tensor | None]]


class Sums(NamedTuple):
    """Sums over the data of ``P`` cells, or sets of cells."""

    gradient: th.Tensor  # of A * score x latent, by fold, shape (P, N_FOLDS, n, d)
    steps: th.Tensor  # how many they are sums over, shape (P, N_FOLDS)
    score_moment: th.Tensor  # of score x score, shape (P, n, n)
    latent_moment: th.Tensor  # of latent x latent, shape (P, d, d)

    def pick(self, which: th.Tensor) -> "Sums":
        """
        Take some of them.

        :param which: indices, shape ``(Q,)``
        """
        return Sums(*(sums[which] for sums in self))

    def united(self, sets: th.Tensor) -> "Sums":
        """
        Add up the data of several cells.

        :param sets: sets of cells, one per row, shape ``(Q, P)``, 0 or 1
        """
        return Sums(*(th.einsum("qp,p...->q...", sets, sums) for sums in self))

    def moments(self) -> tuple[th.Tensor, th.Tensor]:
        """
        Take the mean over steps of the second moments of score and latent vector.

        :return: shapes ``(P, n, n)`` and ``(P, d, d)``
        """
        steps = self.steps.sum(dim=1).clamp(min=1)[:, None, None]
        return self.score_moment / steps, self.latent_moment / steps

    def solve(self) -> Solution:
        """
        Find what the data ask for, on a leash of 1.

        :return: contribution of each fold to the probes, and its share of the steps
        """
        steps = self.steps.sum(dim=1).clamp(min=1)
        score_moment, latent_moment = self.moments()
        score_moment = score_moment + SCORE_FLOOR * th.eye(score_moment.shape[1], device=steps.device)
        # at least a little, for sets that have no steps
        ridge = (RIDGE * latent_moment.diagonal(dim1=1, dim2=2).mean(dim=1)).clamp(min=1e-6)
        latent_moment = latent_moment + ridge[:, None, None] * th.eye(latent_moment.shape[1], device=steps.device)
        # inverted once for all outputs and folds; the ridge is relative, so this is a well-conditioned matrix
        latent_inverse = th.cholesky_inverse(th.linalg.cholesky(latent_moment))
        gradient = self.gradient / steps[:, None, None, None]
        probes = th.linalg.solve(score_moment.unsqueeze(1), th.einsum("pfik,pkj->pfij", gradient, latent_inverse))
        return probes, self.steps / steps.unsqueeze(1)


class Probes(nn.Module):
    """
    One probe per cell: the head that the cell's own data ask for, on a KL leash to the head of the cell's group.
    A group's joint probe is what the data of all its cells ask for together.

    A probe maximises ``E[rho A] - leash * KL(probe || head)``. To second order in the change ``X`` of the head that
    is one natural-gradient step, ``X = F^-1 g / leash`` with the policy gradient ``g`` and the Fisher matrix ``F`` of the
    head; the latter in its Kronecker-factored form (https://arxiv.org/abs/1503.05671), ``F = G x S`` with the second
    moments ``G`` of the score and ``S`` of the latent vector. ``KL = <X, F X> / 2``, in nats.

    A gradient has noise, and a squared norm adds it up: with few data every cell would contradict every other.
    So the data of a cell are kept in ``N_FOLDS`` parts, and only products of different parts enter a square: their
    noise is independent and cancels on average. Such an estimate can be negative. How uncertain it is, the
    differences between the parts tell.

    Nothing here reaches the policy or its optimizer, and no buffer is in the ``state_dict``: :meth:`saved_buffers` names
    what has to be saved.

    Wide latent vectors and scores are projected at random. Projected scores keep their lengths on average, so that a policy
    that uses few of many actions is measured as if it had no others.

    :param latent_dim: size of the trunk's output
    :param n_outputs: outputs of one action head
    :param n_cells: number of cells
    :param family: action distributions
    """

    gradient: th.Tensor  # sums of A * score x latent, by cell and fold, shape (C, N_FOLDS, n, d)
    scale: th.Tensor  # of the advantages of each cell, shape (C,)
    steps: th.Tensor  # what they are sums over, shape (C, N_FOLDS)
    score_moment: th.Tensor  # sums of score x score, the lower triangle, shape (C, n * (n + 1) / 2)
    latent_moment: th.Tensor  # sums of latent x latent, the lower triangle, shape (C, d * (d + 1) / 2)
    projection: th.Tensor | None  # of latent vectors, shape (latent_dim, d - 1); None: there is none
    score_projection: th.Tensor | None  # shape (n_outputs, n); None: there is none
    latent: th.Tensor  # the newest latent vectors, shape (n_kept, latent_dim)
    cells: th.Tensor  # and their cells; -1: nothing kept yet

    def __init__(self, latent_dim: int, n_outputs: int, n_cells: int, family: ActionFamily):
        super().__init__()
        self.family = family
        self.n_outputs = n_outputs
        dim = min(latent_dim, MAX_DIM, max(MIN_DIM, math.isqrt(MAX_MOMENT // n_cells)))
        n_scores = min(n_outputs, MAX_DIM, max(MIN_DIM, MAX_GRADIENT // (N_FOLDS * n_cells * (dim + 1))))
        n_kept = max(N_KEPT, N_KEPT_PER_CELL * n_cells)
        buffers = {
            "projection": _projection(latent_dim, dim, seed=0, unit=latent_dim),
            "score_projection": _projection(n_outputs, n_scores, seed=1, unit=n_scores),
            "scale": th.zeros(n_cells),
            "gradient": th.zeros(n_cells, N_FOLDS, n_scores, dim + 1),
            "steps": th.zeros(n_cells, N_FOLDS),
            "score_moment": th.zeros(n_cells, n_scores * (n_scores + 1) // 2),
            "latent_moment": th.zeros(n_cells, (dim + 1) * (dim + 2) // 2),
            "latent": th.zeros(n_kept, latent_dim),
            "cells": th.full((n_kept,), -1),
        }
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    def saved_buffers(self) -> list[str]:
        """
        Name the buffers that have to be saved for training to go on.

        :return: their names, here
        """
        return [name for name, _ in self.named_buffers()]

    @th.no_grad()
    def learn(
        self,
        latent: th.Tensor,
        score: th.Tensor,
        advantages: th.Tensor,
        cells: th.Tensor,
        folds: th.Tensor,
        scale_by_cell: bool,
    ) -> None:
        """
        Learn from one rollout.

        A rollout in which something is NaN, infinite, or so large that its square overflows is left out as a whole: probes
        only ever hold finite numbers.

        :param latent: output of the trunk at ``B`` steps, shape ``(B, latent_dim)``
        :param score: gradient of the log-likelihood of the action with respect to the outputs of the head, shape
            ``(B, n_outputs)``
        :param advantages: of the actions, shape ``(B,)``
        :param cells: shape ``(B,)``
        :param folds: to which part of the data a step belongs, shape ``(B,)``, integers in ``[0, N_FOLDS)``
        :param scale_by_cell: measure the advantages of each cell by themselves, where rewards differ in scale
        """
        points = F.pad(latent if self.projection is None else latent @ self.projection, (0, 1), value=1.0)
        score = score if self.score_projection is None else score @ self.score_projection
        # latents as well: heads are measured on them as they are
        squares = sum(values.square().sum() for values in (latent, points, score, advantages))
        if not squares <= MAX_SQUARES:
            return
        decay = 0.5 ** (len(cells) / HALF_LIFE)
        for sums in (self.gradient, self.steps, self.score_moment, self.latent_moment):
            sums.mul_(decay)
        n_cells, n_parts = len(self.scale), self.steps.numel()
        parts = cells * N_FOLDS + folds
        advantages = self._scaled(advantages, cells, scale_by_cell)
        steps, total = sum_by(th.stack([th.ones_like(advantages), advantages], dim=1), parts, n_parts).T
        # what all actions have in common says nothing about them; the mean of one fold must not reach another
        centred = advantages - (total / steps.clamp(min=1))[parts]
        self.gradient += sum_products_by(centred.unsqueeze(1) * score, points, parts, n_parts).view_as(self.gradient)
        self.steps += steps.view_as(self.steps)
        self.score_moment += _pack(sum_products_by(score, score, cells, n_cells))
        self.latent_moment += _pack(sum_products_by(points, points, cells, n_cells))
        n_kept = len(self.cells)
        stride = -(-len(cells) // n_kept)
        self.latent.copy_(th.cat([self.latent, latent[::stride]])[-n_kept:])
        self.cells.copy_(th.cat([self.cells, cells[::stride]])[-n_kept:])

    def _scaled(self, advantages: th.Tensor, cells: th.Tensor, by_cell: bool) -> th.Tensor:
        """
        :return: advantages in standard deviations. Where everything has been learnt they are small, and what little
            speaks for one action or another is no reason to divide a group: the scale is that of the past
        """
        self.scale.mul_(0.5 ** (len(cells) / SCALE_HALF_LIFE))
        std = _std_by(advantages, cells, len(self.scale)) if by_cell else advantages.std(correction=0)
        self.scale.clamp_(min=std)
        return (advantages / (self.scale[cells] + 1e-8)).clamp(-MAX_ADVANTAGE, MAX_ADVANTAGE)

    def sums(self, cells: th.Tensor) -> Sums:
        """
        Look up what is known of some cells.

        :param cells: shape ``(P,)``
        :return: on the CPU, which is fast at many small matrices
        """
        gradient, steps, *moments = (
            sums[cells].cpu() for sums in (self.gradient, self.steps, self.score_moment, self.latent_moment)
        )
        return Sums(gradient, steps, *map(_unpack, moments))

    @th.no_grad()
    def measure(
        self,
        cell_to_group: th.Tensor,
        leash: float,
        head_outputs: HeadOutputs,
        mature: th.Tensor,
        merge_kl: float | None,
        split_kl: float | None,
    ) -> Divergences:
        """
        Measure how groups and cells differ, as far as it matters for merging and splitting.

        What both groups of a pair would want together is measured only if both are mature and their heads differ by less
        than ``merge_kl``; of more than ``MAX_PAIRS`` such pairs for those with the most similar heads. Cells are compared
        only within a group that contradicts itself.

        :param cell_to_group: shape ``(C,)``
        :param leash: coefficient of the KL divergence from the group's head, above 0
        :param head_outputs: of the ``K`` heads
        :param mature: groups that may be merged, shape ``(K,)``
        :param merge_kl: nats; ``None``: no merging
        :param split_kl: nats; ``None``: no splitting
        :return: ``between`` is the divergence of the heads, and where that is below ``merge_kl`` at least the contradiction
            that the merged group would have, or NaN if that was not measured
        """
        cell_to_group, mature = cell_to_group.cpu(), mature.cpu()
        steps = self.steps.sum(dim=1).cpu()
        seen = steps >= MIN_STEPS
        cells = seen.nonzero().flatten()
        groups = cell_to_group[cells].unique()
        members = (cell_to_group[cells] == groups.unsqueeze(1)).float()
        own = self.sums(cells)
        together = own.united(members)

        n_cells, n_groups = len(seen), len(mature)
        between = steps.new_full((n_groups, n_groups), th.nan)
        heads = self._heads_between(cell_to_group, groups, n_groups, head_outputs)
        between[groups.unsqueeze(1), groups] = _between(heads, together, mature[groups], leash, merge_kl or 0.0)
        within, within_error = steps.new_full((2, n_groups), th.nan)
        # one cell cannot contradict itself
        asked = ((members.sum(dim=1) > 1) & (together.steps.sum(dim=1) >= MIN_GROUP_STEPS)).nonzero().flatten()
        for values, measured in zip((within, within_error), _within(own, together, members, asked), strict=True):
            values[groups[asked]] = measured / leash**2

        # of all data, and of each half of them
        parts = (slice(None), slice(0, None, 2), slice(1, None, 2))
        of_cells = steps.new_full((len(parts), n_cells, n_cells), th.nan)
        has_free_head = len(cell_to_group.unique()) < n_groups
        contradicting = is_contradiction(within, within_error, split_kl) & has_free_head
        for group in contradicting.nonzero().flatten().tolist():
            inside = (cell_to_group[cells] == group).nonzero().flatten()
            of_group = cells[inside]
            of_cells[:, of_group.unsqueeze(1), of_group] = distances(own.pick(inside), parts).clamp(min=0) / leash**2
        return Divergences(between, within, within_error, of_cells[0], of_cells[1:], steps * seen)

    def _heads_between(
        self, cell_to_group: th.Tensor, groups: th.Tensor, n_heads: int, head_outputs: HeadOutputs
    ) -> th.Tensor:
        """
        :param groups: those to compare, shape ``(G,)``
        :return: mean of ``KL(head i || head j)``, in closed form, over the kept steps of groups ``i`` and ``j``, the larger
            direction, shape ``(G, G)``; 0 on the diagonal, NaN for groups without kept steps
        """
        n_groups, device = len(groups), self.latent.device
        rank_of_group = th.full((n_heads,), -1)
        rank_of_group[groups] = th.arange(n_groups)
        ranks = rank_of_group[cell_to_group].to(device)[self.cells].where(self.cells >= 0, -1)
        kept = (ranks >= 0).nonzero().flatten()
        groups = groups.to(device)
        # sums over the steps of one group (rows): from its own head to all others, and back
        there, back = self.latent.new_zeros(2, n_groups, n_groups)
        for chunk in kept.split(max(1, MAX_OUTPUTS // (n_heads * self.n_outputs))) if n_groups > 1 else ():
            outputs, log_std = head_outputs(self.latent[chunk])
            outputs, log_std = outputs[:, groups], None if log_std is None else log_std[:, groups]
            step, rank = th.arange(len(chunk), device=device), ranks[chunk]
            own_log_std = None if log_std is None else log_std[step, rank].unsqueeze(1)
            own = self.family.params(outputs[step, rank].unsqueeze(1), own_log_std)
            every = self.family.params(outputs, log_std)
            there += sum_by(self.family.kl(own, every), rank, n_groups)
            back += sum_by(self.family.kl(every, own), rank, n_groups)
        steps = ranks[kept].bincount(minlength=n_groups)
        kl = ((there + back.T) / (steps + steps.unsqueeze(1))).cpu()
        known = (steps > 0).cpu()
        return th.maximum(kl, kl.T).where(known & known.unsqueeze(1), th.nan).fill_diagonal_(0.0)


def _projection(size: int, dim: int, seed: int, unit: int) -> th.Tensor | None:
    """
    :param unit: the squared length of a projected vector is ``dim / unit`` of what it was, on average
    :return: the same numbers every time, shape ``(size, dim)``; ``None`` if nothing has to be projected
    """
    if size <= dim:
        return None
    return th.randn(size, dim, generator=th.Generator().manual_seed(seed)) / math.sqrt(unit)


def _pack(moments: th.Tensor) -> th.Tensor:
    """
    :param moments: symmetric, shape ``(..., n, n)``
    :return: their lower triangles, shape ``(..., n * (n + 1) / 2)``
    """
    row, column = th.tril_indices(*moments.shape[-2:], device=moments.device)
    return moments[..., row, column]


def _unpack(triangles: th.Tensor) -> th.Tensor:
    """
    :return: what :func:`_pack` was given
    """
    size = (math.isqrt(8 * triangles.shape[-1] + 1) - 1) // 2
    row, column = th.tril_indices(size, size, device=triangles.device)
    moments = triangles.new_empty(*triangles.shape[:-1], size, size)
    moments[..., row, column] = moments[..., column, row] = triangles
    return moments


def _std_by(values: th.Tensor, member: th.Tensor, n: int) -> th.Tensor:
    """
    :return: standard deviation of the values of each cell, shape ``(n,)``; 0 where there are none
    """
    steps = sum_by(th.ones_like(values), member, n).clamp(min=1)
    mean = sum_by(values, member, n) / steps
    return (sum_by((values - mean[member]).square(), member, n) / steps).sqrt()


def _within(own: Sums, together: Sums, members: th.Tensor, asked: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    :param own: of the ``S`` cells
    :param together: of the ``G`` groups
    :param members: which cells belong to which group, shape ``(G, S)``, 0 or 1
    :param asked: groups, shape ``(A,)``
    :return: step-weighted mean of ``KL(probe of a cell || joint probe)`` on a leash of 1, and its standard error,
        shape ``(A,)``
    """
    members = members[asked]
    cells = members.sum(dim=0).nonzero().flatten()
    members, own = members[:, cells], own.pick(cells)
    of_cells, of_groups = (apart(*sums.solve()) for sums in (own, together.pick(asked)))
    group = members.T.nonzero()[:, 1]
    one, rest = (x - joint[group] for x, joint in zip(of_cells, of_groups, strict=True))
    each = product(one, rest, *own.moments()).nan_to_num()
    steps = members @ own.steps
    by_fold, share = (values / steps.sum(dim=1, keepdim=True) for values in (members @ (own.steps * each), steps))
    mean = by_fold.sum(dim=1)
    error = ((by_fold - share * mean.unsqueeze(1)).square().sum(dim=1) * N_FOLDS / (N_FOLDS - 1)).sqrt()
    # the noise of a fold enters twice, by itself and in the rest of all others; the spread shows only the first
    return mean, 2 * error


def _between(heads: th.Tensor, together: Sums, mature: th.Tensor, leash: float, merge_kl: float) -> th.Tensor:
    """
    :param heads: how the heads of the ``G`` groups differ, symmetric, shape ``(G, G)``
    :param together: of the groups
    :param mature: which of them may be merged, shape ``(G,)``
    :return: how the groups differ, shape ``(G, G)``, as :meth:`Probes.measure` says it
    """
    shares = together.steps / together.steps.sum(dim=1, keepdim=True)
    ready = mature & (1 - shares.square().sum(dim=1) > MIN_DIFFERENT)
    pairs = ((heads < merge_kl) & ready & ready.unsqueeze(1)).triu(diagonal=1).nonzero()
    pairs = pairs[heads[pairs[:, 0], pairs[:, 1]].argsort(stable=True)][:MAX_PAIRS]
    between = heads.where(heads >= merge_kl, th.nan).fill_diagonal_(0.0)
    in_pairs, pairs = pairs.unique(return_inverse=True)
    candidates = together.pick(in_pairs)
    probes = apart(*candidates.solve())
    for chunk in pairs.split(PAIRS_TOGETHER):
        united = _within_unions(candidates, probes, chunk) / leash**2
        first, second = in_pairs[chunk].T
        between[first, second] = between[second, first] = th.maximum(heads[first, second], united)
    return between


def _within_unions(sums: Sums, probes: Solution, pairs: th.Tensor) -> th.Tensor:
    """
    :param sums: of groups
    :param probes: joint probe of each of them from the data of each fold, and from all others
    :param pairs: shape ``(Q, 2)``
    :return: how much each pair would contradict itself as one group: step-weighted mean of
        ``KL(joint probe of a group || joint probe of both)`` on a leash of 1, shape ``(Q,)``
    """
    first, second = (sums.pick(group) for group in pairs.T)
    united = Sums(*(x + y for x, y in zip(first, second, strict=True)))
    of_unions = apart(*united.solve())
    kl = united.steps.new_zeros(len(pairs))
    for group, of_group in zip(pairs.T, (first, second), strict=True):
        own, rest = (x[group] - of_both for x, of_both in zip(probes, of_unions, strict=True))
        kl += (of_group.steps * product(own, rest, *of_group.moments()).nan_to_num()).sum(dim=1)
    return kl / united.steps.sum(dim=1)


def product(left: th.Tensor, right: th.Tensor, score_moment: th.Tensor, latent_moment: th.Tensor) -> th.Tensor:
    """
    Compute ``<X, G Y S> / 2``: to second order the KL divergence between heads that differ by ``X = Y``.

    :param left: ``X``, shape ``(P, F, n, d)``
    :param right: ``Y``, same shape
    :param score_moment: ``G``, shape ``(P, n, n)``
    :param latent_moment: ``S``, shape ``(P, d, d)``
    :return: nats, shape ``(P, F)``
    """
    return 0.5 * (left * (score_moment.unsqueeze(1) @ th.einsum("pfik,pkj->pfij", right, latent_moment))).sum(dim=(-2, -1))


def apart(contributions: th.Tensor, shares: th.Tensor) -> Solution:
    """
    Tell what one fold says from what the others say.

    :param contributions: of each fold to a mean, shape ``(P, N_FOLDS, n, d)``
    :param shares: of each fold in the steps, shape ``(P, N_FOLDS)``
    :return: for each fold the mean of its own data, and that of all other data; NaN where there are none
    """
    shares = shares[:, :, None, None]
    return contributions / shares, (contributions.sum(dim=1, keepdim=True) - contributions) / (1 - shares)


def distances(sums: Sums, parts: Sequence[slice]) -> th.Tensor:
    """
    Measure how much the probes of cells differ, without the part that is noise.

    :param sums: of ``P`` cells
    :param parts: for each result, the folds whose data are used
    :return: ``KL(a || b)`` on a leash of 1, on the data of ``a``, shape ``(len(parts), P, P)``; NaN for data that are all in
        one fold
    """
    contributions, shares = sums.solve()
    totals = [shares[:, part].sum(dim=1) for part in parts]
    different = [
        1 - (shares[:, part] / total.unsqueeze(1)).square().sum(dim=1) for part, total in zip(parts, totals, strict=True)
    ]
    # outputs first: both moments of a cell meet the probes of all others in one matrix product each
    contributions = contributions.permute(2, 1, 0, 3).contiguous()
    probes = [contributions[:, part].sum(dim=1) for part in parts]
    kl = shares.new_empty(len(parts), len(shares), len(shares))
    for a, (score_moment, latent_moment) in enumerate(zip(*sums.moments(), strict=True)):
        transformed = 0.5 * (score_moment @ contributions.flatten(1)).view_as(contributions) @ latent_moment
        noisy = (contributions * transformed).sum(dim=(0, 3))
        for row, part, probe, total, differ in zip(kl[:, a], parts, probes, totals, different, strict=True):
            other = transformed[:, part].sum(dim=1)
            # the square of b, without the products of a fold with itself
            squares = (probe * other).sum(dim=(0, 2)) - noisy[part].sum(dim=0)
            squares = squares / total.square() / differ.where(differ > MIN_DIFFERENT, th.nan)
            # the data of different probes are different: their products need no correction
            mixed = (probe[:, a : a + 1] * other).sum(dim=(0, 2)) / (total[a] * total)
            row[:] = squares[a] + squares - 2 * mixed
    return kl
