"""
Measure the training speed beside SB3's PPO: steps per second, and the shares of rollout and update.

All variants of a setting take turns in one process (one iteration of rollout and update each, burn-in first), so
that a machine whose speed drifts does not favour one of them. SBX's PPO takes part where it is installed.

``python -m benchmarks.performance.speed`` measures all settings; ``--settings cartpole`` one of them.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import torch as th
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from benchmarks.lib.hyperparams import FIXED_GROUPS
from benchmarks.lib.plots import save
from benchmarks.lib.rows import RESULTS
from benchmarks.lib.sweep import PACKAGES
from benchmarks.performance.memory import peak_memory_of, print_peak_memory
from benchmarks.performance.settings import N_ITERATIONS, SETTINGS, Clock, make_model
from sb3_grpo import GRPO

MEMORY_VARIANTS = ("PPO", "GRPO 1", "GRPO 4", "GRPO 64", "GRPO 4 compiled")
MEMORY_SETTINGS = ("cartpole", "images")


def make_variants() -> dict[str, Callable[..., OnPolicyAlgorithm]]:
    """Return the constructors that are compared, with the arguments of PPO, by name."""
    variants: dict[str, Callable[..., OnPolicyAlgorithm]] = {"PPO": PPO}
    fixed = functools.partial(GRPO, **FIXED_GROUPS)
    variants |= {f"GRPO {n}": functools.partial(fixed, n_groups=n) for n in (1, 4, 16, 64)}
    variants |= {f"GRPO {n} compiled": functools.partial(fixed, n_groups=n, compile=True) for n in (4, 64)}
    variants |= {"GRPO dynamic": GRPO}
    if importlib.util.find_spec("sbx"):
        variants["SBX PPO"] = importlib.import_module("sbx").PPO
    return variants


def measure(setting: dict[str, Any], repeats: int) -> dict[str, dict[str, Any]]:
    """
    Train all variants of a setting in turn.

    :param setting: a value of :data:`SETTINGS`
    :param repeats: number of measurements
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
    Return medians by variant.

    :param results: what :func:`measure` returned
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
            # environment steps after which the time gained exceeds the time of compilation; inf where it never does
            row["break_even"] = compilation / gain_per_step if gain_per_step > 0 else math.inf
    return summary


def print_memory(variant: str, setting: dict[str, Any]) -> None:
    """
    Train one variant for two iterations, and print the peak resident memory of this process in MiB.

    :param variant: a name of :func:`make_variants`
    :param setting: a value of :data:`SETTINGS`
    """
    model = make_model(make_variants()[variant], setting)
    model.learn(2 * model.n_steps * model.n_envs)
    print_peak_memory()


def show(setting: str, summary: dict[str, dict[str, float]]) -> None:
    """
    Print the table of a setting.

    :param setting: title of the table
    :param summary: what :func:`summarize` returned
    """
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
    """
    Draw the speed of each variant as a multiple of PPO's.

    :param summaries: what :func:`summarize` returned, by setting
    """
    figure, axes = plt.subplots(1, len(summaries), figsize=(3.2 * len(summaries), 3.4), layout="constrained", squeeze=False)
    for axis, (setting, summary) in zip(axes[0], summaries.items(), strict=True):
        ratios = [row["ratio_to_ppo"] for row in summary.values()]
        axis.barh(list(summary), ratios, color=["0.6" if name == "PPO" else "tab:blue" for name in summary])
        axis.axvline(1, color="black", lw=0.8)
        axis.invert_yaxis()
        axis.set(title=setting, xlabel="speed, multiples of SB3's PPO")
    save(figure, RESULTS / "speed.png", dpi=110)


def measure_and_store(settings: Sequence[str], repeats: int) -> dict[str, Any]:
    """
    Measure settings, and return the results of these and of those that were measured before.

    :param settings: names of :data:`SETTINGS`
    :param repeats: number of measurements
    """
    path = RESULTS / "speed.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    for setting in settings:
        results = measure(SETTINGS[setting], repeats)
        variants = MEMORY_VARIANTS if setting in MEMORY_SETTINGS else ()
        memory = {name: peak_memory_of(__spec__.name, "--settings", setting, "--memory-of", name) for name in variants}
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        stored[setting] = {"results": results, "peak_mib": memory, "versions": versions}
        path.write_text(json.dumps(stored, indent=1) + "\n")
    return stored


def main() -> None:
    """Measure the settings that the command line names, then show all settings that have results."""
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
    stored = measure_and_store(arguments.settings, arguments.repeats)
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
