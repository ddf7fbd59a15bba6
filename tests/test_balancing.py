"""Balancing: how groups compare, and the weights that follow from it."""

from typing import NamedTuple

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_grpo.balancing import BALANCERS, Balancer, GapOdds, GroupWeights, RelativePenalty
from sb3_grpo.losses import (
    clipped_surrogate,
    group_penalty,
    relative_advantage_matrix,
    score_fluctuation,
)
from sb3_grpo.scores import GroupScores, compare_steps


def tensor(*values):
    return th.tensor(values, dtype=th.float64)


def array(*values):
    return np.array(values, dtype=float)


class Balance(NamedTuple):
    """A comparison and what follows from it, side by side."""

    groups: np.ndarray
    counts: np.ndarray
    scores: np.ndarray
    eta_squared: float
    penalty: float
    weights: np.ndarray
    coef: float


def compare(groups, step_scores, advantage_scale, kind="std") -> GroupScores:
    """Compare the groups that have steps; ``advantage_scale`` is indexed by group."""
    present, member, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return compare_steps(present, member, counts, step_scores, advantage_scale[present], kind)


def balanced(groups, step_scores, advantage_scale, coef, kind="std") -> Balance:
    """Compare groups, and weigh them by the penalty with a constant coefficient."""
    scores = compare(groups, step_scores, advantage_scale, kind)
    weights = RelativePenalty(lambda progress: coef)(scores, 1.0)
    penalty = float(group_penalty(relative_advantage_matrix(scores.scores, scores.scale)))
    return Balance(scores.groups, scores.counts, scores.scores, scores.eta_squared, penalty, *weights)


class TestRelativePenalty:
    scores = GroupScores(np.array([3, 8]), np.array([5, 15]), array(1, 0), 2.0, array(1, 2), 0.5)

    def test_by_hand(self):
        """Slopes 4 * 2 * (+-1/2) / 4 = +-1; 1 - coef * slope * s_i / share_i."""
        weights, coef = RelativePenalty(lambda progress: 0.1)(self.scores, 1.0)
        np.testing.assert_allclose(weights, [1 - 0.1 * 1 / 0.25, 1 + 0.1 * 2 / 0.75])
        assert coef == 0.1

    def test_coefficient_is_that_of_the_progress(self):
        asked = []

        def schedule(progress: float) -> float:
            asked.append(progress)
            return 0.2 * progress

        rule = RelativePenalty(schedule)
        assert [rule(self.scores, progress).coef for progress in (1.0, 0.5, 0.0)] == [0.2, 0.1, 0.0]
        assert asked == [1.0, 0.5, 0.0]

    def test_cap_by_hand(self):
        """The first weight is 0 where coef = share / (s slope) = 1/4."""
        weights, coef = RelativePenalty(lambda progress: 3.0)(self.scores, 1.0)
        assert coef == pytest.approx(0.25)
        np.testing.assert_allclose(weights, [0, 1 + 0.25 * 2 / 0.75], atol=1e-12)

    def test_a_group_whose_advantages_have_no_scale_is_left_out(self):
        """The others weigh as if it had no score: slopes 4 * 2 * (+-1/2) / 4 = +-1 of two groups, not of three."""
        shares = np.array([5, 15, 20])
        for place in range(3):
            others = [index for index in range(3) if index != place]
            scores, scale = np.full(3, -7.0), np.zeros(3)
            scores[others], scale[others] = (1, 0), (1, 2)
            comparison = GroupScores(np.arange(3), shares, scores, 2.0, scale, 0.5)
            weights, coef = RelativePenalty(lambda progress: 0.01)(comparison, 1.0)
            share = shares / shares.sum()
            expected = np.ones(3)
            expected[others] = 1 - 0.01 * array(1, -1) * array(1, 2) / share[others]
            np.testing.assert_allclose(weights, expected)
            assert coef == 0.01
            # control: with a scale it takes part
            comparison = comparison._replace(advantage_scale=np.maximum(scale, 1e-3))
            weights, _ = RelativePenalty(lambda progress: 0.01)(comparison, 1.0)
            assert (weights[others] < 1).all()

    @pytest.mark.parametrize("coef", [0.01, 1e9])
    def test_where_no_advantages_have_a_scale_all_weights_are_one(self, coef):
        comparison = GroupScores(np.arange(3), np.array([5, 15, 20]), array(1, 0, -7), 2.0, np.zeros(3), 0.5)
        assert RelativePenalty(lambda progress: coef)(comparison, 1.0).weights.tolist() == [1, 1, 1]

    def test_is_a_balancer_with_a_name(self):
        assert BALANCERS["relative_penalty"] is RelativePenalty
        assert issubclass(RelativePenalty, Balancer)
        with pytest.raises(TypeError, match="abstract"):
            Balancer(lambda progress: 0.0)  # type: ignore[abstract]  # what is tested


