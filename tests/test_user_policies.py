"""What users change in a policy works as with PPO, bit for bit, or is refused with a sentence."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from tiny_envs import RandomEnv
from torch import nn

from sb3_grpo import GRPO, MlpPolicy
from sb3_grpo.heads import pick_heads_in
from sb3_grpo.objective import PPOObjective
from sb3_grpo.regroup_plan import Merge, Split
from sb3_grpo.regrouping import head_outputs
from sb3_grpo.update import FlatStepper, HookedStepper, OptimizerStepper, make_eager_update, takes_plain_steps

KWARGS: dict[str, Any] = dict(n_steps=32, batch_size=16, n_epochs=2, seed=0, device="cpu", learning_rate=3e-3)
BOX, DISCRETE = spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(3)
# two groups from the start, so that several heads are in use
TWO: dict[str, Any] = dict(router=lambda obs: (obs[:, 0] > 0).long(), router_kwargs=dict(n_cells=2))


def make_env(action_space: spaces.Space[Any]) -> RandomEnv:
    space = spaces.Box(-1, 1, (4,), np.float32)
    space.seed(0)
    return RandomEnv(space, action_space)


def masked(base: Any) -> Any:
    class Masked(base):  # type: ignore[no-any-unimported]  # whichever base
        """Action 1 is never taken."""

        def _get_action_dist_from_latent(self, latent_pi):
            logits = self.action_net(latent_pi)
            return self.action_dist.proba_distribution(logits - 1e8 * th.eye(3)[1])

    return Masked


def squashed(base: Any) -> Any:
    class Squashed(base):  # type: ignore[no-any-unimported]  # whichever base
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.action_dist = SquashedDiagGaussianDistribution(2)

    return Squashed


def bounded(base: Any) -> Any:
    class Bounded(base):  # type: ignore[no-any-unimported]  # whichever base
        def _build(self, lr_schedule: Any) -> None:
            super()._build(lr_schedule)
            self.action_net: Any = nn.Sequential(self.action_net, nn.Tanh())
            self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    return Bounded


def evaluated(base: Any) -> Any:
    class Evaluated(base):  # type: ignore[no-any-unimported]  # whichever base
        """Half the entropy."""

        def evaluate_actions(self, obs, actions):
            values, log_prob, entropy = super().evaluate_actions(obs, actions)
            return values, log_prob, 0.5 * entropy

    return Evaluated


CHANGES: dict[str, tuple[Callable[[Any], Any], spaces.Space[Any]]] = {
    "distribution": (masked, DISCRETE),
    "action_dist": (squashed, BOX),
    "action_net": (bounded, BOX),
    "evaluate_actions": (evaluated, DISCRETE),
}


class TestSubclasses:
    @pytest.mark.parametrize("name", CHANGES)
    def test_with_one_group_as_with_ppo(self, name):
        change, space = CHANGES[name]
        ppo = PPO(change(ActorCriticPolicy), make_env(space), ent_coef=0.01, **KWARGS).learn(128)
        grpo = GRPO(change(MlpPolicy), make_env(space), ent_coef=0.01, n_groups=1, **KWARGS).learn(128)
        for (key, value), other in zip(ppo.policy.state_dict().items(), grpo.policy.state_dict().values(), strict=True):
            assert value.equal(other), key
        obs = np.random.default_rng(0).uniform(-1, 1, (20, 4)).astype(np.float32)
        for deterministic in (True, False):
            expected: list[np.ndarray] = []
            actual: list[np.ndarray] = []
            for model, actions in ((ppo, expected), (grpo, actual)):
                th.manual_seed(1)
                actions.append(model.predict(obs, deterministic=deterministic)[0])
            np.testing.assert_array_equal(actual, expected)

    @pytest.mark.parametrize("name", CHANGES)
    def test_control_without_the_change_weights_are_others(self, name):
        change, space = CHANGES[name]
        changed, plain = (
            GRPO(policy, make_env(space), ent_coef=0.01, n_groups=1, **KWARGS).learn(64)
            for policy in (change(MlpPolicy), "MlpPolicy")
        )
        trunk = "mlp_extractor.policy_net.0.weight"
        assert not changed.policy.state_dict()[trunk].equal(plain.policy.state_dict()[trunk])

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("distribution", "`_get_action_dist_from_latent` of a policy can be changed with `n_groups=1` only"),
            (
                "action_dist",
                r"`action_dist \(SquashedDiagGaussianDistribution\)` of a policy can be changed with `n_groups=1` only",
            ),
            (
                "action_net",
                r"`action_net` must be one torch.nn.Linear .* where `max_groups` \(8\) is above 1, got Sequential",
            ),
        ],
    )
    def test_with_more_heads_what_cannot_work_is_refused_at_construction(self, name, message):
        change, space = CHANGES[name]
        with pytest.raises(ValueError, match=message):
            GRPO(change(MlpPolicy), make_env(space), **KWARGS)

    @pytest.mark.parametrize("kwargs", [dict(), TWO], ids=["one that may split", "two groups"])
    def test_evaluate_actions_is_called_with_more_heads(self, kwargs):
        calls = []

        class Counted(MlpPolicy):
            def evaluate_actions(self, obs, actions):
                calls.append(len(obs))
                return super().evaluate_actions(obs, actions)

        GRPO(Counted, make_env(DISCRETE), **KWARGS, **kwargs).learn(32)
        assert calls == [16] * 4

    @pytest.mark.parametrize("kwargs", [dict(n_groups=1), dict(), TWO], ids=["one group", "one that may split", "two groups"])
    def test_get_distribution_decides_what_predict_does(self, kwargs):
        class Sure(MlpPolicy):
            def get_distribution(self, obs):
                distribution: Any = super().get_distribution(obs)
                logits = distribution.distribution.logits - th.tensor([0.0, 1e6, 1e6])
                return distribution.proba_distribution(logits)

        obs = np.random.default_rng(0).uniform(-1, 1, (50, 4)).astype(np.float32)
        predicted = GRPO(Sure, make_env(DISCRETE), **KWARGS, **kwargs).predict(obs)[0]
        assert set(predicted.tolist()) == {0}
        assert len(set(GRPO("MlpPolicy", make_env(DISCRETE), **KWARGS, **kwargs).predict(obs)[0].tolist())) == 3


class TestExistingPolicies:
    """What is changed in a model is found when training starts."""

    def test_with_one_group_anything_goes(self):
        model = GRPO("MlpPolicy", make_env(BOX), n_groups=1, **KWARGS)
        model.policy.action_net = nn.Sequential(model.policy.action_net, nn.Tanh())
        model.learn(32)

    def test_another_action_net(self):
        model = GRPO("MlpPolicy", make_env(BOX), **KWARGS)
        model.policy.action_net = nn.Sequential(model.policy.action_net, nn.Tanh())
        with pytest.raises(ValueError, match=r"`action_net` must be one torch.nn"):
            model.learn(32)

    def test_a_log_std_of_another_size(self):
        model = GRPO("MlpPolicy", make_env(BOX), **KWARGS)
        model.policy.log_std = nn.Parameter(th.full((4,), -0.9))
        with pytest.raises(ValueError, match=r"`log_std` must have shape \(2,\), which is 1 heads side by side, got \(4,\)"):
            model.learn(32)

    def test_a_log_std_of_another_size_for_two_heads(self):
        model = GRPO("MlpPolicy", make_env(BOX), **KWARGS, **TWO)
        model.policy.log_std = nn.Parameter(th.full((2,), -0.9))
        with pytest.raises(ValueError, match=r"`log_std` must have shape \(4,\), which is 2 heads side by side, got \(2,\)"):
            model.learn(32)

    def test_a_log_std_of_the_same_size_is_trained(self):
        model = GRPO("MlpPolicy", make_env(BOX), **KWARGS)
        model.policy.log_std = nn.Parameter(th.full((2,), -0.9))
        model.policy.optimizer = th.optim.Adam(model.policy.parameters(), lr=3e-3)
        model.learn(32)
        assert not model.policy.log_std.equal(th.full((2,), -0.9))


class TestGetDistribution:
    @pytest.mark.parametrize("space", [DISCRETE, BOX, spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)], ids=str)
    @pytest.mark.parametrize("kwargs", [dict(n_groups=1), dict(), TWO], ids=["one group", "one that may split", "two groups"])
    def test_has_the_outputs_of_the_network_to_the_last_bit(self, space, kwargs):
        """To normalise logits before SB3 does it would round them twice."""
        policy = GRPO("MlpPolicy", make_env(space), **KWARGS, **kwargs).learn(64).policy
        obs = th.rand(30, 4) * 2 - 1
        with th.no_grad():
            heads, log_std = head_outputs(policy, policy.latent_pi(obs), list(range(policy.n_heads)))
            own = policy.grouping.heads_at(obs)
            outputs = heads[th.arange(30), own]
            distribution = policy.get_distribution(obs)
            if log_std is None:
                expected = policy.action_dist.proba_distribution(outputs)
            else:
                expected = policy.action_dist.proba_distribution(outputs, log_std[th.arange(30), own])
            for mode in (False, True):
                th.manual_seed(0)
                one = distribution.get_actions(deterministic=mode)
                th.manual_seed(0)
                assert one.equal(expected.get_actions(deterministic=mode))

    @pytest.mark.parametrize("kwargs", [dict(n_groups=1), dict()], ids=["one group", "one that may split"])
    def test_equals_ppo(self, kwargs):
        ppo = PPO("MlpPolicy", make_env(DISCRETE), **KWARGS).learn(64)
        grpo = GRPO("MlpPolicy", make_env(DISCRETE), **KWARGS, **kwargs).learn(64)
        obs = th.rand(30, 4)
        policies: list[Any] = [ppo.policy, grpo.policy]
        one, other = (policy.get_distribution(obs).distribution.logits for policy in policies)
        assert one.equal(other)

    def test_of_several_heads_holds_the_logits_of_a_policy_with_that_head(self):
        policy = GRPO("MlpPolicy", make_env(DISCRETE), **KWARGS, **TWO).learn(64).policy
        obs = th.rand(30, 4) * 2 - 1
        alone: Any = MlpPolicy(policy.observation_space, DISCRETE, lambda _: 1e-3)
        logits: Any = policy.get_distribution(obs).distribution
        for head in range(2):
            state = pick_heads_in(policy.state_dict(), 2, [head])
            alone.load_state_dict({name: value for name, value in state.items() if not name.startswith("grouping.")})
            own = policy.groups(obs) == head
            assert own.any()
            th.testing.assert_close(logits.logits[own], alone.get_distribution(obs).distribution.logits[own])


class LastGradients(BaseCallback):
    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps:
            self.gradients = {name: p.grad.clone() for name, p in self.model.policy.named_parameters() if p.grad is not None}


class TestGradients:
    def test_are_left_as_ppo_leaves_them(self):
        seen = []
        for make in (
            lambda: PPO("MlpPolicy", make_env(DISCRETE), **KWARGS),
            lambda: GRPO("MlpPolicy", make_env(DISCRETE), **KWARGS),
        ):
            callback = LastGradients()
            make().learn(64, callback)
            seen.append(callback.gradients)
        ppo, grpo = seen
        assert ppo.keys() == grpo.keys()
        for name, gradient in ppo.items():
            assert grpo[name].equal(gradient), name

    @pytest.mark.parametrize("kwargs", [TWO, {**TWO, "compile": True}], ids=["flat", "compiled"])
    def test_of_several_groups_are_those_of_the_eager_update(self, kwargs, monkeypatch):
        monkeypatch.setattr(th, "compile", lambda function, **_: function)
        flat, eager = LastGradients(), LastGradients()
        GRPO("MlpPolicy", make_env(DISCRETE), **KWARGS, **kwargs).learn(64, flat)
        monkeypatch.setattr("sb3_grpo.update.takes_plain_steps", lambda policy: False)
        GRPO("MlpPolicy", make_env(DISCRETE), **KWARGS, **TWO).learn(64, eager)
        assert flat.gradients.keys() == eager.gradients.keys()
        for name, gradient in eager.gradients.items():
            th.testing.assert_close(flat.gradients[name], gradient, rtol=1e-3, atol=1e-5)


HEADS = [dict(n_groups=1), dict(), TWO]


class TestHooks:
    @pytest.mark.parametrize("kwargs", HEADS, ids=["one group", "one that may split", "two groups"])
    @pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
    def test_on_parameters_can_stop_the_learning(self, kwargs, kind):
        model = GRPO("MlpPolicy", make_env(BOX), **KWARGS, **kwargs)

        def stop(parameter: th.Tensor) -> None:
            assert parameter.grad is not None
            parameter.grad.zero_()

        for parameter in model.policy.parameters():
            getattr(parameter, kind)(th.zeros_like if kind == "register_hook" else stop)
        before = [parameter.detach().clone() for parameter in model.policy.parameters()]
        model.learn(64)
        assert all(one.equal(other) for one, other in zip(before, model.policy.parameters(), strict=True))

    @pytest.mark.parametrize("kwargs", HEADS, ids=["one group", "one that may split", "two groups"])
    def test_that_do_nothing_change_nothing(self, kwargs):
        hooked, plain = (GRPO("MlpPolicy", make_env(DISCRETE), **KWARGS, **kwargs) for _ in range(2))
        for parameter in hooked.policy.parameters():
            parameter.register_hook(lambda gradient: None)
        for model in (hooked, plain):
            model.set_random_seed(3)
            model.learn(64)
        for one, other in zip(hooked.policy.parameters(), plain.policy.parameters(), strict=True):
            th.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
    def test_move_to_the_heads_of_a_split_and_a_merge(self, kind):
        model = GRPO("MlpPolicy", make_env(BOX), **KWARGS)
        shapes: list[tuple[int, ...]] = []
        getattr(model.policy.action_net.weight, kind)(lambda tensor: shapes.append(tuple(tensor.shape)))
        for event, n_heads in ((None, 1), (Split(0, 1, [3], 1.0), 2), (Merge(0, 1, 0.5, 0.0), 1)):
            if event is not None:
                model.policy.regroup(event)
            shapes.clear()
            model.learn(32, reset_num_timesteps=False)
            assert shapes == [(2 * n_heads, 64)] * 4

    def test_of_the_optimizer_are_called(self):
        calls = []
        model = GRPO("MlpPolicy", make_env(DISCRETE), **KWARGS, **TWO)
        model.policy.optimizer.register_step_post_hook(lambda *_: calls.append(1))
        model.learn(32)
        assert len(calls) == 4


def stepper_of(model: GRPO) -> Any:
    objective = PPOObjective(ent_coef=0.0, vf_coef=0.5, normalize_advantage=True)
    return make_eager_update(model.policy, objective, max_grad_norm=0.5, max_kl=None).stepper


class TestOptimizers:
    """The fast update of several groups does what torch's optimizer does, or makes way for it."""

    def learn(
        self, change: Callable[[GRPO], None], monkeypatch: pytest.MonkeyPatch, **kwargs: Any
    ) -> list[dict[str, th.Tensor]]:
        states = []
        for eager in (False, True):
            with monkeypatch.context() as patch:
                if eager:
                    patch.setattr("sb3_grpo.update.takes_plain_steps", lambda policy: False)
                model = GRPO("MlpPolicy", make_env(DISCRETE), **KWARGS, **TWO, merge_kl=None, **kwargs)
                model.learn(64)
                change(model)
                model.learn(64, reset_num_timesteps=False)
                states.append(model.policy.state_dict())
        return states

    def test_a_layer_that_was_frozen_for_a_while(self, monkeypatch):
        def freeze_for_a_while(model: GRPO) -> None:
            model.policy.mlp_extractor.requires_grad_(False)
            model.learn(64, reset_num_timesteps=False)
            model.policy.mlp_extractor.requires_grad_(True)
            assert not takes_plain_steps(model.policy)

        fast, eager = self.learn(freeze_for_a_while, monkeypatch)
        for name, value in fast.items():
            th.testing.assert_close(value, eager[name], rtol=1e-4, atol=1e-5, msg=name)

    def test_a_layer_that_is_not_used_does_not_decay(self):
        policy_kwargs = dict(optimizer_kwargs=dict(weight_decay=0.5))
        model = GRPO("MlpPolicy", make_env(DISCRETE), **KWARGS, **TWO, policy_kwargs=policy_kwargs)
        model.policy.unused = nn.Linear(2, 2)
        model.policy.optimizer.add_param_group({"params": list(model.policy.unused.parameters())})
        before = model.policy.unused.weight.detach().clone()
        model.learn(64)
        assert model.policy.unused.weight.equal(before)

    def test_plain_adam_is_replaced_where_there_are_several_heads(self):
        model = GRPO("MlpPolicy", make_env(DISCRETE), **KWARGS, **TWO)
        assert type(stepper_of(model)) is FlatStepper
        model.policy.regroup(Merge(0, 1, 0.5, 0.0))
        assert type(stepper_of(model)) is OptimizerStepper

    def test_hooks_are_called_by_torch(self):
        model = GRPO("MlpPolicy", make_env(DISCRETE), **KWARGS, **TWO)
        model.policy.value_net.bias.register_hook(lambda gradient: None)
        assert type(stepper_of(model)) is HookedStepper


