"""Which groups merge and which split: worked examples, and what holds for any divergences."""

import math

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_grpo.regroup_plan import (
    Divergences,
    Merge,
    Split,
    agreement,
    apply_plan,
    bipartition,
    plan_regrouping,
    sum_by,
    sum_products_by,
)

property_test = settings(deadline=None, max_examples=50, derandomize=True, database=None)
N_HEADS = 5


def clusters(*members, far=1.0):
    """KL between cells: 0 within a cluster, ``far`` between clusters."""
    label = th.zeros(sum(map(len, members)), dtype=th.long)
    for cluster, cells in enumerate(members):
        label[list(cells)] = cluster
    return far * (label.unsqueeze(1) != label).float()


def measured(cell_to_group, between=None, within=None, kl=None, halves=None, error=0.01, steps=None):
    """What is not given speaks neither for a merge nor for a split."""
    n_cells = len(cell_to_group)
    kl = th.zeros(n_cells, n_cells) if kl is None else kl
    of_groups = 10 * (1 - th.eye(N_HEADS))
    for (i, j), value in (between or {}).items():
        of_groups[i, j] = of_groups[j, i] = value
    inside = th.zeros(N_HEADS)
    for group, value in (within or {}).items():
        inside[group] = value
    return Divergences(
        between=of_groups,
        within=inside,
        within_error=th.full((N_HEADS,), error),
        cells=kl,
        cells_by_half=th.stack(halves or [kl, kl]),
        cell_counts=th.tensor(steps or [100.0] * n_cells),
    )


def plan(cell_to_group, *, merge_kl=0.1, split_kl=0.3, mergeable=(True,) * N_HEADS, **kwargs):
    groups = th.tensor(cell_to_group)
    events = plan_regrouping(measured(cell_to_group, **kwargs), groups, th.tensor(mergeable), merge_kl, split_kl)
    return [event._replace(kl=round(event.kl, 6)) for event in events]


FOUR = [0, 1, 2, 3]  # four cells, a group each
TOGETHER = [0, 0, 0, 0]
TWO_AND_TWO = clusters((0, 1), (2, 3))


class TestMerging:
    def test_alike_groups_merge(self):
        (event,) = plan(FOUR, between={(1, 3): 0.05})
        assert event == Merge(keep=1, dropped=3, share=0.5, kl=0.05)

    @pytest.mark.parametrize(("kl", "n_events"), [(0.0, 1), (0.05, 1), (0.124, 1), (0.125, 0), (0.126, 0), (0.4, 0)])
    def test_below_the_threshold_only(self, kl, n_events):
        assert len(plan(FOUR, between={(0, 1): kl}, merge_kl=0.125)) == n_events

    def test_share_is_that_of_the_steps(self):
        (event,) = plan([0, 1, 1, 2], between={(0, 1): 0.05}, steps=[100.0, 200.0, 100.0, 50.0])
        assert isinstance(event, Merge)
        assert event.share == pytest.approx(1 / 4)

    def test_nan_does_nothing(self):
        assert plan(FOUR, between={(0, 1): math.nan}) == []

    @pytest.mark.parametrize("young", [0, 1])
    def test_young_groups_do_not(self, young):
        mergeable = [group != young for group in range(N_HEADS)]
        assert plan(FOUR, between={(0, 1): 0.0}, mergeable=mergeable) == []
        assert len(plan(FOUR, between={(0, 1): 0.0, (2, 3): 0.0}, mergeable=mergeable)) == 1

    def test_none_means_never(self):
        assert plan(FOUR, between={(0, 1): 0.0}, merge_kl=None) == []
        assert plan(FOUR, between={(0, 1): 0.0}, merge_kl=None, split_kl=None) == []
        assert len(plan(FOUR, between={(0, 1): 0.0}, split_kl=None)) == 1

    def test_threshold_zero_means_never_too(self):
        assert plan(FOUR, between={(0, 1): 0.0}, merge_kl=0.0) == []

    def test_heads_without_cells_do_not(self):
        assert plan([0, 0, 2, 2], between={(0, 1): 0.0, (1, 3): 0.0, (3, 4): 0.0}) == []

    def test_best_pair_first_and_no_group_twice(self):
        events = plan(FOUR, between={(0, 1): 0.03, (1, 2): 0.01, (0, 2): 0.02})
        assert [(event.keep, event.dropped) for event in events if isinstance(event, Merge)] == [(1, 2)]

    def test_several_pairs_at_once(self):
        events = plan(FOUR, between={(0, 3): 0.04, (1, 2): 0.02, (2, 3): 0.03})
        assert [(event.keep, event.dropped) for event in events if isinstance(event, Merge)] == [(1, 2), (0, 3)]

    @pytest.mark.parametrize(("error", "merges"), [(0.0, True), (0.03, True), (0.05, False), (math.nan, False)])
    def test_only_what_is_certain(self, error, merges):
        """0.02 nats, and two standard errors."""
        divergences = measured([0, 1], between={(0, 1): 0.02})._replace(between_error=th.full((N_HEADS, N_HEADS), error))
        events = plan_regrouping(divergences, th.tensor([0, 1]), th.ones(N_HEADS, dtype=th.bool), 0.1, 0.3)
        assert len(events) == merges


