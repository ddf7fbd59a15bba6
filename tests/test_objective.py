"""The objective: PPO's loss in NumPy, and what weights do to its gradient."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_policies import make_scrambled_policy

from sb3_grpo import MlpPolicy
from sb3_grpo.buffers import Rollout
from sb3_grpo.estimators.relative import shares_of_loss
from sb3_grpo.objective import LossTerms, PPOObjective

N_CELLS = 4
SPACES: dict[str, tuple[spaces.Space[Any], dict[str, Any]]] = {
    "discrete": (spaces.Discrete(3), {}),
    "box": (spaces.Box(-1, 1, (2,)), {}),
    "multi_discrete": (spaces.MultiDiscrete([2, 3]), {}),
    "multi_binary": (spaces.MultiBinary(3), {}),
    "gsde": (spaces.Box(-1, 1, (2,)), dict(use_sde=True)),
}
CLIP_RANGE = 0.2


def make_policy(name: str = "discrete", **kwargs: Any) -> MlpPolicy:
    action_space, more = SPACES[name]
    return make_scrambled_policy(action_space, N_CELLS, n_groups=N_CELLS, net_arch=[8], **more, **kwargs)


def make_batch(policy: MlpPolicy, n: int = 40, moved: bool = True) -> Rollout:
    """
    Make steps in all groups.

    :param moved: whether the policy has moved since it took them, so that some ratios are clipped and some are not
    """
    generator = th.Generator().manual_seed(0)
    obs = th.cat([th.randn(n, 2, generator=generator), th.eye(N_CELLS)[th.arange(n) % N_CELLS]], dim=1)
    policy.action_space.seed(0)
    actions = th.as_tensor(np.stack([policy.action_space.sample() for _ in range(n)])).float().view(n, -1)
    values, log_prob, _ = evaluate(policy, obs, actions)
    old_log_prob = log_prob + (0.3 * th.randn(n, generator=generator) if moved else 0)
    old_values, returns = (values + size * th.randn(n, generator=generator) for size in (0.2, 1.0))
    advantages, weights = th.randn(n, generator=generator), 2 * th.rand(n, generator=generator)
    return Rollout(obs, actions, old_values, old_log_prob, advantages, returns, policy.grouping.heads_at(obs), weights)


def evaluate(policy: MlpPolicy, obs: Any, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
    with th.no_grad():
        is_discrete = isinstance(policy.action_space, spaces.Discrete)
        values, log_prob, entropy = policy.evaluate_actions(obs, actions.long().flatten() if is_discrete else actions)
    return values.flatten(), log_prob, entropy


def by_hand(
    policy: MlpPolicy, batch: Rollout, ent_coef: float, vf_coef: float, normalize: bool, clip_range_vf: float | None
) -> dict[str, float]:
    """PPO's loss, step by step in float64."""
    evaluated = evaluate(policy, batch.observations, batch.actions)
    values, log_prob, entropy = (None if each is None else each.double().numpy() for each in evaluated)
    old_values, old_log_prob, advantages, returns, weights = (
        tensor.double().numpy()
        for tensor in (batch.old_values, batch.old_log_prob, batch.advantages, batch.returns, batch.weights)
    )
    assert values is not None
    assert log_prob is not None
    if normalize:
        advantages = (advantages - advantages.mean()) / advantages.std(ddof=1)
    surrogates, errors = [], []
    for step, (ratio, advantage) in enumerate(zip(np.exp(log_prob - old_log_prob), advantages, strict=True)):
        clipped = min(max(ratio, 1 - CLIP_RANGE), 1 + CLIP_RANGE)
        surrogates.append(weights[step] * min(ratio * advantage, clipped * advantage))
        value = values[step]
        if clip_range_vf is not None:
            value = old_values[step] + min(max(value - old_values[step], -clip_range_vf), clip_range_vf)
        errors.append((returns[step] - value) ** 2)
    terms = dict(policy_gradient_loss=-np.mean(surrogates), value_loss=np.mean(errors))
    terms["entropy_loss"] = np.mean(log_prob) if entropy is None else -np.mean(entropy)
    bonus = weights * (-log_prob if entropy is None else entropy)
    terms["loss"] = terms["policy_gradient_loss"] - ent_coef * np.mean(bonus) + vf_coef * terms["value_loss"]
    return {name: float(value) for name, value in terms.items()}


