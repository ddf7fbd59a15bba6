"""Route observations to cells, the smallest sets of decisions that can be regrouped."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_grpo.preprocessing import Preprocessor

# The random router projects observations with more dimensions to this many before it measures distances
MAX_DISTANCE_DIM = 32
# Rollouts are routed in parts of about this many numbers, because a whole rollout of images as floats needs too much memory
MAX_CHUNK = 2**20


class NonFiniteError(ValueError):
    """The error for data, policy outputs or losses that are NaN or infinite."""


class Router(nn.Module, ABC):
    """
    Route a batch of observations to cells; the map does not change once fitted.

    :param observation_space: space of the whole observation
    :param n_cells: number of cells
    """

    is_compilable = True

    def __init__(self, observation_space: spaces.Space, n_cells: int):
        super().__init__()
        if n_cells < 1:
            raise ValueError(f"`n_cells` of the router must be at least 1, got {n_cells}")
        self.observation_space = observation_space
        self.n_cells = n_cells

    def settings(self) -> dict[str, Any]:
        """Return the arguments that define the cells, under the user's names and as JSON-compatible values."""
        return {"n_cells": self.n_cells}

    @property
    def visible_space(self) -> spaces.Space:
        """Return the part of the observation space that the policy's trunk gets."""
        return self.observation_space

    def visible(self, obs: PyTorchObs) -> PyTorchObs:
        """
        Return the part of the observations that the policy's trunk gets.

        :param obs: batch of whole observations
        """
        return obs

    @abstractmethod
    def forward(self, obs: PyTorchObs) -> th.Tensor:
        """
        Route a batch of observations.

        :param obs: batch of ``B`` observations, as the policy receives them
        :return: cells, shape ``(B,)``, integers in ``[0, n_cells)``
        """

    @property
    def is_fitted(self) -> bool:
        """Tell whether the map from observations to cells is final."""
        return True

    def fit(self, obs: PyTorchObs, seed: int) -> None:
        """
        Fit the cells to the observations of the first rollout; only the random router needs it.

        :param obs: observations of a whole rollout
        :param seed: seed of the router's own generator, so that no global random numbers are drawn
        """

    def check(self, obs: PyTorchObs) -> None:
        """
        Validate the first observations of the environments before training starts.

        :param obs: batch of observations, not normalised
        :raises ValueError: if they cannot be routed
        """
        self.check_routed(obs)

    @abstractmethod
    def check_routed(self, obs: PyTorchObs) -> None:
        """
        Validate observations during training.

        :param obs: batch of observations as the policy receives them, possibly normalised
        :raises ValueError: if they cannot be routed
        """

    def cells_of(self, obs: PyTorchObs) -> th.Tensor:
        """
        Validate and route the observations of a rollout.

        :param obs: batch of ``B`` observations as the policy receives them
        :return: cells, shape ``(B,)``, integers in ``[0, n_cells)``
        :raises ValueError: if they cannot be routed
        """

        def route(part: PyTorchObs) -> th.Tensor:
            self.check_routed(part)
            return self(part)

        return self.map_parts(route, obs)

    def map_parts(self, function: Callable[[PyTorchObs], th.Tensor], obs: PyTorchObs) -> th.Tensor:
        """
        Apply a function to a rollout part by part.

        :param function: maps a batch of ``b`` observations to a tensor of shape ``(b, ...)``
        :param obs: batch of ``B`` observations
        :return: shape ``(B, ...)``
        """
        result, start = th.empty(0), 0
        for part in self.parts(obs):
            mapped = function(part)
            if start == 0:
                total = len(next(iter(obs.values())) if isinstance(obs, dict) else obs)
                result = mapped.new_empty(total, *mapped.shape[1:])
            # one preallocated tensor: small results allocated between large parts would fragment the memory
            result[start : start + len(mapped)] = mapped
            start += len(mapped)
        return result

    def parts(self, obs: PyTorchObs) -> Iterator[PyTorchObs]:
        """
        Yield the observations in parts of about ``MAX_CHUNK`` numbers.

        Numbers are counted after preprocessing: a Discrete observation counts as its one-hot vector.

        :param obs: batch of whole observations
        """
        size = max(1, MAX_CHUNK // max(1, spaces.flatdim(self.observation_space)))
        if isinstance(obs, dict):
            for entries in zip(*(value.split(size) for value in obs.values()), strict=True):
                yield dict(zip(obs, entries, strict=True))
        else:
            yield from obs.split(size)


class RandomRouter(Router):
    """
    Route each observation to the nearest of ``n_cells`` observations drawn at random from the first rollout.

    Coordinates are standardised by the mean and standard deviation of that rollout. Images and observations of more than
    ``MAX_DISTANCE_DIM`` dimensions are first projected at random (fixed). The nearest centre ``c`` maximises
    ``c x - |c|^2 / 2``, so a fitted router is an affine map followed by an argmax. Until it is fitted, every step belongs
    to cell 0.

    :param observation_space: space of the whole observation
    :param n_cells: number of cells
    """

    offset: th.Tensor
    weight: th.Tensor
    bias: th.Tensor

    def __init__(self, observation_space: spaces.Space, n_cells: int = 8):
        super().__init__(observation_space, n_cells)
        input_dim = spaces.flatdim(observation_space)
        self._is_vector = isinstance(observation_space, spaces.Box) and len(observation_space.shape) == 1
        self._preprocess = Preprocessor(observation_space, normalize_images=True)
        self.register_buffer("offset", th.zeros(input_dim))
        self.register_buffer("weight", th.zeros(n_cells, input_dim))
        self.register_buffer("bias", th.full((n_cells,), -th.inf).index_fill_(0, th.tensor(0), 0.0))

    def _flat(self, obs: PyTorchObs) -> th.Tensor:
        if self._is_vector:
            assert isinstance(obs, th.Tensor)
            return obs.float()
        preprocessed = self._preprocess(obs)
        if not isinstance(preprocessed, dict):
            return preprocessed.flatten(1)
        assert isinstance(self.observation_space, spaces.Dict)
        # the order of the space, because the keys of an observation can come in any order
        return th.cat([preprocessed[key].flatten(1) for key in self.observation_space], dim=1)

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        return th.addmm(self.bias, self._flat(obs) - self.offset, self.weight.T).argmax(dim=1)

    def check_routed(self, obs: PyTorchObs) -> None:
        for name, values in obs.items() if isinstance(obs, dict) else [(None, obs)]:
            finite = values.reshape(len(values), -1).isfinite().all(dim=1)
            if not finite.all():
                where = "observations" if name is None else f"observations {name!r}"
                raise NonFiniteError(
                    f"{where} must be finite, because router='random' measures distances between them, but "
                    f"{int((~finite).sum())} of {len(finite)} steps have NaN or infinite values; the policy was left as it was"
                )

    @property
    def is_fitted(self) -> bool:
        return bool(self.bias.isfinite().all())

    def fit(self, obs: PyTorchObs, seed: int) -> None:
        if self.is_fitted:
            return
        random = np.random.default_rng(seed)
        # near the mean: without subtracting it, differences of observations far from 0 would lose precision
        offset = self._flat(next(self.parts(obs))).mean(dim=0)
        projection = self._projection(random, len(offset)).to(offset.device)
        points = self.map_parts(lambda part: (self._flat(part) - offset) @ projection, obs)
        mean, std = points.mean(dim=0), points.std(dim=0, correction=0)
        # constant coordinates are left out, which avoids a division by 0
        inverse_std = th.where(std > 1e-6, 1 / std, 0.0)
        drawn = random.choice(len(points), size=self.n_cells, replace=len(points) < self.n_cells)
        centres = (points[th.as_tensor(drawn, device=points.device)] - mean) * inverse_std
        slopes = centres * inverse_std
        self.offset.copy_(offset)
        self.weight.copy_(slopes @ projection.T)
        self.bias.copy_(-0.5 * centres.square().sum(dim=1) - slopes @ mean)

    @staticmethod
    def _projection(random: np.random.Generator, input_dim: int) -> th.Tensor:
        if input_dim <= MAX_DISTANCE_DIM:
            return th.eye(input_dim)
        gaussian = random.standard_normal((input_dim, MAX_DISTANCE_DIM), dtype=np.float32)
        return th.as_tensor(gaussian / math.sqrt(input_dim))


class OneHotRouter(Router):
    """
    Route by the hot column of a one-hot block in a flat Box observation.

    :param observation_space: Box with one dimension
    :param columns: ``(start, stop)`` of the block, as in a Python slice
    :param hide: remove the block from what the policy's trunk gets
    """

    def __init__(self, observation_space: spaces.Space, columns: tuple[int, int], hide: bool = False):
        if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 1:
            raise ValueError(f'router="one_hot" needs a Box observation of one dimension, got {observation_space}')
        width = observation_space.shape[0]
        if len(columns) != 2 or not 0 <= columns[0] < columns[1] <= width:
            raise ValueError(
                f"`columns` must be (start, stop) with 0 <= start < stop <= {width}, "
                f"the number of columns of the observation; got {tuple(columns)}"
            )
        if hide and columns[1] - columns[0] == width:
            raise ValueError(f"`hide=True` would leave no column: `columns` {tuple(columns)} are the whole observation")
        super().__init__(observation_space, columns[1] - columns[0])
        self.columns = slice(*columns)
        self.hide = hide

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "columns": [self.columns.start, self.columns.stop], "hide": self.hide}

    @property
    def visible_space(self) -> spaces.Space:
        assert isinstance(self.observation_space, spaces.Box)
        if not self.hide:
            return self.observation_space
        low, high = (np.delete(bound, self.columns) for bound in (self.observation_space.low, self.observation_space.high))
        return spaces.Box(low, high, dtype=self.observation_space.dtype)

    def visible(self, obs: PyTorchObs) -> PyTorchObs:
        assert isinstance(obs, th.Tensor)
        return th.cat([obs[:, : self.columns.start], obs[:, self.columns.stop :]], dim=1) if self.hide else obs

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        assert isinstance(obs, th.Tensor)
        # argmax, because VecNormalize changes the values of the block but not which one is the largest
        return obs[:, self.columns].argmax(dim=1)

    def check_routed(self, obs: PyTorchObs) -> None:
        assert isinstance(obs, th.Tensor)
        block = obs[:, self.columns]
        # VecNormalize subtracts a mean in [0, 1): the 1 stays above 0, and zeros end at or below 0
        hot = (block > 0).sum(dim=1) == 1
        if not hot.all():
            raise ValueError(
                f"`columns` {(self.columns.start, self.columns.stop)} must hold a one-hot block, one entry above 0, but "
                f"an observation has {block[~hot][0].tolist()} there"
            )

    def check(self, obs: PyTorchObs) -> None:
        assert isinstance(obs, th.Tensor)
        block = obs[:, self.columns]
        one_hot = (((block == 0) | (block == 1)).all(dim=1)) & (block.sum(dim=1) == 1)
        if not one_hot.all():
            row = block[~one_hot][0].tolist()
            raise ValueError(
                f"`columns` {(self.columns.start, self.columns.stop)} must hold a one-hot block (one 1, all others 0), "
                f"but an observation has {row} there"
            )