class TestSplitting:
    def test_a_group_that_contradicts_itself_splits(self):
        (event,) = plan(TOGETHER, within={0: 0.4}, kl=TWO_AND_TWO)
        assert event == Split(group=0, new_group=1, cells=[2, 3], kl=0.4)

    @pytest.mark.parametrize(("kl", "n_events"), [(-0.1, 0), (0.0, 0), (0.4, 0), (0.5, 0), (0.501, 1), (0.6, 1)])
    def test_above_the_threshold_only(self, kl, n_events):
        assert len(plan(TOGETHER, within={0: kl}, kl=TWO_AND_TWO, split_kl=0.5)) == n_events

    def test_nan_does_nothing(self):
        assert plan(TOGETHER, within={0: math.nan}, kl=TWO_AND_TWO) == []
        assert plan(TOGETHER, within={0: 0.4}, kl=TWO_AND_TWO, error=math.nan) == []

    @pytest.mark.parametrize(("error", "n_events"), [(0.0, 1), (0.133, 1), (0.134, 0), (1.0, 0)])
    def test_three_standard_errors_are_needed(self, error, n_events):
        assert len(plan(TOGETHER, within={0: 0.4}, kl=TWO_AND_TWO, error=error)) == n_events

    def test_none_means_never(self):
        assert plan(TOGETHER, within={0: 0.4}, kl=TWO_AND_TWO, split_kl=None) == []
        assert plan(TOGETHER, within={0: 0.4}, kl=TWO_AND_TWO, merge_kl=None, split_kl=None) == []
        assert len(plan(TOGETHER, within={0: 0.4}, kl=TWO_AND_TWO, merge_kl=None)) == 1

    @pytest.mark.parametrize("disagreeing", [0, 1])
    def test_halves_of_the_data_must_agree(self, disagreeing):
        halves = [TWO_AND_TWO, TWO_AND_TWO]
        halves[disagreeing] = clusters((0, 2), (1, 3))
        assert plan(TOGETHER, within={0: 0.4}, kl=TWO_AND_TWO, halves=halves) == []

    @pytest.mark.parametrize(("steps", "n_events"), [(4.0, 1), (6.0, 0)])
    def test_halves_may_disagree_about_a_twentieth_of_the_steps(self, steps, n_events):
        kl, other = clusters((0, 1), (2, 3, 4)), clusters((0, 1, 4), (2, 3))
        options = dict(within={0: 0.4}, kl=kl, halves=[kl, other])
        assert len(plan([0] * 5, steps=[(100 - steps) / 4] * 4 + [steps], **options)) == n_events

    def test_the_lowest_free_head_is_taken(self):
        (event,) = plan([2, 2, 0, 4], within={2: 0.4}, kl=clusters((0,), (1,), (2, 3)))
        assert (event.group, event.new_group, event.cells) == (2, 1, [1])

    def test_without_a_free_head_there_is_none(self):
        assert plan([0, 0, 1, 2, 3, 4], within={0: 0.4}, kl=clusters((0,), (1, 2, 3, 4, 5))) == []

    def test_the_strongest_contradiction_gets_the_last_free_head(self):
        cells, kl = [0, 0, 1, 1, 2, 3], clusters((0, 2), (1, 3), (4, 5))
        (event,) = plan(cells, within={0: 0.4, 1: 0.5}, kl=kl)
        assert event == Split(1, 4, [3], 0.5)

    def test_several_groups_split_at_once(self):
        cells, kl = [0, 0, 1, 1], clusters((0, 2), (1, 3))
        assert plan(cells, within={0: 0.5, 1: 0.5}, kl=kl) == [Split(0, 2, [1], 0.5), Split(1, 3, [3], 0.5)]

    def test_what_cannot_be_divided_does_not_take_a_head(self):
        cells, kl = [0, 0, 1, 2, 3, 3], clusters((0,), (1,), (2, 3, 4), (5,))
        (event,) = plan(cells, within={3: 0.4, 0: 0.5}, kl=kl, steps=[100.0, 0.0, *[100.0] * 4])
        assert event == Split(3, 4, [5], 0.4)

    def test_one_cell_does_not(self):
        assert plan([0, 1], within={0: 0.4, 1: 0.4}, kl=clusters((0,), (1,))) == []

    def test_cells_without_steps_stay(self):
        (event,) = plan([0] * 5, within={0: 0.4}, kl=clusters((0, 4), (1, 2, 3)), steps=[100.0, 100.0, 0.0, 100.0, 0.0])
        assert event == Split(0, 1, [1, 3], 0.4)

    def test_young_groups_do_too(self):
        assert len(plan(TOGETHER, within={0: 0.4}, kl=TWO_AND_TWO, mergeable=[False] * N_HEADS)) == 1


