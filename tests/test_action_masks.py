"""Action masks: what is not allowed is never done, whatever else the algorithm does; masks that make no sense are refused."""

import re
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tiny_envs import MaskedEnv

from sb3_grpo import GRPO, ActionMaskWrapper, GroupEvalCallback, MultiInputPolicy, evaluate_groups
from sb3_grpo.action_masks import ActionMasks, make_action_masks, sample_allowed
from sb3_grpo.distributions import LEAST_LOG_PROB, make_action_distribution, mask_outputs
from sb3_grpo.regrouping import DecisionRegrouper, grad_log_prob, head_outputs
from sb3_grpo.vec_env import make_group_vec_env

ACTION_SPACES: dict[str, Any] = {"discrete": spaces.Discrete(4), "multi_discrete": spaces.MultiDiscrete([2, 4, 3])}
BY_TASK: dict[str, Any] = dict(router="discrete", router_kwargs={"key": "task"})
HIDDEN_TASK: dict[str, Any] = dict(router="discrete", router_kwargs={"key": "task", "hide": True})
property_test = settings(deadline=None, max_examples=60, derandomize=True, database=None)


@pytest.fixture(params=list(ACTION_SPACES))
def action_space(request):
    return ACTION_SPACES[request.param]


def make_env(action_space: Any = None, n_envs: int = 2, **kwargs: Any) -> DummyVecEnv:
    env = make_vec_env(lambda: MaskedEnv(action_space, **kwargs), n_envs, seed=0)
    assert isinstance(env, DummyVecEnv)
    return env


def make_model(env: Any, **kwargs: Any) -> GRPO:
    options: dict[str, Any] = dict(n_steps=32, batch_size=32, n_epochs=2, seed=0, policy_kwargs=dict(net_arch=[8]))
    return GRPO("MultiInputPolicy", env, **{**options, **kwargs})


def some_observations(env: DummyVecEnv, n: int = 50) -> dict[str, Any]:
    """Observations in which there is something left to do."""
    rows: list[Any] = [env.envs[0].reset()[0] for _ in range(n)]
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def is_allowed(actions: Any, masks: Any, sizes: list[int]) -> np.ndarray:
    """Whether the mask has a 1 for each variable of the action, shape ``(B,)``."""
    places = np.asarray(actions).reshape(len(masks), len(sizes)) + np.cumsum([0, *sizes[:-1]])
    return (np.take_along_axis(np.asarray(masks), places.astype(int), axis=1) == 1).all(axis=1)


def scramble(model: GRPO) -> GRPO:
    """Heads that prefer different actions, strongly."""
    th.manual_seed(1)
    with th.no_grad():
        th.nn.init.normal_(model.policy.get_parameter("action_net.weight"), std=3)
    return model


TRAININGS: dict[str, dict[str, Any]] = {
    "one group": dict(n_groups=1, router="random", router_kwargs=None),
    "defaults": dict(router="random", router_kwargs=None),
    "groups that may merge and split": dict(regroup_freq=1, regroup_warmup=1, merge_kl=0.05),
    "one head that may split": dict(n_groups=1, max_groups=2, regroup_freq=1, split_kl=0.01, merge_kl=None),
    "entropy bonus and group advantages": dict(ent_coef=10.0, normalize_advantage="group", merge_kl=None),
    "reference policy": dict(kl_coef=0.1, ref_update_freq=1, ref_tau=0.5),
    "no critic": dict(advantage_estimator="time_step"),
    "hidden task": dict(HIDDEN_TASK),
    "callable router": dict(router=lambda obs: (obs["obs"][:, 0] > 0).long(), router_kwargs={"n_cells": 2}),
}


