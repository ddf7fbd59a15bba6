"""Balancing rules that are compared with the package's own; :func:`register` makes their names known to ``GRPO``."""

from collections.abc import Callable

import numpy as np
from scipy.special import softmax

from sb3_grpo import balancing
from sb3_grpo.balancing import Balancer, GapOdds, GroupWeights
from sb3_grpo.scores import GroupScores


class Softmax(Balancer):
    """
    Weigh groups by ``q_i / share_i`` with ``q_i ~ share_i exp(-group_coef * R_i / sigma_R)``.

    Group DRO (https://arxiv.org/abs/1911.08731), with the scores of one rollout as its only memory.
    """

    def __call__(self, scores: GroupScores, progress_remaining: float) -> GroupWeights:
        """Weigh the groups of one rollout, see ``Balancer``."""
        coef = self.group_coef(progress_remaining)
        behind = -coef * scores.scores / max(scores.scale, 1e-8)
        return GroupWeights(softmax(np.log(scores.shares) + behind) / scores.shares, coef)


class ImprovementOdds(Balancer):
    """
    Improvement-aware weights after MT-GRPO (https://arxiv.org/abs/2602.05547), for ``group_score="gap"``.

    Odds that move by a step of 0.2 towards ``share_i exp(group_coef * behind_i)``, none below ``FLOOR``. What is behind is
    what has a gap and what has not improved since the last rollout: the gap minus the improvement.

    :param group_coef: how sharply the odds follow what is behind
    """

    STEP, FLOOR = 0.2, GapOdds.FLOOR

    def __init__(self, group_coef: Callable[[float], float]):
        super().__init__(group_coef)
        self.log_odds: dict[int, float] = {}  # of each group, beside its share
        self.last_scores: dict[int, float] = {}

    def __call__(self, scores: GroupScores, progress_remaining: float) -> GroupWeights:
        """Weigh the groups of one rollout, see ``Balancer``."""
        coef, groups, now = self.group_coef(progress_remaining), scores.groups.tolist(), scores.scores
        before = np.array([self.last_scores.get(group, now[place]) for place, group in enumerate(groups)])
        for group, behind in zip(groups, (before - 2 * now).tolist(), strict=True):
            self.log_odds[group] = (1 - self.STEP) * self.log_odds.get(group, 0.0) + self.STEP * coef * behind
        self.last_scores.update(zip(groups, now.tolist(), strict=True))
        log_odds = np.array([self.log_odds[group] for group in groups])
        odds = softmax(np.log(scores.shares) + log_odds).clip(self.FLOOR)
        return GroupWeights(odds / odds.sum() / scores.shares, coef)


class GeneralizedGini(Balancer):
    """
    Weights that depend on the order only: that of the best is half of that of the next, and so on down to the worst.

    The gradient of the generalised Gini welfare function (https://arxiv.org/abs/2008.07773, GGF-PPO) with ``group_coef``
    as the quotient of two weights that follow each other, published with 1/2.
    """

    def __call__(self, scores: GroupScores, progress_remaining: float) -> GroupWeights:
        """Weigh the groups of one rollout, see ``Balancer``."""
        quotient, rank = self.group_coef(progress_remaining), scores.scores.argsort().argsort()
        weights = quotient ** rank.astype(float)
        return GroupWeights(weights / weights.mean(), quotient)


class MirrorDescent(Balancer):
    """
    Weights that descend the worst of their mixtures, by mirror descent with an entropy term.

    ``w <- w^(1 / (1 + STEP * group_coef)) exp(-STEP * R / (1 + STEP * group_coef))``, normalised: the min player of the
    regularised game of https://arxiv.org/abs/2510.20235 (ERAM), ``min_w sum w_i R_i + group_coef * sum w_i log w_i``. Its
    rest is ``softmax(-R / group_coef)``.

    :param group_coef: strength of the entropy term
    """

    STEP = 0.3

    def __init__(self, group_coef: Callable[[float], float]):
        super().__init__(group_coef)
        self.log_weights: dict[int, float] = {}

    def __call__(self, scores: GroupScores, progress_remaining: float) -> GroupWeights:
        """Weigh the groups of one rollout, see ``Balancer``."""
        coef, groups = self.group_coef(progress_remaining), scores.groups.tolist()
        before = np.array([self.log_weights.get(group, 0.0) for group in groups])
        weights = softmax((before - self.STEP * scores.scores) / (1 + self.STEP * coef))
        self.log_weights.update(zip(groups, np.log(weights).tolist(), strict=True))
        return GroupWeights(weights * len(weights), coef)


RULES: dict[str, type[Balancer]] = {
    "softmax": Softmax,
    "improvement_odds": ImprovementOdds,
    "generalized_gini": GeneralizedGini,
    "mirror_descent": MirrorDescent,
}


def register() -> None:
    """Make the rules known to ``GRPO`` and ``TaskSamplingCallback``; each process of a sweep has to call it."""
    balancing.BALANCERS.update(RULES)
