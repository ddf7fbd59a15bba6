"""Heads side by side: taken and averaged, each with its moments in the optimizer."""

import copy
from typing import Any, ClassVar

import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.env_util import make_vec_env
from tiny_estimators import RewardsToGo

from sb3_grpo import GRPO, MlpPolicy
from sb3_grpo.estimators import ESTIMATORS
from sb3_grpo.heads import HEAD_DIMS, average_heads, n_heads_in, pick_heads, pick_heads_in, split_heads, take_heads
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
    state = policy.optimizer.state.get(parameter, {})
    return {key: value for key, value in state.items() if th.is_tensor(value) and value.shape == parameter.shape}


def heads_of(policy, n_heads=None):
    """Copies of each head's parameters and moments, by name; the first dimension counts the heads."""
    found = {}
    for name, parameter in policy.named_parameters():
        if name in HEAD_DIMS:
            for key, value in {"": parameter.detach(), **moments_of(policy, parameter)}.items():
                found[name, key] = split_heads(value, HEAD_DIMS[name], n_heads or policy.n_heads).clone()
    return found


def trunk_of(policy):
    """Copies of all other parameters, of their moments, and of what the optimizer keeps besides moments."""
    found: dict[Any, th.Tensor] = {}
    for name, parameter in policy.named_parameters():
        is_head = name in HEAD_DIMS
        values = {"": parameter.detach(), **policy.optimizer.state.get(parameter, {})}
        found.update(
            {
                (name, key): value.clone()
                for key, value in values.items()
                if th.is_tensor(value) and not (is_head and value.shape == parameter.shape)
            }
        )
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


class TestPickHeads:
    def test_rows(self):
        tensor = th.arange(6.0).view(6, 1)
        assert pick_heads(tensor, 0, 3, [2, 0, 0]).flatten().tolist() == [4, 5, 0, 1, 0, 1]

    def test_columns(self):
        tensor = th.arange(8.0).view(2, 4)
        assert pick_heads(tensor, -1, 2, [1]).tolist() == [[2, 3], [6, 7]]

    @pytest.mark.parametrize("dim", [0, -1])
    def test_a_copy_even_of_all(self, dim):
        tensor = th.zeros(4)
        pick_heads(tensor, dim, 2, [0, 1])[:] = 1
        assert not tensor.any()

    @given(st.data(), st.sampled_from([0, -1]), st.integers(1, 4), st.integers(1, 3))
    def test_every_head_is_its_source(self, data, dim, n_heads, width):
        sources = data.draw(st.lists(st.integers(0, n_heads - 1), min_size=1, max_size=6))
        shape = (n_heads * width, 2) if dim == 0 else (2, n_heads * width)
        tensor = th.randn(shape, generator=th.Generator().manual_seed(0))
        picked = split_heads(pick_heads(tensor, dim, n_heads, sources), dim, len(sources))
        assert picked.equal(split_heads(tensor, dim, n_heads)[sources])


class TestStates:
    state: ClassVar = {
        "value_net.bias": th.tensor([1.0, 2.0]),
        "log_std": th.tensor([3.0, 4.0, 5.0, 6.0]),
        "trunk": th.ones(2),
    }

    def test_number_of_heads(self):
        policy = make_policy(spaces.Discrete(4))
        assert n_heads_in(self.state, policy, N_HEADS) == 2
        assert n_heads_in({"trunk": th.ones(2)}, policy, N_HEADS) is None

    @pytest.mark.parametrize(("n_own", "n_heads"), [(1, 1), (1, 3), (3, 1), (3, 3)])
    @pytest.mark.parametrize("use_critic", [True, False])
    def test_number_of_heads_in_the_state_of_a_policy(self, spec, n_own, n_heads, use_critic):
        """Whether or not there are value heads in the state, or in the policy that is to load it."""
        state = make_policy(**spec, n_heads=n_heads, use_critic=use_critic).state_dict()
        for own_critic in (True, False):
            policy = make_policy(**spec, n_heads=n_own, use_critic=own_critic)
            assert n_heads_in(state, policy, n_own) == n_heads

    def test_picked(self):
        picked = pick_heads_in(self.state, 2, [1, 1, 0])
        assert {name: tensor.tolist() for name, tensor in picked.items()} == {
            "value_net.bias": [2, 2, 1],
            "log_std": [5, 6, 5, 6, 3, 4],
            "trunk": [1, 1],
        }
        assert self.state["value_net.bias"].tolist() == [1, 2]

    def test_of_one_head_for_several_groups(self, spec):
        """As a policy with so many heads begins: all of them copies of SB3's."""
        one, three = (make_policy(**spec, n_heads=n) for n in (1, N_HEADS))
        state = pick_heads_in(one.state_dict(), 1, [0] * N_HEADS)
        wide = three.state_dict()
        assert state.keys() == {name for name in wide if not name.startswith("grouping.")}
        assert all(value.equal(wide[name]) for name, value in state.items())


