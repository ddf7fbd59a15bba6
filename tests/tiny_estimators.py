"""Estimators of advantages for tests."""

import numpy as np

from sb3_grpo.buffers import GroupBufferMixin
from sb3_grpo.estimators import AdvantageEstimator, Experience
from sb3_grpo.recording import Outcome


class RewardsToGo(AdvantageEstimator):
    """The advantage of a step is how far the rewards after it are above their mean over the rollout; there are no values."""

    uses_critic = False

    def __call__(self, buffer: GroupBufferMixin, outcome: Outcome, ended: np.ndarray) -> Experience:
        assert not buffer.samples().old_values.any()
        # values are 0, so these are the rewards to go
        advantages = outcome.returns - outcome.returns.mean()
        parts = np.repeat(np.arange(buffer.n_envs), buffer.buffer_size)
        return Experience(buffer.samples(), outcome._replace(advantages=advantages), parts)
