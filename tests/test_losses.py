"""The mathematics: worked examples, closed forms against autograd, and properties for any groups."""

import math

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_grpo.losses import (
    balance_groups,
    clipped_surrogate,
    group_means,
    group_penalty,
    group_std,
    group_weights,
    largest_group_coef,
    penalty_slope,
    relative_advantage_matrix,
    score_fluctuation,
)

DOUBLE = th.float64


def tensor(*values):
    return th.tensor(values, dtype=DOUBLE)


def array(*values):
    return np.array(values, dtype=float)


class TestWorkedExample:
    scores, scale = tensor(2.5, 1.8), 0.7

    def test_matrix(self):
        matrix = relative_advantage_matrix(self.scores, self.scale)
        th.testing.assert_close(matrix, th.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=DOUBLE), rtol=0, atol=1e-15)

    def test_penalty_and_total_loss(self):
        penalty = group_penalty(relative_advantage_matrix(self.scores, self.scale)).item()
        assert penalty == pytest.approx(2.0, abs=1e-14)
        assert 1.2 + 0.5 * penalty == pytest.approx(2.2, abs=1e-14)

    def test_slope(self):
        # 4 * 2 * (2.5 - 2.15) / 0.49
        th.testing.assert_close(penalty_slope(self.scores, self.scale), tensor(2.8 / 0.49, -2.8 / 0.49))


ANY_SCORES = [(2.5, 1.8), (0.0, 1.0), (-7.0, 300.0, 12.0), (1.0, 2.0, 3.0, 5.0, 8.0)]


class TestScaleOfTheMeansIsATrap:
    """With a scale taken from the K means the penalty is a constant."""

    @pytest.mark.parametrize("scores", ANY_SCORES)
    @pytest.mark.parametrize(("correction", "constant"), [(0, lambda k: 2 * k**2), (1, lambda k: 2 * k * (k - 1))])
    def test_standard_deviation(self, scores, correction, constant):
        means = tensor(*scores)
        penalty = group_penalty(relative_advantage_matrix(means, means.std(correction=correction)))
        assert penalty.item() == pytest.approx(constant(len(scores)))

    @pytest.mark.parametrize("scores", [s for s in ANY_SCORES if len(s) == 2])
    def test_range_of_two(self, scores):
        means = tensor(*scores)
        assert group_penalty(relative_advantage_matrix(means, means.max() - means.min())).item() == pytest.approx(2.0)

    def test_pooled_scale_is_none(self):
        near, far = array(0, 2, 1, 3), array(0, 2, 5, 7)
        groups, unit = np.array([0, 0, 1, 1]), np.ones(2)
        # group means 1 and 2 or 6; variance within 1; variance between 1/4 or 25/4
        assert balance_groups(groups, near, unit, 0.0).penalty == pytest.approx(2 * 1 / 1.25)
        assert balance_groups(groups, far, unit, 0.0).penalty == pytest.approx(2 * 25 / 7.25)


@pytest.mark.parametrize("n_groups", [2, 3, 7])
def test_penalty_of_equal_groups_is_2_k2_eta2(n_groups):
    groups = np.tile(np.arange(n_groups), 20)
    scores = np.random.default_rng(n_groups).normal(size=len(groups)) + groups
    balance = balance_groups(groups, scores, np.ones(n_groups), 0.0)
    means = scores.reshape(20, n_groups).mean(axis=0)
    eta_squared = means.var() / scores.var()
    assert balance.eta_squared == pytest.approx(eta_squared)
    assert balance.penalty == pytest.approx(2 * n_groups**2 * eta_squared)
    assert 0 < eta_squared < 1


class TestConstantScores:
    @pytest.mark.parametrize("scale", [0.0, 9e-9])
    def test_matrix_and_slope_are_zero(self, scale):
        assert not relative_advantage_matrix(tensor(1, 2), scale).any()
        assert not penalty_slope(tensor(1, 2), scale).any()

    def test_just_above_the_threshold_they_are_not(self):
        assert relative_advantage_matrix(tensor(1, 2), 1.1e-8).any()
        assert penalty_slope(tensor(1, 2), 1.1e-8).any()

    @pytest.mark.parametrize("kind", ["std", "range"])
    def test_all_weights_are_one(self, kind):
        balance = balance_groups(np.array([0, 0, 1]), np.full(3, 4.0), np.ones(2), 0.5, kind)
        assert balance.weights.tolist() == [1.0, 1.0]
        assert (balance.penalty, balance.eta_squared, balance.coef) == (0.0, 0.0, 0.5)


