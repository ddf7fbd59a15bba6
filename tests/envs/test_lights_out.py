"""The boards of the puzzle are what it says."""

import numpy as np

from sb3_grpo.envs.lights_out import LightsOut


def test_a_press_switches_the_neighbours() -> None:
    board = LightsOut()
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
    board = LightsOut()
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
