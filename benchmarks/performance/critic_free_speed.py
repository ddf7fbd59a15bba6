"""
Measure what it saves to have no critic: training speed and number of parameters, beside SB3's PPO with the same networks.

CartPole, 8 environments, rollouts of 512 steps, minibatches of 256, two layers of 64 or of 256 units. All variants of a
setting take turns in one process; what is shown are medians of ratios.

``python -m benchmarks.performance.critic_free_speed`` measures; ``--smoke FOLDER`` is a short run, whose results go there.
"""

import argparse
import importlib.metadata
import json
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch as th
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.lib.rows import RESULTS
from benchmarks.lib.sweep import PACKAGES
from benchmarks.performance.settings import Clock
from sb3_grpo import GRPO, LeanVecEnv, make_group_vec_env

N_ENVS = 8
KWARGS: dict[str, Any] = dict(n_steps=512, batch_size=256, seed=0, device="cpu")
SETTINGS = {"64 units": [64, 64], "256 units": [256, 256]}


def plain_env() -> VecEnv:
    """Return environments that begin where they like."""
    return make_vec_env("CartPole-v1", N_ENVS, seed=0, vec_env_cls=LeanVecEnv)


def group_env() -> VecEnv:
    """Return environments that begin alike."""
    return make_group_vec_env("CartPole-v1", N_ENVS, seed=0)


# what trains, and where
Variants = Mapping[str, tuple[Callable[..., PPO], Callable[[], VecEnv]]]
VARIANTS: Variants = {
    "PPO": (PPO, plain_env),
    "GRPO, critic": (partial(GRPO, n_groups=1), plain_env),
    "outcome": (partial(GRPO, n_groups=1, advantage_estimator="outcome"), group_env),
    "process": (partial(GRPO, n_groups=1, advantage_estimator="process"), group_env),
    "time-step": (partial(GRPO, n_groups=1, advantage_estimator="time_step"), plain_env),
    "outcome, kl_coef": (partial(GRPO, n_groups=1, advantage_estimator="outcome", kl_coef=0.01), group_env),
    "outcome, compiled": (partial(GRPO, n_groups=1, advantage_estimator="outcome", compile=True), group_env),
}


def measure(variants: Variants, net_arch: list[int], n_repeats: int) -> dict[str, Any]:
    """
    Train all variants in turn.

    :param variants: what trains, and where
    :param net_arch: sizes of the layers
    :param n_repeats: number of rounds
    :return: by variant, number of ``parameters`` and seconds of each repeat
    """
    policy_kwargs, n_steps = dict(net_arch=net_arch), N_ENVS * KWARGS["n_steps"]
    models = {name: make("MlpPolicy", env(), policy_kwargs=policy_kwargs, **KWARGS) for name, (make, env) in variants.items()}
    results: dict[str, Any] = {}
    for name, model in models.items():
        model.learn(2 * n_steps)
        results[name] = {"parameters": sum(p.numel() for p in model.policy.parameters()), "repeats": []}
    clocks = {name: Clock(model) for name, model in models.items()}
    for _ in range(n_repeats):
        for name, model in models.items():
            clocks[name].reset()
            start = time.perf_counter()
            model.learn(n_steps, reset_num_timesteps=False)
            results[name]["repeats"].append({"all": time.perf_counter() - start, **clocks[name].seconds})
    return {"n_steps": n_steps, "results": results}


def show(setting: str, stored: dict[str, Any]) -> None:
    """
    Print the table of a setting.

    :param setting: title of the table
    :param stored: an entry of the result file
    """
    table = Table("variant", "parameters", "steps/s", "x PPO", "x PPO, update alone", title=setting)
    reference = stored["results"]["PPO"]["repeats"]
    for name, result in stored["results"].items():
        repeats = result["repeats"]
        ratios = [
            statistics.median(one[part] / own[part] for one, own in zip(reference, repeats, strict=True))
            for part in ("all", "train")
        ]
        steps = stored["n_steps"] / statistics.median(repeat["all"] for repeat in repeats)
        table.add_row(name, str(result["parameters"]), f"{steps:.0f}", *(f"{ratio:.2f}" for ratio in ratios))
    Console().print(table)


def measure_all(description: str | None, name: str, settings: Mapping[str, tuple[Variants, list[int]]]) -> None:
    """
    Read the command line, measure all settings, write the result file, and show the tables.

    :param description: of the script
    :param name: of the result file, without ending
    :param settings: by title, the variants that take turns and the sizes of their layers
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--smoke", type=Path, help="a short run, whose results go into this folder")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    repeats = 1 if arguments.smoke else arguments.repeats
    stored = {title: measure(variants, net_arch, repeats) for title, (variants, net_arch) in settings.items()}
    path = (arguments.smoke or RESULTS) / f"{name}.json"
    path.write_text(json.dumps({**stored, "versions": versions}, indent=1) + "\n")
    for title, results in stored.items():
        show(title, results)


def main() -> None:
    """Measure all settings, then show them."""
    measure_all(__doc__, "critic_free_speed", {title: (VARIANTS, net_arch) for title, net_arch in SETTINGS.items()})


if __name__ == "__main__":
    main()
