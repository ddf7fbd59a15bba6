"""The environments of the speed measurement are the same problem in every form."""

from typing import Any

import numpy as np
import pytest

from benchmarks.performance.vector_speed import SETTINGS, make_envs, make_variants


@pytest.mark.filterwarnings("ignore:.*precision lowered by casting:UserWarning")  # EnvPool makes its spaces so
@pytest.mark.parametrize("setting", SETTINGS)
def test_environments_have_the_same_spaces(setting):
    names, n_envs, kwargs = SETTINGS[setting]
    made = {kind: make() for kind, make in make_envs(names, 2).items()}
    first = made["DummyVecEnv"]
    for kind, env in made.items():
        assert env.observation_space.shape == first.observation_space.shape, kind
        assert env.action_space.shape == first.action_space.shape, kind
        env.reset()
        observations, rewards, _, infos = env.step(np.array([first.action_space.sample() for _ in range(2)]))
        assert len(observations) == len(rewards) == len(infos) == 2
        env.close()
    # rollouts are a whole number of minibatches
    assert n_envs * kwargs["n_steps"] % 64 == 0


def test_variants_begin_with_four_groups():
    env = make_envs(SETTINGS["cartpole_8"][0], 2)["LeanVecEnv"]()
    model: Any = make_variants()["GRPO 4"]("MlpPolicy", env, n_steps=64, seed=0, device="cpu")
    assert len(model.groups) == 4
    assert model.merge_kl is not None
