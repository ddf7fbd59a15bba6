"""
One group and lambda 0 is Stable-Baselines3's PPO: every tensor equal to the last bit, also with heads in reserve.
"""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from tiny_envs import RandomEnv

from sb3_grpo import GRPO
from sb3_grpo.envs.cartpole import TaskCartPole
from sb3_grpo.heads import HEAD_DIMS, split_heads

N_UPDATES = 3
SMALL = dict(net_arch=[16])


def train(algorithm: type[PPO], make_env: Any, policy: Any, *, policy_kwargs: Any = None, **kwargs: Any) -> PPO:
    env = make_env()
    env = env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env])
    model = algorithm(
        policy,
        env,
        **{**dict(n_steps=64, batch_size=32, n_epochs=2, seed=7), **kwargs},
        policy_kwargs={**SMALL, **(policy_kwargs or {})},
    )
    return model.learn(N_UPDATES * model.n_steps * env.num_envs)


def same_tensors(model: PPO, other: PPO) -> bool:
    expected, actual = model.policy.state_dict(), other.policy.state_dict()
    return all(th.equal(value, actual[name]) for name, value in expected.items())


def pair(make_env: Any, policy: Any, *, group_kwargs: Any = None, **kwargs: Any) -> tuple[PPO, PPO]:
    one_group: dict[str, Any] = {"n_groups": 1, "group_coef": 0.0, **(group_kwargs or {})}
    return train(PPO, make_env, policy, **kwargs), train(GRPO, make_env, policy, **one_group, **kwargs)


def check_parity(*args, **kwargs) -> tuple[PPO, PPO]:
    ppo, grpo = pair(*args, **kwargs)
    assert ppo._n_updates == grpo._n_updates >= N_UPDATES
    assert same_tensors(ppo, grpo)
    ppo_moments, grpo_moments = (model.policy.optimizer.state_dict()["state"] for model in (ppo, grpo))
    assert ppo_moments.keys() == grpo_moments.keys()
    assert all(th.equal(ppo_moments[i]["exp_avg_sq"], grpo_moments[i]["exp_avg_sq"]) for i in ppo_moments)
    return ppo, grpo


def cartpole():
    return make_vec_env("CartPole-v1")


def pendulum():
    return make_vec_env("Pendulum-v1")


def random_env(action_space):
    return lambda: RandomEnv(spaces.Box(-1, 1, (3,)), action_space)


ACTION_SPACES = {
    "discrete": cartpole,
    "box": pendulum,
    "multi_discrete": random_env(spaces.MultiDiscrete([2, 3])),
    "multi_binary": random_env(spaces.MultiBinary(3)),
}


@pytest.fixture(params=list(ACTION_SPACES.values()), ids=list(ACTION_SPACES))
def make_env(request):
    return request.param


class TestActionSpaces:
    def test_defaults(self, make_env):
        check_parity(make_env, "MlpPolicy")

    def test_advantages_not_normalised_and_entropy_bonus(self, make_env):
        check_parity(make_env, "MlpPolicy", normalize_advantage=False, ent_coef=0.01)


