"""Heads side by side: copied, averaged, or taken out for themselves, each with its moments."""

import copy
from contextlib import contextmanager
from typing import Any

import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from sb3_grpo import GRPO, MlpPolicy
from sb3_grpo.heads import HEAD_DIMS, copy_head, merge_heads, only_head, split_heads
from sb3_grpo.regroup_plan import Merge, Split

N_HEADS = 3
OBS_SPACE = spaces.Box(-5, 5, (2 + N_HEADS,))
POLICIES: dict[str, Any] = {
    "discrete": dict(action_space=spaces.Discrete(4)),
    "box": dict(action_space=spaces.Box(-1, 1, (2,))),
    "gsde": dict(action_space=spaces.Box(-1, 1, (2,)), use_sde=True),
    "gsde, one standard deviation": dict(action_space=spaces.Box(-1, 1, (2,)), use_sde=True, full_std=False),
}
OPTIMIZERS: dict[str, Any] = {
    "adam": dict(),
    "momentum": dict(optimizer_class=th.optim.SGD, optimizer_kwargs=dict(momentum=0.9)),
}


def make_policy(action_space, n_heads=N_HEADS, **kwargs):
    th.manual_seed(0)
    return MlpPolicy(
        OBS_SPACE,
        action_space,
        lambda _: 1e-2,
        net_arch=[8],
        router="one_hot",
        router_kwargs=dict(columns=(2, 2 + N_HEADS)),
        n_groups=n_heads,
        max_groups=n_heads,
        **kwargs,
    )


@pytest.fixture(params=list(POLICIES.values()), ids=list(POLICIES))
def spec(request):
    return request.param


@pytest.fixture(params=list(OPTIMIZERS.values()), ids=list(OPTIMIZERS))
def policy(request, spec):
    """All parameters and all moments different, so that heads can be told apart."""
    policy = make_policy(**spec, **request.param)
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(th.randn_like(parameter) * 0.3)
    for _ in range(3):
        step(policy)
    return policy


def loss_of(policy):
    generator = th.Generator().manual_seed(5)
    obs = th.cat([th.randn(6, 2, generator=generator), th.eye(N_HEADS).repeat(2, 1)], dim=1)
    actions = th.zeros(6) if isinstance(policy.action_space, spaces.Discrete) else th.full((6, 2), 0.3)
    values, log_prob, _ = policy.evaluate_actions(obs, actions)
    return (values.square().mean() - log_prob.mean()).square()


def step(policy):
    policy.optimizer.zero_grad()
    loss_of(policy).backward()
    policy.optimizer.step()


def moments_of(policy, parameter):
    return {key: value for key, value in policy.optimizer.state[parameter].items() if value.shape == parameter.shape}


def heads_of(policy):
    """Copies of each head's parameters and moments, by name; the first dimension counts the heads."""
    found = {}
    for name, parameter in policy.named_parameters():
        if name in HEAD_DIMS:
            for key, value in {"": parameter.detach(), **moments_of(policy, parameter)}.items():
                found[name, key] = split_heads(value, HEAD_DIMS[name], len(policy.grouping.age)).clone()
    return found


def trunk_of(policy):
    """Copies of all other parameters, of their moments, and of what the optimizer keeps besides moments."""
    found: dict[Any, th.Tensor] = {}
    for name, parameter in policy.named_parameters():
        is_head = name in HEAD_DIMS
        values = {"": parameter.detach(), **policy.optimizer.state[parameter]}
        found.update({(name, key): v.clone() for key, v in values.items() if not (is_head and v.shape == parameter.shape)})
    return found


def same(one, other):
    return one.keys() == other.keys() and all(th.equal(value, other[key]) for key, value in one.items())


class TestSplitHeads:
    def test_rows(self):
        tensor = th.arange(12.0).view(6, 2)
        assert split_heads(tensor, 0, 3).tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]

    def test_columns(self):
        tensor = th.arange(8.0).view(2, 4)
        assert split_heads(tensor, -1, 2).tolist() == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]

    @pytest.mark.parametrize("dim", [0, -1])
    def test_vectors(self, dim):
        assert split_heads(th.arange(6.0), dim, 3).tolist() == [[0, 1], [2, 3], [4, 5]]

    @pytest.mark.parametrize("dim", [0, -1])
    def test_it_is_a_view(self, dim):
        tensor = th.zeros(6, 6)
        split_heads(tensor, dim, 3)[1] = 1
        assert tensor.sum() == 12

    def test_every_parameter_is_a_head_or_independent_of_their_number(self, spec):
        one, three = (dict(make_policy(**spec, n_heads=n).named_parameters()) for n in (1, N_HEADS))
        grown = {name for name in one if one[name].shape != three[name].shape}
        assert grown == HEAD_DIMS.keys() & one.keys()
        for name in grown:
            assert split_heads(three[name], HEAD_DIMS[name], N_HEADS).shape == (N_HEADS, *one[name].shape)


