"""Headed policy: the parameters of SB3's policy, with one head for each group in use."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_grpo.action_masks import make_action_masks
from sb3_grpo.buffers import GroupBufferMixin
from sb3_grpo.diagnostics import check_finite
from sb3_grpo.distributions import GroupStateDependentNoiseDistribution, SB3Actions, make_action_distribution
from sb3_grpo.envs.entries import ACTION_MASK
from sb3_grpo.grouping import Grouping, resolve_group_counts
from sb3_grpo.heads import average_heads, n_heads_in, pick_heads_in, repeat_value_head, take_heads
from sb3_grpo.interrupts import interrupts_delayed
from sb3_grpo.preprocessing import Preprocessor
from sb3_grpo.regroup_plan import Merge, Split
from sb3_grpo.routing import make_router
from sb3_grpo.value_scale import ValueScale

# Beginnings of the names of parameters that belong to the critic alone
CRITIC = ("value_net.", "value_scale.", "mlp_extractor.value_net.", "vf_features_extractor.")


class HeadedPolicy(ActorCriticPolicy):
    """
    SB3's trunk (features extractor and MLP extractor) with one action head and one value head per group in use.

    Without a critic there are action heads only.

    It keeps the heads; :class:`~sb3_grpo.policies.GroupActorCriticPolicy` computes with them.

    The group of a step is a function of its observation, see :class:`~sb3_grpo.grouping.Grouping`. The heads stand side by
    side in the last dimension of ``action_net``, ``value_net`` and ``log_std``, so that one matrix product serves all of
    them. They begin as copies of the head that SB3 makes; with one head parameters and ``state_dict()`` are those of SB3.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param args: as in SB3's policy
    :param n_groups: number of groups to start with; ``None``: one per cell, but at most ``max_groups``
    :param max_groups: largest number of groups; ``None``: one per cell, or one if ``n_groups`` is 1
    :param router: ``"random"``, ``"one_hot"``, ``"discrete"`` or a function of a batch of observations,
        see :func:`sb3_grpo.routing.make_router`
    :param router_kwargs: keyword arguments of the router
    :param group_seed: seed for dealing cells to groups and for the random router
    :param scale_values: have value heads in units of their group's returns; they begin with 0, because what SB3 begins with
        is large where returns are small
    :param all_heads: have ``max_groups`` heads from the start, so that no shape ever changes
    :param n_objectives: number of value heads where groups are objectives; each step then has a value of all of them, and
        there is one action head
    :param use_critic: have value heads, and the layers before them that the actor does not use; otherwise all values are 0
        and ``share_features_extractor`` has no effect
    :param action_mask_key: entry of Dict observations that says which actions are allowed, see
        :func:`sb3_grpo.action_masks.make_action_masks`
    :param kwargs: as in SB3's policy
    :raises ValueError: if the router does not fit the observation space, or the number of groups the cells, if values
        that do not exist are to be scaled, if there are several groups of decisions and several objectives, or if action
        masks do not fit the actions
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *args: Any,
        n_groups: int | None = 1,
        max_groups: int | None = None,
        router: str | Callable[[Any], Any] = "random",
        router_kwargs: dict[str, Any] | None = None,
        group_seed: int = 0,
        scale_values: bool = False,
        all_heads: bool = False,
        n_objectives: int = 1,
        use_critic: bool = True,
        action_mask_key: str | None = ACTION_MASK,
        **kwargs: Any,
    ):
        if scale_values and not use_critic:
            raise ValueError("`scale_values` must be False where `use_critic` is False, since there are no values, got True")
        self._group_kwargs = dict(n_groups=n_groups, max_groups=max_groups, router=router, router_kwargs=router_kwargs)
        self._group_kwargs |= dict(group_seed=group_seed, scale_values=scale_values, all_heads=all_heads)
        self._group_kwargs["use_critic"] = self.use_critic = use_critic
        self._group_kwargs["n_objectives"] = self.n_objectives = n_objectives
        self._group_kwargs["action_mask_key"] = self.action_mask_key = action_mask_key
        self.action_masks = make_action_masks(action_mask_key, observation_space, action_space)
        made_router = make_router(router, observation_space, router_kwargs)
        counts = resolve_group_counts(n_groups, max_groups, made_router.n_cells)
        if n_objectives > 1 and (counts[1] > 1 or not use_critic):
            raise ValueError(
                f"`n_objectives` must be 1 where `max_groups` is above 1 or `use_critic` is False, got {n_objectives}"
            )
        if not use_critic:
            # otherwise SB3 would make a features extractor for the critic
            kwargs["share_features_extractor"] = True
        super().__init__(made_router.visible_space, action_space, lr_schedule, *args, **kwargs)
        if not use_critic:
            remove_critic(self)
        # the trunk was built for what it sees, everybody else hands over whole observations
        self.observation_space = observation_space
        self._preprocess = Preprocessor(observation_space, self.normalize_images, made_router)
        self.actions = make_action_distribution(action_space, self.use_sde, masked=self.action_masks is not None)
        self._built_distribution = type(self.action_dist)
        self._log_std_shape = self.log_std.shape if hasattr(self, "log_std") else None
        self.value_scale: ValueScale | None = None
        if scale_values:
            self.value_scale = ValueScale(n_objectives).to(self.device)
            for parameter in self.value_net.parameters():
                nn.init.zeros_(parameter)
        if n_objectives > 1:
            repeat_value_head(self, n_objectives)
        self.n_heads = 1
        self.grouping = Grouping(made_router, *counts, group_seed, all_heads).to(self.device)
        self.take_heads([0] * len(self.grouping.heads))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self._group_kwargs}

    @property
    def n_action_outputs(self) -> int:
        """Number of outputs of one action head."""
        assert isinstance(self.action_net, nn.Linear)
        # a numpy integer for MultiDiscrete actions
        return int(self.action_net.out_features) // self.n_heads

    def groups(self, obs: PyTorchObs) -> th.Tensor:
        """
        Find the group of observations.

        :param obs: batch of ``B`` observations
        :return: number of the group of each, shape ``(B,)``
        """
        return self.grouping.groups_at(obs)

    def take_heads(self, sources: Sequence[int]) -> None:
        """
        Replace all heads by copies of some of them, including the optimizer's moments.

        :param sources: index of the head to copy for each head afterwards
        """
        if len(sources) > 1:
            check_heads(self)
        if list(sources) == list(range(self.n_heads)):
            return
        take_heads(self, self.n_heads, sources)
        if self.value_scale is not None:
            self.value_scale.take(sources)
        changed, self.n_heads = len(sources) != self.n_heads, len(sources)
        if changed and isinstance(self.action_dist, StateDependentNoiseDistribution):
            assert self.dist_kwargs is not None
            self.action_dist = GroupStateDependentNoiseDistribution.like(self.action_dist, self.n_heads, **self.dist_kwargs)
            self._built_distribution = type(self.action_dist)
            # drawn apart, so that the global random numbers stay those of PPO
            with th.random.fork_rng(devices=[]):
                self.action_dist.sample_weights(self.log_std.detach())

    def hold_heads(self, all_heads: bool) -> None:
        """
        Add heads that are missing and drop those that are not needed.

        :param all_heads: have ``max_groups`` heads; otherwise one for each group in use
        """
        self.grouping.all_heads = self._group_kwargs["all_heads"] = all_heads
        self.adopt_groups(self.grouping.cell_to_group)

    def adopt_groups(self, cell_to_group: Sequence[int] | th.Tensor, heads: Sequence[int] | None = None) -> None:
        """
        Replace the groups. A group that had a head keeps it, and another one gets a copy of the first.

        :param cell_to_group: group of each cell, shape ``(C,)``
        :param heads: groups to have a head, in the order of the heads; ``None``: those of :meth:`Grouping.wanted_heads`
        """
        before = self.grouping.heads
        self.grouping.assign(cell_to_group, heads)
        self.take_heads([before.index(group) if group in before else 0 for group in self.grouping.heads])

    def regroup(self, event: Merge | Split) -> None:
        """
        Merge or split groups: relabel their cells, average or copy their heads and the optimizer's moments.

        An interrupt waits until the event is complete.

        :param event: from :func:`sb3_grpo.regroup_plan.plan_regrouping`
        """
        with interrupts_delayed():
            if isinstance(event, Merge):
                target, other = (self.grouping.heads.index(group) for group in (event.keep, event.dropped))
                if self.value_scale is not None:
                    self.value_scale.unify(self.value_net, target, other, event.share)
                average_heads(self, self.n_heads, target, other, event.share)
            self.take_heads(self.grouping.relabel(event))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.n_heads > 1:
            destination.update({f"{prefix}grouping.{name}": tensor for name, tensor in self.grouping.state().items()})

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """
        Copy parameters, and the groups that belong to them, into this policy; the number of heads becomes that of the state.

        A state with one head (that of SB3's policy, or of one group) fits every policy: each of its groups gets a copy of
        the head.

        :param state_dict: from ``state_dict()``
        :param strict: whether all names must be there, as in torch
        :param assign: as in torch
        :return: missing and unexpected names, as in torch
        :raises RuntimeError: if names or shapes do not fit, as in torch
        """
        state = fit_state(self, state_dict, strict)
        return super().load_state_dict(state, strict, assign)

    def adopt_changes(self) -> None:
        """
        Take into account what a subclass, or the user of this policy, has changed in it.

        :raises ValueError: if the change does not go together with more than one group
        """
        overridden = type(self)._get_action_dist_from_latent is not ActorCriticPolicy._get_action_dist_from_latent
        foreign = overridden or type(self.action_dist) is not self._built_distribution
        if self.grouping.max_groups == 1:
            self.actions = SB3Actions() if foreign else self.actions
            return
        if foreign:
            what = "_get_action_dist_from_latent" if overridden else f"action_dist ({type(self.action_dist).__name__})"
            raise ValueError(
                f"`{what}` of a policy can be changed with `n_groups=1` only, since it does not know which of "
                f"{self.grouping.max_groups} heads is to decide. Override `get_distribution` to change what predict() does."
            )
        check_heads(self)


