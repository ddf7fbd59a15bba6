"""Recording: rewards and episodes of a rollout, against a plain loop over the environments."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecNormalize
from tiny_envs import CountingEnv

from sb3_grpo import GRPO
from sb3_grpo.recording import EndedEpisodes, RolloutRecorder

N_STEPS = 4
# episodes that end in the middle of a rollout, with its end, and after several
VARIETY: list[dict[str, Any]] = [
    dict(pay=(1.0, -2.0), length=(3, 5)),
    dict(pay=(0.5, 4.0), length=(4, 1)),
    dict(pay=(10.0, 20.0), length=(9, 9)),
]


def make_env(variety: Sequence[dict[str, Any]] = VARIETY) -> VecEnv:
    return DummyVecEnv([partial(CountingEnv, **kwargs) for kwargs in variety])


def make_model(env: VecEnv) -> A2C:
    return A2C("MlpPolicy", env, n_steps=N_STEPS, policy_kwargs=dict(net_arch=[4]), seed=0, device="cpu")


class Look(BaseCallback):
    """
    Keep what a function returns at the end of each rollout.

    :param look: called with the rollout buffer
    """

    def __init__(self, look: Callable[[Any], Any]):
        super().__init__()
        self.look = look
        self.seen: list[Any] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.seen.append(self.look(self.locals["rollout_buffer"]))


def looking(recorder: RolloutRecorder) -> Look:
    return Look(lambda buffer: recorder.episodes(N_STEPS))


def rows(episodes: EndedEpisodes) -> list[tuple[int, float, int]]:
    """Step, return and length of each episode."""
    return list(zip(*(column.tolist() for column in episodes[:3]), strict=True))


class PlainLoop:
    """The same environments, stepped by hand."""

    def __init__(self, variety: Sequence[dict[str, Any]] = VARIETY) -> None:
        self.envs = [CountingEnv(**kwargs) for kwargs in variety]
        self.reset()

    def reset(self) -> None:
        for env in self.envs:
            env.reset()
        self.rewards: list[list[float]] = [[] for _ in self.envs]

    def rollout(self) -> list[tuple[int, float, int]]:
        found = []
        for step in range(N_STEPS):
            for index, env in enumerate(self.envs):
                _, reward, done, _, _ = env.step(0)
                self.rewards[index].append(reward)
                if done:
                    found.append((index * N_STEPS + step, sum(self.rewards[index]), len(self.rewards[index])))
                    env.reset()
                    self.rewards[index] = []
        return found


class TestEpisodes:
    def test_are_those_of_a_plain_loop(self):
        recorder, plain = RolloutRecorder(), PlainLoop()
        look = looking(recorder)
        make_model(make_env()).learn(10 * N_STEPS * 3, callback=[recorder, look])
        expected = [plain.rollout() for _ in range(10)]
        assert [rows(episodes) for episodes in look.seen] == expected
        # one of each kind: none in a rollout, several in it, longer than it
        lengths = [[length for *_, length in found] for found in expected]
        assert min(map(len, lengths)) < max(map(len, lengths))
        assert {1, 3, 4, 5, 9} == {length for found in lengths for length in found}

    def test_by_hand(self):
        recorder = RolloutRecorder()
        look = looking(recorder)
        make_model(make_env(variety=[dict(pay=(2.0,), length=(3,))] * 2)).learn(3 * N_STEPS * 2, callback=[recorder, look])
        found = [rows(episodes) for episodes in look.seen]
        assert found == [
            [(2, 6.0, 3), (6, 6.0, 3)],
            [(1, 6.0, 3), (5, 6.0, 3)],
            [(0, 6.0, 3), (4, 6.0, 3), (3, 6.0, 3), (7, 6.0, 3)],
        ]

    def test_span_several_calls_of_learn(self):
        env, recorder, plain = make_env(), RolloutRecorder(), PlainLoop()
        look, model = looking(recorder), make_model(env)
        for _ in range(6):
            model.learn(N_STEPS * 3, callback=[recorder, look], reset_num_timesteps=False)
        assert [rows(episodes) for episodes in look.seen] == [plain.rollout() for _ in range(6)]

    def test_a_reset_cuts_them_off(self):
        recorder, plain = RolloutRecorder(), PlainLoop()
        look, model = looking(recorder), make_model(make_env())
        expected = []
        for _ in range(6):
            model.learn(N_STEPS * 3, callback=[recorder, look])
            expected.append(plain.rollout())
            plain.reset()
        assert [rows(episodes) for episodes in look.seen] == expected
        # control: 9 steps in a row are never played
        assert 9 not in {length for found in expected for *_, length in found}

    def test_whose_beginning_was_not_seen_are_left_out(self):
        recorder, plain, model = RolloutRecorder(), PlainLoop(), make_model(make_env())
        look = looking(recorder)
        model.learn(N_STEPS * 3)
        expected = [plain.rollout() for _ in range(4)]
        # those that run on: 1 step of the first environment, none of the second and 4 of the third
        begun = [bool(rewards) for rewards in plain_after_one_rollout()]
        assert begun == [True, False, True]
        model.learn(3 * N_STEPS * 3, callback=[recorder, look], reset_num_timesteps=False)
        for index, unseen in enumerate(begun):
            own = [row for found in expected[1:] for row in found if row[0] // N_STEPS == index]
            seen = [row for found in look.seen for row in rows(found) if row[0] // N_STEPS == index]
            assert seen == own[unseen:]

    def test_of_another_model_are_none_of_its_business(self):
        recorder, one, other = RolloutRecorder(), make_model(make_env()), make_model(make_env())
        look = looking(recorder)
        one.learn(N_STEPS * 3, callback=recorder)
        # begins with a reset
        other.learn(N_STEPS * 3, callback=[recorder, look])
        assert rows(look.seen[0]) == PlainLoop().rollout()
        # the episodes that the first model was in have not been followed since
        one.learn(N_STEPS * 3, callback=[recorder, look], reset_num_timesteps=False)
        assert {step // N_STEPS for step in look.seen[1].steps} <= {0, 1}
        assert rows(look.seen[1])[0][1:] != (9 * 10.0, 9)

    def test_of_another_number_of_environments(self):
        recorder, model = RolloutRecorder(), make_model(make_env())
        look = looking(recorder)
        model.learn(N_STEPS * 3, callback=recorder)
        loaded = make_model(make_env(variety=VARIETY[:2]))
        loaded.learn(N_STEPS * 2, callback=[recorder, look])
        assert rows(look.seen[0]) == PlainLoop(VARIETY[:2]).rollout()

    def test_of_a_rollout_that_was_not_seen_as_a_whole_are_none(self):
        recorder = RolloutRecorder()
        make_model(make_env()).learn(N_STEPS * 3, callback=recorder)
        assert len(recorder.episodes(N_STEPS).steps) > 0
        empty = recorder.episodes(N_STEPS + 1)
        assert [len(column) for column in empty] == [0, 0, 0, 0]
        # an index, also where nothing is to be looked up
        assert np.arange(5)[empty.steps].tolist() == []


def plain_after_one_rollout() -> list[list[float]]:
    """Rewards of the episodes that are going on."""
    plain = PlainLoop()
    plain.rollout()
    return plain.rewards


class TestReturnsAreMonitors:
    """``VecNormalize`` divides the rewards that the algorithm gets."""

    def record(self, env: VecEnv) -> tuple[np.ndarray, np.ndarray]:
        """
        :return: returns of the episodes, and rewards of the last rollout
        """
        recorder = RolloutRecorder()
        look = looking(recorder)
        model = make_model(VecNormalize(env, norm_obs=False, gamma=0.9))
        model.learn(8 * N_STEPS * env.num_envs, callback=[recorder, look])
        rewards = recorder.rewards(N_STEPS)
        assert rewards is not None
        return np.concatenate([found.returns for found in look.seen]), rewards

    @pytest.mark.parametrize("monitor", [Monitor, VecMonitor])
    def test_with_monitor(self, monitor):
        variety = [dict(pay=(7.0,), length=(3,))] * 2
        if monitor is Monitor:
            env: VecEnv = DummyVecEnv([lambda: Monitor(CountingEnv(pay=(7.0,), length=(3,)))] * 2)
        else:
            env = VecMonitor(make_env(variety=variety))
        returns, rewards = self.record(env)
        assert len(returns) == 20
        assert returns.tolist() == [21.0] * 20
        # the rewards are those that the algorithm got
        assert (rewards < 6).all()

    def test_without_they_are_sums_of_what_the_algorithm_got(self):
        returns, _ = self.record(make_env(variety=[dict(pay=(7.0,), length=(3,))] * 2))
        assert len(returns) == 20
        assert len(set(returns.round(3))) > 5
        assert (returns < 18).all()


class CutEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Ends every episode by a time limit of two steps, where SB3 adds the value of what would have come."""

    n_steps = 0

    def reset(self, **kwargs: Any) -> Any:
        self.n_steps = 0
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        obs, reward, _, _, info = super().step(action)
        self.n_steps += 1
        return obs, reward, False, self.n_steps == 2, info


