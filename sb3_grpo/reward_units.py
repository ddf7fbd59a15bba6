"""Units of the rewards: what makes scores of groups with rewards on different scales comparable."""

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn


class RewardUnits(nn.Module):
    """
    Follow the size of the rewards of each cell: the root of the mean square of those that are not 0.

    Rewards of 0 do not count: with them the unit of a task would depend on how often it is solved. The units are kept
    by cell, so that merging and splitting groups leaves nothing to do.

    :param n_cells: number of cells
    """

    size: th.Tensor  # of the rewards of each cell that are not 0, shape (C,); 0 without any
    count: th.Tensor  # how many of these there were, shape (C,)

    def __init__(self, n_cells: int):
        super().__init__()
        self.register_buffer("size", th.zeros(n_cells), persistent=False)
        self.register_buffer("count", th.zeros(n_cells), persistent=False)

    def update(self, rewards: np.ndarray, cells: np.ndarray) -> None:
        """
        Take the rewards of one rollout into account.

        :param rewards: shape ``(B,)``, finite
        :param cells: cell of each step, shape ``(B,)``
        """
        rewards = rewards.astype(np.float64)
        known, n_cells = self.count.cpu().numpy().astype(np.float64), len(self.count)
        count = known + np.bincount(cells, rewards != 0, minlength=n_cells)
        squares = known * np.square(self._sizes()) + np.bincount(cells, np.square(rewards), minlength=n_cells)
        sizes = np.sqrt(squares / np.maximum(count, 1))
        self.size.copy_(th.as_tensor(sizes.astype(np.float32)))
        self.count.copy_(th.as_tensor(count.astype(np.float32)))

    def of_groups(self, cell_to_group: np.ndarray, n_groups: int) -> np.ndarray:
        """
        :param cell_to_group: group of each cell, shape ``(C,)``
        :param n_groups: number of groups ``K``
        :return: unit of each group's rewards, shape ``(K,)``, float64; 0 for a group that has had none
        """
        count = self.count.cpu().numpy().astype(np.float64)
        squares = np.bincount(cell_to_group, count * np.square(self._sizes()), minlength=n_groups)
        return np.sqrt(squares / np.maximum(np.bincount(cell_to_group, count, minlength=n_groups), 1))

    def _sizes(self) -> np.ndarray:
        return self.size.cpu().numpy().astype(np.float64)


class RewardRecorder(BaseCallback):
    """
    Keep the rewards of a rollout as the environments gave them.

    SB3 adds the value of the last observation to the reward where a time limit ends an episode, before the rollout
    buffer sees it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rewards: list[np.ndarray] = []

    def _on_rollout_start(self) -> None:
        self._rewards = []

    def _on_step(self) -> bool:
        # a copy: SB3 changes the array
        self._rewards.append(np.array(self.locals["rewards"]))
        return True

    def rewards(self, n_steps: int) -> np.ndarray | None:
        """
        :param n_steps: steps of the rollout in each of the ``n_envs`` environments
        :return: shape ``(n_envs, n_steps)``; ``None`` if this callback has not seen the whole rollout
        """
        return np.stack(self._rewards, axis=1) if len(self._rewards) == n_steps else None
