"""Heads side by side are what separate heads would be, and the trunk sees only what it may."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch.distributions import Bernoulli, Categorical, Normal

from sb3_grpo import MlpPolicy, MultiInputPolicy, regrouping
from sb3_grpo.regroup_plan import Merge
from sb3_grpo.regrouping import grad_log_prob, head_outputs

N_HEADS = 3
ACTION_SPACES = {
    "discrete": spaces.Discrete(4),
    "box": spaces.Box(-1, 1, (2,)),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(3),
}
OBS_SPACE = spaces.Box(-np.inf, np.inf, (2 + N_HEADS,))


def make_policy(action_space, obs_space=OBS_SPACE, router_kwargs=None, policy_class=MlpPolicy, router="one_hot", **kwargs):
    th.manual_seed(0)
    return policy_class(
        obs_space,
        action_space,
        lambda _: 1e-3,
        net_arch=[8],
        router=router,
        router_kwargs=router_kwargs or dict(columns=(2, 2 + N_HEADS)),
        # without arguments one group per cell
        **{"n_groups": None, **kwargs},
    )


def randomize(policy):
    """All parameters different, so that heads can be told apart."""
    th.manual_seed(1)
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(th.randn_like(parameter) * 0.5)


def make_obs(groups):
    random = np.random.default_rng(0)
    obs = np.concatenate([random.normal(size=(len(groups), 2)), np.eye(N_HEADS)[groups]], axis=1)
    return th.as_tensor(obs, dtype=th.float32)


def sample_actions(action_space, n):
    action_space.seed(0)
    dtype = th.long if isinstance(action_space, spaces.Discrete) else th.float32
    return th.as_tensor(np.stack([action_space.sample() for _ in range(n)]), dtype=dtype)


GROUPS = th.tensor([0, 1, 2, 2, 1, 0, 0, 1, 2, 1])


@pytest.fixture(params=list(ACTION_SPACES.values()), ids=list(ACTION_SPACES))
def action_space(request):
    return request.param


def head(layer, group):
    """Weight and bias of one head."""
    return [parameter.chunk(N_HEADS)[group] for parameter in (layer.weight, layer.bias)]


def latents_by_hand(policy, obs):
    """The trunk, in torch's own words."""
    (pi_in, vf_in) = (getattr(policy.mlp_extractor, name)[0] for name in ("policy_net", "value_net"))
    return th.tanh(obs @ pi_in.weight.T + pi_in.bias), th.tanh(obs @ vf_in.weight.T + vf_in.bias)


def log_prob_and_entropy_by_hand(policy, space, outputs, action, group):
    if isinstance(space, spaces.Box):
        distribution = Normal(outputs, policy.log_std.chunk(N_HEADS)[group].exp())
        return distribution.log_prob(action).sum(), distribution.entropy().sum()
    if isinstance(space, spaces.MultiBinary):
        bernoulli = Bernoulli(logits=outputs)
        return bernoulli.log_prob(action.float()).sum(), bernoulli.entropy().sum()
    parts = outputs.split([space.n] if isinstance(space, spaces.Discrete) else space.nvec.tolist())
    choices = [Categorical(logits=part) for part in parts]
    terms = [(c.log_prob(a), c.entropy()) for c, a in zip(choices, action.reshape(-1), strict=True)]
    return tuple(th.stack(column).sum() for column in zip(*terms, strict=True))


def test_every_step_is_judged_by_its_own_head(action_space):
    policy = make_policy(action_space)
    randomize(policy)
    obs, actions = make_obs(GROUPS), sample_actions(action_space, len(GROUPS))
    values, log_prob, entropy = policy.evaluate_actions(obs, actions)
    latent_pi, latent_vf = latents_by_hand(policy, obs)
    for step, group in enumerate(GROUPS.tolist()):
        (pi_weight, pi_bias), (vf_weight, vf_bias) = head(policy.action_net, group), head(policy.value_net, group)
        outputs = pi_weight @ latent_pi[step] + pi_bias
        expected = log_prob_and_entropy_by_hand(policy, action_space, outputs, actions[step], group)
        th.testing.assert_close((log_prob[step], entropy[step]), expected)
        th.testing.assert_close(values[step], vf_weight @ latent_vf[step] + vf_bias)


