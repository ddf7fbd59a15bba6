"""
Random groups that stay as they are, on plain problems: part of what the default of ``n_groups`` rests on.

``python benchmarks/defaults.py`` runs what is missing and prints the tables. The seeds serve choosing only: no result is
reported with them but these tables.
"""

import argparse
from typing import Any

import numpy as np
from common import RESULTS, sweep
from measures import describe
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_grpo import GRPO

SEEDS = range(100, 104)
N_ENVS, N_EVALUATIONS = 8, 6
SHARED: dict[str, Any] = {"n_steps": 128, "batch_size": 64, "device": "cpu"}
# what is compared here are groups that stay as they are
FIXED: dict[str, Any] = {"merge_kl": None, "split_kl": None}


def run(env_id: str, n_groups: int, group_coef: float, seed: int, total_timesteps: int) -> dict[str, Any]:
    """One task, random router: mean return at each evaluation; one group and ``group_coef=0`` are PPO."""
    env = make_vec_env(env_id, N_ENVS, seed=seed)
    eval_env = make_vec_env(env_id, 4, seed=seed + 10_000)
    model = GRPO("MlpPolicy", env, **SHARED, **FIXED, seed=seed, n_groups=n_groups, group_coef=group_coef)
    returns = []
    for part in range(N_EVALUATIONS):
        model.learn(total_timesteps // N_EVALUATIONS, reset_num_timesteps=part == 0)
        returns.append(float(np.mean(evaluate_policy(model, eval_env, 12, return_episode_rewards=True)[0])))
    return {"returns": returns}


def show(jobs: int) -> None:
    table = Table("environment", "n_groups", "group_coef", "return, end", "mean over training", title="random router")
    for env_id in ("CartPole-v1", "Acrobot-v1"):
        for n_groups, coef in ((1, 0.0), (2, 0.005), (4, 0.005), (4, 0.02)):
            given = {"env_id": env_id, "n_groups": n_groups, "group_coef": coef, "total_timesteps": 48_000}
            rows = sweep(run, [{**given, "seed": seed} for seed in SEEDS], RESULTS / "defaults_plain.jsonl", jobs)
            returns = np.array([row["result"]["returns"] for row in rows])  # (seed, evaluation)
            table.add_row(env_id, str(n_groups), str(coef), describe(returns[:, -1]), describe(returns.mean(axis=1)))
    Console().print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    show(parser.parse_args().jobs)
