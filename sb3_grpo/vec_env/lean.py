"""Step ordinary environments in one process without deep copies."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs


class LeanVecEnv(DummyVecEnv):
    """
    SB3's ``DummyVecEnv`` without its deep copies of observations and infos at each step.

    Trajectories, types and all other methods are those of ``DummyVecEnv``. Three things differ in what a step returns:

    - The observations are written into new arrays, which are the caller's from then on. An environment may return the same
      array at each step and change it in place.
    - Each info is a new dict with the values of the environment's own dict. What SB3 writes into it
      (``"TimeLimit.truncated"``, ``"terminal_observation"``) therefore never shows up in the info of a later step, even if
      the environment returns the same dict at each step. The *values* are not copied: an environment that changes an array
      or a dict inside its info in place changes it for everybody who has kept the info.
    - ``info["terminal_observation"]`` is copied before the environment is reset, so that a reset that writes into the same
      array does not change it.

    :param env_fns: functions that return one environment each
    :raises ValueError: if ``env_fns`` is empty, or two functions return the same environment
    """

    def __init__(self, env_fns: Iterable[Callable[[], gym.Env]]):
        env_fns = list(env_fns)
        if not env_fns:
            raise ValueError("env_fns must hold at least one function that returns an environment, not []")
        super().__init__(env_fns)

    def step_wait(self) -> VecEnvStepReturn:
        rewards = np.empty(self.num_envs, np.float32)
        dones = np.empty(self.num_envs, bool)
        infos: list[dict[str, Any]] = []
        for i, (env, action) in enumerate(zip(self.envs, self.actions, strict=True)):
            obs, rewards[i], terminated, truncated, env_info = env.step(action)
            info = dict(env_info)
            info["TimeLimit.truncated"] = truncated and not terminated
            dones[i] = terminated or truncated
            if terminated or truncated:
                info["terminal_observation"] = deepcopy(obs)
                obs, self.reset_infos[i] = env.reset()
            self._save_obs(i, obs)
            infos.append(info)
        return self._obs_from_buf(), rewards, dones, infos

    def _obs_from_buf(self) -> VecEnvObs:
        """Hand over the arrays that `_save_obs` has filled, and let it fill new ones from now on."""
        filled = self.buf_obs
        self.buf_obs = OrderedDict((key, np.empty_like(array)) for key, array in filled.items())
        return dict_to_obs(self.observation_space, filled)
