"""Statistics over seeds, after https://arxiv.org/abs/2108.13264: all intervals are 95 % percentile bootstrap intervals."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from scipy import stats

Interval = tuple[float, float]


def iqm(values: Iterable[float]) -> float:
    """Interquartile mean: the mean of the middle half."""
    return float(stats.trim_mean(np.asarray(list(values), dtype=float), 0.25))


def iqm_interval(values: Iterable[float]) -> Interval:
    """
    :param values: one per seed
    """
    sample = np.asarray(list(values), dtype=float)
    if len(sample) > 1 and np.ptp(sample) == 0:
        return float(sample[0]), float(sample[0])
    return bootstrap((sample,), lambda x, axis: stats.trim_mean(x, 0.25, axis=axis))


def bootstrap(samples: Sequence[np.ndarray], statistic: Callable[..., Any], paired: bool = False) -> Interval:
    """
    :param samples: of each stratum one value per seed
    :param statistic: of as many arrays and ``axis``
    :param paired: the same seeds are drawn in all strata
    :return: NaN where a stratum has one value only
    """
    if min(map(len, samples)) == 1:
        return math.nan, math.nan
    found = stats.bootstrap(
        tuple(samples), statistic, paired=paired, n_resamples=5000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(found.low), float(found.high)


def ratio_of_iqms(values: Iterable[float], base: Iterable[float], zero: float) -> tuple[float, Interval]:
    """
    :param values: one per seed
    :param base: those to compare with, of the same seeds: seeds are drawn together
    :param zero: what counts as nothing
    :return: ratio of the interquartile means, and its interval
    """

    def ratio(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        return stats.trim_mean(x - zero, 0.25, axis=axis) / stats.trim_mean(y - zero, 0.25, axis=axis)

    x, y = (np.asarray(list(sample), dtype=float) for sample in (values, base))
    if np.array_equal(x, y):
        return 1.0, (1.0, 1.0)
    return float(ratio(x, y)), bootstrap((x, y), ratio, paired=True)


def aggregate_iqm(samples: Sequence[np.ndarray]) -> tuple[float, Interval]:
    """
    :param samples: normalised scores of the runs of each environment; environments count the same, with few runs or with many
    :return: interquartile mean over all runs, and its interval
    """
    most = np.lcm.reduce([len(sample) for sample in samples])

    def pooled(*arrays: np.ndarray, axis: int = -1) -> np.ndarray:
        same_size = [np.repeat(x, most // x.shape[axis], axis=axis) for x in arrays]
        return stats.trim_mean(np.concatenate(same_size, axis=axis), 0.25, axis=axis)

    return float(pooled(*samples)), bootstrap(samples, pooled)


def probability_of_improvement(samples: Sequence[np.ndarray], base: Sequence[np.ndarray]) -> tuple[float, Interval]:
    """
    Of a run of one algorithm to be better than a run of another, in the same environment; mean over environments.

    :param samples: of each environment one value per run
    :param base: of the other algorithm
    :return: 0.5: none is better; and its interval
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
    :param values: one per seed
    :return: ``"IQM [low, high]"``, of one run ``"value"``
    """
    values = list(values)
    return with_interval((iqm(values), iqm_interval(values)), digits)


def with_interval(found: tuple[float, Interval], digits: int) -> str:
    """
    :return: ``"value [low, high]"``, of one run, which has no interval, ``"value"``
    """
    value, (low, high) = found
    return f"{value:.{digits}f}" + ("" if np.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]")
