"""The reference policy: a copy of the policy that follows it when it is told to, whatever becomes of the groups."""

import copy
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from tiny_envs import RandomEnv
from tiny_policies import make_scrambled_policy
from trained_tensors import assert_close

from sb3_grpo import GRPO, MlpPolicy
from sb3_grpo.buffers import Rollout
from sb3_grpo.reference import CHUNK, ReferencePolicy
from sb3_grpo.regroup_plan import Merge, Split

N_CELLS = 4
SPACES: dict[str, tuple[spaces.Space[Any], dict[str, Any]]] = {
    "discrete": (spaces.Discrete(3), {}),
    "box": (spaces.Box(-1, 1, (2,)), {}),
    "multi_discrete": (spaces.MultiDiscrete([2, 3]), {}),
    "multi_binary": (spaces.MultiBinary(3), {}),
    "gsde": (spaces.Box(-1, 1, (2,)), dict(use_sde=True)),
}
EVENTS: list[Merge | Split] = [
    Merge(0, 2, 0.25, 0.01),
    Split(0, 2, [2], 0.4),
    Merge(1, 3, 0.5, 0.0),
    Merge(0, 1, 0.5, 0.0),
    Merge(0, 2, 0.5, 0.0),
]


def make_policy(name: str = "discrete", **kwargs: Any) -> MlpPolicy:
    action_space, more = SPACES[name]
    return make_scrambled_policy(action_space, N_CELLS, **{"n_groups": N_CELLS, "net_arch": [8], **more, **kwargs})


def make_rollout(policy: MlpPolicy, n: int = 60) -> Rollout:
    """Steps in all cells, with random actions."""
    generator = th.Generator().manual_seed(0)
    obs = th.cat([th.randn(n, 2, generator=generator), th.eye(N_CELLS)[th.arange(n) % N_CELLS]], dim=1)
    policy.action_space.seed(0)
    actions = th.as_tensor(np.stack([policy.action_space.sample() for _ in range(n)])).float().view(n, -1)
    nothing = th.zeros(n)
    return Rollout(obs, actions, nothing, nothing, nothing, nothing, policy.grouping.heads_at(obs), nothing)


def log_prob_of(policy: MlpPolicy, rollout: Rollout) -> th.Tensor:
    is_discrete = isinstance(policy.action_space, spaces.Discrete)
    with th.no_grad():
        actions = rollout.actions.long().flatten() if is_discrete else rollout.actions
        distribution = policy.get_distribution(rollout.observations)
        return distribution.log_prob(actions)


def scramble(policy: MlpPolicy) -> None:
    for parameter in policy.parameters():
        parameter.data += 0.3 * th.randn_like(parameter)


def states(policy: MlpPolicy) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in policy.state_dict().items()}


