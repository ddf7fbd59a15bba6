"""With one group, action masks are those of sb3-contrib's ``MaskablePPO``, within rounding."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.env_util import make_vec_env
from tiny_envs import MaskedEnv

from sb3_grpo import GRPO, ActionMaskWrapper

ACTION_SPACES = {"discrete": spaces.Discrete(4), "multi_discrete": spaces.MultiDiscrete([2, 4, 3])}
OPTIONS: dict[str, Any] = dict(n_steps=64, batch_size=32, n_epochs=4, seed=3, policy_kwargs=dict(net_arch=[16]), ent_coef=0.01)
CLOSE: dict[str, Any] = dict(rtol=1e-4, atol=1e-5)


@pytest.fixture(params=list(ACTION_SPACES.values()), ids=list(ACTION_SPACES))
def make_env(request):
    return lambda: make_vec_env(lambda: MaskedEnv(request.param), 2)


def pair(make_env: Any, **kwargs: Any) -> tuple[MaskablePPO, GRPO]:
    """Models with the same weights, and the same random numbers before them; MaskablePPO begins with others."""
    options = {**OPTIONS, **kwargs}
    maskable = MaskablePPO("MultiInputPolicy", make_env(), **options)
    grpo = GRPO("MultiInputPolicy", make_env(), n_groups=1, **options)
    parameters: Any = maskable.get_parameters()
    grpo.set_parameters(parameters)
    return maskable, grpo


def learn(model: Any) -> Any:
    model.set_random_seed(5)
    return model.learn(128 * 5)


def differences(one: MaskablePPO, other: GRPO) -> list[str]:
    """Names of the parameters that are not close to each other."""
    others = other.policy.state_dict()
    own = one.policy.state_dict()
    assert list(own) == list(others)
    return [name for name, tensor in own.items() if not th.allclose(tensor, others[name], **CLOSE)]


@pytest.mark.parametrize(
    "options", [dict(), dict(clip_range_vf=0.1, target_kl=0.02), dict(normalize_advantage=False)], ids=str
)
def test_training(make_env, options):
    """Whole trainings: the same actions are drawn, and the same parameters learnt."""
    models = pair(make_env, **options)
    maskable, grpo = map(learn, models)
    # both have flattened the environments of the last rollout in the same order
    np.testing.assert_array_equal(
        maskable.rollout_buffer.actions.reshape(128, -1), grpo.rollout_buffer.actions.reshape(128, -1)
    )
    assert differences(maskable, grpo) == []
    assert maskable._n_updates == grpo._n_updates > 0
    tags = ["train/loss", "train/entropy_loss", "train/approx_kl", "train/explained_variance"]
    logged = [[model.logger.name_to_value[tag] for tag in tags] for model in models]
    assert logged[0] == pytest.approx(logged[1], rel=1e-3, abs=1e-5)


def test_training_without_masks_differs(make_env):
    """Negative control: the same algorithm in an environment that forgives."""
    models = pair(lambda: make_vec_env(lambda: Forgiving(make_env().envs[0].action_space), 2))
    weights = {name: tensor.clone() for name, tensor in models[0].policy.state_dict().items()}
    assert differences(*map(learn, models)) == []
    env: Any = models[1].env
    unmasked = GRPO("MultiInputPolicy", env, n_groups=1, action_mask_key=None, **OPTIONS)
    unmasked.policy.load_state_dict(weights)
    assert len(differences(models[0], learn(unmasked))) > 4


class Forgiving(MaskedEnv):
    """Takes every action."""

    def step(self, action):
        self.mask = np.ones_like(self.mask)
        return super().step(action)


def test_predictions(make_env):
    """With the same weights: likelihoods, entropies, values, actions that are most likely, and those that are drawn."""
    maskable, grpo = pair(make_env)
    th.manual_seed(0)
    for parameter in maskable.policy.parameters():
        parameter.data = th.randn_like(parameter)
    grpo.policy.load_state_dict(maskable.policy.state_dict())
    env = make_env()
    env.seed(0)
    rows = [env.reset() for _ in range(30)]
    obs: Any = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    masks = obs["action_mask"].astype(bool)
    tensors: Any = grpo.policy.obs_to_tensor(obs)[0]
    for deterministic in (True, False):
        drawn = []
        for model, kwargs in ((maskable, dict(action_masks=masks)), (grpo, {})):
            th.manual_seed(0)
            drawn.append(model.predict(obs, deterministic=deterministic, **kwargs)[0])
        np.testing.assert_array_equal(drawn[0], drawn[1])
        unmasked = maskable.predict(obs, deterministic=deterministic)[0]
        assert not np.array_equal(drawn[0], unmasked)
    actions = th.as_tensor(drawn[0])
    expected = maskable.policy.evaluate_actions(tensors, actions, action_masks=masks)
    for one, other in zip(expected, grpo.policy.evaluate_actions(tensors, actions), strict=True):
        assert one is not None
        assert other is not None
        th.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_environments_for_maskable_ppo():
    """The wrapper asks for the same masks, also in environments that have them from sb3-contrib's wrapper."""

    class Renamed(MaskedEnv):
        def __init__(self):
            super().__init__()
            self.observation_space = spaces.Dict({"obs": self.observation_space["obs"]})  # type: ignore[index]  # a Dict

        def _obs(self):
            return {"obs": super()._obs()["obs"]}

    def masks_of(env: Any) -> np.ndarray:
        return env.unwrapped.mask

    env = make_vec_env(lambda: ActionMaskWrapper(ActionMasker(Renamed(), masks_of)), 2, seed=0)
    obs: Any = env.reset()
    for _ in range(5):
        np.testing.assert_array_equal(obs["action_mask"], get_action_masks(env))
        obs = env.step(obs["action_mask"].argmax(axis=1))[0]
    GRPO("MultiInputPolicy", env, n_steps=32, batch_size=32).learn(128)
