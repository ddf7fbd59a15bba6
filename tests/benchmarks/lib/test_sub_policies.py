"""Sub-policies of objectives: who learns from what."""

from typing import Any

import numpy as np
import pytest
import torch as th
from objectives.rewards import make_env

from benchmarks.lib.sub_policies import SubPolicies, SubPolicyGRPO
from sb3_grpo import GRPO
from sb3_grpo.buffers import Rollout

N_STEPS = 16


def make_models() -> tuple[GRPO, Any]:
    kwargs: dict[str, Any] = dict(n_steps=N_STEPS, batch_size=2 * N_STEPS, n_epochs=1, seed=0, device="cpu", vf_coef=0.0)
    kwargs |= dict(group_by="objectives", merge_kl=None, split_kl=None, policy_kwargs=dict(net_arch=[8]))
    return GRPO("MlpPolicy", make_env(), **kwargs), SubPolicyGRPO(SubPolicies, make_env(), **kwargs)


def test_they_begin_as_one() -> None:
    plain, model = make_models()
    observations = th.rand(7, 2)
    assert model.policy.action_net.weight.shape == (3, 1, 8)
    distributions: list[Any] = [each.policy.get_distribution(observations).distribution for each in (plain, model)]
    th.testing.assert_close(distributions[0].mean, distributions[1].mean)
    known = {id(parameter) for group in model.policy.optimizer.param_groups for parameter in group["params"]}
    assert {id(parameter) for parameter in model.policy.parameters()} == known


def gradients(model: GRPO, advantages: th.Tensor) -> dict[str, th.Tensor]:
    """Of the loss of a rollout by the policy itself."""
    random = th.Generator().manual_seed(0)
    observations, actions = th.rand(len(advantages), 2, generator=random), th.rand(len(advantages), 1, generator=random)
    with th.no_grad():
        values, log_prob, _ = model.policy.evaluate_rollout(observations, actions, th.zeros(len(advantages), dtype=th.long))
    ones, heads = th.ones(len(advantages)), th.zeros(len(advantages), dtype=th.long)
    batch = Rollout(observations, actions, values, log_prob, advantages, values, heads, ones)
    model.policy.zero_grad()
    model._make_objective()(model.policy, batch, 0.2, None).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.policy.named_parameters() if parameter.grad is not None}


def test_together_they_have_the_gradient_of_one() -> None:
    plain, model = make_models()
    advantages = th.as_tensor(np.random.default_rng(0).normal(size=(9, 3)), dtype=th.float32)
    expected, found = gradients(plain, advantages.sum(dim=1)), gradients(model, advantages)
    th.testing.assert_close(found["action_net.weight"].sum(dim=0), expected["action_net.weight"])
    th.testing.assert_close(found["action_net.bias"].sum(dim=0), expected["action_net.bias"])
    trunk = [name for name in expected if name.startswith("mlp_extractor.policy_net")]
    assert len(trunk) == 2
    for name in trunk:
        th.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize("objective", range(3))
def test_a_head_learns_from_its_objective_alone(objective: int) -> None:
    _, model = make_models()
    advantages = th.zeros(9, 3)
    advantages[:, objective] = th.as_tensor(np.random.default_rng(0).normal(size=9), dtype=th.float32)
    found = gradients(model, advantages)["action_net.weight"]
    assert [(head != 0).any().item() for head in found] == [place == objective for place in range(3)]


def test_training() -> None:
    _, model = make_models()
    before = model.policy.action_net.weight.clone()
    model.learn(4 * N_STEPS)
    moved = model.policy.action_net.weight - before
    assert (moved.abs().amax(dim=(1, 2)) > 1e-4).all()
    # they do not move together
    assert (moved[0] - moved[1]).abs().max() > 1e-4
