"""
Compare GRPO with PPO and multi-head PPO on MiniGrid tasks, after the protocol of MOORE (https://arxiv.org/abs/2311.11385).

The paper has figures of multi-head PPO and of mixtures of experts on three, five and seven tasks (MT3, MT5, MT7).
``python -m benchmarks.sweeps.minigrid_tasks`` runs what is missing, prints the tables and draws the pictures. 400,000 steps
per task, the 7x7x3 view as it is, a small network (convolutions of 16, 32 and 64 channels, one hidden layer of 128) for the
actor and one for the critic, and MOORE's hyper-parameters, for all methods; nothing was tuned. A score is the return divided
by the return that can be achieved. ``mt2`` is MT3 without MemoryS11, which an agent without memory cannot solve.

EnvPool's environments are used where it is installed, 20 for each task, with rollouts of 100 steps. Tasks are sampled in
MiniGrid's own environments. The part ``own`` has four of MiniGrid's own for each task, with rollouts of 500 steps, which is
the same number of steps of each task: what MT3's figures would be with them.

- PPO: as it is, the task beside the features
- PPO, task sampling: tasks are drawn at reset, more often those that fall behind
- multi-head PPO: the published baseline: a hidden layer and a head per task, advantages normalised by task; GRPO with fixed
  groups and without balance
- GRPO: with its defaults, heads linear on a hidden layer that all tasks share, which does not see the task
- GRPO, targets: groups are compared by how near they are to the return that can be achieved (``group_score="gap"``), which
  in MemoryS11 is taken to be 0.5, as an agent without memory can only guess
- GRPO, task sampling: both
- GRPO, starts with one group: the same heads, but all tasks share one until they contradict each other
- GRPO, advantages normalised by task: as the baseline does

The part ``sparse`` asks whether a task that is hardly ever solved at first is given up. It has the same tasks, half of the
steps, ten seeds, and one method more: GRPO with the advantages of each task divided by nothing but their own deviation.

Seed 100 was used to choose what is compared, seeds 101 to 107 to choose the divisor of the advantages.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.lib.minigrid import ENVS_PER_TASK, make_drawn_envs, make_env, make_python_envs
from benchmarks.lib.plots import plot_curves
from benchmarks.lib.rows import Row, Run
from benchmarks.lib.sweep import parse_parts, result_folder, run_part
from benchmarks.lib.task_training import train_by_task
from benchmarks.lib.training import equal_parts
from benchmarks.lib.variants import OwnDeviationGRPO
from benchmarks.lib.view_network import HiddenPerTask, ViewExtractor
from benchmarks.sweeps.minigrid_tables import (
    NEEDS_MEMORY,
    draw_groups,
    draw_tasks,
    scores_table,
    sparse_table,
    tasks_table,
)
from sb3_grpo import GRPO, evaluate_groups

# achievable returns
TASKS = {
    "MiniGrid-LavaGapS7-v0": 0.9633,
    "MiniGrid-RedBlueDoors-6x6-v0": 0.99,
    "MiniGrid-MemoryS11-v0": 0.9777,
    "MiniGrid-DoorKey-6x6-v0": 0.9725,
    "MiniGrid-DistShift1-v0": 0.9607,
    "MiniGrid-SimpleCrossingS9N2-v0": 0.9583,
    "MiniGrid-MultiRoom-N2-S4-v0": 0.8875,
}
SUITES: dict[str, list[str]] = {f"mt{n_tasks}": list(TASKS)[:n_tasks] for n_tasks in (2, 3, 5, 7)}
HALF = 0.5  # return of MemoryS11 if one of two ways is guessed
STEPS_PER_ROLLOUT = 2000  # per task
EVAL_EPISODES = 16  # per task


def make_model(method: str, env: VecEnv, seed: int, **policy_kwargs: Any) -> PPO:
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
    if given.get("group_score") == "gap":
        targets = [HALF if name == NEEDS_MEMORY else best for name, best in TASKS.items()]
        given = {**given, "group_targets": [(0.0, target) for target in targets[:n_tasks]]}
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


def run(
    suite: str,
    method: str,
    seed: int,
    steps_per_task: int = 400_000,
    n_evaluations: int = 10,
    own_envs: int | None = None,
) -> dict[str, Any]:
    """
    Train one model on all tasks of a suite, and evaluate each of them.

    :param suite: a name of :data:`SUITES`
    :param method: a name of :data:`METHODS`
    :param seed: seed of model and environments
    :param steps_per_task: environment steps for each task
    :param n_evaluations: number of evaluations
    :param own_envs: number of MiniGrid's own environments for each task; ``None``: 20 of EnvPool's
    :return: what :func:`benchmarks.lib.task_training.train_by_task` returns; ``returns`` are shares of the return that can
        be achieved
    """
    names = SUITES[suite]
    env = make_envs(names, seed, method in SAMPLED, own_envs)
    model = make_model(method, env, seed)
    # an episode in each
    eval_env = make_env(names, seed + 10_000, EVAL_EPISODES)

    def evaluate() -> list[float]:
        found = evaluate_groups(model, eval_env, EVAL_EPISODES * len(names), deterministic=False)
        return [found[task].mean / TASKS[name] for task, name in enumerate(names)]

    parts = equal_parts(steps_per_task * len(names), n_evaluations)
    return train_by_task(model, parts, evaluate, len(names) if method in SAMPLED else None)


def make_envs(names: Sequence[str], seed: int, sampled: bool, own_envs: int | None) -> VecEnv:
    """
    Return the environments of a training.

    :param names: registered names of the tasks
    :param seed: seed of the first environment
    :param sampled: whether tasks are drawn at reset; else each environment has its own
    :param own_envs: number of MiniGrid's own environments for each task; ``None``: 20 of EnvPool's
    """
    if sampled:
        return make_drawn_envs(names, seed, ENVS_PER_TASK)
    return make_env(names, seed) if own_envs is None else make_python_envs(names, seed, own_envs)


NETWORK: dict[str, Any] = dict(
    features_extractor_class=ViewExtractor, share_features_extractor=False, net_arch=[], normalize_images=False
)
HEADS: dict[str, Any] = dict(router="discrete", router_kwargs=dict(key="task", hide=True), policy_kwargs=NETWORK)
ALGORITHMS: dict[str, type[PPO]] = {
    "PPO": PPO,
    "PPO, task sampling": PPO,
    "GRPO, advantages divided by their own deviation": OwnDeviationGRPO,
}
SAMPLED = ("PPO, task sampling", "GRPO, task sampling")
METHODS: dict[str, dict[str, Any]] = {
    "PPO": dict(policy_kwargs=NETWORK),
    "PPO, task sampling": dict(policy_kwargs=NETWORK),
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
    "GRPO, targets": dict(group_score="gap", **HEADS),
    "GRPO, task sampling": HEADS,
    "GRPO, starts with one group": dict(n_groups=1, **HEADS),
    "GRPO, advantages normalised by task": dict(normalize_advantage="group", **HEADS),
    "GRPO, advantages divided by their own deviation": dict(normalize_advantage="group", **HEADS),
}
COMPARED = (
    "PPO",
    "GRPO",
    "GRPO, targets",
    "multi-head PPO",
    "GRPO, task sampling",
    "PPO, task sampling",
    "GRPO, starts with one group",
)
BY_TASK = ("GRPO, advantages normalised by task", "GRPO, advantages divided by their own deviation")


class Part(NamedTuple):
    """A suite, methods, seeds, and other arguments of the runs."""

    suite: str
    methods: Sequence[str]
    seeds: range
    kwargs: Mapping[str, Any] = {}


PARTS: dict[str, Part] = {
    **{suite: Part(suite, COMPARED, range(10)) for suite in SUITES},
    "sparse": Part("mt3", ("PPO", "GRPO", *BY_TASK), range(10), dict(steps_per_task=200_000)),
    "own": Part("mt3", ("PPO", "multi-head PPO", "GRPO", BY_TASK[0]), range(5), dict(own_envs=4)),
}


def make_runs(part: str, seeds: Sequence[int]) -> list[Run]:
    """
    Return the runs of all methods of a part.

    :param part: a name of :data:`PARTS`
    :param seeds: seeds of the runs
    """
    suite, methods, _, given = PARTS[part]
    return [dict(suite=suite, method=method, seed=seed, **given) for seed in seeds for method in methods]


def part_table(rows: list[Row], part: str) -> Table:
    """
    Return the table of a part.

    :param rows: rows of the part
    :param part: a name of :data:`PARTS`
    """
    if part == "sparse":
        return sparse_table(rows, METHODS)
    return scores_table(rows, SUITES[PARTS[part].suite], METHODS, part)


def part_tasks_table(rows: list[Row], part: str) -> Table:
    """
    Return the table of each task of a part.

    :param rows: rows of the part
    :param part: a name of :data:`PARTS`
    """
    return tasks_table(rows, SUITES[PARTS[part].suite], METHODS)


def main() -> None:
    """Run the parts that the command line names, print their tables and draw their pictures."""
    arguments = parse_parts(__doc__, PARTS)
    for part in arguments.parts:
        names, folder = SUITES[PARTS[part].suite], result_folder(arguments)
        runs = make_runs(part, arguments.seeds or PARTS[part].seeds)
        rows = run_part(run, runs, f"minigrid_{part}", arguments, steps_per_task=2000, n_evaluations=1)
        Console(width=220).print(part_table(rows, part), part_tasks_table(rows, part))
        plot_curves(rows, METHODS, "return, 1: achievable", (-0.05, 1.05), folder / f"minigrid_{part}.png")
        if part in SUITES:
            draw_tasks(rows, names, METHODS, folder / f"minigrid_{part}_tasks.png")
            draw_groups(rows, names, METHODS, folder / f"minigrid_{part}_groups.png")


if __name__ == "__main__":
    main()
