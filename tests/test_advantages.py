"""Normalisation of advantages by group, and the smallest number that they are divided by."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_grpo.advantages import (
    normalize_by_group,
    single_reward_deviation,
    smallest_divisor,
)
from sb3_grpo.buffers import GroupRolloutBuffer
from sb3_grpo.reward_scale import RewardScale

property_test = settings(deadline=None, max_examples=60, derandomize=True, database=None)


class TestSingleRewardDeviation:
    def test_by_hand(self):
        # 1 + 1/4 + 1/16 over 3 steps, times 4; 1.3125 over 1 step, times 0.5
        floor = single_reward_deviation(np.array([0, 2, 0, 0]), np.array([0.25, 1, 2, 0]), 0.5, 3)
        np.testing.assert_allclose(floor, [4 * (1.3125 / 3) ** 0.5, 0, 0.5 * 1.3125**0.5, 0])

    @pytest.mark.parametrize(("discount", "credit"), [(0, 1), (1, 7)])
    def test_limits_of_the_discount(self, discount, credit):
        floor = single_reward_deviation(np.zeros(14, dtype=int), np.array([0.1]), discount, 7)
        assert floor.item() == pytest.approx(10 * (credit / 14) ** 0.5)

    def test_a_group_without_rewards_or_steps_has_none(self):
        floor = single_reward_deviation(np.array([0, 1]), np.array([0.0, 1.0, 1.0]), 0.9, 2)
        assert (floor > 0).tolist() == [False, True, False]

    @pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (0.5, 0.5), (1.0, 1.0)])
    def test_is_what_one_reward_makes_of_the_advantages(self, gamma, gae_lambda):
        """Of a rollout whose values are 0: their root mean square around 0."""
        n_steps, n_envs, box = 40, 3, spaces.Box(-1, 1, (1,))
        buffer = GroupRolloutBuffer(n_steps, box, spaces.Discrete(2), "cpu", gae_lambda=gae_lambda, gamma=gamma, n_envs=n_envs)
        nothing = np.zeros((n_envs, 1))
        for t in range(n_steps):
            rewards = np.array([0, 0.7 * (t == n_steps - 1), 0])
            buffer.add(nothing, nothing, rewards, np.full(n_envs, t == 0), th.zeros(n_envs), th.zeros(n_envs))
        buffer.compute_returns_and_advantage(th.zeros(n_envs), np.ones(n_envs))
        groups = np.zeros(n_steps * n_envs, dtype=int)
        floor = single_reward_deviation(groups, np.array([1 / 0.7]), gamma * gae_lambda, n_steps)
        found = buffer.samples().advantages.numpy().astype(float)
        assert floor.item() == pytest.approx(np.square(found).mean() ** 0.5, rel=1e-5)


def without_floor(n_groups):
    return np.zeros(n_groups)


class TestSmallestDivisor:
    def test_only_groups_without_a_reward_have_one(self):
        groups, rewards = np.array([0, 0, 1, 1, 2, 2]), np.array([0.0, 0.0, -1.0, 0.0, 0.0, 0.0])
        floor = smallest_divisor(groups, rewards, np.array([0.25, 0.25, 0]), 0, 3)
        np.testing.assert_allclose(floor, [4 * 0.5**0.5, 0, 0])


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


class TestFloorOfASingleReward:
    # a sparse task: values err by a hundredth of a reward, and the steps before a success have its discounted reward
    n_steps, discount = 2000, 0.94
    groups = np.zeros(n_steps, dtype=int)
    noise = np.random.default_rng(0).normal(scale=0.01, size=n_steps)

    def success(self, n):
        """Advantages that ``n`` rewards of 1 make, far from each other."""
        return (self.discount ** np.minimum(self.n_steps // n - 1 - np.arange(self.n_steps) % (self.n_steps // n), 900)) * 1.0

    def normalise(self, advantages, n_rewards):
        rewards = 1.0 * (np.arange(self.n_steps) < n_rewards)
        floor = smallest_divisor(self.groups, rewards, np.array([1.0]), self.discount, self.n_steps)
        return normalize_by_group(advantages.astype(np.float32), self.groups, floor)[0]

    def test_noise_stays_small(self):
        # 0.01 / sqrt(1 / (1 - 0.94 ** 2) / 2000)
        assert self.normalise(self.noise, 0).std() == pytest.approx(0.153, rel=0.05)

    def test_control_without_floor_noise_is_of_full_size(self):
        alone, _ = normalize_by_group(self.noise.astype(np.float32), self.groups, without_floor(1))
        assert alone.std() == pytest.approx(1, rel=1e-3)

    @pytest.mark.parametrize("n_rewards", [1, 4, 2000])
    def test_rollouts_with_rewards_are_divided_by_their_deviation(self, n_rewards):
        """Also where the rewards were expected."""
        for advantages in (self.success(n_rewards) + self.noise, self.noise):
            assert self.normalise(advantages, n_rewards).std() == pytest.approx(1, rel=1e-3)

    def test_the_floor_is_the_deviation_of_one_success(self):
        advantages = self.success(1)
        np.testing.assert_allclose(self.normalise(advantages, 0), self.normalise(advantages, 1), rtol=0.01)

    @property_test
    @given(st.integers(0, 2**32), st.integers(1, 4), st.floats(-12, 12))
    def test_scale_of_the_rewards_of_one_group_changes_nothing(self, seed, n_groups, exponent):
        """Advantages are proportional to the rewards, if values are; in any rollout, the first included."""
        random = np.random.default_rng(seed)
        groups, rewards = random.integers(0, n_groups, 60), random.normal(size=60)
        # some groups have had rewards before, but have none in this rollout
        of_rollout = rewards * random.integers(0, 2, n_groups)[groups]
        advantages = random.normal(size=60) * 10.0 ** random.uniform(-3, 1)
        factor = np.where(groups == random.integers(n_groups), 10.0**exponent, 1.0)
        found = []
        for unit in (1.0, factor):
            scale = RewardScale(n_groups)
            scale.update(unit * rewards, groups)
            per_scale = scale.inverse_of_groups(np.arange(n_groups), n_groups)
            floor = smallest_divisor(groups, unit * of_rollout, per_scale, 0.9, 20)
            found.append(normalize_by_group((unit * advantages).astype(np.float32), groups, floor)[0])
        np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-5)
