"""Estimators without a critic: a rollout by hand, and plain loops over random episodes."""

import warnings

import numpy as np
import pytest
import torch as th
from estimators.episodes import Episode, Step, World, fill, plain_advantages, plain_returns
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_grpo.estimators import ESTIMATORS, CriticFreeEstimator, Experience

NAMES = ["outcome", "process", "time_step"]
HALF = 0.5**0.5


def make(name, group_size=2, gamma=0.5, **options) -> CriticFreeEstimator:
    estimator = ESTIMATORS[name](group_size, gamma, **options)
    assert isinstance(estimator, CriticFreeEstimator)
    return estimator


def played(env: int, *episodes: list[float], cut: bool = False, truncated: tuple[int, ...] = ()) -> list[Step]:
    """
    Steps of an environment; observations are (environment, episode, time).

    :param env: which
    :param episodes: rewards of each
    :param cut: whether the rollout cuts off the last one
    :param truncated: which ones a time limit ends
    """
    found = []
    for number, rewards in enumerate(episodes):
        for time, reward in enumerate(rewards):
            done = time == len(rewards) - 1 and not (cut and number == len(episodes) - 1)
            found.append(Step((float(env), float(number), float(time)), reward, done, done and number in truncated))
    return found


def estimate(estimator: CriticFreeEstimator, *rollout: list[Step]) -> Experience:
    estimator.begin(len(rollout), 0)
    return estimator(*fill(list(rollout)))


def rows_of(experience: Experience) -> list[tuple[float, ...]]:
    assert isinstance(experience.rollout.observations, th.Tensor)
    return [tuple(row) for row in experience.rollout.observations.tolist()]


