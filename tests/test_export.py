"""Exported policies act as `predict` does, with what reads the files: onnxruntime and torch, without this package."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tiny_envs import RandomEnv

from sb3_grpo import GRPO, MlpPolicy, export, export_onnx, export_pt2, export_torchscript
from sb3_grpo.heads import split_heads
from sb3_grpo.regroup_plan import Merge, Split

VECTOR = spaces.Box(-1, 1, (6,), np.float32)
IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)
DISCRETE = spaces.Discrete(3)
BOX = spaces.Box(np.array([-0.5, -2], np.float32), np.array([0.25, 1], np.float32))
DICT = spaces.Dict(
    {
        "task": spaces.Discrete(3),
        "x": VECTOR,
        "switches": spaces.MultiBinary(4),
        "image": IMAGE,
        "counts": spaces.MultiDiscrete([2, 4]),
    }
)
ONE_HOT: dict[str, Any] = dict(router="one_hot", router_kwargs=dict(columns=(2, 6)))


def masked(n: int) -> spaces.Dict:
    return spaces.Dict({"task": spaces.Discrete(2), "x": VECTOR, "action_mask": spaces.MultiBinary(n)})


def by_sign(obs: th.Tensor) -> th.Tensor:
    return th.where(obs[:, 0] > 0, 1, 0)


class BySigns:
    """The same as an object; what it reads is an integer that the environment gives."""

    def __call__(self, obs: th.Tensor) -> th.Tensor:
        assert obs.ndim == 1
        return obs % 3


def make_model(obs: spaces.Space[Any], action: spaces.Space[Any], policy: str = "MlpPolicy", **kwargs: Any) -> GRPO:
    """All heads different and actions all over their space, without a training."""
    env = DummyVecEnv([lambda: RandomEnv(obs, action)] * 2)
    model = GRPO(policy, env, n_steps=32, batch_size=32, seed=0, device="cpu", **kwargs)
    return scramble(model)


def scramble(model: Any) -> Any:
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.normal_(0, 0.5)
    if isinstance(model, GRPO) and not model.policy.grouping.is_fitted:
        model.policy.grouping.router.fit(obs_as_tensor(draw(model.observation_space, 200), th.device("cpu")), seed=0)
    return model


def draw(space: spaces.Space[Any], n: int) -> Any:
    """
    :return: other observations than those that an export is compared on
    """
    space.seed(7)
    sampled: list[Any] = [space.sample() for _ in range(n)]
    for obs in sampled if isinstance(space, spaces.Dict) and "action_mask" in space.spaces else []:
        # a value of each variable: of three and of two
        obs["action_mask"][[0, 3][: len(obs["action_mask"]) // 2]] = 1
    return (
        {key: np.stack([obs[key] for obs in sampled]) for key in space}
        if isinstance(space, spaces.Dict)
        else np.stack(sampled)
    )


def run_onnx(path: Path, obs: Any) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = obs if isinstance(obs, dict) else {"observation": obs}
    assert {entry.name for entry in session.get_inputs()} == inputs.keys()
    assert [entry.name for entry in session.get_outputs()] == ["action"]
    assert session.get_inputs()[0].shape[0] == session.get_outputs()[0].shape[0] == "batch"
    return session.run(None, inputs)[0]


def as_tensors(obs: Any) -> list[th.Tensor]:
    return [th.as_tensor(obs[key]) for key in sorted(obs)] if isinstance(obs, dict) else [th.as_tensor(obs)]


def run_pt2(path: Path, obs: Any) -> np.ndarray:
    return th.export.load(path).module()(*as_tensors(obs)).detach().numpy()


def run_torchscript(path: Path, obs: Any) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return th.jit.load(path)(*as_tensors(obs)).detach().numpy()


Export = Callable[..., None]
FORMATS: dict[str, tuple[Export, Callable[[Path, Any], np.ndarray]]] = {
    "onnx": (export_onnx, run_onnx),
    "pt2": (export_pt2, run_pt2),
    "torchscript": (export_torchscript, run_torchscript),
}
every_format = pytest.mark.parametrize("name", FORMATS)


def first(obs: Any, n: int) -> Any:
    return {key: value[:n] for key, value in obs.items()} if isinstance(obs, dict) else obs[:n]


def check_same(model: Any, path: Path, name: str, obs: Any, seen: Any = None) -> np.ndarray:
    """
    :param obs: what the file gets
    :param seen: what the policy gets, if it is something else
    :return: the actions
    """
    expected, _ = model.predict(obs if seen is None else seen, deterministic=True)
    for n in (1, 3, len(expected)):
        actions = FORMATS[name][1](path, first(obs, n))
        assert actions.dtype == expected.dtype
        if isinstance(model.action_space, spaces.Box):
            np.testing.assert_allclose(actions, expected[:n], rtol=1e-4, atol=1e-5)
        else:
            np.testing.assert_array_equal(actions, expected[:n])
    # otherwise nothing would have been compared
    assert len(np.unique(expected, axis=0)) > 1
    return expected


MODELS: dict[str, Callable[[], GRPO]] = {
    "one-hot, hidden": lambda: make_model(VECTOR, DISCRETE, router="one_hot", router_kwargs=dict(columns=(2, 6), hide=True)),
    "random, Box": lambda: make_model(VECTOR, BOX, n_groups=4),
    "Dict": lambda: make_model(
        DICT,
        spaces.MultiDiscrete([3, 2]),
        "MultiInputPolicy",
        router="discrete",
        router_kwargs=dict(key="task", hide=True),
    ),
    "random over Dict": lambda: make_model(DICT, DISCRETE, "MultiInputPolicy", n_groups=3),
    "callable, MultiBinary": lambda: make_model(
        VECTOR, spaces.MultiBinary(3), router=by_sign, router_kwargs=dict(n_cells=2), n_groups=2
    ),
    "callable on Discrete": lambda: make_model(
        spaces.Discrete(9), DISCRETE, router=BySigns(), router_kwargs=dict(n_cells=3), n_groups=3
    ),
    "MultiDiscrete observations": lambda: make_model(spaces.MultiDiscrete([3, 4]), DISCRETE, n_groups=2),
    "gSDE": lambda: make_model(VECTOR, BOX, use_sde=True, **ONE_HOT),
    "gSDE, squashed": lambda: make_model(VECTOR, BOX, use_sde=True, policy_kwargs=dict(squash_output=True), **ONE_HOT),
    "images": lambda: make_model(IMAGE, DISCRETE, "CnnPolicy", n_groups=2),
    "masks": lambda: make_model(masked(3), DISCRETE, "MultiInputPolicy", router="task"),
    "masks of several variables": lambda: make_model(
        masked(5), spaces.MultiDiscrete([3, 2]), "MultiInputPolicy", router="task", router_kwargs=dict(hide=True)
    ),
    "one group": lambda: make_model(VECTOR, DISCRETE, n_groups=1),
    "no critic": lambda: make_model(VECTOR, DISCRETE, advantage_estimator="time_step", **ONE_HOT),
}


# kinds between which all parts of a policy are in a file of each format
EXPORTED_TOO = {
    "one-hot, hidden": ["pt2"],
    "random over Dict": ["onnx"],
    "callable, MultiBinary": ["pt2"],
    "gSDE, squashed": ["onnx"],
    "masks of several variables": ["onnx"],
}


class TestActions:
    @pytest.mark.parametrize("kind", MODELS)
    def test_are_those_of_predict(self, kind, tmp_path):
        model = MODELS[kind]()
        obs = draw(model.observation_space, 60)
        if kind != "one group":
            assert len(model.policy.groups(obs_as_tensor(obs, th.device("cpu"))).unique()) == model.policy.n_heads > 1
        # TorchScript is fast, ONNX has the fewest operations
        for name in ["torchscript", *EXPORTED_TOO.get(kind, [])]:
            FORMATS[name][0](model, tmp_path / name)
            check_same(model, tmp_path / name, name, obs)

    @every_format
    def test_box_actions_are_fitted_into_their_space(self, name, tmp_path):
        for squash in (False, True) if name == "torchscript" else (True,):
            kwargs: dict[str, Any] = dict(use_sde=True, policy_kwargs=dict(squash_output=True)) if squash else {}
            model = make_model(VECTOR, BOX, **ONE_HOT, **kwargs)
            obs = draw(VECTOR, 60)
            # the policy's own actions leave the space, or fill [-1, 1]
            assert not all(BOX.contains(action) for action in model.policy.most_likely(th.as_tensor(obs)).detach().numpy())
            FORMATS[name][0](model, tmp_path / "file")
            assert all(BOX.contains(action) for action in check_same(model, tmp_path / "file", name, obs))

    def test_after_training_merging_splitting_and_loading(self, tmp_path):
        env = make_vec_env("sb3_grpo/TaskCartPole-v0", n_envs=4, seed=0)
        router: dict[str, Any] = dict(router="one_hot", router_kwargs=dict(columns=(4, 8)))
        model = GRPO("MlpPolicy", env, n_steps=64, n_epochs=2, learning_rate=0.01, seed=0, device="cpu", **router).learn(512)
        obs = draw(VECTOR, 200)[:, :4]
        obs = np.concatenate([obs, np.eye(4, dtype=np.float32)[np.arange(200) % 4]], axis=1)
        heads = []
        for events in ([], [Merge(0, 2, 0.5, 0.0)], [Split(0, 2, [2], 1.0)], [Merge(1, 3, 0.5, 0.0), Merge(0, 1, 0.5, 0.0)]):
            for event in events:
                model.policy.regroup(event)
            scramble(model)
            heads.append(model.policy.n_heads)
            model.save(tmp_path / "model")
            loaded = GRPO.load(tmp_path / "model", device="cpu")
            for one in (model, loaded):
                export_torchscript(one, tmp_path / "file", observations=obs)
                check_same(model, tmp_path / "file", "torchscript", obs)
        assert heads == [4, 3, 4, 2]
        export_onnx(loaded, tmp_path / "file")
        check_same(model, tmp_path / "file", "onnx", obs)

    def test_random_router_before_the_first_rollout(self, tmp_path):
        """Everything is in cell 0."""
        env = DummyVecEnv([lambda: RandomEnv(VECTOR, DISCRETE)])
        model = GRPO("MlpPolicy", env, n_steps=32, batch_size=32, seed=0, device="cpu", n_groups=4)
        for parameter in model.policy.action_net.parameters():
            parameter.data.normal_()
        assert not model.policy.grouping.is_fitted
        export_onnx(model, tmp_path / "file")
        check_same(model, tmp_path / "file", "onnx", draw(VECTOR, 60))

    @pytest.mark.parametrize(("space", "kwargs"), [(DISCRETE, {}), (BOX, dict(use_sde=True))], ids=["discrete", "gsde"])
    def test_of_ppo(self, space, kwargs, tmp_path):
        model = scramble(PPO("MlpPolicy", DummyVecEnv([lambda: RandomEnv(VECTOR, space)]), n_steps=64, device="cpu", **kwargs))
        for name in FORMATS if space is DISCRETE else ["torchscript"]:
            FORMATS[name][0](model, tmp_path / name)
            check_same(model, tmp_path / name, name, draw(VECTOR, 60))

    def test_of_a_subclass_with_its_own_distribution(self, tmp_path):
        class Without(MlpPolicy):
            """Action 0 is never taken."""

            def get_distribution(self, obs):
                distribution = super().get_distribution(obs)
                assert isinstance(distribution.distribution, th.distributions.Categorical)
                return distribution.proba_distribution(distribution.distribution.logits - th.tensor([1e8, 0, 0]))

        env = DummyVecEnv([lambda: RandomEnv(VECTOR, DISCRETE)])
        model = scramble(GRPO(Without, env, n_steps=32, batch_size=32, device="cpu", **ONE_HOT))
        obs = draw(VECTOR, 60)
        assert 0 in model.policy.actions.mode(model.policy.heads(th.as_tensor(obs))[0])
        export_pt2(model, tmp_path / "file")
        assert 0 not in check_same(model, tmp_path / "file", "pt2", obs)

    @every_format
    def test_model_is_as_it_was(self, name, tmp_path, monkeypatch):
        """Also the noise of gSDE, and what torch's distributions check of their arguments."""
        # torch.compile switches it off for the whole process
        monkeypatch.setattr(th.distributions.Distribution, "_validate_args", True)
        model = make_model(VECTOR, BOX, use_sde=True, **ONE_HOT)
        model.policy.reset_noise()
        noise, weights = vars(model.policy.action_dist)["exploration_mat"], model.policy.state_dict()
        FORMATS[name][0](model, tmp_path / "file")
        assert vars(model.policy.action_dist)["exploration_mat"] is noise
        assert all(value.equal(weights[key]) for key, value in model.policy.state_dict().items())
        assert all(parameter.requires_grad for parameter in model.policy.parameters())
        with pytest.raises(ValueError, match="Expected parameter"):
            th.distributions.Normal(0.0, -1.0)
        # nothing of the tracer is left in it
        obs = th.as_tensor(draw(VECTOR, 5))
        assert model.policy(obs)[0].isfinite().all()
        model.policy.evaluate_actions(obs, th.zeros(5, 2))[1].sum().backward()


