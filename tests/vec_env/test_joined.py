from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor, VecNormalize
from tiny_envs import ChoosableEnv, CountingEnv, RandomEnv
from vec_env.recording import assert_same_observation, assert_same_record, draw_actions, play

from sb3_grpo import GRPO, GroupEvalCallback, JoinedVecEnv, adapt_vector_env, evaluate_groups

CARTPOLE = partial(gym.make, "CartPole-v1", max_episode_steps=20)


class PaidEnv(gym.Env):
    """Pays `pay` a step, ends after `length` steps, and shows how many steps there were; its reset takes an option."""

    action_space = spaces.Discrete(2)
    render_mode = "rgb_array"

    def __init__(self, pay=1.0, length=3, as_dict=False):
        self.pay, self.length, self.as_dict = pay, length, as_dict
        box = spaces.Box(0, 10, (2,), np.float32)
        self.observation_space = spaces.Dict({"steps": box}) if as_dict else box

    def observe(self):
        box = np.array([self.steps, self.pay], np.float32)
        return {"steps": box} if self.as_dict else box

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = (options or {}).get("start", 0)
        return self.observe(), {"seed": seed}

    def step(self, action):
        self.steps += 1
        return self.observe(), self.pay, self.steps >= self.length, False, {}

    def twice(self, number=1):
        return 2 * number * self.pay

    def render(self):
        return np.full((2, 2, 3), self.pay, np.uint8)


def joined(vec_envs, tasks=None):
    return JoinedVecEnv(vec_envs, tasks)


def dummy(make_env, n_envs):
    return DummyVecEnv([lambda: Monitor(make_env())] * n_envs)


def paid(*pays, as_dict=False):
    return DummyVecEnv([partial(PaidEnv, pay, as_dict=as_dict) for pay in pays])


def random_dict():
    space = spaces.Dict({"cell": spaces.Discrete(4), "image": spaces.Box(0, 255, (2, 3), np.uint8)})
    return RandomEnv(space, spaces.MultiDiscrete([2, 3]), length=9)


@pytest.mark.parametrize("make_env", [CARTPOLE, partial(gym.make, "Pendulum-v1", max_episode_steps=15), random_dict])
def test_trajectories_are_those_of_one_dummy_vec_env(make_env):
    mine = joined([dummy(make_env, 2), adapt_vector_env(SyncVectorEnv([make_env] * 3)), dummy(make_env, 1)])
    theirs = play(dummy(make_env, 6))
    assert len(theirs.ended()) >= 12
    assert_same_record(play(mine), theirs)
    with pytest.raises(AssertionError):
        assert_same_record(play(mine, seed=8), theirs)


def test_all_begin_a_step_before_one_is_waited_for():
    calls = []

    class Recording(VecNormalize):
        def step_async(self, actions):
            calls.append(("begin", actions.tolist()))
            super().step_async(actions)

        def step_wait(self):
            calls.append(("wait", None))
            return super().step_wait()

    env = joined([Recording(paid(1, 2)), Recording(paid(3))])
    env.reset()
    env.step(np.array([0, 1, 1]))
    assert calls == [("begin", [0, 1]), ("begin", [1]), ("wait", None), ("wait", None)]


# Python 3.12 warns of any process that is forked where there are threads, and torch has some
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_processes():
    env = joined([SubprocVecEnv([partial(PaidEnv, pay)] * 2, start_method="fork") for pay in (1, 4)])
    try:
        assert env.env_method("twice", indices=[3, 0]) == [8, 2]
        record = play(env, n_steps=4)
        assert record.rewards[0].tolist() == [1, 1, 4, 4]
        assert record.dones[:, 0].tolist() == [False, False, True, False]
    finally:
        env.close()


def test_seeds_count_on_through_all():
    env = joined([paid(1, 1), paid(1)])
    assert list(env.seed(5)) == [5, 6, 7]
    env.reset()
    assert [info["seed"] for info in env.reset_infos] == [5, 6, 7]
    env.reset()
    assert [info["seed"] for info in env.reset_infos] == [None] * 3
    env.seed(None)
    env.reset()
    assert len({info["seed"] for info in env.reset_infos}) == 3


def test_infos_of_resets_within_a_step():
    env = joined([DummyVecEnv([partial(PaidEnv, length=2)]), DummyVecEnv([partial(PaidEnv, length=3)])])
    env.seed(0)
    env.reset()
    for _ in range(2):
        env.step(np.zeros(2, int))
    assert [info["seed"] for info in env.reset_infos] == [None, 1]


