"""
Vary GRPO by overriding its internals: the only file of the sweeps that depends on how ``train`` is built.

The sweeps compare other levers of the balance, and other balancing rules, with the package's own.
"""

from dataclasses import astuple
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from torchjd.aggregation import UPGrad

from benchmarks.lib.tasks import N_TASKS
from sb3_grpo import GRPO
from sb3_grpo.balancing import GroupWeights
from sb3_grpo.buffers import Rollout
from sb3_grpo.estimators import Experience
from sb3_grpo.heads import HEAD_DIMS, split_heads
from sb3_grpo.losses import group_means, group_std
from sb3_grpo.objective import PPOObjective
from sb3_grpo.scores import GroupScores
from sb3_grpo.update import EagerUpdate, FlatStepper, OptimizerStepper, Update, UpdateStep, trained_parameters


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


class OwnDeviationGRPO(GRPO):
    """Divide the advantages of each group by their standard deviation, however small it is."""

    def _normalize_advantages(self, experience: Experience) -> tuple[np.ndarray, np.ndarray | None]:
        # a group with a reward in the rollout has no smallest divisor
        paid = np.ones_like(experience.outcome.paid)
        return super()._normalize_advantages(experience._replace(outcome=experience.outcome._replace(paid=paid)))


class TrustRegionObjective(PPOObjective):
    """PPO's loss with the clip range, not the surrogate, multiplied by the weight of the group."""

    def surrogate(self, ratio: th.Tensor, advantages: th.Tensor, weights: th.Tensor, clip_range: float) -> th.Tensor:
        """Compute what is maximised at each step, see ``PPOObjective``."""
        region = clip_range * weights
        return th.min(advantages * ratio, advantages * th.clamp(ratio, 1 - region, 1 + region))


class TrustRegionGRPO(GRPO):
    """Multiply the clip range by the weight of the group, instead of the loss."""

    def _make_objective(self) -> PPOObjective:
        return TrustRegionObjective(*astuple(super()._make_objective()))


class StepSizeGRPO(GRPO):
    """Multiply the steps of the action heads by the weights of their groups, instead of the loss."""

    def _weigh_groups(self, *args: Any) -> tuple[GroupScores, GroupWeights]:
        scores, weights = super()._weigh_groups(*args)
        by_group = dict(zip(scores.groups.tolist(), weights.weights.tolist(), strict=True))
        self.head_weights = th.tensor([by_group.get(group, 1.0) for group in self.policy.grouping.heads])
        return scores, weights._replace(weights=np.ones_like(weights.weights))

    def _make_update(self) -> Update:
        update = super()._make_update()
        assert isinstance(update, EagerUpdate)
        assert isinstance(update.stepper, FlatStepper)
        update.stepper = ScaledHeads(update.stepper, self.head_weights)
        return update


class ScaledHeads:
    """
    Scale the steps that a stepper takes.

    :param stepper: takes the steps
    :param head_weights: factor of the steps of each action head, shape ``(n_heads,)``
    """

    def __init__(self, stepper: FlatStepper, head_weights: th.Tensor):
        self.stepper = stepper
        factors = []
        for name, parameter in zip(stepper.names, stepper.parameters, strict=True):
            factor = th.ones_like(parameter)
            if name in HEAD_DIMS and not name.startswith("value_net"):
                heads = split_heads(factor, HEAD_DIMS[name], len(head_weights))
                heads *= head_weights.view(-1, *[1] * (heads.ndim - 1))
            factors.append(factor.flatten())
        self.factor = th.cat(factors)

    def __enter__(self) -> None:
        self.stepper.__enter__()

    def __exit__(self, *error: object) -> None:
        self.stepper.__exit__(*error)

    def clip_gradient(self, loss: th.Tensor) -> th.Tensor:
        """Compute and clip the gradient, see ``Stepper``."""
        return self.stepper.clip_gradient(loss)

    def step(self) -> None:
        """Take the scaled step."""
        before = self.stepper.flat.clone()
        self.stepper.step()
        self.stepper.flat.copy_(th.lerp(before, self.stepper.flat, self.factor))


class UPGradGRPO(GRPO):
    """Aggregate the gradients of the groups' losses by UPGrad, where the groups share parameters."""

    def _make_update(self) -> Update:
        return UPGradUpdate(self.policy, self._make_objective(), OptimizerStepper(self.policy, self.max_grad_norm), None)


class UPGradUpdate(EagerUpdate):
    """Step along UPGrad's direction on shared layers; arguments are those of ``EagerUpdate``."""

    stepper: OptimizerStepper

    def __enter__(self) -> "UPGradUpdate":
        super().__enter__()
        self.aggregator = UPGrad()
        self.shared = [p for name, p in trained_parameters(self.policy).items() if name not in HEAD_DIMS]
        self.heads = [p for name, p in trained_parameters(self.policy).items() if name in HEAD_DIMS]
        return self

    def __call__(self, batch: Rollout, clip_range: float, clip_range_vf: float | None) -> UpdateStep:
        """Use one minibatch, see ``Update``."""
        step = UpdateStep.of(self.objective(self.policy, batch, clip_range, clip_range_vf), self.max_kl)
        if step.accepted:
            losses = []
            for head in batch.heads.unique():
                of_group = batch.at((batch.heads == head).nonzero().flatten())
                losses.append(self.objective(self.policy, of_group, clip_range, clip_range_vf).loss)
            self._descend(losses)
        return step

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
        th.nn.utils.clip_grad_norm_([*self.shared, *self.heads], self.stepper.max_grad_norm)
        self.stepper.step()
