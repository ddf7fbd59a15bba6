import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import cloudpickle  # type: ignore[import-untyped]  # it has no types
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv
from vec_env import recording

from sb3_grpo.vec_env.lean import LeanVecEnv
from sb3_grpo.vec_env.ray import LostActorError, RayVecEnv
from sb3_grpo.vec_env.shared_start import make_group_vec_env

ray = pytest.importorskip("ray")
# with --dist loadgroup one process has all tests of this file, so that they share a cluster
pytestmark = pytest.mark.xdist_group("ray")

N_ENVS, PER_ACTOR = 3, 2
SEED = 5
MAX_STEPS = 15


class CartPoleError(Exception):
    """What only these environments raise."""


class PlacedCartPole(gym.Wrapper):
    """CartPole that knows its process and node, writes into the action's array, and returns a dict of two arrays."""

    def __init__(self, **kwargs):
        super().__init__(CartPoleEnv(render_mode="rgb_array", **kwargs))
        self.action_space = gym.spaces.MultiDiscrete([2])
        self.observation_space = gym.spaces.Dict(
            position=gym.spaces.Box(-10, 10, (2,), np.float32), speed=gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        )
        self.length, self.touched = 0.5, None

    def _obs(self, obs):
        return {"position": obs[[0, 2]], "speed": obs[[1, 3]].astype(np.float64)}

    def reset(self, *, seed=None, options=None):
        obs, info = self.env.reset(seed=seed, options=options)
        return self._obs(obs), info | {"seed": seed}

    def step(self, action):
        action += 1  # fails if the array is read-only
        action -= 1
        obs, reward, terminated, truncated, info = self.env.step(action[0])
        return self._obs(obs), reward, terminated, truncated, info | {"speed": obs[[1, 3]]}

    def node(self):
        return ray.get_runtime_context().get_node_id()

    def pid(self):
        return os.getpid()

    def add(self, one, *, other):
        return one + other + self.length

    def touch_when_closed(self, path):
        self.touched = path

    def close(self):
        super().close()
        if self.touched is not None:
            self.touched.touch()

    def fail(self):
        raise CartPoleError("the pole is broken")

    def render(self):
        return np.full((4, 4, 3), int(self.length * 100), np.uint8)


def placed_cartpole():
    return TimeLimit(PlacedCartPole(), MAX_STEPS)


def make(vec_env_cls, n_envs=N_ENVS, **kwargs):
    return make_vec_env(placed_cartpole, n_envs, seed=SEED, vec_env_cls=vec_env_cls, vec_env_kwargs=kwargs)


