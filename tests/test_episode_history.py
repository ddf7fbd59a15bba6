"""History of the episodes: means and gaps by hand, and what a training, a file and an interrupt make of it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_envs import CountingEnv

from sb3_grpo import GRPO
from sb3_grpo.episode_history import EpisodeHistory

property_test = settings(deadline=None, max_examples=60, derandomize=True, database=None)


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)


def targets_of(*values: float, low: float = np.nan) -> np.ndarray:
    """Of cells that begin at ``low``, or where their first episodes were."""
    return np.array([(low, value) for value in values])


def history_of(n_cells: int, *rollouts: tuple[list[float], list[int]]) -> EpisodeHistory:
    """
    :param rollouts: returns and cells of the episodes that ended in each
    """
    history = EpisodeHistory(n_cells)
    for returns, cells in rollouts:
        history.update(np.array(returns, dtype=float), np.array(cells, dtype=int))
    return history


def of_one_cell(*rollouts: list[float]) -> EpisodeHistory:
    return history_of(1, *((returns, [0] * len(returns)) for returns in rollouts))


def columns(history: EpisodeHistory) -> dict[str, list[float]]:
    return {name: getattr(history, name).tolist() for name in ("count", "first", "recent", "best")}


class TestUpdate:
    def test_by_hand(self):
        history = history_of(3, ([3, -1, 5], [0, 2, 0]))
        assert columns(history) == dict(count=[2, 0, 1], first=[4, 0, -1], recent=[4, 0, -1], best=[5, 0, -1])
        history.update(array(1, -7), np.array([0, 2]))
        assert columns(history) == dict(count=[3, 0, 2], first=[3, 0, -4], recent=[3, 0, -4], best=[5, 0, -1])

    def test_first_are_those_up_to_the_rollout_with_the_20th(self):
        history = of_one_cell([2.0] * 15)
        history.update(array(*[5.0] * 5, *[7.0] * 5), np.zeros(10, dtype=int))
        assert history.first.tolist() == pytest.approx([(30 + 25 + 35) / 25])
        history.update(array(*[1000.0] * 50), np.zeros(50, dtype=int))
        assert history.first.tolist() == pytest.approx([90 / 25])
        assert history.count.tolist() == [75]

    def test_recent_is_a_mean_of_all_up_to_20_and_then_forgets(self):
        history = of_one_cell([0.0] * 10, [4.0] * 10)
        assert history.recent.tolist() == pytest.approx([2])
        # each one takes a twentieth of the way
        history.update(array(12), np.array([0]))
        assert history.recent.tolist() == pytest.approx([2.5])
        history.update(array(12, 12), np.array([0, 0]))
        assert history.recent.tolist() == pytest.approx([12 - 9.5 * 0.95**2])

    def test_best_is_never_forgotten(self):
        history = of_one_cell([-5.0], [-3.0], [-4.0] * 500)
        assert history.best.tolist() == [-3]
        assert history.recent.tolist() == pytest.approx([-4], abs=1e-3)

    def test_a_rollout_without_episodes_changes_nothing(self):
        history = history_of(2, ([3, 4], [0, 1]))
        before = columns(history)
        history.update(np.empty(0), np.empty(0, dtype=int))
        assert columns(history) == before

    def test_begins_with_nothing(self):
        history = EpisodeHistory(2)
        assert columns(history) == dict(count=[0, 0], first=[0, 0], recent=[0, 0], best=[0, 0])
        # a part of what training goes on with, not of the parameters
        assert history.state_dict() == {}
        assert dict(history.named_buffers()).keys() == {"count", "first", "recent", "best"}

    @property_test
    @given(st.integers(0, 2**32), st.lists(st.integers(0, 30), min_size=1, max_size=6))
    def test_is_that_of_all_episodes(self, seed, sizes):
        random = np.random.default_rng(seed)
        made = [(random.normal(5, 10, n).tolist(), random.integers(0, 3, n).tolist()) for n in sizes]
        history = history_of(3, *made)
        returns, cells = (np.array([value for each in made for value in each[place]]) for place in (0, 1))
        for cell in range(3):
            own = returns[cells == cell]
            assert history.count[cell] == len(own)
            if len(own):
                # of the rollouts before the 20th was there
                ends = np.cumsum([sum(np.array(each[1]) == cell) for each in made])
                n_first = next((end for end in ends.tolist() if end >= 20), len(own))
                assert history.first[cell].item() == pytest.approx(own[:n_first].mean(), rel=1e-4, abs=1e-4)
                assert history.best[cell].item() == pytest.approx(own.max(), rel=1e-6)
                assert own.min() - 1e-4 <= history.recent[cell].item() <= own.max() + 1e-4
            if 0 < len(own) <= 20:
                assert history.recent[cell].item() == pytest.approx(own.mean(), rel=1e-4, abs=1e-4)

    @property_test
    @given(st.integers(0, 2**32), st.integers(1, 60))
    def test_the_order_of_the_cells_does_not_matter(self, seed, n_episodes):
        """As long as that within a cell stays, and for the first 20 not even that."""
        random = np.random.default_rng(seed)
        returns, cells = random.normal(size=n_episodes), random.integers(0, 3, n_episodes)
        order = np.argsort(cells, kind="stable")
        one, other = history_of(3, (list(returns), list(cells))), history_of(3, (list(returns[order]), list(cells[order])))
        assert columns(one) == columns(other)
        mixed = random.permutation(min(n_episodes, 20))
        one, other = history_of(1, (list(returns[:20]), [0] * len(mixed))), of_one_cell(list(returns[mixed]))
        for name, expected in columns(one).items():
            assert columns(other)[name] == pytest.approx(expected, abs=1e-6)


class TestGaps:
    # began at 2, recent mean 2 + 8 / 20, best 10
    history = of_one_cell([2.0] * 20, [10.0])

    def test_without_targets_the_best_episode_is_the_reference(self):
        assert self.history.spans(None).tolist() == pytest.approx([8])
        assert self.history.gaps(None).tolist() == pytest.approx([7.6 / 8])

    @pytest.mark.parametrize(
        ("target", "span", "gap"),
        [
            (22.0, 20.0, 19.6 / 20),
            (10.0, 8.0, 7.6 / 8),
            (2.4 - 1e-4, 0.4, 0.0),
            # reached at the start, and still
            (2.0, 0.0, 0.0),
            (-50.0, 0.0, 0.0),
        ],
    )
    def test_with_a_target(self, target, span, gap):
        assert self.history.spans(targets_of(target)).tolist() == pytest.approx([span], abs=1e-3)
        assert self.history.gaps(targets_of(target)).tolist() == pytest.approx([gap])

    @pytest.mark.parametrize(
        ("low", "high", "gap"),
        [(0.0, 10.0, 0.76), (-10.0, 10.0, 0.38), (2.4, 3.4, 1.0), (3.0, 10.0, 1.0), (-5.0, 2.0, 0.0)],
    )
    def test_with_a_range_it_does_not_matter_where_the_cell_began(self, low, high, gap):
        for first in (2.0, -100.0, 50.0):
            # the recent mean is 2.4 in each case
            history = of_one_cell([first] * 20, *[[2.4]] * 600)
            assert history.spans(targets_of(high, low=low)).tolist() == [high - low]
            assert history.gaps(targets_of(high, low=low)).tolist() == pytest.approx([gap], abs=1e-5)

    def test_a_target_that_was_reached_at_the_start_and_no_longer_is(self):
        """There is no way that it could be a share of."""
        history = of_one_cell([2.0] * 20, [0.0])
        assert history.spans(targets_of(2)).tolist() == [0]
        assert history.gaps(targets_of(2)).tolist() == [1]
        assert history.gaps(targets_of(1.5)).tolist() == [0]

    def test_of_a_cell_that_has_become_worse_is_not_more_than_one(self):
        history = of_one_cell([2.0] * 20, [-30.0] * 20)
        assert history.gaps(targets_of(10)).tolist() == [1]
        assert history.gaps(None).tolist() == [1]

    def test_of_a_cell_that_is_beyond_its_target_is_not_below_zero(self):
        assert of_one_cell([2.0] * 20, [30.0] * 100).gaps(targets_of(10)).tolist() == [0]

    @pytest.mark.parametrize(("target", "gap"), [(None, 1.0), (7.0, 0.0), (8.0, 1.0)])
    def test_where_all_episodes_were_alike(self, target, gap):
        history = of_one_cell([7.0] * 50)
        assert history.gaps(None if target is None else targets_of(target)).tolist() == [gap]

    @pytest.mark.parametrize("targets", [None, targets_of(-5, 0, 5), targets_of(-5, 0, 5, low=-9)])
    def test_of_a_cell_without_an_episode_is_one(self, targets):
        history = history_of(3, ([-5.0], [0]))
        assert history.spans(targets).tolist()[1:] == [0, 0]
        assert history.gaps(targets).tolist()[1:] == [1, 1]

    def test_of_rewards_of_either_sign(self):
        """A quarter of the way, upwards from 0 or towards 0."""
        cells = [0] * 20 + [1] * 20
        history = history_of(2, ([0.0] * 20 + [-8.0] * 20, cells), *[([2.0] * 20 + [-6.0] * 20, cells)] * 20)
        assert history.gaps(targets_of(8, 0)).tolist() == pytest.approx([0.75, 0.75], abs=1e-4)

    @property_test
    @given(st.integers(0, 2**32), st.integers(-6, 6), st.integers(-50, 50))
    def test_do_not_depend_on_the_unit_of_the_returns_or_where_they_begin(self, seed, power, shift):
        random, unit = np.random.default_rng(seed), 2.0**power
        returns, cells = random.integers(-20, 20, 60).astype(float), random.integers(0, 3, 60)
        targets = targets_of(*random.integers(-20, 40, 3))
        targets[0, 0] = targets[0, 1] - random.integers(1, 30)
        made = [(returns[:40], cells[:40]), (returns[40:], cells[40:])]
        plain = history_of(3, *((list(r), list(c)) for r, c in made))
        other = history_of(3, *((list(unit * (r + shift)), list(c)) for r, c in made))
        for reference, changed in ((None, None), (targets, unit * (targets + shift))):
            np.testing.assert_allclose(other.spans(changed), unit * plain.spans(reference), rtol=1e-3, atol=1e-4 * unit)
            np.testing.assert_allclose(other.gaps(changed), plain.gaps(reference), atol=2e-3)
            assert ((plain.gaps(reference) >= 0) & (plain.gaps(reference) <= 1)).all()


def make_env(pay: tuple[float, ...] = (1.0, 2.0), length: tuple[int, ...] = (3, 5)) -> DummyVecEnv:
    return DummyVecEnv([lambda: CountingEnv(pay=pay, length=length)] * 2)


def make_model(env: DummyVecEnv, **kwargs: Any) -> GRPO:
    """Rollouts of four times both tasks."""
    fixed: dict[str, Any] = dict(router="one_hot", router_kwargs=dict(columns=(1, 3)), merge_kl=None, split_kl=None)
    sizes: dict[str, Any] = dict(n_steps=32, batch_size=64, n_epochs=1, policy_kwargs=dict(net_arch=[4]))
    return GRPO("MlpPolicy", env, seed=0, device="cpu", **{**fixed, **sizes, **kwargs})


class InterruptAfter(BaseCallback):
    def __init__(self, n_steps: int):
        super().__init__()
        self.n_steps = n_steps

    def _on_step(self) -> bool:
        if self.n_calls == self.n_steps:
            raise KeyboardInterrupt
        return True


class TestTraining:
    """Episodes of task 0 return 3, those of task 1 return 10: one that is cut off or counted twice would be seen."""

    def check(self, model: GRPO, n_episodes: int) -> None:
        found = columns(model.score_history.episodes)
        assert found == dict(count=[n_episodes] * 2, first=[3, 10], recent=[3, 10], best=[3, 10])

    def test_every_episode_counts_once(self):
        model = make_model(make_env())
        model.learn(3 * 64)
        self.check(model, 24)
        model.learn(64, reset_num_timesteps=False)
        self.check(model, 32)
        # a training that begins anew begins with a reset, and with what is known of the cells
        model.learn(64)
        self.check(model, 40)

    @pytest.mark.parametrize("n_steps", [1, 4, 8, 31, 33, 64])
    @pytest.mark.parametrize("reset_num_timesteps", [True, False])
    def test_goes_on_after_an_interrupt(self, n_steps, reset_num_timesteps):
        model = make_model(make_env())
        with pytest.raises(KeyboardInterrupt):
            model.learn(3 * 64, callback=InterruptAfter(n_steps))
        # only complete rollouts count
        before = 8 if n_steps > 32 else 0
        assert model.score_history.episodes.count.tolist() == [before] * 2
        # the next training begins with a reset
        model.learn(64, reset_num_timesteps=reset_num_timesteps)
        self.check(model, before + 8)

    def test_is_saved_and_goes_on(self, tmp_path):
        model = make_model(make_env()).learn(3 * 64)
        model.save(tmp_path / "model")
        # the same tasks pay less
        loaded = GRPO.load(tmp_path / "model", env=make_env(pay=(0.5, 1.0)), device="cpu")
        self.check(loaded, 24)
        loaded.learn(64, reset_num_timesteps=False)
        found = columns(loaded.score_history.episodes)
        assert found["count"] == [32, 32]
        assert found["first"] == [3, 10]
        assert found["best"] == [3, 10]
        # eight episodes of half the return
        kept = 0.95**8
        assert found["recent"] == pytest.approx([1.5 + 1.5 * kept, 5 + 5 * kept], rel=1e-5)

    def test_is_that_of_this_model_where_the_file_is_loaded_into_it(self, tmp_path):
        make_model(make_env()).learn(3 * 64).save(tmp_path / "model")
        other = make_model(make_env(pay=(7.0, 7.0))).learn(64)
        assert other.score_history.episodes.best.tolist() == [21, 35]
        other.load_tensors(tmp_path / "model.zip")
        self.check(other, 24)

    def test_of_one_group_that_may_split_is_that_of_its_cells(self):
        model = make_model(make_env(), n_groups=1, max_groups=2).learn(64)
        self.check(model, 8)
