"""Test statistics over seeds against figures by hand and by SciPy."""

import numpy as np
import pytest
from scipy import stats

from benchmarks.lib.measures import aggregate_iqm, iqm, iqm_interval, probability_of_improvement, ratio_of_iqms


class TestMeasures:
    SAMPLE = (3.0, 1.0, 100.0, 2.0, -50.0, 4.0, 5.0, 6.0)

    def test_iqm_is_the_mean_of_the_middle_half(self) -> None:
        assert iqm(self.SAMPLE) == np.mean([2, 3, 4, 5])
        low, high = iqm_interval(self.SAMPLE)
        assert low < iqm(self.SAMPLE) < high

    def test_one_seed_has_no_interval(self) -> None:
        assert np.isnan(iqm_interval([3.0])).all()
        assert np.isnan(probability_of_improvement([np.ones(1)], [np.ones(4)])[1]).all()

    def test_interval_covers_the_mean_of_normal_samples(self) -> None:
        """Of samples whose interquartile mean is 0, about 95 % of the intervals contain it, for 10 seeds a little less."""
        rng = np.random.default_rng(0)
        intervals = [iqm_interval(rng.normal(size=10)) for _ in range(100)]
        assert 80 <= sum(low <= 0 <= high for low, high in intervals) <= 99

    def test_aggregate_counts_environments_the_same(self) -> None:
        few, many = np.array([0.0, 1.0]), np.repeat([0.0, 1.0], 10)
        assert aggregate_iqm([few, many])[0] == pytest.approx(0.5)
        # with equally many runs it is the interquartile mean of all
        x, y = np.array(self.SAMPLE), np.array(self.SAMPLE) + 1
        assert aggregate_iqm([x, y])[0] == pytest.approx(iqm([*x, *y]))

    def test_probability_is_that_of_mann_whitney(self) -> None:
        rng = np.random.default_rng(1)
        x, y = rng.integers(0, 5, 8).astype(float), rng.integers(0, 5, 6).astype(float)
        expected = stats.mannwhitneyu(x, y).statistic / (len(x) * len(y))
        value, (low, high) = probability_of_improvement([x], [y])
        assert value == pytest.approx(expected)
        assert low <= value <= high

    @pytest.mark.parametrize(("shift", "expected"), [(10.0, 1.0), (0.0, 0.5), (-10.0, 0.0)])
    def test_probability_of_known_cases(self, shift: float, expected: float) -> None:
        x, y = np.arange(5.0), np.arange(4.0)
        value, (low, high) = probability_of_improvement([x + shift, y + shift], [x, y])
        assert value == pytest.approx(expected)
        assert (low < value < high) == (shift == 0)

    def test_ratio(self) -> None:
        values = [2.0, 4.0, 6.0, 8.0]
        assert ratio_of_iqms(values, values, zero=0) == (1.0, (1.0, 1.0))
        value, (low, high) = ratio_of_iqms([2 * x + 1 for x in values], [x + 1 for x in values], zero=1)
        assert value == low == high == 2