class TestTraining:
    """The environment raises if it gets an action that is not allowed."""

    @pytest.mark.parametrize("options", TRAININGS.values(), ids=TRAININGS)
    def test_takes_allowed_actions_only(self, action_space, options):
        model = make_model(make_env(action_space), **{**BY_TASK, **options})
        before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
        model.learn(64 * 8)
        after = model.policy.state_dict()
        assert all(tensor.isfinite().all() for tensor in after.values())
        moved = [name for name, tensor in before.items() if name.startswith("action_net") and not tensor.equal(after[name])]
        assert moved or model.policy.n_heads > 1

    @pytest.mark.parametrize("advantage_estimator", ["outcome", "process"])
    def test_episodes_that_begin_alike(self, action_space, advantage_estimator):
        """The environments are tried before with random actions, which masks must allow too."""
        env = make_group_vec_env(lambda: MaskedEnv(action_space, n_tasks=1), group_size=2, seed=0)
        make_model(env, advantage_estimator=advantage_estimator, **BY_TASK).learn(64 * 3)

    def test_without_the_key_the_environment_refuses(self, action_space):
        model = make_model(make_env(action_space), action_mask_key=None, **BY_TASK)
        assert model.policy.action_masks is None
        with pytest.raises(ValueError, match="is not allowed"):
            model.learn(64)

    @pytest.mark.parametrize("mask_space", [spaces.MultiBinary(4), spaces.Box(0, 1, (4,)), spaces.Box(0, 1, (4,), np.uint8)])
    def test_kinds_of_entries(self, mask_space):
        make_model(make_env(mask_space=mask_space), **BY_TASK).learn(128)

    @pytest.mark.slow
    def test_learns_the_best_allowed_action(self):
        """Low values are paid in one task and high ones in the other, of those that are allowed."""
        model = make_model(
            make_env(n_envs=8), n_steps=64, batch_size=128, n_epochs=10, learning_rate=3e-3, gamma=0.0, **BY_TASK
        )
        model.learn(512 * 24)
        obs = some_observations(make_env())
        actions = model.predict(obs, deterministic=True)[0]
        high = 3 - obs["action_mask"][:, ::-1].argmax(axis=1)
        best = np.where(obs["task"] == 0, high, obs["action_mask"].argmax(axis=1))
        assert (actions == best).mean() > 0.95

    def test_regrouping_sees_masks(self):
        options = dict(n_groups=1, max_groups=2, regroup_freq=1, split_kl=0.01, merge_kl=None)
        model = make_model(make_env(), n_steps=512, **{**BY_TASK, **options})
        model.learn(1024 * 6)
        assert [event.kind for event in model.regroup_history] == ["split"]
        assert isinstance(model.regrouper, DecisionRegrouper)
        probes = model.regrouper.probes
        assert probes.masks is not None
        assert probes.masks.dtype == th.bool
        assert (probes.cells >= 0).all()
        # the newest latent vectors are those of the end of the rollout
        stored = model.rollout_buffer.samples().observations["action_mask"][::2][-512:] == 1  # type: ignore[index]  # a dict
        assert probes.masks.equal(stored)

    @pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
    @pytest.mark.parametrize(
        ("action_space", "options"),
        [(ACTION_SPACES["discrete"], dict(n_groups=1)), (ACTION_SPACES["multi_discrete"], dict(merge_kl=None))],
        ids=str,
    )
    def test_compiled(self, action_space, options, compiler_calls):
        models = []
        for compiled in (False, True):
            model = make_model(make_env(action_space), compile=compiled, **HIDDEN_TASK, **options)
            models.append(model.learn(64 * 4))
        # the update and acting, several times each
        assert len(compiler_calls) >= 2
        assert min(compiler_calls[:2]) > 4
        for one, other in zip(*(model.policy.parameters() for model in models), strict=True):
            th.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)

    @pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
    def test_compiled_acting_notices_a_mask_that_allows_nothing(self, compiler_calls):
        model = make_model(make_env(), compile=True, **HIDDEN_TASK).learn(64 * 3)
        n_calls, obs = sum(compiler_calls), some_observations(make_env(), 2)
        model.policy.set_training_mode(False)
        with th.no_grad():
            model.policy(model.policy.obs_to_tensor(obs)[0])
            obs["action_mask"][1] = 0
            with pytest.raises(ValueError, match=r"must allow at least one action, got 4 zeros \(environments \[1\]\)"):
                model.policy(model.policy.obs_to_tensor(obs)[0])
        assert sum(compiler_calls) >= n_calls + 2