class TestSplittingAndMerging:
    def test_what_splits_does_not_merge(self):
        kl, between = clusters((0, 2, 3), (1,)), {(0, 1): 0.01, (0, 2): 0.01, (1, 2): 0.05}
        assert plan([0, 0, 1, 2], within={0: 0.4}, kl=kl, between=between) == [
            Split(0, 3, [1], 0.4),
            Merge(1, 2, 0.5, 0.05),
        ]

    def test_a_new_group_does_not_merge_at_once(self):
        (event,) = plan([0, 0, 1, 2], within={0: 0.4}, kl=clusters((0, 2, 3), (1,)), between={(1, 3): 0.0, (0, 3): 0.0})
        assert isinstance(event, Split)


class TestBipartition:
    steps = th.full((6,), 100.0)

    def test_two_clusters(self):
        assert bipartition([0, 1, 2, 3, 4, 5], clusters((0, 2, 3), (1, 4, 5)), self.steps) == [1, 4, 5]

    def test_the_first_cell_stays(self):
        assert bipartition([0, 1, 2, 3, 4, 5], clusters((1, 4, 5), (0, 2, 3)), self.steps) == [1, 4, 5]

    def test_the_first_cell_stays_where_it_is_not_the_centre_of_its_half(self):
        kl = clusters((0, 3), (1, 2))
        kl[0, 3], kl[3, 0] = 0.1, 0.5
        assert bipartition([0, 1, 2, 3], kl, self.steps[:4]) == [1, 2]

    def test_of_some_cells(self):
        assert bipartition([1, 2, 4, 5], clusters((0, 2, 3), (1, 4, 5)), self.steps) == [2]

    def test_two_cells(self):
        assert bipartition([2, 4], th.zeros(6, 6), self.steps) == [4]

    @pytest.mark.parametrize("members", [((0, 1), (2, 3), (4, 5)), ((0, 5), (1, 2), (3, 4)), ((0, 3, 4), (1,), (2, 5))])
    def test_of_three_clusters_none_is_cut(self, members):
        moving = set(bipartition([0, 1, 2, 3, 4, 5], clusters(*members), self.steps))
        assert 0 < len(moving) < 6
        assert all(set(cluster) <= moving or not set(cluster) & moving for cluster in members)

    def test_the_nearer_clusters_stay_together(self):
        positions = th.tensor([0.0, 0.0, 10.0, 10.0, 13.0, 13.0])
        kl = (positions.unsqueeze(1) - positions).square()
        assert bipartition([0, 1, 2, 3, 4, 5], kl, self.steps) == [2, 3, 4, 5]

    @pytest.mark.parametrize(("last", "moving"), [(100.0, [4, 5]), (50.0, [2, 3, 4, 5])])
    def test_steps_are_weights(self, last, moving):
        # uniting the first two pairs of cells costs 1 on 200 steps, the last two 1.2 on twice the last number
        kl = clusters((0, 1), (2, 3), (4, 5), far=3.0)
        kl[:2, 2:4] = kl[2:4, :2] = 1.0
        kl[2:4, 4:] = kl[4:, 2:4] = 1.2
        assert bipartition([0, 1, 2, 3, 4, 5], kl, th.tensor([100.0] * 4 + [last] * 2)) == moving

    def test_a_noisy_centre_does_not_decide(self):
        # with centres 2 and 3 the only cost is 0.1, for cell 5 at cell 2; all others of that half are further away
        kl = clusters((0, 1, 2), (3, 4, 5))
        kl[5] = th.tensor([1.0, 1.0, 0.1, 0.3, 0.3, 0.0])
        kl[3:5, 5] = 0.3
        assert bipartition([0, 1, 2, 3, 4, 5], kl, self.steps) == [3, 4, 5]