def test_scores_of_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"`scores` must have shape \(K,\), got \(2, 1\)"):
        relative_advantage_matrix(th.ones(2, 1), 1.0)


@pytest.mark.parametrize(("kind", "expected"), [("std", math.sqrt(14 / 4)), ("range", 5.0)])
def test_score_fluctuation(kind, expected):
    # mean 2, squared differences 4, 1, 0, 9
    for scores in (tensor(0, 1, 2, 5), array(0, 1, 2, 5)):
        assert float(score_fluctuation(scores, kind)) == pytest.approx(expected)


@pytest.mark.parametrize("scores", ANY_SCORES)
def test_gradient_of_the_penalty_is_its_slope(scores):
    means = tensor(*scores).requires_grad_()
    group_penalty(relative_advantage_matrix(means, 1.7)).backward()
    th.testing.assert_close(means.grad, penalty_slope(means.detach(), 1.7))


class SmallProblem:
    """Softmax policy over 3 actions, linear in 4 features; 40 steps in 3 groups of unequal size."""

    clip_range = 0.2

    def __init__(self, scales):
        random = np.random.default_rng(3)
        self.theta_old = th.as_tensor(random.normal(size=(4, 3)))
        self.features = th.as_tensor(random.normal(size=(40, 4)))
        self.actions = th.as_tensor(random.integers(3, size=40))
        self.groups = th.as_tensor(random.choice(3, size=40, p=(0.2, 0.3, 0.5)))
        self.scores = th.as_tensor(random.normal(size=40)) + self.groups
        self.normalised = th.as_tensor(random.normal(size=40))
        self.scales = tensor(*scales)

    def log_prob(self, theta):
        return (self.features @ theta).log_softmax(dim=1)[th.arange(40), self.actions]

    def surrogate(self, theta, advantages):
        ratio = (self.log_prob(theta) - self.log_prob(self.theta_old)).exp()
        return clipped_surrogate(ratio, advantages, self.clip_range)

    def literal_loss(self, theta, coef):
        advantages = self.normalised * self.scales[self.groups]
        change = self.surrogate(theta, advantages) - self.surrogate(self.theta_old, advantages)
        means = th.stack([(self.scores + change)[self.groups == group].mean() for group in range(3)])
        penalty = group_penalty(relative_advantage_matrix(means, score_fluctuation(self.scores, "std")))
        return -self.surrogate(theta, self.normalised).mean() + coef * penalty

    def weighted_loss(self, theta, coef):
        weights = th.as_tensor(self.balance(coef).weights)
        return -(weights[self.groups] * self.surrogate(theta, self.normalised)).mean()

    def balance(self, coef):
        return balance_groups(self.groups.numpy(), self.scores.numpy(), self.scales.numpy(), coef)

    def gradient(self, loss, coef):
        theta = self.theta_old.clone().requires_grad_()
        return th.autograd.grad(loss(theta, coef), theta)[0]


@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), (2.5, 2.5, 2.5), (0.5, 1.0, 3.0)])
class TestWeightedSurrogateHasTheGradientOfTheFullLoss:
    def test_below_the_cap(self, scales):
        problem = SmallProblem(scales)
        assert problem.balance(0.005).coef == 0.005
        literal, weighted = (problem.gradient(loss, 0.005) for loss in (problem.literal_loss, problem.weighted_loss))
        th.testing.assert_close(weighted, literal)

    def test_without_the_penalty_it_differs(self, scales):
        problem = SmallProblem(scales)
        literal, plain = problem.gradient(problem.literal_loss, 0.005), problem.gradient(problem.weighted_loss, 0.0)
        assert not th.allclose(plain, literal, rtol=1e-3)

    def test_above_the_cap_it_is_that_of_the_capped_coefficient(self, scales):
        problem = SmallProblem(scales)
        capped = problem.balance(10.0).coef
        assert capped < 10
        th.testing.assert_close(problem.gradient(problem.weighted_loss, 10.0), problem.gradient(problem.literal_loss, capped))


