"""
Bad input of every kind that users give, and some that only looks bad: what PPO and GRPO make of it.

A case builds, trains, loads or asks a model in a few lines. ``robustness.py`` runs them and makes the table. The outcome
is found by rule, not by opinion:

- clear: an error of a kind that speaks of input (:data:`INPUT_ERRORS`) whose message holds one of the case's words, by
  default the name of the argument
- obscure: any other error
- silent: no error, although what was given has no sensible meaning; also where weights are NaN afterwards, and where the
  call has not ended after ``TIME_LIMIT`` seconds
- fine: it only looks bad, and works; refused: it only looks bad, and ends in an error
"""

import contextlib
import io
import math
import re
import signal
import tempfile
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_grpo import GroupEvalCallback, RegroupCallback, TaskSamplingCallback, evaluate_groups, plot_regrouping
from sb3_grpo.envs.cartpole import TaskCartPole

TIME_LIMIT = 20.0  # seconds for one case
INPUT_ERRORS = (ValueError, TypeError, AssertionError, RuntimeError, OSError, ImportError, gym.error.Error)

OPTIONS: dict[str, Any] = dict(n_steps=32, batch_size=16, n_epochs=2, seed=0, device="cpu")
ONE_HOT: dict[str, Any] = dict(router="one_hot", router_kwargs=dict(columns=(4, 8)))
DISCRETE: dict[str, Any] = dict(router="discrete", router_kwargs=dict(key="task"))

Algorithm = Any  # type[PPO] or its subclass
Action = Callable[[Algorithm, Path], Any]


class Case(NamedTuple):
    """One kind of bad input."""

    name: str
    act: Action  # called with the algorithm and an empty folder; a model that it returns is looked at
    words: tuple[str, ...]  # one of them is in a clear message
    fine: bool | None = False  # whether it only looks bad; None: to train with it and to refuse it are both right
    own: bool = False  # whether PPO does not have it


def outcome_of(case: Case, algorithm: Algorithm) -> dict[str, Any]:
    """
    :return: ``outcome``, ``error`` and its ``message``, both empty without one, and ``where`` the error was raised
    """
    try:
        with limited(TIME_LIMIT), silenced(), tempfile.TemporaryDirectory() as folder:
            result = case.act(algorithm, Path(folder))
    except TimeLimitError:
        return {"outcome": "silent", "error": "", "where": "", "message": f"not over after {TIME_LIMIT:g} seconds"}
    except Exception as error:  # any: this is what is measured
        message = " ".join(str(error).split())
        found = any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message, re.IGNORECASE) for word in case.words)
        clear = isinstance(error, INPUT_ERRORS) and found
        outcome = "refused" if case.fine else "clear" if clear else "obscure"
        where = traceback.extract_tb(error.__traceback__)[-1].filename
        return {"outcome": outcome, "error": type(error).__name__, "message": message[:200], "where": module_path(where)}
    if isinstance(result, BaseAlgorithm) and not all(value.isfinite().all() for value in result.policy.parameters()):
        return {"outcome": "silent", "error": "", "where": "", "message": "weights are NaN or infinite"}
    return {"outcome": "silent" if case.fine is False else "fine", "error": "", "where": "", "message": ""}


