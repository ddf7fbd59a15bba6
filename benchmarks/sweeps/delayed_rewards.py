"""
Compare advantages without a critic with PPO's where the reward comes late: steps until 90 % of the episodes succeed.

- lights out: a puzzle of 3 x 3 lights and at most nine presses; the only reward is 1 for a dark board
- umbrella: only the first of 50 steps matters, and the last rewards for it; the steps between are rewarded with 1 or -1 at
  random. Few states, but values that are hard to tell from noise
- umbrella, distractors: no such noise, but twenty bits of the observation that mean nothing, so that there are many states

PPO runs with SB3's ``gamma`` and ``gae_lambda``, and with both at 1, which suits late rewards. Without a critic ``gamma`` is
1. There are 16 environments: two sampling groups of 8 where episodes begin alike. Environments that begin alike draw the same
noise too, as long as the generator that the reset seeds is their only one; *batch mean* compares episodes that began anywhere.

The learning rates were chosen among 3e-4, 1e-3 and 3e-3 on seeds 100 and 101; the best one of PPO was the best one without a
critic on each problem. ``python -m benchmarks.sweeps.delayed_rewards`` runs what has no result row yet, prints the table and
draws the picture.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.lib.batch_mean import register
from benchmarks.lib.measures import describe, describe_steps
from benchmarks.lib.plots import draw_band, save
from benchmarks.lib.rows import Row, Run, by_method, group_rows
from benchmarks.lib.sweep import parse_parts, result_folder, run_part
from benchmarks.lib.training import Method, learn_with_evaluations
from benchmarks.lib.umbrella import UmbrellaChain
from sb3_grpo import GRPO, LeanVecEnv, make_group_vec_env
from sb3_grpo.envs.lights_out import LightsOut

SEEDS = range(10)
GROUP_SIZE, N_STARTS = 8, 2
N_EVALUATIONS, EVAL_EPISODES, EVAL_ENVS = 20, 100, 20
SOLVED = 0.9


class Problem(NamedTuple):
    """What is learnt, for how long, and how long the rollouts of each environment are."""

    make: Callable[[], gym.Env[Any, Any]]
    total_timesteps: int
    n_steps: int
    learning_rate: float


PROBLEMS: dict[str, Problem] = {
    "lights out": Problem(lambda: LightsOut(3, 3), 200_000, 72, 3e-3),
    "umbrella": Problem(lambda: UmbrellaChain(50, n_distractors=0), 100_000, 100, 1e-3),
    "umbrella, distractors": Problem(lambda: UmbrellaChain(50, n_distractors=20, noise=False), 100_000, 100, 3e-4),
}
METHODS: dict[str, Method] = {
    "PPO": Method(PPO),
    "PPO, gamma and lambda 1": Method(PPO, dict(gamma=1.0, gae_lambda=1.0)),
    **{
        name: Method(GRPO, dict(advantage_estimator=estimator, gamma=1.0, n_groups=1, **kwargs))
        for name, estimator, kwargs in (
            ("outcome", "outcome", dict(group_size=GROUP_SIZE)),
            (
                "outcome, ratios of trajectories",
                "outcome",
                dict(group_size=GROUP_SIZE, estimator_kwargs=dict(ratio="trajectory")),
            ),
            ("batch mean", "batch_mean", dict(estimator_kwargs=dict(batch_of=GROUP_SIZE))),
        )
    },
}


def make_model(problem: str, method: str, seed: int) -> PPO:
    """
    Return the untrained model of a method.

    :param problem: a name of :data:`PROBLEMS`
    :param method: a name of :data:`METHODS`
    :param seed: seed of model and environments
    """
    register()
    algorithm, kwargs, _ = METHODS[method]
    make, _, n_steps, learning_rate = PROBLEMS[problem]
    if kwargs.get("advantage_estimator") == "outcome":
        env = make_group_vec_env(make, GROUP_SIZE, n_starts=N_STARTS, seed=seed)
    else:
        env = make_vec_env(make, GROUP_SIZE * N_STARTS, seed=seed, vec_env_cls=LeanVecEnv)
    shared: dict[str, Any] = dict(n_steps=n_steps, batch_size=2 * n_steps, ent_coef=0.01, learning_rate=learning_rate)
    return algorithm("MlpPolicy", env, seed=seed, device="cpu", **shared, **kwargs)


def run(
    problem: str,
    method: str,
    seed: int,
    total_timesteps: int | None = None,
    n_evaluations: int = N_EVALUATIONS,
    eval_episodes: int = EVAL_EPISODES,
) -> dict[str, Any]:
    """
    Train one model, and measure the share of deterministic episodes that succeed from time to time.

    :param problem: a name of :data:`PROBLEMS`
    :param method: a name of :data:`METHODS`
    :param seed: seed of model and environments
    :param total_timesteps: environment steps; ``None``: those of the problem
    :param n_evaluations: number of evaluations
    :param eval_episodes: number of episodes of each
    :return: ``steps`` and ``successes`` of each evaluation
    """
    model = make_model(problem, method, seed)
    eval_env = make_vec_env(PROBLEMS[problem].make, EVAL_ENVS, seed=seed + 10_000, vec_env_cls=LeanVecEnv)
    steps = total_timesteps or PROBLEMS[problem].total_timesteps
    found = learn_with_evaluations(model, steps, eval_env, n_evaluations, eval_episodes)
    return {"steps": found["timesteps"].tolist(), "successes": found["successes"].mean(axis=1).round(3).tolist()}


def make_runs(seeds: Sequence[int]) -> list[Run]:
    """
    Return the runs of all methods on all problems.

    :param seeds: seeds of the runs
    """
    return [dict(problem=problem, method=method, seed=seed) for seed in seeds for problem in PROBLEMS for method in METHODS]


def steps_until_solved(result: dict[str, Any]) -> float:
    """
    Return the environment steps of the first evaluation with :data:`SOLVED` successes; infinity if there is none.

    :param result: measurements of one run
    """
    pairs = zip(result["steps"], result["successes"], strict=True)
    return min((steps for steps, successes in pairs if successes >= SOLVED), default=math.inf)


def successes_table(rows: list[Row]) -> Table:
    """
    Return the table: steps until solved, and the share of successes over training and at the end.

    :param rows: rows of the sweep
    """
    table = Table("problem", "method", "seeds", "steps to 90 %", "over training", "at the end", title="delayed rewards")
    for problem, of_problem in group_rows(rows, "problem", PROBLEMS).items():
        for method, own in by_method(of_problem, METHODS).items():
            found = np.array([row["result"]["successes"] for row in own])
            steps = [steps_until_solved(row["result"]) for row in own]
            shares = [describe(values, 2) for values in (found.mean(axis=1), found[:, -1])]
            table.add_row(problem, method, str(len(own)), describe_steps(steps), *shares)
    return table


def draw_successes(rows: list[Row], path: Path) -> None:
    """
    Draw the share of successes over steps, a panel for each problem: interquartile mean and its 95 % interval.

    :param rows: rows of the sweep
    :param path: PNG file
    """
    found = group_rows(rows, "problem", PROBLEMS)
    figure, axes = plt.subplots(1, len(found), figsize=(4 * len(found), 3.2), layout="constrained", squeeze=False, sharey=True)
    for axis, (problem, of_problem) in zip(axes[0], found.items(), strict=True):
        for method, own in by_method(of_problem, METHODS).items():
            steps = np.array(own[0]["result"]["steps"]) / 1000
            draw_band(axis, steps, np.array([row["result"]["successes"] for row in own]).T, method, alpha=0.15)
        axis.set(title=problem, xlabel="environment steps (thousands)", ylim=(-0.02, 1.02))
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("share of successes")
    axes[0, -1].legend(fontsize=8)
    save(figure, path, dpi=110)


def main() -> None:
    """Run what is missing, print the table and draw the picture."""
    arguments = parse_parts(__doc__, ["all"])
    runs = make_runs(arguments.seeds or SEEDS)
    rows = run_part(run, runs, "delayed_rewards", arguments, total_timesteps=6400, n_evaluations=1, eval_episodes=20)
    Console(width=180).print(successes_table(rows))
    draw_successes(rows, result_folder(arguments) / "delayed_rewards.png")


if __name__ == "__main__":
    main()
