"""List arguments of the constructor that PPO has too."""

from typing import Any

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer

from benchmarks.robustness.cases.case import INF, NAN, arguments, function, without_arguments

BAD_ARGUMENTS: dict[str, list[Any]] = dict(
    learning_rate=["3e-4", None, -1e-3, NAN, INF, True, [1e-3], *map(function, (None, NAN, "x", INF)), without_arguments],
    n_steps=[0, -1, 32.0, "32", None, NAN, 1, [32]],
    batch_size=[0, -16, 16.0, "16", None, 1, NAN],
    n_epochs=[0, -1, 2.0, "2", None],
    gamma=[1.5, -0.1, NAN, INF, "0.99", None, [0.99]],
    gae_lambda=[1.5, -0.1, NAN, INF, "0.95", None],
    clip_range=[-0.2, NAN, "0.2", None, [0.2], *map(function, (None, NAN, "x"))],
    clip_range_vf=[-0.2, 0, NAN, "0.2", [0.2], *map(function, (None, NAN))],
    ent_coef=[NAN, INF, "0.01", "auto", None, [0.01], function(0.01)],
    vf_coef=[NAN, INF, "0.5", None, function(0.5)],
    max_grad_norm=[NAN, -0.5, "0.5", None],
    use_sde=["yes"],
    target_kl=[-0.01, NAN, "0.01", [0.01]],
    stats_window_size=[0, -1, 2.5, "100"],
    tensorboard_log=[5, True],
    normalize_advantage=["yes", "False", NAN, 2],
    verbose=["1", None],
    seed=["0", 1.5, -1, 2**40, NAN],
    device=["gpu", 5.5, None, ["cpu"]],
    rollout_buffer_class=["RolloutBuffer", dict, ReplayBuffer, 5],
    rollout_buffer_kwargs=["x", 5],
    policy_kwargs=["dict(net_arch=[8])", [1], 5],
)
LOOKS_BAD: dict[str, list[Any]] = dict(
    learning_rate=[0.0, 1, lambda progress: 1e-3 * progress],
    batch_size=[1000, 7],
    n_steps=[np.int64(32)],
    gamma=[0, 1],
    gae_lambda=[0, 1],
    clip_range=[INF, lambda progress: 0.2 * progress],
    clip_range_vf=[100.0],
    ent_coef=[-0.01, 0, np.float32(0.01)],
    vf_coef=[0, -0.1],
    max_grad_norm=[INF],
    target_kl=[1e-9, 5],
    use_sde=[0],
    verbose=[True],
    stats_window_size=[None],
    tensorboard_log=[None],
    policy_kwargs=[None, dict(net_arch=[])],
)

CASES = [*arguments(BAD_ARGUMENTS), *arguments(LOOKS_BAD, fine=True)]
