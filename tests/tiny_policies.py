"""Policies for tests."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_grpo import MlpPolicy


def make_scrambled_policy(action_space: spaces.Space[Any], n_cells: int, seed: int = 0, **kwargs: Any) -> MlpPolicy:
    """
    All heads different, as are their moments in the optimizer; two numbers and the one-hot cell are the observation.

    :param kwargs: of the policy
    """
    th.manual_seed(seed)
    policy = MlpPolicy(
        spaces.Box(-np.inf, np.inf, (2 + n_cells,)),
        action_space,
        lambda _: 1e-3,
        router="one_hot",
        router_kwargs=dict(columns=(2, 2 + n_cells)),
        **kwargs,
    )
    for parameter in policy.parameters():
        parameter.data = 0.5 * th.randn_like(parameter)
        parameter.grad = th.randn_like(parameter)
    policy.optimizer.step()
    return policy
