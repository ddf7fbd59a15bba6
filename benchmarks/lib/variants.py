"""
Vary GRPO by overriding its internals: the only file of the sweeps that depends on how ``train`` is built.

The sweeps compare other levers of the balance, and other balancing rules, with the package's own.
"""

from typing import Any

import numpy as np
import torch as th
from scipy.special import softmax
from stable_baselines3.common.buffers import RolloutBuffer
from torchjd.aggregation import UPGrad

from benchmarks.lib.tasks import N_TASKS
from sb3_grpo import GRPO
from sb3_grpo.buffers import GroupRolloutBufferSamples
from sb3_grpo.heads import HEAD_DIMS, split_heads
from sb3_grpo.losses import GroupBalance, group_means, group_std
from sb3_grpo.update import EagerUpdate, FlatUpdate, Update, UpdateTerms, trained_parameters


class TaskNormalisedBuffer(RolloutBuffer):
    """Normalise PPO's advantages per task, which the last ``N_TASKS`` columns of the observation show."""

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        """
        Compute returns and advantages as SB3 does, then normalise the advantages.

        :param last_values: values of the observations after the rollout, shape ``(n_envs,)``
        :param dones: whether an episode has ended with the rollout, shape ``(n_envs,)``
        """
        super().compute_returns_and_advantage(last_values, dones)
        tasks = self.observations[..., -N_TASKS:].argmax(axis=-1).ravel()
        advantages, counts = self.advantages.ravel(), np.bincount(tasks, minlength=N_TASKS)
        means, deviations = (statistic(advantages, tasks, counts)[tasks] for statistic in (group_means, group_std))
        self.advantages = ((advantages - means) / (deviations + 1e-8)).astype(np.float32).reshape(self.advantages.shape)


class TrustRegionGRPO(GRPO):
    """Multiply the clip range by the weight of the group, instead of the loss."""

    def _surrogate(self, ratio: th.Tensor, advantages: th.Tensor, weights: th.Tensor, clip_range: float) -> th.Tensor:
        region = clip_range * weights
        return th.min(advantages * ratio, advantages * th.clamp(ratio, 1 - region, 1 + region))


class StepSizeGRPO(GRPO):
    """Multiply the steps of the action heads by the weights of their groups, instead of the loss."""

    def _compare_groups(self) -> tuple[Any, GroupBalance]:
        rollout, balance = super()._compare_groups()
        self.head_weights = weight_table(self, balance.groups, balance.weights)
        return rollout._replace(weights=th.ones_like(rollout.weights)), balance

    def _make_update(self, max_kl: float | None) -> Update:
        update = super()._make_update(max_kl)
        assert isinstance(update, FlatUpdate)
        return ScaledHeads(update, self.head_weights)


class ScaledHeads:
    """
    Scale the steps that an update takes.

    :param update: takes the steps
    :param head_weights: factor of the steps of each action head, shape ``(n_heads,)``
    """

    def __init__(self, update: FlatUpdate, head_weights: th.Tensor):
        self.update = update
        factors = []
        for name, parameter in zip(update.names, update.parameters, strict=True):
            factor = th.ones_like(parameter)
            if name in HEAD_DIMS and not name.startswith("value_net"):
                heads = split_heads(factor, HEAD_DIMS[name], len(head_weights))
                heads *= head_weights.view(-1, *[1] * (heads.ndim - 1))
            factors.append(factor.flatten())
        self.factor = th.cat(factors)

    def __enter__(self) -> Update:
        self.update.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.update.__exit__()

    def __call__(self, batch: GroupRolloutBufferSamples, clip_range: float, clip_range_vf: float | None) -> UpdateTerms:
        before = self.update.flat.clone()
        terms = self.update(batch, clip_range, clip_range_vf)
        self.update.flat.copy_(th.lerp(before, self.update.flat, self.factor))
        return terms


class SoftmaxGRPO(GRPO):
    """Weigh groups by ``q_i / share_i`` with ``q_i ~ share_i exp(-R_i / sigma_R)``: 1 where all groups are alike."""

    def _compare_groups(self) -> tuple[GroupRolloutBufferSamples, GroupBalance]:
        rollout, balance = super()._compare_groups()
        shares = balance.steps / balance.steps.sum()
        weights = softmax(np.log(shares) - balance.scores / balance.scale) / shares
        table = weight_table(self, balance.groups, weights)
        return rollout._replace(weights=table[rollout.groups]), balance._replace(weights=weights)


def weight_table(model: GRPO, groups: np.ndarray, weights: np.ndarray) -> th.Tensor:
    """
    Return the weight of each head, 1 where the rollout did not see its group; shape ``(n_heads,)``.

    :param model: model with these groups
    :param groups: groups that the rollout saw, shape ``(n_seen,)``
    :param weights: their weights, shape ``(n_seen,)``
    """
    table = th.ones(model.policy.max_groups)
    table[th.as_tensor(groups)] = th.as_tensor(weights).float()
    return table


class UPGradGRPO(GRPO):
    """Aggregate the gradients of the groups' losses by UPGrad, where the groups share parameters."""

    def _make_update(self, max_kl: float | None) -> Update:
        return UPGradUpdate(self.policy, self._update_terms, self.max_grad_norm, max_kl)


class UPGradUpdate(EagerUpdate):
    """Step along UPGrad's direction on shared layers; arguments are those of ``EagerUpdate``."""

    def __enter__(self) -> "UPGradUpdate":
        super().__enter__()
        self.aggregator = UPGrad()
        self.shared = [p for name, p in trained_parameters(self.policy).items() if name not in HEAD_DIMS]
        self.heads = [p for name, p in trained_parameters(self.policy).items() if name in HEAD_DIMS]
        return self

    def __call__(self, batch: GroupRolloutBufferSamples, clip_range: float, clip_range_vf: float | None) -> UpdateTerms:
        terms = self.loss(batch, clip_range, clip_range_vf).judge(self.max_kl)
        if terms.accepted:
            losses = []
            for group in batch.groups.unique():
                of_group = GroupRolloutBufferSamples(*(field[batch.groups == group] for field in batch))
                losses.append(self.loss(of_group, clip_range, clip_range_vf).loss)
            self._descend(losses)
        return terms

    def _descend(self, losses: list[th.Tensor]) -> None:
        rows = [th.autograd.grad(loss, [*self.shared, *self.heads], retain_graph=True) for loss in losses]
        n_shared = len(self.shared)
        jacobian = th.stack([th.cat([gradient.flatten() for gradient in row[:n_shared]]) for row in rows])
        sizes = [parameter.numel() for parameter in self.shared]
        # UPGrad is linear in the scale, but ignores gradients below a fixed threshold, as those early in training are
        scale = jacobian.norm().clamp(min=1e-12)
        shared_gradient = self.aggregator(jacobian / scale) * scale
        for parameter, gradient in zip(self.shared, shared_gradient.split(sizes), strict=True):
            parameter.grad = gradient.view_as(parameter)
        # each head belongs to one group, so that nothing conflicts; UPGrad is a mean over the losses too
        for position, parameter in enumerate(self.heads):
            parameter.grad = th.stack([row[n_shared + position] for row in rows]).mean(dim=0)
        th.nn.utils.clip_grad_norm_([*self.shared, *self.heads], self.max_grad_norm)
        self.optimizer.step()
