"""
Measure how the cost of training grows with groups, environments and the size of the observation, beside SB3's PPO.

One-hot tasks with a group each, which may be merged and split as by default, against PPO on the same environments. PPO, GRPO
and compiled GRPO take turns in one process. ``python -m benchmarks.performance.growth`` measures all axes, and draws them;
``--axes groups`` some of them; ``--smoke FOLDER`` is a short run, whose results go there.
"""

import argparse
import functools
import importlib.metadata
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch as th
from gymnasium import spaces
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from benchmarks.lib.plots import save
from benchmarks.lib.rows import RESULTS
from benchmarks.lib.sweep import PACKAGES
from benchmarks.performance.memory import peak_memory_of, print_peak_memory
from benchmarks.performance.settings import N_ENVS, N_ITERATIONS, Clock, make_model
from sb3_grpo import GRPO, RegroupCallback

STEPS_PER_ROLLOUT = 2048
N_TASKS, WIDTH = "n_tasks", "width"
POINT = {N_TASKS: 16, N_ENVS: 8, WIDTH: 4}
AXES: dict[str, tuple[str, Sequence[int]]] = {
    "groups": (N_TASKS, (1, 4, 16, 64, 256)),
    "environments": (N_ENVS, (1, 8, 64, 256)),
    "observation": (WIDTH, (4, 64, 512)),
}
VARIANTS: dict[str, Callable[..., OnPolicyAlgorithm]] = {
    "PPO": PPO,
    "GRPO": GRPO,
    "GRPO compiled": functools.partial(GRPO, compile=True),
}
# Tasks of which the probes see enough steps at once to compare them, see `Tasks`
N_FREQUENT = 64


class Tasks(gym.Env):
    """
    Reward one of four actions in each task; episodes are short, so that every rollout has many tasks.

    The probes forget half of what they have seen in 8000 steps, and compare only cells with 100 steps: no more than 115 cells
    can be compared at a time. For what is as much work as there can be, three quarters of the episodes are of 64 tasks.

    :param n_tasks: number of tasks; one is drawn at each reset, and shown as one-hot columns, the last ones
    :param width: number of columns before these
    """

    action_space = spaces.Discrete(4)

    def __init__(self, n_tasks: int, width: int):
        self.n_tasks, self.width = n_tasks, width
        self.observation_space = spaces.Box(-1, 1, (width + n_tasks,), np.float32)

    def _observation(self) -> np.ndarray:
        observation = np.zeros(self.width + self.n_tasks, np.float32)
        observation[: self.width] = self.np_random.uniform(-1, 1, self.width)
        observation[self.width + self._task] = 1
        return observation

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Draw a task and start an episode.

        :param seed: seed of the draws
        :param options: not used
        """
        super().reset(seed=seed)
        frequent = self.np_random.random() < 0.75
        self._steps, self._task = 0, int(self.np_random.integers(min(self.n_tasks, N_FREQUENT) if frequent else self.n_tasks))
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        Take one step; the reward is 1 for the action of the task.

        :param action: number of the action
        """
        self._steps += 1
        return self._observation(), float(action == self._task % 4), self._steps == 8, False, {}


def make(variant: str, point: dict[str, int]) -> OnPolicyAlgorithm:
    """
    Return a model with its environments.

    :param variant: a name of :data:`VARIANTS`
    :param point: numbers of tasks, environments and columns
    """
    setting: dict[str, Any] = {
        "env": lambda: Tasks(point[N_TASKS], point[WIDTH]),
        N_ENVS: point[N_ENVS],
        "n_steps": STEPS_PER_ROLLOUT // point[N_ENVS],
    }
    if variant != "PPO":
        columns = (point[WIDTH], point[WIDTH] + point[N_TASKS])
        setting |= {"router": "one_hot", "router_kwargs": {"columns": columns}}
    return make_model(VARIANTS[variant], {N_ITERATIONS: 1, **setting})


def measure(point: dict[str, int], n_repeats: int) -> dict[str, list[dict[str, float]]]:
    """
    Train all variants in turn.

    :param point: numbers of tasks, environments and columns
    :param n_repeats: number of measurements, of one rollout each
    :return: by variant, for each repeat: seconds of training, and those of them that probes and regrouping took
    """
    models = {name: make(name, point) for name in VARIANTS}
    callbacks = {name: RegroupCallback() for name in models}
    for name, model in models.items():
        # two iterations: the compiled rollout begins with the second
        model.learn(2 * STEPS_PER_ROLLOUT, None if name == "PPO" else callbacks[name])
    clocks = {
        name: [Clock(model.regrouper, ["observe"]), Clock(callbacks[name], ["_on_rollout_start"])]
        for name, model in models.items()
        if isinstance(model, GRPO) and model.regrouper is not None
    }
    repeats: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    for _ in range(n_repeats):
        for name, model in models.items():
            for clock in clocks.get(name, []):
                clock.reset()
            start = time.perf_counter()
            model.learn(STEPS_PER_ROLLOUT, None if name == "PPO" else callbacks[name], reset_num_timesteps=False)
            seconds = time.perf_counter() - start
            own = sum(sum(clock.seconds.values()) for clock in clocks.get(name, []))
            repeats[name].append({"training": seconds, "probes and regrouping": own})
    return repeats


