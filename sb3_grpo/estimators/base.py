"""What an advantage estimator is given, and what it returns."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np

from sb3_grpo.buffers import GroupBufferMixin, Rollout
from sb3_grpo.recording import Outcome


class Experience(NamedTuple):
    """The steps that the policy learns from: those of the rollout, or those of the trajectories that are complete."""

    rollout: Rollout  #: as tensors
    outcome: Outcome  #: of the same steps in the same order, with the advantages; the episodes are those of the rollout
    parts: np.ndarray  #: steps with different numbers have nothing in common but the policy, shape (B,)
    divisors: np.ndarray | None = None  #: what the advantage of each step has been divided by, shape (B,); ``None``: nothing
    figures: Mapping[str, float] = {}  #: for the logger, by tag


class AdvantageEstimator(ABC):
    """
    Estimator of the advantages of a rollout.

    :param group_size: number of environments whose episodes of the same number are compared; they follow each other
    :param gamma: discount factor
    """

    # Whether value heads exist, are trained, and say what an episode that a rollout cuts off would still have brought
    uses_critic: ClassVar[bool]
    # Whether episodes of the same number must begin alike
    needs_shared_start: ClassVar[bool] = False

    def __init__(self, group_size: int, gamma: float):
        self.group_size, self.gamma = group_size, gamma

    @property
    def next_episode(self) -> int:
        """Number of the next episode of every environment."""
        return 0

    def begin(self, n_envs: int, next_episode: int) -> None:  # noqa: B027  # most estimators have nothing to prepare
        """
        Prepare for environments that are about to be reset: nothing of their episodes before will be continued.

        :param n_envs: number of environments
        :param next_episode: number of the episode that begins in each of them
        """

    @abstractmethod
    def __call__(self, buffer: GroupBufferMixin, outcome: Outcome, ended: np.ndarray) -> Experience:
        """
        Estimate how much better than expected each action was.

        :param buffer: the complete rollout
        :param outcome: what its steps brought; its advantages are those of the buffer
        :param ended: whether the last step of each environment ended its episode, shape ``(n_envs,)``
        :return: the steps to learn from, with advantages that are not yet normalised by group
        """


class GAE(AdvantageEstimator):
    """Generalized advantage estimation (https://arxiv.org/abs/1506.02438), as SB3 computes it while it collects."""

    uses_critic = True

    def __call__(self, buffer: GroupBufferMixin, outcome: Outcome, ended: np.ndarray) -> Experience:
        """Return the rollout with the advantages that the buffer holds, see :class:`AdvantageEstimator`."""
        return Experience(buffer.samples(), outcome, np.repeat(np.arange(buffer.n_envs), buffer.buffer_size))
