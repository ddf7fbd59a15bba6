"""Scale of the rewards: which rewards count, what merged groups have, and that it is that of the environments' rewards."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_envs import CountingEnv

from sb3_grpo import GRPO
from sb3_grpo.reward_scale import RewardRecorder, RewardScale

property_test = settings(deadline=None, max_examples=60, derandomize=True, database=None)


def scale_after(n_cells: int, *rollouts: tuple[list[float], list[int]]) -> RewardScale:
    scale = RewardScale(n_cells)
    for rewards, cells in rollouts:
        scale.update(np.array(rewards, dtype=np.float32), np.array(cells))
    return scale


class TestUpdate:
    def test_by_hand(self):
        scale = scale_after(3, ([3, -4, 0, 7], [0, 0, 0, 2]))
        np.testing.assert_allclose(scale.scale, [math.sqrt(12.5), 0, 7])
        assert scale.count.tolist() == [2, 0, 1]

    def test_rewards_of_zero_do_not_count(self):
        """A task has the same scale whether it is solved often or rarely."""
        often, rarely = scale_after(1, ([5, 5, 0, 0], [0] * 4)), scale_after(1, ([5, 0, 0, 0], [0] * 4))
        assert often.scale.tolist() == rarely.scale.tolist() == [5]

    def test_large_rewards(self):
        """Their squares do not fit into float32."""
        assert scale_after(1, ([3e30, -3e30], [0, 0])).scale.tolist() == pytest.approx([3e30])

    def test_begins_with_nothing(self):
        scale = RewardScale(2)
        assert (scale.scale.tolist(), scale.count.tolist()) == ([0, 0], [0, 0])
        # a part of what training goes on with, not of the parameters
        assert scale.state_dict() == {}
        assert dict(scale.named_buffers()).keys() == {"scale", "count"}

    @property_test
    @given(st.integers(0, 2**32), st.lists(st.integers(1, 50), min_size=1, max_size=6))
    def test_is_that_of_all_steps_however_they_are_divided(self, seed, lengths):
        random = np.random.default_rng(seed)
        made = []
        for length in lengths:
            rewards = random.normal(size=length) * 10 ** random.uniform(-3, 3) * (random.random(length) < 0.7)
            made.append((rewards.tolist(), random.integers(0, 3, length).tolist()))
        scale = scale_after(3, *made)
        rewards, cells = (np.concatenate([each[place] for each in made]) for place in (0, 1))
        for cell in range(3):
            own = rewards[(cells == cell) & (rewards != 0)]
            assert scale.count[cell] == len(own)
            expected = np.sqrt(np.mean(own**2)) if len(own) else 0.0
            assert scale.scale[cell].item() == pytest.approx(expected, rel=1e-4)


class TestInverseOfGroups:
    # root mean squares 1, 7, 5 and none
    scale = scale_after(4, ([1, -1, 1, 7, 5, 5, 0], [0, 0, 0, 1, 2, 2, 3]))

    @pytest.mark.parametrize(
        ("cell_to_group", "squares"),
        [
            ([0, 1, 2, 3], [1, 49, 25, math.inf]),
            # (3 * 1 + 49) / 4, and a cell without rewards changes nothing
            ([0, 0, 2, 2], [13, math.inf, 25, math.inf]),
            # (3 * 1 + 2 * 25) / 5
            ([1, 3, 1, 0], [math.inf, 53 / 5, math.inf, 49]),
            ([2, 2, 2, 2], [math.inf, math.inf, (3 + 49 + 50) / 6, math.inf]),
        ],
    )
    def test_is_pooled_over_cells(self, cell_to_group, squares):
        found = self.scale.inverse_of_groups(np.array(cell_to_group), 4)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, 1 / np.sqrt(squares), rtol=1e-6)

    @property_test
    @given(st.integers(0, 2**32), st.floats(1e-3, 1e3))
    def test_scores_do_not_depend_on_the_unit_of_the_rewards(self, seed, unit):
        random = np.random.default_rng(seed)
        rewards, cells = random.normal(size=40), random.integers(0, 4, 40)
        cell_to_group = random.integers(0, 3, 4)
        inverse, other = (
            scale_after(4, (list(factor * rewards), list(cells))).inverse_of_groups(cell_to_group, 3) for factor in (1, unit)
        )
        np.testing.assert_allclose(other * unit, inverse, rtol=1e-4)


class CutEnv(gym.Wrapper):
    """Ends every episode by a time limit of two steps, where SB3 adds the value of what would have come."""

    n_steps = 0

    def reset(self, **kwargs: Any) -> Any:
        self.n_steps = 0
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        obs, reward, _, _, info = super().step(action)
        self.n_steps += 1
        return obs, reward, False, self.n_steps == 2, info


def make_cut_env(pay: float) -> CutEnv:
    return CutEnv(CountingEnv(pay=(pay,), length=(9,)))


class Seen(BaseCallback):
    """
    Look at the end of each rollout.

    :param look: called with the buffer
    """

    def __init__(self, look: Callable[[Any], None]):
        super().__init__()
        self.look = look

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.look(self.locals["rollout_buffer"])


class TestRewardRecorder:
    def test_has_the_rewards_of_the_environments(self):
        recorder = RewardRecorder()
        found: list[Any] = []
        stored: list[Any] = []

        def look(buffer: Any) -> None:
            found.append(recorder.rewards(6))
            stored.append(buffer.rewards.T.copy())

        env = DummyVecEnv([partial(make_cut_env, pay) for pay in (1.0, 5.0)])
        model = GRPO("MlpPolicy", env, n_steps=6, batch_size=12, n_epochs=1, n_groups=1, seed=0, device="cpu")
        assert recorder.rewards(6) is None
        model.learn(24, callback=[recorder, Seen(look)])
        for rewards in found:
            assert rewards.tolist() == [[1.0] * 6, [5.0] * 6]
        # control: the buffer has others where the time limit ends an episode
        for rewards in stored:
            assert [row.tolist() for row in rewards[:, ::2]] == [[1.0] * 3, [5.0] * 3]
            assert (rewards[:, 1::2] != [[1.0], [5.0]]).all()

    def test_an_incomplete_rollout_has_no_rewards(self):
        """A callback that has been added later, or another number of steps."""
        recorder = RewardRecorder()
        env = DummyVecEnv([CountingEnv] * 2)
        GRPO("MlpPolicy", env, n_steps=4, batch_size=8, n_epochs=1, device="cpu").learn(8, callback=recorder)
        assert recorder.rewards(4) is not None
        assert recorder.rewards(5) is None
        recorder.on_rollout_start()
        assert recorder.rewards(4) is None

    def test_the_model_uses_it(self):
        """With two groups: the scale is that of what the environments paid, whatever the values are."""
        env = DummyVecEnv([lambda: CutEnv(CountingEnv(pay=(1.0, 5.0), length=(9, 9)))] * 2)
        kwargs: dict[str, Any] = dict(router="one_hot", router_kwargs=dict(columns=(1, 3)), merge_kl=None, split_kl=None)
        model = GRPO("MlpPolicy", env, n_steps=16, batch_size=32, n_epochs=1, seed=0, device="cpu", **kwargs)
        model.learn(64)
        assert model.reward_scale.scale.tolist() == [1, 5]
        assert model.reward_scale.count.sum() == 64
