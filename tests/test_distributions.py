"""Action distributions are those of torch: divergences in closed form, samples from the same random numbers."""

import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal, kl_divergence

from sb3_grpo.distributions import (
    CategoricalActions,
    GroupStateDependentNoiseDistribution,
    HeadChoice,
    SB3Actions,
    make_action_distribution,
)

SIZES = [2, 4, 3]
ACTION_SPACES = {
    "discrete": spaces.Discrete(5),
    "box": spaces.Box(-1, 1, (3,)),
    "multi_discrete": spaces.MultiDiscrete(SIZES),
    "multi_binary": spaces.MultiBinary(4),
}
N_OUTPUTS = {"discrete": 5, "box": 3, "multi_discrete": sum(SIZES), "multi_binary": 4}
property_test = settings(deadline=None, max_examples=60, derandomize=True, database=None)


def torch_kl(kind, outputs, log_std, other, other_log_std):
    """The divergence in torch's own words, summed over independent dimensions."""

    def distributions(outputs, log_std) -> list[Distribution]:
        if kind == "box":
            return [Independent(Normal(outputs, log_std.exp()), 1)]
        if kind == "multi_binary":
            return [Independent(Bernoulli(logits=outputs), 1)]
        return [Categorical(logits=part) for part in outputs.split(SIZES if kind == "multi_discrete" else [5], dim=-1)]

    # torch itself does not broadcast Bernoulli variables
    outputs, other = th.broadcast_tensors(outputs, other)
    pairs = zip(distributions(outputs, log_std), distributions(other, other_log_std), strict=True)
    return th.stack([kl_divergence(p, q) for p, q in pairs]).sum(dim=0)


def random_params(kind, *shape, scale=1.5):
    """Outputs of a head and the logarithms of standard deviations, in double precision."""
    outputs = scale * th.randn(*shape, N_OUTPUTS[kind], dtype=th.float64)
    return outputs, th.randn_like(outputs) if kind == "box" else None


@pytest.fixture(params=list(ACTION_SPACES))
def kind(request):
    th.manual_seed(0)
    return request.param


class TestKl:
    @pytest.mark.parametrize(
        ("shape", "other_shape"), [((7,), (7,)), ((7, 4, 1), (7, 1, 4)), ((7, 1), (7, 4)), ((1,), (7,)), ((), ())], ids=str
    )
    def test_is_that_of_torch(self, kind, shape, other_shape):
        family = make_action_distribution(ACTION_SPACES[kind], use_sde=False)
        one, other = random_params(kind, *shape), random_params(kind, *other_shape)
        kl = family.kl(family.params(*one), family.params(*other))
        assert kl.shape == th.broadcast_shapes(shape, other_shape)
        th.testing.assert_close(kl, torch_kl(kind, *one, *other))
        assert (kl > 0).all()

    def test_is_not_symmetric(self, kind):
        family = make_action_distribution(ACTION_SPACES[kind], use_sde=False)
        one, other = (family.params(*random_params(kind, 7)) for _ in range(2))
        assert not th.allclose(family.kl(one, other), family.kl(other, one))

    def test_of_equal_distributions_is_zero(self, kind):
        family = make_action_distribution(ACTION_SPACES[kind], use_sde=False)
        params = family.params(*random_params(kind, 7, scale=10))
        assert not family.kl(params, params).any()

    def test_one_standard_deviation_for_all_steps(self):
        family = make_action_distribution(ACTION_SPACES["box"], use_sde=False)
        means, log_std = th.randn(2, 7, 3), th.randn(2, 3)
        kl = family.kl(*(family.params(mean, std) for mean, std in zip(means, log_std, strict=True)))
        th.testing.assert_close(kl, torch_kl("box", means[0], log_std[0], means[1], log_std[1]))

    def test_numbers(self):
        def kl(space, *arguments):
            family = make_action_distribution(space, use_sde=False)
            return family.kl(*(family.params(*each) for each in arguments)).item()

        # 3/4 log(3/4 / (1/2)) + 1/4 log(1/4 / (1/2))
        discrete = kl(spaces.Discrete(2), [th.tensor([3.0, 1.0]).log()], [th.zeros(2)])
        assert discrete == pytest.approx(0.1308120)
        binary = kl(spaces.MultiBinary(1), [th.tensor([3.0]).log(), None], [th.zeros(1), None])
        assert binary == pytest.approx(0.1308120, rel=1e-5)
        # (1/4 + 2^2 / 4 - 1 - log(1/4)) / 2
        gaussian = kl(ACTION_SPACES["box"], [th.zeros(1), th.zeros(1)], [th.full((1,), 2.0), th.tensor([2.0]).log()])
        assert gaussian == pytest.approx(0.8181472)

    @property_test
    @given(st.sampled_from(list(ACTION_SPACES)), st.integers(0, 2**31), st.floats(0.001, 30), st.floats(0.0, 30))
    def test_is_never_negative(self, kind, seed, scale, distance):
        generator = th.Generator().manual_seed(seed)
        family, n = make_action_distribution(ACTION_SPACES[kind], use_sde=False), N_OUTPUTS[kind]
        outputs, change = (th.randn(20, n, generator=generator) for _ in range(2))
        log_std, other_log_std = (th.randn(20, n, generator=generator) for _ in range(2))
        other = family.params(scale * outputs + distance * change, other_log_std)
        kl = family.kl(family.params(scale * outputs, log_std), other)
        assert kl.isfinite().all()
        # float32 knows an output to 7 digits
        assert kl.min() >= -1e-6 * (1 + scale + distance)