def module_path(file: str) -> str:
    """
    :return: the last two parts of the path, without those of this machine
    """
    return "/".join(Path(file).parts[-2:])


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """A context in which nothing is printed and no warning shown."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


class TimeLimitError(BaseException):
    """Not an ``Exception``, which the code that is tried might catch."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """A context that ends in a :class:`TimeLimitError` after so many seconds; in the main thread only."""

    def stop(signum: int, frame: types.FrameType | None) -> None:
        raise TimeLimitError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def make(algorithm: Algorithm, env: Any = "CartPole-v1", policy: Any = "MlpPolicy", **kwargs: Any) -> Any:
    """
    :return: a small model
    """
    return algorithm(policy, env, **{**OPTIONS, **kwargs})


def train(algorithm: Algorithm, env: Any = "CartPole-v1", policy: Any = "MlpPolicy", **kwargs: Any) -> Any:
    """
    :return: a small model, after three rollouts
    """
    return make(algorithm, env, policy, **kwargs).learn(96)


def tasks(**kwargs: Any) -> Any:
    return TaskCartPole(**kwargs)


def dict_tasks() -> Any:
    return TaskCartPole(task_observation="dict")


class OddEnv(gym.Env[Any, Any]):
    """
    Episodes of 8 steps in which something is odd from step ``after`` on.

    :param obs: observations from then on; ``None``: drawn from the space
    :param reward: rewards from then on
    :param result: what ``step`` returns from then on
    :param first: what ``reset`` returns
    """

    def __init__(
        self,
        observation_space: Any = None,
        action_space: Any = None,
        obs: Callable[[], Any] | None = None,
        reward: Any = 1.0,
        result: Callable[[Any], Any] | None = None,
        first: Callable[[Any], Any] | None = None,
        after: int = 40,
    ):
        self.observation_space = observation_space or spaces.Box(-1, 1, (4,), np.float32)
        self.action_space = action_space or spaces.Discrete(2)
        self.observation_space.seed(0)
        self.obs, self.reward, self.result, self.first, self.after = obs, reward, result, first, after
        self.time = 0

    def _observe(self) -> Any:
        return self.obs() if self.obs is not None and self.time >= self.after else self.observation_space.sample()

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        obs = self._observe()
        return (obs, {}) if self.first is None else self.first(obs)

    def step(self, action: Any) -> Any:
        self.time += 1
        obs, odd = self._observe(), self.time >= self.after
        if odd and self.result is not None:
            return self.result(obs)
        return obs, self.reward if odd else 1.0, self.time % 8 == 0, False, {}


class BrokenOneHot(OddEnv):
    """The columns 4 to 8 are a one-hot block, later ``block``."""

    def __init__(self, block: list[float], after: int = 40):
        super().__init__(spaces.Box(-10, 10, (8,), np.float32), after=after)
        self.block = np.array(block)

    def _observe(self) -> Any:
        block = self.block if self.time >= self.after else np.eye(4)[self.time // 8 % 4]
        return np.concatenate([self.observation_space.sample()[:4], block]).astype(np.float32)


def argument(
    name: str, value: Any, fine: bool | None = False, own: bool = False, env: Any = "CartPole-v1", **others: Any
) -> Case:
    """
    :return: the case of one argument of the constructor
    """

    def act(algorithm: Algorithm, folder: Path) -> Any:
        made = env() if isinstance(env, types.FunctionType) else env
        return train(algorithm, made, **{**others, name: value})

    return Case(f"{name}={shown(value)}", act, (name, name.replace("_", " ")), fine, own)


def shown(value: Any) -> str:
    """
    :return: the value as the name of a case has it, the same in every process: functions of this file say what they are
    """
    if isinstance(value, types.FunctionType):
        return value.__doc__ or value.__name__
    return value.__name__ if callable(value) else repr(value)


def function(returns: Any) -> Callable[[float], Any]:
    def schedule(progress: float) -> Any:
        return returns if progress < 1 else 3e-4

    schedule.__doc__ = f"a function that returns {returns!r} later"
    return schedule


def without_arguments() -> Any:
    """a function without arguments"""
    return 1e-3


def arguments(values: dict[str, list[Any]], **others: Any) -> list[Case]:
    return [argument(name, value, **others) for name, several in values.items() for value in several]


NAN, INF = math.nan, math.inf
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


def policy_kwargs_case(kwargs: dict[str, Any], *words: str, env: Any = "CartPole-v1") -> Case:
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
    :return: the case of a model that is built with these arguments and trained; functions of no arguments among the first
        two are called
    """

    def act(algorithm: Algorithm, folder: Path) -> Any:
        made = [value() if isinstance(value, types.FunctionType) else value for value in args]
        return train(algorithm, *made, **kwargs)

    return Case(name, act, words, fine)


class NoSpaces:
    """What lacks everything that an environment has."""


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


def odd_env(name: str, *words: str, fine: bool | None = False, policy: str = "MlpPolicy", **odd: Any) -> Case:
    """
    :return: the case of an environment, see :class:`OddEnv`
    """
    return Case(f"environment: {name}", lambda algorithm, folder: train(algorithm, OddEnv(**odd), policy), words, fine)


def box(*shape: int, low: float = -1.0, high: float = 1.0) -> spaces.Box:
    return spaces.Box(low, high, shape, np.float32)


def full(value: float, *shape: int) -> Callable[[], np.ndarray]:
    return lambda: np.full(shape or (4,), value, np.float32)


