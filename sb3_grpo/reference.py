"""Reference policy: an earlier state of the policy, from which the KL divergence in the loss is measured."""

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import polyak_update

from sb3_grpo.buffers import Rollout
from sb3_grpo.policies import GroupActorCriticPolicy

# Steps whose log-likelihoods are computed at once
CHUNK = 4096
Policy = TypeVar("Policy", bound=ActorCriticPolicy)


def frozen_copy(policy: Policy) -> Policy:
    """
    Copy a policy that is not to be trained.

    :param policy: of this package or of SB3
    :return: a copy without an optimizer and gradients, in evaluation mode
    """
    # gSDE's noise is part of a graph that cannot be copied, and neither the most likely actions nor log-likelihoods need it
    others = {id(policy.optimizer): None, id(policy.action_dist): copy.copy(policy.action_dist)}
    copied = copy.deepcopy(policy, others)
    copied.requires_grad_(False)
    copied.set_training_mode(False)
    return copied


class ReferencePolicy:
    """
    Copy of a policy that is not trained; it has its own groups, so that those of the policy may merge and split.

    :param policy: what is copied, without the state of its optimizer
    """

    def __init__(self, policy: GroupActorCriticPolicy):
        self.policy = frozen_copy(policy)
        # heads that are replaced are replaced in the optimizer too: one without moments, which never takes a step
        self.policy.optimizer = th.optim.SGD(self.policy.parameters(), lr=0.0)

    def follow(self, policy: GroupActorCriticPolicy, tau: float) -> None:
        """
        Move towards the policy.

        :param policy: the policy
        :param tau: share of the policy, above 0, at most 1 (Polyak averaging); where the groups have changed since, the
            reference becomes the policy, because heads that differ have no average
        """
        groups = self.policy.grouping.cell_to_group.equal(policy.grouping.cell_to_group)
        if tau == 1 or not groups or self.policy.n_heads != policy.n_heads:
            self.load(policy.state_dict())
            return
        polyak_update(policy.parameters(), self.policy.parameters(), tau)
        for own, other in zip(self.policy.buffers(), policy.buffers(), strict=True):
            own.copy_(other)

    def load(self, state_dict: Mapping[str, th.Tensor]) -> None:
        """
        Become the policy of a ``state_dict``.

        :param state_dict: of a policy with the same cells
        """
        self.policy.load_state_dict(state_dict)
        self.policy.requires_grad_(False)

    @th.no_grad()
    def log_prob(self, rollout: Rollout) -> th.Tensor:
        """
        Compute the log-likelihood of the actions of a rollout.

        :param rollout: ``B`` steps
        :return: shape ``(B,)``
        """
        policy, parts = self.policy, []
        for indices in th.arange(len(rollout.heads), device=rollout.heads.device).split(CHUNK):
            steps = rollout.at(indices)
            actions = steps.actions.long().flatten() if isinstance(policy.action_space, spaces.Discrete) else steps.actions
            parts.append(policy.evaluate_actions(steps.observations, actions)[1])
        return th.cat(parts)