class TestGsde:
    def test_kl_is_that_of_the_marginal_distributions(self):
        th.manual_seed(0)
        distributions = []
        for _ in range(2):
            distribution = StateDependentNoiseDistribution(2)
            distribution.proba_distribution_net(latent_dim=8)
            distribution.proba_distribution(th.randn(7, 2), th.randn(8, 2), th.randn(7, 8))
            distributions.append(distribution)
        family = SB3Actions()
        expected = kl_divergence(distributions[0].distribution, distributions[1].distribution).sum(dim=1)
        th.testing.assert_close(family.kl(*(family.params(each) for each in distributions)), expected)
        assert (expected > 0).all()
        assert not family.kl(distributions[0], distributions[0]).any()

    def test_kl_of_heads(self):
        th.manual_seed(0)
        mean, log_std, latent = th.randn(6, 4), th.randn(8, 4), th.randn(6, 8)
        chosen = []
        for groups in (th.zeros(6, dtype=th.long), th.tensor([0, 1, 1, 0, 1, 1])):
            distribution = GroupStateDependentNoiseDistribution(n_heads=2, action_dim=2, latent_sde_dim=8)
            distribution.sample_weights(log_std)
            chosen.append(distribution.proba_distribution(mean, log_std, latent).choose(HeadChoice.of(groups, 2)))
        variances = [latent.square() @ log_std.exp().square()[:, columns] + 1e-6 for columns in (slice(0, 2), slice(2, 4))]
        first, second = (Normal(m, v.sqrt()) for m, v in zip((mean[:, :2], mean[:, 2:]), variances, strict=True))
        own = kl_divergence(first, second).sum(dim=1)
        expected = th.where(th.tensor([False, True, True, False, True, True]), own, th.zeros(6))
        th.testing.assert_close(SB3Actions().kl(*chosen), expected)


class TestHeadChoice:
    """Against picking by hand, step by step."""

    heads = th.tensor([2, 0, 0, 1, 2])

    def test_outputs(self):
        outputs = th.arange(5 * 6.0).reshape(5, 6)
        chosen = HeadChoice.of(self.heads, 3).outputs(outputs)
        assert chosen.tolist() == [[4, 5], [6, 7], [12, 13], [20, 21], [28, 29]]

    def test_parameters(self):
        chosen = HeadChoice.of(self.heads, 3).parameters(th.arange(6.0))
        assert chosen.tolist() == [[4, 5], [0, 1], [0, 1], [2, 3], [4, 5]]

    def test_one_head(self):
        outputs = th.randn(5, 3)
        choice = HeadChoice.of(th.zeros(5, dtype=th.long), 1)
        assert choice.outputs(outputs).equal(outputs)
        assert choice.parameters(outputs[0]).equal(outputs[0].expand(5, -1))

    @property_test
    @given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 4), st.integers(1, 12))
    def test_gradients_reach_the_chosen_head_only(self, seed, n_heads, n_outputs, n_steps):
        generator = th.Generator().manual_seed(seed)
        heads = th.randint(n_heads, (n_steps,), generator=generator)
        outputs = th.randn(n_steps, n_heads * n_outputs, generator=generator, requires_grad=True)
        HeadChoice.of(heads, n_heads).outputs(outputs).sum().backward()
        assert outputs.grad is not None
        reached = outputs.grad.view(n_steps, n_heads, n_outputs)
        expected = th.nn.functional.one_hot(heads, n_heads).float().unsqueeze(-1).expand_as(reached)
        assert reached.equal(expected)


