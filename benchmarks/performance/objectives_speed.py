"""
Measure what objectives cost: training speed and number of parameters, beside SB3's PPO on their sum.

CartPole whose reward is divided into 2, 8 or 32 parts at random; 8 environments, rollouts of 512 steps, minibatches of 256,
two layers of 64 units. All variants take turns in one process, in the same environments; what is shown are medians of ratios.

``python -m benchmarks.performance.objectives_speed`` measures; ``--smoke FOLDER`` is a short run, whose results go there.
"""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.performance.critic_free_speed import N_ENVS, Variants, measure_all
from sb3_grpo import GRPO, LeanVecEnv, ObjectivesWrapper


class Divided(gym.Wrapper[Any, Any, Any, Any]):
    """
    Divide the reward into parts of random size.

    :param n_objectives: number of parts
    """

    def __init__(self, n_objectives: int):
        super().__init__(gym.make("CartPole-v1"))
        self.n_objectives, self.generator = n_objectives, np.random.default_rng(0)

    def step(self, action: Any) -> Any:
        """Take a step, see ``gymnasium.Env``."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        parts = self.generator.random(self.n_objectives)
        return observation, parts * (float(reward) / parts.sum()), terminated, truncated, info


def make_env(n_objectives: int) -> gym.Env[Any, Any]:
    """
    Return an environment with objectives.

    :param n_objectives: their number
    """
    names = [str(index) for index in range(n_objectives)]
    return Monitor(ObjectivesWrapper(Divided(n_objectives), names))


def make_envs(n_objectives: int) -> VecEnv:
    """
    Return vectorised environments with objectives.

    :param n_objectives: their number
    """
    return LeanVecEnv([partial(make_env, n_objectives)] * N_ENVS)


def make_variants(n_objectives: int) -> Variants:
    """
    Return what is compared on a number of objectives.

    :param n_objectives: their number
    """
    env = partial(make_envs, n_objectives)
    return {"PPO": (PPO, env), "GRPO": (partial(GRPO, group_by="objectives"), env)}


def main() -> None:
    """Measure all numbers of objectives, then show them."""
    measure_all(__doc__, "objectives_speed", {f"{n} objectives": (make_variants(n), [64, 64]) for n in (2, 8, 32)})


if __name__ == "__main__":
    main()
