"""
Compare balance by weights and by data on four gridworlds of unequal difficulty (https://arxiv.org/abs/2605.14350).

The published protocol: a linear policy on the agent's cell and the task, both one-hot; 128 steps per update, one minibatch,
one epoch, no clipping, learning rate 0.01, entropy coefficient 0.01. The 128 steps are of 8 environments, where the paper has
one. What is measured is the probability that an episode with drawn actions reaches the goal, which is computed.

Part "linear": the policy has no hidden layer.

- PPO: tasks are drawn with equal probabilities
- PPO, gap sampling: with the published rule
- PPO, task sampling: with this package's ``TaskSamplingCallback``
- PPO, sampling by gap odds: with ``TaskSamplingCallback`` and ``balancer="gap_odds"``, which holds the odds that the published
  rule moves towards
- heads: GRPO with a head per task, which shares nothing with the others
- splitting: GRPO that begins with one group, and may split it until each task has a head. Until the first split it is PPO

Part "trunk": a hidden layer that tasks share, of 4, 8 and 16 units. PPO, and GRPO with a head per task, whose effort is moved
as weights of the loss (*loss*), as data by ``TaskSamplingCallback`` (*data*), as both, or not at all (*neither*).

``python -m benchmarks.sweeps.gridworlds`` runs what has no result row yet, prints the tables and draws the pictures. Seeds 100
to 109 served choosing.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.lib.gap_sampling import GapSamplingCallback
from benchmarks.lib.gridworlds import N_CELLS, N_TASKS, TaskGridWorld, success_probabilities
from benchmarks.lib.groups import events_of
from benchmarks.lib.hyperparams import FIXED_GROUPS
from benchmarks.lib.measures import describe, describe_steps
from benchmarks.lib.plots import plot_curves
from benchmarks.lib.rows import REDUCTIONS, Row, Run, by_method, curves, group_rows
from benchmarks.lib.sweep import parse_parts, result_folder, run_part
from benchmarks.lib.training import Method, equal_parts, train_and_evaluate
from sb3_grpo import GRPO, LeanVecEnv, TaskSamplingCallback

SEEDS = range(20)
N_ENVS = 8
STEPS_PER_ROLLOUT = 128
# 65 evaluations after 39 rollouts each, up to the last step at which the paper has figures
N_EVALUATIONS = 65
TOTAL_TIMESTEPS = N_EVALUATIONS * 39 * STEPS_PER_ROLLOUT
PUBLISHED_AT = (125_000, 320_000)  # steps at which the paper has figures
SOLVED = 0.95


def sampling_by_gap_odds() -> TaskSamplingCallback:
    """Return the callback that samples tasks by the rule of DRATS, with the sharpness of its public code."""
    return TaskSamplingCallback(16.0, uniform_share=0.1, balancer="gap_odds", group_score="gap")


ROUTER: dict[str, Any] = dict(router="one_hot", router_kwargs=dict(columns=(N_CELLS, N_CELLS + N_TASKS)))
HEADS = {**ROUTER, **FIXED_GROUPS}
NO_BALANCE = {**HEADS, "group_coef": 0.0}
SPLITTING = {**ROUTER, "n_groups": 1, "max_groups": N_TASKS}
PARTS: dict[str, dict[str, Method]] = {
    "linear": {
        "PPO": Method(PPO),
        "PPO, gap sampling": Method(PPO, {}, [GapSamplingCallback]),
        "PPO, task sampling": Method(PPO, {}, [TaskSamplingCallback]),
        "PPO, sampling by gap odds": Method(PPO, {}, [sampling_by_gap_odds]),
        "heads, lambda 0": Method(GRPO, NO_BALANCE),
        "heads": Method(GRPO, HEADS),
        "heads, task sampling": Method(GRPO, HEADS, [TaskSamplingCallback]),
        "splitting, lambda 0": Method(GRPO, {**SPLITTING, "group_coef": 0.0}),
        "splitting": Method(GRPO, SPLITTING),
        "splitting, task sampling": Method(GRPO, SPLITTING, [TaskSamplingCallback]),
        "splitting, gap sampling": Method(GRPO, SPLITTING, [GapSamplingCallback]),
    },
    "trunk": {
        "PPO": Method(PPO),
        "neither": Method(GRPO, NO_BALANCE),
        "loss": Method(GRPO, HEADS),
        "data": Method(GRPO, NO_BALANCE, [TaskSamplingCallback]),
        "both": Method(GRPO, HEADS, [TaskSamplingCallback]),
    },
}
UNITS: dict[str, tuple[int, ...]] = {"linear": (0,), "trunk": (4, 8, 16)}


def make_env(seed: int) -> VecEnv:
    """
    Return the training environments, which draw their tasks.

    :param seed: seed of the first environment
    """
    env = LeanVecEnv([TaskGridWorld] * N_ENVS)
    env.seed(seed)
    return env


def make_model(method: Method, units: int, seed: int) -> OnPolicyAlgorithm:
    """
    Return a model with the hyper-parameters of the protocol.

    :param method: what is trained
    :param units: size of the hidden layer; 0: none
    :param seed: seed of model and environments
    """
    kwargs: dict[str, Any] = dict(
        n_steps=STEPS_PER_ROLLOUT // N_ENVS,
        batch_size=STEPS_PER_ROLLOUT,
        n_epochs=1,
        clip_range=1e9,
        learning_rate=0.01,
        ent_coef=0.01,
        policy_kwargs=dict(net_arch=[units] if units else []),
    )
    return method.algorithm("MlpPolicy", make_env(seed), seed=seed, device="cpu", **{**kwargs, **method.kwargs})


def run(
    part: str,
    method: str,
    units: int,
    seed: int,
    total_timesteps: int = TOTAL_TIMESTEPS,
    n_evaluations: int = N_EVALUATIONS,
) -> dict[str, Any]:
    """
    Train one model on all tasks, and evaluate each of them.

    :param part: a name of :data:`PARTS`
    :param method: a name of the part
    :param units: size of the hidden layer; 0: none
    :param seed: seed of model and environments
    :param total_timesteps: environment steps
    :param n_evaluations: number of evaluations
    :return: ``steps`` and ``returns`` of each evaluation; the latter are the probabilities of success, per task; of GRPO
        ``events`` too
    """
    given = PARTS[part][method]
    model = make_model(given, units, seed)
    callbacks = [make() for make in given.callbacks]

    def evaluate(index: int) -> list[float]:
        return success_probabilities(model).round(4).tolist()

    result = train_and_evaluate(model, equal_parts(total_timesteps, n_evaluations), evaluate, callbacks)
    if isinstance(model, GRPO):
        result["events"] = events_of(model)
    return result


def make_runs(part: str, seeds: Sequence[int]) -> list[Run]:
    """
    Return the runs of one part.

    :param part: a name of :data:`PARTS`
    :param seeds: seeds of the runs
    """
    return [
        dict(part=part, method=method, units=units, seed=seed)
        for seed in seeds
        for units in UNITS[part]
        for method in PARTS[part]
    ]


def steps_until_solved(row: Row) -> float:
    """
    Return the steps of the first evaluation in which each task succeeds with a probability of 0.95; infinity if there is none.

    :param row: row of one run
    """
    steps = zip(row["result"]["steps"], row["result"]["returns"], strict=True)
    return min((step for step, success in steps if min(success) >= SOLVED), default=np.inf)


def success_table(rows: list[Row], part: str) -> Table:
    """
    Return the table of one part: worst task and mean of the tasks where the paper has figures, and steps until all are solved.

    :param rows: rows of the part
    :param part: a name of :data:`PARTS`
    """
    places = [f"{name}, {steps // 1000}k" for steps in PUBLISHED_AT for name in REDUCTIONS]
    table = Table("units", "method", "seeds", *places, f"steps until worst {SOLVED}", title=part)
    for units, of_size in group_rows(rows, "units", UNITS[part]).items():
        for method, own in by_method(of_size, PARTS[part]).items():
            values = [curves(own, reduce) for reduce in REDUCTIONS.values()]
            steps = np.array(own[0]["result"]["steps"])
            last = [np.searchsorted(steps, limit, side="right") - 1 for limit in PUBLISHED_AT]
            cells = [describe(x[:, index], 2) for index in last for x in values]
            table.add_row(str(units), method, str(len(own)), *cells, describe_steps(list(map(steps_until_solved, own))))
    return table


def main() -> None:
    """Run the parts that the command line names, print their tables and draw their pictures."""
    arguments = parse_parts(__doc__, PARTS)
    for part in arguments.parts:
        runs = make_runs(part, arguments.seeds or SEEDS)
        rows = run_part(run, runs, f"gridworlds_{part}", arguments, total_timesteps=2 * STEPS_PER_ROLLOUT, n_evaluations=2)
        Console(width=180).print(success_table(rows, part))
        for units, own in group_rows(rows, "units", UNITS[part]).items():
            name = f"gridworlds_{part}_{units}" if units else f"gridworlds_{part}"
            plot_curves(own, PARTS[part], "probability of success", (-0.02, 1.02), result_folder(arguments) / f"{name}.png")


if __name__ == "__main__":
    main()
