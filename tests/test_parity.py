"""
One group is Stable-Baselines3's PPO: every tensor equal to the last bit, also where it may be split.
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
from sb3_grpo.regroup_plan import Merge, Split

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


def n_updates(model: PPO) -> float:
    return model.logger.name_to_value["train/n_updates"]


def pair(make_env: Any, policy: Any, *, group_kwargs: Any = None, **kwargs: Any) -> tuple[PPO, GRPO]:
    one_group: dict[str, Any] = {"n_groups": 1, "group_coef": 0.0, **(group_kwargs or {})}
    ppo, grpo = train(PPO, make_env, policy, **kwargs), train(GRPO, make_env, policy, **one_group, **kwargs)
    assert isinstance(grpo, GRPO)
    return ppo, grpo


def check_same(ppo: PPO, grpo: PPO) -> None:
    """Names, shapes, order and values of parameters, of the ``state_dict`` and of all that the optimizer keeps."""
    assert n_updates(ppo) == n_updates(grpo) >= N_UPDATES
    for of in (th.nn.Module.named_parameters, th.nn.Module.state_dict):
        one, other = dict(of(ppo.policy)), dict(of(grpo.policy))
        assert list(one) == list(other)
        for name, tensor in one.items():
            assert tensor.shape == other[name].shape, name
            assert tensor.equal(other[name]), name
    expected, actual = (model.policy.optimizer.state_dict() for model in (ppo, grpo))
    assert expected["param_groups"] == actual["param_groups"]
    assert expected["state"].keys() == actual["state"].keys()
    for index, state in expected["state"].items():
        assert state.keys() == actual["state"][index].keys()
        for name, value in state.items():
            assert th.as_tensor(value).equal(th.as_tensor(actual["state"][index][name])), (index, name)


def check_parity(*args, **kwargs) -> tuple[PPO, GRPO]:
    ppo, grpo = pair(*args, **kwargs)
    check_same(ppo, grpo)
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
    check_parity(cartpole, "MlpPolicy", **options)


def test_target_kl_stops_in_the_same_minibatch():
    options = dict(target_kl=0.003, learning_rate=1e-2, n_epochs=5)
    ppo, _ = check_parity(cartpole, "MlpPolicy", **options)
    assert n_updates(ppo) < 5 * N_UPDATES, "the limit was never reached: this test says nothing"


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


def raw_parameters(distribution: Any) -> list[th.Tensor]:
    """What an SB3 distribution was made of: logits, or means and deviations."""
    parts = distribution.distribution if isinstance(distribution.distribution, list) else [distribution.distribution]
    names = ["mean", "stddev"] if isinstance(parts[0], th.distributions.Normal) else ["logits"]
    return [getattr(part, name) for part in parts for name in names]


def check_predictions(ppo: PPO, grpo: PPO) -> None:
    """Actions, the outputs behind them, values and likelihoods."""
    ppo.set_random_seed(0)
    batch = np.stack([ppo.observation_space.sample() for _ in range(20)])
    for deterministic in (True, False):
        actions = []
        for model in (ppo, grpo):
            th.manual_seed(0)
            actions.append(model.predict(batch, deterministic=deterministic)[0])
        np.testing.assert_array_equal(actions[0], actions[1])
    tensor = th.as_tensor(batch)
    with th.no_grad():
        outputs = []
        for model in (ppo, grpo):
            th.manual_seed(0)
            outputs.append(
                [
                    *model.policy(tensor),
                    model.policy.predict_values(tensor),
                    *raw_parameters(model.policy.get_distribution(tensor)),
                ]
            )
    assert len(outputs[0]) == len(outputs[1]) > 4
    assert all(one.equal(other) for one, other in zip(*outputs, strict=True))


def test_predictions(make_env):
    check_predictions(*check_parity(make_env, "MlpPolicy"))


def test_predictions_with_gsde():
    check_predictions(*check_parity(pendulum, "MlpPolicy", use_sde=True))


def test_logged_values():
    options = dict(clip_range_vf=0.1, ent_coef=0.01)
    logs = [model.logger.name_to_value for model in check_parity(pendulum, "MlpPolicy", **options)]
    names = [name for name in logs[0] if name.startswith("train/")]
    assert len(names) == 12
    assert [logs[1][name] for name in names] == pytest.approx([logs[0][name] for name in names])


# may be split, but nothing that the probes say is enough
MAY_SPLIT: dict[str, Any] = dict(max_groups=8, split_kl=1000.0)


def check_parity_of_one_that_may_split(*args, **kwargs) -> tuple[PPO, GRPO]:
    ppo, grpo = check_parity(*args, group_kwargs=MAY_SPLIT, **kwargs)
    assert grpo.regrouper is not None
    assert grpo.regrouper.probes.counts.sum() > 0, "the probes have not learnt: this test says less"
    assert grpo.regroup_history == []
    return ppo, grpo


class TestOneGroupThatMaySplit:
    def test_action_spaces(self, make_env):
        check_parity_of_one_that_may_split(make_env, "MlpPolicy")

    def test_advantages_not_normalised_and_entropy_bonus(self, make_env):
        check_parity_of_one_that_may_split(make_env, "MlpPolicy", normalize_advantage=False, ent_coef=0.01)

    @pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
    def test_options(self, options):
        check_parity_of_one_that_may_split(pendulum, "MlpPolicy", **options)

    @pytest.mark.parametrize("options", SDE_OPTIONS.values(), ids=SDE_OPTIONS.keys())
    def test_gsde(self, options):
        check_parity_of_one_that_may_split(pendulum, "MlpPolicy", use_sde=True, **options)

    def test_target_kl(self):
        options = dict(target_kl=0.003, learning_rate=1e-2, n_epochs=5)
        ppo, _ = check_parity_of_one_that_may_split(cartpole, "MlpPolicy", **options)
        assert n_updates(ppo) < 5 * N_UPDATES, "the limit was never reached: this test says nothing"

    def test_several_environments_with_images_in_a_dict(self):
        space = spaces.Dict({"img": spaces.Box(0, 255, (36, 36, 1), np.uint8), "vec": spaces.Box(-1, 1, (2,))})
        small = dict(features_extractor_kwargs=dict(cnn_output_dim=16))
        check_parity_of_one_that_may_split(
            lambda: make_vec_env(lambda: RandomEnv(space, spaces.Discrete(2)), 2, seed=0),
            "MultiInputPolicy",
            policy_kwargs=small,
            n_steps=16,
            batch_size=8,
        )

    def test_vec_normalize(self):
        check_parity_of_one_that_may_split(lambda: VecNormalize(make_vec_env("Pendulum-v1", n_envs=2)), "MlpPolicy")

    def test_predictions(self, make_env):
        check_predictions(*check_parity_of_one_that_may_split(make_env, "MlpPolicy"))

    def test_continued_after_loading(self, tmp_path):
        models = pair(pendulum, "MlpPolicy", group_kwargs=MAY_SPLIT)
        loaded = []
        for model in models:
            model.save(tmp_path / "model")
            loaded.append(type(model).load(tmp_path / "model", env=pendulum()))
            loaded[-1].set_random_seed(3)
            loaded[-1].learn(128, reset_num_timesteps=False)
        check_same(*loaded)
        assert not same_tensors(loaded[0], models[0])

    def test_split_and_merged_before_the_first_update(self):
        """A head that was appended and dropped again leaves nothing behind."""
        ppo, grpo = (train(kind, cartpole, "MlpPolicy", n_steps=32, **kwargs) for kind, kwargs in ((PPO, {}), (GRPO, {})))
        assert isinstance(grpo, GRPO)
        grpo.policy.regroup(Split(0, 1, [3], 0.5))
        grpo.policy.regroup(Merge(0, 1, 1.0, 0.0))
        for model in (ppo, grpo):
            model.set_random_seed(4)
            model.learn(96, reset_num_timesteps=False)
        check_same(ppo, grpo)


class TestDefaults:
    """No argument about groups at all."""

    @pytest.mark.parametrize("make_env", [cartpole, pendulum])
    def test_are_ppo_until_a_split(self, make_env):
        # rollouts as long as these are looked at one by one
        options = dict(n_steps=1536, batch_size=256)
        ppo, grpo = train(PPO, make_env, "MlpPolicy", **options), train(GRPO, make_env, "MlpPolicy", **options)
        check_same(ppo, grpo)
        assert isinstance(grpo, GRPO)
        assert (grpo.n_groups, grpo.max_groups, grpo.policy.grouping.active) == (1, 8, [0])
        assert grpo.regrouper is not None
        assert grpo.regrouper.due(grpo.regroup_rule, grpo.n_rollouts), "the probes were never asked: this test says less"
        assert grpo.logger.name_to_value["groups/coef_effective"] > 0

    @pytest.mark.parametrize("make_env", [cartpole, pendulum])
    def test_two_groups_are_not(self, make_env):
        ppo, grpo = train(PPO, make_env, "MlpPolicy"), train(GRPO, make_env, "MlpPolicy", n_groups=2)
        with pytest.raises(AssertionError, match=r"mlp_extractor|log_std|action_net"):
            check_same(ppo, grpo)


class TestNegativeControls:
    def test_two_groups_differ_from_ppo_in_every_head(self):
        ppo, grpo = pair(cartpole, "MlpPolicy", group_kwargs=dict(**MAY_SPLIT, n_groups=2, merge_kl=None))
        assert grpo.policy.n_heads == 2
        wide = dict(grpo.policy.named_parameters())
        for name, parameter in ppo.policy.named_parameters():
            for part in wide[name].chunk(1 if name.startswith("mlp_extractor") else 2):
                assert part.shape == parameter.shape
                assert not th.equal(parameter, part), name

    def test_four_groups_differ_from_ppo(self):
        ppo, grpo = pair(cartpole, "MlpPolicy", group_kwargs=dict(n_groups=4, group_coef=0.02))
        trunk = "mlp_extractor.policy_net.0.weight"
        assert not th.equal(ppo.policy.state_dict()[trunk], grpo.policy.state_dict()[trunk])

    def test_another_seed_differs_from_ppo(self):
        assert not same_tensors(train(PPO, cartpole, "MlpPolicy"), train(GRPO, cartpole, "MlpPolicy", n_groups=1, seed=8))

    def test_lambda_alone_cannot_change_one_group(self):
        assert same_tensors(*pair(cartpole, "MlpPolicy", group_kwargs=dict(group_coef=0.1)))
