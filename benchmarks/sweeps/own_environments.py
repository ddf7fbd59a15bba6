"""
Train one agent on three environments that have nothing to do with each other, through ``MultiTaskEnv``.

CartPole ("balance", two actions, 1 for each step), Acrobot ("swing", three actions, -1 for each step) and a puzzle of 2 x 3
lights ("lights", six actions, 1 for a dark board at the end of at most six presses). Twelve environments, four for each task.
Solved is what Gymnasium says of the first two, and 95 % of the puzzles.

- PPO: sees the task; an action that a task does not have counts as another one (with three actions 3 is 0)
- one group: GRPO with one group, which is PPO with action masks
- lambda 0: a group for each task, each learns in units of its own returns; no balance
- GRPO: the same with the balance, groups compared by their gaps

All with PPO's defaults but for ``n_steps=128``, ``batch_size=256`` and ``ent_coef=0.01``, which were not tuned.
``python -m benchmarks.sweeps.own_environments`` runs what has no result row yet, prints the table and draws the picture.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.lib.measures import describe, describe_steps
from benchmarks.lib.plots import draw_band, save
from benchmarks.lib.rows import Row, Run, by_method
from benchmarks.lib.sweep import parse_parts, result_folder, run_part
from benchmarks.lib.training import Method, equal_parts, train_and_evaluate
from sb3_grpo import GRPO, evaluate_groups, make_multi_task_vec_env
from sb3_grpo.envs.lights_out import LightsOut
from sb3_grpo.envs.multi_task import TaskSource

SEEDS = range(10)
N_ENVS = 12
TOTAL_TIMESTEPS, N_EVALUATIONS, EVAL_EPISODES = 120_000, 12, 10


class Job(NamedTuple):
    """A task: its environment, the return of an agent that does nothing useful, and the return that solves it."""

    source: TaskSource
    low: float
    solved: float


JOBS: dict[str, Job] = {
    "balance": Job("CartPole-v1", 0, 475),
    "swing": Job("Acrobot-v1", -500, -100),
    "lights": Job(LightsOut, 0, 0.95),
}
GROUPS: Mapping[str, Any] = dict(router="task", normalize_advantage="group")
METHODS: dict[str, Method] = {
    "PPO": Method(PPO),
    "one group": Method(GRPO, dict(n_groups=1)),
    "lambda 0": Method(GRPO, dict(**GROUPS, group_coef=0.0)),
    "GRPO": Method(GRPO, dict(**GROUPS, group_score="gap")),
}


def make_env(n_envs: int, seed: int) -> VecEnv:
    """
    Return environments of which each plays one of the tasks.

    :param n_envs: number of environments
    :param seed: their seed
    """
    return make_multi_task_vec_env({name: job.source for name, job in JOBS.items()}, n_envs, task="fixed", seed=seed)


def make_model(method: str, seed: int) -> PPO:
    """
    Return the untrained model of a method.

    :param method: a name of :data:`METHODS`
    :param seed: seed of model and environments
    """
    algorithm, kwargs, _ = METHODS[method]
    shared: dict[str, Any] = dict(n_steps=128, batch_size=256, ent_coef=0.01, seed=seed, device="cpu")
    return algorithm("MultiInputPolicy", make_env(N_ENVS, seed), **shared, **kwargs)


def run(
    method: str,
    seed: int,
    total_timesteps: int = TOTAL_TIMESTEPS,
    n_evaluations: int = N_EVALUATIONS,
    eval_episodes: int = EVAL_EPISODES,
) -> dict[str, Any]:
    """
    Train one model, and evaluate it task by task from time to time.

    :param method: a name of :data:`METHODS`
    :param seed: seed of model and environments
    :param total_timesteps: environment steps
    :param n_evaluations: number of evaluations
    :param eval_episodes: number of deterministic episodes of each task
    :return: ``steps``, and ``returns``: at each evaluation the mean return of each task, in the order of :data:`JOBS`
    """
    model = make_model(method, seed)
    eval_env = make_env(len(JOBS), seed + 10_000)

    def evaluate(index: int) -> list[float]:
        found = evaluate_groups(model, eval_env, eval_episodes * len(JOBS))
        return [round(found[name].mean, 3) for name in JOBS]

    return train_and_evaluate(model, equal_parts(total_timesteps, n_evaluations), evaluate)


def make_runs(seeds: Sequence[int]) -> list[Run]:
    """
    Return the runs of all methods.

    :param seeds: seeds of the runs
    """
    return [dict(method=method, seed=seed) for seed in seeds for method in METHODS]


def returns_of(rows: Sequence[Row]) -> np.ndarray:
    """
    Return mean returns.

    :param rows: rows of the sweep
    :return: shape ``(runs, evaluations, tasks)``
    """
    return np.array([row["result"]["returns"] for row in rows])


def progress_of(returns: np.ndarray) -> np.ndarray:
    """
    Return how near each task is to being solved: 0 at ``low``, 1 at ``solved``, and not above.

    :param returns: shape ``(..., tasks)``
    :return: of the same shape
    """
    low, solved = (np.array([getattr(job, name) for job in JOBS.values()]) for name in ("low", "solved"))
    return ((returns - low) / (solved - low)).clip(0, 1)


def steps_until_solved(result: dict[str, Any]) -> float:
    """
    Return the environment steps of the first evaluation in which every task is solved; infinity if there is none.

    :param result: measurements of one run
    """
    solved = (progress_of(np.array(result["returns"])) == 1).all(axis=1)
    return min((steps for steps, all_solved in zip(result["steps"], solved, strict=True) if all_solved), default=math.inf)


def returns_table(rows: list[Row]) -> Table:
    """
    Return the table: steps until all is solved, the worst task's progress over training, and returns at the end.

    :param rows: rows of the sweep
    """
    ends = [f"{name} at the end" for name in JOBS]
    table = Table("method", "seeds", "steps until all solved", "worst task over training", *ends, title="own environments")
    for method, own in by_method(rows, METHODS).items():
        found = returns_of(own)
        worst = progress_of(found).min(axis=2).mean(axis=1)
        cells = [describe(found[:, -1, task], 2 if name == "lights" else 0) for task, name in enumerate(JOBS)]
        steps = describe_steps([steps_until_solved(row["result"]) for row in own])
        table.add_row(method, str(len(own)), steps, describe(worst, 2), *cells)
    return table


def draw_returns(rows: list[Row], path: Path) -> None:
    """
    Draw the return of each task over steps: interquartile mean and its 95 % interval.

    :param rows: rows of the sweep
    :param path: PNG file
    """
    figure, axes = plt.subplots(1, len(JOBS), figsize=(4 * len(JOBS), 3.2), layout="constrained", squeeze=False)
    for task, (name, job) in enumerate(JOBS.items()):
        axis = axes[0, task]
        for method, own in by_method(rows, METHODS).items():
            steps = np.array(own[0]["result"]["steps"]) / 1000
            draw_band(axis, steps, returns_of(own)[:, :, task].T, method, alpha=0.15)
        axis.axhline(job.solved, color="black", linewidth=0.8, linestyle=":")
        axis.set(title=name, xlabel="environment steps (thousands)")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("mean return (dotted: solved)")
    axes[0, -1].legend(fontsize=8)
    save(figure, path, dpi=110)


def main() -> None:
    """Run what is missing, print the table and draw the picture."""
    arguments = parse_parts(__doc__, ["all"])
    runs = make_runs(arguments.seeds or SEEDS)
    rows = run_part(run, runs, "own_environments", arguments, total_timesteps=3072, n_evaluations=1, eval_episodes=1)
    Console(width=180).print(returns_table(rows))
    draw_returns(rows, result_folder(arguments) / "own_environments.png")


if __name__ == "__main__":
    main()
