"""Objective: PPO's loss of one minibatch, with the weights of the groups."""

from dataclasses import dataclass
from typing import NamedTuple

import torch as th
from gymnasium import spaces
from torch.nn import functional as F

from sb3_grpo.buffers import Rollout
from sb3_grpo.losses import clipped_surrogate
from sb3_grpo.policies import GroupActorCriticPolicy


class LossTerms(NamedTuple):
    """Loss of a minibatch of ``b`` steps and its terms; the names of the terms are SB3's, after ``train/``."""

    loss: th.Tensor  # scalar, what is minimised
    policy_gradient_loss: th.Tensor  # scalar
    value_loss: th.Tensor  # scalar, 0 without a critic
    entropy_loss: th.Tensor  # scalar
    log_ratio: th.Tensor  # log-probability of the actions, new minus old, shape (b,)


@dataclass(frozen=True)
class PPOObjective:
    """
    PPO's loss, in which each step's surrogate is multiplied by the weight of its group.

    At the policy that collected the rollout its gradient is that of ``L_PPO + lambda * L_group``.

    :param ent_coef: coefficient of the entropy loss
    :param vf_coef: coefficient of the value loss, if the policy has a critic
    :param normalize_advantage: normalise the advantages of each minibatch, as PPO does
    """

    ent_coef: float
    vf_coef: float
    normalize_advantage: bool

    def __call__(
        self, policy: GroupActorCriticPolicy, batch: Rollout, clip_range: float, clip_range_vf: float | None
    ) -> LossTerms:
        """
        Compute the loss of a minibatch; operations and their order are SB3's, so that results agree to the last bit.

        :param policy: what is trained
        :param batch: ``b`` steps of a rollout
        :param clip_range: clipping parameter of the surrogate, above 0
        :param clip_range_vf: clipping parameter of the value function, in the unit of the value heads; ``None``: no clipping
        :return: the loss and its terms
        """
        actions = batch.actions.long().flatten() if isinstance(policy.action_space, spaces.Discrete) else batch.actions
        values, log_prob, entropy = policy.evaluate_rollout(batch.observations, actions, batch.heads)
        advantages = batch.advantages
        if self.normalize_advantage and len(advantages) > 1:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)

        log_ratio = log_prob - batch.old_log_prob
        policy_loss = -self.surrogate(log_ratio.exp(), advantages, batch.weights, clip_range).mean()
        value_loss = self.value_loss(policy, batch, values, clip_range_vf) if policy.use_critic else policy_loss.new_zeros(())
        # where the entropy has no analytical form, -log_prob is an estimate of it
        entropy_loss = -th.mean(-log_prob if entropy is None else entropy)
        loss = policy_loss if self.ent_coef == 0 else policy_loss + self.ent_coef * entropy_loss
        loss = loss + self.vf_coef * value_loss
        return LossTerms(loss, policy_loss, value_loss, entropy_loss, log_ratio)

    def value_loss(
        self, policy: GroupActorCriticPolicy, batch: Rollout, values: th.Tensor, clip_range_vf: float | None
    ) -> th.Tensor:
        """
        Compute the mean squared error of values.

        :param policy: what is trained; has a critic
        :param batch: ``b`` steps of a rollout
        :param values: values of the steps by the present policy, shape ``(b, 1)``
        :param clip_range_vf: see :meth:`__call__`
        :return: scalar, in the squared unit of the value heads
        """
        values, old_values, returns = values.flatten(), batch.old_values, batch.returns
        if policy.value_scale is not None:
            values, old_values, returns = (
                policy.value_scale.normalize(tensor, batch.heads) for tensor in (values, old_values, returns)
            )
        if clip_range_vf is not None:
            values = old_values + th.clamp(values - old_values, -clip_range_vf, clip_range_vf)
        return F.mse_loss(returns, values)

    def surrogate(self, ratio: th.Tensor, advantages: th.Tensor, weights: th.Tensor, clip_range: float) -> th.Tensor:
        """
        Compute what is maximised at each step.

        :param ratio: probability ratio of new to old policy, shape ``(b,)``
        :param advantages: shape ``(b,)``
        :param weights: weight of the group of each step, shape ``(b,)``
        :param clip_range: clipping parameter, above 0
        :return: shape ``(b,)``
        """
        return clipped_surrogate(ratio, advantages * weights, clip_range)