OPTIONS: dict[str, dict[str, Any]] = {
    "clip_range_vf": dict(clip_range_vf=0.1),
    "schedules": dict(
        learning_rate=lambda left: 1e-3 * left, clip_range=lambda left: 0.1 + 0.1 * left, clip_range_vf=lambda left: 0.2 * left
    ),
    "whole rollout per minibatch": dict(batch_size=64),
    "other gae, discount and clipping of gradients": dict(gamma=0.9, gae_lambda=0.8, vf_coef=0.3, max_grad_norm=0.1),
    "no orthogonal initialisation": dict(policy_kwargs=dict(ortho_init=False, activation_fn=th.nn.ReLU)),
    "no network": dict(policy_kwargs=dict(net_arch=[])),
    "separate networks": dict(policy_kwargs=dict(net_arch=dict(pi=[8], vf=[16, 8]), share_features_extractor=False)),
    "other optimizer": dict(policy_kwargs=dict(optimizer_class=th.optim.SGD, optimizer_kwargs=dict(momentum=0.9))),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_options(options):
    if "optimizer_class" in options.get("policy_kwargs", {}):
        assert same_tensors(*pair(cartpole, "MlpPolicy", **options))
    else:
        check_parity(cartpole, "MlpPolicy", **options)


def test_target_kl_stops_in_the_same_minibatch():
    options = dict(target_kl=0.003, learning_rate=1e-2, n_epochs=5)
    ppo, _ = check_parity(cartpole, "MlpPolicy", **options)
    assert ppo._n_updates < 5 * N_UPDATES, "the limit was never reached: this test says nothing"


# PPO recommends another batch size
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size of 48:UserWarning")
def test_batch_size_that_does_not_divide():
    check_parity(cartpole, "MlpPolicy", batch_size=48)


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size of 63:UserWarning")
def test_last_minibatch_of_one_step():
    check_parity(cartpole, "MlpPolicy", batch_size=63)


def test_several_environments():
    check_parity(lambda: make_vec_env("CartPole-v1", n_envs=3), "MlpPolicy", n_steps=32)


SDE_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": dict(),
    "resampled": dict(sde_sample_freq=4),
    "one standard deviation": dict(policy_kwargs=dict(full_std=False)),
    "squashed": dict(policy_kwargs=dict(squash_output=True)),
    "expln": dict(policy_kwargs=dict(use_expln=True)),
}


@pytest.mark.parametrize("options", SDE_OPTIONS.values(), ids=SDE_OPTIONS.keys())
def test_gsde(options):
    check_parity(pendulum, "MlpPolicy", use_sde=True, **options)


class TestObservations:
    def test_dict(self):
        check_parity(lambda: TaskCartPole(task_observation="dict"), "MultiInputPolicy")

    @pytest.mark.parametrize("space", [spaces.Discrete(5), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(4)], ids=str)
    def test_numbers(self, space):
        check_parity(lambda: RandomEnv(space, spaces.Discrete(2)), "MlpPolicy")

    def test_image(self):
        def make_env():
            env = FakeImageEnv(action_dim=3, screen_height=36, screen_width=36)
            env.observation_space.seed(0)
            return env

        small = dict(features_extractor_kwargs=dict(features_dim=16))
        check_parity(make_env, "CnnPolicy", policy_kwargs=small, n_steps=16, batch_size=8)

    def test_dict_with_image(self):
        space = spaces.Dict({"img": spaces.Box(0, 255, (36, 36, 1), np.uint8), "vec": spaces.Box(-1, 1, (2,))})
        small = dict(features_extractor_kwargs=dict(cnn_output_dim=16))
        check_parity(
            lambda: RandomEnv(space, spaces.Discrete(2)), "MultiInputPolicy", policy_kwargs=small, n_steps=16, batch_size=8
        )


def test_vec_normalize():
    ppo, grpo = check_parity(lambda: VecNormalize(make_vec_env("Pendulum-v1", n_envs=2)), "MlpPolicy")
    ppo_env, grpo_env = ppo.get_vec_normalize_env(), grpo.get_vec_normalize_env()
    assert ppo_env is not None
    assert grpo_env is not None
    for one, other in ((ppo_env.obs_rms, grpo_env.obs_rms), (ppo_env.ret_rms, grpo_env.ret_rms)):
        assert not isinstance(one, dict)
        assert not isinstance(other, dict)
        assert one.count == other.count > 1
        np.testing.assert_array_equal(one.mean, other.mean)
        np.testing.assert_array_equal(one.var, other.var)


def test_predictions(make_env):
    ppo, grpo = check_parity(make_env, "MlpPolicy")
    ppo.set_random_seed(0)
    obs = np.stack([ppo.observation_space.sample() for _ in range(20)])
    np.testing.assert_array_equal(ppo.predict(obs, deterministic=True)[0], grpo.predict(obs, deterministic=True)[0])
    samples = []
    for model in (ppo, grpo):
        th.manual_seed(0)
        samples.append(model.predict(obs)[0])
    np.testing.assert_array_equal(samples[0], samples[1])


