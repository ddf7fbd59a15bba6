"""Scale of the value heads: each predicts in units of the returns of its own group."""

from collections.abc import Sequence

import numpy as np
import torch as th
from torch import nn

from sb3_grpo.losses import MIN_SCALE, group_means

# Steps of a group after which the returns before them count half
HALF_LIFE = 5000


class ValueScale(nn.Module):
    """
    Hold the scale of each value head: the root mean square of its group's returns, in which older steps count less.

    The network's output times the scale is the value. When the scale changes, the head is multiplied by the inverse ratio, so
    that no value changes: PopArt (https://arxiv.org/abs/1602.07714) without its mean.

    :param n_heads: number of value heads
    """

    scale: th.Tensor  # above 0, in units of the returns, shape (n_heads,)
    count: th.Tensor  # steps that the scale was estimated from, shape (n_heads,)

    def __init__(self, n_heads: int):
        super().__init__()
        self.register_buffer("scale", th.ones(n_heads))
        # training needs it, predicting does not
        self.register_buffer("count", th.zeros(n_heads), persistent=False)

    def normalize(self, values: th.Tensor, heads: th.Tensor) -> th.Tensor:
        """
        Divide by the scale.

        :param values: in units of the returns, shape ``(B,)``, or ``(B, n_heads)`` if each step has a value of every head
        :param heads: index of the head of each step, shape ``(B,)``
        :return: same shape as ``values``
        """
        return values / (self.scale if values.ndim == 2 else self.at(heads))

    def at(self, heads: th.Tensor) -> th.Tensor:
        """
        Look up the scale of each step.

        :param heads: index of the head of each step, shape ``(B,)``
        :return: shape ``(B,)``
        """
        return self.scale.index_select(0, heads)

    def update(self, returns: np.ndarray, heads: np.ndarray, layer: nn.Linear) -> None:
        """
        Take the returns of one rollout into account, and keep all values as they are.

        :param returns: shape ``(B,)``, finite
        :param heads: index of the head of each step, shape ``(B,)``
        :param layer: the value heads; changed in place
        """
        present, member, counts = np.unique(heads, return_inverse=True, return_counts=True)
        known, scale = (tensor.cpu().numpy().astype(np.float64)[present] for tensor in (self.count, self.scale))
        # a plain mean until there are many steps, an exponential one from then on
        rate = np.maximum(1 - 0.5 ** (counts / HALF_LIFE), counts / (known + counts))
        # in float64, because squares of large returns do not fit into float32
        mean_square = group_means(np.square(returns.astype(np.float64)), member, counts)
        mean_square = np.square(scale) + rate * (mean_square - np.square(scale))
        scale = np.sqrt(mean_square).clip(MIN_SCALE, np.finfo(np.float32).max)
        index = th.as_tensor(present, device=self.scale.device)
        self.count[index] = th.as_tensor((known + counts).astype(np.float32), device=self.scale.device)
        self.rescale(layer, index, th.as_tensor(scale.astype(np.float32), device=self.scale.device))

    def rescale(self, layer: nn.Linear, heads: th.Tensor, scale: th.Tensor) -> None:
        """
        Change scales and value heads together, so that no value changes.

        :param layer: the value heads; changed in place
        :param heads: indices of the heads to change, shape ``(K,)``
        :param scale: their new scales, above 0, shape ``(K,)``
        """
        ratio = (self.scale[heads] / scale).to(self.scale)
        layer.bias.data[heads] *= ratio
        layer.weight.data[heads] *= ratio.unsqueeze(1)
        self.scale[heads] = scale.to(self.scale)

    def unify(self, layer: nn.Linear, target: int, other: int, share: float) -> None:
        """
        Give two heads a common scale, since heads of different scale have no average.

        :param layer: the value heads; changed in place
        :param target: index of the head that is to become the average of both; the steps of both count for it
        :param other: index of the other head
        :param share: weight of ``target``, 0 to 1
        """
        both = th.tensor([target, other], device=self.scale.device)
        weights = th.tensor([share, 1 - share], device=self.scale.device)
        self.rescale(layer, both, (weights * self.scale[both].square()).sum().sqrt().expand(2))
        self.count[target] = self.count[both].sum()

    def take(self, sources: Sequence[int]) -> None:
        """
        Replace all scales by copies of some of them.

        :param sources: index of the head to copy for each head afterwards
        """
        index = th.as_tensor(sources, device=self.scale.device)
        scale, count = self.scale[index], self.count[index]
        if scale.shape == self.scale.shape:
            # the same objects: compiled functions refer to them
            self.scale.copy_(scale)
            self.count.copy_(count)
        else:
            self.scale, self.count = scale, count
