"""The example of three objectives against its solution in closed form."""

import math

import answers
import numpy as np
import pytest

from sb3_grpo import GRPO

MAX_MIN = (math.sqrt(5) - 1) / 2


def test_the_solution_in_closed_form() -> None:
    """By a grid over care and polish: no pair has a better worst objective, and the best sum is elsewhere."""
    env = answers.Answers()
    env.reset(seed=0)
    grid = np.linspace(0, 1, 201)
    rewards = np.array([[env.step(np.array([care, polish]))[1] for polish in grid] for care in grid])
    assert rewards.min(axis=2).max() == pytest.approx(MAX_MIN, abs=3e-3)
    best = np.unravel_index(rewards.sum(axis=2).argmax(), (201, 201))
    assert rewards[best].tolist() == pytest.approx([15 / 16, 15 / 16, 1 / 4])


def test_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    found = answers.main(2048)
    assert [len(each) for each in found.values()] == [3, 3]
    assert capsys.readouterr().out.count("speed") == 2


@pytest.mark.slow
def test_the_balance_finds_it() -> None:
    found = answers.main()
    assert min(found["GRPO"]) == pytest.approx(MAX_MIN, rel=0.02)
    # the best sum
    assert min(found["PPO"]) == pytest.approx(0.25, abs=0.05)


def test_the_weight_of_the_leading_objective_falls() -> None:
    """Without care and polish answers are fast: speed leads by far at first."""
    model = answers.make_model(GRPO, group_by="objectives", group_score="raw_return").learn(1024)
    assert isinstance(model, GRPO)
    records = {record.name: record for record in model.groups}
    assert max(records.values(), key=lambda record: record.score).name == "speed"
    assert records["speed"].weight < 0.9
    assert min(records["accuracy"].weight, records["fluency"].weight) > 1.05
