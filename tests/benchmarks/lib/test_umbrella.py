"""The umbrella chain, step by step."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from benchmarks.lib.umbrella import UmbrellaChain


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("noise", [True, False])
def test_only_the_first_action_matters(right: bool, noise: bool) -> None:
    env = UmbrellaChain(5, n_distractors=3, noise=noise)
    for seed in range(8):
        observation, _ = env.reset(seed=seed)
        assert observation.shape == (6,)
        rain = int(observation[0])
        steps = [env.step(rain if right else 1 - rain), *(env.step(other) for other in (0, 1, 1, 0))]
        rewards = [reward for _, reward, *_ in steps]
        assert rewards[-1] == (1 if right else -1)
        assert {abs(reward) for reward in rewards[:-1]} == {float(noise)}
        assert [done for _, _, done, *_ in steps] == [False] * 4 + [True]
        assert [info.get("is_success") for *_, info in steps] == [None] * 4 + [right]
        # what will be, what was chosen, and the time that is left
        assert [each[0][0] for each in steps] == [rain] * 5
        assert [each[0][1] for each in steps] == [rain if right else 1 - rain] * 5
        np.testing.assert_allclose([each[0][2] for each in steps], [0.8, 0.6, 0.4, 0.2, 0.0], atol=1e-6)


def test_who_begins_alike_draws_the_same_noise_whatever_is_done() -> None:
    played = []
    for action in (0, 1):
        env = UmbrellaChain(20, n_distractors=4)
        env.reset(seed=7)
        played.append([env.step(action) for _ in range(19)])
    assert [step[1] for step in played[0]] == [step[1] for step in played[1]]
    assert {step[1] for step in played[0]} == {1.0, -1.0}


def test_is_an_environment() -> None:
    check_env(UmbrellaChain(5, n_distractors=2), skip_render_check=True)
