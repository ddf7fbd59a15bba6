"""
Fill the tables of ``docs/results.md``, ``docs/multi_task.md`` and ``docs/zoo.md`` from the result rows, and draw the pictures.

``python -m benchmarks.report`` reads ``benchmarks/results``; ``--results FOLDER --docs FOLDER`` read other rows and write
other pages. A marker is a line ``<!-- table: NAME -->``, with a name of :data:`TABLES`; the table goes to ``<!-- end -->``.
"""

import argparse
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.lib.hidden_types import HIDDEN
from benchmarks.lib.measures import describe, iqm, probability_of_improvement, with_interval
from benchmarks.lib.rows import RESULTS, ROOT, by_method, results, rows_by_seed
from benchmarks.sweeps import (
    balance_tables,
    balancing_rules,
    critic_free,
    delayed_rewards,
    eight_tasks,
    gridworlds,
    meta_world,
    minigrid_tasks,
    objectives,
    options,
    own_environments,
    regrouping,
    tuning,
)
from benchmarks.sweeps.balance_methods import RESULT_SETTINGS
from benchmarks.sweeps.head_to_head import CLIP_RANGES
from benchmarks.sweeps.head_to_head_tables import (
    COMPARED,
    Plain,
    clip_range_rows,
    clip_range_table,
    draw_clip_range,
    draw_thresholds,
    thresholds_table,
)

