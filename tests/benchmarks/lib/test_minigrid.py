"""Test that cached views and features are those that are computed anew."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, cast
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from minigrid.core.world_object import Ball, Key
from stable_baselines3 import PPO

from benchmarks.lib.minigrid import HIDDEN, HiddenPerTask, ViewExtractor, make_env, remember_views
from benchmarks.sweeps.minigrid_tasks import METHODS, TASKS
from sb3_grpo import GRPO


class TestMiniGrid:
    """Three tasks with the networks of the protocol."""

    @pytest.fixture
    def model(self, request: pytest.FixtureRequest) -> PPO:
        env = make_env(list(TASKS), seed=0)
        given = METHODS[request.param]
        algorithm = GRPO if "router" in given else PPO
        return algorithm("MultiInputPolicy", env, seed=0, device="cpu", **given)

    def observe(self, tasks: Sequence[int]) -> dict[str, np.ndarray]:
        views = np.random.default_rng(0).integers(0, 11, (1, 3, 7, 7)).astype(np.float32)
        return {"view": views.repeat(len(tasks), axis=0), "task": np.array(tasks)}

    def features(self, model: PPO) -> tuple[th.Tensor, th.Tensor]:
        """Of the actor and of the critic, for one view in all tasks."""
        obs, _ = model.policy.obs_to_tensor(self.observe([0, 1, 2]))
        with th.no_grad():
            features = model.policy.extract_features(obs)
        assert isinstance(features, tuple)
        return features

    @pytest.mark.parametrize("name", TASKS)
    def test_remembered_views_are_those_drawn_anew(self, name: str) -> None:
        plain, other = gym.make(f"minigrid:{name}"), remember_views(gym.make(f"minigrid:{name}"))
        world: Any = other.unwrapped
        draw = mock.Mock(side_effect=world.gen_obs_grid)
        world.gen_obs_grid = draw
        rng = np.random.default_rng(0)
        ended = True
        for step in range(2000):
            if ended:
                carried = [None, Key("grey"), Ball("green")][rng.integers(3)]
                for env in (plain, other):
                    env.reset(seed=step)
                    cast(Any, env.unwrapped).carrying = deepcopy(carried)
            # turns, walks, and opens doors
            action = rng.choice([0, 1, 2, 5], p=[0.2, 0.2, 0.5, 0.1])
            (obs, *outcome, _), (remembered, *same, _) = (env.step(action) for env in (plain, other))
            assert outcome == same
            np.testing.assert_array_equal(obs["image"], remembered["image"])
            remembered["image"][:] = 255  # what is returned is the caller's
            ended = any(outcome[1:])
        assert draw.call_count < 1000

    @pytest.mark.parametrize("model", ["multi-head PPO"], indirect=True)
    def test_hidden_layer_is_a_tasks_own(self, model: PPO) -> None:
        before = self.features(model)
        own = slice(HIDDEN, 2 * HIDDEN)
        for extractor in (model.policy.pi_features_extractor, model.policy.vf_features_extractor):
            assert isinstance(extractor, HiddenPerTask)
            with th.no_grad():
                extractor.hidden.weight[own] += 1.0
        for features, changed in zip(before, self.features(model), strict=True):
            assert (features != changed).any(dim=1).tolist() == [False, True, False]
            assert not (features[0] * features[1]).any()

    @pytest.mark.parametrize(("model", "shown"), [("GRPO", False), ("PPO", True)], indirect=["model"])
    def test_what_is_shared(self, model: PPO, shown: bool) -> None:
        for features in self.features(model):
            assert th.equal(features[0], features[1]) is not shown

    @pytest.mark.parametrize("model", ["PPO", "multi-head PPO", "GRPO"], indirect=True)
    def test_repeated_views_are_looked_at_once(self, model: PPO) -> None:
        rng = np.random.default_rng(1)
        views, which, tasks = rng.integers(0, 11, (4, 3, 7, 7)), rng.integers(0, 4, 30), rng.integers(0, 3, 30)
        obs, _ = model.policy.obs_to_tensor({"view": views[which].astype(np.float32), "task": tasks})
        assert isinstance(obs, dict)
        one_by_one = [{key: values[step : step + 1] for key, values in obs.items()} for step in range(30)]
        looked_at: list[int] = []
        extractor = model.policy.pi_features_extractor
        assert isinstance(extractor, ViewExtractor)
        with th.no_grad():
            expected = th.cat([model.policy.extract_features(alone)[0] for alone in one_by_one])
            extractor.cnn.register_forward_hook(lambda *call: looked_at.append(len(call[2])))
            th.testing.assert_close(model.policy.extract_features(obs)[0], expected, atol=1e-5, rtol=0)
        assert looked_at == [len(set(zip(which, tasks, strict=True) if extractor.n_tasks else which))]

    @pytest.mark.parametrize("model", ["PPO", "multi-head PPO", "GRPO"], indirect=True)
    def test_features_are_remembered_until_the_weights_change(self, model: PPO) -> None:
        extractor = model.policy.pi_features_extractor
        assert isinstance(extractor, ViewExtractor)
        looked_at: list[int] = []
        extractor.cnn.register_forward_hook(lambda *call: looked_at.append(len(call[2])))
        for n_updates in range(2):
            model.policy.set_training_mode(True)
            expected = self.features(model)[0]  # nothing is remembered in an update
            model.policy.set_training_mode(False)
            for _ in range(2):
                th.testing.assert_close(self.features(model)[0], expected, atol=1e-6, rtol=0)
            # what the update and the first step of the rollout look at; views differ by the task where it is shown
            assert looked_at == [3 if extractor.n_tasks else 1] * 2 * (n_updates + 1)
            with th.no_grad():
                extractor.hidden.weight += 0.1