class TestAgreement:
    # cell 0 is nearer to cell 1 than to cell 2, cell 1 nearer to cell 2 than to cell 0, cell 2 is alone
    kl = th.tensor([[0.0, 1.0, 2.0], [2.0, 0.0, 1.0], [0.0, 0.0, 0.0]])

    def test_share_of_the_steps(self):
        assert agreement([0, 1, 2], [2], self.kl, th.tensor([10.0, 30.0, 60.0])) == pytest.approx(0.7)
        assert agreement([0, 1, 2], [2], self.kl, th.tensor([30.0, 10.0, 60.0])) == pytest.approx(0.9)

    def test_distances_are_weighted_by_steps(self):
        # cell 0 to its own half: 0 on cell 1, 2 on cell 2; to cell 3: 1
        kl = th.tensor([[0.0, 0.0, 2.0, 1.0], *[[0.0] * 4] * 3])
        # (0 * 3 + 2 * 1) / 4 = 0.5 < 1
        assert agreement([0, 1, 2, 3], [3], kl, th.tensor([1.0, 3.0, 1.0, 1.0])) == 1
        # (0 * 1 + 2 * 3) / 4 = 1.5 > 1: cell 0 is in the wrong half
        assert agreement([0, 1, 2, 3], [3], kl, th.tensor([1.0, 1.0, 3.0, 1.0])) == pytest.approx(5 / 6)

    def test_only_the_cells_of_the_group_count(self):
        wider = th.full((5, 5), 7.0)
        wider[1:4, 1:4] = self.kl
        assert agreement([1, 2, 3], [3], wider, th.tensor([999.0, 10.0, 30.0, 60.0, 999.0])) == pytest.approx(0.7)

    @pytest.mark.parametrize("moving", [[2, 3], [0, 1]])
    def test_full(self, moving):
        assert agreement([0, 1, 2, 3], moving, TWO_AND_TWO, th.ones(4)) == 1

    def test_none(self):
        assert agreement([0, 1, 2, 3], [1, 3], TWO_AND_TWO, th.ones(4)) == 0


