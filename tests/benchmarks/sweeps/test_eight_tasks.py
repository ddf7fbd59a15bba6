"""Test runs, runs to make, tables and the picture of the eight tasks."""

from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from benchmarks.sweeps.eight_tasks import (
    LAMBDAS,
    METHODS,
    PARTS,
    SETTINGS,
    make_runs,
    plot_lambda,
    run,
    scales_table,
    tasks_table,
)


def cells_of(table: Table) -> dict[str, list[str]]:
    return {str(column.header): [str(cell) for cell in column.cells] for column in table.columns}


def make_row(method: str, seed: int, returns: list[list[float]], **balance: Any) -> dict[str, Any]:
    return {"run": {"method": method, "seed": seed}, "result": {"steps": [1, 2], "returns": returns, **balance}}


# the one with balance has a seed that the other has not
ROWS = [
    make_row("lambda 0", 0, [[100, 300], [200, 50]], weights=[1, 1], coef_effective=0, capped=0),
    make_row("lambda 0", 1, [[100, 100], [150, 500]], weights=[1, 1], coef_effective=0, capped=0),
    make_row("lambda 0.05", 1, [[200, 200], [300, 300]], weights=[0.5, 1.5], coef_effective=0.02, capped=0.5),
    make_row("lambda 0.05", 2, [[200, 200], [400, 300]], weights=[0.7, 2.5], coef_effective=0.04, capped=1),
    make_row("PPO", 0, [[9, 9], [9, 500]]),
]


def test_table_says_what_the_balance_did() -> None:
    cells = cells_of(tasks_table(ROWS))
    assert cells["method"] == ["PPO", "lambda 0", "lambda 0.05"]
    assert cells["seeds"] == ["1", "2", "2"]
    assert [cell.split()[0] for cell in cells["worst task, end"]] == ["9", "100", "300"]
    assert [cell.split()[0] for cell in cells["mean of the tasks, end"]] == ["254", "225", "325"]
    assert [cell.split()[0] for cell in cells["worst task, over training"]] == ["9", "100", "250"]
    assert cells["largest drop"] == ["0", "250", "-100"]
    assert cells["all above 400"] == ["0 of 1", "0 of 2", "0 of 2"]
    # of seeds 0, 0 and 1, and 1: 9/50; the same; 300/150
    assert [cell.split()[0] for cell in cells["ratio to lambda 0"]] == ["0.18", "1.00", "2.00"]
    assert cells["lambda in effect"] == ["", "0", "0.03"]
    assert cells["weights"] == ["", "1.00 to 1.00", "0.60 to 2.00"]
    assert cells["cap"] == ["", "0%", "75%"]


def test_table_without_lambda_0_has_no_ratio() -> None:
    assert cells_of(tasks_table(ROWS[2:]))["ratio to lambda 0"] == ["", ""]
    assert cells_of(tasks_table([]))["method"] == []


def test_scales_are_compared_with_equal_ones() -> None:
    scaled = [
        make_row("lambda 0", 1, [[0, 0], [450, 401]]),
        make_row("lambda 0", 2, [[0, 0], [450, 399]]),
        make_row("PPO", 5, [[0, 0], [30, 40]]),
    ]
    cells = cells_of(scales_table(scaled, ROWS))
    assert cells["method"] == ["PPO", "lambda 0"]
    assert cells["all above 400"] == ["0 of 1", "1 of 2"]
    assert [cell.split()[0] for cell in cells["worst task, equal scales"]] == ["9", "100"]
    assert [cell.split()[0] for cell in cells["worst task"]] == ["30", "400"]
    # seed 1 alone is in both: 401/150
    assert cells["ratio"] == ["", "2.67"]


def test_picture_is_drawn(tmp_path: Path) -> None:
    plot_lambda({"trunk 16-16": ROWS}, tmp_path / "lambda.png")
    assert (tmp_path / "lambda.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("part", PARTS)
def test_runs_of_a_part(part: str) -> None:
    setting, methods, _ = PARTS[part]
    runs = make_runs(part, [5, 6])
    assert [(run["method"], run["seed"]) for run in runs] == [(method, seed) for seed in (5, 6) for method in methods]
    # each evaluation comes after a whole number of rollouts of 8 x 128 steps
    assert all(run["total_timesteps"] % (run["n_evaluations"] * 1024) == 0 for run in runs)
    assert set(methods) <= METHODS.keys()
    # the sampling of tasks has an effect only where tasks are drawn
    drawn = set(SETTINGS[setting].play) == {"random"}
    assert drawn or not any(METHODS[method].callbacks for method in methods)


def test_lambda_goes_from_nothing_to_more_than_the_cap() -> None:
    coefs = [METHODS[f"lambda {coef:g}"].kwargs["group_coef"] for coef in LAMBDAS]
    assert coefs == [0, 0.005, 0.02, 0.05, 0.2, 0.5]


def short_run(setting: str, method: str, seed: int = 0, rollouts: int = 1, n_evaluations: int = 1) -> dict[str, Any]:
    return run(setting, method, seed, 1024 * rollouts, n_evaluations)


def test_run_with_scales() -> None:
    result = short_run("scales", "lambda 0.5", rollouts=2, n_evaluations=2)
    assert result["steps"] == [1024, 2048]
    assert all(len(returns) == 8 and 8 <= min(returns) <= max(returns) <= 500 for returns in result["returns"])
    assert len(set(result["scales"])) == len(result["weights"]) == 8
    assert result["capped"] == 1
    assert 0 < result["coef_effective"] < 0.5
    assert 0.01 <= min(result["scales"]) < 1 < max(result["scales"]) <= 100


def test_runs_repeat_themselves() -> None:
    one, again, other = (short_run("fixed", "lambda 0.05", seed) for seed in (0, 0, 1))
    assert one == again
    assert one["returns"] != other["returns"]
    assert "scales" not in one


def test_falls_cost_in_half_of_the_tasks() -> None:
    result = short_run("mixed", "lambda 0.05")
    # evaluated in steps survived, whatever training pays
    assert all(8 <= value <= 500 for value in result["returns"][0])
    # 1 for each step puts a task ahead of all that pay -1 for a fall; the gap does not
    assert max(result["weights"][:4]) < min(result["weights"][4:])
    assert short_run("mixed", "gaps, lambda 0.05")["weights"] == [1] * 8


def test_run_that_samples_tasks() -> None:
    # the first rollout is the same, because the probabilities follow from it
    sampled, plain = (short_run("drawn", method, rollouts=2) for method in ("PPO, task sampling", "PPO"))
    assert "weights" not in sampled
    assert sampled["returns"] != plain["returns"]
