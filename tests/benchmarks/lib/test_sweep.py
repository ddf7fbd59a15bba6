"""Test that sweeps resume, choose runs, and go to the nodes of a Ray cluster."""

import importlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lib.rows import read_rows
from benchmarks.lib.sweep import parse_parts, run_part, sweep


def square(x: int, seed: int, coef: float = 1.0) -> dict[str, Any]:
    return {"square": x * x}


def on_node(seed: int) -> dict[str, Any]:
    time.sleep(1)
    return {"node": importlib.import_module("ray").get_runtime_context().get_node_id()}


def fail(x: int, seed: int) -> dict[str, Any]:
    raise RuntimeError(f"run {x}")


class TestSweep:
    RUNS = tuple({"x": x, "seed": 0} for x in range(3))

    def test_rows_are_kept_and_not_run_again(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        rows = sweep(square, self.RUNS[:2], path, jobs=1)
        assert [row["result"]["square"] for row in rows] == [0, 1]
        with pytest.raises(RuntimeError, match="run 2"):
            sweep(fail, self.RUNS, path, jobs=1)
        assert [row["result"]["square"] for row in sweep(square, self.RUNS, path, jobs=1)] == [0, 1, 4]
        assert [row["run"] for row in read_rows(path)] == list(self.RUNS)
        assert {"seconds", "versions", "commit"} <= set(read_rows(path)[0])

    def test_part_of_the_runs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        runs: list[dict[str, Any]] = [{"x": x, "seed": seed} for x in (1, 2) for seed in (0, 1)]

        def run(*only: str) -> list[dict[str, Any]]:
            monkeypatch.setattr(sys, "argv", ["sweep.py", "--smoke", str(tmp_path), "--jobs", "1", "--only", *only])
            return [row["run"] for row in run_part(square, runs, "rows", parse_parts(None, ["rows"]))]

        assert run("x=2", "seed=1") == [{"x": 2, "seed": 1}]
        assert run("x=2", "x=1", "seed=0") == [{"x": 1, "seed": 0}, {"x": 2, "seed": 0}]
        # a smoke run is one of the first seed, and of each kind
        assert run() == [{"x": 1, "seed": 0}, {"x": 2, "seed": 0}]
        runs = [{**given, "coef": coef} for given in runs for coef in (0.5, 0.0)]
        assert run() == [{"x": 1, "seed": 0, "coef": 0.5}, {"x": 2, "seed": 0, "coef": 0.5}]
        with pytest.raises(ValueError, match=r"`--only` must leave some runs of rows, got .*3"):
            run("x=3")
        with pytest.raises(SystemExit):
            run("x")


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two Ray nodes with one CPU each, on this machine."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray = pytest.importorskip("ray")
    cluster = importlib.import_module("ray.cluster_utils").Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    # the nodes know the benchmarks, but not the tests
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield ray
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_sweep_on_two_ray_nodes(two_nodes: Any, tmp_path: Path) -> None:
    runs = [dict(seed=seed) for seed in range(6)]
    rows = sweep(on_node, runs, tmp_path / "rows.jsonl", ray=True)
    assert [row["run"] for row in rows] == runs
    assert len({row["result"]["node"] for row in rows}) == 2
    with pytest.raises(two_nodes.exceptions.RayTaskError, match="run 7"):
        sweep(fail, [dict(x=7, seed=0)], tmp_path / "other.jsonl", ray=True)
