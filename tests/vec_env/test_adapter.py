import time
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)
from tiny_envs import ChoosableEnv, CountingEnv, RandomEnv
from vec_env.recording import assert_same_observation, assert_same_record, play

from sb3_grpo import GRPO, adapt_vector_env, evaluate_groups

N_ENVS = 3
MODES = list(AutoresetMode)


def made(env_id, **kwargs):
    return partial(gym.make, env_id, **kwargs)


def random_dict():
    space = spaces.Dict({"cell": spaces.Discrete(4), "image": spaces.Box(0, 255, (2, 3), np.uint8)})
    return RandomEnv(space, spaces.MultiDiscrete([2, 3]), length=9)


def random_images():
    return RandomEnv(spaces.Box(0, 255, (36, 36, 3), np.uint8), spaces.Discrete(3), length=11)


ENVS = {
    "CartPole": made("CartPole-v1", max_episode_steps=20),
    "Pendulum": made("Pendulum-v1", max_episode_steps=15),
    "Acrobot": made("Acrobot-v1", max_episode_steps=25),
    "MountainCarContinuous": made("MountainCarContinuous-v0", max_episode_steps=30),
    "FrozenLake": made("FrozenLake-v1", max_episode_steps=12),
    "Dict": random_dict,
    "images": random_images,
}


def dummy(make_env):
    return DummyVecEnv([lambda: Monitor(make_env())] * N_ENVS)


def sync(make_env, mode=AutoresetMode.NEXT_STEP, **kwargs):
    return adapt_vector_env(SyncVectorEnv([make_env] * N_ENVS, autoreset_mode=mode), **kwargs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ENVS)
def test_trajectories_are_those_of_dummy_vec_env(name, mode):
    theirs, mine = play(dummy(ENVS[name])), play(sync(ENVS[name], mode))
    assert len(theirs.ended()) >= 2 * N_ENVS
    assert_same_record(mine, theirs)


def test_the_comparison_can_fail():
    theirs = play(dummy(ENVS["CartPole"]))
    with pytest.raises(AssertionError):
        assert_same_record(play(sync(ENVS["CartPole"]), seed=8), theirs)
    assert {info["TimeLimit.truncated"] for _, _, info in theirs.ended()} == {True, False}


# Python 3.12 warns of any process that is forked where there are threads, and torch has some
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["CartPole", "Dict"])
def test_processes(name, mode):
    env = adapt_vector_env(AsyncVectorEnv([ENVS[name]] * N_ENVS, autoreset_mode=mode))
    try:
        assert_same_record(play(env), play(dummy(ENVS[name])))
    finally:
        env.close()


def trained(env, policy="MlpPolicy", algorithm=PPO):
    model = algorithm(policy, env, n_steps=24, batch_size=36, n_epochs=1, seed=3, device="cpu")
    model.learn(2 * 24 * N_ENVS)
    return model


def assert_same_training(mine, theirs):
    np.testing.assert_array_equal(mine.rollout_buffer.returns, theirs.rollout_buffer.returns)
    np.testing.assert_array_equal(mine.rollout_buffer.advantages, theirs.rollout_buffer.advantages)
    for (name, mine_), theirs_ in zip(mine.policy.state_dict().items(), theirs.policy.state_dict().values(), strict=True):
        assert th.equal(mine_, theirs_), name
    assert [{k: e[k] for k in "rl"} for e in mine.ep_info_buffer] == [{k: e[k] for k in "rl"} for e in theirs.ep_info_buffer]


@pytest.mark.parametrize("name", ENVS)
def test_ppo_learns_the_same_on_every_environment(name):
    policy = {"Dict": "MultiInputPolicy", "images": "CnnPolicy"}.get(name, "MlpPolicy")
    assert_same_training(trained(sync(ENVS[name]), policy), trained(dummy(ENVS[name]), policy))


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_grpo_learns_the_same_in_other_modes(mode):
    theirs = trained(dummy(ENVS["CartPole"]), algorithm=GRPO)
    assert_same_training(trained(sync(ENVS["CartPole"], mode), algorithm=GRPO), theirs)


def test_the_comparison_of_trainings_can_fail():
    with pytest.raises(AssertionError):
        assert_same_training(trained(sync(made("CartPole-v1", max_episode_steps=19))), trained(dummy(ENVS["CartPole"])))


def test_the_last_observation_is_not_overwritten():
    record = play(sync(ENVS["CartPole"]))
    kept = [info["terminal_observation"].copy() for _, _, info in record.ended()]
    for (t, i, info), copy in zip(record.ended(), kept, strict=True):
        assert not np.shares_memory(info["terminal_observation"], record.observations[t + 1])
        np.testing.assert_array_equal(info["terminal_observation"], copy)
        assert np.abs(record.observations[t + 1][i]).max() <= 0.05  # CartPole begins there


