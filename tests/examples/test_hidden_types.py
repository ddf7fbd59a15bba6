"""The example of hidden types runs, at small size."""

from pathlib import Path

import hidden_types
import pytest


def test_hidden_types(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = hidden_types.main(8192, str(tmp_path / "picture.png"))
    assert (tmp_path / "picture.png").stat().st_size > 0
    assert "of 500" in capsys.readouterr().out
    assert len(model.policy.grouping.cell_to_group) == 10
