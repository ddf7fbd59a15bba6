"""Training without a critic: what it learns, what stands beside it, and how it goes on after a file."""

import io
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]  # tensorboard has no types
from tiny_envs import CountingEnv, RandomEnv

from sb3_grpo import GRPO
from sb3_grpo.regroup_plan import Merge, Split
from sb3_grpo.vec_env.shared_start import make_group_vec_env

ESTIMATORS = ["outcome", "process", "time_step"]
N_ENVS, LENGTH = 8, 5
# action space, and the largest reward of a step, which is the sum of its actions
SPACES: dict[str, tuple[Callable[[], spaces.Space[Any]], float]] = {
    "discrete": (partial(spaces.Discrete, 3), 2),
    "box": (partial(spaces.Box, -1, 1, (2,)), 2),
    "multi_discrete": (partial(spaces.MultiDiscrete, [2, 3]), 3),
    "multi_binary": (partial(spaces.MultiBinary, 3), 3),
}
# once all members take the best actions their rewards are alike
CONVERGED = pytest.mark.filterwarnings('ignore:advantage_estimator="process" compares')


def box(n: int = 2) -> spaces.Box:
    return spaces.Box(-1, 1, (n,), np.float32)


def tasks() -> spaces.Dict:
    return spaces.Dict({"x": box(), "task": spaces.Discrete(3)})


def random_env(make_action_space: Any, make_observation_space: Any = box) -> RandomEnv:
    """With spaces of its own: their generators are the environment's."""
    return RandomEnv(make_observation_space(), make_action_space(), LENGTH)


def make_env(estimator: str, make_one: Any, n_envs: int = N_ENVS) -> VecEnv:
    if estimator == "time_step":
        return make_vec_env(make_one, n_envs, seed=0)
    return make_group_vec_env(make_one, n_envs, seed=0)


def make_model(estimator: str, make_one: Any, policy: str = "MlpPolicy", env: VecEnv | None = None, **kwargs: Any) -> GRPO:
    defaults: dict[str, Any] = dict(n_steps=20, batch_size=40, n_epochs=4, learning_rate=1e-2, seed=0, device="cpu")
    defaults |= dict(policy_kwargs=dict(net_arch=[16]), advantage_estimator=estimator)
    return GRPO(policy, env or make_env(estimator, make_one), **{**defaults, **kwargs})


def states(policy: Any) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in policy.state_dict().items()}


