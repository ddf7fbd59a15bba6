"""The baseline of https://arxiv.org/abs/2511.03527: the mean return of episodes that happened to end one after the other."""

import numpy as np

from sb3_grpo.estimators import ESTIMATORS, OutcomeEstimator
from sb3_grpo.estimators.critic_free import Returns, of_outcomes
from sb3_grpo.estimators.relative import Relative
from sb3_grpo.estimators.sampling_groups import Trajectories


class BatchMeanEstimator(OutcomeEstimator):
    """
    Compare the return of an episode with those of the ``batch_of`` episodes of its batch, wherever they began.

    :param group_size: number of environments
    :param gamma: discount factor
    :param batch_of: number of episodes that are compared with each other
    :param kwargs: as :class:`~sb3_grpo.estimators.critic_free.CriticFreeEstimator`
    """

    needs_shared_start = False

    def __init__(self, group_size: int, gamma: float, batch_of: int = 8, **kwargs: str):
        super().__init__(group_size, gamma, **kwargs)  # type: ignore[arg-type]  # names of options, checked by GRPO
        self.batch_of = batch_of

    def compare(self, trajectories: Trajectories, returns: Returns) -> Relative:
        """Compute the advantage of each step, see ``CriticFreeEstimator``."""
        n_batches = max(1, len(trajectories.lengths) // self.batch_of)
        # the last batch takes what is left over
        batch = np.minimum(np.arange(len(trajectories.lengths)) // self.batch_of, n_batches - 1)
        return of_outcomes(trajectories._replace(group=batch), returns, self.scale)


def register() -> None:
    """Add the estimator to those that ``GRPO`` knows."""
    ESTIMATORS["batch_mean"] = BatchMeanEstimator
