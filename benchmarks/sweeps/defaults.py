"""
Measure random groups that stay as they are, on problems with one task: a reason for the default of ``n_groups``.

``python -m benchmarks.sweeps.defaults`` runs what is missing and prints the table. The seeds were used to
choose only: no other result is reported with them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from benchmarks.lib.hyperparams import FIXED_GROUPS
from benchmarks.lib.measures import describe
from benchmarks.lib.rows import Row, Run, results
from benchmarks.lib.sweep import parse_parts, run_part
from benchmarks.lib.training import equal_parts, train_and_evaluate
from sb3_grpo import GRPO

SEEDS = range(100, 104)
N_ENVS, N_EVALUATIONS = 8, 6
SHARED: dict[str, Any] = {"n_steps": 128, "batch_size": 64, "device": "cpu"}


def run(env_id: str, n_groups: int, group_coef: float, seed: int, total_timesteps: int) -> dict[str, Any]:
    """
    Train with the random router on one task; one group and ``group_coef=0`` are PPO.

    :param env_id: registered name of the environment
    :param n_groups: number of groups
    :param group_coef: lambda
    :param seed: seed of model and environments
    :param total_timesteps: environment steps
    :return: ``returns``, the mean of 12 episodes at each evaluation
    """
    env = make_vec_env(env_id, N_ENVS, seed=seed)
    eval_env = make_vec_env(env_id, 4, seed=seed + 10_000)
    model = GRPO("MlpPolicy", env, **SHARED, **FIXED_GROUPS, seed=seed, n_groups=n_groups, group_coef=group_coef)

    def evaluate(index: int) -> float:
        return float(np.mean(evaluate_policy(model, eval_env, 12, return_episode_rewards=True)[0]))

    found = train_and_evaluate(model, equal_parts(total_timesteps, N_EVALUATIONS), evaluate)
    return {"returns": found["returns"]}


def make_runs(seeds: Sequence[int]) -> list[Run]:
    """
    Return the runs of all environments and numbers of groups.

    :param seeds: seeds of the runs
    """
    return [
        dict(env_id=env_id, n_groups=n_groups, group_coef=coef, total_timesteps=48_000, seed=seed)
        for env_id in ("CartPole-v1", "Acrobot-v1")
        for n_groups, coef in ((1, 0.0), (2, 0.005), (4, 0.005), (4, 0.02))
        for seed in seeds
    ]


def defaults_table(rows: list[Row]) -> Table:
    """
    Return the table of returns by environment, number of groups and lambda.

    :param rows: rows of all runs
    """
    table = Table("environment", "n_groups", "group_coef", "return, end", "mean over training", title="random router")
    compared = ("env_id", "n_groups", "group_coef")
    for values in dict.fromkeys(tuple(row["run"][name] for name in compared) for row in rows):
        own = results(rows, **dict(zip(compared, values, strict=True)))
        returns = np.array([result["returns"] for result in own])  # (seed, evaluation)
        table.add_row(*map(str, values), describe(returns[:, -1]), describe(returns.mean(axis=1)))
    return table


def main() -> None:
    """Run what has no row yet, and print the table."""
    arguments = parse_parts(__doc__, ["plain"])
    runs = make_runs(arguments.seeds or SEEDS)
    Console().print(defaults_table(run_part(run, runs, "defaults_plain", arguments, total_timesteps=6 * 1024)))


if __name__ == "__main__":
    main()