def make_ray(n_envs=N_ENVS, **kwargs):
    return make(RayVecEnv, n_envs, envs_per_actor=PER_ACTOR, **kwargs)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Address of two nodes of two processors each."""
    from ray.cluster_utils import Cluster  # noqa: PLC0415 (an optional package)

    for pickler in (cloudpickle, ray.cloudpickle):  # actors and processes cannot import tests
        pickler.register_pickle_by_value(sys.modules[__name__])
    node = {"num_cpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(num_cpus=2, object_store_memory=80 * 2**20)
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()
    for pickler in (cloudpickle, ray.cloudpickle):
        pickler.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def ray_env(cluster):
    """Two actors, each of which fills a node; Ray is initialised by them."""
    options = {"num_cpus": 2}
    env = make_ray(max_actor_restarts=2, actor_options=options, ray_init_kwargs={"address": cluster, "log_to_driver": False})
    yield env
    env.close()
    env.close()


@pytest.fixture
def dummy_env():
    return make(DummyVecEnv)


def trajectory(env, n_steps=40):
    """All that the environment returns, as lists of scalars where it is not an array; actions are drawn from a seed."""
    rng = np.random.default_rng(0)
    env.seed(SEED)
    obs, reset_infos = env.reset(), [dict(info) for info in env.reset_infos]
    steps = []
    for _ in range(n_steps):
        actions = rng.integers(2, size=(env.num_envs, 1))
        next_obs, rewards, dones, infos = env.step(actions)
        for info in infos:
            info.get("episode", {}).pop("t", None)  # wall time
        steps.append((next_obs, rewards, dones, list(infos), [dict(info) for info in env.reset_infos]))
    return obs, reset_infos, steps


def assert_same(actual, expected):
    """Same structure and values; where types count, a test says so."""
    recording.assert_same(actual, expected, types=False)


def arrays_of(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [array for part in value for array in arrays_of(part)]
    return [value] if isinstance(value, np.ndarray) else []


def test_actors_are_on_two_nodes(ray_env):
    nodes, pids = ray_env.env_method("node"), ray_env.env_method("pid")
    assert nodes[0] == nodes[1] != nodes[2]
    assert pids[0] == pids[1] != pids[2]
    assert os.getpid() not in pids


def test_trajectories_are_those_of_subproc_vec_env(ray_env):
    multiprocessing.set_forkserver_preload(["stable_baselines3"])  # imported once, not in each process
    subproc_env = make(SubprocVecEnv)
    expected = trajectory(subproc_env)
    subproc_env.close()
    actual = trajectory(ray_env)
    assert_same(actual, expected)
    dones = np.array([step[2] for step in actual[2]])
    truncated = np.array([[info["TimeLimit.truncated"] for info in step[3]] for step in actual[2]])
    assert (dones & truncated).any()
    assert (dones & ~truncated).any(), "the episodes must end in both ways"


def test_sampling_groups_are_those_of_lean_vec_env(ray_env):
    envs = [
        make_group_vec_env(placed_cartpole, 3, seed=SEED, vec_env_cls=cls, vec_env_kwargs=kwargs)
        for cls, kwargs in ((LeanVecEnv, {}), (RayVecEnv, {"envs_per_actor": 2}))
    ]
    expected, actual = map(trajectory, envs)
    assert_same(actual, expected)
    assert envs[1].get_attr("next_episode") == envs[0].get_attr("next_episode")
    envs[1].env_method("skip_to", 7)
    assert envs[1].get_attr("next_episode") == [7] * 3
    envs[1].close()


def test_types_are_those_of_dummy_vec_env_and_arrays_can_be_written(ray_env, dummy_env):
    actual, expected = trajectory(ray_env), trajectory(dummy_env)
    assert_same(actual, expected)
    assert [array.dtype for array in arrays_of(actual)] == [array.dtype for array in arrays_of(expected)]
    assert all(array.flags.writeable for array in arrays_of(actual))
    assert isinstance(ray_env.step(np.zeros((N_ENVS, 1), int))[3], list)


def test_spaces_and_what_is_read_of_all_environments(ray_env, dummy_env):
    for env in (ray_env, dummy_env):
        env.seed(SEED)
        env.reset()
        env.set_attr("length", 0.25, indices=[2, 0])
    assert (ray_env.observation_space, ray_env.action_space) == (dummy_env.observation_space, dummy_env.action_space)
    assert ray_env.render_mode == dummy_env.render_mode == "rgb_array"
    for read in (
        lambda env: env.get_attr("gravity"),
        lambda env: env.get_attr("length", -1),
        lambda env: env.get_attr("gravity", iter([2, 0])),
        lambda env: env.env_method("add", 1, other=2, indices=[2, 1, 0]),
        lambda env: env.env_is_wrapped(Monitor),
        lambda env: env.env_is_wrapped(gym.wrappers.TimeAwareObservation, indices=1),
        lambda env: [env.has_attr("gravity"), env.has_attr("missing")],
        lambda env: env.render(),
        lambda env: env.get_images(),
    ):
        assert_same(read(ray_env), read(dummy_env))
    assert ray_env.get_attr("length") == [0.25, 0.5, 0.25]
    ray_env.set_attr("length", 0.5)
    assert ray_env.get_attr("length") == [0.5] * 3
    with pytest.raises(AttributeError, match="missing"):
        ray_env.get_attr("missing")
    with pytest.raises(IndexError):
        ray_env.get_attr("gravity", N_ENVS)


def test_options_and_seeds_are_used_once(ray_env, dummy_env):
    for env in (ray_env, dummy_env):
        assert env.seed(3) == [3, 4, 5]
        env.set_options([{"low": 0.01 * i, "high": 0.01 * i + 0.01} for i in range(N_ENVS)])
    assert_same(ray_env.reset(), dummy_env.reset())
    assert [info["seed"] for info in ray_env.reset_infos] == [3, 4, 5]
    ray_env.reset()
    assert [info["seed"] for info in ray_env.reset_infos] == [None] * 3


def test_errors_in_actors_are_the_environments_own(ray_env):
    with pytest.raises(CartPoleError, match="the pole is broken") as raised:
        ray_env.env_method("fail", indices=1)
    assert "in fail" in str(raised.value.__cause__), "the traceback of the actor"
    with pytest.raises(ValueError, match="one action per environment, 3, not 2"):
        ray_env.step(np.zeros((2, 1), int))
    assert_same(ray_env.env_method("add", 1, other=2), [3.5] * N_ENVS)


def test_ppo_learns_the_same_weights_as_with_dummy_vec_env(ray_env, dummy_env):
    weights = []
    for env in (ray_env, dummy_env):
        model = PPO("MultiInputPolicy", env, n_steps=32, batch_size=32, n_epochs=2, seed=0, device="cpu")
        weights.append(model.learn(192).policy.state_dict())
    for name, tensor in weights[0].items():
        assert th.equal(tensor, weights[1][name]), name


def kill(env, index):
    """Kill the actor of an environment as the operating system would."""
    os.kill(env.env_method("pid", indices=index)[0], signal.SIGKILL)


def has_ended(pid):
    """Whether the process is gone, or a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_a_lost_actor_is_an_error_that_names_its_environments_and_the_others_are_closed(ray_env, tmp_path):
    env = make_ray()
    pids = env.env_method("pid")
    for i in range(N_ENVS):
        env.env_method("touch_when_closed", tmp_path / str(i), indices=i)
    env.reset()
    kill(env, 0)
    with pytest.raises(LostActorError, match=r"environments 0 to 1 is gone .*max_actor_restarts"):
        env.step(np.zeros((N_ENVS, 1), int))
    assert not has_ended(pids[2])
    env.close()
    env.close()
    assert [path.name for path in tmp_path.iterdir()] == ["2"]
    deadline = time.monotonic() + 10
    while not has_ended(pids[2]):
        assert time.monotonic() < deadline, "the process of an actor outlives the environment"
        time.sleep(0.05)
    with pytest.raises(RuntimeError, match="is closed"):
        env.step(np.zeros((N_ENVS, 1), int))