class TestCopyHead:
    def test_source_and_target_become_equal_and_nothing_else_changes(self, policy):
        before, trunk = heads_of(policy), trunk_of(policy)
        copy_head(policy, 2, 0, N_HEADS)
        for key, heads in heads_of(policy).items():
            assert heads[0].equal(before[key][2])
            assert heads[1:].equal(before[key][1:])
            assert not heads[0].equal(before[key][0])
        assert same(trunk_of(policy), trunk)

    def test_before_the_first_step_there_are_no_moments(self, spec):
        policy = make_policy(**spec)
        with th.no_grad():
            policy.value_net.bias.copy_(th.tensor([1.0, 2.0, 3.0]))
        copy_head(policy, 1, 2, N_HEADS)
        assert policy.value_net.bias.tolist() == [1, 2, 2]
        step(policy)
        assert policy.value_net.bias.isfinite().all()


class TestMergeHeads:
    @pytest.mark.parametrize("share", [0.75, 0.5, 1.0, 0.0])
    def test_average_by_hand(self, policy, share):
        before, trunk = heads_of(policy), trunk_of(policy)
        merge_heads(policy, 2, 0, share, N_HEADS)
        for (name, key), heads in heads_of(policy).items():
            keep, gone, untouched = before[name, key][2], before[name, key][0], before[name, key][1]
            th.testing.assert_close(heads[2], share * keep + (1 - share) * gone)
            assert heads[0].equal(gone) if key == "" else not heads[0].any()
            assert heads[1].equal(untouched)
        assert same(trunk_of(policy), trunk)

    def test_numbers(self):
        policy = make_policy(spaces.Discrete(2))
        step(policy)
        bias = policy.value_net.bias
        policy.optimizer.state[bias]["exp_avg"].copy_(th.tensor([8.0, 1.0, 4.0]))
        policy.optimizer.state[bias]["exp_avg_sq"].copy_(th.tensor([16.0, 1.0, 0.0]))
        with th.no_grad():
            bias.copy_(th.tensor([10.0, 7.0, 2.0]))
        merge_heads(policy, 0, 2, 0.75, N_HEADS)
        assert bias.tolist() == [8, 7, 2]
        assert policy.optimizer.state[bias]["exp_avg"].tolist() == [7, 1, 0]
        assert policy.optimizer.state[bias]["exp_avg_sq"].tolist() == [12, 1, 0]
        assert policy.optimizer.state[bias]["step"] == 1

    def test_equal_heads_stay_as_they_are(self, policy):
        copy_head(policy, 0, 1, N_HEADS)
        before = heads_of(policy)
        merge_heads(policy, 0, 1, 0.3, N_HEADS)
        assert all(heads[0].equal(before[key][0]) for key, heads in heads_of(policy).items())


def narrow_shapes(policy, spec):
    one = dict(make_policy(**spec, n_heads=1).named_parameters())
    return all(parameter.shape == one[name].shape for name, parameter in policy.named_parameters())


@contextmanager
def alone(policy, group):
    """``policy.trained_alone()`` while all cells belong to one group."""
    policy.grouping.cell_to_group.fill_(group)
    policy.note_groups()
    with policy.trained_alone():
        yield
    policy.grouping.cell_to_group.copy_(th.arange(N_HEADS))
    policy.note_groups()