class TestWeightsOfSteps:
    weights = GroupWeights(array(0.5, 2.0, 7.0), 0.1)

    def test_are_those_of_their_groups(self):
        found = self.weights.at(np.array([1, 4, 6]), np.array([6, 4, 4, 1, 6]))
        assert found.tolist() == [7, 2, 2, 0.5, 7]
        # a float64 would change the type of the loss
        assert found.dtype == np.float32

    @given(st.integers(0, 2**32))
    @settings(deadline=None, max_examples=60, derandomize=True, database=None)
    def test_have_the_mean_of_the_groups_weights_by_share(self, seed):
        random = np.random.default_rng(seed)
        groups, names = random.integers(0, 5, 40), np.sort(random.choice(100, 5, replace=False))
        scores = compare(names[groups], random.normal(size=40), np.ones(100))
        weights = GroupWeights(random.uniform(0, 3, len(scores.groups)), 0.0)
        found = weights.at(scores.groups, names[groups])
        assert found.mean() == pytest.approx(weights.weights @ scores.shares, rel=1e-5)


class TestPooledScale:
    def test_pooled_scale_is_none(self):
        near, far = array(0, 2, 1, 3), array(0, 2, 5, 7)
        groups, unit = np.array([0, 0, 1, 1]), np.ones(2)
        # group means 1 and 2 or 6; variance within 1; variance between 1/4 or 25/4
        assert balanced(groups, near, unit, 0.0).penalty == pytest.approx(2 * 1 / 1.25)
        assert balanced(groups, far, unit, 0.0).penalty == pytest.approx(2 * 25 / 7.25)


@pytest.mark.parametrize("n_groups", [2, 3, 7])
def test_penalty_of_equal_groups_is_2_k2_eta2(n_groups):
    groups = np.tile(np.arange(n_groups), 20)
    scores = np.random.default_rng(n_groups).normal(size=len(groups)) + groups
    balance = balanced(groups, scores, np.ones(n_groups), 0.0)
    means = scores.reshape(20, n_groups).mean(axis=0)
    eta_squared = means.var() / scores.var()
    assert balance.eta_squared == pytest.approx(eta_squared)
    assert balance.penalty == pytest.approx(2 * n_groups**2 * eta_squared)
    assert 0 < eta_squared < 1


