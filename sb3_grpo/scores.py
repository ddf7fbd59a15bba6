"""Scores: what groups are compared by, each in a unit in which groups can be compared."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import numpy as np
from torch import nn

from sb3_grpo.episode_history import EpisodeHistory
from sb3_grpo.losses import MIN_SCALE, group_means, score_fluctuation
from sb3_grpo.recording import Outcome
from sb3_grpo.reward_scale import RewardScale


class ScoreHistory(nn.Module):
    """
    Hold what scores need to know of earlier rollouts, by cell.

    :param n_cells: number of cells
    """

    def __init__(self, n_cells: int):
        super().__init__()
        self.reward_scale = RewardScale(n_cells)
        self.episodes = EpisodeHistory(n_cells)

    def update(self, outcome: Outcome) -> None:
        """
        Take one rollout into account.

        :param outcome: of the rollout
        """
        self.reward_scale.update(outcome.paid, outcome.cells)
        self.episodes.update(outcome.episodes.returns, outcome.cells[outcome.episodes.steps])


class GroupScores(NamedTuple):
    """How the groups of one rollout compare; arrays have one entry for each group that has steps in it."""

    groups: np.ndarray  #: numbers of the groups, ascending
    counts: np.ndarray  #: n_i, their steps in the rollout
    scores: np.ndarray  #: R_i
    scale: float  #: sigma_R
    advantage_scale: np.ndarray  #: s_i, what normalises the advantages of each group, in the unit of the scores
    eta_squared: float  #: share of the score's variance that the groups explain, 0 to 1

    @property
    def shares(self) -> np.ndarray:
        """Share of each group in the steps of the rollout, sums to 1."""
        return self.counts / self.counts.sum()


class Score(ABC):
    """
    What groups are compared by.

    :param targets: low and high return of an episode of each cell, shape ``(C, 2)``; a low return that is NaN is where the
        cell began; ``None``: not known
    """

    # Whether targets have an effect: otherwise giving them is an error
    uses_targets: ClassVar[bool] = False

    def __init__(self, targets: np.ndarray | None = None):
        self.targets = targets

    @abstractmethod
    def of_steps(self, outcome: Outcome, cell_to_unit: np.ndarray, history: ScoreHistory) -> tuple[np.ndarray, np.ndarray]:
        """
        Compute the score of each step, whose mean over a group is ``R_i``.

        :param outcome: of the rollout
        :param cell_to_unit: number of the unit of each cell, shape ``(C,)``: the same number, the same unit of rewards
        :param history: with this rollout
        :return: scores, shape ``(B,)``, and what turns rewards of each step into the unit of the scores, shape ``(B,)``, at
            least 0; 0 where nothing is known yet that a unit could be made of
        """

    def compare(
        self,
        outcome: Outcome,
        cell_to_group: np.ndarray,
        history: ScoreHistory,
        divisor: np.ndarray | None = None,
        scale_kind: str = "std",
        cell_to_unit: np.ndarray | None = None,
    ) -> GroupScores:
        """
        Compare the groups of a rollout by the mean score of their steps.

        :param outcome: of the rollout
        :param cell_to_group: group of each cell, shape ``(C,)``, integers from 0
        :param history: with this rollout
        :param divisor: what the advantage of each step was divided by, shape ``(B,)``; ``None``: all of them are normalised
            together, or not at all
        :param scale_kind: ``"std"`` or ``"range"``, see :func:`~sb3_grpo.losses.score_fluctuation`
        :param cell_to_unit: number of the unit of each cell, shape ``(C,)``; ``None``: the cells of a group have one unit
        :return: the comparison of those groups that have steps
        """
        groups = cell_to_group[outcome.cells]
        step_scores, units = self.of_steps(outcome, cell_to_group if cell_to_unit is None else cell_to_unit, history)
        present, member, counts = np.unique(groups, return_inverse=True, return_counts=True)
        pooled = (outcome.advantages * units).std() * (units > 0)
        advantage_scale = group_means(pooled if divisor is None else divisor * units, member, counts)
        return compare_steps(present, member, counts, step_scores, advantage_scale, scale_kind)


def compare_steps(
    present: np.ndarray,
    member: np.ndarray,
    counts: np.ndarray,
    step_scores: np.ndarray,
    advantage_scale: np.ndarray,
    scale_kind: str = "std",
) -> GroupScores:
    """
    Compare groups by the mean score of their steps.

    :param present: numbers of the groups that have steps, ascending, shape ``(K,)``
    :param member: place of each step's group in ``present``, shape ``(B,)``
    :param counts: number of steps of each group, shape ``(K,)``
    :param step_scores: score of each step, shape ``(B,)``
    :param advantage_scale: what normalises the advantages of each group, in the unit of the scores, shape ``(K,)``
    :param scale_kind: ``"std"`` or ``"range"``, see :func:`~sb3_grpo.losses.score_fluctuation`
    """
    step_scores = np.asarray(step_scores, dtype=np.float64)
    scores, total = group_means(step_scores, member, counts), step_scores.var()
    between = (counts / counts.sum() * (scores - step_scores.mean()) ** 2).sum()
    return GroupScores(
        groups=present,
        counts=counts,
        scores=scores,
        scale=float(score_fluctuation(step_scores, scale_kind)),
        advantage_scale=np.asarray(advantage_scale, dtype=np.float64),
        eta_squared=float(between / total) if total >= MIN_SCALE**2 else 0.0,
    )


def reward_units(outcome: Outcome, cell_to_unit: np.ndarray, history: ScoreHistory) -> np.ndarray:
    """
    Compute 1 / scale of the rewards of each step's unit, see :class:`~sb3_grpo.reward_scale.RewardScale`.

    :return: shape ``(B,)``; 0 for the steps of a unit in which there has been no reward yet
    """
    inverse = history.reward_scale.inverse_of_groups(cell_to_unit, int(cell_to_unit.max()) + 1)
    return inverse[cell_to_unit[outcome.cells]]


class ReturnScore(Score):
    """Returns-to-go in units of the group's rewards."""

    def of_steps(self, outcome: Outcome, cell_to_unit: np.ndarray, history: ScoreHistory) -> tuple[np.ndarray, np.ndarray]:
        """Compute the score of each step, see :class:`Score`."""
        units = reward_units(outcome, cell_to_unit, history)
        return outcome.returns * units, units


