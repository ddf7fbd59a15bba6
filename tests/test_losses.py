"""The mathematics: worked examples, closed forms against autograd, and properties for any groups."""

import math

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from sb3_grpo.losses import (
    approx_kl,
    clipped_surrogate,
    group_means,
    group_penalty,
    group_std,
    group_weights,
    k3,
    largest_group_coef,
    penalty_slope,
    relative_advantage_matrix,
    score_fluctuation,
    trajectory_log_ratio,
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


class TestConstantScores:
    @pytest.mark.parametrize("scale", [0.0, 9e-9])
    def test_matrix_and_slope_are_zero(self, scale):
        assert not relative_advantage_matrix(tensor(1, 2), scale).any()
        assert not penalty_slope(tensor(1, 2), scale).any()

    def test_just_above_the_threshold_they_are_not(self):
        assert relative_advantage_matrix(tensor(1, 2), 1.1e-8).any()
        assert penalty_slope(tensor(1, 2), 1.1e-8).any()


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


class TestCapOnLambda:
    def test_by_hand(self):
        # scores 1 and 0, scale 1: slopes 4 and -4; weight of the first 1 - coef * 4 * 1 / 0.5
        slope, shares, unit = penalty_slope(tensor(1, 0), 1.0), tensor(0.5, 0.5), tensor(1, 1)
        assert largest_group_coef(slope, shares, unit) == pytest.approx(0.125)
        th.testing.assert_close(group_weights(slope, shares, unit, 0.125), tensor(0, 2))
        th.testing.assert_close(group_weights(slope, shares, unit, 0.0625), tensor(0.5, 1.5))

    def test_no_group_ahead(self):
        assert largest_group_coef(tensor(0, 0), tensor(0.5, 0.5), tensor(1, 1)) == math.inf


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


class TestApproxKl:
    def test_numbers(self):
        assert approx_kl(tensor(0, 0, 0)).item() == 0
        # (2 - 1 - log 2 + 1/2 - 1 + log 2) / 2
        assert approx_kl(tensor(2, 0.5).log()).item() == pytest.approx(0.25)

    def test_is_never_negative(self):
        assert (th.stack([approx_kl(tensor(value)) for value in np.linspace(-5, 5, 101)]) >= 0).all()

    def test_estimates_the_divergence(self):
        """From steps of the old policy."""
        old, new = tensor(0.5, 0.3, 0.2), tensor(0.4, 0.3, 0.3)
        steps = th.multinomial(old, 100_000, replacement=True, generator=th.Generator().manual_seed(0))
        expected = (old * (old / new).log()).sum()
        th.testing.assert_close(approx_kl((new / old).log()[steps]), expected, rtol=0.02, atol=0)


class TestAsymmetricClipping:
    """Below 1 by 0.2, above by 0.5."""

    @pytest.mark.parametrize(
        ("ratio", "advantage", "expected", "slope"),
        [
            (1.0, 3.0, 3.0, 3.0),
            (1.4, 3.0, 4.2, 3.0),  # with 0.2 on both sides it would be clipped at 1.2
            (2.0, 3.0, 4.5, 0.0),  # clipped at 1.5
            (0.5, 3.0, 1.5, 3.0),  # a good action became rarer: not clipped
            (2.0, -3.0, -6.0, -3.0),  # a bad action became more frequent: not clipped
            (0.9, -3.0, -2.7, -3.0),
            (0.6, -3.0, -2.4, 0.0),  # clipped at 0.8: with 0.5 on both sides it would not be
        ],
    )
    def test_value_and_gradient(self, ratio, advantage, expected, slope):
        leaf = tensor(ratio).requires_grad_()
        found = clipped_surrogate(leaf, tensor(advantage), 0.2, 0.5)
        assert found.item() == pytest.approx(expected)
        found.sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.item() == slope

    def test_a_narrower_range_above_clips_earlier(self):
        assert clipped_surrogate(tensor(1.3), tensor(3.0), 0.5, 0.1).item() == pytest.approx(3.3)
        assert clipped_surrogate(tensor(1.3), tensor(3.0), 0.5).item() == pytest.approx(3.9)

    def test_none_is_the_same_range_to_the_last_bit(self):
        generator = th.Generator().manual_seed(0)
        ratio, advantages = (0.5 * th.randn(1000, generator=generator)).exp(), th.randn(1000, generator=generator)
        expected = th.min(advantages * ratio, advantages * th.clamp(ratio, 1 - 0.2, 1 + 0.2))
        assert clipped_surrogate(ratio, advantages, 0.2, None).equal(expected)
        assert clipped_surrogate(ratio, advantages, 0.2, 0.2).equal(expected)
        assert not clipped_surrogate(ratio, advantages, 0.2, 0.21).equal(expected)


LOG_PROBS = st.floats(-20, 5)


class TestK3:
    def test_by_hand(self):
        # q / p is 2, 1/2 and 1
        found = k3(tensor(0.25, 0.5, 0.3).log(), tensor(0.5, 0.25, 0.3).log())
        th.testing.assert_close(found, tensor(1 - math.log(2), math.log(2) - 0.5, 0), rtol=0, atol=1e-15)

    def test_is_zero_for_equal_policies_and_so_is_its_slope(self):
        log_prob = tensor(-3, -0.1, 2).requires_grad_()
        found = k3(log_prob, log_prob.detach())
        found.sum().backward()
        assert found.tolist() == [0, 0, 0]
        assert log_prob.grad is not None
        assert log_prob.grad.tolist() == [0, 0, 0]

    @settings(deadline=None, derandomize=True)
    @given(st.lists(st.tuples(LOG_PROBS, LOG_PROBS), min_size=1, max_size=20))
    def test_is_never_negative(self, pairs):
        for dtype in (th.float32, DOUBLE):
            log_prob, reference = th.tensor(pairs, dtype=dtype).unbind(dim=1)
            found = k3(log_prob, reference)
            # the smallest difference from 1 that a number near 1 can have, for the rounding of exp
            assert (found >= -2 * th.finfo(dtype).eps).all()
            assert (found[(log_prob - reference).abs() > 0.01] > 0).all()

    @settings(deadline=None, derandomize=True, max_examples=50)
    @given(st.floats(-5, 5), st.floats(-5, 5))
    def test_slope(self, log_prob, reference):
        leaf = tensor(log_prob).requires_grad_()
        k3(leaf, tensor(reference)).sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.item() == pytest.approx(1 - math.exp(reference - log_prob), rel=1e-9, abs=1e-9)

    @pytest.mark.parametrize(
        ("policy", "reference"),
        [
            (Categorical(tensor(0.5, 0.3, 0.2)), Categorical(tensor(0.2, 0.3, 0.5))),
            (Normal(tensor(0.3), tensor(1.0)), Normal(tensor(-0.2), tensor(0.8))),
            # two actions at once
            (
                Independent(Normal(tensor(0, 0.5), tensor(0.5, 1)), 1),
                Independent(Normal(tensor(0.2, 0), tensor(0.6, 1)), 1),
            ),
        ],
        ids=["Categorical", "Normal", "two of Normal"],
    )
    def test_is_unbiased_for_actions_of_the_policy(self, policy, reference):
        n_samples, expected = 200_000, kl_divergence(policy, reference).item()
        th.manual_seed(0)
        actions, others = (each.sample((n_samples,)) for each in (policy, reference))
        found, biased = (k3(policy.log_prob(each), reference.log_prob(each)).flatten() for each in (actions, others))
        error = found.std().item() / math.sqrt(n_samples)
        assert error < 0.02 * expected, "a large error would say nothing"
        assert abs(found.mean().item() - expected) < 4 * error
        # control: the actions must be those of the policy
        assert abs(biased.mean().item() - expected) > 8 * error


class TestTrajectoryLogRatio:
    @settings(deadline=None, derandomize=True, max_examples=50)
    @given(st.lists(st.tuples(st.floats(-2, 2), st.integers(0, 4)), min_size=1, max_size=30))
    def test_is_the_mean_of_each_trajectory_in_any_order(self, steps):
        log_ratio, numbers = tensor(*(ratio for ratio, _ in steps)), th.tensor([number for _, number in steps])
        found = trajectory_log_ratio(log_ratio, numbers).tolist()
        for value, (_, number) in zip(found, steps, strict=True):
            own = [ratio for ratio, other in steps if other == number]
            assert value == pytest.approx(sum(own) / len(own), abs=1e-12)

    def test_is_the_root_of_the_ratio_of_whole_trajectories(self):
        """``(pi_theta(y) / pi_old(y)) ** (1 / |y|)``."""
        new, old = array(0.5, 0.2, 0.9, 0.3, 0.4), array(0.4, 0.3, 0.6, 0.3, 0.1)
        numbers = th.tensor([1, 0, 1, 1, 0])
        ratios = trajectory_log_ratio(th.as_tensor(np.log(new / old)), numbers).exp().tolist()
        of_three = (0.5 * 0.9 * 0.3 / (0.4 * 0.6 * 0.3)) ** (1 / 3)
        of_two = (0.2 * 0.4 / (0.3 * 0.1)) ** (1 / 2)
        assert ratios == pytest.approx([of_three, of_two, of_three, of_three, of_two])

    def test_of_one_step_is_that_of_the_step(self):
        log_ratio = tensor(0.3, -2, 5)
        assert trajectory_log_ratio(log_ratio, th.tensor([2, 0, 1])).equal(log_ratio)

    def test_gradient_reaches_all_steps_of_the_trajectory(self):
        log_ratio = tensor(0.1, 0.2, 0.3, 0.4).requires_grad_()
        trajectory_log_ratio(log_ratio, th.tensor([0, 0, 1, 0]))[0].backward()
        assert log_ratio.grad is not None
        assert log_ratio.grad.tolist() == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])