@pytest.mark.parametrize("full_std", [True, False])
def test_gsde_density_is_that_of_the_own_head(full_std):
    space = spaces.Box(-1, 1, (2,))
    policy = make_policy(space, use_sde=True, full_std=full_std)
    randomize(policy)
    obs, actions = make_obs(GROUPS), sample_actions(space, len(GROUPS))
    _, log_prob, entropy = policy.evaluate_actions(obs, actions)
    latent_pi, _ = latents_by_hand(policy, obs)
    assert policy.log_std.shape == (8, N_HEADS * (2 if full_std else 1))
    for step, group in enumerate(GROUPS.tolist()):
        weight, bias = head(policy.action_net, group)
        std = policy.log_std.chunk(N_HEADS, dim=1)[group].exp().expand(8, 2)
        variance = latent_pi[step].square() @ std.square()
        # SB3 keeps the variance away from 0 by 1e-6
        distribution = Normal(weight @ latent_pi[step] + bias, (variance + 1e-6).sqrt())
        th.testing.assert_close(log_prob[step], distribution.log_prob(actions[step]).sum())
        if entropy is not None:
            th.testing.assert_close(entropy[step], distribution.entropy().sum())


def test_gsde_noise_is_that_of_the_own_head():
    policy = make_policy(spaces.Box(-100, 100, (2,)), use_sde=True)
    randomize(policy)
    obs = make_obs(GROUPS)
    noise = policy(obs)[0] - policy(obs, deterministic=True)[0]
    latent_pi, _ = latents_by_hand(policy, obs)
    matrices = policy.action_dist.exploration_mat.chunk(N_HEADS, dim=1)
    expected = th.stack([latent_pi[step] @ matrices[group] for step, group in enumerate(GROUPS.tolist())])
    th.testing.assert_close(noise, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changed", range(N_HEADS))
def test_changing_a_head_changes_only_its_own_steps(action_space, changed):
    policy = make_policy(action_space)
    randomize(policy)
    obs, actions = make_obs(GROUPS), sample_actions(action_space, len(GROUPS))
    before = policy.evaluate_actions(obs, actions)
    with th.no_grad():
        for layer in (policy.action_net, policy.value_net):
            head(layer, changed)[0].mul_(-2)
    for old, new in zip(before[:2], policy.evaluate_actions(obs, actions)[:2], strict=True):
        differs = (old != new).flatten()
        assert differs.equal(changed == GROUPS)


def test_gradient_of_one_groups_steps_stays_in_its_head(action_space):
    policy = make_policy(action_space)
    obs, actions = make_obs(th.ones(4, dtype=th.long)), sample_actions(action_space, 4)
    values, log_prob, _ = policy.evaluate_actions(obs, actions)
    (values.sum() + log_prob.sum()).backward()
    for layer in (policy.action_net, policy.value_net):
        norms = [gradient.abs().sum().item() for gradient in layer.weight.grad.chunk(N_HEADS)]
        assert norms[1] > 0
        assert norms[0] == norms[2] == 0


def test_all_heads_start_equal(action_space):
    policy = make_policy(action_space)
    layers = [policy.action_net.weight, policy.action_net.bias, policy.value_net.weight, policy.value_net.bias]
    for parameter in [*layers, *([policy.log_std] if isinstance(action_space, spaces.Box) else [])]:
        first, *others = parameter.chunk(N_HEADS)
        assert all(other.equal(first) for other in others)
    assert policy.action_net.weight.any()


def test_first_head_is_that_of_a_policy_with_one_head(action_space):
    many, one = make_policy(action_space), make_policy(action_space, n_groups=1, max_groups=1)
    assert head(many.action_net, 0)[0].equal(one.action_net.weight)
    assert head(many.value_net, 0)[0].equal(one.value_net.weight)


def test_every_parameter_is_optimised(action_space):
    policy = make_policy(action_space)
    optimised = {id(parameter) for group in policy.optimizer.param_groups for parameter in group["params"]}
    assert optimised == {id(parameter) for parameter in policy.parameters()}


class TestGroups:
    def test_are_those_of_the_cells(self):
        policy = make_policy(ACTION_SPACES["discrete"])
        assert policy.groups(make_obs(GROUPS)).equal(GROUPS)
        policy.adopt_groups([2, 0, 0])
        assert policy.groups(make_obs(GROUPS)).equal(th.tensor([2, 0, 0])[GROUPS])

    def test_cells_are_dealt_by_the_seed(self):
        obs_space = spaces.Box(0, 1, (12,))
        kwargs = dict(obs_space=obs_space, router_kwargs=dict(columns=(0, 12)), n_groups=3)
        one, same, other = (make_policy(ACTION_SPACES["discrete"], **kwargs, group_seed=seed) for seed in (1, 1, 2))
        assert one.grouping.cell_to_group.equal(same.grouping.cell_to_group)
        assert not one.grouping.cell_to_group.equal(other.grouping.cell_to_group)

    def test_there_is_one_head_for_each_in_use(self):
        policy = make_policy(ACTION_SPACES["discrete"], n_groups=2, max_groups=5)
        assert sorted(policy.grouping.cell_to_group.unique().tolist()) == policy.grouping.heads == [0, 1]
        assert (policy.n_heads, policy.action_net.out_features, policy.value_net.out_features) == (2, 2 * 4, 2)

    def test_all_heads_that_there_can_be_where_shapes_must_not_change(self):
        policy = make_policy(ACTION_SPACES["discrete"], n_groups=2, max_groups=5, all_heads=True)
        assert policy.grouping.active == [0, 1]
        assert (policy.n_heads, policy.action_net.out_features, policy.value_net.out_features) == (5, 5 * 4, 5)

    def test_given_heads_are_as_good_as_looked_up(self, action_space):
        policy = make_policy(action_space)
        randomize(policy)
        obs, actions = make_obs(GROUPS), sample_actions(action_space, len(GROUPS))
        looked_up = policy.evaluate_actions(obs, actions)
        given, wrong = (policy.evaluate_rollout(obs, actions, heads) for heads in (GROUPS, (GROUPS + 1) % N_HEADS))
        assert all(one.equal(other) for one, other in zip(looked_up, given, strict=True))
        assert not any(one.equal(other) for one, other in zip(looked_up, wrong, strict=True) if one.ndim == 2)


class TestNumberOfHeads:
    @pytest.mark.parametrize(
        ("kwargs", "expected"),
        [
            (dict(), (3, 3)),
            (dict(n_groups=1), (1, 1)),
            (dict(n_groups=2), (2, 3)),
            (dict(max_groups=2), (2, 2)),
            (dict(n_groups=1, max_groups=5), (1, 5)),
        ],
        ids=str,
    )
    def test_default(self, kwargs, expected):
        policy = make_policy(ACTION_SPACES["discrete"], **kwargs)
        assert (len(policy.grouping.active), policy.grouping.max_groups) == expected
        assert policy.value_net.out_features == policy.n_heads == expected[0]

    def test_random_numbers_are_drawn_as_with_one_head(self, action_space):
        states = []
        for kwargs in (dict(n_groups=1), dict(n_groups=1, max_groups=5), dict(), dict(all_heads=True)):
            make_policy(action_space, use_sde=isinstance(action_space, spaces.Box), **kwargs)
            states.append(th.get_rng_state())
        assert all(state.equal(states[0]) for state in states)


def outputs_of(policy: MlpPolicy, latent: th.Tensor, heads: list[int]) -> tuple[th.Tensor, Any]:
    """For actions of which it is known whether they have deviations."""
    return head_outputs(policy, latent, heads)


class TestHeadOutputs:
    def test_all_heads(self, action_space):
        policy = make_policy(action_space)
        randomize(policy)
        latent = th.randn(5, 8)
        outputs, log_std = outputs_of(policy, latent, list(range(N_HEADS)))
        for group in range(N_HEADS):
            weight, bias = head(policy.action_net, group)
            th.testing.assert_close(outputs[:, group], latent @ weight.T + bias)
            if isinstance(action_space, spaces.Box):
                assert log_std.shape == outputs.shape
                assert (log_std[:, group] == policy.log_std.chunk(N_HEADS)[group]).all()
        assert isinstance(action_space, spaces.Box) == (log_std is not None)

    @pytest.mark.parametrize("full_std", [True, False])
    def test_gsde_has_the_deviation_of_its_marginal_distribution(self, full_std):
        policy = make_policy(ACTION_SPACES["box"], use_sde=True, full_std=full_std)
        randomize(policy)
        latent = th.randn(5, 8)
        outputs, log_std = outputs_of(policy, latent, list(range(N_HEADS)))
        for group in range(N_HEADS):
            weight, bias = head(policy.action_net, group)
            th.testing.assert_close(outputs[:, group], latent @ weight.T + bias)
            std = policy.log_std.chunk(N_HEADS, dim=1)[group].exp().expand(8, 2)
            th.testing.assert_close(log_std[:, group], (latent.square() @ std.square() + 1e-6).sqrt().log())

    @pytest.mark.parametrize("use_sde", [True, False])
    def test_some_heads_in_any_order(self, use_sde):
        policy = make_policy(ACTION_SPACES["box"], use_sde=use_sde)
        randomize(policy)
        latent = th.randn(5, 8)
        for every, some in zip(outputs_of(policy, latent, [0, 1, 2]), outputs_of(policy, latent, [2, 0, 2]), strict=True):
            assert some.equal(every[:, [2, 0, 2]])

    @pytest.mark.parametrize("use_sde", [True, False])
    def test_of_heads_that_are_not_in_use(self, use_sde):
        policy = make_policy(ACTION_SPACES["box"], n_groups=1, max_groups=4, use_sde=use_sde, all_heads=True)
        outputs, log_std = outputs_of(policy, th.randn(5, 8), list(range(4)))
        assert outputs.shape == log_std.shape == (5, 4, 2)
        for each in (outputs, log_std):
            th.testing.assert_close(each, each[:, :1].expand(5, 4, 2))


class TestGradLogProb:
    latent = th.randn(len(GROUPS), 8, generator=th.Generator().manual_seed(2))

    def by_hand(self, policy, actions):
        """Outputs of the own heads, their standard deviations (Box only), and what the policy says."""
        randomize(policy)
        outputs, log_std = (
            None if each is None else each[th.arange(len(GROUPS)), GROUPS].detach()
            for each in head_outputs(policy, self.latent, list(range(N_HEADS)))
        )
        return outputs, None if log_std is None else log_std.exp(), grad_log_prob(policy, self.latent, GROUPS, actions)

    def test_discrete(self):
        actions = sample_actions(ACTION_SPACES["discrete"], len(GROUPS))
        outputs, _, gradient = self.by_hand(make_policy(ACTION_SPACES["discrete"]), actions)
        th.testing.assert_close(gradient, th.eye(4)[actions] - outputs.softmax(dim=1))

    def test_multi_discrete(self):
        actions = sample_actions(ACTION_SPACES["multi_discrete"], len(GROUPS)).long()
        outputs, _, gradient = self.by_hand(make_policy(ACTION_SPACES["multi_discrete"]), actions)
        parts = [
            th.eye(n)[a] - part.softmax(dim=1) for n, a, part in zip((2, 3), actions.T, outputs.split([2, 3], 1), strict=True)
        ]
        th.testing.assert_close(gradient, th.cat(parts, dim=1))

    def test_multi_binary(self):
        actions = sample_actions(ACTION_SPACES["multi_binary"], len(GROUPS))
        outputs, _, gradient = self.by_hand(make_policy(ACTION_SPACES["multi_binary"]), actions)
        th.testing.assert_close(gradient, actions - outputs.sigmoid())

    @pytest.mark.parametrize("kwargs", [dict(), dict(use_sde=True), dict(use_sde=True, full_std=False)], ids=str)
    def test_box_in_units_of_the_standard_deviation(self, kwargs):
        actions = sample_actions(ACTION_SPACES["box"], len(GROUPS))
        mean, std, gradient = self.by_hand(make_policy(ACTION_SPACES["box"], **kwargs), actions)
        th.testing.assert_close(gradient, (actions - mean) / std, atol=1e-5, rtol=1e-4)

    def test_squashed_actions_count_before_tanh(self):
        before = th.randn(len(GROUPS), 2, generator=th.Generator().manual_seed(3))
        mean, std, gradient = self.by_hand(make_policy(ACTION_SPACES["box"], use_sde=True, squash_output=True), before.tanh())
        th.testing.assert_close(gradient, (before - mean) / std, atol=1e-4, rtol=1e-3)

    def test_leaves_no_gradients_and_needs_no_graph(self, action_space):
        policy, actions = make_policy(action_space), sample_actions(action_space, len(GROUPS))
        with th.no_grad():
            gradient = grad_log_prob(policy, self.latent, GROUPS, actions)
        assert gradient.any()
        assert not gradient.requires_grad
        assert all(parameter.grad is None for parameter in policy.parameters())

    def test_of_one_group(self, action_space):
        policies = [make_policy(action_space, n_groups=1, max_groups=4), make_policy(action_space)]
        actions, heads = sample_actions(action_space, len(GROUPS)), th.zeros(len(GROUPS), dtype=th.long)
        th.testing.assert_close(*(grad_log_prob(policy, self.latent, heads, actions) for policy in policies))

    def test_does_not_depend_on_how_many_steps_are_computed_at_once(self, action_space, monkeypatch):
        policy, actions = make_policy(action_space), sample_actions(action_space, len(GROUPS))
        randomize(policy)
        expected = grad_log_prob(policy, self.latent, GROUPS, actions)
        monkeypatch.setattr(regrouping, "MAX_OUTPUTS", 3 * N_HEADS * policy.n_action_outputs)
        th.testing.assert_close(grad_log_prob(policy, self.latent, GROUPS, actions), expected)


VARIANTS = [
    *((name, dict()) for name in ACTION_SPACES),
    ("box", dict(use_sde=True)),
    ("box", dict(use_sde=True, squash_output=True)),
]


@pytest.mark.parametrize(("name", "kwargs"), VARIANTS, ids=str)
class TestOneGroup:
    """One head, several copies of it, and one of several: the same numbers."""

    def outputs(self, policy, obs, actions):
        _, values, _ = policy(obs, deterministic=True)
        return [
            *(each for each in policy.evaluate_actions(obs, actions) if each is not None),
            values,
            policy.predict_values(obs),
            policy.get_distribution(obs).log_prob(actions),
            th.as_tensor(policy.predict(obs.numpy(), deterministic=True)[0]),
        ]

    @pytest.mark.parametrize("group", range(N_HEADS))
    def test_as_if_chosen_from_all(self, name, kwargs, group):
        policy = make_policy(ACTION_SPACES[name], **kwargs)
        randomize(policy)
        data = make_obs(GROUPS), sample_actions(ACTION_SPACES[name], len(GROUPS))
        # all heads are held, and every cell has the same one
        policy.grouping.assign([group] * N_HEADS, range(N_HEADS))
        chosen = self.outputs(policy, *data)
        policy.adopt_groups([group] * N_HEADS)
        assert (policy.n_heads, policy.grouping.heads) == (1, [group])
        for one, other in zip(self.outputs(policy, *data), chosen, strict=True):
            th.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
        policy.hold_heads(True)
        assert policy.n_heads == N_HEADS
        for one, other in zip(self.outputs(policy, *data), chosen, strict=True):
            th.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("group", range(N_HEADS))
    def test_numbers_of_groups_stay(self, name, kwargs, group):
        policy = make_policy(ACTION_SPACES[name], **kwargs)
        policy.adopt_groups([group] * N_HEADS)
        assert policy.groups(make_obs(GROUPS)).tolist() == [group] * len(GROUPS)
        assert policy.grouping.heads_at(make_obs(GROUPS)).tolist() == [0] * len(GROUPS)


class TestLoadedStates:
    """What a state says of groups is taken over, and the number of heads with it."""

    def test_one_group_of_another_policy(self):
        one, many = make_policy(ACTION_SPACES["discrete"]), make_policy(ACTION_SPACES["discrete"])
        randomize(one)
        randomize(many)
        one.regroup(Merge(2, 0, 0.5, 0.0))
        obs = make_obs(GROUPS)
        state = {name: value.clone() for name, value in many.state_dict().items()}
        before = many.predict_values(obs)
        many.load_state_dict(one.state_dict())
        assert many.grouping.heads == [1, 2]
        assert many.groups(obs).equal(one.groups(obs))
        assert many.predict_values(obs).equal(one.predict_values(obs))
        many.load_state_dict(state)
        assert many.grouping.heads == [0, 1, 2]
        assert many.groups(obs).equal(GROUPS)
        assert many.predict_values(obs).equal(before)

    def test_one_head_serves_every_group(self):
        one, many = make_policy(ACTION_SPACES["discrete"], n_groups=1), make_policy(ACTION_SPACES["discrete"])
        randomize(one)
        many.load_state_dict(one.state_dict())
        assert many.groups(make_obs(GROUPS)).equal(GROUPS)
        th.testing.assert_close(many.predict_values(make_obs(GROUPS)), one.predict_values(make_obs(GROUPS)))

    def test_survive_saving(self, tmp_path):
        policy = make_policy(ACTION_SPACES["box"], use_sde=True)
        randomize(policy)
        for event in (Merge(1, 0, 0.5, 0.0), Merge(1, 2, 0.5, 0.0)):
            policy.regroup(event)
        policy.save(str(tmp_path / "policy.pth"))
        loaded = MlpPolicy.load(str(tmp_path / "policy.pth"))
        obs = make_obs(GROUPS)
        for one, other in zip(loaded(obs, deterministic=True)[:2], policy(obs, deterministic=True)[:2], strict=True):
            th.testing.assert_close(one, other)

    def test_cells_do_not_depend_on_groups(self):
        policy = make_policy(ACTION_SPACES["discrete"])
        policy.adopt_groups([1, 1, 1])
        assert policy.grouping.cells(make_obs(GROUPS)).equal(GROUPS)
        assert not make_policy(ACTION_SPACES["discrete"], n_groups=1).grouping.cells(make_obs(GROUPS)).any()


class TestForward:
    def test_agrees_with_evaluate_actions(self, action_space):
        policy = make_policy(action_space)
        randomize(policy)
        obs = make_obs(GROUPS)
        actions, values, log_prob = policy(obs)
        assert actions.shape == (len(GROUPS), *action_space.shape)
        evaluated = policy.evaluate_actions(obs, actions)
        th.testing.assert_close((values, log_prob), evaluated[:2])

    def test_agrees_with_get_distribution_and_predict_values(self, action_space):
        policy = make_policy(action_space)
        randomize(policy)
        obs = make_obs(GROUPS)
        actions, values, log_prob = policy(obs, deterministic=True)
        th.testing.assert_close(policy.predict_values(obs), values)
        distribution = policy.get_distribution(obs)
        th.testing.assert_close(distribution.log_prob(actions), log_prob)
        assert distribution.get_actions(deterministic=True).reshape(actions.shape).equal(actions)

    @pytest.mark.parametrize("squash_output", [True, False])
    def test_gsde(self, squash_output):
        policy = make_policy(spaces.Box(-2, 2, (2,)), use_sde=True, squash_output=squash_output)
        randomize(policy)
        obs = make_obs(GROUPS)
        actions, values, log_prob = policy(obs)
        evaluated = policy.evaluate_actions(obs, actions)
        th.testing.assert_close((values, log_prob), evaluated[:2], rtol=1e-3, atol=1e-3)
        assert bool((actions.abs() <= 1).all()) == squash_output


class TestPredict:
    def test_batch_and_single_observation_agree(self, action_space):
        policy = make_policy(action_space)
        randomize(policy)
        obs = make_obs(GROUPS).numpy()
        batch = policy.predict(obs, deterministic=True)[0]
        singles = [policy.predict(row, deterministic=True)[0] for row in obs]
        assert batch.shape == (len(GROUPS), *action_space.shape)
        np.testing.assert_allclose(np.stack(singles), batch, rtol=1e-5)
        assert all(action_space.contains(np.asarray(action, action_space.dtype)) for action in singles)

    def test_needs_the_observation_only_and_uses_its_head(self):
        policy = make_policy(ACTION_SPACES["discrete"])
        with th.no_grad():
            policy.action_net.weight.zero_()
            # head g prefers action g + 1
            policy.action_net.bias.copy_(th.eye(4)[1:].flatten())
        assert policy.predict(make_obs(GROUPS).numpy(), deterministic=True)[0].tolist() == (GROUPS + 1).tolist()


class TestHide:
    def logits(self, policy, obs):
        """Outputs of all heads, whichever is in charge."""
        outputs = []
        handle = policy.action_net.register_forward_hook(lambda module, args, output: outputs.append(output))
        policy.get_distribution(obs)
        handle.remove()
        return outputs[0]

    @pytest.mark.parametrize("hide", [True, False])
    def test_columns(self, hide):
        policy = make_policy(ACTION_SPACES["discrete"], router_kwargs=dict(columns=(2, 5), hide=hide))
        randomize(policy)
        obs, other = make_obs(GROUPS), make_obs((GROUPS + 1) % N_HEADS)
        assert obs[:, :2].equal(other[:, :2])
        assert self.logits(policy, obs).equal(self.logits(policy, other)) == hide
        assert policy.groups(obs).equal(GROUPS)

    @pytest.mark.parametrize("hide", [True, False])
    def test_key(self, hide):
        space = spaces.Dict({"obs": spaces.Box(-5, 5, (2,)), "task": spaces.Discrete(3)})
        policy = make_policy(
            ACTION_SPACES["discrete"], space, dict(key="task", hide=hide), MultiInputPolicy, router="discrete"
        )
        randomize(policy)
        obs, other = ({"obs": make_obs(GROUPS)[:, :2], "task": task} for task in (GROUPS, (GROUPS + 1) % 3))
        assert self.logits(policy, obs).equal(self.logits(policy, other)) == hide
        assert policy.groups(obs).equal(GROUPS)

    def test_hidden_columns_still_choose_the_head(self):
        policy = make_policy(ACTION_SPACES["discrete"], router_kwargs=dict(columns=(2, 5), hide=True))
        randomize(policy)
        values = policy.predict_values(make_obs(th.arange(3))[[0, 0, 0]].index_copy(1, th.arange(2, 5), th.eye(3)))
        assert len(values.unique()) == 3

    def test_observation_space_stays_that_of_the_environment(self):
        policy = make_policy(ACTION_SPACES["discrete"], router_kwargs=dict(columns=(2, 5), hide=True))
        assert policy.observation_space == OBS_SPACE
        assert policy.features_dim == 2


def task_of(obs):
    return obs[:, 2:].argmax(dim=1)


@pytest.mark.parametrize(
    ("router", "router_kwargs"),
    [("one_hot", dict(columns=(2, 5), hide=True)), ("random", dict(n_cells=6)), (task_of, dict(n_cells=3))],
)
def test_saved_policy_is_the_same_when_loaded(tmp_path, router, router_kwargs):
    policy = make_policy(ACTION_SPACES["discrete"], router=router, router_kwargs=router_kwargs, n_groups=2, max_groups=4)
    randomize(policy)
    obs = make_obs(GROUPS)
    policy.grouping.router.fit(obs, 0)
    policy.save(str(tmp_path / "policy.pth"))
    loaded = MlpPolicy.load(str(tmp_path / "policy.pth"))
    expected, actual = policy.state_dict(), loaded.state_dict()
    assert expected.keys() == actual.keys()
    assert all(expected[name].equal(actual[name]) for name in expected)
    assert loaded.predict_values(obs).equal(policy.predict_values(obs))
    assert loaded.groups(obs).equal(policy.groups(obs))
    assert (loaded.grouping.active, loaded.grouping.max_groups) == ([0, 1], 4)


class TestNonFiniteObservations:
    def test_are_named(self, action_space):
        policy = make_policy(action_space)
        obs = make_obs(GROUPS)
        obs[[3, 4], 0] = th.nan
        with pytest.raises(
            ValueError, match=r"observations must be finite, but 2 of 10 .*environments \[3, 4\], groups \[1, 2\]"
        ):
            policy(obs)

    def test_finite_ones_pass(self, action_space):
        assert make_policy(action_space)(make_obs(GROUPS))[1].isfinite().all()

    def test_are_named_by_predict(self, action_space):
        policy = make_policy(action_space)
        obs = make_obs(GROUPS)
        obs[3, 0] = th.nan
        with pytest.raises(ValueError, match=r"observations must be finite, but 1 of 10 .*environments \[3\]"):
            policy.predict(obs.numpy(), deterministic=True)


OUTSIDE: dict[str, tuple[spaces.Space[Any], np.ndarray, str]] = {
    "discrete": (spaces.Discrete(4), np.array([4]), r"observations must lie in Discrete\(4\), got 4"),
    "negative": (spaces.Discrete(4), np.array([-1]), r"observations must lie in Discrete\(4\), got -1"),
    "multi": (spaces.MultiDiscrete([2, 3]), np.array([[1, 3]]), r"observations must lie in MultiDiscrete.*, got 3"),
}


class TestObservationsOutsideOfTheirSpace:
    @pytest.mark.parametrize("n_groups", [1, 2])
    @pytest.mark.parametrize("name", OUTSIDE)
    def test_are_named(self, name, n_groups):
        space, obs, message = OUTSIDE[name]
        policy = MlpPolicy(space, spaces.Discrete(2), lambda _: 1e-3, n_groups=n_groups, max_groups=n_groups)
        for act in (policy.predict, lambda obs: policy(th.as_tensor(obs))):
            with pytest.raises(ValueError, match=message):
                act(obs)
        policy.predict(obs * 0)

    @pytest.mark.parametrize(
        "obs", [np.zeros(3, np.float32), {"obs": np.zeros(2, np.float32)}], ids=["vector", "without a key"]
    )
    def test_a_dict_needs_its_keys(self, obs):
        space = spaces.Dict({"obs": spaces.Box(-1, 1, (2,)), "task": spaces.Discrete(3)})
        policy = MultiInputPolicy(space, spaces.Discrete(2), lambda _: 1e-3, n_groups=1)
        with pytest.raises(ValueError, match=r"`observation` must be a dict with the keys \['obs', 'task'\]"):
            policy.predict(obs)
        policy.predict({"obs": np.zeros(2, np.float32), "task": np.array(1)})


@pytest.mark.parametrize("kwargs", [dict(), dict(use_sde=True)], ids=["", "gsde"])
def test_without_a_critic_actions_are_the_same_and_values_are_0(action_space, kwargs):
    if kwargs and not isinstance(action_space, spaces.Box):
        kwargs = dict(n_groups=1)
    one, other = make_policy(action_space, **kwargs), make_policy(action_space, use_critic=False, **kwargs)
    randomize(one)
    other.load_state_dict(one.state_dict())
    obs, zeros = make_obs(GROUPS), th.zeros(len(GROUPS), 1)
    results = []
    for policy in (one, other):
        th.manual_seed(3)
        if policy.use_sde:
            policy.reset_noise()
        results.append([policy(obs), policy(obs, deterministic=True)])
    for (actions, values, log_prob), (actions_2, values_2, log_prob_2) in zip(*results, strict=True):
        assert actions.equal(actions_2)
        assert log_prob.equal(log_prob_2)
        assert values.ne(0).all()
        assert values_2.equal(zeros)
    actions = sample_actions(action_space, len(GROUPS))
    expected, found = (policy.evaluate_actions(obs, actions) for policy in (one, other))
    assert (found[0].equal(zeros), found[1].equal(expected[1])) == (True, True)
    assert expected[2] is not None
    assert found[2].equal(expected[2])
    assert other.evaluate_rollout(obs, actions, other.grouping.heads_at(obs))[1].equal(expected[1])
    assert other.predict_values(obs).equal(zeros)
    assert other.last_latent_pi.equal(one.last_latent_pi)


@pytest.mark.parametrize("broken", ["observation", "weight"])
def test_without_a_critic_what_is_not_finite_is_named(broken):
    policy, obs = make_policy(spaces.Discrete(4), use_critic=False), make_obs(GROUPS)
    policy(obs)
    if broken == "observation":
        obs[3, 0] = np.nan
    else:
        policy.action_net.weight.data[2 * 4] = np.nan
    message = "observations must be finite" if broken == "observation" else r"finite observations \(groups \[2\]\)"
    for call in (policy, policy._predict):
        with pytest.raises(ValueError, match=message):
            call(obs)
