"""Test that the tables count the rows."""

from typing import Any, ClassVar

from benchmarks.robustness import parts


class TestTables:
    ROWS: ClassVar[dict[str, list[dict[str, Any]]]] = {
        "bad_input": [
            dict(case="n_steps=0", algorithm=algorithm, code="after", outcome=outcome, error="", message="", where="")
            for algorithm, outcome in {"PPO": "silent", "GRPO": "obscure"}.items()
        ],
        "kills": [
            dict(kind="saving", algorithm="GRPO", code=code, seed=seed, kills=10, destroyed=destroyed, left_behind=1)
            for code, destroyed in {"before": {"newest": 9, "best model": 2}, "after": {}}.items()
            for seed in (0, 1)
        ],
        "interrupts": [
            dict(configuration="gSDE", code="after", seed=seed, interrupts=10, faulty=2, faults={"a": 2, "b": 1})
            for seed in (0, 1)
        ],
        "restarts": [
            dict(kind="best model", algorithm="PPO", code="after", n_envs=n_envs, seed=0, lost=n_envs == 2, error="")
            for n_envs in (4, 2)
        ],
    }

    def test_rows_are_counted(self, monkeypatch, tmp_path):
        monkeypatch.setattr(parts, "records_of", lambda part, folder: self.ROWS[part])
        found = {str(table.title): [list(column.cells) for column in table.columns] for table in parts.tables(tmp_path)}
        titles = ["Bad input", "What GRPO does not answer clearly, after", "Kills", "Interrupts", "Restarts"]
        assert list(found) == titles
        bad, left, kills, interrupts, restarts = ([list(row) for row in zip(*found[title], strict=True)] for title in titles)
        assert bad == [
            ["PPO has too", "PPO", "after", "1", "0", "0", "1", "0", "0"],
            ["PPO has too", "GRPO", "after", "1", "0", "1", "0", "0", "0"],
        ]
        assert left == [["n_steps=0", "obscure", "silent", "", ""]]
        assert kills == [
            ["saving", "GRPO", "before", "20", "18", "4", "2"],
            ["saving", "GRPO", "after", "20", "0", "0", "2"],
        ]
        assert interrupts == [["gSDE", "after", "20", "4", "a (4); b (2)"]]
        assert restarts == [["best model", "PPO", "after", "2", "1", ""]]
