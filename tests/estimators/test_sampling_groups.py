"""Sampling groups: episodes of random lengths, told apart by plain lists; and real training, step by step."""

import numpy as np
import pytest
from estimators.episodes import Step, World, fill, plain_advantages
from estimators.played import SEED, Watch, make_env, watch_updates
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_grpo import GRPO
from sb3_grpo.estimators.sampling_groups import SamplingGroups


@st.composite
def worlds(draw):
    """A world, and in how many rollouts an episode fits."""
    n_steps, max_rollouts = draw(st.integers(1, 9)), draw(st.integers(1, 3))
    longest = draw(st.integers(1, n_steps * max_rollouts))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    return World(random, draw(st.integers(2, 4)), draw(st.integers(1, 3)), n_steps, longest), max_rollouts


def rows_of(rollout) -> list[tuple[float, ...]]:
    return [tuple(row) for row in rollout.observations.tolist()]


def handed_out(found) -> list[list[list[tuple[float, ...]]]]:
    """Rows of each trajectory of each sampling group."""
    groups: dict[int, list[list[tuple[float, ...]]]] = {}
    rows = rows_of(found.steps.rollout)
    for trajectory, group in enumerate(found.group.tolist()):
        own = [row for row, member in zip(rows, found.member.tolist(), strict=True) if member == trajectory]
        groups.setdefault(group, []).append(own)
    return list(groups.values())


class TestAgainstPlainLists:
    @settings(max_examples=60, deadline=None)
    @given(worlds(), st.lists(st.booleans(), min_size=1, max_size=6))
    def test_complete_groups_are_handed_out_once(self, drawn, resets):
        world, max_rollouts = drawn
        groups, plain = SamplingGroups(world.plain.group_size, max_rollouts), world.plain
        seen: list[tuple[float, ...]] = []
        for rollout, is_reset in enumerate(resets):
            if is_reset or rollout == 0:
                world.skip_to(groups.next_episode)
                groups.begin(world.n_envs, groups.next_episode)
                world.reset()
            found, n_unused = groups.add(*world.rollout())
            expected, n_alone = plain.hand_out()
            # the same groups of the same trajectories, each with all its steps in order
            assert sorted(map(sorted, handed_out(found))) == sorted(sorted(e.rows for e in group) for group in expected)
            assert n_unused == n_alone
            # each step once, now and later
            rows = rows_of(found.steps.rollout)
            assert len(set(rows)) == len(rows)
            assert not set(rows) & set(seen)
            seen += rows
            # what is said of the trajectories
            flat = {episode.rows[0]: episode for group in expected for episode in group}
            firsts = [rows[place] for place in np.flatnonzero(found.steps.time == 0)]
            assert found.lengths.tolist() == [len(flat[first].steps) for first in firsts]
            assert found.truncated.tolist() == [flat[first].steps[-1].truncated for first in firsts]
            assert found.member.tolist() == np.repeat(np.arange(len(firsts)), found.lengths).tolist()
            assert sorted(set(found.group.tolist())) == list(range(len(expected)))
            assert found.steps.time.tolist() == [row[2] for row in rows]
            rewards = [step.reward for first in firsts for step in flat[first].steps]
            assert found.steps.rewards.tolist() == rewards
            # the first number that no environment has had: no episode joins a group that exists
            assert groups.next_episode == world.next_number.max()
            world.skip_to(groups.next_episode)

    @settings(max_examples=40, deadline=None)
    @given(worlds(), st.integers(1, 6))
    def test_no_step_is_lost(self, drawn, n_rollouts):
        world, max_rollouts = drawn
        groups = SamplingGroups(world.plain.group_size, max_rollouts)
        groups.begin(world.n_envs, 0)
        world.reset()
        n_seen = n_handed_out = n_left_out = 0
        for _ in range(n_rollouts):
            found, n_unused = groups.add(*world.rollout())
            world.skip_to(groups.next_episode)
            world.plain.hand_out()
            n_seen, n_left_out = n_seen + world.n_envs * world.n_steps, n_left_out + n_unused
            n_handed_out += len(found.member)
            n_kept = sum(len(episode.steps) for episode in world.plain.episodes)
            assert n_handed_out + n_left_out + n_kept == n_seen

    def test_long_runs_hand_out_most_steps(self):
        # the control of the tests above: with episodes much shorter than a rollout little is kept or left out
        world = World(np.random.default_rng(0), 4, 2, 60, 8)
        groups = SamplingGroups(4, 1)
        groups.begin(8, 0)
        world.reset()
        n_handed_out = 0
        for _ in range(5):
            n_handed_out += len(groups.add(*world.rollout())[0].member)
            world.skip_to(groups.next_episode)
        assert n_handed_out > 0.85 * 5 * 8 * 60


