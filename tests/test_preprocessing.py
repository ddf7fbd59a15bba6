"""Preprocessing: to the last bit what SB3's function does, without what the router hides."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_envs import RandomEnv

from sb3_grpo import GRPO
from sb3_grpo.preprocessing import Preprocessor, choice_sizes, one_hot_of
from sb3_grpo.routing import make_router

IMAGE = spaces.Box(0, 255, (1, 36, 36), np.uint8)
SPACES: dict[str, gym.Space[Any]] = {
    "vector": spaces.Box(-1, 1, (3,)),
    "image": IMAGE,
    "discrete": spaces.Discrete(4),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(3),
    "dict": spaces.Dict({"image": IMAGE, "vector": spaces.Box(-1, 1, (2,)), "number": spaces.Discrete(3)}),
}


def batch_of(space: gym.Space[Any], n: int = 5) -> Any:
    space.seed(0)
    samples: list[Any] = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: th.as_tensor(np.stack([sample[key] for sample in samples])) for key in space}
    return th.as_tensor(np.stack(samples))


@pytest.mark.parametrize("normalize_images", [True, False])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_as_sb3(space, normalize_images):
    obs = batch_of(space)
    preprocess = Preprocessor(space, normalize_images, make_router("random", space, dict(n_cells=2)))
    expected: Any = preprocess_obs(obs, space, normalize_images)
    actual: Any = preprocess(obs)
    if not isinstance(expected, dict):
        expected, actual = {"": expected}, {"": actual}
    assert expected.keys() == actual.keys()
    for key, value in expected.items():
        assert value.dtype == actual[key].dtype == th.float32
        assert value.equal(actual[key]), key


def test_images_are_divided_by_255_by_hand():
    preprocess = Preprocessor(IMAGE, True, make_router("random", IMAGE, dict(n_cells=2)))
    obs = th.full((1, 1, 36, 36), 51, dtype=th.uint8)
    preprocessed = preprocess(obs)
    assert isinstance(preprocessed, th.Tensor)
    assert preprocessed.unique().tolist() == [pytest.approx(0.2)]


@pytest.mark.parametrize("hide", [True, False])
def test_columns_that_the_router_hides(hide):
    space = spaces.Box(-1, 1, (4,))
    preprocess = Preprocessor(space, True, make_router("one_hot", space, dict(columns=(1, 3), hide=hide)))
    expected = [[0, 3], [4, 7]] if hide else [[0, 1, 2, 3], [4, 5, 6, 7]]
    preprocessed = preprocess(th.arange(8.0).view(2, 4))
    assert isinstance(preprocessed, th.Tensor)
    assert preprocessed.tolist() == expected


@pytest.mark.parametrize("hide", [True, False])
def test_an_entry_that_the_router_hides(hide):
    space = spaces.Dict({"obs": spaces.Box(-1, 1, (1,)), "task": spaces.Discrete(3)})
    preprocess = Preprocessor(space, True, make_router("discrete", space, dict(key="task", hide=hide)))
    preprocessed = preprocess({"obs": th.zeros(2, 1), "task": th.tensor([2, 0])})
    assert isinstance(preprocessed, dict)
    assert set(preprocessed) == ({"obs"} if hide else {"obs", "task"})
    if not hide:
        assert preprocessed["task"].tolist() == [[0, 0, 1], [1, 0, 0]]


CHOICES: list[tuple[gym.Space[Any], list[int]]] = [
    (spaces.Discrete(4), [4]),
    (spaces.MultiDiscrete([2, 3]), [2, 3]),
    (spaces.MultiDiscrete([5]), [5]),
]


@pytest.mark.parametrize(("space", "sizes"), CHOICES)
def test_one_hot_codes_for_the_compiler_are_those_of_sb3(space, sizes):
    assert choice_sizes(space) == sizes
    batch = batch_of(space, 20)
    for obs in [batch, batch.reshape(20, -1), batch.reshape(20, -1).float()]:
        expected = preprocess_obs(obs, space)
        assert isinstance(expected, th.Tensor)
        # the compiler gets what the rollout buffer stores: a column for each variable
        assert one_hot_of(obs, sizes).flatten(1).equal(expected.flatten(1))


def test_one_hot_codes_of_what_does_not_exist_are_nan():
    codes = one_hot_of(th.tensor([1, 2, -1, 5]), [3])
    assert codes.isnan().tolist() == [[False] * 3, [False] * 3, [True] * 3, [True] * 3]
    assert codes[:2].tolist() == [[0, 1, 0], [0, 0, 1]]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_discrete_observations_are_compiled(compiler_calls):
    space = spaces.Dict({"task": spaces.Discrete(2), "several": spaces.MultiDiscrete([2, 3]), "x": spaces.Box(-1, 1, (2,))})
    trained = {}
    for compiled in (False, True):
        env = DummyVecEnv([lambda: RandomEnv(space, spaces.Discrete(2))])
        env.seed(0)
        kwargs: dict[str, Any] = dict(n_steps=32, batch_size=32, n_epochs=2, seed=0, policy_kwargs=dict(net_arch=[4]))
        space.seed(0)
        trained[compiled] = GRPO("MultiInputPolicy", env, router="task", compile=compiled, **kwargs).learn(96)
    assert min(compiler_calls) > 0
    for name, tensor in trained[False].policy.state_dict().items():
        th.testing.assert_close(trained[True].policy.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)
