"""Advantages: the estimator, against sums by hand, and their normalisation by group."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_grpo.advantages import (
    ESTIMATORS,
    GAE,
    HALF_LIFE,
    AdvantageEstimator,
    AdvantageScale,
    normalize_by_group,
    rollout_scale,
)
from sb3_grpo.buffers import GroupRolloutBuffer

property_test = settings(deadline=None, max_examples=60, derandomize=True, database=None)
N_STEPS, N_ENVS = 9, 3


def gae_by_hand(rewards, values, last_values, dones, gamma, gae_lambda):
    """Sums over all later steps of the same episode, environment by environment; arrays are (step, environment)."""
    found = []
    for env in range(N_ENVS):
        following = [*values[1:, env], last_values[env]]
        deltas = [rewards[t, env] + gamma * (0 if dones[t, env] else following[t]) - values[t, env] for t in range(N_STEPS)]
        for t in range(N_STEPS):
            advantage, factor = 0.0, 1.0
            for later in range(t, N_STEPS):
                advantage += factor * deltas[later]
                factor *= gamma * gae_lambda
                if dones[later, env]:
                    break
            found.append(advantage)
    return found


@pytest.mark.parametrize("gae_lambda", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_gae_is_the_sum_of_temporal_difference_errors(gamma, gae_lambda):
    random = np.random.default_rng(0)
    rewards, values = random.normal(size=(2, N_STEPS, N_ENVS)).astype(np.float32)
    last_values, dones = random.normal(size=N_ENVS).astype(np.float32), random.random((N_STEPS, N_ENVS)) < 0.3
    box = spaces.Box(-1, 1, (1,))
    buffer = GroupRolloutBuffer(N_STEPS, box, spaces.Discrete(2), "cpu", gae_lambda=gae_lambda, gamma=gamma, n_envs=N_ENVS)
    starts = np.vstack([np.ones((1, N_ENVS)), dones[:-1]])
    nothing = np.zeros((N_ENVS, 1))
    for t in range(N_STEPS):
        buffer.add(nothing, nothing, rewards[t], starts[t], th.as_tensor(values[t]), th.zeros(N_ENVS))
    buffer.compute_returns_and_advantage(th.as_tensor(last_values), dones[-1])
    for groups in (np.zeros(N_STEPS * N_ENVS, dtype=int), np.arange(N_STEPS * N_ENVS)):
        expected = gae_by_hand(rewards, values, last_values, dones, gamma, gae_lambda)
        np.testing.assert_allclose(GAE()(buffer, groups), expected, rtol=1e-4, atol=1e-5)


def test_estimators_have_names():
    assert ESTIMATORS["gae"] is GAE
    assert issubclass(GAE, AdvantageEstimator)
    assert GAE.uses_critic
    with pytest.raises(TypeError, match="abstract"):
        AdvantageEstimator()  # type: ignore[abstract]  # what is tested


def scale_after(n_cells, *rollouts):
    """Scale after rollouts of advantages, cells, and group of each cell."""
    scale = AdvantageScale(n_cells)
    for advantages, cells, cell_to_group in rollouts:
        scale.update(np.array(advantages, dtype=np.float32), np.array(cells), np.array(cell_to_group))
    return scale


class TestAdvantageScale:
    def test_by_hand(self):
        # means 3 and 10; squares 4 + 4 + 0, and 9 + 9
        scale = scale_after(4, ([1, 7, 5, 3, 13], [0, 2, 0, 0, 2], [0, 1, 2, 1]))
        np.testing.assert_allclose(scale.scale, [(8 / 3) ** 0.5, 0, 3, 0], rtol=1e-6)
        np.testing.assert_allclose(scale.count, [3, 0, 2, 0])

    def test_deviations_are_those_from_the_mean_of_the_group(self):
        # mean 5; squares 16 and 4 + 36
        scale = scale_after(2, ([1, 3, 11], [0, 1, 1], [0, 0]))
        np.testing.assert_allclose(scale.scale, [4, 20**0.5], rtol=1e-6)
        np.testing.assert_allclose(scale.of_groups(np.array([0, 0]), 2), [(56 / 3) ** 0.5, 0], rtol=1e-6)
        # and stay so when the cells are split
        np.testing.assert_allclose(scale.of_groups(np.array([2, 0]), 3), [20**0.5, 0, 4], rtol=1e-6)

    def test_older_steps_count_less(self):
        first = ([2, -2] * (HALF_LIFE // 2), [0, 1] * (HALF_LIFE // 2), [0, 0])
        second = ([1, -1] * (HALF_LIFE // 2), [0, 0] * (HALF_LIFE // 2), [0, 0])
        scale = scale_after(2, first, second)
        # the group has made as many steps as halve the weight of those before, also where a cell had none of them
        np.testing.assert_allclose(scale.count, [HALF_LIFE * 5 / 4, HALF_LIFE / 4], rtol=1e-6)
        # (4 / 4 + 1) / (5 / 4)
        np.testing.assert_allclose(scale.scale, [1.6**0.5, 2], rtol=1e-6)
        # (4 / 2 + 1) / (3 / 2)
        np.testing.assert_allclose(scale.of_groups(np.array([0, 0]), 1), [2**0.5], rtol=1e-6)

    def test_a_group_without_steps_keeps_its_scale(self):
        once = scale_after(2, ([1, 3, 5], [1, 1, 0], [0, 1]))
        twice = scale_after(2, ([1, 3, 5], [1, 1, 0], [0, 1]), ([2, 9, 1], [0, 0, 0], [0, 1]))
        assert (once.scale[1], once.count[1]) == (twice.scale[1], twice.count[1]) == (1, 2)

    def test_large_advantages(self):
        """Their squares do not fit into float32."""
        assert scale_after(1, ([3e30, -3e30], [0, 0], [0])).of_groups(np.array([0]), 1) == pytest.approx([3e30])

    def test_begins_with_nothing(self):
        scale = AdvantageScale(2)
        assert scale.of_groups(np.array([0, 1]), 3).tolist() == [0, 0, 0]
        # a part of what training goes on with, not of the parameters
        assert scale.state_dict() == {}
        assert dict(scale.named_buffers()).keys() == {"scale", "count"}


def without_floor(n_groups):
    return np.zeros(n_groups)


class TestNormalizeByGroup:
    def test_by_hand(self):
        # means 2 and 10; sample variances 2 and 8 + 8
        advantages, groups = np.array([1.0, 10.0 - 2 * 2**0.5, 3.0, 10.0 + 2 * 2**0.5]), np.array([0, 2, 0, 2])
        normalised, scale = normalize_by_group(advantages.astype(np.float32), groups, without_floor(4))
        np.testing.assert_allclose(normalised, [-(0.5**0.5), -(0.5**0.5), 0.5**0.5, 0.5**0.5], rtol=1e-6)
        np.testing.assert_allclose(scale, [2**0.5, 0, 4, 0], rtol=1e-6)

    def test_the_larger_of_deviation_and_floor_divides(self):
        advantages, groups = np.array([1, 3, 6, 10], dtype=np.float32), np.array([0, 0, 1, 1])
        normalised, scale = normalize_by_group(advantages, groups, np.array([10.0, 0.5]))
        np.testing.assert_allclose(scale, [10, 8**0.5])
        np.testing.assert_allclose(normalised, [-0.1, 0.1, -(0.5**0.5), 0.5**0.5], rtol=1e-6)

    def test_is_that_of_torch_for_one_group(self):
        """SB3's line, applied to the rollout."""
        advantages = th.randn(100, generator=th.Generator().manual_seed(0)) * 30 + 5
        normalised, scale = normalize_by_group(advantages.numpy(), np.zeros(100, dtype=int), without_floor(1))
        assert normalised.dtype == np.float32
        expected = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        np.testing.assert_allclose(normalised, expected, rtol=1e-5, atol=1e-6)
        assert scale.item() == pytest.approx(advantages.std().item(), rel=1e-6)

    def test_a_group_of_one_step_has_no_advantage(self):
        normalised, _ = normalize_by_group(np.array([7.0, 1.0, 2.0], dtype=np.float32), np.array([1, 0, 0]), without_floor(2))
        assert normalised[0] == 0

    @pytest.mark.parametrize("value", [0.0, 1e-30, 0.1, 1e30])
    def test_equal_advantages_are_none(self, value):
        """Rounding errors of their mean are not blown up."""
        normalised, scale = normalize_by_group(np.full(7, value, dtype=np.float32), np.zeros(7, dtype=int), without_floor(1))
        np.testing.assert_allclose(normalised, 0, atol=1e-6)
        assert (scale == 0) == (value == 0)

    @property_test
    @given(st.integers(0, 2**32), st.integers(1, 5), st.floats(1e-3, 1e4))
    def test_every_group_has_mean_0_and_deviation_1_in_any_unit(self, seed, n_groups, unit):
        random = np.random.default_rng(seed)
        groups = random.permutation(np.repeat(np.arange(n_groups), random.integers(2, 20, n_groups)))
        advantages = (unit * (random.normal(size=len(groups)) + 3 * groups)).astype(np.float32)
        normalised, scale = normalize_by_group(advantages, groups, without_floor(n_groups + 1))
        for group in range(n_groups):
            own = normalised[groups == group].astype(float)
            assert own.mean() == pytest.approx(0, abs=1e-4)
            assert own.std(ddof=1) == pytest.approx(1, rel=1e-3)
            # the divisor is that of the group
            centred = advantages[groups == group] - advantages[groups == group].mean(dtype=float)
            np.testing.assert_allclose(own * scale[group], centred, rtol=1e-3, atol=1e-4 * unit)

    def test_the_mean_of_the_group_is_lost(self):
        """Control: without groups it is not."""
        advantages, groups = np.array([1.0, 2.0, 11.0, 12.0]), np.array([0, 0, 1, 1])
        normalised, _ = normalize_by_group(advantages, groups, without_floor(2))
        assert normalised[:2].tolist() == normalised[2:].tolist()
        together, _ = normalize_by_group(advantages, np.zeros(4, dtype=int), without_floor(1))
        assert together[:2].max() < 0 < together[2:].min()