def test_a_lost_actor_is_started_again(ray_env, dummy_env):
    env = ray_env
    for vec_env in (env, dummy_env):
        vec_env.seed(SEED)
        before = vec_env.reset()
    actions = np.zeros((N_ENVS, 1), int)
    pids = env.env_method("pid")

    kill(env, 0)
    with pytest.warns(UserWarning, match=r"environments 0 to 1 was lost .*\(1 of 2 restarts\)"):
        obs, rewards, dones, infos = env.step(actions)
    expected = dummy_env.step(actions.copy())
    assert dones.tolist() == [True, True, False]
    assert rewards.tolist() == [0, 0, 1]
    assert [(info["actor_restarted"], info["TimeLimit.truncated"]) for info in infos[:2]] == [(True, True)] * 2
    assert_same([info["terminal_observation"] for info in infos[:2]], [{k: v[i] for k, v in before.items()} for i in (0, 1)])
    # they begin as any environments with the new seeds do
    assert [info["seed"] for info in env.reset_infos[:2]] == [SEED + N_ENVS, SEED + 1 + N_ENVS]
    fresh = LeanVecEnv([placed_cartpole] * 2)
    fresh.seed(SEED + N_ENVS)
    assert_same({key: array[:2] for key, array in obs.items()}, fresh.reset())
    # the other actor has gone on
    assert_same({key: array[2] for key, array in obs.items()}, {key: array[2] for key, array in expected[0].items()})
    assert "actor_restarted" not in infos[2]
    assert (np.array(env.env_method("pid")) != pids).tolist() == [True, True, False]
    assert env.step(actions)[2].tolist() == [False] * 3

    # a loss that is noticed between two steps is reported by the next one
    kill(env, 2)
    with pytest.warns(UserWarning, match=r"environments 2 to 2 was lost"):
        assert env.get_attr("gravity") == [9.8] * 3
    obs, rewards, dones, infos = env.step(actions)
    assert (dones.tolist(), rewards.tolist()) == ([False, False, True], [1, 1, 0])
    assert infos[2]["actor_restarted"]
    assert env.step(actions)[2].tolist() == [False] * 3


def test_an_environment_that_cannot_be_made_raises_its_own_error(ray_env):
    with pytest.raises(TypeError, match="unexpected keyword argument 'gravitiy'"):
        RayVecEnv([lambda: PlacedCartPole(gravitiy=1)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env_fns": []}, "env_fns must hold at least one function"),
        ({"env_fns": [CartPoleEnv()]}, "nothing but functions, not"),
        ({"envs_per_actor": 0}, "envs_per_actor must be an integer of at least 1, not 0"),
        ({"envs_per_actor": 1.5}, "envs_per_actor must be an integer of at least 1, not 1.5"),
        ({"max_actor_restarts": -1}, "max_actor_restarts must be an integer of at least 0, not -1"),
        ({"max_actor_restarts": True}, "max_actor_restarts must be an integer of at least 0, not True"),
        ({"actor_options": {"max_restarts": 1}}, "actor_options must not have max_restarts"),
        ({"actor_options": {"cpus": 1}}, "cpus"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        RayVecEnv(**{"env_fns": [placed_cartpole], **arguments})


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'pip install "sb3-grpo\[dist\]"'):
        RayVecEnv([placed_cartpole])
