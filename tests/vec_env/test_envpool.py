import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecExtractDictObs
from vec_env.recording import draw_actions, play

from sb3_grpo import GRPO, adapt_vector_env

envpool = pytest.importorskip("envpool")
# EnvPool makes its spaces of float32 out of bounds in float64, and Gymnasium warns of it
pytestmark = pytest.mark.filterwarnings("ignore:.*precision lowered by casting:UserWarning")


def pool(env_id="CartPole-v1", num_envs=4, **kwargs):
    return envpool.make(env_id, env_type="gymnasium", num_envs=num_envs, num_threads=1, **{"seed": 0, **kwargs})


def adapted(env_id="CartPole-v1", num_envs=4, info_keywords=("elapsed_step",), **kwargs):
    return adapt_vector_env(pool(env_id, num_envs, **kwargs), info_keywords=info_keywords)


def test_the_last_observation_follows_from_the_dynamics():
    record = play(adapted(), seed=None)
    actions = draw_actions(gym.spaces.Discrete(2), 60, 4)
    reference = CartPoleEnv()
    reference.reset()
    assert len(record.ended()) > 6
    for t, i, info in record.ended():
        reference.state, reference.steps_beyond_terminated = record.observations[t][i], None
        expected, _, terminated, *_ = reference.step(actions[t, i])
        np.testing.assert_allclose(info["terminal_observation"], expected, rtol=1e-5, atol=1e-6)
        assert terminated
        assert not info["TimeLimit.truncated"]
        assert np.abs(record.observations[t + 1][i]).max() <= 0.05  # CartPole begins there


def test_other_environments_are_left_alone_by_a_reset():
    record = play(adapted(), seed=None)
    lengths = np.zeros(4, int)
    for t, infos in enumerate(record.infos):
        lengths += 1
        assert [info["elapsed_step"] for info in infos] == lengths.tolist()  # EnvPool's own counter
        for i in np.flatnonzero(record.dones[t]):
            assert infos[i]["episode"]["l"] == lengths[i]
        lengths[record.dones[t]] = 0


def test_the_first_episodes_are_those_of_envpool_alone():
    record, alone = play(adapted(), seed=None), pool()
    alone.reset()
    running = np.full(4, True)
    for t, actions in enumerate(draw_actions(gym.spaces.Discrete(2), 60, 4)):
        observations, _, terminated, truncated, _ = alone.step(actions)
        done = terminated | truncated
        np.testing.assert_array_equal(record.dones[t][running], done[running])
        for i in np.flatnonzero(running):
            mine = record.infos[t][i]["terminal_observation"] if done[i] else record.observations[t + 1][i]
            np.testing.assert_array_equal(mine, observations[i])
        running &= ~done
    assert not running.any()


def test_time_limit_of_mountain_car():
    record = play(adapted("MountainCar-v0", num_envs=2), n_steps=201, seed=None)
    assert [(t, i) for t, i, _ in record.ended()] == [(199, 0), (199, 1)]
    for _, i, info in record.ended():
        assert info["TimeLimit.truncated"]
        assert info["episode"]["r"] == record.rewards[:200, i].sum() == -200
        np.testing.assert_array_equal(record.observations[200][i][1], 0)  # velocity of a first observation


def test_time_limit_of_cartpole():
    env = adapted()
    obs = env.reset()
    for _ in range(500):
        obs, _, dones, infos = env.step((3 * obs[:, 2] + obs[:, 3] + 0.1 * obs[:, 0] + 0.3 * obs[:, 1] > 0).astype(int))
    assert dones.all()
    for info in infos:
        assert info["TimeLimit.truncated"]
        assert (info["episode"]["r"], info["episode"]["l"]) == (500, 500)