def make_cut_env(pay: float) -> CutEnv:
    return CutEnv(CountingEnv(pay=(pay,), length=(9,)))


class TestRewards:
    def test_are_those_of_the_environments(self):
        recorder = RolloutRecorder()
        found, stored = Look(lambda buffer: recorder.rewards(6)), Look(lambda buffer: buffer.rewards.T.copy())
        env = DummyVecEnv([partial(make_cut_env, pay) for pay in (1.0, 5.0)])
        model = GRPO("MlpPolicy", env, n_steps=6, batch_size=12, n_epochs=1, n_groups=1, seed=0, device="cpu")
        assert recorder.rewards(6) is None
        model.learn(24, callback=[recorder, found, stored])
        for rewards in found.seen:
            assert rewards.tolist() == [[1.0] * 6, [5.0] * 6]
        # control: the buffer has others where the time limit ends an episode
        for rewards in stored.seen:
            assert [row.tolist() for row in rewards[:, ::2]] == [[1.0] * 3, [5.0] * 3]
            assert (rewards[:, 1::2] != [[1.0], [5.0]]).all()

    def test_of_an_incomplete_rollout_are_none(self):
        """A callback that has been added later, or another number of steps."""
        recorder = RolloutRecorder()
        env = DummyVecEnv([CountingEnv] * 2)
        GRPO("MlpPolicy", env, n_steps=4, batch_size=8, n_epochs=1, device="cpu").learn(8, callback=recorder)
        assert recorder.rewards(4) is not None
        assert recorder.rewards(5) is None
        recorder.on_rollout_start()
        assert recorder.rewards(4) is None

    def test_the_model_uses_them(self):
        """With two groups: the scale is that of what the environments paid, whatever the values are."""
        env = DummyVecEnv([lambda: CutEnv(CountingEnv(pay=(1.0, 5.0), length=(9, 9)))] * 2)
        kwargs: dict[str, Any] = dict(router="one_hot", router_kwargs=dict(columns=(1, 3)), merge_kl=None, split_kl=None)
        model = GRPO("MlpPolicy", env, n_steps=16, batch_size=32, n_epochs=1, seed=0, device="cpu", **kwargs)
        model.learn(64)
        assert model.score_history.reward_scale.scale.tolist() == [1, 5]
        assert model.score_history.reward_scale.count.sum() == 64
        # and so are the returns of the episodes
        assert model.score_history.episodes.best.tolist() == [2, 10]
        assert model.score_history.episodes.count.tolist() == [16, 16]