def test_logged_values():
    options = dict(clip_range_vf=0.1, ent_coef=0.01)
    logs = [model.logger.name_to_value for model in check_parity(pendulum, "MlpPolicy", **options)]
    names = [name for name in logs[0] if name.startswith("train/")]
    assert len(names) == 12
    assert [logs[1][name] for name in names] == pytest.approx([logs[0][name] for name in names])


N_HEADS = 4
# probes watch, but nothing they say is enough for a split
RESERVE: dict[str, Any] = dict(max_groups=N_HEADS, split_kl=1000.0)


def head_of(tensor: th.Tensor, name: str, head: int, n_heads: int = N_HEADS) -> th.Tensor:
    return split_heads(tensor, HEAD_DIMS[name], n_heads)[head] if name in HEAD_DIMS else tensor


def check_parity_of_the_first_head(*args, **kwargs) -> tuple[PPO, GRPO]:
    ppo, grpo = pair(*args, group_kwargs=RESERVE, **kwargs)
    assert isinstance(grpo, GRPO)
    check_first_head(ppo, grpo, train_nothing(*args, **kwargs))
    return ppo, grpo


def check_first_head(ppo: PPO, grpo: GRPO, untrained: PPO) -> None:
    n_heads = grpo.policy.max_groups
    assert ppo._n_updates == grpo._n_updates >= N_UPDATES
    assert grpo.regrouper.probes is not None
    assert grpo.regrouper.probes.counts.sum() > 0
    assert grpo.regroup_history == []
    wide, fresh = dict(grpo.policy.named_parameters()), untrained.policy.state_dict()
    for name, parameter in ppo.policy.named_parameters():
        assert th.equal(parameter, head_of(wide[name], name, 0, n_heads)), name
        moments, wide_moments = (model.policy.optimizer.state[p] for model, p in ((ppo, parameter), (grpo, wide[name])))
        assert moments.keys() == wide_moments.keys()
        assert moments
        for key, moment in moments.items():
            own = head_of(wide_moments[key], name, 0, n_heads) if moment.shape == parameter.shape else wide_moments[key]
            assert th.equal(moment, own), (name, key)
        for head in range(1, n_heads) if name in HEAD_DIMS else []:
            assert th.equal(head_of(wide[name], name, head, n_heads), fresh[name]), name


def train_nothing(make_env: Any, policy: Any, *, policy_kwargs: Any = None, **kwargs: Any) -> PPO:
    env = make_env()
    return PPO(policy, env, seed=7, policy_kwargs={**SMALL, **(policy_kwargs or {})}, use_sde=kwargs.get("use_sde", False))