class TestCapOnLambda:
    def test_by_hand(self):
        # scores 1 and 0, scale 1: slopes 4 and -4; weight of the first 1 - coef * 4 * 1 / 0.5
        slope, shares, unit = penalty_slope(tensor(1, 0), 1.0), tensor(0.5, 0.5), tensor(1, 1)
        assert largest_group_coef(slope, shares, unit) == pytest.approx(0.125)
        th.testing.assert_close(group_weights(slope, shares, unit, 0.125), tensor(0, 2))
        th.testing.assert_close(group_weights(slope, shares, unit, 0.0625), tensor(0.5, 1.5))

    def test_no_group_ahead(self):
        assert largest_group_coef(tensor(0, 0), tensor(0.5, 0.5), tensor(1, 1)) == math.inf

    def test_at_it_the_smallest_weight_is_zero(self):
        problem = SmallProblem((0.5, 1.0, 3.0))
        balance = problem.balance(1e6)
        assert balance.weights.min().item() == pytest.approx(0, abs=1e-12)
        below = problem.balance(0.5 * balance.coef)
        assert below.weights.min().item() == pytest.approx(0.5)

    def test_a_larger_lambda_changes_nothing(self):
        problem = SmallProblem((1.0, 1.0, 1.0))
        one, other = (problem.balance(coef) for coef in (5.0, 50.0))
        assert one.coef == other.coef
        assert one.weights.tolist() == other.weights.tolist()


def test_groups_without_steps_have_no_row():
    balance = balance_groups(np.array([4, 1, 4]), array(1, 2, 3), np.ones(6), 0.01)
    assert balance.groups.tolist() == [1, 4]
    assert balance.steps.tolist() == [1, 2]
    assert balance.scores.tolist() == [2, 2]


NUMBERS = st.floats(-100, 100, allow_subnormal=False).map(lambda x: round(x, 3))


@st.composite
def rollouts(draw, equal_scales=False):
    """Groups with their steps' scores, and the advantage scale of every group."""
    n_groups = draw(st.integers(2, 5))
    sizes = draw(st.lists(st.integers(1, 12), min_size=n_groups, max_size=n_groups))
    groups = np.repeat(np.arange(n_groups), sizes)
    scores = draw(st.lists(NUMBERS, min_size=len(groups), max_size=len(groups)))
    scale = st.floats(0.1, 10)
    scales = [draw(scale)] * n_groups if equal_scales else draw(st.lists(scale, min_size=n_groups, max_size=n_groups))
    return groups, array(*scores), array(*scales)


COEFS = st.one_of(st.just(0.0), st.floats(1e-6, 1e6))
KINDS = st.sampled_from(["std", "range"])
property_test = settings(deadline=None, max_examples=60, derandomize=True, database=None)


