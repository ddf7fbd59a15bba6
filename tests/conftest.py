"""What all tests share."""

import importlib
import warnings

import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env

import sb3_grpo  # noqa: F401  # registers the environments

th.set_num_threads(1)

# Box2D's wrapper (SWIG) warns when it is imported, and crashes if the warning becomes an error
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "builtin type .* has no __module__ attribute", DeprecationWarning)
    importlib.import_module("Box2D")


@pytest.fixture
def cartpole():
    return make_vec_env("CartPole-v1", n_envs=2, seed=0)


@pytest.fixture
def task_cartpole():
    return make_vec_env("sb3_grpo/TaskCartPole-v0", n_envs=4, seed=0)
