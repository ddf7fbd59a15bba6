"""Regrouping: observe what cells ask for, measure how groups differ, merge and split them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import StateDependentNoiseDistribution, TanhBijector
from torch import nn

from sb3_grpo.agreement import compare_objectives
from sb3_grpo.buffers import Rollout
from sb3_grpo.distributions import make_action_distribution, mask_outputs
from sb3_grpo.grouping import CellGroups
from sb3_grpo.interrupts import interrupts_delayed
from sb3_grpo.policies import GroupActorCriticPolicy
from sb3_grpo.probes import ObjectiveProbes, Probes, ProbeSums
from sb3_grpo.regroup_plan import Divergences, Merge, RegroupEvent, Split, plan_regrouping
from sb3_grpo.reward_scale import RewardScale

# Numbers in the outputs of all heads that are computed at once
MAX_OUTPUTS = 2**20
# Defaults of regroup_freq and regroup_warmup
REGROUP_STEPS = 2048
WARMUP_STEPS = 10_000


@dataclass(frozen=True)
class RegroupRule:
    """
    Thresholds and times of regrouping.

    :param merge_kl: groups that differ by less are merged, nats; ``None``: never
    :param split_kl: groups that contradict themselves by more are split, nats; ``None``: never
    :param probe_kl_coef: coefficient of the KL divergence from the group's head in the objective of the probes, above 0
    :param freq: the groups are looked at every so many rollouts
    :param warmup: rollouts before a group may be merged
    """

    merge_kl: float | None
    split_kl: float | None
    probe_kl_coef: float
    freq: int
    warmup: int

    @classmethod
    def of(
        cls,
        merge_kl: float | None,
        split_kl: float | None,
        probe_kl_coef: float,
        freq: int | None,
        warmup: int | None,
        rollout_steps: int,
    ) -> "RegroupRule":
        """
        Fill in the defaults of ``freq`` and ``warmup``, which are in steps because rollouts differ in length.

        :param merge_kl: as in the class
        :param split_kl: as in the class
        :param probe_kl_coef: as in the class
        :param freq: rollouts; ``None``: as many as make about ``REGROUP_STEPS`` steps
        :param warmup: rollouts; ``None``: as many as make ``WARMUP_STEPS`` steps, but at least 5
        :param rollout_steps: steps of one rollout
        """
        freq = max(1, round(REGROUP_STEPS / rollout_steps)) if freq is None else freq
        warmup = max(5, math.ceil(WARMUP_STEPS / rollout_steps)) if warmup is None else warmup
        return cls(merge_kl, split_kl, probe_kl_coef, freq, warmup)

    @property
    def changes_groups(self) -> bool:
        """Whether groups may be merged or split."""
        return self.merge_kl is not None or self.split_kl is not None


class LatentRecorder(BaseCallback):
    """
    Record the outputs of the actor's trunk in a rollout, from which the probes learn.

    To compute them again would be one more forward pass, which takes long with images.
    """

    def __init__(self) -> None:
        super().__init__()
        self._latents: list[th.Tensor] = []

    def _on_rollout_start(self) -> None:
        self._latents = []

    def _on_step(self) -> bool:
        policy: Any = self.model.policy
        self._latents.append(policy.last_latent_pi)
        return True

    def latents(self, n_steps: int) -> th.Tensor | None:
        """
        Return the outputs of the actor's trunk in the last rollout, environment by environment.

        :param n_steps: steps of the rollout in each environment
        :return: shape ``(B, latent_dim)``; ``None`` if this callback has not seen the whole rollout
        """
        return th.stack(self._latents, dim=1).flatten(0, 1) if len(self._latents) == n_steps else None


class Credit(NamedTuple):
    """What the actions of a rollout of ``B`` steps brought, ``E`` entries of a step and a cell, cell by cell if ``E > B``."""

    values: th.Tensor  # how much better than expected each action was, shape (E,)
    cells: th.Tensor  # shape (E,)
    folds: th.Tensor  # of each step; in one rollout those of an episode are in the same one, shape (B,)
    scale_by_cell: bool  # normalise the values of each cell by themselves; those of objectives are in any case


class Regrouper(nn.Module, ABC):
    """Observer of what cells ask for, which decides from it which groups are merged and split."""

    probes: ProbeSums  # what cells ask for

    def __init__(self) -> None:
        super().__init__()
        self.recorder = LatentRecorder()

    @abstractmethod
    def groups(self, policy: GroupActorCriticPolicy) -> CellGroups:
        """
        Return the groups that are merged and split.

        :param policy: the policy
        """

    def observe(self, policy: GroupActorCriticPolicy, rollout: Rollout, latent: th.Tensor | None, credit: Credit) -> None:
        """
        Have the probes learn from a rollout, and the groups become one rollout older.

        :param policy: the policy that collected the rollout
        :param rollout: ``B`` steps
        :param latent: output of the actor's trunk at each step, shape ``(B, latent_dim)``; ``None``: not known
        :param credit: what the actions brought
        """
        if latent is None:
            latent = rollout_latents(policy, rollout)
        heads, masks = self.heads(policy, credit), policy.masks(rollout.observations)
        gradient = grad_of_actions(policy, rollout, latent, heads, masks)
        with interrupts_delayed():
            self.learn(latent, gradient, credit, masks)
            self.groups(policy).age += 1

    @abstractmethod
    def heads(self, policy: GroupActorCriticPolicy, credit: Credit) -> th.Tensor:
        """
        Return the index of the head of each step, shape ``(B,)``.

        :param policy: the policy
        :param credit: of the rollout
        """

    @abstractmethod
    def learn(self, latent: th.Tensor, gradient: th.Tensor, credit: Credit, masks: th.Tensor | None) -> None:
        """
        Have the probes learn.

        :param latent: output of the actor's trunk at each step, shape ``(B, latent_dim)``
        :param gradient: of the log-likelihood of the actions with respect to the outputs of the head, shape ``(B, n)``
        :param credit: what the actions brought
        :param masks: which actions were allowed, shape ``(B, n)``; ``None``: all
        """

    @property
    def has_observed(self) -> bool:
        """Whether there is anything to measure."""
        return bool((self.probes.counts > 0).any())

    @abstractmethod
    def measure(self, policy: GroupActorCriticPolicy, rule: RegroupRule) -> Divergences:
        """
        Measure how groups and cells differ, by what has been observed.

        :param policy: the policy
        :param rule: thresholds and times
        """

    @abstractmethod
    def apply_event(self, policy: GroupActorCriticPolicy, event: Merge | Split) -> None:
        """
        Merge or split groups.

        :param policy: the policy; changed in place
        :param event: what is to happen
        """

    def due(self, rule: RegroupRule, n_rollouts: int) -> bool:
        """
        Return whether the groups are looked at before the next rollout.

        :param rule: thresholds and times
        :param n_rollouts: rollouts so far
        """
        return rule.changes_groups and n_rollouts % rule.freq == 0 and self.has_observed

    def plan(
        self,
        policy: GroupActorCriticPolicy,
        rule: RegroupRule,
        divergences: Divergences,
        reward_scale: RewardScale | None = None,
    ) -> list[Merge | Split]:
        """
        Decide what is merged and split.

        :param policy: the policy
        :param rule: thresholds and times
        :param divergences: how groups and cells differ
        :param reward_scale: of the cells, if each group learns in a unit of its own; ``None``: it does not
        :return: the events, splits first; no group takes part in two of them
        """
        groups = self.groups(policy)
        comparable = None if reward_scale is None else self.comparable(groups, reward_scale)
        old_enough, thresholds = groups.age >= rule.warmup, (rule.merge_kl, rule.split_kl)
        return plan_regrouping(divergences, groups.cell_to_group, old_enough, *thresholds, comparable)

    def comparable(self, groups: CellGroups, reward_scale: RewardScale) -> th.Tensor | None:
        """
        Return which two groups may be merged with each other, shape ``(K, K)``, boolean; ``None``: all.

        Not those with rewards on different scales: in the unit of the larger ones little would be left of the smaller ones.

        :param groups: the groups, each of which learns in a unit of its own
        :param reward_scale: of the cells
        """
        return th.as_tensor(reward_scale.comparable(groups.cell_to_group.cpu().numpy(), groups.max_groups))

    def regroup(
        self,
        policy: GroupActorCriticPolicy,
        rule: RegroupRule,
        record: Callable[[Merge | Split], None],
        reward_scale: RewardScale | None = None,
    ) -> Divergences:
        """
        Merge and split groups until nothing is left to do.

        :param policy: the policy; changed in place
        :param rule: thresholds and times
        :param record: called after each event; an interrupt waits until it has returned
        :param reward_scale: see :meth:`plan`
        :return: how groups and cells differ afterwards
        """
        divergences = self.measure(policy, rule)
        # an event changes what is alike: measure again
        for _ in range(self.groups(policy).max_groups):
            events = self.plan(policy, rule, divergences, reward_scale)
            if not events:
                break
            for event in events:
                with interrupts_delayed():
                    self.apply_event(policy, event)
                    record(event)
            divergences = self.measure(policy, rule)
        return divergences


class DecisionRegrouper(Regrouper):
    """
    Regrouper of groups of decisions: merges and splits heads.

    :param policy: the policy whose groups it changes
    """

    probes: Probes

    def __init__(self, policy: GroupActorCriticPolicy):
        super().__init__()
        n_cells = policy.grouping.router.n_cells
        # gSDE's marginal distribution is Gaussian
        masked = policy.action_masks is not None
        actions = make_action_distribution(policy.action_space, use_sde=False, masked=masked)
        self.probes = Probes(policy.mlp_extractor.latent_dim_pi, policy.n_action_outputs, n_cells, actions, masked)

    def groups(self, policy: GroupActorCriticPolicy) -> CellGroups:
        """Return the groups of decisions, see :class:`Regrouper`."""
        return policy.grouping

    def heads(self, policy: GroupActorCriticPolicy, credit: Credit) -> th.Tensor:
        """Return the heads of the cells, see :class:`Regrouper`."""
        return policy.grouping.cell_to_head[credit.cells]

    def learn(self, latent: th.Tensor, gradient: th.Tensor, credit: Credit, masks: th.Tensor | None) -> None:
        """Have the probes learn, see :class:`Regrouper`."""
        self.probes.learn(latent, gradient, credit.values, credit.cells, credit.folds, credit.scale_by_cell, masks)

    def measure(self, policy: GroupActorCriticPolicy, rule: RegroupRule) -> Divergences:
        """Measure how groups and cells differ, see :class:`Regrouper`."""

        def outputs(latent: th.Tensor, groups: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
            return head_outputs(policy, latent, [policy.grouping.heads.index(group) for group in groups.tolist()])

        mergeable = policy.grouping.age >= rule.warmup
        with th.no_grad():
            return self.probes.measure(
                policy.grouping.cell_to_group, rule.probe_kl_coef, outputs, mergeable, rule.merge_kl, rule.split_kl
            )

    def apply_event(self, policy: GroupActorCriticPolicy, event: Merge | Split) -> None:
        """Merge or split groups and their heads, see :class:`Regrouper`."""
        policy.regroup(event)


class ObjectiveRegrouper(Regrouper):
    """
    Regrouper of groups of objectives, see :mod:`sb3_grpo.agreement`.

    A merge changes no parameter. An objective keeps its value head, without which nobody could see that it no longer agrees.

    :param policy: the policy that has a value head for each objective
    :param groups: which objectives belong together
    """

    probes: ObjectiveProbes

    def __init__(self, policy: GroupActorCriticPolicy, groups: CellGroups):
        super().__init__()
        self.objectives, n_objectives = groups, len(groups.cell_to_group)
        latent_dim, n_outputs = policy.mlp_extractor.latent_dim_pi, policy.n_action_outputs
        self.probes = ObjectiveProbes(latent_dim, n_outputs, n_objectives)

    def groups(self, policy: GroupActorCriticPolicy) -> CellGroups:
        """Return the groups of objectives, see :class:`Regrouper`."""
        return self.objectives

    def heads(self, policy: GroupActorCriticPolicy, credit: Credit) -> th.Tensor:
        """Return the only head, see :class:`Regrouper`."""
        return th.zeros_like(credit.folds)

    def learn(self, latent: th.Tensor, gradient: th.Tensor, credit: Credit, masks: th.Tensor | None) -> None:
        """Have the probes learn from the credit of each objective, see :class:`Regrouper`."""
        self.probes.learn(latent, gradient, credit.values.view(-1, len(credit.folds)), credit.folds)

    def measure(self, policy: GroupActorCriticPolicy, rule: RegroupRule) -> Divergences:
        """Measure how groups of objectives differ, see :class:`Regrouper`."""
        cell_to_group = self.objectives.cell_to_group.cpu()
        with th.no_grad():
            return compare_objectives(
                self.probes.sums(th.arange(len(cell_to_group))), cell_to_group, self.objectives.max_groups
            )

    def comparable(self, groups: CellGroups, reward_scale: RewardScale) -> th.Tensor | None:
        """Return that all groups may be merged: their objectives keep their units, see :class:`Regrouper`."""
        return None

    def apply_event(self, policy: GroupActorCriticPolicy, event: Merge | Split) -> None:
        """Merge or split groups of objectives, see :class:`Regrouper`."""
        self.objectives.apply_event(event)


def as_regroup_event(event: Merge | Split, timestep: int, cell_to_group: list[int]) -> RegroupEvent:
    """
    Describe an event as ``model.regroup_history`` keeps it.

    :param event: what happened
    :param timestep: environment steps so far
    :param cell_to_group: group of each cell afterwards
    """
    if isinstance(event, Merge):
        return RegroupEvent(timestep, "merge", (event.keep, event.dropped), event.kl, cell_to_group)
    return RegroupEvent(timestep, "split", (event.group, event.new_group), event.kl, cell_to_group)


def rollout_latents(policy: GroupActorCriticPolicy, rollout: Rollout) -> th.Tensor:
    """
    Compute the output of the actor's trunk for a rollout.

    :param policy: the policy, in training mode before and after
    :param rollout: ``B`` steps
    :return: shape ``(B, latent_dim)``
    """
    # dropout and batch normalisation must neither draw random numbers nor learn here
    policy.set_training_mode(False)
    with th.no_grad():
        latent = policy.grouping.router.map_parts(policy.latent_pi, rollout.observations)
    policy.set_training_mode(True)
    return latent


def grad_of_actions(
    policy: GroupActorCriticPolicy, rollout: Rollout, latent: th.Tensor, heads: th.Tensor, masks: th.Tensor | None
) -> th.Tensor:
    """
    Compute :func:`grad_log_prob` of the actions of a rollout.

    :param policy: the policy that collected it
    :param rollout: ``B`` steps
    :param latent: output of the actor's trunk at each step, shape ``(B, latent_dim)``
    :param heads: index of the head of each step, shape ``(B,)``
    :param masks: which actions were allowed, shape ``(B, n)``; ``None``: all
    :return: shape ``(B, n)``
    """
    actions = rollout.actions.long().flatten() if isinstance(policy.action_space, spaces.Discrete) else rollout.actions
    return grad_log_prob(policy, latent, heads, actions, masks)


def head_outputs(policy: GroupActorCriticPolicy, latent_pi: th.Tensor, heads: list[int]) -> tuple[th.Tensor, th.Tensor | None]:
    """
    Compute the outputs of several action heads for the same latent vectors.

    :param policy: the policy
    :param latent_pi: output of the actor's trunk, shape ``(B, latent_dim)``
    :param heads: indices of ``H`` heads
    :return: shape ``(B, H, n)``, and for Box actions the logarithms of their standard deviations (with gSDE those of its
        marginal distribution), same shape
    """
    outputs, shape = policy.action_net(latent_pi), (policy.n_heads, policy.n_action_outputs)
    log_std: Any = getattr(policy, "log_std", None)
    if isinstance(policy.action_dist, StateDependentNoiseDistribution):
        normal = policy.action_dist.proba_distribution(outputs, log_std, latent_pi).distribution
        log_std = normal.stddev.log().unflatten(1, shape)
    elif log_std is not None:
        log_std = log_std.view(shape).expand(len(outputs), *shape)
    return outputs.unflatten(1, shape)[:, heads], None if log_std is None else log_std[:, heads]


def grad_log_prob(
    policy: GroupActorCriticPolicy,
    latent_pi: th.Tensor,
    heads: th.Tensor,
    actions: th.Tensor,
    masks: th.Tensor | None = None,
) -> th.Tensor:
    """
    Compute the gradient of the log-likelihood of actions with respect to the outputs of the action head.

    :param policy: the policy
    :param latent_pi: output of the actor's trunk at ``B`` steps, shape ``(B, latent_dim)``
    :param heads: index of the head of each step, shape ``(B,)``
    :param actions: that were taken, shape ``(B, ...)``
    :param masks: which actions were allowed, shape ``(B, n)``; ``None``: all
    :return: shape ``(B, n)``; for Box actions in units of the standard deviation
    """
    if policy.use_sde and policy.squash_output:
        # the distribution is that of what tanh is applied to
        actions = TanhBijector.inverse(actions)
    distribution = make_action_distribution(policy.action_space, use_sde=False, masked=masks is not None)

    def gradient(latent: th.Tensor, heads: th.Tensor, actions: th.Tensor, masks: th.Tensor | None = None) -> th.Tensor:
        every = th.arange(len(heads), device=heads.device)
        with th.no_grad():
            outputs, log_std = head_outputs(policy, latent, list(range(policy.n_heads)))
            outputs, log_std = outputs[every, heads], None if log_std is None else log_std[every, heads]
        with th.enable_grad():
            outputs.requires_grad_()
            params = distribution.params(mask_outputs(outputs, masks), log_std)
            log_prob = distribution.log_prob(params, actions)
            found = th.autograd.grad(log_prob.sum(), outputs)[0]
        return found if log_std is None else found * log_std.exp()

    # all heads are computed: for many actions the whole rollout at once would need much memory
    size = max(1, MAX_OUTPUTS // (policy.n_heads * policy.n_action_outputs))
    columns = [latent_pi, heads, actions] if masks is None else [latent_pi, heads, actions, masks]
    parts = zip(*(column.split(size) for column in columns), strict=True)
    return th.cat([gradient(*part) for part in parts])
