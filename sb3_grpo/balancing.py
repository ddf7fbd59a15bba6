"""Balancing: from the scores of the groups to the weight of each group's policy-gradient loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import numpy as np

from sb3_grpo.losses import group_weights, largest_group_coef, penalty_slope
from sb3_grpo.scores import GroupScores


class GroupWeights(NamedTuple):
    """Weights of the groups of one rollout."""

    weights: np.ndarray  #: factor on the policy-gradient loss of each group, 1 = PPO
    coef: float  #: coefficient that the weights come from, after a cap

    def at(self, compared: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """
        Look up the weight of each step.

        :param compared: the groups that have the weights, ascending, shape ``(K,)``
        :param groups: group of each step, one of ``compared``, shape ``(B,)``
        :return: float32, shape ``(B,)``
        """
        return self.weights.astype(np.float32)[np.searchsorted(compared, groups)]


class Balancer(ABC):
    """
    Rule by which groups are weighed against each other.

    :param group_coef: strength of the balance as a function of the remaining progress (from 1 to 0), at least 0
    """

    DEFAULT_COEF: ClassVar[float] = 0.05  #: strength where none is given

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
    group would be made worse. Groups without advantages, as those that have had no reward yet, are not compared: no weight
    could change what they learn, and the others would be held back for nothing.
    """

    def __call__(self, scores: GroupScores, progress_remaining: float) -> GroupWeights:
        """Weigh the groups of one rollout, see :class:`Balancer`."""
        compared, slope = scores.advantage_scale > 0, np.zeros(len(scores.groups))
        if compared.any():
            slope[compared] = penalty_slope(scores.scores[compared], scores.scale)
        coef = min(self.group_coef(progress_remaining), largest_group_coef(slope, scores.shares, scores.advantage_scale))
        return GroupWeights(group_weights(slope, scores.shares, scores.advantage_scale, coef), coef)


class GapOdds(Balancer):
    """
    Odds that grow exponentially with what is behind: ``share_i exp(-group_coef * R_i)``, normalised, none below 0.01.

    With ``group_score="gap"`` these are the odds that the sampling rule of DRATS (https://arxiv.org/abs/2605.14350) moves
    towards, with ``group_coef`` 16 in its public code. It gives nearly all effort to the groups with the largest gaps, also
    to those that have not had a success yet: meant for :class:`~sb3_grpo.task_sampling.TaskSamplingCallback`. Objectives
    (``group_by="objectives"``), of which none is without rewards for long, are balanced more closely by it than by
    :class:`RelativePenalty`: it is their default where they are compared by gaps, with ``group_coef`` 5.
    """

    DEFAULT_COEF = 5.0
    FLOOR = 0.01

    def __call__(self, scores: GroupScores, progress_remaining: float) -> GroupWeights:
        """Weigh the groups of one rollout, see :class:`Balancer`."""
        coef = self.group_coef(progress_remaining)
        # in relation to the group that is furthest behind, so that nothing overflows
        odds = scores.shares * np.exp(-coef * (scores.scores - scores.scores.min()))
        odds = (odds / odds.sum()).clip(self.FLOOR)
        return GroupWeights(odds / odds.sum() / scores.shares, coef)


#: Values of the argument ``balancer``
BALANCERS: dict[str, type[Balancer]] = {"relative_penalty": RelativePenalty, "gap_odds": GapOdds}
