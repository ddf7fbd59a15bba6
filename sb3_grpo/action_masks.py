"""Action masks: read from observations which actions are allowed, and put masks into observations."""

from collections.abc import Mapping
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution, MultiCategoricalDistribution
from stable_baselines3.common.type_aliases import PyTorchObs
from torch.distributions import Categorical

from sb3_grpo.distributions import mask_outputs
from sb3_grpo.envs.entries import ACTION_MASK, ExtraEntry


class ActionMasks:
    """
    Entry of Dict observations that says which actions are allowed, 1, and which are not, 0.

    :param key: name of the entry
    :param sizes: number of values of each variable of the action; Discrete actions have one variable
    """

    def __init__(self, key: str, sizes: list[int]):
        self.key, self.sizes = key, sizes

    def read(self, obs: PyTorchObs) -> th.Tensor:
        """
        Return the masks of observations, as they are.

        :param obs: batch of ``B`` observations
        :return: shape ``(B, sum(sizes))``
        """
        assert isinstance(obs, dict)
        return obs[self.key]

    def check(self, masks: th.Tensor) -> None:
        """
        Validate masks; this waits for the device, so it is called when something has failed.

        :param masks: shape ``(B, sum(sizes))``
        :raises ValueError: if a mask has other values than 0 and 1, or allows no value of a variable
        """
        other = masks[(masks != 0) & (masks != 1)]
        if len(other):
            raise ValueError(
                f"entry {self.key!r} of the observation must hold 0 or 1 for each action, got {other[0].item():g}; if "
                "VecNormalize normalises it, leave it out of `norm_obs_keys`"
            )
        for variable, part in enumerate(masks.split(self.sizes, dim=1)):
            empty = (part == 0).all(dim=1)
            if empty.any():
                what = "action" if len(self.sizes) == 1 else f"value of variable {variable} of the action"
                raise ValueError(
                    f"entry {self.key!r} of the observation must allow at least one {what}, got {part.shape[1]} zeros "
                    f"(environments {empty.nonzero().flatten().tolist()})"
                )

    def allow_something(self, masks: np.ndarray) -> np.ndarray:
        """
        Allow the first value of each variable of which a mask allows none.

        :param masks: shape ``(B, sum(sizes))``
        :return: valid masks of the same shape
        """
        allowed = masks.copy()
        for part in np.split(allowed, np.cumsum(self.sizes)[:-1], axis=1):
            part[(part == 0).all(axis=1), 0] = 1
        return allowed

    def restrict(self, distribution: Distribution, masks: th.Tensor) -> Distribution:
        """
        Give the actions of a distribution of SB3's that are not allowed the probability 0.

        :param distribution: of ``B`` steps; changed in place
        :param masks: shape ``(B, sum(sizes))``
        :return: ``distribution``
        :raises ValueError: if it is not categorical, which a class of the user may not be, or a mask is invalid
        """
        if not isinstance(distribution, (CategoricalDistribution, MultiCategoricalDistribution)):
            raise ValueError(
                f"`action_mask_key` must be None for action distributions that are not SB3's categorical ones, got "
                f"{self.key!r} and {type(distribution).__name__}"
            )
        # torch refuses, in its own words, what does not add up to 1
        self.check(masks)
        if isinstance(distribution, CategoricalDistribution):
            distribution.distribution = Categorical(logits=mask_outputs(distribution.distribution.logits, masks))
        else:
            pairs = zip(distribution.distribution, masks.split(self.sizes, dim=1), strict=True)
            distribution.distribution = [Categorical(logits=mask_outputs(part.logits, mask)) for part, mask in pairs]
        return distribution


def variable_sizes(action_space: spaces.Space[Any]) -> list[int] | None:
    """
    Return how many values each variable of an action has.

    :param action_space: of the environment
    :return: one number for Discrete actions, several for MultiDiscrete ones, ``None`` for others, which have no masks
    """
    if isinstance(action_space, spaces.Discrete):
        return [int(action_space.n)]
    return action_space.nvec.tolist() if isinstance(action_space, spaces.MultiDiscrete) else None


