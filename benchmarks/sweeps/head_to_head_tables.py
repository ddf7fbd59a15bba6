"""Make the tables and pictures of ``head_to_head.py`` from its rows."""

from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from rich.table import Table

from benchmarks.lib.hidden_types import PROBLEMS
from benchmarks.lib.measures import (
    aggregate_iqm,
    describe,
    describe_range,
    iqm,
    probability_of_improvement,
    ratio_of_iqms,
    with_interval,
)
from benchmarks.lib.plots import draw_band, save
from benchmarks.lib.rows import REDUCTIONS, Row, has_split, n_groups, read_rows, results, rows_by_seed
from benchmarks.sweeps.head_to_head import CLIP_RANGES, PLAIN, THRESHOLDS, VARIED

ALGORITHMS, COMPARED = ("ppo", "grpo"), ("PPO", "GRPO")


class Plain:
    """
    Hold the rows of PPO and GRPO on problems with one task, and make their table and pictures.

    :param folder: folder of the result rows
    """

    def __init__(self, folder: Path):
        rows = rows_by_seed(folder, "head_to_head_plain")
        n_rows = Counter((row["run"]["env_id"], row["run"]["seed"]) for row in rows)
        # a sweep that was cut may lack one algorithm's run: only seeds that both algorithms have are compared
        self.rows = [row for row in rows if n_rows[row["run"]["env_id"], row["run"]["seed"]] == len(ALGORITHMS)]
        random = read_rows(folder / "head_to_head_random.jsonl")
        self.random = {row["run"]["env_id"]: row["result"]["return"] for row in random}
        self.steps = {row["run"]["env_id"]: row["result"]["steps"] for row in self.rows}
        self.env_ids = [env_id for env_id in PLAIN if env_id in self.steps]
        self.complete = len(self.env_ids) == len(PLAIN)

    def returns(self, env_id: str, algorithm: str) -> np.ndarray:
        """
        Return the mean returns, shape ``(n_runs, n_evaluations)``.

        :param env_id: registered name of the environment
        :param algorithm: ``"ppo"`` or ``"grpo"``
        """
        return np.array([result["returns"] for result in results(self.rows, env_id=env_id, algorithm=algorithm)])

    def scores(self, env_id: str, algorithm: str) -> np.ndarray:
        """
        Return the returns scaled so that random actions have 0 and PPO's interquartile mean after training is 1.

        :param env_id: registered name of the environment
        :param algorithm: ``"ppo"`` or ``"grpo"``
        :return: shape ``(n_runs, n_evaluations)``
        """
        zero, one = self.random[env_id], iqm(self.returns(env_id, "ppo")[:, -1])
        return (self.returns(env_id, algorithm) - zero) / (one - zero)

    def strata(self, algorithm: str, over_training: bool) -> list[np.ndarray]:
        """
        Return one score per run, for each environment.

        :param algorithm: ``"ppo"`` or ``"grpo"``
        :param over_training: whether the mean over training is wanted instead of the score after it
        """
        found = [self.scores(env_id, algorithm) for env_id in self.env_ids]
        return [scores.mean(axis=1) if over_training else scores[:, -1] for scores in found]

    def table(self) -> Table:
        """Return the table of all environments."""
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
        """Return PPO's and GRPO's scores after training, one per run for each environment; empty before all have rows."""
        return [self.strata(name, over_training=False) for name in ALGORITHMS] if self.complete else []

    def runs_with_split(self, env_id: str) -> int:
        """
        Return the number of GRPO's runs in which a group was split.

        :param env_id: registered name of the environment
        """
        return sum(map(has_split, results(self.rows, env_id=env_id, algorithm="grpo")))

    def draw_curves(self, path: Path) -> None:
        """
        Draw the return over environment steps, for each environment.

        :param path: PNG file
        """
        figure, axes = plt.subplots(2, 4, figsize=(13, 5.2), layout="constrained")
        for axis, env_id in zip(axes.flat, self.env_ids, strict=False):
            for name in ALGORITHMS:
                steps = np.array(self.steps[env_id]) / 1000
                draw_band(axis, steps, self.returns(env_id, name).T, name.upper(), marker="o", ms=2)
            axis.axhline(self.random[env_id], color="0.6", lw=0.8, ls=":")
            axis.set(title=env_id, xlabel="environment steps (thousands)")
            axis.grid(alpha=0.3)
        axes[0, 0].legend()
        save(figure, path, dpi=100)

    def draw_profile(self, path: Path) -> None:
        """
        Draw the performance profile: the share of runs above a score, each environment with the same weight.

        :param path: PNG file
        """
        figure, axis = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
        thresholds = np.linspace(-0.2, 1.5, 120)
        for name in ALGORITHMS:
            share = np.mean([(x[:, None] > thresholds).mean(axis=0) for x in self.strata(name, False)], axis=0)
            axis.plot(thresholds, share, label=name.upper())
        axis.set(xlabel="score after training (0: random, 1: PPO)", ylabel="share of runs above it")
        axis.grid(alpha=0.3)
        axis.legend()
        save(figure, path, dpi=100)