class DiscreteRouter(Router):
    """
    Route by the value of a Discrete entry of a Dict observation.

    :param observation_space: Dict
    :param key: name of the entry
    :param hide: remove the entry from what the policy's trunk gets
    """

    def __init__(self, observation_space: spaces.Space, key: str, hide: bool = False):
        if not isinstance(observation_space, spaces.Dict):
            raise ValueError(f'router="discrete" needs a Dict observation, got {observation_space}')
        if key not in observation_space.spaces:
            raise ValueError(f"`key` must be one of the observation's keys {list(observation_space.spaces)}, got {key!r}")
        entry = observation_space.spaces[key]
        if not isinstance(entry, spaces.Discrete) or entry.start != 0:
            raise ValueError(f"`key` {key!r} must be a Discrete space that starts at 0, got {entry}")
        if hide and len(observation_space.spaces) == 1:
            raise ValueError(f"`hide=True` would leave nothing: {key!r} is the only key of the observation")
        super().__init__(observation_space, int(entry.n))
        self.key = key
        self.hide = hide

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "key": self.key, "hide": self.hide}

    @property
    def visible_space(self) -> spaces.Space:
        assert isinstance(self.observation_space, spaces.Dict)
        if not self.hide:
            return self.observation_space
        return spaces.Dict({key: space for key, space in self.observation_space.items() if key != self.key})

    def visible(self, obs: PyTorchObs) -> PyTorchObs:
        assert isinstance(obs, dict)
        return {key: value for key, value in obs.items() if key != self.key} if self.hide else obs

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        assert isinstance(obs, dict)
        return obs[self.key].long().flatten()

    def check_routed(self, obs: PyTorchObs) -> None:
        check_cells(self(obs), len(next(iter(obs.values()))), self.n_cells, f"entry {self.key!r} of the observation")


