"""Estimators without a critic: what other episodes of the same sampling group have brought is the baseline."""

import warnings
from abc import abstractmethod
from typing import Literal, NamedTuple

import numpy as np
import torch as th

from sb3_grpo.buffers import GroupBufferMixin
from sb3_grpo.estimators.base import AdvantageEstimator, Experience
from sb3_grpo.estimators.relative import Relative, are_alike, relative_values, shares_of_loss, sums_to_go
from sb3_grpo.estimators.sampling_groups import SamplingGroups, Trajectories, to_device
from sb3_grpo.recording import Outcome


class Returns(NamedTuple):
    """What complete trajectories have brought, discounted."""

    to_go: np.ndarray  #: from each step to the end of its trajectory, shape (B,)
    outcomes: np.ndarray  #: from the first step of each trajectory, shape (n,)


class CriticFreeEstimator(AdvantageEstimator):
    """
    Base of the estimators that compare the episodes of a sampling group with each other.

    :param group_size: number of environments whose episodes of the same number are one sampling group
    :param gamma: discount factor of all returns
    :param scale: what differences from the group's mean are divided by: ``"group"``, its standard deviation; ``"batch"``,
        that of all groups; ``"none"``, nothing. See :func:`~sb3_grpo.estimators.relative.relative_values`
    :param aggregation: mean of the loss over ``"step"``, ``"trajectory"`` or ``"constant"``, see
        :func:`~sb3_grpo.estimators.relative.shares_of_loss`
    :param ratio: what probability ratios are of: ``"step"``; ``"trajectory"``: the geometric mean over its steps (GSPO,
        https://arxiv.org/abs/2507.18071), for which minibatches consist of whole trajectories
    :param alike: what happens to groups whose outcomes are all alike: ``"keep"``; ``"skip"``: they are left out of the loss
        (of its entropy and KL divergence too; the filter of DAPO, which would sample others instead)
    :param truncated: what happens to trajectories that a time limit has ended: ``"keep"``; ``"mask"``: they are left out of
        the loss, but not out of the mean (the overlong filter of DAPO)
    :param max_rollouts: an episode may last so many rollouts, at least 1
    """

    uses_critic = False

    def __init__(
        self,
        group_size: int,
        gamma: float,
        scale: Literal["group", "batch", "none"] = "group",
        aggregation: Literal["step", "trajectory", "constant"] = "step",
        ratio: Literal["step", "trajectory"] = "step",
        alike: Literal["keep", "skip"] = "keep",
        truncated: Literal["keep", "mask"] = "keep",
        max_rollouts: int = 1,
    ):
        super().__init__(group_size, gamma)
        self.scale, self.aggregation, self.ratio, self.alike, self.truncated = scale, aggregation, ratio, alike, truncated
        self.groups = SamplingGroups(group_size, max_rollouts)

    @property
    def next_episode(self) -> int:
        """Number of the next episode of every environment."""
        return self.groups.next_episode

    def begin(self, n_envs: int, next_episode: int) -> None:
        """Prepare for environments that are about to be reset, see :class:`~sb3_grpo.estimators.base.AdvantageEstimator`."""
        self.groups.begin(n_envs, next_episode)

    @abstractmethod
    def compare(self, trajectories: Trajectories, returns: Returns) -> Relative:
        """
        Compute the advantage of each step.

        :param trajectories: of complete sampling groups, ``B`` steps in all, at least one trajectory
        :param returns: what they have brought
        :return: advantages, shape ``(B,)``, and what they have been divided by, shape ``(B,)``
        """

    def __call__(self, buffer: GroupBufferMixin, outcome: Outcome, ended: np.ndarray) -> Experience:
        """Return the steps of complete sampling groups, see :class:`~sb3_grpo.estimators.base.AdvantageEstimator`."""
        found, n_unused = self.groups.add(buffer, outcome, ended)
        steps = found.steps
        to_go = sums_to_go(steps.rewards, found.lengths, self.gamma)
        returns = Returns(to_go, to_go[np.cumsum(found.lengths) - found.lengths])
        n_groups = int(found.group.max(initial=-1)) + 1
        alike = are_alike(returns.outcomes, found.group, n_groups)
        relative = self.compare(found, returns) if n_groups else Relative(to_go, to_go)
        learnt = ~(alike[found.group] & (self.alike == "skip")) & ~(found.truncated & (self.truncated == "mask"))
        n_steps = len(to_go) + n_unused
        figures = {
            "groups/sampling_groups": n_groups,
            "groups/degenerate_fraction": float(alike.mean()) if n_groups else 0.0,
            "groups/unused_fraction": n_unused / n_steps if n_steps else 0.0,
        }
        chosen = np.flatnonzero(learnt[found.member])
        steps, member = steps.at(chosen), found.member[chosen]
        own = outcome._replace(
            cells=steps.cells,
            returns=to_go[chosen],
            rewards=steps.rewards,
            paid=steps.rewards,
            advantages=relative.values[chosen],
        )
        like = steps.rollout.advantages
        rollout = steps.rollout._replace(advantages=to_device(own.advantages, like), returns=to_device(own.returns, like))
        shares = shares_of_loss(found.lengths[learnt], self.aggregation, buffer.buffer_size)
        if shares is not None:
            rollout = rollout._replace(shares=to_device(shares, like))
        if self.ratio == "trajectory":
            numbers = np.unique(member, return_inverse=True)[1]
            rollout = rollout._replace(trajectories=th.as_tensor(numbers, device=like.device))
        divisors = None if self.scale == "none" else relative.divisors[chosen]
        return Experience(rollout, own, found.group[member], divisors, figures)


