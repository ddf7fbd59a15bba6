"""Targets: which low and high return of which cell an argument means."""

from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_envs import CountingEnv

from sb3_grpo import GRPO, TaskSamplingCallback, make_multi_task_vec_env
from sb3_grpo.targets import target_ranges

NAMES = ["walk", "turn"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([5, -1.5], [[np.nan, 5], [np.nan, -1.5]]),
        ((5, (-3, -1.5)), [[np.nan, 5], [-3, -1.5]]),
        (np.array([5, 6]), [[np.nan, 5], [np.nan, 6]]),
        (np.array([[0, 5], [1, 6]]), [[0, 5], [1, 6]]),
        ({"turn": 7, "walk": [0, 1]}, [[0, 1], [np.nan, 7]]),
        (None, None),
    ],
    ids=str,
)
def test_by_hand(given: Any, expected: list[list[float]] | None) -> None:
    found = target_ranges(given, 2, NAMES)
    if expected is None:
        assert found is None
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("given", "names", "message"),
    [
        ({"walk": 1}, NAMES, r"`group_targets` must be one for each of \['walk', 'turn'\], got \{'walk': 1\}"),
        ({"walk": 1, "turn": 2, "jump": 3}, NAMES, r"one for each of \['walk', 'turn'\]"),
        ({"walk": 1, "turn": 2}, [], "must be a sequence, since the cells have no names, got {'walk'"),
        ([1], NAMES, r"must have one target for each of the 2 cells, got \[1\]"),
        ([1, 2, 3], [], "one target for each of the 2 cells"),
    ],
)
def test_what_is_refused(given: Any, names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        target_ranges(given, 2, names)


# episodes of "walk" return 3 and those of "turn" 10
TARGETS = {"turn": (0, 40), "walk": (1, 5)}
GAPS = {"walk": 2 / 4, "turn": 30 / 40}


class TestByName:
    @pytest.fixture
    def env(self) -> Any:
        tasks = {"walk": lambda: CountingEnv(pay=(1.0,), length=(3,)), "turn": lambda: CountingEnv(pay=(2.0,), length=(5,))}
        return make_multi_task_vec_env(tasks, 2, seed=0, vec_env_cls=DummyVecEnv)

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return dict(group_score="gap", group_targets=TARGETS)

    def make(self, env: Any, **kwargs: Any) -> GRPO:
        return GRPO("MlpPolicy", env, router="task", n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu", **kwargs)

    def test_in_the_loss(self, env, options, tmp_path):
        model = self.make(env, **options).learn(3 * 128)
        assert {record.name: record.score for record in model.groups} == pytest.approx(
            {name: -gap for name, gap in GAPS.items()}, abs=1e-5
        )
        # saved with the model, by name
        model.save(tmp_path / "model")
        loaded = GRPO.load(tmp_path / "model", env=env, device="cpu")
        assert loaded.learn(128, reset_num_timesteps=False).groups[0].score == pytest.approx(-0.5, abs=1e-5)

    def test_in_the_sampling_of_tasks(self, env, options):
        found = {}
        for targets in (TARGETS, {"turn": (0, 11), "walk": (1, 50)}):
            sampling = TaskSamplingCallback(0.05, **{**options, "group_targets": targets})
            self.make(env).learn(6 * 128, callback=sampling)
            # per step: episodes of "turn" are longer
            shares = sampling.probabilities * [3, 5]
            found[targets["walk"]] = shares[0] / shares.sum()
        assert found[1, 5] < 0.5 < found[1, 50]

    def test_other_names_are_refused_before_training(self, env, options):
        with pytest.raises(ValueError, match=r"one for each of \['walk', 'turn'\]"):
            self.make(env, **{**options, "group_targets": {"walk": 1.0}})
        model = self.make(env)
        with pytest.raises(ValueError, match=r"one for each of \['walk', 'turn'\]"):
            model.learn(128, callback=TaskSamplingCallback(group_score="gap", group_targets={"walk": 1.0}))
        assert model.num_timesteps == 0
