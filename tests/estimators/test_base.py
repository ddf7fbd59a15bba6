"""What all estimators have, and generalized advantage estimation, against sums by hand."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_grpo.buffers import GroupRolloutBuffer
from sb3_grpo.estimators import ESTIMATORS, GAE, AdvantageEstimator
from sb3_grpo.recording import RolloutRecorder

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
    outcome = RolloutRecorder().outcome(buffer, np.zeros(N_STEPS * N_ENVS, dtype=int))
    experience = GAE(1, gamma)(buffer, outcome, dones[-1])
    expected = gae_by_hand(rewards, values, last_values, dones, gamma, gae_lambda)
    np.testing.assert_allclose(experience.outcome.advantages, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(experience.rollout.advantages, experience.outcome.advantages)
    assert experience.parts.tolist() == [0] * N_STEPS + [1] * N_STEPS + [2] * N_STEPS
    assert experience.divisors is None


def test_estimators_have_names():
    assert ESTIMATORS["gae"] is GAE
    assert issubclass(GAE, AdvantageEstimator)
    assert GAE.uses_critic
    with pytest.raises(TypeError, match="abstract"):
        AdvantageEstimator(1, 0.9)  # type: ignore[abstract]  # what is tested
