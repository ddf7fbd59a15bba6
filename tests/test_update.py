"""The update: operation by operation, on flat vectors, and compiled."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.torch_layers import FlattenExtractor
from tiny_estimators import RewardsToGo
from tiny_policies import make_scrambled_policy
from trained_tensors import assert_close

from sb3_grpo import GRPO
from sb3_grpo.buffers import Rollout
from sb3_grpo.diagnostics import explain_refused_step
from sb3_grpo.estimators import ESTIMATORS
from sb3_grpo.heads import HEAD_DIMS, split_heads
from sb3_grpo.objective import LossTerms, PPOObjective
from sb3_grpo.policies import GroupActorCriticPolicy
from sb3_grpo.regroup_plan import Merge, Split
from sb3_grpo.routing import NonFiniteError
from sb3_grpo.update import (
    CompiledUpdate,
    EagerUpdate,
    FlatStepper,
    FlatVectors,
    HookedStepper,
    OptimizerStepper,
    Stepper,
    UpdateStep,
    adam_step,
    check_plain_adam,
    has_hooks,
    is_plain_adam,
    make_eager_update,
    takes_plain_steps,
    trained_parameters,
)

OBJECTIVE = PPOObjective(ent_coef=0.0, vf_coef=0.5, normalize_advantage=True)

TINY: dict[str, Any] = {
    "n_steps": 32,
    "batch_size": 32,
    "n_epochs": 2,
    "seed": 0,
    "device": "cpu",
    "policy_kwargs": {"net_arch": [8]},
}


def make_model(env_id: str = "CartPole-v1", **kwargs: Any) -> GRPO:
    """Two groups: one is computed as PPO does it."""
    return GRPO("MlpPolicy", make_vec_env(env_id, 2, seed=0), **{**TINY, "n_groups": 2, **kwargs})


def seeded_image_env() -> FakeImageEnv:
    env = FakeImageEnv(screen_height=36, screen_width=36)
    env.observation_space.seed(0)  # its images are samples of the space
    return env


def falling(progress_remaining: float) -> float:
    return 0.2 * progress_remaining


def slowing(progress_remaining: float) -> float:
    return 0.001 * progress_remaining


def stepper_of(model: GRPO) -> Stepper:
    return make_eager_update(model.policy, OBJECTIVE, 0.5, None).stepper


def never_flat(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("sb3_grpo.update.takes_plain_steps", lambda policy: False)


# torch's own compiler uses torch.jit, and says so
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_compiled_equals_eager(
    env_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], compiled_calls: list[int]
) -> None:
    kwargs: dict[str, Any] = {"learning_rate": slowing, "clip_range": falling, "max_grad_norm": 0.1}
    kwargs.update(group_coef=0.02, ent_coef=0.01)
    start = make_model(env_id, **kwargs).policy.state_dict()
    # the generators are global: a model learns before the next one is made
    eager = make_model(env_id, **kwargs).learn(192)
    compiled = make_model(env_id, **kwargs, compile=True).learn(192)
    assert "compiles" in capsys.readouterr().out
    # the update, and acting from the second rollout on
    assert compiled_calls == [3 * 2 * 2, 2 * 32]
    assert not th.equal(eager.policy.state_dict()["value_net.weight"], start["value_net.weight"])
    assert_close(eager, compiled)

    # a learning rate that arrives with set_parameters and a saved model count as they do without compilation
    parameters: Any = copy.deepcopy(eager.get_parameters())
    for model in (eager, compiled):
        model.set_parameters(parameters)
        model.set_random_seed(1)
        model.learn(64)
    assert_close(eager, compiled)
    compiled.save(tmp_path / "model.zip")
    loaded = GRPO.load(tmp_path / "model.zip", env=compiled.get_env())
    assert loaded.compile
    for name, value in compiled.policy.state_dict().items():
        assert th.equal(loaded.policy.state_dict()[name], value)
    # a copy acts with its own network, whatever the original's has become
    obs = th.as_tensor(make_vec_env(env_id, 2, seed=0).reset())
    copied = copy.deepcopy(compiled.policy)
    before = copied(obs, deterministic=True)
    th.testing.assert_close(before, compiled.policy(obs, deterministic=True))
    for parameter in compiled.policy.parameters():
        parameter.data.add_(1.0)
    assert not th.allclose(compiled.policy(obs, deterministic=True)[1], before[1])
    th.testing.assert_close(copied(obs, deterministic=True), before, rtol=0, atol=0)


# SB3 says of the smaller minibatches that there are some
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_minibatches_of_each_size_have_a_graph(traced_calls: list[int]) -> None:
    eager, compiled = (make_model("Pendulum-v1", batch_size=40, compile=compile_).learn(192) for compile_ in (False, True))
    # of 40 and of 24 steps, in two epochs after each rollout; and acting from the second rollout on
    assert traced_calls == [3 * 2, 3 * 2, 2 * 32]
    assert_close(eager, compiled)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("optimizer_kwargs", [{}, {"betas": (0.8, 0.9), "foreach": False}])
def test_flat_equals_eager(env_id: str, optimizer_kwargs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    policy_kwargs = {**TINY["policy_kwargs"], "optimizer_kwargs": {"eps": 1e-5, **optimizer_kwargs}}
    kwargs: dict[str, Any] = {"learning_rate": slowing, "max_grad_norm": 0.1, "policy_kwargs": policy_kwargs}
    flat = make_model(env_id, **kwargs).learn(192)
    assert type(stepper_of(flat)) is FlatStepper
    never_flat(monkeypatch)
    eager = make_model(env_id, **kwargs).learn(192)
    assert type(stepper_of(eager)) is OptimizerStepper
    assert_close(flat, eager)
    # parameters own their memory again: nothing else lives there
    for parameter in flat.policy.parameters():
        assert parameter.untyped_storage().nbytes() == parameter.numel() * parameter.element_size()


@pytest.mark.parametrize(
    ("optimizer_class", "optimizer_kwargs", "plain"),
    [
        (th.optim.Adam, {}, True),
        (th.optim.Adam, {"fused": True}, True),
        (th.optim.Adam, {"amsgrad": True}, False),
        (th.optim.Adam, {"maximize": True}, False),
        (th.optim.AdamW, {}, False),
        (th.optim.SGD, {}, False),
    ],
)
def test_only_plain_adam_is_replaced(optimizer_class: Any, optimizer_kwargs: dict[str, Any], plain: bool) -> None:
    model = make_model(policy_kwargs={"optimizer_class": optimizer_class, "optimizer_kwargs": optimizer_kwargs})
    assert type(stepper_of(model)) is (FlatStepper if plain else OptimizerStepper)
    assert is_plain_adam(model.policy.optimizer) == plain
    before = copy.deepcopy(model.policy.state_dict())
    model.learn(64)
    assert not th.equal(model.policy.state_dict()["value_net.weight"], before["value_net.weight"])


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_compiled_equals_eager_for_images(compiler_calls: list[int]) -> None:
    models = []
    for compile_ in (False, True):
        env = make_vec_env(seeded_image_env, 2, seed=0)
        kwargs: dict[str, Any] = {**TINY, "n_groups": 2, "policy_kwargs": None, "n_steps": 16, "batch_size": 16}
        models.append(GRPO("CnnPolicy", env, **kwargs, compile=compile_).learn(64))
    assert compiler_calls == [2 * 2 * 2, 16]
    assert_close(*models)


@pytest.mark.parametrize("compile_", [False, True])
def test_refused_steps_change_nothing(compile_: bool) -> None:
    if compile_:
        # the same function, not compiled: the test is about its logic
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(th, "compile", lambda function, **_: function)
            check_refused_steps(True)
    else:
        check_refused_steps(False)


def check_refused_steps(compile_: bool) -> None:
    model = make_model(compile=compile_, target_kl=1e-12, n_epochs=5, learning_rate=0.1, n_groups=1, group_coef=0.0)
    model.learn(64)
    # the first minibatch has divergence 0, the second is beyond the limit: no step, and no further epoch
    assert model.logger.name_to_value["train/n_updates"] == 1
    assert [state["step"].item() for state in model.policy.optimizer.state.values()] == [1.0] * len(
        list(model.policy.parameters())
    )


def regrouped(monkeypatch: pytest.MonkeyPatch, kind: str) -> GRPO:
    """A model whose groups split twice and merge once between updates; every update is of the same kind."""
    # the same function, not compiled: the test is about its logic
    monkeypatch.setattr(th, "compile", lambda function, **_: function)
    if kind == "eager":
        never_flat(monkeypatch)
    model = make_model("Pendulum-v1", n_groups=2, max_groups=4, regroup_freq=1000, compile=kind == "compiled")
    # cells are dealt at random, but not all to one group
    first, second = (model.groups[group].cells for group in (0, 1))
    events = [Split(0, 2, first[1:], 1.0), Split(1, 3, second[:1], 1.0), Merge(0, 3, 0.25, 0.0), None]
    for event in events:
        model.learn(64, reset_num_timesteps=False)
        if event is not None:
            model.policy.regroup(event)
    return model


@pytest.mark.parametrize("kind", ["flat", "compiled"])
def test_regrouping_between_updates(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = regrouped(monkeypatch, kind)
    assert model.policy.grouping.active == [0, 1, 2]
    # compiled functions keep their shapes: there the head that was merged stays
    assert model.policy.n_heads == (4 if kind == "compiled" else 3)
    eager = regrouped(monkeypatch, "eager")
    assert type(stepper_of(eager)) is OptimizerStepper
    assert_close(eager, model)


def test_a_head_that_has_been_merged_is_gone_or_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("flat", "eager"):
        with monkeypatch.context() as patch:
            policy = regrouped(patch, kind).policy
            assert (policy.grouping.heads, policy.n_heads) == ([0, 1, 2], 3)
            assert policy.value_net.weight.shape == (3, 8)
    model = regrouped(monkeypatch, "compiled")
    assert model.policy.grouping.heads == [0, 1, 2, 3]
    before = split_heads(model.policy.state_dict()["action_net.weight"].clone(), 0, 4)
    assert before.abs().amin(dim=(1, 2)).gt(0).all()
    model.learn(64, reset_num_timesteps=False)
    after = split_heads(model.policy.state_dict()["action_net.weight"], 0, 4)
    assert [th.equal(before[head], after[head]) for head in range(4)] == [False, False, False, True]


def test_one_group_left_is_trained_as_ppo_trains() -> None:
    """Its head, and the moments of its head, in the shapes and with the arithmetic of PPO."""
    model = make_model("Pendulum-v1", n_groups=2, max_groups=2, regroup_freq=1000).learn(64)
    assert type(stepper_of(model)) is FlatStepper
    heads = {name: split_heads(model.policy.get_parameter(name).detach(), dim, 2)[1] for name, dim in HEAD_DIMS.items()}
    model.policy.regroup(Merge(1, 0, 1.0, 0.0))
    assert model.policy.grouping.heads == [1]
    assert type(stepper_of(model)) is OptimizerStepper
    for name, dim in HEAD_DIMS.items():
        assert split_heads(model.policy.get_parameter(name).detach(), dim, 1)[0].equal(heads[name]), name
    ppo = PPO("MlpPolicy", make_vec_env("Pendulum-v1", 2, seed=0), **TINY)
    parameters: Any = copy.deepcopy(model.get_parameters())
    ppo.set_parameters(parameters)
    model.set_env(make_vec_env("Pendulum-v1", 2, seed=0))
    for each in (model, ppo):
        each.set_random_seed(5)
        each.learn(128)
    for name, value in ppo.policy.state_dict().items():
        assert value.equal(model.policy.state_dict()[name]), name
        assert name not in HEAD_DIMS or not value.flatten().equal(heads[name].flatten())


def test_parameters_that_have_been_loaded_are_those_that_are_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model with fewer heads replaces parameters that a compiled update has been made for."""
    # the same function, not compiled: the test is about its logic
    monkeypatch.setattr(th, "compile", lambda function, **_: function)
    start: Any = copy.deepcopy(make_model(seed=1).get_parameters())
    models: list[Any] = []
    for compile_ in (False, True):
        model: Any = make_model(compile=compile_).learn(64)
        model.set_parameters(start)
        model.set_random_seed(1)
        models.append(model.learn(64))
    assert_close(*models)
    trained = models[1].policy.get_parameter("action_net.weight").detach()
    assert not split_heads(trained, 0, models[1].policy.n_heads)[:2].flatten(0, 1).equal(start["policy"]["action_net.weight"])


