"""Play environments of sampling groups, and keep their episodes apart."""

from copy import deepcopy
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from vec_env.recording import assert_same

GROUP_SIZE, N_STARTS, SEED = 3, 2, 11


class CutByActions(gym.Wrapper):
    """Environment whose episodes are cut off when the sum of their actions is large: at different times for members."""

    spent = 0.0

    def reset(self, *, seed=None, options=None):
        self.spent = 0.0
        return self.env.reset(seed=seed, options=options)

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.spent += 1 + 2 * float(np.abs(action).sum())
        return obs, reward, terminated, truncated or self.spent > 18, info


def cut_by_actions(env_id: str) -> gym.Env:
    return CutByActions(gym.make(env_id))


class Episode(NamedTuple):
    begin: int  # step of the VecEnv in which it began
    observations: list[Any]
    outcomes: list[tuple[Any, Any]]  # (reward, done) of each step

    def is_complete(self):
        return bool(self.outcomes and self.outcomes[-1][1])


def row(obs: Any, i: int) -> Any:
    if isinstance(obs, tuple):
        return tuple(row(part, i) for part in obs)
    return {key: row(part, i) for key, part in obs.items()} if isinstance(obs, dict) else np.copy(obs[i])


def play_groups(env, n_steps: int = 70) -> list[list[Episode]]:
    """
    Episodes of each environment. Members take the same actions in episodes with an odd number and other ones in those
    with an even number, after which they are at different episodes.
    """
    space, obs = deepcopy(env.action_space), env.reset()
    episodes = [[Episode(0, [row(obs, i)], [])] for i in range(env.num_envs)]

    def action(i):
        k, t = len(episodes[i]) - 1, len(episodes[i][-1].outcomes)
        space.seed(int(np.random.SeedSequence([k, t] if k % 2 else [k, t, i + 1]).generate_state(1)[0]))
        return space.sample()

    for step in range(1, n_steps + 1):
        obs, rewards, dones, infos = env.step(np.array([action(i) for i in range(env.num_envs)]))
        for i, mine in enumerate(episodes):
            mine[-1].outcomes.append((rewards[i], dones[i]))
            mine[-1].observations.append(infos[i]["terminal_observation"] if dones[i] else row(obs, i))
            if dones[i]:
                mine.append(Episode(step, [row(obs, i)], []))
    return episodes


def same(one: Any, other: Any) -> bool:
    try:
        assert_same(one, other, types=False)
    except AssertionError:
        return False
    return True


def assert_shared_starts(episodes: list[list[Episode]], differs: bool = True) -> None:
    """
    Of three members each: same first observations, same odd episodes at different times.

    :param differs: whether two starts must differ
    """
    n_compared = n_staggered = 0
    for members in (episodes[:GROUP_SIZE], episodes[GROUP_SIZE:]):
        for kth in list(zip(*members, strict=False)):
            assert all(same(one.observations[0], kth[0].observations[0]) for one in kth)
        for kth in list(zip(*members, strict=False))[1::2]:
            complete = [one for one in kth if one.is_complete()]
            assert all(same(one[1:], complete[0][1:]) for one in complete)
            n_compared += len(complete) > 1
            n_staggered += len({one.begin for one in complete}) > 1
    assert n_compared >= 2
    assert n_staggered >= 1
    odd = [(one, other) for one, other in zip(episodes[0], episodes[GROUP_SIZE], strict=False)][1::2]
    assert any(not same(one[1:], other[1:]) for one, other in odd) == differs
