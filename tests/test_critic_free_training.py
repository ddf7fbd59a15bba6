"""Training without a critic: what it learns, what stands beside it, and how it goes on after a file."""

import io
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]  # tensorboard has no types
from tiny_envs import CountingEnv, RandomEnv

from sb3_grpo import GRPO
from sb3_grpo.regroup_plan import Merge, Split
from sb3_grpo.vec_env.shared_start import make_group_vec_env

ESTIMATORS = ["outcome", "process", "time_step"]
N_ENVS, LENGTH = 8, 5
# action space, and the largest reward of a step, which is the sum of its actions
SPACES: dict[str, tuple[Callable[[], spaces.Space[Any]], float]] = {
    "discrete": (partial(spaces.Discrete, 3), 2),
    "box": (partial(spaces.Box, -1, 1, (2,)), 2),
    "multi_discrete": (partial(spaces.MultiDiscrete, [2, 3]), 3),
    "multi_binary": (partial(spaces.MultiBinary, 3), 3),
}
# once all members take the best actions their rewards are alike
CONVERGED = pytest.mark.filterwarnings('ignore:advantage_estimator="process" compares')


def box(n: int = 2) -> spaces.Box:
    return spaces.Box(-1, 1, (n,), np.float32)


def tasks() -> spaces.Dict:
    return spaces.Dict({"x": box(), "task": spaces.Discrete(3)})


def random_env(make_action_space: Any, make_observation_space: Any = box) -> RandomEnv:
    """With spaces of its own: their generators are the environment's."""
    return RandomEnv(make_observation_space(), make_action_space(), LENGTH)


def make_env(estimator: str, make_one: Any, n_envs: int = N_ENVS) -> VecEnv:
    if estimator == "time_step":
        return make_vec_env(make_one, n_envs, seed=0)
    return make_group_vec_env(make_one, n_envs, seed=0)


def make_model(estimator: str, make_one: Any, policy: str = "MlpPolicy", **kwargs: Any) -> GRPO:
    defaults: dict[str, Any] = dict(n_steps=20, batch_size=40, n_epochs=4, learning_rate=1e-2, seed=0, device="cpu")
    defaults |= dict(policy_kwargs=dict(net_arch=[16]), advantage_estimator=estimator, env=make_env(estimator, make_one))
    return GRPO(policy, **{**defaults, **kwargs})


def states(policy: Any) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in policy.state_dict().items()}


def same(one: dict[str, th.Tensor], other: dict[str, th.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(value.equal(other[name]) for name, value in one.items())


class TestLearning:
    @staticmethod
    def score(model: GRPO, n: int = 400) -> float:
        """Mean reward of a step, with actions that are drawn."""
        obs = np.random.default_rng(0).uniform(-1, 1, (n, 2)).astype(np.float32)
        return float(model.predict(obs)[0].reshape(n, -1).sum(axis=1).mean())

    @CONVERGED
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    @pytest.mark.parametrize("name", list(SPACES))
    def test_finds_the_best_actions(self, name, estimator):
        make_action_space, best = SPACES[name]
        kwargs: dict[str, Any] = dict(net_arch=[16], **(dict(log_std_init=-1.0) if name == "box" else {}))
        model = make_model(estimator, partial(random_env, make_action_space), n_groups=1, policy_kwargs=kwargs)
        before = self.score(model)
        model.learn(12 * 20 * N_ENVS)
        assert before < 0.65 * best
        assert self.score(model) > 0.85 * best
        assert not any("value" in parameter for parameter, _ in model.policy.named_parameters())
