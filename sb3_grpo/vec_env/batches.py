"""Take the rows of single environments out of what a vector environment returns for all of them."""

from typing import Any

import numpy as np
from gymnasium import spaces


class ArrayBatch:
    """
    Handle observations that are one array, with one row for each environment.

    :param space: observation space of one environment; its dtype is that of all results
    """

    def __init__(self, space: spaces.Space):
        self.dtype = space.dtype

    def copy(self, observations: Any) -> Any:
        """
        Return a copy, which the vector environment cannot overwrite.

        :param observations: of all environments, shape ``(num_envs, ...)``
        :return: of the same shape
        """
        return np.array(observations, dtype=self.dtype)

    def row(self, observations: Any, index: int) -> Any:
        """
        Return a copy of the observation of one environment.

        :param observations: of all environments: an array of shape ``(num_envs, ...)``, or of ``num_envs`` objects
        :param index: of the environment, in ``[0, num_envs)``
        :return: shape ``(...)``
        """
        return np.array(observations[index], dtype=self.dtype)

    def replace(self, observations: Any, mask: np.ndarray, others: Any) -> None:
        """
        Write the observations of some environments over those that were there.

        :param observations: of all environments, shape ``(num_envs, ...)``; changed in place
        :param mask: which to replace, booleans of shape ``(num_envs,)``
        :param others: observations of all environments, of which those under the mask are read
        :raises ValueError: if there are not as many of them
        """
        if len(others) != len(mask):
            raise ValueError(f"reset_some must return observations of all {len(mask)} environments, got {len(others)}")
        observations[mask] = others[mask]


class DictBatch(ArrayBatch):
    """
    Handle observations that are a dictionary of arrays.

    :param space: observation space of one environment, without dictionaries within the dictionary
    """

    def __init__(self, space: spaces.Dict):
        self.parts = {key: ArrayBatch(part) for key, part in space.spaces.items()}

    def copy(self, observations: Any) -> Any:
        return {key: part.copy(observations[key]) for key, part in self.parts.items()}

    def row(self, observations: Any, index: int) -> Any:
        # gymnasium's `final_obs` holds a dictionary for each environment; other sources one dictionary of arrays
        if isinstance(observations, dict):
            return {key: part.row(observations[key], index) for key, part in self.parts.items()}
        return {key: np.array(observations[index][key], dtype=part.dtype) for key, part in self.parts.items()}

    def replace(self, observations: Any, mask: np.ndarray, others: Any) -> None:
        for key, part in self.parts.items():
            part.replace(observations[key], mask, others[key])


def make_batch(space: spaces.Space) -> ArrayBatch:
    """
    Return what handles observations of a space.

    :param space: observation space of one environment
    """
    return DictBatch(space) if isinstance(space, spaces.Dict) else ArrayBatch(space)


def info_of(infos: dict[str, Any], index: int, num_envs: int) -> dict[str, Any]:
    """
    Return the info of one environment.

    :param infos: of all environments, in gymnasium's form: each key has an array with a row for each environment, or a
        dictionary of such arrays; the key ``"_key"``, if there is one, says which environments have ``"key"``. What is
        not of length ``num_envs`` belongs to all environments
    :param index: of the environment, in ``[0, num_envs)``
    :param num_envs: number of environments
    """
    info: dict[str, Any] = {}
    for key, values in infos.items():
        if key.startswith("_") and key[1:] in infos:
            continue
        mask = infos.get(f"_{key}")
        if mask is not None and not mask[index]:
            continue
        if isinstance(values, dict):
            info[key] = info_of(values, index, num_envs)
        elif isinstance(values, (np.ndarray, list, tuple)) and len(values) == num_envs:
            value = values[index]
            info[key] = value.copy() if isinstance(value, np.ndarray) else value
        else:
            info[key] = values
    return info


def split_final(infos: dict[str, Any]) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """
    Divide infos of a step with ``AutoresetMode.SAME_STEP``, which are those of the reset where an episode has ended.

    :param infos: of all environments, in gymnasium's form
    :return: last observations; infos of the step that ended an episode; infos of the reset
    :raises ValueError: if there are no last observations
    """
    if "final_obs" not in infos:
        raise ValueError(
            "env must give the last observation of an episode as infos['final_obs'], because its autoreset mode is SAME_STEP; "
            f"got infos with {sorted(infos)}"
        )
    names = ("final_obs", "_final_obs", "final_info", "_final_info")
    return infos["final_obs"], infos.get("final_info", {}), {k: values for k, values in infos.items() if k not in names}
