"""
Compare GRPO with PPO on the ten tasks of Meta-World's MT10.

``python -m benchmarks.sweeps.meta_world`` runs what has no result row yet, prints the table and draws the pictures. Two
million steps in all, 200,000 of each task where environments play one task each. The goal of an episode is drawn anew and
is part of the observation; a score is the share of ten episodes, with random actions, in which the task is solved in any
step. Network (three hidden layers of 400, ReLU, for the actor and for the critic), learning rate, discount, GAE, clip range,
entropy and gradient clipping are those of the multi-task PPO of Meta-World+ (https://arxiv.org/abs/2505.11289), for 20 million
steps; rollouts (512 steps of 20 environments, its 10,000 of each task would leave 20 updates), minibatches and epochs (5
for 16) are smaller. The standard deviation of actions does not depend on the state, as SB3 has it. Nothing was tuned.

- PPO: the task is one-hot in the observation
- PPO, task sampling: tasks are drawn at reset, more often those that fall behind
- multi-head PPO: a head per task, lambda 0, groups that do not change
- GRPO: with its defaults, a head per task on layers that see the task too
- GRPO, task sampling: both
- GRPO, starts with one group: the same layers, which do not see the task, and one head until tasks contradict each other
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from benchmarks.lib.measures import describe
from benchmarks.lib.meta_world import TASKS, make_drawn_envs, make_fixed_envs
from benchmarks.lib.plots import plot_curves
from benchmarks.lib.rows import Row, Run, by_method
from benchmarks.lib.sweep import parse_parts, result_folder, run_part
from benchmarks.lib.task_training import train_by_task
from benchmarks.lib.training import equal_parts
from benchmarks.sweeps.minigrid_tables import draw_groups, draw_tasks
from sb3_grpo import GRPO, evaluate_groups

SEEDS = range(5)
ENVS_PER_TASK = 2
EVAL_EPISODES = 10  # per task
N_WORST = 3

PUBLISHED: dict[str, Any] = dict(
    n_steps=512,
    batch_size=640,
    n_epochs=5,
    learning_rate=3e-4,
    gamma=0.99,
    gae_lambda=0.97,
    clip_range=0.2,
    ent_coef=5e-3,
    max_grad_norm=1.0,
    policy_kwargs=dict(net_arch=[400, 400, 400], activation_fn=nn.ReLU),
)
HEADS: dict[str, Any] = dict(router="task")
METHODS: dict[str, Mapping[str, Any]] = {
    "PPO": {},
    "PPO, task sampling": {},
    "multi-head PPO": dict(**HEADS, group_coef=0.0, merge_kl=None, split_kl=None),
    "GRPO": HEADS,
    "GRPO, task sampling": HEADS,
    "GRPO, starts with one group": dict(router="task", router_kwargs=dict(hide=True), n_groups=1),
}
SAMPLED = ("PPO, task sampling", "GRPO, task sampling")


def make_model(method: str, env: VecEnv, seed: int, **kwargs: Any) -> PPO:
    """
    Return the untrained model of a method.

    :param method: a name of :data:`METHODS`
    :param env: environments whose observation shows the task
    :param seed: seed of the model
    :param kwargs: arguments that replace the published ones
    """
    algorithm = GRPO if METHODS[method] else PPO
    return algorithm("MlpPolicy", env, seed=seed, device="cpu", **{**PUBLISHED, **METHODS[method], **kwargs})


def run(
    method: str, seed: int, total_timesteps: int, n_evaluations: int, eval_episodes: int = EVAL_EPISODES
) -> dict[str, Any]:
    """
    Train one model on all tasks, and evaluate each of them.

    :param method: a name of :data:`METHODS`
    :param seed: seed of model and environments
    :param total_timesteps: environment steps
    :param n_evaluations: number of evaluations
    :param eval_episodes: number of episodes of each task in an evaluation
    :return: what :func:`benchmarks.lib.task_training.train_by_task` returns; ``returns`` are the shares of episodes in which
        each task is solved
    """
    sampled = method in SAMPLED
    n_envs = ENVS_PER_TASK * len(TASKS)
    model = make_model(method, make_drawn_envs(seed, n_envs) if sampled else make_fixed_envs(seed, ENVS_PER_TASK), seed)
    eval_env = make_fixed_envs(seed + 10_000, eval_episodes)  # an episode in each

    def evaluate() -> list[float]:
        found = evaluate_groups(model, eval_env, eval_episodes * len(TASKS), deterministic=False)
        return [found[task].success_rate or 0.0 for task in TASKS]

    parts = equal_parts(total_timesteps, n_evaluations)
    return train_by_task(model, parts, evaluate, len(TASKS) if sampled else None)


def make_runs(seeds: Sequence[int]) -> list[Run]:
    """
    Return the runs of all methods.

    :param seeds: seeds of the runs
    """
    base = dict(total_timesteps=2_000_000, n_evaluations=10)
    return [dict(method=method, seed=seed, **base) for seed in seeds for method in METHODS]


def success_table(rows: list[Row]) -> Table:
    """
    Return the table of shares of solved episodes at the end: mean of the tasks, of the three worst ones, and each task.

    :param rows: result rows
    """
    table = Table("method", "seeds", "mean", f"worst {N_WORST}", "mean over training", *TASKS, "hours a run")
    for method, own in by_method(rows, METHODS).items():
        scores = np.array([row["result"]["returns"] for row in own])  # by run, evaluation and task
        end = scores[:, -1]
        worst = np.sort(end, axis=1)[:, :N_WORST].mean(axis=1)
        cells = (end.mean(axis=1), worst, scores.mean(axis=(1, 2)), *end.T)
        hours = np.median([row["seconds"] for row in own]) / 3600
        table.add_row(method, str(len(own)), *(describe(values, 2) for values in cells), f"{hours:.1f}")
    return table


def main() -> None:
    """Run what is missing, print the table and draw the pictures."""
    arguments = parse_parts(__doc__, ["mt10"])
    short = dict(total_timesteps=10_240, n_evaluations=1, eval_episodes=1)
    rows = run_part(run, make_runs(arguments.seeds or SEEDS), "meta_world", arguments, **short)
    Console(width=220).print(success_table(rows))
    folder = result_folder(arguments)
    plot_curves(rows, METHODS, "share of episodes solved", (-0.02, 1.02), folder / "meta_world.png")
    draw_tasks(rows, TASKS, METHODS, folder / "meta_world_tasks.png")
    draw_groups(rows, TASKS, METHODS, folder / "meta_world_groups.png")


if __name__ == "__main__":
    main()
