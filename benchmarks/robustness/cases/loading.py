"""List files, parameters and environments that a model cannot be loaded with or saved to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.robustness.cases.case import INF, NAN, Action, Algorithm, Case, saved, train
from benchmarks.robustness.cases.odd_envs import OddEnv, box


def loading(name: str, words: tuple[str, ...], fine: bool | None = False, env: Any = "CartPole-v1", **given: Any) -> Case:
    """
    Return the case of a model that is loaded with other arguments, and trained.

    :param name: name of the case after "load: "
    :param words: see :class:`Case`
    :param fine: see :class:`Case`
    :param env: registered name of the environment, or a function that makes it
    :param given: arguments of ``load``
    """

    def act(algorithm: Algorithm, folder: Path) -> Any:
        made = given.get("env", env)
        made = made() if callable(made) else gym.make(made)
        return algorithm.load(saved(algorithm, folder), **{**given, "env": made}).learn(96)

    return Case(f"load: {name}", act, words, fine)


def corrupt(change: Callable[[bytes], bytes]) -> Action:
    """
    Return an action that loads a file after its bytes were changed.

    :param change: function of the bytes
    """

    def act(algorithm: Algorithm, folder: Path) -> Any:
        path = saved(algorithm, folder)
        path.write_bytes(change(path.read_bytes()))
        return algorithm.load(path)

    return act


def other_file(algorithm: Algorithm, folder: Path) -> Any:
    """
    Load a file of A2C, and train.

    :param algorithm: PPO or GRPO
    :param folder: folder of the file
    """
    A2C("MlpPolicy", "CartPole-v1", n_steps=8, device="cpu").save(folder / "a2c.zip")
    return algorithm.load(folder / "a2c.zip", env=gym.make("CartPole-v1")).learn(96)


def parameters(change: Callable[[dict[str, Any]], Any], exact: bool = True) -> Action:
    """
    Return an action that gives a model its own parameters after a change.

    :param change: function of the parameters
    :param exact: SB3's ``exact_match``
    """

    def act(algorithm: Algorithm, folder: Path) -> Any:
        model = train(algorithm)
        model.set_parameters(change(model.get_parameters()), exact_match=exact)
        return model.learn(96)

    return act


def with_policy(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[dict[str, Any]], Any]:
    """
    Return a change of the policy's parameters only.

    :param change: function of the policy's state dict
    """
    return lambda given: {**given, "policy": change(dict(given["policy"]))}


FILE = ("file", "zip", "path", "model.zip", "archive")
CASES = [
    Case("load: no such file", lambda a, f: a.load(f / "nothing"), ("nothing.zip", "nothing")),
    Case("load: a folder", lambda a, f: a.load(f), (*FILE, "directory")),
    Case("load: a number", lambda a, f: a.load(5), FILE),
    Case("load: None", lambda a, f: a.load(None), FILE),
    Case("load: an empty file", corrupt(lambda content: b""), FILE),
    Case("load: a text file", corrupt(lambda content: b"hello"), FILE),
    Case("load: half a file", corrupt(lambda content: content[: len(content) // 2]), FILE),
    Case("load: a file of A2C", other_file, ("A2C", "PPO", "GRPO")),
    loading("another observation space", ("spaces", "space", "observation"), env=lambda: OddEnv(box(5))),
    loading("another action space", ("spaces", "space", "action"), env=lambda: OddEnv(box(4, low=-INF), spaces.Discrete(3))),
    loading("another number of environments", (), fine=True, env=lambda: make_vec_env("CartPole-v1", 3)),
    loading("unknown argument", ("foo",), foo=1),
    loading("policy_kwargs others", ("policy_kwargs", "policy kwargs"), policy_kwargs=dict(net_arch=[8])),
    loading("learning_rate='x'", ("learning_rate", "learning rate"), learning_rate="x"),
    loading("learning_rate=nan", ("learning_rate", "learning rate"), learning_rate=NAN),
    loading("learning_rate=-1", ("learning_rate", "learning rate"), learning_rate=-1.0),
    loading("n_steps=64.0", ("n_steps",), n_steps=64.0),
    loading("n_steps=0", ("n_steps",), n_steps=0),
    loading("n_steps=64", (), fine=True, n_steps=64),
    loading("batch_size=0", ("batch_size",), batch_size=0),
    loading("batch_size='16'", ("batch_size",), batch_size="16"),
    loading("n_epochs=0", ("n_epochs",), n_epochs=0),
    loading("n_epochs=2.0", ("n_epochs",), n_epochs=2.0),
    loading("gamma=5", ("gamma",), gamma=5),
    loading("gamma='x'", ("gamma",), gamma="x"),
    loading("gae_lambda=nan", ("gae_lambda",), gae_lambda=NAN),
    loading("clip_range=nan", ("clip_range",), clip_range=NAN),
    loading("clip_range=None", ("clip_range",), clip_range=None),
    loading("clip_range_vf=-1", ("clip_range_vf",), clip_range_vf=-1.0),
    loading("clip_range_vf='x'", ("clip_range_vf",), clip_range_vf="x"),
    loading("ent_coef='x'", ("ent_coef",), ent_coef="x"),
    loading("vf_coef=nan", ("vf_coef",), vf_coef=NAN),
    loading("max_grad_norm=None", ("max_grad_norm",), max_grad_norm=None),
    loading("target_kl=-1", ("target_kl",), target_kl=-1.0),
    loading("normalize_advantage='x'", ("normalize_advantage",), normalize_advantage="x"),
    loading("device='gpu'", ("device",), device="gpu"),
    loading("custom_objects='x'", ("custom_objects",), custom_objects="x"),
    Case("load: trained without an environment", lambda a, f: a.load(saved(a, f)).learn(96), ("env", "environment")),
    Case("set_parameters: a number", lambda a, f: train(a).set_parameters(5), ("load_path_or_dict", *FILE)),
    Case("set_parameters: no such file", lambda a, f: train(a).set_parameters(f / "nothing"), ("nothing.zip", "nothing")),
    Case("set_parameters: empty dict", parameters(lambda given: {}), ("parameters", "policy")),
    Case("set_parameters: one name too many", parameters(lambda given: {**given, "foo": {}}), ("foo",)),
    Case("set_parameters: a weight missing", parameters(with_policy(lambda p: dict(list(p.items())[1:]))), ("missing key",)),
    Case(
        "set_parameters: a weight of another shape",
        parameters(with_policy(lambda p: {**p, "value_net.bias": th.zeros(77)})),
        ("value_net.bias",),
    ),
    Case(
        "set_parameters: NaN",
        parameters(with_policy(lambda p: {name: v * NAN if v.is_floating_point() else v for name, v in p.items()})),
        ("parameters", "policy", "weights"),
    ),
    Case(
        "set_parameters: arrays", parameters(with_policy(lambda p: {k: v.numpy() for k, v in p.items()})), ("tensor", "Tensor")
    ),
    Case("set_env: another observation space", lambda a, f: train(a).set_env(OddEnv(box(5))), ("spaces", "space")),
    Case("set_env: a number", lambda a, f: train(a).set_env(5), ("environment", "env")),
    Case("set_env: None", lambda a, f: train(a).set_env(None), ("environment", "env")),
    Case(
        "set_env: more environments",
        lambda a, f: train(a).set_env(make_vec_env("CartPole-v1", 3)),
        ("environments", "num_envs"),
    ),
    Case("save: a number", lambda a, f: train(a).save(5.5), FILE),
    Case("save: a file as folder", lambda a, f: train(a).save(saved(a, f) / "model"), (*FILE, "directory")),
    Case("save: exclude=5", lambda a, f: train(a).save(f / "model", exclude=5), ("exclude",)),
]