class TestPolicy:
    @pytest.fixture
    def env(self, action_space):
        return make_env(action_space)

    @pytest.fixture
    def model(self, env):
        return scramble(make_model(env, merge_kl=None, **BY_TASK))

    @pytest.mark.parametrize("deterministic", [True, False])
    def test_predict(self, env, model, deterministic):
        obs, sizes = some_observations(env), env.envs[0].unwrapped.sizes
        for _ in range(10):
            assert is_allowed(model.predict(obs, deterministic=deterministic)[0], obs["action_mask"], sizes).all()
        # negative control: the same weights want what is not allowed
        everything = {**obs, "action_mask": np.ones_like(obs["action_mask"])}
        actions = model.predict(everything, deterministic=deterministic)[0]
        assert not is_allowed(actions, obs["action_mask"], sizes).all()

    def test_one_observation(self, env, model):
        obs = {key: value[0] for key, value in some_observations(env).items()}
        action = model.predict(obs)[0]
        assert is_allowed(action[None], obs["action_mask"][None], env.envs[0].unwrapped.sizes).all()

    def test_distribution(self, env, model):
        """SB3's object says the same as evaluated actions, and is that of the outputs that are allowed."""
        obs = some_observations(env)
        tensors = model.policy.obs_to_tensor(obs)[0]
        distribution: Any = model.policy.get_distribution(tensors)
        is_list = isinstance(distribution.distribution, list)
        parts = distribution.distribution if is_list else [distribution.distribution]
        probabilities = th.cat([part.probs for part in parts], dim=1)
        masks = th.as_tensor(obs["action_mask"])
        assert not probabilities[masks == 0].any()
        assert (probabilities[masks == 1] > 0).all()
        th.testing.assert_close(probabilities.sum(dim=1), th.full((50,), float(len(parts))))
        actions = distribution.sample()
        assert is_allowed(actions, masks, env.envs[0].unwrapped.sizes).all()
        _, log_prob, entropy = model.policy.evaluate_actions(tensors, actions)
        th.testing.assert_close(distribution.log_prob(actions), log_prob)
        th.testing.assert_close(distribution.entropy(), entropy)

    def test_what_is_not_allowed_has_no_likelihood_and_no_gradient(self, env, model):
        tensors = model.policy.obs_to_tensor(some_observations(env))[0]
        masks, sizes = tensors["action_mask"], env.envs[0].unwrapped.sizes
        # the first value of the first variable that is not allowed, where there is one
        rows = (masks[:, : sizes[0]] == 0).any(dim=1)
        tensors = {key: value[rows] for key, value in tensors.items()}
        actions = model.policy.get_distribution(tensors).mode().reshape(int(rows.sum()), -1)
        actions[:, 0] = (masks[rows, : sizes[0]] == 0).int().argmax(dim=1)
        _, log_prob, _ = model.policy.evaluate_actions(tensors, actions.squeeze(1))
        assert (log_prob.exp() == 0).all()
        log_prob.sum().backward()
        assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.policy.parameters())

    def test_probes_see_the_gradient_of_allowed_outputs(self, env, model):
        tensors = model.policy.obs_to_tensor(some_observations(env))[0]
        policy, masks = model.policy, tensors["action_mask"]
        latent, heads = policy.latent_pi(tensors).detach(), policy.grouping.heads_at(tensors)
        actions = policy.get_distribution(tensors).sample()
        found = grad_log_prob(policy, latent, heads, actions, masks)
        assert not found[masks == 0].any()
        # of each variable: one-hot action minus probabilities
        own = head_outputs(policy, latent, [0, 1])[0][th.arange(50), heads]
        sizes = env.envs[0].unwrapped.sizes
        for outputs, mask, gradient, action in zip(
            own.split(sizes, 1), masks.split(sizes, 1), found.split(sizes, 1), actions.reshape(50, -1).T, strict=True
        ):
            weights = outputs.exp() * mask
            expected = th.nn.functional.one_hot(action, mask.shape[1]) - weights / weights.sum(dim=1, keepdim=True)
            th.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)
        assert not grad_log_prob(policy, latent, heads, actions).equal(found)

    def test_reference_policy_sees_masks(self, env, model):
        model.kl_coef = 0.1
        model.learn(64)
        assert model.reference is not None
        rollout = model.rollout_buffer.samples()
        # it still is the policy that collected the rollout
        th.testing.assert_close(model.reference.log_prob(rollout), rollout.old_log_prob)


