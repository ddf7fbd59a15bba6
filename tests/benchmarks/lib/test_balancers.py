"""Test the rules that are compared with the package's own, with numbers by hand."""

import math

import numpy as np
import pytest

from benchmarks.lib.balancers import RULES, GeneralizedGini, ImprovementOdds, MirrorDescent, register
from sb3_grpo.balancing import BALANCERS, GapOdds, RelativePenalty
from sb3_grpo.scores import GroupScores


def scores_of(*gaps: float) -> GroupScores:
    n_groups = len(gaps)
    return GroupScores(np.arange(n_groups), np.ones(n_groups), -np.array(gaps), 1.0, np.ones(n_groups), 0.0)


def ratio(rule: ImprovementOdds, *gaps: float) -> float:
    """Weight of the first of two groups, divided by that of the second."""
    weights, _ = rule(scores_of(*gaps), 1.0)
    assert weights.mean() == pytest.approx(1)
    return float(weights[0] / weights[1])


def test_improvement_odds_move_by_a_fifth() -> None:
    rule = ImprovementOdds(lambda progress: 4.0)
    # log odds 0.2 * 4 * 1, then 0.8 * 0.8 + 0.2 * 4 * (0.5 - 0.5)
    assert ratio(rule, 1, 0) == pytest.approx(math.exp(0.8))
    assert ratio(rule, 0.5, 0) == pytest.approx(math.exp(0.64))


def test_improvement_odds_have_a_floor() -> None:
    # 0.01 beside nearly 1
    assert ratio(ImprovementOdds(lambda progress: 100.0), 1, 0) == pytest.approx(100, rel=1e-6)


def test_improvement_odds_favour_who_does_not_improve() -> None:
    rule = ImprovementOdds(lambda progress: 4.0)
    assert ratio(rule, 1, 1) == pytest.approx(1)
    # the first has half of its gap left and has improved by as much
    assert ratio(rule, 0.5, 1) == pytest.approx(math.exp(0.2 * 4 * (0.5 - 0.5 - 1)))


def test_registered_rules_stand_beside_the_package_s() -> None:
    register()
    assert {"relative_penalty": RelativePenalty, "gap_odds": GapOdds, **RULES} == BALANCERS


def test_generalized_gini_knows_the_order_only() -> None:
    rule = GeneralizedGini(lambda progress: 0.5)
    for gaps in ((0.3, 0.9, 0.1), (0.3, 0.31, 0.29)):
        weights, _ = rule(scores_of(*gaps), 1.0)
        assert weights.tolist() == pytest.approx([3 * 2 / 7, 3 * 4 / 7, 3 * 1 / 7])


def test_mirror_descent_by_hand() -> None:
    rule = MirrorDescent(lambda progress: 1.0)
    first, second = 0.3 * 0.5 / 1.3, 0.3 * 0.5 / 1.3**2
    ratios = []
    for expected in (first, first + second):
        weights, _ = rule(scores_of(0.5, 0), 1.0)
        ratios.append(math.log(weights[0] / weights[1]))
        assert ratios[-1] == pytest.approx(expected)
        assert weights.sum() == pytest.approx(2)


def test_mirror_descent_rests_at_the_softmax() -> None:
    rule = MirrorDescent(lambda progress: 0.2)
    for _ in range(400):
        weights, _ = rule(scores_of(0.5, 0), 1.0)
    assert math.log(weights[0] / weights[1]) == pytest.approx(0.5 / 0.2, rel=1e-6)
    # without the entropy term nothing holds it
    rule = MirrorDescent(lambda progress: 0.0)
    for _ in range(20):
        weights, _ = rule(scores_of(0.5, 0), 1.0)
    assert math.log(weights[0] / weights[1]) == pytest.approx(20 * 0.3 * 0.5)