class TestByHand:
    # sampling groups: (1) and (3, 5); (2, 2, 2) and (6). The episode (9) is not over: it stays out, and its group waits
    rollout = (played(0, [1], [2, 2, 2]), played(1, [3, 5], [6], [9], cut=True))
    order: tuple[tuple[float, ...], ...] = ((0, 0, 0), (1, 0, 0), (1, 0, 1), (0, 1, 0), (0, 1, 1), (0, 1, 2), (1, 1, 0))
    # 3 + 5 / 2 = 5.5; 2 + 2 / 2 + 2 / 4 = 3.5, 2 + 2 / 2 = 3
    returns: tuple[float, ...] = (1, 5.5, 5, 3.5, 3, 2, 6)

    def assert_advantages(self, experience, expected, divisors=None):
        rows = rows_of(experience)
        assert sorted(rows) == sorted(self.order)
        for found in (experience.rollout.advantages, experience.outcome.advantages):
            np.testing.assert_allclose(found, [dict(zip(self.order, expected, strict=True))[row] for row in rows], rtol=1e-6)
        if divisors is None:
            assert experience.divisors is None
        else:
            wanted = [dict(zip(self.order, divisors, strict=True))[row] for row in rows]
            np.testing.assert_allclose(experience.divisors, wanted, rtol=1e-6)

    # Differences from the means 3.25 and 4.75 are 2.25 and 1.25. The sample deviation of m - d, m + d is d * sqrt(2); the
    # mean square of all four is (2.25^2 + 1.25^2) / 2 = 3.3125
    @pytest.mark.parametrize(
        ("scale", "first", "second", "divisors"),
        [
            ("group", HALF, HALF, (2.25 / HALF, 1.25 / HALF)),
            ("batch", 2.25 / 3.3125**0.5, 1.25 / 3.3125**0.5, (3.3125**0.5, 3.3125**0.5)),
            ("none", 2.25, 1.25, None),
        ],
    )
    def test_outcome(self, scale, first, second, divisors):
        experience = estimate(make("outcome", scale=scale), *self.rollout)
        expected = [-first, first, first, -second, -second, -second, second]
        self.assert_advantages(experience, expected, divisors and [divisors[0]] * 3 + [divisors[1]] * 4)

    def test_process(self):
        # rewards 1, 3, 5: mean 3, sample variance (4 + 0 + 4) / 2 = 4, so they become -1, 0, 1;
        # 2, 2, 2, 6: mean 3, sample variance (1 + 1 + 1 + 9) / 3 = 4, so they become -1/2, -1/2, -1/2, 3/2
        sums = [-1, 0 + 1 / 2, 1, -1 / 2 - 1 / 4 - 1 / 8, -1 / 2 - 1 / 4, -1 / 2, 3 / 2]
        self.assert_advantages(estimate(make("process"), *self.rollout), sums, [2.0] * 7)

    def test_process_without_discount_and_scale(self):
        # differences -2, 0, 2 and -1, -1, -1, 3
        self.assert_advantages(estimate(make("process", gamma=1.0, scale="none"), *self.rollout), [-2, 2, 2, -3, -2, -1, 3])

    def test_time_step(self):
        # at the time 0 as outcome; later there is one member left
        experience = estimate(make("time_step"), *self.rollout)
        first, second = 2.25 / HALF, 1.25 / HALF
        self.assert_advantages(experience, [-HALF, HALF, 0, -HALF, 0, 0, HALF], [first, first, 0, second, 0, 0, second])

    @pytest.mark.parametrize("name", NAMES)
    def test_what_else_is_handed_out(self, name):
        experience = estimate(make(name), *self.rollout)
        rows, returns = rows_of(experience), dict(zip(self.order, self.returns, strict=True))
        assert experience.rollout.returns.tolist() == experience.outcome.returns.tolist() == [returns[row] for row in rows]
        rewards = {step.row: step.reward for steps in self.rollout for step in steps}
        assert experience.outcome.paid.tolist() == [rewards[row] for row in rows]
        # the cell of step t of the rollout is t % 2
        cells = {step.row: t % 2 for steps in self.rollout for t, step in enumerate(steps)}
        assert experience.outcome.cells.tolist() == [cells[row] for row in rows]
        # sampling groups have nothing in common but the policy
        assert experience.parts.tolist() == [row[1] for row in rows]
        assert experience.figures == {
            "groups/sampling_groups": 2,
            "groups/degenerate_fraction": 0.0,
            "groups/unused_fraction": 0.0,
        }
        assert experience.rollout.trajectories is None

    def test_three_members(self):
        # 1 + 2 / 2 = 2, 3 + 2 / 2 = 4, 4 + 4 / 2 = 6: mean 4, deviation 2
        rollout = played(0, [1, 2]), played(1, [3, 2]), played(2, [4, 4])
        experience = estimate(make("outcome", 3), *rollout)
        assert dict(zip(rows_of(experience), experience.rollout.advantages.tolist(), strict=True)) == {
            step.row: advantage for steps, advantage in zip(rollout, [-1, 0, 1], strict=True) for step in steps
        }
        # at time 1 they have 2, 2, 4 to go: mean 8/3, sample variance (4/9 + 4/9 + 16/9) / 2 = 4/3
        experience = estimate(make("time_step", 3), *rollout)
        late = [a for row, a in zip(rows_of(experience), experience.rollout.advantages.tolist(), strict=True) if row[2] == 1]
        np.testing.assert_allclose(late, np.array([-2, -2, 4]) / 3 / (4 / 3) ** 0.5, rtol=1e-6)


