"""Formulas of relative advantages: constants worked out by hand, and plain loops over trajectories."""

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_grpo.estimators.relative import are_alike, relative_values, shares_of_loss, sums_to_go

SCALES = ["group", "batch", "none"]
# multiples of 1/8: sums of them are exact in float32, so that values are either equal or clearly not
EIGHTHS = st.integers(-800, 800).map(lambda number: number / 8)


@st.composite
def grouped(draw):
    """Values, the group of each, and the number of groups, some of which may be empty."""
    n_groups = draw(st.integers(1, 5))
    values = draw(st.lists(EIGHTHS, min_size=1, max_size=30))
    member = draw(st.lists(st.integers(0, n_groups - 1), min_size=len(values), max_size=len(values)))
    return np.array(values), np.array(member), n_groups


@st.composite
def trajectories(draw):
    """Lengths of trajectories, and a number for each of their steps."""
    lengths = np.array(draw(st.lists(st.integers(1, 7), min_size=1, max_size=8)))
    n_steps = int(lengths.sum())
    return lengths, np.array(draw(st.lists(EIGHTHS, min_size=n_steps, max_size=n_steps)))


def split(values, lengths):
    """The values of each trajectory."""
    return np.split(np.asarray(values), np.cumsum(lengths)[:-1])


def relative_by_loops(values, member, n_groups, scale):
    """Advantages and divisors with torch's standard deviation, one group at a time."""
    groups = [th.tensor(values[member == group], dtype=th.float64) for group in range(n_groups)]
    varied = [own for own in groups if len(own) > 1 and bool((own != own[0]).any())]
    squares = [float(value - own.mean()) ** 2 for own in varied for value in own]
    advantages, divisors = [], []
    for value, group in zip(values.tolist(), member.tolist(), strict=True):
        own, divisor = groups[group], 0.0
        if any(own is each for each in varied):
            divisor = {"group": float(own.std()), "batch": float(np.mean(squares)) ** 0.5, "none": 1.0}[scale]
        divisors.append(divisor)
        advantages.append((value - float(own.mean())) / divisor if divisor else 0.0)
    return advantages, divisors


# group 0: mean 4, differences -2, 0, 2, sample variance (4 + 0 + 4) / 2 = 4
# group 1: mean 4, differences -3, 3, sample variance (9 + 9) / 1 = 18
# group 2: one value; group 3: equal values; group 4: no values
VALUES = np.array([2.0, 4.0, 6.0, 1.0, 7.0, 5.0, -3.0, -3.0])
MEMBER = np.array([0, 0, 0, 1, 1, 2, 3, 3])
# mean square of the differences of groups 0 and 1: (4 + 0 + 4 + 9 + 9) / 5 = 5.2
BY_HAND = {
    "group": ([-1, 0, 1, -(0.5**0.5), 0.5**0.5, 0, 0, 0], [2, 2, 2, 18**0.5, 18**0.5, 0, 0, 0]),
    "batch": ([*(np.array([-2, 0, 2, -3, 3]) / 5.2**0.5), 0, 0, 0], [5.2**0.5] * 5 + [0, 0, 0]),
    "none": ([-2, 0, 2, -3, 3, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0]),
}