def clip_range_rows(rows: list[Row], algorithm: str, clip_range: float) -> np.ndarray:
    """
    Return the returns per task, shape ``(n_runs, n_tasks)``.

    :param rows: rows of ``clip_range``
    :param algorithm: ``"PPO"`` or ``"GRPO"``
    :param clip_range: PPO's clip range
    """
    return np.array([result["returns"] for result in results(rows, algorithm=algorithm, clip_range=clip_range)])


def clip_range_table(rows: list[Row]) -> Table:
    """
    Return the table of the worst task and the mean of the tasks, by clip range.

    :param rows: rows of ``clip_range``
    """
    table = Table("clip_range", "seeds", "PPO, worst", "GRPO, worst", "PPO, mean", "GRPO, mean")
    for clip_range in CLIP_RANGES:
        ppo, grpo = (clip_range_rows(rows, name, clip_range) for name in COMPARED)
        if len(ppo) and len(grpo):
            values = (ppo.min(axis=1), grpo.min(axis=1), ppo.mean(axis=1), grpo.mean(axis=1))
            table.add_row(str(clip_range), str(len(ppo)), *map(describe, values))
    return table


def draw_clip_range(rows: list[Row], path: Path) -> None:
    """
    Draw the worst task and the mean of the tasks over clip ranges.

    :param rows: rows of ``clip_range``
    :param path: PNG file
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
    for axis, (title, reduce) in zip(axes, REDUCTIONS.items(), strict=True):
        for algorithm in COMPARED:
            found = {c: clip_range_rows(rows, algorithm, c) for c in CLIP_RANGES}
            values = {c: reduce(returns, axis=1) for c, returns in found.items() if len(returns)}
            draw_band(axis, list(values), values.values(), algorithm, marker="o", ms=2)
        axis.set(title=title, xlabel="clip_range", xscale="log", ylim=(0, 510))
        axis.set_xticks(CLIP_RANGES, list(map(str, CLIP_RANGES)), minor=False)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("return of 500 after 40,960 steps")
    axes[0].legend()
    save(figure, path, dpi=100)


def by_thresholds(rows: list[Row], problem: str) -> dict[tuple[float, float], list[dict[str, Any]]]:
    """
    Return the measurements by ``merge_kl`` and ``split_kl``; thresholds without a run are left out.

    :param rows: rows of ``thresholds``
    :param problem: a name of :data:`benchmarks.sweeps.head_to_head.VARIED`
    """
    found = {(m, s): results(rows, problem=problem, merge_kl=m, split_kl=s) for m, s in THRESHOLDS}
    return {thresholds: own for thresholds, own in found.items() if own}


def thresholds_table(rows: list[Row]) -> Table:
    """
    Return the table of groups and returns, by ``merge_kl`` and ``split_kl``.

    :param rows: rows of ``thresholds``
    """
    counted = ("with a split", "exactly the types")
    table = Table("problem", "merge_kl", "split_kl", "seeds", *counted, "groups", "worst task", "mean")
    for problem in VARIED:
        for thresholds, own in by_thresholds(rows, problem).items():
            counts = (sum(map(has_split, own)), sum(result["ari"] == 1 for result in own))
            values = (describe(result[name] for result in own) for name in ("worst", "mean"))
            table.add_row(problem, *map(str, (*thresholds, len(own), *counts)), describe_range(map(n_groups, own)), *values)
    return table


def draw_thresholds(rows: list[Row], path: Path) -> None:
    """
    Draw the number of groups after training, one point per seed, and how far they are the types, over the thresholds.

    :param rows: rows of ``thresholds``
    :param path: PNG file
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for color, problem in enumerate(VARIED):
        found = by_thresholds(rows, problem)
        if not found:
            continue
        # a sweep that was cut may lack some of the thresholds
        places = [THRESHOLDS.index(thresholds) for thresholds in found]
        for place, own in zip(places, found.values(), strict=True):
            spread = np.linspace(-0.2, 0.2, len(own))
            left.plot(place + spread, [n_groups(result) for result in own], "o", ms=4, color=f"C{color}")
        left.axhline(len(set(PROBLEMS[problem]["types"])), color=f"C{color}", lw=0.8, ls=":")
        draw_band(right, places, [[result["ari"] for result in own] for own in found.values()], problem, marker="o", ms=2)
    left.set(title="groups after training (dotted: types)", ylim=(0, None))
    right.set(title="adjusted Rand index of groups and types", ylim=(-0.05, 1.05))
    right.legend(loc="lower left")
    for axis in (left, right):
        axis.set_xticks(range(len(THRESHOLDS)), [f"{merge_kl}\n{split_kl}" for merge_kl, split_kl in THRESHOLDS])
        axis.set_xlabel("merge_kl and split_kl")
        axis.grid(alpha=0.3)
    save(figure, path, dpi=100)
