"""Training in environments whose observations tell each step, recorded from outside, and what reached its updates."""

from typing import Any

import gymnasium as gym
import numpy as np
from estimators.episodes import PlainGroups, Step
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnvWrapper

from sb3_grpo import make_group_vec_env
from sb3_grpo.buffers import Rollout
from sb3_grpo.vec_env.shared_start import episode_seed

SEED, LONGEST = 3, 7
# what the seed of a reset tells: the start, and the number of the episode
PLACES = {episode_seed(SEED, start, number): (start, number) for start in range(2) for number in range(100)}


def place_of(row: np.ndarray) -> tuple[int, int]:
    return PLACES[int(row[0]) * 2**16 + int(row[1])]


class SeededEpisodes(gym.Env[np.ndarray, np.int64]):
    """
    The action 1 brings an episode nearer to its end, which the seed says; a time limit ends it too.

    Observations are the seed in two halves, and the time; the reward depends on all of it.
    """

    def __init__(self, longest: int = LONGEST):
        self.longest = longest
        self.observation_space = spaces.Box(0, 2**16, (3,))
        self.action_space = spaces.Discrete(2)

    def _obs(self) -> np.ndarray:
        return np.array([self.own_seed // 2**16, self.own_seed % 2**16, self.time], dtype=np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.own_seed = 0 if seed is None else seed
        self.time, self.left = 0, 1 + self.own_seed % 3
        return self._obs(), {}

    def step(self, action):
        self.time, self.left = self.time + 1, self.left - int(action)
        reward = self.own_seed % 5 + self.time * (1 + int(action))
        return self._obs(), reward, self.left == 0, self.left > 0 and self.time == self.longest, {}


class Numbered(VecEnvWrapper):
    """Add the index of the environment and the number of the observation to each observation."""

    def __init__(self, venv):
        super().__init__(venv, spaces.Box(0, 2**16, (5,)))
        self.n_observed = 0

    def _numbered(self, obs: Any) -> np.ndarray:
        self.n_observed += 1
        return np.column_stack([obs, np.arange(len(obs)), np.full(len(obs), self.n_observed)]).astype(np.float32)

    def reset(self):
        return self._numbered(self.venv.reset())

    def step_wait(self):
        obs, rewards, dones, infos = self.venv.step_wait()
        for env in np.flatnonzero(dones).tolist():
            infos[env]["terminal_observation"] = np.append(infos[env]["terminal_observation"], [env, 0]).astype(np.float32)
        return self._numbered(obs), rewards, dones, infos


class Watch(BaseCallback):
    """
    Keep all steps in plain lists, by the seeds that their observations tell.

    :param group_size: environments of a sampling group
    :param stop_at: stop after so many steps of each environment; ``None``: never
    """

    def __init__(self, group_size: int, stop_at: int | None = None):
        super().__init__()
        self.plain, self.stop_at, self.n_seen = PlainGroups(group_size), stop_at, 0
        self.expected: list[tuple[list, int]] = []  # of each rollout
        self.begun: list[list[list[int]]] = []  # numbers of the episodes that began in each rollout, by environment

    def _on_step(self) -> bool:
        self.n_seen += 1
        observed = self.locals["obs_tensor"].numpy()
        if not self.plain.running:
            self.plain.begin([place_of(row)[1] for row in observed])
            self.begun[-1] = [[episode.number] for episode in self.plain.running]
        for env, row in enumerate(observed):
            info, done = self.locals["infos"][env], bool(self.locals["dones"][env])
            mine = self.plain.running[env]
            assert (mine.start, mine.number) == place_of(row)
            number, truncated = place_of(self.locals["new_obs"][env])[1], info.get("TimeLimit.truncated", False)
            if done:
                self.begun[-1][env].append(number)
            self.plain.step(env, Step(tuple(row.tolist()), float(self.locals["rewards"][env]), done, truncated), number)
        return self.n_seen != self.stop_at

    def _on_rollout_start(self) -> None:
        self.begun.append([[] for _ in range(self.training_env.num_envs)])

    def _on_rollout_end(self) -> None:
        self.expected.append(self.plain.hand_out())


def make_env(group_size: int = 3, n_starts: int = 2, **kwargs: Any) -> Numbered:
    """
    Make sampling groups of such environments.

    :param group_size: environments of a sampling group
    :param n_starts: sampling groups
    :param kwargs: see ``make_group_vec_env``
    """
    return Numbered(make_group_vec_env(SeededEpisodes, group_size, n_starts, seed=SEED, **kwargs))


def watch_updates(monkeypatch: Any) -> list[Rollout]:
    """
    Return a list to which each update adds what it draws its minibatches from.

    :param monkeypatch: pytest's
    """
    found: list[Rollout] = []
    draw = Rollout.minibatches

    def watched(rollout: Rollout, batch_size: int):
        found.append(rollout)
        return draw(rollout, batch_size)

    monkeypatch.setattr(Rollout, "minibatches", watched)
    return found
