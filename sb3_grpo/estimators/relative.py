"""Group-relative advantages: formulas of https://arxiv.org/abs/2402.03300 and of what has been proposed since."""

from typing import NamedTuple

import numpy as np

from sb3_grpo.losses import group_means, group_std

# Values that differ by less than this share of the largest of them are alike: rewards are float32
SAME = 1e-6


class Relative(NamedTuple):
    """How values compare with those of their group; arrays have the shape of the values."""

    values: np.ndarray  #: value minus the mean of its group, divided
    divisors: np.ndarray  #: what the difference was divided by; where all values of a group are alike 0


def are_alike(values: np.ndarray, member: np.ndarray, n_groups: int) -> np.ndarray:
    """
    Find groups whose values do not differ by more than their rounding errors.

    :param values: shape ``(B,)``
    :param member: group of each value, shape ``(B,)``, integers in ``[0, n_groups)``
    :param n_groups: number of groups
    :return: shape ``(n_groups,)``; ``True`` for groups of less than two values
    """
    counts, largest = np.bincount(member, minlength=n_groups), np.zeros(n_groups)
    np.maximum.at(largest, member, np.abs(values))
    return group_std(values, member, counts) <= SAME * largest


def relative_values(values: np.ndarray, member: np.ndarray, n_groups: int, scale: str) -> Relative:
    """
    Compare values with the mean of their group: ``(v - mean(v)) / scale``.

    :param values: shape ``(B,)``
    :param member: group of each value, shape ``(B,)``, integers in ``[0, n_groups)``
    :param n_groups: number of groups
    :param scale: ``"group"``: sample standard deviation of the group (eq. 3 and section 4.1 of
        https://arxiv.org/abs/2402.03300); ``"batch"``: root mean square of all differences, of the groups whose values
        are not alike (https://arxiv.org/abs/2508.08221); ``"none"``: 1 (Dr. GRPO, https://arxiv.org/abs/2503.20783)
    :return: 0 for the values of a group that are all alike
    """
    counts = np.bincount(member, minlength=n_groups)
    differences = values - group_means(values, member, counts)[member]
    differs = ~are_alike(values, member, n_groups)[member]
    if scale == "group":
        divisors = group_std(values, member, counts)[member]
    elif scale == "batch":
        divisors = np.full(len(values), np.sqrt(np.square(differences[differs]).mean()) if differs.any() else 0.0)
    else:
        divisors = np.ones(len(values))
    divisors = np.where(differs, divisors, 0.0)
    return Relative(np.divide(differences, divisors, out=np.zeros(len(values)), where=differs), divisors)


def sums_to_go(rewards: np.ndarray, lengths: np.ndarray, gamma: float) -> np.ndarray:
    """
    Compute the discounted sum of the rewards from each step to the end of its trajectory.

    :param rewards: of trajectories one after the other, shape ``(B,)``
    :param lengths: steps of each trajectory, shape ``(n,)``, sum ``B``
    :param gamma: discount factor, 0 to 1
    :return: shape ``(B,)``, float64
    """
    n_steps = int(lengths.max(initial=0))
    inside = np.arange(n_steps) < lengths[:, None]
    sums = np.zeros((len(lengths), n_steps + 1))
    sums[:, :-1][inside] = rewards
    for step in range(n_steps - 1, -1, -1):
        sums[:, step] += gamma * sums[:, step + 1]
    return sums[:, :-1][inside]


def shares_of_loss(lengths: np.ndarray, aggregation: str, largest: int) -> np.ndarray | None:
    """
    Compute the factor on each step's loss that makes the mean over the steps another one.

    :param lengths: steps of each trajectory, shape ``(n,)``, sum ``B``
    :param aggregation: ``"step"``: mean over all steps (DAPO, https://arxiv.org/abs/2503.14476); ``"trajectory"``: mean over
        the trajectories of the mean over their steps (https://arxiv.org/abs/2402.03300);
        ``"constant"``: mean over the trajectories of the sum over their steps, divided by ``largest`` (Dr. GRPO)
    :param largest: number of steps that a trajectory can have
    :return: of trajectories one after the other, shape ``(B,)``; ``None``: all are 1
    """
    if aggregation == "step" or not len(lengths):
        return None
    divisors = lengths if aggregation == "trajectory" else np.full(len(lengths), largest)
    return np.repeat(lengths.mean() / divisors, lengths)
