"""
Compare lambdas and task sampling on eight CartPole tasks of unequal difficulty, which compete for a small trunk.

Seven tasks are poles of half lengths 0.45 to 0.7 m, every second one with inverted actions; the last pole is short, and its
force is strong and inverted. The task is shown one-hot. ``python -m benchmarks.sweeps.eight_tasks`` runs what has no result
row yet, prints the tables and draws the pictures.

- fixed: eight environments with one task each, so that all tasks have the same number of steps; trunk 16-16. Other rules of
  balancing too: softmax of the scores, gap odds (DRATS, https://arxiv.org/abs/2605.14350), and odds of gaps and improvements
  (MT-GRPO, https://arxiv.org/abs/2602.05547), the odds with given targets
- fixed_large: the same with trunk 64-64
- drawn: environments that draw their tasks at reset, so that tasks can be sampled as well as weighed
- scales: "fixed" with rewards multiplied by factors from 0.01 to 100, drawn for each seed; compared with "fixed"
- mixed: "fixed" with another kind of reward in tasks 4 to 7: -1 for a fall, and nothing else
- tuning, tuning_drawn: "fixed" and "drawn" with seeds of their own, which serve choosing

Advantages are normalised by task, nothing is merged or split. Not SB3's defaults: n_steps 128, batch_size 128, learning_rate
1e-3, gamma 0.98. Evaluations: 20 deterministic episodes of each task, all rewards 1.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.lib.balancers import register
from benchmarks.lib.eight_tasks import (
    EIGHT_TASKS,
    BalanceRecord,
    CartPoleVecEnv,
    FallCost,
    TaskEvaluation,
    draw_scales,
    with_scales,
)
from benchmarks.lib.hyperparams import FIXED_GROUPS
from benchmarks.lib.measures import describe, ratio_of_iqms, with_interval
from benchmarks.lib.plots import draw_band, plot_curves, save
from benchmarks.lib.rows import REDUCTIONS, Row, Run, by_method, curves, rows_by_seed
from benchmarks.lib.sweep import parse_parts, result_folder, run_part
from benchmarks.lib.tasks import END_AND_TRAINING, end_and_training
from benchmarks.lib.training import Method, equal_parts, train_and_evaluate
from benchmarks.sweeps.balance_tables import SOLVED, largest_drop
from sb3_grpo import GRPO, TaskSamplingCallback
from sb3_grpo.envs.tasks import Task

SEEDS, MIXED_SEEDS, TUNING_SEEDS = range(20), range(10), range(100, 110)
EVAL_EPISODES = 20  # of each task
LAMBDAS = (0.0, 0.005, 0.02, 0.05, 0.2, 0.5)


Play = Sequence[int | Literal["random"]]


class Setting(NamedTuple):
    """Tasks, which of them each environment plays, factors of their rewards by seed, and hyper-parameters."""

    tasks: Sequence[Task]
    play: Play
    kwargs: Mapping[str, Any]
    scales: Callable[[int], Sequence[float]] | None = None
    fall_cost: Sequence[int] = ()  # tasks that are paid -1 for a fall, and nothing else


TO_TARGETS: dict[str, Any] = dict(group_score="gap", group_targets=[500.0] * len(EIGHT_TASKS))


def sampling_by_gap_odds() -> TaskSamplingCallback:
    """Return the callback that samples tasks by the rule of DRATS, with the sharpness of its public code."""
    return TaskSamplingCallback(16.0, balancer="gap_odds", **TO_TARGETS)


LAMBDA_METHODS = {f"lambda {coef:g}": Method(GRPO, dict(group_coef=coef)) for coef in LAMBDAS}
METHODS: dict[str, Method] = {
    "PPO": Method(PPO),
    "PPO, task sampling": Method(PPO, {}, (TaskSamplingCallback,)),
    **LAMBDA_METHODS,
    "gaps, lambda 0.05": Method(GRPO, dict(group_score="gap", group_coef=0.05)),
    # an episode has at most 500 steps, and falls cost 1
    "gaps to targets, lambda 0.05": Method(
        GRPO, dict(group_score="gap", group_targets=[500.0] * 4 + [0.0] * 4, group_coef=0.05)
    ),
    "softmax": Method(GRPO, dict(balancer="softmax", group_coef=1.0)),
    "gap odds": Method(GRPO, dict(balancer="gap_odds", group_coef=4.0, **TO_TARGETS)),
    "improvement odds": Method(GRPO, dict(balancer="improvement_odds", group_coef=4.0, **TO_TARGETS)),
    "lambda 0, task sampling": Method(GRPO, dict(group_coef=0.0), (TaskSamplingCallback,)),
    "lambda 0, sampling by gap odds": Method(GRPO, dict(group_coef=0.0), (sampling_by_gap_odds,)),
    "PPO, sampling by gap odds": Method(PPO, {}, (sampling_by_gap_odds,)),
    "default lambda": Method(GRPO),
    "default lambda, task sampling": Method(GRPO, {}, (TaskSamplingCallback,)),
}
BASE = "lambda 0"  # method with which the others are compared

SMALL: dict[str, Any] = dict(
    n_steps=128, batch_size=128, learning_rate=1e-3, gamma=0.98, policy_kwargs=dict(net_arch=[16, 16])
)
ONE_EACH: Play = range(len(EIGHT_TASKS))
DRAWN: Play = ["random"] * 8
SETTINGS: dict[str, Setting] = {
    "fixed": Setting(EIGHT_TASKS, ONE_EACH, SMALL),
    "fixed_large": Setting(EIGHT_TASKS, ONE_EACH, {**SMALL, "policy_kwargs": dict(net_arch=[64, 64])}),
    "drawn": Setting(EIGHT_TASKS, DRAWN, SMALL),
    "scales": Setting(EIGHT_TASKS, ONE_EACH, SMALL, lambda seed: draw_scales(len(EIGHT_TASKS), seed)),
    "mixed": Setting(EIGHT_TASKS, ONE_EACH, SMALL, fall_cost=range(4, 8)),
}
COMPARED = ("PPO", *LAMBDA_METHODS)
COMPARED_MIXED = ("PPO", BASE, "lambda 0.05", "gaps, lambda 0.05", "gaps to targets, lambda 0.05")
COMPARED_DRAWN = (
    "PPO",
    "PPO, task sampling",
    "lambda 0",
    "lambda 0, task sampling",
    "default lambda",
    "default lambda, task sampling",
    "PPO, sampling by gap odds",
    "lambda 0, sampling by gap odds",
)
# setting, methods and seeds of each part
PARTS: dict[str, tuple[str, tuple[str, ...], range]] = {
    "fixed": ("fixed", (*COMPARED, "softmax", "gap odds", "improvement odds"), SEEDS),
    "fixed_large": ("fixed_large", ("PPO", BASE, "lambda 0.05"), SEEDS),
    "drawn": ("drawn", COMPARED_DRAWN, SEEDS),
    "scales": ("scales", (BASE, "lambda 0.05"), SEEDS),
    "mixed": ("mixed", COMPARED_MIXED, MIXED_SEEDS),
    "tuning": ("fixed", COMPARED, TUNING_SEEDS),
    "tuning_drawn": ("drawn", COMPARED_DRAWN, TUNING_SEEDS),
}
LAMBDA_PARTS = {"fixed": "trunk 16-16", "fixed_large": "trunk 64-64"}


def make_model(setting: Setting, tasks: Sequence[Task], method: Method, seed: int) -> PPO:
    """
    Return the untrained model of a method.

    :param setting: environments and hyper-parameters
    :param tasks: the setting's tasks, with the scales of their rewards
    :param method: algorithm and its arguments
    :param seed: seed of model and environments
    """
    register()
    env: VecEnv = CartPoleVecEnv(tasks, setting.play, seed)
    if setting.fall_cost:
        env = FallCost(env, setting.fall_cost)
    groups: dict[str, Any] = {}
    if issubclass(method.algorithm, GRPO):
        columns = (4, 4 + len(tasks))  # behind the state of CartPole
        groups = dict(router="one_hot", router_kwargs=dict(columns=columns), normalize_advantage="group", **FIXED_GROUPS)
    return method.algorithm("MlpPolicy", env, seed=seed, device="cpu", **{**setting.kwargs, **groups, **method.kwargs})


def run(setting: str, method: str, seed: int, total_timesteps: int, n_evaluations: int) -> dict[str, Any]:
    """
    Train one model, and evaluate each task.

    :param setting: a name of :data:`SETTINGS`
    :param method: a name of :data:`METHODS`
    :param seed: seed of model, environments and scales
    :param total_timesteps: environment steps
    :param n_evaluations: number of evaluations
    :return: ``steps`` and ``returns`` (per task) of each evaluation, what :meth:`BalanceRecord.summary` returns, and
        ``scales``, the factor of each task's rewards, where they are not 1
    """
    given, compared = SETTINGS[setting], METHODS[method]
    scales = [1.0] * len(given.tasks) if given.scales is None else given.scales(seed)
    model = make_model(given, with_scales(given.tasks, scales), compared, seed)
    evaluate, record = TaskEvaluation(given.tasks, EVAL_EPISODES, seed + 10_000), BalanceRecord()
    callbacks = [record, *(make() for make in compared.callbacks)]
    parts = equal_parts(total_timesteps, n_evaluations)
    result = train_and_evaluate(model, parts, lambda _: evaluate(model), callbacks)
    drawn = {} if given.scales is None else dict(scales=list(scales))
    return {**result, **record.summary(), **drawn}


def make_runs(part: str, seeds: Iterable[int]) -> list[Run]:
    """
    Return the arguments of the runs of one part.

    :param part: a name of :data:`PARTS`
    :param seeds: seeds of the runs
    """
    setting, methods, _ = PARTS[part]
    # evaluations after whole rollouts of 1024 steps
    base = dict(setting=setting, total_timesteps=65_536, n_evaluations=8)
    return [dict(method=method, seed=seed, **base) for seed in seeds for method in methods]


def tasks_table(rows: list[Row], title: str = "") -> Table:
    """
    Return the table of one part: returns, and what the balance did, by method.

    The ratio is that of the worst task after training to that of :data:`BASE`, over the seeds that both have. ``weights`` are
    the smallest and the largest mean weight of a task, ``cap`` is the share of the updates in which the cap of lambda binds.

    :param rows: rows of one setting
    :param title: title of the table
    """
    columns = (f"all above {SOLVED}", "largest drop", "ratio to lambda 0", "lambda in effect", "weights", "cap")
    table = Table("method", "seeds", *END_AND_TRAINING, *columns, title=title)
    found = by_method(rows, METHODS)
    for method, own in found.items():
        solved = f"{(curves(own, np.min)[:, -1] >= SOLVED).sum()} of {len(own)}"
        ratio = ratio_of_worst(own, found.get(BASE, []))
        cells = (solved, f"{largest_drop(own):.0f}", ratio, *balance_cells(own))
        table.add_row(method, str(len(own)), *end_and_training(own), *cells)
    return table


def scales_table(rows: list[Row], equal: list[Row], title: str = "") -> Table:
    """
    Return the table of rewards on different scales beside equal ones: worst task after training, by method.

    :param rows: rows of part "scales"
    :param equal: rows of part "fixed"
    :param title: title of the table
    """
    table = Table("method", "seeds", "worst task, equal scales", "worst task", "ratio", f"all above {SOLVED}", title=title)
    without = by_method(equal, METHODS)
    for method, own in by_method(rows, METHODS).items():
        worst = curves(own, np.min)[:, -1]
        base = without.get(method, [])
        base_cell = describe(curves(base, np.min)[:, -1]) if base else ""
        solved = f"{(worst >= SOLVED).sum()} of {len(own)}"
        table.add_row(method, str(len(own)), base_cell, describe(worst), ratio_of_worst(own, base), solved)
    return table


def ratio_of_worst(rows: list[Row], base: list[Row]) -> str:
    """
    Return the ratio of the worst task's returns after training, as text; empty without seeds that both have.

    :param rows: rows of one method
    :param base: rows of the method to compare with
    """
    ends, base_ends = ({row["run"]["seed"]: min(row["result"]["returns"][-1]) for row in each} for each in (rows, base))
    seeds = sorted(ends.keys() & base_ends.keys())
    if not seeds:
        return ""
    return with_interval(ratio_of_iqms([ends[seed] for seed in seeds], [base_ends[seed] for seed in seeds], zero=0), 2)


def balance_cells(rows: list[Row]) -> tuple[str, str, str]:
    """
    Return effective lambda, weights and share of updates at the cap, as text; empty for methods without groups.

    :param rows: rows of one method
    """
    results = [row["result"] for row in rows if "capped" in row["result"]]
    if not results:
        return "", "", ""
    weights = np.mean([result["weights"] for result in results], axis=0)
    coef, capped = (np.mean([result[name] for result in results]) for name in ("coef_effective", "capped"))
    return f"{coef:.2g}", f"{weights.min():.2f} to {weights.max():.2f}", f"{capped:.0%}"


def plot_lambda(rows: Mapping[str, list[Row]], path: Path) -> None:
    """
    Draw the worst task and the mean of the tasks after training, and the share of updates at the cap, over lambda.

    :param rows: rows of parts in which lambda is varied, by the name of the trunk
    :param path: PNG file
    """
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    for label, own in rows.items():
        found = by_method(own, LAMBDA_METHODS)
        for axis, reduce in zip(axes, REDUCTIONS.values(), strict=False):  # the last axis is drawn below
            draw_band(axis, list(found), [curves(each, reduce)[:, -1] for each in found.values()], label, marker="o", ms=3)
        capped = [np.mean([row["result"]["capped"] for row in each]) for each in found.values()]
        axes[2].plot(list(found), capped, marker="o", ms=3)
    titles = ("worst task, end", "mean of the tasks, end", "share of updates in which the cap binds")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title)
        axis.tick_params(axis="x", labelrotation=30)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    save(figure, path, dpi=110)


def main() -> None:
    """Run the parts that the command line names, print their tables and draw their pictures."""
    arguments = parse_parts(__doc__, PARTS)
    folder, found = result_folder(arguments), {}
    for part in arguments.parts:
        runs = make_runs(part, arguments.seeds or PARTS[part][2])
        rows = run_part(run, runs, f"eight_tasks_{part}", arguments, total_timesteps=2048, n_evaluations=2)
        Console(width=200).print(tasks_table(rows, part))
        if part == "scales":
            Console(width=200).print(scales_table(rows, rows_by_seed(folder, "eight_tasks_fixed"), "scales and equal scales"))
        plot_curves(rows, METHODS, f"{part}: return of 500", (-20, 520), folder / f"eight_tasks_{part}.png")
        found[part] = rows
    lambdas = {label: found[part] for part, label in LAMBDA_PARTS.items() if part in found}
    if lambdas:
        plot_lambda(lambdas, folder / "eight_tasks_lambda.png")


if __name__ == "__main__":
    main()