SOURCES = [[0], [2], [0, 2], [1, 1, 1], [2, 0, 1], [0, 1, 2, 1], [1, 1, 0, 0, 2]]


@pytest.mark.parametrize("sources", SOURCES, ids=str)
class TestTakeHeads:
    def test_every_head_becomes_its_source_with_its_moments(self, policy, sources):
        before, trunk = heads_of(policy), trunk_of(policy)
        take_heads(policy, N_HEADS, sources)
        after = heads_of(policy, len(sources))
        assert after.keys() == before.keys()
        assert {key for _, key in after} > {""}, "no moments: this test says less"
        for key, heads in after.items():
            assert heads.equal(before[key][sources]), key
        assert same(trunk_of(policy), trunk)

    def test_policy_and_optimizer_hold_the_same_parameters_in_the_same_order(self, policy, sources):
        names, settings = list(dict(policy.named_parameters())), copy.deepcopy(policy.optimizer.state_dict()["param_groups"])
        take_heads(policy, N_HEADS, sources)
        assert list(dict(policy.named_parameters())) == names
        optimised = [id(parameter) for group in policy.optimizer.param_groups for parameter in group["params"]]
        assert optimised == [id(parameter) for parameter in policy.parameters()]
        assert policy.optimizer.state_dict()["param_groups"] == settings
        assert {id(parameter) for parameter in policy.optimizer.state} == set(optimised)
        assert all(parameter.is_contiguous() and parameter.is_leaf for parameter in policy.parameters())

    def test_layers_know_their_size(self, policy, sources):
        n = policy.n_action_outputs
        take_heads(policy, N_HEADS, sources)
        assert policy.action_net.out_features == len(policy.action_net.weight) == n * len(sources)
        assert policy.value_net.out_features == len(policy.value_net.weight) == len(sources)

    def test_parameters_stay_the_same_objects_where_their_shape_does(self, policy, sources):
        before = dict(policy.named_parameters())
        take_heads(policy, N_HEADS, sources)
        kept = {name for name, parameter in policy.named_parameters() if parameter is before[name]}
        assert kept == (before.keys() if len(sources) == N_HEADS else before.keys() - HEAD_DIMS.keys())

    def test_before_the_first_step_there_are_no_moments(self, spec, sources):
        policy = make_policy(**spec)
        with th.no_grad():
            policy.value_net.bias.copy_(th.tensor([1.0, 2.0, 3.0]))
        take_heads(policy, N_HEADS, sources)
        assert policy.value_net.bias.tolist() == [1 + source for source in sources]
        assert not policy.optimizer.state

    def test_an_optimizer_without_moments(self, spec, sources):
        policy = make_policy(**spec, optimizer_class=th.optim.SGD)
        step(policy)
        before = heads_of(policy)
        take_heads(policy, N_HEADS, sources)
        assert not any(key for _, key in before)
        assert all(heads.equal(before[key][sources]) for key, heads in heads_of(policy, len(sources)).items())

    def test_hooks_move_on(self, policy, sources):
        sizes: dict[str, list[Any]] = {"hook": [], "accumulated": []}
        handle = policy.value_net.bias.register_hook(lambda gradient: sizes["hook"].append(len(gradient)))
        policy.value_net.bias.register_post_accumulate_grad_hook(
            lambda parameter: sizes["accumulated"].append(len(parameter.grad))
        )
        take_heads(policy, N_HEADS, sources)
        policy.value_net.bias.grad = None
        policy.value_net.bias.sum().backward()
        assert sizes == {"hook": [len(sources)], "accumulated": [len(sources)]}
        handle.remove()
        policy.value_net.bias.sum().backward()
        assert sizes == {"hook": [len(sources)], "accumulated": [len(sources)] * 2}

    def test_what_is_frozen_stays_frozen(self, policy, sources):
        policy.action_net.requires_grad_(False)
        take_heads(policy, N_HEADS, sources)
        assert not policy.action_net.weight.requires_grad
        assert policy.value_net.weight.requires_grad

    def test_a_layer_of_an_own_parameter_group_stays_in_it(self, spec, sources):
        policy = make_policy(**spec)
        others = [parameter for name, parameter in policy.named_parameters() if not name.startswith("value_net")]
        groups: list[dict[str, Any]] = [dict(params=others), dict(params=list(policy.value_net.parameters()), lr=1e-5)]
        policy.optimizer = th.optim.Adam(groups, lr=1e-2)
        step(policy)
        take_heads(policy, N_HEADS, sources)
        own = policy.optimizer.param_groups[1]
        assert own["lr"] == 1e-5
        assert [id(parameter) for parameter in own["params"]] == [id(parameter) for parameter in policy.value_net.parameters()]
        assert len(policy.optimizer.state[policy.value_net.bias]["exp_avg"]) == len(sources)


