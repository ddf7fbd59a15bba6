"""SB3's rollout buffers, extended with the group of every step."""

from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_grpo.routing import Router


class GroupRolloutBufferSamples(NamedTuple):
    """SB3's samples plus two entries per step, each of shape ``(B,)``."""

    observations: PyTorchObs
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    groups: th.Tensor  # group of the step
    weights: th.Tensor  # factor on the step's policy-gradient loss, 1 = PPO

    def minibatches(self, batch_size: int) -> Generator["GroupRolloutBufferSamples", None, None]:
        """
        One pass over the samples in random order; the permutation, hence the minibatches, are SB3's.

        :param batch_size: samples per minibatch; the last one may have fewer
        """
        permutation = th.as_tensor(np.random.permutation(len(self.groups)), device=self.groups.device)
        # observations can be large: they are not copied as a whole
        chunks = [permutation.split(batch_size), *(field[permutation].split(batch_size) for field in self[1:])]
        for indices, *fields in zip(*chunks, strict=True):
            if isinstance(self.observations, dict):
                observations: PyTorchObs = {key: value[indices] for key, value in self.observations.items()}
            else:
                observations = self.observations[indices]
            yield GroupRolloutBufferSamples(observations, *fields)


class GroupBufferMixin(RolloutBuffer):
    """
    Adds groups and weights to the samples, and makes whole-rollout tensors once a rollout (they share the
    buffer's memory on the CPU), so that a minibatch is one index operation per field.
    """

    cells: th.Tensor  # of all steps, shape (B,); from assign_groups
    _samples: GroupRolloutBufferSamples | None

    def reset(self) -> None:
        super().reset()
        self._samples = None

    def to_torch(self, array: np.ndarray, copy: bool = False) -> th.Tensor:
        # no copy: reset() makes new arrays instead of overwriting these
        return super().to_torch(array, copy)

    def samples(self) -> GroupRolloutBufferSamples:
        """
        :return: all ``B = buffer_size * n_envs`` steps, environment by environment as SB3 flattens them;
            all in group 0 until :meth:`assign_groups` says otherwise
        """
        if self._samples is None:
            if not self.full:
                raise RuntimeError(f"the rollout is not complete: {self.pos} of {self.buffer_size} steps")
            self._flatten()
            samples = super()._get_samples(slice(None))  # type: ignore[arg-type]  # a slice indexes too
            groups, weights = th.zeros_like(samples.returns, dtype=th.long), th.ones_like(samples.returns)
            self._samples = GroupRolloutBufferSamples(*samples, groups=groups, weights=weights)
        return self._samples

    def _flatten(self) -> None:
        """What SB3 does to its arrays when the first minibatch is asked for."""
        if isinstance(self.observations, dict):
            for key, value in self.observations.items():
                self.observations[key] = self.swap_and_flatten(value)
        else:
            self.observations = self.swap_and_flatten(self.observations)
        for name in ("actions", "values", "log_probs", "advantages", "returns"):
            setattr(self, name, self.swap_and_flatten(getattr(self, name)))
        self.generator_ready = True

    def assign_groups(self, router: Router | None, cell_to_group: th.Tensor) -> None:
        """
        Find out the cell and the group of every step.

        :param router: maps observations to cells; ``None``: all steps are in cell 0
        :param cell_to_group: group of each cell, shape ``(n_cells,)``
        :raises ValueError: if an observation does not name a cell
        """
        samples = self.samples()
        self.cells = th.zeros_like(samples.groups)
        if router is not None:
            self.cells = router.cells_of(samples.observations)
        self._samples = samples._replace(groups=cell_to_group[self.cells])

    def flat_rewards(self) -> np.ndarray:
        """
        :return: the rewards in the order of the samples, shape ``(B,)``; where a time limit ended an episode SB3 has added
            the value of the last observation
        """
        return self.rewards.swapaxes(0, 1).ravel()

    def td_errors(self) -> th.Tensor:
        """
        One-step temporal-difference errors ``r + gamma V(s') - V(s)``, recovered from the advantages (which are their
        sums, discounted with ``gamma * gae_lambda`` to the end of the episode).

        :return: shape ``(B,)``
        """
        shape = (self.n_envs, self.buffer_size)
        errors = self.samples().advantages.reshape(shape).clone()
        same_episode = self.to_torch(1 - self.episode_starts.T[:, 1:])
        errors[:, :-1] -= self.gamma * self.gae_lambda * same_episode * errors[:, 1:].clone()
        return errors.flatten()

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        samples = self.samples()
        yield from samples.minibatches(batch_size or len(samples.groups))


class GroupRolloutBuffer(GroupBufferMixin):
    """``RolloutBuffer`` whose samples know their group; same parameters."""


class GroupDictRolloutBuffer(GroupBufferMixin, DictRolloutBuffer):
    """``DictRolloutBuffer`` whose samples know their group; same parameters."""