class TestMasksThatMakeNoSense:
    BROKEN: tuple[tuple[Any, str], ...] = (
        (0, r"entry 'action_mask' of the observation must allow at least one action, got 4 zeros \(environments \[1\]\)"),
        (0.5, r"entry 'action_mask' of the observation must hold 0 or 1 for each action, got 0\.5; if VecNormalize"),
        (-1, r"must hold 0 or 1 for each action, got -1"),
        (2, r"must hold 0 or 1 for each action, got 2"),
        (np.inf, r"observations must be finite"),
        (np.nan, r"observations must be finite"),
    )

    def broken(self, value: float) -> tuple[GRPO, dict[str, Any]]:
        model = make_model(make_env(mask_space=spaces.Box(-np.inf, np.inf, (4,))), **BY_TASK)
        obs = some_observations(make_env(), 3)
        obs["action_mask"] = obs["action_mask"].astype(np.float32)
        obs["action_mask"][1] = value
        return model, obs

    @pytest.mark.parametrize(("value", "message"), BROKEN)
    @pytest.mark.parametrize("deterministic", [True, False])
    def test_predict(self, value, message, deterministic):
        model, obs = self.broken(value)
        with pytest.raises(ValueError, match=message):
            model.predict(obs, deterministic=deterministic)

    @pytest.mark.parametrize(("value", "message"), BROKEN)
    def test_forward(self, value, message):
        model, obs = self.broken(value)
        with pytest.raises(ValueError, match=message):
            model.policy(model.policy.obs_to_tensor(obs)[0])

    def test_distribution(self):
        model, obs = self.broken(0)
        with pytest.raises(ValueError, match="must allow at least one action"):
            model.policy.get_distribution(model.policy.obs_to_tensor(obs)[0])

    def test_one_wrong_number_among_right_ones(self):
        model, obs = self.broken(1)
        obs["action_mask"][2, 3] = 0.25
        with pytest.raises(ValueError, match=r"must hold 0 or 1 for each action, got 0\.25"):
            model.predict(obs)

    def test_a_variable_without_values(self):
        env = make_env(spaces.MultiDiscrete([2, 4, 3]))
        model, obs = make_model(env, **BY_TASK), some_observations(env, 3)
        obs["action_mask"][2, 2:6] = 0
        message = r"must allow at least one value of variable 1 of the action, got 4 zeros \(environments \[2\]\)"
        with pytest.raises(ValueError, match=message):
            model.predict(obs)
        with pytest.raises(ValueError, match=message):
            model.policy(model.policy.obs_to_tensor(obs)[0])

    def test_values_need_no_allowed_action(self):
        """At a time limit SB3 asks for the value of an observation after which nothing is done."""
        model, obs = self.broken(0)
        assert model.policy.predict_values(model.policy.obs_to_tensor(obs)[0]).isfinite().all()

    def test_training_stops_before_it_begins(self):
        class Stuck(MaskedEnv):
            def _obs(self):
                obs = super()._obs()
                return {**obs, "action_mask": 0 * obs["action_mask"]} if self.time == 5 else obs

        model = make_model(make_vec_env(Stuck, 2, seed=0), **BY_TASK)
        before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
        with pytest.raises(ValueError, match=r"got 4 zeros \(environments \[0, 1\]\)"):
            model.learn(64)
        assert all(tensor.equal(before[name]) for name, tensor in model.policy.state_dict().items())

    def test_normalised_masks_are_refused(self):
        env = make_env(mask_space=spaces.Box(0, 1, (4,)))
        model = make_model(VecNormalize(env, norm_obs_keys=["obs", "action_mask"]), **BY_TASK)
        with pytest.raises(
            ValueError, match=r"must hold 0 or 1 .* if VecNormalize normalises it, leave it out of `norm_obs_keys`"
        ):
            model.learn(64)
        make_model(VecNormalize(env, norm_obs_keys=["obs"]), **BY_TASK).learn(64)


