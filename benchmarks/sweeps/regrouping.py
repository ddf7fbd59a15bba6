"""
Measure whether groups find hidden types of tasks, and whether equal tasks and single tasks stay in one group.

- recovery: tasks of two or three hidden types, one group to begin with; PPO with the same observations beside it
- merging: the same tasks visible, one group per task to begin with
- null: equal tasks, one group to begin with; every split is a false one
- harm: default ``GRPO("MlpPolicy", env)`` beside PPO with the same hyper-parameters
- long: the same on LunarLander, three times as long: does a group split late, when advantages have become small?

``python -m benchmarks.sweeps.regrouping`` runs what has no result row yet and shows tables and pictures;
``--parts recovery --seeds 1 2`` part of it. Seeds 100 to 110 were used to choose the defaults and are not reported.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from benchmarks.lib.groups import events_of
from benchmarks.lib.hidden_types import EQUAL, HIDDEN, PROBLEMS, Curve, run_tasks
from benchmarks.lib.hyperparams import ACROBOT, CARTPOLE, LUNAR_LANDER, PENDULUM
from benchmarks.lib.measures import describe, ratio_of_iqms, with_interval
from benchmarks.lib.plots import save
from benchmarks.lib.rows import Row, Run, group_rows, has_split, results, select
from benchmarks.lib.sweep import parse_parts, result_folder, run_part
from sb3_grpo import GRPO

SEEDS = range(20)
HARM_SEEDS = range(10)
TWO_GROUPS = "GRPO, two random groups"
# RL Zoo's hyper-parameters for PPO, but for the number of steps
PLAIN: dict[str, dict[str, Any]] = {
    "CartPole-v1": dict(n_envs=8, steps=60_000, kwargs=CARTPOLE),
    "Acrobot-v1": dict(n_envs=16, steps=150_000, normalize=True, kwargs=ACROBOT),
    "Pendulum-v1": dict(n_envs=4, steps=100_000, kwargs=PENDULUM),
    "LunarLander-v3": dict(n_envs=16, steps=250_000, kwargs=LUNAR_LANDER),
}


def make_plain_env(env_id: str, seed: int) -> VecEnv:
    """
    Return the environments of a problem with one task.

    :param env_id: a name of :data:`PLAIN`
    :param seed: seed of the environments
    """
    env = make_vec_env(env_id, PLAIN[env_id]["n_envs"], seed=seed)
    return VecNormalize(env) if PLAIN[env_id].get("normalize") else env


def evaluate_plain(model: PPO, env_id: str, seed: int, deterministic: bool) -> float:
    """
    Return the mean return of 32 episodes, with the training's normalisation of observations.

    :param model: model to evaluate
    :param env_id: a name of :data:`PLAIN`
    :param seed: seed of the training
    :param deterministic: whether the policy's mode is taken instead of a sample
    """
    eval_env = make_plain_env(env_id, 10_000 + seed)
    if isinstance(eval_env, VecNormalize):
        trained_env = model.get_vec_normalize_env()
        assert trained_env is not None
        eval_env.obs_rms, eval_env.training, eval_env.norm_reward = trained_env.obs_rms, False, False
    final, _ = evaluate_policy(model, eval_env, n_eval_episodes=32, deterministic=deterministic)
    return float(np.mean(final))


def run_plain(env_id: str, algorithm: str, seed: int, total_timesteps: int | None = None) -> dict[str, Any]:
    """
    Train on a problem with one task, and evaluate the model.

    :param env_id: a name of :data:`PLAIN`
    :param algorithm: ``"PPO"``, ``"GRPO"``, :data:`TWO_GROUPS`, or ``"random"``: PPO's initial policy, not trained
    :param seed: seed of model and environments
    :param total_timesteps: environment steps; ``None``: those of the problem
    :return: ``final``, mean return after training, ``area``, mean return during training, and ``curve``; of GRPO ``events``
    """
    given = PLAIN[env_id]
    curve = Curve(["groups/n_active", "groups/kl_within"])
    maker = PPO if algorithm in ("PPO", "random") else GRPO
    groups: dict[str, Any] = {"n_groups": 2} if algorithm == TWO_GROUPS else {}
    model: PPO = maker("MlpPolicy", make_plain_env(env_id, seed), seed=seed, device="cpu", **given["kwargs"], **groups)
    if algorithm != "random":
        model.learn(total_timesteps or given["steps"], callback=curve)
    returns = [row[1] for row in curve.rows]
    result: dict[str, Any] = {
        "final": evaluate_plain(model, env_id, seed, deterministic=algorithm != "random"),
        "area": float(np.nanmean(returns)) if returns else None,
        "curve": curve.rows,
    }
    if isinstance(model, GRPO):
        result["events"] = events_of(model)
    return result


def recovery_runs(seeds: Sequence[int]) -> list[Run]:
    """
    Return the runs on hidden types.

    :param seeds: seeds of the runs
    """
    return [dict(problem=p, algorithm=a, seed=s) for p in HIDDEN for a in ("GRPO", "PPO") for s in seeds]


def null_runs(seeds: Sequence[int]) -> list[Run]:
    """
    Return the runs on equal tasks.

    :param seeds: seeds of the runs
    """
    return [dict(problem=p, algorithm="GRPO", seed=s) for p in EQUAL for s in seeds]


def merging_runs(seeds: Sequence[int]) -> list[Run]:
    """
    Return the runs that begin with one group per task.

    :param seeds: seeds of the runs
    """
    return [dict(problem=HIDDEN[0], algorithm="GRPO", seed=s, start="one per task") for s in seeds]


def harm_runs(seeds: Sequence[int]) -> list[Run]:
    """
    Return the runs on problems with one task.

    :param seeds: seeds of the runs
    """
    runs = [(env_id, algorithm) for env_id in PLAIN for algorithm in ("PPO", "GRPO", "random")]
    return [dict(env_id=e, algorithm=a, seed=s) for e, a in [*runs, ("CartPole-v1", TWO_GROUPS)] for s in seeds]


def long_runs(seeds: Sequence[int]) -> list[Run]:
    """
    Return the long runs on a problem with one task; without a split they are PPO's.

    :param seeds: seeds of the runs
    """
    return [dict(env_id="LunarLander-v3", algorithm="GRPO", seed=s, total_timesteps=750_000) for s in seeds]


PARTS: dict[str, Any] = {
    "recovery": (run_tasks, recovery_runs, SEEDS),
    "merging": (run_tasks, merging_runs, SEEDS),
    "null": (run_tasks, null_runs, SEEDS),
    "harm": (run_plain, harm_runs, HARM_SEEDS),
    "long": (run_plain, long_runs, HARM_SEEDS),
}


def tasks_table(rows: list[Row], title: str = "") -> Table:
    """
    Return the table of tasks with types: how often the types were found, and the returns of the worst and the mean task.

    :param rows: rows of ``recovery`` or ``merging``
    :param title: title of the table
    """
    table = Table("problem", "algorithm", "seeds", "types found", "worst task solved", "worst task", "mean", title=title)
    for problem, algorithm in sorted({(row["run"]["problem"], row["run"]["algorithm"]) for row in rows}):
        own = results(rows, problem=problem, algorithm=algorithm)
        solved = sum(result["worst"] >= PROBLEMS[problem]["solved"] for result in own)
        found = sum(result.get("ari", 0) == 1 for result in own) if algorithm == "GRPO" else ""
        worst, mean = (describe(result[name] for result in own) for name in ("worst", "mean"))
        table.add_row(problem, algorithm, str(len(own)), str(found), str(solved), worst, mean)
    return table


def null_table(rows: list[Row]) -> Table:
    """
    Return the table of equal tasks, where every split is wrong.

    :param rows: rows of ``null``
    """
    table = Table("problem", "seeds", "with a split", "largest KL within", title="equal tasks: every split is a false one")
    for problem in dict.fromkeys(row["run"]["problem"] for row in rows):
        own = results(rows, problem=problem)
        largest = max(map(largest_kl, own))
        table.add_row(problem, str(len(own)), str(sum(map(has_split, own))), f"{largest:.2f}")
    return table


def largest_kl(result: dict[str, Any]) -> float:
    """
    Return the largest within-group KL that was measured while there was one group, in nats.

    :param result: measurements of one run
    """
    splits = [event for event in result["events"] if event[1] == "split"]
    before = [row[2] for row in result["curve"] if not splits or row[0] <= splits[0][0]]
    return float(np.nanmax([0.0, *before, *(event[4] for event in splits[:1])]))


def plot_kl(rows: list[Row], path: Path) -> None:
    """
    Draw the largest within-group KL of each run, on hidden types and on equal tasks.

    :param rows: rows of GRPO of ``recovery`` and ``null``
    :param path: PNG file
    """
    problems = list(dict.fromkeys(row["run"]["problem"] for row in rows))
    figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
    for position, problem in enumerate(problems):
        values = [largest_kl(result) for result in results(rows, problem=problem)]
        jitter = np.linspace(-0.25, 0.25, len(values))
        axis.plot(np.clip(values, 1e-3, None), position + jitter, "o", ms=4, color="C0" if problem in HIDDEN else "0.5")
    axis.axvline(0.3, color="black", lw=0.8, label="split_kl")
    axis.set(xscale="log", xlabel="largest KL within, nats", yticks=range(len(problems)), yticklabels=problems)
    axis.invert_yaxis()
    axis.legend()
    save(figure, path, dpi=110)


def harm_table(rows: list[Row]) -> Table:
    """
    Return the table of GRPO beside PPO; ratios are of returns minus those of the random policy, intervals of paired seeds.

    :param rows: rows of ``harm``
    """
    names = ("end", "last tenth", "over training")
    columns = ("environment", "algorithm", "seeds", *names, *(f"ratio, {name}" for name in names), "with a split")
    table = Table(*columns, title="plain problems, random router")
    for env_id, of_env in group_rows(rows, "env_id", PLAIN).items():
        base = float(np.mean([result["final"] for result in results(of_env, algorithm="random")]))
        ppo = harm_measures(results(of_env, algorithm="PPO"))
        for algorithm in group_rows(of_env, "algorithm", ("PPO", "GRPO", TWO_GROUPS)):
            own = results(of_env, algorithm=algorithm)
            values = harm_measures(own)
            ratios = [with_interval(ratio_of_iqms(x, y, base), 2) for x, y in zip(values, ppo, strict=True)]
            table.add_row(env_id, algorithm, str(len(own)), *map(describe, values), *ratios, str(sum(map(has_split, own))))
    return table


def long_table(rows: list[Row]) -> Table:
    """
    Return the table of long runs on a problem with one task: how many have a split.

    :param rows: rows of ``long``
    """
    table = Table("environment", "steps", "seeds", "with a split", "return, end", title="long runs, random router")
    for env_id, own in group_rows(rows, "env_id", PLAIN).items():
        found = results(own)
        final = describe(result["final"] for result in found)
        steps = str(own[0]["run"]["total_timesteps"])
        table.add_row(env_id, steps, str(len(own)), str(sum(map(has_split, found))), final)
    return table


def harm_measures(found: list[dict[str, Any]]) -> list[list[float]]:
    """
    Return three figures per run: return after training, over the last tenth of training, and over all of it.

    :param found: measurements of the runs
    :return: shape ``(3, n_runs)``; the first is of the deterministic policy, the others are of training episodes
    """
    last = [[row[1] for row in result["curve"][-max(1, len(result["curve"]) // 10) :]] for result in found]
    final, area = ([result[name] for result in found] for name in ("final", "area"))
    return [final, [float(np.nanmean(returns)) for returns in last], area]


def main() -> None:
    """Run the parts that the command line names, print their tables and draw the picture."""
    arguments = parse_parts(__doc__, PARTS)
    rows = {}
    for part in arguments.parts:
        function, runs, seeds = PARTS[part]
        rows[part] = run_part(function, runs(arguments.seeds or seeds), f"regrouping_{part}", arguments, total_timesteps=4096)
    console = Console(width=200)
    for part, title in (("recovery", "one group to begin with"), ("merging", "one group per task to begin with")):
        if part in rows:
            console.print(tasks_table(rows[part], title))
    for part, table in (("null", null_table), ("harm", harm_table), ("long", long_table)):
        if part in rows:
            console.print(table(rows[part]))
    if "recovery" in rows and "null" in rows:
        grpo = select(rows["recovery"], algorithm="GRPO")
        plot_kl(grpo + rows["null"], result_folder(arguments) / "regrouping_kl.png")


if __name__ == "__main__":
    main()
