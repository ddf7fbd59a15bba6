"""The multi-task environments do what their tasks say."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from sb3_grpo.envs.cartpole import FOUR_TASKS, TaskCartPole
from sb3_grpo.envs.lunar_lander import FOUR_CONTEXTS, TaskLunarLander

IDS = ["sb3_grpo/TaskCartPole-v0", "sb3_grpo/TaskLunarLander-v0"]
ACTIONS = [0, 1, 1, 0, 1, 0, 0, 1]


def play(env, actions, seed=0):
    """Observations (the first 4 columns) and rewards."""
    observations, rewards = [env.reset(seed=seed)[0][:4]], []
    for action in actions:
        obs, reward, *_ = env.step(action)
        observations.append(obs[:4])
        rewards.append(reward)
    return np.stack(observations), rewards


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("task_observation", ["one_hot", "dict", None])
class TestCheckers:
    # CartPole's observation space has infinite bounds by design
    @pytest.mark.filterwarnings("ignore:.*A Box observation space (minimum|maximum) value is:UserWarning")
    def test_gymnasium(self, env_id, task_observation):
        env = gym.make(env_id, task_observation=task_observation).unwrapped
        gymnasium_check_env(env, skip_render_check=True)

    def test_sb3(self, env_id, task_observation):
        sb3_check_env(gym.make(env_id, task_observation=task_observation))


@pytest.mark.parametrize(("env_id", "steps"), [(IDS[0], 500), (IDS[1], 1000)])
def test_registered_time_limits(env_id, steps):
    spec = gym.make(env_id).spec
    assert spec is not None
    assert spec.max_episode_steps == steps


class TestChoiceOfTask:
    def frequencies(self, env, n=2000):
        env.reset(seed=0)
        return np.bincount([env.reset()[1]["task"] for _ in range(n)], minlength=env.n_tasks) / n

    def test_uniform_at_first(self):
        # standard error of a frequency 1/4 in 2000 draws: 0.01
        np.testing.assert_allclose(self.frequencies(TaskCartPole()), [0.25] * 4, atol=0.04)

    def test_probabilities(self):
        env = TaskCartPole()
        env.set_task_probabilities([0.7, 0.2, 0.1, 0.0])
        assert env.get_task_probabilities().tolist() == pytest.approx([0.7, 0.2, 0.1, 0.0])
        frequencies = self.frequencies(env)
        np.testing.assert_allclose(frequencies, [0.7, 0.2, 0.1, 0.0], atol=0.04)
        assert frequencies[3] == 0

    def test_returned_probabilities_are_a_copy(self):
        env = TaskCartPole()
        env.get_task_probabilities()[0] = 5
        assert env.get_task_probabilities().tolist() == [0.25] * 4

    def test_fixed_by_argument(self):
        env = TaskCartPole(task=2)
        env.set_task_probabilities([1, 0, 0, 0])
        assert {env.reset(seed=seed)[1]["task"] for seed in range(5)} == {2}

    def test_set_task_takes_effect_at_the_next_reset(self):
        env = TaskCartPole(task=0)
        env.reset(seed=0)
        env.set_task(3)
        assert env.step(0)[4]["task"] == 0
        assert env.reset()[1]["task"] == 3
        env.set_task("random")
        assert len({env.reset()[1]["task"] for _ in range(50)}) == 4

    @pytest.mark.parametrize("env_id", IDS)
    def test_info_tells_it(self, env_id):
        env = gym.make(env_id, task=1)
        assert env.reset()[1]["task"] == 1
        assert env.step(0)[4]["task"] == 1

    def test_seeded(self):
        def tasks(seed):
            env = TaskCartPole()
            env.reset(seed=seed)
            return [env.reset()[1]["task"] for _ in range(20)]

        assert tasks(1) == tasks(1) != tasks(2)


class TestObservation:
    def test_one_hot(self):
        env = TaskCartPole(task=2)
        obs, _ = env.reset(seed=0)
        assert env.observation_space.shape == (8,)
        assert obs[4:].tolist() == [0, 0, 1, 0]
        assert env.step(0)[0][4:].tolist() == [0, 0, 1, 0]

    def test_dict(self):
        env = TaskCartPole(task=2, task_observation="dict")
        obs, _ = env.reset(seed=0)
        assert isinstance(env.observation_space, spaces.Dict)
        assert env.observation_space["task"] == spaces.Discrete(4)
        assert obs["task"] == 2
        assert obs["obs"].tolist() == TaskCartPole(task=2).reset(seed=0)[0][:4].tolist()

    def test_none(self):
        env = TaskCartPole(task=2, task_observation=None)
        assert env.reset(seed=0)[0].shape == env.observation_space.shape == (4,)


class TestCartPole:
    def test_plain_task_is_cartpole(self):
        expected, rewards = play(gym.make("CartPole-v1"), ACTIONS)
        actual, task_rewards = play(TaskCartPole(task=0), ACTIONS)
        np.testing.assert_array_equal(actual, expected)
        assert rewards == task_rewards

    def test_inverted_task_is_cartpole_with_flipped_actions(self):
        flipped, _ = play(gym.make("CartPole-v1"), [1 - action for action in ACTIONS])
        inverted, _ = play(TaskCartPole(task=1), ACTIONS)
        np.testing.assert_allclose(inverted, flipped, rtol=1e-6)
        assert not np.allclose(inverted, play(TaskCartPole(task=0), ACTIONS)[0])

    @pytest.mark.parametrize("name", ["gravity", "masscart", "masspole", "length", "force_mag"])
    def test_physics_change_the_motion(self, name):
        plain = TaskCartPole.TASK_DEFAULTS[name]
        env = TaskCartPole(tasks=[{}, {name: 2 * plain}], task=1)
        motion, _ = play(env, ACTIONS)
        assert getattr(env.cartpole, name) == 2 * plain
        assert not np.allclose(motion, play(TaskCartPole(task=0), ACTIONS)[0])

    def test_physics_by_the_equations_of_cartpole(self):
        reference: gym.Env = gym.make("CartPole-v1")
        cartpole = reference.unwrapped
        for name, value in dict(masspole=0.3, length=1.0, total_mass=1.3, polemass_length=0.3).items():
            setattr(cartpole, name, value)
        np.testing.assert_array_equal(play(TaskCartPole(task=2), ACTIONS)[0], play(reference, ACTIONS)[0])

    def test_the_last_task_leaves_nothing_behind(self):
        env = TaskCartPole(tasks=[{}, dict(gravity=1, masscart=5, masspole=2, length=2, force_mag=1, invert=True)], task=1)
        play(env, ACTIONS)
        env.set_task(0)
        np.testing.assert_array_equal(play(env, ACTIONS)[0], play(gym.make("CartPole-v1"), ACTIONS)[0])

    def test_reward_scale(self):
        assert play(TaskCartPole(tasks=[{}, {"reward_scale": 0.1}], task=1), ACTIONS)[1] == [0.1] * len(ACTIONS)
        assert play(TaskCartPole(tasks=[{}, {"reward_scale": 0.1}], task=0), ACTIONS)[1] == [1.0] * len(ACTIONS)

    def test_default_tasks(self):
        assert TaskCartPole().n_tasks == len(FOUR_TASKS) == 4
        assert [bool(task.get("invert")) for task in FOUR_TASKS] == [False, True, False, True]

    def test_start_state_depends_on_the_seed_only(self):
        starts = [TaskCartPole(task=task).reset(seed=5)[0][:4] for task in range(4)]
        assert all((start == starts[0]).all() for start in starts)
        assert (TaskCartPole().reset(seed=6)[0][:4] != starts[0]).any()


class TestLunarLander:
    def fall(self, task):
        """Vertical and horizontal speed after 30 steps without engines."""
        env = TaskLunarLander(tasks=[{}, *FOUR_CONTEXTS[1:]], task=task)
        env.reset(seed=3)
        speeds = np.array([env.step(0)[0][2:4] for _ in range(30)])
        return env, speeds[-1]

    def test_gravity(self):
        (_, plain), (low_env, low), (high_env, high) = (self.fall(task) for task in (0, 1, 3))
        assert low[1] > plain[1] > high[1]
        assert low_env.lander.gravity == -4.0
        assert high_env.lander.gravity == -11.5

    def test_wind(self):
        (plain_env, plain), (windy_env, windy) = self.fall(0), self.fall(2)
        assert not plain_env.lander.enable_wind
        assert windy_env.lander.enable_wind
        assert (windy_env.lander.wind_power, windy_env.lander.turbulence_power) == (15.0, 1.5)
        assert windy[0] != plain[0]

    def test_wind_stops_with_its_task(self):
        env = TaskLunarLander(task=2)
        env.reset(seed=3)
        env.set_task(0)
        env.reset(seed=3)
        speeds = [env.step(0)[0][2] for _ in range(5)]
        plain = gym.make("LunarLander-v3")
        plain.reset(seed=3)
        assert speeds == [plain.step(0)[0][2] for _ in range(5)]

    def test_continuous_actions(self):
        assert isinstance(TaskLunarLander(continuous=True).action_space, spaces.Box)
        assert isinstance(TaskLunarLander().action_space, spaces.Discrete)

    @pytest.mark.parametrize("gravity", [-12.0, 0.0, 1.0])
    def test_impossible_gravity(self, gravity):
        with pytest.raises(ValueError, match=rf"`gravity` must lie between -12 and 0, got {gravity}"):
            TaskLunarLander(tasks=[{"gravity": gravity}])


@pytest.mark.parametrize("env_id", IDS)
def test_same_seed_same_episode(env_id):
    one, other = (play(gym.make(env_id), ACTIONS, seed=4) for _ in range(2))
    np.testing.assert_array_equal(one[0], other[0])
    assert one[1] == other[1]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(tasks=[]), r"`tasks` must hold at least one task, got none"),
        (dict(tasks=[{}, {"gravty": 3}]), r"`tasks` may set .*'gravity'.*got \['gravty'\]"),
        (dict(task=4), r'`task` must be "random" or a number from 0 to 3, got 4'),
        (dict(task=-1), r'`task` must be "random" or a number from 0 to 3, got -1'),
        (dict(task="all"), r"`task` must be .* got 'all'"),
        (dict(task_observation="onehot"), r"`task_observation` must be .* got 'onehot'"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        TaskCartPole(**kwargs)


@pytest.mark.parametrize(
    "probabilities", [[0.5, 0.5], [0.5, 0.5, 0.5, 0.5], [1.5, -0.5, 0, 0], [np.nan, 0, 0, 1], [[0.25] * 4], 1.0]
)
def test_bad_probabilities(probabilities):
    env = TaskCartPole()
    with pytest.raises(ValueError, match="`probabilities` must be 4 numbers of at least 0 with sum 1, got"):
        env.set_task_probabilities(probabilities)
    assert env.get_task_probabilities().tolist() == [0.25] * 4
