"""Make linear policies for the gridworlds of the benchmarks."""

from typing import Any

import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks.lib.gridworlds import TaskGridWorld

UP, DOWN, RIGHT = 0, 1, 3


def make_linear(algorithm: type[PPO], **kwargs: Any) -> PPO:
    """
    Return a model with a linear policy on 16 environments that draw their tasks.

    :param algorithm: ``PPO`` or a subclass
    :param kwargs: further arguments of the algorithm
    """
    env = DummyVecEnv([TaskGridWorld] * 16)
    return algorithm("MlpPolicy", env, policy_kwargs=dict(net_arch=[]), seed=0, device="cpu", **kwargs)


def set_way(model: PPO, wall: int, certainty: float, head: int = 0) -> None:
    """
    Give a linear policy the way round a wall: down, right below it, and up in the last column.

    :param model: model with a linear policy
    :param wall: length of the wall
    :param certainty: logit of the right action; that of the others is 0
    :param head: which of the heads that stand side by side; PPO's policy has one
    """
    layer = model.policy.action_net
    assert isinstance(layer, th.nn.Linear)
    with th.no_grad():
        weight = layer.weight.unflatten(0, (-1, 4))[head].zero_()
        for cell in range(25):
            row, column = divmod(cell, 5)
            weight[UP if column == 4 else RIGHT if row == wall else DOWN, cell] = certainty
