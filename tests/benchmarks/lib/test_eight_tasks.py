"""Test the tasks, their environment beside ``TaskCartPole`` step by step, their evaluation, and the record of weights."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks.lib.eight_tasks import (
    EIGHT_TASKS,
    BalanceRecord,
    CartPoleVecEnv,
    FallCost,
    TaskEvaluation,
    draw_scales,
    with_scales,
)
from sb3_grpo import GRPO, TaskSamplingCallback

SEED = 3
INVERTED = np.array([bool(task["invert"]) for task in EIGHT_TASKS])


def registered_envs(tasks: Any, play: Any, seed: int) -> DummyVecEnv:
    env = DummyVecEnv([partial(gym.make, "sb3_grpo/TaskCartPole-v0", tasks=tasks, task=task) for task in play])
    env.seed(seed)
    return env


def balance_pole(obs: np.ndarray) -> np.ndarray:
    """Push towards the side to which the pole falls, and back to the middle."""
    right = obs[:, 2] + 0.5 * obs[:, 3] + 0.05 * obs[:, 0] + 0.1 * obs[:, 1] > 0
    return (right ^ INVERTED[obs[:, 4:].argmax(axis=1)]).astype(int)


def fall(obs: np.ndarray) -> np.ndarray:
    """Push towards the side on which the pole is, so that it swings more and more."""
    return ((obs[:, 2] > 0) ^ INVERTED[obs[:, 4:].argmax(axis=1)]).astype(int)


class Careless:
    """An agent whose episodes end early."""

    def predict(self, obs: np.ndarray, deterministic: bool) -> tuple[np.ndarray, None]:
        assert deterministic
        return fall(obs), None


def test_tasks_are_unequal() -> None:
    assert [task["length"] for task in EIGHT_TASKS] == pytest.approx([0.45, 0.492, 0.533, 0.575, 0.617, 0.658, 0.7, 0.12])
    assert INVERTED.tolist() == [False, True] * 4
    assert [task.get("force_mag", 10.0) for task in EIGHT_TASKS] == [10.0] * 7 + [20.0]


@pytest.mark.parametrize("play", [range(8), ["random"] * 8], ids=["fixed", "drawn"])
def test_steps_are_those_of_the_registered_environment(play: Any) -> None:
    tasks = with_scales(EIGHT_TASKS, draw_scales(8, SEED))
    mine, theirs = CartPoleVecEnv(tasks, play, SEED), registered_envs(tasks, play, SEED)
    assert mine.observation_space == theirs.observation_space
    assert mine.action_space == theirs.action_space
    obs: Any = mine.reset()
    np.testing.assert_array_equal(obs, theirs.reset())
    rng, ended = np.random.default_rng(0), set()
    for step in range(800):
        if step == 300:
            for env in (mine, theirs):
                env.env_method("set_task_probabilities", [0.5, 0, 0, 0, 0, 0, 0, 0.5])
        # environments 0 to 3 balance the pole up to the time limit, the others act at random
        actions = np.where(np.arange(8) < 4, balance_pole(obs), rng.integers(2, size=8))
        obs, rewards, dones, infos = mine.step(actions)
        other: Any
        other, their_rewards, their_dones, their_infos = theirs.step(actions)
        np.testing.assert_allclose(obs, other, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(rewards, their_rewards)
        np.testing.assert_array_equal(dones, their_dones)
        assert obs.dtype == np.float32
        assert rewards.dtype == np.float32
        for info, their_info in zip(infos, their_infos, strict=True):
            last, their_last = (each.pop("terminal_observation", np.zeros(0)) for each in (info, their_info))
            np.testing.assert_allclose(last, their_last, rtol=1e-5, atol=1e-6)
            assert info == their_info
            ended |= {info["TimeLimit.truncated"]} if len(last) else set()
    assert ended == {True, False}


def test_another_seed_and_another_task_differ() -> None:
    """The comparison above can fail."""
    actions = np.zeros(8, int)

    def states(play: Any, seed: int) -> np.ndarray:
        env = CartPoleVecEnv(EIGHT_TASKS, play, seed)
        env.reset()
        return np.asarray(env.step(actions)[0])[:, :4]

    one = states([0] * 8, 0)
    np.testing.assert_array_equal(one, states([0] * 8, 0))
    assert (one != states([0] * 8, 1)).any()
    # the action pushes in the other direction
    assert (np.sign(one[:, 1]) != np.sign(states([7] * 8, 0)[:, 1])).all()


def test_what_is_returned_belongs_to_the_caller() -> None:
    env = CartPoleVecEnv(EIGHT_TASKS, range(8), 0)
    kept: Any = env.reset()
    kept[:] = np.nan
    for _ in range(3):
        obs, rewards, _, _ = env.step(np.zeros(8, int))
        assert np.isfinite(obs).all()  # type: ignore[arg-type]  # SB3's VecEnvObs has tuples too
        assert (rewards == 1).all()
        rewards += 5  # as SB3 adds the value at a time limit


def test_evaluation_plays_one_episode_in_each_environment() -> None:
    """The mean of each task is that of single environments, one after the other, with rewards of 1."""
    agent: Any = Careless()
    found = TaskEvaluation(with_scales(EIGHT_TASKS, draw_scales(8, 0)), 2, seed=SEED)(agent)
    returns = np.zeros(16)
    for index, task in enumerate(np.repeat(range(8), 2).tolist()):
        env = registered_envs(EIGHT_TASKS, [task], SEED + index)
        obs, done = env.reset(), False
        while not done:
            obs, (reward,), (done,), _ = env.step(fall(np.asarray(obs)))
            returns[index] += reward
    assert found == pytest.approx(returns.reshape(8, 2).mean(axis=1))
    assert np.ptp(found) > 5


def test_scales_are_those_of_the_seed() -> None:
    scales = np.array([draw_scales(8, seed) for seed in range(200)])
    assert 0.01 <= scales.min() < 0.011
    assert 90 < scales.max() <= 100
    # a quarter of them lies in each of the four decades
    assert np.histogram(np.log10(scales), [-2, -1, 0, 1, 2])[0] / scales.size == pytest.approx(0.25, abs=0.04)
    np.testing.assert_array_equal(draw_scales(8, 7), scales[7])


class KeepWeights(BaseCallback):
    """Keep the weights of the groups at the start of each rollout after the first."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[list[float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps:
            assert isinstance(self.model, GRPO)
            self.kept.append([group.weight for group in self.model.groups])


