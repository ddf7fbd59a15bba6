"""Test the tasks of Meta-World, and what a run returns."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecEnv
from vec_env.recording import draw_actions

from benchmarks.lib.meta_world import TASKS, EpisodeSuccess, PooledEnv, make_drawn_envs, make_fixed_envs
from benchmarks.sweeps import meta_world, minigrid_tables
from sb3_grpo import GRPO

pytest.importorskip("envpool")

TWO = TASKS[:2]
COLUMNS = slice(39, 41)


class Scripted(VecEnv):
    """Two environments whose infos are written down."""

    def __init__(self, script: list[Any]):
        self.script = iter(script)
        env = make_fixed_envs(0, 1, TWO)
        super().__init__(2, env.observation_space, env.action_space)

    def step_wait(self) -> Any:
        successes, dones = next(self.script)
        return np.zeros((2, 41)), np.zeros(2), np.array(dones, bool), [{"success": float(value)} for value in successes]

    def reset(self) -> Any:
        return np.zeros((2, 41))

    def step_async(self, actions: np.ndarray) -> None: ...
    def close(self) -> None: ...
    def get_attr(self, attr_name: str, indices: Any = None) -> Any:
        return [None, None]

    def set_attr(self, *args: Any) -> None: ...
    def env_method(self, *args: Any, **kwargs: Any) -> Any: ...
    def env_is_wrapped(self, *args: Any) -> Any: ...


def test_a_success_in_any_step_counts_for_its_episode_alone() -> None:
    script = [((1, 0), (0, 0)), ((0, 0), (1, 1)), ((0, 0), (0, 0)), ((0, 1), (1, 1)), ((0, 0), (0, 1))]
    env = EpisodeSuccess(Scripted(script))
    env.reset()
    found = [[info.get("is_success") for info in env.step(np.zeros((2, 4)))[3]] for _ in script]
    assert found == [[None, None], [True, False], [None, None], [False, True], [None, False]]


def play(env: VecEnv, n_steps: int) -> tuple[list[Any], np.ndarray]:
    observations, rewards = [env.reset()], []
    for actions in draw_actions(env.action_space, n_steps, env.num_envs):
        obs, reward, *_ = env.step(actions)
        observations.append(obs)
        rewards.append(reward)
    return observations, np.array(rewards)


def test_the_goal_is_shown_and_changes() -> None:
    env: Any = make_fixed_envs(0, 2, TWO)
    goals = np.array([env.reset()[:, 36:39] for _ in range(3)])
    assert len(np.unique(goals.reshape(-1, 3), axis=0)) == 12
    assert (np.ptp(goals, axis=(0, 1)) > 0.01).any()


def test_tasks_that_are_drawn_are_those_that_are_fixed() -> None:
    """Same spaces, same way to show the task, same limits; rewards of a random walk on the same scale."""
    fixed, drawn = make_fixed_envs(0, 2, TWO), make_drawn_envs(0, 4, TWO)
    assert drawn.observation_space == fixed.observation_space
    assert drawn.action_space == fixed.action_space
    for index in range(4):
        drawn.env_method("set_task", index // 2, indices=index)
    found = [play(env, 60) for env in (fixed, drawn)]
    for observations, _ in found:
        assert observations[0][:, COLUMNS].tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    means = [rewards.reshape(60, 2, 2).mean(axis=(0, 2)) for _, rewards in found]
    np.testing.assert_allclose(means[0], means[1], rtol=0.7)
    assert means[0][0] > 10 * means[0][1]  # reaching pays more than pushing, at random


def test_a_single_environment_ends_after_500_steps_and_goes_on() -> None:
    env = PooledEnv("Reach")
    first, _ = env.reset(seed=3)
    action = np.zeros(4, np.float32)
    ends = [env.step(action)[2:4] for _ in range(500)]
    assert ends == [(False, False)] * 499 + [(False, True)]
    second, _ = env.reset()
    assert (first[36:39] != second[36:39]).any()
    again = PooledEnv("Reach")
    np.testing.assert_array_equal(again.reset(seed=3)[0], first)
    other = PooledEnv("Reach")
    assert (other.reset(seed=4)[0] != first).any()


def test_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_fixed_envs(0, 1, TWO)
    small = dict(n_steps=8, batch_size=16, policy_kwargs=dict(net_arch=[8]))
    made = {method: meta_world.make_model(method, env, 0, **small) for method in meta_world.METHODS}
    assert [method for method, model in made.items() if isinstance(model, GRPO)] == [m for m in made if "PPO" not in m[:3]]
    named = {method: [group.name for group in model.groups] for method, model in made.items() if isinstance(model, GRPO)}
    one = ["Reach+Push"]
    assert named == {method: one if "one group" in method else list(TWO) for method in named}


def test_a_short_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(meta_world, "TASKS", TWO)
    monkeypatch.setattr(meta_world, "make_fixed_envs", lambda seed, n_envs: make_fixed_envs(seed, n_envs, TWO))
    monkeypatch.setattr(meta_world, "make_drawn_envs", lambda seed, n_envs: make_drawn_envs(seed, n_envs, TWO))
    monkeypatch.setattr(meta_world, "PUBLISHED", dict(n_steps=16, batch_size=64))
    runs: list[dict[str, Any]] = [
        dict(method=method, seed=0, total_timesteps=64, n_evaluations=1) for method in ("PPO", "GRPO, task sampling")
    ]
    rows: list[Any] = [{"run": run, "result": meta_world.run(**run, eval_episodes=1), "seconds": 7200.0} for run in runs]
    plain, sampled = (row["result"] for row in rows)
    assert set(plain) == {"steps", "returns"}
    assert np.shape(plain["returns"]) == (1, 2)
    assert sum(sampled["shares"][0]) == pytest.approx(1)
    assert sampled["cell_to_group"] == [0, 1]
    assert list(meta_world.success_table(rows).columns[-1].cells) == ["2.0", "2.0"]
    for draw in (minigrid_tables.draw_tasks, minigrid_tables.draw_groups):
        draw(rows, TWO, meta_world.METHODS, tmp_path / f"{draw.__name__}.png")
        assert (tmp_path / f"{draw.__name__}.png").stat().st_size > 10_000