class TestRelativeValues:
    @pytest.mark.parametrize("scale", SCALES)
    def test_by_hand(self, scale):
        found = relative_values(VALUES, MEMBER, 5, scale)
        advantages, divisors = BY_HAND[scale]
        np.testing.assert_allclose(found.values, advantages, rtol=1e-12)
        np.testing.assert_allclose(found.divisors, divisors, rtol=1e-12)

    @pytest.mark.parametrize("scale", SCALES)
    def test_order_of_the_values_does_not_matter(self, scale):
        order = np.random.default_rng(0).permutation(len(VALUES))
        found = relative_values(VALUES[order], MEMBER[order], 5, scale)
        np.testing.assert_allclose(found.values, np.array(BY_HAND[scale][0])[order], rtol=1e-12)

    @settings(max_examples=60, deadline=None)
    @given(grouped(), st.sampled_from(SCALES))
    def test_equal_plain_loops(self, drawn, scale):
        values, member, n_groups = drawn
        found = relative_values(values, member, n_groups, scale)
        advantages, divisors = relative_by_loops(values, member, n_groups, scale)
        np.testing.assert_allclose(found.values, advantages, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.divisors, divisors, rtol=1e-9, atol=1e-9)

    @settings(max_examples=40, deadline=None)
    @given(grouped(), st.sampled_from(SCALES))
    def test_sum_to_zero_in_each_group(self, drawn, scale):
        values, member, n_groups = drawn
        sums = np.bincount(member, relative_values(values, member, n_groups, scale).values, minlength=n_groups)
        np.testing.assert_allclose(sums, 0, atol=1e-9 * max(1.0, np.abs(values).sum()))

    @settings(max_examples=40, deadline=None)
    @given(grouped(), st.data())
    def test_shifting_or_scaling_a_group_changes_no_advantage(self, drawn, data):
        values, member, n_groups = drawn
        shifts = np.array(data.draw(st.lists(EIGHTHS, min_size=n_groups, max_size=n_groups)))
        factors = np.array(data.draw(st.lists(st.sampled_from([0.25, 1.0, 8.0]), min_size=n_groups, max_size=n_groups)))
        changed = relative_values(values * factors[member] + shifts[member], member, n_groups, "group")
        before = relative_values(values, member, n_groups, "group")
        np.testing.assert_allclose(changed.values, before.values, atol=1e-8)

    @pytest.mark.parametrize("scale", ["batch", "none"])
    def test_scaling_one_group_changes_the_others_advantages_or_its_own(self, scale):
        # the control of the test before
        values = np.where(MEMBER == 0, 8 * VALUES, VALUES)
        before, after = (relative_values(each, MEMBER, 5, scale).values for each in (VALUES, values))
        assert np.abs(after - before)[:3].max() > 0.1

    @settings(max_examples=40, deadline=None)
    @given(grouped(), st.data(), st.integers(-3, 3), st.integers(-3, 3))
    def test_without_a_scale_they_are_linear(self, drawn, data, one, two):
        first, member, n_groups = drawn
        second = np.array(data.draw(st.lists(EIGHTHS, min_size=len(first), max_size=len(first))))
        mixed, *parts = (
            relative_values(values, member, n_groups, "none").values for values in (one * first + two * second, first, second)
        )
        np.testing.assert_allclose(mixed, one * parts[0] + two * parts[1], atol=1e-9)

    @pytest.mark.parametrize("scale", SCALES)
    def test_groups_that_are_all_alike_have_none(self, scale):
        # means of 0.1 are not 0.1: without a tolerance rounding errors would be divided by rounding errors
        found = relative_values(np.full(6, np.float32(0.1)), np.array([0, 0, 0, 1, 1, 1]), 2, scale)
        assert found.values.tolist() == found.divisors.tolist() == [0.0] * 6