IMAGE = spaces.Box(0, 255, (36, 36, 3), np.uint8)
DICT = spaces.Dict({"a": box(2), "b": box(3)})
SPACE, REWARD, OBS = ("space",), ("reward", "rewards"), ("observation", "observations", "obs")
ENVIRONMENTS = [
    odd_env("Tuple observations", *SPACE, observation_space=spaces.Tuple([box(2), box(2)])),
    odd_env("Text observations", *SPACE, observation_space=spaces.Text(5)),
    odd_env("Sequence observations", *SPACE, observation_space=spaces.Sequence(box(2))),
    odd_env(
        "nested Dict observations",
        "nested",
        policy="MultiInputPolicy",
        observation_space=spaces.Dict({"a": spaces.Dict({"b": box(2)})}),
    ),
    odd_env("empty observations", *SPACE, "observation", observation_space=box(0)),
    odd_env("Dict actions", *SPACE, "action spaces", action_space=spaces.Dict({"a": box(2)})),
    odd_env("Tuple actions", *SPACE, "action spaces", action_space=spaces.Tuple([box(2)])),
    odd_env("actions without bounds", "bound", action_space=box(2, low=-INF, high=INF)),
    odd_env("no actions", *SPACE, "action", "actions", action_space=box(0)),
    odd_env("Discrete actions from 1", "start", "start=1", action_space=spaces.Discrete(3, start=1)),
    odd_env("Discrete observations from 1", "start", "start=1", observation_space=spaces.Discrete(3, start=1)),
    odd_env("one action", fine=True, action_space=spaces.Discrete(1)),
    odd_env("number as observation", *OBS, observation_space=box()),
    odd_env("observations of another length", *OBS, "shape", obs=full(0.0, 5), after=20),
    odd_env("observations with another dimension", *OBS, "shape", obs=full(0.0, 4, 1), after=20),
    odd_env("first observation of another length", *OBS, "shape", obs=full(0.0, 3), after=0),
    odd_env("observation None", *OBS, obs=lambda: None, after=20),
    odd_env("observation a string", *OBS, obs=lambda: "left", after=20),
    odd_env("observation a list", fine=True, obs=lambda: [0.0, 0.0, 0.0, 0.0], after=20),
    odd_env("observations of float64", fine=True, obs=lambda: np.zeros(4), after=20),
    odd_env("observations outside of the space", fine=True, obs=full(5.0), after=20),
    odd_env("observation NaN", *OBS, obs=full(NAN)),
    odd_env("observation infinite", *OBS, obs=full(INF)),
    odd_env("first observation NaN", *OBS, obs=full(NAN), after=0),
    odd_env("observation 1e38", *OBS, "value", "values", "loss", fine=None, obs=full(1e38)),
    odd_env("Discrete observation outside", *OBS, observation_space=spaces.Discrete(3), obs=lambda: 7),
    odd_env("Discrete observation negative", *OBS, observation_space=spaces.Discrete(3), obs=lambda: -1),
    odd_env("Discrete observation 1.5", *OBS, observation_space=spaces.Discrete(3), obs=lambda: 1.5),
    odd_env(
        "MultiDiscrete observation outside",
        *OBS,
        observation_space=spaces.MultiDiscrete([2, 3]),
        obs=lambda: np.array([5, 5]),
    ),
    odd_env("Dict without a key", "b", policy="MultiInputPolicy", observation_space=DICT, obs=lambda: {"a": np.zeros(2)}),
    odd_env(
        "Dict with one more key",
        fine=True,
        policy="MultiInputPolicy",
        observation_space=DICT,
        obs=lambda: {**DICT.sample(), "c": 0},
    ),
    odd_env(
        "Dict with an entry of another shape",
        *OBS,
        "shape",
        policy="MultiInputPolicy",
        observation_space=DICT,
        obs=lambda: {"a": np.zeros(3), "b": np.zeros(3)},
    ),
    odd_env(
        "Dict with NaN",
        *OBS,
        policy="MultiInputPolicy",
        observation_space=DICT,
        obs=lambda: {"a": np.full(2, NAN), "b": np.zeros(3)},
    ),
    odd_env(
        "images too small for the CNN",
        "kernel size",
        "image",
        "NatureCNN",
        policy="CnnPolicy",
        observation_space=spaces.Box(0, 255, (8, 8, 3), np.uint8),
    ),
    odd_env("images of floats", "images", "image", policy="CnnPolicy", observation_space=box(36, 36, 3)),
    odd_env(
        "images of another size",
        *OBS,
        "shape",
        policy="CnnPolicy",
        observation_space=IMAGE,
        obs=lambda: np.zeros((20, 20, 3), np.uint8),
        after=20,
    ),
    odd_env("reward NaN", *REWARD, reward=NAN),
    odd_env("reward infinite", *REWARD, reward=INF),
    odd_env("reward None", *REWARD, reward=None),
    odd_env("reward a string", *REWARD, reward="much"),
    odd_env("reward an array of two", *REWARD, reward=np.ones(2)),
    odd_env("reward an array of one", *REWARD, fine=None, reward=np.ones(1)),
    odd_env("reward 1e30", *REWARD, "loss", "gradient", "gradients", fine=None, reward=1e30),
    odd_env("reward complex", *REWARD, reward=1j),
    odd_env("step returns four values", "unpack", "step", result=lambda obs: (obs, 1.0, False, {})),
    odd_env("step returns None", "step", "unpack", result=lambda obs: None),
    odd_env("info None", "info", result=lambda obs: (obs, 1.0, False, False, None)),
    odd_env("info a list", "info", result=lambda obs: (obs, 1.0, False, False, [])),
    odd_env("terminated None", "terminated", "done", result=lambda obs: (obs, 1.0, None, False, {})),
    odd_env("terminated a string", "terminated", "done", result=lambda obs: (obs, 1.0, "no", False, {})),
    odd_env("reset returns the observation only", "reset", "unpack", first=lambda obs: obs),
    odd_env("reset returns None", "reset", "unpack", first=lambda obs: None),
    odd_env("episodes of one step", fine=True, result=lambda obs: (obs, 1.0, True, False, {}), after=0),
    odd_env("episodes without an end", fine=True, result=lambda obs: (obs, 1.0, False, False, {}), after=0),
    odd_env("rewards of 0", fine=True, reward=0.0, after=0),
    odd_env("the same observation always", fine=True, obs=full(0.5), after=0),
    Case("environment: VecNormalize, NaN reward", lambda a, f: train(a, normalized(OddEnv(reward=NAN))), REWARD),
    Case("environment: VecNormalize, NaN observation", lambda a, f: train(a, normalized(OddEnv(obs=full(NAN)))), OBS),
]