class CallableRouter(Router):
    """
    Route by a function of the observations.

    The function is never compiled: it may do what the compiler does not understand.

    :param observation_space: space of the whole observation
    :param function: maps a batch of ``B`` observations (tensor, or dict of tensors) to ``B`` cells,
        a tensor or an array of integers
    :param n_cells: number of cells
    """

    is_compilable = False

    def __init__(self, observation_space: spaces.Space, function: Callable[[Any], Any], n_cells: int):
        super().__init__(observation_space, n_cells)
        self.function = function

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        first = next(iter(obs.values())) if isinstance(obs, dict) else obs
        given = self.function(as_collected(obs, self.observation_space))
        try:
            cells = th.as_tensor(given, device=first.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"the router function must return a tensor or an array of cells, got {given!r}") from error
        check_cells(cells, len(first), self.n_cells, "the router function")
        return cells.long()

    def check_routed(self, obs: PyTorchObs) -> None:
        """Do nothing: the cells are validated at every call of the function."""

    def check(self, obs: PyTorchObs) -> None:
        entries = obs if isinstance(obs, dict) else {"": obs}
        before = {name: value.clone() for name, value in entries.items()}
        cells = self(obs)
        if not all(th.equal(value.nan_to_num(), before[name].nan_to_num()) for name, value in entries.items()):
            raise ValueError("the router function must not change the observations that it is given")
        if not cells.equal(self(obs)):
            raise ValueError(
                "the router function must return the same cells for the same observations, got others at the second call"
            )