class TestTakeAllHeads:
    def test_changes_nothing(self, policy):
        parameters, state = dict(policy.named_parameters()), copy.deepcopy(policy.optimizer.state_dict())
        before = copy.deepcopy(policy.state_dict())
        take_heads(policy, N_HEADS, list(range(N_HEADS)))
        assert all(parameter is parameters[name] for name, parameter in policy.named_parameters())
        assert same(policy.state_dict(), before)
        after = policy.optimizer.state_dict()
        assert after["param_groups"] == state["param_groups"]
        assert all(same(after["state"][i], state["state"][i]) for i in state["state"])


MERGES = [Merge(0, 2, 0.25, 0.0), Merge(1, 0, 0.5, 0.0)]
EVENTS = [MERGES[:1], MERGES, [*MERGES, Split(1, 0, [0], 1.0)]]


class TestLivingGraphs:
    """What was computed before heads were taken, such as gSDE's noise, can stay alive."""

    def make(self, spec):
        policy = make_policy(**spec)
        for _ in range(2):
            step(policy)
        return policy

    @pytest.mark.parametrize("events", EVENTS, ids=["3 to 2", "3 to 1", "3 to 1 to 2"])
    def test_do_not_disturb_gradients(self, spec, events):
        gradients = []
        for keeps_graph in (False, True):
            policy = self.make(spec)
            alive = loss_of(policy) if keeps_graph else None
            for event in events:
                policy.regroup(event)
            policy.optimizer.zero_grad()
            loss = loss_of(policy)
            gradients.append(th.autograd.grad(loss, list(policy.parameters()), retain_graph=True))
            loss.backward()
            assert all(g.equal(p.grad) for g, p in zip(gradients[-1], policy.parameters(), strict=True))
            assert all(g.shape == p.shape for g, p in zip(gradients[-1], policy.parameters(), strict=True))
            assert (alive is not None) == keeps_graph
        assert all(one.equal(other) for one, other in zip(*gradients, strict=True))

    def test_their_gradients_do_not_reach_the_new_heads(self, spec):
        policy = self.make(spec)
        alive = loss_of(policy)
        policy.optimizer.zero_grad()
        policy.regroup(Merge(0, 2, 0.25, 0.0))
        alive.backward()
        reached = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
        assert reached
        assert not reached & HEAD_DIMS.keys()