class TestOptions:
    @pytest.mark.parametrize(
        ("aggregation", "shares"),
        # four trajectories of 1, 3, 2, 1 steps: the mean length is 7 / 4; a rollout has 4 steps
        [("trajectory", {1: 7 / 4, 2: 7 / 8, 3: 7 / 12}), ("constant", dict.fromkeys((1, 2, 3), 7 / 16)), ("step", None)],
    )
    def test_aggregation(self, aggregation, shares):
        experience = estimate(make("outcome", aggregation=aggregation), *TestByHand.rollout)
        if shares is None:
            assert experience.rollout.shares is None
            return
        lengths: dict[tuple[float, ...], int] = {(0, 0): 1, (1, 0): 2, (0, 1): 3, (1, 1): 1}
        assert experience.rollout.shares is not None
        np.testing.assert_allclose(
            experience.rollout.shares, [shares[lengths[row[:2]]] for row in rows_of(experience)], rtol=1e-6
        )

    def test_ratio(self):
        experience = estimate(make("outcome", ratio="trajectory"), *TestByHand.rollout)
        assert experience.rollout.trajectories is not None
        numbers = experience.rollout.trajectories.tolist()
        pairs = set(zip(numbers, (row[:2] for row in rows_of(experience)), strict=True))
        assert sorted(number for number, _ in pairs) == [0, 1, 2, 3]
        assert len({episode for _, episode in pairs}) == 4

    # group 0: returns 2, 2; group 1: 1, 3
    alike = (played(0, [2], [1]), played(1, [2], [3]))

    def test_groups_that_are_alike(self):
        kept, skipped = (estimate(make("outcome", alike=alike), *self.alike) for alike in ("keep", "skip"))
        assert [row[1] for row in rows_of(kept)] == [0, 0, 1, 1]
        np.testing.assert_allclose(kept.rollout.advantages, [0, 0, -HALF, HALF], rtol=1e-6)
        assert [row[1] for row in rows_of(skipped)] == [1, 1]
        np.testing.assert_allclose(skipped.rollout.advantages, [-HALF, HALF], rtol=1e-6)
        for experience in (kept, skipped):
            assert experience.figures["groups/degenerate_fraction"] == 0.5
            assert experience.figures["groups/sampling_groups"] == 2
            assert experience.figures["groups/unused_fraction"] == 0
            columns = (experience.parts, experience.divisors, experience.rollout.shares, experience.outcome.paid)
            assert {len(column) for column in columns if column is not None} == {len(rows_of(experience))}

    def test_all_groups_alike(self):
        experience = estimate(make("outcome", alike="skip"), played(0, [2], [1]), played(1, [2], [1]))
        assert rows_of(experience) == []
        assert experience.figures["groups/degenerate_fraction"] == 1.0

    @pytest.mark.parametrize("ratio", ["step", "trajectory"])
    def test_truncated(self, ratio):
        # returns 1, 3 (two steps, ended by a time limit), 8: mean 4, sample variance (9 + 1 + 16) / 2 = 13
        rollout = played(0, [1], [0], cut=True), played(1, [2, 2], truncated=(0,)), played(2, [8], [5], cut=True)
        options = dict(ratio=ratio, aggregation="trajectory")
        kept, masked = (estimate(make("outcome", 3, truncated=how, **options), *rollout) for how in ("keep", "mask"))
        assert rows_of(kept) == [(0, 0, 0), (1, 0, 0), (1, 0, 1), (2, 0, 0)]
        np.testing.assert_allclose(kept.rollout.advantages, np.array([-3, -1, -1, 4]) / 13**0.5, rtol=1e-6)
        assert rows_of(masked) == [(0, 0, 0), (2, 0, 0)]
        # they count for mean and deviation
        np.testing.assert_allclose(masked.rollout.advantages, np.array([-3, 4]) / 13**0.5, rtol=1e-6)
        # the mean length of those that are learnt from is 1
        assert masked.rollout.shares is not None
        assert masked.rollout.shares.tolist() == [1, 1]
        if ratio == "trajectory":
            assert masked.rollout.trajectories is not None
            assert masked.rollout.trajectories.tolist() == [0, 1]
        assert masked.figures["groups/sampling_groups"] == 1

    def test_steps_that_are_left_out(self):
        # environment 1 is in its first episode when the others are to go on with number 3: it will have no number 1
        first = played(0, [1], [2, 2], [0], cut=True), played(1, [3, 3, 3, 3], cut=True)
        second = played(2, [1, 1, 1, 1]), played(3, [2, 2, 2, 2])
        experience = estimate(make("outcome"), *first, *second)
        assert {row[:2] for row in rows_of(experience)} == {(2, 0), (3, 0)}
        # 8 steps are used, 2 are left out, and the others wait
        assert experience.figures["groups/unused_fraction"] == 2 / 10

    @pytest.mark.parametrize("name", NAMES)
    def test_nothing_complete(self, name):
        rollout = played(0, [1, 1], cut=True), played(1, [1, 2], cut=True)
        experience = estimate(make(name, alike="skip", truncated="mask", ratio="trajectory"), *rollout)
        assert rows_of(experience) == []
        assert len(experience.parts) == 0
        assert set(experience.figures.values()) == {0}