@pytest.mark.parametrize("kind", ["std", "range"])
def test_weights_of_constant_scores_are_one(kind):
    balance = balanced(np.array([0, 0, 1]), np.full(3, 4.0), np.ones(2), 0.5, kind)
    assert balance.weights.tolist() == [1.0, 1.0]
    assert (balance.penalty, balance.eta_squared, balance.coef) == (0.0, 0.0, 0.5)


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
        return balanced(self.groups.numpy(), self.scores.numpy(), self.scales.numpy(), coef)

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
    balance = balanced(np.array([4, 1, 4]), array(1, 2, 3), np.ones(6), 0.01)
    assert balance.groups.tolist() == [1, 4]
    assert balance.counts.tolist() == [1, 2]
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
        balance = balanced(groups, scores, scales, coef, kind)
        assert balance.weights.min() >= 0
        assert 0 <= balance.coef <= coef

    @property_test
    @given(rollouts(), COEFS, KINDS)
    def test_worse_groups_grow_and_better_ones_shrink(self, rollout, coef, kind):
        groups, scores, scales = rollout
        balance = balanced(groups, scores, scales, coef, kind)
        behind, ahead = balance.scores < balance.scores.mean(), balance.scores > balance.scores.mean()
        assert (balance.weights[behind] >= 1).all()
        assert (balance.weights[ahead] <= 1).all()

    @property_test
    @given(rollouts(equal_scales=True))
    def test_of_equal_groups_the_worst_weighs_most(self, rollout):
        _, scores, scales = rollout
        step_scores, n_groups = scores[: len(scales)], len(scales)
        balance = balanced(np.arange(n_groups), step_scores, scales, 0.01)
        assert balance.weights[step_scores.argmin()] == balance.weights.max()
        assert balance.weights[step_scores.argmax()] == balance.weights.min()

    @property_test
    @given(rollouts(), COEFS)
    def test_sum_weighted_by_share_and_scale_is_that_of_ppo(self, rollout, coef):
        groups, scores, scales = rollout
        balance = balanced(groups, scores, scales, coef)
        ppo = balance.counts / len(groups) / scales
        assert (ppo * balance.weights).sum().item() == pytest.approx(ppo.sum().item(), rel=1e-6)

    @property_test
    @given(rollouts(), COEFS, st.randoms(use_true_random=False))
    def test_renaming_groups_renames_weights(self, rollout, coef, random):
        groups, scores, scales = rollout
        renamed = list(range(len(scales)))
        random.shuffle(renamed)
        names = np.array(renamed)
        plain = balanced(groups, scores, scales, coef)
        other = balanced(names[groups], scores, scales[names.argsort()], coef)
        np.testing.assert_allclose(other.weights[names], plain.weights, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(other.scores[names], plain.scores, rtol=1e-7, atol=1e-7)
        assert other.penalty == pytest.approx(plain.penalty)

    @property_test
    @given(rollouts(), COEFS, KINDS, NUMBERS)
    def test_shifting_all_scores_changes_nothing(self, rollout, coef, kind, shift):
        groups, scores, scales = rollout
        plain = balanced(groups, scores, scales, coef, kind)
        other = balanced(groups, scores + shift, scales, coef, kind)
        np.testing.assert_allclose(other.weights, plain.weights, rtol=1e-5, atol=1e-5)
        assert other.penalty == pytest.approx(plain.penalty, abs=1e-6)
        assert other.eta_squared == pytest.approx(plain.eta_squared, abs=1e-6)

    @property_test
    @given(rollouts(), COEFS, KINDS, st.floats(0.01, 100))
    def test_the_unit_of_the_rewards_changes_nothing(self, rollout, coef, kind, unit):
        groups, scores, scales = rollout
        plain = balanced(groups, scores, scales, coef, kind)
        other = balanced(groups, scores * unit, scales * unit, coef, kind)
        np.testing.assert_allclose(other.weights, plain.weights, rtol=1e-5, atol=1e-5)
        assert other.penalty == pytest.approx(plain.penalty, abs=1e-6)

    @property_test
    @given(rollouts())
    def test_without_lambda_all_are_one(self, rollout):
        groups, scores, scales = rollout
        assert (balanced(groups, scores, scales, 0.0).weights == 1).all()

    @property_test
    @given(rollouts())
    def test_eta_squared_is_a_share(self, rollout):
        groups, scores, scales = rollout
        assert -1e-12 <= balanced(groups, scores, scales, 0.0).eta_squared <= 1 + 1e-12


def test_scaling_scores_but_not_advantages_changes_the_weights():
    groups, scores, unit = np.array([0, 0, 1, 1]), array(0, 2, 1, 3), np.ones(2)
    one, other = (balanced(groups, scale * scores, unit, 0.01).weights for scale in (1, 10))
    assert not np.allclose(one, other)


@pytest.mark.parametrize("coef", [0.0, 0.01, 1e9])
def test_a_group_without_advantages_keeps_its_weight(coef):
    """Its scores may differ, but there is nothing that a weight could act on."""
    balance = balanced(np.array([0, 0, 1, 1]), array(5, 5, 0, 1), array(0, 1), coef)
    # and the other has nothing to be compared with
    assert balance.weights.tolist() == [1, 1]


class TestGapOdds:
    @staticmethod
    def weights(coef, counts, scores):
        n_groups = len(counts)
        given = GroupScores(np.arange(n_groups), array(*counts), array(*scores), 1.0, np.ones(n_groups), 0.0)
        return GapOdds(lambda progress: coef)(given, 1.0).weights

    def test_by_hand(self):
        """Odds 1/4 e^2 and 3/4, divided by their sum and by the shares."""
        total = np.exp(2) / 4 + 3 / 4
        np.testing.assert_allclose(self.weights(2.0, (5, 15), (-1, 0)), [np.exp(2) / total, 1 / total])

    def test_the_floor(self):
        """0.01 beside 0.99 and more, and divided by their sum."""
        np.testing.assert_allclose(self.weights(1000.0, (10, 10), (-1, 0)), array(1, 0.01) / 1.01 / 0.5)

    @given(
        st.floats(0, 50),
        st.lists(st.tuples(st.integers(1, 1000), st.floats(-1, 0)), min_size=1, max_size=6),
    )
    def test_invariants(self, coef, groups):
        """The mean over steps is 1, and above the floor who is further behind has no smaller weight."""
        counts, scores = zip(*groups, strict=True)
        weights, shares = self.weights(coef, counts, scores), array(*counts) / sum(counts)
        assert (weights * shares).sum() == pytest.approx(1)
        odds = weights * shares
        if odds.min() > 0.0101:
            by_score = weights[np.argsort(scores, kind="stable")]
            assert (np.diff(by_score) <= 1e-9).all()

    def test_without_a_coefficient_all_weights_are_1(self):
        np.testing.assert_allclose(self.weights(0.0, (5, 15, 30), (-1, 0, -0.5)), 1)
