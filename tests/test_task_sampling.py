"""Data for the tasks that are behind: shares in closed form, and odds against numpy on environments that draw by odds."""

import csv
import json
import math
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor, VecNormalize
from tiny_envs import CountingEnv

from sb3_grpo import GRPO, TaskSamplingCallback, make_group_vec_env
from sb3_grpo.balancing import BALANCERS, RelativePenalty
from sb3_grpo.scores import SCORES as SCORE_NAMES
from sb3_grpo.scores import GroupScores

DOUBLE = th.float64
property_test = settings(deadline=None, max_examples=100, derandomize=True, database=None)


def tensor(*values: float) -> th.Tensor:
    return th.tensor(values, dtype=DOUBLE)


def effort_shares(scores: th.Tensor, scale: float, shares: th.Tensor, advantage_scale: float, coef: float) -> th.Tensor:
    """Multiply shares by the weights of the penalty."""
    groups, unit = np.arange(len(scores)), np.ones(len(scores))
    comparison = GroupScores(groups, shares.numpy(), scores.numpy(), scale, advantage_scale * unit, 0.0)
    return shares * th.as_tensor(RelativePenalty(lambda progress: coef)(comparison, 1.0).weights)


class TestEffortSharesByHand:
    def test_two_groups(self):
        # slopes 4 * 2 * 0.35 / 0.49 = 40 / 7 and its negative; 1/2 - 0.05 * 40 / 7 = 3 / 14
        shares = effort_shares(tensor(2.5, 1.8), 0.7, tensor(0.5, 0.5), 1.0, 0.05)
        th.testing.assert_close(shares, tensor(3 / 14, 11 / 14))

    def test_three_unequal_groups(self):
        # mean 3, slopes 4 * 3 * (-2, -1, 3) / 4 = (-6, -3, 9), times 0.02 * 0.5
        shares = effort_shares(tensor(1, 2, 6), 2.0, tensor(0.5, 0.25, 0.25), 0.5, 0.02)
        th.testing.assert_close(shares, tensor(0.56, 0.28, 0.16))

    @pytest.mark.parametrize("coef", [0.0875, 0.1, 10.0, 1e12])
    def test_at_the_cap_the_leader_gets_nothing(self, coef):
        # the cap is 0.5 / (40 / 7) = 0.0875
        shares = effort_shares(tensor(2.5, 1.8), 0.7, tensor(0.5, 0.5), 1.0, coef)
        th.testing.assert_close(shares, tensor(0, 1))

    def test_just_below_the_cap_the_leader_gets_something(self):
        assert effort_shares(tensor(2.5, 1.8), 0.7, tensor(0.5, 0.5), 1.0, 0.0874)[0] > 5e-4

    def test_the_cap_is_that_of_the_first_to_reach_nothing(self):
        # slopes 12 * (1, 9, -10) with mean 0 and scale 1; the second group, 9 times as far ahead, has 100 times the share
        shares = effort_shares(tensor(1, 9, -10), 1.0, tensor(0.005, 0.5, 0.495), 1.0, 1e6)
        th.testing.assert_close(shares, tensor(0, 0.455, 0.545))

    def test_scores_that_do_not_fluctuate(self):
        assert effort_shares(tensor(1, 2), 0.0, tensor(0.3, 0.7), 1.0, 5.0).tolist() == [0.3, 0.7]

    def test_advantages_that_do_not_fluctuate(self):
        assert effort_shares(tensor(1, 2), 1.0, tensor(0.3, 0.7), 0.0, 5.0).tolist() == [0.3, 0.7]

    def test_one_group(self):
        assert effort_shares(tensor(3), 1.0, tensor(1), 1.0, 5.0).tolist() == [1.0]


Comparison = tuple[th.Tensor, float, th.Tensor, float]
SCORES = st.floats(-100, 100).map(lambda x: round(x, 3))
SCALES = st.floats(0.01, 100)
COEFS = st.one_of(st.just(0.0), st.floats(1e-6, 1e6))


@st.composite
def comparisons(draw: Callable[..., Any], equal_shares: bool = False) -> Comparison:
    """Scores, their scale, shares and the scale of the advantages."""
    n_groups = draw(st.integers(2, 6))
    scores = tensor(*draw(st.lists(SCORES, min_size=n_groups, max_size=n_groups)))
    parts = st.just(1.0) if equal_shares else st.floats(0.01, 1)
    shares = tensor(*draw(st.lists(parts, min_size=n_groups, max_size=n_groups)))
    return scores, draw(SCALES), shares / shares.sum(), draw(SCALES)


class TestEffortSharesOfAnyGroups:
    @property_test
    @given(comparisons(), COEFS)
    def test_they_are_shares(self, comparison: Comparison, coef):
        shares = effort_shares(*comparison, coef)
        assert shares.min() >= 0
        assert shares.sum().item() == pytest.approx(1, abs=1e-9)

    @property_test
    @given(comparisons(), COEFS)
    def test_groups_that_are_behind_gain(self, comparison: Comparison, coef):
        scores, _, shares, _ = comparison
        gained = effort_shares(*comparison, coef) - shares
        assert (gained[scores < scores.mean()] >= -1e-12).all()
        assert (gained[scores > scores.mean()] <= 1e-12).all()

    @property_test
    @given(comparisons(), COEFS)
    def test_who_is_further_behind_gains_no_less(self, comparison: Comparison, coef):
        scores, _, shares, _ = comparison
        gained = (effort_shares(*comparison, coef) - shares)[scores.argsort()]
        assert (gained.diff() <= 1e-9).all()

    @property_test
    @given(comparisons(equal_shares=True), COEFS, st.floats(0, 100), st.data())
    def test_who_falls_further_behind_gets_no_less(self, comparison: Comparison, coef, fall, data):
        scores, scale, shares, advantage_scale = comparison
        group = data.draw(st.integers(0, len(scores) - 1))
        lower = scores.clone()
        lower[group] -= fall
        after = effort_shares(lower, scale, shares, advantage_scale, coef)
        assert after[group] >= effort_shares(*comparison, coef)[group] - 1e-9

    @property_test
    @given(comparisons())
    def test_without_lambda_nothing_moves(self, comparison: Comparison):
        assert effort_shares(*comparison, 0.0).equal(comparison[2])

    @property_test
    @given(comparisons(equal_shares=True))
    def test_with_a_huge_one_the_leader_gets_nothing(self, comparison: Comparison):
        scores = comparison[0]
        assume(scores.max() > scores.min())
        shares = effort_shares(*comparison, 1e15)
        assert shares[scores.argmax()].item() == pytest.approx(0, abs=1e-12)
        assert shares.min() >= 0

    @property_test
    @given(comparisons(), COEFS, SCORES)
    def test_equally_good_groups(self, comparison: Comparison, coef, score):
        _, scale, shares, advantage_scale = comparison
        # the mean of equal numbers may be off by their last bit, which a huge lambda would make out to be a difference
        effort = effort_shares(th.full_like(shares, round(score)), scale, shares, advantage_scale, min(coef, 1.0))
        th.testing.assert_close(effort, shares)

    @property_test
    @given(comparisons(), COEFS, st.floats(0.01, 100))
    def test_the_unit_does_not_matter(self, comparison: Comparison, coef, unit):
        scores, scale, shares, advantage_scale = comparison
        other = effort_shares(unit * scores, unit * scale, shares, unit * advantage_scale, coef)
        th.testing.assert_close(other, effort_shares(*comparison, coef), rtol=1e-6, atol=1e-6)

    def test_but_the_unit_of_one_of_them_does(self):
        scores, shares = tensor(2.5, 1.8), tensor(0.5, 0.5)
        plain = effort_shares(scores, 0.7, shares, 1.0, 0.01)
        for changed in ((2 * scores, 0.7, shares, 1.0), (scores, 1.4, shares, 1.0), (scores, 0.7, shares, 2.0)):
            assert (effort_shares(*changed, 0.01) - plain).abs().max() > 0.01