class TestAverageHeads:
    @pytest.mark.parametrize("share", [0.75, 0.5, 1.0, 0.0])
    def test_average_by_hand(self, policy, share):
        before, trunk = heads_of(policy), trunk_of(policy)
        average_heads(policy, N_HEADS, 2, 0, share)
        for (name, key), heads in heads_of(policy).items():
            other, untouched, target = before[name, key]
            th.testing.assert_close(heads[2], share * target + (1 - share) * other)
            assert heads[1].equal(untouched)
            # a head that is held without a group must not move
            assert heads[0].equal(other) if key == "" else not heads[0].any()
        assert same(trunk_of(policy), trunk)

    def test_numbers(self):
        policy = make_policy(spaces.Discrete(2))
        step(policy)
        bias = policy.value_net.bias
        policy.optimizer.state[bias]["exp_avg"].copy_(th.tensor([8.0, 1.0, 4.0]))
        policy.optimizer.state[bias]["exp_avg_sq"].copy_(th.tensor([16.0, 1.0, 0.0]))
        with th.no_grad():
            bias.copy_(th.tensor([10.0, 7.0, 2.0]))
        average_heads(policy, N_HEADS, 0, 2, 0.75)
        assert bias.tolist() == [8, 7, 2]
        assert policy.optimizer.state[bias]["exp_avg"].tolist() == [7, 1, 0]
        assert policy.optimizer.state[bias]["exp_avg_sq"].tolist() == [12, 1, 0]
        assert policy.optimizer.state[bias]["step"] == 1

    def test_equal_heads_stay_as_they_are(self, policy):
        take_heads(policy, N_HEADS, [0, 0, 2])
        before = heads_of(policy)
        average_heads(policy, N_HEADS, 0, 1, 0.3)
        assert all(heads[0].equal(before[key][0]) for key, heads in heads_of(policy).items())


class TestRegroupedPolicies:
    """Events as the policy applies them: relabel, average or copy, and drop or append."""

    def test_a_merge_averages_and_drops(self, policy):
        before, trunk = heads_of(policy), trunk_of(policy)
        policy.regroup(Merge(2, 0, 0.75, 0.0))
        assert policy.grouping.heads == [1, 2]
        for key, heads in heads_of(policy).items():
            assert heads[0].equal(before[key][1])
            th.testing.assert_close(heads[1], 0.75 * before[key][2] + 0.25 * before[key][0])
        assert same(trunk_of(policy), trunk)
        step(policy)

    def test_a_split_appends_a_copy(self, policy):
        policy.regroup(Merge(0, 2, 0.5, 0.0))
        before = heads_of(policy)
        policy.regroup(Split(0, 2, [2], 1.0))
        assert policy.grouping.heads == [0, 1, 2]
        assert all(heads.equal(before[key][[0, 1, 0]]) for key, heads in heads_of(policy).items())
        step(policy)
        bias = split_heads(policy.action_net.bias.detach(), 0, 3)
        assert not bias[0].equal(bias[2]), "each learns from its own steps"

    def test_a_number_that_becomes_free_is_given_to_a_head_in_its_place(self, policy):
        policy.regroup(Merge(1, 0, 0.5, 0.0))
        before = heads_of(policy)
        policy.regroup(Split(1, 0, [0], 1.0))
        assert policy.grouping.heads == [0, 1, 2]
        assert all(heads.equal(before[key][[0, 0, 1]]) for key, heads in heads_of(policy).items())

    def test_down_to_one_head_is_of_the_shapes_of_sb3(self, policy, spec):
        policy.regroup(Merge(2, 0, 0.5, 0.0))
        policy.regroup(Merge(1, 2, 0.5, 0.0))
        one = make_policy(**spec, n_heads=1)
        assert [(n, p.shape) for n, p in policy.named_parameters()] == [(n, p.shape) for n, p in one.named_parameters()]
        assert policy.state_dict().keys() == one.state_dict().keys()
        step(policy)


def make_model(max_groups, env_id="Pendulum-v1", **kwargs):
    options: dict[str, Any] = dict(n_steps=32, batch_size=16, n_epochs=2, seed=0, n_groups=1, regroup_freq=1000)
    env = make_vec_env(env_id, 2, seed=0)
    return GRPO("MlpPolicy", env, max_groups=max_groups, policy_kwargs=dict(net_arch=[8]), **{**options, **kwargs})


