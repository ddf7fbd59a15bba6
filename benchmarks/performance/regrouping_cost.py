"""
Measure the share of the training time that probes and regrouping take with default arguments.

``python -m benchmarks.performance.regrouping_cost`` measures the settings of ``speed.py``, ``--settings images`` some of
them; ``--smoke FOLDER`` is a short run, whose rows go there. ``growth.py`` has the shares of many groups.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch as th
from rich.console import Console
from rich.table import Table

from benchmarks.lib.rows import RESULTS
from benchmarks.performance.settings import N_ITERATIONS, SETTINGS, Clock, make_model
from sb3_grpo import GRPO, RegroupCallback

REPEATS = 5


def measure(setting: dict[str, Any], n_looks: int, n_repeats: int) -> list[dict[str, float]]:
    """
    Return, for each repeat, the seconds of training and those of them that probes and regrouping took.

    :param setting: a value of :data:`SETTINGS`
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
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--smoke", type=Path, help="a short run, whose rows go into this folder")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    path = (arguments.smoke or RESULTS) / "regrouping_cost.json"
    # settings that are not measured now keep their results
    results = json.loads(path.read_text()) if path.exists() else {}
    n_looks, n_repeats = (1, 1) if arguments.smoke else (4, REPEATS)
    for name in arguments.settings:
        results[name] = measure(SETTINGS[name], n_looks, n_repeats)
    path.write_text(json.dumps(results, indent=1) + "\n")
    table = Table("setting", "median", "smallest", "largest", title="probes and regrouping, share of training time")
    for name in [name for name in SETTINGS if name in results]:
        shares = [repeat["probes and regrouping"] / repeat["training"] for repeat in results[name]]
        table.add_row(name, *(f"{100 * value:.1f} %" for value in (statistics.median(shares), min(shares), max(shares))))
    Console().print(table)


if __name__ == "__main__":
    main()
