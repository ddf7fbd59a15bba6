"""Preprocessing: from the observation that the environment gives to the input of the features extractor."""

from typing import TYPE_CHECKING

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.type_aliases import PyTorchObs

if TYPE_CHECKING:
    from sb3_grpo.routing import Router


class Preprocessor:
    """
    SB3's ``preprocess_obs`` without what the router hides from the trunk.

    SB3's function asks at each call whether a space is that of an image, which costs more than the preprocessing of a
    vector, and cannot be compiled; here this is decided once.

    :param observation_space: space of the whole observation
    :param normalize_images: whether images are divided by 255
    :param router: says what the trunk sees; ``None``: all of it
    """

    def __init__(self, observation_space: spaces.Space, normalize_images: bool, router: "Router | None" = None):
        self.space, self.visible = observation_space, None if router is None else router.visible
        entries = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {None: observation_space}
        # plain integers, since the compiler takes NumPy's for tensors
        self._sizes = {key: choice_sizes(space) for key, space in entries.items() if choice_sizes(space)}
        self._image_keys = {key for key, space in entries.items() if normalize_images and is_image_space(space)}

    def __call__(self, obs: PyTorchObs) -> PyTorchObs:
        """
        Preprocess a batch of observations.

        :param obs: whole observations
        :return: floats, images divided by 255, Discrete entries as one-hot columns
        """
        obs = obs if self.visible is None else self.visible(obs)
        if isinstance(self.space, spaces.Dict):
            assert isinstance(obs, dict)
            return {key: self._scale(value, self.space[key], key) for key, value in obs.items()}
        assert isinstance(obs, th.Tensor)
        return self._scale(obs, self.space, None)

    def _scale(self, obs: th.Tensor, space: spaces.Space, key: str | None) -> th.Tensor:
        if key in self._image_keys:
            return obs.float() / 255.0
        if key in self._sizes and th.compiler.is_compiling():
            return one_hot_of(obs, self._sizes[key])
        preprocessed = preprocess_obs(obs, space, normalize_images=False)
        assert isinstance(preprocessed, th.Tensor)
        return preprocessed


def choice_sizes(space: spaces.Space) -> list[int]:
    """
    Return the number of values of each variable of a Discrete or MultiDiscrete space; none of another space.

    :param space: the space
    """
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    return space.nvec.tolist() if isinstance(space, spaces.MultiDiscrete) else []


def one_hot_of(obs: th.Tensor, sizes: list[int]) -> th.Tensor:
    """
    Return what ``preprocess_obs`` returns for Discrete and MultiDiscrete observations, for the compiler, which refuses that.

    Torch's function looks at the numbers to check them. Here one that is outside of its space becomes NaN, which is found
    where outputs are checked.

    :param obs: shape ``(B,)`` or ``(B, 1)`` for one variable, ``(B, len(sizes))`` for several
    :param sizes: number of values of each variable
    :return: shape ``(B, n)`` or ``(B, 1, n)`` for one variable, ``(B, sum(sizes))`` for several
    """
    variables = [obs] if len(sizes) == 1 else list(obs.split(1, dim=1))
    codes = []
    for values, size in zip(variables, sizes, strict=True):
        code = (values.unsqueeze(-1) == th.arange(size, device=obs.device)).float()
        codes.append(code / code.sum(dim=-1, keepdim=True))
    return codes[0] if len(sizes) == 1 else th.cat(codes, dim=-1).flatten(1)