class OutcomeEstimator(CriticFreeEstimator):
    """
    Outcome supervision: every step of a trajectory gets the same advantage, ``(R_i - mean(R)) / std(R)``.

    ``R_i`` is the discounted return of the trajectory, section 4.1.2 of https://arxiv.org/abs/2402.03300. Parameters as
    :class:`CriticFreeEstimator`.
    """

    needs_shared_start = True

    def compare(self, trajectories: Trajectories, returns: Returns) -> Relative:
        """Compute the advantage of each step, see :class:`CriticFreeEstimator`."""
        return of_outcomes(trajectories, returns, self.scale)


class ProcessEstimator(CriticFreeEstimator):
    """
    Process supervision: the rewards of a group's steps are normalised, and an advantage is the sum of those to come.

    ``r~ = (r - mean(r)) / std(r)`` over all steps of the group, ``A_t = sum of gamma^(s - t) r~_s for s >= t``, section 4.1.3
    of https://arxiv.org/abs/2402.03300. Where all rewards of a group are alike there is no such advantage: its steps get that
    of :class:`OutcomeEstimator`, and a warning says so once. Parameters as :class:`CriticFreeEstimator`.
    """

    needs_shared_start = True
    _warned = False

    def compare(self, trajectories: Trajectories, returns: Returns) -> Relative:
        """Compute the advantage of each step, see :class:`CriticFreeEstimator`."""
        steps, group = trajectories.steps, trajectories.group[trajectories.member]
        n_groups = int(group.max()) + 1
        constant = are_alike(steps.rewards, group, n_groups)
        rewards = relative_values(steps.rewards, group, n_groups, self.scale)
        sums = sums_to_go(rewards.values, trajectories.lengths, self.gamma)
        outcomes = of_outcomes(trajectories, returns, self.scale)
        replaced = constant & ~are_alike(returns.outcomes, trajectories.group, n_groups)
        if replaced.any() and not self._warned:
            self._warned = True
            warnings.warn(
                f'advantage_estimator="process" compares the rewards of single steps, which are all alike in '
                f'{int(replaced.sum())} of {n_groups} sampling groups: these get the advantages of "outcome"',
                stacklevel=2,
            )
        own = ~constant[group]
        return Relative(np.where(own, sums, outcomes.values), np.where(own, rewards.divisors, outcomes.divisors))


class TimeStepEstimator(CriticFreeEstimator):
    """
    Compare the return-to-go of each step with those of the same time in other episodes of the group.

    ``A_t = (G_t - mean(G_t)) / std(G_t)`` over the members that have a step ``t``. The last one that goes on has nothing to be
    compared with: its advantages are 0 from then on. Episodes need not begin alike; the more they do the better the baseline.
    Parameters as :class:`CriticFreeEstimator`.
    """

    def compare(self, trajectories: Trajectories, returns: Returns) -> Relative:
        """Compute the advantage of each step, see :class:`CriticFreeEstimator`."""
        n_times = int(trajectories.lengths.max())
        moment = trajectories.group[trajectories.member] * n_times + trajectories.steps.time
        return relative_values(returns.to_go, moment, (int(trajectories.group.max()) + 1) * n_times, self.scale)


def of_outcomes(trajectories: Trajectories, returns: Returns, scale: str) -> Relative:
    """
    Compare the outcomes of trajectories within their sampling groups.

    :param trajectories: of complete sampling groups
    :param returns: what they have brought
    :param scale: see :func:`~sb3_grpo.estimators.relative.relative_values`
    :return: for each step, shape ``(B,)``
    """
    relative = relative_values(returns.outcomes, trajectories.group, int(trajectories.group.max()) + 1, scale)
    return Relative(*(column[trajectories.member] for column in relative))