class TestSpaces:
    def observation_space(self, entry: Any) -> spaces.Dict:
        return spaces.Dict({"obs": spaces.Box(-1, 1, (2,)), "action_mask": entry})

    @pytest.mark.parametrize(
        ("action_space", "entry"),
        [
            (spaces.Discrete(3), spaces.MultiBinary(3)),
            (spaces.Discrete(3), spaces.Box(-5, 5, (3,))),
            (spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(5)),
        ],
        ids=str,
    )
    def test_that_fit(self, action_space, entry):
        masks = make_action_masks("action_mask", self.observation_space(entry), action_space)
        assert masks is not None
        assert sum(masks.sizes) == entry.shape[0]

    @pytest.mark.parametrize(
        ("action_space", "entry"),
        [
            (spaces.Discrete(3), spaces.MultiBinary(4)),
            (spaces.Discrete(3), spaces.MultiBinary([3, 1])),
            (spaces.Discrete(3), spaces.Box(0, 1, (1, 3))),
            (spaces.Discrete(3), spaces.Discrete(3)),
            (spaces.Discrete(3), spaces.MultiDiscrete([2, 2, 2])),
            (spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(6)),
        ],
        ids=str,
    )
    def test_that_do_not_fit(self, action_space, entry):
        n = 5 if isinstance(action_space, spaces.MultiDiscrete) else 3
        message = re.escape(
            f"`action_mask_key` must name a MultiBinary or Box entry of shape ({n},), a number for each of the actions "
            f"{action_space}, or be None, got 'action_mask', which is {entry}"
        )
        with pytest.raises(ValueError, match=message):
            make_action_masks("action_mask", self.observation_space(entry), action_space)
        assert make_action_masks(None, self.observation_space(entry), action_space) is None

    @pytest.mark.parametrize("action_space", [spaces.Box(-1, 1, (3,)), spaces.MultiBinary(3)], ids=str)
    def test_actions_without_masks(self, action_space):
        message = rf"unless actions are Discrete or MultiDiscrete, got 'action_mask' and {re.escape(str(action_space))}"
        with pytest.raises(ValueError, match=message):
            make_action_masks("action_mask", self.observation_space(spaces.MultiBinary(3)), action_space)

    def test_another_key_must_be_there(self):
        space = self.observation_space(spaces.MultiBinary(3))
        with pytest.raises(ValueError, match="`action_mask_key` must be a key of a Dict observation, got 'mask'"):
            make_action_masks("mask", space, spaces.Discrete(3))
        with pytest.raises(ValueError, match="`action_mask_key` must be a key of a Dict observation, got 'mask'"):
            make_action_masks("mask", spaces.Box(-1, 1, (2,)), spaces.Discrete(3))
        # the default need not
        assert make_action_masks("action_mask", spaces.Box(-1, 1, (2,)), spaces.Discrete(3)) is None
        assert make_action_masks("action_mask", spaces.Dict({"obs": space["obs"]}), spaces.Discrete(3)) is None

    def test_the_constructor_refuses(self):
        env = make_env(mask_space=spaces.MultiBinary(5))
        with pytest.raises(ValueError, match="`action_mask_key` must name a MultiBinary or Box entry of shape"):
            make_model(env)
        with pytest.raises(ValueError, match=r"policy_kwargs.* must not hold 'action_mask_key'"):
            make_model(make_env(), policy_kwargs=dict(action_mask_key=None))

    def test_another_name(self):
        class Renamed(gym.ObservationWrapper):
            def __init__(self, env):
                super().__init__(env)
                self.observation_space = spaces.Dict(self.observation(env.observation_space.spaces))

            def observation(self, observation):
                return {"allowed" if key == "action_mask" else key: value for key, value in observation.items()}

        env = make_vec_env(lambda: Renamed(MaskedEnv()), 2, seed=0)
        make_model(env, action_mask_key="allowed", **BY_TASK).learn(128)
        with pytest.raises(ValueError, match="is not allowed"):
            make_model(env, **BY_TASK).learn(128)


