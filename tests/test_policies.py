"""Heads side by side are what separate heads would be, and the trunk sees only what it may."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch.distributions import Bernoulli, Categorical, Normal

from sb3_grpo import MlpPolicy, MultiInputPolicy

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
        **kwargs,
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
        policy.grouping.cell_to_group.copy_(th.tensor([2, 0, 0]))
        assert policy.groups(make_obs(GROUPS)).equal(th.tensor([2, 0, 0])[GROUPS])

    def test_cells_are_dealt_by_the_seed(self):
        obs_space = spaces.Box(0, 1, (12,))
        kwargs = dict(obs_space=obs_space, router_kwargs=dict(columns=(0, 12)), n_groups=3)
        one, same, other = (make_policy(ACTION_SPACES["discrete"], **kwargs, group_seed=seed) for seed in (1, 1, 2))
        assert one.cell_to_group.equal(same.cell_to_group)
        assert not one.cell_to_group.equal(other.cell_to_group)

    def test_spare_heads_are_not_used_at_the_start(self):
        policy = make_policy(ACTION_SPACES["discrete"], n_groups=2, max_groups=5)
        assert sorted(policy.grouping.cell_to_group.unique().tolist()) == [0, 1]
        assert policy.action_net.out_features == 5 * 4
        assert policy.value_net.out_features == 5

    def test_given_groups_are_as_good_as_looked_up(self, action_space):
        policy = make_policy(action_space)
        randomize(policy)
        obs, actions = make_obs(GROUPS), sample_actions(action_space, len(GROUPS))
        looked_up = policy.evaluate_actions(obs, actions)
        given, wrong = (policy.evaluate_rollout(obs, actions, groups) for groups in (GROUPS, (GROUPS + 1) % N_HEADS))
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
        assert (policy.n_groups, policy.max_groups) == expected
        assert policy.value_net.out_features == expected[1]
        assert len(policy.grouping.active) == expected[0]
        assert (regrouper.probes is None) == (expected[1] == 1)

    def test_random_numbers_are_drawn_as_with_one_head(self, action_space):
        states = []
        for kwargs in (dict(n_groups=1), dict(n_groups=1, max_groups=5), dict()):
            make_policy(action_space, use_sde=isinstance(action_space, spaces.Box), **kwargs)
            states.append(th.get_rng_state())
        assert states[0].equal(states[1])
        assert states[0].equal(states[2])


class TestHeadOutputs:
    def test_all_heads(self, action_space):
        policy = make_policy(action_space)
        randomize(policy)
        latent = th.randn(5, 8)
        outputs, log_std = policy.head_outputs(latent, th.arange(N_HEADS))
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
        outputs, log_std = policy.head_outputs(latent, th.arange(N_HEADS))
        for group in range(N_HEADS):
            weight, bias = head(policy.action_net, group)
            th.testing.assert_close(outputs[:, group], latent @ weight.T + bias)
            std = policy.log_std.chunk(N_HEADS, dim=1)[group].exp().expand(8, 2)
            th.testing.assert_close(log_std[:, group], (latent.square() @ std.square() + 1e-6).sqrt().log())

    @pytest.mark.parametrize("use_sde", [True, False])
    def test_of_heads_in_reserve_too(self, use_sde):
        policy = make_policy(ACTION_SPACES["box"], n_groups=1, max_groups=4, use_sde=use_sde)
        outputs, log_std = policy.head_outputs(th.randn(5, 8), th.arange(4))
        assert outputs.shape == log_std.shape == (5, 4, 2)
        for each in (outputs, log_std):
            th.testing.assert_close(each, each[:, :1].expand(5, 4, 2))


class TestScore:
    latent = th.randn(len(GROUPS), 8, generator=th.Generator().manual_seed(2))

    def by_hand(self, policy, actions):
        """Outputs of the own heads, their standard deviations (Box only), and what the policy says."""
        randomize(policy)
        outputs, log_std = (
            None if each is None else each[th.arange(len(GROUPS)), GROUPS].detach()
            for each in policy.head_outputs(self.latent, th.arange(N_HEADS))
        )
        return outputs, None if log_std is None else log_std.exp(), policy.score(self.latent, GROUPS, actions)

    def test_discrete(self):
        actions = sample_actions(ACTION_SPACES["discrete"], len(GROUPS))
        outputs, _, score = self.by_hand(make_policy(ACTION_SPACES["discrete"]), actions)
        th.testing.assert_close(score, th.eye(4)[actions] - outputs.softmax(dim=1))

    def test_multi_discrete(self):
        actions = sample_actions(ACTION_SPACES["multi_discrete"], len(GROUPS)).long()
        outputs, _, score = self.by_hand(make_policy(ACTION_SPACES["multi_discrete"]), actions)
        parts = [
            th.eye(n)[a] - part.softmax(dim=1) for n, a, part in zip((2, 3), actions.T, outputs.split([2, 3], 1), strict=True)
        ]
        th.testing.assert_close(score, th.cat(parts, dim=1))

    def test_multi_binary(self):
        actions = sample_actions(ACTION_SPACES["multi_binary"], len(GROUPS))
        outputs, _, score = self.by_hand(make_policy(ACTION_SPACES["multi_binary"]), actions)
        th.testing.assert_close(score, actions - outputs.sigmoid())

    @pytest.mark.parametrize("kwargs", [dict(), dict(use_sde=True), dict(use_sde=True, full_std=False)], ids=str)
    def test_box_in_units_of_the_standard_deviation(self, kwargs):
        actions = sample_actions(ACTION_SPACES["box"], len(GROUPS))
        mean, std, score = self.by_hand(make_policy(ACTION_SPACES["box"], **kwargs), actions)
        th.testing.assert_close(score, (actions - mean) / std, atol=1e-5, rtol=1e-4)

    def test_squashed_actions_count_before_tanh(self):
        before = th.randn(len(GROUPS), 2, generator=th.Generator().manual_seed(3))
        mean, std, score = self.by_hand(make_policy(ACTION_SPACES["box"], use_sde=True, squash_output=True), before.tanh())
        th.testing.assert_close(score, (before - mean) / std, atol=1e-4, rtol=1e-3)

    def test_leaves_no_gradients_and_needs_no_graph(self, action_space):
        policy, actions = make_policy(action_space), sample_actions(action_space, len(GROUPS))
        with th.no_grad():
            score = policy.score(self.latent, GROUPS, actions)
        assert score.any()
        assert not score.requires_grad
        assert all(parameter.grad is None for parameter in policy.parameters())

    def test_of_one_group_with_heads_in_reserve(self, action_space):
        policy, alone = make_policy(action_space, n_groups=1, max_groups=4), make_policy(action_space)
        actions, groups = sample_actions(action_space, len(GROUPS)), th.zeros(len(GROUPS), dtype=th.long)
        th.testing.assert_close(policy.score(self.latent, groups, actions), alone.score(self.latent, groups, actions))


VARIANTS = [
    *((name, dict()) for name in ACTION_SPACES),
    ("box", dict(use_sde=True)),
    ("box", dict(use_sde=True, squash_output=True)),
]


def give_all_cells_to(policy, group):
    policy.grouping.cell_to_group.fill_(group)
    policy.note_groups()


@pytest.mark.parametrize(("name", "kwargs"), VARIANTS, ids=str)
class TestOneGroupOfManyHeads:
    """While all cells belong to one group only its head is computed: the same numbers, at the cost of one head."""

    def make(self, name, kwargs):
        policy = make_policy(ACTION_SPACES[name], **kwargs)
        randomize(policy)
        return policy, make_obs(GROUPS), sample_actions(ACTION_SPACES[name], len(GROUPS))

    def outputs(self, policy, obs, actions):
        _, values, _ = policy(obs, deterministic=True)
        return [
            *(each for each in policy.evaluate_actions(obs, actions) if each is not None),
            values,
            policy.predict_values(obs),
            policy.get_distribution(obs).log_prob(actions),
            policy._predict(obs, deterministic=True),
        ]

    @pytest.mark.parametrize("group", range(N_HEADS))
    def test_as_if_chosen_from_all(self, name, kwargs, group):
        policy, *data = self.make(name, kwargs)
        give_all_cells_to(policy, group)
        assert policy.only_group == group
        alone = self.outputs(policy, *data)
        policy.exact_single_group = False
        policy.note_groups()
        assert policy.only_group is None
        for one, other in zip(alone, self.outputs(policy, *data), strict=True):
            th.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("group", range(N_HEADS))
    def test_trained_alone(self, name, kwargs, group):
        policy, *data = self.make(name, kwargs)
        shapes = {name: parameter.shape for name, parameter in policy.named_parameters()}
        give_all_cells_to(policy, group)
        before = self.outputs(policy, *data)
        with policy.trained_alone():
            assert policy.n_heads == 1
            assert len(policy.value_net.weight) == 1
            assert all(one.equal(other) for one, other in zip(before, self.outputs(policy, *data), strict=True))
        assert policy.n_heads == N_HEADS
        assert {name: parameter.shape for name, parameter in policy.named_parameters()} == shapes
        assert all(one.equal(other) for one, other in zip(before, self.outputs(policy, *data), strict=True))


class TestTrainedAlone:
    def test_with_several_groups_nothing_happens(self, action_space):
        policy = make_policy(action_space)
        parameters = list(policy.parameters())
        with policy.trained_alone():
            assert policy.n_heads == N_HEADS
            assert all(one is other for one, other in zip(policy.parameters(), parameters, strict=True))

    def test_after_an_exception_all_is_as_before(self):
        policy = make_policy(ACTION_SPACES["box"])
        parameters = list(policy.parameters())
        give_all_cells_to(policy, 1)
        with pytest.raises(KeyError, match="inside"), policy.trained_alone():
            raise KeyError("inside")
        assert policy.n_heads == N_HEADS
        assert all(one is other for one, other in zip(policy.parameters(), parameters, strict=True))


class TestOnlyGroup:
    def test_one_head_has_none(self):
        assert make_policy(ACTION_SPACES["discrete"], n_groups=1).only_group is None

    def test_heads_in_reserve(self):
        assert make_policy(ACTION_SPACES["discrete"], n_groups=1, max_groups=4).only_group == 0

    def test_follows_a_loaded_state(self):
        one, many = make_policy(ACTION_SPACES["discrete"]), make_policy(ACTION_SPACES["discrete"])
        give_all_cells_to(one, 2)
        state = {name: value.clone() for name, value in many.state_dict().items()}
        many.load_state_dict(one.state_dict())
        assert many.only_group == 2
        assert many.groups(make_obs(GROUPS)).tolist() == [2] * len(GROUPS)
        many.load_state_dict(state)
        assert many.only_group is None
        assert many.groups(make_obs(GROUPS)).equal(GROUPS)

    def test_survives_saving(self, tmp_path):
        policy = make_policy(ACTION_SPACES["box"], use_sde=True)
        randomize(policy)
        give_all_cells_to(policy, 1)
        policy.save(str(tmp_path / "policy.pth"))
        loaded = MlpPolicy.load(str(tmp_path / "policy.pth"))
        assert loaded.only_group == 1
        obs = make_obs(GROUPS)
        assert loaded._predict(obs, deterministic=True).equal(policy._predict(obs, deterministic=True))

    def test_cells_do_not_depend_on_groups(self):
        policy = make_policy(ACTION_SPACES["discrete"])
        give_all_cells_to(policy, 1)
        assert policy.cells(make_obs(GROUPS)).equal(GROUPS)
        assert not make_policy(ACTION_SPACES["discrete"], n_groups=1).cells(make_obs(GROUPS)).any()


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
    assert (loaded.n_groups, loaded.max_groups) == (2, 4)


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