PAY, LENGTH, ODDS = (1.0, 2.0, 0.5), (3, 5, 9), (0.5, 0.25, 0.25)


class OddsEnv(CountingEnv):
    """``CountingEnv`` that draws its tasks, and pays ``pay`` and three times that in turn."""

    def __init__(self, pay=PAY, length=LENGTH, odds=ODDS, **kwargs):
        super().__init__(pay=pay, length=length, **kwargs)
        self.odds = np.array(odds, dtype=float)

    def get_task_probabilities(self) -> np.ndarray:
        return self.odds.copy()

    def set_task_probabilities(self, probabilities: Any) -> None:
        self.odds = np.array(probabilities)

    def _next_task(self) -> int:
        return int(self.np_random.choice(self.n_tasks, p=self.odds))

    def step(self, action):
        factor = 1 if self.time % 2 == 0 else 3
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, factor * reward, terminated, truncated, info


class InTurnEnv(OddsEnv):
    """``OddsEnv`` that keeps the odds, but plays the tasks in turn; only ``n_played`` of them."""

    n_played: int | None = None

    def _next_task(self) -> int:
        return (self.task + 1) % (self.n_played or self.n_tasks)


class OnlyTwoTasks(InTurnEnv):
    n_played = 2


class Powers(InTurnEnv):
    """The steps of task ``k`` pay ``time ** k``."""

    def step(self, action):
        obs, _, *others = super().step(action)
        return obs, float(self.time**self.task), *others


@dataclass
class Rollout:
    """What was in a rollout, each of shape ``(n_steps, n_envs)``, and the odds of every environment afterwards."""

    tasks: np.ndarray
    rewards: np.ndarray
    returns: np.ndarray
    advantages: np.ndarray
    dones: np.ndarray
    odds: np.ndarray

    @property
    def step_share(self) -> np.ndarray:
        return np.bincount(self.tasks.ravel(), minlength=self.odds.shape[1]) / self.tasks.size


