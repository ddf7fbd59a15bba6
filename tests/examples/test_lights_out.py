"""The example of a puzzle runs, at small size, and its boards are what it says."""

import lights_out
import numpy as np
import pytest


def test_learns_something(capsys: pytest.CaptureFixture[str]) -> None:
    model = lights_out.main(30_000)
    share = int(capsys.readouterr().out.split("%")[0].split()[-1])
    assert share > 40  # 14 % before training
    assert not any("value" in name for name in model.policy.state_dict())


def test_a_press_switches_the_neighbours() -> None:
    board = lights_out.LightsOut()
    board.reset(seed=0)
    board.lights[:] = 0
    observation, reward, terminated, _, _ = board.step(1)
    assert observation[:-1].reshape(2, 3).tolist() == [[1, 1, 1], [0, 1, 0]]
    assert (reward, terminated) == (0.0, False)
    observation, reward, terminated, _, _ = board.step(1)
    assert not observation[:-1].any()
    assert (reward, terminated) == (1.0, True)


def test_every_board_can_be_solved_within_the_presses() -> None:
    """By trying all sets of presses: to press a light twice changes nothing."""
    board = lights_out.LightsOut()
    for seed in range(20):
        board.reset(seed=seed)
        first, solved = board.lights.copy(), False
        for presses in range(2**6):
            board.lights = first.copy()
            for light in range(6):
                if presses >> light & 1:
                    board.press(light)
            solved = solved or not board.lights.any()
        assert solved
        assert np.any(first)