def gradient(terms: LossTerms, policy: MlpPolicy) -> dict[str, th.Tensor]:
    parameters = dict(policy.named_parameters())
    found = th.autograd.grad(terms.loss, list(parameters.values()), materialize_grads=True)
    return dict(zip(parameters, found, strict=True))


class TestTerms:
    @pytest.mark.parametrize(("normalize", "clip_range_vf"), [(True, None), (False, 0.1), (True, 0.3)])
    @pytest.mark.parametrize(("ent_coef", "vf_coef"), [(0.0, 0.5), (0.02, 0.0), (-0.1, 2.0)])
    @pytest.mark.parametrize("name", list(SPACES))
    def test_are_those_of_ppo_with_weights(self, name, ent_coef, vf_coef, normalize, clip_range_vf):
        policy = make_policy(name)
        batch = make_batch(policy)
        terms = PPOObjective(ent_coef, vf_coef, normalize)(policy, batch, CLIP_RANGE, clip_range_vf)
        expected = by_hand(policy, batch, ent_coef, vf_coef, normalize, clip_range_vf)
        assert {name: getattr(terms, name).item() for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)
        log_ratio = evaluate(policy, batch.observations, batch.actions)[1] - batch.old_log_prob
        th.testing.assert_close(terms.log_ratio.detach(), log_ratio)

    def test_the_batch_is_hard_enough(self):
        """Control: ratios are clipped on both sides and on none, values too, and weights differ."""
        policy = make_policy()
        batch = make_batch(policy)
        values, log_prob, _ = evaluate(policy, batch.observations, batch.actions)
        ratio, change = (log_prob - batch.old_log_prob).exp(), values - batch.old_values
        for parts in (ratio < 0.8, ratio > 1.2, (ratio - 1).abs() < 0.2, change < -0.1, change > 0.1, change.abs() < 0.1):
            assert parts.sum() >= 3
        plain = by_hand(policy, batch._replace(weights=th.ones(40)), 0.0, 0.5, True, 0.1)
        assert plain["loss"] != pytest.approx(by_hand(policy, batch, 0.0, 0.5, True, 0.1)["loss"], rel=1e-2)

    def test_entropy_that_has_no_analytical_form_is_estimated(self):
        """With tanh the distribution of actions has none."""
        th.manual_seed(0)
        kwargs: dict[str, Any] = dict(router="one_hot", router_kwargs=dict(columns=(2, 6)), n_groups=4, use_sde=True)
        policy = MlpPolicy(
            spaces.Box(-1, 1, (6,)), spaces.Box(-1, 1, (2,)), lambda _: 1e-3, squash_output=True, net_arch=[8], **kwargs
        )
        batch = make_batch(policy)
        assert evaluate(policy, batch.observations, batch.actions)[2] is None
        terms = PPOObjective(0.1, 0.5, True)(policy, batch, CLIP_RANGE, None)
        expected = by_hand(policy, batch, 0.1, 0.5, True, None)
        assert {name: getattr(terms, name).item() for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)

    @pytest.mark.parametrize("term", ["surrogate", "entropy", "reference"])
    def test_group_of_weight_0_is_left_as_it_is(self, term):
        """Nothing that trains the policy moves its head; the groups of weight 1 are moved by each term."""
        policy = make_policy(use_critic=False)
        batch = make_batch(policy)
        weights = (batch.heads != 2).float()
        reference = batch.old_log_prob + 0.5 if term == "reference" else None
        batch = batch._replace(weights=weights, reference_log_prob=reference)
        batch = batch if term == "surrogate" else batch._replace(advantages=th.zeros(len(weights)))
        objective = PPOObjective(0.1 if term == "entropy" else 0.0, 0.0, False, kl_coef=0.3)
        moves = gradient(objective(policy, batch, CLIP_RANGE, None), policy)
        heads = moves["action_net.weight"].view(N_CELLS, -1)
        assert heads.any(dim=1).tolist() == [True, True, False, True]

    def test_one_step_is_not_normalised(self):
        """Its standard deviation does not exist; SB3 does the same."""
        policy = make_policy()
        batch = make_batch(policy, n=1)
        normalised, plain = (PPOObjective(0.0, 0.5, each)(policy, batch, CLIP_RANGE, None) for each in (True, False))
        assert normalised.loss.isfinite()
        assert normalised.loss == plain.loss

    def test_head_of_each_step_is_that_of_the_rollout(self):
        """Heads are not looked up again."""
        policy = make_policy()
        batch = make_batch(policy)
        other = batch._replace(heads=(batch.heads + 1) % N_CELLS)
        moved = make_policy()
        moved.take_heads([1, 2, 3, 0])
        objective = PPOObjective(0.01, 0.5, True)
        th.testing.assert_close(
            objective(policy, other, CLIP_RANGE, None).loss, objective(moved, batch, CLIP_RANGE, None).loss
        )
        assert objective(policy, other, CLIP_RANGE, None).loss != objective(policy, batch, CLIP_RANGE, None).loss


