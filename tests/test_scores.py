"""Scores: comparisons by hand, and that neither the unit nor the sign of a group's rewards puts it ahead or behind."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_envs import CountingEnv

from sb3_grpo import GRPO, TaskSamplingCallback
from sb3_grpo.advantages import normalize_by_group
from sb3_grpo.balancing import RelativePenalty
from sb3_grpo.losses import group_penalty, relative_advantage_matrix
from sb3_grpo.recording import EndedEpisodes, Outcome
from sb3_grpo.scores import SCORES, GroupScores, RawReturnScore, Score, ScoreHistory, compare_steps

property_test = settings(deadline=None, max_examples=40, derandomize=True, database=None)
# those that know no unit
WITHOUT_UNIT = ["return", "reward", "gap"]


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)


def compare(groups, step_scores, advantage_scale, kind="std") -> GroupScores:
    """Compare the groups that have steps; ``advantage_scale`` is indexed by group."""
    present, member, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return compare_steps(present, member, counts, step_scores, advantage_scale[present], kind)


class TestCompareSteps:
    """Numbers by hand: groups 1 and 4 of six, scores 2 and (1, 3)."""

    scores = compare(np.array([4, 1, 4]), array(1, 2, 3), array(9, 5, 9, 9, 7, 9))

    def test_groups_and_counts(self):
        assert self.scores.groups.tolist() == [1, 4]
        assert self.scores.counts.tolist() == [1, 2]
        np.testing.assert_allclose(self.scores.shares, [1 / 3, 2 / 3])

    def test_advantage_scale_is_that_of_the_groups_with_steps(self):
        assert self.scores.advantage_scale.tolist() == [5, 7]

    def test_scale_is_that_of_all_steps(self):
        assert self.scores.scale == pytest.approx(math.sqrt(2 / 3))
        assert compare(np.array([4, 1, 4]), array(1, 2, 6), np.ones(6), "range").scale == 5

    @pytest.mark.parametrize(
        ("scores", "eta_squared"),
        [
            # means 1 and 2, each 1/2 from the mean 3/2; variance (9 + 1 + 1 + 9) / 4 / 4
            ((0, 2, 1, 3), 0.25 / 1.25),
            ((0, 2, 0, 2), 0.0),
            ((1, 1, 3, 3), 1.0),
        ],
    )
    def test_eta_squared(self, scores, eta_squared):
        found = compare(np.array([0, 0, 1, 1]), array(*scores), np.ones(2))
        assert found.eta_squared == pytest.approx(eta_squared)

    def test_float32_is_summed_in_float64(self):
        """Where the differences are the last digits of float32."""
        scores = (2.0**24 + np.array([0, 0, 2, 2])).astype(np.float32)
        found = compare(np.tile([0, 0, 1, 1], 1000), np.tile(scores, 1000), np.ones(2, dtype=np.float32))
        assert found.scores.dtype == found.advantage_scale.dtype == np.float64
        assert found.scores.tolist() == [2**24, 2**24 + 2]
        assert found.scale == 1.0


def outcome_of(
    cells: Sequence[int],
    rewards: Sequence[float],
    returns: Sequence[float] | None = None,
    advantages: Sequence[float] | None = None,
    episodes: Sequence[tuple[int, float]] = (),
) -> Outcome:
    """
    Make what a rollout brought.

    :param returns: by default the rewards; so are the advantages
    :param episodes: last step and return of each
    """
    paid = array(*rewards)
    others = [paid if given is None else array(*given) for given in (returns, advantages)]
    steps = np.array([step for step, _ in episodes], dtype=int)
    ended = EndedEpisodes(
        steps, array(*(value for _, value in episodes)), np.ones(len(steps), dtype=int), np.zeros(len(steps), dtype=bool)
    )
    return Outcome(np.array(cells), others[0], paid, paid, others[1], ended)


def history_of(n_cells: int, *outcomes: Outcome) -> ScoreHistory:
    history = ScoreHistory(n_cells)
    for outcome in outcomes:
        history.update(outcome)
    return history


def score(name: str, targets: np.ndarray | None = None) -> Score:
    return SCORES[name](targets)


class TestScoresByHand:
    # rewards of cell 0 have a root mean square of 5, those of cell 1 of 2; cell 2 has had none
    outcome = outcome_of(
        cells=[0, 0, 1, 1, 2],
        rewards=[7, 1, -2, 2, 0],
        returns=[8, 1, 0, 2, 0],
        advantages=[5, -5, 2, 4, 1],
        episodes=[(1, 8.0), (3, 0.0)],
    )
    history = history_of(3, outcome)
    each = np.arange(3)

    def test_return(self):
        found = score("return").compare(self.outcome, self.each, self.history)
        np.testing.assert_allclose(found.scores, [4.5 / 5, 1 / 2, 0])
        assert found.groups.tolist() == [0, 1, 2]
        assert found.counts.tolist() == [2, 2, 1]
        assert found.scale == pytest.approx(np.std([8 / 5, 1 / 5, 0, 1, 0]))

    def test_reward(self):
        found = score("reward").compare(self.outcome, self.each, self.history)
        np.testing.assert_allclose(found.scores, [4 / 5, 0, 0])
        assert found.scale == pytest.approx(np.std([7 / 5, 1 / 5, -1, 1, 0]))

    def test_raw_return(self):
        found = score("raw_return").compare(self.outcome, self.each, self.history)
        assert found.scores.tolist() == [4.5, 1, 0]
        assert found.scale == pytest.approx(np.std([8, 1, 0, 2, 0]))

    targets = np.array([[np.nan, 12], [np.nan, 10], [np.nan, 5]])

    def test_gap(self):
        """Began at 8 and 0; on the way to 12 and 10 nothing has been done yet. Returns in units of the way: 4 and 10."""
        found = score("gap", self.targets).compare(self.outcome, self.each, self.history)
        assert found.scores.tolist() == [-1, -1, -1]
        steps = array(3.5 / 4, -3.5 / 4, -1 / 10, 1 / 10, 0)
        assert found.scale == pytest.approx(steps.std())
        # later the first has gone 1/2 of its way, and the second is there
        later = outcome_of(self.outcome.cells.tolist(), [0] * 5, episodes=[(1, 10.0)] * 20 + [(3, 99.0)] * 20)
        history = history_of(3, *[self.outcome] * 20, *[later] * 20)
        found = score("gap", self.targets).compare(self.outcome, self.each, history)
        np.testing.assert_allclose(found.scores, [-0.5, 0, -1], atol=1e-5)
        # from -10 to 12 the first still has 2 of 22 to go
        found = score("gap", np.array([[-10, 12], *self.targets[1:]])).compare(self.outcome, self.each, history)
        np.testing.assert_allclose(found.scores, [-1 / 11, 0, -1], atol=1e-5)

    @pytest.mark.parametrize(
        ("name", "units"), [("return", [1 / 5, 1 / 2, 0]), ("reward", [1 / 5, 1 / 2, 0]), ("raw_return", [1, 1, 1])]
    )
    def test_advantages_are_in_the_same_unit(self, name, units):
        divisor = array(10, 20, 30)
        found = score(name).compare(self.outcome, self.each, self.history, divisor[self.outcome.cells])
        np.testing.assert_allclose(found.advantage_scale, divisor * units)
        # not divided by group: one deviation, of all of them in the unit
        found = score(name).compare(self.outcome, self.each, self.history)
        pooled = (self.outcome.advantages * np.array(units)[self.outcome.cells]).std()
        np.testing.assert_allclose(found.advantage_scale, pooled * (np.array(units) > 0))

    def test_advantages_of_gaps_are_in_units_of_the_way(self):
        found = score("gap", self.targets).compare(
            self.outcome, self.each, self.history, array(10, 20, 30)[self.outcome.cells]
        )
        np.testing.assert_allclose(found.advantage_scale, [10 / 4, 20 / 10, 0])

    def test_cells_of_a_group_have_one_unit(self):
        """The root mean square of 7, 1, -2, 2."""
        found = score("return").compare(self.outcome, np.array([1, 1, 0]), self.history)
        np.testing.assert_allclose(found.scores, [0, 11 / 4 / math.sqrt(58 / 4)])
        assert found.counts.tolist() == [1, 4]

    def test_scale_may_be_the_range(self):
        found = score("raw_return").compare(self.outcome, self.each, self.history, scale_kind="range")
        assert found.scale == 8

    def test_a_score_without_a_rule_cannot_be_made(self):
        with pytest.raises(TypeError, match="abstract"):
            Score()  # type: ignore[abstract]  # what is tested


def test_the_worked_example_is_exact():
    """R = (2.5, 1.8), sigma_R = 0.7: M = ((0, 1), (-1, 0)), penalty 2."""
    # deviations of sqrt(0.7^2 - 0.35^2) from the means
    within = math.sqrt(0.49 - 0.1225)
    returns = [2.5 + within, 2.5 - within, 1.8 + within, 1.8 - within]
    outcome = outcome_of([0, 0, 1, 1], rewards=[1, 100, 1, 1], returns=returns)
    found = RawReturnScore().compare(outcome, np.arange(2), history_of(2, outcome))
    assert found.scores.tolist() == pytest.approx([2.5, 1.8])
    assert found.scale == pytest.approx(0.7)
    matrix = relative_advantage_matrix(found.scores, found.scale)
    np.testing.assert_allclose(matrix, [[0, 1], [-1, 0]], atol=1e-9)
    loss = 1.2 + 0.5 * group_penalty(matrix)
    assert loss == pytest.approx(2.2)
    # control: in units of the rewards it is another
    other = score("return").compare(outcome, np.arange(2), history_of(2, outcome))
    assert group_penalty(relative_advantage_matrix(other.scores, other.scale)) != pytest.approx(2.0, abs=0.1)


N_CELLS, N_GROUPS = 5, 3


def random_rollouts(random: np.random.Generator, n_rollouts: int) -> list[Outcome]:
    """Rollouts of 60 steps; the cells differ in the mean of their rewards, in how often they have one, and in progress."""
    level, often, progress = random.normal(0, 2, N_CELLS), random.uniform(0.2, 1, N_CELLS), random.uniform(0, 9, N_CELLS)
    made = []
    for rollout in range(n_rollouts):
        cells = np.concatenate([np.repeat(np.arange(N_CELLS), 4), random.integers(0, N_CELLS, 40)])
        rewards = (level[cells] + random.normal(size=60)) * (random.random(60) < often[cells])
        returns, advantages = random.normal(level[cells], 1), random.normal(size=60)
        # more than 20 episodes of a cell in two rollouts
        episode_returns = random.normal(5 * level + rollout * progress, 3, (60, N_CELLS))[np.arange(60), cells]
        ended = EndedEpisodes(np.arange(60), episode_returns, np.ones(60, dtype=int), np.zeros(60, dtype=bool))
        made.append(Outcome(cells, returns, rewards + 0.1, rewards, advantages, ended))
    return made


def scaled(outcome: Outcome, factors: np.ndarray) -> Outcome:
    """
    :param factors: on all that is paid in each cell, shape ``(N_CELLS,)``
    """
    steps, episodes = factors[outcome.cells], outcome.episodes
    return Outcome(
        outcome.cells,
        outcome.returns * steps,
        outcome.rewards * steps,
        outcome.paid * steps,
        outcome.advantages * steps,
        episodes._replace(returns=episodes.returns * steps[episodes.steps]),
    )


def weights_after_each(
    rollouts: list[Outcome], name: str, cell_to_group: np.ndarray, by_group: bool, coef: float, targets: np.ndarray | None
) -> np.ndarray:
    """
    :param by_group: whether advantages are normalised by group
    :return: shape ``(n_rollouts, N_GROUPS)``
    """
    history, found = ScoreHistory(N_CELLS), []
    for outcome in rollouts:
        history.update(outcome)
        divisor = None
        if by_group:
            groups = cell_to_group[outcome.cells]
            divisor = normalize_by_group(outcome.advantages, groups, np.zeros(N_GROUPS))[1][groups]
        comparison = score(name, targets).compare(outcome, cell_to_group, history, divisor)
        found.append(RelativePenalty(lambda progress: coef)(comparison, 1.0).weights)
    return np.array(found)


class TestUnitOfOneGroup:
    """From the first rollout on."""

    def weights(self, seed, factors, name, by_group, coef=0.01, with_targets=False) -> np.ndarray:
        """
        :param factors: on the rewards of each group
        """
        random = np.random.default_rng(seed)
        cell_to_group = random.permutation([0, 1, 2, *random.integers(0, N_GROUPS, N_CELLS - N_GROUPS)])
        rollouts, by_cell = random_rollouts(random, 3), np.array(factors)[cell_to_group]
        targets = np.stack([random.normal(-40, 10, N_CELLS), random.normal(20, 10, N_CELLS)], axis=1) * by_cell[:, None]
        # some begin where their first episodes were
        targets[::2, 0] = np.nan
        changed = [scaled(outcome, by_cell) for outcome in rollouts]
        return weights_after_each(changed, name, cell_to_group, by_group, coef, targets if with_targets else None)

    @pytest.mark.parametrize("by_group", [True, False])
    @pytest.mark.parametrize("name", WITHOUT_UNIT)
    @property_test
    @given(
        seed=st.integers(0, 2**32),
        powers=st.lists(st.integers(-8, 8), min_size=3, max_size=3),
        coef=st.sampled_from([1e-3, 0.05, 10.0]),
    )
    def test_changes_no_weight(self, name, by_group, seed, powers, coef):
        plain = self.weights(seed, [1.0, 1.0, 1.0], name, by_group, coef)
        np.testing.assert_allclose(self.weights(seed, 10.0 ** (np.array(powers) / 4), name, by_group, coef), plain, atol=2e-3)

    @pytest.mark.parametrize("by_group", [True, False])
    @property_test
    @given(seed=st.integers(0, 2**32), powers=st.lists(st.integers(-8, 8), min_size=3, max_size=3))
    def test_changes_no_weight_if_that_of_its_targets_is_changed_too(self, by_group, seed, powers):
        plain, other = (
            self.weights(seed, factors, "gap", by_group, 0.01, with_targets=True)
            for factors in ([1.0, 1.0, 1.0], 2.0 ** np.array(powers))
        )
        np.testing.assert_allclose(other, plain, atol=2e-3)

    @pytest.mark.parametrize("by_group", [True, False])
    @pytest.mark.parametrize("name", [*WITHOUT_UNIT, "raw_return"])
    @pytest.mark.parametrize("group", range(N_GROUPS))
    def test_changes_those_of_raw_returns_only(self, name, by_group, group):
        factors = [1.0, 1.0, 1.0]
        plain = self.weights(0, factors, name, by_group)
        factors[group] = 30.0
        difference = np.abs(self.weights(0, factors, name, by_group) - plain).max(axis=1)
        assert difference.shape == (3,)
        if name == "raw_return":
            assert difference.min() > 0.01
        else:
            assert difference.max() < 1e-5
        # and there is a balance that could change
        assert np.abs(plain[-1] - 1).max() > 0.02


class ProgressEnv(CountingEnv):
    """
    ``CountingEnv`` in which the episodes of task ``k`` last ``before[k]`` steps and, after three of them, ``after[k]``.

    Tasks are played in turn, whatever probabilities are set.
    """

    def __init__(self, pay: Sequence[float], before: Sequence[int], after: Sequence[int]):
        super().__init__(pay=tuple(pay), length=tuple(before))
        self.lengths = before, after
        self.n_played = [0] * self.n_tasks
        self.probabilities = np.full(self.n_tasks, 1 / self.n_tasks)

    def get_task_probabilities(self) -> np.ndarray:
        return self.probabilities.copy()

    def set_task_probabilities(self, probabilities: np.ndarray) -> None:
        self.probabilities = np.array(probabilities)

    def reset(self, *, seed=None, options=None):
        self.n_played[self._next_task()] += 1
        self.length = tuple(np.where(np.array(self.n_played) <= 3, *self.lengths))
        return super().reset(seed=seed, options=options)


class Found:
    """
    Weights of the loss, and shares of the steps that sampling asks for, after a training in ``ProgressEnv``.

    :param group_score: of both
    :param kwargs: of the environment
    """

    def __init__(self, group_score: str, targets: Sequence[float] | None = None, coef: float = 0.02, **kwargs: Any):
        # ten of them, so that 30 episodes of each task come first
        env = DummyVecEnv([lambda: ProgressEnv(**kwargs)] * 10)
        n_tasks = len(kwargs["pay"])
        sampling = TaskSamplingCallback(coef, 0.1, group_score=group_score, group_targets=targets)
        model = GRPO(
            "MlpPolicy",
            env,
            n_steps=30,
            batch_size=300,
            n_epochs=1,
            learning_rate=0.0,
            gamma=1.0,
            gae_lambda=1.0,
            router="one_hot",
            router_kwargs=dict(columns=(1, 1 + n_tasks)),
            merge_kl=None,
            split_kl=None,
            group_coef=coef,
            group_score=group_score,
            group_targets=targets,
            policy_kwargs=dict(net_arch=[4]),
            seed=0,
            device="cpu",
        )
        for parameter in model.policy.value_net.parameters():
            th.nn.init.zeros_(parameter)
        model.learn(6 * 300, callback=sampling)
        self.scores = [record.score for record in model.groups]
        self.weights = [record.weight for record in model.groups]
        # the lengths of the last 20 episodes are known
        drawn = (sampling.probabilities - 0.1 / n_tasks) * np.array(kwargs["after"])
        self.shares = (drawn / drawn.sum()).tolist()

    def check_behind(self, behind: int, ahead: int) -> None:
        assert self.weights[behind] > 1 > self.weights[ahead]
        assert self.shares[behind] > 1 / len(self.shares) > self.shares[ahead]

    def check_balanced(self) -> None:
        assert self.weights == [1.0] * len(self.weights)
        assert self.shares == pytest.approx([1 / len(self.shares)] * len(self.shares))


class TestRewardsOfOneSign:
    @pytest.mark.parametrize("name", ["return", "gap"])
    def test_who_has_survived_longer_is_ahead(self, name):
        targets = [10, 300] if name == "gap" else None
        Found(name, targets, pay=(1, 30), before=(2, 2), after=(8, 3)).check_behind(1, 0)
        Found(name, targets, pay=(1, 30), before=(2, 2), after=(3, 8)).check_behind(0, 1)

    @pytest.mark.parametrize("name", ["return", "gap"])
    def test_who_needs_fewer_steps_is_ahead(self, name):
        targets = [-2, -60] if name == "gap" else None
        Found(name, targets, pay=(-1, -30), before=(10, 10), after=(3, 8)).check_behind(1, 0)
        Found(name, targets, pay=(-1, -30), before=(10, 10), after=(8, 3)).check_behind(0, 1)

    def test_a_task_whose_episodes_were_all_alike(self):
        """Without a target nothing says how far it could go: it is left out of the loss, and gets more data."""
        found = Found("gap", pay=(1, 1), before=(5, 5), after=(9, 5))
        assert found.weights == [1, 1]
        assert found.shares[1] > 0.51


class TestRewardsOfOppositeSigns:
    """A task that pays for each step survived, and one that takes for each step needed."""

    # of the ways from 2 to 10 and from 10 to 2 both have gone 6/8 and 1/8
    @pytest.mark.parametrize(
        ("survived", "needed", "ahead"), [((2, 8), (10, 9), 0), ((2, 3), (10, 4), 1)], ids=["survival", "speed"]
    )
    @pytest.mark.parametrize("signs", [(1, -1), (-1, 1)])
    def test_who_has_come_further_is_ahead(self, survived, needed, ahead, signs):
        ways = {1: (survived, 10.0), -1: (needed, -2.0)}
        (one, other), targets = zip(*(ways[sign] for sign in signs), strict=True)
        before, after = zip(one, other, strict=True)
        found = Found("gap", list(targets), pay=signs, before=before, after=after)
        place = ahead if signs[0] == 1 else 1 - ahead
        found.check_behind(1 - place, place)
        assert sorted(-np.array(found.scores)) == pytest.approx([0.25, 0.875], abs=0.05)

    def test_returns_cannot_tell(self):
        """Control: the task that pays is ahead, whoever has come further."""
        for survived, needed in (((2, 8), (10, 9)), ((2, 3), (10, 4))):
            before, after = zip(survived, needed, strict=True)
            Found("return", pay=(1, -1), before=before, after=after).check_behind(1, 0)


class TestSparseRewards:
    """The second of three tasks has had no reward in all its rollouts."""

    # rollouts of 30 steps end with an episode of the third task where the first and the third are played alike
    kwargs: ClassVar[dict[str, Any]] = dict(pay=(1, 0, 1), before=(3, 4, 3), after=(8, 3, 6))

    @pytest.mark.parametrize("name", WITHOUT_UNIT)
    def test_its_weight_is_one(self, name):
        assert Found(name, **self.kwargs).weights[1] == 1

    @pytest.mark.parametrize("name", ["return", "gap"])
    def test_others_that_are_alike_have_none_to_be_compared_with(self, name):
        found = Found(name, **{**self.kwargs, "after": (6, 3, 6)})
        assert found.weights == pytest.approx([1, 1, 1], abs=1e-5)

    def test_the_others_are_weighed_among_themselves(self):
        found = Found("return", **self.kwargs)
        assert found.weights[0] < 1 < found.weights[2]

    def test_neither_does_a_target_make_it_take_part(self):
        found = Found("gap", (10.0, 10.0, 10.0), **self.kwargs)
        assert found.weights[1] == 1
        assert found.weights[0] < 1 < found.weights[2]

    @pytest.mark.parametrize("name", ["return", "gap"])
    def test_with_a_reward_it_takes_part(self, name):
        """However small it is."""
        targets = (10.0, 1e-2, 10.0) if name == "gap" else None
        found = Found(name, targets, **{**self.kwargs, "pay": (1, 1e-3, 1)})
        assert found.weights[1] > 1.01
        assert found.weights[0] < 1

    @pytest.mark.parametrize("targets", [None, (10.0, 10.0, 10.0)])
    def test_sampling_by_gap_gives_it_most(self, targets):
        found = Found("gap", targets, **self.kwargs)
        assert found.scores[1] == pytest.approx(-1)
        assert np.argmax(found.shares) == 1
        assert found.shares[1] > 0.36


@pytest.mark.parametrize("name", SCORES)
def test_without_any_reward_nothing_is_balanced(name):
    Found(name, coef=0.5, pay=(0, 0, 0), before=(2, 4, 6), after=(3, 4, 7)).check_balanced()


@pytest.mark.parametrize("targets", [None, (0.0, 0.0), (1.0, 1.0), (-1.0, -1.0)])
def test_without_any_reward_targets_change_nothing(targets):
    Found("gap", targets, coef=0.5, pay=(0, 0), before=(2, 4), after=(3, 7)).check_balanced()


TASKS: list[dict[str, Any]] = [{}, {"invert": True}, {"length": 0.25}]
# Equal within rounding
CLOSE = 1e-5
# What a parameter differs by at least where something depends on the unit
FAR = 1e-3


@cache
def trained(name: str, power: int, coef: float = 0.05) -> GRPO:
    """
    Train on three tasks, with the rewards of the second times ``2 ** power``.

    :param name: of the score
    """
    tasks = [{**each, "reward_scale": 2.0**power if index == 1 else 1.0} for index, each in enumerate(TASKS)]
    env = make_vec_env("sb3_grpo/TaskCartPole-v0", 3, seed=0, env_kwargs=dict(tasks=tasks))
    model = GRPO(
        "MlpPolicy",
        env,
        learning_rate=1e-3,
        n_steps=64,
        batch_size=64,
        n_epochs=2,
        normalize_advantage="group",
        group_coef=coef,
        group_score=name,
        router="one_hot",
        router_kwargs=dict(columns=(4, 7)),
        merge_kl=None,
        split_kl=None,
        policy_kwargs=dict(net_arch=[16]),
        seed=0,
        device="cpu",
    )
    return model.learn(8 * 64 * 3)


def distance(one: GRPO, other: GRPO) -> float:
    """Largest difference of a parameter of the trunk or of the heads of actions."""
    pairs = zip(one.policy.named_parameters(), other.policy.named_parameters(), strict=True)
    return max((a - b).abs().max().item() for (name, a), (_, b) in pairs if "value_net" not in name)


class TestWholeTraining:
    @pytest.mark.parametrize("power", [-7, 5])
    @pytest.mark.parametrize("name", ["return", "gap"])
    def test_does_not_depend_on_the_unit_of_one_task(self, name, power):
        plain, other = trained(name, 0), trained(name, power)
        assert distance(plain, other) < CLOSE
        obs = np.random.default_rng(0).normal(size=(300, 7)).astype(np.float32)
        obs[:, 4:] = np.tile(np.eye(3), (100, 1))
        actions = [model.predict(obs, deterministic=True)[0] for model in (plain, other)]
        np.testing.assert_array_equal(actions[1], actions[0])
        assert {0, 1} == set(actions[0])
        # and the values are in that unit
        with th.no_grad():
            values = [model.policy.predict_values(th.as_tensor(obs)).numpy().ravel() for model in (plain, other)]
        np.testing.assert_allclose(values[1], values[0] * np.tile([1, 2.0**power, 1], 100), rtol=1e-3, atol=1e-4)

    def test_depends_on_it_with_raw_returns(self):
        assert distance(trained("raw_return", 0), trained("raw_return", 5)) > FAR

    @pytest.mark.parametrize("name", ["return", "gap"])
    def test_is_balanced(self, name):
        """Control: without lambda it is another training."""
        assert distance(trained(name, 0), trained("return", 0, coef=0.0)) > FAR
        assert np.ptp([record.weight for record in trained(name, 0).groups]) > 0.01


def made(**kwargs: Any) -> GRPO:
    options: dict[str, Any] = dict(router="one_hot", router_kwargs=dict(columns=(1, 3)), policy_kwargs=dict(net_arch=[4]))
    options |= dict(n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
    return GRPO("MlpPolicy", DummyVecEnv([CountingEnv]), **{**options, **kwargs})


class TestTargetsOfAModel:
    @pytest.mark.parametrize("targets", [[], [1.0], [1.0, 2.0, 3.0]])
    def test_are_one_for_each_cell(self, targets):
        with pytest.raises(ValueError, match=r"`group_targets` must have one target for each of the 2 cells, got \["):
            made(group_score="gap", group_targets=targets)

    def test_of_random_cells(self):
        random: dict[str, Any] = dict(router="random", router_kwargs=dict(n_cells=5), group_score="gap")
        with pytest.raises(ValueError, match="one target for each of the 5 cells"):
            made(**random, group_targets=[1.0, 2.0])
        assert made(**random, group_targets=np.ones(5)).learn(32).num_timesteps == 32

    def test_can_be_given_when_a_model_is_loaded(self, tmp_path):
        """What its episodes have brought is known from before: they return 3 and 10, and began with it."""
        made().learn(64).save(tmp_path / "model")
        env = DummyVecEnv([CountingEnv])
        loaded = GRPO.load(tmp_path / "model", env=env, group_score="gap", group_targets=[3.0, 20.0], device="cpu")
        loaded.learn(32, reset_num_timesteps=False)
        assert [record.score for record in loaded.groups] == pytest.approx([0, -1])
        # saved with the model
        loaded.save(tmp_path / "other")
        again = GRPO.load(tmp_path / "other", env=env, device="cpu")
        assert again.group_targets == [3.0, 20.0]
        again.learn(32, reset_num_timesteps=False)
        assert [record.score for record in again.groups] == pytest.approx([0, -1])

    def test_of_a_file_go_with_its_score(self, tmp_path):
        made(group_score="gap", group_targets=[3.0, 20.0]).save(tmp_path / "model")
        with pytest.raises(ValueError, match='`group_targets` needs `group_score="gap"`'):
            GRPO.load(tmp_path / "model", group_score="return", device="cpu")
        assert GRPO.load(tmp_path / "model", group_score="return", group_targets=None, device="cpu").group_targets is None

    def test_can_be_changed_between_trainings(self):
        model = made(group_score="gap", group_targets=[3.0, 20.0]).learn(32)
        model.group_targets = [9.0, 10.0]
        model.learn(32)
        assert [record.score for record in model.groups] == pytest.approx([-1, 0])
        model.group_targets = [9.0]
        with pytest.raises(ValueError, match="one target for each of the 2 cells"):
            model.learn(32)
        model.group_targets = [9.0, math.nan]
        with pytest.raises(ValueError, match="`group_targets` must be a sequence or a dict"):
            model.learn(32)
