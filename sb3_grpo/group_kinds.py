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
from sb3_grpo.headed_policy import fit_router_and_route
from sb3_grpo.objectives.recording import ObjectiveRecorder, by_objective
from sb3_grpo.policies import GroupActorCriticPolicy
from sb3_grpo.recording import Outcome, RolloutRecorder
from sb3_grpo.scores import GroupScores, ScoreHistory


class GroupKind(ABC):
    """
    What a group consists of.

    :param policy: the policy
    """

    recorder: BaseCallback  # sees what rollouts bring

    def __init__(self, policy: GroupActorCriticPolicy):
        self.policy = policy

    @property
    @abstractmethod
    def cell_to_group(self) -> np.ndarray:
        """Group of each cell, shape ``(C,)``: cells are what groups consist of."""

    @abstractmethod
    def outcome(self, buffer: GroupBufferMixin) -> Outcome:
        """
        Put together what the steps of the last rollout brought.

        :param buffer: the complete rollout
        :return: an entry for each pair of a step and a cell that it belongs to
        """

    @abstractmethod
    def value_heads(self, cells: np.ndarray) -> np.ndarray:
        """
        Return the value head of each entry.

        :param cells: of an outcome, shape ``(E,)``
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
        self.recorder = RolloutRecorder()

    @property
    def cell_to_group(self) -> np.ndarray:
        """Group of each cell, shape ``(C,)``."""
        return self.policy.grouping.cell_to_group.cpu().numpy()

    def outcome(self, buffer: GroupBufferMixin) -> Outcome:
        """Put together what the steps brought, one entry for each, see :class:`GroupKind`."""
        return self.recorder.outcome(buffer, fit_router_and_route(self.policy, buffer).cpu().numpy())

    def value_heads(self, cells: np.ndarray) -> np.ndarray:
        """Return the value head of each entry, see :class:`GroupKind`."""
        return self.policy.grouping.cell_to_head.cpu().numpy()[cells]

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

    The policy's loss is that of the sum of the advantages, each times the weight of its objective. They are normalised one
    by one before, since a sum collapses what differs (https://arxiv.org/abs/2601.05242, GDPO).

    :param policy: the policy, with a value head for each objective
    :param names: of the objectives
    """

    recorder: ObjectiveRecorder

    def __init__(self, policy: GroupActorCriticPolicy, names: Sequence[str]):
        super().__init__(policy)
        self.names, self.recorder = list(names), ObjectiveRecorder(list(names))

    @property
    def cell_to_group(self) -> np.ndarray:
        """Group of each objective, shape ``(K,)``: itself."""
        return np.arange(len(self.names))

    def outcome(self, buffer: GroupBufferMixin) -> Outcome:
        """
        Put together what the steps brought, one entry for each step and objective, see :class:`GroupKind`.

        :raises NonFiniteError: if rewards or advantages are NaN or infinite
        """
        outcome = self.recorder.outcome_of_objectives(buffer)
        columns = {"rewards": th.as_tensor(outcome.paid), "advantages": th.as_tensor(outcome.advantages)}
        check_finite(columns, th.as_tensor(outcome.cells), "the policy was left as it was")
        return outcome

    def value_heads(self, cells: np.ndarray) -> np.ndarray:
        """Return the value head of each entry, see :class:`GroupKind`."""
        return cells

    def join(self, rollout: Rollout, outcome: Outcome, advantages: np.ndarray, weights: np.ndarray) -> Rollout:
        """Give each step the sum of its weighted advantages, and its values and returns, see :class:`GroupKind`."""
        assert self.recorder.rollout is not None
        shape, like = (len(self.names), -1), rollout.advantages
        total = (advantages * weights).reshape(shape).sum(axis=0)
        columns = (by_objective(self.recorder.rollout.values).T, outcome.returns.reshape(shape).T)
        joined, old_values, returns = (
            th.as_tensor(np.ascontiguousarray(values), dtype=like.dtype, device=like.device) for values in (total, *columns)
        )
        return rollout._replace(advantages=joined, old_values=old_values, returns=returns)

    def log(self, logger: Logger, scores: GroupScores, weights: GroupWeights, history: ScoreHistory) -> None:
        """Log score, weight, share of the weights and recent return of each objective, see :class:`GroupKind`."""
        columns: dict[str, np.ndarray] = {"score": scores.scores, "weight": weights.weights}
        columns["share"] = weights.weights / max(weights.weights.sum(), np.finfo(float).tiny)
        if (history.episodes.count > 0).all():
            columns["return"] = history.episodes.recent.cpu().numpy()
        tags = {column: [f"objectives/{name}_{column}" for name in self.names] for column in columns}
        log_columns(logger, columns, tags)