class TestGradient:
    @pytest.mark.parametrize("name", list(SPACES))
    def test_is_the_score_function_at_the_policy_that_collected(self, name):
        """-mean(w A grad log pi), without clipping."""
        policy = make_policy(name)
        batch = make_batch(policy, moved=False)
        found = gradient(PPOObjective(0.0, 0.0, False)(policy, batch, CLIP_RANGE, None), policy)
        actions = batch.actions.long().flatten() if name == "discrete" else batch.actions
        _, log_prob, _ = policy.evaluate_actions(batch.observations, actions)
        loss = -(batch.weights * batch.advantages * log_prob).mean()
        expected = gradient(LossTerms(loss, loss, loss, loss, log_prob, loss), policy)
        for parameter, value in expected.items():
            th.testing.assert_close(found[parameter], value, msg=parameter, rtol=1e-4, atol=1e-6)
        assert found["action_net.weight"].abs().max() > 1e-3

    def test_a_group_of_weight_zero_moves_no_action_head(self):
        policy = make_policy()
        batch = make_batch(policy)
        batch = batch._replace(weights=th.where(batch.heads == 2, 0.0, 1.0))
        found = gradient(PPOObjective(0.0, 0.5, True)(policy, batch, CLIP_RANGE, None), policy)
        moved = found["action_net.weight"].view(N_CELLS, -1).abs().sum(dim=1) > 0
        assert moved.tolist() == [True, True, False, True]
        # its values are learnt all the same
        assert found["value_net.bias"].ne(0).all()

    def test_without_value_loss_no_value_moves(self):
        policy = make_policy()
        found = gradient(PPOObjective(0.01, 0.0, True)(policy, make_batch(policy), CLIP_RANGE, None), policy)
        unmoved = {name for name, value in found.items() if not value.any()}
        assert unmoved == {name for name in found if "value_net" in name}

    @settings(deadline=None, max_examples=25, derandomize=True)
    @given(st.integers(0, 2**31))
    def test_is_the_sum_over_groups_of_weight_times_gradient(self, seed):
        """By linearity, whatever the weights: the loss of one group at a time, with the steps of all in the mean."""
        policy = make_policy()
        batch = make_batch(policy)
        factors = 3 * th.rand(N_CELLS, generator=th.Generator().manual_seed(seed))
        objective = PPOObjective(0.0, 0.0, True)

        def of(weights: th.Tensor) -> dict[str, th.Tensor]:
            return gradient(objective(policy, batch._replace(weights=weights), CLIP_RANGE, None), policy)

        found = of(factors[batch.heads])
        parts = [of((batch.heads == head).float()) for head in range(N_CELLS)]
        for name, value in found.items():
            expected = sum((factor * part[name] for factor, part in zip(factors, parts, strict=True)), th.zeros(()))
            th.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)


