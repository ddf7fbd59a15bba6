"""Estimators of advantages for tests."""

import numpy as np

from sb3_grpo.advantages import AdvantageEstimator
from sb3_grpo.buffers import GroupBufferMixin


class RewardsOnly(AdvantageEstimator):
    """The advantage of a step is how far its reward is above the mean of the rollout; no value is asked for."""

    uses_critic = False

    def __call__(self, buffer: GroupBufferMixin, groups: np.ndarray) -> np.ndarray:
        rewards = buffer.flat_rewards()
        return rewards - rewards.mean()
