"""
What probes and regrouping cost: their share of the training time at the defaults, timed within each training.

``python benchmarks/regrouping_cost.py``, for the settings of ``speed.py``.
"""

import json
import statistics
import time
from typing import Any

import torch as th
from common import RESULTS
from rich.console import Console
from rich.table import Table
from speed import N_ITERATIONS, SETTINGS, Clock, make_model

from sb3_grpo import GRPO, RegroupCallback

REPEATS = 5


def measure(setting: dict[str, Any]) -> list[dict[str, float]]:
    """
    :return: of each repeat the seconds of training, and those of them that probes and regrouping took
    """
    model = make_model(GRPO, setting)
    assert isinstance(model, GRPO)
    probes, callback = model.policy.probes, RegroupCallback()
    assert probes is not None
    clocks = [Clock(model, ["_probe_rollout"]), Clock(probes, ["learn"]), Clock(callback, ["_on_rollout_start"])]
    # at least four looks at the groups in each repeat
    steps = max(4 * 2048, model.n_steps * model.n_envs * setting[N_ITERATIONS])
    model.learn(2 * model.n_steps * model.n_envs)
    repeats = []
    for _ in range(REPEATS):
        for clock in clocks:
            clock.reset()
        start = time.perf_counter()
        model.learn(steps, callback, reset_num_timesteps=False)
        own = sum(sum(clock.seconds.values()) for clock in clocks)
        repeats.append({"training": time.perf_counter() - start, "probes and regrouping": own})
    return repeats


def main() -> None:
    th.set_num_threads(1)
    results = {name: measure(setting) for name, setting in SETTINGS.items()}
    (RESULTS / "regrouping_cost.json").write_text(json.dumps(results, indent=1) + "\n")
    table = Table("setting", "median", "smallest", "largest", title="probes and regrouping, share of training time")
    for name, repeats in results.items():
        shares = [repeat["probes and regrouping"] / repeat["training"] for repeat in repeats]
        table.add_row(name, *(f"{100 * value:.1f} %" for value in (statistics.median(shares), min(shares), max(shares))))
    Console().print(table)


if __name__ == "__main__":
    main()