class TestSurrogate:
    def test_by_hand(self):
        found = PPOObjective(0.0, 0.5, True).surrogate(
            th.tensor([2.0, 2.0, 0.5, 1.0]), th.tensor([1.0, -1.0, 3.0, 4.0]), th.tensor([1.0, 0.5, 2.0, 0.0]), 0.2
        )
        th.testing.assert_close(found, th.tensor([1.2, -1.0, 3.0, 0.0]))

    def test_can_be_replaced_in_a_subclass(self):
        """As benchmarks of other objectives do."""

        class Unclipped(PPOObjective):
            def surrogate(self, ratio, advantages, weights, clip_range):
                return ratio * advantages * weights

        policy = make_policy()
        batch = make_batch(policy)
        terms = Unclipped(0.0, 0.5, False)(policy, batch, CLIP_RANGE, None)
        ratio = (evaluate(policy, batch.observations, batch.actions)[1] - batch.old_log_prob).exp()
        expected = -(ratio * batch.advantages * batch.weights).mean()
        th.testing.assert_close(terms.policy_gradient_loss.detach(), expected)


def test_settings_are_values():
    """Equal settings are equal objects, so that nothing is compiled again; they cannot change under a compiled function."""
    assert PPOObjective(0.1, 0.5, True) == PPOObjective(0.1, 0.5, True)
    assert PPOObjective(0.1, 0.5, True) != PPOObjective(0.1, 0.5, False)
    with pytest.raises(AttributeError):
        PPOObjective(0.1, 0.5, True).ent_coef = math.nan  # type: ignore[misc]  # what is tested


class TestWithoutCritic:
    @pytest.mark.parametrize("clip_range_vf", [None, 0.1])
    @pytest.mark.parametrize("ent_coef", [0.0, 0.02])
    @pytest.mark.parametrize("name", list(SPACES))
    def test_the_loss_is_that_of_the_actor(self, name, ent_coef, clip_range_vf):
        with_critic, policy = make_policy(name), make_policy(name, use_critic=False)
        policy.load_state_dict(with_critic.state_dict())
        batch = make_batch(with_critic)
        objective = PPOObjective(ent_coef, 0.5, True)
        expected = objective(with_critic, batch, CLIP_RANGE, clip_range_vf)
        terms = objective(policy, batch, CLIP_RANGE, clip_range_vf)
        assert terms.value_loss.item() == 0 < expected.value_loss.item()
        assert terms.policy_gradient_loss == expected.policy_gradient_loss
        assert terms.entropy_loss == expected.entropy_loss
        loss = by_hand(with_critic, batch, ent_coef, 0.0, True, None)["loss"]
        assert terms.loss.item() == pytest.approx(loss, rel=1e-4, abs=1e-5)
        # the actor's gradient does not depend on the critic, whose layers it shares with nobody here
        moves = gradient(expected, with_critic)
        for parameter, value in gradient(terms, policy).items():
            assert value.equal(moves[parameter])

    def test_returns_and_old_values_do_not_matter(self):
        policy = make_policy(use_critic=False)
        batch, objective = make_batch(policy), PPOObjective(0.01, 0.5, True)
        other = batch._replace(returns=batch.returns * th.inf, old_values=batch.old_values * th.nan)
        assert objective(policy, other, CLIP_RANGE, 0.1).loss == objective(policy, batch, CLIP_RANGE, 0.1).loss
        assert not objective(make_policy(), other, CLIP_RANGE, 0.1).loss.isfinite()


LENGTHS = np.array([7, 1, 12, 4, 16])  # of the trajectories of a batch
LARGEST = 20
# what a trajectory contributes to the loss, of its steps' losses
AGGREGATIONS: dict[str, Any] = {
    "trajectory": lambda losses: sum(losses) / len(losses) / len(LENGTHS),
    "step": lambda losses: sum(losses) / sum(LENGTHS),
    "constant": lambda losses: sum(losses) / LARGEST / len(LENGTHS),
}