def normalized(space: spaces.Space[Any], **kwargs: Any) -> VecNormalize:
    """Statistics far from 0 and 1."""
    env = VecNormalize(DummyVecEnv([lambda: RandomEnv(space, DISCRETE)]), clip_obs=1.5, **kwargs)
    for statistics in env.obs_rms.values() if isinstance(env.obs_rms, dict) else [env.obs_rms]:
        random = np.random.default_rng(1)
        statistics.mean, statistics.var = random.normal(1000, 5, (6,)), random.uniform(1, 4, (6,))
    return env


class TestVecNormalize:
    FAR = spaces.Box(-np.inf, np.inf, (6,), np.float32)

    def make(self, env: VecNormalize, **kwargs: Any) -> GRPO:
        policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
        return scramble(GRPO(policy, env, n_steps=32, batch_size=32, seed=0, device="cpu", n_groups=4, **kwargs))

    def observations(self) -> np.ndarray:
        return np.random.default_rng(3).normal(1000, 5, (60, 6)).astype(np.float32)

    @every_format
    def test_statistics_are_in_the_file(self, name, tmp_path):
        env = normalized(self.FAR)
        model, obs = self.make(env), self.observations()
        assert not isinstance(env.obs_rms, dict)
        seen = np.clip((obs - env.obs_rms.mean) / np.sqrt(env.obs_rms.var + 1e-8), -1.5, 1.5).astype(np.float32)
        assert (abs(seen) == 1.5).any()
        FORMATS[name][0](model, tmp_path / "file")
        expected = check_same(model, tmp_path / "file", name, obs, seen)
        if name != "torchscript":
            # the formats differ in how the policy is written, not in which statistics there are
            return
        # and after loading those that are given
        model.save(tmp_path / "model")
        loaded = GRPO.load(tmp_path / "model", device="cpu")
        FORMATS[name][0](loaded, tmp_path / "file", env)
        check_same(model, tmp_path / "file", name, obs, seen)
        # forgotten, actions are others
        FORMATS[name][0](loaded, tmp_path / "file")
        assert (FORMATS[name][1](tmp_path / "file", obs) != expected).mean() > 0.2

    def test_only_some_entries_are_normalized(self, tmp_path):
        space = spaces.Dict({"far": self.FAR, "image": IMAGE, "near": VECTOR})
        env = normalized(space, norm_obs_keys=["far"])
        model = self.make(env)
        obs = {**draw(space, 60), "far": self.observations()}
        export_onnx(model, tmp_path / "file")
        seen = {
            **obs,
            "far": ((obs["far"] - env.obs_rms["far"].mean) / np.sqrt(env.obs_rms["far"].var + 1e-8)).clip(-1.5, 1.5),
        }
        check_same(model, tmp_path / "file", "onnx", obs, {**seen, "far": seen["far"].astype(np.float32)})

    def test_rewards_alone(self, tmp_path):
        env = VecNormalize(DummyVecEnv([lambda: RandomEnv(VECTOR, DISCRETE)]), norm_obs=False)
        model = self.make(env)
        export_torchscript(model, tmp_path / "file")
        check_same(model, tmp_path / "file", "torchscript", draw(VECTOR, 60))

    def test_statistics_of_other_observations_are_refused(self, tmp_path):
        model = make_model(VECTOR, DISCRETE)
        other = VecNormalize(DummyVecEnv([lambda: RandomEnv(spaces.Box(-1, 1, (4,)), DISCRETE)]))
        with pytest.raises(ValueError, match=r"`vec_normalize` must have statistics .* of shape \(4,\)"):
            export_pt2(model, tmp_path / "file", other)
        dict_env = VecNormalize(DummyVecEnv([lambda: RandomEnv(spaces.Dict({"x": VECTOR}), DISCRETE)]))
        with pytest.raises(ValueError, match=r"`vec_normalize` must have statistics .* got 'x'"):
            export_pt2(model, tmp_path / "file", dict_env)