DOCS = ROOT / "docs"
PAGES = (DOCS / "results.md", DOCS / "multi_task.md", DOCS / "zoo.md")
MARKED = re.compile(r"(<!-- table: (?P<name>[\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Line = tuple[str, ...]


def to_markdown(table: Table) -> str:
    """
    Return a table in Markdown.

    :param table: table as the scripts print it
    """
    header = [str(column.header) for column in table.columns]
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    lines = [header, ["---"] * len(header), *zip(*cells, strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def task_returns(folder: Path, setting: str) -> list[np.ndarray]:
    """
    Return the returns per task after training of PPO and of GRPO, shapes ``(n_runs, n_tasks)``; empty before both have rows.

    :param folder: folder of the result rows
    :param setting: a name of :data:`RESULT_SETTINGS`
    """
    found = by_method(rows_by_seed(folder, f"balance_{setting}"), COMPARED)
    returns = [np.array([row["result"]["returns"][-1] for row in rows]) for rows in found.values()]
    return returns if len(returns) == len(COMPARED) else []


def comparison_lines(folder: Path) -> Iterator[Line]:
    """
    Return what is compared, how it was measured, PPO's figure and GRPO's figure, for each comparison that has rows.

    :param folder: folder of the result rows
    """
    settings = ("drawn", "scaled", "lander", "lander_scaled")
    drawn, scaled, lander, lander_scaled = (task_returns(folder, setting) for setting in settings)
    in_tasks = {"four CartPole tasks": drawn, "LunarLander's contexts": lander}
    yield from target_lines(in_tasks)
    yield from conflict_lines(folder)
    yield from clip_range_lines(folder)
    for what, returns in {"four CartPole tasks": scaled, "LunarLander's contexts": lander_scaled}.items():
        if returns:
            yield "stability", f"{what}, rewards times 1, 1, 10, 0.1: worst", *described(x.min(axis=1) for x in returns)
    compared = {f"{what}, worst": [[x.min(axis=1)] for x in returns] for what, returns in in_tasks.items()}
    for what, samples in {**compared, "one task": Plain(folder).ends()}.items():
        if samples:
            better = probability_of_improvement(samples[1], samples[0])
            yield "suitable problems", f"{what}: probability that a run beats PPO's", "0.50", with_interval(better, 2)


def described(samples: Iterable[Iterable[float]]) -> Iterator[str]:
    """
    Return the interquartile mean of each sample, with its interval, as text.

    :param samples: one value per run for each algorithm
    """
    return map(describe, samples)


def target_lines(in_tasks: dict[str, list[np.ndarray]]) -> Iterator[Line]:
    """
    Return the lines of the optimisation target.

    :param in_tasks: see :func:`task_returns`, by the name of the tasks
    """
    for what, returns in in_tasks.items():
        if returns:
            mean, worst = ("mean of the tasks", "worst task") if "CartPole" in what else ("mean", "worst")
            yield "optimisation target", f"{what}: {mean}", *described(x.mean(axis=1) for x in returns)
            yield "optimisation target", f"{what}: {worst}", *described(x.min(axis=1) for x in returns)


def conflict_lines(folder: Path) -> Iterator[Line]:
    """
    Return the lines of tasks with hidden types.

    :param folder: folder of the result rows
    """
    rows = rows_by_seed(folder, "regrouping_recovery")
    for problem in HIDDEN if rows else ():
        worst = [[result["worst"] for result in results(rows, problem=problem, algorithm=name)] for name in COMPARED]
        yield "conflicts", f"hidden types, {problem}: worst task", *described(worst)


def clip_range_lines(folder: Path) -> Iterator[Line]:
    """
    Return the line of the clip ranges.

    :param folder: folder of the result rows
    """
    rows, solved = rows_by_seed(folder, "head_to_head_clip_range"), balance_tables.SOLVED
    if rows:
        found = [[clip_range_rows(rows, name, value) for value in CLIP_RANGES] for name in COMPARED]
        worst = [[iqm(returns.min(axis=1)) for returns in given if len(returns)] for given in found]
        reached = [f"{sum(value >= solved for value in values)} of {len(values)}" for values in worst]
        yield "stability", f"clip ranges whose worst task reaches {solved}", *reached


def comparison_table(folder: Path) -> Table:
    """
    Return the table that compares PPO and GRPO in one line per question.

    :param folder: folder of the result rows
    """
    table = Table("", "measured", *COMPARED)
    for line in comparison_lines(folder):
        table.add_row(*line)
    return table


def of_rows(name: str, table: Callable[..., Table], *arguments: Any) -> Callable[[Path], Table]:
    """
    Return a function that makes a table from the folder of the rows.

    :param name: name of the file of rows, without ending
    :param table: makes the table from the rows and ``arguments``
    :param arguments: further arguments of ``table``
    """
    return lambda folder: table(rows_by_seed(folder, name), *arguments)


TABLES: dict[str, Callable[[Path], Table]] = {
    "comparison": comparison_table,
    "plain": lambda folder: Plain(folder).table(),
    **{setting: of_rows(f"balance_{setting}", balance_tables.results_table) for setting in RESULT_SETTINGS},
    **{f"lambda {s}": of_rows("balance_ablation", balance_tables.ablation_table, s) for s in ("drawn", "rare")},
    **{f"rules {s}": of_rows(f"balancing_rules_{s}", balancing_rules.rules_table) for s in ("drawn", "scaled", "wide")},
    **{f"eight tasks {part}": of_rows(f"eight_tasks_{part}", eight_tasks.tasks_table) for part in eight_tasks.PARTS},
    "eight tasks beside equal scales": lambda folder: eight_tasks.scales_table(
        rows_by_seed(folder, "eight_tasks_scales"), rows_by_seed(folder, "eight_tasks_fixed")
    ),
    "hidden types": of_rows("regrouping_recovery", regrouping.tasks_table),
    "equal tasks": of_rows("regrouping_null", regrouping.null_table),
    "harm": of_rows("regrouping_harm", regrouping.harm_table),
    **{f"tuning {s}": of_rows(f"tuning_{s}", tuning.comparison_table) for s in tuning.STUDIES},
    "clip range": of_rows("head_to_head_clip_range", clip_range_table),
    "thresholds": of_rows("head_to_head_thresholds", thresholds_table),
    **{f"options {part}": of_rows(f"options_{part}", options.options_table) for part in options.PARTS},
    "options group_score": of_rows("options_group_score", options.group_score_table),
    **{f"critic free {part}": of_rows(f"critic_free_{part}", critic_free.returns_table, part) for part in critic_free.PARTS},
    "delayed rewards": of_rows("delayed_rewards", delayed_rewards.successes_table),
    **{f"gridworlds {s}": of_rows(f"gridworlds_{s}", gridworlds.success_table, s) for s in gridworlds.PARTS},
    **{f"objectives {p}": of_rows(f"objectives_{p}", objectives.objectives_table, p) for p in objectives.PROBLEMS},
    "objectives merges": of_rows("objectives_copies", objectives.merges_table, "copies"),
    "own environments": of_rows("own_environments", own_environments.returns_table),
    "meta world": of_rows("meta_world", meta_world.success_table),
    **{f"minigrid {p}": of_rows(f"minigrid_{p}", minigrid_tasks.part_table, p) for p in minigrid_tasks.PARTS},
    **{f"minigrid {p} tasks": of_rows(f"minigrid_{p}", minigrid_tasks.part_tasks_table, p) for p in minigrid_tasks.PARTS},
}


def fill(page: str, folder: Path) -> str:
    """
    Return a page with the tables that the rows give.

    :param page: text with markers
    :param folder: folder of the result rows
    :raises KeyError: if a marker names no table
    """
    return MARKED.sub(lambda found: found[1] + "\n" + to_markdown(TABLES[found["name"]](folder)) + "\n" + found[3], page)


def draw(folder: Path) -> None:
    """
    Draw the pictures of ``head_to_head.py``, which no other script draws.

    :param folder: folder of the result rows, into which the pictures go
    """
    plain = Plain(folder)
    if plain.complete:
        plain.draw_curves(folder / "head_to_head_plain.png")
        plain.draw_profile(folder / "head_to_head_profile.png")
    for name, draw_rows in (("clip_range", draw_clip_range), ("thresholds", draw_thresholds)):
        rows = rows_by_seed(folder, f"head_to_head_{name}")
        if rows:
            draw_rows(rows, folder / f"head_to_head_{name}.png")


def main() -> None:
    """Write the pages and draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the filled pages are written")
    arguments = parser.parse_args()
    for page in PAGES:
        (arguments.docs / page.name).write_text(fill(page.read_text(), arguments.results))
    draw(arguments.results)


if __name__ == "__main__":
    main()