class TestFiles:
    OPTIONS: ClassVar[dict[str, Any]] = dict(regroup_freq=1, merge_kl=None, **BY_TASK)

    def test_training_goes_on(self, tmp_path):
        """As if it had not been saved: masks of the probes are saved with them."""
        whole = make_model(make_env(), **self.OPTIONS).learn(256)
        whole.save(tmp_path / "model")
        loaded = GRPO.load(tmp_path / "model", env=make_env())
        assert loaded.policy.action_masks is not None
        assert isinstance(loaded.regrouper, DecisionRegrouper)
        assert isinstance(whole.regrouper, DecisionRegrouper)
        assert loaded.regrouper.probes.masks is not None
        assert whole.regrouper.probes.masks is not None
        assert loaded.regrouper.probes.masks.any()
        assert loaded.regrouper.probes.masks.equal(whole.regrouper.probes.masks)
        for model in (whole, loaded):
            model.set_env(make_env())
            model.set_random_seed(3)
            model.learn(128, reset_num_timesteps=False)
        for one, other in zip(whole.policy.parameters(), loaded.policy.parameters(), strict=True):
            assert one.equal(other)

    def test_tensors(self, tmp_path):
        model = make_model(make_env(), **self.OPTIONS).learn(128)
        model.save_tensors(tmp_path / "model.safetensors")
        other = make_model(make_env(), **self.OPTIONS)
        other.load_tensors(tmp_path / "model.safetensors")
        assert model.regrouper is not None
        assert other.regrouper is not None
        for one, another in zip(model.regrouper.probes.buffers(), other.regrouper.probes.buffers(), strict=True):
            assert one.equal(another)
        with pytest.raises(ValueError, match=r"no 'regrouper\.probes\.masks'"):
            other.load_tensors(self.without_masks(tmp_path))

    def without_masks(self, folder: Any) -> Any:
        make_model(make_env(), action_mask_key=None, **self.OPTIONS).save_tensors(folder / "other.safetensors")
        return folder / "other.safetensors"

    def test_masks_cannot_be_switched_off_or_on(self, tmp_path):
        make_model(make_env(), **BY_TASK).save(tmp_path / "masks")
        message = r"`action_mask_key` of a saved model cannot be changed: it was built with 'action_mask', got 'no masks'"
        with pytest.raises(ValueError, match=message):
            GRPO.load(tmp_path / "masks", action_mask_key=None)
        make_model(make_env(), action_mask_key=None, **BY_TASK).save(tmp_path / "none")
        message = r"`action_mask_key` of a saved model cannot be changed: it was built with 'no masks', got 'action_mask'"
        with pytest.raises(ValueError, match=message):
            GRPO.load(tmp_path / "none", action_mask_key="action_mask")
        assert GRPO.load(tmp_path / "none").policy.action_masks is None

    def test_where_it_changes_nothing_it_can_be_changed(self, tmp_path, cartpole):
        GRPO("MlpPolicy", cartpole).save(tmp_path / "model")
        assert GRPO.load(tmp_path / "model", action_mask_key=None).policy.action_masks is None

    def test_assignment_is_refused(self):
        model = make_model(make_env(), **BY_TASK)
        model.action_mask_key = None
        with pytest.raises(ValueError, match="`action_mask_key` of a model that is built cannot be changed, got None"):
            model.learn(64)

    def test_policy_alone(self, tmp_path):
        for key in ("action_mask", None):
            model = make_model(make_env(), action_mask_key=key, **BY_TASK)
            model.policy.save(tmp_path / "policy")
            assert (MultiInputPolicy.load(tmp_path / "policy").action_masks is None) == (key is None)


class TestPoliciesOfUsers:
    """Distributions that are SB3's objects."""

    class Shy(MultiInputPolicy):
        """Makes the last action very unlikely; masks come on top of that."""

        def _get_action_dist_from_latent(self, latent_pi):
            logits = self.action_net(latent_pi)
            logits[:, -1] -= 20
            assert isinstance(self.action_dist, CategoricalDistribution)
            return self.action_dist.proba_distribution(logits)

    def test_own_distribution(self):
        model = GRPO(self.Shy, make_env(), n_steps=32, n_groups=1, seed=0, policy_kwargs=dict(net_arch=[8])).learn(128)
        obs = some_observations(make_env())
        actions = model.predict(obs)[0]
        assert is_allowed(actions, obs["action_mask"], [4]).all()
        only_last = {**obs, "action_mask": np.eye(4, dtype=np.int8)[[3] * 50]}
        assert (model.predict(only_last)[0] == 3).all()
        assert (actions[obs["action_mask"].sum(axis=1) > 1] != 3).all()
        obs["action_mask"][7] = 0
        with pytest.raises(ValueError, match=r"got 4 zeros \(environments \[7\]\)"):
            model.predict(obs)

    def test_a_distribution_that_cannot_be_masked(self):
        masks = ActionMasks("action_mask", [2])
        with pytest.raises(ValueError, match="not SB3's categorical ones, got 'action_mask' and DiagGaussianDistribution"):
            masks.restrict(DiagGaussianDistribution(2), th.ones(1, 2))


class TestEvaluation:
    def test_by_task(self):
        model = make_model(make_env(), **BY_TASK)
        evaluations = evaluate_groups(model, make_env(), n_eval_episodes=4)
        assert evaluations.keys() == {0, 1}
        assert all(evaluation.mean_length == 10 for evaluation in evaluations.values())

    def test_callback(self):
        callback = GroupEvalCallback(make_env(), eval_freq=32, n_eval_episodes=4, verbose=0)
        make_model(make_env(), **BY_TASK).learn(128, callback)
        assert callback.last_evaluation.keys() == {0, 1}

    def test_needs_the_masks(self):
        model = make_model(make_env(), action_mask_key=None, **BY_TASK)
        with pytest.raises(ValueError, match="is not allowed"):
            evaluate_groups(model, make_env(), n_eval_episodes=4)


