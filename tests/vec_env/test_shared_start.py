import pickle
from copy import deepcopy
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize
from tiny_envs import CountingEnv, RandomEnv
from vec_env.group_episodes import GROUP_SIZE, N_STARTS, SEED, assert_shared_starts, cut_by_actions, play_groups
from vec_env.recording import assert_same, assert_same_record, play

from sb3_grpo import JoinedVecEnv, LeanVecEnv, RayVecEnv, check_shared_start, make_group_vec_env
from sb3_grpo.vec_env import SharedStart
from sb3_grpo.vec_env.shared_start import episode_seed

IDS = [
    "CartPole-v1",
    "Acrobot-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "Pendulum-v1",
    "FrozenLake-v1",
    "Taxi-v4",
    "CliffWalking-v1",
    "Blackjack-v1",
    "sb3_grpo/TaskCartPole-v0",
    "sb3_grpo/TaskAcrobot-v0",
    "sb3_grpo/TaskPendulum-v0",
]
VEC_ENVS: dict[str, dict[str, Any]] = {
    "dummy": {"vec_env_cls": DummyVecEnv},
    "subprocesses": {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "fork"}},
    "sync": {"vec_env_cls": SyncVectorEnv},
    "sync, reset a step later": {
        "vec_env_cls": SyncVectorEnv,
        "vec_env_kwargs": {"autoreset_mode": AutoresetMode.NEXT_STEP},
    },
    "sync, reset by mask": {"vec_env_cls": SyncVectorEnv, "vec_env_kwargs": {"autoreset_mode": AutoresetMode.DISABLED}},
    "async": {"vec_env_cls": AsyncVectorEnv},
    "async, reset a step later": {
        "vec_env_cls": AsyncVectorEnv,
        "vec_env_kwargs": {"autoreset_mode": AutoresetMode.NEXT_STEP},
    },
}


def groups(env_id="CartPole-v1", seed=SEED, **kwargs):
    return make_group_vec_env(partial(cut_by_actions, env_id), GROUP_SIZE, N_STARTS, seed=seed, **kwargs)


@pytest.mark.parametrize("env_id", IDS)
def test_members_that_act_alike_see_the_same(env_id):
    env = groups(env_id)
    assert type(env) is LeanVecEnv
    # each episode on a cliff begins in the same cell, and nothing is drawn
    assert_shared_starts(play_groups(env), differs=env_id != "CliffWalking-v1")


def test_without_the_wrapper_they_do_not():
    env = make_vec_env(partial(cut_by_actions, "CartPole-v1"), GROUP_SIZE * N_STARTS, seed=SEED)
    with pytest.raises(AssertionError):
        assert_shared_starts(play_groups(env))


@pytest.mark.parametrize("kind", VEC_ENVS)
def test_every_kind_of_vec_env_plays_the_same_episodes(kind):
    lean, env = groups(), groups(**VEC_ENVS[kind])
    expected, actual = play(lean, seed=None), play(env, seed=None)
    # rewards of subprocesses are float64, those of the others float32
    assert_same_record(actual._replace(rewards=actual.rewards.astype(np.float32)), expected)
    assert len(expected.ended()) >= 2 * env.num_envs
    assert env.get_attr("start") == [0, 0, 0, 1, 1, 1]
    n_episodes = expected.dones.sum(axis=0) + 1
    assert env.get_attr("next_episode") == list(n_episodes)
    assert (expected.dones.any(axis=1) & ~expected.dones.all(axis=1)).any(), "episodes must end at different times"
    assert all(env.env_is_wrapped(Monitor))
    for each in (lean, env):
        each.env_method("skip_to", 40)
    assert_same(env.reset(), lean.reset())
    assert env.get_attr("next_episode") == [41] * env.num_envs
    env.close()


@pytest.mark.parametrize("kind", ["sync", "async", "subprocesses"])
def test_members_in_other_vec_envs(kind):
    env = groups("Pendulum-v1", **VEC_ENVS[kind])
    assert_shared_starts(play_groups(env))
    env.close()


def first_observations(seed, episode, env_id="CartPole-v1"):
    return [gym.make(env_id).reset(seed=episode_seed(seed, start, episode))[0] for start in (0, 0, 0, 1, 1, 1)]


def test_the_environment_is_reset_with_the_seed_of_the_episode():
    env = groups()
    for episode in range(3):
        np.testing.assert_array_equal(env.reset(), first_observations(SEED, episode))