@pytest.mark.parametrize(("group_coef", "capped"), [(0.0, 0.0), (100.0, 1.0)])
def test_record_has_the_weights_of_all_updates(group_coef: float, capped: float) -> None:
    record, keep = BalanceRecord(), KeepWeights()
    model = GRPO(
        "MlpPolicy",
        CartPoleVecEnv(EIGHT_TASKS, range(8), SEED),
        n_steps=32,
        n_epochs=1,
        seed=SEED,
        device="cpu",
        router="one_hot",
        router_kwargs=dict(columns=(4, 12)),
        normalize_advantage="group",
        group_coef=group_coef,
    )
    model.learn(512, [record, keep])
    model.learn(256, [record, keep], reset_num_timesteps=False)
    weights = np.array([*keep.kept, [group.weight for group in model.groups]])
    assert weights.shape == (3, 8)
    summary = record.summary()
    np.testing.assert_allclose(summary["weights"], weights.mean(axis=0), atol=6e-4)
    assert summary["capped"] == capped
    assert (weights == 1).all() == (group_coef == 0)
    assert 0 <= summary["coef_effective"] <= group_coef / 2


def test_nothing_is_recorded_of_ppo() -> None:
    record = BalanceRecord()
    env = CartPoleVecEnv(EIGHT_TASKS, ["random"] * 8, SEED)
    PPO("MlpPolicy", env, n_steps=32, n_epochs=1, device="cpu").learn(256, [record, TaskSamplingCallback()])
    assert record.summary() == {}


@pytest.mark.parametrize(("play", "costs"), [(fall, {-1.0}), (balance_pole, {0.0})])
def test_fall_cost(play: Any, costs: set[float]) -> None:
    """A fall costs 1, the end of the time nothing; the other tasks are paid as before."""
    env = FallCost(CartPoleVecEnv(EIGHT_TASKS, [0, 1], SEED), tasks=[1])
    obs, ended = env.reset(), 0
    while ended < 2:
        obs, rewards, dones, _ = env.step(play(np.asarray(obs)))
        assert rewards[0] == 1
        assert rewards[1] in (costs if dones[1] else {0.0})
        ended += dones[1]