def aggregated(losses: list[float], aggregation: str) -> float:
    """Mean of losses of steps, trajectory by trajectory."""
    total, begin = 0.0, 0
    for length in LENGTHS.tolist():
        total += AGGREGATIONS[aggregation](losses[begin : begin + length])
        begin += length
    return total


def critic_free_batch(policy: MlpPolicy, **kwargs: Any) -> Rollout:
    """Steps of whole trajectories, one after the other, with a reference policy."""
    batch = make_batch(policy, int(LENGTHS.sum()), **kwargs)
    log_prob = evaluate(policy, batch.observations, batch.actions)[1]
    noise = th.randn(len(log_prob), generator=th.Generator().manual_seed(1))
    return batch._replace(reference_log_prob=log_prob + 0.5 * noise)


def shares_of(aggregation: str) -> th.Tensor | None:
    shares = shares_of_loss(LENGTHS, aggregation, LARGEST)
    return None if shares is None else th.as_tensor(shares).float()


class TestAggregation:
    """Shares of steps in the loss, and the KL divergence from a reference policy, by plain loops."""

    @pytest.mark.parametrize("aggregation", list(AGGREGATIONS))
    @pytest.mark.parametrize("name", list(SPACES))
    def test_of_all_terms(self, name, aggregation):
        policy = make_policy(name, use_critic=False)
        batch = critic_free_batch(policy)._replace(shares=shares_of(aggregation))
        assert (batch.shares is None) == (aggregation == "step")
        terms = PPOObjective(0.1, 0.0, False, kl_coef=0.3)(policy, batch, CLIP_RANGE, None)
        _, log_prob, entropy = evaluate(policy, batch.observations, batch.actions)
        assert entropy is not None
        assert batch.reference_log_prob is not None
        surrogates, divergences = [], []
        for step, log_p in enumerate(log_prob.tolist()):
            ratio, advantage = math.exp(log_p - batch.old_log_prob[step].item()), batch.advantages[step].item()
            clipped = min(max(ratio, 0.8), 1.2)
            surrogates.append(-batch.weights[step].item() * min(ratio * advantage, clipped * advantage))
            difference = batch.reference_log_prob[step].item() - log_p
            divergences.append(math.exp(difference) - difference - 1)
        expected = dict(
            policy_gradient_loss=aggregated(surrogates, aggregation),
            entropy_loss=-aggregated(entropy.tolist(), aggregation),
            reference_kl=aggregated(divergences, aggregation),
        )
        found = {term: getattr(terms, term).item() for term in expected}
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
        weights = batch.weights.tolist()
        bonus, divergence = (
            aggregated([weight * value for weight, value in zip(weights, values, strict=True)], aggregation)
            for values in (entropy.tolist(), divergences)
        )
        loss = expected["policy_gradient_loss"] - 0.1 * bonus + 0.3 * divergence
        assert terms.loss.item() == pytest.approx(loss, rel=1e-4, abs=1e-5)
        assert terms.reference_kl > 0

    def test_differ_on_this_batch(self):
        """Control: otherwise the test above could not tell one from another."""
        policy = make_policy(use_critic=False)
        batch = critic_free_batch(policy)
        losses = set()
        for aggregation in AGGREGATIONS:
            shared = batch._replace(shares=shares_of(aggregation))
            losses.add(round(PPOObjective(0.0, 0.0, False)(policy, shared, CLIP_RANGE, None).loss.item(), 3))
        assert len(losses) == 3

    def test_clip_range_above_is_that_of_the_objective(self):
        policy = make_policy(use_critic=False)
        batch = critic_free_batch(policy)._replace(reference_log_prob=None)
        ratio = (evaluate(policy, batch.observations, batch.actions)[1] - batch.old_log_prob).exp()
        clipped = ratio.clamp(0.8, 1.4)
        advantages = batch.advantages * batch.weights
        expected = -th.min(ratio * advantages, clipped * advantages).mean()
        wide, same = (PPOObjective(0.0, 0.0, False, high)(policy, batch, CLIP_RANGE, None).loss for high in (0.4, None))
        th.testing.assert_close(wide.detach(), expected)
        assert wide != same


