"""Test that the scripts find the rows that exist: a run is identified by its arguments."""

import json

import pytest

from benchmarks import demo
from benchmarks.lib.rows import RESULTS, Run, read_rows
from benchmarks.lib.sweep import missing_runs
from benchmarks.robustness.parts import PARTS
from benchmarks.robustness.records import CODES
from benchmarks.sweeps import (
    balance,
    balancing_rules,
    critic_free,
    defaults,
    delayed_rewards,
    eight_tasks,
    gridworlds,
    head_to_head,
    meta_world,
    minigrid_tasks,
    objectives,
    own_environments,
    regrouping,
    tuning,
)

# parts whose runs were not all made, and how many are missing
NOT_RUN = {
    "balance_drawn_large": 30,
    "head_to_head_thresholds": 60,
    "meta_world": 30,
    "minigrid_own": 4,
    **{f"minigrid_{suite}": 70 for suite in minigrid_tasks.SUITES},
    "minigrid_mt5": 59,
    "minigrid_sparse": 40,
    "regrouping_long": 10,
    "eight_tasks_fixed": 80,
    "gridworlds_linear": 190,
    "critic_free_classic": 75,
    "critic_free_sizes": 252,
}


RUNS: dict[str, list[Run]] = {
    **{f"balance_{part}": make(seeds) for part, (make, seeds) in balance.PARTS.items()},
    **{f"balancing_rules_{part}": balancing_rules.make_runs(part, seeds) for part, seeds in balancing_rules.SEEDS.items()},
    **{f"regrouping_{part}": make(seeds) for part, (_, make, seeds) in regrouping.PARTS.items()},
    **{f"head_to_head_{part}": make(None) for part, (_, make) in head_to_head.PARTS.items()},
    "meta_world": meta_world.make_runs(meta_world.SEEDS),
    **{f"minigrid_{name}": minigrid_tasks.make_runs(name, part.seeds) for name, part in minigrid_tasks.PARTS.items()},
    **{f"eight_tasks_{part}": eight_tasks.make_runs(part, eight_tasks.SEEDS) for part in ("fixed", "fixed_large", "scales")},
    "gridworlds_linear": gridworlds.make_runs("linear", gridworlds.SEEDS),
    **{f"critic_free_{part}": critic_free.make_runs(part, critic_free.SEEDS) for part in ("classic", "sizes")},
    "delayed_rewards": delayed_rewards.make_runs(delayed_rewards.SEEDS),
    **{
        f"objectives_{problem}": objectives.make_runs(problem, objectives.seeds_of(problem)) for problem in objectives.PROBLEMS
    },
    "own_environments": own_environments.make_runs(own_environments.SEEDS),
    "defaults_plain": defaults.make_runs(defaults.SEEDS),
    "demo": demo.make_runs([1, 2, 3, 4, 5], demo.TOTAL_TIMESTEPS),
    **{f"robustness_{part}": [run for code in CODES for run in make(code)] for part, (_, make) in PARTS.items()},
}


def n_missing(runs: list[Run], name: str) -> int:
    assert runs
    return len(missing_runs(json.loads(json.dumps(runs)), read_rows(RESULTS / f"{name}.jsonl")))


@pytest.mark.parametrize("name", RUNS)
def test_nothing_is_run_again(name: str) -> None:
    assert n_missing(RUNS[name], name) <= NOT_RUN.get(name, 0)


@pytest.mark.parametrize("study", tuning.STUDIES)
def test_nothing_of_a_study_is_run_again(study: str) -> None:
    tuned, rows = tuning.STUDIES[study], read_rows(RESULTS / f"tuning_{study}.jsonl")
    best = tuning.best_trials(tuning.load_study(study), tuned.n_best)
    chosen = tuning.choose([row for row in rows if len(row["run"]["parts"]) == 1], best)
    validation = tuning.make_runs(study, best, tuned.validation_seeds, 1)
    comparison = tuning.make_runs(study, [None, best[0], chosen], tuned.seeds, 2)
    assert n_missing(validation + comparison, f"tuning_{study}") == 0


def test_another_run_is_missing() -> None:
    """A run with other arguments has no row, so that the tests above can fail."""
    assert n_missing([{**RUNS["demo"][0], "seed": 6}], "demo") == 1
