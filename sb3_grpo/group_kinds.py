"""Kinds of groups: sets of decisions, each of which belongs to one group, or sets of objectives, to which each belongs."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from sb3_grpo.balancing import GroupWeights
from sb3_grpo.buffers import GroupBufferMixin, Rollout
from sb3_grpo.diagnostics import cells_of_groups, check_finite, log_columns
from sb3_grpo.env_tasks import label_cells
from sb3_grpo.grouping import CellGroups
from sb3_grpo.headed_policy import fit_router_and_route
from sb3_grpo.objectives.recording import ObjectiveRecorder, by_objective
from sb3_grpo.policies import GroupActorCriticPolicy
from sb3_grpo.recording import Outcome, RolloutRecorder
from sb3_grpo.regrouping import DecisionRegrouper, ObjectiveRegrouper, Regrouper
from sb3_grpo.scores import GroupScores, ScoreHistory


class GroupKind(ABC):
    """
    What a group consists of.

    :param policy: the policy
    """

    recorder: BaseCallback  # sees what rollouts bring
    groups: CellGroups  # cells are what groups consist of

    def __init__(self, policy: GroupActorCriticPolicy):
        self.policy = policy

    @property
    def cell_to_group(self) -> np.ndarray:
        """Group of each cell, shape ``(C,)``."""
        return self.groups.cell_to_group.cpu().numpy()

    @property
    @abstractmethod
    def cell_to_unit(self) -> np.ndarray:
        """Number of the unit of each cell, shape ``(C,)``: the same number, the same unit of rewards and advantages."""

    @abstractmethod
    def make_regrouper(self) -> Regrouper | None:
        """
        Make what merges and splits the groups.

        :return: ``None`` if there can be one group only
        """

    @abstractmethod
    def outcome(self, buffer: GroupBufferMixin) -> Outcome:
        """
        Put together what the steps of the last rollout brought.

        :param buffer: the complete rollout
        :return: an entry for each pair of a step and a cell that it belongs to
        """

    def steps_of_groups(self, scores: GroupScores) -> GroupScores:
        """
        Count the steps of each group of a comparison, whose entries are pairs of a step and a cell.

        :param scores: how the groups compare
        :return: the same with the number of steps of each group
        """
        return scores

    @abstractmethod
    def value_heads(self, cells: np.ndarray) -> np.ndarray:
        """
        Return the value head of each entry.

        :param cells: of an outcome, shape ``(E,)``
        """

    @abstractmethod
    def credit(self, buffer: GroupBufferMixin, outcome: Outcome) -> th.Tensor:
        """
        Return how much better than expected each action was, for the regrouper to learn from.

        :param buffer: the complete rollout, with values
        :param outcome: what it brought
        :return: one number for each entry, shape ``(E,)``
        """

    @abstractmethod
    def join(self, rollout: Rollout, outcome: Outcome, advantages: np.ndarray, weights: np.ndarray) -> Rollout:
        """
        Give each step what the update needs of the entries that belong to it.

        :param rollout: ``B`` steps
        :param outcome: ``E`` entries
        :param advantages: normalised advantage of each entry, shape ``(E,)``
        :param weights: weight of the group of each entry, shape ``(E,)``
        """

    @abstractmethod
    def log(self, logger: Logger, scores: GroupScores, weights: GroupWeights, history: ScoreHistory) -> None:
        """
        Log the figures of each group.

        :param logger: of the model
        :param scores: how the groups compare
        :param weights: what follows from it
        :param history: what is known of earlier rollouts
        """


class DecisionGroups(GroupKind):
    """
    Groups of decisions: the router says which cell an observation belongs to.

    :param policy: the policy
    :param cell_names: of the cells; empty: they have none
    """

    recorder: RolloutRecorder

    def __init__(self, policy: GroupActorCriticPolicy, cell_names: Sequence[str] = ()):
        super().__init__(policy)
        self.cell_names = list(cell_names)
        self.recorder, self.groups = RolloutRecorder(), policy.grouping

    @property
    def cell_to_unit(self) -> np.ndarray:
        """Number of the unit of each cell, that of its group, shape ``(C,)``."""
        return self.cell_to_group

    def make_regrouper(self) -> Regrouper | None:
        """Make what merges and splits the heads, see :class:`GroupKind`."""
        return DecisionRegrouper(self.policy) if self.groups.max_groups > 1 else None

    def outcome(self, buffer: GroupBufferMixin) -> Outcome:
        """Put together what the steps brought, one entry for each, see :class:`GroupKind`."""
        return self.recorder.outcome(buffer, fit_router_and_route(self.policy, buffer).cpu().numpy())

    def value_heads(self, cells: np.ndarray) -> np.ndarray:
        """Return the value head of each entry, see :class:`GroupKind`."""
        return self.policy.grouping.cell_to_head.cpu().numpy()[cells]

    def credit(self, buffer: GroupBufferMixin, outcome: Outcome) -> th.Tensor:
        """Return one-step errors: those of many steps are noisier, and the noise of neighbouring steps is the same."""
        return buffer.td_errors()

    def join(self, rollout: Rollout, outcome: Outcome, advantages: np.ndarray, weights: np.ndarray) -> Rollout:
        """Give each step its head, its advantage and the weight of its group, see :class:`GroupKind`."""
        device = rollout.heads.device
        heads = self.policy.grouping.cell_to_head[th.as_tensor(outcome.cells, device=device)]
        values = th.as_tensor(advantages, dtype=rollout.advantages.dtype, device=device)
        return rollout._replace(heads=heads, advantages=values, weights=th.as_tensor(weights, device=device))

    def log(self, logger: Logger, scores: GroupScores, weights: GroupWeights, history: ScoreHistory) -> None:
        """Log score, weight and share of the steps of each group, see :class:`GroupKind`."""
        columns = {"score": scores.scores, "weight": weights.weights, "share": scores.shares}
        cells = cells_of_groups(self.cell_to_group.tolist())
        labels = [label_cells(cells[group], self.cell_names) or group for group in scores.groups.tolist()]
        tags = {column: [f"groups/{column}_{label}" for label in labels] for column in columns}
        log_columns(logger, columns, tags)


class ObjectiveGroups(GroupKind):
    """
    Groups of objectives: every step belongs to all of them, and has one value and one advantage for each.

    The policy's loss is that of the sum over groups of the weight of the group times the advantage of its objectives, which
    count as one, see :func:`sum_of_groups`. Advantages are normalised objective by objective before, since a sum collapses
    what differs (https://arxiv.org/abs/2601.05242, GDPO).

    :param policy: the policy, with a value head for each objective
    :param names: of the objectives
    """

    recorder: ObjectiveRecorder

    def __init__(self, policy: GroupActorCriticPolicy, names: Sequence[str]):
        super().__init__(policy)
        self.names, self.recorder = list(names), ObjectiveRecorder(list(names))
        self.groups = CellGroups(np.arange(len(names)), len(names)).to(policy.device)

    @property
    def cell_to_unit(self) -> np.ndarray:
        """Number of the unit of each objective, shape ``(K,)``: each has its own, also if it is merged with others."""
        return np.arange(len(self.names))

    def make_regrouper(self) -> Regrouper | None:
        """Make what merges and splits objectives, see :class:`GroupKind`."""
        return ObjectiveRegrouper(self.policy, self.groups)

    @property
    def _sizes(self) -> np.ndarray:
        """Number of objectives in the group of each objective, shape ``(K,)``."""
        return np.bincount(self.cell_to_group)[self.cell_to_group]

    def outcome(self, buffer: GroupBufferMixin) -> Outcome:
        """
        Put together what the steps brought, one entry for each step and objective, see :class:`GroupKind`.

        :raises NonFiniteError: if rewards or advantages are NaN or infinite
        """
        outcome = self.recorder.outcome_of_objectives(buffer)
        columns = {"rewards": th.as_tensor(outcome.paid), "advantages": th.as_tensor(outcome.advantages)}
        check_finite(columns, th.as_tensor(outcome.cells), "the policy was left as it was")
        return outcome

    def steps_of_groups(self, scores: GroupScores) -> GroupScores:
        """Count all steps for each group, since every step belongs to all of them, see :class:`GroupKind`."""
        return scores._replace(counts=np.full_like(scores.counts, scores.counts.sum() // len(self.names)))

    def value_heads(self, cells: np.ndarray) -> np.ndarray:
        """Return the value head of each entry, see :class:`GroupKind`."""
        return cells

    def credit(self, buffer: GroupBufferMixin, outcome: Outcome) -> th.Tensor:
        """Return the advantages of each objective, which say in which direction the policy is to change for it alone."""
        return th.as_tensor(outcome.advantages, device=self.policy.device)

    def join(self, rollout: Rollout, outcome: Outcome, advantages: np.ndarray, weights: np.ndarray) -> Rollout:
        """Give each step the sum of its weighted advantages, and its values and returns, see :class:`GroupKind`."""
        assert self.recorder.rollout is not None
        shape, like = (len(self.names), -1), rollout.advantages
        total = sum_of_groups(advantages.reshape(shape), weights.reshape(shape), self.cell_to_group)
        columns = (by_objective(self.recorder.rollout.values).T, outcome.returns.reshape(shape).T)
        joined, old_values, returns = (
            th.as_tensor(np.ascontiguousarray(values), dtype=like.dtype, device=like.device) for values in (total, *columns)
        )
        return rollout._replace(advantages=joined, old_values=old_values, returns=returns)

    def log(self, logger: Logger, scores: GroupScores, weights: GroupWeights, history: ScoreHistory) -> None:
        """Log score and weight of the group of each objective, its share of all weights and its recent return."""
        places = np.searchsorted(scores.groups, self.cell_to_group)
        own_scores, own_weights = scores.scores[places], weights.weights[places]
        columns: dict[str, np.ndarray] = {"score": own_scores, "weight": own_weights}
        columns["share"] = own_weights / self._sizes / max(weights.weights.sum(), np.finfo(float).tiny)
        if (history.episodes.count > 0).all():
            columns["return"] = history.episodes.recent.cpu().numpy()
        tags = {column: [f"objectives/{name}_{column}" for name in self.names] for column in columns}
        log_columns(logger, columns, tags)


def sum_of_groups(advantages: np.ndarray, weights: np.ndarray, cell_to_group: np.ndarray) -> np.ndarray:
    """
    Sum the weighted advantages of groups of objectives.

    The advantage of a group is the mean of those of its objectives, made as large as they are: noise of each of them makes
    their mean smaller, and the group would count for less than one objective. Noise alone makes the mean of ``m`` smaller by
    ``sqrt(m)``; by more it is not enlarged, since then they contradict each other.

    :param advantages: of each objective, shape ``(K, B)``
    :param weights: of its group, shape ``(K, B)``
    :param cell_to_group: group of each objective, shape ``(K,)``
    :return: shape ``(B,)``, of the type of the advantages
    """
    total = np.zeros_like(advantages[0])
    for group in np.unique(cell_to_group):
        own = cell_to_group == group
        joined, size = advantages[own].mean(axis=0), int(own.sum())
        before, after = np.sqrt(np.square(advantages[own].std(axis=1)).mean()), joined.std()
        if size > 1 and after > 0:
            joined *= min(before / after, np.sqrt(size))
        total += joined * weights[own][0]
    return total
