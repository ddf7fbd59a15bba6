"""The update, operation by operation and compiled."""

import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_grpo import GRPO
from sb3_grpo.heads import HEAD_DIMS, split_heads
from sb3_grpo.regroup_plan import Merge, Split
from sb3_grpo.update import CompiledUpdate, EagerUpdate, FlatUpdate, adam_step

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


def assert_close(left: GRPO, right: GRPO) -> None:
    for (name, a), b in zip(left.policy.state_dict().items(), right.policy.state_dict().values(), strict=True):
        # probes are sums over all steps, in which terms cancel
        atol = 1e-4 * max(1.0, a.abs().max().item()) if name.startswith("probes.") else 1e-5
        th.testing.assert_close(a, b, msg=name, atol=atol, rtol=1e-4)


# torch's own compiler uses torch.jit, and says so
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
# the second has minibatches of two sizes, and SB3 says so
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize(("env_id", "batch_size"), [("CartPole-v1", 32), ("Pendulum-v1", 40)])
def test_compiled_equals_eager(env_id: str, batch_size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kwargs: dict[str, Any] = {"learning_rate": slowing, "clip_range": falling, "batch_size": batch_size}
    kwargs.update(group_coef=0.02, ent_coef=0.01, max_grad_norm=0.1)
    start = make_model(env_id, **kwargs).policy.state_dict()
    # the generators are global: a model learns before the next one is made
    eager = make_model(env_id, **kwargs).learn(192)
    compiled = make_model(env_id, **kwargs, compile=True).learn(192)
    assert "compiles" in capsys.readouterr().out
    assert compiled._compiled_update is not None
    assert compiled._compiled_update.works
    assert not th.equal(eager.policy.state_dict()["value_net.weight"], start["value_net.weight"])
    assert_close(eager, compiled)
    eager_state, compiled_state = (m.policy.optimizer.state_dict()["state"] for m in (eager, compiled))
    for index, state in eager_state.items():
        for name, value in state.items():
            th.testing.assert_close(compiled_state[index][name], value, atol=1e-3, rtol=1e-2)

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
    copied = copy.deepcopy(compiled.policy)
    assert copied._compiled_act is None
    assert compiled.policy._compiled_act is not None


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("optimizer_kwargs", [{}, {"betas": (0.8, 0.9), "foreach": False}])
def test_flat_equals_eager(env_id: str, optimizer_kwargs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    policy_kwargs = {**TINY["policy_kwargs"], "optimizer_kwargs": {"eps": 1e-5, **optimizer_kwargs}}
    kwargs: dict[str, Any] = {"learning_rate": slowing, "max_grad_norm": 0.1, "policy_kwargs": policy_kwargs}
    flat = make_model(env_id, **kwargs).learn(192)
    assert isinstance(flat._make_update(None), FlatUpdate)
    monkeypatch.setattr("sb3_grpo.grpo.takes_plain_steps", lambda policy: False)
    eager = make_model(env_id, **kwargs).learn(192)
    assert isinstance(eager._make_update(None), EagerUpdate)
    assert_close(flat, eager)
    flat_state, eager_state = (model.policy.optimizer.state_dict()["state"] for model in (flat, eager))
    for index, state in eager_state.items():
        for name, value in state.items():
            th.testing.assert_close(flat_state[index][name], value, atol=1e-3, rtol=1e-2)
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
    assert isinstance(model._make_update(None), FlatUpdate if plain else EagerUpdate)
    before = copy.deepcopy(model.policy.state_dict())
    model.learn(64)
    assert not th.equal(model.policy.state_dict()["value_net.weight"], before["value_net.weight"])


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_compiled_equals_eager_for_images() -> None:
    models = []
    for compile_ in (False, True):
        env = make_vec_env(seeded_image_env, 2, seed=0)
        kwargs: dict[str, Any] = {**TINY, "n_groups": 2, "policy_kwargs": None, "n_steps": 16, "batch_size": 16}
        models.append(GRPO("CnnPolicy", env, **kwargs, compile=compile_).learn(64))
    assert models[1]._compiled_update is not None
    assert models[1]._compiled_update.works
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
    assert model._n_updates == 1
    assert [state["step"].item() for state in model.policy.optimizer.state.values()] == [1.0] * len(
        list(model.policy.parameters())
    )


def regrouped(monkeypatch: pytest.MonkeyPatch, kind: str) -> GRPO:
    """A model whose groups split twice and merge once between updates; every update is of the same kind."""
    # the same function, not compiled: the test is about its logic
    monkeypatch.setattr(th, "compile", lambda function, **_: function)
    if kind == "eager":
        monkeypatch.setattr("sb3_grpo.grpo.takes_plain_steps", lambda policy: False)
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
    eager = regrouped(monkeypatch, "eager")
    assert isinstance(eager._make_update(None), EagerUpdate)
    assert_close(eager, model)
    eager_state, state = (m.policy.optimizer.state_dict()["state"] for m in (eager, model))
    for index, moments in eager_state.items():
        for name, value in moments.items():
            th.testing.assert_close(state[index][name], value, atol=1e-3, rtol=1e-2)


def test_a_head_that_has_been_merged_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("flat", "eager", "compiled"):
        with monkeypatch.context() as patch:
            model = regrouped(patch, kind)
            before = split_heads(model.policy.state_dict()["action_net.weight"].clone(), 0, 4)
            model.learn(64, reset_num_timesteps=False)
            after = split_heads(model.policy.state_dict()["action_net.weight"], 0, 4)
            assert [th.equal(before[head], after[head]) for head in range(4)] == [False, False, False, True]


def test_one_group_left_is_trained_with_its_own_head_only() -> None:
    model = make_model("Pendulum-v1", n_groups=2, max_groups=2, regroup_freq=1000).learn(64)
    assert isinstance(model._make_update(None), FlatUpdate)
    model.policy.regroup(Merge(1, 0, 0.5, 0.0))
    assert model.policy.only_group == 1
    assert isinstance(model._make_update(None), EagerUpdate)
    before = copy.deepcopy(model.policy.state_dict())
    model.learn(64, reset_num_timesteps=False)
    for name, dim in HEAD_DIMS.items():
        moved = [
            not th.equal(*heads)
            for heads in zip(*(split_heads(s[name], dim, 2) for s in (before, model.policy.state_dict())), strict=True)
        ]
        assert moved == [False, True], name


def test_without_compiler_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(function: Any, **_: Any) -> Any:
        def fail(*_: Any) -> None:
            raise RuntimeError("no C++ compiler found")

        return fail

    monkeypatch.setattr(th, "compile", no_compiler)
    compiled = make_model(compile=True)
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler found"):
        compiled.learn(128)
    eager = make_model().learn(128)
    assert_close(eager, compiled)
    assert compiled.policy._compiled_act is None


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


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_model_that_cannot_be_compiled_does_not_keep_others_from_it() -> None:
    class Branching(FlattenExtractor):
        def forward(self, observations: th.Tensor) -> th.Tensor:
            # depends on data, which no compiled function may
            return super().forward(observations if float(observations.sum()) < 1e9 else -observations)

    with pytest.warns(UserWarning, match="`compile=True` does not work here") as caught:
        failed = make_model(compile=True, policy_kwargs=dict(features_extractor_class=Branching)).learn(64)
    assert all(len(str(warning.message)) < 400 for warning in caught)
    assert failed._compiled_update is not None
    assert not failed._compiled_update.works
    works = make_model(compile=True).learn(64)
    assert works._compiled_update is not None
    assert works._compiled_update.works


def test_rollout_buffer_class_is_checked() -> None:

    with pytest.raises(ValueError, match=r"`rollout_buffer_class` must be a subclass of GroupRolloutBuffer.*RolloutBuffer"):
        make_model(rollout_buffer_class=RolloutBuffer)


def test_compiled_update_keeps_what_the_optimizer_knew() -> None:
    model = make_model().learn(64)
    before = copy.deepcopy(model.policy.optimizer.state_dict())
    with CompiledUpdate(model.policy, model._update_terms, 0.5, None):
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