class TestReferenceKl:
    @pytest.mark.parametrize("name", list(SPACES))
    def test_gradient_is_that_of_the_estimator(self, name):
        """``(1 - q / p) grad log p``, of each step."""
        policy = make_policy(name, use_critic=False)
        batch = critic_free_batch(policy)._replace(advantages=th.zeros(40), shares=shares_of("trajectory"))
        found = gradient(PPOObjective(0.0, 0.0, False, kl_coef=0.3)(policy, batch, CLIP_RANGE, None), policy)
        actions = batch.actions.long().flatten() if name == "discrete" else batch.actions
        log_prob = policy.evaluate_actions(batch.observations, actions)[1]
        assert batch.reference_log_prob is not None
        assert batch.shares is not None
        slope = 1 - (batch.reference_log_prob - log_prob.detach()).exp()
        loss = 0.3 * (batch.shares * batch.weights * slope * log_prob).mean()
        for parameter, value in gradient(LossTerms(loss, loss, loss, loss, log_prob, loss), policy).items():
            th.testing.assert_close(found[parameter], value, msg=parameter, rtol=1e-4, atol=1e-6)
        assert any(value.any() for value in found.values())

    def test_value_and_gradient_in_a_large_batch(self):
        """The value is that of KL(policy || reference); with fixed actions the slope is that of KL(reference || policy)."""
        policy, n = make_policy(use_critic=False), 100_000
        reference = copy.deepcopy(policy)
        th.manual_seed(0)
        for parameter in reference.parameters():
            parameter.data += 0.2 * th.randn_like(parameter)
        batch = make_batch(policy, n, moved=False)
        with th.no_grad():
            actions = policy.get_distribution(batch.observations).sample()
            q: Any = reference.get_distribution(batch.observations).distribution
        zeros, log_q = th.zeros(n), q.log_prob(actions)
        batch = batch._replace(actions=actions.float().unsqueeze(1), advantages=zeros, reference_log_prob=log_q)
        terms = PPOObjective(0.0, 0.0, False, kl_coef=1.0)(policy, batch, CLIP_RANGE, None)
        found = th.cat([value.flatten() for value in gradient(terms, policy).values()])
        divergences, errors = [], []
        for is_forward in (True, False):
            p: Any = policy.get_distribution(batch.observations).distribution
            loss = th.distributions.kl_divergence(*((p, q) if is_forward else (q, p))).mean()
            divergences.append(loss.item())
            expected = gradient(LossTerms(loss, loss, loss, loss, zeros, loss), policy)
            value = th.cat([each.flatten() for each in expected.values()])
            errors.append(((found - value).norm() / value.norm()).item())
        assert terms.reference_kl.item() == pytest.approx(divergences[0], rel=0.02)
        assert terms.reference_kl.item() != pytest.approx(divergences[1], rel=0.05)
        assert errors[1] < 0.03
        assert errors[0] > 0.1

    def test_is_zero_and_moves_nothing_at_the_reference(self):
        policy = make_policy(use_critic=False)
        batch = make_batch(policy)
        log_prob = evaluate(policy, batch.observations, batch.actions)[1]
        here = batch._replace(reference_log_prob=log_prob, advantages=th.zeros(40))
        terms = PPOObjective(0.0, 0.0, False, kl_coef=5.0)(policy, here, CLIP_RANGE, None)
        assert terms.reference_kl.item() == pytest.approx(0, abs=1e-6)
        assert all(value.abs().max() < 1e-5 for value in gradient(terms, policy).values())

    def test_is_a_logged_term_where_there_is_a_reference(self):
        plain, with_reference = PPOObjective(0.0, 0.5, True), PPOObjective(0.0, 0.5, True, kl_coef=0.1)
        assert plain.logged_terms(use_critic=True) == ["policy_gradient_loss", "value_loss", "entropy_loss"]
        assert plain.logged_terms(use_critic=False) == ["policy_gradient_loss", "entropy_loss"]
        assert with_reference.logged_terms(use_critic=False) == ["policy_gradient_loss", "entropy_loss", "reference_kl"]


