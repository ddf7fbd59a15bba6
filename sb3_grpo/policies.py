"""SB3's actor-critic policies with one action head and one value head per group."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
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

from sb3_grpo.distributions import (
    GroupStateDependentNoiseDistribution,
    choose_head,
    head_rows,
    make_action_family,
    repeat_linear,
)
from sb3_grpo.routing import make_router


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
    :param max_groups: number of heads, fixed; ``None``: ``n_groups``
    :param router: ``"random"``, ``"one_hot"``, ``"discrete"`` or a function of a batch of observations,
        see :func:`sb3_grpo.routing.make_router`
    :param router_kwargs: keyword arguments of the router
    :param group_seed: seed for dealing cells to groups and for the random router
    :param kwargs: as in SB3's policy
    :raises ValueError: if the router does not fit the observation space, or the number of groups the cells
    """

    cell_to_group: th.Tensor
    _compiled_act: Callable[[PyTorchObs, bool], tuple[th.Tensor, ...]] | None = None

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *args: Any,
        n_groups: int | None = None,
        max_groups: int | None = None,
        router: str | Callable[[PyTorchObs], Any] = "random",
        router_kwargs: dict[str, Any] | None = None,
        group_seed: int = 0,
        **kwargs: Any,
    ):
        made_router = make_router(router, observation_space, router_kwargs)
        n_groups, max_groups = check_group_counts(n_groups, max_groups, made_router.n_cells)
        self.n_groups, self.max_groups = n_groups, max_groups
        super().__init__(made_router.visible_space, action_space, lr_schedule, *args, **kwargs)
        # the trunk was built for what it may see, everybody else hands over whole observations
        self.observation_space = observation_space
        self.router = made_router
        entries = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {None: observation_space}
        self._image_keys = {key for key, space in entries.items() if self.normalize_images and is_image_space(space)}
        self.register_buffer("cell_to_group", th.as_tensor(deal_cells(made_router.n_cells, n_groups, group_seed)))
        self.group_seed = group_seed
        self._group_kwargs = dict(
            n_groups=n_groups, max_groups=max_groups, router=router, router_kwargs=router_kwargs, group_seed=group_seed
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self._group_kwargs}

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.action_family = make_action_family(self.action_space, self.use_sde)
        if self.max_groups == 1:
            return
        assert isinstance(self.action_net, nn.Linear)
        self.action_net = repeat_linear(self.action_net, self.max_groups)
        self.value_net = repeat_linear(self.value_net, self.max_groups)
        if isinstance(self.action_dist, (DiagGaussianDistribution, StateDependentNoiseDistribution)):
            heads = [1] * (self.log_std.ndim - 1) + [self.max_groups]
            self.log_std = nn.Parameter(self.log_std.detach().repeat(heads))
        if isinstance(self.action_dist, StateDependentNoiseDistribution):
            assert self.dist_kwargs is not None
            assert self.action_dist.latent_sde_dim is not None
            self.action_dist = GroupStateDependentNoiseDistribution(
                self.max_groups, self.action_dist.action_dim, self.action_dist.latent_sde_dim, **self.dist_kwargs
            )
            self.reset_noise()
        self.optimizer = self.optimizer_class(
            self.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]  # every optimizer has it, but torch's base class
            **self.optimizer_kwargs,
        )

    def groups(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: batch of ``B`` observations
        :return: the group of each, shape ``(B,)``
        """
        if self.max_groups == 1:
            first = next(iter(obs.values())) if isinstance(obs, dict) else obs
            return th.zeros(len(first), dtype=th.long, device=first.device)
        return self.cell_to_group[self.router(obs)]

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

    def _action_params(self, latent_pi: th.Tensor, groups: th.Tensor, rows: th.Tensor | None) -> Any:
        outputs = self.action_net(latent_pi)
        if self.use_sde:
            return self._sde_distribution(outputs, latent_pi, rows)
        log_std = getattr(self, "log_std", None)
        if log_std is not None and rows is not None:
            log_std = log_std.view(self.max_groups, -1).index_select(0, groups)
        return self.action_family.params(choose_head(outputs, rows, self.max_groups), log_std)

    def _sde_distribution(self, outputs: th.Tensor, latent_pi: th.Tensor, rows: th.Tensor | None) -> Distribution:
        assert isinstance(self.action_dist, StateDependentNoiseDistribution)
        distribution = self.action_dist.proba_distribution(outputs, self.log_std, latent_pi)
        if isinstance(distribution, GroupStateDependentNoiseDistribution):
            distribution.choose(rows)
        return distribution

    def _heads(self, obs: PyTorchObs, groups: th.Tensor) -> tuple[Any, th.Tensor]:
        """
        :return: what ``action_family`` calls ``params``, and the values, shape ``(B, 1)``
        """
        rows = head_rows(groups, self.max_groups)
        latent_pi, latent_vf = self._latents(obs)
        values = choose_head(self.value_net(latent_vf), rows, self.max_groups)
        return self._action_params(latent_pi, groups, rows), values

    def _act(self, obs: PyTorchObs, deterministic: bool) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
        """
        :return: actions, values, log-likelihoods, and a number that is finite if all of them are
        """
        params, values = self._heads(obs, self.groups(obs))
        actions = self.action_family.mode(params) if deterministic else self.action_family.sample(params)
        log_prob = self.action_family.log_prob(params, actions)
        return actions, values, log_prob, values.sum() + log_prob.sum()

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
            actions, values, log_prob, total = (self._compiled_act or self._act)(obs, deterministic)
            healthy = math.isfinite(total.item())
        except RuntimeError as error:
            # torch does not sample from NaN
            self._raise_if_nonfinite(obs)
            raise error
        if not healthy:
            self._raise_if_nonfinite(obs)
        assert self.action_space.shape is not None
        return actions.reshape((-1, *self.action_space.shape)), values, log_prob

    def _raise_if_nonfinite(self, obs: PyTorchObs) -> None:
        groups = self.groups(obs)
        params, values = self._heads(obs, groups)
        mode_log_prob = self.action_family.log_prob(params, self.action_family.mode(params))
        finite = values.flatten().isfinite() & mode_log_prob.isfinite()
        if not finite.all():
            raise ValueError(describe_nonfinite(obs, groups, finite))

    def evaluate_actions(
        self, obs: PyTorchObs, actions: th.Tensor, groups: th.Tensor | None = None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """
        :param obs: batch of ``B`` observations
        :param actions: shape ``(B, ...)``
        :param groups: group of each observation, shape ``(B,)``, if it is known already
        :return: value, log-likelihood of the actions, entropy of the action distribution
        """
        params, values = self._heads(obs, self.groups(obs) if groups is None else groups)
        return values, self.action_family.log_prob(params, actions), self.action_family.entropy(params)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        params = self._params(observation)
        actions = self.action_family.mode(params) if deterministic else self.action_family.sample(params)
        if not math.isfinite(self.action_family.log_prob(params, actions).sum().item()):
            self._raise_if_nonfinite(observation)
        return actions

    def _params(self, obs: PyTorchObs) -> Any:
        features = self.pi_features_extractor(self._preprocess(obs))
        groups = self.groups(obs)
        rows = head_rows(groups, self.max_groups)
        return self._action_params(self.mlp_extractor.forward_actor(features), groups, rows)

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        params = self._params(obs)
        if isinstance(self.action_dist, MultiCategoricalDistribution):
            return self.action_dist.proba_distribution(th.cat(params, dim=1))
        if isinstance(self.action_dist, DiagGaussianDistribution):
            mean, std = params
            return self.action_dist.proba_distribution(mean, std.log())
        return params if self.use_sde else self.action_dist.proba_distribution(params)

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        features = self.vf_features_extractor(self._preprocess(obs))
        groups = self.groups(obs)
        rows = head_rows(groups, self.max_groups)
        values = choose_head(self.value_net(self.mlp_extractor.forward_critic(features)), rows, self.max_groups)
        if not math.isfinite(values.sum().item()):
            raise ValueError(describe_nonfinite(obs, groups, values.flatten().isfinite()))
        return values


class GroupActorCriticCnnPolicy(GroupActorCriticPolicy, ActorCriticCnnPolicy):
    """The same for images (``NatureCNN``); parameters as :class:`GroupActorCriticPolicy`."""


class GroupMultiInputActorCriticPolicy(GroupActorCriticPolicy, MultiInputActorCriticPolicy):
    """The same for Dict observations (``CombinedExtractor``); parameters as :class:`GroupActorCriticPolicy`."""


def check_group_counts(n_groups: int | None, max_groups: int | None, n_cells: int) -> tuple[int, int]:
    """
    :param n_groups: groups to start with; ``None``: one per cell, but at most ``max_groups``
    :param max_groups: number of heads; ``None``: ``n_groups``
    :param n_cells: number of cells
    :return: ``n_groups`` and ``max_groups``
    :raises ValueError: unless ``1 <= n_groups <= max_groups`` and ``n_groups <= n_cells``
    """
    if n_groups is None:
        n_groups = n_cells if max_groups is None else min(n_cells, max_groups)
    if max_groups is None:
        max_groups = n_groups
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
