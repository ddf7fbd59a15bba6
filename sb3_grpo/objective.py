"""Objective: PPO's loss of one minibatch, with the weights of the groups."""

from dataclasses import dataclass
from typing import NamedTuple

import torch as th
from gymnasium import spaces
from torch.nn import functional as F

from sb3_grpo.buffers import Rollout
from sb3_grpo.losses import clipped_surrogate, k3, trajectory_log_ratio
from sb3_grpo.policies import GroupActorCriticPolicy


class LossTerms(NamedTuple):
    """Loss of a minibatch of ``b`` steps and its terms; the names of the terms are SB3's, after ``train/``."""

    loss: th.Tensor  # scalar, what is minimised
    policy_gradient_loss: th.Tensor  # scalar
    value_loss: th.Tensor  # scalar, 0 without a critic
    entropy_loss: th.Tensor  # scalar
    log_ratio: th.Tensor  # log-probability of the actions, new minus old, shape (b,)
    reference_kl: th.Tensor  # scalar, KL divergence from the reference policy in nats, 0 without one


@dataclass(frozen=True)
class PPOObjective:
    """
    PPO's loss, in which what trains the policy at a step is multiplied by the weight of the step's group.

    These are the surrogate, the entropy bonus and the divergence from a reference policy; the value loss is not weighted.

    At the policy that collected the rollout its gradient is that of ``L_PPO + lambda * L_group``.

    :param ent_coef: coefficient of the entropy loss
    :param vf_coef: coefficient of the value loss, if the policy has a critic
    :param normalize_advantage: normalise the advantages of each minibatch, as PPO does
    :param clip_range_high: clipping parameter above 1; ``None``: the same on both sides
    :param kl_coef: coefficient of the KL divergence from the reference policy
    """

    ent_coef: float
    vf_coef: float
    normalize_advantage: bool
    clip_range_high: float | None = None
    kl_coef: float = 0.0

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
        ratio = (log_ratio if batch.trajectories is None else trajectory_log_ratio(log_ratio, batch.trajectories)).exp()
        policy_loss = -mean_loss(self.surrogate(ratio, advantages, batch.weights, clip_range), batch.shares)
        zero = policy_loss.new_zeros(())
        value_loss = self.value_loss(policy, batch, values, clip_range_vf) if policy.use_critic else zero
        # where the entropy has no analytical form, -log_prob is an estimate of it
        bonus = -log_prob if entropy is None else entropy
        entropy_loss = -mean_loss(bonus, batch.shares)
        loss = policy_loss
        if self.ent_coef != 0:
            # a group whose surrogate has weight 0 would be trained to act at random by a whole bonus
            loss = loss + self.ent_coef * -mean_loss(bonus * batch.weights, batch.shares)
        loss = loss + self.vf_coef * value_loss
        if batch.reference_log_prob is None:
            return LossTerms(loss, policy_loss, value_loss, entropy_loss, log_ratio, zero)
        divergence = k3(log_prob, batch.reference_log_prob)
        loss = loss + self.kl_coef * mean_loss(divergence * batch.weights, batch.shares)
        reference_kl = mean_loss(divergence, batch.shares)
        return LossTerms(loss, policy_loss, value_loss, entropy_loss, log_ratio, reference_kl)

    def logged_terms(self, use_critic: bool) -> list[str]:
        """
        Return the names of the terms of the loss that there are.

        :param use_critic: whether the policy has a critic
        """
        names = {
            "policy_gradient_loss": True,
            "value_loss": use_critic,
            "entropy_loss": True,
            "reference_kl": self.kl_coef > 0,
        }
        return [name for name, is_term in names.items() if is_term]

    def value_loss(
        self, policy: GroupActorCriticPolicy, batch: Rollout, values: th.Tensor, clip_range_vf: float | None
    ) -> th.Tensor:
        """
        Compute the mean squared error of values.

        :param policy: what is trained; has a critic
        :param batch: ``b`` steps of a rollout
        :param values: values of the steps by the present policy, shape ``(b, n_objectives)``
        :param clip_range_vf: see :meth:`__call__`
        :return: scalar, in the squared unit of the value heads
        """
        values, old_values, returns = values.view_as(batch.returns), batch.old_values, batch.returns
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
        return clipped_surrogate(ratio, advantages * weights, clip_range, self.clip_range_high)


def mean_loss(losses: th.Tensor, shares: th.Tensor | None) -> th.Tensor:
    """
    Average what each step contributes to the loss.

    :param losses: shape ``(b,)``
    :param shares: factor of each step, whose mean over the rollout is 1, shape ``(b,)``; ``None``: 1
    :return: scalar
    """
    return (losses if shares is None else losses * shares).mean()
