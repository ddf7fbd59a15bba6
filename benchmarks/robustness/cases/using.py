"""List what ``predict``, ``learn`` and the attributes of a model cannot be given."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback

from benchmarks.robustness.cases.case import INF, NAN, OBS, Algorithm, Case, dict_tasks, make, train
from benchmarks.robustness.cases.odd_envs import OddEnv, box


def predicting(name: str, obs: Any, words: tuple[str, ...] = OBS, fine: bool | None = False, env: Any = "CartPole-v1") -> Case:
    """
    Return the case of an observation that ``predict`` is called with.

    :param name: name of the case after "predict: "
    :param obs: observation
    :param words: see :class:`Case`
    :param fine: see :class:`Case`
    :param env: registered name of the environment, or a function that makes one with a dict as observation
    """

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
    Return the case of an argument of ``learn``.

    :param name: name of the case after "learn: "
    :param words: see :class:`Case`
    :param fine: see :class:`Case`
    :param given: arguments of ``learn``
    """
    return Case(f"learn: {name}", lambda a, f: make(a).learn(**{"total_timesteps": 96, **given}), words, fine)


class OddCallback(BaseCallback):
    """Callback whose ``_on_step`` returns nothing."""

    def _on_step(self) -> Any:
        return None


def watched(make_callback: Callable[[Path], Any], name: str, *words: str) -> Case:
    """
    Return the case of a callback.

    :param make_callback: makes the callback, of a folder
    :param name: name of the case after "learn: "
    :param words: see :class:`Case`
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
    Return the case of an attribute that is set between two calls of ``learn``.

    :param name: name of the attribute
    :param value: its value
    :param fine: see :class:`Case`
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

CASES = [*PREDICTING, *LEARN, *ASSIGNED]
