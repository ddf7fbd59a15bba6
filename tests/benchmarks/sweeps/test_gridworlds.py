"""Test runs and tables of the gridworlds."""

from typing import Any

import pytest

from benchmarks.sweeps import gridworlds

METHODS = [(part, method) for part, methods in gridworlds.PARTS.items() for method in methods]
# of four evaluations, per task
SUCCESS: Any = [[1, 1, 1, 0], [1, 1, 0.5, 0.3], [1, 0.96, 0.95, 0.95], [1, 1, 1, 0.8]]


@pytest.mark.parametrize(("part", "method"), METHODS)
def test_each_method_trains(part: str, method: str) -> None:
    result = gridworlds.run(part, method, max(gridworlds.UNITS[part]), seed=100, total_timesteps=768, n_evaluations=2)
    assert result["steps"] == [384, 768]
    success = [each for of_tasks in result["returns"] for each in of_tasks]
    assert len(success) == 8
    assert all(0 <= each < 0.5 for each in success)


def row(seed: int, returns: list[list[float]], method: str = "PPO", units: int = 0) -> dict[str, Any]:
    """Return a row with evaluations after 100,000, 120,000, 130,000 and 320,000 steps."""
    run = dict(part="linear", method=method, units=units, seed=seed)
    return {"run": run, "result": {"steps": [100_000, 120_000, 130_000, 320_000], "returns": returns}}


def cells(rows: list[dict[str, Any]], part: str) -> list[list[str]]:
    table = gridworlds.success_table(rows, part)
    return [list(map(str, line)) for line in zip(*(column.cells for column in table.columns), strict=True)]


class TestTable:
    def test_figures_are_those_of_the_last_evaluation_before(self) -> None:
        expected = ["0", "PPO", "1", "0.30", "0.70", "0.80", "0.95", "130k (1 of 1)"]
        assert cells([row(0, SUCCESS)], "linear") == [expected]

    def test_a_run_that_never_solves_all_tasks(self) -> None:
        never: Any = [[1, 1, 1, 0.94]] * 4
        assert cells([row(0, SUCCESS), row(1, never), row(2, never)], "linear")[0][-1] == "never (1 of 3)"

    def test_methods_are_compared_by_size(self) -> None:
        rows = [row(0, SUCCESS, method, units) for method in ("data", "loss") for units in (8, 4)]
        assert [line[:2] for line in cells(rows, "trunk")] == [["4", "loss"], ["4", "data"], ["8", "loss"], ["8", "data"]]


def test_a_run_depends_on_its_seed_alone() -> None:
    first, second = (gridworlds.run("linear", "PPO", 0, seed, 768, 2) for seed in (100, 101))
    assert first["returns"] != second["returns"]
    assert first == gridworlds.run("linear", "PPO", 0, 100, 768, 2)
