"""The example of a puzzle runs, at small size, and learns."""

import lights_out
import pytest


def test_learns_something(capsys: pytest.CaptureFixture[str]) -> None:
    model = lights_out.main(10_000)
    share = int(capsys.readouterr().out.split("%")[0].split()[-1])
    assert share > 40  # 14 % before training
    assert not any("value" in name for name in model.policy.state_dict())
