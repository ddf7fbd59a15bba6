"""
Give every objective a sub-policy of its own: an action head that learns from this objective alone.

The logits (of Box actions the means) of all heads are summed. On one trunk the sum of linear heads is one linear head; what
differs is that each head has the gradient of its own objective, and moments of its own in the optimizer.
"""

from dataclasses import astuple
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn
from torch.nn import functional as F

from sb3_grpo import GRPO
from sb3_grpo.buffers import Rollout
from sb3_grpo.group_kinds import ObjectiveGroups
from sb3_grpo.losses import clipped_surrogate
from sb3_grpo.objective import LossTerms, PPOObjective
from sb3_grpo.policies import GroupActorCriticPolicy
from sb3_grpo.recording import Outcome


class SumOfHeads(nn.Linear):
    """
    Sum the outputs of several linear heads; they begin with equal shares of one of them.

    :param head: the head that the sum begins as
    :param n_heads: number of heads
    """

    def __init__(self, head: nn.Linear, n_heads: int):
        super().__init__(head.in_features, head.out_features)
        self.weight = nn.Parameter(head.weight.detach().repeat(n_heads, 1, 1) / n_heads)
        self.bias = nn.Parameter(head.bias.detach().repeat(n_heads, 1) / n_heads)
        self.learner: int | None = None  # the only head that has a gradient; None: all have

    def forward(self, latent: th.Tensor) -> th.Tensor:
        """
        Compute the sum.

        :param latent: shape ``(B, in_features)``
        :return: shape ``(B, out_features)``
        """
        weight: th.Tensor = self.weight
        bias: th.Tensor = self.bias
        if self.learner is not None:
            learns = (th.arange(len(weight)) == self.learner)[:, None]
            weight = th.where(learns[:, None], weight, weight.detach())
            bias = th.where(learns, bias, bias.detach())
        return F.linear(latent, weight.sum(dim=0), bias.sum(dim=0))


class SubPolicies(GroupActorCriticPolicy):
    """Policy whose action head is a :class:`SumOfHeads`; parameters as its base class."""

    action_net: SumOfHeads

    def __init__(self, observation_space: Any, action_space: Any, lr_schedule: Any, *args: Any, **kwargs: Any):
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)
        assert isinstance(self.action_net, nn.Linear)
        self.action_net = SumOfHeads(self.action_net, self.n_objectives)
        settings: dict[str, Any] = {"lr": lr_schedule(1), **self.optimizer_kwargs}
        self.optimizer = self.optimizer_class(self.parameters(), **settings)


class OneAdvantageEach(ObjectiveGroups):
    """Leave the weighted advantages of the objectives apart, parameters as its base class."""

    def join(self, rollout: Rollout, outcome: Outcome, advantages: np.ndarray, weights: np.ndarray) -> Rollout:
        """Give each step the weighted advantages of all objectives, shape ``(B, K)``."""
        joined = super().join(rollout, outcome, advantages, weights)
        apart = (advantages * weights).reshape(len(self.names), -1).T
        return joined._replace(advantages=th.as_tensor(np.ascontiguousarray(apart), dtype=th.float32))


class SubPolicyObjective(PPOObjective):
    """PPO's loss in which each head has the gradient of its own objective, and the trunk that of all of them."""

    def __call__(self, policy: Any, batch: Rollout, clip_range: float, clip_range_vf: float | None) -> LossTerms:
        """Compute the loss of a minibatch, see ``PPOObjective``."""
        total = batch.advantages.sum(dim=1)
        scale = total.std() + 1e-8 if self.normalize_advantage else total.new_ones(())
        mean = batch.advantages.mean(dim=0) if self.normalize_advantage else total.new_zeros(batch.advantages.shape[1])
        rest = super().__call__(policy, batch._replace(advantages=th.zeros_like(total)), clip_range, clip_range_vf)
        actions = batch.actions.long().flatten() if isinstance(policy.action_space, spaces.Discrete) else batch.actions
        loss = rest.loss
        for objective, advantages in enumerate(((batch.advantages - mean) / scale).T):
            policy.action_net.learner = objective
            log_prob = policy.evaluate_rollout(batch.observations, actions, batch.heads)[1]
            loss = loss - clipped_surrogate((log_prob - batch.old_log_prob).exp(), advantages, clip_range).mean()
        policy.action_net.learner = None
        return rest._replace(loss=loss)


class SubPolicyGRPO(GRPO):
    """GRPO of objectives with a sub-policy for each of them; its policy must be :class:`SubPolicies`."""

    def _setup_model(self) -> None:
        super()._setup_model()
        self._kind = OneAdvantageEach(self.policy, self.objective_names)

    def _make_objective(self) -> PPOObjective:
        return SubPolicyObjective(*astuple(super()._make_objective()))
