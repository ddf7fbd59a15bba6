"""Unite the spaces of several environments to one that an agent can have."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

Spaces = Mapping[str, spaces.Space[Any]]


def unite_observations(found: Spaces, entry: str = "") -> spaces.Space[Any]:
    """
    Return a space for the observations of several environments, see :func:`fit`.

    Vectors of different lengths get zeros behind them; entries of Dicts are united one by one.

    :param found: observation space of each environment, by name of the task
    :param entry: of a Dict, to which the spaces belong
    :raises ValueError: if the spaces are of different kinds, or have shapes that cannot be made one
    """
    given: list[Any] = list(found.values())
    first, kinds = given[0], {type(space) for space in given}
    if all(space == first for space in given):
        return first
    if kinds == {spaces.Dict} and all(space.spaces.keys() == first.spaces.keys() for space in given):
        parts = {key: {name: space[key] for name, space in zip(found, given, strict=True)} for key in first}
        return spaces.Dict({key: unite_observations(part, key) for key, part in parts.items()})
    if kinds == {spaces.Discrete} and all(space.start == 0 for space in given):
        return spaces.Discrete(max(int(space.n) for space in given))
    shapes = {space.shape for space in given}
    can_pad = all(shape is not None and len(shape) == 1 for shape in shapes)
    if kinds == {spaces.MultiBinary} and can_pad:
        return spaces.MultiBinary(max(shape[0] for shape in shapes))
    if kinds == {spaces.Box} and (can_pad or len(shapes) == 1):
        return unite_boxes(given)
    where = f"entries {entry!r} of the observations" if entry else "observations"
    raise ValueError(
        f"`tasks` must have {where} of one kind, and of one shape unless they are vectors, got {listed(found)}; "
        "gymnasium.wrappers has FlattenObservation, which makes vectors, and ResizeObservation for images"
    )


def unite_boxes(boxes: list[spaces.Box]) -> spaces.Box:
    """
    Return the smallest Box that holds the elements of all, with zeros behind shorter vectors.

    :param boxes: of one shape, or of one dimension
    """
    dtype: Any = np.result_type(*(box.dtype for box in boxes))
    shape = max(box.shape for box in boxes)
    low, high = np.min([pad(box.low, shape) for box in boxes], axis=0), np.max([pad(box.high, shape) for box in boxes], axis=0)
    return spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype)


def pad(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """
    Return an array with zeros behind it.

    :param values: an array of the shape, or a shorter vector
    :param shape: the shape
    """
    return values if values.shape == shape else np.pad(values, (0, shape[0] - values.shape[0]))


def fit(obs: Any, space: spaces.Space[Any]) -> Any:
    """
    Return an observation as an element of the united space.

    :param obs: of one of the environments
    :param space: from :func:`unite_observations`
    """
    if isinstance(space, spaces.Dict):
        return {key: fit(obs[key], part) for key, part in space.items()}
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        return pad(np.asarray(obs, dtype=space.dtype), space.shape)
    return obs


class UnitedActions(ABC):
    """One space for the actions of several environments."""

    space: spaces.Space[Any]
    masks: np.ndarray | None = None  # whether an action exists in a task, shape (n_tasks, n); None: all do

    @abstractmethod
    def own(self, action: Any, task: int) -> Any:
        """
        Return what an action means in a task.

        :param action: element of ``space``
        :param task: number of the task
        :return: action of the task's environment
        """


class SameActions(UnitedActions):
    """
    The actions of environments that have the same.

    :param space: their action space
    """

    def __init__(self, space: spaces.Space[Any]):
        self.space = space

    def own(self, action: Any, task: int) -> Any:
        return action


class UnitedChoices(UnitedActions):
    """
    Discrete or MultiDiscrete actions: as many values as the environment with the most has.

    In the other environments the values beyond are masked. If they are chosen all the same, as by an agent that knows no
    masks, counting begins again: with three actions 3 is 0.

    :param found: action spaces, all Discrete or all MultiDiscrete with the same number of variables
    """

    def __init__(self, found: list[Any]):
        self.sizes = np.array(
            [np.atleast_1d(space.n if isinstance(space, spaces.Discrete) else space.nvec) for space in found]
        )
        self.starts = np.array([np.atleast_1d(space.start) for space in found])
        self.is_single = isinstance(found[0], spaces.Discrete)
        most = self.sizes.max(axis=0)
        self.space = spaces.Discrete(int(most[0])) if self.is_single else spaces.MultiDiscrete(most)
        values = np.concatenate([np.arange(n) for n in most])
        self.masks = values < np.repeat(self.sizes, most, axis=1)

    def own(self, action: Any, task: int) -> Any:
        own = np.asarray(action) % self.sizes[task] + self.starts[task]
        return own[0] if self.is_single else own


class UnitedForces(UnitedActions):
    """
    Box actions of one shape: from -1 to 1, which are the bounds of each environment.

    :param found: action spaces, with finite bounds
    """

    def __init__(self, found: list[spaces.Box]):
        self.found = found
        self.space = spaces.Box(-1.0, 1.0, found[0].shape, np.float32)

    def own(self, action: Any, task: int) -> Any:
        box = self.found[task]
        return (box.low + (np.asarray(action) + 1) / 2 * (box.high - box.low)).astype(box.dtype)


def unite_actions(found: Spaces) -> UnitedActions:
    """
    Return one space for the actions of several environments.

    :param found: action space of each environment, by name of the task
    :raises ValueError: if the spaces are of different kinds or shapes, or differ in bounds that are not finite
    """
    given: list[Any] = list(found.values())
    if all(space == given[0] for space in given):
        return SameActions(given[0])
    if all(isinstance(space, spaces.Discrete) for space in given):
        return UnitedChoices(given)
    if len({space.shape for space in given}) == 1 and all(type(space) is type(given[0]) for space in given):
        if isinstance(given[0], spaces.MultiDiscrete) and len(given[0].shape) == 1:
            return UnitedChoices(given)
        if isinstance(given[0], spaces.Box) and all(space.is_bounded() for space in given):
            return UnitedForces(given)
    raise ValueError(
        "`tasks` must have actions of one kind: Discrete, MultiDiscrete with the same number of variables, or Box with the "
        f"same shape and finite bounds, got {listed(found)}; a wrapper can translate the actions of an environment"
    )


def listed(found: Spaces) -> str:
    """
    Return the spaces of tasks for a message.

    :param found: space of each task, by name
    """
    return ", ".join(f"{name}: {space}" for name, space in found.items())