class TestRandomActions:
    """As environments are tried with before training."""

    def test_are_allowed(self, action_space):
        env = MaskedEnv(action_space)
        env.reset(seed=0)
        env.action_space.seed(0)
        obs, taken = env._obs(), set()
        for _ in range(200):
            action = sample_allowed(env.action_space, obs)
            taken.add(str(action))
            # the environment refuses others
            obs = env.step(action)[0] if env.time < 9 else env.reset()[0]
        assert len(taken) == (4 if isinstance(action_space, spaces.Discrete) else 24)

    @pytest.mark.parametrize(
        "observation", [np.zeros(3), {"obs": 1}, {"action_mask": np.zeros(3)}, {"action_mask": 1}, 0, None], ids=str
    )
    def test_without_masks_are_those_of_the_space(self, observation, action_space):
        for seed in range(5):
            action_space.seed(seed)
            expected = action_space.sample()
            action_space.seed(seed)
            np.testing.assert_array_equal(sample_allowed(action_space, observation), expected)


class Plain(gym.Env[np.ndarray, np.int64]):
    """The parity of the time decides which of two actions is allowed."""

    observation_space: Any = spaces.Box(-1, 1, (1,))
    action_space: Any = spaces.Discrete(2)
    time = 0

    def action_masks(self) -> Any:
        return [self.time % 2 == 0, self.time % 2 == 1]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert self.action_masks()[action], "not allowed"
        self.time += 1
        return np.full(1, self.time / 10, np.float32), 1.0, self.time == 10, False, {}


class TestWrapper:
    def test_other_observations_become_a_dict(self):
        env = ActionMaskWrapper(Plain())
        assert env.observation_space == spaces.Dict({"obs": Plain.observation_space, "action_mask": spaces.MultiBinary(2)})
        obs, _ = env.reset()
        assert (obs["obs"].tolist(), obs["action_mask"].tolist()) == ([0.0], [1, 0])
        assert env.observation_space.contains(obs)
        obs, reward, terminated, truncated, _ = env.step(0)
        assert (obs["obs"].tolist(), obs["action_mask"].tolist()) == (pytest.approx([0.1]), [0, 1])
        assert (reward, terminated, truncated) == (1.0, False, False)

    def test_dicts_get_one_more_entry(self):
        class Dicts(Plain):
            observation_space: Any = spaces.Dict({"a": spaces.Discrete(3)})

            def reset(self, *, seed=None, options=None):
                return {"a": 1}, super().reset(seed=seed, options=options)[1]

        env = ActionMaskWrapper(Dicts())
        obs, _ = env.reset()
        assert obs.keys() == env.observation_space.spaces.keys() == {"a", "action_mask"}  # type: ignore[attr-defined]  # a Dict
        assert env.observation_space.contains(obs)

    def test_training(self):
        model = make_model(make_vec_env(lambda: ActionMaskWrapper(Plain()), 2, seed=0)).learn(128)
        assert model.policy.action_masks is not None

    def test_without_it_the_environment_refuses(self):
        with pytest.raises(AssertionError, match="not allowed"):
            GRPO("MlpPolicy", make_vec_env(Plain, 2, seed=0), n_steps=32).learn(128)

    def test_environments_without_the_method(self):
        with pytest.raises(ValueError, match=r"`env` must have a method action_masks\(\), got "):
            ActionMaskWrapper(gym.make("CartPole-v1"))

    def test_other_actions(self):
        with pytest.raises(ValueError, match=r"`env` must have Discrete or MultiDiscrete actions, got Box"):
            ActionMaskWrapper(gym.make("Pendulum-v1"))

    def test_an_entry_of_that_name(self):
        with pytest.raises(ValueError, match="observations must not have an entry 'action_mask' of their own, got Dict"):
            ActionMaskWrapper(MaskedEnv())

    @pytest.mark.parametrize("mask", [[True], [0.5, 1.0], [2, 0], [[True, False]], True])
    def test_bad_masks(self, mask):
        class Bad(Plain):
            def action_masks(self):
                return mask

        with pytest.raises(ValueError, match=rf"`env.action_masks\(\)` must return 2 booleans, got {re.escape(str(mask))}"):
            ActionMaskWrapper(Bad()).reset()


