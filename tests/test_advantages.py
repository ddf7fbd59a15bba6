"""Advantages: the estimator, against sums by hand, and their normalisation by group."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_grpo.advantages import ESTIMATORS, GAE, AdvantageEstimator, normalize_by_group
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


class TestNormalizeByGroup:
    def test_by_hand(self):
        # means 2 and 10; sample variances 2 and 8 + 8
        advantages, groups = np.array([1.0, 10.0 - 2 * 2**0.5, 3.0, 10.0 + 2 * 2**0.5]), np.array([0, 2, 0, 2])
        normalised, scale = normalize_by_group(advantages.astype(np.float32), groups, 4)
        np.testing.assert_allclose(normalised, [-(0.5**0.5), -(0.5**0.5), 0.5**0.5, 0.5**0.5], rtol=1e-6)
        np.testing.assert_allclose(scale, [2**0.5, 1e-8, 4, 1e-8], rtol=1e-6)

    def test_is_that_of_torch_for_one_group(self):
        """SB3's line, applied to the rollout."""
        advantages = th.randn(100, generator=th.Generator().manual_seed(0)) * 30 + 5
        normalised, scale = normalize_by_group(advantages.numpy(), np.zeros(100, dtype=int), 1)
        assert normalised.dtype == np.float32
        expected = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        np.testing.assert_allclose(normalised, expected, rtol=1e-5, atol=1e-6)
        assert scale.item() == pytest.approx(advantages.std().item(), rel=1e-6)

    def test_a_group_of_one_step_has_no_advantage(self):
        normalised, _ = normalize_by_group(np.array([7.0, 1.0, 2.0], dtype=np.float32), np.array([1, 0, 0]), 2)
        assert normalised[0] == 0

    @property_test
    @given(st.integers(0, 2**32), st.integers(1, 5), st.floats(1e-3, 1e4))
    def test_every_group_has_mean_0_and_deviation_1_in_any_unit(self, seed, n_groups, unit):
        random = np.random.default_rng(seed)
        groups = random.permutation(np.repeat(np.arange(n_groups), random.integers(2, 20, n_groups)))
        advantages = (unit * (random.normal(size=len(groups)) + 3 * groups)).astype(np.float32)
        normalised, scale = normalize_by_group(advantages, groups, n_groups + 1)
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
        normalised, _ = normalize_by_group(advantages, groups, 2)
        assert normalised[:2].tolist() == normalised[2:].tolist()
        together, _ = normalize_by_group(advantages, np.zeros(4, dtype=int), 1)
        assert together[:2].max() < 0 < together[2:].min()