def normalized(env: gym.Env[Any, Any]) -> VecNormalize:
    return VecNormalize(DummyVecEnv([lambda: env]))


def saved(algorithm: Algorithm, folder: Path, *args: Any, **kwargs: Any) -> Path:
    """
    :return: file of a model that was trained
    """
    train(algorithm, *args, **kwargs).save(folder / "model.zip")
    return folder / "model.zip"


def loading(name: str, words: tuple[str, ...], fine: bool | None = False, env: Any = "CartPole-v1", **given: Any) -> Case:
    """
    :return: the case of a model that is loaded with other arguments, and trained
    """

    def act(algorithm: Algorithm, folder: Path) -> Any:
        made = given.get("env", env)
        made = made() if callable(made) else gym.make(made)
        return algorithm.load(saved(algorithm, folder), **{**given, "env": made}).learn(96)

    return Case(f"load: {name}", act, words, fine)


def corrupt(change: Callable[[bytes], bytes]) -> Action:
    """
    :return: an action that loads a file after its bytes were changed
    """

    def act(algorithm: Algorithm, folder: Path) -> Any:
        path = saved(algorithm, folder)
        path.write_bytes(change(path.read_bytes()))
        return algorithm.load(path)

    return act


def other_file(algorithm: Algorithm, folder: Path) -> Any:
    A2C("MlpPolicy", "CartPole-v1", n_steps=8, device="cpu").save(folder / "a2c.zip")
    return algorithm.load(folder / "a2c.zip", env=gym.make("CartPole-v1")).learn(96)


def parameters(change: Callable[[dict[str, Any]], Any], exact: bool = True) -> Action:
    """
    :return: an action that gives a model its own parameters after a change
    """

    def act(algorithm: Algorithm, folder: Path) -> Any:
        model = train(algorithm)
        model.set_parameters(change(model.get_parameters()), exact_match=exact)
        return model.learn(96)

    return act


def with_policy(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[dict[str, Any]], Any]:
    return lambda given: {**given, "policy": change(dict(given["policy"]))}