def test_options():
    env = joined([paid(1, 1), paid(1)])
    env.set_options({"start": 2})
    assert env.reset()[:, 0].tolist() == [2, 2, 2]
    env.set_options([{"start": 0}, {"start": 1}, {"start": 2}])
    assert env.reset()[:, 0].tolist() == [0, 1, 2]
    assert env.reset()[:, 0].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="options must hold one dictionary for each of 3 environments, got 2"):
        env.set_options([{}, {}])


def test_attributes_and_methods():
    env = joined([paid(1, 2), paid(3), paid(4)])
    assert env.get_attr("pay") == [1, 2, 3, 4]
    assert env.get_attr("pay", indices=[3, 0, 3]) == [4, 1, 4]
    assert env.get_attr("pay", indices=-2) == [3]
    env.set_attr("pay", 9, indices=[1, 2])
    assert env.get_attr("pay") == [1, 9, 9, 4]
    assert env.env_method("twice", indices=[2, 0]) == [18, 2]
    assert env.env_method("twice", 10, indices=3) == env.env_method("twice", number=10, indices=3) == [80]
    assert env.has_attr("pay")
    assert not env.has_attr("price")
    with pytest.raises(IndexError):
        env.get_attr("pay", indices=4)


def test_attributes_that_only_some_have():
    env = joined([dummy(CARTPOLE, 1), adapt_vector_env(gym.make_vec("CartPole-v1", num_envs=2))])
    assert env.env_is_wrapped(Monitor) == [True, True, True]
    other = joined([DummyVecEnv([CARTPOLE]), dummy(CARTPOLE, 1)])
    assert other.env_is_wrapped(Monitor) == [False, True]
    assert other.env_is_wrapped(Monitor, indices=1) == [True]
    assert not joined([dummy(CountingEnv, 1), dummy(CountingEnv, 1)]).has_attr("twice")


def test_images():
    env = joined([paid(1, 2), paid(3)])
    assert env.render_mode == "rgb_array"
    assert [int(image[0, 0, 0]) for image in env.get_images()] == [1, 2, 3]
    assert env.render().shape == (4, 4, 3)  # tiled


def test_close_reaches_all():
    closed = []

    class Closing(PaidEnv):
        def close(self):
            closed.append(self.pay)
            if self.pay == 2:
                raise RuntimeError("broken")

    env = joined([DummyVecEnv([partial(Closing, pay)]) for pay in (1, 2, 3)])
    with pytest.raises(RuntimeError, match="broken"):
        env.close()
    assert sorted(closed) == [1, 2, 3]


def test_task_in_a_dictionary():
    env = joined([paid(1, 2, as_dict=True), paid(5, as_dict=True)], tasks=["cheap", "dear"])
    assert env.observation_space["task"] == spaces.Discrete(2)
    record = play(env, n_steps=3)
    assert [obs["task"].tolist() for obs in record.observations] == [[0, 0, 1]] * 4
    assert [[info["task"] for info in infos] for infos in record.infos] == [["cheap", "cheap", "dear"]] * 3
    assert [info["terminal_observation"]["task"] for _, _, info in record.ended()] == [0, 0, 1]
    assert [info["terminal_observation"]["steps"].tolist() for _, _, info in record.ended()] == [[3, 1], [3, 2], [3, 5]]
    assert [info["task"] for info in env.reset_infos] == ["cheap", "cheap", "dear"]
    assert not np.shares_memory(record.observations[0]["task"], record.observations[1]["task"])


def test_task_as_columns():
    env = joined([paid(1), paid(5, 6)], tasks=range(2))
    assert env.observation_space == spaces.Box(np.zeros(4, np.float32), np.array([10, 10, 1, 1], np.float32))
    record = play(env, n_steps=3)
    assert record.observations[1].tolist() == [[1, 1, 1, 0], [1, 5, 0, 1], [1, 6, 0, 1]]
    assert record.observations[1].dtype == np.float32
    assert [info["task"] for info in record.infos[0]] == [0, 1, 1]
    assert [info["terminal_observation"].tolist() for _, _, info in record.ended()][:2] == [[3, 1, 1, 0], [3, 5, 0, 1]]


def test_tasks_with_numbers_have_no_names():
    model = GRPO("MlpPolicy", joined([paid(1), paid(5, 6)], tasks=[7, 8]), router="task", n_steps=12, batch_size=12)
    assert [(group.cells, group.name) for group in model.groups] == [([0], None), ([1], None)]


@pytest.mark.parametrize("labels", [None, ["cheap", "dear"], [7, 8]])
def test_what_environments_say_of_their_tasks_is_what_the_whole_says(labels):
    """Tasks within the joined environments are not those of the whole."""

    class Named(ChoosableEnv):
        task_names, task_columns = ("walk", "turn"), (1, 3)

    env = joined([DummyVecEnv([Named]), DummyVecEnv([Named, Named])], tasks=labels)
    expected = {
        "task_names": ("walk", "turn") if labels is None else ["cheap", "dear"] if labels[0] == "cheap" else None,
        "task_columns": (1, 3) if labels is None else (3, 5),
    }
    for name, value in expected.items():
        assert env.has_attr(name)
        assert env.get_attr(name) == [value] * 3
        assert env.get_attr(name, [2]) == [value]


