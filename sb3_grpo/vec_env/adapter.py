"""Adapt Gymnasium's and EnvPool's vector environments to SB3's ``VecEnv``."""

import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from gymnasium.wrappers.vector import DictInfoToList
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_grpo.vec_env.batches import info_of, make_batch, split_final
from sb3_grpo.vec_env.episode_statistics import EpisodeStatistics
from sb3_grpo.vec_env.resets import ResetSome, find_reset, is_envpool, layers
from sb3_grpo.vec_env.sub_envs import find_sub_envs


def adapt_vector_env(
    env: VectorEnv,
    episode_statistics: bool = True,
    info_keywords: tuple[str, ...] = (),
    reset_some: ResetSome | None = None,
) -> "VectorEnvAdapter":
    """
    Make a ``VecEnv`` of SB3 out of a vector environment of Gymnasium or EnvPool, for any algorithm of SB3.

    Its infos are those of ``DummyVecEnv`` where an episode has ended. For other environments they hold
    ``"TimeLimit.truncated"`` and the keys of ``info_keywords``, because making dictionaries out of arrays takes longer
    than many a step.

    :param env: the vector environment, with vector wrappers or without. Autoreset modes ``SAME_STEP`` and ``DISABLED``;
        ``NEXT_STEP`` too for ``SyncVectorEnv``, ``AsyncVectorEnv`` (with shared memory), EnvPool
        (``env_type="gymnasium"``) and Gymnasium's vectorised CartPole
    :param episode_statistics: whether infos have ``"episode"`` at the end of an episode, as with SB3's ``Monitor``
    :param info_keywords: keys of the environment's infos that are handed over in every step, and, as ``Monitor`` does it,
        within ``"episode"``
    :param reset_some: for other vector environments: a function of the vector environment and of a mask (booleans of shape
        ``(num_envs,)``), which resets the environments under the mask and returns observations and infos of all
        environments, as ``env.reset`` does; rows that are not under the mask are not read
    :return: the environment for the algorithm, its ``env`` is the vector environment
    :raises ValueError: if ``env`` is not a vector environment, or one that cannot be served
    """
    if not isinstance(env, VectorEnv):
        raise ValueError(
            "env must be a gymnasium.vector.VectorEnv, or made by envpool.make(..., env_type='gymnasium') with EnvPool 1.2 "
            f"or newer; got {type(env)}"
        )
    if isinstance(info_keywords, str) or not all(isinstance(key, str) for key in info_keywords):
        raise ValueError(f"info_keywords must be a tuple of strings, got {info_keywords!r}")
    if any(isinstance(layer, DictInfoToList) for layer in layers(env)):
        raise ValueError("env must not be wrapped in DictInfoToList: infos are made into dictionaries here; leave it out")
    if is_envpool(env):
        check_envpool(env.unwrapped)
    reset = find_reset(env, reset_some)
    return VectorEnvAdapter(env, reset, EpisodeStatistics(env.num_envs) if episode_statistics else None, tuple(info_keywords))


def check_envpool(pool: Any) -> None:
    """
    Refuse what EnvPool can do beyond a vector environment.

    :param pool: the environment of EnvPool
    :raises ValueError: if it steps asynchronously, or if several players share an environment
    """
    if pool.is_async:
        sizes = f"num_envs={pool.config['num_envs']}, batch_size={pool.config['batch_size']}"
        raise ValueError(f"env must step all its environments at once: leave batch_size out of envpool.make; got {sizes}")
    if pool.config.get("max_num_players", 1) != 1:
        raise ValueError(f"env must have one player, got max_num_players={pool.config['max_num_players']}")


