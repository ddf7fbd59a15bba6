"""Compute statistics over seeds after https://arxiv.org/abs/2108.13264; intervals are 95 % percentile bootstrap intervals."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from scipy import stats

Interval = tuple[float, float]


def iqm(values: Iterable[float]) -> float:
    """
    Return the interquartile mean: the mean of the middle half.

    :param values: one per seed
    """
    return float(stats.trim_mean(np.asarray(list(values), dtype=float), 0.25))


def iqm_interval(values: Iterable[float]) -> Interval:
    """
    Return the interval of the interquartile mean.

    :param values: one per seed
    """
    sample = np.asarray(list(values), dtype=float)
    if len(sample) > 1 and np.ptp(sample) == 0:
        return float(sample[0]), float(sample[0])
    return bootstrap((sample,), lambda x, axis: stats.trim_mean(x, 0.25, axis=axis))


def bootstrap(samples: Sequence[np.ndarray], statistic: Callable[..., Any], paired: bool = False) -> Interval:
    """
    Return the bootstrap interval of a statistic; NaN where a stratum has one value only.

    :param samples: one value per seed for each stratum
    :param statistic: function of as many arrays as there are strata, and ``axis``
    :param paired: whether the same seeds are drawn in all strata
    """
    if min(map(len, samples)) == 1:
        return math.nan, math.nan
    found = stats.bootstrap(
        tuple(samples), statistic, paired=paired, n_resamples=5000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(found.low), float(found.high)


def ratio_of_iqms(values: Iterable[float], base: Iterable[float], zero: float) -> tuple[float, Interval]:
    """
    Return the ratio of two interquartile means, and its interval.

    :param values: one per seed
    :param base: those to compare with, of the same seeds, which are drawn together
    :param zero: value that is subtracted from both
    """

    def ratio(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        return stats.trim_mean(x - zero, 0.25, axis=axis) / stats.trim_mean(y - zero, 0.25, axis=axis)

    x, y = (np.asarray(list(sample), dtype=float) for sample in (values, base))
    if np.array_equal(x, y):
        return 1.0, (1.0, 1.0)
    return float(ratio(x, y)), bootstrap((x, y), ratio, paired=True)


def aggregate_iqm(samples: Sequence[np.ndarray]) -> tuple[float, Interval]:
    """
    Return the interquartile mean over the runs of all environments, and its interval.

    :param samples: normalised scores of the runs of each environment; each environment has the same weight
    """
    most = np.lcm.reduce([len(sample) for sample in samples])

    def pooled(*arrays: np.ndarray, axis: int = -1) -> np.ndarray:
        same_size = [np.repeat(x, most // x.shape[axis], axis=axis) for x in arrays]
        return stats.trim_mean(np.concatenate(same_size, axis=axis), 0.25, axis=axis)

    return float(pooled(*samples)), bootstrap(samples, pooled)


def probability_of_improvement(samples: Sequence[np.ndarray], base: Sequence[np.ndarray]) -> tuple[float, Interval]:
    """
    Return the probability that a run of one algorithm beats a run of another in the same environment, and its interval.

    :param samples: one value per run for each environment
    :param base: the same of the other algorithm
    :return: mean over environments, in [0, 1]; 0.5 where neither is better
    """
    n = len(samples)

    def probability(*arrays: np.ndarray, axis: int = -1) -> np.ndarray:
        # scipy gives the drawn values along the last axis
        assert axis == -1
        better = []
        for x, y in zip(arrays[:n], arrays[n:], strict=True):
            difference = x[..., :, np.newaxis] - y[..., np.newaxis, :]
            better.append(((difference > 0) + 0.5 * (difference == 0)).mean(axis=(-2, -1)))
        return np.mean(better, axis=0)

    strata = [*samples, *base]
    return float(probability(*strata)), bootstrap(strata, probability)


def describe(values: Iterable[float], digits: int = 0) -> str:
    """
    Format the interquartile mean of a sample as ``"IQM [low, high]"``; that of one run as ``"value"``.

    :param values: one per seed
    :param digits: number of decimals
    """
    values = list(values)
    return with_interval((iqm(values), iqm_interval(values)), digits)


def with_interval(found: tuple[float, Interval], digits: int) -> str:
    """
    Format a value and its interval as ``"value [low, high]"``; one run has no interval and gives ``"value"``.

    :param found: value, and the ends of its interval
    :param digits: number of decimals
    """
    value, (low, high) = found
    return f"{value:.{digits}f}" + ("" if np.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]")


def describe_steps(steps: list[float]) -> str:
    """
    Format the median in thousands, and the number of runs in which it is finite.

    :param steps: one number of steps per run
    """
    reached = [value for value in steps if np.isfinite(value)]
    median = float(np.median(steps))
    return (
        f"{median / 1000:.0f}k ({len(reached)} of {len(steps)})"
        if np.isfinite(median)
        else f"never ({len(reached)} of {len(steps)})"
    )


def describe_range(values: Iterable[int]) -> str:
    """
    Format the smallest and the largest value as ``"low to high"``; equal ones as ``"value"``.

    :param values: one per seed
    """
    values = list(values)
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
