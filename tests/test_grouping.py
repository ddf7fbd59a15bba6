"""Grouping: cells, groups and heads are numbered as an independent account of the same events says."""

import copy
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from sb3_grpo.grouping import Grouping, deal_cells, default_groups, resolve_group_counts
from sb3_grpo.regroup_plan import Merge, Split
from sb3_grpo.routing import make_router

N_CELLS = 4
SPACE = spaces.Box(-np.inf, np.inf, (1 + N_CELLS,))


def make_grouping(n_groups: int = N_CELLS, max_groups: int = N_CELLS, **kwargs: Any) -> Grouping:
    router = make_router("one_hot", SPACE, dict(columns=(1, 1 + N_CELLS)))
    return Grouping(router, n_groups, max_groups, **kwargs)


def obs_of(cells: list[int]) -> th.Tensor:
    return th.cat([th.zeros(len(cells), 1), th.eye(N_CELLS)[cells]], dim=1)


class TestNumbers:
    def test_by_hand(self):
        grouping = make_grouping()
        grouping.assign([2, 2, 0, 3])
        obs = obs_of([0, 1, 2, 3, 3])
        assert grouping.active == grouping.heads == [0, 2, 3]
        assert grouping.cells(obs).tolist() == [0, 1, 2, 3, 3]
        assert grouping.groups_at(obs).tolist() == [2, 2, 0, 3, 3]
        assert grouping.heads_at(obs).tolist() == [1, 1, 0, 2, 2]

    def test_with_all_heads_that_of_a_group_is_its_number(self):
        grouping = make_grouping(max_groups=6, all_heads=True)
        grouping.assign([2, 2, 5, 3])
        assert grouping.active == [2, 3, 5]
        assert grouping.heads == [0, 1, 2, 3, 4, 5]
        assert grouping.cell_to_head.equal(grouping.cell_to_group)

    @given(st.lists(st.integers(0, 6), min_size=N_CELLS, max_size=N_CELLS), st.booleans())
    def test_the_head_of_a_cell_is_that_of_its_group(self, cell_to_group, all_heads):
        grouping = make_grouping(max_groups=7, all_heads=all_heads)
        grouping.assign(cell_to_group)
        assert [grouping.heads[head] for head in grouping.cell_to_head.tolist()] == cell_to_group
        assert grouping.heads == (list(range(7)) if all_heads else sorted(set(cell_to_group)))
        assert grouping.active == sorted(set(cell_to_group))

    def test_heads_can_be_given(self):
        grouping = make_grouping(max_groups=6)
        grouping.assign([1, 1, 4, 4], [0, 1, 4])
        assert grouping.heads == [0, 1, 4]
        assert grouping.cell_to_head.tolist() == [1, 1, 2, 2]
        assert grouping.wanted_heads() == [1, 4]

    def test_at_the_start(self):
        grouping = make_grouping(n_groups=2, seed=3)
        assert grouping.heads == [0, 1]
        assert grouping.cell_to_group.tolist() == deal_cells(N_CELLS, 2, seed=3).tolist()
        assert grouping.age.tolist() == [0] * N_CELLS

    def test_what_is_not_a_number_of_a_group_becomes_one(self):
        """Users average the parameters of several policies."""
        grouping = make_grouping(max_groups=5)
        grouping.assign(th.tensor([0.6, float("nan"), -3.0, 9.0]))
        assert grouping.cell_to_group.tolist() == [1, 0, 0, 4]


class TestOneGroupOnly:
    @pytest.mark.parametrize("obs", [th.full((3, 5), th.nan), {"a": th.zeros(3, 2), "b": th.zeros(3)}], ids=["box", "dict"])
    def test_nothing_is_routed(self, obs):
        grouping = make_grouping(n_groups=1, max_groups=1)
        for route in (grouping.cells, grouping.cells_of_rollout, grouping.groups_at, grouping.heads_at):
            assert route(obs).tolist() == [0, 0, 0]
        assert grouping.is_fitted

    def test_control_with_more_a_rollout_that_names_no_cell_is_refused(self):
        with pytest.raises(ValueError, match="must hold a one-hot block"):
            make_grouping(n_groups=1, max_groups=2).cells_of_rollout(th.zeros(3, 5))