class TestCheck:
    """A file that does not act as the model is not written."""

    @every_format
    def test_swapped_heads_are_noticed(self, name, tmp_path, monkeypatch):
        model = make_model(VECTOR, DISCRETE, **ONE_HOT)
        (tmp_path / "file").write_text("before")
        whole = export.frozen_copy

        def swapped(policy: MlpPolicy) -> MlpPolicy:
            copied = whole(policy)
            heads = split_heads(next(copied.action_net.parameters()).data, 0, 4)
            heads[[0, 1]] = heads[[1, 0]]
            return copied

        monkeypatch.setattr(export, "frozen_copy", swapped)
        with pytest.raises(ValueError, match=r"`model` must act as its policy does when it is traced, but at .* no file was"):
            FORMATS[name][0](model, tmp_path / "file")
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
        assert (tmp_path / "file").read_text() == "before"

    def test_statistics_that_are_left_out_are_noticed(self, tmp_path, monkeypatch):
        env = normalized(TestVecNormalize.FAR)
        model = TestVecNormalize().make(env)
        monkeypatch.setattr(export.ObservationScale, "forward", lambda self, obs: obs)
        with pytest.raises(ValueError, match="`predict` chooses another action"):
            export_torchscript(model, tmp_path / "file")

    def test_actions_that_are_not_clipped_are_noticed(self, tmp_path, monkeypatch):
        model = make_model(VECTOR, BOX, **ONE_HOT)
        monkeypatch.setattr(th.Tensor, "minimum", lambda self, other: self)
        with pytest.raises(ValueError, match="`predict` chooses another action"):
            export_torchscript(model, tmp_path / "file")

    def test_a_policy_that_predicts_otherwise_is_refused(self, tmp_path):
        class Contrary(MlpPolicy):
            """Takes the next action in `predict`."""

            def _predict(self, observation, deterministic=False):
                return (super()._predict(observation, deterministic) + 1) % 3

        env = DummyVecEnv([lambda: RandomEnv(VECTOR, DISCRETE)])
        model = scramble(GRPO(Contrary, env, n_steps=32, batch_size=32, device="cpu", **ONE_HOT))
        with pytest.raises(ValueError, match=r"at 256 of 256 observations"):
            export_torchscript(model, tmp_path / "file")

    def test_only_rounding_may_decide_between_actions(self):
        """Two actions whose likelihoods differ by 1e-6 may be exchanged, others not, and NaN is never right."""
        model = make_model(VECTOR, DISCRETE, n_groups=1)
        for parameter, values in zip(model.policy.action_net.parameters(), (0.0, [1.0, 1.0 + 1e-6, 0.5]), strict=True):
            parameter.data.copy_(th.tensor(values))
        obs = draw(VECTOR, 3)
        expected, _ = model.predict(obs, deterministic=True)
        assert expected.tolist() == [1, 1, 1]
        wrong = export.wrong_actions(model.policy, obs, expected, np.array([0, 1, 2]))
        assert wrong.tolist() == [False, False, True]
        # a more likely one is as wrong
        assert export.wrong_actions(model.policy, obs, np.array([2, 2, 2]), expected).all()
        box = make_model(VECTOR, BOX)
        expected = np.full((3, 2), 0.5, np.float32)
        actions = expected + np.array([[0, 1e-6], [0, 1e-3], [np.nan, 0]], np.float32)
        assert export.wrong_actions(box.policy, obs, expected, actions).tolist() == [False, True, True]