def normalize_in_turn(rollouts, groups, n_groups):
    """Normalised advantages of each rollout, with the running scale as floor; each cell is a group."""
    scale, cell_to_group, found = AdvantageScale(n_groups), np.arange(n_groups), []
    for advantages in rollouts:
        scale.update(advantages, groups, cell_to_group)
        found.append(normalize_by_group(advantages, groups, scale.of_groups(cell_to_group, n_groups))[0])
    return found


class TestRunningScaleAsFloor:
    # a sparse task: of 2000 steps 20 lead to a success, or none, and the value function errs by a hundredth of it
    groups = np.zeros(2000, dtype=int)
    noise = np.random.default_rng(0).normal(scale=0.01, size=(4, 2000)).astype(np.float32)
    signal = noise[0] + (np.arange(2000) < 20)

    def test_noise_after_signal_stays_small(self):
        # 20 of 2000 steps: variance 0.01 * 0.99
        signal, *noise = normalize_in_turn([self.signal, *self.noise[1:]], self.groups, 1)
        assert signal.std() == pytest.approx(1, rel=1e-3)
        assert signal[:20].mean() == pytest.approx(0.99 / 0.0995, rel=0.02)
        # without forgetting 0.01 / 0.07 and 0.01 / 0.05
        assert [each.std() for each in noise] == pytest.approx([0.15, 0.19, 0.24], rel=0.05)

    def test_control_noise_by_itself_is_of_full_size(self):
        first, *_ = normalize_in_turn(self.noise, self.groups, 1)
        alone, _ = normalize_by_group(self.noise[1], self.groups, without_floor(1))
        assert first.std() == pytest.approx(1, rel=1e-3)
        assert alone.std() == pytest.approx(1, rel=1e-3)

    def test_signal_after_noise_is_not_larger_than_by_itself(self):
        *_, last = normalize_in_turn([*self.noise, self.signal], self.groups, 1)
        alone, _ = normalize_by_group(self.signal, self.groups, without_floor(1))
        np.testing.assert_array_equal(last, alone)

    def test_first_rollout_is_divided_by_its_deviation(self):
        first, *_ = normalize_in_turn([self.signal], self.groups, 1)
        alone, _ = normalize_by_group(self.signal, self.groups, without_floor(1))
        np.testing.assert_array_equal(first, alone)

    @property_test
    @given(st.integers(0, 2**32), st.integers(1, 4), st.floats(-12, 12))
    def test_scale_of_the_rewards_of_one_group_changes_nothing(self, seed, n_groups, exponent):
        """Advantages are proportional to the rewards, if values are."""
        random = np.random.default_rng(seed)
        groups = random.integers(0, n_groups, 60)
        rollouts = random.normal(size=(5, 60)) * 10.0 ** random.uniform(-3, 1, (5, 1))
        factor = np.where(groups == random.integers(n_groups), 10.0**exponent, 1.0)
        plain = normalize_in_turn(rollouts.astype(np.float32), groups, n_groups)
        scaled = normalize_in_turn((factor * rollouts).astype(np.float32), groups, n_groups)
        np.testing.assert_allclose(scaled, plain, rtol=1e-4, atol=1e-5)


class TestRolloutScale:
    def test_by_hand(self):
        # mean 3, squares 4 + 4 + 0 over 2
        assert rollout_scale(np.array([1.0, 5.0, 3.0], dtype=np.float32)) == pytest.approx(2)

    def test_is_above_zero(self):
        assert rollout_scale(np.full(5, 3.0, dtype=np.float32)) == pytest.approx(1e-8)

    def test_sums_in_float64(self):
        advantages = (1e7 + np.tile([0, 2], 5000)).astype(np.float32)
        assert rollout_scale(advantages) == pytest.approx(1.0, rel=1e-3)
