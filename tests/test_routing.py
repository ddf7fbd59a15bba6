"""Routers: which cell an observation belongs to, and what they refuse."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_grpo import routing
from sb3_grpo.grouping import deal_cells, resolve_group_counts
from sb3_grpo.routing import make_router


def box(width, **kwargs):
    return spaces.Box(-np.inf, np.inf, (width,), **kwargs)


DICT = spaces.Dict({"obs": box(2), "task": spaces.Discrete(3)})


def fitted(points, seed=0, n_cells=5, space=None):
    router = make_router("random", space or box(points.shape[1]), dict(n_cells=n_cells))
    router.fit(th.as_tensor(points), seed)
    return router


def nearest_centres(points, new, seed, n_cells):
    """The definition: nearest of the drawn observations, in coordinates standardised by mean and deviation."""
    points, new = points.astype(np.float64), new.astype(np.float64)
    drawn = np.random.default_rng(seed).choice(len(points), size=n_cells, replace=len(points) < n_cells)
    std = points.std(axis=0)
    std[std < 1e-6] = np.inf
    standardised, centres = (new - points.mean(axis=0)) / std, (points[drawn] - points.mean(axis=0)) / std
    return np.square(standardised[:, None] - centres).sum(axis=2).argmin(axis=1)


@pytest.fixture
def points():
    random = np.random.default_rng(1)
    return (random.normal(size=(200, 3)) * [0.1, 1, 10] + [5, 0, -3]).astype(np.float32)


class TestRandomRouter:
    def test_before_fitting_all_is_cell_0(self, points):
        assert not make_router("random", box(3), dict(n_cells=5))(th.as_tensor(points)).any()

    @pytest.mark.parametrize("seed", [0, 1])
    def test_cells_are_those_of_the_nearest_centre(self, points, seed):
        new = points[::-1] + np.float32(0.05)
        for obs in (points, new):
            cells = fitted(points, seed)(th.as_tensor(obs)).numpy()
            np.testing.assert_array_equal(cells, nearest_centres(points, obs, seed, 5))
        assert set(cells) == set(range(5))

    def test_scale_of_a_column_does_not_matter(self, points):
        scaled = points * np.array([1000, 1, 1], np.float32)
        assert fitted(points)(th.as_tensor(points)).equal(fitted(scaled)(th.as_tensor(scaled)))

    def test_seeded(self, points):
        obs = th.as_tensor(points)
        assert fitted(points, 3)(obs).equal(fitted(points, 3)(obs))
        assert not fitted(points, 3)(obs).equal(fitted(points, 4)(obs))

    def test_the_map_never_changes_once_fitted(self, points):
        router, obs = fitted(points), th.as_tensor(points)
        cells = router(obs)
        router.fit(obs * 2 + 7, 9)
        assert router(obs).equal(cells)

    def test_global_generators_are_not_drawn_from(self, points):
        np.random.seed(0)
        th.manual_seed(0)
        states = np.random.get_state(legacy=False)["state"]["key"].copy(), th.get_rng_state()
        fitted(points)
        assert (np.random.get_state(legacy=False)["state"]["key"] == states[0]).all()
        assert th.get_rng_state().equal(states[1])

    @pytest.mark.parametrize("constant", [0.0, 9.8, 1000.1])
    def test_constant_column_is_harmless(self, points, constant):
        wider = np.insert(points, 1, constant, axis=1).astype(np.float32)
        assert fitted(points)(th.as_tensor(points)).equal(fitted(wider)(th.as_tensor(wider)))

    def test_more_cells_than_observations(self, points):
        cells = fitted(points[:3], n_cells=8)(th.as_tensor(points))
        assert cells.min() >= 0
        assert cells.max() < 8

    def test_many_dimensions(self):
        # two clusters far apart in 100 dimensions: a centre never serves both
        random = np.random.default_rng(0)
        clusters = np.repeat([0.0, 100.0], 50)
        obs = (random.normal(size=(100, 100)) + clusters[:, None]).astype(np.float32)
        cells = fitted(obs, n_cells=6)(th.as_tensor(obs)).numpy()
        assert not set(cells[:50]) & set(cells[50:])
        assert len(set(cells)) > 2

    def test_images(self):
        space = spaces.Box(0, 255, (1, 36, 36), np.uint8)
        images = np.random.default_rng(0).integers(0, 255, (20, 1, 36, 36), dtype=np.uint8)
        images[10:] //= 50
        cells = fitted(images, space=space, n_cells=6)(th.as_tensor(images)).numpy()
        assert not set(cells[:10]) & set(cells[10:])

    @pytest.mark.parametrize("space", [spaces.Discrete(4), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3)], ids=str)
    def test_numbers(self, space):
        space.seed(0)
        obs = np.stack([space.sample() for _ in range(50)])
        cells = fitted(obs, space=space)(th.as_tensor(obs)).numpy()
        labels = [str(row) for row in obs]
        assert len(set(zip(labels, cells, strict=True))) == len(set(labels)), "equal observations share a cell"
        assert len(set(cells)) > 1

    def test_order_of_the_keys_does_not_matter(self, points):
        obs = {"obs": th.as_tensor(points[:, :2].copy()), "task": th.arange(200) % 3}
        router = make_router("random", DICT, dict(n_cells=5))
        router.fit(obs, 0)
        swapped = {"task": obs["task"], "obs": obs["obs"]}
        assert router(swapped).equal(router(obs))
        assert len(router(obs).unique()) == 5

    def test_what_was_fitted_is_saved(self, points):
        other = make_router("random", box(3), dict(n_cells=5))
        other.load_state_dict(fitted(points).state_dict())
        assert other(th.as_tensor(points)).equal(fitted(points)(th.as_tensor(points)))


class TestOneHotRouter:
    obs = th.tensor([[0.3, 0.0, 1.0, 7.0], [0.9, 1.0, 0.0, 8.0]])

    def test_cells(self):
        router = make_router("one_hot", box(4), dict(columns=(1, 3)))
        assert router(self.obs).tolist() == [1, 0]
        assert router.n_cells == 2

    def test_cells_of_normalised_observations(self):
        router = make_router("one_hot", box(4), dict(columns=(1, 3)))
        assert router((self.obs - th.tensor([0, 0.9, 0.1, 0])) * 3).tolist() == [1, 0]

    def test_hide(self):
        router = make_router("one_hot", box(4), dict(columns=(1, 3), hide=True))
        assert router.visible_space.shape == (2,)
        visible = router.visible(self.obs)
        assert isinstance(visible, th.Tensor)
        assert visible.tolist() == self.obs[:, [0, 3]].tolist()

    def test_do_not_hide(self):
        router = make_router("one_hot", box(4), dict(columns=(1, 3)))
        assert router.visible_space == box(4)
        assert router.visible(self.obs) is self.obs

    def test_check_accepts_one_hot_only(self):
        router = make_router("one_hot", box(4), dict(columns=(1, 3)))
        router.check(self.obs)
        for row in ([1.0, 1.0], [0.0, 0.0], [0.5, 0.5], [2.0, -1.0]):
            with pytest.raises(ValueError, match=r"`columns` \(1, 3\) must hold a one-hot block") as error:
                router.check(th.tensor([[0.0, 0.0, 1.0, 0.0], [0.0, *row, 0.0]]))
            assert str(row) in str(error.value)


class TestDiscreteRouter:
    obs = {"obs": th.zeros(3, 2), "task": th.tensor([2, 0, 1])}  # noqa: RUF012  # never changed

    @pytest.mark.parametrize("shape", [(3,), (3, 1)])
    def test_cells(self, shape):
        router = make_router("discrete", DICT, dict(key="task"))
        # the rollout buffer keeps them as columns of floats
        assert router({**self.obs, "task": self.obs["task"].float().reshape(shape)}).tolist() == [2, 0, 1]
        assert router.n_cells == 3

    def test_hide(self):
        router = make_router("discrete", DICT, dict(key="task", hide=True))
        assert router.visible_space == spaces.Dict({"obs": box(2)})
        assert list(router.visible(self.obs)) == ["obs"]

    def test_do_not_hide(self):
        router = make_router("discrete", DICT, dict(key="task"))
        assert router.visible_space == DICT
        assert list(router.visible(self.obs)) == ["obs", "task"]

    def test_check_refuses_values_outside(self):
        router = make_router("discrete", DICT, dict(key="task"))
        router.check(self.obs)
        with pytest.raises(ValueError, match=r"cells from entry 'task' of the observation must lie in \[0, 3\).*0 to 3"):
            router.check({**self.obs, "task": th.tensor([0, 3, 1])})


class TestCallableRouter:
    obs = th.tensor([[0.5], [-0.5]])

    @pytest.mark.parametrize("convert", [lambda cells: cells, lambda cells: cells.numpy(), lambda cells: cells.int()])
    def test_cells(self, convert):
        router = make_router(lambda obs: convert(th.as_tensor(obs)[:, 0].gt(0).long()), box(1), dict(n_cells=2))
        cells = router(self.obs)
        assert cells.tolist() == [1, 0]
        assert cells.dtype == th.long

    @pytest.mark.parametrize(
        ("function", "message"),
        [
            (lambda obs: obs, r"cells from the router function must have shape \(2,\), got \(2, 1\)"),
            (lambda obs: th.tensor(0), r"must have shape \(2,\), got \(\)"),
            (lambda obs: obs[:, 0], r"must be integers, got torch.float32"),
            (lambda obs: th.tensor([0, -1]), r"must lie in \[0, 2\), got values from -1 to 0"),
            (lambda obs: th.tensor([0, 2]), r"must lie in \[0, 2\), got values from 0 to 2"),
        ],
    )
    def test_bad_cells(self, function, message):
        router = make_router(function, box(1), dict(n_cells=2))
        with pytest.raises(ValueError, match=message):
            router.check(self.obs)
        with pytest.raises(ValueError, match=message):
            router(self.obs)


@pytest.mark.parametrize(
    ("router", "space", "kwargs", "message"),
    [
        ("voronoi", box(2), None, r"`router` must be one of \['random', 'one_hot', 'discrete'\] or a callable, got 'voronoi'"),
        (3, box(2), None, r"`router` must be one of .* or a callable, got 3"),
        ("random", box(2), dict(n_cells=0), r"`n_cells` of the router must be at least 1, got 0"),
        ("random", box(2), dict(cells=3), r"`router_kwargs` \{'cells': 3\} do not fit router 'random'"),
        ("one_hot", box(2), None, r"`router_kwargs` \{\} do not fit router 'one_hot'.*columns"),
        (len, box(2), None, r"`router_kwargs` \{\} do not fit router .*n_cells"),
        (len, box(2), dict(n_cells=-1), r"`n_cells` of the router must be at least 1, got -1"),
        ("one_hot", DICT, dict(columns=(0, 1)), r'router="one_hot" needs a Box observation of one dimension, got Dict'),
        ("one_hot", spaces.Box(0, 1, (2, 2)), dict(columns=(0, 1)), r"needs a Box observation of one dimension, got Box"),
        ("one_hot", box(4), dict(columns=(2, 5)), r"`columns` must be .* 0 <= start < stop <= 4.*got \(2, 5\)"),
        ("one_hot", box(4), dict(columns=(-1, 2)), r"`columns` must be .*got \(-1, 2\)"),
        ("one_hot", box(4), dict(columns=(2, 2)), r"`columns` must be .*got \(2, 2\)"),
        ("one_hot", box(4), dict(columns=(0, 1, 2)), r"`columns` must be .*got \(0, 1, 2\)"),
        ("one_hot", box(4), dict(columns=(0, 4), hide=True), r"`hide=True` would leave no column: `columns` \(0, 4\)"),
        ("discrete", box(2), dict(key="task"), r'router="discrete" needs a Dict observation, got Box'),
        ("discrete", DICT, dict(key="job"), r"`key` must be one of .*\['obs', 'task'\], got 'job'"),
        ("discrete", DICT, dict(key="obs"), r"`key` 'obs' must be a Discrete space that starts at 0, got Box"),
        (
            "discrete",
            spaces.Dict({"task": spaces.Discrete(2, start=1)}),
            dict(key="task"),
            r"`key` 'task' must be a Discrete space that starts at 0, got Discrete\(2, start=1\)",
        ),
        (
            "discrete",
            spaces.Dict({"task": spaces.Discrete(2)}),
            dict(key="task", hide=True),
            r"`hide=True` would leave nothing: 'task' is the only key",
        ),
    ],
)
def test_bad_arguments(router, space, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_router(router, space, kwargs)


class TestSplittingObservations:
    """Parts of at most 12 numbers here."""

    @pytest.fixture(autouse=True)
    def _small_parts(self, monkeypatch):
        monkeypatch.setattr(routing, "MAX_CHUNK", 12)

    def test_parts_hold_as_many_observations_as_fit(self):
        obs = th.arange(28.0).view(7, 4)
        parts: list[Any] = list(make_router("random", box(4)).parts(obs))
        assert [len(part) for part in parts] == [3, 3, 1]
        assert th.cat(parts).equal(obs)

    def test_all_entries_of_a_dict_count(self):
        space = spaces.Dict({"image": spaces.Box(0, 1, (2, 2)), "task": spaces.Discrete(2)})
        obs = {"image": th.arange(20).view(5, 2, 2), "task": th.arange(5)}
        parts: list[Any] = list(make_router("random", space).parts(obs))
        assert [len(part["task"]) for part in parts] == [2, 2, 1]
        assert all(th.cat([part[key] for part in parts]).equal(value) for key, value in obs.items())

    def test_a_discrete_observation_counts_as_the_network_gets_it(self):
        """One number for the router, but five columns for everybody else."""
        parts: list[Any] = list(make_router("random", spaces.Discrete(5)).parts(th.arange(4)))
        assert [len(part) for part in parts] == [2, 2]

    def test_an_observation_is_never_divided(self):
        parts: list[Any] = list(make_router("random", spaces.Box(0, 1, (5, 5))).parts(th.zeros(2, 5, 5)))
        assert [part.shape for part in parts] == [(1, 5, 5)] * 2


class TestGroupCounts:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ((None, None, 6), (6, 6)),
            ((None, 4, 6), (4, 4)),
            ((None, 9, 6), (6, 9)),
            ((None, None, 1), (1, 1)),
            ((None, 1, 6), (1, 1)),
            ((1, None, 6), (1, 1)),
            ((2, None, 6), (2, 6)),
            ((2, 4, 6), (2, 4)),
        ],
    )
    def test_defaults(self, given, expected):
        assert resolve_group_counts(*given) == expected

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ((0, None, 6), r"`n_groups` must be between 1 and `max_groups` \(6\), got 0"),
            ((-1, 4, 6), r"`n_groups` must be between 1 and `max_groups` \(4\), got -1"),
            ((5, 4, 6), r"`n_groups` must be between 1 and `max_groups` \(4\), got 5"),
            ((None, 0, 6), r"`n_groups` must be between 1 and `max_groups` \(0\), got 0"),
            ((7, None, 6), r"`n_groups` must be at most the number of cells \(6\), got 7"),
        ],
    )
    def test_bad(self, given, message):
        with pytest.raises(ValueError, match=message):
            resolve_group_counts(*given)


class TestDealingCells:
    def test_one_cell_per_group_is_the_identity(self):
        assert deal_cells(5, 5, seed=3).tolist() == [0, 1, 2, 3, 4]

    def test_as_evenly_as_possible(self):
        assert sorted(np.bincount(deal_cells(8, 3, seed=0))) == [2, 3, 3]

    def test_seeded(self):
        deals = [tuple(deal_cells(12, 3, seed)) for seed in (0, 0, 1)]
        assert deals[0] == deals[1] != deals[2]
