"""
Measure the share of the training time that probes and regrouping take with default arguments.

``python -m benchmarks.performance.regrouping_cost`` measures the settings of ``speed.py``, and 4 to 256 tasks with a group
each; ``--settings tasks_64`` measures some of them; ``--smoke FOLDER`` is a short run, whose rows go there.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from rich.console import Console
from rich.table import Table

from benchmarks.lib.rows import RESULTS
from benchmarks.performance.settings import N_ENVS, N_ITERATIONS, SETTINGS, Clock, make_model
from sb3_grpo import GRPO, RegroupCallback

REPEATS = 5
N_TASKS = (4, 16, 64, 256)


class Tasks(gym.Env):
    """
    Reward one of four actions in each task; episodes are short, so that every rollout has all tasks.

    :param n_tasks: number of tasks; one is drawn at each reset, and shown as ``"task"``
    """

    action_space = spaces.Discrete(4)

    def __init__(self, n_tasks: int):
        self.n_tasks = n_tasks
        self.observation_space = spaces.Dict(obs=spaces.Box(-1, 1, (4,), np.float32), task=spaces.Discrete(n_tasks))

    def _observation(self) -> dict[str, Any]:
        return {"obs": self.np_random.uniform(-1, 1, 4).astype(np.float32), "task": self._task}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Draw a task and start an episode.

        :param seed: seed of the draws
        :param options: not used
        """
        super().reset(seed=seed)
        self._steps, self._task = 0, int(self.np_random.integers(self.n_tasks))
        return self._observation(), {}

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """
        Take one step; the reward is 1 for the action of the task.

        :param action: number of the action
        """
        self._steps += 1
        return self._observation(), float(action == self._task % 4), False, self._steps == 8, {}


def tasks_setting(n_tasks: int) -> dict[str, Any]:
    """
    Return a setting that begins with one group per task and compares groups after every rollout of 2048 steps.

    :param n_tasks: number of tasks
    """
    return {
        "policy": "MultiInputPolicy",
        "env": lambda: Tasks(n_tasks),
        N_ENVS: 8,
        N_ITERATIONS: 1,
        "n_steps": 256,
        "router": "discrete",
        "router_kwargs": {"key": "task"},
    }


ALL_SETTINGS = SETTINGS | {f"tasks_{n}": tasks_setting(n) for n in N_TASKS}


def measure(setting: dict[str, Any], n_looks: int, n_repeats: int) -> list[dict[str, float]]:
    """
    Return, for each repeat, the seconds of training and those of them that probes and regrouping took.

    :param setting: a value of :data:`ALL_SETTINGS`
    :param n_looks: smallest number of comparisons of the groups in each repeat
    :param n_repeats: number of repeats
    """
    model = make_model(GRPO, setting)
    assert isinstance(model, GRPO)
    callback = RegroupCallback()
    clocks = [Clock(model.regrouper, ["observe"]), Clock(callback, ["_on_rollout_start"])]
    steps = max(n_looks * 2048, model.n_steps * model.n_envs * setting[N_ITERATIONS])
    model.learn(2 * model.n_steps * model.n_envs)
    repeats = []
    for _ in range(n_repeats):
        for clock in clocks:
            clock.reset()
        start = time.perf_counter()
        model.learn(steps, callback, reset_num_timesteps=False)
        own = sum(sum(clock.seconds.values()) for clock in clocks)
        repeats.append({"training": time.perf_counter() - start, "probes and regrouping": own})
    return repeats


def main() -> None:
    """Measure the settings that the command line names, and print the table of all that have results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=list(ALL_SETTINGS), default=list(ALL_SETTINGS))
    parser.add_argument("--smoke", type=Path, help="a short run, whose rows go into this folder")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    path = (arguments.smoke or RESULTS) / "regrouping_cost.json"
    # settings that are not measured now keep their results
    results = json.loads(path.read_text()) if path.exists() else {}
    n_looks, n_repeats = (1, 1) if arguments.smoke else (4, REPEATS)
    for name in arguments.settings:
        results[name] = measure(ALL_SETTINGS[name], n_looks, n_repeats)
    path.write_text(json.dumps(results, indent=1) + "\n")
    table = Table("setting", "median", "smallest", "largest", title="probes and regrouping, share of training time")
    for name in [name for name in ALL_SETTINGS if name in results]:
        shares = [repeat["probes and regrouping"] / repeat["training"] for repeat in results[name]]
        table.add_row(name, *(f"{100 * value:.1f} %" for value in (statistics.median(shares), min(shares), max(shares))))
    Console().print(table)


if __name__ == "__main__":
    main()
