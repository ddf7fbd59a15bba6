"""
Measurements behind two defaults of GRPO: ``group_coef``, and ``n_groups`` of the random router.

``python benchmarks/defaults.py`` runs what is missing and prints the tables. The seeds serve choosing only: no result is
reported with them but these tables.
"""

import argparse
from typing import Any

import numpy as np
from common import RESULTS, describe, sweep
from demo import ENV_ID, REWARD_SCALES
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_grpo import GRPO, evaluate_groups
from sb3_grpo.envs.cartpole import FOUR_TASKS

SEEDS = range(100, 104)
N_ENVS, N_EVALUATIONS = 8, 6
SHARED: dict[str, Any] = {"n_steps": 128, "batch_size": 64, "device": "cpu"}
# what is compared here are groups that stay as they are
FIXED: dict[str, Any] = {"merge_kl": None, "split_kl": None}
SCALES = {"equal": (1.0, 1.0, 1.0, 1.0), "scaled": REWARD_SCALES}


def run_tasks(scales: str, group_coef: float, seed: int, total_timesteps: int) -> dict[str, Any]:
    """Four CartPole tasks with a head each: lengths per task at each evaluation."""
    tasks = [{**task, "reward_scale": scale} for task, scale in zip(FOUR_TASKS, SCALES[scales], strict=True)]
    env = make_vec_env(ENV_ID, N_ENVS, seed=seed, env_kwargs={"tasks": tasks})
    eval_env = make_vec_env(ENV_ID, 4, seed=seed + 10_000)
    model = GRPO(
        "MlpPolicy",
        env,
        **SHARED,
        **FIXED,
        seed=seed,
        router="one_hot",
        router_kwargs={"columns": (4, 8)},
        normalize_advantage="group",
        group_coef=group_coef,
    )
    lengths = []
    for part in range(N_EVALUATIONS):
        model.learn(total_timesteps // N_EVALUATIONS, reset_num_timesteps=part == 0)
        lengths.append([evaluation.mean_length for evaluation in evaluate_groups(model, eval_env, 20).values()])
    return {"lengths": lengths}


def run_plain(env_id: str, n_groups: int, group_coef: float, seed: int, total_timesteps: int) -> dict[str, Any]:
    """One task, random router: mean return at each evaluation; one group and ``group_coef=0`` are PPO."""
    env = make_vec_env(env_id, N_ENVS, seed=seed)
    eval_env = make_vec_env(env_id, 4, seed=seed + 10_000)
    model = GRPO("MlpPolicy", env, **SHARED, **FIXED, seed=seed, n_groups=n_groups, group_coef=group_coef)
    returns = []
    for part in range(N_EVALUATIONS):
        model.learn(total_timesteps // N_EVALUATIONS, reset_num_timesteps=part == 0)
        returns.append(float(np.mean(evaluate_policy(model, eval_env, 12, return_episode_rewards=True)[0])))
    return {"returns": returns}


def show_tasks(jobs: int) -> None:
    table = Table(
        "rewards", "group_coef", "worst, end", "worst, mean over training", "mean, end", title="tasks: episode length"
    )
    for scales in SCALES:
        for coef in (0.0, 0.005, 0.02):
            runs = [{"scales": scales, "group_coef": coef, "seed": s, "total_timesteps": 60_000} for s in SEEDS]
            rows = sweep(run_tasks, runs, RESULTS / "defaults_tasks.jsonl", jobs)
            lengths = np.array([row["result"]["lengths"] for row in rows])  # (seed, evaluation, task)
            worst = lengths.min(axis=2)
            columns = (worst[:, -1], worst.mean(axis=1), lengths[:, -1].mean(axis=1))
            table.add_row(scales, str(coef), *map(describe, columns))
    Console().print(table)


def show_plain(jobs: int) -> None:
    table = Table("environment", "n_groups", "group_coef", "return, end", "mean over training", title="random router")
    for env_id in ("CartPole-v1", "Acrobot-v1"):
        for n_groups, coef in ((1, 0.0), (2, 0.005), (4, 0.005), (4, 0.02)):
            run = {"env_id": env_id, "n_groups": n_groups, "group_coef": coef, "total_timesteps": 48_000}
            rows = sweep(run_plain, [{**run, "seed": seed} for seed in SEEDS], RESULTS / "defaults_plain.jsonl", jobs)
            returns = np.array([row["result"]["returns"] for row in rows])  # (seed, evaluation)
            table.add_row(env_id, str(n_groups), str(coef), describe(returns[:, -1]), describe(returns.mean(axis=1)))
    Console().print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    jobs = parser.parse_args().jobs
    show_tasks(jobs)
    show_plain(jobs)