def steps(env: int, lengths: list[int], *, cut: bool = False) -> list[Step]:
    """
    Steps of an environment; observations are (environment, episode, time).

    :param env: which
    :param lengths: of its episodes
    :param cut: whether the rollout cuts off the last one
    """
    return [
        Step((float(env), float(episode), float(time)), 1.0, time == length - 1 and not (cut and episode == len(lengths) - 1))
        for episode, length in enumerate(lengths)
        for time in range(length)
    ]


class TestByHand:
    def test_members_wait_for_the_last_one(self):
        groups = SamplingGroups(2, 2)
        groups.begin(4, 0)
        # the second environment is in its first episode still; the second start does not wait for the first
        first = [steps(0, [2, 1]), steps(1, [3], cut=True), steps(2, [3]), steps(3, [3])]
        found, n_unused = groups.add(*fill(first))
        assert handed_out(found) == [[[(2, 0, 0), (2, 0, 1), (2, 0, 2)], [(3, 0, 0), (3, 0, 1), (3, 0, 2)]]]
        # the episode number 1 of the first environment has no other to be compared with, but one may be running
        assert n_unused == 1
        assert groups.next_episode == 3
        second = [steps(0, [3], cut=True), [Step((1, 0, 3), 1.0, True), *steps(1, [2], cut=True)]]
        second += [steps(2, [3], cut=True), steps(3, [3], cut=True)]
        found, n_unused = groups.add(*fill(second))
        assert handed_out(found) == [[[(0, 0, 0), (0, 0, 1)], [(1, 0, 0), (1, 0, 1), (1, 0, 2), (1, 0, 3)]]]
        assert n_unused == 0

    def test_episodes_are_numbered_alike_after_a_rollout(self):
        groups = SamplingGroups(2, 1)
        groups.begin(2, 5)
        assert groups.next_episode == 6
        groups.add(*fill([steps(0, [1, 1, 1, 1]), steps(1, [4], cut=True)]))
        # the first environment has begun number 5, 6, 7, 8 and, with its reset, 9
        assert groups.next_episode == 10
        groups.add(*fill([steps(0, [4], cut=True), steps(1, [4])]))
        # the second one has begun number 10
        assert groups.next_episode == 11

    def test_begin_forgets(self):
        groups = SamplingGroups(2, 2)
        groups.begin(2, 0)
        groups.add(*fill([steps(0, [2]), steps(1, [2], cut=True)]))
        groups.begin(2, groups.next_episode)
        again = [[Step((9.0, 9.0, step.row[2]), 1.0, step.done) for step in steps(env, [2])] for env in range(2)]
        found, n_unused = groups.add(*fill(again))
        assert handed_out(found) == [[[(9, 9, 0), (9, 9, 1)]] * 2]
        assert n_unused == 0

    def test_begin_forgets_the_members_that_wait(self):
        groups = SamplingGroups(3, 1)
        groups.begin(3, 0)
        # environment 0 has ended number 1, in which environment 1 is
        groups.add(*fill([steps(0, [1, 1, 1], cut=True), steps(1, [1, 2], cut=True), steps(2, [3], cut=True)]))
        groups.begin(3, 0)
        # now its number 1 has no other
        found, n_unused = groups.add(*fill([steps(0, [1, 1, 1], cut=True), *(steps(env, [3], cut=True) for env in (1, 2))]))
        assert handed_out(found) == []
        assert n_unused == 1

    @pytest.mark.parametrize("max_rollouts", [1, 2])
    def test_too_long_episodes(self, max_rollouts):
        groups = SamplingGroups(2, max_rollouts)
        groups.begin(2, 0)
        short = steps(0, [1, 1, 1])
        for _ in range(max_rollouts):
            groups.add(*fill([short, steps(1, [3], cut=True)]))
        rule = f"`n_steps` must be at least the length of the longest episode .or of {max_rollouts} rollouts"
        with pytest.raises(ValueError, match=rf"{rule}.* environment 1 has {3 * max_rollouts + 3} steps so far; got 3"):
            groups.add(*fill([short, steps(1, [3], cut=True)]))

    def test_the_longest_that_is_allowed(self):
        groups = SamplingGroups(2, 2)
        groups.begin(2, 0)
        groups.add(*fill([steps(env, [3], cut=True) for env in range(2)]))
        found, _ = groups.add(*fill([[Step((env, 0, 3 + t), 1.0, t == 2) for t in range(3)] for env in range(2)]))
        assert found.lengths.tolist() == [6, 6]

    def test_another_number_of_environments(self):
        groups = SamplingGroups(2, 1)
        groups.begin(4, 0)
        with pytest.raises(RuntimeError, match=r"begin\(\) was called for 4 environments, the rollout has 2"):
            groups.add(*fill([steps(0, [2]), steps(1, [2])]))