def sample_allowed(action_space: spaces.Space[Any], observation: Any) -> Any:
    """
    Draw an action that an observation allows.

    :param action_space: draws it, with its own generator
    :param observation: of one environment; where it has no entry ``"action_mask"`` that fits, all actions are allowed
    """
    mask = observation.get(ACTION_MASK) if isinstance(observation, Mapping) else None
    sizes = variable_sizes(action_space)
    if mask is None or sizes is None or np.shape(mask) != (sum(sizes),):
        return action_space.sample()
    parts = tuple(np.split((np.asarray(mask) == 1).astype(np.int8), np.cumsum(sizes)[:-1]))
    return action_space.sample(parts[0] if isinstance(action_space, spaces.Discrete) else parts)


def make_action_masks(
    key: str | None, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> ActionMasks | None:
    """
    Find the entry of observations that holds action masks.

    :param key: name of the entry; ``None``: there are no masks
    :param observation_space: of the environment
    :param action_space: of the environment
    :return: ``None`` without a key, and if there is no entry of the default name
    :raises ValueError: if there is no entry of another name, it does not fit the actions, or these cannot be masked: who has
        such an entry wants masks
    """
    entries = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {}
    if key is None or (key == ACTION_MASK and key not in entries):
        return None
    if key not in entries:
        raise ValueError(f"`action_mask_key` must be a key of a Dict observation, got {key!r} and {observation_space}")
    sizes = variable_sizes(action_space)
    if sizes is None:
        raise ValueError(
            f"`action_mask_key` must be None or name no entry of the observation unless actions are Discrete or "
            f"MultiDiscrete, got {key!r} and {action_space}"
        )
    entry, n = entries[key], sum(sizes)
    if not isinstance(entry, (spaces.MultiBinary, spaces.Box)) or entry.shape != (n,):
        raise ValueError(
            f"`action_mask_key` must name a MultiBinary or Box entry of shape ({n},), a number for each of the actions "
            f"{action_space}, or be None, got {key!r}, which is {entry}"
        )
    return ActionMasks(key, sizes)


class ActionMaskWrapper(gym.Wrapper[Any, Any, Any, Any]):
    """
    Put what the environment's ``action_masks()`` returns into its observations, where :class:`~sb3_grpo.grpo.GRPO` looks.

    That method is the one that sb3-contrib's ``MaskablePPO`` calls; an environment that does not have it gets it from
    sb3-contrib's ``ActionMasker``. Dict observations get one more entry, ``"action_mask"``; others become a dict with the
    entries ``"obs"`` and ``"action_mask"``, for which the policy is ``"MultiInputPolicy"``.

    :param env: an environment with Discrete or MultiDiscrete actions and the method ``action_masks()``, which returns one
        boolean for each action, or for each value of each variable one after the other
    :raises ValueError: if it has other actions, not this method, or an entry of that name already; later if a mask has
        another shape, or other values than 0 and 1
    """

    def __init__(self, env: gym.Env[Any, Any]):
        super().__init__(env)
        sizes = variable_sizes(env.action_space)
        if sizes is None:
            raise ValueError(f"`env` must have Discrete or MultiDiscrete actions, got {env.action_space}")
        if not env.has_wrapper_attr("action_masks"):
            raise ValueError(f"`env` must have a method action_masks(), got {env}")
        self.n_values = sum(sizes)
        self._entry = ExtraEntry(env.observation_space, ACTION_MASK, spaces.MultiBinary(self.n_values))
        self.observation_space = self._entry.space

    def _with_mask(self, observation: Any) -> dict[str, Any]:
        mask = np.asarray(self.env.get_wrapper_attr("action_masks")())
        if mask.shape != (self.n_values,) or not np.isin(mask, (0, 1)).all():
            raise ValueError(f"`env.action_masks()` must return {self.n_values} booleans, got {mask.tolist()}")
        return self._entry.add(observation, mask.astype(np.int8))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        Reset, as Gymnasium.

        :param seed: of the environment
        :param options: of the environment
        :return: observation with the mask, and ``info``
        :raises ValueError: if the mask has another shape, or other values than 0 and 1
        """
        observation, info = self.env.reset(seed=seed, options=options)
        return self._with_mask(observation), info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        Take a step, as Gymnasium.

        :param action: of the environment
        :return: observation with the mask, and all else as it is
        :raises ValueError: if the mask has another shape, or other values than 0 and 1
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._with_mask(observation), reward, terminated, truncated, info