def test_without_compiler_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    functions = []

    def no_compiler(function: Any, **_: Any) -> Any:
        functions.append(function)

        def fail(*_: Any) -> None:
            raise RuntimeError("no C++ compiler found")

        return fail

    monkeypatch.setattr(th, "compile", no_compiler)
    compiled = make_model(compile=True)
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler found"):
        compiled.learn(128)
    eager = make_model().learn(128)
    assert_close(eager, compiled)
    # acting is not tried after the update has failed, and what was to be compiled is slow as it is
    assert len(functions) == 1
    assert type(compiled._make_update()) is EagerUpdate


def test_torch_checks_what_it_has_compiled_once_per_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not at every minibatch and step, which takes as long as a small network."""
    calls: list[int] = []
    compile_ = th.compile

    def counted(function: Any, **kwargs: Any) -> Any:
        made, place = compile_(function, **kwargs), len(calls)
        calls.append(0)

        def call(*arguments: Any) -> Any:
            calls[place] += 1
            return made(*arguments)

        return call

    monkeypatch.setattr(th, "compile", counted)
    # the graph as torch has traced it: the test is not about the code that is made of it
    monkeypatch.setattr("torch._inductor.compile", lambda module, examples, options: module.forward)
    make_model(compile=True).learn(192)
    # three updates, and acting in the second and third rollout
    assert calls == [3, 2]


def test_a_router_function_is_not_compiled(traced_calls: list[int]) -> None:
    """It may use what torch's compiler does not understand; everything else of acting is compiled."""

    def upright(obs: th.Tensor) -> Any:
        return np.array([int(abs(row[2]) < 0.02) for row in obs.numpy().tolist()])

    kwargs: dict[str, Any] = dict(router=upright, router_kwargs=dict(n_cells=2), merge_kl=None, split_kl=None)
    eager, compiled = (make_model(**kwargs, compile=compile_).learn(128) for compile_ in (False, True))
    assert traced_calls == [2 * 2 * 2, 32]
    assert_close(eager, compiled)


