"""Headed policy: which heads it holds, and what it takes over from the states of other policies."""

import copy
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from tiny_policies import make_scrambled_policy

from sb3_grpo import MlpPolicy
from sb3_grpo.buffers import GroupRolloutBuffer
from sb3_grpo.headed_policy import check_heads, fit_router_and_route, fit_state
from sb3_grpo.heads import HEAD_DIMS, split_heads
from sb3_grpo.regroup_plan import Merge, Split

N_CELLS = 3
OBS_SPACE = spaces.Box(-np.inf, np.inf, (2 + N_CELLS,))
DISCRETE, BOX = spaces.Discrete(4), spaces.Box(-1, 1, (2,))


def make_policy(action_space: Any = DISCRETE, **kwargs: Any) -> MlpPolicy:
    """Parameters and moments all different."""
    th.manual_seed(0)
    router = dict(router="one_hot", router_kwargs=dict(columns=(2, 2 + N_CELLS)))
    policy = MlpPolicy(OBS_SPACE, action_space, lambda _: 1e-3, net_arch=[8], **{**router, "n_groups": None, **kwargs})
    for parameter in policy.parameters():
        parameter.data = 0.5 * th.randn_like(parameter)
        parameter.grad = th.randn_like(parameter)
    policy.optimizer.step()
    return policy


def obs_of(cells: Any) -> th.Tensor:
    numbers = th.randn(len(cells), 2, generator=th.Generator().manual_seed(1))
    return th.cat([numbers, th.eye(N_CELLS)[cells]], dim=1)


OBS = obs_of([0, 1, 2, 2, 1, 0])


def heads_of(policy: MlpPolicy) -> dict[tuple[str, str], dict[int, th.Tensor]]:
    """Parameters and moments of each group's head."""
    found: dict[tuple[str, str], dict[int, th.Tensor]] = {}
    for name, parameter in policy.named_parameters():
        if name in HEAD_DIMS:
            moments = {key: value for key, value in policy.optimizer.state[parameter].items() if value.ndim}
            for key, value in {"": parameter.detach(), **moments}.items():
                heads = split_heads(value, HEAD_DIMS[name], policy.n_heads).clone()
                found[name, key] = dict(zip(policy.grouping.heads, heads, strict=True))
    return found


class TestOneHead:
    @pytest.mark.parametrize("max_groups", [1, 5])
    @pytest.mark.parametrize("kwargs", [dict(), dict(use_sde=True)], ids=str)
    def test_is_sb3s_policy(self, max_groups, kwargs):
        policies = []
        for kind, own in ((ActorCriticPolicy, dict()), (MlpPolicy, dict(n_groups=1, max_groups=max_groups))):
            th.manual_seed(0)
            policies.append(kind(OBS_SPACE, BOX, lambda _: 1e-3, **kwargs, **own))
        expected, actual = (policy.state_dict() for policy in policies)
        assert list(expected) == list(actual)
        assert all(value.equal(actual[name]) for name, value in expected.items())
        assert str(policies[0].action_net) == str(policies[1].action_net)


class TestHoldHeads:
    @pytest.mark.parametrize("kwargs", [dict(), dict(scale_values=True), dict(action_space=BOX, use_sde=True)], ids=str)
    def test_there_and_back(self, kwargs):
        policy = make_policy(**kwargs, max_groups=5)
        policy.regroup(Merge(2, 0, 0.5, 0.0))
        before = heads_of(policy)
        expected = policy(OBS, deterministic=True)
        policy.hold_heads(True)
        assert policy.grouping.heads == [0, 1, 2, 3, 4]
        assert policy.n_heads == policy.value_net.out_features == 5
        for key, heads in heads_of(policy).items():
            assert all(heads[group].equal(before[key][group]) for group in (1, 2))
        for one, other in zip(policy(OBS, deterministic=True), expected, strict=True):
            th.testing.assert_close(one, other)
        policy.hold_heads(False)
        assert policy.grouping.heads == [1, 2]
        after = heads_of(policy)
        for key, heads in before.items():
            assert all(after[key][group].equal(head) for group, head in heads.items())

    def test_a_split_fills_a_head_that_was_held(self):
        policy = make_policy(max_groups=4)
        policy.regroup(Merge(1, 0, 0.5, 0.0))
        policy.hold_heads(True)
        parameters, before = list(policy.parameters()), heads_of(policy)
        policy.regroup(Split(1, 0, [0], 1.0))
        assert all(one is other for one, other in zip(parameters, policy.parameters(), strict=True))
        for key, heads in heads_of(policy).items():
            assert heads[0].equal(before[key][1])
            assert all(heads[group].equal(before[key][group]) for group in (1, 2, 3))