def summarize(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """
    Return medians by variant.

    :param result: an entry of the result file
    """
    repeats, summary = result["repeats"], {}
    for name, own in repeats.items():
        pairs = list(zip(repeats["PPO"], own, strict=True))
        summary[name] = {
            "steps_per_second": STEPS_PER_ROLLOUT / statistics.median(each["training"] for each in own),
            "ratio_to_ppo": statistics.median(ppo["training"] / each["training"] for ppo, each in pairs),
            "regrouping": statistics.median(each["probes and regrouping"] / each["training"] for each in own),
            "memory": result["peak_mib"].get(name, float("nan")) / result["peak_mib"].get("PPO", float("nan")),
        }
    return summary


def show(results: dict[str, Any]) -> None:
    """
    Print the table.

    :param results: content of the result file
    """
    table = Table("tasks", "environments", "columns", "variant", "steps/s", "x PPO", "regrouping", "memory / PPO's")
    for result in results.values():
        point = result["point"]
        for name, row in summarize(result).items():
            numbers = [str(point[key]) for key in (N_TASKS, N_ENVS, WIDTH)]
            share = "" if name == "PPO" else f"{100 * row['regrouping']:.1f} %"
            memory = "" if np.isnan(row["memory"]) else f"{row['memory']:.3f}"
            table.add_row(*numbers, name, f"{row['steps_per_second']:.0f}", f"{row['ratio_to_ppo']:.2f}", share, memory)
    Console().print(table)


def draw(results: dict[str, Any], path: Path) -> None:
    """
    Draw the time of training against groups, environments and columns, in multiples of PPO's in the same turns.

    Seconds would show how busy the machine was: points are measured one after the other.

    :param results: content of the result file
    :param path: PNG file
    """
    figure, axes = plt.subplots(1, len(AXES), figsize=(3.6 * len(AXES), 3.2), layout="constrained", sharey=True)
    labels = {N_TASKS: "tasks, a group each", N_ENVS: "environments", WIDTH: "columns of the observation"}
    for axis, (key, values) in zip(axes, AXES.values(), strict=True):
        found = {value: results[name] for value in values if (name := name_of({**POINT, key: value})) in results}
        for variant in VARIANTS:
            ratios = [1 / summarize(result)[variant]["ratio_to_ppo"] for result in found.values()]
            axis.plot(list(found), ratios, marker="o", label=variant)
        axis.set(xscale="log", ylim=(0, 1.2), xlabel=labels[key])
        axis.set_xticks(list(found), labels=[str(value) for value in found], minor=False)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("time, multiples of PPO's")
    axes[0].legend(fontsize=8)
    save(figure, path, dpi=110)


def name_of(point: dict[str, int]) -> str:
    """
    Return the name of a point in the result file.

    :param point: numbers of tasks, environments and columns
    """
    return "_".join(f"{key}_{value}" for key, value in point.items())


def main() -> None:
    """Measure the axes that the command line names, then show and draw all that have results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="*", choices=list(AXES), default=list(AXES), help="none: show results")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--smoke", type=Path, help="a short run, whose results go into this folder")
    parser.add_argument("--memory-of", nargs=2, help="print the peak memory of a variant with so many tasks, do nothing else")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    if arguments.memory_of:
        variant, n_tasks = arguments.memory_of
        make(variant, {**POINT, N_TASKS: int(n_tasks)}).learn(2 * STEPS_PER_ROLLOUT)
        print_peak_memory()
        return
    path = (arguments.smoke or RESULTS) / "growth.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for axis in arguments.axes:
        key, values = AXES[axis]
        for value in values[:1] if arguments.smoke else values:
            point = {**POINT, key: value}
            memory = {}
            if axis == "groups" and not arguments.smoke:
                memory = {name: peak_memory_of(__spec__.name, "--memory-of", name, str(value)) for name in ("PPO", "GRPO")}
            repeats = measure(point, 1 if arguments.smoke else arguments.repeats)
            versions = {name: importlib.metadata.version(name) for name in PACKAGES}
            if name_of(point) in results and not memory:
                memory = results[name_of(point)]["peak_mib"]
            results[name_of(point)] = {"point": point, "repeats": repeats, "peak_mib": memory, "versions": versions}
            path.write_text(json.dumps(results, indent=1) + "\n")
    show(results)
    draw(results, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