def remove_critic(policy: HeadedPolicy) -> None:
    """
    Remove what SB3 has built for the critic, from the policy and from its optimizer.

    It is built first, so that the actor begins with the weights that it has in a policy with a critic and the same seed.

    :param policy: changed in place; layers of the critic in an ``mlp_extractor`` of the user's class stay
    """
    del policy.value_net, policy.vf_features_extractor
    if type(policy.mlp_extractor) is MlpExtractor:
        policy.mlp_extractor.value_net, policy.mlp_extractor.latent_dim_vf = nn.Sequential(), policy.features_dim
    known = set(policy.parameters())
    for group in policy.optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if parameter in known]


def without_critic(policy: HeadedPolicy, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """
    Leave out of a state the parameters of a critic that a policy does not have.

    :param policy: the policy that is to load the state
    :param state_dict: of a policy with or without a critic
    :return: the other entries; all of them if the policy has a critic
    """
    if policy.use_critic:
        return dict(state_dict)
    own = policy.state_dict()
    return {name: value for name, value in state_dict.items() if name in own or not name.startswith(CRITIC)}


def fit_state(policy: HeadedPolicy, state_dict: Mapping[str, Any], strict: bool) -> dict[str, Any]:
    """
    Give a policy the groups and the number of heads of a state, and the state what the policy has beside them.

    :param policy: changed in place
    :param state_dict: from ``state_dict()`` of SB3's policy, or of one of this package
    :param strict: whether the groups of several heads must be in it
    :return: a state of the policy's names and shapes
    :raises RuntimeError: if the groups of several heads are not in it, or do not fit
    """
    grouping, state = policy.grouping, without_critic(policy, state_dict)
    groups = {name: state.pop(f"grouping.{name}", None) for name in grouping.state()}
    n_heads, scales = n_heads_in(state, policy, policy.n_heads), state.pop("value_scale.scale", None)
    if n_heads == 1 and policy.n_heads > 1:
        # one head serves every group
        state = pick_heads_in(state, 1, [0] * policy.n_heads)
        scales = None if scales is None else scales.expand(policy.n_heads)
    elif n_heads is not None and n_heads > grouping.max_groups:
        raise RuntimeError(
            f"the state_dict has {n_heads} heads, but the policy at most {grouping.max_groups} groups; GRPO.load is what "
            "loads files with several groups"
        )
    elif n_heads is not None and n_heads > 1:
        missing = [name for name, tensor in groups.items() if tensor is None]
        if not missing:
            heads = grouping.heads_of_state(groups["cell_to_group"], n_heads)
            grouping.load_router(groups)
            policy.adopt_groups(groups["cell_to_group"], heads)
        elif strict:
            raise RuntimeError(f"missing keys in state_dict: {[f'grouping.{name}' for name in missing]}")
    if policy.value_scale is not None:
        if scales is None:
            # values in units of the returns, whose scale is estimated anew
            scales = th.ones_like(policy.value_scale.scale)
            policy.value_scale.count.zero_()
        state["value_scale.scale"] = scales
    elif scales is not None:
        # value heads without a scale of their own predict in units of the returns
        state["value_net.weight"] = state["value_net.weight"] * scales.unsqueeze(1)
        state["value_net.bias"] = state["value_net.bias"] * scales
    return state


def check_heads(policy: HeadedPolicy) -> None:
    """
    Check that the policy has one linear layer for all action heads, and one for all value heads if it has a critic.

    :param policy: has ``n_heads`` heads
    :raises ValueError: if it has another layer, or parameters of another shape
    """
    most = policy.grouping.max_groups
    for name in ("action_net", "value_net") if policy.use_critic else ("action_net",):
        net = getattr(policy, name)
        if type(net) is not nn.Linear or net.out_features % policy.n_heads:
            raise ValueError(
                f"`{name}` must be one torch.nn.Linear that holds the heads side by side where `max_groups` ({most}) is above "
                f"1, got {net} for {policy.n_heads} heads; with `n_groups=1` it may be any module"
            )
    if policy._log_std_shape is not None:
        *others, own = policy._log_std_shape
        if policy.log_std.shape != (*others, own * policy.n_heads):
            raise ValueError(
                f"`log_std` must have shape {(*others, own * policy.n_heads)}, which is {policy.n_heads} heads side by side, "
                f"got {tuple(policy.log_std.shape)}"
            )


def fit_router_and_route(policy: HeadedPolicy, buffer: GroupBufferMixin) -> th.Tensor:
    """
    Find the cell of each step of a rollout; the first rollout is what the random router learns its cells from.

    :param policy: its router, and if that learns its heads, are changed in place
    :param buffer: the complete rollout
    :return: shape ``(B,)``
    :raises ValueError: if an observation does not name a cell, or rewards or advantages are NaN or infinite
    """
    grouping, rollout = policy.grouping, buffer.samples()
    cells = grouping.cells_of_rollout(rollout.observations)
    # advantages last, because rewards are their cause. Observations may hold what a features extractor replaces
    columns = {"rewards": th.as_tensor(buffer.flat_rewards(), device=cells.device), "advantages": rollout.advantages}
    check_finite(columns, grouping.cell_to_group[cells], "the policy was left as it was")
    if grouping.is_fitted:
        return cells
    # all observations of this rollout were in cell 0, so it has the head that collected it
    policy.take_heads([int(grouping.cell_to_head[0])] * policy.n_heads)
    grouping.router.fit(rollout.observations, grouping.seed)
    return grouping.cells_of_rollout(rollout.observations)