class TestApplyPlan:
    groups = th.tensor([0, 0, 1, 2, 2])

    @pytest.mark.parametrize(
        ("events", "expected"),
        [
            ([], [0, 0, 1, 2, 2]),
            ([Merge(0, 2, 0.5, 0.05)], [0, 0, 1, 0, 0]),
            ([Merge(2, 0, 0.5, 0.05)], [2, 2, 1, 2, 2]),
            ([Split(2, 3, [4], 0.4)], [0, 0, 1, 2, 3]),
            ([Split(2, 3, [4], 0.4), Merge(0, 1, 0.5, 0.05)], [0, 0, 0, 2, 3]),
            ([Merge(0, 1, 0.5, 0.05), Split(2, 1, [3], 0.4)], [0, 0, 0, 1, 2]),
        ],
        ids=str,
    )
    def test_by_hand(self, events, expected):
        assert apply_plan(events, self.groups).tolist() == expected

    def test_what_was_given_stays(self):
        before = self.groups.clone()
        apply_plan([Merge(0, 2, 0.5, 0.05)], self.groups)
        assert self.groups.equal(before)


def test_sum_by():
    values = th.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    assert sum_by(values, th.tensor([2, 0, 2]), 4).tolist() == [[2, 20], [0, 0], [5, 50], [0, 0]]
    assert sum_by(values[:, 0], th.tensor([1, 1, 0]), 2).tolist() == [4, 3]


@pytest.mark.parametrize(("steps", "n"), [(0, 3), (1, 1), (500, 1), (500, 7), (3000, 4000)])
def test_sum_products_by(steps, n):
    random = np.random.default_rng(0)
    # whole numbers: sums are exact in any order
    left, right = (random.integers(-9, 10, size=(steps, size)) for size in (3, 5))
    member = random.integers(n, size=steps)
    expected = np.zeros((n, 3, 5))
    for step in range(steps):
        expected[member[step]] += np.outer(left[step], right[step])
    columns = (th.as_tensor(left, dtype=th.float32), th.as_tensor(right, dtype=th.float32))
    assert sum_products_by(*columns, th.as_tensor(member), n).tolist() == expected.tolist()


def test_bipartition_of_many_cells():
    """200 cells of two kinds."""
    kinds = np.random.default_rng(0).integers(2, size=200)
    kl = th.as_tensor(kinds[:, None] != kinds, dtype=th.float32) + 0.1 * th.rand(
        200, 200, generator=th.Generator().manual_seed(0)
    )
    moving = bipartition(list(range(200)), kl, th.full((200,), 100.0))
    assert moving == np.flatnonzero(kinds != kinds[0]).tolist()


def sometimes_nan(random, values, share=0.15):
    return np.where(random.random(values.shape) < share, np.nan, values)


def any_divergences(random, n_cells, n_heads):
    """Cells want one of a few things, more or less clearly; some have no steps, and not everything is known."""
    n_wants, noise = random.integers(1, 4), random.choice([0.01, 0.3])
    wants = random.normal(size=(n_wants, 2))[random.integers(n_wants, size=n_cells)]

    def kl_of_cells():
        noisy = wants + noise * random.normal(size=wants.shape)
        return np.square(noisy[:, None] - noisy).sum(axis=2) * random.uniform(0.5, 2, size=(n_cells, 1))

    between = sometimes_nan(random, random.exponential(0.4, size=(n_heads, n_heads)))
    steps = random.integers(1, 2000, size=n_cells) * (random.random(n_cells) > 0.15)
    columns = (
        np.maximum(between, between.T) * (1 - np.eye(n_heads)),
        sometimes_nan(random, random.exponential(0.3, size=n_heads)),
        random.exponential(0.05, size=n_heads),
        kl_of_cells(),
        np.stack([kl_of_cells(), kl_of_cells()]),
        steps,
    )
    return Divergences(*(th.as_tensor(column, dtype=th.float32) for column in columns))


