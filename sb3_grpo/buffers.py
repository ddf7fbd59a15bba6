"""Rollout buffers: SB3's, with a whole rollout as tensors that know the head and the weight of every step."""

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import PyTorchObs


class Rollout(NamedTuple):
    """
    ``B`` steps of a rollout, or of a minibatch: SB3's samples and two entries more.

    Each entry is a tensor, or a dict of tensors, whose first dimension is ``B``. The last ones are there if they are needed.
    """

    observations: PyTorchObs  #: as the policy gets them
    actions: th.Tensor  #: as the policy drew them
    old_values: th.Tensor  #: shape (B,); (B, n_objectives) where groups are objectives
    old_log_prob: th.Tensor  #: of the action when it was drawn, shape (B,)
    advantages: th.Tensor  #: shape (B,)
    returns: th.Tensor  #: same shape as the values
    heads: th.Tensor  #: index of the head of the step, shape (B,)
    weights: th.Tensor  #: factor on the step's policy-gradient loss, 1 = PPO, shape (B,)
    shares: th.Tensor | None = None  #: factor on the whole loss of the step, shape (B,); ``None``: 1
    trajectories: th.Tensor | None = None  #: trajectory of the step, if its ratios are to be averaged, shape (B,)
    reference_log_prob: th.Tensor | None = None  #: of the action, by the reference policy, shape (B,)

    def tensors(self) -> list[th.Tensor | None]:
        """Return all entries, those of a dict of observations first."""
        observations = self.observations
        return [*(observations.values() if isinstance(observations, dict) else [observations]), *self[1:]]

    @classmethod
    def of(cls, keys: Sequence[str] | None, tensors: Sequence[Any]) -> "Rollout":
        """
        Make a rollout of what :meth:`tensors` returns.

        :param keys: of the observations; ``None``: they are one tensor
        :param tensors: those of the observations first
        """
        if keys is None:
            return cls(*tensors)
        return cls(dict(zip(keys, tensors, strict=False)), *tensors[len(keys) :])

    def at(self, indices: Any) -> "Rollout":
        """
        Copy some of the steps.

        :param indices: of the steps, array or tensor of integers
        """
        index = th.as_tensor(indices, device=self.heads.device)
        keys = list(self.observations) if isinstance(self.observations, dict) else None
        return Rollout.of(keys, [None if entry is None else entry[index] for entry in self.tensors()])

    def followed_by(self, others: "Rollout") -> "Rollout":
        """
        Join steps.

        :param others: come after these, and have the same entries
        """
        keys = list(self.observations) if isinstance(self.observations, dict) else None
        pairs: list[Any] = list(zip(self.tensors(), others.tensors(), strict=True))
        return Rollout.of(keys, [None if pair[0] is None else th.cat(pair) for pair in pairs])

    def minibatches(self, batch_size: int) -> Generator["Rollout", None, None]:
        """
        Draw minibatches without replacement; the permutation, hence the minibatches, are SB3's.

        :param batch_size: steps per minibatch; the last one may have fewer. If trajectories are given they stay whole, so
            that a minibatch has at least so many steps, but for the last one
        """
        if self.trajectories is not None:
            yield from self._whole_trajectories(self.trajectories, batch_size)
            return
        permutation = th.as_tensor(np.random.permutation(len(self.heads)), device=self.heads.device)
        indices = permutation.split(batch_size)
        # small entries are permuted as a whole, which is faster; observations can be too large to be copied
        fields: list[Any] = [
            [None] * len(indices) if field is None else field[permutation].split(batch_size) for field in self[1:]
        ]
        for chosen, *entries in zip(indices, *fields, strict=True):
            if isinstance(self.observations, dict):
                observations: PyTorchObs = {key: value[chosen] for key, value in self.observations.items()}
            else:
                observations = self.observations[chosen]
            yield Rollout(observations, *entries)

    def _whole_trajectories(self, trajectories: th.Tensor, batch_size: int) -> Generator["Rollout", None, None]:
        """Draw minibatches of whole trajectories."""
        numbers = trajectories.cpu().numpy()
        order, lengths = np.argsort(numbers, kind="stable"), np.bincount(numbers)
        begins = np.cumsum(lengths) - lengths
        chosen: list[np.ndarray] = []
        for number in np.random.permutation(len(lengths)):
            chosen.append(order[begins[number] : begins[number] + lengths[number]])
            if sum(map(len, chosen)) >= batch_size:
                yield self.at(np.concatenate(chosen))
                chosen = []
        if chosen:
            yield self.at(np.concatenate(chosen))


