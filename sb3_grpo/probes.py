"""Probes: estimate for each cell the head that its own data ask for, and how far these heads differ."""

import math

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_grpo.distributions import ActionDistribution
from sb3_grpo.probe_math import (
    N_FOLDS,
    HeadOutputs,
    Sums,
    between_kl,
    cells_kl,
    heads_kl,
    limited_scale,
    pack_symmetric,
    random_projection,
    std_by,
    unpack_symmetric,
    within_kl,
)
from sb3_grpo.regroup_plan import Divergences, is_contradiction, sum_by, sum_products_by

# Number of steps after which the weight of a step in the sums has halved
HALF_LIFE = 8000
# Minimum decayed number of steps with which a cell takes part
MIN_CELL_COUNT = 100
# Minimum decayed number of steps, over all its cells, with which the KL within a group is measured
MIN_GROUP_COUNT = 4000
# Advantages are divided by the largest standard deviation of any rollout so far, which halves after this many steps
SCALE_HALF_LIFE = 100_000
# Advantages are clipped to this many standard deviations, so that no single step dominates a probe
MAX_ADVANTAGE = 3.0
# Latent vectors and gradients with more entries are projected (fixed, at random) to this many
MAX_DIM = 64
# ... and to fewer with many cells, so that second moments and gradients have at most this many entries over all cells
MAX_MOMENT, MAX_GRADIENT = 2**20, 2**22
# ... but not to fewer than this
MIN_DIM = 8
# Number of the most recent latent vectors that are kept for measuring heads: the larger of the first number and the second
# times the number of cells. They are the largest part of the saved probes
N_KEPT, N_KEPT_PER_CELL = 512, 4
# A rollout with a larger sum of squares is skipped, because its sums would overflow
MAX_SQUARES = 1e30
# Folds from which the KL between cells is measured: all of them, and each half
PARTS = (slice(None), slice(0, None, 2), slice(1, None, 2))