def test_without_tasks_infos_are_left_alone():
    record = play(joined([DummyVecEnv([CountingEnv]), DummyVecEnv([CountingEnv])]), n_steps=4)
    assert [infos[0]["task"] for infos in record.infos] == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("algorithm", "router", "as_dict"),
    [
        (PPO, {}, True),
        (PPO, {}, False),
        (GRPO, "discrete", True),
        (GRPO, "one_hot", False),
        (GRPO, "task", True),
        (GRPO, "task", False),
    ],
)
def test_training_and_evaluation_by_task(algorithm, router, as_dict):
    def make():
        return VecMonitor(joined([paid(1, 1, as_dict=as_dict), paid(4, as_dict=as_dict)], tasks=["cheap", "dear"]))

    grouped = {"discrete": dict(key="task"), "one_hot": dict(columns=(2, 4)), "task": {}}
    kwargs = dict(router=router, router_kwargs=grouped[router]) if router else {}
    policy = "MultiInputPolicy" if as_dict else "MlpPolicy"
    model = algorithm(policy, make(), n_steps=12, batch_size=12, seed=0, device="cpu", **kwargs)
    callback = GroupEvalCallback(make(), eval_freq=12, n_eval_episodes=6, verbose=0)
    model.learn(72, callback)
    found = evaluate_groups(model, make(), n_eval_episodes=6)
    assert {task: (result.mean, result.n_episodes) for task, result in found.items()} == {"cheap": (3, 4), "dear": (12, 2)}
    assert callback.best_mean_reward == 6  # over six episodes
    if router:
        assert [(group.cells, group.steps) for group in model.groups] == [([0], 24), ([1], 12)]
        assert [group.name for group in model.groups] == (["cheap", "dear"] if router == "task" else [None, None])


def test_training_is_that_of_dummy_vec_env():
    weights = []
    for env in (dummy(CARTPOLE, 4), joined([dummy(CARTPOLE, 1), dummy(CARTPOLE, 3)])):
        model = PPO("MlpPolicy", env, n_steps=32, batch_size=32, seed=3, device="cpu").learn(256)
        weights.append(model.policy.state_dict())
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_normalised_environments_can_be_joined():
    parts = [VecNormalize(dummy(CARTPOLE, 2)) for _ in range(2)]
    env = joined(parts)
    env.seed(0)
    alone = VecNormalize(dummy(CARTPOLE, 2))
    alone.seed(2)
    first, theirs = env.reset(), alone.reset()
    assert_same_observation(first[2:], theirs)
    for actions in draw_actions(env.action_space, 10, 4):
        assert_same_observation(env.step(actions)[0][2:], alone.step(actions[2:])[0])


@pytest.mark.parametrize(
    ("vec_envs", "tasks", "message"),
    [
        (lambda: [], None, "vec_envs must hold at least one VecEnv"),
        (lambda: [paid(1), PaidEnv()], None, "number 1 is <class"),
        (lambda: [dummy(CARTPOLE, 1), paid(1)], None, r"observation_space of number 1 is Box\(0.0, 10.0, \(2,\)"),
        (
            lambda: [DummyVecEnv([partial(RandomEnv, spaces.Discrete(3), spaces.Discrete(n), length=9)]) for n in (2, 2, 3)],
            None,
            r"action_space of number 2 is Discrete\(3\), and that of number 0 is Discrete\(2\)",
        ),
        (lambda: [paid(1), paid(2)], ["a"], "tasks must be 2 different names or numbers"),
        (lambda: [paid(1), paid(2)], ["a", "a"], "tasks must be 2 different names or numbers"),
        (lambda: [paid(1), paid(2)], ["a", None], "tasks must be 2 different names or numbers"),
        (
            lambda: [DummyVecEnv([partial(RandomEnv, spaces.Discrete(3), spaces.Discrete(2), length=9)])],
            [0],
            "tasks must be None unless",
        ),
        (lambda: [joined([paid(1, as_dict=True)], tasks=[0])], [0], "Dict without 'task'"),
    ],
)
def test_what_cannot_be_joined(vec_envs, tasks, message):
    with pytest.raises(ValueError, match=message):
        joined(vec_envs(), tasks)


def test_one_object_twice():
    with pytest.raises(ValueError, match="vec_envs must be different objects"):
        joined([paid(1)] * 2)