def test_seeds_are_those_that_numpy_spawns():
    for base in (0, 7, 2**32 - 1):
        of_starts = [start.spawn(4) for start in np.random.SeedSequence(base).spawn(3)]
        expected = [[int(episode.generate_state(1)[0]) for episode in episodes] for episodes in of_starts]
        assert [[episode_seed(base, start, k) for k in range(4)] for start in range(3)] == expected
    assert [episode_seed(0, 0, 0), episode_seed(0, 0, 1), episode_seed(0, 1, 0)] == [4088532484, 3581274545, 3953331965]
    assert 0 <= episode_seed(2**32 - 1, 1, 2**33) < 2**32


def test_another_seed_gives_other_episodes():
    one, same_seed, other = groups(), groups(), groups(seed=SEED + 1)
    first = one.reset()
    np.testing.assert_array_equal(first, same_seed.reset())
    assert not (first == other.reset()).all(axis=1).any()


def test_without_a_seed_one_is_drawn_for_all():
    one, other = groups(seed=None), groups(seed=None)
    first = one.reset()
    assert (first[:3] == first[0]).all()
    assert (first[3:] == first[3]).all()
    assert not (first[0] == first[3]).any()
    assert not (first == other.reset()).all(axis=1).any()
    np.random.seed(5)
    first = groups(seed=None).reset()
    np.random.seed(5)
    np.testing.assert_array_equal(groups(seed=None).reset(), first)


@pytest.mark.parametrize("cls", [LeanVecEnv, SyncVectorEnv])
@pytest.mark.parametrize("seed", [9, 2**32 - 1])
def test_a_vec_env_that_is_seeded_keeps_the_numbers_of_episodes(cls, seed):
    env = groups(vec_env_cls=cls)
    env.reset()
    env.seed(seed)
    np.testing.assert_array_equal(env.reset(), first_observations(seed, 1))
    np.testing.assert_array_equal(env.reset(), first_observations(seed, 2))  # the seed stays


def test_any_seed_of_an_environment():
    for seed, base in ((0, 2**32 - 3), (3, 0), (2**32 + 2, 2**32 - 1)):
        obs, _ = SharedStart(gym.make("CartPole-v1"), 1, 3, 0).reset(seed=seed)
        np.testing.assert_array_equal(obs, first_observations(base, 0)[3])


def test_a_joined_vec_env_keeps_groups():
    env = JoinedVecEnv([groups(), groups()])
    env.seed(3)
    np.testing.assert_array_equal(env.reset(), first_observations(3, 0) + first_observations(3 + 6, 0))


def test_numbers_go_on_where_they_are_set():
    env = groups()
    env.env_method("skip_to", 1000)
    np.testing.assert_array_equal(env.reset(), first_observations(SEED, 1000))
    np.testing.assert_array_equal(env.reset(), first_observations(SEED, 1001))


class DrawnStart(gym.Env):
    """Begin at a number that is drawn; the action says whether the episode ends."""

    observation_space, action_space = spaces.Box(0, 1, (1,), np.float64), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.obs = self.np_random.random(1)
        return self.obs, {"options": options}

    def step(self, action):
        return self.obs, 1.0, action == 1, False, {}


