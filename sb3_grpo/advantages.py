"""Advantages: how much better than expected each action of a rollout was, and what divides them."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from sb3_grpo.buffers import GroupBufferMixin
from sb3_grpo.losses import group_means, group_std


class AdvantageEstimator(ABC):
    """Estimator of the advantages of a rollout."""

    # Whether value heads are trained: without, the value loss is left out
    uses_critic: ClassVar[bool]

    @abstractmethod
    def __call__(self, buffer: GroupBufferMixin, groups: np.ndarray) -> np.ndarray:
        """
        Estimate the advantage of each step.

        :param buffer: the complete rollout
        :param groups: group of each step, shape ``(B,)``, in the order of ``buffer.samples()``
        :return: shape ``(B,)``, not normalised
        """


class GAE(AdvantageEstimator):
    """Generalized advantage estimation (https://arxiv.org/abs/1506.02438), as SB3 computes it while it collects."""

    uses_critic = True

    def __call__(self, buffer: GroupBufferMixin, groups: np.ndarray) -> np.ndarray:
        """Return the advantages that the buffer holds, see :class:`AdvantageEstimator`."""
        return buffer.samples().advantages.cpu().numpy()


# Values of the argument `advantage_estimator`
ESTIMATORS: dict[str, type[AdvantageEstimator]] = {"gae": GAE}


def _ratio(total: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Divide, with 0 where there is nothing to divide by."""
    return np.divide(total, by, out=np.zeros(total.shape), where=by > 0)


def single_reward_deviation(groups: np.ndarray, per_scale: np.ndarray, discount: float, n_steps: int) -> np.ndarray:
    """
    Compute the root mean square of each group's advantages in a rollout that has a single reward, which was not expected.

    Generalized advantage estimation adds such a reward, times ``discount ** k``, to the advantage of the step ``k`` steps
    before it. With a reward as large as the group's usually are, this is
    ``scale * sqrt(sum(discount ** (2 * k) for k in range(n_steps)) / n)``, ``n`` the steps of the group.

    :param groups: group of each step, shape ``(B,)``, integers in ``[0, K)``
    :param per_scale: 1 / scale of each group's rewards, 0 where it has had none, shape ``(K,)``; from
        :meth:`~sb3_grpo.reward_scale.RewardScale.inverse_of_groups`
    :param discount: ``gamma * gae_lambda``, 0 to 1
    :param n_steps: steps of the rollout in each environment
    :return: in units of the rewards, shape ``(K,)``; 0 for a group that has had no reward or has no steps
    """
    counts = np.bincount(groups, minlength=len(per_scale))
    credit = np.square(discount ** np.arange(n_steps)).sum()
    return _ratio(np.ones(len(counts)), per_scale) * np.sqrt(_ratio(np.full(len(counts), credit), counts))


def normalize_by_group(advantages: np.ndarray, groups: np.ndarray, floor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Subtract the mean of each group's advantages, and divide by their standard deviation or the floor, whichever is larger.

    A rollout of a sparse task without a success has advantages that are errors of the value function, some ten times smaller
    than those of a rollout with one. Divided by their own standard deviation they become as large, and the policy follows
    them until it has lost its exploration. The floor keeps them small.

    :param advantages: shape ``(B,)``
    :param groups: group of each step, shape ``(B,)``, integers in ``[0, K)``
    :param floor: smallest divisor of each group, in units of its advantages, at least 0, shape ``(K,)``; see
        :func:`single_reward_deviation`
    :return: normalised advantages, float32, shape ``(B,)``, and the divisor of each group, shape ``(K,)``; it is 0 for a
        group whose advantages have all been 0, which they stay
    """
    advantages, counts = advantages.astype(np.float64), np.bincount(groups, minlength=len(floor))
    largest = np.zeros(len(floor))
    np.maximum.at(largest, groups, np.abs(advantages))
    # below the last term differences between advantages are rounding errors of float32
    divisor = np.maximum.reduce([group_std(advantages, groups, counts), floor, np.finfo(np.float32).eps * largest])
    centred = advantages - group_means(advantages, groups, counts)[groups]
    return _ratio(centred, divisor[groups]).astype(np.float32), divisor


def rollout_scale(advantages: np.ndarray) -> float:
    """
    Compute the divisor that normalises the advantages of a whole rollout.

    :param advantages: shape ``(B,)``
    :return: their sample standard deviation, above 0
    """
    return float(advantages.astype(np.float64).std(ddof=1) + 1e-8)
