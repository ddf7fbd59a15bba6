"""List environments in which something is wrong."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from benchmarks.robustness.cases.case import INF, NAN, OBS, Case, train
from benchmarks.robustness.cases.odd_envs import OddEnv, box, full


def odd_env(name: str, *words: str, fine: bool | None = False, policy: str = "MlpPolicy", **odd: Any) -> Case:
    """
    Return the case of an environment.

    :param name: name of the case after "environment: "
    :param words: see :class:`Case`
    :param fine: see :class:`Case`
    :param policy: name of the policy
    :param odd: arguments of :class:`OddEnv`
    """
    return Case(f"environment: {name}", lambda algorithm, folder: train(algorithm, OddEnv(**odd), policy), words, fine)


def normalized(env: gym.Env[Any, Any]) -> VecNormalize:
    """
    Return an environment with normalised observations and rewards.

    :param env: environment
    """
    return VecNormalize(DummyVecEnv([lambda: env]))


IMAGE = spaces.Box(0, 255, (36, 36, 3), np.uint8)
DICT = spaces.Dict({"a": box(2), "b": box(3)})
SPACE, REWARD = ("space",), ("reward", "rewards")
CASES = [
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