class BufferedVectorEnv(gym.vector.VectorEnv):
    """Every step writes to the same arrays; environment ``i`` counts to ``3 + i``."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012  # as gymnasium's own classes have it

    def __init__(self):
        self.num_envs = 2
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.observations = np.zeros((2, 1), np.float32)
        self.rewards = np.zeros(2)

    def reset(self, *, seed=None, options=None):
        mask = (options or {}).get("reset_mask", np.full(2, True))
        self.observations[mask] = 0
        return self.observations, {}

    def step(self, actions):
        self.observations += 1
        self.rewards += 1
        return self.observations, self.rewards, self.observations[:, 0] == [3, 4], np.full(2, False), {}


def test_arrays_that_are_written_again_are_copied():
    record = play(adapt_vector_env(BufferedVectorEnv()), n_steps=4)
    assert [obs.ravel().tolist() for obs in record.observations] == [[0, 0], [1, 1], [2, 2], [0, 3], [1, 0]]
    assert record.rewards[:, 0].tolist() == [1, 2, 3, 4]
    assert [info["terminal_observation"].tolist() for _, _, info in record.ended()] == [[3], [4]]


def test_time_limit_and_termination_in_the_same_step_is_a_termination():
    class Both(CountingEnv):
        def step(self, action):
            obs, reward, terminated, _, info = super().step(action)
            return obs, reward, terminated, terminated, info

    assert [info["TimeLimit.truncated"] for _, _, info in play(sync(Both)).ended()] == [False] * 45


def test_episode_statistics_by_hand():
    start = time.time()
    env = sync(CountingEnv)  # tasks in turn: 3 steps that pay 1, 5 steps that pay 2
    ended = [info["episode"] for _, i, info in play(env, n_steps=16).ended() if i == 0]
    assert [(e["r"], e["l"]) for e in ended] == [(3, 3), (10, 5), (3, 3), (10, 5)]
    assert 0 <= ended[0]["t"] <= ended[-1]["t"] <= time.time() - start + 1e-6
    env.step(np.zeros(N_ENVS, int))
    assert [info["episode"]["l"] for _, i, info in play(env, n_steps=5).ended()] == [5] * N_ENVS  # a reset drops the step


def test_statistics_can_be_left_out():
    env = sync(CountingEnv, episode_statistics=False)
    assert all("episode" not in info for _, _, info in play(env).ended())
    assert env.env_is_wrapped(Monitor) == [False] * N_ENVS
    record = play(VecMonitor(env), n_steps=8)
    assert [info["episode"]["r"] for _, i, info in record.ended() if i == 0] == [3, 10]


def test_vec_monitor_beside_statistics_warns():
    with pytest.warns(UserWarning, match="statistics will be"):
        VecMonitor(sync(CountingEnv))


def test_infos_of_unfinished_episodes_on_request():
    without, with_task = play(sync(CountingEnv), n_steps=8), play(sync(CountingEnv, info_keywords=("task",)), n_steps=8)
    assert [[info.get("task") for info in infos[:1]] for infos in without.infos[:4]] == [[None], [None], [0], [None]]
    assert [infos[0]["task"] for infos in with_task.infos] == [0] * 3 + [1] * 5
    assert [info["episode"]["task"] for _, i, info in with_task.ended() if i == 0] == [0, 1]


@pytest.mark.parametrize("mode", MODES)
def test_infos_of_the_last_step_and_of_the_reset(mode):
    env = sync(CountingEnv, mode, info_keywords=("task",))
    env.reset()
    assert [info["task"] for info in env.reset_infos] == [0] * N_ENVS
    infos = [env.step(np.zeros(N_ENVS, int))[3] for _ in range(3)][-1]
    assert [info["task"] for info in infos] == [0] * N_ENVS
    assert [info["task"] for info in env.reset_infos] == [1] * N_ENVS


def test_infos_are_fresh():
    record = play(sync(CountingEnv), n_steps=4)
    assert len({id(info) for infos in record.infos for info in infos}) == 4 * N_ENVS


def test_keywords_that_no_info_has():
    env = sync(CountingEnv, info_keywords=("success",))
    with pytest.raises(ValueError, match=r"info_keywords must be keys .* lack \['success'\]"):
        play(env)


@pytest.mark.parametrize("keywords", ["task", (1,)])
def test_keywords_must_be_a_tuple_of_strings(keywords):
    with pytest.raises(ValueError, match="info_keywords must be a tuple of strings"):
        sync(CountingEnv, info_keywords=keywords)


@pytest.mark.parametrize("env", [CountingEnv(), None, "CartPole-v1"])
def test_only_vector_environments(env):
    with pytest.raises(ValueError, match=r"env must be a gymnasium\.vector\.VectorEnv"):
        adapt_vector_env(env)


def test_lists_of_infos_are_refused():
    env = gym.wrappers.vector.DictInfoToList(SyncVectorEnv([CountingEnv] * 2))
    with pytest.raises(ValueError, match="must not be wrapped in DictInfoToList"):
        adapt_vector_env(env)


def test_seed_is_used_once():
    env, theirs = sync(ENVS["CartPole"]), dummy(ENVS["CartPole"])
    assert env.seed(5) == theirs.seed(5) == [5, 6, 7]
    first, second = [env.reset() for _ in range(2)], [theirs.reset() for _ in range(2)]
    for mine, other in zip(first, second, strict=True):
        assert_same_observation(mine, other)
    assert not np.array_equal(*first)


def test_options():
    env, theirs = sync(ENVS["CartPole"]), dummy(ENVS["CartPole"])
    for each in (env, theirs):
        each.seed(0)
        each.set_options({"low": 0.1, "high": 0.2})
    first = env.reset()
    assert_same_observation(first, theirs.reset())
    assert first.min() >= 0.1
    assert env.reset().max() <= 0.05  # options hold for one reset
    env.set_options([{"low": 0.0}] * N_ENVS)
    assert env.reset().min() >= 0


def test_options_of_single_environments_are_refused():
    with pytest.raises(ValueError, match="options must be the same for all environments"):
        sync(CountingEnv).set_options([{"low": 0.0}, {"low": 0.1}, {}])


def test_observations_have_the_dtype_of_their_space():
    class Float64(CountingEnv):
        def __init__(self):
            super().__init__()
            self.observation_space = spaces.Box(-10, 10, (3,), np.float64)

    assert sync(Float64).reset().dtype == np.float64
    assert sync(made("FrozenLake-v1")).reset().dtype == np.int64


def test_actions_get_the_dtype_of_their_space():
    class Recording(RandomEnv):
        def step(self, action):
            assert action.dtype == np.float64
            return super().step(action)

    space = spaces.Box(-1, 1, (2,), np.float64)
    env = sync(lambda: Recording(spaces.Discrete(3), space))
    env.reset()
    rewards = env.step(np.full((N_ENVS, 2), 0.5, np.float32))[1]
    assert rewards.tolist() == [1] * N_ENVS
    assert rewards.dtype == np.float32


@pytest.mark.parametrize("wrap", [VecNormalize, partial(VecFrameStack, n_stack=2)])
def test_wrappers_of_sb3(wrap):
    theirs = play(wrap(dummy(ENVS["Pendulum"])))
    assert_same_record(play(wrap(sync(ENVS["Pendulum"]))), theirs)


def test_images_are_transposed():
    theirs = play(VecTransposeImage(dummy(random_images)), n_steps=12)
    mine = play(VecTransposeImage(sync(random_images)), n_steps=12)
    assert mine.observations[0].shape == (N_ENVS, 3, 36, 36)
    assert_same_record(mine, theirs)


def test_evaluation_of_sb3(recwarn):
    model = PPO("MlpPolicy", dummy(ENVS["CartPole"]), n_steps=8, batch_size=8, seed=0, device="cpu")
    results = []
    for env in (sync(ENVS["CartPole"]), dummy(ENVS["CartPole"])):
        env.seed(1)
        results.append(evaluate_policy(model, env, n_eval_episodes=7, return_episode_rewards=True))
    assert results[0] == results[1]
    assert not recwarn.list  # evaluate_policy warns of environments without Monitor


def test_best_model_is_saved_and_loaded(tmp_path):
    env = VecNormalize(sync(ENVS["CartPole"]))
    callback = EvalCallback(
        VecNormalize(sync(ENVS["CartPole"]), training=False), eval_freq=16, best_model_save_path=str(tmp_path), verbose=0
    )
    model = GRPO("MlpPolicy", env, n_steps=16, batch_size=16, seed=0, device="cpu")
    model.learn(48 * N_ENVS, callback)
    assert callback.best_mean_reward > 0
    model.save(tmp_path / "last")
    env.save(str(tmp_path / "statistics"))
    other = sync(ENVS["CartPole"])
    loaded = GRPO.load(tmp_path / "last", env=VecNormalize.load(str(tmp_path / "statistics"), other), device="cpu")
    obs = env.reset()
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    loaded.learn(16 * N_ENVS)
    assert loaded.num_timesteps == 16 * N_ENVS
    assert GRPO.load(tmp_path / "best_model").observation_space == env.observation_space


def test_evaluation_of_groups():
    env = sync(ChoosableEnv, info_keywords=("task",))
    results = evaluate_groups(PPO("MlpPolicy", env, n_steps=8, batch_size=8, seed=0, device="cpu"), env, n_eval_episodes=6)
    assert {task: result.mean for task, result in results.items()} == {0: 3, 1: 10}


def test_rewards_that_wrappers_change():
    richer = gym.wrappers.vector.TransformReward(SyncVectorEnv([CountingEnv] * 2), lambda rewards: rewards * 10)
    env = adapt_vector_env(gym.wrappers.vector.TransformObservation(richer, lambda observations: observations * 2))
    record = play(env, n_steps=8)
    assert record.rewards[:, 0].tolist() == [10] * 3 + [20] * 5
    first, last = record.observations[3][0], record.infos[2][0]["terminal_observation"]
    np.testing.assert_allclose(first, [0, 0, 2])  # of the next episode, transformed as well
    np.testing.assert_allclose(last, [0.6, 2, 0], rtol=1e-6)
