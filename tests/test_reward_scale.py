"""Scale of the rewards: which rewards count, and what merged groups have."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_grpo.reward_scale import RewardScale

property_test = settings(deadline=None, max_examples=60, derandomize=True, database=None)


def scale_after(n_cells: int, *rollouts: tuple[list[float], list[int]]) -> RewardScale:
    scale = RewardScale(n_cells)
    for rewards, cells in rollouts:
        scale.update(np.array(rewards, dtype=np.float32), np.array(cells))
    return scale


def test_groups_are_comparable_up_to_a_factor_of_3():
    """Cells 0 and 1 are a group of scale 2; the scales of the others are 5.9, 6.1, -0.67, 0.66, and none."""
    scale = scale_after(7, ([2, -2, 5.9, 6.1, -0.67, 0.66, 0], [0, 1, 2, 3, 4, 5, 6]))
    comparable = scale.comparable(np.array([0, 0, 1, 2, 3, 4, 5]), 7)
    assert comparable[0].tolist() == [True, True, False, True, False, True, True]
    assert comparable[4].tolist() == [False, False, False, True, True, True, True]
    assert (comparable == comparable.T).all()


class TestUpdate:
    def test_by_hand(self):
        scale = scale_after(3, ([3, -4, 0, 7], [0, 0, 0, 2]))
        np.testing.assert_allclose(scale.scale, [math.sqrt(12.5), 0, 7])
        assert scale.count.tolist() == [2, 0, 1]

    def test_rewards_of_zero_do_not_count(self):
        """A task has the same scale whether it is solved often or rarely."""
        often, rarely = scale_after(1, ([5, 5, 0, 0], [0] * 4)), scale_after(1, ([5, 0, 0, 0], [0] * 4))
        assert often.scale.tolist() == rarely.scale.tolist() == [5]

    def test_large_rewards(self):
        """Their squares do not fit into float32."""
        assert scale_after(1, ([3e30, -3e30], [0, 0])).scale.tolist() == pytest.approx([3e30])

    def test_begins_with_nothing(self):
        scale = RewardScale(2)
        assert (scale.scale.tolist(), scale.count.tolist()) == ([0, 0], [0, 0])
        # a part of what training goes on with, not of the parameters
        assert scale.state_dict() == {}
        assert dict(scale.named_buffers()).keys() == {"scale", "count"}

    @property_test
    @given(st.integers(0, 2**32), st.lists(st.integers(1, 50), min_size=1, max_size=6))
    def test_is_that_of_all_steps_however_they_are_divided(self, seed, lengths):
        random = np.random.default_rng(seed)
        made = []
        for length in lengths:
            rewards = random.normal(size=length) * 10 ** random.uniform(-3, 3) * (random.random(length) < 0.7)
            made.append((rewards.tolist(), random.integers(0, 3, length).tolist()))
        scale = scale_after(3, *made)
        rewards, cells = (np.concatenate([each[place] for each in made]) for place in (0, 1))
        for cell in range(3):
            own = rewards[(cells == cell) & (rewards != 0)]
            assert scale.count[cell] == len(own)
            expected = np.sqrt(np.mean(own**2)) if len(own) else 0.0
            assert scale.scale[cell].item() == pytest.approx(expected, rel=1e-4)


class TestInverseOfGroups:
    # root mean squares 1, 7, 5 and none
    scale = scale_after(4, ([1, -1, 1, 7, 5, 5, 0], [0, 0, 0, 1, 2, 2, 3]))

    @pytest.mark.parametrize(
        ("cell_to_group", "squares"),
        [
            ([0, 1, 2, 3], [1, 49, 25, math.inf]),
            # (3 * 1 + 49) / 4, and a cell without rewards changes nothing
            ([0, 0, 2, 2], [13, math.inf, 25, math.inf]),
            # (3 * 1 + 2 * 25) / 5
            ([1, 3, 1, 0], [math.inf, 53 / 5, math.inf, 49]),
            ([2, 2, 2, 2], [math.inf, math.inf, (3 + 49 + 50) / 6, math.inf]),
        ],
    )
    def test_is_pooled_over_cells(self, cell_to_group, squares):
        found = self.scale.inverse_of_groups(np.array(cell_to_group), 4)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, 1 / np.sqrt(squares), rtol=1e-6)

    @property_test
    @given(st.integers(0, 2**32), st.floats(1e-3, 1e3))
    def test_scores_do_not_depend_on_the_unit_of_the_rewards(self, seed, unit):
        random = np.random.default_rng(seed)
        rewards, cells = random.normal(size=40), random.integers(0, 4, 40)
        cell_to_group = random.integers(0, 3, 4)
        inverse, other = (
            scale_after(4, (list(factor * rewards), list(cells))).inverse_of_groups(cell_to_group, 3) for factor in (1, unit)
        )
        np.testing.assert_allclose(other * unit, inverse, rtol=1e-4)