class VectorEnvAdapter(VecEnv):
    """
    Vector environment that follows SB3's convention: the step that ends an episode returns the next one's observation.

    Made by :func:`adapt_vector_env`, which says what the parameters mean.

    :param env: the vector environment
    :param reset_some: what resets environments whose episode has ended; None if the vector environment does it
    :param statistics: what records episodes, if anything does
    :param info_keywords: keys of infos that are handed over in every step
    """

    actions: np.ndarray

    def __init__(
        self,
        env: VectorEnv,
        reset_some: ResetSome | None,
        statistics: EpisodeStatistics | None,
        info_keywords: tuple[str, ...],
    ):
        self.env = env
        self.reset_some = reset_some
        self.statistics = statistics
        self.info_keywords = info_keywords
        self.sub_envs = find_sub_envs(env)
        self.batch = make_batch(env.single_observation_space)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def step_async(self, actions: np.ndarray) -> None:
        # policies return float32, simulators may need float64 or int32
        self.actions = np.asarray(actions, dtype=self.action_space.dtype)

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, terminated, truncated, vector_infos = self.env.step(self.actions)
        # SB3 keeps observations beyond the next step, in which the vector environment may write to the same memory
        observations = self.batch.copy(observations)
        dones = np.logical_or(terminated, truncated)
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        if self.statistics is not None:
            self.statistics.add(rewards)
        if self.info_keywords:
            wanted = {key: values for key, values in vector_infos.items() if key.removeprefix("_") in self.info_keywords}
            for i in np.flatnonzero(~dones).tolist():
                infos[i].update(info_of(wanted, i, self.num_envs))
        if np.count_nonzero(dones):  # faster than dones.any()
            for i in np.flatnonzero(dones).tolist():
                infos[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
            self._end_episodes(observations, dones, vector_infos, infos)
        return observations, np.array(rewards, dtype=np.float32), dones, infos

    def _end_episodes(
        self, observations: Any, dones: np.ndarray, vector_infos: dict[str, Any], infos: list[dict[str, Any]]
    ) -> None:
        """Fill in the infos of environments whose episode has ended, and replace their observations by first ones."""
        ended: list[int] = np.flatnonzero(dones).tolist()
        last, last_infos, first_infos = observations, vector_infos, vector_infos
        if self.reset_some is None:
            last, last_infos, first_infos = split_final(vector_infos)
        for i in ended:
            infos[i] = {**info_of(last_infos, i, self.num_envs), **infos[i]}
            infos[i]["terminal_observation"] = self.batch.row(last, i)
            if self.statistics is not None:
                infos[i]["episode"] = {**self.statistics.finish(i), **self._wanted_at_end(infos[i])}
        if self.reset_some is not None:
            first, first_infos = self.reset_some(self.env, dones.copy())
            self.batch.replace(observations, dones, first)
        for i in ended:
            self.reset_infos[i] = info_of(first_infos, i, self.num_envs)

    def _wanted_at_end(self, info: dict[str, Any]) -> dict[str, Any]:
        """Values of `info_keywords` in the last step of an episode, where ``Monitor`` asks for all of them."""
        missing = [key for key in self.info_keywords if key not in info]
        if missing:
            raise ValueError(f"info_keywords must be keys of the environment's infos, which lack {missing}: {sorted(info)}")
        return {key: info[key] for key in self.info_keywords}

    def reset(self) -> VecEnvObs:
        options = dict(self._options[0]) or None
        observations, infos = self.env.reset(seed=self.sub_envs.seed_argument(self._seeds), options=options)
        self.reset_infos = [info_of(infos, i, self.num_envs) for i in range(self.num_envs)]
        if self.statistics is not None:
            self.statistics.restart()
        self._reset_seeds()
        self._reset_options()
        return self.batch.copy(observations)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        pool: Any = self.env.unwrapped
        if is_envpool(pool) and seed not in (None, pool.config["seed"]):
            warnings.warn(
                f"seed={seed} seeds the algorithm alone: EnvPool is seeded when it is made. For reproducible episodes, and "
                f"without this warning: envpool.make(..., seed={seed})",
                stacklevel=2,
            )
        return super().seed(seed)

    def set_options(self, options: list[dict] | dict | None = None) -> None:
        """
        Set the options of the next reset.

        :param options: a dictionary for all environments, or a list of equal ones
        :raises ValueError: if environments would have different options, which vector environments cannot take
        """
        if isinstance(options, list) and any(each != options[0] for each in options):
            raise ValueError(f"options must be the same for all environments of a vector environment, got {options}")
        super().set_options(options)

    def close(self) -> None:
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        return self.sub_envs.images()

    def has_attr(self, attr_name: str) -> bool:
        return self.sub_envs.has_attr(attr_name)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        # SB3 asks for it in the constructor; wrappers such as HumanRendering change that of the vector environment
        if attr_name == "render_mode":
            return [self.env.render_mode for _ in self._get_indices(indices)]
        return self.sub_envs.get_attr(attr_name, list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        self.sub_envs.set_attr(attr_name, value, list(self._get_indices(indices)))

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        return self.sub_envs.call(method_name, list(self._get_indices(indices)), *method_args, **method_kwargs)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        chosen = list(self._get_indices(indices))
        # evaluation asks for Monitor to know whether infos have "episode"
        if wrapper_class is Monitor and self.statistics is not None:
            return [True for _ in chosen]
        return self.sub_envs.is_wrapped(wrapper_class, chosen)