def train(env, n_rollouts, **kwargs):
    """Train, and return what the updates should have got."""
    options = dict(n_steps=8, n_epochs=1, batch_size=6, gamma=0.9, seed=SEED, device="cpu", group_size=3)
    watch = Watch(3)
    model = GRPO("MlpPolicy", env, **{**options, **kwargs})
    model.learn(n_rollouts * model.n_steps * env.num_envs, watch)
    return model, watch


def assert_updates(updates, watch, estimator="outcome"):
    """The steps of the complete sampling groups, once each and in order, with their advantages."""
    assert len(updates) == sum(bool(groups) for groups, _ in watch.expected)
    for update, groups in zip(updates, [groups for groups, _ in watch.expected if groups], strict=True):
        rows = rows_of(update)
        firsts = {episode.rows[0]: episode for group in groups for episode in group}
        assert rows == [row for first in rows if first in firsts for row in firsts[first].rows]
        assert len(rows) == sum(len(episode.steps) for episode in firsts.values())
        advantages = plain_advantages(groups, estimator, 0.9)
        np.testing.assert_allclose(update.advantages, [advantages[row] for row in rows], rtol=1e-4, atol=1e-5)
    # otherwise this would hold of too little
    assert sum(len(groups) for groups, _ in watch.expected) > 3


class TestTraining:
    """What environments show, and what the updates get."""

    @pytest.mark.parametrize("estimator", ["outcome", "time_step"])
    def test_in_one_process(self, monkeypatch, estimator):
        updates = watch_updates(monkeypatch)
        _, watch = train(make_env(vec_env_cls=DummyVecEnv), 5, advantage_estimator=estimator)
        assert_updates(updates, watch, estimator)

    def test_of_single_rewards(self, monkeypatch):
        updates = watch_updates(monkeypatch)
        _, watch = train(make_env(), 5, advantage_estimator="process")
        assert_updates(updates, watch, "process")

    def test_in_subprocesses(self, monkeypatch):
        updates = watch_updates(monkeypatch)
        env = make_env(vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
        try:
            _, watch = train(env, 4, advantage_estimator="outcome")
        finally:
            env.close()
        assert_updates(updates, watch)

    def test_of_several_rollouts(self, monkeypatch):
        updates = watch_updates(monkeypatch)
        _, watch = train(make_env(), 9, advantage_estimator="outcome", n_steps=3, estimator_kwargs={"max_rollouts": 3})
        assert_updates(updates, watch)
        # some were carried over: they began in an earlier rollout than the one whose end handed them out
        n_observed = [rows_of(update)[0][4] for update in updates]
        assert any(first <= 3 * place for place, first in enumerate(n_observed))

    @pytest.mark.parametrize("n_steps", [7, 8])
    def test_all_go_on_with_the_same_number(self, n_steps):
        _, watch = train(make_env(), 6, advantage_estimator="outcome", n_steps=n_steps)
        for before, after in zip(watch.begun, watch.begun[1:], strict=False):
            # the first number that nobody has had
            following = max(number for numbers in before for number in numbers) + 1
            assert {numbers[0] for numbers in after if numbers} == {following}
        assert len(watch.begun) == 6

    def test_the_next_training_goes_on(self, monkeypatch):
        updates = watch_updates(monkeypatch)
        model, watch = train(make_env(), 3, advantage_estimator="outcome")
        model.learn(3 * 8 * 6, watch, reset_num_timesteps=False)
        assert len(watch.expected) == 6
        assert_updates(updates, watch)

    def test_the_next_training_begins_anew(self, monkeypatch):
        updates = watch_updates(monkeypatch)
        model, first = train(make_env(), 3, advantage_estimator="outcome")
        second = Watch(3)
        model.learn(3 * 8 * 6, second)
        first.expected += second.expected
        assert_updates(updates, first)
        # with episodes that the first one has not had
        assert min(second.begun[0][0]) > max(number for numbers in first.begun[-1] for number in numbers)

    def test_after_a_rollout_that_was_stopped(self, monkeypatch):
        updates = watch_updates(monkeypatch)
        model, _ = train(make_env(), 0, advantage_estimator="outcome")
        first, second = Watch(3, stop_at=3 * 8 + 5), Watch(3)
        model.learn(100 * 8 * 6, first)
        assert len(first.expected) == 3
        model.learn(3 * 8 * 6, second, reset_num_timesteps=False)
        first.expected += second.expected
        assert_updates(updates, first)

    def test_of_a_loaded_model_whose_environments_are_not_to_be_reset(self, monkeypatch, tmp_path):
        env = make_env()
        model, _ = train(env, 2, advantage_estimator="outcome")
        model.save(tmp_path / "model")
        loaded, updates, watch = GRPO.load(tmp_path / "model", env, force_reset=False), watch_updates(monkeypatch), Watch(3)
        loaded.learn(4 * 8 * 6, watch, reset_num_timesteps=False)
        assert_updates(updates, watch)
