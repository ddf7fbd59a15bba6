"""
Compare advantages without a critic with PPO's, on classic problems.

The protocol of https://arxiv.org/abs/2511.03527: two layers of 64 units with tanh, Adam with learning rate 2.5e-4, which falls
linearly to 0, clip range 0.2, 4 epochs, 8 environments, entropy coefficient 0.01, 300,000 steps. Minibatches of 256 steps.

- PPO: rollouts of 128 steps in each environment
- outcome, process, time-step: GRPO without a critic; rollouts at least as long as the longest episode; one start at a time, so
  that all environments are one sampling group
- batch mean: the published baseline, the mean of as many episodes that ended one after the other

Part "classic": 8 environments. Part "sizes": 16 and 32 environments, whose rollouts have twice and four times the steps. Part
"options": what divides the advantages, and how the loss is averaged.

``python -m benchmarks.sweeps.critic_free`` runs what has no result row yet, prints the tables and draws the pictures.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.lib.batch_mean import register
from benchmarks.lib.measures import describe
from benchmarks.lib.plots import draw_band, save
from benchmarks.lib.rows import Row, Run, by_method, group_rows
from benchmarks.lib.sweep import parse_parts, result_folder, run_part
from benchmarks.lib.training import learn_with_evaluations
from sb3_grpo import GRPO, LeanVecEnv, make_group_vec_env

SEEDS = range(10)
TOTAL_TIMESTEPS = 300_000
N_EVALUATIONS, EVAL_EPISODES, EVAL_ENVS = 15, 10, 10
# problems, with the range of their returns for the pictures
PROBLEMS: dict[str, tuple[float, float]] = {
    "CartPole-v1": (0, 510),
    "Acrobot-v1": (-510, -60),
    "MountainCarContinuous-v0": (-60, 100),
    "Pendulum-v1": (-1700, -100),
    "LunarLander-v3": (-600, 250),
}


class Method(NamedTuple):
    """An estimator of advantages, and its options."""

    estimator: str
    options: Mapping[str, Any] = {}


METHODS: dict[str, Method] = {
    "PPO": Method("gae"),
    "outcome": Method("outcome"),
    "process": Method("process"),
    "time-step": Method("time_step"),
    "batch mean": Method("batch_mean"),
    "outcome, divided by batch": Method("outcome", dict(scale="batch")),
    "outcome, not divided": Method("outcome", dict(scale="none")),
    "outcome, mean over trajectories": Method("outcome", dict(aggregation="trajectory")),
    "outcome, ratios of trajectories": Method("outcome", dict(ratio="trajectory")),
    "time-step, divided by batch": Method("time_step", dict(scale="batch")),
    "time-step, mean over trajectories": Method("time_step", dict(aggregation="trajectory")),
}


class Part(NamedTuple):
    """Which methods are compared, on which problems, with how many environments."""

    methods: Sequence[str]
    problems: Sequence[str] = tuple(PROBLEMS)
    sizes: Sequence[int] = (8,)


PARTS: dict[str, Part] = {
    "classic": Part(("PPO", "outcome", "process", "time-step", "batch mean")),
    "sizes": Part(("outcome", "time-step", "batch mean"), sizes=(16, 32)),
    "options": Part([name for name in METHODS if "," in name], ("CartPole-v1", "Acrobot-v1")),
}
# rewards are alike in each step: the advantages are those of "outcome", to the last bit
NOT_DISTINCT = ("CartPole-v1", "process")


def make_env(env_id: str, method: Method, n_envs: int, seed: int) -> VecEnv:
    """
    Return the training environments.

    :param env_id: registered name
    :param method: what is trained
    :param n_envs: number of environments, all of one sampling group where episodes are to begin alike
    :param seed: seed of the environments
    """
    if method.estimator in ("outcome", "process"):
        return make_group_vec_env(env_id, n_envs, seed=seed)
    return make_vec_env(env_id, n_envs, seed=seed, vec_env_cls=LeanVecEnv)


def make_model(env_id: str, method: Method, n_envs: int, seed: int) -> PPO:
    """
    Return the untrained model of a method.

    :param env_id: registered name of the environment
    :param method: what is trained
    :param n_envs: number of environments
    :param seed: seed of model and environments
    """
    register()
    shared: dict[str, Any] = dict(
        learning_rate=LinearSchedule(2.5e-4, 0.0, 1.0), batch_size=256, n_epochs=4, ent_coef=0.01, seed=seed, device="cpu"
    )
    env = make_env(env_id, method, n_envs, seed)
    if method.estimator == "gae":
        return PPO("MlpPolicy", env, n_steps=128, **shared)
    longest = gym.spec(env_id).max_episode_steps
    assert longest is not None
    options = dict(method.options)
    if method.estimator == "batch_mean":
        options["batch_of"] = n_envs
    return GRPO(
        "MlpPolicy",
        env,
        n_steps=math.ceil(longest / 32) * 32,  # whole minibatches
        n_groups=1,
        advantage_estimator=method.estimator,
        estimator_kwargs=options,
        **shared,
    )


def run(
    env_id: str,
    method: str,
    group_size: int,
    seed: int,
    total_timesteps: int = TOTAL_TIMESTEPS,
    n_evaluations: int = N_EVALUATIONS,
    eval_episodes: int = EVAL_EPISODES,
) -> dict[str, Any]:
    """
    Train one model, and evaluate it from time to time.

    :param env_id: a name of :data:`PROBLEMS`
    :param method: a name of :data:`METHODS`
    :param group_size: number of environments
    :param seed: seed of model and environments
    :param total_timesteps: environment steps
    :param n_evaluations: number of evaluations
    :param eval_episodes: number of episodes of each
    :return: ``steps``, and ``returns``, the mean of these deterministic episodes at each evaluation
    """
    model = make_model(env_id, METHODS[method], group_size, seed)
    eval_env = make_vec_env(env_id, EVAL_ENVS, seed=seed + 10_000, vec_env_cls=LeanVecEnv)
    found = learn_with_evaluations(model, total_timesteps, eval_env, n_evaluations, eval_episodes)
    return {"steps": found["timesteps"].tolist(), "returns": found["results"].mean(axis=1).round(3).tolist()}


def make_runs(part: str, seeds: Sequence[int]) -> list[Run]:
    """
    Return the runs of one part.

    :param part: a name of :data:`PARTS`
    :param seeds: seeds of the runs
    """
    methods, problems, sizes = PARTS[part]
    return [
        dict(env_id=env_id, method=method, group_size=size, seed=seed)
        for seed in seeds
        for env_id in problems
        for size in sizes
        for method in methods
        if (env_id, method) != NOT_DISTINCT
    ]


def returns_table(rows: list[Row], part: str) -> Table:
    """
    Return the table of one part: mean return over training, and at the end.

    :param rows: rows of the part
    :param part: a name of :data:`PARTS`
    """
    methods, problems, sizes = PARTS[part]
    table = Table("problem", "environments", "method", "seeds", "over training", "at the end", title=part)
    for env_id, of_problem in group_rows(rows, "env_id", problems).items():
        for size, of_size in group_rows(of_problem, "group_size", sizes).items():
            for method, own in by_method(of_size, methods).items():
                found = returns_of(own)
                digits = 1 if abs(found).max() < 150 else 0
                cells = [describe(values, digits) for values in (found.mean(axis=1), found[:, -1])]
                table.add_row(env_id, str(size), method, str(len(own)), *cells)
    return table


def returns_of(rows: list[Row]) -> np.ndarray:
    """
    Return the returns of runs with the same arguments but the seed.

    :param rows: rows of the runs
    :return: shape ``(n_runs, n_evaluations)``
    """
    return np.array([row["result"]["returns"] for row in rows])


def draw_returns(rows: list[Row], part: str, path: Path) -> None:
    """
    Draw the returns over steps, a panel for each problem: interquartile mean and its 95 % interval.

    :param rows: rows of the part
    :param part: a name of :data:`PARTS` with one number of environments
    :param path: PNG file
    """
    found = group_rows(rows, "env_id", PARTS[part].problems)
    figure, axes = plt.subplots(1, len(found), figsize=(3.4 * len(found), 3.2), layout="constrained", squeeze=False)
    for axis, (env_id, of_problem) in zip(axes[0], found.items(), strict=True):
        for method, own in by_method(of_problem, PARTS[part].methods).items():
            steps = np.array(own[0]["result"]["steps"]) / 1000
            # a method has one colour, also where another one was not run
            colour = f"C{PARTS[part].methods.index(method)}"
            draw_band(axis, steps, returns_of(own).T, method, alpha=0.15, color=colour)
        axis.set(title=env_id, xlabel="environment steps (thousands)", ylim=PROBLEMS[env_id])
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("return")
    axes[0, -1].legend(fontsize=8)
    save(figure, path, dpi=110)


def main() -> None:
    """Run the parts that the command line names, print their tables and draw their pictures."""
    arguments = parse_parts(__doc__, PARTS)
    for part in arguments.parts:
        runs = make_runs(part, arguments.seeds or SEEDS)
        rows = run_part(run, runs, f"critic_free_{part}", arguments, total_timesteps=4000, n_evaluations=1, eval_episodes=2)
        Console(width=180).print(returns_table(rows, part))
        if len(PARTS[part].sizes) == 1:
            draw_returns(rows, part, result_folder(arguments) / f"critic_free_{part}.png")


if __name__ == "__main__":
    main()