@pytest.mark.parametrize("max_groups", [2, 3])
@pytest.mark.parametrize(
    "options", [dict(use_sde=True), dict(use_sde=True, sde_sample_freq=4), dict(env_id="CartPole-v1")], ids=str
)
def test_one_group_splits_and_trains_on(max_groups, options):
    model = make_model(max_groups, **options)
    initial = heads_of(model.policy)
    # the noise of the last rollout keeps a graph of the parameter that it was drawn from
    model.learn(64)
    one_group = heads_of(model.policy)
    assert all(len(heads) == 1 for heads in one_group.values())
    assert not any(heads.equal(one_group[key]) for key, heads in initial.items())
    model.policy.regroup(Split(0, 1, [4, 5, 6, 7], 1.0))
    split = heads_of(model.policy)
    assert all(heads.equal(one_group[key][[0, 0]]) for key, heads in split.items())
    model.learn(128, reset_num_timesteps=False)
    after = heads_of(model.policy)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())
    assert all(heads.isfinite().all() and len(heads) == 2 for heads in after.values())
    assert not after["action_net.weight", ""][0].equal(after["action_net.weight", ""][1])


@pytest.mark.parametrize("use_sde", [False, True])
def test_merging_back_to_one_group_and_training_on(use_sde):
    model = make_model(3, use_sde=use_sde).learn(64)
    model.policy.regroup(Split(0, 2, [1, 3], 1.0))
    model.learn(64, reset_num_timesteps=False)
    model.policy.regroup(Merge(2, 0, 0.25, 0.0))
    merged = heads_of(model.policy)
    assert (model.policy.grouping.active, model.policy.n_heads) == ([2], 1)
    model.learn(64, reset_num_timesteps=False)
    for key, heads in heads_of(model.policy).items():
        assert heads.isfinite().all()
        assert not heads.equal(merged[key])


class TestWithoutCritic:
    """Action heads alone are taken, averaged and trained."""

    @pytest.fixture
    def policy(self, spec):
        policy = make_policy(**spec, use_critic=False)
        for parameter in policy.parameters():
            parameter.data = 0.3 * th.randn_like(parameter)
        step(policy)
        return policy

    @pytest.mark.parametrize("sources", [[2], [2, 0, 1], [1, 1, 0, 2]], ids=str)
    def test_taken(self, policy, sources):
        before, trunk = heads_of(policy), trunk_of(policy)
        assert {name for name, _ in before} == {"action_net.weight", "action_net.bias"} | (
            {"log_std"} if isinstance(policy.action_space, spaces.Box) else set()
        )
        take_heads(policy, N_HEADS, sources)
        for key, heads in heads_of(policy, len(sources)).items():
            assert heads.equal(before[key][sources])
        assert same(trunk_of(policy), trunk)

    def test_averaged(self, policy):
        before = heads_of(policy)
        average_heads(policy, N_HEADS, 2, 0, 0.75)
        for key, heads in heads_of(policy).items():
            th.testing.assert_close(heads[2], 0.75 * before[key][2] + 0.25 * before[key][0])
            assert heads[1].equal(before[key][1])

    def test_trained_on_after_regrouping(self, policy):
        policy.regroup(Merge(0, 2, 0.5, 0.0))
        policy.regroup(Split(0, 2, [2], 1.0))
        before = heads_of(policy)
        step(policy)
        assert all(not heads[head].equal(before[key][head]) for key, heads in heads_of(policy).items() for head in range(3))


@pytest.mark.parametrize("kwargs", [dict(), dict(use_sde=True)], ids=str)
def test_a_model_without_critic_splits_merges_and_trains_on(kwargs, monkeypatch):
    monkeypatch.setitem(ESTIMATORS, "toy", RewardsToGo)
    model = make_model(3, advantage_estimator="toy", **kwargs).learn(64)
    for event, heads in ((Split(0, 1, [4, 5, 6, 7], 1.0), [0, 1]), (Merge(1, 0, 0.5, 0.0), [1])):
        model.policy.regroup(event)
        before = heads_of(model.policy)
        model.learn(128, reset_num_timesteps=False)
        assert model.policy.grouping.heads == heads
        assert all(value.isfinite().all() and not value.equal(before[key]) for key, value in heads_of(model.policy).items())
        assert not any("value" in name for name in model.policy.state_dict())