class TestApply:
    def test_merge(self):
        grouping = make_grouping()
        grouping.age.copy_(th.tensor([5.0, 7.0, 3.0, 9.0]))
        assert grouping.relabel(Merge(3, 1, 0.5, 0.0)) == [0, 2, 3]
        assert grouping.cell_to_group.tolist() == [0, 3, 2, 3]
        assert grouping.heads == [0, 2, 3]
        # it is as young as the younger of the two
        assert grouping.age[[0, 2, 3]].tolist() == [5, 3, 7]

    def test_split(self):
        grouping = make_grouping(max_groups=6)
        grouping.assign([0, 0, 0, 3])
        grouping.age.copy_(th.tensor([5.0, 7.0, 3.0, 9.0, 1.0, 1.0]))
        # head 0 is that of group 0, which the new group 1 begins as
        assert grouping.relabel(Split(0, 1, [1, 2], 1.0)) == [0, 0, 1]
        assert grouping.cell_to_group.tolist() == [0, 1, 1, 3]
        assert grouping.heads == [0, 1, 3]
        assert grouping.age[[0, 1, 3]].tolist() == [0, 0, 9]

    def test_with_all_heads_only_a_split_copies(self):
        grouping = make_grouping(n_groups=2, max_groups=3, all_heads=True)
        grouping.assign([0, 0, 2, 2])
        assert grouping.relabel(Merge(0, 2, 0.5, 0.0)) == [0, 1, 2]
        assert grouping.relabel(Split(0, 1, [3], 1.0)) == [0, 0, 2]

    @given(st.data(), st.booleans())
    def test_events_in_any_order(self, data, all_heads):
        """Names travel with the heads: at the end the head of a group is where its cells look for it."""
        grouping = make_grouping(max_groups=5, all_heads=all_heads)
        members = {cell: [cell] for cell in range(N_CELLS)}
        names = [f"head of {group}" for group in grouping.heads]
        expected = {group: f"head of {group}" for group in members}
        for _ in range(data.draw(st.integers(1, 6))):
            large = [group for group, cells in members.items() if len(cells) > 1]
            if len(members) > 1 and (not large or data.draw(st.booleans())):
                keep, dropped = data.draw(st.permutations(sorted(members)))[:2]
                members[keep] = members[keep] + members.pop(dropped)
                expected.pop(dropped)
                event: Merge | Split = Merge(keep, dropped, 0.5, 0.0)
            else:
                group = data.draw(st.sampled_from(large))
                new = min(set(range(5)) - members.keys())
                moved = members[group][: data.draw(st.integers(1, len(members[group]) - 1))]
                members[group], members[new] = [cell for cell in members[group] if cell not in moved], moved
                expected[new] = expected[group]
                event = Split(group, new, moved, 1.0)
            sources = grouping.relabel(event)
            names = [names[source] for source in sources]
            assert len(names) == len(grouping.heads)
            assert grouping.active == sorted(members)
            for group, cells in members.items():
                assert grouping.cell_to_group[cells].tolist() == [group] * len(cells)
                assert {names[head] for head in grouping.cell_to_head[cells].tolist()} == {expected[group]}