def same(one: dict[str, th.Tensor], other: dict[str, th.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(value.equal(other[name]) for name, value in one.items())


class TestLearning:
    @staticmethod
    def score(model: GRPO, n: int = 400) -> float:
        """Mean reward of a step, with actions that are drawn."""
        obs = np.random.default_rng(0).uniform(-1, 1, (n, 2)).astype(np.float32)
        return float(model.predict(obs)[0].reshape(n, -1).sum(axis=1).mean())

    @CONVERGED
    @pytest.mark.parametrize(
        ("name", "estimator"),
        [
            *(("discrete", estimator) for estimator in ESTIMATORS),
            ("box", "time_step"),
            ("multi_discrete", "outcome"),
            ("multi_binary", "process"),
        ],
    )
    def test_finds_the_best_actions(self, name, estimator):
        make_action_space, best = SPACES[name]
        kwargs: dict[str, Any] = dict(net_arch=[16], **(dict(log_std_init=-1.0) if name == "box" else {}))
        model = make_model(estimator, partial(random_env, make_action_space), n_groups=1, policy_kwargs=kwargs)
        before = self.score(model)
        model.learn(10 * 20 * N_ENVS)
        assert before < 0.65 * best
        # actions that are drawn from a Gaussian distribution miss the best one by its width
        assert self.score(model) > (0.65 if name == "box" else 0.9) * best
        assert not any("value" in parameter for parameter, _ in model.policy.named_parameters())

    def test_control_where_all_episodes_bring_the_same_nothing_is_learnt(self):
        model = make_model("outcome", partial(random_env, partial(spaces.Discrete, 1)), n_groups=1)
        before = states(model.policy)
        model.learn(20 * N_ENVS)
        assert model.logger.name_to_value["groups/degenerate_fraction"] == 1
        assert same(states(model.policy), before)


class Paying(gym.Wrapper[Any, Any, Any, Any]):
    """Pays in units of the task."""

    def reset(self, **kwargs: Any) -> Any:
        self.obs, info = self.env.reset(**kwargs)
        return self.obs, info

    def step(self, action: Any) -> Any:
        task = int(self.obs["task"])
        self.obs, reward, *rest = self.env.step(action)
        return self.obs, (1 + 9 * task) * float(reward), *rest


def paying_env() -> gym.Env[Any, Any]:
    return Paying(random_env(partial(spaces.Discrete, 3), tasks))


class PaidActions(CountingEnv):
    """Tasks that pay for the second action, the second of them more."""

    def __init__(self) -> None:
        super().__init__(pay=(1.0, 5.0))

    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        return obs, reward * float(action), *rest


class TestDecisionGroups:
    """Heads, their balance and regrouping beside it."""

    @CONVERGED
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_have_weights_of_their_own(self, estimator):
        kwargs: dict[str, Any] = dict(router="discrete", router_kwargs=dict(key="task"), group_score="raw_return", n_epochs=1)
        seen: list[list[float]] = []
        states_after = []
        for group_coef in (0.05, 0.0):
            model = make_model(estimator, paying_env, "MultiInputPolicy", **kwargs, group_coef=group_coef).learn(20 * N_ENVS)
            seen.append([record.weight for record in model.groups])
            states_after.append(states(model.policy))
            assert model.policy.n_heads == len(model.groups) == 3
        assert len(set(seen[0])) == 3
        # the best paid task is ahead
        assert seen[0][2] < 1 < max(seen[0])
        assert seen[1] == [1, 1, 1]
        assert not same(*states_after)

    @CONVERGED
    @pytest.mark.parametrize("estimator", ["process", "time_step"])
    def test_of_the_random_router_may_change(self, estimator):
        kwargs: dict[str, Any] = dict(
            n_groups=4, merge_kl=1e6, split_kl=None, regroup_freq=1, n_epochs=1, kl_coef=0.1, ref_update_freq=2
        )
        model = make_model(estimator, partial(random_env, partial(spaces.Discrete, 3)), **kwargs)
        assert model.policy.n_heads == 4
        model.learn(6 * 20 * N_ENVS)
        assert model.regroup_history
        assert model.policy.n_heads < 4

    def test_tasks_whose_episodes_differ_in_length(self):
        kwargs: dict[str, Any] = dict(router="one_hot", router_kwargs=dict(columns=(1, 3)), group_score="raw_return")
        model = make_model(
            "time_step", PaidActions, **kwargs, env=make_vec_env(PaidActions, 4, seed=0), n_steps=32, batch_size=32
        )
        model.learn(2 * 128)
        by_task = {record.group: record.weight for record in model.groups}
        assert by_task[1] < 1 < by_task[0]


class TestOptions:
    """Arguments of GRPO that reach the loss."""

    @staticmethod
    def trained(estimator: str, **kwargs: Any) -> dict[str, th.Tensor]:
        model = make_model(estimator, discrete_env, n_groups=1, learning_rate=0.05, **kwargs).learn(2 * 20 * N_ENVS)
        assert all(value.isfinite().all() for value in model.policy.state_dict().values())
        return states(model.policy)

    def test_clip_range_above(self):
        same_range, plain, wider = (self.trained("outcome", clip_range_high=high) for high in (0.2, None, 0.4))
        assert same(same_range, plain)
        assert not same(wider, plain)

    @pytest.mark.parametrize("estimator", ["outcome", "process"])
    def test_ratios_of_trajectories(self, estimator):
        plain, steps, trajectories = (
            self.trained(estimator, estimator_kwargs=kwargs, kl_coef=0.1)
            for kwargs in (None, dict(ratio="step"), dict(ratio="trajectory"))
        )
        assert same(plain, steps)
        assert not same(plain, trajectories)

    def test_ratios_of_trajectories_learn(self):
        kwargs: dict[str, Any] = dict(estimator_kwargs=dict(ratio="trajectory"), clip_range=0.05, clip_range_high=0.1)
        model = make_model("outcome", discrete_env, n_groups=1, **kwargs).learn(12 * 20 * N_ENVS)
        assert TestLearning.score(model) > 0.8 * SPACES["discrete"][1]


class TestSurroundings:
    """What users put around training."""

    @pytest.mark.parametrize("estimator", ["outcome", "time_step"])
    def test_vec_normalize_monitor_and_evaluation(self, estimator, tmp_path):
        env = VecNormalize(make_env(estimator, "CartPole-v1", 4))
        model = make_model(estimator, "CartPole-v1", env=env, n_steps=500, batch_size=500, n_epochs=1)
        evaluation = VecNormalize(make_vec_env("CartPole-v1", 1, seed=9), training=False)
        callback = EvalCallback(evaluation, eval_freq=500, n_eval_episodes=2, log_path=str(tmp_path), verbose=0)
        model.learn(2000, callback)
        # it has seen the first observations too
        assert isinstance(env.obs_rms, RunningMeanStd)
        assert env.obs_rms.count > 2000
        assert callback.best_mean_reward > 0
        # Monitor's episodes are those of the environment, whatever is normalised
        assert model.ep_info_buffer is not None
        assert all(episode["r"] == episode["l"] for episode in model.ep_info_buffer)
        assert (tmp_path / "evaluations.npz").exists()

    @pytest.mark.parametrize(("estimator", "kl_coef"), [("outcome", 0.0), ("process", 0.1), ("time_step", 0.1)])
    def test_tags_of_tensorboard(self, estimator, kl_coef, tmp_path):
        make_one = partial(random_env, partial(spaces.Discrete, 3))
        make_model(estimator, make_one, kl_coef=kl_coef, tensorboard_log=str(tmp_path)).learn(3 * 20 * N_ENVS)
        (run,) = tmp_path.iterdir()
        events = EventAccumulator(str(run))
        events.Reload()
        tags = set(events.Tags()["scalars"])
        assert not {"train/value_loss", "train/explained_variance"} & tags
        assert ("train/reference_kl" in tags) == (kl_coef > 0)
        own = {"groups/sampling_groups", "groups/degenerate_fraction", "groups/unused_fraction"}
        assert {"train/policy_gradient_loss", "train/entropy_loss", "train/approx_kl", "rollout/ep_rew_mean"} | own <= tags
        # episodes of 5 steps in rollouts of 20: nothing is left over. SB3 writes an update's figures with the next rollout's
        assert [event.value for event in events.Scalars("groups/sampling_groups")] == [4, 4]
        assert [event.value for event in events.Scalars("groups/unused_fraction")] == [0, 0]

    def test_control_ppos_advantages_have_these_tags(self):
        env = make_vec_env(partial(random_env, partial(spaces.Discrete, 3)), N_ENVS)
        model = make_model("gae", None, env=env, kl_coef=0.1).learn(20 * N_ENVS)
        tags = model.logger.name_to_value.keys()
        assert {"train/value_loss", "train/explained_variance", "train/reference_kl"} <= tags
        assert "groups/sampling_groups" not in tags


class Episodes(BaseCallback):
    """Keeps the number of the next episode of each environment, after each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[list[int]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.numbers.append(self.training_env.get_attr("next_episode"))


def discrete_env() -> RandomEnv:
    return random_env(partial(spaces.Discrete, 3))


class TestNumbersOfEpisodes:
    """No number is used twice, so that no two sampling groups have the same start."""

    def test_go_on_in_the_next_call_of_learn(self):
        model, seen = make_model("outcome", discrete_env), Episodes()
        for _ in range(2):
            model.learn(2 * 20 * N_ENVS, seen, reset_num_timesteps=False)
        assert model.num_timesteps == 4 * 20 * N_ENVS
        # each rollout has 4 episodes; the fifth begins with the step that ends the fourth
        assert seen.numbers == [[1 + 4 * rollout] * N_ENVS for rollout in range(4)]

    def test_go_on_where_the_environments_are_reset(self):
        model, seen = make_model("outcome", discrete_env), Episodes()
        for _ in range(2):
            model.learn(20 * N_ENVS, seen)
        # the fifth episode was begun, and is given up
        assert seen.numbers == [[1] * N_ENVS, [6] * N_ENVS]

    @pytest.mark.parametrize("kind", ["zip", "safetensors"])
    def test_go_on_after_a_file(self, kind, tmp_path):
        model, path, seen = make_model("outcome", discrete_env).learn(20 * N_ENVS), tmp_path / f"model.{kind}", Episodes()
        loaded = make_model("outcome", discrete_env)
        if kind == "zip":
            model.save(path)
            loaded = GRPO.load(path, env=make_env("outcome", discrete_env))
        else:
            model.save_tensors(path)
            loaded.load_tensors(path)
        loaded.learn(20 * N_ENVS, seen, reset_num_timesteps=False)
        assert seen.numbers == [[6] * N_ENVS]
        make_model("outcome", discrete_env).learn(20 * N_ENVS, seen)
        # control: a model that knows nothing of them
        assert seen.numbers[-1] == [1] * N_ENVS


def rewrite(path: Path, entry: str, change: Callable[[bytes], bytes]) -> None:
    """Change one entry of a zip file."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    content[entry] = change(content[entry])
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in content.items():
            archive.writestr(name, value)


def without(names: tuple[str, ...]) -> Callable[[bytes], bytes]:
    """Leave out tensors whose names begin so."""

    def change(content: bytes) -> bytes:
        tensors = th.load(io.BytesIO(content), weights_only=True)
        kept = {name: value for name, value in tensors.items() if not name.startswith(names)}
        assert len(kept) < len(tensors)
        file = io.BytesIO()
        th.save(kept, file)
        return file.getvalue()

    return change


class TestFiles:
    """Training goes on after a file as without one, if the environments are reset in both."""

    @staticmethod
    def make(estimator: str = "outcome", **kwargs: Any) -> GRPO:
        defaults: dict[str, Any] = dict(kl_coef=0.2, ref_update_freq=2, ref_tau=0.5, merge_kl=None, split_kl=None)
        return make_model(estimator, discrete_env, **{**defaults, **kwargs})

    @staticmethod
    def go_on(model: GRPO, estimator: str, n_rollouts: int = 3) -> None:
        model.set_env(make_env(estimator, discrete_env))
        model.set_random_seed(3)
        model.learn(n_rollouts * 20 * N_ENVS, reset_num_timesteps=False)

    @staticmethod
    def everything(model: GRPO) -> dict[str, th.Tensor]:
        state = {**states(model.policy), **{name: value.clone() for name, value in model.training_state().items()}}
        for index, moments in model.policy.optimizer.state_dict()["state"].items():
            state |= {f"{name} {index}": value.clone() for name, value in moments.items()}
        assert any(name.startswith("reference.") for name in state) == (model.kl_coef > 0)
        return state

    @CONVERGED
    @pytest.mark.parametrize(
        ("estimator", "kind", "n_groups", "events"),
        [
            ("outcome", "zip", 1, []),
            ("process", "safetensors", 1, [Split(0, 1, [3, 5], 0.4)]),
            ("process", "zip", 4, [Merge(0, 1, 0.5, 0.0)]),
            ("time_step", "zip", 1, [Split(0, 1, [3, 5], 0.4)]),
            ("time_step", "safetensors", 4, [Merge(0, 1, 0.5, 0.0)]),
        ],
    )
    def test_goes_on_as_without_a_file(self, estimator, kind, n_groups, events, tmp_path):
        kwargs: dict[str, Any] = dict(n_groups=n_groups, max_groups=4)
        # the reference has followed once, and has other groups than the policy where these have changed
        model, path = self.make(estimator, **kwargs).learn(3 * 20 * N_ENVS), tmp_path / f"model.{kind}"
        for event in events:
            model.policy.regroup(event)
        before = self.everything(model)
        if kind == "zip":
            model.save(path)
            loaded = GRPO.load(path, device="cpu")
        else:
            model.save_tensors(path)
            loaded = self.make(estimator, **kwargs)
            loaded.load_tensors(path)
        assert same(self.everything(loaded), before)
        for each in (model, loaded):
            self.go_on(each, estimator)
        assert same(self.everything(model), self.everything(loaded))
        assert not same({**self.everything(model), **before}, self.everything(model))
        assert model.num_timesteps == loaded.num_timesteps == 6 * 20 * N_ENVS

    def test_without_a_coefficient_the_reference_is_dropped(self, tmp_path):
        model = self.make().learn(2 * 20 * N_ENVS)
        model.save(tmp_path / "model")
        loaded = GRPO.load(tmp_path / "model", kl_coef=0.0, ref_update_freq=None)
        assert loaded.reference is None
        self.go_on(loaded, "outcome", 1)
        assert "train/reference_kl" not in loaded.logger.name_to_value
        loaded.save(tmp_path / "model")
        again = GRPO.load(tmp_path / "model", kl_coef=0.2)
        now = states(again.policy)
        self.go_on(again, "outcome", 1)
        assert again.reference is not None
        assert same(states(again.reference.policy), now)

    def test_a_coefficient_of_zero_needs_no_reference_to_follow(self, tmp_path):
        self.make().save(tmp_path / "model")
        with pytest.raises(ValueError, match="`ref_update_freq` must be None where `kl_coef` is 0, got 2"):
            GRPO.load(tmp_path / "model", kl_coef=0.0)

    def test_a_file_without_a_reference_begins_with_the_policy(self, tmp_path):
        """As one that was saved before the first training, or whose tensors have been left out."""
        kwargs: dict[str, Any] = dict(ref_update_freq=None)
        model, path = self.make(**kwargs).learn(20 * N_ENVS), tmp_path / "model.zip"
        model.save(path)
        rewrite(path, "training_state.pt", without(("reference.",)))
        loaded, tensors = GRPO.load(path, device="cpu"), self.make(**kwargs)
        tensors.load_tensors(path)
        for each in (loaded, tensors):
            assert each.reference is None
            self.go_on(each, "outcome", 1)
            assert each.reference is not None
            assert same(states(each.reference.policy), states(model.policy))

    def test_files_of_earlier_versions(self, tmp_path):
        """They know nothing of references and episodes."""
        model, path = make_model("gae", None, env=make_vec_env(discrete_env, 2)).learn(40), tmp_path / "model.zip"
        for name in ("_next_episode", "kl_coef", "ref_update_freq", "ref_tau", "clip_range_high", "group_size"):
            del vars(model)[name]
        model.estimator_kwargs = None
        del vars(model)["estimator_kwargs"]
        model.save(path)
        loaded, tensors = GRPO.load(path, device="cpu"), make_model("gae", None, env=make_vec_env(discrete_env, 2))
        tensors.load_tensors(path)
        for each in (loaded, tensors):
            assert each.reference is None
            assert each.kl_coef == 0
            assert same(states(each.policy), states(model.policy))
            each.set_env(make_vec_env(discrete_env, 2))
            each.learn(40)

    def test_ppo_loads_what_has_a_critic_and_a_reference(self, tmp_path):
        model = self.make("gae", env=make_vec_env(discrete_env, N_ENVS, seed=0), n_groups=1).learn(3 * 20 * N_ENVS)
        assert model.reference is not None
        model.save(tmp_path / "model")
        loaded = PPO.load(tmp_path / "model", env=make_vec_env(discrete_env, N_ENVS))
        assert same(states(loaded.policy), states(model.policy))
        loaded.learn(20 * N_ENVS)

    def test_ppo_does_not_load_what_has_no_critic(self, tmp_path):
        self.make(n_groups=1).save(tmp_path / "model")
        with pytest.raises(RuntimeError, match=r"Missing key.*value_net\.weight"):
            PPO.load(tmp_path / "model")
