"""Estimators of advantages for tests."""

import numpy as np

from sb3_grpo.advantages import AdvantageEstimator
from sb3_grpo.buffers import GroupBufferMixin


class RewardsToGo(AdvantageEstimator):
    """The advantage of a step is how far the rewards after it are above their mean over the rollout; there are no values."""

    uses_critic = False

    def __call__(self, buffer: GroupBufferMixin, groups: np.ndarray) -> np.ndarray:
        samples = buffer.samples()
        assert not samples.old_values.any()
        # values are 0, so these are the rewards to go, discounted with gamma * gae_lambda
        rewards = samples.returns.cpu().numpy()
        return rewards - rewards.mean()
