"""Hold the settings that speed and cost are measured in, and a clock for methods."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from benchmarks.lib.hyperparams import CARTPOLE

N_ITERATIONS = "n_iterations"  # per measurement
N_ENVS = "n_envs"


def fake_image_env() -> FakeImageEnv:
    """Return an environment of 84 x 84 images in four channels, as Atari's wrappers give them, whose own cost is small."""
    return FakeImageEnv(action_dim=6, screen_height=84, screen_width=84, n_channels=4)


# all entries but the policy, the environment, and the numbers of environments and iterations are arguments of PPO
SETTINGS: dict[str, dict[str, Any]] = {
    # PPO's defaults, but for shorter rollouts: the same minibatches, fewer of them
    "cartpole": {"env": "CartPole-v1", N_ENVS: 8, N_ITERATIONS: 1, "n_steps": 512},
    "cartpole_zoo": {"env": "CartPole-v1", N_ENVS: 8, N_ITERATIONS: 8, **CARTPOLE},
    "halfcheetah": {  # RL Zoo's sizes
        "env": "HalfCheetah-v5",
        N_ENVS: 1,
        N_ITERATIONS: 2,
        "n_steps": 512,
        "batch_size": 64,
        "n_epochs": 20,
        "policy_kwargs": {"net_arch": {"pi": [256, 256], "vf": [256, 256]}},
    },
    "images": {
        "policy": "CnnPolicy",
        "env": fake_image_env,
        N_ENVS: 8,
        N_ITERATIONS: 1,
        "n_steps": 32,
        "batch_size": 64,
        "n_epochs": 4,
    },
}


def make_model(constructor: Callable[..., OnPolicyAlgorithm], setting: dict[str, Any]) -> OnPolicyAlgorithm:
    """
    Return a model with its environments.

    :param constructor: PPO, or one with the same arguments
    :param setting: a value of :data:`SETTINGS`
    """
    kwargs = {name: value for name, value in setting.items() if name not in ("policy", "env", N_ENVS, N_ITERATIONS)}
    env = make_vec_env(setting["env"], setting[N_ENVS], seed=0)
    return constructor(setting.get("policy", "MlpPolicy"), env, seed=0, device="cpu", **kwargs)


class Clock:
    """
    Add up the seconds that methods take.

    :param owner: object with the methods, which are replaced
    :param names: names of the methods
    """

    def __init__(self, owner: Any, names: Sequence[str] = ("collect_rollouts", "train")):
        self.seconds = dict.fromkeys(names, 0.0)
        for name in names:
            setattr(owner, name, self._timed(name, getattr(owner, name)))

    def reset(self) -> None:
        """Set all seconds to 0."""
        self.seconds = dict.fromkeys(self.seconds, 0.0)

    def _timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = method(*args, **kwargs)
            self.seconds[name] += time.perf_counter() - start
            return result

        return timed