class TestOutcome:
    def make(self, recorder: RolloutRecorder, *callbacks: BaseCallback) -> GRPO:
        env = DummyVecEnv([partial(make_cut_env, pay) for pay in (1.0, 5.0)])
        model = GRPO("MlpPolicy", env, n_steps=6, batch_size=12, n_epochs=1, n_groups=1, seed=0, device="cpu")
        return model.learn(12, callback=[recorder, *callbacks])

    def test_entries_are_of_the_same_steps(self):
        recorder = RolloutRecorder()
        stored = Look(lambda buffer: tuple(getattr(buffer, name).T.ravel() for name in ("rewards", "returns", "advantages")))
        model = self.make(recorder, stored)
        cells = np.arange(12)
        outcome = recorder.outcome(model.rollout_buffer, cells)
        rewards, returns, advantages = stored.seen[0]
        assert outcome.cells is cells
        np.testing.assert_array_equal(outcome.advantages, advantages)
        assert outcome.paid.tolist() == [1.0] * 6 + [5.0] * 6
        np.testing.assert_array_equal(outcome.rewards, rewards)
        np.testing.assert_array_equal(outcome.returns, returns)
        assert rows(outcome.episodes) == [(1, 2.0, 2), (7, 10.0, 2), (3, 2.0, 2), (9, 10.0, 2), (5, 2.0, 2), (11, 10.0, 2)]
        assert outcome.episodes.truncated.tolist() == [True] * 6
        # rewards as they were paid, returns with the value of what would have come
        assert (outcome.rewards != outcome.paid).sum() == 6

    def test_of_a_recorder_that_has_seen_nothing(self):
        """The rewards of the buffer take their place."""
        model, recorder = self.make(RolloutRecorder()), RolloutRecorder()
        outcome = recorder.outcome(model.rollout_buffer, np.zeros(12, dtype=int))
        np.testing.assert_array_equal(outcome.paid, outcome.rewards)
        assert [len(column) for column in outcome.episodes] == [0, 0, 0, 0]