def unknown_without_steps(divergences, groups):
    unseen = sum_by(divergences.cell_counts, groups, len(divergences.within)) == 0
    return divergences._replace(
        between=divergences.between.masked_fill(unseen | unseen.unsqueeze(1), math.nan),
        within=divergences.within.masked_fill(unseen, math.nan),
    )


def involved(event):
    return [event.keep, event.dropped] if isinstance(event, Merge) else [event.group, event.new_group]


def cells_of(groups):
    return {group: (groups == group).nonzero().flatten().tolist() for group in groups.unique().tolist()}


class Rounds:
    """A random sequence of measurements, plans and new groups."""

    def __init__(self, seed, n_cells, n_heads, n_rounds=5):
        random = np.random.default_rng(seed)
        self.n_heads = n_heads
        self.groups = th.as_tensor(random.integers(n_heads, size=n_cells))
        # thresholds may be missing, but most often they are not
        self.merge_kl, self.split_kl = (value if random.random() < 0.9 else None for value in (0.2, 0.3))
        self.measured = [any_divergences(random, n_cells, n_heads) for _ in range(n_rounds)]
        self.mergeable = [th.as_tensor(random.random(n_heads) < 0.8) for _ in range(n_rounds)]

    def plan(self, divergences, groups, mergeable):
        return plan_regrouping(divergences, groups, mergeable, self.merge_kl, self.split_kl)

    def __iter__(self):
        groups = self.groups
        for of_cells, mergeable in zip(self.measured, self.mergeable, strict=True):
            divergences = unknown_without_steps(of_cells, groups)
            events = self.plan(divergences, groups, mergeable)
            after = apply_plan(events, groups)
            yield divergences, mergeable, events, groups, after
            groups = after


any_rounds = st.builds(Rounds, st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 6))