class GroupBufferMixin(RolloutBuffer):
    """
    Rollout buffer that makes tensors of the whole rollout once, so that a minibatch is one index operation per entry.

    On the CPU the tensors share the memory of SB3's arrays.
    """

    _samples: Rollout | None

    def reset(self) -> None:
        """Forget the rollout."""
        super().reset()
        self._samples = None

    def to_torch(self, array: np.ndarray, copy: bool = False) -> th.Tensor:
        """
        Convert to a tensor; without a copy, since :meth:`reset` makes new arrays instead of overwriting these.

        :param array: the array
        :param copy: whether to copy the data
        :return: tensor of the same shape
        """
        return super().to_torch(array, copy)

    def samples(self) -> Rollout:
        """
        Return all steps of the complete rollout, environment by environment as SB3 flattens them.

        :return: ``B = buffer_size * n_envs`` steps, all of them with head 0 and weight 1
        """
        if self._samples is None:
            if not self.full:
                raise RuntimeError(f"the rollout is not complete: {self.pos} of {self.buffer_size} steps")
            self._flatten()
            samples = super()._get_samples(slice(None))  # type: ignore[arg-type]  # a slice indexes too
            heads, weights = th.zeros_like(samples.returns, dtype=th.long), th.ones_like(samples.returns)
            self._samples = Rollout(*samples, heads=heads, weights=weights)
        return self._samples

    def _flatten(self) -> None:
        """Flatten the arrays, as SB3 does when the first minibatch is asked for."""
        if isinstance(self.observations, dict):
            for key, value in self.observations.items():
                self.observations[key] = self.swap_and_flatten(value)
        else:
            self.observations = self.swap_and_flatten(self.observations)
        for name in ("actions", "values", "log_probs", "advantages", "returns"):
            setattr(self, name, self.swap_and_flatten(getattr(self, name)))
        self.generator_ready = True

    def flat_rewards(self) -> np.ndarray:
        """
        Return the rewards in the order of :meth:`samples`.

        :return: shape ``(B,)``; where a time limit ended an episode SB3 has added the discounted value of the last observation
        """
        return self.rewards.swapaxes(0, 1).ravel()

    def td_errors(self) -> th.Tensor:
        """
        Recover the one-step temporal-difference errors ``r + gamma V(s') - V(s)`` from the advantages.

        Advantages are sums of these errors, discounted with ``gamma * gae_lambda`` to the end of the episode.

        :return: shape ``(B,)``, in the order of :meth:`samples`
        """
        shape = (self.n_envs, self.buffer_size)
        errors = self.samples().advantages.reshape(shape).clone()
        same_episode = self.to_torch(1 - self.episode_starts.T[:, 1:])
        errors[:, :-1] -= self.gamma * self.gae_lambda * same_episode * errors[:, 1:].clone()
        return errors.flatten()

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        """
        Draw minibatches, as SB3's algorithms ask for them.

        :param batch_size: steps per minibatch; ``None``: all steps
        """
        samples = self.samples()
        yield from samples.minibatches(batch_size or len(samples.heads))


class GroupRolloutBuffer(GroupBufferMixin):
    """``RolloutBuffer`` that makes tensors of the whole rollout; same parameters."""


class GroupDictRolloutBuffer(GroupBufferMixin, DictRolloutBuffer):
    """``DictRolloutBuffer`` that makes tensors of the whole rollout; same parameters."""