FILE = ("file", "zip", "path", "model.zip", "archive")
LOADING = [
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


def predicting(name: str, obs: Any, words: tuple[str, ...] = OBS, fine: bool | None = False, env: Any = "CartPole-v1") -> Case:
    def act(algorithm: Algorithm, folder: Path) -> Any:
        made, policy = (env(), "MultiInputPolicy") if callable(env) else (env, "MlpPolicy")
        return make(algorithm, made, policy).predict(obs)

    return Case(f"predict: {name}", act, words, fine)


PREDICTING = [
    predicting("another length", np.zeros(5)),
    predicting("a matrix of another width", np.zeros((2, 5))),
    predicting("three dimensions", np.zeros((1, 2, 4))),
    predicting("None", None),
    predicting("a string", "left"),
    predicting("NaN", np.full(4, NAN)),
    predicting("one NaN in a batch", np.array([[0.0] * 4, [NAN] * 4])),
    predicting("infinite", np.full(4, INF)),
    predicting("a dict", {"obs": np.zeros(4)}),
    predicting("what reset returns", (np.zeros(4), {}), (*OBS, "tuple")),
    predicting("a list", [0.0, 0.0, 0.0, 0.0], fine=True),
    predicting("integers", np.zeros(4, int), fine=True),
    predicting("a vector where a dict is needed", np.zeros(4), env=dict_tasks),
    predicting("a dict without a key", {"obs": np.zeros(4, np.float32)}, (*OBS, "task"), env=dict_tasks),
]


def learning(name: str, words: tuple[str, ...], fine: bool | None = False, **given: Any) -> Case:
    """
    :return: the case of an argument of ``learn``
    """
    return Case(f"learn: {name}", lambda a, f: make(a).learn(**{"total_timesteps": 96, **given}), words, fine)


class OddCallback(BaseCallback):
    """Without ``_on_step``'s answer."""

    def _on_step(self) -> Any:
        return None


def watched(make_callback: Callable[[Path], Any], name: str, *words: str) -> Case:
    """
    :return: the case of a callback
    """
    return Case(f"learn: {name}", lambda a, f: make(a).learn(96, callback=make_callback(f)), words)


LEARN = [
    learning("total_timesteps='96'", ("total_timesteps",), total_timesteps="96"),
    learning("total_timesteps=None", ("total_timesteps",), total_timesteps=None),
    learning("total_timesteps=nan", ("total_timesteps",), total_timesteps=NAN),
    learning("total_timesteps=-1", ("total_timesteps",), total_timesteps=-1),
    learning("total_timesteps=1e2", (), fine=True, total_timesteps=1e2),
    learning("callback=5", ("callback",), callback=5),
    learning("callback='x'", ("callback",), callback="x"),
    learning("callback=[5]", ("callback",), callback=[5]),
    learning("callback: a class", ("callback", "OddCallback"), callback=OddCallback),
    learning("callback without an answer", ("callback", "_on_step"), callback=OddCallback()),
    learning("callback: a function of one argument", ("argument", "arguments", "callback"), callback=lambda only: True),
    learning("log_interval=0", ("log_interval",), log_interval=0),
    learning("log_interval='1'", ("log_interval",), log_interval="1"),
    learning("log_interval=None", (), fine=True, log_interval=None),
    learning("reset_num_timesteps='no'", ("reset_num_timesteps",), reset_num_timesteps="no"),
    learning("unknown argument", ("eval_freq",), eval_freq=5),
    watched(lambda f: CheckpointCallback(0, str(f)), "CheckpointCallback(save_freq=0)", "save_freq"),
    watched(lambda f: CheckpointCallback("8", str(f)), "CheckpointCallback(save_freq='8')", "save_freq"),  # type: ignore[arg-type]  # what is tried
    watched(lambda f: EvalCallback(OddEnv(box(5)), eval_freq=32), "EvalCallback, another space", "space", "spaces", *OBS),
    watched(lambda f: EvalCallback(OddEnv(), eval_freq=32, n_eval_episodes=0), "EvalCallback, no episodes", "n_eval_episodes"),
]


def assigned(name: str, value: Any, fine: bool | None = False) -> Case:
    """
    :return: the case of an attribute that is set between two calls of ``learn``
    """

    def act(algorithm: Algorithm, folder: Path) -> Any:
        model = train(algorithm)
        setattr(model, name, value)
        return model.learn(96)

    return Case(f"assigned: {name}={value!r}", act, (name,), fine)


ASSIGNED = [
    assigned("batch_size", 0),
    assigned("batch_size", "16"),
    assigned("n_epochs", 0),
    assigned("n_epochs", 2.5),
    assigned("n_steps", 64, fine=None),
    assigned("n_steps", "32"),
    assigned("clip_range", 0.1, fine=None),
    assigned("clip_range_vf", -1.0),
    assigned("ent_coef", NAN),
    assigned("vf_coef", "x"),
    assigned("max_grad_norm", NAN),
    assigned("target_kl", "x"),
    assigned("normalize_advantage", "yes"),
]

SHARED = [
    *arguments(BAD_ARGUMENTS),
    *arguments(LOOKS_BAD, fine=True),
    *POLICY_KWARGS,
    *CONSTRUCTOR,
    *ENVIRONMENTS,
    *LOADING,
    *PREDICTING,
    *LEARN,
    *ASSIGNED,
]


# ---- what only GRPO has


def own(name: str, act: Action, *words: str, fine: bool | None = False) -> Case:
    return Case(name, act, words, fine, own=True)


def routed(name: str, router: Callable[..., Any], *words: str, fine: bool | None = False) -> Case:
    """
    :return: the case of a function as router, of 4 cells
    """

    def act(algorithm: Algorithm, folder: Path) -> Any:
        return train(algorithm, tasks(), router=router, router_kwargs=dict(n_cells=4))

    return own(f"router function: {name}", act, *(words or ("router", "cells")), fine=fine)


def cells_of(obs: th.Tensor) -> th.Tensor:
    return obs[:, 4:].argmax(dim=1)


def changes_observations(obs: th.Tensor) -> th.Tensor:
    cells = cells_of(obs)
    obs[:, 0] = 0
    return cells


class Later:
    """
    A router that is right at first.

    :param odd: what it does after 40 calls
    """

    def __init__(self, odd: Callable[[th.Tensor], Any]):
        self.odd, self.n_calls = odd, 0

    def __call__(self, obs: th.Tensor) -> Any:
        self.n_calls += 1
        return self.odd(obs) if self.n_calls > 40 else cells_of(obs)


def raises(obs: th.Tensor) -> Any:
    raise ValueError("no cell for this")


ROUTERS = [
    routed("None", lambda obs: None),
    routed("a string", lambda obs: "left"),
    routed("strings", lambda obs: ["left"] * len(obs)),
    routed("floats", lambda obs: cells_of(obs).float()),
    routed("NaN", lambda obs: th.full((len(obs),), NAN)),
    routed("complex numbers", lambda obs: cells_of(obs).to(th.complex64)),
    routed("booleans", lambda obs: cells_of(obs) > 1, fine=None),
    routed("a column", lambda obs: cells_of(obs).unsqueeze(1)),
    routed("a number", lambda obs: 0),
    routed("one too many", lambda obs: th.zeros(len(obs) + 1, dtype=th.long)),
    routed("none at all", lambda obs: th.zeros(0, dtype=th.long)),
    routed("outside", lambda obs: cells_of(obs) + 4),
    routed("negative", lambda obs: cells_of(obs) - 4),
    routed("the observations", lambda obs: obs),
    routed("a dict", lambda obs: {"cells": cells_of(obs)}),
    routed("random", lambda obs: th.randint(4, (len(obs),))),
    routed("changes observations", changes_observations),
    routed("an error", raises, "no cell for this"),
    routed("no argument", without_arguments, "argument", "arguments", "router"),
    routed("later None", Later(lambda obs: None)),
    routed("later outside", Later(lambda obs: cells_of(obs) + 4)),
    routed("later floats", Later(lambda obs: cells_of(obs) + 0.5)),
    routed("later random", Later(lambda obs: th.randint(4, (len(obs),)))),
    routed("a list", lambda obs: cells_of(obs).tolist(), fine=True),
    routed("an array", lambda obs: cells_of(obs).numpy(), fine=True),
    routed("integers of 32 bits", lambda obs: cells_of(obs).int(), fine=True),
]

OWN_ARGUMENTS: dict[str, list[Any]] = dict(
    n_groups=[0, -1, 2.0, "2", NAN, True, [2]],
    max_groups=[0, -1, 4.0, "4", NAN, True, [4]],
    router=["nearest", None, 5, "", ["random"], "One_Hot"],
    router_kwargs=["dict(n_cells=4)", [4], 5],
    group_coef=[-0.1, NAN, INF, "lin", "lin_", "lin_x", "exp_0.1", "lin_-0.1", None, True, [0.1]],
    group_score=["returns", None, True, 1],
    group_scale=["rnage", None, True, 1],
    merge_kl=[-0.1, NAN, INF, "0.1", True, [0.1], 0.3, 0.5],
    split_kl=[-0.1, NAN, INF, "0.3", True, [0.3]],
    regroup_freq=[0, -1, 1.5, "2", NAN, True],
    regroup_warmup=[-1, 1.5, "2", NAN, True],
    probe_kl_coef=[0, -1, NAN, INF, None, "0.05", True],
    compile=["yes", None],
    normalize_advantage=["groups", "task"],
)


def router_kwargs_case(
    router: str, kwargs: Any, *words: str, env: Callable[[], Any] = tasks, fine: bool | None = False
) -> Case:
    policy = "MultiInputPolicy" if env is not tasks else "MlpPolicy"
    return own(
        f"router={router!r}, router_kwargs={kwargs!r}",
        lambda a, f: train(a, env(), policy, router=router, router_kwargs=kwargs),
        *words,
        fine=fine,
    )


OTHER_ENTRY = spaces.Dict({"task": spaces.Discrete(3, start=1), "obs": box(2)})
ROUTER_KWARGS = [
    router_kwargs_case("random", dict(cells=3), "cells", "router_kwargs"),
    router_kwargs_case("random", dict(columns=(4, 8)), "columns", "router_kwargs"),
    *(router_kwargs_case("random", dict(n_cells=bad), "n_cells") for bad in (0, -1, 4.0, "4", None, NAN, True)),
    *(
        router_kwargs_case("one_hot", dict(columns=bad), "columns")
        for bad in ((4.0, 8.0), (4,), (8, 4), (4, 9), (4, 4), (-4, 8), "48", 4, None, (3, 7), (0, 4), (4, 6))
    ),
    router_kwargs_case("one_hot", None, "columns"),
    router_kwargs_case("one_hot", dict(columns=(4, 8), hide="no"), "hide"),
    router_kwargs_case("one_hot", dict(columns=(0, 8), hide=True), "hide", "columns"),
    router_kwargs_case("one_hot", dict(columns=[4, 8]), fine=True),
    router_kwargs_case("one_hot", dict(columns=(4, 8)), "Box", env=dict_tasks),
    *(router_kwargs_case("discrete", dict(key=bad), "key", env=dict_tasks) for bad in ("job", "obs", None, 5, ["task"])),
    router_kwargs_case("discrete", None, "key", env=dict_tasks),
    router_kwargs_case("discrete", dict(key="task"), "Dict"),
    own(
        "router='discrete', values from 1",
        lambda a, f: train(a, OddEnv(OTHER_ENTRY), "MultiInputPolicy", **DISCRETE),
        "start",
        "starts",
    ),
    own("router: a function without n_cells", lambda a, f: train(a, tasks(), router=cells_of), "n_cells"),
    own("router: a function of the environment's class", lambda a, f: train(a, tasks(), router=dict), "n_cells", "router"),
]


def loading_tasks(name: str, words: tuple[str, ...], fine: bool | None = False, **given: Any) -> Case:
    """
    :return: the case of a model of four tasks that is loaded with other arguments, and trained
    """

    def act(algorithm: Algorithm, folder: Path) -> Any:
        path = saved(algorithm, folder, tasks(), **ONE_HOT)
        return algorithm.load(path, env=tasks(), **given).learn(96, reset_num_timesteps=False)

    return own(f"load: {name}", act, *words, fine=fine)


OWN_LOADING = [
    loading_tasks("normalize_advantage='groups'", ("normalize_advantage",), normalize_advantage="groups"),
    loading_tasks("group_score='returns'", ("group_score",), group_score="returns"),
    loading_tasks("group_scale='rnage'", ("group_scale",), group_scale="rnage"),
    loading_tasks("columns moved", ("columns",), router_kwargs=dict(columns=(3, 7))),
    loading_tasks("columns fewer", ("columns", "n_cells"), router_kwargs=dict(columns=(4, 7))),
    loading_tasks("hide changed", ("hide",), router_kwargs=dict(columns=(4, 8), hide=True)),
    loading_tasks("n_groups=2", ("n_groups",), n_groups=2),
    loading_tasks("n_groups=4.0", ("n_groups",), n_groups=4.0),
    loading_tasks("max_groups=9", ("max_groups",), max_groups=9),
    loading_tasks("router='random'", ("router",), router="random", router_kwargs=None),
    loading_tasks("router: a function", ("router",), router=cells_of, router_kwargs=dict(n_cells=4)),
    loading_tasks("group_coef=-1", ("group_coef",), group_coef=-1),
    loading_tasks("group_coef='x'", ("group_coef",), group_coef="x"),
    loading_tasks("merge_kl='0.1'", ("merge_kl",), merge_kl="0.1"),
    loading_tasks("merge_kl above split_kl", ("merge_kl",), merge_kl=0.5),
    loading_tasks("probe_kl_coef=None", ("probe_kl_coef",), probe_kl_coef=None),
    loading_tasks("regroup_freq='2'", ("regroup_freq",), regroup_freq="2"),
    loading_tasks("compile='no'", ("compile",), compile="no"),
    loading_tasks("policy_kwargs=dict(n_groups=4)", ("policy_kwargs", "n_groups"), policy_kwargs=dict(n_groups=4)),
    loading_tasks("merge_kl=0.2", (), fine=True, merge_kl=0.2),
    own("load: a file of PPO", lambda a, f: a.load(saved(PPO, f), env=gym.make("CartPole-v1")).learn(96), "PPO"),
    own("set_parameters: a file of PPO", lambda a, f: make(a).set_parameters(saved(PPO, f)), "PPO", fine=None),
    own(
        "load_state_dict: PPO's",
        lambda a, f: make(a).policy.load_state_dict(make(PPO).policy.state_dict()),
        "PPO",
        fine=None,
    ),
    own(
        "a file of GRPO loaded as PPO",
        lambda a, f: PPO.load(saved(a, f), env=gym.make("CartPole-v1")).learn(96),
        "n_groups",
        "GRPO",
    ),
    own("policy of PPO", lambda a, f: train(a, policy=ActorCriticPolicy), "policy"),
    *(
        argument("policy_kwargs", {name: value}, own=True)
        for name, value in dict(n_groups=3, max_groups=3, router="random", router_kwargs=dict(n_cells=3), group_seed=1).items()
    ),
    own("n_groups=5 of 4 cells", lambda a, f: train(a, tasks(), n_groups=5, **ONE_HOT), "n_groups"),
    own("n_groups=5, max_groups=4", lambda a, f: train(a, n_groups=5, max_groups=4), "n_groups", "max_groups"),
]


def late_group_coef(returns: Any) -> Case:
    return argument("group_coef", function(returns), own=True)


def broken_block(name: str, block: list[float], after: int, *words: str) -> Case:
    """
    :return: the case of :class:`BrokenOneHot`
    """
    words = ("columns", "one-hot", *words)
    return own(f"one-hot block: {name}", lambda a, f: train(a, BrokenOneHot(block, after), **ONE_HOT), *words)


BROKEN_BLOCKS = {
    "all zeros": [0.0] * 4,
    "two ones": [1.0, 1.0, 0.0, 0.0],
    "halves": [0.5, 0.5, 0, 0],
    "another 1": [2.0, 0, 0, 0],
}
OWN_ENVIRONMENTS = [
    *(
        broken_block(f"{name} {when}", block, after)
        for name, block in BROKEN_BLOCKS.items()
        for when, after in {"at first": 0, "later": 40}.items()
    ),
    broken_block("NaN later", [NAN] * 4, 40, *OBS),
    own("TaskCartPole(tasks=[])", lambda a, f: train(a, tasks(tasks=[])), "tasks"),
    own("TaskCartPole, unknown name", lambda a, f: train(a, tasks(tasks=[{"lenght": 1.0}])), "lenght"),
    own("TaskCartPole(task=7)", lambda a, f: train(a, tasks(task=7)), "task"),
    own("TaskCartPole(task_observation='x')", lambda a, f: train(a, tasks(task_observation="x")), "task_observation"),
    own("set_task(9)", lambda a, f: tasks().set_task(9), "task"),
]


def with_callback(name: str, make_callback: Callable[[], Any], *words: str, fine: bool | None = False) -> Case:
    """
    :return: the case of a callback of this package, for four tasks
    """
    return own(f"callback: {name}", lambda a, f: make(a, tasks(), **ONE_HOT).learn(96, make_callback()), *words, fine=fine)


BAD_SAMPLING: dict[str, list[Any]] = dict(group_coef=[-1, NAN, "x", None], uniform_share=[0, 2, NAN, "x", None])
BAD_CRITERIA: list[Any] = ["median", None, 1]
CALLBACKS = [
    own("callback: RegroupCallback with PPO", lambda a, f: make(PPO).learn(96, RegroupCallback()), "RegroupCallback", "GRPO"),
    with_callback("RegroupCallback(figure_freq='x')", lambda: RegroupCallback(figure_freq="x"), "figure_freq"),  # type: ignore[arg-type]  # what is tried
    with_callback("RegroupCallback twice", lambda: [RegroupCallback(), RegroupCallback()], "RegroupCallback", fine=None),
    *(
        with_callback(f"TaskSamplingCallback({name}={bad!r})", partial(TaskSamplingCallback, **{name: bad}), name)
        for name, values in BAD_SAMPLING.items()
        for bad in values
    ),
    *(
        with_callback(f"GroupEvalCallback(best_by={bad!r})", partial(GroupEvalCallback, tasks(), best_by=bad), "best_by")
        for bad in BAD_CRITERIA
    ),
    own(
        "callback: TaskSamplingCallback without tasks",
        lambda a, f: make(a).learn(96, TaskSamplingCallback()),
        "get_task_probabilities",
    ),
    own("plot_regrouping with PPO", lambda a, f: plot_regrouping(train(PPO)), "GRPO"),
    own("plot_regrouping with one head", lambda a, f: plot_regrouping(train(a, n_groups=1)), "max_groups"),
    own("plot_regrouping: no such folder", lambda a, f: plot_regrouping(train(a), f / "none" / "x.png"), "none", "x.png"),
    own("evaluate_groups with PPO, no tasks", lambda a, f: evaluate_groups(train(PPO), OddEnv()), "task", "router"),
    own(
        "evaluate_groups, no episodes",
        lambda a, f: evaluate_groups(train(a, tasks(), **ONE_HOT), tasks(), 0),
        "n_eval_episodes",
    ),
]

OWN = [
    *arguments(OWN_ARGUMENTS, own=True),
    *map(late_group_coef, (None, NAN, "x", -1.0)),
    argument("group_coef", without_arguments, own=True),
    *ROUTER_KWARGS,
    *ROUTERS,
    *OWN_LOADING,
    *OWN_ENVIRONMENTS,
    *CALLBACKS,
]

CASES = {case.name: case for case in (*SHARED, *OWN)}
if len(CASES) != len(SHARED) + len(OWN):
    names = [case.name for case in (*SHARED, *OWN)]
    raise ValueError(f"every case must have a name of its own, got {sorted({n for n in names if names.count(n) > 1})} twice")
