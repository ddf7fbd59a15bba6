"""Headed policy: which heads it holds, and what it takes over from the states of other policies."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from tiny_policies import make_scrambled_policy

from sb3_grpo import CnnPolicy, MlpPolicy, MultiInputPolicy
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
    @pytest.mark.parametrize(
        "kwargs",
        [dict(), dict(scale_values=True), dict(action_space=BOX, use_sde=True), dict(use_critic=False)],
        ids=str,
    )
    def test_there_and_back(self, kwargs):
        policy = make_policy(**kwargs, max_groups=5)
        policy.regroup(Merge(2, 0, 0.5, 0.0))
        before = heads_of(policy)
        expected = policy(OBS, deterministic=True)
        policy.hold_heads(True)
        assert policy.grouping.heads == [0, 1, 2, 3, 4]
        assert policy.n_heads == 5
        assert len(policy.get_parameter("action_net.bias")) == 5 * (2 if policy.use_sde else 4)
        assert not policy.use_critic or len(policy.get_parameter("value_net.bias")) == 5
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


# action space, arguments of the policy, outputs of one action head, entries of log_std of one head behind 8 units
ACTORS: dict[str, tuple[spaces.Space[Any], dict[str, Any], int, int]] = {
    "discrete": (DISCRETE, {}, 4, 0),
    "box": (BOX, {}, 2, 2),
    "multi_discrete": (spaces.MultiDiscrete([2, 3]), {}, 5, 0),
    "multi_binary": (spaces.MultiBinary(3), {}, 3, 0),
    "gsde": (BOX, dict(use_sde=True), 2, 8 * 2),
}


class CountedExtractor(FlattenExtractor):
    """``FlattenExtractor`` with a weight, which counts how many of it have been made."""

    made = 0

    def __init__(self, observation_space: spaces.Space[Any]):
        super().__init__(observation_space)
        self.weight = th.nn.Parameter(th.ones(1))
        type(self).made += 1

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.weight * super().forward(observations)


class OwnExtractor(MlpExtractor):
    """The user's: fails where the critic's part of it is asked for."""

    def forward_critic(self, features: th.Tensor) -> th.Tensor:
        raise AssertionError("the critic was asked")


class OwnPolicy(MlpPolicy):
    """Has such an extractor, and another learning rate for the value head."""

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = OwnExtractor(self.features_dim, self.net_arch, self.activation_fn)

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        values = set(self.value_net.parameters())
        others = [parameter for parameter in self.parameters() if parameter not in values]
        groups: list[dict[str, Any]] = [dict(params=others), dict(params=list(values), lr=1e-5)]
        self.optimizer = th.optim.Adam(groups, lr=lr_schedule(1))


def log_prob_of(policy: MlpPolicy) -> th.Tensor:
    """Log-likelihoods of all four actions, in turn."""
    return policy.get_distribution(OBS).log_prob(th.arange(len(OBS)) % 4)


def optimised(policy: MlpPolicy) -> set[int]:
    return {id(parameter) for group in policy.optimizer.param_groups for parameter in group["params"]}


def sizes(policy: MlpPolicy) -> int:
    return sum(parameter.numel() for parameter in policy.parameters())


class TestWithoutCritic:
    @pytest.mark.parametrize("n_heads", [1, 3])
    @pytest.mark.parametrize("name", ACTORS)
    def test_parameters_are_those_of_the_actor(self, name, n_heads):
        space, kwargs, n_outputs, n_log_std = ACTORS[name]
        policy = make_policy(space, use_critic=False, n_groups=n_heads, max_groups=n_heads, **kwargs)
        assert sizes(policy) == (5 * 8 + 8) + n_heads * (8 * n_outputs + n_outputs + n_log_std)
        assert optimised(policy) == {id(parameter) for parameter in policy.parameters()}
        names = {f"{layer}.{what}" for layer in ("mlp_extractor.policy_net.0", "action_net") for what in ("weight", "bias")}
        names |= ({"log_std"} if n_log_std else set()) | ({"grouping.cell_to_group"} if n_heads > 1 else set())
        assert policy.state_dict().keys() == names
        # control
        other = make_policy(space, n_groups=n_heads, max_groups=n_heads, **kwargs)
        assert sizes(other) - sizes(policy) == (5 * 8 + 8) + n_heads * (8 + 1)

    @pytest.mark.parametrize(
        ("net_arch", "size"),
        [
            (None, 5 * 64 + 64 + 64 * 64 + 64 + 64 * 4 + 4),
            ([], 5 * 4 + 4),
            (dict(vf=[16, 16]), 5 * 4 + 4),
            (dict(pi=[6], vf=[16, 16]), 5 * 6 + 6 + 6 * 4 + 4),
            (dict(pi=[6]), 5 * 6 + 6 + 6 * 4 + 4),
        ],
        ids=str,
    )
    def test_layers_of_the_critic_are_not_there(self, net_arch, size):
        policy = MlpPolicy(OBS_SPACE, DISCRETE, lambda _: 1e-3, net_arch=net_arch, use_critic=False)
        assert sizes(policy) == size
        assert policy(OBS)[0].shape == (6,)

    def test_actor_begins_as_with_a_critic(self):
        policies = []
        for use_critic in (True, False):
            th.manual_seed(0)
            policies.append(MlpPolicy(OBS_SPACE, BOX, lambda _: 1e-3, use_critic=use_critic))
        expected, actual = (policy.state_dict() for policy in policies)
        assert set(expected) - set(actual) == {name for name in expected if "value" in name} != set()
        assert all(value.equal(expected[name]) for name, value in actual.items())

    @pytest.mark.parametrize("shared", [True, False])
    def test_there_is_one_features_extractor(self, shared, monkeypatch):
        made = []
        for use_critic in (False, True):
            monkeypatch.setattr(CountedExtractor, "made", 0)
            kwargs = dict(features_extractor_class=CountedExtractor, share_features_extractor=shared)
            policy = make_policy(use_critic=use_critic, **kwargs)
            made.append(CountedExtractor.made)
            extractors = {name.partition(".")[0] for name in policy.state_dict() if "extractor.weight" in name}
            assert ("vf_features_extractor" in extractors) == use_critic
        assert made == [1, 1 if shared else 2]

    @pytest.mark.parametrize("shared", [True, False])
    @pytest.mark.parametrize("kind", ["CnnPolicy", "MultiInputPolicy"])
    def test_of_images_and_dicts(self, kind, shared):
        image, vector = spaces.Box(0, 255, (1, 36, 36), np.uint8), spaces.Box(-1, 1, (3,))
        space = image if kind == "CnnPolicy" else spaces.Dict(image=image, vector=vector)
        policy_class = CnnPolicy if kind == "CnnPolicy" else MultiInputPolicy
        options: dict[str, Any] = dict(net_arch=[8], share_features_extractor=shared)
        one, other = (policy_class(space, BOX, lambda _: 1e-3, **options, use_critic=each) for each in (False, True))
        assert not any(name.startswith(("value_net", "vf_")) or ".value_net." in name for name in one.state_dict())
        obs, _ = one.obs_to_tensor(space.sample())
        other.load_state_dict({**other.state_dict(), **one.state_dict()})
        expected, actual = (policy.get_distribution(obs).mode() for policy in (other, one))
        assert actual.equal(expected)
        assert one(obs)[1].tolist() == one.predict_values(obs).tolist() == [[0]]
        assert other.predict_values(obs).item() != 0

    def test_layers_in_a_users_extractor_stay_and_are_not_asked(self):
        th.manual_seed(0)
        policy = OwnPolicy(OBS_SPACE, DISCRETE, lambda _: 1e-3, net_arch=[8], use_critic=False)
        assert "mlp_extractor.value_net.0.weight" in policy.state_dict()
        assert "value_net.weight" not in policy.state_dict()
        assert policy(OBS)[1].tolist() == policy.predict_values(OBS).tolist() == [[0]] * 6
        assert policy.evaluate_actions(OBS, th.zeros(6))[0].tolist() == [[0]] * 6
        assert [len(group["params"]) for group in policy.optimizer.param_groups] == [6, 0]
        assert optimised(policy) == {id(parameter) for parameter in policy.parameters()}
        policy.load_state_dict(policy.state_dict())
        with pytest.raises(AssertionError, match="the critic was asked"):
            OwnPolicy(OBS_SPACE, DISCRETE, lambda _: 1e-3, net_arch=[8])(OBS)

    def test_values_that_do_not_exist_are_not_scaled(self):
        with pytest.raises(ValueError, match=r"`scale_values` must be False where `use_critic` is False, .* got True"):
            make_policy(use_critic=False, scale_values=True)
        assert make_policy(use_critic=False).value_scale is None

    def test_merges_and_splits(self):
        policy = make_policy(use_critic=False, max_groups=5)
        before = heads_of(policy)
        policy.regroup(Merge(2, 0, 0.75, 0.0))
        policy.regroup(Split(2, 4, [0], 1.0))
        assert policy.grouping.heads == [1, 2, 4]
        for key, heads in heads_of(policy).items():
            assert heads[1].equal(before[key][1])
            th.testing.assert_close(heads[2], 0.75 * before[key][2] + 0.25 * before[key][0])
            assert heads[4].equal(heads[2])
        for event in (Merge(2, 4, 0.5, 0.0), Merge(1, 2, 0.5, 0.0)):
            policy.regroup(event)
        assert policy.n_heads == 1
        assert optimised(policy) == {id(parameter) for parameter in policy.parameters()}

    @pytest.mark.parametrize("pickled", [False, True])
    def test_copies(self, pickled):
        policy = make_policy(use_critic=False)
        other = pickle.loads(pickle.dumps(policy)) if pickled else copy.deepcopy(policy)  # noqa: S301  # what was just written here
        assert other.use_critic is False
        for one, two in zip(policy(OBS, deterministic=True), other(OBS, deterministic=True), strict=True):
            assert one.equal(two)
        assert optimised(other) == {id(parameter) for parameter in other.parameters()}

    def test_a_file_of_the_policy(self, tmp_path):
        policy = make_policy(use_critic=False)
        policy.save(tmp_path / "policy")
        loaded = MlpPolicy.load(tmp_path / "policy")
        assert loaded.state_dict().keys() == policy.state_dict().keys()
        assert log_prob_of(loaded).equal(log_prob_of(policy))


class TestLoadingAnActor:
    """A state with a critic fits a policy without one: the critic is left out."""

    @pytest.mark.parametrize("shared", [True, False])
    @pytest.mark.parametrize("n_groups", [1, 3])
    @pytest.mark.parametrize("name", ACTORS)
    def test_of_sb3(self, name, n_groups, shared):
        space, kwargs, *_ = ACTORS[name]
        extractor = dict(features_extractor_class=CountedExtractor, share_features_extractor=shared)
        sb3 = ActorCriticPolicy(OBS_SPACE, space, lambda _: 1e-3, net_arch=[8], **extractor, **kwargs)
        for parameter in sb3.parameters():
            parameter.data = 0.5 * th.randn_like(parameter)
        policy = make_policy(space, n_groups=n_groups, max_groups=n_groups, use_critic=False, **extractor, **kwargs)
        space.seed(0)
        actions = th.as_tensor(np.stack([space.sample() for _ in OBS])).float()
        expected = sb3.evaluate_actions(OBS, actions)[1]
        assert not policy.evaluate_actions(OBS, actions)[1].allclose(expected)
        policy.load_state_dict(sb3.state_dict())
        assert policy.n_heads == n_groups
        th.testing.assert_close(policy.evaluate_actions(OBS, actions)[1], expected)

    @pytest.mark.parametrize("kwargs", [dict(), dict(scale_values=True), dict(all_heads=True, max_groups=5)], ids=str)
    def test_of_several_heads(self, kwargs):
        one, other = make_policy(**kwargs), make_policy(use_critic=False, max_groups=5)
        one.regroup(Merge(2, 0, 0.5, 0.0))
        other.load_state_dict(one.state_dict())
        assert other.grouping.heads == one.grouping.heads
        th.testing.assert_close(log_prob_of(other), log_prob_of(one))
        # and to another one without a critic
        third = make_policy(use_critic=False, max_groups=5)
        third.load_state_dict(other.state_dict())
        assert all(value.equal(other.state_dict()[name]) for name, value in third.state_dict().items())

    def test_what_is_missing_or_unknown_beside_the_critic_is_refused(self):
        policy = make_policy(use_critic=False)
        with pytest.raises(RuntimeError, match=r"Unexpected key.*other"):
            policy.load_state_dict({**make_policy().state_dict(), "other": th.zeros(1)})
        with pytest.raises(RuntimeError, match=r"Missing key.*action_net\.weight"):
            policy.load_state_dict(
                {name: each for name, each in make_policy().state_dict().items() if "action_net.w" not in name}
            )

    @pytest.mark.parametrize("n_groups", [1, 3])
    def test_a_critic_is_not_made_up(self, n_groups):
        state = make_policy(use_critic=False, n_groups=n_groups, max_groups=n_groups).state_dict()
        with pytest.raises(RuntimeError, match=r"Missing key.*value_net\.weight"):
            make_policy(n_groups=n_groups, max_groups=n_groups).load_state_dict(state)
