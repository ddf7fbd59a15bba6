"""Balancing: from the scores of the groups to the weight of each group's policy-gradient loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sb3_grpo.losses import (
    MIN_SCALE,
    group_means,
    group_weights,
    largest_group_coef,
    penalty_slope,
    score_fluctuation,
)


class GroupScores(NamedTuple):
    """How the groups of one rollout compare; arrays have one entry for each group that has steps in it."""

    groups: np.ndarray  # numbers of the groups, ascending
    counts: np.ndarray  # n_i, their steps in the rollout
    scores: np.ndarray  # R_i
    scale: float  # sigma_R
    advantage_scale: np.ndarray  # divisor that normalises the advantages of each group, in the unit of the scores
    eta_squared: float  # share of the score's variance that the groups explain, 0 to 1

    @property
    def shares(self) -> np.ndarray:
        """Share of each group in the steps of the rollout, sums to 1."""
        return self.counts / self.counts.sum()


class GroupWeights(NamedTuple):
    """Weights of the groups of one rollout."""

    weights: np.ndarray  # factor on the policy-gradient loss of each group, 1 = PPO
    coef: float  # coefficient that the weights come from, after a cap

    def at(self, compared: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """
        Look up the weight of each step.

        :param compared: the groups that have the weights, ascending, shape ``(K,)``
        :param groups: group of each step, one of ``compared``, shape ``(B,)``
        :return: float32, shape ``(B,)``
        """
        return self.weights.astype(np.float32)[np.searchsorted(compared, groups)]


def compare_groups(
    groups: np.ndarray, step_scores: np.ndarray, advantage_scale: np.ndarray, scale_kind: str = "std"
) -> GroupScores:
    """
    Compare the groups of a rollout by the mean score of their steps.

    :param groups: group of each step, shape ``(B,)``, integers in ``[0, max_groups)``
    :param step_scores: score of each step, shape ``(B,)``
    :param advantage_scale: divisor that normalises the advantages of each group, in the unit of the scores, shape
        ``(max_groups,)``
    :param scale_kind: ``"std"`` or ``"range"``, see :func:`~sb3_grpo.losses.score_fluctuation`
    :return: the comparison of those groups that have steps
    """
    present, member, counts = np.unique(groups, return_inverse=True, return_counts=True)
    step_scores = np.asarray(step_scores, dtype=np.float64)
    scores, total = group_means(step_scores, member, counts), step_scores.var()
    between = (counts / len(groups) * (scores - step_scores.mean()) ** 2).sum()
    return GroupScores(
        groups=present,
        counts=counts,
        scores=scores,
        scale=float(score_fluctuation(step_scores, scale_kind)),
        advantage_scale=np.asarray(advantage_scale, dtype=np.float64)[present],
        eta_squared=float(between / total) if total >= MIN_SCALE**2 else 0.0,
    )


class Balancer(ABC):
    """
    Rule by which groups are weighed against each other.

    :param group_coef: strength of the balance as a function of the remaining progress (from 1 to 0), at least 0
    """

    def __init__(self, group_coef: Callable[[float], float]):
        self.group_coef = group_coef

    @abstractmethod
    def __call__(self, scores: GroupScores, progress_remaining: float) -> GroupWeights:
        """
        Weigh the groups of one rollout.

        :param scores: how the groups compare
        :param progress_remaining: remaining progress of the training, from 1 to 0
        :return: weights of shape ``(K,)``, at least 0
        """


class RelativePenalty(Balancer):
    """
    The weights that make PPO's gradient that of ``L_PPO + lambda * ||M||_F^2`` with ``M_ij = (R_i - R_j) / sigma_R``.

    The worse a group, the larger its weight. Lambda is capped so that no weight is negative: with a larger one the best
    group would be made worse.
    """

    def __call__(self, scores: GroupScores, progress_remaining: float) -> GroupWeights:
        """Weigh the groups of one rollout, see :class:`Balancer`."""
        slope = penalty_slope(scores.scores, scores.scale)
        coef = min(self.group_coef(progress_remaining), largest_group_coef(slope, scores.shares, scores.advantage_scale))
        return GroupWeights(group_weights(slope, scores.shares, scores.advantage_scale, coef), coef)


# Values of the argument `balancer`
BALANCERS: dict[str, type[Balancer]] = {"relative_penalty": RelativePenalty}
