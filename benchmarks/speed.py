"""
Training speed beside SB3's PPO: steps per second, and where the time goes.

All variants of a setting take turns in one process (one iteration of rollout and update each, burn-in first), so
that a machine whose speed drifts does not favour one of them. SBX's PPO takes part where it is installed.

``python benchmarks/speed.py`` measures all settings; ``--settings cartpole`` one of them.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch as th
from common import PACKAGES, RESULTS
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_grpo import GRPO

N_ITERATIONS = "n_iterations"  # per measurement
N_ENVS = "n_envs"
MEMORY_VARIANTS = ("PPO", "GRPO 1", "GRPO 4", "GRPO 64", "GRPO 4 compiled")
MEMORY_SETTINGS = ("cartpole", "images")


def fake_image_env() -> FakeImageEnv:
    """84 x 84 images in four channels, as Atari after its usual wrappers; the environment itself costs next to nothing."""
    return FakeImageEnv(action_dim=6, screen_height=84, screen_width=84, n_channels=4)


# Everything but the environment, the number of environments and of iterations are arguments of PPO.
SETTINGS: dict[str, dict[str, Any]] = {
    # PPO's defaults, but for shorter rollouts: the same minibatches, fewer of them
    "cartpole": {"env": "CartPole-v1", N_ENVS: 8, N_ITERATIONS: 1, "n_steps": 512},
    "cartpole_zoo": {
        "env": "CartPole-v1",
        N_ENVS: 8,
        N_ITERATIONS: 8,
        "n_steps": 32,
        "batch_size": 256,
        "n_epochs": 20,
        "gae_lambda": 0.8,
        "gamma": 0.98,
        "learning_rate": 0.001,
    },
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


def make_variants() -> dict[str, Callable[..., OnPolicyAlgorithm]]:
    """
    :return: constructors by name, with the arguments of PPO
    """

    variants: dict[str, Callable[..., OnPolicyAlgorithm]] = {"PPO": PPO}
    fixed = functools.partial(GRPO, merge_kl=None, split_kl=None)
    variants |= {f"GRPO {n}": functools.partial(fixed, n_groups=n) for n in (1, 4, 16, 64)}
    variants |= {f"GRPO {n} compiled": functools.partial(fixed, n_groups=n, compile=True) for n in (4, 64)}
    variants |= {"GRPO dynamic": GRPO}
    if importlib.util.find_spec("sbx"):
        variants["SBX PPO"] = importlib.import_module("sbx").PPO
    return variants


def make_model(constructor: Callable[..., OnPolicyAlgorithm], setting: dict[str, Any]) -> OnPolicyAlgorithm:
    kwargs = {name: value for name, value in setting.items() if name not in ("policy", "env", N_ENVS, N_ITERATIONS)}
    env = make_vec_env(setting["env"], setting[N_ENVS], seed=0)
    return constructor(setting.get("policy", "MlpPolicy"), env, seed=0, device="cpu", **kwargs)


class Clock:
    """
    Adds up the seconds that methods take.

    :param owner: whose methods they are
    :param names: their names
    """

    def __init__(self, owner: Any, names: Sequence[str] = ("collect_rollouts", "train")):
        self.seconds = dict.fromkeys(names, 0.0)
        for name in names:
            setattr(owner, name, self._timed(name, getattr(owner, name)))

    def reset(self) -> None:
        self.seconds = dict.fromkeys(self.seconds, 0.0)

    def _timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = method(*args, **kwargs)
            self.seconds[name] += time.perf_counter() - start
            return result

        return timed


def measure(setting: dict[str, Any], repeats: int) -> dict[str, dict[str, Any]]:
    """
    :return: by variant: seconds of each repeat for rollout, update and all; environment steps; seconds of burn-in
    """
    models = {name: make_model(constructor, setting) for name, constructor in make_variants().items()}
    steps = {name: int(model.n_steps * model.n_envs * setting[N_ITERATIONS]) for name, model in models.items()}
    results: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        start = time.perf_counter()
        # two iterations: the compiled rollout begins with the second
        model.learn(2 * model.n_steps * model.n_envs)
        results[name] = {"steps": steps[name], "burn_in": time.perf_counter() - start, "repeats": []}
    clocks = {name: Clock(model) for name, model in models.items()}
    for _ in range(repeats):
        for name, model in models.items():
            clocks[name].reset()
            start = time.perf_counter()
            model.learn(steps[name], reset_num_timesteps=False)
            seconds = {"all": time.perf_counter() - start, **clocks[name].seconds}
            results[name]["repeats"].append(seconds)
    return results


def summarize(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """
    :param results: from :func:`measure`
    :return: medians by variant
    """
    ppo = results["PPO"]
    summary = {}
    for name, result in results.items():
        pairs = list(zip(ppo["repeats"], result["repeats"], strict=True))
        summary[name] = {
            "steps_per_second": result["steps"] / statistics.median(r["all"] for r in result["repeats"]),
            "ratio_to_ppo": statistics.median(p["all"] / r["all"] for p, r in pairs),
            "update_ratio_to_ppo": statistics.median(p["train"] / r["train"] for p, r in pairs),
            "rollout_share": statistics.median(r["collect_rollouts"] / r["all"] for r in result["repeats"]),
            "update_share": statistics.median(r["train"] / r["all"] for r in result["repeats"]),
        }
    for name, row in summary.items():
        if name.endswith(" compiled"):
            eager = name.removesuffix(" compiled")
            compilation = results[name]["burn_in"] - results[eager]["burn_in"]
            gain_per_step = 1 / summary[eager]["steps_per_second"] - 1 / row["steps_per_second"]
            # environment steps after which compilation has paid for itself; inf where it never does
            row["break_even"] = compilation / gain_per_step if gain_per_step > 0 else math.inf
    return summary


def peak_memory(variant: str, setting: str) -> float:
    """
    :return: peak resident memory of a process that trains one variant for two iterations, MiB
    """
    command = [sys.executable, __file__, "--settings", setting, "--memory-of", variant]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])  # noqa: S603 (own script)


def print_memory(variant: str, setting: dict[str, Any]) -> None:
    model = make_model(make_variants()[variant], setting)
    model.learn(2 * model.n_steps * model.n_envs)
    # not getrusage: its peak is inherited from the process that started this one
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(line.split()[1]) / 1024)


def show(setting: str, summary: dict[str, dict[str, float]]) -> None:
    table = Table("variant", "steps/s", "x PPO", "update x PPO", "rollout", "update", "peak MiB", "pays after", title=setting)
    for name, row in summary.items():
        table.add_row(
            name,
            f"{row['steps_per_second']:.0f}",
            f"{row['ratio_to_ppo']:.2f}",
            f"{row['update_ratio_to_ppo']:.2f}",
            f"{row['rollout_share']:.0%}",
            f"{row['update_share']:.0%}",
            f"{row['peak_mib']:.0f}" if "peak_mib" in row else "",
            f"{row['break_even']:.0f} steps" if "break_even" in row else "",
        )
    Console().print(table)


def plot(summaries: dict[str, dict[str, dict[str, float]]]) -> None:
    figure, axes = plt.subplots(1, len(summaries), figsize=(3.2 * len(summaries), 3.4), layout="constrained", squeeze=False)
    for axis, (setting, summary) in zip(axes[0], summaries.items(), strict=True):
        ratios = [row["ratio_to_ppo"] for row in summary.values()]
        axis.barh(list(summary), ratios, color=["0.6" if name == "PPO" else "tab:blue" for name in summary])
        axis.axvline(1, color="black", lw=0.8)
        axis.invert_yaxis()
        axis.set(title=setting, xlabel="speed, multiples of SB3's PPO")
    figure.savefig(RESULTS / "speed.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=list(SETTINGS), help="none: show results")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-of", help="print the peak memory of one variant in MiB and do nothing else")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    if arguments.memory_of:
        print_memory(arguments.memory_of, SETTINGS[arguments.settings[0]])
        return
    # compilation is measured as on the first use: nothing is taken from what earlier processes compiled
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()
    path = RESULTS / "speed.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    for setting in arguments.settings:
        results = measure(SETTINGS[setting], arguments.repeats)
        memory = {name: peak_memory(name, setting) for name in MEMORY_VARIANTS if setting in MEMORY_SETTINGS}
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        stored[setting] = {"results": results, "peak_mib": memory, "versions": versions}
        path.write_text(json.dumps(stored, indent=1) + "\n")
    summaries = {}
    for setting in SETTINGS:
        if setting in stored:
            summaries[setting] = summarize(stored[setting]["results"])
            for name, mebibytes in stored[setting]["peak_mib"].items():
                summaries[setting][name]["peak_mib"] = mebibytes
            show(setting, summaries[setting])
    plot(summaries)


if __name__ == "__main__":
    main()