def test_dictionaries():
    env = adapted("MiniGrid-Empty-5x5-v0")
    assert env.observation_space["image"] == gym.spaces.Box(0, 255, (7, 7, 3), np.uint8)
    obs = env.reset()
    assert {key: (each.shape, each.dtype) for key, each in obs.items()} == {
        "direction": ((4,), np.int64),
        "image": ((4, 7, 7, 3), np.uint8),
        "mission": ((4, 96), np.uint8),
    }
    record = play(env, n_steps=150, seed=None)
    assert {info["TimeLimit.truncated"] for _, _, info in record.ended()} == {True, False}
    goal = next((t, i, info) for t, i, info in record.ended() if not info["TimeLimit.truncated"])
    assert record.rewards[goal[0], goal[1]] > 0
    assert env.observation_space.contains(goal[2]["terminal_observation"])
    # it begins in the upper left corner, with two rows to the right and below
    assert record.observations[goal[0] + 1]["direction"][goal[1]] == 0
    assert goal[2]["agent_pos"].tolist() == [3, 3]
    assert env.reset_infos[goal[1]]["agent_pos"].tolist() == [1, 1]


def test_half_cheetah():
    env = adapted("HalfCheetah-v4", num_envs=2, max_episode_steps=20)
    assert env.action_space.dtype == env.reset().dtype == np.float64
    env.step(np.zeros((2, 6), np.float32))  # as PPO's actions are
    record = play(env, n_steps=41, seed=None)
    assert [(t, i) for t, i, _ in record.ended()] == [(19, 0), (19, 1), (39, 0), (39, 1)]
    for t, i, info in record.ended():
        expected = record.rewards[t - 19 : t + 1, i].astype(float).sum()
        assert info["episode"]["r"] == pytest.approx(expected, abs=1e-5)
        assert info["TimeLimit.truncated"]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1", "Pendulum-v1", "MiniGrid-Empty-5x5-v0"])
@pytest.mark.parametrize("algorithm", [PPO, GRPO])
def test_learning_is_reproducible(algorithm, env_id):
    weights = []
    for _ in range(2):
        env = adapted(env_id, info_keywords=())
        if "MiniGrid" in env_id:
            env = VecExtractDictObs(env, "image")
        model = algorithm("MlpPolicy", env, n_steps=16, batch_size=32, seed=0, device="cpu")
        before = {name: value.clone() for name, value in model.policy.state_dict().items()}
        model.learn(128)
        weights.append(model.policy.state_dict())
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    assert not all((weights[0][name] == before[name]).all() for name in before)


def test_evaluation(recwarn):
    env = adapted(info_keywords=())
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=32, seed=0, device="cpu")
    rewards, lengths = evaluate_policy(model, env, n_eval_episodes=6, return_episode_rewards=True)
    assert rewards == lengths  # CartPole pays 1 a step
    assert not [warning for warning in recwarn if "Monitor" in str(warning.message)]


def test_another_seed_than_that_of_the_pool_is_named():
    env = adapted(seed=3)
    env.seed(3)
    with pytest.warns(UserWarning, match=r"seed=4 seeds the algorithm alone.*envpool\.make\(\.\.\., seed=4\)"):
        PPO("MlpPolicy", env, seed=4, device="cpu")
    env.seed(None)


def test_images():
    env = adapted(render_mode="rgb_array", num_envs=2)
    env.reset()
    images = env.get_images()
    assert len(images) == 2
    assert images[0].ndim == 3
    assert env.render_mode == "rgb_array"


def test_attributes():
    env = adapted()
    assert env.get_attr("config", indices=[1])[0]["num_envs"] == 4
    assert not env.has_attr("state")
    with pytest.raises(AttributeError, match="has no attribute 'state'"):
        env.get_attr("state")
    env.close()


def test_options_are_refused():
    env = adapted()
    env.set_options({"low": 0})
    with pytest.raises(ValueError, match="Unsupported"):
        env.reset()


def test_gymnasiums_statistics_stay_right():
    wrapped = RecordEpisodeStatistics(pool())
    record = play(adapt_vector_env(wrapped), seed=None)
    assert list(wrapped.return_queue) == [info["episode"]["r"] for _, _, info in record.ended()]


@pytest.mark.parametrize(
    ("kwargs", "message"), [({"batch_size": 2}, "num_envs=4, batch_size=2"), ({"env_type": "dm"}, "env_type='gymnasium'")]
)
def test_pools_that_cannot_be_served(kwargs, message):
    made = envpool.make("CartPole-v1", **{"env_type": "gymnasium", "num_envs": 4, "seed": 0, **kwargs})
    with pytest.raises(ValueError, match=message):
        adapt_vector_env(made)