class Distances(BaseFeaturesExtractor):
    """Distances between embeddings, each from itself among them: the root of 0 has no finite derivative."""

    def __init__(self, space: spaces.Space[Any]):
        super().__init__(space, 16)
        self.embed = nn.Linear(1, 3)

    def forward(self, obs: th.Tensor) -> th.Tensor:
        points = self.embed(obs.unsqueeze(-1))
        return (points.unsqueeze(1) - points.unsqueeze(2)).square().sum(-1).sqrt().flatten(1)


class Clean(BaseFeaturesExtractor):
    def __init__(self, space: spaces.Space[Any]):
        super().__init__(space, 4)

    def forward(self, obs: th.Tensor) -> th.Tensor:
        return th.nan_to_num(obs, nan=0.5, posinf=2.0)


class Lidar(RandomEnv):
    """Some sensors give nothing, some have no echo."""

    def step(self, action):
        obs, *rest = super().step(action)
        return np.where(obs > 0.8, np.inf, np.where(obs < -0.9, np.nan, obs)).astype(np.float32), *rest


class TestNotFinite:
    @pytest.mark.parametrize(
        "kwargs", [*HEADS, {**TWO, "compile": True}], ids=["one group", "one that may split", "flat", "compiled"]
    )
    def test_a_gradient_that_is_not_finite_does_not_reach_the_weights(self, kwargs, monkeypatch):
        monkeypatch.setattr(th, "compile", lambda function, **_: function)
        policy_kwargs = dict(features_extractor_class=Distances)
        model = GRPO("MlpPolicy", make_env(DISCRETE), **KWARGS, **kwargs, policy_kwargs=policy_kwargs)
        before = [parameter.detach().clone() for parameter in model.policy.parameters()]
        with pytest.raises(ValueError, match="the gradient is NaN or infinite although the loss is finite"):
            model.learn(64)
        assert all(one.equal(other) for one, other in zip(before, model.policy.parameters(), strict=True))
        moments = [value for state in model.policy.optimizer.state.values() for value in state.values()]
        assert all(th.as_tensor(value).isfinite().all() for value in moments)

    @pytest.mark.parametrize("name", ["learning_rate", "clip_range", "clip_range_vf"])
    @pytest.mark.parametrize("kwargs", HEADS, ids=["one group", "one that may split", "two groups"])
    def test_a_schedule_that_returns_nan_is_named(self, name, kwargs):
        def schedule(remaining: float) -> float:
            return 1e-3 if remaining > 0.6 else float("nan")

        model = GRPO("MlpPolicy", make_env(DISCRETE), **{**KWARGS, **kwargs, name: schedule})
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            model.learn(128)
        assert all(parameter.isfinite().all() for parameter in model.policy.parameters())

    def env(self) -> Lidar:
        space = spaces.Box(-np.inf, np.inf, (4,), np.float32)
        space.seed(0)
        return Lidar(space, DISCRETE)

    def test_observations_that_the_extractor_cleans_train_as_with_ppo(self):
        policy_kwargs = dict(features_extractor_class=Clean)
        ppo = PPO("MlpPolicy", self.env(), policy_kwargs=policy_kwargs, **KWARGS).learn(96)
        grpo = GRPO("MlpPolicy", self.env(), policy_kwargs=policy_kwargs, n_groups=1, **KWARGS).learn(96)
        for (name, value), other in zip(ppo.policy.state_dict().items(), grpo.policy.state_dict().values(), strict=True):
            assert value.equal(other), name

    def test_observations_that_the_random_router_would_compare_are_refused(self):
        model = GRPO("MlpPolicy", self.env(), policy_kwargs=dict(features_extractor_class=Clean), **KWARGS)
        with pytest.raises(ValueError, match="observations must be finite, because router='random' measures distances"):
            model.learn(96)


