"""Join several ``VecEnv`` of SB3 into one, which can show the agent which of them an environment belongs to."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_grpo.vec_env.task_display import TaskLabel, make_display

JOINED_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Dict)


class JoinedVecEnv(VecEnv):
    """
    Several ``VecEnv`` as one, for any algorithm of SB3; the environments are in the order of ``vec_envs``.

    All of them begin a step before one of them is waited for. With ``tasks`` each ``VecEnv`` is a task. The observation
    shows its number, as ``router="task"`` finds it: a Dict has it as ``"task"`` (router ``"discrete"``), a Box of shape
    ``(n,)`` as one-hot columns behind its own (router ``"one_hot"``). ``info["task"]`` holds its label in every step, which
    ``evaluate_groups`` reads. Labels that are names are the groups' names, too.

    :param vec_envs: with equal spaces; Tuple observations are not supported
    :param tasks: labels of the tasks, one for each ``VecEnv``: names or numbers; None: observations and infos stay as they
        are
    :raises ValueError: if ``vec_envs`` is empty, holds something else or one object twice, or has spaces that differ; if
        ``tasks`` are not different labels, one for each ``VecEnv``, or if the observation cannot show them
    """

    def __init__(self, vec_envs: Sequence[VecEnv], tasks: Sequence[TaskLabel] | None = None):
        self.vec_envs = list(vec_envs)
        check_vec_envs(self.vec_envs)
        counts = [vec_env.num_envs for vec_env in self.vec_envs]
        self.starts = np.cumsum([0, *counts]).tolist()  # where the environments of each VecEnv begin
        self.display = make_display(self.vec_envs[0].observation_space, counts, tasks)
        super().__init__(sum(counts), self.display.observation_space, self.vec_envs[0].action_space)

    def step_async(self, actions: np.ndarray) -> None:
        for vec_env, start, stop in self._parts():
            vec_env.step_async(actions[start:stop])

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = zip(*(vec_env.step_wait() for vec_env in self.vec_envs), strict=True)
        joined_dones = np.concatenate(dones)
        if np.count_nonzero(joined_dones):
            self._read_reset_infos()
        joined_infos = self.display.mark_infos([info for part in infos for info in part])
        return self.display.mark(join(observations)), np.concatenate(rewards), joined_dones, joined_infos

    def reset(self) -> VecEnvObs:
        observations = join([vec_env.reset() for vec_env in self.vec_envs])
        self._read_reset_infos()
        return self.display.mark(observations)

    def _read_reset_infos(self) -> None:
        self.reset_infos = self.display.mark_infos([info for vec_env in self.vec_envs for info in vec_env.reset_infos])

    def _parts(self) -> list[tuple[VecEnv, int, int]]:
        """Each ``VecEnv`` with the numbers of its first environment and of that behind its last one."""
        return list(zip(self.vec_envs, self.starts[:-1], self.starts[1:], strict=True))

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        return [each for vec_env, start, _ in self._parts() for each in vec_env.seed(None if seed is None else seed + start)]

    def set_options(self, options: list[dict] | dict | None = None) -> None:
        """
        Set the options of the next reset.

        :param options: a dictionary for all environments, or a list with one for each
        :raises ValueError: if a list has another length
        """
        if isinstance(options, list) and len(options) != self.num_envs:
            raise ValueError(f"options must hold one dictionary for each of {self.num_envs} environments, got {len(options)}")
        for vec_env, start, stop in self._parts():
            vec_env.set_options(options[start:stop] if isinstance(options, list) else options)

    def close(self) -> None:
        with ExitStack() as stack:  # an error of one does not keep the others open
            for vec_env in self.vec_envs:
                stack.callback(vec_env.close)

    def get_images(self) -> Sequence[np.ndarray | None]:
        return [image for vec_env in self.vec_envs for image in vec_env.get_images()]

    def has_attr(self, attr_name: str) -> bool:
        return attr_name in self.display.attributes or all(vec_env.has_attr(attr_name) for vec_env in self.vec_envs)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        if attr_name in self.display.attributes:
            return [self.display.attributes[attr_name] for _ in self._get_indices(indices)]
        return self._ask(indices, lambda vec_env, own: vec_env.get_attr(attr_name, own))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        def set_own(vec_env: VecEnv, own: list[int]) -> list[None]:
            vec_env.set_attr(attr_name, value, own)
            return [None] * len(own)

        self._ask(indices, set_own)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        return self._ask(
            indices,
            lambda vec_env, own: vec_env.env_method(method_name, *method_args, indices=own, **method_kwargs),
        )

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        return self._ask(indices, lambda vec_env, own: vec_env.env_is_wrapped(wrapper_class, own))

    def _ask(self, indices: VecEnvIndices, ask: Callable[[VecEnv, list[int]], Sequence[Any]]) -> list[Any]:
        """Ask each ``VecEnv`` for those of the environments that are its own, and put the answers in the order asked for."""
        chosen = [range(self.num_envs)[index] for index in self._get_indices(indices)]
        answers: list[Any] = [None] * len(chosen)
        for vec_env, start, stop in self._parts():
            places = [place for place, index in enumerate(chosen) if start <= index < stop]
            if places:
                own = ask(vec_env, [chosen[place] - start for place in places])
                for place, answer in zip(places, own, strict=True):
                    answers[place] = answer
        return answers


def check_vec_envs(vec_envs: Sequence[Any]) -> None:
    """
    Refuse what cannot be joined.

    :param vec_envs: what the user gave
    :raises ValueError: if it is empty, holds something else than ``VecEnv`` or one object twice, or if spaces differ
    """
    if not vec_envs:
        raise ValueError(f"vec_envs must hold at least one VecEnv of SB3, got {vec_envs}")
    for index, vec_env in enumerate(vec_envs):
        if not isinstance(vec_env, VecEnv):
            raise ValueError(f"vec_envs must hold VecEnv of SB3, but number {index} is {type(vec_env)}")
    if len({id(vec_env) for vec_env in vec_envs}) < len(vec_envs):
        raise ValueError("vec_envs must be different objects, but one of them occurs twice")
    first = vec_envs[0]
    if not isinstance(first.observation_space, JOINED_SPACES):
        raise ValueError(f"vec_envs must have observations that are arrays or a Dict of them, got {first.observation_space}")
    for name in ("observation_space", "action_space"):
        for index, vec_env in enumerate(vec_envs):
            if getattr(vec_env, name) != getattr(first, name):
                raise ValueError(
                    f"vec_envs must have equal spaces, but the {name} of number {index} is {getattr(vec_env, name)}, and "
                    f"that of number 0 is {getattr(first, name)}"
                )


def join(observations: Sequence[Any]) -> Any:
    """
    Return the observations of several ``VecEnv`` as those of one.

    :param observations: of each, an array of shape ``(num_envs, ...)`` or a dictionary of such arrays
    :return: copies, of shape ``(sum of num_envs, ...)``
    """
    if isinstance(observations[0], dict):
        return {key: np.concatenate([each[key] for each in observations]) for key in observations[0]}
    return np.concatenate(observations)
