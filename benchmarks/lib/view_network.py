"""Evaluate MOORE's networks (https://arxiv.org/abs/2311.11385) on views of MiniGrid, each different part of them once."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.nn import functional as F

HIDDEN = 128
CHANNELS, SIDE = 3, 7  # of a view


class Numbering:
    """
    Number different rows in the order in which they occur for the first time.

    :param width: length of a row
    :param dtype: of the rows
    """

    def __init__(self, width: int, dtype: Any):
        self.numbers: dict[bytes, int] = {}
        self.rows = np.zeros((64, width), dtype)  # by number; behind those in use is room for more

    def __len__(self) -> int:
        return len(self.numbers)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """
        Return the numbers of rows, shape ``(n,)``.

        :param rows: shape ``(n, width)``
        """
        rows = np.ascontiguousarray(rows, self.rows.dtype)
        known, n_known = self.numbers, len(self)
        keys = rows.view(f"V{rows.itemsize * rows.shape[1]}")[:, 0].tolist()  # bytes of each row
        listed = list(map(known.get, keys))
        if None in listed:
            listed = [known.setdefault(key, len(known)) for key in keys]
        numbers = np.array(listed, dtype=np.int64)
        while len(known) > len(self.rows):
            self.rows = np.concatenate([self.rows, np.zeros_like(self.rows)])
        if len(known) > n_known:
            self.rows[numbers] = rows
        return numbers


def squares_of(grid: np.ndarray) -> np.ndarray:
    """
    Return the squares of 2 x 2 neighbours in a grid, in the order in which a convolution looks at them.

    :param grid: shape ``(n, side, side, k)``
    :return: shape ``(n, side - 1, side - 1, 4 * k)``
    """
    return np.concatenate([grid[:, :-1, :-1], grid[:, :-1, 1:], grid[:, 1:, :-1], grid[:, 1:, 1:]], axis=-1)


def renumber(numbers: np.ndarray, n_all: int) -> tuple[np.ndarray, th.Tensor]:
    """
    Return which numbers occur, and their places among them, as ``np.unique`` does it for any numbers.

    :param numbers: in ``[0, n_all)``, any shape
    :param n_all: how many numbers there are
    :return: numbers that occur, sorted, shape ``(m,)``, and places in ``[0, m)``, of the shape of ``numbers``
    """
    occurs = np.zeros(n_all, bool)
    occurs[numbers] = True
    places = np.cumsum(occurs) - 1
    return np.flatnonzero(occurs), th.from_numpy(places[numbers])


class Views:
    """
    All views that were shown, and the squares of 2 x 2, 3 x 3 and 4 x 4 cells that they consist of.

    The three convolutions have kernels of 2 x 2: what the first one returns for a square of 2 x 2 cells depends on these
    alone, what the second one returns on a square of 3 x 3 cells, which is a square of 2 x 2 such results, and so on.

    :param n_more: number of columns beside the view
    """

    def __init__(self, n_more: int):
        self.shown = Numbering(CHANNELS * SIDE * SIDE + n_more, np.uint8)
        self.squares = [Numbering(4 * CHANNELS, np.uint8), Numbering(4, np.int64), Numbering(4, np.int64)]
        self.largest = np.zeros((0, (SIDE - 3) ** 2), np.int64)  # numbers of each view's squares of 4 x 4 cells

    def number(self, shown: np.ndarray) -> np.ndarray:
        """
        Return the numbers of views, shape ``(n,)``.

        :param shown: the view in 147 columns, channels first, and ``n_more`` columns, shape ``(n, 147 + n_more)``, whole
            numbers in ``[0, 255]``
        """
        n_known = len(self.shown)
        numbers = self.shown(shown)
        if len(self.shown) > n_known:
            new = self.shown.rows[n_known : len(self.shown), : CHANNELS * SIDE * SIDE]
            grid: np.ndarray = new.reshape(-1, CHANNELS, SIDE, SIDE).transpose(0, 2, 3, 1)
            for level in self.squares:
                squares = squares_of(grid)
                grid = level(squares.reshape(-1, squares.shape[-1])).reshape(*squares.shape[:-1], 1)
            self.largest = np.concatenate([self.largest, grid.reshape(len(grid), -1)])
        return numbers


class ViewExtractor(BaseFeaturesExtractor):
    """
    MOORE's convolutions and hidden layer, which sees the task if the observation has it.

    The 6000 steps of a rollout have some 450 different views, and those have squares in common. An update evaluates each
    different view, and each different square of a convolution, once per minibatch; a rollout caches the features of views.

    :param observation_space: a view, and possibly a task
    """

    def __init__(self, observation_space: spaces.Dict):
        super().__init__(observation_space, HIDDEN)
        task = observation_space.spaces.get("task")
        self.n_tasks = int(task.n) if isinstance(task, spaces.Discrete) else 0
        layers = (nn.Conv2d(3, 16, 2), nn.ReLU(), nn.Conv2d(16, 32, 2), nn.ReLU(), nn.Conv2d(32, 64, 2), nn.Tanh())
        self.cnn = nn.Sequential(*layers, nn.Flatten())
        self.hidden = nn.Linear(64 * 4 * 4 + self.n_tasks, HIDDEN)
        self.views = Views(self.n_tasks)
        self.remembered: dict[int, th.Tensor] = {}
        self.expected: set[int] = set()  # views of the previous rollout

    def train(self, mode: bool = True) -> "ViewExtractor":
        """
        Set the mode, and forget the cached features.

        :param mode: whether it is that of training
        """
        # SB3 sets the mode before each rollout, and while one is collected no weight changes
        self.expected = set(self.remembered) or self.expected
        self.remembered = {}
        return super().train(mode)

    def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        """
        Return the features, shape ``(B, features_dim)``.

        :param observations: entries of shape ``(B, ...)``
        """
        shown = th.cat([observations[key].flatten(1) for key in ("view", "task") if key in observations], dim=1)
        numbers = self.views.number(shown.numpy())
        if self.training or th.is_grad_enabled():
            different, which = renumber(numbers, len(self.views.shown))
            return F.embedding(which, self.look(different))
        listed = numbers.tolist()
        new = set(listed).difference(self.remembered)
        if new:
            # one batch of all that will probably be shown takes less time than many small ones
            new |= self.expected.difference(self.remembered)
            self.remembered.update(zip(new, self.look(np.array(list(new))), strict=True))
        return th.stack([self.remembered[number] for number in listed])

    def look(self, numbers: np.ndarray) -> th.Tensor:
        """
        Return the features of views, shape ``(n, features_dim)``.

        :param numbers: of different views, shape ``(n,)``
        """
        task = th.from_numpy(self.views.shown.rows[numbers, CHANNELS * SIDE * SIDE :]).float()
        weight = self.hidden.weight[:, : 64 * 4 * 4].unflatten(1, (64, 4 * 4)).transpose(1, 2).flatten(1)
        return self.add_hidden(self.convolve(numbers), weight, task)

    def add_hidden(self, convolved: th.Tensor, weight: th.Tensor, task: th.Tensor) -> th.Tensor:
        """
        Return what the hidden layer returns, shape ``(n, features_dim)``.

        :param convolved: what the convolutions return, channels last, shape ``(n, 1024)``
        :param weight: the layer's, in the same order, shape ``(features_dim, 1024)``
        :param task: one-hot, shape ``(n, n_tasks)``
        """
        of_task = task @ self.hidden.weight[:, 64 * 4 * 4 :].T
        return th.tanh(F.linear(convolved, weight, self.hidden.bias) + of_task)

    def convolve(self, numbers: np.ndarray) -> th.Tensor:
        """
        Return what ``cnn`` returns for views, but channels last, shape ``(n, 1024)``.

        :param numbers: of the views, shape ``(n,)``
        """
        first, second, third = self.views.squares
        thirds, in_view = renumber(self.views.largest[numbers], len(third))
        seconds, in_third = renumber(third.rows[thirds], len(second))
        firsts, in_second = renumber(second.rows[seconds], len(first))
        squares = th.from_numpy(first.rows[firsts]).float()
        squares = F.embedding(in_second, th.relu(self.apply_kernel(0, squares))).flatten(1)
        squares = F.embedding(in_third, th.relu(self.apply_kernel(2, squares))).flatten(1)
        return F.embedding(in_view, th.tanh(self.apply_kernel(4, squares))).flatten(1)

    def apply_kernel(self, index: int, squares: th.Tensor) -> th.Tensor:
        """
        Return what a convolution returns for squares, shape ``(n, channels)``.

        :param index: of the layer in ``cnn``
        :param squares: the four neighbours of each, channels last, shape ``(n, 4 * in_channels)``
        """
        layer = self.cnn[index]
        assert isinstance(layer, nn.Conv2d)
        return F.linear(squares, layer.weight.permute(0, 2, 3, 1).flatten(1), layer.bias)


class HiddenPerTask(ViewExtractor):
    """
    MOORE's convolutions with a hidden layer for each task: the features of the tasks that are not played are 0.

    :param observation_space: a view and a task
    """

    def __init__(self, observation_space: spaces.Dict):
        super().__init__(observation_space)
        self._features_dim = self.n_tasks * HIDDEN
        self.hidden = nn.Linear(64 * 4 * 4, self.features_dim)

    def add_hidden(self, convolved: th.Tensor, weight: th.Tensor, task: th.Tensor) -> th.Tensor:
        played = task.argmax(dim=1)
        layers = zip(weight.split(HIDDEN), self.hidden.bias.split(HIDDEN), strict=True)
        own = [th.tanh(F.linear(convolved[played == number], *layer)) for number, layer in enumerate(layers)]
        # the rows are sorted by task, and then put back where they were
        return th.block_diag(*own)[played.argsort(stable=True).argsort()]