class TestAdoptGroups:
    def test_a_group_keeps_its_head_and_a_new_one_gets_a_copy_of_the_first(self):
        policy = make_policy(max_groups=5)
        before = heads_of(policy)
        policy.adopt_groups([4, 2, 2])
        assert policy.grouping.heads == [2, 4]
        for key, heads in heads_of(policy).items():
            assert heads[2].equal(before[key][2])
            assert heads[4].equal(before[key][0])


class TestLoadStateDict:
    @pytest.mark.parametrize("all_heads", [True, False])
    def test_of_itself_changes_nothing(self, all_heads):
        policy = make_policy(scale_values=True, max_groups=4, all_heads=all_heads)
        policy.regroup(Merge(2, 0, 0.5, 0.0))
        assert policy.value_scale is not None
        policy.value_scale.update(np.array([3.0, 4.0]), np.array([0, 1]), policy.value_net)
        before, parameters, count = heads_of(policy), list(policy.parameters()), policy.value_scale.count.clone()
        policy.load_state_dict(copy.deepcopy(policy.state_dict()))
        assert all(one is other for one, other in zip(parameters, policy.parameters(), strict=True))
        assert policy.value_scale.count.equal(count)
        after = heads_of(policy)
        for key, heads in before.items():
            assert all(after[key][group].equal(head) for group, head in heads.items())

    def test_with_all_heads_into_one_with_those_in_use(self):
        one, other = make_policy(max_groups=5, all_heads=True), make_policy(max_groups=5)
        one.regroup(Merge(2, 0, 0.5, 0.0))
        other.load_state_dict(one.state_dict())
        assert other.n_heads == 5
        assert other.grouping.active == [1, 2]
        assert other.predict_values(OBS).equal(one.predict_values(OBS))
        other.hold_heads(False)
        assert other.grouping.heads == [1, 2]
        th.testing.assert_close(other.predict_values(OBS), one.predict_values(OBS))

    def test_scaled_values_into_a_policy_without_scale_are_the_same(self):
        one, other = make_policy(scale_values=True), make_policy()
        assert one.value_scale is not None
        one.value_scale.scale.copy_(th.tensor([2.0, 0.5, 10.0]))
        other.load_state_dict(one.state_dict())
        th.testing.assert_close(other.predict_values(OBS), one.predict_values(OBS))
        weight = one.state_dict()["value_net.weight"] * th.tensor([[2.0], [0.5], [10.0]])
        assert other.value_net.weight.equal(weight)

    def test_values_without_scale_into_a_policy_with_one_are_the_same(self):
        one, other = make_policy(), make_policy(scale_values=True)
        assert other.value_scale is not None
        other.value_scale.scale.fill_(7)
        other.load_state_dict(one.state_dict())
        assert other.predict_values(OBS).equal(one.predict_values(OBS))

    def test_that_is_not_strict_may_have_no_groups(self):
        policy = make_policy()
        state = {name: tensor for name, tensor in policy.state_dict().items() if not name.startswith("grouping")}
        with pytest.raises(RuntimeError, match=r"missing keys in state_dict: \['grouping\.cell_to_group'\]"):
            policy.load_state_dict(state)
        policy.load_state_dict(state, strict=False)
        assert policy.groups(OBS).tolist() == [0, 1, 2, 2, 1, 0]

    def test_with_more_heads_than_groups_can_be_is_refused(self):
        state = make_policy().state_dict()
        policy = make_policy(n_groups=1, max_groups=2)
        before = copy.deepcopy(policy.state_dict())
        with pytest.raises(RuntimeError, match="has 3 heads, but the policy at most 2 groups"):
            policy.load_state_dict(state)
        assert all(tensor.equal(before[name]) for name, tensor in policy.state_dict().items())

    def test_the_average_of_other_groupings_is_refused_and_changes_nothing(self):
        """Three groups would be left to two heads."""
        policy = make_policy(max_groups=5)
        policy.adopt_groups([0, 4, 4])
        state, before = policy.state_dict(), copy.deepcopy(policy.state_dict())
        state["grouping.cell_to_group"] = (th.tensor([0.0, 4.0, 4.0]) + th.tensor([0.0, 0.0, 4.0])) / 2
        with pytest.raises(RuntimeError, match="has 3 groups in use, but 2 heads"):
            policy.load_state_dict(state)
        assert all(tensor.equal(before[name]) for name, tensor in policy.state_dict().items())

    def test_the_state_that_was_given_is_left_as_it_was(self):
        one, many = make_policy(n_groups=1), make_policy()
        state = one.state_dict()
        fitted = fit_state(many, state, strict=True)
        assert fitted["value_net.bias"].tolist() == state["value_net.bias"].tolist() * 3
        assert len(state["value_net.bias"]) == 1

    def test_moves_a_fitted_router(self):
        random = dict(router="random", router_kwargs=dict(n_cells=3))
        one, other = make_policy(**random), make_policy(**random, group_seed=1)
        one.grouping.router.fit(OBS, 0)
        assert not other.groups(OBS).any()
        other.load_state_dict(one.state_dict())
        assert other.groups(OBS).equal(one.groups(OBS))
        assert one.groups(OBS).any()


