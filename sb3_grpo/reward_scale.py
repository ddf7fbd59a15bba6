"""Scale of the rewards: what makes scores of groups comparable whose rewards differ in scale."""

import numpy as np
import torch as th
from torch import nn

# Ratio of the scales of two groups from which on they cannot learn in one unit
MAX_RATIO = 3.0


class RewardScale(nn.Module):
    """
    Hold the scale of the rewards of each cell: the root mean square of those that are not 0.

    Rewards of 0 do not count, because with them the scale of a task would depend on how often it is solved. The scale
    is kept by cell, so that merging and splitting groups does not change it.

    :param n_cells: number of cells
    """

    scale: th.Tensor  # of the rewards of each cell that are not 0, shape (C,); 0 before the first of them
    count: th.Tensor  # how many of these there were, shape (C,)

    def __init__(self, n_cells: int):
        super().__init__()
        self.register_buffer("scale", th.zeros(n_cells), persistent=False)
        self.register_buffer("count", th.zeros(n_cells), persistent=False)

    def update(self, rewards: np.ndarray, cells: np.ndarray) -> None:
        """
        Take the rewards of one rollout into account.

        :param rewards: shape ``(B,)``, finite
        :param cells: cell of each step, shape ``(B,)``
        """
        rewards = rewards.astype(np.float64)
        scale, known = (tensor.cpu().numpy().astype(np.float64) for tensor in (self.scale, self.count))
        count = known + np.bincount(cells, rewards != 0, minlength=len(known))
        squares = known * np.square(scale) + np.bincount(cells, np.square(rewards), minlength=len(known))
        scale = np.sqrt(squares / np.maximum(count, 1))
        self.scale.copy_(th.as_tensor(scale.astype(np.float32)))
        self.count.copy_(th.as_tensor(count.astype(np.float32)))

    def comparable(self, cell_to_group: np.ndarray, n_groups: int) -> np.ndarray:
        """
        Return which groups have rewards on about one scale.

        :param cell_to_group: group of each cell, shape ``(C,)``
        :param n_groups: number of groups ``K``
        :return: shape ``(K, K)``, boolean, symmetric; true for a group that has had no reward other than 0
        """
        inverse = self.inverse_of_groups(cell_to_group, n_groups)
        low, high = np.minimum.outer(inverse, inverse), np.maximum.outer(inverse, inverse)
        return (low == 0) | (high <= MAX_RATIO * low)

    def inverse_of_groups(self, cell_to_group: np.ndarray, n_groups: int) -> np.ndarray:
        """
        Compute what makes scores of groups comparable: 1 / scale, pooled over the cells of each group.

        :param cell_to_group: group of each cell, shape ``(C,)``
        :param n_groups: number of groups ``K``
        :return: shape ``(K,)``, float64; 0 for a group that has had no reward other than 0, whose scores are then 0
        """
        scale, count = (tensor.cpu().numpy().astype(np.float64) for tensor in (self.scale, self.count))
        squares = np.bincount(cell_to_group, count * np.square(scale), minlength=n_groups)
        pooled = np.sqrt(squares / np.maximum(np.bincount(cell_to_group, count, minlength=n_groups), 1))
        return np.divide(1, pooled, out=np.zeros_like(pooled), where=pooled > 0)