class TestState:
    def make_random(self, seed: int) -> tuple[Grouping, th.Tensor]:
        grouping = Grouping(make_router("random", SPACE, dict(n_cells=3)), 3, 3, seed=seed)
        return grouping, th.randn(30, 5, generator=th.Generator().manual_seed(0))

    def test_buffers_are_not_those_of_a_module(self):
        """With one group the ``state_dict`` is that of PPO."""
        grouping, _ = self.make_random(0)
        assert grouping.state_dict() == {}
        assert set(dict(grouping.named_buffers())) > {"cell_to_group", "age", "router.weight"}

    def test_holds_floats_that_decide_the_head(self):
        grouping, _ = self.make_random(0)
        state = grouping.state()
        assert set(state) == {"cell_to_group", "router.offset", "router.weight", "router.bias"}
        assert all(tensor.is_floating_point() for tensor in state.values())
        assert set(make_grouping().state()) == {"cell_to_group"}

    def test_carries_a_fitted_router(self):
        fitted, obs = self.make_random(0)
        other, _ = self.make_random(1)
        assert not other.is_fitted
        assert not other.cells(obs).any()
        fitted.router.fit(obs, fitted.seed)
        other.load_router(copy.deepcopy(fitted.state()))
        assert other.is_fitted
        assert len(set(fitted.cells(obs).tolist())) == 3
        assert other.cells(obs).equal(fitted.cells(obs))

    @pytest.mark.parametrize(
        ("cell_to_group", "n_heads", "expected"),
        [
            ([0, 2, 2, 0], 2, [0, 2]),
            ([0, 2, 2, 0], 3, [0, 1, 2]),
            ([4, 4, 2, 2], 4, [0, 1, 2, 4]),
            ([0, 2, 2, 0], 5, [0, 1, 2, 3, 4]),
            ([1.2, 0.9, 1.0, 1.0], 1, [1]),
        ],
        ids=str,
    )
    def test_heads_of_a_state(self, cell_to_group, n_heads, expected):
        assert make_grouping(max_groups=5).heads_of_state(th.tensor(cell_to_group), n_heads) == expected

    def test_too_few_heads(self):
        """The average of ``[0, 0, 4, 4]`` and ``[0, 4, 4, 0]``."""
        with pytest.raises(RuntimeError, match="has 3 groups in use, but 2 heads"):
            make_grouping(max_groups=5).heads_of_state(th.tensor([0.0, 2.0, 4.0, 2.0]), 2)


class TestCounts:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ((None, None, 5), (5, 5)),
            ((1, None, 5), (1, 1)),
            ((2, None, 5), (2, 5)),
            ((None, 3, 5), (3, 3)),
            ((None, 9, 5), (5, 9)),
            ((1, 4, 5), (1, 4)),
        ],
    )
    def test_resolved(self, given, expected):
        assert resolve_group_counts(*given) == expected

    @given(st.none() | st.integers(-1, 8), st.none() | st.integers(-1, 8), st.integers(1, 6))
    def test_are_possible_or_refused(self, n_groups, max_groups, n_cells):
        try:
            n, most = resolve_group_counts(n_groups, max_groups, n_cells)
        except ValueError:
            assert n_groups is not None or max_groups is not None, "without arguments there is one group per cell"
            impossible = [number is not None and number < 1 for number in (n_groups, max_groups)]
            too_many = n_groups is not None and (n_groups > n_cells or (max_groups is not None and n_groups > max_groups))
            assert any(impossible) or too_many
        else:
            assert 1 <= n <= min(most, n_cells)
            assert n_groups in (None, n)
            assert max_groups in (None, most)

    @given(st.integers(1, 30), st.integers(0, 5), st.data())
    def test_cells_are_dealt_evenly(self, n_cells, seed, data):
        n_groups = data.draw(st.integers(1, n_cells))
        counts = np.bincount(deal_cells(n_cells, n_groups, seed), minlength=n_groups)
        assert len(counts) == n_groups
        assert counts.max() - counts.min() <= 1

    def test_one_cell_per_group_is_that_group(self):
        assert deal_cells(5, 5, seed=9).tolist() == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            # nothing is known: one group that may split
            (("random", None, None, None, True), (8, 1, 8)),
            (("random", None, None, None, False), (8, 1, 1)),
            (("random", dict(n_cells=5), None, None, True), (5, 1, 5)),
            (("random", None, 12, None, True), (12, 12, None)),
            (("random", None, 3, None, False), (8, 3, 3)),
            (("random", None, None, 3, True), (8, 1, 3)),
            # cells that mean something have a group each
            (("one_hot", None, None, None, True), (None, None, None)),
            (("one_hot", None, None, None, False), (None, None, None)),
            (("one_hot", None, 2, None, False), (None, 2, 2)),
            ((len, dict(n_cells=4), 2, 3, True), (4, 2, 3)),
        ],
        ids=str,
    )
    def test_defaults(self, given, expected):
        found = default_groups(*given)
        assert (found["router_kwargs"].get("n_cells"), found["n_groups"], found["max_groups"]) == expected

    def test_defaults_leave_the_argument_as_it_was(self):
        kwargs: dict[str, Any] = {}
        default_groups("random", kwargs, None, None, can_split=True)
        assert kwargs == {}
