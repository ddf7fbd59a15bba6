"""
Compare GRPO with PPO and multi-head PPO on MiniGrid tasks, after the protocol of MOORE (https://arxiv.org/abs/2311.11385).

The paper has figures of multi-head PPO and of mixtures of experts on these tasks.
``python -m benchmarks.sweeps.minigrid_tasks`` runs what is missing and prints the table. 400,000 steps per task, the 7x7x3
view as it is, a small network (convolutions of 16, 32 and 64 channels, one hidden layer of 128) for the actor and one for the
critic, and MOORE's hyper-parameters. A score is the return divided by the return that can be achieved.

EnvPool's environments are used where it is installed. There are 20 for each task, with rollouts of 100 steps; the committed
rows are from four of MiniGrid's own for each task, with rollouts of 500 steps, which is the same number of steps of each task.

- PPO: as it is, the task beside the features
- multi-head PPO: the published baseline: a hidden layer and a head per task, advantages normalised by task; GRPO with fixed
  groups and without balance
- GRPO: with its defaults, heads linear on a hidden layer that all tasks share
- GRPO, advantages normalised by task: as the baseline does

The part ``sparse`` asks whether a task that is hardly ever solved at first is given up. It has the same tasks, half of the
steps, ten seeds, and one method more: GRPO with the advantages of each task divided by nothing but their own deviation.

Seed 100 was used to choose what is compared, seeds 101 to 107 to choose the divisor of the advantages.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.lib.groups import events_of
from benchmarks.lib.measures import describe
from benchmarks.lib.minigrid import make_env
from benchmarks.lib.plots import plot_curves
from benchmarks.lib.rows import REDUCTIONS, Row, Run, by_method
from benchmarks.lib.sweep import parse_parts, result_folder, run_part
from benchmarks.lib.training import equal_parts, train_and_evaluate
from benchmarks.lib.variants import OwnDeviationGRPO
from benchmarks.lib.view_network import HiddenPerTask, ViewExtractor
from sb3_grpo import GRPO, evaluate_groups

SEEDS = {"mt3": range(5), "sparse": range(10)}
# achievable returns
TASKS = {"MiniGrid-LavaGapS7-v0": 0.9633, "MiniGrid-RedBlueDoors-6x6-v0": 0.99, "MiniGrid-MemoryS11-v0": 0.9777}
SUITES: dict[str, list[str]] = {"mt3": list(TASKS), "sparse": list(TASKS)}
SPARSE_TASK = 1  # the one of them that is hardly ever solved at first
GIVEN_UP = 0.1  # score below which a task is given up
STEPS_PER_ROLLOUT = 2000  # per task
EVAL_EPISODES = 16  # per task


def make_model(method: str, env: VecEnv, seed: int, **policy_kwargs: Any) -> OnPolicyAlgorithm:
    """
    Return a model with the hyper-parameters of the protocol, whose rollout has 2000 steps of each task.

    :param method: a name of :data:`METHODS`
    :param env: the same number of environments of each task
    :param seed: seed of model and environments
    :param policy_kwargs: arguments of the policy that replace those of the method
    """
    space: Any = env.observation_space
    n_tasks = int(space["task"].n)
    given = METHODS[method]
    kwargs: dict[str, Any] = dict(
        n_steps=STEPS_PER_ROLLOUT * n_tasks // env.num_envs,
        batch_size=256 * n_tasks,
        n_epochs=8,
        learning_rate=1e-3,
        ent_coef=0.01,
        **{**given, "policy_kwargs": {**given["policy_kwargs"], **policy_kwargs}},
    )
    algorithm = ALGORITHMS.get(method, GRPO)
    return algorithm("MultiInputPolicy", env, seed=seed, device="cpu", **kwargs)


def run(suite: str, method: str, seed: int, steps_per_task: int = 400_000, n_evaluations: int = 10) -> dict[str, Any]:
    """
    Train one model on all tasks of a suite, and evaluate each of them.

    :param suite: a name of :data:`SUITES`
    :param method: a name of :data:`METHODS`
    :param seed: seed of model and environments
    :param steps_per_task: environment steps for each task
    :param n_evaluations: number of evaluations
    :return: ``steps`` and ``returns`` of each evaluation, per task as shares of the return that can be achieved; of GRPO
        ``events``
    """
    names = SUITES[suite]
    model = make_model(method, make_env(names, seed), seed)
    eval_env = make_env(names, seed + 10_000, EVAL_EPISODES)  # an episode in each

    def evaluate(index: int) -> list[float]:
        found = evaluate_groups(model, eval_env, EVAL_EPISODES * len(names), deterministic=False)
        return [found[task].mean / TASKS[name] for task, name in enumerate(names)]

    result = train_and_evaluate(model, equal_parts(steps_per_task * len(names), n_evaluations), evaluate)
    if isinstance(model, GRPO):
        result["events"] = events_of(model)
    return result


NETWORK: dict[str, Any] = dict(
    features_extractor_class=ViewExtractor, share_features_extractor=False, net_arch=[], normalize_images=False
)
HEADS: dict[str, Any] = dict(router="discrete", router_kwargs=dict(key="task", hide=True), policy_kwargs=NETWORK)
ALGORITHMS: dict[str, type[PPO]] = {"PPO": PPO, "GRPO, advantages divided by their own deviation": OwnDeviationGRPO}
METHODS: dict[str, dict[str, Any]] = {
    "PPO": dict(policy_kwargs=NETWORK),
    "multi-head PPO": dict(
        router="discrete",
        router_kwargs=dict(key="task"),
        normalize_advantage="group",
        group_coef=0.0,
        merge_kl=None,
        split_kl=None,
        policy_kwargs={**NETWORK, "features_extractor_class": HiddenPerTask},
    ),
    "GRPO": HEADS,
    "GRPO, advantages normalised by task": dict(normalize_advantage="group", **HEADS),
    "GRPO, advantages divided by their own deviation": dict(normalize_advantage="group", **HEADS),
}
# methods of each suite, and arguments of its runs
PARTS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "mt3": (["PPO", "multi-head PPO", "GRPO", "GRPO, advantages normalised by task"], {}),
    "sparse": ([method for method in METHODS if method != "multi-head PPO"], dict(steps_per_task=200_000)),
}


def make_runs(suite: str, seeds: Sequence[int]) -> list[Run]:
    """
    Return the runs of all methods of a suite.

    :param suite: a name of :data:`SUITES`
    :param seeds: seeds of the runs
    """
    methods, given = PARTS[suite]
    return [dict(suite=suite, method=method, seed=seed, **given) for seed in seeds for method in methods]


def scores_table(rows: list[Row], suite: str) -> Table:
    """
    Return the table of scores by method.

    :param rows: rows of a suite
    :param suite: a name of :data:`SUITES`
    """
    columns = (f"{name.removeprefix('MiniGrid-').removesuffix('-v0')}, end" for name in SUITES[suite])
    reduced = (f"{name}, {when}" for name in REDUCTIONS for when in ("half way", "end", "second half"))
    table = Table("method", "seeds", *reduced, *columns, title=suite)
    for method, own in by_method(rows, METHODS).items():
        returns = np.array([row["result"]["returns"] for row in own])  # by run, evaluation and task
        half = returns.shape[1] // 2
        # an evaluation has few episodes: the mean over the second half is the least noisy of the three
        scores = (returns[:, half - 1], returns[:, -1], returns[:, half:].mean(axis=1))
        values = [reduce(score, axis=1) for reduce in REDUCTIONS.values() for score in scores]
        table.add_row(method, str(len(own)), *(describe(column, 2) for column in (*values, *returns[:, -1].T)))
    return table


def sparse_table(rows: list[Row]) -> Table:
    """
    Return the table of how often each method gave up the sparse task, and of the scores after training.

    :param rows: rows of the suite ``sparse``
    """
    columns = ("given up", "sparse task, end", *(f"{name}, end" for name in REDUCTIONS))
    table = Table("method", "seeds", *columns, title="sparse")
    for method, own in by_method(rows, METHODS).items():
        end = np.array([row["result"]["returns"][-1] for row in own])  # by run and task
        n_given_up = int((end[:, SPARSE_TASK] < GIVEN_UP).sum())
        values = [end[:, SPARSE_TASK], *(reduce(end, axis=1) for reduce in REDUCTIONS.values())]
        table.add_row(method, str(len(own)), f"{n_given_up} of {len(own)}", *(describe(column, 2) for column in values))
    return table


def main() -> None:
    """Run the suites that the command line names, print their tables and draw their pictures."""
    arguments = parse_parts(__doc__, SUITES)
    for suite in arguments.parts:
        runs = make_runs(suite, arguments.seeds or SEEDS[suite])
        rows = run_part(run, runs, f"minigrid_{suite}", arguments, steps_per_task=2000, n_evaluations=1)
        Console(width=200).print(sparse_table(rows) if suite == "sparse" else scores_table(rows, suite))
        path = result_folder(arguments) / f"minigrid_{suite}.png"
        plot_curves(rows, METHODS, "return, 1: achievable", (-0.05, 1.05), path)


if __name__ == "__main__":
    main()
