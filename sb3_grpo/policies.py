"""Policies: SB3's actor-critic policies whose observations choose one of several heads."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticCnnPolicy, BasePolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_grpo.compilation import CompiledFunction
from sb3_grpo.diagnostics import explain_failure, raise_if_nonfinite
from sb3_grpo.distributions import GroupStateDependentNoiseDistribution, HeadChoice, SB3Actions, mask_outputs
from sb3_grpo.headed_policy import HeadedPolicy


class GroupActorCriticPolicy(HeadedPolicy):
    """
    Policy in which the group of an observation decides, and estimates its value, by a head of its own.

    Parameters as :class:`~sb3_grpo.headed_policy.HeadedPolicy`.
    """

    # output of the actor's trunk in the last call of forward(), and the values of all objectives
    last_latent_pi: th.Tensor | None = None
    last_values: th.Tensor | None = None
    _compiled_act: CompiledFunction | None = None

    def extract_features(  # type: ignore[override]  # SB3's own signature, which differs from its base class
        self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor | None = None
    ) -> th.Tensor | tuple[th.Tensor, th.Tensor]:
        """
        Preprocess observations and extract their features.

        :param obs: batch of ``B`` observations
        :param features_extractor: extractor to use; ``None``: those of the policy
        :return: features; a pair for actor and critic if they have extractors of their own
        """
        preprocessed = self._preprocess(obs)
        if features_extractor is not None:
            return features_extractor(preprocessed)
        if self.share_features_extractor:
            return self.features_extractor(preprocessed)
        return self.pi_features_extractor(preprocessed), self.vf_features_extractor(preprocessed)

    def latent_pi(self, obs: PyTorchObs) -> th.Tensor:
        """
        Compute the output of the actor's trunk.

        :param obs: batch of ``B`` observations
        :return: shape ``(B, latent_dim)``
        """
        return self.mlp_extractor.forward_actor(self.pi_features_extractor(self._preprocess(obs)))

    def choose_heads(self, obs: PyTorchObs, heads: th.Tensor | None = None) -> HeadChoice | None:
        """
        Choose the head of each observation.

        :param obs: batch of ``B`` observations
        :param heads: index of the head of each, if it is known
        :return: the choice; ``None`` where there is one head
        """
        if self.n_heads == 1:
            return None
        return HeadChoice.of(self.grouping.heads_at(obs) if heads is None else heads, self.n_heads)

    def masks(self, obs: PyTorchObs) -> th.Tensor | None:
        """
        Find which actions are allowed.

        :param obs: batch of ``B`` observations
        :return: 1 where the action is allowed, 0 where not, shape ``(B, n)``; ``None`` where there are no masks
        """
        return None if self.action_masks is None else self.action_masks.read(obs)

    def _action_params(self, latent_pi: th.Tensor, choice: HeadChoice | None, masks: th.Tensor | None) -> Any:
        """Return the distribution of each step, as ``self.actions`` has it."""
        if isinstance(self.actions, SB3Actions):
            return self._distribution(latent_pi, choice, masks)
        outputs, log_std = self.action_net(latent_pi), getattr(self, "log_std", None)
        if choice is not None:
            outputs, log_std = choice.outputs(outputs), None if log_std is None else choice.parameters(log_std)
        return self.actions.params(mask_outputs(outputs, masks), log_std)

    def _distribution(self, latent_pi: th.Tensor, choice: HeadChoice | None, masks: th.Tensor | None) -> Distribution:
        """Return the distribution of each step as an object of SB3's."""
        distribution = self._unmasked_distribution(latent_pi, choice)
        if self.action_masks is None or masks is None:
            return distribution
        return self.action_masks.restrict(distribution, masks)

    def _unmasked_distribution(self, latent_pi: th.Tensor, choice: HeadChoice | None) -> Distribution:
        if choice is None:
            return self._get_action_dist_from_latent(latent_pi)
        outputs = self.action_net(latent_pi)
        if isinstance(self.action_dist, GroupStateDependentNoiseDistribution):
            return self.action_dist.proba_distribution(outputs, self.log_std, latent_pi).choose(choice)
        if not hasattr(self, "log_std"):
            return self.action_dist.proba_distribution(choice.outputs(outputs))
        return self.action_dist.proba_distribution(choice.outputs(outputs), choice.parameters(self.log_std))

    def _values(self, latent_vf: th.Tensor, choice: HeadChoice | None) -> th.Tensor:
        """Return the values of the objectives, shape ``(B, n_objectives)``."""
        outputs = self.value_net(latent_vf)
        if choice is not None:
            outputs = choice.outputs(outputs)
        if self.value_scale is None:
            return outputs
        return outputs * (self.value_scale.scale if choice is None else self.value_scale.at(choice.heads).unsqueeze(-1))

    def heads(self, obs: PyTorchObs, heads: th.Tensor | None = None) -> tuple[Any, th.Tensor, th.Tensor]:
        """
        Evaluate the head of each observation.

        :param obs: batch of ``B`` observations
        :param heads: index of the head of each, if it is known
        :return: what ``self.actions`` calls ``params``, the values, shape ``(B, n_objectives)``, which are 0 without a
            critic, and the output of the actor's trunk
        """
        choice, features, masks = self.choose_heads(obs, heads), self.extract_features(obs), self.masks(obs)
        if isinstance(features, tuple):
            latent_pi, latent_vf = (
                self.mlp_extractor.forward_actor(features[0]),
                self.mlp_extractor.forward_critic(features[1]),
            )
        elif self.use_critic:
            latent_pi, latent_vf = self.mlp_extractor(features)
        else:
            latent_pi = self.mlp_extractor.forward_actor(features)
            return self._action_params(latent_pi, choice, masks), latent_pi.new_zeros(latent_pi.shape[0], 1), latent_pi
        return self._action_params(latent_pi, choice, masks), self._values(latent_vf, choice), latent_pi

    def _act(self, obs: PyTorchObs, deterministic: bool, heads: th.Tensor | None = None) -> tuple[th.Tensor, ...]:
        """Return actions, values, log-likelihoods, a number that is finite if these are, and the actor's latent vectors."""
        params, values, latent_pi = self.heads(obs, heads)
        actions = self.actions.mode(params) if deterministic else self.actions.sample(params)
        log_prob = self.actions.log_prob(params, actions)
        return actions, values, log_prob, values.sum() + log_prob.sum(), latent_pi

    def compile_act(self) -> None:
        """Compile what :meth:`forward` does in rollouts; random numbers are still those of torch, in the same order."""
        # gSDE keeps the noise of a rollout in an object, which cannot be compiled
        if self._compiled_act is None and not self.use_sde:
            keys = self._observation_keys()

            def act(heads: th.Tensor | None, *tensors: th.Tensor) -> tuple[th.Tensor, ...]:
                obs = dict(zip(keys, tensors, strict=True)) if keys else tensors[0]
                return self._act(obs, deterministic=False, heads=heads)

            self._compiled_act = CompiledFunction("acting", act, {"fallback_random": True})

    def _observation_keys(self) -> list[str]:
        """Return the keys of observations; empty if they are not dicts."""
        return list(self.observation_space.spaces) if isinstance(self.observation_space, spaces.Dict) else []

    def set_training_mode(self, mode: bool) -> None:
        """
        Put the policy into training or evaluation mode, as in SB3.

        :param mode: ``True``: training mode
        """
        super().set_training_mode(mode)
        if self._compiled_act is not None:
            self._compiled_act.check_again()

    def _fastest_act(self, obs: PyTorchObs, deterministic: bool) -> Sequence[th.Tensor]:
        """Return what :meth:`_act` does, compiled in rollouts."""
        if self._compiled_act is None or deterministic or th.is_grad_enabled():
            return self._act(obs, deterministic)
        tensors = [obs[key] for key in self._observation_keys()] if isinstance(obs, dict) else [obs]
        heads = None if self.n_heads == 1 or self.grouping.router.is_compilable else self.grouping.heads_at(obs)
        return self._compiled_act(tensors[0].shape, heads, *tensors)

    def __getstate__(self) -> dict[str, Any]:
        # a copy of the policy must not call the original's network
        return {name: value for name, value in super().__getstate__().items() if name != "_compiled_act"}

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        Act on observations.

        :param obs: batch of ``B`` observations
        :param deterministic: whether to take the most likely actions instead of drawing them
        :return: actions, values of shape ``(B, 1)`` and log-likelihoods of shape ``(B,)``
        :raises ValueError: if observations, or the policy's outputs for them, are NaN, infinite or outside of their space, or
            a mask allows no action
        """
        try:
            actions, values, log_prob, total, latent_pi = self._fastest_act(obs, deterministic)
            healthy = math.isfinite(total.item())
        except (RuntimeError, IndexError) as error:
            # torch does not sample from NaN, and has no column or head for what does not exist
            explain_failure(self, obs)
            raise error
        if not healthy:
            raise_if_nonfinite(self, obs)
        self.last_latent_pi, self.last_values = latent_pi.detach(), values.detach()
        assert self.action_space.shape is not None
        return actions.reshape((-1, *self.action_space.shape)), self._total(values), log_prob

    def _total(self, values: th.Tensor) -> th.Tensor:
        """Return the sum of the values of all objectives, shape ``(B, 1)``: the value of the reward that SB3 knows."""
        return values if self.n_objectives == 1 else values.sum(dim=1, keepdim=True)

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
        :raises ValueError: if the observation is not one of the observation space, or its mask allows no action
        """
        if isinstance(self.observation_space, spaces.Dict):
            keys = list(self.observation_space)
            if not isinstance(observation, dict) or not set(keys) <= observation.keys():
                got = list(observation) if isinstance(observation, dict) else type(observation).__name__
                raise ValueError(f"`observation` must be a dict with the keys {keys}, got {got}")
        return super().predict(observation, state, episode_start, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        if self._has_own_distribution():
            return self.get_distribution(observation).get_actions(deterministic=deterministic)
        try:
            params = self._actor(observation)
            actions = self.actions.mode(params) if deterministic else self.actions.sample(params)
        except (RuntimeError, IndexError) as error:
            explain_failure(self, observation)
            raise error
        if not math.isfinite(self.actions.log_prob(params, actions).sum().item()):
            raise_if_nonfinite(self, observation)
        return actions

    def _actor(self, obs: PyTorchObs) -> Any:
        """Return the distribution of each observation, as ``self.actions`` has it, without the critic."""
        return self._action_params(self.latent_pi(obs), self.choose_heads(obs), self.masks(obs))

    def _has_own_distribution(self) -> bool:
        """Return whether a subclass decides by a ``get_distribution`` of its own."""
        return type(self).get_distribution is not GroupActorCriticPolicy.get_distribution

    def most_likely(self, obs: PyTorchObs) -> th.Tensor:
        """
        Return the most likely actions without a look at values, so that torch can trace it.

        :param obs: batch of ``B`` observations
        :return: what :meth:`predict` chooses with ``deterministic=True``, before actions are fitted into their space
        """
        if self._has_own_distribution():
            return self.get_distribution(obs).get_actions(deterministic=True)
        return self.actions.mode(self._actor(obs))

    def evaluate_actions(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """
        Evaluate actions, as in SB3.

        :param obs: batch of ``B`` observations
        :param actions: shape ``(B, ...)``
        :return: values, shape ``(B, 1)``, log-likelihoods of the actions and entropies of the action distributions (or
            ``None``), shape ``(B,)``
        """
        values, log_prob, entropy = self._evaluate(obs, actions, None)
        return self._total(values), log_prob, entropy

    def evaluate_rollout(
        self, obs: PyTorchObs, actions: th.Tensor, heads: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """
        Evaluate actions of a rollout, whose heads are known; a subclass that overrides ``evaluate_actions`` does it.

        :param obs: batch of ``B`` observations
        :param actions: shape ``(B, ...)``
        :param heads: index of the head of each observation, shape ``(B,)``
        :return: as :meth:`evaluate_actions`, but with the values of all objectives, shape ``(B, n_objectives)``
        """
        if type(self).evaluate_actions is not GroupActorCriticPolicy.evaluate_actions:
            return self.evaluate_actions(obs, actions)
        return self._evaluate(obs, actions, heads)

    def _evaluate(
        self, obs: PyTorchObs, actions: th.Tensor, heads: th.Tensor | None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        params, values, _ = self.heads(obs, heads)
        return values, self.actions.log_prob(params, actions), self.actions.entropy(params)

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """
        Return the action distribution of each observation, as an object of SB3's.

        :param obs: batch of ``B`` observations
        :raises ValueError: if a mask allows no action
        """
        return self._distribution(self.latent_pi(obs), self.choose_heads(obs), self.masks(obs))

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        """
        Estimate the value of each observation, summed over objectives.

        :param obs: batch of ``B`` observations
        :return: shape ``(B, 1)``; 0 without a critic
        :raises ValueError: if observations, or the policy's outputs for them, are NaN or infinite; not without a critic
        """
        return self._total(self.objective_values(obs))

    def objective_values(self, obs: PyTorchObs) -> th.Tensor:
        """
        Estimate the value of each observation for each objective.

        :param obs: batch of ``B`` observations
        :return: shape ``(B, n_objectives)``; 0 without a critic
        :raises ValueError: if observations, or the policy's outputs for them, are NaN or infinite; not without a critic
        """
        if not self.use_critic:
            entry = next(iter(obs.values())) if isinstance(obs, dict) else obs
            return th.zeros(entry.shape[0], 1, device=entry.device)
        features = self.vf_features_extractor(self._preprocess(obs))
        values = self._values(self.mlp_extractor.forward_critic(features), self.choose_heads(obs))
        if not math.isfinite(values.sum().item()):
            raise_if_nonfinite(self, obs)
        return values


class GroupActorCriticCnnPolicy(GroupActorCriticPolicy, ActorCriticCnnPolicy):
    """The same for images (``NatureCNN``); parameters as :class:`GroupActorCriticPolicy`."""


class GroupMultiInputActorCriticPolicy(GroupActorCriticPolicy, MultiInputActorCriticPolicy):
    """The same for Dict observations (``CombinedExtractor``); parameters as :class:`GroupActorCriticPolicy`."""


MlpPolicy = GroupActorCriticPolicy
CnnPolicy = GroupActorCriticCnnPolicy
MultiInputPolicy = GroupMultiInputActorCriticPolicy
# Names of policies in the argument `policy`
POLICIES: dict[str, type[BasePolicy]] = {
    "MlpPolicy": MlpPolicy,
    "CnnPolicy": CnnPolicy,
    "MultiInputPolicy": MultiInputPolicy,
}