class TestRatiosOfTrajectories:
    @pytest.mark.parametrize("name", list(SPACES))
    def test_loss_and_gradient_are_those_of_gspo(self, name):
        """``-1/G sum_i min(s_i A_i, clip(s_i) A_i)`` with ``s_i = (pi(y_i) / pi_old(y_i)) ** (1 / |y_i|)``."""
        policy = make_policy(name, use_critic=False)
        numbers = th.as_tensor(np.repeat(np.arange(len(LENGTHS)), LENGTHS))
        outcomes = th.tensor([1.5, -1.0, -0.4, 2.0, 0.7])
        batch = make_batch(policy, 40)
        # the steps of a trajectory must agree, or no trajectory's mean would be clipped
        shift = th.tensor([0.6, -0.5, 0.5, 0.05, -0.6])[numbers]
        old_log_prob = evaluate(policy, batch.observations, batch.actions)[1] - shift + 0.1 * batch.advantages
        batch = batch._replace(old_log_prob=old_log_prob, advantages=outcomes[numbers], weights=th.ones(40))
        batch = batch._replace(shares=shares_of("trajectory"), trajectories=numbers)
        terms = PPOObjective(0.0, 0.0, False)(policy, batch, CLIP_RANGE, None)

        actions = batch.actions.long().flatten() if name == "discrete" else batch.actions
        log_prob = policy.evaluate_actions(batch.observations, actions)[1]
        parts = []
        for number, outcome in enumerate(outcomes):
            own = numbers == number
            ratio = (log_prob[own].sum().exp() / old_log_prob[own].sum().exp()) ** (1 / int(own.sum()))
            parts.append(th.min(ratio * outcome, ratio.clamp(0.8, 1.2) * outcome))
        loss = -sum(parts, th.zeros(())) / len(parts)
        th.testing.assert_close(terms.loss, loss, rtol=1e-4, atol=1e-5)
        found = gradient(terms, policy)
        for parameter, value in gradient(LossTerms(loss, loss, loss, loss, log_prob, loss), policy).items():
            th.testing.assert_close(found[parameter], value, msg=parameter, rtol=1e-3, atol=1e-5)
        # control: ratios of steps are others
        steps = PPOObjective(0.0, 0.0, False)(policy, batch._replace(trajectories=None), CLIP_RANGE, None)
        assert abs(steps.loss.item() - loss.item()) > 1e-3


@pytest.mark.parametrize("ent_coef", [0.0, 0.02])
def test_without_further_entries_the_loss_is_ppos_to_the_last_bit(ent_coef):
    policy = make_policy()
    batch = make_batch(policy)._replace(weights=th.ones(40))
    values, log_prob, entropy = policy.evaluate_actions(batch.observations, batch.actions.long().flatten())
    assert entropy is not None
    centred = batch.advantages - batch.advantages.mean()
    advantages = centred / (batch.advantages.std() + 1e-8)
    ratio = (log_prob - batch.old_log_prob).exp()
    policy_loss = -th.min(advantages * ratio, advantages * ratio.clamp(0.8, 1.2)).mean()
    value_loss = (batch.returns - values.flatten()).square().mean()
    expected = policy_loss + ent_coef * -entropy.mean() + 0.5 * value_loss
    # a coefficient alone adds nothing
    for kl_coef in (0.0, 0.3):
        terms = PPOObjective(ent_coef, 0.5, True, kl_coef=kl_coef)(policy, batch, CLIP_RANGE, None)
        assert terms.policy_gradient_loss.equal(policy_loss)
        assert terms.loss.equal(expected)
        assert terms.reference_kl == 0
    shares = PPOObjective(ent_coef, 0.5, True)(policy, batch._replace(shares=2 * th.rand(40)), CLIP_RANGE, None)
    assert not shares.loss.equal(expected)
