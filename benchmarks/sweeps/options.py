"""
Measure what the options ``probe_kl_coef``, ``regroup_freq``, ``regroup_warmup`` and ``group_score`` do.

- recovery: ten CartPole tasks of two hidden types, one group to begin with; are the types found, and when?
- two_types: the same, one group per task to begin with; which groups are merged?
- group_score: four CartPole tasks with rewards scaled by 1, 1, 10 and 0.1, one head per task

One option at a time has another value than its default. Rollouts have 1024 steps, so that groups are compared after every
second rollout by default, and merged after 10 rollouts; a ``regroup_warmup`` of 100 rollouts is longer than the training.
``python -m benchmarks.sweeps.options`` runs what has no result row yet and prints the tables. The seeds were not used to
choose the defaults.
"""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.lib.groups import groupings_of
from benchmarks.lib.hidden_types import HIDDEN, PROBLEMS, STEPS, train_tasks
from benchmarks.lib.hyperparams import FIXED_GROUPS
from benchmarks.lib.measures import describe, describe_range, describe_steps
from benchmarks.lib.rows import Row, Run, n_groups, results, select
from benchmarks.lib.sweep import parse_parts, run_part
from benchmarks.lib.tasks import END_AND_TRAINING, SETTINGS, end_and_training, head_per_task, make_env, train_on_tasks
from sb3_grpo import GRPO

SEEDS = range(300, 305)
N_STEPS = 128
# values in these runs, which are left out of the runs of the option
DEFAULTS = {"probe_kl_coef": 0.05, "regroup_freq": 2, "regroup_warmup": 10}
VALUES: dict[str, tuple[float, ...]] = {
    "probe_kl_coef": (0.02, 0.1, 0.2),
    "regroup_freq": (1, 8 * 2),
    "regroup_warmup": (0, 10 * 10),
}
# problem, groups to begin with, and the options that can make a difference: the warm-up delays merges only
PARTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "recovery": (HIDDEN[0], "one group", ("probe_kl_coef", "regroup_freq")),
    "two_types": (HIDDEN[0], "one per task", ("regroup_warmup",)),
}
SCORES, COEFS = ("return", "reward"), (0.005, 0.5)


def run(
    problem: str, start: str, option: str | None, value: float | None, seed: int, total_timesteps: int = STEPS
) -> dict[str, Any]:
    """
    Train on tasks with types, with one option changed.

    :param problem: a name of :data:`benchmarks.lib.hidden_types.PROBLEMS`
    :param start: ``"one group"`` or ``"one per task"``
    :param option: a name of :data:`VALUES`; ``None``: all have their defaults
    :param value: value of the option
    :param seed: seed of model and environments
    :param total_timesteps: environment steps
    :return: as :func:`benchmarks.lib.hidden_types.run_tasks`, without the curve, and ``right_split``, the time step of the
        first right split, ``None`` without one, and ``wrong_merges``, how many there were
    """
    changed = {} if option is None else {option: value}
    model, result = train_tasks(problem, "GRPO", seed, start, total_timesteps, n_steps=N_STEPS, **changed)
    del result["curve"]
    events, types = list(zip(result["events"], groupings_of(model), strict=True)), PROBLEMS[problem]["types"]
    result["right_split"] = next((event[0] for event, groups in events if is_right_split(event, groups, types)), None)
    result["wrong_merges"] = sum(is_wrong_merge(event, groups, types) for event, groups in events)
    return result


def types_in(group: int, groups: Sequence[int], types: Sequence[int]) -> set[int]:
    """
    Return the types of the tasks in a group.

    :param group: number of the group
    :param groups: group of each task
    :param types: type of each task
    """
    return {own for own, other in zip(types, groups, strict=True) if other == group}


def is_right_split(event: Sequence[Any], groups: Sequence[int], types: Sequence[int]) -> bool:
    """
    Return whether an event is a split after which the two groups have no type in common.

    :param event: one of :func:`benchmarks.lib.groups.events_of`
    :param groups: group of each task after the event
    :param types: type of each task
    """
    _, kind, old, new, _ = event
    return kind == "split" and types_in(old, groups, types).isdisjoint(types_in(new, groups, types))


