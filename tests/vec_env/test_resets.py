from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import vector as wrappers
from tiny_envs import CountingEnv
from vec_env.recording import draw_actions, play

from sb3_grpo import GRPO, adapt_vector_env

MODES = list(AutoresetMode)


def counting(mode=AutoresetMode.NEXT_STEP):
    return SyncVectorEnv([CountingEnv] * 2, autoreset_mode=mode)


def cartpole(n=4, **kwargs):
    return gym.make_vec("CartPole-v1", num_envs=n, vectorization_mode="vector_entry_point", **kwargs)


class NextStepEnv(gym.vector.VectorEnv):
    """Counts to 3 or, in the second environment, 4; its own reset of single environments is `restart`."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012  # as gymnasium's own classes have it

    def __init__(self):
        self.num_envs = 2
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.count = np.zeros(2)

    def reset(self, *, seed=None, options=None):
        self.count[:] = 0
        return self.count[:, None], {}

    def restart(self, mask):
        self.count[mask] = 0
        return self.count[:, None], {"restarted": mask, "_restarted": mask}

    def step(self, actions):
        self.count += 1
        return self.count[:, None], np.ones(2), self.count == [3, 4], np.full(2, False), {}


def restart(env, mask):
    return env.restart(mask)


def test_a_vector_environment_that_cannot_be_served():
    with pytest.raises(ValueError, match=r"env must be able to reset some .*NEXT_STEP.*SAME_STEP.*reset_some=function"):
        adapt_vector_env(NextStepEnv())


def test_reset_by_the_users_function():
    env = adapt_vector_env(NextStepEnv(), reset_some=restart)
    record = play(env, n_steps=4)
    assert [obs.ravel().tolist() for obs in record.observations] == [[0, 0], [1, 1], [2, 2], [0, 3], [1, 0]]
    assert [(i, info["terminal_observation"].tolist()) for _, i, info in record.ended()] == [(0, [3]), (1, [4])]
    assert env.reset_infos == [{"restarted": True}] * 2


def test_a_mode_must_be_named(monkeypatch):
    monkeypatch.setattr(NextStepEnv, "metadata", {})
    with pytest.raises(ValueError, match=r"metadata must have the key 'autoreset_mode'"):
        adapt_vector_env(NextStepEnv())
    adapt_vector_env(NextStepEnv(), reset_some=restart)


def test_a_function_that_would_never_be_called():
    with pytest.raises(ValueError, match=r"reset_some must be None for AutoresetMode\.SAME_STEP"):
        adapt_vector_env(counting(AutoresetMode.SAME_STEP), reset_some=lambda env, mask: env.reset())


# Python 3.12 warns of any process that is forked where there are threads, and torch has some
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_processes_without_shared_memory():
    lengths = {}
    for mode in MODES:
        vector_env = AsyncVectorEnv([CountingEnv] * 2, shared_memory=False, autoreset_mode=mode)
        try:
            if mode is AutoresetMode.NEXT_STEP:  # its workers would reset a second time
                with pytest.raises(ValueError, match="env must be able to reset some"):
                    adapt_vector_env(vector_env)
            else:
                record = play(adapt_vector_env(vector_env), n_steps=9)
                lengths[mode] = [info["episode"]["l"] for _, i, info in record.ended() if i == 0]
        finally:
            vector_env.close()
    assert list(lengths.values()) == [[3, 5]] * 2


@pytest.mark.parametrize("mode", MODES)
def test_gymnasiums_statistics_stay_right(mode):
    # out of step: the first environment is one task ahead of the second
    vector_env = SyncVectorEnv([lambda: CountingEnv(first_task=1), CountingEnv], autoreset_mode=mode)
    wrapped = wrappers.RecordEpisodeStatistics(vector_env)
    record = play(adapt_vector_env(wrapped), n_steps=16)
    by_hand = [(info["episode"]["r"], info["episode"]["l"]) for _, _, info in record.ended()]
    assert sorted(by_hand) == [(3, 3)] * 4 + [(10, 5)] * 4
    assert list(zip(wrapped.return_queue, wrapped.length_queue, strict=True)) == by_hand


def test_gymnasiums_statistics_instead_of_ours():
    env = adapt_vector_env(wrappers.RecordEpisodeStatistics(counting()), episode_statistics=False)
    assert [info["episode"]["r"] for _, i, info in play(env, n_steps=8).ended() if i == 0] == [3, 10]


@pytest.mark.parametrize("wrapper", [wrappers.NormalizeReward, wrappers.NormalizeObservation])
def test_wrappers_that_forget(wrapper):
    with pytest.raises(ValueError, match=rf"must not be wrapped in {wrapper.__name__} .* NEXT_STEP.*VecNormalize"):
        adapt_vector_env(wrappers.ClipReward(wrapper(counting()), 0, 1))


def test_normalised_rewards_where_the_step_resets():
    rewards = play(adapt_vector_env(wrappers.NormalizeReward(counting(AutoresetMode.SAME_STEP)))).rewards
    alone = wrappers.NormalizeReward(counting(AutoresetMode.SAME_STEP))
    alone.reset(seed=7)
    actions = draw_actions(alone.single_action_space, 60, 2)
    np.testing.assert_array_equal(rewards, np.array([alone.step(a)[1] for a in actions], np.float32))


def test_vectorised_cartpole():
    env, alone = adapt_vector_env(cartpole(max_episode_steps=20)), cartpole(max_episode_steps=20)
    assert isinstance(alone, CartPoleVectorEnv)
    record = play(env, n_steps=60)
    observations, _ = alone.reset(seed=7)
    np.testing.assert_array_equal(record.observations[0], observations)
    for t, actions in enumerate(draw_actions(env.action_space, 60, 4)):
        observations, rewards, terminated, truncated, _ = alone.step(actions)
        done = terminated | truncated
        np.testing.assert_array_equal(record.rewards[t], rewards)
        np.testing.assert_array_equal(record.dones[t], done)
        first = record.observations[t + 1]
        np.testing.assert_array_equal(first[~done], observations[~done])
        for i in np.flatnonzero(done):
            np.testing.assert_array_equal(record.infos[t][i]["terminal_observation"], observations[i])
        # its own reset, which it would otherwise do within its next step: the same numbers of its generator
        assert alone.state is not None
        alone.state[:, done] = alone.np_random.uniform(-0.05, 0.05, (4, done.sum()))
        alone.steps[done], alone.prev_done[done] = 0, False
        np.testing.assert_array_equal(first, alone.state.T.astype(np.float32))
    assert {info["TimeLimit.truncated"] for _, _, info in record.ended()} == {True, False}
    assert max(info["episode"]["l"] for _, _, info in record.ended()) == 20


def test_vectorised_cartpole_draws_what_its_own_step_would_draw():
    """With one environment the adapter and the environment alone differ by the step in which the latter only resets."""
    record, alone = play(adapt_vector_env(cartpole(1)), n_steps=60), cartpole(1)
    observations = [alone.reset(seed=7)[0]]
    for actions in draw_actions(alone.single_action_space, 60, 1):
        observation, _, terminated, truncated, _ = alone.step(actions)
        if not (terminated | truncated)[0]:
            observations.append(observation)
            continue
        observations.append(alone.step(actions)[0])  # resets
    np.testing.assert_array_equal(record.observations, observations)


def test_vectorised_cartpole_reaches_its_time_limit():
    env = adapt_vector_env(cartpole(2))
    obs: Any = env.reset()
    for _ in range(500):
        obs, _, dones, infos = env.step((3 * obs[:, 2] + obs[:, 3] + 0.1 * obs[:, 0] + 0.3 * obs[:, 1] > 0).astype(int))
    assert dones.all()
    assert all(info["TimeLimit.truncated"] and info["episode"] == info["episode"] | {"r": 500, "l": 500} for info in infos)


def test_vectorised_cartpole_within_wrappers_is_refused():
    with pytest.raises(ValueError, match="env must be able to reset some"):
        adapt_vector_env(wrappers.RecordEpisodeStatistics(cartpole()))


def test_grpo_learns_on_vectorised_cartpole():
    results = []
    for _ in range(2):
        model = GRPO("MlpPolicy", adapt_vector_env(cartpole()), n_steps=32, batch_size=64, seed=0, device="cpu")
        model.learn(256)
        results.append(model.policy.state_dict())
    assert all((results[0][name] == results[1][name]).all() for name in results[0])
    assert model.ep_info_buffer