class Recorder(BaseCallback):
    """Copies every rollout. The tasks are read from the observations: ``argmax`` survives their normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.rollouts: list[Rollout] = []

    def _on_rollout_start(self) -> None:
        self.rewards: list[np.ndarray] = []
        self.dones: list[np.ndarray] = []

    def _on_step(self) -> bool:
        # copies, because SB3 adds the value of the last observation to truncated steps
        self.rewards.append(self.locals["rewards"].copy())
        self.dones.append(self.locals["dones"].copy())
        return True

    def _on_rollout_end(self) -> None:
        odds = np.array(self.training_env.env_method("get_task_probabilities"))
        buffer = self.locals["rollout_buffer"]
        columns = (buffer.observations[..., -odds.shape[1] :].argmax(-1), np.array(self.rewards), buffer.returns.copy())
        self.rollouts.append(Rollout(*columns, buffer.advantages.copy(), np.array(self.dones), odds))


class NoteLog(BaseCallback):
    """Copies what is about to be logged at the end of a rollout."""

    values: dict[str, float]

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.values = dict(self.logger.name_to_value)

    def column(self, name: str) -> list[float]:
        return [self.values[f"tasks/{name}_{k}"] for k in range(3)]


def units_by_hand(rollouts: Sequence[Rollout], n_tasks: int) -> np.ndarray:
    """Root mean square of the rewards of each task that are not 0, over all rollouts."""
    tasks, rewards = (
        np.concatenate([getattr(rollout, name).ravel() for rollout in rollouts]) for name in ("tasks", "rewards")
    )
    squares = [rewards[(tasks == k) & (rewards != 0)].astype(float) ** 2 for k in range(n_tasks)]
    return np.array([np.sqrt(own.mean()) if len(own) else 0.0 for own in squares])


def lengths_by_hand(rollouts: Sequence[Rollout], n_tasks: int) -> np.ndarray:
    """Mean length of the last 20 episodes of each task; NaN for a task without one."""
    tasks, dones = (np.concatenate([getattr(rollout, name) for rollout in rollouts]) for name in ("tasks", "dones"))
    ended: list[list[tuple[int, int, int]]] = [[] for _ in range(n_tasks)]
    for env in range(tasks.shape[1]):
        ends = dones[:, env].nonzero()[0]
        for end, length in zip(ends, np.diff(ends, prepend=-1), strict=True):
            ended[tasks[end, env]].append((end, env, length))
    return np.array([np.mean([length for *_, length in sorted(last)[-20:]]) if last else np.nan for last in ended])


def scores_by_hand(rollouts: Sequence[Rollout], units: np.ndarray) -> np.ndarray:
    """Mean return of each task in its unit, in the last rollout with a step of it."""
    latest = [[r for r in rollouts if (r.tasks == k).any()][-1] for k in range(len(units))]
    return np.array([r.returns[r.tasks == k].astype(float).mean() / units[k] for k, r in enumerate(latest)])


def mix(shares: Sequence[float] | np.ndarray, lengths: Sequence[float] | np.ndarray, own: Sequence[float], uniform: float):
    """Odds that give the shares of the steps, mixed with those of the environment."""
    odds = np.array(shares) / lengths
    return (1 - uniform) * odds / odds.sum() + uniform * np.array(own)


def odds_by_hand(
    rollouts: Sequence[Rollout],
    units: np.ndarray,
    own: Sequence[float] = ODDS,
    coef: float = 0.1,
    uniform: float = 0.1,
    lengths: Sequence[float] | None = None,
) -> np.ndarray:
    """Odds after the last rollout; before its end every task must have ended once, or its length be given."""
    last, q = rollouts[-1], np.array(own)
    played, scores = q > 0, scores_by_hand(rollouts, units)
    lead = np.where(played, scores - scores[played].mean(), 0)
    variance = (last.returns / units[last.tasks]).var() or np.inf
    # the shares are q - lambda * s * 4 K lead / sigma^2, with the largest lambda up to coef at which none is negative
    moved = (last.advantages / units[last.tasks]).std() * 4 * played.sum() * lead / variance
    largest = (q[moved > 0] / moved[moved > 0]).min() if moved.any() else np.inf
    return mix(q - min(coef, largest) * moved, lengths or lengths_by_hand(rollouts, len(q)), own, uniform)


def make_model(env: VecEnv, algorithm: type[Any] = PPO, n_steps: int = 32, **kwargs: Any) -> OnPolicyAlgorithm:
    if algorithm is not A2C:
        kwargs = dict(batch_size=n_steps * env.num_envs, n_epochs=1) | kwargs
    if algorithm is GRPO:
        kwargs = dict(router="one_hot", router_kwargs=dict(columns=(1, 4))) | kwargs
    options = dict(policy_kwargs=dict(net_arch=[4]), seed=0, device="cpu") | kwargs
    return algorithm("MlpPolicy", env, n_steps=n_steps, **options)


def record(
    env: VecEnv, n_rollouts: int = 3, n_steps: int = 32, algorithm: type[Any] = PPO, **kwargs: Any
) -> tuple[OnPolicyAlgorithm, list[Rollout]]:
    """
    :param kwargs: of the callback
    """
    model, recorder = make_model(env, algorithm, n_steps), Recorder()
    model.learn(n_rollouts * n_steps * env.num_envs, callback=[TaskSamplingCallback(**kwargs), recorder])
    assert len(recorder.rollouts) == n_rollouts
    return model, recorder.rollouts


def dummy(*, n_envs: int = 4, env_class: Callable[..., Any] = OddsEnv, **kwargs: Any) -> DummyVecEnv:
    return DummyVecEnv([partial(env_class, **kwargs)] * n_envs)


def limited(**kwargs: Any) -> gym.Env[Any, Any]:
    """Tasks whose episodes last 3, 5 and 7 steps, the last of them because of the time limit."""
    return TimeLimit(OddsEnv(length=(3, 5, 1000), **kwargs), 7)


WRAPPED: dict[str, Callable[[], VecEnv]] = {
    "plain": dummy,
    "subprocesses": lambda: SubprocVecEnv([OddsEnv] * 2),
    "VecNormalize": lambda: VecNormalize(dummy(), norm_reward=False),
    "VecMonitor": lambda: VecMonitor(dummy()),
    "Monitor": lambda: DummyVecEnv([lambda: Monitor(OddsEnv())] * 4),
    "TimeLimit": lambda: dummy(env_class=limited),
    "most": lambda: VecNormalize(VecMonitor(dummy(env_class=limited)), norm_reward=False),
}


class TestOddsByHand:
    @pytest.mark.parametrize("wrapping", WRAPPED)
    def test_wrapped(self, wrapping):
        env = WRAPPED[wrapping]()
        _, rollouts = record(env, group_coef=0.01)
        env.close()
        for n in range(1, len(rollouts) + 1):
            expected = odds_by_hand(rollouts[:n], units_by_hand(rollouts[:n], 3), coef=0.01)
            # the same in every environment
            np.testing.assert_allclose(rollouts[n - 1].odds, np.tile(expected, (env.num_envs, 1)), rtol=1e-5)

    @pytest.mark.parametrize("algorithm", [PPO, GRPO, A2C])
    @pytest.mark.parametrize("coef", [0.01, 100.0])
    def test_algorithms(self, algorithm, coef):
        _, rollouts = record(dummy(), algorithm=algorithm, group_coef=coef, uniform_share=0.3)
        expected = odds_by_hand(rollouts, units_by_hand(rollouts, 3), coef=coef, uniform=0.3)
        np.testing.assert_allclose(rollouts[-1].odds[0], expected, rtol=1e-5)

    def test_balancing_is_not_nothing(self):
        _, rollouts = record(dummy(), group_coef=0.01)
        units = units_by_hand(rollouts, 3)
        assert np.abs(rollouts[-1].odds[0] - odds_by_hand(rollouts, units, coef=0.0)).max() > 0.02

    def test_the_leader_has_only_its_uniform_share_at_a_huge_lambda(self):
        env = dummy(odds=(1 / 3,) * 3)
        _, rollouts = record(env, group_coef=1e9, uniform_share=0.3)
        assert rollouts[-1].odds[0].min() == pytest.approx(0.1, abs=1e-9)

    def test_rollouts_of_few_tasks(self):
        env, recorder = dummy(n_envs=1), Recorder()
        model = make_model(env, A2C, n_steps=5)
        model.learn(200, callback=[TaskSamplingCallback(group_coef=0.01), recorder])
        n_present = {len(set(rollout.tasks.ravel())) for rollout in recorder.rollouts}
        assert n_present >= {1, 2}
        for n in range(20, len(recorder.rollouts) + 1):
            rollouts = recorder.rollouts[:n]
            expected = odds_by_hand(rollouts, units_by_hand(rollouts, 3), coef=0.01)
            np.testing.assert_allclose(rollouts[-1].odds[0], expected, rtol=1e-4)

    def test_environments_of_this_package(self):
        env = make_vec_env("sb3_grpo/TaskCartPole-v0", n_envs=8, seed=0)
        _, rollouts = record(env, n_rollouts=2, n_steps=256, group_coef=0.01)
        assert all(np.isfinite(lengths_by_hand(rollouts[:1], 4)))
        expected = odds_by_hand(rollouts, units_by_hand(rollouts, 4), own=(0.25,) * 4, coef=0.01)
        np.testing.assert_allclose(rollouts[-1].odds, np.tile(expected, (8, 1)), rtol=1e-5)

    def test_dict_observations(self):
        env = make_vec_env("sb3_grpo/TaskCartPole-v0", n_envs=2, seed=0, env_kwargs=dict(task_observation="dict"))
        model, callback = PPO("MultiInputPolicy", env, seed=0, n_steps=32, batch_size=64, n_epochs=1), TaskSamplingCallback()
        model.learn(64, callback=callback)
        assert np.std(callback.probabilities) > 0.01

    def test_hand_made_lengths_are_those_of_the_environment(self):
        _, rollouts = record(dummy())
        assert lengths_by_hand(rollouts, 3).tolist() == list(LENGTH)

    def test_hand_made_units_are_those_of_the_environment(self):
        _, rollouts = record(dummy(n_envs=2, length=(2, 4, 6), env_class=InTurnEnv), n_steps=24)
        # pay and three times that equally often: pay * sqrt((1 + 9) / 2)
        np.testing.assert_allclose(units_by_hand(rollouts, 3), np.sqrt(5) * np.array(PAY), rtol=1e-6)


def expected_step_share(odds: np.ndarray, length: Sequence[int]) -> np.ndarray:
    """Share of the steps that each task has in the long run."""
    return odds * length / (odds @ np.array(length))


def measured_step_share(rollouts: Sequence[Rollout]) -> np.ndarray:
    return np.mean([rollout.step_share for rollout in rollouts], axis=0)


class TestSharesOfSteps:
    """With lambda 0 every task gets as many steps as its own odds say, whatever the length of its episodes."""

    length = (2, 6, 12)

    def record(self, odds: Sequence[float], uniform: float) -> list[Rollout]:
        env = dummy(n_envs=8, length=self.length, odds=odds)
        return record(env, n_rollouts=16, n_steps=100, group_coef=0.0, uniform_share=uniform)[1]

    @pytest.mark.parametrize("own", [(1 / 3,) * 3, ODDS])
    @pytest.mark.parametrize("uniform", [0.1, 0.4])
    def test_closed_form(self, own, uniform):
        env = dummy(n_envs=8, length=self.length, odds=own)
        _, rollouts = record(env, n_rollouts=2, n_steps=100, group_coef=0.0, uniform_share=uniform)
        np.testing.assert_allclose(rollouts[-1].odds[0], mix(own, self.length, own, uniform))

    @pytest.mark.parametrize("own", [(1 / 3,) * 3, ODDS])
    def test_measured(self, own):
        measured = measured_step_share(self.record(own, 0.1)[1:])
        # 12,000 steps: 2000, 667 and 333 episodes for equal odds
        expected = expected_step_share(mix(own, self.length, own, 0.1), self.length)
        np.testing.assert_allclose(expected, own, atol=0.06)
        np.testing.assert_allclose(measured, expected, atol=0.04)
        # control: with the environment's odds it would not be near
        assert np.abs(measured - expected_step_share(np.array(own), self.length)).max() > 0.15

    def test_measured_where_nothing_is_balanced(self):
        rollouts = self.record((1 / 3,) * 3, 1.0)
        np.testing.assert_allclose(measured_step_share(rollouts), np.array(self.length) / 20, atol=0.04)


class TestUniformShare:
    @pytest.mark.parametrize("uniform", [0.1, 0.3, 0.9])
    @pytest.mark.parametrize("coef", [0.0, 0.001, 1e6])
    def test_part_of_the_draws_follows_the_given_odds(self, uniform, coef):
        _, rollouts = record(dummy(), group_coef=coef, uniform_share=uniform)
        for rollout in rollouts:
            assert (rollout.odds >= uniform * np.array(ODDS) - 1e-15).all()
            np.testing.assert_allclose(rollout.odds.sum(axis=1), 1)

    @pytest.mark.parametrize("coef", [0.0, 1e6])
    def test_all_of_the_draws(self, coef):
        _, rollouts = record(dummy(), group_coef=coef, uniform_share=1.0)
        np.testing.assert_allclose([rollout.odds for rollout in rollouts], np.tile(ODDS, (3, 4, 1)))

    def test_a_task_that_is_never_drawn_but_played_does_not_matter(self):
        # environments may be told to play it; it is ahead, and would cap lambda at 0
        own = (0.5, 0.5, 0.0)
        _, rollouts = record(dummy(env_class=InTurnEnv, odds=own), group_coef=0.01)
        units = units_by_hand(rollouts, 3)
        assert scores_by_hand(rollouts, units).argmax() == 2
        np.testing.assert_allclose(rollouts[-1].odds[0], odds_by_hand(rollouts, units, own=own, coef=0.01), rtol=1e-5)
        assert np.abs(rollouts[-1].odds[0] - mix(own, LENGTH, own, 0.1)).max() > 0.005

    def test_a_task_that_is_never_drawn_stays_so(self):
        _, rollouts = record(dummy(odds=(0.5, 0.5, 0.0)), uniform_share=0.2)
        assert all(rollout.odds[0, 2] == 0 and rollout.odds[0, :2].min() > 0.05 for rollout in rollouts)


def forget_values(model: OnPolicyAlgorithm) -> OnPolicyAlgorithm:
    """Values are 0 and stay it, so that returns and advantages are sums of rewards, and have their unit."""
    for parameter in model.policy.value_net.parameters():
        parameter.data.zero_()
    model.learning_rate = 0.0
    model._setup_lr_schedule()
    return model


def scaled_rollouts(factors: Sequence[float]) -> list[Rollout]:
    """Returns scale exactly with rewards, actions do not matter: only the callback could make a difference."""
    env = dummy(pay=tuple(np.multiply(PAY, factors)), odds=(1 / 3,) * 3)
    model, recorder = forget_values(make_model(env)), Recorder()
    model.learn(3 * 32 * 4, callback=[TaskSamplingCallback(group_coef=0.01), recorder])
    return recorder.rollouts


class TestUnitOfTheRewards:
    @pytest.mark.parametrize("factors", [(10, 1, 1), (1, 0.1, 1), (1, 1, 10), (0.1, 10, 1), (1e4, 1e4, 1e4)])
    def test_it_does_not_matter(self, factors):
        plain, scaled = scaled_rollouts((1, 1, 1)), scaled_rollouts(factors)
        for one, other in zip(plain, scaled, strict=True):
            np.testing.assert_array_equal(other.tasks, one.tasks)
            np.testing.assert_allclose(other.returns, one.returns * np.array(factors)[one.tasks], rtol=1e-5)
            np.testing.assert_allclose(other.odds, one.odds, rtol=1e-4)

    @pytest.mark.parametrize("factors", [(10, 1, 1), (1, 0.1, 1), (1, 1, 10)])
    def test_without_the_division_it_would(self, factors):
        plain, scaled = (
            odds_by_hand(scaled_rollouts(by), np.ones(3), own=(1 / 3,) * 3, coef=0.01) for by in ((1, 1, 1), factors)
        )
        assert np.abs(plain - scaled).max() > 0.02

    def test_hand_made_odds_are_those_that_do_not_change(self):
        rollouts = scaled_rollouts((1, 10, 1))
        expected = odds_by_hand(rollouts, units_by_hand(rollouts, 3), own=(1 / 3,) * 3, coef=0.01)
        np.testing.assert_allclose(rollouts[-1].odds[0], expected, rtol=1e-5)
        # and the cap does not hide the scores
        assert np.abs(expected - odds_by_hand(rollouts, units_by_hand(rollouts, 3), own=(1 / 3,) * 3, coef=1.0)).max() > 0.02


class TestNothingToGoBy:
    def test_a_task_that_never_occurs(self):
        env = dummy(env_class=OnlyTwoTasks)
        callback, recorder, notes = TaskSamplingCallback(group_coef=0.01), Recorder(), NoteLog()
        model = make_model(env)
        model.learn(3 * 32 * 4, callback=[callback, recorder, notes])
        # it keeps its share of the steps, at the length of the others
        last, q = recorder.rollouts[-1], np.array(ODDS)
        shares = (last.odds[0] - 0.1 * q) * np.array([3, 5, 4])
        assert np.isfinite(last.odds).all()
        assert (shares / shares.sum())[2] == pytest.approx(0.25)
        assert shares[:2].min() > 0
        assert np.isnan(notes.column("score")).tolist() == [False, False, True]

    def test_the_others_are_compared_without_it(self):
        rollouts = record(dummy(env_class=OnlyTwoTasks), group_coef=0.01)[1]
        pair_rollouts = [Rollout(**(vars(rollout) | dict(odds=rollout.odds[:, :2]))) for rollout in rollouts]
        pair = odds_by_hand(pair_rollouts, units_by_hand(rollouts, 2), own=(2 / 3, 1 / 3), coef=0.01, uniform=1e-12)
        ours = rollouts[-1].odds[0, :2] - 0.1 * np.array(ODDS[:2])
        np.testing.assert_allclose(ours / ours.sum(), pair, rtol=1e-5)

    def test_a_task_that_is_missing_from_a_rollout_is_as_good_as_it_was(self):
        # one environment, episodes of 8 steps in rollouts of 8: one task per rollout
        env = dummy(n_envs=1, env_class=Powers, length=(8, 8, 8), odds=(1 / 3,) * 3)
        model, recorder, notes = forget_values(make_model(env, n_steps=8)), Recorder(), NoteLog()
        model.learn(32, callback=[TaskSamplingCallback(group_coef=0.01), recorder, notes])
        rollouts = recorder.rollouts
        assert [set(rollout.tasks.ravel()) for rollout in rollouts] == [{0}, {1}, {2}, {0}]
        scores = scores_by_hand(rollouts, units_by_hand(rollouts, 3))
        assert np.abs(np.diff(scores)).min() > 0.1
        np.testing.assert_allclose(notes.column("score"), scores, rtol=1e-5)
        expected = odds_by_hand(rollouts, units_by_hand(rollouts, 3), own=(1 / 3,) * 3, coef=0.01)
        np.testing.assert_allclose(rollouts[-1].odds[0], expected, rtol=1e-5)
        assert np.std(expected) > 0.005

    def test_a_task_without_rewards(self):
        _, rollouts = record(dummy(pay=(1.0, 0.0, 0.5)), group_coef=0.01)
        units = units_by_hand(rollouts, 3)
        assert units[1] == 0
        # its score is 0, as if the unit were infinite
        units[1] = np.inf
        np.testing.assert_allclose(rollouts[-1].odds[0], odds_by_hand(rollouts, units, coef=0.01), rtol=1e-5)

    def test_no_rewards_at_all(self):
        env = dummy(pay=(0.0, 0.0, 0.0))
        _, rollouts = record(env, group_coef=0.1)
        np.testing.assert_allclose(rollouts[-1].odds[0], mix(ODDS, LENGTH, ODDS, 0.1))

    @pytest.mark.parametrize("reward", [(1.0,), (0.0,)])
    def test_a_single_task(self, reward):
        _, rollouts = record(dummy(pay=reward, length=(4,), odds=(1.0,)))
        assert all((rollout.odds == 1).all() for rollout in rollouts)

    def test_no_finished_episode(self):
        env = dummy(length=(1000, 1000, 1000))
        _, rollouts = record(env, n_rollouts=1, group_coef=0.0, uniform_share=0.5)
        assert not rollouts[0].dones.any()
        np.testing.assert_allclose(rollouts[0].odds[0], ODDS)

    def test_a_task_without_a_finished_episode_counts_as_long_as_the_others(self):
        env = dummy(env_class=InTurnEnv, n_envs=1, length=(3, 5, 1000))
        _, rollouts = record(env, n_rollouts=1, group_coef=0.0)
        np.testing.assert_allclose(rollouts[0].odds[0], mix(ODDS, (3, 5, 4), ODDS, 0.1))

    def test_one_step_per_rollout(self):
        env = dummy(n_envs=1)
        model, recorder = make_model(env, A2C, n_steps=1), Recorder()
        model.learn(30, callback=[TaskSamplingCallback(), recorder])
        assert all(np.isfinite(rollout.odds).all() for rollout in recorder.rollouts)

    def test_length_is_that_of_the_last_20_episodes(self):
        class Shrinking(OddsEnv):
            """Episodes of 9 steps, after 30 of them 3."""

            n_resets = 0

            def reset(self, **kwargs):
                self.n_resets += 1
                self.length = (9, 3) if self.n_resets <= 30 else (3, 3)
                return super().reset(**kwargs)

        env = dummy(n_envs=1, env_class=Shrinking, pay=(1.0, 1.0), odds=(0.5, 0.5))
        _, rollouts = record(env, n_rollouts=20, group_coef=0.0)
        np.testing.assert_allclose(rollouts[-1].odds[0], [0.5, 0.5], rtol=1e-6)
        assert rollouts[2].odds[0, 0] < 0.3


def long_and_short() -> DummyVecEnv:
    """Episodes of 12 steps and of 4, in turn."""
    return dummy(n_envs=1, env_class=InTurnEnv, pay=(1.0, 2.0), length=(12, 4), odds=(0.5, 0.5))


class SeenAtStart(BaseCallback):
    """Keeps the odds with which the first rollout begins."""

    def _on_training_start(self) -> None:
        self.odds = np.array(self.training_env.env_method("get_task_probabilities"))

    def _on_step(self) -> bool:
        return True


class TestSeveralCallsOfLearn:
    expected = mix((0.5, 0.5), (12, 4), (0.5, 0.5), 0.1)

    def test_an_episode_that_spans_two(self):
        env = long_and_short()
        model, callback = make_model(env, n_steps=8), TaskSamplingCallback(0.0)
        model.learn(8, callback=callback)
        model.learn(8, callback=callback, reset_num_timesteps=False)
        # rollouts of 8 steps: the first episode is over after 12, the second after 16
        np.testing.assert_allclose(callback.probabilities, self.expected)

    def test_an_episode_that_a_reset_cuts_off(self):
        env = long_and_short()
        model, callback = make_model(env, n_steps=8), TaskSamplingCallback(0.0)
        model.learn(8, callback=callback)
        # starts with task 1 for 4 steps, then 12 of task 0
        model.learn(16, callback=callback)
        np.testing.assert_allclose(callback.probabilities, self.expected)

    def test_an_episode_that_another_environment_cuts_off(self):
        env, other = (long_and_short() for _ in range(2))
        model, callback = make_model(env, n_steps=8), TaskSamplingCallback(0.0)
        model.learn(8, callback=callback)
        model.set_env(other)
        model.learn(16, callback=callback, reset_num_timesteps=False)
        np.testing.assert_allclose(callback.probabilities, self.expected)

    def test_odds_survive(self):
        env, recorder = dummy(), Recorder()
        model, sampling = make_model(env), TaskSamplingCallback(group_coef=1e9, uniform_share=0.3)
        model.learn(2 * 32 * 4, callback=[sampling, recorder])
        np.testing.assert_array_equal(sampling.probabilities, recorder.rollouts[-1].odds[0])
        assert not np.allclose(sampling.probabilities, ODDS)
        # between trainings the environments have their own
        np.testing.assert_allclose(env.env_method("get_task_probabilities"), [ODDS] * env.num_envs)
        seen = SeenAtStart()
        model.learn(2 * 32 * 4, callback=[sampling, recorder, seen], reset_num_timesteps=False)
        np.testing.assert_array_equal(seen.odds, recorder.rollouts[1].odds)
        # all four rollouts are one history, and the given odds are still those of the beginning
        assert len(recorder.rollouts) == 4
        units = units_by_hand(recorder.rollouts, 3)
        expected = odds_by_hand(recorder.rollouts, units, coef=1e9, uniform=0.3)
        np.testing.assert_allclose(recorder.rollouts[-1].odds[0], expected, rtol=1e-5)

    def test_same_as_one_call(self):
        def learn(calls: Sequence[int]) -> np.ndarray:
            env = dummy()
            model, callback = make_model(env), TaskSamplingCallback(group_coef=0.01)
            for index, n_rollouts in enumerate(calls):
                model.learn(n_rollouts * 32 * 4, callback=callback, reset_num_timesteps=index == 0)
            return callback.probabilities

        np.testing.assert_array_equal(learn((2, 1, 1)), learn((4,)))

    def test_a_stop_in_the_middle_of_a_rollout(self):
        class StopOnce(BaseCallback):
            def _on_step(self) -> bool:
                return self.n_calls != 6

        env = long_and_short()
        model, callback = make_model(env, n_steps=8), TaskSamplingCallback(0.0)
        stop = StopOnce()
        model.learn(8, callback=[callback, stop])
        assert model.num_timesteps == 6
        model.learn(16, callback=[callback, stop], reset_num_timesteps=False)
        np.testing.assert_allclose(callback.probabilities, self.expected)


class TestRestart:
    """What was learnt is part of the model."""

    @pytest.mark.parametrize("algorithm", [PPO, GRPO, A2C])
    @pytest.mark.parametrize("n_envs", [2, 4, 7])
    def test_goes_on_in_a_new_process(self, tmp_path, algorithm, n_envs):
        model, recorder, seen = make_model(dummy(), algorithm), Recorder(), SeenAtStart()
        model.learn(2 * 32 * 4, callback=[TaskSamplingCallback(group_coef=0.01), recorder])
        model.save(tmp_path / "model")
        loaded = algorithm.load(tmp_path / "model", env=dummy(n_envs=n_envs), device="cpu")
        again = TaskSamplingCallback(group_coef=0.01)
        loaded.learn(32 * n_envs, callback=[again, recorder, seen], reset_num_timesteps=False)
        np.testing.assert_allclose(seen.odds, [recorder.rollouts[1].odds[0]] * n_envs, rtol=1e-12)
        # rewards of all three rollouts are one history; without the first two the units are others
        units, alone = (units_by_hand(rollouts, 3) for rollouts in (recorder.rollouts, recorder.rollouts[2:]))
        expected = odds_by_hand(recorder.rollouts, units, coef=0.01, lengths=LENGTH)
        np.testing.assert_allclose(recorder.rollouts[2].odds[0], expected, rtol=1e-5)
        assert np.abs(units - alone).max() > 1e-3

    def test_is_saved_as_plain_numbers(self, tmp_path):
        model, recorder = make_model(dummy()), Recorder()
        model.learn(2 * 32 * 4, callback=[TaskSamplingCallback(group_coef=0.01), recorder])
        model.save(tmp_path / "model")
        with zipfile.ZipFile(tmp_path / "model.zip") as file:
            state = json.loads(file.read("data"))["task_sampling_state"]
        np.testing.assert_allclose(state["probabilities"], recorder.rollouts[-1].odds[0], rtol=1e-12)
        # the last 20 episodes of each task
        assert [set(lengths) for lengths in state["lengths"]] == [{length} for length in LENGTH]
        assert max(map(len, state["lengths"])) <= 20

    def test_another_callback_goes_on_in_the_same_process(self):
        """In the middle of episodes whose beginning it has not seen."""
        env = long_and_short()
        model, callback = make_model(env, n_steps=8), TaskSamplingCallback(0.0)
        model.learn(8, callback=TaskSamplingCallback(0.0))
        # the first episode is over after 12 steps, but this one has seen only 4 of them; then of 4, 12 and 4
        model.learn(24, callback=callback, reset_num_timesteps=False)
        np.testing.assert_allclose(callback.probabilities, TestSeveralCallsOfLearn.expected)
        assert model.task_sampling_state["lengths"] == [[12], [4, 4]]  # type: ignore[attr-defined]  # the callback's

    def test_a_new_training_begins_anew(self):
        model, recorder, seen = make_model(dummy()), Recorder(), SeenAtStart()
        model.learn(2 * 32 * 4, callback=[TaskSamplingCallback(group_coef=0.01), recorder])
        assert not np.allclose(recorder.rollouts[-1].odds[0], ODDS)
        model.learn(32 * 4, callback=[TaskSamplingCallback(group_coef=0.01), seen])
        np.testing.assert_array_equal(seen.odds, [ODDS] * 4)

    def test_another_number_of_tasks_begins_anew(self, tmp_path):
        def padded(n_tasks: int) -> DummyVecEnv:
            """Observations have three numbers for tasks, whatever their number is."""

            class Padded(OddsEnv):
                def _obs(self) -> np.ndarray:
                    return np.append(super()._obs(), np.zeros(3 - n_tasks, dtype=np.float32))

            env = dummy(env_class=Padded, pay=PAY[:n_tasks], length=LENGTH[:n_tasks], odds=(1 / n_tasks,) * n_tasks)
            env.observation_space = spaces.Box(-10, 10, (4,), np.float32)
            # SB3 has made room for the observations of OddsEnv
            buffers: Any = env.buf_obs
            buffers[None] = np.zeros((4, 4), np.float32)
            return env

        model, seen = make_model(padded(3)), SeenAtStart()
        model.learn(2 * 32 * 4, callback=TaskSamplingCallback(group_coef=0.01))
        model.save(tmp_path / "model")
        loaded = PPO.load(tmp_path / "model", env=padded(2), device="cpu")
        loaded.learn(32 * 4, callback=[TaskSamplingCallback(), seen], reset_num_timesteps=False)
        np.testing.assert_array_equal(seen.odds, [[0.5, 0.5]] * 4)


class Interrupt(BaseCallback):
    """Ctrl-C at a step."""

    def __init__(self, step: int):
        super().__init__()
        self.step = step

    def _on_step(self) -> bool:
        if self.n_calls == self.step:
            raise KeyboardInterrupt
        return True


def odds_of(env: VecEnv) -> list[list[float]]:
    return [list(odds) for odds in env.env_method("get_task_probabilities")]


class TestInterrupt:
    def interrupted(self, env: VecEnv, sampling: TaskSamplingCallback) -> OnPolicyAlgorithm:
        """PPO tells no callback of an exception: the environments keep the odds of the callback."""
        model = make_model(env)
        with pytest.raises(KeyboardInterrupt):
            model.learn(10_000, callback=[sampling, Interrupt(32 * 2 + 5)])
        assert not np.allclose(odds_of(env)[0], ODDS)
        return model

    @pytest.mark.parametrize("who", ["the same", "another callback", "another model"])
    def test_the_next_training_gives_them_back(self, who):
        env, sampling, recorder = dummy(), TaskSamplingCallback(group_coef=0.0, uniform_share=0.5), Recorder()
        model = self.interrupted(env, sampling)
        if who != "the same":
            sampling = TaskSamplingCallback(group_coef=0.0, uniform_share=0.5)
        if who == "another model":
            model = make_model(env)
        model.learn(32 * 4, callback=[sampling, recorder], reset_num_timesteps=False)
        # half of the draws follow the environment's odds, not those that were found there
        np.testing.assert_allclose(recorder.rollouts[-1].odds[0], mix(ODDS, LENGTH, ODDS, 0.5), rtol=1e-9)
        assert odds_of(env) == [list(ODDS)] * 4

    def test_odds_that_somebody_has_set_since_then_are_the_environments(self):
        env, sampling = dummy(), TaskSamplingCallback(group_coef=0.0)
        model = self.interrupted(env, sampling)
        env.env_method("set_task_probabilities", [0.2, 0.2, 0.6])
        model.learn(32 * 4, callback=sampling, reset_num_timesteps=False)
        assert odds_of(env) == [[0.2, 0.2, 0.6]] * 4

    def test_of_an_algorithm_that_tells_its_callbacks(self):
        env, sampling = dummy(), TaskSamplingCallback(group_coef=0.0)
        model = self.interrupted(env, sampling)
        sampling.on_training_interrupted()
        assert odds_of(env) == [list(ODDS)] * 4
        assert model.task_sampling_state["probabilities"] == sampling.probabilities.tolist()  # type: ignore[attr-defined]  # the callback's

    def test_before_anything_has_started(self):
        TaskSamplingCallback().on_training_interrupted()
        env, sampling, other = dummy(), TaskSamplingCallback(), make_model(dummy())
        other.learn(32 * 4, callback=sampling)
        sampling.init_callback(make_model(env))
        sampling.on_training_interrupted()
        assert not hasattr(sampling.model, "task_sampling_state")
        assert odds_of(env) == [list(ODDS)] * 4

    def test_every_environment_gets_its_own_back(self):
        own = [[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]
        env = DummyVecEnv([partial(OddsEnv, odds=odds) for odds in own])
        make_model(env).learn(64, callback=TaskSamplingCallback())
        assert odds_of(env) == own


class TestTimeLimit:
    """SB3 adds gamma times the value of the last observation to the reward of a step that a time limit ends."""

    def rollouts(self) -> tuple[list[Rollout], np.ndarray]:
        # 6 steps: the limit cuts all off, and both rewards are equally frequent in 24 steps
        env = DummyVecEnv([lambda: TimeLimit(InTurnEnv(length=(1000,) * 3, odds=(1 / 3,) * 3), 6)] * 2)
        model, recorder = forget_values(make_model(env, n_steps=36)), Recorder()
        model.policy.value_net.bias.data.fill_(50.0)
        model.learn(72, callback=[TaskSamplingCallback(group_coef=0.01), recorder])
        return recorder.rollouts, model.rollout_buffer.rewards

    def test_bootstrapped_values_are_no_part_of_the_unit(self):
        rollouts, _ = self.rollouts()
        expected = odds_by_hand(rollouts, np.sqrt(5) * np.array(PAY), own=(1 / 3,) * 3, coef=0.01)
        np.testing.assert_allclose(rollouts[-1].odds[0], expected, rtol=1e-5)

    def test_they_would_change_it(self):
        rollouts, with_values = self.rollouts()
        assert with_values.max() > 49
        rollouts[0].rewards = with_values
        units = units_by_hand(rollouts, 3)
        assert (units > 10).all()
        assert np.abs(odds_by_hand(rollouts, units, own=(1 / 3,) * 3, coef=0.01) - rollouts[-1].odds[0]).max() > 0.01


class TestLog:
    def learn(self, tmp_path: Any, n_tasks: int, algorithm: type[Any] = PPO) -> list[dict[str, str]]:
        env = dummy(pay=tuple(range(1, n_tasks + 1)), length=(3,) * n_tasks, odds=(1 / n_tasks,) * n_tasks)
        router: dict[str, Any] = dict(router_kwargs=dict(columns=(1, 1 + n_tasks))) if algorithm is GRPO else {}
        model = make_model(env, algorithm, **router)
        model.set_logger(configure(str(tmp_path), ["stdout", "csv"]))
        model.learn(32 * 4, callback=TaskSamplingCallback(group_coef=0.01), log_interval=1)
        model.logger.close()
        return list(csv.DictReader((tmp_path / "progress.csv").read_text().splitlines()))

    @pytest.mark.parametrize("algorithm", [PPO, GRPO, A2C])
    def test_tags(self, tmp_path, capsys, algorithm):
        row = self.learn(tmp_path, 3, algorithm)[0]
        columns = {name: [float(row[f"tasks/{name}_{k}"]) for k in range(3)] for name in ("score", "probability", "share")}
        assert sum(columns["share"]) == pytest.approx(1)
        assert sum(columns["probability"]) == pytest.approx(1)
        assert np.isfinite(columns["score"]).all()
        assert "tasks/score_3" not in row
        printed = [line.split("|")[1:3] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
        odds = np.array(columns["probability"])
        lines = {
            name.strip(): value.strip() for name, value in printed if name.strip().startswith(("drawn", "score", "share"))
        }
        # two lines for people
        expected = {"most": odds.argmax(), "least": odds.argmin()}
        assert lines == {f"drawn_{name}": f"task {task} ({100 * odds[task]:.0f}%)" for name, task in expected.items()}
        assert not {f"tasks/{name}" for name in lines} & row.keys()

    def test_values(self):
        recorder, notes = Recorder(), NoteLog()
        make_model(dummy()).learn(2 * 32 * 4, callback=[TaskSamplingCallback(), recorder, notes])
        last = recorder.rollouts[-1]
        scores = scores_by_hand(recorder.rollouts, units_by_hand(recorder.rollouts, 3))
        np.testing.assert_allclose(notes.column("score"), scores, rtol=1e-5)
        np.testing.assert_allclose(notes.column("probability"), last.odds[0])
        np.testing.assert_allclose(notes.column("share"), last.step_share)

    def test_many_tasks_are_two_lines_too(self, tmp_path, capsys):
        row = self.learn(tmp_path, 30)[0]
        assert {f"tasks/score_{k}" for k in range(30)} <= row.keys()
        lines = capsys.readouterr().out.split("tasks/")[1].splitlines()
        assert [line.split("|")[1].strip() for line in lines[1:3]] == ["drawn_least", "drawn_most"]
        assert "time/" in lines[3] or "train/" in lines[3] or lines[3].startswith("---")


class WithoutSetter(CountingEnv):
    def get_task_probabilities(self) -> np.ndarray:
        return np.array([0.5, 0.5])

    def step(self, action):
        raise AssertionError("a step was taken")


class TestRefused:
    @pytest.mark.parametrize("value", [-0.1, -1e-12, math.nan, math.inf, -math.inf])
    def test_group_coef(self, value):
        with pytest.raises(ValueError, match=f"`group_coef` must be finite and at least 0, got {value}"):
            TaskSamplingCallback(group_coef=value)

    @pytest.mark.parametrize("value", [0.0, -0.5, 0.0999, 1.0001, math.nan, math.inf])
    def test_uniform_share(self, value):
        with pytest.raises(ValueError, match=f"`uniform_share` must be between 0.1 and 1, got {value}"):
            TaskSamplingCallback(uniform_share=value)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (dict(balancer="penalty"), f"`balancer` must be one of {list(BALANCERS)}, got 'penalty'"),
            (dict(group_score="returns"), f"`group_score` must be one of {list(SCORE_NAMES)}, got 'returns'"),
            (dict(group_score="gap", group_targets=5), "`group_targets` must be a sequence or a dict"),
            (dict(group_score="gap", group_targets=[1.0, math.nan]), "`group_targets` must be a sequence or a dict"),
            (dict(group_targets=[1.0, 2.0]), """`group_targets` needs `group_score="gap"`, got [1.0, 2.0] and 'return'"""),
            (dict(group_score="reward", group_targets=[1.0]), """`group_targets` needs `group_score="gap"`"""),
        ],
        ids=str,
    )
    def test_scores_and_balancers(self, arguments, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            TaskSamplingCallback(**arguments)

    @pytest.mark.parametrize("targets", [[], [9.0, 30.0], [9.0, 30.0, 13.5, 1.0]])
    def test_targets_that_are_not_one_for_each_task(self, targets):
        env = dummy()
        model = make_model(env)
        with pytest.raises(
            ValueError, match=rf"`group_targets` must have one target for each of the 3 .*{re.escape(str(targets))}"
        ):
            model.learn(32, callback=TaskSamplingCallback(group_score="gap", group_targets=targets))
        assert model.num_timesteps == 0
        np.testing.assert_array_equal(env.env_method("get_task_probabilities"), [ODDS] * env.num_envs)

    @pytest.mark.parametrize("group_score", SCORE_NAMES)
    def test_no_score_with_a_name_is(self, group_score):
        # the first task returns 1 + 3 + 1, and is there
        targets = [5.0, 99.0, 99.0] if group_score == "gap" else None
        callback = TaskSamplingCallback(group_coef=0.01, group_score=group_score, group_targets=targets)
        make_model(dummy()).learn(2 * 32 * 4, callback=callback)
        assert callback.probabilities.sum() == pytest.approx(1)
        assert np.abs(callback.probabilities - mix(ODDS, LENGTH, ODDS, 0.1)).max() > 1e-3

    @pytest.mark.parametrize(("coef", "uniform"), [(0, 1), (1e300, 0.1)])
    def test_their_bounds_are_not(self, coef, uniform):
        TaskSamplingCallback(coef, uniform)

    @pytest.mark.parametrize(
        ("vec_class", "env_class", "name"),
        [
            (DummyVecEnv, CountingEnv, "get_task_probabilities"),
            (DummyVecEnv, WithoutSetter, "set_task_probabilities"),
            (SubprocVecEnv, WithoutSetter, "set_task_probabilities"),
        ],
    )
    def test_environment_without_the_methods(self, vec_class, env_class, name):
        env = vec_class([env_class])
        model = make_model(env)
        with pytest.raises(ValueError, match=f"needs environments with the method `{name}`"):
            model.learn(32, callback=TaskSamplingCallback())
        assert model.num_timesteps == 0
        env.close()

    def test_episodes_that_must_begin_alike(self):
        env = make_group_vec_env("sb3_grpo/TaskCartPole-v0", group_size=2, seed=0)
        kwargs: dict[str, Any] = dict(n_steps=512, batch_size=512, n_epochs=1, seed=0, device="cpu")
        model = GRPO("MlpPolicy", env, advantage_estimator="outcome", **kwargs)
        with pytest.raises(ValueError, match="changes how episodes begin, and advantage_estimator='outcome'"):
            model.learn(1024, TaskSamplingCallback())
        assert model.num_timesteps == 0
        model = GRPO("MlpPolicy", env, advantage_estimator="time_step", **kwargs)
        assert model.learn(1024, TaskSamplingCallback()).num_timesteps == 1024

    def test_one_environment_of_several_without_them(self):
        env = DummyVecEnv([partial(OddsEnv, pay=(1.0, 2.0), length=(3, 5), odds=(0.5, 0.5)), CountingEnv])
        with pytest.raises(ValueError, match="needs environments with the method `get_task_probabilities`"):
            make_model(env).learn(32, callback=TaskSamplingCallback())

    @pytest.mark.parametrize("odds", [[0.5, math.nan, 0.5], [0.5, 0.2, 0.2], [1.5, -0.5, 0.0], 1.0])
    def test_odds_that_are_no_probabilities(self, odds):
        class Odd(InTurnEnv):
            def get_task_probabilities(self) -> Any:
                return np.array(odds)

        with pytest.raises(ValueError, match="`get_task_probabilities` must return probabilities that sum to 1, got"):
            make_model(dummy(env_class=Odd)).learn(32, callback=TaskSamplingCallback())

    @pytest.mark.parametrize("label", ["left", 1.5, 3, -1, None, math.nan])
    def test_tasks_that_are_no_numbers_of_tasks(self, label):
        class Labelled(OddsEnv):
            def _info(self) -> dict[str, Any]:
                return {"task": label}

        with pytest.raises(ValueError, match=r'info\["task"\] must be a number from 0 to 2, got'):
            make_model(dummy(env_class=Labelled)).learn(32, callback=TaskSamplingCallback())

    def test_environments_without_get_attr(self):
        class Simulator(DummyVecEnv):
            def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
                if attr_name == "render_mode":
                    return [None] * self.num_envs
                raise NotImplementedError

        with pytest.raises(ValueError, match="needs environments with the method `get_task_probabilities`"):
            make_model(Simulator([OddsEnv])).learn(32, callback=TaskSamplingCallback())

    def test_environment_that_does_not_report_its_task(self):
        model = make_model(dummy(report=False))
        with pytest.raises(ValueError, match=r'needs environments that report info\["task"\] at every step'):
            model.learn(32, callback=TaskSamplingCallback())
        assert model.num_timesteps == 4

    def test_algorithm_without_rollouts(self):
        model: BaseAlgorithm = DQN("MlpPolicy", dummy(n_envs=1), learning_starts=0, seed=0)
        with pytest.raises(ValueError, match="on-policy"):
            model.learn(20, callback=TaskSamplingCallback())