class TestWeightsOfAnyRollout:
    @property_test
    @given(rollouts(), COEFS, KINDS)
    def test_none_is_negative(self, rollout, coef, kind):
        groups, scores, scales = rollout
        balance = balance_groups(groups, scores, scales, coef, kind)
        assert balance.weights.min() >= 0
        assert 0 <= balance.coef <= coef

    @property_test
    @given(rollouts(), COEFS, KINDS)
    def test_worse_groups_grow_and_better_ones_shrink(self, rollout, coef, kind):
        groups, scores, scales = rollout
        balance = balance_groups(groups, scores, scales, coef, kind)
        behind, ahead = balance.scores < balance.scores.mean(), balance.scores > balance.scores.mean()
        assert (balance.weights[behind] >= 1).all()
        assert (balance.weights[ahead] <= 1).all()

    @property_test
    @given(rollouts(equal_scales=True))
    def test_of_equal_groups_the_worst_weighs_most(self, rollout):
        _, scores, scales = rollout
        step_scores, n_groups = scores[: len(scales)], len(scales)
        balance = balance_groups(np.arange(n_groups), step_scores, scales, 0.01)
        assert balance.weights[step_scores.argmin()] == balance.weights.max()
        assert balance.weights[step_scores.argmax()] == balance.weights.min()

    @property_test
    @given(rollouts(), COEFS)
    def test_sum_weighted_by_share_and_scale_is_that_of_ppo(self, rollout, coef):
        groups, scores, scales = rollout
        balance = balance_groups(groups, scores, scales, coef)
        ppo = balance.steps / len(groups) / scales
        assert (ppo * balance.weights).sum().item() == pytest.approx(ppo.sum().item(), rel=1e-6)

    @property_test
    @given(rollouts(), COEFS, st.randoms(use_true_random=False))
    def test_renaming_groups_renames_weights(self, rollout, coef, random):
        groups, scores, scales = rollout
        renamed = list(range(len(scales)))
        random.shuffle(renamed)
        names = np.array(renamed)
        plain = balance_groups(groups, scores, scales, coef)
        other = balance_groups(names[groups], scores, scales[names.argsort()], coef)
        np.testing.assert_allclose(other.weights[names], plain.weights, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(other.scores[names], plain.scores, rtol=1e-7, atol=1e-7)
        assert other.penalty == pytest.approx(plain.penalty)

    @property_test
    @given(rollouts(), COEFS, KINDS, NUMBERS)
    def test_shifting_all_scores_changes_nothing(self, rollout, coef, kind, shift):
        groups, scores, scales = rollout
        plain = balance_groups(groups, scores, scales, coef, kind)
        other = balance_groups(groups, scores + shift, scales, coef, kind)
        np.testing.assert_allclose(other.weights, plain.weights, rtol=1e-5, atol=1e-5)
        assert other.penalty == pytest.approx(plain.penalty, abs=1e-6)
        assert other.eta_squared == pytest.approx(plain.eta_squared, abs=1e-6)

    @property_test
    @given(rollouts(), COEFS, KINDS, st.floats(0.01, 100))
    def test_the_unit_of_the_rewards_changes_nothing(self, rollout, coef, kind, unit):
        groups, scores, scales = rollout
        plain = balance_groups(groups, scores, scales, coef, kind)
        other = balance_groups(groups, scores * unit, scales * unit, coef, kind)
        np.testing.assert_allclose(other.weights, plain.weights, rtol=1e-5, atol=1e-5)
        assert other.penalty == pytest.approx(plain.penalty, abs=1e-6)

    @property_test
    @given(rollouts())
    def test_without_lambda_all_are_one(self, rollout):
        groups, scores, scales = rollout
        assert (balance_groups(groups, scores, scales, 0.0).weights == 1).all()

    @property_test
    @given(rollouts())
    def test_eta_squared_is_a_share(self, rollout):
        groups, scores, scales = rollout
        assert -1e-12 <= balance_groups(groups, scores, scales, 0.0).eta_squared <= 1 + 1e-12


def test_scaling_scores_but_not_advantages_changes_the_weights():
    groups, scores, unit = np.array([0, 0, 1, 1]), array(0, 2, 1, 3), np.ones(2)
    one, other = (balance_groups(groups, scale * scores, unit, 0.01).weights for scale in (1, 10))
    assert not np.allclose(one, other)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.0, 3.0, 3.0),
        (1.1, 3.0, 3.3),
        (2.0, 3.0, 3.6),  # clipped at 1.2
        (0.5, 3.0, 1.5),  # a good action became rarer: not clipped
        (2.0, -3.0, -6.0),  # a bad action became more frequent: not clipped
        (0.5, -3.0, -2.4),  # clipped at 0.8
    ],
)
def test_clipped_surrogate(ratio, advantage, expected):
    assert clipped_surrogate(tensor(ratio), tensor(advantage), 0.2).item() == pytest.approx(expected)


@pytest.mark.parametrize(("ratio", "slope"), [(1.0, 3.0), (1.3, 0.0)])
def test_clipped_surrogate_stops_the_gradient_outside_the_range(ratio, slope):
    leaf = tensor(ratio).requires_grad_()
    clipped_surrogate(leaf, tensor(3.0), 0.2).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.item() == slope


def test_group_means_and_std_of_each_group_alone():
    random = np.random.default_rng(0)
    values, member = random.normal(size=50), random.integers(4, size=50)
    parts = [values[member == group] for group in range(4)]
    arguments = values, member, np.bincount(member)
    np.testing.assert_allclose(group_means(*arguments), [part.mean() for part in parts])
    np.testing.assert_allclose(group_std(*arguments), [part.std(ddof=1) for part in parts])


def test_group_means_and_std_of_small_groups():
    arguments = array(5.0, 1.0, 2.0), np.array([0, 2, 2]), np.array([1, 0, 2])
    assert group_means(*arguments).tolist() == [5.0, 0.0, 1.5]
    np.testing.assert_allclose(group_std(*arguments), [0, 0, math.sqrt(0.5)])


@pytest.mark.parametrize("coef", [0.0, 0.01, 1e9])
def test_a_group_without_advantages_keeps_its_weight(coef):
    """Its scores may differ, but there is nothing that a weight could act on."""
    balance = balance_groups(np.array([0, 0, 1, 1]), array(5, 5, 0, 1), array(0, 1), coef)
    assert balance.weights[0] == 1
    assert balance.weights[1] >= 1
