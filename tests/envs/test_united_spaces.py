"""Several spaces become one: nothing of an observation or action is lost, and what cannot be united is refused."""

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from sb3_grpo.envs.united_spaces import fit, unite_actions, unite_observations


def box(*shape, low=-1.0, high=1.0, dtype=np.float32):
    return spaces.Box(low, high, shape, dtype)


class TestObservations:
    def test_the_same_stay_the_same(self):
        assert unite_observations({"a": box(3), "b": box(3)}) == box(3)

    def test_vectors_get_zeros_behind_them(self):
        space = unite_observations({"a": box(2, low=1.0, high=2.0), "b": box(3, low=-5.0, high=-4.0)})
        assert isinstance(space, spaces.Box)
        assert space.low.tolist() == [-5, -5, -5]
        assert space.high.tolist() == [2, 2, 0]
        assert fit(np.array([1.5, 1.0], np.float32), space).tolist() == [1.5, 1.0, 0.0]
        assert fit(np.array([-5.0, -4.0, -5.0], np.float32), space).tolist() == [-5.0, -4.0, -5.0]

    def test_bounds_of_one_shape_become_the_widest(self):
        space = unite_observations({"a": box(2, 2, high=4.0), "b": box(2, 2, low=-3.0)})
        assert space == box(2, 2, low=-3.0, high=4.0)

    def test_numbers_of_different_types(self):
        space = unite_observations({"a": box(2, dtype=np.float32), "b": spaces.Box(0, 9, (2,), np.uint8)})
        fitted = fit(np.array([3, 4], np.uint8), space)
        assert space.dtype == fitted.dtype == np.float32
        assert fitted.tolist() == [3.0, 4.0]

    def test_entries_of_dicts_one_by_one(self):
        one = spaces.Dict({"x": box(2), "n": spaces.Discrete(2), "bits": spaces.MultiBinary(1)})
        other = spaces.Dict({"x": box(1), "n": spaces.Discrete(5), "bits": spaces.MultiBinary(3)})
        space = unite_observations({"a": one, "b": other})
        assert space == spaces.Dict({"x": box(2), "n": spaces.Discrete(5), "bits": spaces.MultiBinary(3)})
        fitted = fit({"x": np.ones(1, np.float32), "n": 4, "bits": np.ones(1, np.int8)}, space)
        assert fitted["x"].tolist() == [1, 0]
        assert fitted["n"] == 4
        assert fitted["bits"].tolist() == [1, 0, 0]

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (box(2, 2), box(3, 3)),
            (box(2), box(2, 2)),
            (box(2), spaces.Discrete(2)),
            (spaces.Discrete(2), spaces.Discrete(3, start=1)),
            (spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete([3, 2])),
            (spaces.Dict({"x": box(2)}), spaces.Dict({"y": box(2)})),
            (spaces.MultiBinary([2, 2]), spaces.MultiBinary([2, 3])),
        ],
    )
    def test_what_cannot_be_one_is_refused(self, one, other):
        with pytest.raises(
            ValueError, match=r"`tasks` must have observations of one kind.*walk: .*turn: .*FlattenObservation"
        ):
            unite_observations({"walk": one, "turn": other})

    def test_an_entry_that_cannot_be_one_is_named(self):
        with pytest.raises(ValueError, match=r"`tasks` must have entries 'camera' of the observations of one kind"):
            unite_observations({"a": spaces.Dict({"camera": box(2, 2)}), "b": spaces.Dict({"camera": box(3, 3)})})

    @given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
    def test_every_observation_fits_and_keeps_its_numbers(self, widths, seed):
        random = np.random.default_rng(seed)
        found = {}
        for index, width in enumerate(widths):
            low = random.normal(size=width).astype(np.float32)
            found[str(index)] = spaces.Box(low, low + random.random(width, np.float32) + 0.1, dtype=np.float32)
        space = unite_observations(found)
        for own in found.values():
            own.seed(seed % 2**31)
            obs = own.sample()
            fitted = fit(obs, space)
            assert space.contains(fitted)
            assert fitted[: len(obs)].tolist() == obs.tolist()
            assert not fitted[len(obs) :].any()


class TestActions:
    def test_the_same_stay_the_same(self):
        actions = unite_actions({"a": spaces.Discrete(3, start=1), "b": spaces.Discrete(3, start=1)})
        assert actions.space == spaces.Discrete(3, start=1)
        assert actions.masks is None
        assert actions.own(2, 1) == 2

    def test_discrete_by_hand(self):
        actions = unite_actions({"a": spaces.Discrete(2), "b": spaces.Discrete(3, start=5)})
        assert actions.space == spaces.Discrete(3)
        assert actions.masks is not None
        assert actions.masks.tolist() == [[True, True, False], [True, True, True]]
        assert [int(actions.own(action, 0)) for action in range(3)] == [0, 1, 0]
        assert [int(actions.own(action, 1)) for action in range(3)] == [5, 6, 7]

    def test_multi_discrete_by_hand(self):
        actions = unite_actions({"a": spaces.MultiDiscrete([2, 4]), "b": spaces.MultiDiscrete([3, 1])})
        assert actions.space == spaces.MultiDiscrete([3, 4])
        # three values of the first variable, then four of the second
        assert actions.masks is not None
        assert actions.masks.astype(int).tolist() == [[1, 1, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]]
        assert actions.own(np.array([2, 3]), 0).tolist() == [0, 3]
        assert actions.own(np.array([2, 3]), 1).tolist() == [2, 0]

    def test_boxes_by_hand(self):
        one, other = box(2, low=-2.0, high=2.0), spaces.Box(np.array([0.0, -1.0]), np.array([10.0, 3.0]), dtype=np.float64)
        actions = unite_actions({"a": one, "b": other})
        assert actions.space == box(2)
        assert actions.masks is None
        assert actions.own(np.array([-1.0, 0.5]), 0).tolist() == [-2.0, 1.0]
        assert actions.own(np.array([-1.0, 0.5]), 1).tolist() == [0.0, 2.0]
        assert actions.own(np.array([1.0, 1.0]), 1).dtype == np.float64

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (spaces.Discrete(2), box(2)),
            (spaces.Discrete(2), spaces.MultiDiscrete([2])),
            (spaces.MultiDiscrete([2, 2]), spaces.MultiDiscrete([2, 2, 2])),
            (spaces.MultiDiscrete(np.array([[2, 2]])), spaces.MultiDiscrete(np.array([[2, 3]]))),
            (box(2), box(3)),
            (box(2), box(2, low=-np.inf, high=np.inf)),
            (spaces.MultiBinary(2), spaces.MultiBinary(3)),
        ],
    )
    def test_what_cannot_be_one_is_refused(self, one, other):
        with pytest.raises(ValueError, match=r"`tasks` must have actions of one kind: .*walk: .*turn: "):
            unite_actions({"walk": one, "turn": other})

    @given(st.lists(st.integers(1, 6), min_size=2, max_size=5))
    def test_allowed_actions_are_those_of_the_task_in_its_order(self, sizes):
        actions = unite_actions({str(index): spaces.Discrete(size) for index, size in enumerate(sizes)})
        if actions.masks is None:
            assert len(set(sizes)) == 1
            return
        for task, size in enumerate(sizes):
            allowed = np.flatnonzero(actions.masks[task])
            assert [int(actions.own(action, task)) for action in allowed] == list(range(size))
            # an agent without masks cannot leave the task's actions either
            assert {int(actions.own(action, task)) for action in range(max(sizes))} == set(range(size))
