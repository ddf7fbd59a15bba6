"""The example of a chat runs, at small size."""

import chat
import pytest


def test_learns_something(capsys: pytest.CaptureFixture[str]) -> None:
    model = chat.main(15_000)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == list(chat.PARTS)
    assert float(lines[3].split()[-3]) > 2.2  # 1.2 before training
    assert len(model.policy.grouping.active) == 3


def test_an_answer_by_hand() -> None:
    env = chat.Chat()
    env.reset(seed=0)
    env.question = 0  # wants 0, 1, 3
    assert [env.step(action)[1] for action in (0, 0, 0)] == pytest.approx([1, 2 / 3, 0])
    env.reset(seed=0)
    assert env.observe().sum() == 2