class ProbeSums(nn.Module):
    """
    Hold the sufficient statistics of one probe per cell.

    The probe of a cell maximises ``E[rho A] - kl_coef * KL(probe || head)`` over the steps of the cell, where the head is
    that of the cell's group. The joint probe of a group does the same over the steps of all its cells.

    To second order in the change ``X`` of the head a probe is one natural-gradient step, ``X = F^-1 g / kl_coef``, with
    the policy gradient ``g`` and the Fisher matrix ``F`` of the head, and ``KL = <X, F X> / 2``, in nats. ``F`` is used in
    its Kronecker-factored form (https://arxiv.org/abs/1503.05671), ``F = G x S``: the second moments ``G`` of the gradient
    of the log-likelihood and ``S`` of the latent vector.

    The square of a noisy gradient is biased upwards: with few data every cell would seem to contradict every other. The
    data of a cell are therefore kept in ``N_FOLDS`` folds, and only products of different folds enter a square. Their
    noise is independent, so the estimate is unbiased, and it can be negative. The spread between the folds gives its
    standard error.

    The policy and its optimizer are not touched. No buffer is in the ``state_dict``; :meth:`saved_buffers` names those
    that must be saved.

    Long latent vectors and gradients are projected at random. The projection keeps the lengths of gradients on average, so
    that actions which the policy never takes do not change the measurement.

    :param latent_dim: size of the output of the policy's trunk
    :param n_outputs: number of outputs of one action head
    :param n_cells: number of cells
    :param shared_steps: whether every step belongs to all cells, so that they have the same counts and moments
    """

    gradient: th.Tensor  # sums of advantage * grad_log_prob x latent, by cell and fold, shape (C, N_FOLDS, n, d)
    scale: th.Tensor  # standard deviation of the advantages by which those of each cell are divided, shape (C,)
    counts: th.Tensor  # number of steps, decayed, shape (C, N_FOLDS); with `shared_steps` C is 1 here and below
    grad_moment: th.Tensor  # sums of grad_log_prob x grad_log_prob, lower triangle, shape (C, n * (n + 1) / 2)
    latent_moment: th.Tensor  # sums of latent x latent, lower triangle, shape (C, d * (d + 1) / 2)
    projection: th.Tensor | None  # of latent vectors, shape (latent_dim, d - 1); None: not projected
    grad_projection: th.Tensor | None  # of gradients, shape (n_outputs, n); None: not projected

    def __init__(self, latent_dim: int, n_outputs: int, n_cells: int, shared_steps: bool = False):
        super().__init__()
        dim = min(latent_dim, MAX_DIM, max(MIN_DIM, math.isqrt(MAX_MOMENT // n_cells)))
        grad_dim = min(n_outputs, MAX_DIM, max(MIN_DIM, MAX_GRADIENT // (N_FOLDS * n_cells * (dim + 1))))
        n_sets = 1 if shared_steps else n_cells
        buffers = {
            "projection": random_projection(latent_dim, dim, seed=0, unit=latent_dim),
            "grad_projection": random_projection(n_outputs, grad_dim, seed=1, unit=grad_dim),
            "scale": th.zeros(n_cells),
            "gradient": th.zeros(n_cells, N_FOLDS, grad_dim, dim + 1),
            "counts": th.zeros(n_sets, N_FOLDS),
            "grad_moment": th.zeros(n_sets, grad_dim * (grad_dim + 1) // 2),
            "latent_moment": th.zeros(n_sets, (dim + 1) * (dim + 2) // 2),
        }
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    def saved_buffers(self) -> list[str]:
        """Return the names of the buffers that must be saved for training to continue unchanged."""
        return [name for name, _ in self.named_buffers()]

    def _prepare(
        self, latent: th.Tensor, grad_log_prob: th.Tensor, advantages: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor] | None:
        """
        Project latent vectors and gradients, and decay the sums.

        A rollout with values that are NaN, infinite or so large that their squares overflow is skipped as a whole, so that
        all buffers stay finite.

        :return: latent vectors with a constant 1 and gradients, shapes ``(B, d)`` and ``(B, n)``; ``None``: to be skipped
        """
        points = F.pad(latent if self.projection is None else latent @ self.projection, (0, 1), value=1.0)
        grads = grad_log_prob if self.grad_projection is None else grad_log_prob @ self.grad_projection
        # unprojected latent vectors too, because heads are measured on them
        squares = sum(values.square().sum() for values in (latent, points, grads, advantages))
        if not squares <= MAX_SQUARES:
            return None
        for sums in (self.gradient, self.counts, self.grad_moment, self.latent_moment):
            sums.mul_(0.5 ** (len(latent) / HALF_LIFE))
        return points, grads

    def _update_scale(self, std: th.Tensor, n_steps: int) -> th.Tensor:
        """
        Return the largest standard deviation of each cell's advantages so far, shape ``(C,)``.

        With the standard deviation of the present rollout the small advantages of a converged policy would count as much
        as large ones, and small preferences would look like contradictions.

        :param std: that of the present rollout, shape ``(C,)`` or without dimensions
        :param n_steps: steps of the rollout
        """
        return self.scale.mul_(0.5 ** (n_steps / SCALE_HALF_LIFE)).clamp_(min=std)

    def sums(self, cells: th.Tensor) -> Sums:
        """
        Return the sums of some cells.

        :param cells: shape ``(P,)``
        :return: on the CPU, which is faster than a GPU at many small matrices
        """
        gradient, *others = (
            sums.expand(len(self.gradient), *sums.shape[1:])[cells].cpu()
            for sums in (self.gradient, self.counts, self.grad_moment, self.latent_moment)
        )
        counts, *moments = others
        return Sums(gradient, counts, *map(unpack_symmetric, moments))


class Probes(ProbeSums):
    """
    Measure KL divergences between cells and groups from the sums, and from recent latent vectors.

    Far from the head the second-order form holds no longer. Where the probes of a group's cells would on average be more than
    ``MAX_PROBE_KL`` from the head, all probes of the group get the larger coefficient that keeps them there. The KL within
    the group is then ``MAX_PROBE_KL`` times the share of what the cells ask for that their joint probe does not give them:
    strong common wishes do not look like a contradiction.

    :param latent_dim: size of the output of the policy's trunk
    :param n_outputs: number of outputs of one action head
    :param n_cells: number of cells
    :param family: action distributions
    :param masked: whether some of the actions may not be allowed
    """

    latent: th.Tensor  # the most recent latent vectors, shape (n_kept, latent_dim)
    cells: th.Tensor  # cell of each of them, shape (n_kept,); -1: empty
    masks: th.Tensor | None  # whether each action was allowed there, shape (n_kept, n_outputs); None: all were

    def __init__(self, latent_dim: int, n_outputs: int, n_cells: int, family: ActionDistribution, masked: bool = False):
        super().__init__(latent_dim, n_outputs, n_cells)
        self.family, self.n_outputs = family, n_outputs
        n_kept = max(N_KEPT, N_KEPT_PER_CELL * n_cells)
        masks = th.zeros(n_kept, n_outputs, dtype=th.bool) if masked else None
        buffers = {"latent": th.zeros(n_kept, latent_dim), "cells": th.full((n_kept,), -1), "masks": masks}
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    @th.no_grad()
    def learn(
        self,
        latent: th.Tensor,
        grad_log_prob: th.Tensor,
        advantages: th.Tensor,
        cells: th.Tensor,
        folds: th.Tensor,
        scale_by_cell: bool,
        masks: th.Tensor | None = None,
    ) -> None:
        """
        Add the steps of one rollout to the sums, after decaying them.

        A rollout with values that are not finite, or whose squares overflow, is skipped as a whole.

        :param latent: output of the trunk at ``B`` steps, shape ``(B, latent_dim)``
        :param grad_log_prob: gradient of the log-likelihood of the action with respect to the outputs of the head, shape
            ``(B, n_outputs)``
        :param advantages: shape ``(B,)``
        :param cells: shape ``(B,)``, integers in ``[0, C)``
        :param folds: fold of each step, shape ``(B,)``, integers in ``[0, N_FOLDS)``
        :param scale_by_cell: divide the advantages of each cell by their own standard deviation instead of that of the
            rollout, for cells whose rewards differ in scale
        :param masks: 1 where an action was allowed, shape ``(B, n_outputs)``; ``None``: all were
        """
        prepared = self._prepare(latent, grad_log_prob, advantages)
        if prepared is None:
            return
        points, grads = prepared
        n_cells, n_parts = len(self.scale), self.counts.numel()
        parts = cells * N_FOLDS + folds
        std = std_by(advantages, cells, n_cells) if scale_by_cell else advantages.std(correction=0)
        advantages = clip_advantages(advantages, self._update_scale(std, len(cells))[cells])
        counts, total = sum_by(th.stack([th.ones_like(advantages), advantages], dim=1), parts, n_parts).T
        # the mean advantage carries no preference between actions. It is subtracted within each fold of a cell: a mean
        # over folds would make them dependent
        centred = advantages - (total / counts.clamp(min=1))[parts]
        self.gradient += sum_products_by(centred.unsqueeze(1) * grads, points, parts, n_parts).view_as(self.gradient)
        self.counts += counts.view_as(self.counts)
        self.grad_moment += pack_symmetric(sum_products_by(grads, grads, cells, n_cells))
        self.latent_moment += pack_symmetric(sum_products_by(points, points, cells, n_cells))
        self._keep(latent, cells, masks)

    def _keep(self, latent: th.Tensor, cells: th.Tensor, masks: th.Tensor | None) -> None:
        """Append latent vectors, their cells and masks, and drop the oldest; of a long rollout every k-th step."""
        n_kept = len(self.cells)
        stride = -(-len(cells) // n_kept)
        self.latent.copy_(th.cat([self.latent, latent[::stride]])[-n_kept:])
        self.cells.copy_(th.cat([self.cells, cells[::stride]])[-n_kept:])
        if self.masks is not None and masks is not None:
            self.masks.copy_(th.cat([self.masks, masks[::stride] == 1])[-n_kept:])

    @th.no_grad()
    def measure(
        self,
        cell_to_group: th.Tensor,
        kl_coef: float,
        head_outputs: HeadOutputs,
        mergeable: th.Tensor,
        merge_kl: float | None,
        split_kl: float | None,
    ) -> Divergences:
        """
        Measure the KL divergences that decide about merges and splits; no buffer changes.

        Cells are compared with each other only within groups that exceed the thresholds of a split, while a group ID is
        unused.

        :param cell_to_group: group of each cell, shape ``(C,)``, integers in ``[0, K)``
        :param kl_coef: smallest coefficient of the KL divergence in the probes' objective, above 0
        :param head_outputs: computes the outputs of the heads of given groups
        :param mergeable: whether each group may be merged, shape ``(K,)``
        :param merge_kl: nats; ``None``: no merges
        :param split_kl: nats; ``None``: no splits
        :return: ``between`` is as :func:`sb3_grpo.probe_math.between_kl` returns it
        """
        cell_to_group, mergeable = cell_to_group.cpu(), mergeable.cpu()
        counts = self.counts.sum(dim=1).cpu()
        seen = counts >= MIN_CELL_COUNT
        cells = seen.nonzero().flatten()
        groups = cell_to_group[cells].unique()
        members = (cell_to_group[cells] == groups.unsqueeze(1)).float()
        cell_sums = self.sums(cells)
        group_sums = cell_sums.pooled(members)

        n_groups = len(mergeable)
        between = counts.new_full((n_groups, n_groups), th.nan)
        heads = self._heads_kl(cell_to_group, groups, head_outputs)
        between[groups.unsqueeze(1), groups] = between_kl(heads, group_sums, mergeable[groups], kl_coef, merge_kl or 0.0)
        within, within_error, scale = counts.new_full((3, n_groups), th.nan)
        # a group of one cell cannot contradict itself
        comparable = (members.sum(dim=1) > 1) & (group_sums.counts.sum(dim=1) >= MIN_GROUP_COUNT)
        indices = comparable.nonzero().flatten()
        measured = within_kl(cell_sums, group_sums, members, indices)
        scale[groups[indices]] = limited_scale(measured.probe_kl, kl_coef)
        for values, found in ((within, measured.kl), (within_error, measured.error)):
            values[groups[indices]] = found * scale[groups[indices]]

        contradicting = is_contradiction(within, within_error, split_kl) & (len(cell_to_group.unique()) < n_groups)
        by_part = counts.new_full((len(PARTS), len(seen), len(seen)), th.nan)
        for group in contradicting.nonzero().flatten().tolist():
            inside = (cell_to_group[cells] == group).nonzero().flatten()
            of_group = cells[inside]
            kl = cells_kl(cell_sums.pick(inside), PARTS).clamp(min=0) * scale[group]
            by_part[:, of_group.unsqueeze(1), of_group] = kl
        return Divergences(between, within, within_error, by_part[0], by_part[1:], counts * seen)

    def _heads_kl(self, cell_to_group: th.Tensor, groups: th.Tensor, head_outputs: HeadOutputs) -> th.Tensor:
        """
        Measure the KL between the heads of groups on the kept latent vectors of these groups.

        :param groups: shape ``(G,)``
        :return: nats, shape ``(G, G)``, see :func:`sb3_grpo.probe_math.heads_kl`
        """
        index_of_group = th.full((int(cell_to_group.max()) + 1,), -1)
        index_of_group[groups] = th.arange(len(groups))
        member = index_of_group[cell_to_group].to(self.cells.device)[self.cells].where(self.cells >= 0, -1)
        kept = (member >= 0).nonzero().flatten()
        groups = groups.to(self.cells.device)
        masks = None if self.masks is None else self.masks[kept]
        return heads_kl(self.latent[kept], member[kept], groups, head_outputs, self.family, self.n_outputs, masks)


class ObjectiveProbes(ProbeSums):
    """
    Hold the sufficient statistics of one probe per objective, which are its cells: every step belongs to all of them.

    :param latent_dim: size of the output of the policy's trunk
    :param n_outputs: number of outputs of the action head
    :param n_objectives: number of objectives
    """

    def __init__(self, latent_dim: int, n_outputs: int, n_objectives: int):
        super().__init__(latent_dim, n_outputs, n_objectives, shared_steps=True)

    @th.no_grad()
    def learn(self, latent: th.Tensor, grad_log_prob: th.Tensor, advantages: th.Tensor, folds: th.Tensor) -> None:
        """
        Add the steps of one rollout to the sums, after decaying them.

        A rollout with values that are not finite, or whose squares overflow, is skipped as a whole.

        :param latent: output of the trunk at ``B`` steps, shape ``(B, latent_dim)``
        :param grad_log_prob: gradient of the log-likelihood of the action with respect to the outputs of the head, shape
            ``(B, n_outputs)``
        :param advantages: of each objective, shape ``(K, B)``; each is divided by its own standard deviation
        :param folds: fold of each step, shape ``(B,)``, integers in ``[0, N_FOLDS)``
        """
        prepared = self._prepare(latent, grad_log_prob, advantages)
        if prepared is None:
            return
        points, grads = prepared
        scale = self._update_scale(advantages.std(dim=1, correction=0), len(folds))
        by_step = clip_advantages(advantages, scale.unsqueeze(1)).T
        counts = folds.bincount(minlength=N_FOLDS).to(by_step)
        # within each fold, as in `Probes`
        centred = by_step - (sum_by(by_step, folds, N_FOLDS) / counts.clamp(min=1).unsqueeze(1))[folds]
        products = sum_products_by((centred.unsqueeze(2) * grads.unsqueeze(1)).flatten(1), points, folds, N_FOLDS)
        self.gradient += products.unflatten(1, (len(scale), -1)).transpose(0, 1)
        self.counts += counts
        self.grad_moment += pack_symmetric(grads.T @ grads)
        self.latent_moment += pack_symmetric(points.T @ points)


def clip_advantages(advantages: th.Tensor, scale: th.Tensor) -> th.Tensor:
    """
    Divide advantages by their scale and clip them to ``MAX_ADVANTAGE``.

    :param advantages: any shape
    :param scale: at least 0, of a shape that fits
    """
    return (advantages / (scale + 1e-8)).clamp(-MAX_ADVANTAGE, MAX_ADVANTAGE)
