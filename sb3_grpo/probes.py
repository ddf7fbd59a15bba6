"""Probes: what single cells would do with their group's head, if they had it for themselves."""

import math

import torch as th
from torch import nn

from sb3_grpo.distributions import ActionFamily
from sb3_grpo.grouping import Divergences, sum_by

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
# Trunks with more outputs are projected (fixed, at random) to this many
MAX_DIM = 64
# Latent vectors kept for measuring heads, the newest
N_KEPT = 1024

# Contribution of each fold to probes, shape (N_FOLDS, P, n, d), and its share of the steps, shape (N_FOLDS, P)
Solution = tuple[th.Tensor, th.Tensor]


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

    Nothing here reaches the policy or its optimizer.

    :param latent_dim: size of the trunk's output
    :param n_outputs: outputs of one action head
    :param n_cells: number of cells
    :param family: action distributions
    """

    gradient: th.Tensor  # sums of A * score x latent, by fold and cell, shape (N_FOLDS, C, n, d)
    scale: th.Tensor  # of the advantages of each cell, shape (C,)
    steps: th.Tensor  # what they are sums over, shape (N_FOLDS, C)
    score_moment: th.Tensor  # sums of score x score, shape (C, n, n)
    latent_moment: th.Tensor  # sums of latent x latent, shape (C, d, d)
    projection: th.Tensor  # shape (latent_dim, d - 1)
    latent: th.Tensor  # the newest latent vectors, shape (N_KEPT, latent_dim)
    cells: th.Tensor  # and their cells; -1: nothing kept yet

    def __init__(self, latent_dim: int, n_outputs: int, n_cells: int, family: ActionFamily):
        super().__init__()
        self.family = family
        dim = min(latent_dim, MAX_DIM)
        projection = th.eye(latent_dim)
        if latent_dim > dim:
            generator = th.Generator().manual_seed(0)
            projection = th.randn(latent_dim, dim, generator=generator) / math.sqrt(latent_dim)
        self.keep("projection", projection)
        self.keep("scale", th.zeros(n_cells))
        self.keep("gradient", th.zeros(N_FOLDS, n_cells, n_outputs, dim + 1))
        self.keep("steps", th.zeros(N_FOLDS, n_cells))
        self.keep("score_moment", th.zeros(n_cells, n_outputs, n_outputs))
        self.keep("latent_moment", th.zeros(n_cells, dim + 1, dim + 1))
        self.keep("latent", th.zeros(N_KEPT, latent_dim))
        self.keep("cells", th.full((N_KEPT,), -1))

    def keep(self, name: str, tensor: th.Tensor) -> None:
        self.register_buffer(name, tensor, persistent=False)

    def saved_buffers(self) -> list[str]:
        return [name for name, _ in self.named_buffers() if name not in ("latent", "cells", "projection")]

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

        :param latent: output of the trunk at ``B`` steps, shape ``(B, latent_dim)``
        :param score: gradient of the log-likelihood of the action with respect to the outputs of the head, shape ``(B, n)``
        :param advantages: of the actions, shape ``(B,)``
        :param cells: shape ``(B,)``
        :param folds: to which part of the data a step belongs, shape ``(B,)``, integers in ``[0, N_FOLDS)``
        :param scale_by_cell: measure the advantages of each cell by themselves, where rewards differ in scale
        """
        decay = 0.5 ** (len(cells) / HALF_LIFE)
        for sums in (self.gradient, self.steps, self.score_moment, self.latent_moment):
            sums.mul_(decay)
        points = nn.functional.pad(latent @ self.projection, (0, 1), value=1.0)
        parts = nn.functional.one_hot(folds * len(self.scale) + cells, self.steps.numel()).float()
        steps = parts.sum(dim=0)
        # what all actions have in common says nothing about them; the mean of one fold must not reach another
        advantages = self._scaled(advantages, cells, scale_by_cell)
        centred = advantages - parts @ ((advantages @ parts) / steps.clamp(min=1))
        for output, scores in enumerate(score.T):
            sums = parts.T @ ((centred * scores).unsqueeze(1) * points)
            self.gradient[:, :, output] += sums.view(*self.steps.shape, -1)
        self.steps += steps.view_as(self.steps)
        for cell in cells.unique().tolist():
            of_cell = cells == cell
            self.latent_moment[cell] += points[of_cell].T @ points[of_cell]
            self.score_moment[cell] += score[of_cell].T @ score[of_cell]
        stride = -(-len(cells) // N_KEPT)
        self.latent.copy_(th.cat([self.latent, latent[::stride]])[-N_KEPT:])
        self.cells.copy_(th.cat([self.cells, cells[::stride]])[-N_KEPT:])

    def _scaled(self, advantages: th.Tensor, cells: th.Tensor, by_cell: bool) -> th.Tensor:
        """
        :return: advantages in standard deviations. Where everything has been learnt they are small, and what little
            speaks for one action or another is no reason to divide a group: the scale is that of the past
        """
        self.scale.mul_(0.5 ** (len(cells) / SCALE_HALF_LIFE))
        for cell in cells.unique().tolist() if by_cell else [slice(None)]:
            std = advantages[cells == cell if by_cell else cell].std(correction=0)
            self.scale[cell] = self.scale[cell].clamp(min=std)
        return (advantages / (self.scale[cells] + 1e-8)).clamp(-MAX_ADVANTAGE, MAX_ADVANTAGE)

    def _moments(self, cells: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param cells: sets of cells, one per row, shape ``(P, C)``, 0 or 1
        :return: second moments of score and latent vector in each set, shapes ``(P, n, n)`` and ``(P, d, d)``
        """
        steps = (cells @ self.steps.sum(dim=0)).clamp(min=1)[:, None, None]
        score_moment, latent_moment = (
            th.einsum("pc,cij->pij", cells, sums) / steps for sums in (self.score_moment, self.latent_moment)
        )
        return score_moment, latent_moment

    def _solve(self, cells: th.Tensor) -> Solution:
        """
        :param cells: sets of cells, one per row, shape ``(P, C)``, 0 or 1
        :return: what the data of each set ask for, on a leash of 1
        """
        shares = self.steps @ cells.T
        steps = shares.sum(dim=0).clamp(min=1)
        gradient = th.einsum("pc,hcij->hpij", cells, self.gradient) / steps[:, None, None]
        score_moment, latent_moment = self._moments(cells)
        score_moment = score_moment + SCORE_FLOOR * th.eye(score_moment.shape[1], device=steps.device)
        # at least a little, for sets that have no steps
        ridge = (RIDGE * latent_moment.diagonal(dim1=1, dim2=2).mean(dim=1)).clamp(min=1e-6)
        latent_moment = latent_moment + ridge[:, None, None] * th.eye(latent_moment.shape[1], device=steps.device)
        probes = th.linalg.solve(score_moment, th.linalg.solve(latent_moment, gradient, left=False))
        return probes, shares / steps

    @th.no_grad()
    def measure(
        self, cell_to_group: th.Tensor, n_groups: int, leash: float, outputs: th.Tensor, log_std: th.Tensor | None
    ) -> Divergences:
        """
        :param cell_to_group: shape ``(C,)``
        :param n_groups: number of heads ``K``
        :param leash: coefficient of the KL divergence from the group's head, above 0
        :param outputs: of all action heads for the kept latent vectors (those with ``cells >= 0``), shape ``(B, K, n)``
        :param log_std: of all heads, same shape; only for Box actions
        :return: how groups and cells differ
        """
        seen = (self.steps.sum(dim=0) >= MIN_STEPS).float()
        steps = self.steps.sum(dim=0) * seen
        members = nn.functional.one_hot(cell_to_group, n_groups).T * seen
        of_cells, of_groups = self._solve(th.diag(seen)), self._solve(members)
        within, within_error = self._within(of_cells, of_groups, members, cell_to_group)
        leash_squared = leash**2
        united = self._within_union(of_groups, members) / leash_squared
        heads_between = self._heads_between(cell_to_group, outputs, log_std)
        unseen = members.sum(dim=1) == 0
        return Divergences(
            # NaN in one direction is NaN
            between=th.stack([united, heads_between, heads_between.T])
            .amax(dim=0)
            .masked_fill(unseen | unseen.unsqueeze(1), th.nan),
            # one cell cannot contradict itself
            within=(within / leash_squared).where((members.sum(dim=1) > 1) & (members @ steps >= MIN_GROUP_STEPS), th.nan),
            within_error=within_error / leash_squared,
            cells=self._between_cells(of_cells, seen, slice(None)) / leash_squared,
            cells_by_half=th.stack([self._between_cells(of_cells, seen, slice(i, None, 2)) for i in (0, 1)]) / leash_squared,
            cell_steps=steps,
        )

    def _within(
        self, of_cells: Solution, of_groups: Solution, members: th.Tensor, cell_to_group: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        :return: step-weighted mean of ``KL(probe of a cell || joint probe)`` on a leash of 1, and its standard error,
            shape ``(K,)``
        """
        (own, rest), (joint_own, joint_rest) = (apart(*solution) for solution in (of_cells, of_groups))
        own, rest = own - joint_own[:, cell_to_group], rest - joint_rest[:, cell_to_group]
        each = product(own, rest, *self._moments(th.eye(len(cell_to_group), device=own.device)))
        weights = self.steps.unsqueeze(1) * members  # (N_FOLDS, K, C)
        weights = weights / weights.sum(dim=(0, 2), keepdim=True)
        by_fold = (weights * each.nan_to_num().unsqueeze(1)).sum(dim=2)
        mean, share = by_fold.sum(dim=0), weights.sum(dim=2)
        error = ((by_fold - share * mean).square().sum(dim=0) * N_FOLDS / (N_FOLDS - 1)).sqrt()
        # the noise of a fold enters twice, by itself and in the rest of all others; the spread shows only the first
        return mean, 2 * error

    def _between_cells(self, of_cells: Solution, seen: th.Tensor, folds: slice) -> th.Tensor:
        """
        :param folds: whose data are used
        :return: KL between the probes of cells on a leash of 1, on the data of the first, shape ``(C, C)``
        """
        contributions, shares = (entry[folds] for entry in of_cells)
        total = shares.sum(dim=0)
        kl = distances(contributions / total[:, None, None], shares / total, *self._moments(th.diag(seen)))
        return kl.clamp(min=0)

    def _within_union(self, of_groups: Solution, members: th.Tensor) -> th.Tensor:
        """
        :return: how much two groups would contradict each other in one: step-weighted mean of
            ``KL(joint probe of a group || joint probe of both)`` on a leash of 1, shape ``(K, K)``; NaN where unknown
        """
        steps, (_, shares) = self.steps @ members.T, of_groups
        known = 1 - shares.square().sum(dim=0) > MIN_DIFFERENT
        pairs = th.combinations((known & (steps.sum(dim=0) > 0)).nonzero().flatten())
        of_unions = apart(*self._solve(members[pairs].sum(dim=1)))
        sums = steps.new_zeros(len(pairs))
        for group in pairs.T:
            own, rest = (part[:, group] - union for part, union in zip(apart(*of_groups), of_unions, strict=True))
            kl = product(own, rest, *(moment[group] for moment in self._moments(members)))
            sums += (steps[:, group] * kl.nan_to_num()).sum(dim=0)
        united = steps.new_full((len(members), len(members)), th.nan)
        first, second = pairs.T
        united[first, second] = united[second, first] = sums / steps[:, pairs].sum(dim=(0, 2))
        return united.fill_diagonal_(0.0)

    def _heads_between(self, cell_to_group: th.Tensor, outputs: th.Tensor, log_std: th.Tensor | None) -> th.Tensor:
        """
        :return: mean of ``KL(head i || head j)``, in closed form, over the kept steps of groups ``i`` and ``j``, ``(K, K)``
        """
        n_groups = outputs.shape[1]
        groups = cell_to_group[self.cells[self.cells >= 0]]
        steps = groups.bincount(minlength=n_groups)
        params, kl = self.family.params(outputs, log_std), outputs.new_full((n_groups, n_groups), th.nan)
        for i in groups.unique().tolist():
            one = self.family.params(outputs[:, i : i + 1], None if log_std is None else log_std[:, i : i + 1])
            sums = sum_by(self.family.kl(one, params), groups, n_groups)
            kl[i] = (sums[i] + sums.diagonal()) / (steps[i] + steps)
        return kl


def product(left: th.Tensor, right: th.Tensor, score_moment: th.Tensor, latent_moment: th.Tensor) -> th.Tensor:
    """
    ``<X, G Y S> / 2``: to second order the KL divergence between heads that differ by ``X = Y``.

    :param left: ``X``, shape ``(..., n, d)``
    :param right: ``Y``, same shape
    :param score_moment: ``G``, shape ``(..., n, n)``
    :param latent_moment: ``S``, shape ``(..., d, d)``
    :return: nats, shape ``(...)``
    """
    return 0.5 * (left * (score_moment @ right @ latent_moment)).sum(dim=(-2, -1))


def apart(contributions: th.Tensor, shares: th.Tensor) -> Solution:
    """
    :param contributions: of each fold to a mean, shape ``(N_FOLDS, P, n, d)``
    :param shares: of each fold in the steps, shape ``(N_FOLDS, P)``
    :return: for each fold the mean of its own data, and that of all other data; NaN where there are none
    """
    shares = shares[:, :, None, None]
    return contributions / shares, (contributions.sum(dim=0) - contributions) / (1 - shares)


def distances(contributions: th.Tensor, shares: th.Tensor, score_moment: th.Tensor, latent_moment: th.Tensor) -> th.Tensor:
    """
    :param contributions: of each fold to the probes, shape ``(N_FOLDS, P, n, d)``
    :param shares: of each fold in the steps, shape ``(N_FOLDS, P)``
    :param score_moment: second moments of the probes' data, shape ``(P, n, n)``
    :param latent_moment: shape ``(P, d, d)``
    :return: ``KL(a || b)`` on the data of ``a``, without the part that is noise, shape ``(P, P)``; NaN for data that
        are all in one fold
    """
    probes, moments = contributions.sum(dim=0), (score_moment.unsqueeze(1), latent_moment.unsqueeze(1))
    # rows: on the data of a; columns: the square of b, without the products of a fold with itself
    squares = product(probes.unsqueeze(0), probes.unsqueeze(0), *moments)
    for fold in contributions:
        squares = squares - product(fold.unsqueeze(0), fold.unsqueeze(0), *moments)
    different = 1 - shares.square().sum(dim=0)
    squares = squares / different.where(different > MIN_DIFFERENT, th.nan)
    # the data of different probes are different: their products need no correction
    mixed = product(probes.unsqueeze(1), probes.unsqueeze(0), *moments)
    return squares.diagonal().unsqueeze(1) + squares - 2 * mixed