@settings(deadline=None, max_examples=60)
@given(data=st.data(), group_size=st.integers(2, 4), n_starts=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_kth_episodes_of_a_start_begin_alike_whatever_their_lengths(data, group_size, n_starts, seed):
    env = LeanVecEnv([partial(SharedStart, DrawnStart(), i // group_size, i, seed) for i in range(group_size * n_starts)])
    firsts = [[float(obs[0])] for obs in env.reset()]
    for ends in data.draw(st.lists(st.lists(st.integers(0, 1), min_size=len(firsts), max_size=len(firsts)), max_size=20)):
        obs, _, dones, _ = env.step(np.array(ends))
        for i in np.flatnonzero(dones):
            firsts[i].append(np.asarray(obs)[i].item())
    by_start = [firsts[start * group_size :][:group_size] for start in range(n_starts)]
    for members in by_start:
        longest = max(members, key=len)
        assert all(mine == longest[: len(mine)] for mine in members)
    all_starts = [number for members in by_start for number in max(members, key=len)]
    assert len(set(all_starts)) == len(all_starts)


def test_options_are_handed_on():
    env = SharedStart(DrawnStart(), 0, 0, 0)
    options = {"reset_mask": np.array([True])}
    assert env.reset(options=options)[1]["options"] is options
    assert env.reset()[1]["options"] is None
    vec_env = groups()
    vec_env.set_options({"low": 0.01, "high": 0.02})
    assert (vec_env.reset() > 0).all()
    assert not (vec_env.reset() > 0).all()


class OneTask(CountingEnv):
    """Play task 0 in each episode."""

    def _next_task(self):
        return 0


class WithoutOptions(OneTask):
    """Know no options."""

    def reset(self, *, seed=None):  # type: ignore[override]  # that is the fault
        return super().reset(seed=seed)


def test_a_reset_without_options_is_enough():
    env = make_group_vec_env(WithoutOptions, 2)
    env.reset()
    assert env.step(np.zeros(2, int))[1].tolist() == [1, 1]


def test_an_episode_that_did_not_begin_is_not_counted():
    env = SharedStart(NoSeed(), 0, 0, 0)
    with pytest.raises(TypeError):
        env.reset()
    assert env.next_episode == 0


def test_a_pickled_copy_goes_on():
    env = SharedStart(gym.make("CartPole-v1"), 2, 5, 7)
    env.reset()
    copy = pickle.loads(pickle.dumps(env))  # noqa: S301  # its own bytes
    assert (copy.start, copy.next_episode) == (2, 1)
    np.testing.assert_array_equal(copy.reset()[0], env.reset()[0])


def test_arguments_of_make_vec_env(tmp_path):
    env = make_group_vec_env(
        "CartPole-v1",
        2,
        seed=0,
        monitor_dir=str(tmp_path),
        wrapper_class=gym.wrappers.FrameStackObservation,
        env_kwargs={"max_episode_steps": 4},
        vec_env_cls=SyncVectorEnv,
        monitor_kwargs={"override_existing": False},
        wrapper_kwargs={"stack_size": 3},
    )
    assert env.observation_space.shape == (3, 4)
    env.reset()
    for _ in range(9):
        env.step(np.zeros(2, int))
    env.close()
    lines = [line for path in sorted(tmp_path.iterdir()) for line in path.read_text().splitlines()]
    assert [line.split(",")[1] for line in lines] == ["4"] * 4, "episodes of the check are not among them"


def test_keywords_of_monitor_in_gymnasiums_vector_environments():
    for cls in (LeanVecEnv, SyncVectorEnv):
        env = make_group_vec_env(WithoutOptions, 2, vec_env_cls=cls, monitor_kwargs={"info_keywords": ("task",)})
        env.reset()
        infos = [env.step(np.zeros(2, int))[3] for _ in range(3)][-1]
        assert [{key: info["episode"][key] for key in ("r", "l", "task")} for info in infos] == [
            {"r": 3, "l": 3, "task": 0}
        ] * 2


def test_wrappers_of_vec_envs():
    env = VecFrameStack(VecNormalize(groups("sb3_grpo/TaskCartPole-v0")), 2)
    first = np.asarray(env.reset())
    assert (first[:3] == first[0]).all()
    tasks = [info["task"] for info in env.unwrapped.reset_infos]
    assert tasks == [tasks[0]] * 3 + [tasks[3]] * 3
    assert env.env_method("skip_to", 3) == [None] * 6
    assert env.get_attr("next_episode") == [3] * 6


@pytest.mark.parametrize("kind", ["lean", *VEC_ENVS])
def test_ppo_learns_as_with_any_other_vec_env(kind):
    # each episode begins alike, with whatever seed
    weights = []
    for env in (make_vec_env(OneTask, 4), make_group_vec_env(OneTask, 4, **VEC_ENVS.get(kind, {}))):
        model = PPO("MlpPolicy", VecNormalize(env), n_steps=32, batch_size=32, n_epochs=2, seed=0, device="cpu").learn(256)
        weights.append(model.policy.state_dict())
        env.close()
    for name, tensor in weights[0].items():
        assert th.equal(tensor, weights[1][name]), name


def test_ppo_is_saved_loaded_and_evaluated(tmp_path):
    model = PPO("MlpPolicy", groups(), n_steps=32, batch_size=32, n_epochs=1, seed=4, device="cpu").learn(192)
    env = model.get_env()
    assert env is not None
    model.save(tmp_path / "model")
    reached = max(env.get_attr("next_episode"))
    new = groups(seed=4)
    new.env_method("skip_to", reached)
    loaded = PPO.load(tmp_path / "model", env=new, device="cpu")
    loaded.learn(192, reset_num_timesteps=False)
    assert loaded.num_timesteps == 384
    assert min(new.get_attr("next_episode")) > reached
    loaded.set_env(env)
    loaded.learn(192)
    assert np.shape(evaluate_policy(loaded, env, n_eval_episodes=6, return_episode_rewards=True)[1]) == (6,)


@pytest.mark.parametrize("env_id", IDS)
def test_environments_whose_seed_determines_the_episode(env_id):
    check_shared_start(env_id, n_steps=40)


SPACES = [
    spaces.Dict(a=spaces.Box(-1, 1, (2,), np.float32), b=spaces.Discrete(3)),
    spaces.Tuple([spaces.MultiBinary(2), spaces.Text(4)]),
    spaces.Graph(spaces.Box(-1, 1, (2,)), spaces.Discrete(3)),
]


class Fair(gym.Env):
    """Walk at random, from where the seed says; observations may be NaN."""

    observation_space, action_space = spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = self.np_random.normal(), 0
        return self._obs(), {}

    def _obs(self):
        return np.array([self.place, np.nan])

    def step(self, action):
        self.place += action[0] + self.np_random.normal()
        action[0] = 0  # what was given does not change
        self.time += 1
        return self._obs(), self.place, False, self.time >= 30, {}


def drawn(space):
    return RandomEnv(deepcopy(space), spaces.Discrete(2))


@pytest.mark.parametrize("make", [Fair, *(partial(drawn, space) for space in SPACES)])
def test_observations_of_any_kind(make):
    check_shared_start(make)


class IgnoresSeed(Fair):
    def reset(self, *, seed=None, options=None):
        return super().reset()


class SeedsOnce(Fair):
    seeded = False

    def reset(self, *, seed=None, options=None):
        seed, self.seeded = None if self.seeded else seed, True
        return super().reset(seed=seed)


class CarriesOver(Fair):
    """The reward depends on the episodes before."""

    n_episodes = 0

    def reset(self, *, seed=None, options=None):
        self.n_episodes += 1
        return super().reset(seed=seed)

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, reward + self.n_episodes, *rest


class KeepsWhatItChanges(Fair):
    """Make something for each seed, once, and change it in play."""

    def __init__(self):
        self.made = {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = self.made.setdefault(seed, np.array([self.place, 0]))
        return self.at, {}

    def step(self, action):
        self.at += action
        return self.at, 0.0, False, False, {}


class DrawsFromTheProcess(Fair):
    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, reward + np.random.random(), *rest


class SeedsTheProcess(DrawsFromTheProcess):
    """What one instance seeds, the other uses up."""

    def reset(self, *, seed=None, options=None):
        np.random.seed(seed)
        return super().reset(seed=seed)


class EndsByChance(Fair):
    def step(self, action):
        return *super().step(action)[:2], np.random.random() < 0.2, False, {}


class OneBuffer(Fair):
    """All instances write into the same array, after the reset what only the process knows."""

    observation_space, buffer = spaces.Box(0, 1, (1,)), np.zeros(1)

    def _obs(self):
        self.buffer[:] = np.random.random() if self.time else 0
        return self.buffer


class NoSeed(Fair):
    def reset(self):  # type: ignore[override]  # that is the fault
        return super().reset()


one_env, one_space = Fair(), spaces.Discrete(100)
REFUSED = {
    IgnoresSeed: "differ in the observation of the reset",
    SeedsOnce: "differ in the observation of the reset",
    CarriesOver: "differ in the reward of step 1: ",
    CountingEnv: "differ in the observation of the reset",  # another task
    KeepsWhatItChanges: "differ in the observation of the reset",
    DrawsFromTheProcess: "differ in the reward of step 1: ",
    SeedsTheProcess: "differ in the reward of step 1: ",
    EndsByChance: r"differ in the end of the episode of step \d+: \((True|False), False\) and",
    OneBuffer: "differ in the observation of step 1",
    partial(RandomEnv, one_space, spaces.Discrete(2)): "differ in the observation of step 1",  # one space draws for both
    NoSeed: r"reset\(seed=\d\) raised TypeError: .*unexpected keyword argument 'seed'",
}


@pytest.mark.parametrize(("make", "message"), REFUSED.items())
def test_environments_that_a_seed_does_not_repeat_are_refused(make, message):
    with pytest.raises(ValueError, match=rf"^env must make .*{message}.*advantage_estimator=\"time_step\""):
        check_shared_start(make)
    with pytest.raises(ValueError, match=rf"^env_id must make .*{message}.*advantage_estimator=\"time_step\""):
        make_group_vec_env(make, 2)


def test_what_shows_later_than_the_check_looks():
    class Late(Fair):
        def step(self, action):
            obs, reward, *rest = super().step(action)
            return obs, reward + (np.random.random() if self.time > 20 else 0), *rest

    check_shared_start(Late, n_steps=20)
    with pytest.raises(ValueError, match="reward of step 21"):
        check_shared_start(Late, n_steps=21)


class Counted(Fair):
    alive = made = 0

    def __init__(self):
        Counted.alive += 1
        Counted.made += 1

    def close(self):
        Counted.alive -= 1


def test_the_check_closes_what_it_made(monkeypatch):
    monkeypatch.setattr(Counted, "alive", 0)
    check_shared_start(Counted)
    assert Counted.alive == 0
    monkeypatch.setattr(Counted, "step", lambda self, action: (self._obs(), np.random.random(), False, False, {}))
    with pytest.raises(ValueError, match="differ in the reward"):
        check_shared_start(Counted)
    assert Counted.alive == 0


def test_generators_of_the_process_stay_as_they_are():
    def seed():
        np.random.seed(1)
        Fair.action_space.seed(1)  # all instances have the same

    seed()
    check_shared_start(Fair)
    drawn_afterwards = [np.random.random(), Fair.action_space.sample()]
    make_group_vec_env(Fair, 2, seed=0)
    drawn_afterwards.append(np.random.random())
    seed()
    assert drawn_afterwards == [np.random.random(), Fair.action_space.sample(), np.random.random()]


def test_two_more_environments_are_made_for_the_check(monkeypatch):
    monkeypatch.setattr(Counted, "alive", 0)
    monkeypatch.setattr(Counted, "made", 0)
    env = make_group_vec_env(Counted, 2, 3)
    assert (Counted.made, Counted.alive) == (8, 6)
    env.close()
    assert Counted.alive == 0


def never():
    pytest.fail("an environment was made")


BAD = [
    ({"group_size": 1}, "group_size must be an integer of at least 2, not 1"),
    ({"group_size": 2.0}, r"group_size must be an integer of at least 2, not 2\.0"),
    ({"group_size": True}, "group_size must be an integer of at least 2, not True"),
    ({"n_starts": 0}, "n_starts must be an integer of at least 1, not 0"),
    ({"n_starts": "2"}, "n_starts must be an integer of at least 1, not '2'"),
    ({"seed": -1}, "seed must be an integer from 0 to 4294967295, not -1"),
    ({"seed": 2**32}, "seed must be an integer from 0 to 4294967295, not 4294967296"),
    ({"seed": 0.5}, r"seed must be an integer from 0 to 4294967295, not 0\.5"),
    ({"env_id": CartPoleVectorEnv}, "env_id must be the id of .*CartPoleVectorEnv"),
    ({"env_id": one_env}, "env_id must be the id of .*Fair"),
    ({"vec_env_cls": CartPoleVectorEnv}, "vec_env_cls must be .*, not .*CartPoleVectorEnv"),
    ({"vec_env_cls": VecNormalize}, "vec_env_cls must be .*, not .*VecNormalize"),
    ({"vec_env_cls": JoinedVecEnv}, "vec_env_cls must be .*, not .*JoinedVecEnv"),
    ({"vec_env_cls": "dummy"}, "vec_env_cls must be .*, not 'dummy'"),
    ({"vec_env_cls": RayVecEnv, "vec_env_kwargs": {"max_actor_restarts": 2}}, "vec_env_kwargs must not .* got 2"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments_are_refused_before_an_environment_is_made(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make_group_vec_env(**{"env_id": never, "group_size": 2, **arguments})


def test_bad_arguments_of_the_others():
    env = Fair()
    for arguments, name in (((env, -1, 0, 0), "start"), ((env, 0, 0.5, 0), "member"), ((env, 0, 0, 2**32), "seed")):
        with pytest.raises(ValueError, match=f"^{name} must be an integer"):
            SharedStart(*arguments)
    with pytest.raises(ValueError, match=r"^episode must be an integer of at least 0, not -1"):
        SharedStart(env, 0, 0, 0).skip_to(-1)
    with pytest.raises(ValueError, match=r"^n_steps must be an integer of at least 1, not 0"):
        check_shared_start(never, 0)
    with pytest.raises(ValueError, match=r"^env must be the id of"):
        check_shared_start(env)  # type: ignore[arg-type]  # that is the fault
    with pytest.raises(ValueError, match=r"^env must make single environments .*CartPoleVectorEnv"):
        check_shared_start(partial(gym.make_vec, "CartPole-v1"))  # type: ignore[arg-type]  # that is the fault
    with pytest.raises(ValueError, match=r"^env must return a new environment at each call"):
        check_shared_start(lambda: gym.wrappers.TimeLimit(one_env, 5))


def test_integers_of_numpy():
    numbers: Any = (np.int64(2), np.int32(2), np.uint32(3))
    env, expected = make_group_vec_env("CartPole-v1", *numbers), make_group_vec_env("CartPole-v1", 2, 2, 3)
    assert env.get_attr("start") == [0, 0, 1, 1]
    assert_same(env.reset(), expected.reset())