def as_collected(obs: Any, space: spaces.Space) -> Any:
    """
    Return observations with Discrete entries as the environments return them, as integers of shape ``(B,)``.

    The rollout buffer stores these entries as columns of shape ``(B, 1)``.

    :param obs: batch of ``B`` observations, a tensor or a dict of tensors
    :param space: their space
    """
    if isinstance(space, spaces.Dict):
        return {key: as_collected(value, space[key]) for key, value in obs.items()}
    return obs.flatten().long() if isinstance(space, spaces.Discrete) else obs


def check_cells(cells: th.Tensor, batch: int, n_cells: int, origin: str) -> None:
    """
    Validate cells.

    :param cells: must have shape ``(batch,)`` and hold integers in ``[0, n_cells)``
    :param batch: number of observations
    :param n_cells: number of cells
    :param origin: source of the cells, for the error message
    :raises ValueError: if the cells have another shape, type or range
    """
    if cells.shape != (batch,):
        raise ValueError(f"cells from {origin} must have shape {(batch,)}, got {tuple(cells.shape)}")
    if cells.is_floating_point() or cells.is_complex():
        raise ValueError(f"cells from {origin} must be integers, got {cells.dtype}")
    low, high = (int(cells.min()), int(cells.max())) if batch else (0, 0)
    if low < 0 or high >= n_cells:
        raise ValueError(f"cells from {origin} must lie in [0, {n_cells}), got values from {low} to {high}")


#: Values of the argument ``router`` that are names
ROUTERS: dict[str, type[Router]] = {"random": RandomRouter, "one_hot": OneHotRouter, "discrete": DiscreteRouter}


def make_router(
    router: str | Callable[[Any], Any],
    observation_space: spaces.Space,
    router_kwargs: dict[str, Any] | None = None,
) -> Router:
    """
    Make a router from the arguments ``router`` and ``router_kwargs``.

    :param router: ``"random"``, ``"one_hot"``, ``"discrete"``, or a function of a batch of observations
    :param observation_space: space of the whole observation
    :param router_kwargs: keyword arguments of the router
    :raises ValueError: if the router is unknown, or its arguments are invalid for it or for the observation space
    """
    kwargs = router_kwargs or {}
    if isinstance(router, str) and router not in ROUTERS:
        raise ValueError(f"`router` must be one of {list(ROUTERS)} or a callable, got {router!r}")
    if not isinstance(router, str) and not callable(router):
        raise ValueError(f"`router` must be one of {list(ROUTERS)} or a callable, got {router!r}")
    try:
        if isinstance(router, str):
            return ROUTERS[router](observation_space, **kwargs)
        return CallableRouter(observation_space, router, **kwargs)
    except TypeError as error:
        raise ValueError(f"`router_kwargs` {kwargs} do not fit router {router!r}: {error}") from error


def check_first_observations(router: Router, obs: Any, env: Any, normalize: VecNormalize | None, device: th.device) -> None:
    """
    Check that cells can be told from the first observations, before training time is spent.

    :param router: the router
    :param obs: first observations of ``env``
    :param env: the training environments
    :param normalize: the ``VecNormalize`` among the wrappers of ``env``, if there is one
    :param device: of the policy
    :raises ValueError: if the observations cannot be routed
    """
    if normalize is None:
        router.check(obs_as_tensor(obs, device))
    elif normalize is env:
        router.check(obs_as_tensor(normalize.get_original_obs(), device))
    else:
        # wrapped further: the observations before normalisation are not known, but these must be routed
        router.check_routed(obs_as_tensor(obs, device))


__all__ = ["Router", "make_router"]
