"""Several environments as one: each episode is that of one of them, to the last bit."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from gymnasium.wrappers import FlattenObservation, TimeLimit
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.monitor import Monitor
from tiny_envs import RandomEnv

from sb3_grpo import MultiTaskEnv, add_tasks
from sb3_grpo.envs.cartpole import TaskCartPole
from sb3_grpo.envs.lights_out import LightsOut
from sb3_grpo.envs.multi_task import TaskSource, make_task_env

CLASSIC: dict[str, TaskSource] = {"balance": "CartPole-v1", "swing": "Acrobot-v1", "press": LightsOut}


def play(env, actions, seed):
    """Observations, rewards and ends of an episode."""
    steps = [(env.reset(seed=seed)[0], 0.0, False, False)]
    steps += [env.step(action)[:4] for action in actions]
    return steps


class TestAnEpisodeIsThatOfItsEnvironment:
    @pytest.mark.parametrize(("name", "width"), [("balance", 4), ("swing", 6), ("press", 7)])
    def test_with_the_same_seed(self, name, width):
        own, env = make_task_env(CLASSIC[name], None), MultiTaskEnv(CLASSIC, task=name)
        actions = [0, 1, 1, 0, 1]
        for (obs, *rest), (own_obs, *own_rest) in zip(play(env, actions, 5), play(own, actions, 5), strict=True):
            assert obs["obs"][:width].tolist() == own_obs.tolist()
            assert not obs["obs"][width:].any()
            assert rest == own_rest

    def test_the_time_limit_of_the_task_counts(self):
        env = MultiTaskEnv({"short": partial(gym.make, "Pendulum-v1", max_episode_steps=3), "long": "Pendulum-v1"})
        ends = {}
        for task in ("short", "long"):
            env.set_task(task)
            env.reset(seed=0)
            ends[task] = [env.step(np.zeros(1, np.float32))[3] for _ in range(4)]
        assert ends == {"short": [False, False, True, True], "long": [False] * 4}

    def test_a_time_limit_outside_counts_for_all(self):
        env = TimeLimit(MultiTaskEnv(CLASSIC, task="in_turn"), 2)
        for _ in range(3):
            env.reset(seed=0)
            assert [env.step(0)[3] for _ in range(2)] == [False, True]

    def test_every_environment_is_seeded_once(self):
        seeds: dict[str, list[int | None]] = {"a": [], "b": []}

        class Noting(RandomEnv):
            def __init__(self, name):
                super().__init__(spaces.Box(0, 1, (2,)), spaces.Discrete(2))
                self.name = name

            def reset(self, *, seed=None, options=None):
                seeds[self.name].append(seed)
                return super().reset(seed=seed)

        env = MultiTaskEnv({"a": partial(Noting, "a"), "b": partial(Noting, "b")}, task="in_turn")
        for seed in (7, None, None, None, 9, None):
            env.reset(seed=seed)
        assert seeds == {"a": [7, None, 9], "b": [7, None, 9]}

    def test_the_same_seed_gives_the_same_tasks(self):
        def tasks(seed):
            env = MultiTaskEnv(CLASSIC)
            return [env.reset(seed=seed if k == 0 else None)[1]["task_name"] for k in range(20)]

        assert tasks(1) == tasks(1) != tasks(2)
        assert set(tasks(1)) == set(CLASSIC)

    def test_rewards_are_scaled_on_request(self):
        env = MultiTaskEnv(CLASSIC, task="in_turn", reward_scales={"swing": 0.5})
        rewards = {}
        for name in CLASSIC:
            env.reset(seed=0)
            rewards[name] = env.step(0)[1]
        assert rewards == {"balance": 1.0, "swing": -0.5, "press": 0.0}

    def test_continuous_actions_are_from_bound_to_bound(self):
        env, own = MultiTaskEnv(["Pendulum-v1", "MountainCarContinuous-v0"], task="Pendulum-v1"), gym.make("Pendulum-v1")
        assert env.action_space == spaces.Box(-1, 1, (1,))
        env.reset(seed=3), own.reset(seed=3)
        full = np.array([1.0], np.float32)
        assert env.step(full)[1] == own.step(2 * full)[1] != own.step(full)[1]


class TestTheTaskIsTold:
    def test_in_info(self):
        env = MultiTaskEnv(CLASSIC, task="press")
        assert env.reset(seed=0)[1] == {"task": 2, "task_name": "press"}
        assert env.step(0)[4] == {"task": 2, "task_name": "press"}

    def test_as_columns(self):
        env = MultiTaskEnv(["CartPole-v1", LightsOut], task_observation=None)
        assert "task" not in env.reset(seed=0)[0]
        env = MultiTaskEnv({"a": "Pendulum-v1", "b": "MountainCarContinuous-v0"}, task="b")
        assert env.task_columns == (3, 5)
        assert env.reset(seed=0)[0][3:].tolist() == [0, 1]

    def test_as_an_entry(self):
        obs, _ = MultiTaskEnv(CLASSIC, task="swing").reset(seed=0)
        assert obs["task"] == 1
        assert obs["action_mask"].tolist() == [1, 1, 1, 0, 0, 0]
        assert MultiTaskEnv(CLASSIC).task_columns is None

    def test_images_get_an_entry(self):
        image = partial(RandomEnv, spaces.Box(0, 255, (3, 36, 36), np.uint8), spaces.Discrete(2))
        env = MultiTaskEnv([image, image])
        assert isinstance(env.observation_space, spaces.Dict)
        assert set(env.observation_space) == {"obs", "task"}

    def test_entries_of_a_dict_stay(self):
        env = MultiTaskEnv({"a": partial(TaskCartPole, task_observation="dict", task=1)}, task_observation=None)
        assert set(env.reset(seed=0)[0]) == {"obs", "task"}

    def test_names_that_are_not_given(self):
        assert MultiTaskEnv(["CartPole-v1", LightsOut, LightsOut]).task_names == ["CartPole-v1", "LightsOut 0", "LightsOut 1"]

    def test_masks_of_the_environments_are_padded(self):
        def make(n):
            space = spaces.Dict({"x": spaces.Box(0, 1, (1,)), "action_mask": spaces.MultiBinary(n)})
            return RandomEnv(space, spaces.Discrete(n))

        env = MultiTaskEnv([partial(make, 2), partial(make, 3)], task=0)
        assert isinstance(env.observation_space, spaces.Dict)
        assert env.observation_space["action_mask"] == spaces.MultiBinary(3)
        masks = np.array([env.reset()[0]["action_mask"] for _ in range(50)])
        assert not masks[:, 2].any()
        assert set(map(tuple, masks[:, :2])) == {(0, 0), (0, 1), (1, 0), (1, 1)}

    def test_rendering_shows_the_environment_of_the_task(self):
        class Painted(RandomEnv):
            render_mode = "rgb_array"

            def __init__(self, grey):
                super().__init__(spaces.Box(0, 1, (2,)), spaces.Discrete(2))
                self.grey = grey

            def render(self):
                return np.full((4, 4, 3), self.grey, np.uint8)

        env = MultiTaskEnv({"dark": partial(Painted, 10), "bright": partial(Painted, 200)}, task="in_turn")
        assert env.render_mode == "rgb_array"
        shown = []
        for _ in range(2):
            env.reset(seed=0)
            shown.append(env.render().mean())
        assert shown == [10, 200]

    def test_render_mode_goes_to_what_is_made_from_ids(self):
        env = MultiTaskEnv(["CartPole-v1", "Acrobot-v1"], render_mode="rgb_array")
        assert [each.render_mode for each in env.envs] == ["rgb_array"] * 2
        assert MultiTaskEnv(["CartPole-v1", LightsOut], render_mode="rgb_array").render_mode is None


def random_env(observations, actions):
    return partial(RandomEnv, observations, actions)


VECTOR, CHOICE = spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2)
DICT = spaces.Dict({"camera": spaces.Box(0, 255, (3, 36, 36), np.uint8), "speed": spaces.Box(-1, 1, (1,))})
KINDS = {
    "vectors": [random_env(VECTOR, CHOICE)] * 2,
    "vectors of different lengths": [random_env(VECTOR, CHOICE), random_env(spaces.Box(-1, 1, (2,), np.float32), CHOICE)],
    "dicts": [random_env(DICT, CHOICE)] * 2,
    "images": [random_env(spaces.Box(0, 255, (3, 36, 36), np.uint8), CHOICE)] * 2,
    "numbers": [random_env(spaces.Discrete(3), CHOICE), random_env(spaces.Discrete(5), CHOICE)],
    "several numbers": [random_env(spaces.MultiDiscrete([3, 2]), CHOICE)] * 2,
    "different choices": [random_env(VECTOR, CHOICE), random_env(VECTOR, spaces.Discrete(4))],
    "several choices": [random_env(VECTOR, spaces.MultiDiscrete([2, 3])), random_env(VECTOR, spaces.MultiDiscrete([3, 2]))],
    "forces": [random_env(VECTOR, spaces.Box(-1, 1, (2,))), random_env(VECTOR, spaces.Box(-3, 2, (2,)))],
    "switches": [random_env(VECTOR, spaces.MultiBinary(3))] * 2,
    "limits inside": [partial(gym.make, "CartPole-v1", max_episode_steps=4), "CartPole-v1"],
    "own tasks": [partial(TaskCartPole, task_observation=None)] * 2,
    "flattened": [lambda: FlattenObservation(RandomEnv(DICT, CHOICE)), random_env(VECTOR, CHOICE)],
}


@pytest.mark.parametrize("kind", KINDS)
# CartPole's observation space has infinite bounds by design
@pytest.mark.filterwarnings("ignore:.*A Box observation space (minimum|maximum) value is:UserWarning")
class TestKindsOfEnvironments:
    def test_checker_of_gymnasium(self, kind):
        gymnasium_check_env(MultiTaskEnv(KINDS[kind]), skip_render_check=True)

    def test_checker_of_sb3(self, kind):
        for task in range(2):
            sb3_check_env(MultiTaskEnv(KINDS[kind], task=task))

    def test_every_observation_is_one_of_the_space(self, kind):
        env = MultiTaskEnv(KINDS[kind], task="in_turn")
        env.action_space.seed(0)
        for _ in range(4):
            assert env.observation_space.contains(env.reset()[0])
            assert env.observation_space.contains(env.step(env.action_space.sample())[0])


class TestAddTasks:
    def test_the_environment_is_the_first_task(self):
        env = add_tasks(gym.make("CartPole-v1"), {"swing": "Acrobot-v1"}, task=0)
        assert isinstance(env, MultiTaskEnv)
        assert env.task_names == ["CartPole-v1", "swing"]
        assert env.reset(seed=4)[0]["obs"][:4].tolist() == gym.make("CartPole-v1").reset(seed=4)[0].tolist()

    def test_monitor_sees_all_tasks(self):
        env = add_tasks(
            Monitor(gym.make("CartPole-v1", max_episode_steps=2)), {"press": partial(LightsOut, 1, 3)}, task="in_turn"
        )
        assert isinstance(env, Monitor)
        assert env.action_space == spaces.Discrete(3)
        for name, length in {"CartPole-v1": 2, "press": 3}.items():
            # three lights in a row that two presses of the same switch leave as they are
            env.reset(seed=0)
            infos = [env.step(1)[4] for _ in range(length)]
            assert infos[-1]["episode"]["l"] == length
            assert infos[-1]["task_name"] == name

    def test_its_name_may_not_be_taken(self):
        with pytest.raises(ValueError, match=r"`name` must not be that of another task, got 'swing' and tasks \['swing'\]"):
            add_tasks(gym.make("CartPole-v1"), {"swing": "Acrobot-v1"}, name="swing")


def test_made_by_its_id():
    env = gym.make("sb3_grpo/MultiTask-v0", tasks={"a": "CartPole-v1", "b": "Acrobot-v1"}, task="b")
    assert env.reset(seed=0)[1]["task_name"] == "b"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(tasks=[]), r"`tasks` must be environments by name, or a list of them, at least one, got \[\]"),
        (dict(tasks="CartPole-v1"), r"`tasks` must be environments by name.* got 'CartPole-v1'"),
        (dict(tasks=[3]), r"`tasks` must hold ids, functions that return an environment, or environments, got 3"),
        (dict(tasks=[lambda: 3]), r"`tasks` must hold ids, functions that return an environment"),
        (dict(tasks={"": "CartPole-v1"}), r"names of `tasks` must be strings that are not empty, got \[''\]"),
        (dict(tasks={5: "CartPole-v1"}), r"names of `tasks` must be strings that are not empty, got \[5\]"),
        (dict(tasks={"random": "CartPole-v1"}), r"names of `tasks` must not be \"random\" or \"in_turn\".*got \['random'\]"),
        (dict(task="sit"), r"`task` must be .* or one of \['balance', 'swing', 'press'\], got 'sit'"),
        (dict(task=3), r"`task` must be .* a number from 0 to 2, .* got 3"),
        (dict(task=True), r"`task` must be .* got True"),
        (dict(task_observation="hot"), r"`task_observation` must be \"auto\", \"one_hot\", \"dict\" or None, got 'hot'"),
        (dict(task_observation="one_hot"), r"`task_observation` must not be \"one_hot\" unless observations have one dim"),
        (dict(reward_scales={"sit": 2.0}), r"`reward_scales` must name tasks, .* got \['sit'\]"),
        (dict(reward_scales={"swing": np.nan}), r"`reward_scales` must be finite numbers, got \{'swing': nan\}"),
        (
            dict(tasks=[partial(TaskCartPole, task_observation="dict")]),
            r"observations must not have an entry 'task' of their own",
        ),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MultiTaskEnv(**{"tasks": CLASSIC, **kwargs})


def test_masks_of_several_variables_cannot_be_united():
    def make(sizes):
        return RandomEnv(spaces.Dict({"action_mask": spaces.MultiBinary(sum(sizes))}), spaces.MultiDiscrete(sizes))

    with pytest.raises(ValueError, match=r'`tasks` with an entry "action_mask" must have the same actions, or Discrete ones'):
        MultiTaskEnv([partial(make, [2, 2]), partial(make, [2, 3])])
