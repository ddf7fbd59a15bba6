"""
Train a group for each phase of a game: in MiniGrid's DoorKey the key must be found, the door opened, the goal reached.

A function of the observation, the router, returns the phase; each phase has its own action and value head.

``python examples/door_key.py`` (a few minutes; needs ``pip install minigrid``)
"""

import argparse
from typing import Any

import gymnasium as gym
import minigrid
import numpy as np
import torch as th
from gymnasium import spaces
from minigrid.core.constants import OBJECT_TO_IDX, STATE_TO_IDX
from minigrid.wrappers import FullyObsWrapper, ImgObsWrapper
from stable_baselines3.common.env_util import make_vec_env

from sb3_grpo import GRPO

minigrid.register_minigrid_envs()
# observations are numbers from 0 to 10; divided by it they are of a size that networks learn from
SCALE = 10
PHASES = ("find the key", "open the door", "reach the goal")


class FlatGrid(gym.ObservationWrapper[np.ndarray, Any, np.ndarray]):
    """A wrapper that shows the whole grid (object, colour and state of each field) as one vector of floats from 0 to 1."""

    def __init__(self, env: gym.Env[Any, Any]):
        super().__init__(ImgObsWrapper(FullyObsWrapper(env)))
        assert self.env.observation_space.shape is not None
        self.observation_space = spaces.Box(0, 1, (int(np.prod(self.env.observation_space.shape)),), np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation.flatten().astype(np.float32) / SCALE


def phase(obs: th.Tensor) -> th.Tensor:
    """
    Return the phase of each observation.

    :param obs: batch of ``B`` observations, shape ``(B, 3 * fields)``
    :return: the phase of each, shape ``(B,)``: 0 while the key lies on the grid, then 1 until the door is open, then 2
    """
    fields = (obs * SCALE).round().long().unflatten(1, (-1, 3))
    objects, states = fields[..., 0], fields[..., 2]
    key_lies = (objects == OBJECT_TO_IDX["key"]).any(dim=1)
    door_open = ((objects == OBJECT_TO_IDX["door"]) & (states == STATE_TO_IDX["open"])).any(dim=1)
    return th.where(door_open, 2, th.where(key_lies, 0, 1))


def main(total_timesteps: int = 200_000) -> GRPO:
    """
    Train, then print what was split or merged, the groups, and the mean return.

    :param total_timesteps: environment steps to train for
    :return: the trained model
    """
    env = make_vec_env("MiniGrid-DoorKey-5x5-v0", n_envs=8, seed=0, wrapper_class=FlatGrid)
    model = GRPO(
        "MlpPolicy",
        env,
        router=phase,
        router_kwargs=dict(n_cells=len(PHASES)),
        n_steps=256,
        batch_size=256,
        learning_rate=1e-3,
        ent_coef=0.01,
        seed=0,
    )
    model.learn(total_timesteps)
    for event in model.regroup_history:
        print(f"after {event.timestep} steps: {event.kind} of groups {event.groups}, KL {event.kl:.2f}")
    for record in model.groups:
        print(", ".join(PHASES[cell] for cell in record.cells), f"- score {record.score:.2f}, {record.steps} steps")
    returns = [episode["r"] for episode in model.ep_info_buffer or []]
    print(f"mean return of the last episodes (best possible: about 0.97): {np.mean(returns) if returns else np.nan:.2f}")
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--total-timesteps", type=int, default=200_000)
    main(**vars(parser.parse_args()))
