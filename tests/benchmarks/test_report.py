"""Test that the pages say what the rows say."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from benchmarks import report
from benchmarks.lib.rows import RESULTS
from benchmarks.sweeps.head_to_head import VARIED
from benchmarks.sweeps.head_to_head_tables import Plain


class TestReport:
    @pytest.mark.parametrize("page", report.PAGES, ids=lambda page: page.stem)
    def test_page_says_what_the_rows_say(self, page: Path) -> None:
        assert report.fill(page.read_text(), RESULTS) == page.read_text()

    def test_tables_become_markdown(self) -> None:
        table = Table("a", "b", title="not shown")
        table.add_row("1", "2 [1, 3]")
        assert report.to_markdown(table) == "| a | b |\n| --- | --- |\n| 1 | 2 [1, 3] |\n"

    def test_old_tables_are_replaced(self, tmp_path: Path) -> None:
        rows = [
            {
                "run": {"problem": VARIED[0], "merge_kl": 0.1, "split_kl": 0.3, "seed": s},
                "result": {"ari": a, "cell_to_group": g, "worst": 5, "mean": 7, "events": [[9, "split", 0, 1, 0.5]]},
            }
            for s, a, g in ((0, 1.0, [0, 1]), (1, 0.0, [0, 0]))
        ]
        rows.append({"run": {**rows[0]["run"], "problem": VARIED[1]}, "result": {**rows[0]["result"], "events": []}})
        (tmp_path / "head_to_head_thresholds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        page = "before\n<!-- table: thresholds -->\nstale\n<!-- end -->\nafter\n"
        filled = report.fill(page, tmp_path)
        assert f"| {VARIED[0]} | 0.1 | 0.3 | 2 | 2 | 1 | 1 to 2 | 5 [5, 5] | 7 [7, 7] |" in filled
        assert f"| {VARIED[1]} | 0.1 | 0.3 | 1 | 0 | 1 | 2 |" in filled
        assert "stale" not in filled
        assert filled.startswith("before\n<!-- table: thresholds -->\n")
        assert filled.endswith("<!-- end -->\nafter\n")
        assert report.fill(filled, tmp_path) == filled

    def test_comparison(self, tmp_path: Path) -> None:
        """A line for each figure that has rows, by hand."""

        def write(name: str, rows: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
            lines = [json.dumps({"run": {**run, "seed": 0}, "result": result}) for run, result in rows]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))

        assert list(report.comparison_lines(tmp_path)) == []
        returns = {"PPO": [[9, 9], [1, 3]], "GRPO": [[9, 9], [500, 400]]}
        write("balance_drawn", [({"method": name}, {"returns": given}) for name, given in returns.items()])
        ranges = {("PPO", 0.1): 400, ("PPO", 0.2): 399, ("GRPO", 0.1): 500, ("GRPO", 0.2): 450}
        write(
            "head_to_head_clip_range",
            [({"algorithm": a, "clip_range": c}, {"returns": [worst, 500]}) for (a, c), worst in ranges.items()],
        )
        lines = {(line, measured): figures for line, measured, *figures in report.comparison_lines(tmp_path)}
        assert [figures for (line, _), figures in lines.items() if line == "optimisation target"] == [
            ["2", "450"],
            ["1", "400"],
        ]
        assert [figures for (line, _), figures in lines.items() if line == "stability"] == [["1 of 2", "2 of 2"]]
        assert [figures for (line, _), figures in lines.items() if line == "suitable problems"] == [["0.50", "1.00"]]

    def test_one_task(self, tmp_path: Path) -> None:
        """Ratio and probability by hand; a seed that one algorithm lacks is left out."""
        returns = {("ppo", 0): 20, ("ppo", 1): 30, ("ppo", 2): 99, ("grpo", 0): 30, ("grpo", 1): 40}
        rows = [
            {
                "run": {"env_id": "Pendulum-v1", "algorithm": algorithm, "seed": seed},
                "result": {"steps": [1, 2], "returns": [10, end], **({"events": []} if algorithm == "grpo" else {})},
            }
            for (algorithm, seed), end in returns.items()
        ]
        (tmp_path / "head_to_head_plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        random = {"run": {"env_id": "Pendulum-v1", "seed": 0}, "result": {"return": 10}}
        (tmp_path / "head_to_head_random.jsonl").write_text(json.dumps(random))
        table = Plain(tmp_path).table()
        cells = {str(column.header): str(next(iter(column.cells))) for column in table.columns}
        assert cells["seeds"] == "2"
        assert cells["PPO, end"].startswith("25 [")
        # (30 + 40 - 2 * 10) / (20 + 30 - 2 * 10), and of four pairs one is equal
        assert cells["ratio, end"].startswith("1.67 [")
        assert cells["P(GRPO better), end"].startswith("0.88 [")

    def test_unknown_table(self) -> None:
        with pytest.raises(KeyError, match="nothing"):
            report.fill("<!-- table: nothing -->\n<!-- end -->\n", RESULTS)