class TestHeadsInReserve:
    def test_action_spaces(self, make_env):
        check_parity_of_the_first_head(make_env, "MlpPolicy")

    def test_advantages_not_normalised_and_entropy_bonus(self, make_env):
        check_parity_of_the_first_head(make_env, "MlpPolicy", normalize_advantage=False, ent_coef=0.01)

    @pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
    def test_options(self, options):
        check_parity_of_the_first_head(pendulum, "MlpPolicy", **options)

    @pytest.mark.parametrize("options", SDE_OPTIONS.values(), ids=SDE_OPTIONS.keys())
    def test_gsde(self, options):
        check_parity_of_the_first_head(pendulum, "MlpPolicy", use_sde=True, **options)

    def test_target_kl(self):
        options = dict(target_kl=0.003, learning_rate=1e-2, n_epochs=5)
        ppo, _ = check_parity_of_the_first_head(cartpole, "MlpPolicy", **options)
        assert ppo._n_updates < 5 * N_UPDATES, "the limit was never reached: this test says nothing"

    def test_several_environments_with_images_in_a_dict(self):
        space = spaces.Dict({"img": spaces.Box(0, 255, (36, 36, 1), np.uint8), "vec": spaces.Box(-1, 1, (2,))})
        small = dict(features_extractor_kwargs=dict(cnn_output_dim=16))
        check_parity_of_the_first_head(
            lambda: make_vec_env(lambda: RandomEnv(space, spaces.Discrete(2)), 2, seed=0),
            "MultiInputPolicy",
            policy_kwargs=small,
            n_steps=16,
            batch_size=8,
        )

    def test_vec_normalize(self):
        check_parity_of_the_first_head(lambda: VecNormalize(make_vec_env("Pendulum-v1", n_envs=2)), "MlpPolicy")

    def test_predictions(self, make_env):
        ppo, grpo = check_parity_of_the_first_head(make_env, "MlpPolicy")
        ppo.set_random_seed(0)
        obs = np.stack([ppo.observation_space.sample() for _ in range(20)])
        for deterministic in (True, False):
            actions = []
            for model in (ppo, grpo):
                th.manual_seed(0)
                actions.append(model.predict(obs, deterministic=deterministic)[0])
            np.testing.assert_array_equal(actions[0], actions[1])

    def test_continued_after_loading(self, tmp_path):
        models = pair(pendulum, "MlpPolicy", group_kwargs=RESERVE)
        weights = []
        for model in models:
            model.save(tmp_path / "model")
            loaded = type(model).load(tmp_path / "model", env=pendulum())
            loaded.set_random_seed(3)
            weights.append(dict(loaded.learn(128, reset_num_timesteps=False).policy.named_parameters()))
        ppo, grpo = weights
        assert all(th.equal(value, head_of(grpo[name], name, 0)) for name, value in ppo.items())
        assert not th.equal(ppo["action_net.weight"], models[0].policy.state_dict()["action_net.weight"])


class TestDefaults:
    """No argument about groups at all."""

    @pytest.mark.parametrize("make_env", [cartpole, pendulum])
    def test_are_ppo_until_a_split(self, make_env):
        # rollouts as long as these are looked at one by one
        options = dict(n_steps=1536, batch_size=256)
        ppo, grpo = train(PPO, make_env, "MlpPolicy", **options), train(GRPO, make_env, "MlpPolicy", **options)
        assert isinstance(grpo, GRPO)
        check_first_head(ppo, grpo, train_nothing(make_env, "MlpPolicy"))
        assert (grpo.n_groups, grpo.max_groups, grpo.policy.grouping.active) == (1, 8, [0])
        assert grpo.regrouping_due, "the probes were never asked: this test says less"
        assert grpo.logger.name_to_value["groups/coef_effective"] > 0

    @pytest.mark.parametrize("make_env", [cartpole, pendulum])
    def test_two_groups_are_not(self, make_env):
        ppo, grpo = train(PPO, make_env, "MlpPolicy"), train(GRPO, make_env, "MlpPolicy", n_groups=2)
        assert isinstance(grpo, GRPO)
        with pytest.raises(AssertionError, match=r"mlp_extractor|log_std"):
            check_first_head(ppo, grpo, train_nothing(make_env, "MlpPolicy"))


class TestNegativeControls:
    def test_two_groups_differ_from_ppo_in_the_first_head(self):
        two = dict(**RESERVE, n_groups=2, merge_kl=None)
        ppo, grpo = pair(cartpole, "MlpPolicy", group_kwargs=two)
        wide = dict(grpo.policy.named_parameters())
        for name, parameter in ppo.policy.named_parameters():
            assert not th.equal(parameter, head_of(wide[name], name, 0)), name

    def test_four_groups_differ_from_ppo(self):
        ppo, grpo = pair(cartpole, "MlpPolicy", group_kwargs=dict(n_groups=4, group_coef=0.02))
        trunk = "mlp_extractor.policy_net.0.weight"
        assert not th.equal(ppo.policy.state_dict()[trunk], grpo.policy.state_dict()[trunk])

    def test_another_seed_differs_from_ppo(self):
        assert not same_tensors(train(PPO, cartpole, "MlpPolicy"), train(GRPO, cartpole, "MlpPolicy", n_groups=1, seed=8))

    def test_lambda_alone_cannot_change_one_group(self):
        assert same_tensors(*pair(cartpole, "MlpPolicy", group_kwargs=dict(group_coef=0.1)))
