"""Estimators of advantages for tests."""

import numpy as np

from sb3_grpo.buffers import GroupBufferMixin
from sb3_grpo.estimators import AdvantageEstimator, Experience
from sb3_grpo.recording import Outcome


class RewardsOnly(AdvantageEstimator):
    """The advantage of a step is how far its reward is above the mean of the rollout; no value is asked for."""

    uses_critic = False

    def __call__(self, buffer: GroupBufferMixin, outcome: Outcome, ended: np.ndarray) -> Experience:
        rewards = buffer.flat_rewards()
        parts = np.repeat(np.arange(buffer.n_envs), buffer.buffer_size)
        return Experience(buffer.samples(), outcome._replace(advantages=rewards - rewards.mean()), parts)