class TestConstantRewards:
    rollout = (played(0, [1, 1, 1], [2]), played(1, [1], [2, 4, 2]))

    def test_get_the_advantages_of_outcome(self):
        process, outcome = make("process"), make("outcome")
        expected = estimate(outcome, *self.rollout)
        with pytest.warns(UserWarning, match=r"single steps, which are all alike in 1 of 2 sampling groups.*\"outcome\""):
            found = estimate(process, *self.rollout)
        assert rows_of(found) == rows_of(expected)
        assert found.divisors is not None
        assert expected.divisors is not None
        constant = found.parts == 0
        assert constant.sum() == 4
        np.testing.assert_array_equal(found.outcome.advantages[constant], expected.outcome.advantages[constant])
        np.testing.assert_array_equal(found.divisors[constant], expected.divisors[constant])
        # rewards 2, 2, 4, 2: mean 2.5, variance (3 / 4 + 9 / 4) / 3 = 1; sums -1/2; -1/2 + 3/4 - 1/8, 3/2 - 1/4, -1/2
        np.testing.assert_allclose(found.outcome.advantages[~constant], [-1 / 2, 1 / 8, 5 / 4, -1 / 2], rtol=1e-6)

    def test_are_told_once(self):
        process = make("process")
        with pytest.warns(UserWarning, match="sampling groups"):
            estimate(process, *self.rollout)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            estimate(process, *self.rollout)

    @pytest.mark.parametrize("name", ["outcome", "time_step"])
    def test_are_nothing_special_elsewhere(self, name):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert estimate(make(name), *self.rollout).rollout.advantages.abs().max() > 0.5


class TestAgainstPlainLoops:
    @settings(max_examples=90, deadline=None)
    @given(
        st.sampled_from(NAMES),
        st.sampled_from(["group", "batch", "none"]),
        st.sampled_from(["trajectory", "step", "constant"]),
        st.sampled_from([(0.9, None), (0.0, None), (1.0, [0.0, 1.0, 3.0]), (0.5, [0.0, 0.0, 1.0])]),
        st.integers(0, 10**6),
        st.integers(2, 3),
        st.integers(3, 8),
    )
    def test_of_random_episodes(self, name, scale, aggregation, rewards, seed, group_size, n_steps):
        gamma, paid = rewards
        world = World(np.random.default_rng(seed), group_size, 2, n_steps, longest=n_steps, rewards=paid)
        estimator = make(name, group_size, gamma, scale=scale, aggregation=aggregation)
        estimator.begin(world.n_envs, 0)
        world.reset()
        for _ in range(3):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # process may have groups of constant rewards
                experience = estimator(*world.rollout())
            world.skip_to(estimator.next_episode)
            groups, n_alone = world.plain.hand_out()
            rows, episodes = rows_of(experience), {e.rows[0][:2]: e for group in groups for e in group}
            assert len(rows) == sum(len(episode.steps) for episode in episodes.values())
            advantages = plain_advantages(groups, name, gamma, scale)
            np.testing.assert_allclose(experience.outcome.advantages, [advantages[row] for row in rows], rtol=1e-6, atol=1e-6)
            returns = {
                row: value for e in episodes.values() for row, value in zip(e.rows, plain_returns(e, gamma), strict=True)
            }
            np.testing.assert_allclose(experience.outcome.returns, [returns[row] for row in rows], rtol=1e-6, atol=1e-6)
            assert experience.figures["groups/unused_fraction"] == pytest.approx(n_alone / max(1, n_alone + len(rows)))
            if rows:
                self.assert_aggregated(experience, list(episodes.values()), aggregation, n_steps)

    def assert_aggregated(self, experience: Experience, episodes: list[Episode], aggregation: str, n_steps: int) -> None:
        """The mean of shares times losses, where the loss of a step is a number that its observation names."""
        losses = {row: float(np.sin(sum(row))) for episode in episodes for row in episode.rows}
        own = [[losses[row] for row in episode.rows] for episode in episodes]
        wanted = {
            "trajectory": np.mean([np.mean(each) for each in own]),
            "step": np.mean([loss for each in own for loss in each]),
            "constant": np.mean([sum(each) / n_steps for each in own]),
        }
        shares = 1.0 if experience.rollout.shares is None else experience.rollout.shares.numpy()
        found = (shares * np.array([losses[row] for row in rows_of(experience)])).mean()
        np.testing.assert_allclose(found, wanted[aggregation], atol=1e-6)