@st.composite
def outputs_and_masks(draw: st.DrawFn) -> tuple[list[int], th.Tensor, th.Tensor, th.Tensor]:
    """Sizes of variables, outputs of two heads, and masks that allow at least one value of each variable."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    generator = th.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.floats(0.01, 100))
    one, other = (scale * th.randn(6, sum(sizes), generator=generator) for _ in range(2))
    masks = (th.rand(6, sum(sizes), generator=generator) < draw(st.floats(0, 1))).float()
    for part in masks.split(sizes, dim=1):
        part[th.arange(6), th.randint(part.shape[1], (6,), generator=generator)] = 1
    return sizes, one, other, masks


class TestDistributions:
    """Numbers are compared with scipy's in tests/action_masks."""

    @property_test
    @given(outputs_and_masks(), st.floats(0.01, 1e4))
    def test_everything_is_finite(self, drawn, factor):
        sizes, one, other, masks = drawn
        family = make_action_distribution(spaces.MultiDiscrete(sizes), use_sde=False, masked=True)
        one.requires_grad_()
        other.requires_grad_()
        p, q = (family.params(mask_outputs(outputs, masks), None) for outputs in (one, other))
        actions = family.sample(p)
        assert is_allowed(actions, masks, sizes).all()
        assert is_allowed(family.mode(p), masks, sizes).all()
        probabilities = th.cat([part.exp() for part in p], dim=1)
        assert not probabilities[masks == 0].any()
        th.testing.assert_close(probabilities.sum(dim=1), th.full((6,), float(len(sizes))))
        entropy, kl, log_prob = family.entropy(p), family.kl(p, q), family.log_prob(p, actions)
        assert entropy is not None
        assert (entropy >= -1e-5).all()
        assert (kl >= -1e-3).all()
        loss = factor * (entropy.sum() + kl.sum() + log_prob.sum())
        gradients = th.autograd.grad(loss, [one, other])
        assert loss.isfinite()
        for gradient in gradients:
            assert gradient.isfinite().all()
            assert not gradient[masks == 0].any()

    def test_masks_that_allow_all_change_nothing(self):
        outputs = th.randn(7, 5)
        plain, masked = (
            make_action_distribution(spaces.Discrete(5), use_sde=False, masked=masked) for masked in (False, True)
        )
        assert masked.params(mask_outputs(outputs, th.ones(7, 5)), None).equal(plain.params(outputs, None))

    def test_the_rest_of_a_distribution(self):
        """3/4 and 1/4 are left of 1/2, 1/3 and 1/6 where the second is not allowed."""
        family = make_action_distribution(spaces.Discrete(3), use_sde=False, masked=True)
        outputs = th.tensor([[1 / 2, 1 / 3, 1 / 6]]).log()
        params = family.params(mask_outputs(outputs, th.tensor([[1, 0, 1]])), None)
        assert params.exp().tolist() == [pytest.approx([0.75, 0.0, 0.25])]
        assert params[0, 1] == LEAST_LOG_PROB
        entropy = family.entropy(params)
        assert entropy is not None
        # -(3/4 log 3/4 + 1/4 log 1/4)
        assert entropy.item() == pytest.approx(0.5623351)

    def test_no_mask_is_the_same_object(self):
        outputs = th.randn(3, 4)
        assert mask_outputs(outputs, None) is outputs

    def test_sampled_shares(self):
        family = make_action_distribution(spaces.Discrete(3), use_sde=False, masked=True)
        outputs = th.tensor([1 / 2, 1 / 3, 1 / 6]).log().expand(20_000, 3)
        th.manual_seed(0)
        drawn = family.sample(family.params(mask_outputs(outputs, th.tensor([1, 0, 1])), None))
        shares = drawn.bincount(minlength=3) / 20_000
        assert shares.tolist() == [pytest.approx(0.75, abs=0.02), 0.0, pytest.approx(0.25, abs=0.02)]


@pytest.mark.parametrize(("sizes", "expected"), [([3], [[0, 1, 0], [1, 0, 0]]), ([1, 2], [[1, 1, 0], [1, 1, 0]])])
def test_masks_that_allow_nothing_are_mended(sizes, expected):
    given = np.array([[0, 1, 0], [0, 0, 0]], np.int8)
    assert ActionMasks("action_mask", sizes).allow_something(given).tolist() == expected
    assert given.tolist() == [[0, 1, 0], [0, 0, 0]]
