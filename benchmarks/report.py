"""
From result rows to ``docs/results.md`` and ``docs/zoo.md``: fills the tables between their markers, and draws the pictures.

``python benchmarks/report.py`` reads ``benchmarks/results``; ``--results FOLDER --docs FOLDER`` read other rows and write
other pages. A marker is a line ``<!-- table: NAME -->``, with a name of :data:`TABLES`; the table goes to ``<!-- end -->``.
"""

import argparse
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import balance
import balancing_rules
import matplotlib.pyplot as plt
import minigrid_tasks
import numpy as np
import regrouping
import tuning
from common import RESULTS, read_rows
from head_to_head import CLIP_RANGES, PLAIN, THRESHOLDS, VARIED
from matplotlib.axes import Axes
from measures import (
    Interval,
    aggregate_iqm,
    describe,
    iqm,
    iqm_interval,
    probability_of_improvement,
    ratio_of_iqms,
    with_interval,
)
from rich.table import Table

DOCS = RESULTS.parents[1] / "docs"
PAGES = (DOCS / "results.md", DOCS / "zoo.md")
MARKED = re.compile(r"(<!-- table: (?P<name>[\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
ALGORITHMS, COMPARED = ("ppo", "grpo"), ("PPO", "GRPO")
Row = dict[str, Any]


def to_markdown(table: Table) -> str:
    """
    :param table: as the scripts print it
    """
    header = [str(column.header) for column in table.columns]
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    lines = [header, ["---"] * len(header), *zip(*cells, strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def rows_by_seed(folder: Path, name: str) -> list[Row]:
    """
    :param name: of the file of rows
    """
    # rows are written as runs end; those that are compared in pairs must come in the same order
    return sorted(read_rows(folder / f"{name}.jsonl"), key=lambda row: row["run"]["seed"])


class Plain:
    """
    PPO and GRPO on problems with one task.

    :param folder: of the result rows
    """

    def __init__(self, folder: Path):
        rows = rows_by_seed(folder, "head_to_head_plain")
        n_rows = Counter((row["run"]["env_id"], row["run"]["seed"]) for row in rows)
        # of a sweep that was cut: the seeds that both algorithms have
        self.rows = [row for row in rows if n_rows[row["run"]["env_id"], row["run"]["seed"]] == len(ALGORITHMS)]
        random = read_rows(folder / "head_to_head_random.jsonl")
        self.random = {row["run"]["env_id"]: row["result"]["return"] for row in random}
        self.steps = {row["run"]["env_id"]: row["result"]["steps"] for row in self.rows}
        self.env_ids = [env_id for env_id in PLAIN if env_id in self.steps]
        self.complete = len(self.env_ids) == len(PLAIN)

    def returns(self, env_id: str, algorithm: str) -> np.ndarray:
        """
        :return: shape ``(n_runs, n_evaluations)``
        """
        wanted = {"env_id": env_id, "algorithm": algorithm}
        return np.array([row["result"]["returns"] for row in self.rows if wanted.items() <= row["run"].items()])

    def scores(self, env_id: str, algorithm: str) -> np.ndarray:
        """
        :return: returns in the unit in which random actions have 0 and the interquartile mean of PPO's runs is 1 after
            training, shape ``(n_runs, n_evaluations)``
        """
        zero, one = self.random[env_id], iqm(self.returns(env_id, "ppo")[:, -1])
        return (self.returns(env_id, algorithm) - zero) / (one - zero)

    def strata(self, algorithm: str, over_training: bool) -> list[np.ndarray]:
        """
        :return: one score per run, for each environment
        """
        found = [self.scores(env_id, algorithm) for env_id in self.env_ids]
        return [scores.mean(axis=1) if over_training else scores[:, -1] for scores in found]

    def table(self) -> Table:
        columns = ("environment", "seeds", "random", "PPO, end", "GRPO, end", "PPO, training", "GRPO, training")
        compared = tuple(f"{name}, {when}" for name in ("ratio", "P(GRPO better)") for when in ("end", "training"))
        table = Table(*columns, *compared, "runs with a split")
        ends, areas = ({name: self.strata(name, area) for name in ALGORITHMS} for area in (False, True))
        for index, env_id in enumerate(self.env_ids):
            ppo, grpo = (self.returns(env_id, name) for name in ALGORITHMS)
            values = [describe(x) for x in (ppo[:, -1], grpo[:, -1], ppo.mean(axis=1), grpo.mean(axis=1))]
            pairs = [(x["grpo"][index], x["ppo"][index]) for x in (ends, areas)]
            found = [ratio_of_iqms(x, y, zero=0) for x, y in pairs]
            found += [probability_of_improvement([x], [y]) for x, y in pairs]
            splits = str(self.runs_with_split(env_id))
            table.add_row(
                env_id, str(len(ppo)), f"{self.random[env_id]:.0f}", *values, *(with_interval(x, 2) for x in found), splits
            )
        if self.complete:
            scores = [with_interval(aggregate_iqm(x[name]), 2) for x in (ends, areas) for name in ALGORITHMS]
            better = [probability_of_improvement(x["grpo"], x["ppo"]) for x in (ends, areas)]
            table.add_row("all, normalised", "", "0", *scores, "", "", *(with_interval(x, 2) for x in better), "")
        return table

    def ends(self) -> list[list[np.ndarray]]:
        """
        :return: of PPO and of GRPO, a score per run, for each environment; nothing before all environments have rows
        """
        return [self.strata(name, over_training=False) for name in ALGORITHMS] if self.complete else []

    def runs_with_split(self, env_id: str) -> int:
        wanted = {"env_id": env_id, "algorithm": "grpo"}
        return sum(has_split(row["result"]) for row in self.rows if wanted.items() <= row["run"].items())

    def draw_curves(self, path: Path) -> None:
        """Sample efficiency: return over steps, of each environment."""
        figure, axes = plt.subplots(2, 4, figsize=(13, 5.2), layout="constrained")
        for axis, env_id in zip(axes.flat, self.env_ids, strict=False):
            for name in ALGORITHMS:
                returns = self.returns(env_id, name).T
                steps = np.array(self.steps[env_id]) / 1000
                draw_interval(axis, steps, [iqm(x) for x in returns], [iqm_interval(x) for x in returns], name.upper())
            axis.axhline(self.random[env_id], color="0.6", lw=0.8, ls=":")
            axis.set(title=env_id, xlabel="environment steps (thousands)")
            axis.grid(alpha=0.3)
        axes[0, 0].legend()
        figure.savefig(path, dpi=100)
        plt.close(figure)

    def draw_profile(self, path: Path) -> None:
        """Performance profile: share of runs above a score, environments counting the same."""
        figure, axis = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
        thresholds = np.linspace(-0.2, 1.5, 120)
        for name in ALGORITHMS:
            share = np.mean([(x[:, None] > thresholds).mean(axis=0) for x in self.strata(name, False)], axis=0)
            axis.plot(thresholds, share, label=name.upper())
        axis.set(xlabel="score after training (0: random, 1: PPO)", ylabel="share of runs above it")
        axis.grid(alpha=0.3)
        axis.legend()
        figure.savefig(path, dpi=100)
        plt.close(figure)


def draw_interval(axis: Axes, x: Any, values: list[float], intervals: list[Interval], label: str) -> None:
    line = axis.plot(x, values, label=label, marker="o", ms=2)[0]
    axis.fill_between(x, *np.array(intervals).T, alpha=0.2, color=line.get_color())


def clip_range_rows(rows: list[Row], algorithm: str, clip_range: float) -> np.ndarray:
    """
    :return: returns per task, shape ``(n_runs, n_tasks)``
    """
    wanted = {"algorithm": algorithm, "clip_range": clip_range}
    return np.array([row["result"]["returns"] for row in rows if wanted.items() <= row["run"].items()])


def clip_range_table(rows: list[Row]) -> Table:
    table = Table("clip_range", "seeds", "PPO, worst", "GRPO, worst", "PPO, mean", "GRPO, mean")
    for clip_range in CLIP_RANGES:
        ppo, grpo = (clip_range_rows(rows, name, clip_range) for name in COMPARED)
        if len(ppo) and len(grpo):
            values = (ppo.min(axis=1), grpo.min(axis=1), ppo.mean(axis=1), grpo.mean(axis=1))
            table.add_row(str(clip_range), str(len(ppo)), *map(describe, values))
    return table


def draw_clip_range(rows: list[Row], path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
    for axis, (title, reduce) in zip(axes, balance.REDUCTIONS.items(), strict=True):
        for algorithm in COMPARED:
            found = {c: clip_range_rows(rows, algorithm, c) for c in CLIP_RANGES}
            values = {c: reduce(returns, axis=1) for c, returns in found.items() if len(returns)}
            intervals = [iqm_interval(x) for x in values.values()]
            draw_interval(axis, list(values), [iqm(x) for x in values.values()], intervals, algorithm)
        axis.set(title=title, xlabel="clip_range", xscale="log", ylim=(0, 510))
        axis.set_xticks(CLIP_RANGES, list(map(str, CLIP_RANGES)), minor=False)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("return of 500 after 40,960 steps")
    axes[0].legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def by_thresholds(rows: list[Row], problem: str) -> dict[tuple[float, float], list[dict[str, Any]]]:
    """
    :return: results of the runs by ``merge_kl`` and ``split_kl``, where there are some
    """
    runs = [{"problem": problem, "merge_kl": m, "split_kl": s} for m, s in THRESHOLDS]
    found = [[row["result"] for row in rows if run.items() <= row["run"].items()] for run in runs]
    return {thresholds: results for thresholds, results in zip(THRESHOLDS, found, strict=True) if results}


def n_groups(result: dict[str, Any]) -> int:
    return len(set(result["cell_to_group"]))


def has_split(result: dict[str, Any]) -> bool:
    return any(event[1] == "split" for event in result["events"])


def thresholds_table(rows: list[Row]) -> Table:
    counted = ("with a split", "exactly the types")
    table = Table("problem", "merge_kl", "split_kl", "seeds", *counted, "groups", "worst task", "mean")
    for problem in VARIED:
        for thresholds, own in by_thresholds(rows, problem).items():
            counts = (sum(map(has_split, own)), sum(result["ari"] == 1 for result in own))
            groups = sorted(map(n_groups, own))
            spread = str(groups[0]) if groups[0] == groups[-1] else f"{groups[0]} to {groups[-1]}"
            values = (describe(result[name] for result in own) for name in ("worst", "mean"))
            table.add_row(problem, *map(str, (*thresholds, len(own), *counts)), spread, *values)
    return table


def draw_thresholds(rows: list[Row], path: Path) -> None:
    """How many groups there are after training, one point per seed, and what the worst task returns, over the thresholds."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for color, problem in enumerate(VARIED):
        found = by_thresholds(rows, problem)
        if not found:
            continue
        # of a sweep that was cut some may be missing
        places = [THRESHOLDS.index(thresholds) for thresholds in found]
        for place, results in zip(places, found.values(), strict=True):
            spread = np.linspace(-0.2, 0.2, len(results))
            left.plot(place + spread, [n_groups(result) for result in results], "o", ms=4, color=f"C{color}")
        left.axhline(len(set(regrouping.PROBLEMS[problem]["types"])), color=f"C{color}", lw=0.8, ls=":")
        worst = [[result["worst"] for result in results] for results in found.values()]
        draw_interval(right, places, list(map(iqm, worst)), list(map(iqm_interval, worst)), problem)
    left.set(title="groups after training (dotted: types)", ylim=(0, None))
    right.set(title="worst task, return of 500", ylim=(0, 510))
    right.legend(loc="lower left")
    for axis in (left, right):
        axis.set_xticks(range(len(THRESHOLDS)), [f"{merge_kl}\n{split_kl}" for merge_kl, split_kl in THRESHOLDS])
        axis.set_xlabel("merge_kl and split_kl")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def task_returns(folder: Path, setting: str) -> list[np.ndarray]:
    """
    :return: of PPO and of GRPO, returns per task after training, shape ``(n_runs, n_tasks)``; nothing before both have rows
    """
    found = balance.by_method(rows_by_seed(folder, f"balance_{setting}"), COMPARED)
    returns = [np.array([row["result"]["returns"][-1] for row in rows]) for rows in found.values()]
    return returns if len(returns) == len(COMPARED) else []


def comparison_lines(folder: Path) -> Iterator[tuple[str, ...]]:
    """
    :return: what is compared, how it was measured, PPO's figure, GRPO's figure; where there are rows
    """

    def described(samples: Iterable[Iterable[float]]) -> Iterator[str]:
        return map(describe, samples)

    settings = ("drawn", "scaled", "lander", "lander_scaled")
    drawn, scaled, lander, lander_scaled = (task_returns(folder, setting) for setting in settings)
    hidden = rows_by_seed(folder, "regrouping_recovery")
    clip_range = rows_by_seed(folder, "head_to_head_clip_range")
    plain = Plain(folder)
    if drawn:
        yield "optimisation target", "four CartPole tasks: mean of the tasks", *described(x.mean(axis=1) for x in drawn)
        yield "optimisation target", "four CartPole tasks: worst task", *described(x.min(axis=1) for x in drawn)
    if lander:
        yield "optimisation target", "LunarLander's contexts: mean", *described(x.mean(axis=1) for x in lander)
        yield "optimisation target", "LunarLander's contexts: worst", *described(x.min(axis=1) for x in lander)
    for problem in regrouping.HIDDEN if hidden else ():
        runs = [{"problem": problem, "algorithm": name} for name in COMPARED]
        worst = [[row["result"]["worst"] for row in hidden if run.items() <= row["run"].items()] for run in runs]
        yield "conflicts", f"hidden types, {problem}: worst task", *described(worst)
    if clip_range:
        found = [[clip_range_rows(clip_range, name, value) for value in CLIP_RANGES] for name in COMPARED]
        worst = [[iqm(returns.min(axis=1)) for returns in given if len(returns)] for given in found]
        solved = [f"{sum(value >= balance.SOLVED for value in values)} of {len(values)}" for values in worst]
        yield "stability", f"clip ranges whose worst task reaches {balance.SOLVED}", *solved
    for what, returns in {"four CartPole tasks": scaled, "LunarLander's contexts": lander_scaled}.items():
        if returns:
            yield "stability", f"{what}, rewards times 1, 1, 10, 0.1: worst", *described(x.min(axis=1) for x in returns)
    in_tasks = {"four CartPole tasks": drawn, "LunarLander's contexts": lander}
    compared = {f"{what}, worst": [[x.min(axis=1)] for x in returns] for what, returns in in_tasks.items()}
    for what, samples in {**compared, "one task": plain.ends()}.items():
        if samples:
            better = probability_of_improvement(samples[1], samples[0])
            yield "suitable problems", f"{what}: probability that a run beats PPO's", "0.50", with_interval(better, 2)


def comparison_table(folder: Path) -> Table:
    table = Table("", "measured", *COMPARED)
    for line in comparison_lines(folder):
        table.add_row(*line)
    return table


def of_rows(name: str, table: Callable[..., Table], *arguments: Any) -> Callable[[Path], Table]:
    """
    :param name: of the file of rows
    :param table: makes a table from the rows and these arguments
    """
    return lambda folder: table(rows_by_seed(folder, name), *arguments)


TABLES: dict[str, Callable[[Path], Table]] = {
    "comparison": comparison_table,
    "plain": lambda folder: Plain(folder).table(),
    **{setting: of_rows(f"balance_{setting}", balance.results_table) for setting in balance.RESULT_SETTINGS},
    **{f"lambda {s}": of_rows("balance_ablation", balance.ablation_table, s) for s in ("drawn", "rare")},
    **{f"rules {s}": of_rows(f"balancing_rules_{s}", balancing_rules.rules_table) for s in ("drawn", "scaled", "wide")},
    "hidden types": of_rows("regrouping_recovery", regrouping.tasks_table),
    "equal tasks": of_rows("regrouping_null", regrouping.null_table),
    "harm": of_rows("regrouping_harm", regrouping.harm_table),
    **{f"tuning {s}": of_rows(f"tuning_{s}", tuning.comparison_table) for s in tuning.STUDIES},
    "clip range": of_rows("head_to_head_clip_range", clip_range_table),
    "thresholds": of_rows("head_to_head_thresholds", thresholds_table),
    "minigrid": of_rows("minigrid_mt3", minigrid_tasks.scores_table, "mt3"),
}


def fill(page: str, folder: Path) -> str:
    """
    :param page: text with markers
    :param folder: of the result rows
    :return: the text with the tables that the rows give
    :raises KeyError: if a marker names no table
    """
    return MARKED.sub(lambda found: found[1] + "\n" + to_markdown(TABLES[found["name"]](folder)) + "\n" + found[3], page)


def draw(folder: Path) -> None:
    """The pictures that no other script draws."""
    plain = Plain(folder)
    if plain.complete:
        plain.draw_curves(folder / "head_to_head_plain.png")
        plain.draw_profile(folder / "head_to_head_profile.png")
    for name, draw_rows in (("clip_range", draw_clip_range), ("thresholds", draw_thresholds)):
        rows = rows_by_seed(folder, f"head_to_head_{name}")
        if rows:
            draw_rows(rows, folder / f"head_to_head_{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the filled pages are written")
    arguments = parser.parse_args()
    for page in PAGES:
        (arguments.docs / page.name).write_text(fill(page.read_text(), arguments.results))
    draw(arguments.results)


if __name__ == "__main__":
    main()
