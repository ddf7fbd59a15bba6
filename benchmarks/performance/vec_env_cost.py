"""
Measure what a step of 8 environments costs in each vectorised environment, in one process and in turns.

``python -m benchmarks.performance.vec_env_cost`` measures environments that sleep for a set time at each step in
``DummyVecEnv``, ``LeanVecEnv``, ``SubprocVecEnv`` and ``RayVecEnv``; and CartPole, a Dict environment and images in the first
two. ``--smoke FOLDER`` is a short run, whose file goes there.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from benchmarks.lib.rows import RESULTS
from sb3_grpo.vec_env.lean import LeanVecEnv
from sb3_grpo.vec_env.ray import RayVecEnv, import_ray

N_ENVS = 8
REPEATS = 9
SECONDS_PER_REPEAT = 0.3
MILLISECONDS = (0.0, 0.1, 1.0, 10.0, 100.0)
EPISODE = 200

IN_PROCESS: dict[str, tuple[Any, dict[str, Any]]] = {"DummyVecEnv": (DummyVecEnv, {}), "LeanVecEnv": (LeanVecEnv, {})}
ANYWHERE: dict[str, tuple[Any, dict[str, Any]]] = IN_PROCESS | {
    "SubprocVecEnv": (SubprocVecEnv, {}),
    "RayVecEnv, 8 actors of 1": (RayVecEnv, {"envs_per_actor": 1}),
    "RayVecEnv, 2 actors of 4": (RayVecEnv, {"envs_per_actor": 4}),
}


class Constant(gym.Env[Any, Any]):
    """
    Return the same observation at each step, after a sleep.

    :param observation_space: space from which the observation is drawn once
    """

    action_space = spaces.Discrete(2)

    def __init__(self, observation_space: spaces.Space[Any]):
        self.observation_space = observation_space
        self.observation, self.seconds, self.steps = observation_space.sample(), 0.0, 0

    def set_milliseconds(self, milliseconds: float) -> None:
        """
        Set how long a step sleeps.

        :param milliseconds: at least 0; 0 does not sleep at all
        """
        self.seconds = milliseconds / 1000

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.seconds:
            time.sleep(self.seconds)
        self.steps += 1
        return self.observation, 0.0, False, self.steps == EPISODE, {}


def sleeping_env() -> Constant:
    """Return an environment with four numbers as observation."""
    return Constant(spaces.Box(-1, 1, (4,), np.float32))


def dict_env() -> Constant:
    """Return an environment with a Dict of three small arrays."""
    box = spaces.Box(-1, 1, (8,), np.float32)
    return Constant(spaces.Dict(position=box, speed=box, task=spaces.Discrete(4)))


def image_env() -> Constant:
    """Return an environment of 84 x 84 images in four channels."""
    return Constant(spaces.Box(0, 255, (84, 84, 4), np.uint8))


CHEAP: dict[str, str | Callable[[], gym.Env[Any, Any]]] = {
    "CartPole-v1": "CartPole-v1",
    "Dict": dict_env,
    "84 x 84 x 4 images": image_env,
}


def make_all(env: Any, classes: dict[str, tuple[Any, dict[str, Any]]]) -> dict[str, VecEnv]:
    """
    Return a vectorised environment of each class, after its reset.

    :param env: id, or function that returns an environment
    :param classes: class and arguments by name
    """
    envs = {
        name: make_vec_env(env, N_ENVS, 0, vec_env_cls=cls, vec_env_kwargs=kwargs) for name, (cls, kwargs) in classes.items()
    }
    for vec_env in envs.values():
        vec_env.reset()
    return envs


def in_turns(envs: dict[str, VecEnv], n_steps: int, n_repeats: int) -> dict[str, list[float]]:
    """
    Return the microseconds per vector step of each environment in each repeat, after one that is not counted.

    :param envs: by name; they take turns
    :param n_steps: vector steps in a turn
    :param n_repeats: number of turns of each
    """
    actions = np.zeros(N_ENVS, int)
    rows: dict[str, list[float]] = {name: [] for name in envs}
    for _ in range(n_repeats + 1):
        for name, env in envs.items():
            start = time.perf_counter()
            for _ in range(n_steps):
                env.step(actions)
            rows[name].append(round(1e6 * (time.perf_counter() - start) / n_steps, 1))
    return {name: values[1:] for name, values in rows.items()}


def measure_sleeping(n_repeats: int, milliseconds: tuple[float, ...]) -> dict[str, dict[str, list[float]]]:
    """
    Return microseconds per vector step by the milliseconds that each environment sleeps.

    :param n_repeats: number of turns of each vectorised environment
    :param milliseconds: how long a step of one environment sleeps
    """
    ray = import_ray()
    ray.init(include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
    envs = make_all(sleeping_env, ANYWHERE)
    rows = {}
    for value in milliseconds:
        for env in envs.values():
            env.env_method("set_milliseconds", value)
        n_steps = max(2, int(SECONDS_PER_REPEAT / (N_ENVS * value / 1000 + 0.003)))
        rows[f"{value:g}"] = in_turns(envs, n_steps, n_repeats)
    for env in envs.values():
        env.close()
    ray.shutdown()
    return rows


def print_table(title: str, rows: dict[str, dict[str, list[float]]]) -> None:
    """
    Print the medians, and in brackets how many times faster than ``DummyVecEnv`` they are.

    :param title: of the table
    :param rows: microseconds of each repeat by environment and class
    """
    medians = {env: {name: statistics.median(values) for name, values in by_class.items()} for env, by_class in rows.items()}
    table = Table("environment", *next(iter(medians.values())), title=title)
    for env, by_class in medians.items():
        baseline = by_class["DummyVecEnv"]
        table.add_row(env, *(f"{value:.0f} ({baseline / value:.2f})" for value in by_class.values()))
    Console(width=160).print(table)


def main() -> None:
    """Measure all, write the file and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", type=Path, help="a short run, whose file goes into this folder")
    arguments = parser.parse_args()
    n_repeats, milliseconds = (1, MILLISECONDS[:2]) if arguments.smoke else (REPEATS, MILLISECONDS)
    results = {
        "sleeping": measure_sleeping(n_repeats, milliseconds),
        "cheap": {name: in_turns(make_all(env, IN_PROCESS), 20 * n_repeats, n_repeats) for name, env in CHEAP.items()},
    }
    path = (arguments.smoke or RESULTS) / "vec_env_cost.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print_table("microseconds per vector step, by milliseconds that an environment sleeps", results["sleeping"])
    print_table("microseconds per vector step", results["cheap"])


if __name__ == "__main__":
    main()
