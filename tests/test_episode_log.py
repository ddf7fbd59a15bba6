"""What is logged of episodes, against sums by hand."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_grpo import EpisodeLogCallback, make_multi_task_vec_env


class Walk(gym.Env[np.ndarray, np.int64]):
    """Episodes of 4 steps; the k-th step reports its number k as "position", and 10 k as "cost" unless k is 2."""

    def __init__(self, bad=None):
        self.observation_space, self.action_space = spaces.Box(0, 1, (1,)), spaces.Discrete(2)
        self.bad = bad

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.k = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.k += 1
        info = {"position": self.k if self.bad is None else self.bad}
        if self.k != 2:
            info["cost"] = np.float32(10 * self.k)
        return np.zeros(1, np.float32), 0.5, self.k == 4, False, info


class Leap(Walk):
    """The same with positions and costs that are 100 times as large."""

    def step(self, action):
        obs, reward, *ends, info = super().step(action)
        return obs, 4 * reward, *ends, {name: 100 * value for name, value in info.items()}


class NoteLog(BaseCallback):
    """Copies what is about to be logged at the end of a rollout."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.values = {name: value for name, value in self.logger.name_to_value.items() if name.startswith("episodes/")}


def logged(env, callback, algorithm=PPO, steps=16, **kwargs):
    notes = NoteLog()
    settings = dict(n_steps=steps) | ({"batch_size": steps} if algorithm is PPO else {})
    algorithm("MlpPolicy", env, **settings, **kwargs).learn(steps, [callback, notes])
    return notes.values


def walks(n_envs=1, **kwargs):
    return DummyVecEnv([lambda: Monitor(Walk(**kwargs))] * n_envs)


class TestOneTask:
    @pytest.mark.parametrize("algorithm", [PPO, A2C])
    def test_summaries_by_hand(self, algorithm):
        callback = EpisodeLogCallback({"position": "last", "cost": "mean"})
        # positions 1 to 4; costs 10, 30, 40
        expected = {"episodes/position": 4.0, "episodes/cost": pytest.approx(80 / 3)}
        assert logged(walks(), callback, algorithm) == expected

    def test_a_list_of_names_means_sums(self):
        assert logged(walks(2), EpisodeLogCallback(["position", "cost"])) == {"episodes/position": 10.0, "episodes/cost": 80.0}

    def test_what_is_not_reported_is_not_logged(self):
        assert logged(walks(), EpisodeLogCallback(["speed"])) == {}

    def test_an_episode_that_has_not_ended_does_not_count(self):
        assert logged(walks(), EpisodeLogCallback(["position"]), steps=3) == {}
        assert logged(walks(), EpisodeLogCallback(["position"]), steps=6) == {"episodes/position": 10.0}

    def test_the_window_is_that_of_the_model(self):
        class Growing(Walk):
            n_episodes = 0

            def step(self, action):
                obs, reward, terminated, truncated, _ = super().step(action)
                self.n_episodes += terminated
                return obs, reward, terminated, truncated, {"position": float(self.n_episodes)}

        env, callback = DummyVecEnv([lambda: Monitor(Growing())]), EpisodeLogCallback({"position": "last"})
        # episodes 1 to 4, the last two count
        assert logged(env, callback, stats_window_size=2) == {"episodes/position": 3.5}


class TestSeveralTasks:
    def test_by_name(self):
        env = make_multi_task_vec_env({"walk": Walk, "leap": Leap}, 2, "fixed", multi_task_kwargs={"task_observation": None})
        assert logged(env, EpisodeLogCallback(["cost"])) == {
            "episodes/cost": pytest.approx((80 + 8000) / 2),
            "episodes/cost_walk": 80.0,
            "episodes/cost_leap": pytest.approx(8000.0),
            "episodes/return_walk": 2.0,
            "episodes/return_leap": 8.0,
            "episodes/length_walk": 4.0,
            "episodes/length_leap": 4.0,
        }

    def test_by_number_without_monitor(self):
        class Numbered(Walk):
            def step(self, action):
                *step, info = super().step(action)
                return *step, {**info, "task": 3}

        env = DummyVecEnv([Numbered])
        assert logged(env, EpisodeLogCallback({"position": "mean"})) == {"episodes/position": 2.5, "episodes/position_3": 2.5}


@pytest.mark.parametrize(
    ("summaries", "message"),
    [
        ("cost", r"`summaries` must be a list of names, or a dict, got 'cost'"),
        ({"cost": "max"}, r"`summaries` must be one of \['sum', 'mean', 'last'\] for each name, got \{'cost': 'max'\}"),
    ],
)
def test_bad_arguments(summaries, message):
    with pytest.raises(ValueError, match=message):
        EpisodeLogCallback(summaries)


@pytest.mark.parametrize("bad", ["far", [1, 2], {"x": 1}])
def test_what_is_no_number(bad):
    with pytest.raises(ValueError, match=r"info\['position'\] must be a number, to be logged for each episode, got"):
        logged(walks(bad=bad), EpisodeLogCallback(["position"]))
