"""Grouping: which cell an observation belongs to, which group the cell, and which head the group."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_grpo.regroup_plan import Merge, Split, apply_plan
from sb3_grpo.routing import Router


class CellGroups(nn.Module):
    """
    Sets of cells: which group each cell belongs to, and for how long the groups have existed.

    A group keeps its number for life; a group that begins gets the lowest number that is free.

    :param cell_to_group: group of each cell, shape ``(C,)``, integers from 0
    :param max_groups: largest number of groups
    """

    cell_to_group: th.Tensor  # shape (C,)
    age: th.Tensor  # rollouts that each group has existed for, shape (max_groups,)

    def __init__(self, cell_to_group: np.ndarray, max_groups: int):
        super().__init__()
        self.max_groups = max_groups
        self.register_buffer("cell_to_group", th.as_tensor(cell_to_group), persistent=False)
        self.register_buffer("age", th.zeros(max_groups), persistent=False)

    @property
    def active(self) -> list[int]:
        """The groups that have cells, ascending."""
        return sorted(set(self.cell_to_group.tolist()))

    def apply_event(self, event: Merge | Split) -> None:
        """
        Relabel the cells of groups that are merged or split.

        :param event: from :func:`sb3_grpo.regroup_plan.plan_regrouping`
        """
        self.cell_to_group.copy_(apply_plan([event], self.cell_to_group))
        if isinstance(event, Merge):
            self.age[event.keep] = self.age[[event.keep, event.dropped]].min()
        else:
            self.age[[event.group, event.new_group]] = 0


class Grouping(CellGroups):
    """
    Map from observations to groups and heads.

    ``router`` says the cell of an observation, ``cell_to_group`` the group of the cell, and ``heads`` which head the group
    has.

    Heads are numbered by their place in the parameters: head ``i`` is that of group ``heads[i]``. There is one head for
    each group in use.

    Buffers are not in ``state_dict()``: the policy adds :meth:`state` where there are several heads.

    :param router: maps observations to cells
    :param n_groups: number of groups to start with, 1 to the number of cells
    :param max_groups: largest number of groups
    :param seed: seed for dealing cells to groups, and for fitting the router
    :param all_heads: have ``max_groups`` heads from the start, so that the shapes of the parameters never change
    """

    cell_to_head: th.Tensor  # shape (C,)

    def __init__(self, router: Router, n_groups: int, max_groups: int, seed: int = 0, all_heads: bool = False):
        super().__init__(deal_cells(router.n_cells, n_groups, seed), max_groups)
        self.router = router
        self.seed = seed
        self.all_heads = all_heads
        for name, buffer in list(router.named_buffers()):
            nn.Module.register_buffer(router, name, buffer, persistent=False)
        self.register_buffer("cell_to_head", th.zeros(router.n_cells, dtype=th.long), persistent=False)
        self.heads: list[int] = []
        self._number_heads(self.wanted_heads())

    def wanted_heads(self) -> list[int]:
        """
        List the groups that are to have a head.

        :return: the groups in use, or with ``all_heads`` all that there can be
        """
        return list(range(self.max_groups)) if self.all_heads else self.active

    def _number_heads(self, heads: Sequence[int]) -> None:
        self.heads = list(heads)
        place = th.zeros(self.max_groups, dtype=th.long)
        place[self.heads] = th.arange(len(self.heads))
        self.cell_to_head.copy_(place.to(self.cell_to_group.device)[self.cell_to_group])

    def cells(self, obs: PyTorchObs) -> th.Tensor:
        """
        Route observations to cells.

        :param obs: batch of ``B`` observations
        :return: cell of each, shape ``(B,)``; all in cell 0 where there can be one group only
        """
        if self.max_groups > 1:
            return self.router(obs)
        first = next(iter(obs.values())) if isinstance(obs, dict) else obs
        return th.zeros(len(first), dtype=th.long, device=first.device)

    def groups_at(self, obs: PyTorchObs) -> th.Tensor:
        """
        Find the group of observations.

        :param obs: batch of ``B`` observations
        :return: group of each, shape ``(B,)``
        """
        return self.cell_to_group[self.cells(obs)]

    def heads_at(self, obs: PyTorchObs) -> th.Tensor:
        """
        Find the head of observations.

        :param obs: batch of ``B`` observations
        :return: index of the head of each, shape ``(B,)``
        """
        return self.cell_to_head[self.cells(obs)]

    def cells_of_rollout(self, obs: PyTorchObs) -> th.Tensor:
        """
        Route the observations of a rollout, which are checked first.

        :param obs: batch of ``B`` observations
        :return: cell of each, shape ``(B,)``
        :raises ValueError: if an observation does not name a cell
        """
        return self.cells(obs) if self.max_groups == 1 else self.router.cells_of(obs)

    @property
    def is_fitted(self) -> bool:
        """Whether the map from observations to cells is final."""
        return self.max_groups == 1 or self.router.is_fitted

    def relabel(self, event: Merge | Split) -> list[int]:
        """
        Relabel the cells of groups that are merged or split.

        :param event: from :func:`sb3_grpo.regroup_plan.plan_regrouping`
        :return: for each head afterwards the index of the head that it is to be a copy of
        """
        before = self.heads
        self.apply_event(event)
        parents = {event.new_group: event.group} if isinstance(event, Split) else {}
        self._number_heads(self.wanted_heads())
        return [before.index(parents.get(group, group)) for group in self.heads]

    def assign(self, cell_to_group: Sequence[int] | th.Tensor, heads: Sequence[int] | None = None) -> None:
        """
        Replace the map from cells to groups.

        :param cell_to_group: group of each cell, shape ``(C,)``
        :param heads: groups whose heads the parameters hold, in their order; ``None``: those of :meth:`wanted_heads`
        """
        self.cell_to_group.copy_(self._as_groups(cell_to_group))
        self._number_heads(self.wanted_heads() if heads is None else heads)

    def _as_groups(self, numbers: Sequence[int] | th.Tensor) -> th.Tensor:
        """Return numbers of groups, whatever arithmetic the user has done on a ``state_dict``."""
        return th.as_tensor(numbers).float().nan_to_num().round().clamp(0, self.max_groups - 1).long()

    def heads_of_state(self, cell_to_group: th.Tensor, n_heads: int) -> list[int]:
        """
        Tell which groups the heads of a ``state_dict`` belong to.

        :param cell_to_group: from :meth:`state`
        :param n_heads: number of heads in it
        :return: the groups in use and, where there are more heads, the lowest other numbers; ascending
        :raises RuntimeError: if more groups are in use than there are heads, as in an average of different groupings
        """
        active = sorted(set(self._as_groups(cell_to_group).tolist()))
        if len(active) > n_heads:
            raise RuntimeError(f"the state_dict has {len(active)} groups in use, but {n_heads} heads")
        others = [group for group in range(self.max_groups) if group not in active]
        return sorted([*active, *others][:n_heads])

    def state(self) -> dict[str, th.Tensor]:
        """
        Collect what decides which head an observation has.

        :return: tensors by name, all of them floats: users average parameters, and draw random ones
        """
        router = {f"router.{name}": buffer for name, buffer in self.router.named_buffers()}
        return {"cell_to_group": self.cell_to_group.float(), **router}

    def load_router(self, state: Mapping[str, th.Tensor]) -> None:
        """
        Take over what the router has learnt.

        :param state: from :meth:`state`
        """
        for name, buffer in self.router.named_buffers():
            buffer.copy_(state[f"router.{name}"])


def resolve_group_counts(n_groups: int | None, max_groups: int | None, n_cells: int) -> tuple[int, int]:
    """
    Fill in what the user has not said about the number of groups.

    :param n_groups: groups to start with; ``None``: one per cell, but at most ``max_groups``
    :param max_groups: largest number of groups; ``None``: one per cell, or one if ``n_groups`` is 1
    :param n_cells: number of cells
    :return: ``n_groups`` and ``max_groups``
    :raises ValueError: unless ``1 <= n_groups <= max_groups`` and ``n_groups <= n_cells``
    """
    if n_groups is None:
        n_groups = n_cells if max_groups is None else min(n_cells, max_groups)
    if max_groups is None:
        max_groups = 1 if n_groups == 1 else max(n_groups, n_cells)
    if not 1 <= n_groups <= max_groups:
        raise ValueError(f"`n_groups` must be between 1 and `max_groups` ({max_groups}), got {n_groups}")
    if n_groups > n_cells:
        raise ValueError(f"`n_groups` must be at most the number of cells ({n_cells}), got {n_groups}")
    return n_groups, max_groups


def deal_cells(n_cells: int, n_groups: int, seed: int) -> np.ndarray:
    """
    Deal cells to groups at random, as evenly as possible; with one cell per group, cell ``c`` is group ``c``.

    :param n_cells: number of cells, at least ``n_groups``
    :param n_groups: number of groups
    :param seed: seed of the deal
    :return: group of each cell, shape ``(n_cells,)``
    """
    if n_cells == n_groups:
        return np.arange(n_cells)
    return np.random.default_rng(seed).permutation(n_cells) % n_groups


def default_groups(
    router: Any, router_kwargs: dict[str, Any] | None, n_groups: int | None, max_groups: int | None, can_split: bool
) -> dict[str, Any]:
    """
    Fill in what is known of groups before the router is made.

    :param router: as the argument of ``GRPO``
    :param router_kwargs: as the argument of ``GRPO``
    :param n_groups: groups to start with; ``None``: not given
    :param max_groups: largest number of groups; ``None``: not given
    :param can_split: whether groups may be split
    :return: ``router_kwargs``, ``n_groups`` and ``max_groups``
    """
    kwargs, most = dict(router_kwargs or {}), max_groups
    if isinstance(router, str) and router == "random":
        kwargs.setdefault("n_cells", max(8, n_groups or 1))
        if n_groups is None:
            # nothing is known of random regions: they share a head until they contradict each other
            n_groups, most = 1, kwargs["n_cells"] if max_groups is None else max_groups
    if max_groups is None and not can_split:
        # there is no use for more
        most = n_groups
    return dict(router_kwargs=kwargs, n_groups=n_groups, max_groups=most)