class TestCheckHeads:
    def test_those_of_a_policy_are_right(self):
        for kwargs in (dict(), dict(action_space=BOX), dict(action_space=BOX, use_sde=True, full_std=False)):
            check_heads(make_policy(**kwargs))

    @pytest.mark.parametrize("name", ["action_net", "value_net"])
    def test_another_layer(self, name):
        policy = make_policy()
        setattr(policy, name, th.nn.Sequential(getattr(policy, name)))
        with pytest.raises(ValueError, match=rf"`{name}` must be one torch.nn.Linear .* got Sequential"):
            check_heads(policy)

    def test_a_layer_whose_outputs_are_not_those_of_three_heads(self):
        policy = make_policy()
        policy.action_net = th.nn.Linear(8, 4)
        with pytest.raises(ValueError, match=r"got Linear.*out_features=4.* for 3 heads"):
            check_heads(policy)


def filled_buffer(obs: th.Tensor, reward: float = 1.0) -> GroupRolloutBuffer:
    """One environment, one step per observation."""
    buffer = GroupRolloutBuffer(len(obs), OBS_SPACE, DISCRETE, device="cpu")
    buffer.reset()
    for row in obs.numpy():
        value = th.zeros(1)
        buffer.add(row[None], np.zeros((1, 1)), np.array([reward]), np.zeros(1), value, value)
    buffer.compute_returns_and_advantage(th.zeros(1), np.zeros(1))
    return buffer


class TestFirstRollout:
    def test_cells_are_those_of_the_observations(self):
        assert fit_router_and_route(make_policy(), filled_buffer(OBS)).tolist() == [0, 1, 2, 2, 1, 0]

    def test_a_router_that_learns_makes_all_heads_the_one_that_collected(self):
        policy = make_policy(router="random", router_kwargs=dict(n_cells=3))
        assert policy.n_heads == 3
        before = heads_of(policy)
        obs = th.randn(40, 5, generator=th.Generator().manual_seed(4))
        cells = fit_router_and_route(policy, filled_buffer(obs))
        assert set(cells.tolist()) == {0, 1, 2}
        assert cells.equal(policy.grouping.cells(obs))
        for key, heads in heads_of(policy).items():
            assert all(head.equal(before[key][0]) for head in heads.values())
        # what is learnt later stays
        with th.no_grad():
            policy.value_net.bias.copy_(th.tensor([1.0, 2.0, 3.0]))
        assert fit_router_and_route(policy, filled_buffer(obs)).equal(cells)
        assert policy.value_net.bias.tolist() == [1, 2, 3]

    def test_rewards_that_are_not_finite_are_refused_before_anything_is_learnt(self):
        policy = make_policy(router="random", router_kwargs=dict(n_cells=3))
        before = heads_of(policy)
        with pytest.raises(ValueError, match="rewards must be finite"):
            fit_router_and_route(policy, filled_buffer(OBS, reward=float("nan")))
        assert not policy.grouping.is_fitted
        for key, heads in heads_of(policy).items():
            assert all(head.equal(before[key][group]) for group, head in heads.items())


def test_a_function_is_applied_to_all_modules_as_in_torch():
    policy = make_scrambled_policy(spaces.Discrete(2), 3, n_groups=None)
    visited: list[th.nn.Module] = []
    policy.apply(visited.append)
    assert set(map(id, visited)) == set(map(id, policy.modules()))
