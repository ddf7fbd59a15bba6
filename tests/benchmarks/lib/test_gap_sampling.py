import numpy as np
import pytest
from gridworld_policies import make_linear, set_way
from stable_baselines3 import PPO

from benchmarks.lib.gap_sampling import GapSamplingCallback, raise_to_floor


class TestRaiseToFloor:
    def test_without_a_low_one_nothing_changes(self):
        np.testing.assert_allclose(raise_to_floor(np.array([0.2, 0.3, 0.5]), 0.1), [0.2, 0.3, 0.5])

    def test_the_others_keep_their_ratio(self):
        found = raise_to_floor(np.array([0.96, 0.032, 0.004, 0.004]), 0.01)
        np.testing.assert_allclose(found, [0.98 * 30 / 31, 0.98 / 31, 0.01, 0.01])

    def test_one_that_falls_below_by_that_is_raised_too(self):
        np.testing.assert_allclose(raise_to_floor(np.array([0.8, 0.1005, 0.0895, 0.01]), 0.1), [0.7, 0.1, 0.1, 0.1])


class TestGapSamplingCallback:
    @pytest.fixture
    def model(self):
        """Return a model that solves the first two tasks, never the others, and hardly learns."""
        model = make_linear(PPO, n_steps=64, batch_size=1024, n_epochs=1, learning_rate=1e-9)
        set_way(model, 2, 100.0)
        return model

    def test_one_rollout_by_hand(self, model):
        callback = GapSamplingCallback()
        model.learn(1024, callback)
        # exp(0.2 * 16) for a gap of 1
        odds = np.array([1.0, 1.0, 24.532530, 24.532530])
        np.testing.assert_allclose(callback.probabilities, odds / odds.sum(), rtol=1e-6)
        for probabilities in model.env.env_method("get_task_probabilities"):
            np.testing.assert_allclose(probabilities, callback.probabilities)

    def test_training_that_continues_begins_with_the_last_probabilities(self, model):
        model.learn(1024, GapSamplingCallback(eta=1.0))
        callback = GapSamplingCallback(eta=1.0)
        model.learn(1024, callback, reset_num_timesteps=False)
        # (exp(0.2) ** 0.8 * exp(0.2)) after two rollouts
        odds = np.array([1.0, 1.0, 1.433329, 1.433329])
        np.testing.assert_allclose(callback.probabilities, odds / odds.sum(), rtol=1e-6)

    def test_solved_tasks_end_at_the_floor(self, model):
        callback = GapSamplingCallback(floor=0.1)
        model.learn(3 * 1024, callback)
        np.testing.assert_allclose(callback.probabilities, [0.1, 0.1, 0.4, 0.4], atol=1e-9)

    def test_a_task_without_an_episode_has_the_largest_gap(self, model):
        set_way(model, 4, 100.0)
        model.env.env_method("set_task", 0)
        callback = GapSamplingCallback(eta=1.0)
        model.learn(1024, callback)
        # exp(0.2) for those never played
        odds = np.array([1.0, 1.221403, 1.221403, 1.221403])
        np.testing.assert_allclose(callback.probabilities, odds / odds.sum(), rtol=1e-6)

    def test_with_equal_gaps_they_stay_equal(self, model):
        set_way(model, 4, 100.0)
        callback = GapSamplingCallback()
        model.learn(2048, callback)
        np.testing.assert_allclose(callback.probabilities, 0.25)
