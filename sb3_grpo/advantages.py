"""Advantages: how much better than expected each action of a rollout was, and what divides them."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch as th
from torch import nn

from sb3_grpo.buffers import GroupBufferMixin
from sb3_grpo.losses import group_means, group_std

# Steps of a group after which the advantages before them count half
HALF_LIFE = 5000


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


class AdvantageScale(nn.Module):
    """
    Hold the running scale of the advantages of each cell: their root mean square around the mean of the cell's group.

    Steps count half when the group has made ``HALF_LIFE`` steps more. The scale is kept by cell, so that groups which are
    merged or split take it along.

    :param n_cells: number of cells
    """

    scale: th.Tensor  # in units of the advantages, shape (C,); 0 before the first step
    count: th.Tensor  # steps that it was estimated from, older ones count less, shape (C,)

    def __init__(self, n_cells: int):
        super().__init__()
        self.register_buffer("scale", th.zeros(n_cells), persistent=False)
        self.register_buffer("count", th.zeros(n_cells), persistent=False)

    def update(self, advantages: np.ndarray, cells: np.ndarray, cell_to_group: np.ndarray) -> None:
        """
        Take the advantages of one rollout into account.

        :param advantages: not normalised, finite, shape ``(B,)``
        :param cells: cell of each step, shape ``(B,)``
        :param cell_to_group: group of each cell, shape ``(C,)``
        """
        advantages, groups = advantages.astype(np.float64), cell_to_group[cells]
        counts = np.bincount(groups, minlength=cell_to_group.max() + 1)
        squares = np.square(advantages - group_means(advantages, groups, counts)[groups])
        scale, known = (tensor.cpu().numpy().astype(np.float64) for tensor in (self.scale, self.count))
        known *= 0.5 ** (counts[cell_to_group] / HALF_LIFE)
        count = known + np.bincount(cells, minlength=len(known))
        total = known * np.square(scale) + np.bincount(cells, squares, minlength=len(known))
        self.scale.copy_(th.as_tensor(np.sqrt(_ratio(total, count)).astype(np.float32)))
        self.count.copy_(th.as_tensor(count.astype(np.float32)))

    def of_groups(self, cell_to_group: np.ndarray, n_groups: int) -> np.ndarray:
        """
        Pool the scale over the cells of each group.

        :param cell_to_group: group of each cell, shape ``(C,)``
        :param n_groups: number of groups ``K``
        :return: root mean square of each group's advantages, shape ``(K,)``, float64; 0 for a group without steps
        """
        scale, count = (tensor.cpu().numpy().astype(np.float64) for tensor in (self.scale, self.count))
        total = np.bincount(cell_to_group, count * np.square(scale), minlength=n_groups)
        return np.sqrt(_ratio(total, np.bincount(cell_to_group, count, minlength=n_groups)))


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Divide, with 0 where there is nothing to divide by."""
    return np.divide(total, count, out=np.zeros_like(total), where=count > 0)


def normalize_by_group(advantages: np.ndarray, groups: np.ndarray, floor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Subtract the mean of each group's advantages, and divide by their standard deviation or the floor, whichever is larger.

    A rollout of a sparse task with hardly any success has advantages that are errors of the value function, some ten times
    smaller than those of a success. Divided by their own standard deviation they would become as large as those of a success,
    and the policy would follow them; divided by the scale that the group's advantages have had they stay small.

    :param advantages: shape ``(B,)``
    :param groups: group of each step, shape ``(B,)``, integers in ``[0, K)``
    :param floor: smallest divisor of each group, in units of its advantages, at least 0, shape ``(K,)``; from
        :meth:`AdvantageScale.of_groups`
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
