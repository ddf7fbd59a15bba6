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


def normalize_by_group(advantages: np.ndarray, groups: np.ndarray, n_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Subtract the mean of each group's advantages and divide by their standard deviation.

    :param advantages: shape ``(B,)``
    :param groups: group of each step, shape ``(B,)``, integers in ``[0, n_groups)``
    :param n_groups: number of groups
    :return: normalised advantages, float32, shape ``(B,)``, and the divisor of each group, shape ``(n_groups,)``
    """
    advantages, counts = advantages.astype(np.float64), np.bincount(groups, minlength=n_groups)
    # in float32 as in SB3, where 1e-8 changes none but the smallest deviations
    scale = group_std(advantages, groups, counts).astype(np.float32) + np.float32(1e-8)
    centred = (advantages - group_means(advantages, groups, counts)[groups]).astype(np.float32)
    return centred / scale[groups], scale