class TestOnlyHead:
    def test_inside_are_shapes_and_values_of_one_head(self, policy, spec):
        before = heads_of(policy)
        with only_head(policy, 1, N_HEADS):
            assert narrow_shapes(policy, spec)
            named = dict(policy.named_parameters())
            for (name, key), heads in before.items():
                values = {"": named[name], **moments_of(policy, named[name])}
                assert values[key].equal(heads[1])
                assert values[key].is_contiguous()
            optimised = [id(parameter) for group in policy.optimizer.param_groups for parameter in group["params"]]
            assert optimised == [id(parameter) for parameter in policy.parameters()]

    def test_without_a_change_inside_everything_stays(self, policy):
        parameters, state = dict(policy.named_parameters()), copy.deepcopy(policy.optimizer.state_dict())
        before = copy.deepcopy(policy.state_dict())
        with only_head(policy, 1, N_HEADS):
            pass
        assert all(parameter is parameters[name] for name, parameter in policy.named_parameters())
        assert list(dict(policy.named_parameters())) == list(parameters)
        assert same(policy.state_dict(), before)
        after = policy.optimizer.state_dict()
        assert after["param_groups"] == state["param_groups"]
        assert after["state"].keys() == state["state"].keys()
        assert all(same(after["state"][i], state["state"][i]) for i in state["state"])

    @pytest.mark.parametrize("head", range(N_HEADS))
    def test_what_is_written_inside_comes_back_and_other_heads_stay(self, policy, head):
        before, inside = heads_of(policy), {}
        others = [other for other in range(N_HEADS) if other != head]
        with only_head(policy, head, N_HEADS):
            for name, parameter in policy.named_parameters():
                if name in HEAD_DIMS:
                    for key, value in {"": parameter.data, **moments_of(policy, parameter)}.items():
                        value.mul_(2).add_(1)
                        inside[name, key] = value.clone()
        after = heads_of(policy)
        assert after.keys() == inside.keys() == before.keys()
        for key, heads in after.items():
            assert heads[head].equal(inside[key])
            assert not heads[head].equal(before[key][head])
            assert heads[others].equal(before[key][others])

    def test_only_that_head_learns(self, policy):
        before = heads_of(policy)
        with alone(policy, 1):
            step(policy)
        for key, heads in heads_of(policy).items():
            assert [heads[h].equal(before[key][h]) for h in range(N_HEADS)] == [True, False, True]

    def test_optimizer_state_that_begins_inside_is_whole_afterwards(self, spec):
        policy = make_policy(**spec)
        with alone(policy, 2):
            step(policy)
        for name, parameter in policy.named_parameters():
            state = policy.optimizer.state[parameter]
            assert state["step"] == 1
            assert state["exp_avg"].shape == state["exp_avg_sq"].shape == parameter.shape
            if name in HEAD_DIMS:
                moved = [head.any().item() for head in split_heads(state["exp_avg_sq"], HEAD_DIMS[name], N_HEADS)]
                assert moved == [False, False, True]
        assert len(policy.optimizer.state) == len(list(policy.parameters()))
        step(policy)

    def test_no_moments_no_state(self, spec):
        policy = make_policy(**spec, optimizer_class=th.optim.SGD)
        before = heads_of(policy)
        with alone(policy, 0):
            step(policy)
        assert all(not moments_of(policy, parameter) for parameter in policy.parameters())
        assert all(heads[1:].equal(before[key][1:]) for key, heads in heads_of(policy).items())

    def test_an_exception_inside_restores_everything(self, policy):
        parameters, before = dict(policy.named_parameters()), heads_of(policy)
        n_states = len(policy.optimizer.state)
        with pytest.raises(KeyError, match="inside"), only_head(policy, 1, N_HEADS):
            raise KeyError("inside")
        assert all(parameter is parameters[name] for name, parameter in policy.named_parameters())
        optimised = [id(parameter) for group in policy.optimizer.param_groups for parameter in group["params"]]
        assert optimised == [id(parameter) for parameter in parameters.values()]
        assert same(heads_of(policy), before)
        assert len(policy.optimizer.state) == n_states
        step(policy)

    def test_a_graph_that_stays_alive_does_not_disturb_gradients(self, policy):
        expected = th.autograd.grad(loss_of(policy), list(policy.parameters()))
        with alone(policy, 1):
            alive = loss_of(policy)
            alive.backward(retain_graph=True)
        gradients = th.autograd.grad(loss_of(policy), list(policy.parameters()))
        assert all(one.equal(other) for one, other in zip(expected, gradients, strict=True))
        assert alive.grad_fn is not None


def make_model(max_groups, env_id="Pendulum-v1", **kwargs):
    options: dict[str, Any] = dict(n_steps=32, batch_size=16, n_epochs=2, seed=0, n_groups=1, regroup_freq=1000)
    env = make_vec_env(env_id, 2, seed=0)
    return GRPO("MlpPolicy", env, max_groups=max_groups, policy_kwargs=dict(net_arch=[8]), **{**options, **kwargs})


@pytest.mark.parametrize("max_groups", [2, 3])
@pytest.mark.parametrize(
    "options", [dict(use_sde=True), dict(use_sde=True, sde_sample_freq=4), dict(env_id="CartPole-v1")], ids=str
)
def test_a_group_trained_alone_splits_and_trains_on(max_groups, options):
    model = make_model(max_groups, **options)
    initial = heads_of(model.policy)
    # noise that has been drawn inside keeps a graph of the parameter that was there
    model.learn(64)
    one_group = heads_of(model.policy)
    for name, key in one_group:
        assert key != "" or not one_group[name, key][0].equal(initial[name, key][0])
        assert one_group[name, key][1:].equal(initial.get((name, key), th.zeros_like(one_group[name, key]))[1:])
    model.policy.regroup(Split(0, 1, [4, 5, 6, 7], 1.0))
    split = heads_of(model.policy)
    assert all(heads[0].equal(heads[1]) for heads in split.values())
    model.learn(128, reset_num_timesteps=False)
    after = heads_of(model.policy)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())
    assert all(heads.isfinite().all() for heads in after.values())
    for key, heads in after.items():
        assert heads[2:].equal(initial[key][2:] if key in initial else th.zeros_like(heads[2:]))
    assert not after["action_net.weight", ""][0].equal(after["action_net.weight", ""][1])


@pytest.mark.parametrize("use_sde", [False, True])
def test_merging_back_to_one_group_and_training_on(use_sde):
    model = make_model(3, use_sde=use_sde).learn(64)
    model.policy.regroup(Split(0, 2, [1, 3], 1.0))
    model.learn(64, reset_num_timesteps=False)
    model.policy.regroup(Merge(2, 0, 0.25, 0.0))
    merged = heads_of(model.policy)
    assert model.policy.only_group == 2
    model.learn(64, reset_num_timesteps=False)
    for key, heads in heads_of(model.policy).items():
        assert heads.isfinite().all()
        assert [heads[h].equal(merged[key][h]) for h in range(3)] == [True, True, False]
