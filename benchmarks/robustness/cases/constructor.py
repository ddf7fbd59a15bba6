"""List policies, environments and ``policy_kwargs`` that PPO cannot be built with."""

import types
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th

from benchmarks.robustness.cases.case import NAN, Algorithm, Case, dict_tasks, shown, train
from benchmarks.robustness.cases.odd_envs import NoSpaces
from sb3_grpo.envs.cartpole import TaskCartPole


def policy_kwargs_case(kwargs: dict[str, Any], *words: str, env: Any = "CartPole-v1") -> Case:
    """
    Return the case of some ``policy_kwargs``.

    :param kwargs: their value
    :param words: see :class:`Case`
    :param env: registered name of the environment
    """
    name = ", ".join(f"{key}={shown(value)}" for key, value in kwargs.items())
    return Case(f"policy_kwargs: {name}", lambda algorithm, folder: train(algorithm, env, policy_kwargs=kwargs), words)


POLICY_KWARGS = [
    policy_kwargs_case(dict(net_arch="64"), "net_arch"),
    policy_kwargs_case(dict(net_arch=[8.5]), "net_arch"),
    policy_kwargs_case(dict(net_arch=[-1]), "net_arch", "negative dimension"),
    policy_kwargs_case(dict(net_arch=5), "net_arch"),
    policy_kwargs_case(dict(net_arch=["8"]), "net_arch"),
    policy_kwargs_case(dict(net_arch=dict(pi=[8], v=[8])), "net_arch", "vf"),
    policy_kwargs_case(dict(activation_fn="relu"), "activation_fn"),
    policy_kwargs_case(dict(activation_fn=th.relu), "activation_fn"),
    policy_kwargs_case(dict(activation="relu"), "activation"),
    policy_kwargs_case(dict(optimizer_class="Adam"), "optimizer_class"),
    policy_kwargs_case(dict(optimizer_kwargs="lr"), "optimizer_kwargs"),
    policy_kwargs_case(dict(optimizer_kwargs=dict(foo=1)), "foo"),
    policy_kwargs_case(dict(optimizer_kwargs=dict(lr=1e-3)), "lr"),
    policy_kwargs_case(dict(optimizer_kwargs=dict(betas=(2.0, 2.0))), "beta"),
    policy_kwargs_case(dict(optimizer_kwargs=dict(weight_decay=-1.0)), "weight_decay"),
    policy_kwargs_case(dict(optimizer_kwargs=dict(weight_decay=NAN)), "weight_decay"),
    policy_kwargs_case(dict(optimizer_kwargs=dict(eps=NAN)), "epsilon", "eps"),
    policy_kwargs_case(dict(features_extractor_class="Flatten"), "features_extractor_class"),
    policy_kwargs_case(dict(features_extractor_kwargs=dict(foo=1)), "foo"),
    policy_kwargs_case(dict(log_std_init=NAN), "log_std_init", "log_std", "loc", "scale", env="Pendulum-v1"),
    policy_kwargs_case(dict(log_std_init="x"), "log_std_init", env="Pendulum-v1"),
    policy_kwargs_case(dict(squash_output=True), "squash_output", env="Pendulum-v1"),
    policy_kwargs_case(dict(use_sde=5), "use_sde"),
]


def of_constructor(name: str, words: tuple[str, ...], *args: Any, fine: bool | None = False, **kwargs: Any) -> Case:
    """
    Return the case of a model that is built and trained.

    :param name: see :class:`Case`
    :param words: see :class:`Case`
    :param args: environment and policy; functions are called to make them
    :param fine: see :class:`Case`
    :param kwargs: further arguments
    """

    def act(algorithm: Algorithm, folder: Path) -> Any:
        made = [value() if isinstance(value, types.FunctionType) else value for value in args]
        return train(algorithm, *made, **kwargs)

    return Case(name, act, words, fine)


CONSTRUCTOR = [
    of_constructor("policy misspelt", ("policy",), "CartPole-v1", "MLPPolicy"),
    of_constructor("policy for images with a vector", ("NatureCNN", "image", "CnnPolicy"), "CartPole-v1", "CnnPolicy"),
    of_constructor("policy for dicts with a vector", ("MultiInputPolicy", "Dict"), "CartPole-v1", "MultiInputPolicy"),
    of_constructor("policy for vectors with a dict", ("MultiInputPolicy",), dict_tasks, "MlpPolicy"),
    of_constructor("policy=None", ("policy",), "CartPole-v1", None),
    of_constructor("policy=5", ("policy",), "CartPole-v1", 5),
    of_constructor("policy: a class that is none", ("policy",), "CartPole-v1", dict),
    of_constructor("policy: a network", ("policy", "policy_class"), "CartPole-v1", th.nn.Linear(4, 2)),
    of_constructor("env misspelt", ("CartPol", "environment"), "CartPol-v1"),
    of_constructor("env=None", ("env", "environment"), None),
    of_constructor("env=5", ("environment", "env"), 5),
    of_constructor("env: a class", ("environment", "env"), TaskCartPole),
    of_constructor("env: a list", ("environment", "env"), [gym.make("CartPole-v1")]),
    of_constructor("env: an object without spaces", ("environment", "env"), NoSpaces),
    of_constructor("unknown argument n_step", ("n_step",), "CartPole-v1", "MlpPolicy", n_step=8),
    of_constructor("unknown argument lr", ("lr",), "CartPole-v1", "MlpPolicy", lr=1e-3),
    of_constructor("rollout_buffer_kwargs: unknown", ("foo",), rollout_buffer_kwargs=dict(foo=1)),
    of_constructor("rollout_buffer_kwargs: gamma", ("gamma",), rollout_buffer_kwargs=dict(gamma=0.5)),
    of_constructor("use_sde=True for Discrete actions", ("gSDE",), use_sde=True),
    of_constructor("sde_sample_freq='4'", ("sde_sample_freq",), "Pendulum-v1", use_sde=True, sde_sample_freq="4"),
    of_constructor("sde_sample_freq=None", ("sde_sample_freq",), "Pendulum-v1", use_sde=True, sde_sample_freq=None),
    of_constructor("sde_sample_freq=nan", ("sde_sample_freq",), "Pendulum-v1", use_sde=True, sde_sample_freq=NAN),
    of_constructor("sde_sample_freq=2.5", ("sde_sample_freq",), "Pendulum-v1", use_sde=True, sde_sample_freq=2.5),
]

CASES = [*POLICY_KWARGS, *CONSTRUCTOR]