def by_numpy(obs: th.Tensor) -> np.ndarray:
    return (obs.numpy()[:, 0] > 0).astype(int)


def by_branch(obs: th.Tensor) -> th.Tensor:
    return obs[:, 0].long() * 0 + (1 if obs[0, 0] > 0 else 0)


def by_column(obs: th.Tensor) -> th.Tensor:
    return obs[:, 0].long()


class TestErrors:
    @every_format
    @pytest.mark.parametrize("function", [by_numpy, by_branch])
    def test_functions_that_cannot_be_traced(self, name, function, tmp_path):
        model = make_model(VECTOR, DISCRETE, router=function, router_kwargs=dict(n_cells=2), n_groups=2)
        with pytest.raises(ValueError, match=r"`model` must have a policy that torch can trace.* A router function.*no NumPy"):
            FORMATS[name][0](model, tmp_path / "file")
        assert list(tmp_path.iterdir()) == []

    def test_function_that_is_not_called(self, tmp_path):
        model = make_model(VECTOR, DISCRETE, router=by_numpy, router_kwargs=dict(n_cells=2), n_groups=1, max_groups=1)
        export_pt2(model, tmp_path / "file")
        check_same(model, tmp_path / "file", "pt2", draw(VECTOR, 60))

    def test_observations_that_are_drawn_may_not_be_routed(self, tmp_path):
        space = spaces.Box(-5, 5, (6,))
        model = make_model(space, DISCRETE, router=by_column, router_kwargs=dict(n_cells=2), n_groups=2)
        with pytest.raises(ValueError, match=r"`observations` must be some that `predict` accepts, got .* in \[0, 2\)"):
            export_torchscript(model, tmp_path / "file")
        obs = draw(VECTOR, 60)
        obs[:, 0] = np.arange(60) % 2
        export_torchscript(model, tmp_path / "file", observations=obs.tolist())
        check_same(model, tmp_path / "file", "torchscript", obs)

    def test_observations_without_an_entry(self, tmp_path):
        model = MODELS["Dict"]()
        with pytest.raises(ValueError, match=r"`observations` must be a dict with the keys \['counts', .* got dict"):
            export_torchscript(model, tmp_path / "file", observations={"task": np.zeros(3)})
        with pytest.raises(ValueError, match=r"`observations` must be a dict .* got ndarray"):
            export_torchscript(model, tmp_path / "file", observations=np.zeros(3))

    def test_other_algorithms(self, tmp_path):
        with pytest.raises(ValueError, match="`model` must be GRPO or another one with SB3's ActorCriticPolicy, got DQN"):
            export_pt2(DQN("MlpPolicy", "CartPole-v1"), tmp_path / "file")
        with pytest.raises(ValueError, match="`model` must have a policy that torch can trace"):
            export_pt2(RecurrentPPO("MlpLstmPolicy", "CartPole-v1"), tmp_path / "file")

    @pytest.mark.parametrize("package", ["onnxruntime", "onnxscript"])
    def test_packages_that_are_missing(self, package, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, package, None)
        model = make_model(VECTOR, DISCRETE)
        with pytest.raises(ImportError, match=rf'ONNX files need {package}: pip install "sb3-grpo\[export\]"'):
            export_onnx(model, tmp_path / "file")
        # what torch itself writes needs neither
        export_pt2(model, tmp_path / "file")
