"""
Action distributions as functions of the heads' outputs, for all action spaces that PPO knows.

The formulas and the order of their operations are those of ``torch.distributions`` under SB3, so that results agree to
the last bit. There are no distribution objects and no validation, since these cost more time than the arithmetic.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution, StateDependentNoiseDistribution
from torch.distributions import Normal
from torch.nn import functional as F

# Log-likelihood of an action that is not allowed: its exponential is 0, and 0 times it is 0, not NaN as with infinity
LEAST_LOG_PROB = -1e8


class HeadChoice(NamedTuple):
    """Which of several heads decides at each of ``B`` steps."""

    heads: th.Tensor  # index of the head, shape (B,)
    rows: th.Tensor  # its row among the outputs of all heads at all steps, shape (B,)
    n_heads: int

    @classmethod
    def of(cls, heads: th.Tensor, n_heads: int) -> "HeadChoice":
        """
        Choose a head for each step.

        :param heads: index of the head, shape ``(B,)``
        :param n_heads: number of heads
        """
        # not `len`, which is a constant in models that are traced
        rows = heads + th.arange(0, heads.shape[0] * n_heads, n_heads, device=heads.device)
        return cls(heads, rows, n_heads)

    def outputs(self, outputs: th.Tensor) -> th.Tensor:
        """
        Pick the outputs of the chosen heads.

        :param outputs: heads side by side in the last dimension, shape ``(B, n_heads * n)``
        :return: shape ``(B, n)``
        """
        return outputs.view(outputs.shape[0] * self.n_heads, -1).index_select(0, self.rows)

    def parameters(self, parameter: th.Tensor) -> th.Tensor:
        """
        Pick the parameters of the chosen heads.

        :param parameter: heads side by side, shape ``(n_heads * n,)``
        :return: shape ``(B, n)``
        """
        return parameter.view(self.n_heads, -1).index_select(0, self.heads)


class ActionDistribution(ABC):
    """Kind of action distribution; its ``params`` hold one distribution per step."""

    @abstractmethod
    def params(self, outputs: th.Tensor, log_std: th.Tensor | None) -> Any:
        """
        Make the parameters of the distributions.

        :param outputs: of each step's own action head, shape ``(B, n)``
        :param log_std: of each step's own head, shape ``(n,)`` or ``(B, n)``; only for Box actions
        :return: what the other methods take
        """

    @abstractmethod
    def sample(self, params: Any) -> th.Tensor:
        """
        Draw an action from each distribution.

        :param params: distribution of each step
        :return: actions
        """

    @abstractmethod
    def mode(self, params: Any) -> th.Tensor:
        """
        Return the most likely action of each distribution.

        :param params: distribution of each step
        :return: the most likely actions
        """

    @abstractmethod
    def log_prob(self, params: Any, actions: th.Tensor) -> th.Tensor:
        """
        Compute the log-likelihood of actions.

        :param params: distribution of each step
        :param actions: one of each step
        :return: log-likelihoods, shape ``(B,)``
        """

    @abstractmethod
    def entropy(self, params: Any) -> th.Tensor | None:
        """
        Compute the entropy of each distribution.

        :param params: distribution of each step
        :return: entropies in nats, shape ``(B,)``; ``None`` if no analytical form is known
        """

    @abstractmethod
    def kl(self, params: Any, other: Any) -> th.Tensor:
        """
        Compute ``KL(p || q)`` in closed form.

        :param params: distributions ``p``, of any number of dimensions before the last
        :param other: distributions ``q``, of shapes that broadcast against those of ``params``
        :return: nats, without the last dimension
        """


class CategoricalActions(ActionDistribution):
    """Discrete actions; ``params`` are log-probabilities, shape ``(B, n)``."""

    def params(self, outputs: th.Tensor, log_std: th.Tensor | None = None) -> th.Tensor:
        return outputs - outputs.logsumexp(dim=-1, keepdim=True)

    def sample(self, params: th.Tensor) -> th.Tensor:
        # what th.multinomial does, from the same random numbers, but for its checks, which cost twice as much
        return (params.softmax(dim=-1) / th.empty_like(params).exponential_()).argmax(dim=-1)

    def mode(self, params: th.Tensor) -> th.Tensor:
        return params.argmax(dim=-1)

    def log_prob(self, params: th.Tensor, actions: th.Tensor) -> th.Tensor:
        return params.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self, params: th.Tensor) -> th.Tensor:
        return -(params * params.softmax(dim=-1)).sum(dim=-1)

    def kl(self, params: th.Tensor, other: th.Tensor) -> th.Tensor:
        return (params.exp() * (params - other)).sum(dim=-1)


class MaskedCategoricalActions(CategoricalActions):
    """Discrete actions of which some are not allowed; their outputs are those of :func:`mask_outputs`."""

    def params(self, outputs: th.Tensor, log_std: th.Tensor | None = None) -> th.Tensor:
        return super().params(outputs).clamp(min=LEAST_LOG_PROB)


def mask_outputs(outputs: th.Tensor, mask: th.Tensor | None) -> th.Tensor:
    """
    Exclude actions that are not allowed.

    What is wrong with a mask makes the likelihoods of its step NaN, which is noticed without another look at the mask.

    :param outputs: one of an action head for each action, shape ``(..., n)``
    :param mask: 1 where the action is allowed, 0 where not, of a shape that broadcasts against that; ``None``: all are
    :return: the outputs, but ``-inf`` where the mask is 0, and NaN where it is neither
    """
    if mask is None:
        return outputs
    return outputs.where(mask == 1, th.where(mask == 0, -math.inf, math.nan))


class MultiCategoricalActions(ActionDistribution):
    """
    MultiDiscrete actions: independent categorical variables; ``params`` are a list of log-probabilities.

    :param sizes: number of values of each variable
    :param one: distribution of one variable
    """

    def __init__(self, sizes: list[int], one: CategoricalActions):
        self.sizes = sizes
        self._one = one

    def params(self, outputs: th.Tensor, log_std: th.Tensor | None = None) -> list[th.Tensor]:
        return [self._one.params(part) for part in outputs.split(self.sizes, dim=-1)]

    def sample(self, params: list[th.Tensor]) -> th.Tensor:
        return th.stack([self._one.sample(part) for part in params], dim=1)

    def mode(self, params: list[th.Tensor]) -> th.Tensor:
        return th.stack([self._one.mode(part) for part in params], dim=1)

    def log_prob(self, params: list[th.Tensor], actions: th.Tensor) -> th.Tensor:
        pairs = zip(params, actions.unbind(dim=1), strict=True)
        return th.stack([self._one.log_prob(part, action) for part, action in pairs], dim=1).sum(dim=1)

    def entropy(self, params: list[th.Tensor]) -> th.Tensor:
        return th.stack([self._one.entropy(part) for part in params], dim=1).sum(dim=1)

    def kl(self, params: list[th.Tensor], other: list[th.Tensor]) -> th.Tensor:
        return th.stack([self._one.kl(p, q) for p, q in zip(params, other, strict=True)]).sum(dim=0)


class BernoulliActions(ActionDistribution):
    """MultiBinary actions; ``params`` are logits, shape ``(B, n)``."""

    def params(self, outputs: th.Tensor, log_std: th.Tensor | None = None) -> th.Tensor:
        return outputs

    def sample(self, params: th.Tensor) -> th.Tensor:
        return th.bernoulli(params.sigmoid())

    def mode(self, params: th.Tensor) -> th.Tensor:
        return params.sigmoid().round()

    def log_prob(self, params: th.Tensor, actions: th.Tensor) -> th.Tensor:
        return -F.binary_cross_entropy_with_logits(params, actions, reduction="none").sum(dim=1)

    def entropy(self, params: th.Tensor) -> th.Tensor:
        return F.binary_cross_entropy_with_logits(params, params.sigmoid(), reduction="none").sum(dim=1)

    def kl(self, params: th.Tensor, other: th.Tensor) -> th.Tensor:
        # p (log p - log q) + (1 - p) (log(1 - p) - log(1 - q)), in logits
        return (params.sigmoid() * (params - other) - F.softplus(params) + F.softplus(other)).sum(dim=-1)


class GaussianActions(ActionDistribution):
    """Box actions with independent dimensions; ``params`` are means and standard deviations, each ``(B, n)``."""

    def params(self, outputs: th.Tensor, log_std: th.Tensor | None) -> tuple[th.Tensor, th.Tensor]:
        assert log_std is not None
        return outputs, log_std.exp().expand_as(outputs)

    def sample(self, params: tuple[th.Tensor, th.Tensor]) -> th.Tensor:
        mean, std = params
        return mean + th.empty_like(mean).normal_() * std

    def mode(self, params: tuple[th.Tensor, th.Tensor]) -> th.Tensor:
        return params[0]

    def log_prob(self, params: tuple[th.Tensor, th.Tensor], actions: th.Tensor) -> th.Tensor:
        mean, std = params
        log_prob = -((actions - mean) ** 2) / (2 * std**2) - std.log() - math.log(math.sqrt(2 * math.pi))
        return log_prob.sum(dim=1)

    def entropy(self, params: tuple[th.Tensor, th.Tensor]) -> th.Tensor:
        return (0.5 + 0.5 * math.log(2 * math.pi) + params[1].log()).sum(dim=1)

    def kl(self, params: tuple[th.Tensor, th.Tensor], other: tuple[th.Tensor, th.Tensor]) -> th.Tensor:
        (mean, std), (other_mean, other_std) = params, other
        ratio, distance = (std / other_std).square(), ((mean - other_mean) / other_std).square()
        return 0.5 * (ratio + distance - 1 - ratio.log()).sum(dim=-1)


def _normal(distribution: Distribution) -> tuple[th.Tensor, th.Tensor]:
    assert isinstance(distribution.distribution, Normal)
    return distribution.distribution.mean, distribution.distribution.stddev


class SB3Actions(ActionDistribution):
    """
    Actions whose distribution is an object of SB3's: gSDE, which keeps noise matrices, and classes of the user.

    ``params`` are that object.
    """

    def params(self, outputs: Any, log_std: th.Tensor | None = None) -> Distribution:
        return outputs

    def sample(self, params: Distribution) -> th.Tensor:
        return params.sample()

    def mode(self, params: Distribution) -> th.Tensor:
        return params.mode()

    def log_prob(self, params: Distribution, actions: th.Tensor) -> th.Tensor:
        return params.log_prob(actions)

    def entropy(self, params: Distribution) -> th.Tensor | None:
        return params.entropy()

    def kl(self, params: Distribution, other: Distribution) -> th.Tensor:
        (mean, std), (other_mean, other_std) = (_normal(distribution) for distribution in (params, other))
        return GaussianActions().kl((mean, std), (other_mean, other_std))


def make_action_distribution(action_space: spaces.Space, use_sde: bool, masked: bool = False) -> ActionDistribution:
    """
    Choose the kind of action distribution for an action space.

    :param action_space: Box, Discrete, MultiDiscrete or MultiBinary
    :param use_sde: gSDE instead of independent Gaussian noise
    :param masked: whether some of the actions, which are Discrete or MultiDiscrete, may not be allowed
    """
    if use_sde:
        return SB3Actions()
    categorical = MaskedCategoricalActions() if masked else CategoricalActions()
    if isinstance(action_space, spaces.MultiDiscrete):
        return MultiCategoricalActions(action_space.nvec.tolist(), categorical)
    if isinstance(action_space, spaces.MultiBinary):
        return BernoulliActions()
    return categorical if isinstance(action_space, spaces.Discrete) else GaussianActions()


class GroupStateDependentNoiseDistribution(StateDependentNoiseDistribution):
    """
    gSDE (https://arxiv.org/abs/2005.05719) with one noise matrix per head.

    The heads stand side by side: what has ``n`` columns in SB3 has ``n_heads * n`` here. After
    ``proba_distribution`` the distribution is that of all heads; :meth:`choose` restricts it to the head of
    each step.

    :param n_heads: number of heads
    :param action_dim: dimension of the action space
    :param latent_sde_dim: dimension of the features that drive the noise
    :param kwargs: as in SB3
    """

    def __init__(self, n_heads: int, action_dim: int, latent_sde_dim: int, **kwargs: Any):
        super().__init__(n_heads * action_dim, **kwargs)
        self.n_heads = n_heads
        self.latent_sde_dim = latent_sde_dim
        self._choice: HeadChoice | None = None

    @classmethod
    def like(
        cls, distribution: StateDependentNoiseDistribution, n_heads: int, **kwargs: Any
    ) -> "GroupStateDependentNoiseDistribution":
        """
        Make a distribution with another number of heads.

        :param distribution: SB3's for one head, or one of this class
        :param n_heads: number of heads
        :param kwargs: as in SB3
        """
        own = distribution.n_heads if isinstance(distribution, cls) else 1
        assert distribution.latent_sde_dim is not None
        return cls(n_heads, distribution.action_dim // own, distribution.latent_sde_dim, **kwargs)

    def get_std(self, log_std: th.Tensor) -> th.Tensor:
        """
        Compute the standard deviations of the noise matrices.

        :param log_std: shape ``(latent_sde_dim, n_heads * n)``
        :return: shape ``(latent_sde_dim, n_heads * action_dim)``
        """
        # without full_std a head has one column for all its actions
        columns = self.action_dim // log_std.shape[1]
        return super().get_std(log_std.repeat_interleave(columns, dim=1))

    def choose(self, choice: HeadChoice) -> "GroupStateDependentNoiseDistribution":
        """
        Restrict the distribution to one head for each step.

        :param choice: the heads
        """
        self._choice = choice
        mean, std = (choice.outputs(x) for x in (self.distribution.mean, self.distribution.stddev))
        self.distribution = Normal(mean, std)
        return self

    def get_noise(self, latent_sde: th.Tensor) -> th.Tensor:
        """
        Compute the exploration noise of each step.

        :param latent_sde: features that drive the noise, shape ``(B, latent_sde_dim)``
        :return: shape ``(B, action_dim)``, of the chosen heads
        """
        noise = super().get_noise(latent_sde)
        return noise if self._choice is None else self._choice.outputs(noise)
