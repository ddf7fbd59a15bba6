"""SB3's actor-critic policies with one action head and one value head per group."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    DiagGaussianDistribution,
    Distribution,
    StateDependentNoiseDistribution,
    TanhBijector,
)
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn
from torch.nn import functional as F

from sb3_grpo.distributions import (
    DistributionFamily,
    GroupStateDependentNoiseDistribution,
    choose_head,
    head_rows,
    make_action_family,
    repeat_linear,
)
from sb3_grpo.heads import HEAD_DIMS, copy_head, merge_heads, only_head, repeat_heads, split_heads
from sb3_grpo.interrupts import interrupts_delayed
from sb3_grpo.losses import MIN_SCALE, group_means
from sb3_grpo.probes import Probes
from sb3_grpo.regroup_plan import Merge, Split, apply_plan
from sb3_grpo.reward_units import RewardUnits
from sb3_grpo.routing import NonFiniteError, make_router

# Outputs of all heads that are computed at once for scores
MAX_SCORE_OUTPUTS = 2**22
# Steps of a group after which what its returns were counts half
VALUE_HALF_LIFE = 5000


class GroupActorCriticPolicy(ActorCriticPolicy):
    """
    SB3's trunk (features extractor and MLP extractor) and, per group, one head for the action
    distribution and one for the value. The group of a step is a function of its observation:
    ``cell_to_group[router(obs)]``.

    The heads stand side by side in the last dimension of ``action_net``, ``value_net`` and ``log_std``, so that
    all of them cost one matrix product. They start as copies of the head SB3 would make; with one
    head the parameters, their names and their random numbers are SB3's.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param args: as in SB3's policy
    :param n_groups: number of groups to start with; ``None``: one per cell, but at most ``max_groups``
    :param max_groups: number of heads, fixed; ``None``: one per cell, or one if ``n_groups`` is 1
    :param router: ``"random"``, ``"one_hot"``, ``"discrete"`` or a function of a batch of observations,
        see :func:`sb3_grpo.routing.make_router`
    :param router_kwargs: keyword arguments of the router
    :param group_seed: seed for dealing cells to groups and for the random router
    :param scale_values: value heads in units of their group's returns; they begin with 0, since a guess in the unit of 1
        would be taken for returns where rewards are small
    :param kwargs: as in SB3's policy
    :raises ValueError: if the router does not fit the observation space, or the number of groups the cells
    """

    cell_to_group: th.Tensor
    group_age: th.Tensor
    value_scale: th.Tensor
    value_steps: th.Tensor
    # Whether a single active group is computed in the shapes of SB3's policy, to its last bit
    exact_single_group = True
    _compiled_act: Callable[[PyTorchObs, bool], tuple[th.Tensor, ...]] | None = None
    # Outputs of the actor's trunk in the calls of forward() since this was set to a list; None: they are not kept
    kept_latents: list[th.Tensor] | None = None

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *args: Any,
        n_groups: int | None = None,
        max_groups: int | None = None,
        router: str | Callable[[Any], Any] = "random",
        router_kwargs: dict[str, Any] | None = None,
        group_seed: int = 0,
        scale_values: bool = False,
        **kwargs: Any,
    ):
        made_router = make_router(router, observation_space, router_kwargs)
        n_groups, max_groups = check_group_counts(n_groups, max_groups, made_router.n_cells)
        self.n_groups, self.max_groups = n_groups, max_groups
        # heads that the parameters hold at the moment, and the only one that is used, if it is one of several
        self.n_heads = max_groups
        self.only_group: int | None = None
        super().__init__(made_router.visible_space, action_space, lr_schedule, *args, **kwargs)
        # the trunk was built for what it may see, everybody else hands over whole observations
        self.observation_space = observation_space
        self.router = made_router
        entries = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {None: observation_space}
        self._image_keys = {key for key, space in entries.items() if self.normalize_images and is_image_space(space)}
        self._register_groups(n_groups, group_seed, scale_values)
        self.note_groups()
        self._group_kwargs = dict(
            n_groups=n_groups,
            max_groups=max_groups,
            router=router,
            router_kwargs=router_kwargs,
            group_seed=group_seed,
            scale_values=scale_values,
        )

    def _register_groups(self, n_groups: int, group_seed: int, scale_values: bool) -> None:
        """Register what is known of cells and groups; parameters as in the constructor."""
        # state_dict() has it as float: users average parameters, and draw random ones
        cell_to_group = th.as_tensor(deal_cells(self.router.n_cells, n_groups, group_seed))
        self.register_buffer("cell_to_group", cell_to_group, persistent=False)
        # rollouts that each group has existed for
        self.register_buffer("group_age", th.zeros(self.max_groups), persistent=False)
        # unit of each value head, and from how many steps it is known
        self.scales_values = scale_values
        self.register_buffer("value_scale", th.ones(self.max_groups), persistent=scale_values)
        self.register_buffer("value_steps", th.zeros(self.max_groups), persistent=False)
        if scale_values:
            for parameter in self.value_net.parameters():
                nn.init.zeros_(parameter)
        self.group_seed = group_seed
        self.reward_units = RewardUnits(self.router.n_cells)
        self.probes: Probes | None = None
        if self.max_groups > 1:
            n_outputs = self._head_size("action_net")
            family = make_action_family(self.action_space, use_sde=False)
            self.probes = Probes(self.mlp_extractor.latent_dim_pi, n_outputs, self.router.n_cells, family)
        else:
            # nothing depends on the cells: state_dict() is that of SB3's policy
            for name, buffer in list(self.router.named_buffers()):
                nn.Module.register_buffer(self.router, name, buffer, persistent=False)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self._group_kwargs}

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.action_family = make_action_family(self.action_space, self.use_sde)
        if self.max_groups > 1:
            self._build_heads(lr_schedule)
        self._built_distribution = type(self.action_dist)

    def _build_heads(self, lr_schedule: Schedule) -> None:
        assert isinstance(self.action_net, nn.Linear)
        self.action_net = repeat_linear(self.action_net, self.max_groups)
        self.value_net = repeat_linear(self.value_net, self.max_groups)
        if isinstance(self.action_dist, (DiagGaussianDistribution, StateDependentNoiseDistribution)):
            heads = [1] * (self.log_std.ndim - 1) + [self.max_groups]
            self.log_std = nn.Parameter(self.log_std.detach().repeat(heads))
            self._log_std_shape = self.log_std.shape
        if isinstance(self.action_dist, StateDependentNoiseDistribution):
            assert self.dist_kwargs is not None
            assert self.action_dist.latent_sde_dim is not None
            self._one_head_dist = self.action_dist
            self.action_dist = GroupStateDependentNoiseDistribution(
                self.max_groups, self.action_dist.action_dim, self.action_dist.latent_sde_dim, **self.dist_kwargs
            )
            # the global random numbers are those that PPO would draw
            with th.random.fork_rng(devices=[]):
                self.action_dist.sample_weights(self.log_std.detach())
        self.optimizer = self.optimizer_class(
            self.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]  # every optimizer has it, but torch's base class
            **self.optimizer_kwargs,
        )

    def cells(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: batch of ``B`` observations
        :return: the cell of each, shape ``(B,)``; with one head all in cell 0
        """
        if self.max_groups == 1:
            first = next(iter(obs.values())) if isinstance(obs, dict) else obs
            return th.zeros(len(first), dtype=th.long, device=first.device)
        return self.router(obs)

    def groups(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: batch of ``B`` observations
        :return: the group of each, shape ``(B,)``
        """
        return self.cell_to_group[self.cells(obs)]

    @property
    def active_groups(self) -> list[int]:
        """The groups that have cells, ascending."""
        return sorted(set(self.cell_to_group.tolist()))

    def note_groups(self) -> None:
        """To be called when ``cell_to_group`` has changed."""
        active = self.active_groups
        alone = self.exact_single_group and self.max_groups > 1 and len(active) == 1
        self.only_group = active[0] if alone else None

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.max_groups > 1:
            destination[f"{prefix}cell_to_group"] = self.cell_to_group.float()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """
        Copy parameters, and the groups that belong to them, into this policy.

        A ``state_dict`` with one head (that of SB3's policy, or of a GRPO policy with one group) fits a policy with
        several: each of its groups gets a copy of the head.

        :param state_dict: from ``state_dict()``
        :param strict: whether all names must be there, as in torch
        :param assign: as in torch
        :return: missing and unexpected names, as in torch
        """
        state = dict(state_dict)
        if self.max_groups > 1 and self.is_one_head(state):
            own = {name: value for name, value in self.state_dict().items() if name not in dict(self.named_parameters())}
            own.pop("value_scale", None)
            state = {**own, **repeat_heads(state, self.max_groups)}
        if self.scales_values:
            state["value_scale"] = state.get("value_scale", th.ones(1)).expand(self.max_groups)
        groups = state.pop("cell_to_group", None)
        result = super().load_state_dict(state, strict, assign)
        if groups is not None:
            # whatever has been done to the numbers, they name groups
            self.cell_to_group.copy_(groups.nan_to_num().round().clamp(0, self.max_groups - 1))
        elif strict and self.max_groups > 1:
            raise RuntimeError('missing key in state_dict: "cell_to_group"')
        self.note_groups()
        return result

    def is_one_head(self, state_dict: Mapping[str, Any]) -> bool:
        """
        :param state_dict: of a policy for the same action space
        :return: whether it has exactly one head
        """
        bias = state_dict.get("value_net.bias")
        return bias is not None and len(bias) == 1

    def bookkeeping(self) -> list[str]:
        """
        :return: names of the tensors that training goes on with but no action depends on; ``state_dict()`` is without them
        """
        names = ["group_age", "value_steps", "reward_units.size", "reward_units.count"]
        return names if self.probes is None else [*names, *(f"probes.{name}" for name in self.probes.saved_buffers())]

    def check_heads(self) -> None:
        """
        Find out what a subclass, or the user of this policy, has changed in it.

        :raises ValueError: if the change does not go together with more than one head
        """
        overridden = type(self)._get_action_dist_from_latent is not ActorCriticPolicy._get_action_dist_from_latent
        foreign = overridden or type(self.action_dist) is not self._built_distribution
        if foreign and self.max_groups == 1:
            self.action_family = DistributionFamily()
        if self.max_groups == 1:
            return
        if foreign:
            what = "_get_action_dist_from_latent" if overridden else f"action_dist ({type(self.action_dist).__name__})"
            raise ValueError(
                f"`{what}` of a policy can be changed with `n_groups=1` only: how {self.max_groups} heads make one action "
                "distribution is not its business. Override `get_distribution` to change what predict() does."
            )
        for name in ("action_net", "value_net"):
            self._head_size(name)
        log_std = getattr(self, "log_std", None)
        if log_std is not None and log_std.shape != self._log_std_shape:
            raise ValueError(
                f"`log_std` must have shape {tuple(self._log_std_shape)}, which is {self.max_groups} heads side by side, "
                f"got {tuple(log_std.shape)}"
            )

    def _head_size(self, name: str) -> int:
        """
        :param name: ``"action_net"`` or ``"value_net"``
        :return: outputs of one of its heads
        :raises ValueError: if it does not hold ``max_groups`` heads side by side
        """
        net = getattr(self, name)
        if type(net) is not nn.Linear or net.out_features % self.max_groups:
            raise ValueError(
                f"`{name}` must be one torch.nn.Linear with `max_groups` ({self.max_groups}) heads side by side, got {net}; "
                "with `n_groups=1` it may be any module"
            )
        # a numpy integer for MultiDiscrete actions
        return int(net.out_features) // self.max_groups

    @contextmanager
    def trained_alone(self) -> Iterator[None]:
        """A context in which, while one group is active, parameters and optimizer are those of its head alone."""
        if self.only_group is None:
            yield
            return
        with only_head(self, self.only_group, self.max_groups):
            self.n_heads = 1
            try:
                yield
            finally:
                self.n_heads = self.max_groups

    def regroup(self, event: Merge | Split) -> None:
        """
        Merge or split groups: cells are relabelled, heads and the optimizer's moments copied or averaged.

        An interrupt waits until the event is complete.

        :param event: from :func:`sb3_grpo.regroup_plan.plan_regrouping`
        """
        with interrupts_delayed():
            self._regroup(event)

    def _regroup(self, event: Merge | Split) -> None:
        if isinstance(event, Merge):
            both = th.tensor([event.keep, event.dropped], device=self.device)
            share = th.tensor([event.share, 1 - event.share], device=self.device)
            # heads in different units have no average
            self.rescale_values(both, (share * self.value_scale[both].square()).sum().sqrt().expand(2))
            self.value_steps[event.keep] = self.value_steps[both].sum()
            merge_heads(self, event.keep, event.dropped, event.share, self.max_groups)
            self.group_age[event.keep] = self.group_age[[event.keep, event.dropped]].min()
        else:
            copy_head(self, event.group, event.new_group, self.max_groups)
            self.group_age[[event.group, event.new_group]] = 0
            for buffer in (self.value_scale, self.value_steps):
                buffer[event.new_group] = buffer[event.group]
        self.cell_to_group.copy_(apply_plan([event], self.cell_to_group))
        self.note_groups()

    def spread_head(self, group: int) -> None:
        """
        Give all groups the head of one of them.

        :param group: whose head
        """
        for other in range(self.max_groups):
            if other != group:
                copy_head(self, group, other, self.max_groups)

    def learn_value_scale(self, returns: np.ndarray, groups: np.ndarray) -> None:
        """
        Follow the size of the returns of each group: the root of their mean square, in which older steps count less.

        :param returns: shape ``(B,)``
        :param groups: group of each, shape ``(B,)``
        """
        present, member, steps = np.unique(groups, return_inverse=True, return_counts=True)
        known, scale = (tensor.cpu().numpy().astype(np.float64)[present] for tensor in (self.value_steps, self.value_scale))
        # all steps alike until there are many
        rate = np.maximum(1 - 0.5 ** (steps / VALUE_HALF_LIFE), steps / (known + steps))
        # squares of large returns do not fit into float32
        mean_square = group_means(np.square(returns.astype(np.float64)), member, steps)
        mean_square = np.square(scale) + rate * (mean_square - np.square(scale))
        scale = np.sqrt(mean_square).clip(MIN_SCALE, np.finfo(np.float32).max)
        indices = th.as_tensor(present, device=self.device)
        with interrupts_delayed():
            self.value_steps[indices] = th.as_tensor((known + steps).astype(np.float32), device=self.device)
            self.rescale_values(indices, th.as_tensor(scale.astype(np.float32), device=self.device))

    def rescale_values(self, groups: th.Tensor, scale: th.Tensor) -> None:
        """
        Change the units of value heads but not the values: PopArt, https://arxiv.org/abs/1602.07714, without its mean.

        :param groups: shape ``(K,)``
        :param scale: their new units, above 0, shape ``(K,)``
        """
        ratio = (self.value_scale[groups] / scale).to(self.value_scale)
        self.value_net.bias.data[groups] *= ratio
        self.value_net.weight.data[groups] *= ratio.unsqueeze(1)
        self.value_scale[groups] = scale.to(self.value_scale)

    def value_units(self, groups: th.Tensor | None) -> th.Tensor:
        """
        :param groups: shape ``(B,)``; ``None``: all steps belong to the only group there is
        :return: unit of the value head of each step, shape ``(B,)`` or without dimensions
        """
        if groups is None or self.only_group is not None:
            return self.value_scale[self.only_group or 0]
        return self.value_scale.index_select(0, groups)

    def head_outputs(self, latent_pi: th.Tensor, groups: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        """
        Compute the outputs of the action heads of some groups.

        :param latent_pi: output of the actor's trunk, shape ``(B, latent_dim)``
        :param groups: shape ``(G,)``
        :return: outputs of their action heads, shape ``(B, G, n)``, and for Box actions the log standard deviations (with
            gSDE those of the marginal distribution), same shape
        """
        outputs, log_std = self._all_head_outputs(latent_pi)
        return outputs[:, groups], None if log_std is None else log_std[:, groups]

    def _all_head_outputs(self, latent_pi: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        # a size of its own: of no latent vectors torch could not infer it
        outputs, shape = self.action_net(latent_pi), (self.max_groups, self._head_size("action_net"))
        if isinstance(self.action_dist, GroupStateDependentNoiseDistribution):
            normal = self.action_dist.proba_distribution(outputs, self.log_std, latent_pi).distribution
            return outputs.unflatten(1, shape), normal.stddev.log().unflatten(1, shape)
        log_std = getattr(self, "log_std", None)
        if log_std is not None:
            log_std = log_std.view(shape).expand(len(outputs), *shape)
        return outputs.unflatten(1, shape), log_std

    def _preprocess(self, obs: PyTorchObs) -> PyTorchObs:
        """
        :param obs: batch of whole observations
        :return: what the features extractors get: without what the router hides, and as SB3's ``preprocess_obs``
            makes it (which would ask at each call whether the space is that of an image)
        """
        obs, space = self.router.visible(obs), self.observation_space
        if isinstance(space, spaces.Dict):
            assert isinstance(obs, dict)
            return {key: self._scale(value, space[key], key) for key, value in obs.items()}
        assert isinstance(obs, th.Tensor)
        return self._scale(obs, space, None)

    def _scale(self, obs: th.Tensor, space: spaces.Space, key: str | None) -> th.Tensor:
        if key in self._image_keys:
            return obs.float() / 255.0
        preprocessed = preprocess_obs(obs, space, normalize_images=False)
        assert isinstance(preprocessed, th.Tensor)
        return preprocessed

    def extract_features(  # type: ignore[override]  # SB3's own signature, which differs from its base class
        self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor | None = None
    ) -> th.Tensor | tuple[th.Tensor, th.Tensor]:
        preprocessed = self._preprocess(obs)
        if features_extractor is not None:
            return features_extractor(preprocessed)
        if self.share_features_extractor:
            return self.features_extractor(preprocessed)
        return self.pi_features_extractor(preprocessed), self.vf_features_extractor(preprocessed)

    def _latents(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        features = self.extract_features(obs)
        if isinstance(features, tuple):
            return self.mlp_extractor.forward_actor(features[0]), self.mlp_extractor.forward_critic(features[1])
        return self.mlp_extractor(features)

    def score(self, latent_pi: th.Tensor, groups: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param latent_pi: output of the actor's trunk at ``B`` steps, shape ``(B, latent_dim)``
        :param groups: shape ``(B,)``
        :param actions: that were taken
        :return: gradient of their log-likelihood with respect to the outputs of the group's action head, for Box actions
            in units of the standard deviation, shape ``(B, n)``
        """
        # all heads are computed: for many actions the whole rollout at once would not be small
        size = max(1, MAX_SCORE_OUTPUTS // (self.max_groups * self._head_size("action_net")))
        parts = zip(latent_pi.split(size), groups.split(size), actions.split(size), strict=True)
        return th.cat([self._score(*part) for part in parts])

    def _score(self, latent_pi: th.Tensor, groups: th.Tensor, actions: th.Tensor) -> th.Tensor:
        family = make_action_family(self.action_space, use_sde=False)
        if self.use_sde and self.squash_output:
            # the distribution of what tanh is applied to
            actions = TanhBijector.inverse(actions)
        every = th.arange(len(groups), device=groups.device)
        with th.no_grad():
            outputs, log_std = self._all_head_outputs(latent_pi)
            outputs, log_std = outputs[every, groups], None if log_std is None else log_std[every, groups]
        with th.enable_grad():
            outputs.requires_grad_()
            score = th.autograd.grad(family.log_prob(family.params(outputs, log_std), actions).sum(), outputs)[0]
        return score if log_std is None else score * log_std.exp()

    def _only(self, name: str, tensor: th.Tensor) -> th.Tensor:
        """
        :return: the part of a head parameter that is used
        """
        if self.only_group is None or self.n_heads == 1:
            return tensor
        return split_heads(tensor, HEAD_DIMS[name], self.max_groups)[self.only_group].contiguous()

    def _outputs(self, name: str, latent: th.Tensor) -> th.Tensor:
        """
        :param name: ``"action_net"`` or ``"value_net"``
        :return: outputs of the heads that are used, side by side
        """
        net = getattr(self, name)
        if self.only_group is None or self.n_heads == 1:
            return net(latent)
        return F.linear(latent, self._only(f"{name}.weight", net.weight), self._only(f"{name}.bias", net.bias))

    def _chosen(self, obs: PyTorchObs, groups: th.Tensor | None = None) -> tuple[th.Tensor | None, th.Tensor | None]:
        """
        :param obs: batch of ``B`` observations
        :param groups: their groups, if they are known
        :return: groups and rows for :func:`choose_head`, both ``None`` where one head is all there is to choose from
        """
        if self.max_groups == 1 or self.only_group is not None:
            return None, None
        groups = self.groups(obs) if groups is None else groups
        return groups, head_rows(groups, self.max_groups)

    def _action_params(self, latent_pi: th.Tensor, groups: th.Tensor | None, rows: th.Tensor | None) -> Any:
        if isinstance(self.action_family, DistributionFamily):
            return self._distribution(latent_pi, groups, rows)
        return self.action_family.params(*self._chosen_outputs(latent_pi, groups, rows))

    def _chosen_outputs(
        self, latent_pi: th.Tensor, groups: th.Tensor | None, rows: th.Tensor | None
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """
        :return: outputs of each step's action head, shape ``(B, n)``, and for Box actions the logarithm of its standard
            deviation, shape ``(n,)`` or ``(B, n)``
        """
        log_std = getattr(self, "log_std", None)
        if log_std is not None:
            log_std = self._only("log_std", log_std)
            if groups is not None:
                log_std = log_std.view(self.max_groups, -1).index_select(0, groups)
        return choose_head(self._outputs("action_net", latent_pi), rows, self.max_groups), log_std

    def _distribution(self, latent_pi: th.Tensor, groups: th.Tensor | None, rows: th.Tensor | None) -> Distribution:
        """
        :return: SB3's object for the action distributions
        """
        if self.use_sde and self.max_groups > 1:
            return self._sde_distribution(self._outputs("action_net", latent_pi), latent_pi, rows)
        if self.max_groups == 1:
            return self._get_action_dist_from_latent(latent_pi)
        outputs, log_std = self._chosen_outputs(latent_pi, groups, rows)
        # the outputs as they are: to normalise them twice would round twice
        if log_std is None:
            return self.action_dist.proba_distribution(outputs)
        return self.action_dist.proba_distribution(outputs, log_std)

    def _sde(self) -> StateDependentNoiseDistribution:
        """The noise of the heads that are used."""
        distribution = self.action_dist if self.only_group is None else self._one_head_dist
        assert isinstance(distribution, StateDependentNoiseDistribution)
        return distribution

    def reset_noise(self, n_envs: int = 1) -> None:
        self._sde().sample_weights(self._only("log_std", self.log_std), batch_size=n_envs)

    def _sde_distribution(self, outputs: th.Tensor, latent_pi: th.Tensor, rows: th.Tensor | None) -> Distribution:
        distribution = self._sde().proba_distribution(outputs, self._only("log_std", self.log_std), latent_pi)
        if isinstance(distribution, GroupStateDependentNoiseDistribution):
            distribution.choose(rows)
        return distribution

    def _heads(self, obs: PyTorchObs, known_groups: th.Tensor | None = None) -> tuple[Any, th.Tensor, th.Tensor]:
        """
        :return: what ``action_family`` calls ``params``, the values, shape ``(B, 1)``, and the output of the actor's trunk
        """
        groups, rows = self._chosen(obs, known_groups)
        latent_pi, latent_vf = self._latents(obs)
        return self._action_params(latent_pi, groups, rows), self._values(latent_vf, groups, rows), latent_pi

    def _values(self, latent_vf: th.Tensor, groups: th.Tensor | None, rows: th.Tensor | None) -> th.Tensor:
        values = choose_head(self._outputs("value_net", latent_vf), rows, self.max_groups)
        return values * self.value_units(groups).unsqueeze(-1) if self.scales_values else values

    def _act(self, obs: PyTorchObs, deterministic: bool) -> tuple[th.Tensor, ...]:
        """
        :return: actions, values, log-likelihoods, a number that is finite if all of them are, and the output of the
            actor's trunk
        """
        params, values, latent_pi = self._heads(obs)
        actions = self.action_family.mode(params) if deterministic else self.action_family.sample(params)
        log_prob = self.action_family.log_prob(params, actions)
        return actions, values, log_prob, values.sum() + log_prob.sum(), latent_pi

    def compile_act(self) -> None:
        """Have the rollouts' forward pass compiled; the random numbers stay torch's own, in the same order."""
        # gSDE keeps the noise of a rollout outside of what can be compiled
        if self._compiled_act is None and not self.use_sde:
            self._compiled_act = th.compile(self._act, options={"fallback_random": True})

    def __getstate__(self) -> dict[str, Any]:
        # a copy of the policy must not call the original's network
        return {name: value for name, value in super().__getstate__().items() if name != "_compiled_act"}

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        try:
            actions, values, log_prob, total, latent_pi = (self._compiled_act or self._act)(obs, deterministic)
            healthy = math.isfinite(total.item())
        except (RuntimeError, IndexError) as error:
            # torch does not sample from NaN, and has no column or head for what does not exist
            self._explain_failure(obs)
            raise error
        if not healthy:
            self._raise_if_nonfinite(obs)
        if self.kept_latents is not None:
            self.kept_latents.append(latent_pi.detach())
        assert self.action_space.shape is not None
        return actions.reshape((-1, *self.action_space.shape)), values, log_prob

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Choose an action, as in SB3.

        :param observation: one observation, or a batch
        :param state: handed back; policies of this package have none
        :param episode_start: not used
        :param deterministic: whether to take the most likely action instead of drawing one
        :return: the actions, and ``state``
        :raises ValueError: if the observation is not one of the observation space
        """
        if isinstance(self.observation_space, spaces.Dict):
            keys = list(self.observation_space)
            if not isinstance(observation, dict) or not set(keys) <= observation.keys():
                got = list(observation) if isinstance(observation, dict) else type(observation).__name__
                raise ValueError(f"`observation` must be a dict with the keys {keys}, got {got}")
        return super().predict(observation, state, episode_start, deterministic)

    def _explain_failure(self, obs: PyTorchObs) -> None:
        """
        :raises ValueError: if observations, or the network, are the reason why the network failed on them
        """
        check_discrete(obs, self.observation_space)
        self.router.check_routed(obs)
        self._raise_if_nonfinite(obs)

    def _raise_if_nonfinite(self, obs: PyTorchObs) -> None:
        groups = self.groups(obs)
        params, values, _ = self._heads(obs, groups)
        mode_log_prob = self.action_family.log_prob(params, self.action_family.mode(params))
        finite = values.flatten().isfinite() & mode_log_prob.isfinite()
        if not finite.all():
            raise NonFiniteError(describe_nonfinite(obs, groups, finite))

    def evaluate_actions(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        return self._evaluate(obs, actions, None)

    def evaluate_rollout(
        self, obs: PyTorchObs, actions: th.Tensor, groups: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """
        Evaluate actions of a rollout, of whose observations the groups are known; or let a subclass that overrides
        ``evaluate_actions`` do it.

        :param obs: batch of ``B`` observations
        :param actions: shape ``(B, ...)``
        :param groups: group of each observation, shape ``(B,)``
        :return: values, shape ``(B, 1)``, log-likelihoods of the actions and entropies of the action distributions (or
            ``None``), shape ``(B,)``
        """
        if type(self).evaluate_actions is not GroupActorCriticPolicy.evaluate_actions:
            return self.evaluate_actions(obs, actions)
        return self._evaluate(obs, actions, groups)

    def _evaluate(
        self, obs: PyTorchObs, actions: th.Tensor, groups: th.Tensor | None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        params, values, _ = self._heads(obs, groups)
        return values, self.action_family.log_prob(params, actions), self.action_family.entropy(params)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        if type(self).get_distribution is not GroupActorCriticPolicy.get_distribution:
            return self.get_distribution(observation).get_actions(deterministic=deterministic)
        try:
            params = self._params(observation)
            actions = self.action_family.mode(params) if deterministic else self.action_family.sample(params)
        except (RuntimeError, IndexError) as error:
            self._explain_failure(observation)
            raise error
        if not math.isfinite(self.action_family.log_prob(params, actions).sum().item()):
            self._raise_if_nonfinite(observation)
        return actions

    def _params(self, obs: PyTorchObs) -> Any:
        return self._action_params(self.latent_pi(obs), *self._chosen(obs))

    def latent_pi(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: batch of ``B`` observations
        :return: output of the actor's trunk, shape ``(B, latent_dim)``
        """
        return self.mlp_extractor.forward_actor(self.pi_features_extractor(self._preprocess(obs)))

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        return self._distribution(self.latent_pi(obs), *self._chosen(obs))

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        features = self.vf_features_extractor(self._preprocess(obs))
        values = self._values(self.mlp_extractor.forward_critic(features), *self._chosen(obs))
        if not math.isfinite(values.sum().item()):
            raise NonFiniteError(describe_nonfinite(obs, self.groups(obs), values.flatten().isfinite()))
        return values


class GroupActorCriticCnnPolicy(GroupActorCriticPolicy, ActorCriticCnnPolicy):
    """The same for images (``NatureCNN``); parameters as :class:`GroupActorCriticPolicy`."""


class GroupMultiInputActorCriticPolicy(GroupActorCriticPolicy, MultiInputActorCriticPolicy):
    """The same for Dict observations (``CombinedExtractor``); parameters as :class:`GroupActorCriticPolicy`."""


def check_group_counts(n_groups: int | None, max_groups: int | None, n_cells: int) -> tuple[int, int]:
    """
    :param n_groups: groups to start with; ``None``: one per cell, but at most ``max_groups``
    :param max_groups: number of heads; ``None``: one per cell, or one if ``n_groups`` is 1
    :param n_cells: number of cells
    :return: ``n_groups`` and ``max_groups``
    :raises ValueError: unless ``1 <= n_groups <= max_groups`` and ``n_groups <= n_cells``
    """
    if n_groups is None:
        n_groups = n_cells if max_groups is None else min(n_cells, max_groups)
    if max_groups is None:
        max_groups = 1 if n_groups == 1 else max(n_groups, n_cells)
    if not 1 <= n_groups <= max_groups:
        raise ValueError(f"`n_groups` must be between 1 and `max_groups` ({max_groups}), got {n_groups}")
    if n_groups > n_cells:
        raise ValueError(f"`n_groups` must be at most the number of cells ({n_cells}), got {n_groups}")
    return n_groups, max_groups


def deal_cells(n_cells: int, n_groups: int, seed: int) -> np.ndarray:
    """
    Deal cells to groups at random, as evenly as possible. With one cell per group there is nothing to
    decide: cell ``c`` is group ``c``.

    :param n_cells: number of cells, at least ``n_groups``
    :param n_groups: number of groups
    :param seed: seed of the deal
    :return: group of each cell, shape ``(n_cells,)``
    """
    if n_cells == n_groups:
        return np.arange(n_cells)
    return np.random.default_rng(seed).permutation(n_cells) % n_groups


def check_discrete(obs: PyTorchObs, space: spaces.Space) -> None:
    """
    :param obs: batch of observations
    :param space: their space
    :raises ValueError: if an entry of a Discrete or MultiDiscrete space is outside of it
    """
    if isinstance(space, spaces.Dict):
        assert isinstance(obs, dict)
        for key, entry in space.items():
            check_discrete(obs[key], entry)
        return
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        assert isinstance(obs, th.Tensor)
        sizes = th.as_tensor(space.n if isinstance(space, spaces.Discrete) else space.nvec, device=obs.device)
        outside = (obs < 0) | (obs >= sizes)
        if outside.any():
            raise ValueError(f"observations must lie in {space}, got {obs[outside][0].item():g}")


def describe_nonfinite(obs: PyTorchObs, groups: th.Tensor, finite_output: th.Tensor) -> str:
    """
    :param obs: batch of ``B`` observations, for some of which the policy's output is not finite
    :param groups: group of each, shape ``(B,)``
    :param finite_output: for which of them it is, shape ``(B,)``
    :return: what to tell the user
    """
    entries = obs.values() if isinstance(obs, dict) else [obs]
    finite = th.stack([entry.isfinite().reshape(len(groups), -1).all(dim=1) for entry in entries]).all(dim=0)
    if finite.all():
        failed = groups[~finite_output].unique().tolist()
        return f"the policy's output is NaN or infinite for finite observations (groups {failed})"
    return (
        f"observations must be finite, but {int((~finite).sum())} of {len(groups)} have NaN or infinite values "
        f"(environments {(~finite).nonzero().flatten().tolist()}, groups {groups[~finite].unique().tolist()})"
    )


MlpPolicy = GroupActorCriticPolicy
CnnPolicy = GroupActorCriticCnnPolicy
MultiInputPolicy = GroupMultiInputActorCriticPolicy