class TestGsdeOfSeveralHeads:
    """As SB3's distribution of the step's own head."""

    heads = th.tensor([0, 2, 1, 2, 0])

    def own(self, head: int, full_std: bool) -> StateDependentNoiseDistribution:
        distribution = StateDependentNoiseDistribution(2, full_std=full_std)
        distribution.proba_distribution_net(latent_dim=4)
        width = 2 if full_std else 1
        distribution.sample_weights(self.log_std[:, head * width : (head + 1) * width])
        return distribution

    @pytest.mark.parametrize("full_std", [True, False])
    def test_each_step_is_that_of_its_head(self, full_std):
        th.manual_seed(0)
        width = 2 if full_std else 1
        self.log_std, mean, latent = 0.3 * th.randn(4, 3 * width), th.randn(5, 6), th.randn(5, 4)
        several = GroupStateDependentNoiseDistribution(3, 2, 4, full_std=full_std)
        several.sample_weights(self.log_std)
        several.proba_distribution(mean, self.log_std, latent).choose(HeadChoice.of(self.heads, 3))
        actions = th.randn(5, 2)
        for step, head in enumerate(self.heads.tolist()):
            one, row = self.own(head, full_std), slice(step, step + 1)
            columns = slice(2 * head, 2 * head + 2)
            one.proba_distribution(mean[row, columns], self.log_std[:, head * width : (head + 1) * width], latent[row])
            th.testing.assert_close(several.log_prob(actions)[row], one.log_prob(actions[row]))
            assert several.mode()[row].equal(one.mode())
            # the same noise matrix gives the same noise
            one.exploration_mat = several.exploration_mat[:, columns]
            th.testing.assert_close(several.sample()[row], one.sample())

    def test_like_has_another_number_of_heads_and_the_same_shape_of_each(self):
        one = StateDependentNoiseDistribution(2)
        one.proba_distribution_net(latent_dim=4)
        three = GroupStateDependentNoiseDistribution.like(one, 3)
        five = GroupStateDependentNoiseDistribution.like(three, 5)
        for made, n_heads in ((three, 3), (five, 5)):
            assert (made.n_heads, made.action_dim, made.latent_sde_dim) == (n_heads, 2 * n_heads, 4)
            assert made.get_std(th.zeros(4, 2 * n_heads)).shape == (4, 2 * n_heads)


class TestCategoricalSamples:
    @pytest.mark.parametrize("shape", [(1, 2), (64, 5), (1000, 18), (7, 1)], ids=str)
    @pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
    def test_are_those_of_multinomial(self, shape, scale):
        family = CategoricalActions()
        for seed in range(5):
            th.manual_seed(seed)
            params = family.params(scale * th.randn(*shape))
            th.manual_seed(seed)
            actions, after = family.sample(params), th.get_rng_state()
            th.manual_seed(seed)
            assert actions.equal(th.multinomial(params.softmax(dim=-1), 1).squeeze(1))
            assert th.get_rng_state().equal(after)

    def test_have_the_right_frequencies(self):
        th.manual_seed(0)
        probabilities = th.tensor([0.5, 0.3, 0.2, 0.0])
        params = CategoricalActions().params(probabilities.log().expand(20_000, 4))
        frequencies = CategoricalActions().sample(params).bincount(minlength=4) / 20_000
        # standard error of a frequency 1/2 in 20,000 draws: 0.0035
        th.testing.assert_close(frequencies, probabilities, atol=0.012, rtol=0)
        assert frequencies[3] == 0