def test_compile_needs_adam() -> None:
    policy_kwargs = {"optimizer_class": th.optim.SGD}
    with pytest.raises(ValueError, match=r"`compile=True` needs torch.optim.Adam .* got SGD"):
        make_model(compile=True, policy_kwargs=policy_kwargs)
    make_model(policy_kwargs=policy_kwargs).learn(64)
    with pytest.raises(ValueError, match="amsgrad"):
        make_model(compile=True, policy_kwargs={"optimizer_kwargs": {"amsgrad": True}})


@pytest.mark.parametrize("compile_", [False, True])
def test_frozen_parameters_stay(compile_: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(th, "compile", lambda function, **_: function)
    model = make_model(compile=compile_)
    model.policy.mlp_extractor.requires_grad_(False)
    before = copy.deepcopy(model.policy.state_dict())
    model.learn(64)
    for name, value in model.policy.state_dict().items():
        if "mlp_extractor" in name:
            assert th.equal(value, before[name])
    assert not th.equal(model.policy.state_dict()["action_net.weight"], before["action_net.weight"])


def test_frozen_parameters_as_with_ppo() -> None:
    states = []
    for one_group in (False, True):
        env = make_vec_env("CartPole-v1", 2, seed=0)
        model = GRPO("MlpPolicy", env, **TINY, n_groups=1, group_coef=0) if one_group else PPO("MlpPolicy", env, **TINY)
        model.policy.mlp_extractor.requires_grad_(False)
        states.append(model.learn(192).policy.state_dict())
    ppo, grpo = states
    assert all(th.equal(value, grpo[name]) for name, value in ppo.items())


def test_parameters_frozen_after_a_while_as_with_ppo() -> None:
    """Their last gradient is still there."""
    states = []
    for one_group in (False, True):
        env = make_vec_env("CartPole-v1", 2, seed=0)
        model = GRPO("MlpPolicy", env, **TINY, n_groups=1, group_coef=0) if one_group else PPO("MlpPolicy", env, **TINY)
        model.learn(64)
        model.policy.mlp_extractor.requires_grad_(False)
        states.append(model.learn(128).policy.state_dict())
    ppo, grpo = states
    assert all(th.equal(value, grpo[name]) for name, value in ppo.items())


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_step_is_torchs(weight_decay: float) -> None:
    settings: dict[str, Any] = dict(betas=(0.8, 0.95), eps=1e-5, weight_decay=weight_decay)
    generator = th.Generator().manual_seed(0)
    parameter = th.nn.Parameter(th.randn(7, generator=generator))
    optimizer = th.optim.Adam([parameter], lr=0.1, **settings)
    vectors: tuple[th.Tensor, ...] = (parameter.detach().clone(), th.zeros(7), th.zeros(7), th.zeros(()))
    for learning_rate in (0.1, 0.05, 0.0, 0.2):
        parameter.grad = th.randn(7, generator=generator)
        optimizer.param_groups[0]["lr"] = learning_rate
        vectors = adam_step(vectors, parameter.grad, th.tensor(learning_rate), settings)
        optimizer.step()
        th.testing.assert_close(vectors[0], parameter.detach(), rtol=1e-5, atol=1e-6)
    state = optimizer.state[parameter]
    for vector, name in zip(vectors[1:], ("exp_avg", "exp_avg_sq", "step"), strict=True):
        th.testing.assert_close(vector, state[name], rtol=1e-5, atol=1e-6)


def test_a_model_that_cannot_be_compiled_does_not_keep_others_from_it(traced_calls: list[int]) -> None:
    class Branching(FlattenExtractor):
        def forward(self, observations: th.Tensor) -> th.Tensor:
            # depends on data, which no compiled function may
            return super().forward(observations if float(observations.sum()) < 1e9 else -observations)

    with pytest.warns(UserWarning, match="`compile=True` does not work here") as caught:
        make_model(compile=True, policy_kwargs=dict(features_extractor_class=Branching)).learn(64)
    assert all(len(str(warning.message)) < 400 for warning in caught)
    assert traced_calls == []
    make_model(compile=True).learn(64)
    assert traced_calls == [2 * 2]


def test_rollout_buffer_class_is_checked() -> None:
    with pytest.raises(ValueError, match=r"`rollout_buffer_class` must be a subclass of GroupRolloutBuffer.*RolloutBuffer"):
        make_model(rollout_buffer_class=RolloutBuffer)


def test_compiled_update_keeps_what_the_optimizer_knew() -> None:
    model = make_model().learn(64)
    before = copy.deepcopy(model.policy.optimizer.state_dict())
    with CompiledUpdate(model.policy, OBJECTIVE, 0.5, None):
        pass
    after = model.policy.optimizer.state_dict()
    for index, state in before["state"].items():
        assert all(th.equal(value, after["state"][index][name]) for name, value in state.items())


def test_hooks_on_layers_are_called() -> None:
    calls = []
    model = make_model()
    model.policy.action_net.register_forward_hook(lambda *_: calls.append(1))
    model.predict(gym.make("CartPole-v1").reset(seed=0)[0])
    assert calls


N_CELLS = 4


def make_policy(**kwargs: Any) -> GroupActorCriticPolicy:
    return make_scrambled_policy(spaces.Discrete(3), N_CELLS, n_groups=N_CELLS, net_arch=[8], **kwargs)


def make_batch(policy: GroupActorCriticPolicy, n: int = 24) -> Rollout:
    """Steps of the policy itself, in all groups."""
    generator = th.Generator().manual_seed(0)
    cells = th.arange(n) % N_CELLS
    obs = th.cat([th.randn(n, 2, generator=generator), th.eye(N_CELLS)[cells]], dim=1)
    actions = th.randint(3, (n, 1), generator=generator).float()
    with th.no_grad():
        values, log_prob, _ = policy.evaluate_actions(obs, actions.flatten())
    advantages, noise = th.randn(2, n, generator=generator)
    heads, weights = policy.grouping.heads_at(obs), th.linspace(0.5, 1.5, n)
    return Rollout(obs, actions, values.flatten(), log_prob, advantages, values.flatten() + noise, heads, weights)


def by_hand(policy: GroupActorCriticPolicy, batch: Rollout, max_grad_norm: float) -> float:
    """
    Take a step as PPO.train does it.

    :return: norm of the gradient before it was clipped
    """
    policy.optimizer.zero_grad()
    OBJECTIVE(policy, batch, 0.2, None).loss.backward()
    norm = th.nn.utils.clip_grad_norm_(policy.parameters(), max_grad_norm)
    policy.optimizer.step()
    return norm.item()


STEPPERS: dict[str, Callable[[GroupActorCriticPolicy, float], Stepper]] = {
    "optimizer": OptimizerStepper,
    "hooked": HookedStepper,
    "flat": FlatStepper,
}


class TestSteppers:
    @pytest.mark.parametrize("max_grad_norm", [0.01, 1e6])
    @pytest.mark.parametrize("kind", list(STEPPERS))
    def test_take_the_step_of_ppo(self, kind: str, max_grad_norm: float) -> None:
        policy, expected = make_policy(), make_policy()
        batch = make_batch(policy)
        update = EagerUpdate(policy, OBJECTIVE, STEPPERS[kind](policy, max_grad_norm), None)
        with update:
            steps = [update(batch, 0.2, None) for _ in range(3)]
        norms = [by_hand(expected, batch, max_grad_norm) for _ in range(3)]
        assert [float(step.gradient_norm) for step in steps] == pytest.approx(norms, rel=1e-5)
        # clipped in one case, not in the other
        assert 0.01 < min(norms) < max(norms) < 1e6
        for (name, one), other in zip(policy.named_parameters(), expected.parameters(), strict=True):
            th.testing.assert_close(one, other, msg=name, rtol=1e-5, atol=1e-6)
            assert one.grad is not None
            th.testing.assert_close(one.grad, other.grad, msg=name, rtol=1e-4, atol=1e-6)
            state = policy.optimizer.state[one]
            for key, value in expected.optimizer.state[other].items():
                th.testing.assert_close(state[key], value, msg=name, rtol=1e-4, atol=1e-6)
        assert all(step.accepted for step in steps)

    @pytest.mark.parametrize("kind", list(STEPPERS))
    def test_clip_the_gradient(self, kind: str) -> None:
        policy = make_policy()
        stepper = STEPPERS[kind](policy, 0.01)
        with stepper:
            norm = stepper.clip_gradient(sum((p.square().sum() for p in policy.parameters()), th.zeros(())))
        # the gradient of the square is twice the parameter
        expected = 2 * th.cat([parameter.flatten() for parameter in policy.parameters()]).norm().item()
        assert norm.item() == pytest.approx(expected, rel=1e-5)
        for parameter in policy.parameters():
            assert parameter.grad is not None
            th.testing.assert_close(parameter.grad, 0.01 / expected * 2 * parameter.detach(), rtol=1e-3, atol=1e-8)

    def test_parameters_without_gradient_are_left_alone_by_the_optimizer(self) -> None:
        """As with PPO: Adam does not move what has no gradient, whatever its moments are."""
        policy = make_policy()
        before = policy.value_net.weight.detach().clone()
        stepper = OptimizerStepper(policy, 0.5)
        with stepper:
            stepper.clip_gradient(policy.get_parameter("action_net.weight").square().sum())
            stepper.step()
        assert policy.value_net.weight.equal(before)
        assert policy.value_net.weight.grad is None

    def test_gradients_of_another_size_are_refused(self) -> None:
        vectors = FlatVectors(make_policy(), 0.5)
        with vectors, pytest.raises(RuntimeError, match=r"3 gradients for \d+ parameters"):
            vectors.clip([th.zeros(3)])

    def test_flat_vectors_end_as_they_began_without_a_step(self) -> None:
        policy = make_policy()
        before = copy.deepcopy((policy.state_dict(), policy.optimizer.state_dict()["state"]))
        vectors = FlatVectors(policy, 0.5)
        with vectors:
            # what changes the vector changes the policy
            vectors.flat += 1
            assert policy.get_parameter("value_net.bias").allclose(before[0]["value_net.bias"] + 1)
            vectors.flat -= 1
            assert vectors.flat.numel() == sum(parameter.numel() for parameter in policy.parameters())
        for name, value in policy.state_dict().items():
            th.testing.assert_close(value, before[0][name], atol=1e-6, rtol=0)
        for index, state in policy.optimizer.state_dict()["state"].items():
            assert all(value.equal(before[1][index][name]) for name, value in state.items())

    def test_are_of_the_parameters_that_the_policy_has(self) -> None:
        policy = make_policy()
        vectors = FlatVectors(policy, 0.5)
        assert vectors.is_of(policy)
        assert not vectors.is_of(make_policy())
        policy.take_heads([0, 2, 1, 3])
        assert vectors.is_of(policy)
        policy.take_heads([0, 1])
        assert not vectors.is_of(policy)


class TestChoice:
    """Which stepper does what the optimizer would do."""

    def kind(self, policy: GroupActorCriticPolicy) -> type:
        return type(make_eager_update(policy, OBJECTIVE, 0.5, None).stepper)

    def test_several_heads(self) -> None:
        assert self.kind(make_policy()) is FlatStepper

    def test_one_head_is_computed_as_ppo_does(self) -> None:
        policy = make_policy()
        policy.take_heads([0])
        assert self.kind(policy) is OptimizerStepper

    @pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
    def test_hooks_on_parameters(self, kind: str) -> None:
        policy, calls = make_policy(), []
        assert not has_hooks(policy)
        getattr(policy.action_net.weight, kind)(lambda tensor: calls.append(tensor.shape))
        assert has_hooks(policy)
        assert self.kind(policy) is HookedStepper
        update = make_eager_update(policy, OBJECTIVE, 0.5, None)
        with update:
            update(make_batch(policy), 0.2, None)
        assert calls == [(3 * N_CELLS, 8)]

    @pytest.mark.parametrize(
        ("kwargs", "plain", "flat"),
        [
            (dict(), True, True),
            (dict(optimizer_kwargs=dict(betas=(0.5, 0.9))), True, True),
            # the compiled step has weight decay, the flat one has not
            (dict(optimizer_kwargs=dict(weight_decay=0.1)), True, False),
            (dict(optimizer_kwargs=dict(amsgrad=True)), False, False),
            (dict(optimizer_class=th.optim.AdamW), False, False),
            (dict(optimizer_class=th.optim.SGD), False, False),
        ],
    )
    def test_optimizers(self, kwargs: dict[str, Any], plain: bool, flat: bool) -> None:
        policy = make_policy(**kwargs)
        assert is_plain_adam(policy.optimizer) == plain
        assert takes_plain_steps(policy) == flat
        assert self.kind(policy) is (FlatStepper if flat else OptimizerStepper)
        if plain:
            check_plain_adam(policy.optimizer)
        else:
            with pytest.raises(ValueError, match=f"got {type(policy.optimizer).__name__} with"):
                check_plain_adam(policy.optimizer)

    def test_several_parameter_groups(self) -> None:
        policy = make_policy()
        first, *others = policy.parameters()
        groups: list[dict[str, Any]] = [dict(params=[first], lr=0.1), dict(params=others)]
        policy.optimizer = th.optim.Adam(groups)
        assert not is_plain_adam(policy.optimizer)

    def test_a_layer_that_was_frozen_for_a_while(self) -> None:
        """It has taken fewer steps than the others, and Adam corrects its moments otherwise."""
        policy = make_policy()
        assert takes_plain_steps(policy)
        policy.optimizer.state[policy.value_net.weight]["step"] += 1
        assert not takes_plain_steps(policy)

    def test_hooks_on_steps(self) -> None:
        policy = make_policy()
        handle = policy.optimizer.register_step_pre_hook(lambda *_: None)
        assert not takes_plain_steps(policy)
        handle.remove()
        assert takes_plain_steps(policy)

    def test_trained_parameters_are_those_of_the_optimizer_that_need_gradients(self) -> None:
        policy = make_policy()
        assert list(trained_parameters(policy)) == [name for name, _ in policy.named_parameters()]
        policy.action_net.bias.requires_grad_(False)
        (group,) = policy.optimizer.param_groups
        group["params"] = [parameter for parameter in group["params"] if parameter is not policy.value_net.bias]
        missing = {name for name, _ in policy.named_parameters()} - trained_parameters(policy).keys()
        assert missing == {"action_net.bias", "value_net.bias"}


def terms(loss: float, *log_ratio: float) -> LossTerms:
    zero = th.zeros(())
    return LossTerms(th.tensor(loss, requires_grad=True), zero, zero, zero, th.tensor(log_ratio), zero)


class TestRefusal:
    @pytest.mark.parametrize(
        ("loss", "max_kl", "accepted"),
        [
            (1.0, None, True),
            (math.nan, None, False),
            (math.inf, None, False),
            # ratios 2 and 1/2: divergence (1 - log 2 + log 2 - 1/2) / 2 = 0.25
            (1.0, 0.26, True),
            (1.0, 0.24, False),
            (math.nan, 0.26, False),
        ],
    )
    def test_by_the_loss(self, loss: float, max_kl: float | None, accepted: bool) -> None:
        step = UpdateStep.of(terms(loss, math.log(2), -math.log(2)), max_kl)
        assert bool(step.accepted) == accepted
        assert float(step.gradient_norm) == 0
        assert not any(term.requires_grad for term in step.terms)

    @pytest.mark.parametrize(("norm", "accepted"), [(3.0, True), (math.nan, False), (math.inf, False)])
    def test_by_the_gradient(self, norm: float, accepted: bool) -> None:
        step = UpdateStep.of(terms(1.0, 0.0), None).with_gradient(th.tensor(norm))
        assert bool(step.accepted) == accepted
        # what was refused stays refused
        assert not UpdateStep.of(terms(math.nan, 0.0), None).with_gradient(th.tensor(norm)).accepted

    @dataclass(frozen=True)
    class RootOfZero(PPOObjective):
        """A finite loss whose gradient is NaN."""

        def __call__(self, policy: GroupActorCriticPolicy, *arguments: Any) -> LossTerms:
            found, bias = super().__call__(policy, *arguments), policy.value_net.bias
            return found._replace(loss=found.loss + (bias - bias.detach()).abs().sum().sqrt())

    @pytest.mark.parametrize("bad", ["loss", "gradient", "divergence"])
    def test_leaves_everything_as_it_was(self, bad: str) -> None:
        for kind in (*STEPPERS, "compiled"):
            policy = make_policy()
            batch = make_batch(policy)
            if bad == "loss":
                batch = batch._replace(returns=th.full_like(batch.returns, math.nan))
            elif bad == "divergence":
                batch = batch._replace(old_log_prob=batch.old_log_prob - 1)
            objective = self.RootOfZero(0.0, 0.5, True) if bad == "gradient" else OBJECTIVE
            before = copy.deepcopy((policy.state_dict(), policy.optimizer.state_dict()["state"]))
            max_kl = 0.1 if bad == "divergence" else None
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(th, "compile", lambda function, **_: function)
                update: EagerUpdate | CompiledUpdate
                if kind == "compiled":
                    update = CompiledUpdate(policy, objective, 0.5, max_kl)
                else:
                    update = EagerUpdate(policy, objective, STEPPERS[kind](policy, 0.5), max_kl)
                with update:
                    step = update(batch, 0.2, None)
            assert not step.accepted, kind
            assert bool(step.terms.loss.isfinite()) == (bad != "loss")
            for name, value in policy.state_dict().items():
                assert value.equal(before[0][name]), (kind, name)
            for index, state in policy.optimizer.state_dict()["state"].items():
                assert all(value.equal(before[1][index][name]) for name, value in state.items()), kind


def test_a_step_that_is_refused_by_its_loss_has_no_gradient_computed() -> None:
    class Recording:
        calls: ClassVar[list[str]] = []

        def __enter__(self) -> None:
            self.calls.append("enter")

        def __exit__(self, *_: object) -> None:
            self.calls.append("exit")

        def clip_gradient(self, loss: th.Tensor) -> th.Tensor:
            self.calls.append("clip")
            return th.tensor(2.0)

        def step(self) -> None:
            self.calls.append("step")

    policy = make_policy()
    batch = make_batch(policy)
    update = EagerUpdate(policy, OBJECTIVE, Recording(), 0.1)
    with update:
        assert update(batch, 0.2, None).gradient_norm == 2.0
        update(batch._replace(old_log_prob=batch.old_log_prob - 1), 0.2, None)
    assert Recording.calls == ["enter", "clip", "step", "exit"]


def test_settings_of_a_compiled_update_can_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(th, "compile", lambda function, **_: function)
    norms, steps = [], []
    settings = PPOObjective(0.1, 0.5, True), 0.25, 0.1
    for change in (False, True):
        policy = make_policy()
        update = CompiledUpdate(policy, OBJECTIVE, 0.125, None)
        if change:
            update.configure(*settings)
        batch = make_batch(policy)
        batch = batch._replace(weights=th.ones_like(batch.weights))
        with update:
            steps.append(update(batch, 0.2, None))
            norms.append(update.gradient.norm().item())
            refused = update(batch._replace(old_log_prob=batch.old_log_prob - 1), 0.2, None)
        assert bool(refused.accepted) != change
    assert norms == pytest.approx([0.125, 0.25], rel=1e-4)
    # the entropy bonus
    expected = steps[0].terms.loss + 0.1 * steps[0].terms.entropy_loss
    th.testing.assert_close(steps[1].terms.loss, expected)


class TestWithoutCritic:
    @pytest.fixture(autouse=True)
    def _toy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(ESTIMATORS, "toy", RewardsToGo)

    # torch's own compiler uses torch.jit, and says so
    @pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
    def test_eager_flat_and_compiled_agree(self, monkeypatch: pytest.MonkeyPatch, compiler_calls: list[int]) -> None:
        kwargs: dict[str, Any] = dict(advantage_estimator="toy", target_kl=0.5)
        start = make_model("Pendulum-v1", **kwargs)
        assert isinstance(stepper_of(start), FlatStepper)
        flat = make_model("Pendulum-v1", **kwargs).learn(192)
        compiled = make_model("Pendulum-v1", **kwargs, compile=True).learn(192)
        assert compiler_calls == [3 * 2 * 2, 2 * 32]
        never_flat(monkeypatch)
        eager = make_model("Pendulum-v1", **kwargs).learn(192)
        assert type(stepper_of(eager)) is OptimizerStepper
        assert_close(eager, flat)
        assert_close(eager, compiled)
        before = dict(start.policy.named_parameters())
        assert all(not value.equal(before[name]) for name, value in eager.policy.named_parameters())
        assert "value_net.weight" not in before

    def test_nothing_is_logged_of_values(self) -> None:
        model, other = make_model(advantage_estimator="toy").learn(64), make_model().learn(64)
        missing = other.logger.name_to_value.keys() - model.logger.name_to_value.keys()
        assert missing == {"train/value_loss", "train/explained_variance"}
        assert model.logger.name_to_value.keys() <= other.logger.name_to_value.keys()

    @pytest.mark.parametrize("use_critic", [True, False])
    def test_the_group_whose_loss_is_not_finite_is_named(self, use_critic: bool) -> None:
        policy = make_policy(use_critic=use_critic)
        batch = make_batch(policy)
        # the ratios of one group overflow, and the squared returns of another one would
        old_log_prob = th.where(batch.heads == 1, -1e4, batch.old_log_prob)
        batch = batch._replace(old_log_prob=old_log_prob, returns=th.where(batch.heads == 2, 1e30, batch.returns))
        terms = OBJECTIVE(policy, batch._replace(advantages=-batch.advantages.abs()), 0.2, None)
        with pytest.raises(NonFiniteError, match=rf"NaN or infinite in groups \[1{', 2' if use_critic else ''}\]"):
            explain_refused_step(policy, UpdateStep.of(terms, None), batch, batch)