class TestAreAlike:
    @pytest.mark.parametrize(
        ("values", "alike"),
        [
            ([], True),
            ([3.0], True),
            ([0.0, 0.0, 0.0], True),
            ([-2.5, -2.5], True),
            ([-1.0, 1.0], False),
            ([-100.0, -101.0], False),
            ([0.0, 1e-6], False),  # near 0 differences count by themselves
            ([1e-9, 2e-9], False),
            ([1e6, 1e6 + 1], True),  # a millionth
            ([1e6, 1e6 + 100], False),
            ([-1e6, -1e6 - 1], True),
            ([200.0, 199.0], False),
        ],
    )
    def test_by_hand(self, values, alike):
        assert are_alike(np.array(values), np.zeros(len(values), dtype=int), 1).tolist() == [alike]

    def test_of_each_group(self):
        values, member = np.array([1.0, 5.0, 1.0, 6.0, 9.0]), np.array([0, 2, 0, 2, 3])
        assert are_alike(values, member, 5).tolist() == [True, True, False, True, True]

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.sampled_from([0.1, 0.3, 1.7, -0.7]), min_size=2, max_size=60), st.randoms(use_true_random=False))
    def test_the_order_of_a_float32_sum_makes_no_difference(self, drawn, random):
        # the same rewards summed up in another order are the same return but for rounding
        returns, rewards = [], list(drawn)
        for _ in range(4):
            random.shuffle(rewards)
            total = np.float32(0)
            for reward in rewards:
                total += np.float32(reward)
            returns.append(total)
        terms = np.abs(np.array(rewards)).sum()
        if abs(returns[0]) > 0.5 * terms:
            assert are_alike(np.array(returns), np.zeros(4, dtype=int), 1).all()
        # and one reward more is another return
        returns[0] = returns[0] + np.float32(terms)
        assert not are_alike(np.array(returns), np.zeros(4, dtype=int), 1).any()


class TestSumsToGo:
    @pytest.mark.parametrize(
        ("gamma", "expected"),
        [
            # trajectories (1, 2, 4), (8), (-1, 3)
            (0.0, [1, 2, 4, 8, -1, 3]),
            # 1 + 2 / 2 + 4 / 4 = 3, 2 + 4 / 2 = 4; -1 + 3 / 2 = 0.5
            (0.5, [3, 4, 4, 8, 0.5, 3]),
            (1.0, [7, 6, 4, 8, 2, 3]),
        ],
    )
    def test_by_hand(self, gamma, expected):
        found = sums_to_go(np.array([1, 2, 4, 8, -1, 3], dtype=np.float32), np.array([3, 1, 2]), gamma)
        assert found.tolist() == expected
        assert found.dtype == np.float64

    @settings(max_examples=60, deadline=None)
    @given(trajectories(), st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1))
    def test_equal_plain_loops(self, drawn, gamma):
        lengths, rewards = drawn
        expected = []
        for own in split(rewards, lengths):
            expected += [sum(gamma**later * own[t + later] for later in range(len(own) - t)) for t in range(len(own))]
        np.testing.assert_allclose(sums_to_go(rewards, lengths, gamma), expected, atol=1e-9)

    def test_of_nothing(self):
        assert sums_to_go(np.empty(0), np.empty(0, dtype=int), 0.9).shape == (0,)


class TestSharesOfLoss:
    def test_by_hand(self):
        lengths = np.array([1, 3, 2])
        # the mean length is 2, so steps of a trajectory of length n get 2 / n
        found = shares_of_loss(lengths, "trajectory", 4)
        assert found is not None
        np.testing.assert_allclose(found, [2, 2 / 3, 2 / 3, 2 / 3, 1, 1])
        found = shares_of_loss(lengths, "constant", 4)
        assert found is not None
        np.testing.assert_allclose(found, [2 / 4] * 6)
        assert shares_of_loss(lengths, "step", 4) is None

    @settings(max_examples=60, deadline=None)
    @given(trajectories(), st.integers(7, 20))
    def test_the_mean_of_the_loss_becomes_the_one_that_is_wanted(self, drawn, largest):
        lengths, losses = drawn
        own = split(losses, lengths)
        wanted = {
            "trajectory": np.mean([np.mean(each) for each in own]),
            "step": sum(each.sum() for each in own) / sum(map(len, own)),
            "constant": np.mean([each.sum() / largest for each in own]),
        }
        for aggregation, mean in wanted.items():
            shares = shares_of_loss(lengths, aggregation, largest)
            found = (losses if shares is None else shares * losses).mean()
            np.testing.assert_allclose(found, mean, atol=1e-9)

    @pytest.mark.parametrize("aggregation", ["trajectory", "step", "constant"])
    def test_of_nothing(self, aggregation):
        assert shares_of_loss(np.empty(0, dtype=int), aggregation, 5) is None