class TestAnySequence:
    @property_test
    @given(any_rounds)
    def test_every_cell_is_in_one_group_that_has_a_head(self, rounds):
        for *_, before, after in rounds:
            assert after.shape == before.shape
            assert after.dtype == before.dtype
            assert sorted(cell for cells in cells_of(after).values() for cell in cells) == list(range(len(after)))
            assert after.min() >= 0
            assert after.max() < rounds.n_heads

    @property_test
    @given(any_rounds)
    def test_number_of_groups(self, rounds):
        for _, _, events, before, after in rounds:
            n_merges = sum(isinstance(event, Merge) for event in events)
            assert len(after.unique()) == len(before.unique()) + (len(events) - n_merges) - n_merges
            assert 1 <= len(after.unique()) <= rounds.n_heads

    @property_test
    @given(any_rounds)
    def test_groups_without_an_event_keep_their_cells(self, rounds):
        for _, _, events, before, after in rounds:
            changed = {group for event in events for group in involved(event)}
            for group, cells in cells_of(before).items():
                if group not in changed:
                    assert cells_of(after)[group] == cells

    @property_test
    @given(any_rounds)
    def test_no_group_takes_part_in_two_events(self, rounds):
        for _, _, events, _, _ in rounds:
            groups = [group for event in events for group in involved(event)]
            assert len(groups) == len(set(groups))

    @property_test
    @given(any_rounds)
    def test_merges(self, rounds):
        for divergences, mergeable, events, before, after in rounds:
            for event in events:
                if isinstance(event, Merge):
                    keep, dropped = event.keep, event.dropped
                    assert mergeable[[keep, dropped]].all()
                    assert event.kl == divergences.between[keep, dropped] < rounds.merge_kl
                    assert 0 <= event.share <= 1
                    assert cells_of(after)[keep] == sorted(cells_of(before)[keep] + cells_of(before)[dropped])
                    assert dropped not in after

    @property_test
    @given(any_rounds)
    def test_groups_without_steps_are_not_merged(self, rounds):
        """Whatever is said to be known of them."""
        for of_cells, mergeable in zip(rounds.measured, rounds.mergeable, strict=True):
            everything_alike = of_cells._replace(between=th.zeros_like(of_cells.between))
            for event in rounds.plan(everything_alike, rounds.groups, mergeable):
                if isinstance(event, Merge):
                    steps = [
                        of_cells.cell_counts[rounds.groups == group].sum().item() for group in (event.keep, event.dropped)
                    ]
                    assert min(steps) > 0
                    assert event.share == pytest.approx(steps[0] / sum(steps))

    @property_test
    @given(any_rounds)
    def test_splits(self, rounds):
        for divergences, _, events, before, after in rounds:
            for event in events:
                if isinstance(event, Split):
                    assert event.kl == divergences.within[event.group] > rounds.split_kl
                    assert event.kl > 3 * divergences.within_error[event.group]
                    assert event.new_group not in before
                    assert cells_of(after)[event.new_group] == sorted(event.cells)
                    stay = cells_of(after)[event.group]
                    assert sorted(stay + event.cells) == cells_of(before)[event.group]
                    assert divergences.cell_counts[stay].any(), "somebody with steps stays"

    @property_test
    @given(any_rounds)
    def test_cells_without_steps_never_move_in_a_split(self, rounds):
        for divergences, _, events, _, _ in rounds:
            for event in events:
                assert isinstance(event, Merge) or divergences.cell_counts[event.cells].all()

    @property_test
    @given(any_rounds)
    def test_deterministic_and_nothing_given_is_changed(self, rounds):
        for divergences, mergeable, events, before, _ in rounds:
            copies = Divergences(*(tensor.clone() for tensor in divergences[:-1]))
            groups = before.clone()
            assert rounds.plan(copies, groups, mergeable.clone()) == events
            assert groups.equal(before)
            assert copies.between_error is divergences.between_error is None
            assert all(one.equal(other) for one, other in zip(copies[3:-1], divergences[3:-1], strict=True))

    @property_test
    @given(any_rounds)
    def test_thresholds_that_are_none(self, rounds):
        for *_, events, _, _ in rounds:
            assert rounds.merge_kl is not None or all(isinstance(event, Split) for event in events)
            assert rounds.split_kl is not None or all(isinstance(event, Merge) for event in events)

    @property_test
    @given(any_rounds, st.randoms(use_true_random=False))
    def test_names_of_cells_do_not_matter(self, rounds, random):
        names = list(range(len(rounds.groups)))
        random.shuffle(names)
        for divergences, mergeable, _, before, after in rounds:
            renamed = divergences._replace(
                cells=divergences.cells[names][:, names],
                cells_by_half=divergences.cells_by_half[:, names][:, :, names],
                cell_counts=divergences.cell_counts[names],
            )
            other = apply_plan(rounds.plan(renamed, before[names], mergeable), before[names])
            # which half of a group keeps its head, and with it the cells without steps, depends on the names
            seen = set(renamed.cell_counts.nonzero().flatten().tolist())
            one, same = ({frozenset(seen & set(cells)) for cells in cells_of(g).values()} for g in (after[names], other))
            assert one - {frozenset()} == same - {frozenset()}


def test_the_sequences_have_both_kinds_of_events():
    events = [event for seed in range(100) for _, _, planned, _, _ in Rounds(seed, 6, 4) for event in planned]
    kinds = [type(event) for event in events]
    assert kinds.count(Merge) > 50
    assert kinds.count(Split) > 50
    assert len({len(event.cells) for event in events if isinstance(event, Split)}) > 1
