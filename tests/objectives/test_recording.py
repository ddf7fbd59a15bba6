"""What is recorded of objectives, against SB3's buffer and a plain loop."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from objectives.rewards import NAMES, make_env
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_grpo import GRPO
from sb3_grpo.objectives.recording import ObjectiveRecorder, ObjectiveRollout, generalized_advantages

N_STEPS, N_ENVS = 16, 2


def make_model() -> GRPO:
    arguments: dict[str, Any] = dict(n_steps=N_STEPS, batch_size=16, n_epochs=1, seed=0, device="cpu", gamma=0.9)
    return GRPO("MlpPolicy", make_env(), group_by="objectives", policy_kwargs=dict(net_arch=[8]), **arguments)


def recorded(n_rollouts: int = 1) -> tuple[GRPO, ObjectiveRecorder, ObjectiveRollout]:
    """A model that was trained, and what a recorder saw of its last rollout."""
    model, recorder = make_model(), ObjectiveRecorder(NAMES)
    model.learn(n_rollouts * N_STEPS * N_ENVS, recorder)
    assert recorder.rollout is not None
    return model, recorder, recorder.rollout


@given(
    seed=st.integers(0, 2**16),
    n_objectives=st.integers(1, 4),
    gamma=st.floats(0, 1),
    gae_lambda=st.floats(0, 1),
    ends=st.floats(0, 0.6),
)
def test_each_objective_has_the_advantages_of_sb3(
    seed: int, n_objectives: int, gamma: float, gae_lambda: float, ends: float
) -> None:
    """To the last bit: for each objective a buffer of SB3's, for which it is the reward."""
    generator, shape = np.random.default_rng(seed), (6, 3, n_objectives)
    rewards, values = (generator.normal(size=shape).astype(np.float32) for _ in range(2))
    last_values, dones = generator.normal(size=shape[1:]).astype(np.float32), generator.random(3) < ends
    starts = (generator.random(shape[:2]) < ends).astype(np.float32)
    found = generalized_advantages(rewards, values, last_values, starts, dones, gamma, gae_lambda)
    space = spaces.Box(-1, 1, (1,), np.float32)
    for index in range(n_objectives):
        buffer = RolloutBuffer(6, space, space, "cpu", gae_lambda, gamma, n_envs=3)
        buffer.rewards, buffer.values, buffer.episode_starts = rewards[..., index], values[..., index], starts
        buffer.compute_returns_and_advantage(th.as_tensor(last_values[:, index]), dones)
        np.testing.assert_array_equal(found[..., index], buffer.advantages)


def test_what_a_training_records() -> None:
    # values are 0 in the first rollout
    model, _, rollout = recorded(n_rollouts=2)
    buffer = model.rollout_buffer
    assert rollout.paid.shape == (N_STEPS, N_ENVS, 3)
    # SB3's buffer has the sums, its rewards with the sum of the values where a time limit ended an episode
    flat = buffer.flat_rewards().reshape(N_ENVS, N_STEPS).T
    np.testing.assert_allclose(rollout.rewards.sum(axis=2), flat, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rollout.values.sum(axis=2), buffer.values.reshape(N_ENVS, N_STEPS).T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        rollout.advantages.sum(axis=2), buffer.advantages.reshape(N_ENVS, N_STEPS).T, rtol=1e-4, atol=1e-5
    )
    # episodes of 5 and of 7 steps; the second rollout begins with step 16
    ends = [(step - N_STEPS, env) for env, length in enumerate((5, 7)) for step in range(length - 1, 2 * N_STEPS, length)]
    ended = [(step, env) for step, env in ends if step >= 0]
    differs = np.argwhere((rollout.rewards != rollout.paid).any(axis=2))
    assert sorted(map(tuple, differs.tolist())) == sorted(ended)


def test_entries_are_objective_by_objective() -> None:
    model, recorder, rollout = recorded()
    outcome, paid = recorder.outcome_of_objectives(model.rollout_buffer), rollout.paid
    n = N_STEPS * N_ENVS
    assert outcome.cells.tolist() == [0] * n + [1] * n + [2] * n
    for objective in range(3):
        expected = [paid[step, env, objective] for env in range(N_ENVS) for step in range(N_STEPS)]
        np.testing.assert_array_equal(outcome.paid[objective * n : (objective + 1) * n], expected)
    # the action that was taken is what speed pays, up to clipping
    actions = model.rollout_buffer.actions.reshape(-1)
    np.testing.assert_allclose(outcome.paid[:n], np.clip(actions, -1, 1), rtol=1e-6)


def test_episodes_by_hand() -> None:
    model, recorder, rollout = recorded()
    paid, episodes = rollout.paid, recorder.outcome_of_objectives(model.rollout_buffer).episodes
    found = dict(
        zip(episodes.steps.tolist(), zip(episodes.returns, episodes.lengths, episodes.truncated, strict=True), strict=True)
    )
    expected = {}
    for objective in range(3):
        for env, length in enumerate((5, 7)):
            for end in range(length - 1, N_STEPS, length):
                total = paid[end - length + 1 : end + 1, env, objective].sum()
                expected[objective * N_STEPS * N_ENVS + env * N_STEPS + end] = (pytest.approx(total, abs=1e-5), length, True)
    assert found == expected


def test_without_a_training_there_is_nothing() -> None:
    with pytest.raises(RuntimeError, match="train with `learn`"):
        ObjectiveRecorder(NAMES).outcome_of_objectives(make_model().rollout_buffer)


def test_names_of_the_environment() -> None:
    assert make_model().objective_names == NAMES
