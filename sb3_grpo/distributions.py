"""Choosing each step's own head, and gSDE with one noise matrix per group."""

from typing import Any

import torch as th
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from torch import nn
from torch.distributions import Normal


def choose_head(outputs: th.Tensor, groups: th.Tensor, n_heads: int) -> th.Tensor:
    """
    From the outputs of all heads keep those of each step's own group.

    :param outputs: heads side by side in the last dimension, shape ``(B, n_heads * n)``, or ``(n_heads * n,)``
        where the heads do not depend on the step
    :param groups: group of each step, shape ``(B,)``
    :param n_heads: number of heads
    :return: shape ``(B, n)``; ``outputs`` itself when there is one head
    """
    if n_heads == 1:
        return outputs
    heads = outputs.unflatten(-1, (n_heads, -1))
    if outputs.ndim == 1:
        return heads[groups]
    return th.take_along_dim(heads, groups.view(-1, 1, 1), dim=1).squeeze(1)


def repeat_linear(layer: nn.Linear, n_heads: int) -> nn.Linear:
    """
    :param layer: one head
    :param n_heads: number of heads
    :return: a layer with ``n_heads`` copies of the head side by side
    """
    repeated = nn.utils.skip_init(
        nn.Linear, layer.in_features, n_heads * layer.out_features, bias=layer.bias is not None, device=layer.weight.device
    )
    repeated.load_state_dict(
        {name: value.repeat(n_heads, *[1] * (value.ndim - 1)) for name, value in layer.state_dict().items()}
    )
    return repeated


class GroupStateDependentNoiseDistribution(StateDependentNoiseDistribution):
    """
    gSDE (https://arxiv.org/abs/2005.05719) in which every group has its own noise matrix.

    The heads stand side by side: what has ``n`` columns in SB3 has ``n_heads * n`` here. After
    ``proba_distribution`` the distribution is that of all heads; :meth:`choose` narrows it to the head of
    each step.

    :param n_heads: number of groups
    :param action_dim: dimension of the action space
    :param latent_sde_dim: dimension of the features that drive the noise
    :param kwargs: as in SB3
    """

    def __init__(self, n_heads: int, action_dim: int, latent_sde_dim: int, **kwargs: Any):
        super().__init__(n_heads * action_dim, **kwargs)
        self.n_heads = n_heads
        self.latent_sde_dim = latent_sde_dim
        self._groups: th.Tensor

    def get_std(self, log_std: th.Tensor) -> th.Tensor:
        # without full_std a head has one column for all its actions
        columns = self.action_dim // log_std.shape[1]
        return super().get_std(log_std.repeat_interleave(columns, dim=1))

    def choose(self, groups: th.Tensor) -> "GroupStateDependentNoiseDistribution":
        """
        :param groups: group of each step, shape ``(B,)``
        """
        self._groups = groups
        mean, std = (choose_head(x, groups, self.n_heads) for x in (self.distribution.mean, self.distribution.stddev))
        self.distribution = Normal(mean, std)
        return self

    def get_noise(self, latent_sde: th.Tensor) -> th.Tensor:
        return choose_head(super().get_noise(latent_sde), self._groups, self.n_heads)