def is_wrong_merge(event: Sequence[Any], groups: Sequence[int], types: Sequence[int]) -> bool:
    """
    Return whether an event is a merge after which the group has tasks of several types.

    :param event: one of :func:`benchmarks.lib.groups.events_of`
    :param groups: group of each task after the event
    :param types: type of each task
    """
    _, kind, kept, _, _ = event
    return kind == "merge" and len(types_in(kept, groups, types)) > 1


def run_group_score(
    group_score: str, group_coef: float, seed: int, total_timesteps: int = 61_440, n_evaluations: int = 10
) -> dict[str, Any]:
    """
    Train one model whose groups stay as they are, and evaluate each task.

    :param group_score: ``"return"`` or ``"reward"``
    :param group_coef: lambda
    :param seed: seed of model and environments
    :param total_timesteps: environment steps
    :param n_evaluations: number of evaluations
    :return: see :func:`benchmarks.lib.tasks.train_on_tasks`
    """
    env = make_env("scaled", seed)
    kwargs = {**head_per_task(env), **FIXED_GROUPS, **SETTINGS["scaled"]["kwargs"]}
    kwargs.update(group_score=group_score, group_coef=group_coef)
    model = GRPO("MlpPolicy", env, seed=seed, device="cpu", **kwargs)
    return train_on_tasks(model, [], "scaled", seed, total_timesteps, n_evaluations)


def make_runs(part: str, seeds: Sequence[int]) -> list[Run]:
    """
    Return the runs of a part.

    :param part: a name of :data:`PARTS`, or ``"group_score"``
    :param seeds: seeds of the runs
    """
    if part == "group_score":
        return [dict(group_score=score, group_coef=coef, seed=s) for score in SCORES for coef in COEFS for s in seeds]
    problem, start, options = PARTS[part]
    changes = [(None, None), *((option, value) for option in options for value in VALUES[option])]
    return [dict(problem=problem, start=start, option=o, value=v, seed=s) for o, v in changes for s in seeds]


def options_table(rows: list[Row], title: str = "") -> Table:
    """
    Return the table of the values of each option; the line of a default value has the runs that all options share.

    :param rows: rows of one of :data:`PARTS`
    :param title: title of the table
    """
    columns = ("types found", "first right split", "wrong merges", "groups", "worst task", "mean")
    table = Table("option", "value", "seeds", *columns, title=title)
    for option, default in DEFAULTS.items():
        if not select(rows, option=option):
            continue
        for value in sorted((default, *VALUES[option])):
            changed = dict(option=None, value=None) if value == default else dict(option=option, value=value)
            if own := results(rows, **changed):
                table.add_row(option, str(value), str(len(own)), *option_columns(own))
    return table


def option_columns(found: list[dict[str, Any]]) -> list[str]:
    """
    Return the figures of one line of :func:`options_table`.

    :param found: measurements of the runs with one value of an option
    """
    right_splits = [float("inf") if result["right_split"] is None else result["right_split"] for result in found]
    return [
        str(sum(result["ari"] == 1 for result in found)),
        describe_steps(right_splits),
        str(sum(result["wrong_merges"] for result in found)),
        describe_range(map(n_groups, found)),
        *(describe(result[name] for result in found) for name in ("worst", "mean")),
    ]


def group_score_table(rows: list[Row], title: str = "") -> Table:
    """
    Return the table of both scores, by lambda.

    :param rows: rows of ``group_score``
    :param title: title of the table
    """
    table = Table("group_score", "group_coef", "seeds", *END_AND_TRAINING, title=title)
    for coef in COEFS:
        for score in SCORES:
            if own := select(rows, group_score=score, group_coef=coef):
                table.add_row(score, str(coef), str(len(own)), *end_and_training(own))
    return table


def main() -> None:
    """Run the parts that the command line names, and print their tables."""
    arguments = parse_parts(__doc__, (*PARTS, "group_score"))
    for part in arguments.parts:
        runs = make_runs(part, arguments.seeds or SEEDS)
        name = f"options_{part}"
        if part == "group_score":
            rows = run_part(run_group_score, runs, name, arguments, total_timesteps=2048, n_evaluations=2)
            Console(width=150).print(group_score_table(rows, part))
        else:
            rows = run_part(run, runs, name, arguments, total_timesteps=4096)
            Console(width=150).print(options_table(rows, part))


if __name__ == "__main__":
    main()