class TestClonedPolicies:
    """What was learnt before ``learn`` is in the head of cell 0 only, until the random router is fitted."""

    @pytest.mark.parametrize("n_groups", [1, 4])
    def test_a_cloned_policy_survives_the_first_rollout(self, n_groups):
        obs = th.rand(500, 4) * 2 - 1
        expert = (obs[:, 0] > 0).long()
        model = GRPO("MlpPolicy", make_env(DISCRETE), n_groups=n_groups, **{**KWARGS, "learning_rate": 0.0, "n_steps": 128})
        optimizer = th.optim.Adam(model.policy.parameters(), lr=1e-2)
        for _ in range(60):
            loss = -model.policy.get_distribution(obs).log_prob(expert).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        def probability() -> float:
            with th.no_grad():
                return model.policy.get_distribution(obs).log_prob(expert).exp().mean().item()

        before = probability()
        model.learn(128)
        assert len(set(model.policy.groups(obs).tolist())) == n_groups
        assert before > 0.9
        assert probability() == pytest.approx(before, abs=1e-5)


class TestExport:
    """As in SB3's documentation: a module around the policy, traced."""

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("space", [DISCRETE, BOX], ids=["discrete", "box"])
    @pytest.mark.parametrize("kwargs", HEADS, ids=["one group", "one that may split", "two groups"])
    def test_traced_module_acts_as_the_policy(self, space, kwargs):
        model = GRPO(
            "MlpPolicy", make_env(space), **KWARGS, **{**kwargs, **({} if kwargs is not TWO else dict(n_groups=2))}
        ).learn(64)
        if kwargs is TWO:
            # a function of the user is not traced reliably
            model = GRPO("MlpPolicy", make_env(space), **KWARGS, n_groups=2).learn(64)

        class Wrapper(nn.Module):
            def __init__(self, policy: nn.Module):
                super().__init__()
                self.policy = policy

            def forward(self, obs: th.Tensor) -> th.Tensor:
                return self.policy(obs, deterministic=True)[0]

        module = Wrapper(model.policy).eval().requires_grad_(False)
        traced = th.jit.trace(module, th.zeros(1, 4))
        obs = th.rand(1, 4)
        assert traced(obs).equal(module(obs))
