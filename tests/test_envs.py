"""The multi-task environments do what their tasks say."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from sb3_grpo.envs.acrobot import THREE_ORDERS, TaskAcrobot
from sb3_grpo.envs.cartpole import FOUR_TASKS, TaskCartPole
from sb3_grpo.envs.lunar_lander import FOUR_CONTEXTS, TaskLunarLander
from sb3_grpo.envs.pendulum import TWO_DIRECTIONS, TaskPendulum

TIME_LIMITS = {
    "sb3_grpo/TaskCartPole-v0": 500,
    "sb3_grpo/TaskAcrobot-v0": 500,
    "sb3_grpo/TaskPendulum-v0": 200,
    "sb3_grpo/TaskLunarLander-v0": 1000,
}
IDS = list(TIME_LIMITS)
ACTIONS = [0, 1, 1, 0, 1, 0, 0, 1]


def play(env, actions, seed=0, columns=4):
    """Observations (the first columns) and rewards."""
    observations, rewards = [env.reset(seed=seed)[0][:columns]], []
    for action in actions:
        obs, reward, *_ = env.step(action)
        observations.append(obs[:columns])
        rewards.append(reward)
    return np.stack(observations), rewards


def same_play(one, other):
    """Whether two results of ``play`` are equal to the last bit."""
    return np.array_equal(one[0], other[0]) and one[1] == other[1]


def sample_actions(env, n=8):
    env.action_space.seed(0)
    return [env.action_space.sample() for _ in range(n)]


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("task_observation", ["one_hot", "dict", None])
class TestCheckers:
    # CartPole's observation space has infinite bounds by design
    @pytest.mark.filterwarnings("ignore:.*A Box observation space (minimum|maximum) value is:UserWarning")
    # and the torque of the pendulum is not normalised
    @pytest.mark.filterwarnings("ignore:.*For Box action spaces, we recommend using a symmetric and normalized:UserWarning")
    def test_gymnasium(self, env_id, task_observation):
        env = gym.make(env_id, task_observation=task_observation).unwrapped
        gymnasium_check_env(env, skip_render_check=True)

    @pytest.mark.filterwarnings("ignore:We recommend you to use a symmetric and normalized Box action space:UserWarning")
    def test_sb3(self, env_id, task_observation):
        sb3_check_env(gym.make(env_id, task_observation=task_observation))


@pytest.mark.parametrize(("env_id", "steps"), TIME_LIMITS.items())
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
        assert env.step(*sample_actions(env, 1))[4]["task"] == 1

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


class TestAcrobot:
    actions = (0, 1, 2, 2, 0, 1, 2, 2, 2, 0)

    def play(self, env, actions=actions):
        return play(env, actions, columns=6)

    def test_plain_task_is_acrobot(self):
        assert same_play(self.play(TaskAcrobot(task=0)), self.play(gym.make("Acrobot-v1")))

    @pytest.mark.parametrize("task", [1, 2])
    def test_another_order_is_acrobot_with_other_actions(self, task):
        order = THREE_ORDERS[task]["actions"]
        other = self.play(gym.make("Acrobot-v1"), [order[action] for action in self.actions])
        assert same_play(self.play(TaskAcrobot(task=task)), other)
        assert not same_play(self.play(TaskAcrobot(task=task)), self.play(TaskAcrobot(task=0)))

    def test_in_the_default_tasks_no_action_means_the_same_twice(self):
        env = TaskAcrobot()
        assert env.n_tasks == len(THREE_ORDERS) == 3
        for action in range(3):
            assert {task["actions"][action] for task in env.tasks} == {0, 1, 2}

    @pytest.mark.parametrize("name", ["LINK_LENGTH_1", "LINK_MASS_1", "LINK_MASS_2"])
    def test_links_change_the_motion(self, name):
        env, reference = TaskAcrobot(tasks=[{}, {name: 2.0}], task=1), gym.make("Acrobot-v1")
        setattr(reference.unwrapped, name, 2.0)
        assert same_play(self.play(env), self.play(reference))
        assert getattr(env.acrobot, name) == 2.0
        assert not same_play(self.play(env), self.play(TaskAcrobot(task=0)))

    def test_the_last_task_leaves_nothing_behind(self):
        changed = dict(actions=(2, 1, 0), LINK_LENGTH_1=2.0, LINK_MASS_1=3.0, LINK_MASS_2=0.5, reward_scale=7.0)
        env = TaskAcrobot(tasks=[{}, changed], task=1)
        self.play(env)
        env.set_task(0)
        assert same_play(self.play(env), self.play(gym.make("Acrobot-v1")))

    def test_reward_scale(self):
        assert self.play(TaskAcrobot(tasks=[{"reward_scale": 0.1}]))[1] == [-0.1] * len(self.actions)

    @pytest.mark.parametrize("action", [np.int64(2), np.array(2)])
    def test_actions_may_be_numbers_of_numpy(self, action):
        assert same_play(self.play(TaskAcrobot(task=1), [action] * 3), self.play(TaskAcrobot(task=1), [2] * 3))

    @pytest.mark.parametrize("actions", [(0, 1), (0, 1, 1), (1, 2, 3), (0, 1, 2, 2), ()])
    def test_impossible_orders(self, actions):
        with pytest.raises(ValueError, match=r"`actions` must hold 0, 1 and 2, each once, got \("):
            TaskAcrobot(tasks=[{}, {"actions": actions}])

    def test_unknown_names(self):
        with pytest.raises(ValueError, match=r"`tasks` may set .*'LINK_MASS_2'.*got \['LINK_MASS_3'\]"):
            TaskAcrobot(tasks=[{"LINK_MASS_3": 2.0}])


class TestPendulum:
    actions = tuple(np.array([torque], np.float32) for torque in (0.5, -2.0, 1.5, 3.0, -0.1, 0.0, 2.0))

    def play(self, env, actions=actions):
        return play(env, actions, columns=3)

    def test_plain_task_is_pendulum(self):
        assert same_play(self.play(TaskPendulum(task=0)), self.play(gym.make("Pendulum-v1")))

    def test_inverted_task_is_pendulum_with_the_opposite_torque(self):
        opposite = self.play(gym.make("Pendulum-v1"), [-action for action in self.actions])
        assert same_play(self.play(TaskPendulum(task=1)), opposite)
        assert not same_play(self.play(TaskPendulum(task=1)), self.play(TaskPendulum(task=0)))

    def test_default_tasks(self):
        assert TaskPendulum().n_tasks == len(TWO_DIRECTIONS) == 2
        assert [bool(task.get("invert")) for task in TWO_DIRECTIONS] == [False, True]

    @pytest.mark.parametrize("name", ["g", "m", "l"])
    def test_physics_change_the_motion(self, name):
        doubled = 2 * TaskPendulum.TASK_DEFAULTS[name]
        env, reference = TaskPendulum(tasks=[{}, {name: doubled}], task=1), gym.make("Pendulum-v1")
        setattr(reference.unwrapped, name, doubled)
        assert same_play(self.play(env), self.play(reference))
        assert getattr(env.pendulum, name) == doubled
        assert not same_play(self.play(env), self.play(TaskPendulum(task=0)))

    def test_the_last_task_leaves_nothing_behind(self):
        env = TaskPendulum(tasks=[{}, dict(g=1.0, m=3.0, l=2.0, invert=True, reward_scale=7.0)], task=1)
        self.play(env)
        env.set_task(0)
        assert same_play(self.play(env), self.play(gym.make("Pendulum-v1")))

    def test_reward_scale(self):
        plain, scaled = (self.play(TaskPendulum(tasks=[task]))[1] for task in ({}, {"reward_scale": 0.1}))
        assert scaled == pytest.approx([0.1 * reward for reward in plain])

    def test_the_given_action_stays_as_it_is(self):
        action = np.array([0.5], np.float32)
        self.play(TaskPendulum(task=1), [action])
        assert action.tolist() == [0.5]

    def test_unknown_names(self):
        with pytest.raises(ValueError, match=r"`tasks` may set .*'invert'.*got \['length'\]"):
            TaskPendulum(tasks=[{"length": 2.0}])


@pytest.mark.parametrize("make_env", [TaskAcrobot, TaskPendulum])
class TestTasksInObservations:
    def test_one_hot(self, make_env):
        env = make_env(task=1)
        obs, _ = env.reset(seed=0)
        assert obs[-env.n_tasks :].tolist() == np.eye(env.n_tasks)[1].tolist()
        assert obs.shape == env.observation_space.shape
        assert obs.dtype == np.float32

    def test_dict(self, make_env):
        env = make_env(task=1, task_observation="dict")
        obs, _ = env.reset(seed=0)
        assert obs["task"] == 1
        assert env.observation_space["task"] == spaces.Discrete(env.n_tasks)
        assert obs["obs"].tolist() == make_env(task=1).reset(seed=0)[0][: -env.n_tasks].tolist()

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            (dict(tasks=[]), r"`tasks` must hold at least one task, got none"),
            (dict(task=9), r'`task` must be "random" or a number from 0 to [12], got 9'),
            (dict(task_observation="onehot"), r"`task_observation` must be .* got 'onehot'"),
        ],
    )
    def test_bad_arguments(self, make_env, kwargs, message):
        with pytest.raises(ValueError, match=message):
            make_env(**kwargs)


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
    one, other = (play(env, sample_actions(env), seed=4) for env in (gym.make(env_id), gym.make(env_id)))
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