def same(one: dict[str, th.Tensor], other: dict[str, th.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(value.equal(other[name]) for name, value in one.items())


class TestLogProb:
    @pytest.mark.parametrize("n_groups", [1, 2, N_CELLS])
    @pytest.mark.parametrize("use_critic", [True, False])
    @pytest.mark.parametrize("name", list(SPACES))
    def test_is_that_of_the_policy_when_it_was_copied(self, name, use_critic, n_groups):
        policy = make_policy(name, use_critic=use_critic, n_groups=n_groups, max_groups=N_CELLS)
        rollout, reference = make_rollout(policy), ReferencePolicy(policy)
        expected = log_prob_of(policy, rollout)
        found = reference.log_prob(rollout)
        assert not found.requires_grad
        th.testing.assert_close(found, expected)
        scramble(policy)
        assert reference.log_prob(rollout).equal(found)
        # control: the policy has moved
        assert not th.allclose(log_prob_of(policy, rollout), expected, atol=0.01)

    def test_of_many_steps_is_computed_in_parts(self):
        policy = make_policy()
        rollout = make_rollout(policy, 2 * CHUNK + 1)
        th.testing.assert_close(ReferencePolicy(policy).log_prob(rollout), log_prob_of(policy, rollout))

    def test_does_not_know_the_heads_of_the_rollout(self):
        """They are those of the policy, whose groups may have changed."""
        policy = make_policy()
        rollout, reference = make_rollout(policy), ReferencePolicy(policy)
        other = rollout._replace(heads=(rollout.heads + 1) % N_CELLS)
        assert reference.log_prob(other).equal(reference.log_prob(rollout))

    def test_is_that_without_dropout(self):
        policy = make_policy()
        policy.mlp_extractor.policy_net.append(th.nn.Dropout(0.5))
        policy.set_training_mode(False)
        rollout = make_rollout(policy)
        expected = log_prob_of(policy, rollout)
        policy.set_training_mode(True)
        reference = ReferencePolicy(policy)
        th.testing.assert_close(reference.log_prob(rollout), expected)
        assert policy.training
        assert not th.allclose(log_prob_of(policy, rollout), expected)

    def test_copying_draws_no_random_numbers_and_leaves_the_policy_alone(self):
        for name in SPACES:
            policy = make_policy(name)
            policy.evaluate_actions(make_rollout(policy).observations, make_rollout(policy).actions.squeeze(1))
            before, numbers, optimizer = states(policy), th.get_rng_state(), policy.optimizer
            moments = copy.deepcopy(policy.optimizer.state_dict()["state"])
            reference = ReferencePolicy(policy)
            assert th.get_rng_state().equal(numbers)
            assert same(states(policy), before)
            assert policy.optimizer is optimizer
            assert all(parameter.requires_grad for parameter in policy.parameters())
            assert not any(parameter.requires_grad for parameter in reference.policy.parameters())
            shared = {parameter.data_ptr() for parameter in policy.parameters()}
            assert not shared & {parameter.data_ptr() for parameter in reference.policy.parameters()}
            after = policy.optimizer.state_dict()["state"]
            assert all(value.equal(after[key][entry]) for key, row in moments.items() for entry, value in row.items())


class TestFollow:
    @pytest.mark.parametrize("name", list(SPACES))
    def test_becomes_the_policy(self, name):
        policy = make_policy(name)
        reference, rollout = ReferencePolicy(policy), make_rollout(policy)
        scramble(policy)
        reference.follow(policy, tau=1.0)
        assert same(states(reference.policy), states(policy))
        th.testing.assert_close(reference.log_prob(rollout), log_prob_of(policy, rollout))
        assert not any(parameter.requires_grad for parameter in reference.policy.parameters())
        # and stays what it has become
        before = reference.log_prob(rollout)
        scramble(policy)
        assert reference.log_prob(rollout).equal(before)

    @pytest.mark.parametrize("tau", [0.1, 0.5])
    @pytest.mark.parametrize("name", list(SPACES))
    def test_becomes_the_weighted_mean(self, name, tau):
        policy = make_policy(name)
        reference, old = ReferencePolicy(policy), dict(make_policy(name).named_parameters())
        scramble(policy)
        reference.follow(policy, tau)
        new, found = dict(policy.named_parameters()), dict(reference.policy.named_parameters())
        assert found.keys() == new.keys()
        for parameter, value in found.items():
            th.testing.assert_close(value.data, (1 - tau) * old[parameter].data + tau * new[parameter].data)

    def test_follows_statistics_of_layers_too(self):
        policy = make_policy()
        policy.mlp_extractor.policy_net.append(th.nn.BatchNorm1d(8))
        reference, rollout = ReferencePolicy(policy), make_rollout(policy)
        policy.set_training_mode(True)
        log_prob_of(policy, rollout)
        policy.set_training_mode(False)
        before = reference.log_prob(rollout)
        reference.follow(policy, 0.5)
        # parameters are equal, what the layer has seen is not
        assert not reference.log_prob(rollout).equal(before)
        th.testing.assert_close(reference.log_prob(rollout), log_prob_of(policy, rollout))


class TestRegrouping:
    @pytest.mark.parametrize("n_events", range(1, len(EVENTS) + 1))
    @pytest.mark.parametrize("name", list(SPACES))
    def test_changes_nothing_until_it_follows(self, name, n_events):
        policy = make_policy(name)
        reference, rollout = ReferencePolicy(policy), make_rollout(policy)
        before = reference.log_prob(rollout)
        for event in EVENTS[:n_events]:
            policy.regroup(event)
            scramble(policy)
        assert reference.log_prob(rollout).equal(before)
        expected = log_prob_of(policy, rollout)
        # heads that differ have no average
        reference.follow(policy, tau=1.0 if n_events % 2 else 0.25)
        if n_events != 2:
            th.testing.assert_close(reference.log_prob(rollout), expected)
        assert not th.allclose(expected, before, atol=0.01)
        # and goes on from there
        scramble(policy)
        reference.follow(policy, tau=1.0)
        th.testing.assert_close(reference.log_prob(rollout), log_prob_of(policy, rollout))

    def test_the_same_groups_have_an_average_again(self):
        """Groups that were merged, and split as they had been."""
        policy = make_policy()
        reference, old = ReferencePolicy(policy), dict(make_policy().named_parameters())
        for event in EVENTS[:2]:
            policy.regroup(event)
        reference.follow(policy, 0.25)
        for name, value in reference.policy.named_parameters():
            new = policy.get_parameter(name).data
            th.testing.assert_close(value.data, 0.75 * old[name].data + 0.25 * new)

    def test_other_groups_with_as_many_heads_have_no_average(self):
        """Heads 0 and 2 have changed places."""
        policy = make_policy()
        reference, rollout = ReferencePolicy(policy), make_rollout(policy)
        for event in (EVENTS[0], Split(0, 2, [0], 0.4)):
            policy.regroup(event)
            scramble(policy)
        assert policy.n_heads == reference.policy.n_heads
        reference.follow(policy, 0.25)
        th.testing.assert_close(reference.log_prob(rollout), log_prob_of(policy, rollout))

    def test_one_head_becomes_several_and_several_become_one(self):
        policy = make_policy(n_groups=1, max_groups=N_CELLS)
        reference, rollout = ReferencePolicy(policy), make_rollout(policy)
        splits: list[Merge | Split] = [Split(0, 1, [1, 2], 0.4), Split(1, 2, [2], 0.4)]
        for event in [*splits, Merge(0, 1, 0.5, 0.0), Merge(0, 2, 0.5, 0.0)]:
            policy.regroup(event)
            scramble(policy)
            reference.follow(policy, 0.5)
            th.testing.assert_close(reference.log_prob(rollout), log_prob_of(policy, rollout))


TASKS: dict[str, Any] = dict(router="one_hot", router_kwargs=dict(columns=(4, 8)))
KWARGS: dict[str, Any] = dict(n_steps=16, batch_size=16, n_epochs=2, seed=0, device="cpu", learning_rate=1e-2)
KWARGS["policy_kwargs"] = dict(net_arch=[8])


def make_model(**kwargs: Any) -> GRPO:
    return GRPO("MlpPolicy", make_vec_env("sb3_grpo/TaskCartPole-v0", 2, seed=0), **{**KWARGS, **TASKS, **kwargs})


def random_model(action_space: spaces.Space[Any], observation_space: Any = None, **kwargs: Any) -> GRPO:
    observation_space = observation_space or spaces.Box(-1, 1, (4,), np.float32)
    observation_space.seed(0)
    env: VecEnv = DummyVecEnv([lambda: RandomEnv(observation_space, action_space)])
    policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    return GRPO(policy, env, **{**KWARGS, "n_steps": 32, **kwargs})


class References(BaseCallback):
    """Keeps the state of policy and reference at the end of each rollout, before the update."""

    def __init__(self) -> None:
        super().__init__()
        self.policies: list[dict[str, th.Tensor]] = []
        self.references: list[dict[str, th.Tensor]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, GRPO)
        assert self.model.reference is not None
        self.policies.append(states(self.model.policy))
        self.references.append(states(self.model.reference.policy))


class TestTraining:
    def test_stays_what_the_policy_was_at_first(self):
        model, seen = make_model(kl_coef=0.1), References()
        first = states(model.policy)
        model.learn(3 * 32, seen)
        assert len(seen.references) == 3
        assert all(same(each, first) for each in seen.references)
        assert model.reference is not None
        assert same(states(model.reference.policy), first)
        assert not same(states(model.policy), first)
        # another training goes on with it
        model.learn(32, reset_num_timesteps=False)
        assert same(states(model.reference.policy), first)
        model.learn(32)
        assert same(states(model.reference.policy), first)

    def test_follows_every_so_many_rollouts(self):
        model, seen = make_model(kl_coef=0.1, ref_update_freq=2), References()
        model.learn(6 * 32, seen)
        # after the updates of rollouts 1 and 3, counted from 0, it becomes the policy that collects the next ones
        expected = [seen.policies[0]] * 2 + [seen.policies[2]] * 2 + [seen.policies[4]] * 2
        assert all(same(*pair) for pair in zip(seen.references, expected, strict=True))
        assert model.reference is not None
        assert same(states(model.reference.policy), states(model.policy))
        assert not same(seen.policies[2], seen.policies[0])

    def test_follows_by_a_share(self):
        model, seen = make_model(kl_coef=0.1, ref_update_freq=1, ref_tau=0.25, merge_kl=None, split_kl=None), References()
        model.learn(4 * 32, seen)
        for before, policy, after in zip(seen.references, seen.policies[1:], seen.references[1:], strict=False):
            for name, value in after.items():
                th.testing.assert_close(value, 0.75 * before[name] + 0.25 * policy[name])

    def test_without_a_coefficient_there_is_none_and_nothing_changes(self):
        plain, without, with_reference = make_model(), make_model(kl_coef=0.0), None
        plain.learn(96)
        without = make_model(kl_coef=0.0).learn(96)
        with_reference = make_model(kl_coef=0.5).learn(96)
        assert plain.reference is None
        assert without.reference is None
        assert same(states(plain.policy), states(without.policy))
        assert "train/reference_kl" not in without.logger.name_to_value
        # control
        assert not same(states(with_reference.policy), states(without.policy))
        assert with_reference.logger.name_to_value["train/reference_kl"] > 0

    def test_is_dropped_and_made_anew(self):
        model = make_model(kl_coef=0.1).learn(32)
        model.kl_coef = 0.0
        model.learn(32)
        assert model.reference is None
        model.kl_coef = 0.1
        second = states(model.policy)
        model.learn(32)
        assert model.reference is not None
        assert same(states(model.reference.policy), second)

    @pytest.mark.parametrize("name", ["multi_binary", "gsde"])
    def test_a_large_coefficient_keeps_the_policy_near_it(self, name):
        (action_space, more), distances = SPACES[name], []
        for kl_coef in (1e-6, 10.0):
            kwargs: dict[str, Any] = dict(kl_coef=kl_coef, n_groups=1, n_steps=128, batch_size=64, n_epochs=4, **more)
            model = random_model(action_space, **{**kwargs, "learning_rate": 3e-3}).learn(7 * 128)
            assert model.reference is not None
            rollout = model.rollout_buffer.samples()
            difference = log_prob_of(model.policy, rollout) - model.reference.log_prob(rollout)
            distances.append(difference.square().mean().item())
        assert distances[1] < 0.3 * distances[0]

    def test_dict_observations_and_several_groups(self):
        space = spaces.Dict({"x": spaces.Box(-1, 1, (3,), np.float32), "task": spaces.Discrete(3)})
        kwargs: dict[str, Any] = dict(router="discrete", router_kwargs=dict(key="task"), kl_coef=0.1, ref_update_freq=2)
        model = random_model(spaces.Discrete(3), space, **kwargs).learn(3 * 32)
        assert model.policy.n_heads == 3
        assert model.logger.name_to_value["train/reference_kl"] > 0
        assert model.reference is not None

    def test_random_router_learns_its_regions_after_the_reference_was_made(self):
        model, seen = random_model(spaces.Discrete(3), kl_coef=0.1, n_groups=3, ref_update_freq=2), References()
        model.learn(2 * 32, seen)
        assert model.policy.grouping.is_fitted
        model.policy.regroup(Merge(0, 1, 0.5, 0.0))
        model.learn(2 * 32, seen, reset_num_timesteps=False)
        samples = model.rollout_buffer.samples()
        assert model.reference is not None
        th.testing.assert_close(model.reference.log_prob(samples), log_prob_of(model.policy, samples))

    def test_groups_that_change_in_training(self):
        model = make_model(kl_coef=0.1, ref_update_freq=2, merge_kl=None, split_kl=None)
        model.learn(64)
        assert model.reference is not None
        for event in EVENTS:
            model.policy.regroup(event)
            rollout = model.rollout_buffer.samples()
            before = model.reference.log_prob(rollout)
            model.learn(32, reset_num_timesteps=False)
            follows = model.n_rollouts % 2 == 0
            expected = log_prob_of(model.policy, rollout) if follows else before
            th.testing.assert_close(model.reference.log_prob(rollout), expected)

    # torch's own compiler uses torch.jit, and says so
    @pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
    def test_compiled_equals_eager(self, compiler_calls):
        kwargs: dict[str, Any] = dict(kl_coef=0.3, n_groups=2, merge_kl=None, split_kl=None, router="random", router_kwargs={})
        eager = make_model(**kwargs).learn(64)
        compiled = make_model(**kwargs, compile=True).learn(64)
        # the update of each minibatch, and the steps of the second rollout
        assert compiler_calls == [2 * 2 * 2, 16]
        assert eager.reference is not None
        assert compiled.reference is not None
        assert_close(eager, compiled)
        assert not same(states(eager.policy), states(make_model(**{**kwargs, "kl_coef": 0.0}).learn(64).policy))