class RewardScore(Score):
    """Rewards in units of the group's rewards."""

    def of_steps(self, outcome: Outcome, cell_to_unit: np.ndarray, history: ScoreHistory) -> tuple[np.ndarray, np.ndarray]:
        """Compute the score of each step, see :class:`Score`."""
        units = reward_units(outcome, cell_to_unit, history)
        return outcome.rewards * units, units


class RawReturnScore(Score):
    """Returns-to-go as they are: for groups whose rewards have one unit."""

    def of_steps(self, outcome: Outcome, cell_to_unit: np.ndarray, history: ScoreHistory) -> tuple[np.ndarray, np.ndarray]:
        """Compute the score of each step, see :class:`Score`."""
        return outcome.returns, np.ones(len(outcome.returns))


class GapScore(Score):
    """
    How near a group's episodes have come to what can be reached: ``-(ref - R) / (ref - R_0)``, from -1 to 0.

    ``ref`` is the high return of the cell's target, or the best episode that it has had; ``R_0`` is the low one, or what its
    first episodes returned; ``R`` is what the recent ones did. The sign of the rewards does not matter, and neither does
    where they begin. Returns-to-go in the same unit are what the steps of a group fluctuate by.
    """

    uses_targets = True

    def of_steps(self, outcome: Outcome, cell_to_unit: np.ndarray, history: ScoreHistory) -> tuple[np.ndarray, np.ndarray]:
        """Compute the score of each step, see :class:`Score`."""
        spans = history.episodes.spans(self.targets)
        units = np.divide(1, spans, out=np.zeros_like(spans), where=spans > 0)[outcome.cells]
        # a group that has had no reward yet has nothing to learn from, however far its target is
        units[reward_units(outcome, cell_to_unit, history) == 0] = 0
        _, member, counts = np.unique(outcome.cells, return_inverse=True, return_counts=True)
        values = outcome.returns * units
        fluctuation = values - group_means(values, member, counts)[member]
        return fluctuation - history.episodes.gaps(self.targets)[outcome.cells], units


#: Values of the argument ``group_score``
SCORES: dict[str, type[Score]] = {
    "return": ReturnScore,
    "reward": RewardScore,
    "raw_return": RawReturnScore,
    "gap": GapScore,
}
