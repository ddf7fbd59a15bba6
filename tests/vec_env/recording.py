"""Play vectorised environments of SB3 with actions drawn beforehand, and compare what they returned."""

from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces


class Record(NamedTuple):
    """What the environments returned, with one entry a step (observations: one more, that of the reset)."""

    observations: list[Any]
    rewards: np.ndarray
    dones: np.ndarray
    infos: list[list[dict[str, Any]]]

    def ended(self):
        """(step, environment, info) of the last step of every episode."""
        return [(t, i, self.infos[t][i]) for t, i in zip(*np.nonzero(self.dones), strict=True)]


def draw_actions(space: spaces.Space, n_steps: int, n_envs: int, seed: int = 0) -> np.ndarray:
    space.seed(seed)
    return np.array([[space.sample() for _ in range(n_envs)] for _ in range(n_steps)])


def play(env, n_steps: int = 60, seed: int | None = 7) -> Record:
    if seed is not None:
        env.seed(seed)
    observations, rewards, dones, infos = [env.reset()], [], [], []
    for actions in draw_actions(env.action_space, n_steps, env.num_envs):
        obs, reward, done, info = env.step(actions)
        observations.append(obs)
        rewards.append(reward)
        dones.append(done)
        infos.append(info)
    return Record(observations, np.array(rewards), np.array(dones), infos)


def assert_same_observation(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_observation(one[key], other[key])
        return
    np.testing.assert_array_equal(one, other)
    assert np.asarray(one).dtype == np.asarray(other).dtype


def assert_same_record(one: Record, other: Record) -> None:
    for mine, theirs in zip(one.observations, other.observations, strict=True):
        assert_same_observation(mine, theirs)
    for mine, theirs in zip(one[1:3], other[1:3], strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert mine.dtype == theirs.dtype
    for mine, theirs in zip(chain(*one.infos), chain(*other.infos), strict=True):
        assert mine["TimeLimit.truncated"] is bool(theirs["TimeLimit.truncated"])
    for (_, _, mine), (_, _, theirs) in zip(one.ended(), other.ended(), strict=True):
        assert mine.keys() == theirs.keys()
        assert_same_observation(mine["terminal_observation"], theirs["terminal_observation"])
        assert [mine["episode"][key] for key in "rl"] == [theirs["episode"][key] for key in "rl"]


def assert_same(actual: Any, expected: Any, types: bool = True) -> None:
    """
    Same structure and values.

    :param types: types, dtypes and the order of keys too
    """
    assert not types or type(actual) is type(expected)
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        assert not types or list(actual) == list(expected)
        for key in expected:
            assert_same(actual[key], expected[key], types)
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other, types)
    else:
        assert not types or not isinstance(expected, np.ndarray) or actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)
