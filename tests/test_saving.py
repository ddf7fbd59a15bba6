"""Files of models: complete, of a reasonable size, readable without running code, and what fits into what."""

import copy
import io
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from tiny_envs import RandomEnv
from tiny_estimators import RewardsToGo

from sb3_grpo import GRPO, MlpPolicy, saving
from sb3_grpo.estimators import ESTIMATORS
from sb3_grpo.heads import HEAD_DIMS, pick_heads
from sb3_grpo.regroup_plan import Merge, Split
from sb3_grpo.saving import complete_file

KWARGS: dict[str, Any] = dict(n_steps=32, batch_size=32, n_epochs=2, seed=0, device="cpu", learning_rate=3e-3)
TASKS: dict[str, Any] = dict(router="one_hot", router_kwargs=dict(columns=(4, 8)))


def make_model(**kwargs: Any) -> GRPO:
    return GRPO("MlpPolicy", make_vec_env("sb3_grpo/TaskCartPole-v0", 2, seed=0), **{**KWARGS, **TASKS, **kwargs})


def regrouped() -> GRPO:
    """Groups, heads, probes and history that a new model does not have."""
    model = make_model(normalize_advantage="group", max_groups=5).learn(128)
    model.policy.regroup(Merge(0, 2, 0.5, 0.01))
    model.policy.regroup(Split(1, 4, [1], 0.4))
    model.policy.regroup(Merge(3, 0, 0.5, 0.02))
    model.policy.regroup(Split(3, 0, [2], 0.5))
    return model


def task_obs() -> th.Tensor:
    """Two observations of each task."""
    return th.cat([th.randn(8, 4, generator=th.Generator().manual_seed(0)), th.eye(4).repeat(2, 1)], dim=1)


def log_prob_of(model: Any) -> th.Tensor:
    """Log-likelihoods of both actions, in turn, in each task."""
    return model.policy.get_distribution(task_obs()).log_prob(th.arange(8) // 4)


def scales(model: GRPO) -> th.Tensor:
    assert model.policy.value_scale is not None
    return model.policy.value_scale.scale


def everything(model: GRPO) -> dict[str, th.Tensor]:
    policy = model.policy
    buffers = {f"buffer {name}": value for name, value in [*policy.named_buffers(), *model.training_state().items()]}
    moments = {
        f"{name} {key}": value
        for name, parameter in policy.named_parameters()
        for key, value in policy.optimizer.state[parameter].items()
    }
    everything = {**dict(policy.named_parameters()), **buffers, **moments}
    return {name: value.detach().clone() for name, value in everything.items()}


def assert_same(left: GRPO, right: GRPO) -> None:
    one, other = everything(left), everything(right)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.equal(other[name]), name


def remove_entry(path: Path, name: str) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist() if entry != name}
        assert len(entries) < len(archive.namelist())
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)


class TestCompleteFile:
    def test_replaces_the_file_at_the_end(self, tmp_path):
        path = tmp_path / "file"
        path.write_text("old")
        with complete_file(path) as part:
            part.write_text("new")
            assert path.read_text() == "old"
        assert path.read_text() == "new"
        assert os.listdir(tmp_path) == ["file"]

    @pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
    def test_leaves_the_old_file_when_writing_fails(self, tmp_path, error):
        path = tmp_path / "file"
        path.write_text("old")

        def write() -> None:
            with complete_file(path) as part:
                part.write_text("half of it")
                raise error

        with pytest.raises(error):
            write()
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["file"]

    def test_a_link_stays_a_link(self, tmp_path):
        (tmp_path / "file").write_text("old")
        (tmp_path / "link").symlink_to(tmp_path / "file")
        with complete_file(tmp_path / "link") as part:
            part.write_text("new")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "file").read_text() == "new"

    def test_a_device_stays_a_device(self):
        with complete_file(os.devnull) as part:
            part.write_text("nothing")
        assert not Path(os.devnull).is_file()


class TestSave:
    @pytest.mark.parametrize(
        ("given", "written"), [("model", "model.zip"), ("model.zip", "model.zip"), ("a/b/model", "a/b/model.zip")]
    )
    @pytest.mark.parametrize("kind", [str, Path])
    def test_names_are_those_of_sb3(self, tmp_path, given, written, kind):
        model = make_model()
        model.save(kind(tmp_path / given))
        assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")] == [written]
        assert GRPO.load(tmp_path / given).max_groups == 4

    def test_into_an_open_file(self):
        file = io.BytesIO()
        model = regrouped()
        model.save(file)
        file.seek(0)
        assert_same(model, GRPO.load(file))

    def test_a_failure_leaves_the_old_file(self, tmp_path, monkeypatch):
        model = make_model()
        model.save(tmp_path / "model")
        before = (tmp_path / "model.zip").read_bytes()

        def fail(*_: Any) -> None:
            raise OSError("disk full")

        with monkeypatch.context() as patch:
            patch.setattr(saving.os, "fsync", fail)
            with pytest.raises(OSError, match="disk full"):
                model.learn(64).save(tmp_path / "model")
        assert (tmp_path / "model.zip").read_bytes() == before
        assert os.listdir(tmp_path) == ["model.zip"]

    def test_size_with_default_arguments(self, tmp_path):
        ppo, grpo = (kind("MlpPolicy", "CartPole-v1", n_steps=64, device="cpu").learn(64) for kind in (PPO, GRPO))
        ppo.save(tmp_path / "ppo")
        grpo.save(tmp_path / "grpo")
        sizes = [(tmp_path / name).stat().st_size for name in ("ppo.zip", "grpo.zip")]
        assert sizes[1] < 3 * sizes[0]

    def test_groups_are_saved(self, tmp_path):
        model = regrouped()
        model.save(tmp_path / "model")
        loaded = GRPO.load(tmp_path / "model")
        assert loaded.policy.grouping.cell_to_group.tolist() == [3, 4, 0, 3]
        assert_same(model, loaded)


class TestLoadTensors:
    @pytest.mark.parametrize("kind", ["zip", "safetensors"])
    def test_restores_all_that_training_goes_on_with(self, tmp_path, kind):
        model = make_model(normalize_advantage="group", n_groups=4, max_groups=5)
        model.learn(128)
        model.policy.regroup(Split(1, 4, [1], 0.4))
        model.regroup_history = [(96, "split", [1, 4], 0.4, [0, 4, 2, 3])]  # type: ignore[list-item]  # as a file has it
        path = tmp_path / f"model.{kind}"
        model.save(path) if kind == "zip" else model.save_tensors(path)
        other = make_model(normalize_advantage="group", n_groups=4, max_groups=5)
        other.load_tensors(path)
        assert_same(model, other)
        assert other.num_timesteps == 128
        assert [tuple(event) for event in other.regroup_history] == [(96, "split", (1, 4), 0.4, [0, 4, 2, 3])]
        other.learn(64, reset_num_timesteps=False)

    def test_runs_no_code(self, tmp_path):
        """Unlike ``load``, which is the control."""
        model, mark = make_model(), tmp_path / "code has run"
        model.save(tmp_path / "model")

        class Bomb:
            def __reduce__(self) -> Any:
                return Path.touch, (mark,)

        model.bomb = Bomb()  # type: ignore[attr-defined]
        model.save(tmp_path / "bomb")
        make_model().load_tensors(tmp_path / "bomb.zip")
        assert not mark.exists()
        GRPO.load(tmp_path / "bomb")
        assert mark.exists()

    @pytest.mark.parametrize("kind", ["zip", "safetensors"])
    @pytest.mark.parametrize(
        "other",
        [dict(max_groups=6), dict(n_groups=1), dict(policy_kwargs=dict(net_arch=[32])), dict(normalize_advantage="group")],
        ids=str,
    )
    def test_of_another_model_is_refused_and_changes_nothing(self, tmp_path, kind, other):
        model, path = make_model().learn(64), tmp_path / f"model.{kind}"
        model.save(path) if kind == "zip" else model.save_tensors(path)
        target = make_model(**other).learn(64)
        before = everything(target)
        with pytest.raises(ValueError, match="a model that was built with the same arguments"):
            target.load_tensors(path)
        assert all(value.equal(before[name]) for name, value in everything(target).items())

    @pytest.mark.parametrize("kind", ["zip", "safetensors"])
    @pytest.mark.parametrize("kwargs", [dict(), dict(normalize_advantage="group")], ids=str)
    def test_the_number_of_heads_becomes_that_of_the_file(self, tmp_path, kind, kwargs):
        """In both directions: merged down to one, and split again."""
        model, path = make_model(**kwargs).learn(64), tmp_path / f"model.{kind}"
        obs = task_obs()
        for event in (Merge(0, 2, 0.5, 0.01), Merge(3, 0, 0.5, 0.01), Merge(3, 1, 0.5, 0.01), Split(3, 0, [0, 2], 0.5)):
            model.policy.regroup(event)
            model.save(path) if kind == "zip" else model.save_tensors(path)
            fresh = make_model(**kwargs)
            fresh.load_tensors(path)
            assert_same(model, fresh)
            assert fresh.policy.grouping.heads == model.policy.grouping.heads
            assert fresh.policy.predict_values(obs).equal(model.policy.predict_values(obs))
            fresh.learn(64, reset_num_timesteps=False)
        other = make_model(**kwargs).learn(64)
        for event in (Merge(0, 3, 0.5, 0.01), Merge(1, 0, 0.5, 0.01), Merge(1, 2, 0.5, 0.01)):
            other.policy.regroup(event)
        other.load_tensors(path)
        assert_same(model, other)

    def test_of_ppo_is_refused(self, tmp_path):
        PPO("MlpPolicy", "CartPole-v1", n_steps=64).save(tmp_path / "ppo")
        with pytest.raises(ValueError, match="must be a file of GRPO"):
            make_model().load_tensors(tmp_path / "ppo.zip")

    def test_without_the_package_says_what_to_install(self, tmp_path, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
        monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
        with pytest.raises(ImportError, match=r'pip install "sb3-grpo\[extra\]"'):
            make_model().save_tensors(tmp_path / "model.safetensors")


class TestLoad:
    def test_a_file_of_ppo_is_refused(self, tmp_path):
        PPO("MlpPolicy", "CartPole-v1", n_steps=64).save(tmp_path / "ppo")
        with pytest.raises(ValueError, match=r"must be a file of GRPO, got one of another algorithm \(such as PPO\)"):
            GRPO.load(tmp_path / "ppo")

    @pytest.mark.parametrize("kwargs", [dict(), dict(n_groups=1)], ids=str)
    def test_a_file_of_an_earlier_version_is_refused(self, tmp_path, kwargs):
        """They had no entry with the state of the training."""
        make_model(**kwargs).save(tmp_path / "model")
        GRPO.load(tmp_path / "model")
        remove_entry(tmp_path / "model.zip", saving.TRAINING_STATE)
        with pytest.raises(ValueError, match=r"must be a file of GRPO, got one of .* or of an earlier version"):
            GRPO.load(tmp_path / "model")
        with pytest.raises(ValueError, match=r"it has no 'grouping\.cell_to_group'"):
            make_model(**kwargs).load_tensors(tmp_path / "model.zip")

    @pytest.mark.parametrize("kwargs", [dict(), dict(normalize_advantage="group")], ids=str)
    def test_grown_saved_and_merged_back_to_one(self, tmp_path, kwargs):
        model = GRPO("MlpPolicy", "CartPole-v1", **{**KWARGS, **kwargs}).learn(64)
        obs = th.randn(50, 4, generator=th.Generator().manual_seed(0))
        events: list[Merge | Split] = [
            Split(0, 1, [1, 2, 3], 0.5),
            Split(1, 2, [3], 0.5),
            Merge(2, 0, 0.5, 0.0),
            Merge(2, 1, 0.25, 0.0),
        ]
        for event, n_heads in zip(events, [2, 3, 2, 1], strict=True):
            model.policy.regroup(event)
            model.save(tmp_path / "model")
            loaded = GRPO.load(tmp_path / "model", env=model.get_env())
            assert loaded.policy.n_heads == len(loaded.policy.grouping.active) == n_heads
            assert_same(model, loaded)
            for one, other in zip(*(m.policy(obs, deterministic=True) for m in (model, loaded)), strict=True):
                assert one.equal(other)
            model = loaded.learn(64, reset_num_timesteps=False)
        assert model.policy.grouping.heads == [2]

    def test_half_a_file_is_refused(self, tmp_path):
        make_model().save(tmp_path / "model")
        content = (tmp_path / "model.zip").read_bytes()
        (tmp_path / "model.zip").write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match="must be the complete zip file of a model"):
            GRPO.load(tmp_path / "model")

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            (
                dict(router_kwargs=dict(columns=(3, 7))),
                r"`columns` of a saved model cannot be changed: it was built with \[4, 8\]",
            ),
            (dict(router_kwargs=dict(columns=(4, 8), hide=True)), "`hide` of a saved model cannot be changed"),
            (dict(normalize_advantage="groups"), r"`normalize_advantage` must be one of .* got 'groups'"),
            (dict(group_score="returns"), "`group_score` must be one of"),
            (dict(group_targets=[1.0] * 4), '`group_targets` needs `group_score="gap"`'),
            (dict(group_score="gap", group_targets=[1.0] * 3), "one target for each of the 4 cells"),
            (dict(group_coef=-1), "`group_coef` must be"),
            (dict(merge_kl=0.5), "`merge_kl` must be below `split_kl`"),
            (
                dict(router_kwargs=dict(columns=(4, 7))),
                "`n_cells` of a saved model cannot be changed: it was built with 4, got 3",
            ),
            (dict(n_steps=2.5), "`n_steps` must be an integer"),
            (dict(n_epoch=3), r"can change arguments of GRPO, got \['n_epoch'\]"),
        ],
        ids=str,
    )
    def test_checks_what_is_to_be_changed(self, tmp_path, kwargs, message):
        make_model().save(tmp_path / "model")
        with pytest.raises(ValueError, match=message):
            GRPO.load(tmp_path / "model", **kwargs)

    def test_what_means_the_same_may_be_said_again(self, tmp_path):
        make_model().save(tmp_path / "model")
        assert GRPO.load(tmp_path / "model", router_kwargs=dict(columns=[4, 8], hide=False)).max_groups == 4

    def test_value_units_are_kept_when_normalisation_changes(self, tmp_path):
        model = make_model(normalize_advantage="group").learn(64)
        model.save(tmp_path / "model")
        loaded = GRPO.load(tmp_path / "model", normalize_advantage=True)
        obs = th.randn(5, 8)
        assert loaded.policy.predict_values(obs).equal(model.policy.predict_values(obs))
        assert not scales(model).equal(th.ones(4))

    def test_value_units_can_begin_later(self, tmp_path):
        model = make_model().learn(64)
        model.save(tmp_path / "model")
        loaded = GRPO.load(tmp_path / "model", env=model.get_env(), normalize_advantage="group")
        obs = th.randn(5, 8)
        assert loaded.policy.predict_values(obs).equal(model.policy.predict_values(obs))
        loaded.learn(64)
        assert not scales(loaded).equal(th.ones(4))


class TestAssignedValues:
    """A model's attributes are checked when training starts, as the constructor's arguments are."""

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("n_epochs", 0, "`n_epochs` must be an integer of at least 1, got 0"),
            ("batch_size", "16", "`batch_size` must be an integer of at least 1, got '16'"),
            ("normalize_advantage", "yes", r"`normalize_advantage` must be one of .*, got 'yes'"),
            ("clip_range", -0.1, "`clip_range` must be"),
            ("n_steps", 64, "`n_steps` of a model that is built cannot be assigned"),
        ],
    )
    def test_bad_ones_are_refused(self, name, value, message):
        model = make_model()
        setattr(model, name, value)
        with pytest.raises(ValueError, match=message):
            model.learn(64)

    def test_a_clip_range_acts_as_one_of_the_constructor(self):
        assigned = make_model()
        assigned.clip_range = 0.01
        assigned.learn(64)
        given = make_model(clip_range=0.01).learn(64)
        assert_same(assigned, given)
        assert not everything(given)["action_net.weight"].equal(everything(make_model().learn(64))["action_net.weight"])


class TestStateDict:
    def test_holds_floats_only(self):
        assert all(value.is_floating_point() for value in regrouped().policy.state_dict().values())

    def test_with_one_group_is_that_of_ppo(self):
        kwargs: dict[str, Any] = dict(n_steps=64, device="cpu")
        ppo, grpo = PPO("MlpPolicy", "CartPole-v1", **kwargs), GRPO("MlpPolicy", "CartPole-v1", n_groups=1, **kwargs)
        grpo.policy.load_state_dict(ppo.policy.state_dict())
        assert list(grpo.policy.state_dict()) == list(ppo.policy.state_dict())

    def test_can_be_drawn_at_random_as_sb3s_tests_do(self):
        model = regrouped()
        drawn = {name: th.rand_like(value) for name, value in model.policy.state_dict().items()}
        model.policy.load_state_dict(drawn)
        assert set(model.policy.grouping.active) <= {0, 1}
        model.predict(np.eye(8, dtype=np.float32)[4])

    def test_can_be_averaged_with_itself(self):
        model = regrouped()
        before = everything(model)
        state = model.policy.state_dict()
        model.policy.load_state_dict({name: th.stack([value, value]).mean(dim=0) for name, value in state.items()})
        assert all(value.equal(before[name]) for name, value in everything(model).items())

    def test_carries_the_groups_to_another_policy(self):
        model, other = regrouped(), make_model(normalize_advantage="group", max_groups=5)
        parameters: Any = copy.deepcopy(model.get_parameters())
        other.set_parameters(parameters)
        obs = task_obs()
        assert other.policy.groups(obs).equal(model.policy.groups(obs))
        assert other.policy.predict_values(obs).equal(model.policy.predict_values(obs))

    def test_with_a_missing_map_of_groups_is_refused(self):
        model = regrouped()
        state = model.policy.state_dict()
        del state["grouping.cell_to_group"]
        with pytest.raises(RuntimeError, match=r"grouping\.cell_to_group"):
            model.policy.load_state_dict(state)


class TestPoliciesAlone:
    """``policy.save`` and ``Policy.load`` know nothing of a model."""

    @pytest.mark.parametrize("kwargs", [dict(), dict(normalize_advantage="group")], ids=str)
    @pytest.mark.parametrize("n_events", range(5))
    def test_act_the_same_whatever_has_happened_to_the_groups(self, tmp_path, kwargs, n_events):
        model = GRPO("MlpPolicy", "CartPole-v1", **{**KWARGS, **kwargs}).learn(64)
        events: list[Merge | Split] = [
            Split(0, 1, [1, 2, 3], 0.5),
            Split(1, 2, [3], 0.5),
            Merge(2, 0, 0.5, 0.0),
            Merge(2, 1, 0.25, 0.0),
        ]
        for event in events[:n_events]:
            model.policy.regroup(event)
            model.learn(64, reset_num_timesteps=False)
        model.policy.save(str(tmp_path / "policy.pth"))
        loaded = MlpPolicy.load(str(tmp_path / "policy.pth"))
        obs = th.randn(50, 4, generator=th.Generator().manual_seed(0))
        for one, other in zip(*(policy(obs, deterministic=True) for policy in (model.policy, loaded)), strict=True):
            assert one.equal(other)
        assert loaded.n_heads == [1, 2, 3, 2, 1][n_events]


SPACES: dict[str, Any] = {
    "discrete": spaces.Discrete(3),
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(3),
}


class TestOneGroupIsReadByPPO:
    """A file of a model with one group is one of PPO's, with an entry that PPO does not read."""

    def env(self, space: Any) -> RandomEnv:
        observation_space = spaces.Box(-1, 1, (4,), np.float32)
        observation_space.seed(0)
        return RandomEnv(observation_space, space)

    def check_actions(self, model: PPO, loaded: PPO) -> th.Tensor:
        obs = np.random.default_rng(0).uniform(-1, 1, (30, 4)).astype(np.float32)
        for deterministic in (True, False):
            actions = []
            for each in (model, loaded):
                th.manual_seed(0)
                actions.append(each.predict(obs, deterministic=deterministic)[0])
            np.testing.assert_array_equal(actions[0], actions[1])
        return th.as_tensor(obs)

    @pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
    @pytest.mark.parametrize("kwargs", [dict(n_groups=1), dict()], ids=["one", "may split"])
    def test_predicts_the_same_and_trains_on_as_a_model_of_ppo(self, tmp_path, space, kwargs):
        trained = []
        for kind, own in ((PPO, dict()), (GRPO, kwargs)):
            model = kind("MlpPolicy", self.env(space), **KWARGS, **own).learn(64)
            model.save(tmp_path / "model")
            loaded = PPO.load(tmp_path / "model", env=self.env(space))
            assert type(loaded) is PPO
            if kind is GRPO:
                obs = self.check_actions(model, loaded)
                assert loaded.policy.predict_values(obs).equal(model.policy.predict_values(obs))
            loaded.set_random_seed(5)
            trained.append(loaded.learn(64, reset_num_timesteps=False))
        (ppo, ppo_moments), (grpo, grpo_moments) = (
            (model.policy.state_dict(), model.policy.optimizer.state_dict()["state"]) for model in trained
        )
        assert list(ppo) == list(grpo)
        assert all(value.equal(grpo[name]) for name, value in ppo.items())
        assert all(state["exp_avg"].equal(grpo_moments[index]["exp_avg"]) for index, state in ppo_moments.items())

    def test_gsde(self, tmp_path):
        model = GRPO("MlpPolicy", self.env(SPACES["box"]), use_sde=True, **KWARGS).learn(64)
        model.save(tmp_path / "model")
        loaded = PPO.load(tmp_path / "model", env=self.env(SPACES["box"]))
        for each in (model, loaded):
            # both draw their noise from the same numbers
            th.manual_seed(0)
            each.policy.reset_noise(30)
        obs = self.check_actions(model, loaded)
        assert loaded.policy.predict_values(obs).equal(model.policy.predict_values(obs))
        loaded.learn(64)

    @pytest.mark.parametrize("kwargs", [dict(n_groups=1), dict()], ids=["one", "may split"])
    def test_value_heads_with_a_scale(self, tmp_path, kwargs):
        model = GRPO("MlpPolicy", self.env(SPACES["discrete"]), normalize_advantage="group", **KWARGS, **kwargs).learn(128)
        assert model.policy.value_scale is not None
        assert abs(model.policy.value_scale.scale.item() - 1) > 0.1, "a scale of 1 would say nothing"
        model.save(tmp_path / "model")
        loaded = PPO.load(tmp_path / "model", env=self.env(SPACES["discrete"]))
        obs = self.check_actions(model, loaded)
        th.testing.assert_close(loaded.policy.predict_values(obs), model.policy.predict_values(obs))
        loaded.learn(64)

    def test_after_merging_back_to_one(self, tmp_path):
        model = GRPO("MlpPolicy", self.env(SPACES["box"]), **KWARGS).learn(64)
        model.policy.regroup(Split(0, 1, [2, 3], 0.5))
        model.learn(64, reset_num_timesteps=False)
        model.policy.regroup(Merge(1, 0, 0.5, 0.0))
        model.save(tmp_path / "model")
        loaded = PPO.load(tmp_path / "model", env=self.env(SPACES["box"]))
        obs = self.check_actions(model, loaded)
        assert loaded.policy.predict_values(obs).equal(model.policy.predict_values(obs))
        loaded.learn(64)

    @pytest.mark.parametrize("model", [make_model, regrouped])
    def test_control_one_with_several_groups_is_refused(self, tmp_path, model):
        model().save(tmp_path / "model")
        with pytest.raises(RuntimeError, match=r"has [34] heads, but .*; GRPO\.load is what"):
            PPO.load(tmp_path / "model")

    def test_holds_what_ppos_file_holds_and_one_entry_more(self, tmp_path):
        for kind in (PPO, GRPO):
            kind("MlpPolicy", "CartPole-v1", n_steps=64).save(tmp_path / kind.__name__)
        ppo, grpo = (set(zipfile.ZipFile(tmp_path / f"{name}.zip").namelist()) for name in ("PPO", "GRPO"))
        assert grpo - ppo == {saving.TRAINING_STATE}
        assert ppo <= grpo


@pytest.fixture
def _no_compiler(monkeypatch):
    """Compiled functions are the functions themselves: what is tested is which parameters they are of."""
    monkeypatch.setattr(th, "compile", lambda function, **_: function)


COMPILED: dict[str, dict[str, Any]] = {
    "one group": dict(n_groups=1, max_groups=4),
    "two of four": dict(n_groups=2, max_groups=4),
    "scaled values": dict(n_groups=3, max_groups=4, normalize_advantage="group"),
    "one group with a scaled value": dict(n_groups=1, max_groups=4, normalize_advantage="group"),
    "all": dict(),
}


@pytest.mark.usefixtures("_no_compiler")
class TestFilesOfCompiledModels:
    """They hold all heads that there can be, since no shape may change; other models hold those in use."""

    @pytest.mark.parametrize("kwargs", COMPILED.values(), ids=COMPILED)
    @pytest.mark.parametrize("compiled", [True, False])
    def test_fit_models_that_are_not_and_the_other_way_round(self, tmp_path, kwargs, compiled):
        model = make_model(compile=compiled, merge_kl=None, split_kl=None, **kwargs).learn(128)
        model.save(tmp_path / "model")
        loaded = GRPO.load(tmp_path / "model", env=model.get_env(), compile=not compiled)
        groups = model.policy.grouping.active
        for each, is_compiled in ((model, compiled), (loaded, not compiled)):
            assert each.policy.grouping.active == groups
            assert each.policy.grouping.heads == (list(range(4)) if is_compiled else groups)
            assert each.policy.n_heads == len(each.policy.grouping.heads) == each.policy.value_net.out_features
        obs = task_obs()
        for one, other in zip(*(each.policy(obs, deterministic=True) for each in (model, loaded)), strict=True):
            # other numbers of columns are other orders of summation
            th.testing.assert_close(one, other)
        self.check_heads(model, loaded, groups)
        loaded.learn(64, reset_num_timesteps=False)

    def check_heads(self, model: GRPO, loaded: GRPO, groups: list[int]) -> None:
        """Parameters, moments and scales of the groups in use are bit for bit those of the file."""
        seen: list[dict[tuple[str, str], th.Tensor]] = []
        for each in (model, loaded):
            policy = each.policy
            sources = [policy.grouping.heads.index(group) for group in groups]
            found: dict[tuple[str, str], th.Tensor] = {}
            for name, parameter in policy.named_parameters():
                state = {key: value for key, value in policy.optimizer.state[parameter].items() if value.ndim}
                assert state
                for key, value in {"": parameter.detach(), **state}.items():
                    in_use = name in HEAD_DIMS
                    found[name, key] = pick_heads(value, HEAD_DIMS[name], policy.n_heads, sources) if in_use else value
            if policy.value_scale is not None:
                found |= {("scale", ""): policy.value_scale.scale[sources], ("count", ""): policy.value_scale.count[sources]}
                assert policy.value_scale.count.any()
            seen.append(found)
        assert seen[0].keys() == seen[1].keys()
        for key, value in seen[0].items():
            assert value.equal(seen[1][key]), key

    @pytest.mark.parametrize("kwargs", COMPILED.values(), ids=COMPILED)
    def test_fit_compiled_models(self, tmp_path, kwargs):
        model = make_model(compile=True, **kwargs).learn(64)
        model.save(tmp_path / "model")
        assert_same(model, GRPO.load(tmp_path / "model"))

    def test_parameters_that_are_set_are_those_that_are_trained(self):
        """A compiled update remembers the parameters that it was made for."""
        model, other = make_model(compile=True).learn(64), make_model(n_groups=2)
        model.set_parameters(copy.deepcopy(other.get_parameters()))  # type: ignore[arg-type]  # SB3's own annotations differ
        obs = task_obs()
        th.testing.assert_close(model.policy.predict_values(obs), other.policy.predict_values(obs))
        before = everything(model)
        model.learn(64, reset_num_timesteps=False)
        after = everything(model)
        assert {name for name, _ in model.policy.named_parameters() if after[name].equal(before[name])} == set()


class TestBeginningWithPPO:
    """Every group gets a copy of PPO's head: the policy is PPO's, whatever the groups."""

    @pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
    @pytest.mark.parametrize(
        "kwargs", [dict(), dict(n_groups=1), dict(n_groups=3), dict(normalize_advantage="group")], ids=str
    )
    @pytest.mark.parametrize("way", ["state_dict", "file"])
    def test_policy_is_the_same(self, tmp_path, env_id, kwargs, way):
        ppo = PPO("MlpPolicy", env_id, n_steps=64, learning_rate=1e-2, device="cpu").learn(128)
        grpo = GRPO("MlpPolicy", env_id, n_steps=64, device="cpu", **kwargs)
        if way == "file":
            ppo.save(tmp_path / "ppo")
            grpo.set_parameters(str(tmp_path / "ppo"))
        else:
            grpo.policy.load_state_dict(ppo.policy.state_dict())
        obs = th.as_tensor(np.array([grpo.observation_space.sample() for _ in range(20)])).float().clamp(-5, 5)
        expected, actual = (model.policy.forward(obs, deterministic=True) for model in (ppo, grpo))
        for one, other in zip(expected, actual, strict=True):
            th.testing.assert_close(one, other)
        grpo.learn(128)

    @pytest.mark.parametrize(("kwargs", "keeps"), [(dict(), True), (dict(n_groups=1), True), (dict(n_groups=3), False)])
    def test_one_group_goes_on_with_ppos_moments_and_several_begin_anew(self, kwargs, keeps):
        ppo = PPO("MlpPolicy", "CartPole-v1", n_steps=64, device="cpu").learn(64)
        grpo = GRPO("MlpPolicy", "CartPole-v1", n_steps=64, device="cpu", **kwargs)
        grpo.set_parameters(copy.deepcopy(ppo.get_parameters()))  # type: ignore[arg-type]  # SB3's own annotations differ
        expected, actual = (model.policy.optimizer.state_dict()["state"] for model in (ppo, grpo))
        assert bool(actual) == keeps
        for index, state in actual.items():
            assert all(value.equal(expected[index][name]) for name, value in state.items())

    def test_an_estimated_scale_of_values_begins_anew(self):
        ppo = PPO("MlpPolicy", "CartPole-v1", n_steps=64, device="cpu").learn(64)
        grpo = GRPO("MlpPolicy", "CartPole-v1", n_steps=64, device="cpu", normalize_advantage="group").learn(64)
        scale = grpo.policy.value_scale
        assert scale is not None
        assert scale.count.item() == 64
        grpo.policy.load_state_dict(ppo.policy.state_dict())
        assert (scale.count.item(), scale.scale.item()) == (0, 1)
        obs = th.randn(5, 4)
        assert grpo.policy.predict_values(obs).equal(ppo.policy.predict_values(obs))

    def test_control_another_network_does_not_fit(self):
        ppo = PPO("MlpPolicy", "CartPole-v1", n_steps=64, policy_kwargs=dict(net_arch=[8]))
        with pytest.raises(RuntimeError, match="size mismatch"):
            GRPO("MlpPolicy", "CartPole-v1").policy.load_state_dict(ppo.policy.state_dict())


def test_attributes_are_read_from_any_file_of_sb3(tmp_path):
    PPO("MlpPolicy", "CartPole-v1", n_steps=64).save(tmp_path / "ppo")
    assert saving.read_attributes(tmp_path / "ppo")["n_steps"] == 64
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("data.json", json.dumps({}))
    shutil.copy(tmp_path / "other.zip", tmp_path / "copy.zip")
    for name in ("other", "copy.zip"):
        with pytest.raises(ValueError, match="must be the complete zip file of a model"):
            saving.read_attributes(tmp_path / name)


class TestWithoutCritic:
    @pytest.fixture(autouse=True)
    def _toy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(ESTIMATORS, "toy", RewardsToGo)

    @staticmethod
    def make(**kwargs: Any) -> GRPO:
        """Some groups have changed; the random numbers that follow are always the same."""
        model = make_model(advantage_estimator="toy", max_groups=5, **kwargs).learn(128)
        for event in (Merge(0, 2, 0.5, 0.01), Split(1, 4, [1], 0.4)):
            model.policy.regroup(event)
        return model

    def test_a_file_goes_on_as_the_model_that_was_saved(self, tmp_path):
        model = self.make()
        model.save(tmp_path / "model")
        loaded = GRPO.load(tmp_path / "model", device="cpu")
        assert not any("value" in name for name in (*loaded.policy.state_dict(), *loaded.training_state()))
        assert_same(model, loaded)
        before = everything(model)
        for each in (model, loaded):
            each.set_env(make_vec_env("sb3_grpo/TaskCartPole-v0", 2, seed=3))
            each.set_random_seed(3)
            each.learn(128, reset_num_timesteps=False)
        assert_same(model, loaded)
        assert not everything(model)["action_net.weight"].equal(before["action_net.weight"])

    @pytest.mark.parametrize("kind", ["zip", "safetensors"])
    def test_tensors(self, tmp_path, kind):
        model, path = self.make(), tmp_path / f"model.{kind}"
        model.save(path) if kind == "zip" else model.save_tensors(path)
        fresh = make_model(advantage_estimator="toy", max_groups=5)
        fresh.load_tensors(path)
        assert_same(model, fresh)
        fresh.learn(64, reset_num_timesteps=False)

    @pytest.mark.parametrize("kind", ["zip", "safetensors"])
    @pytest.mark.parametrize("trained", [True, False])
    @pytest.mark.parametrize("estimators", [("gae", "toy"), ("toy", "gae")], ids=str)
    def test_tensors_of_the_other_kind_are_refused_and_change_nothing(self, tmp_path, kind, trained, estimators):
        model, target = (make_model(advantage_estimator=estimator) for estimator in estimators)
        if trained:
            model.learn(64)
        path = tmp_path / f"model.{kind}"
        model.save(path) if kind == "zip" else model.save_tensors(path)
        before = everything(target)
        with pytest.raises(ValueError, match=r"a model that was built with the same arguments, but it has .*value_net"):
            target.load_tensors(path)
        assert all(value.equal(before[name]) for name, value in everything(target).items())

    @pytest.mark.parametrize("estimators", [("gae", "toy"), ("toy", "gae")], ids=str)
    def test_a_model_is_not_loaded_with_an_estimator_of_the_other_kind(self, tmp_path, estimators):
        make_model(advantage_estimator=estimators[0]).save(tmp_path / "model")
        kinds = rf"was built with {estimators[0] == 'gae'}, got {estimators[0] == 'toy'}"
        with pytest.raises(
            ValueError, match=rf"`advantage_estimator.uses_critic` of a saved model cannot be changed: it {kinds}"
        ):
            GRPO.load(tmp_path / "model", advantage_estimator=estimators[1])
        assert GRPO.load(tmp_path / "model", advantage_estimator=estimators[0]).policy.use_critic == (estimators[0] == "gae")

    def test_a_file_that_does_not_say_whether_it_has_a_critic_has_one(self, tmp_path):
        """As those of earlier versions."""
        model = make_model().learn(64)
        del model._built_groups["advantage_estimator.uses_critic"]
        model.save(tmp_path / "model")
        assert_same(model, GRPO.load(tmp_path / "model", device="cpu"))
        with pytest.raises(ValueError, match="was built with True, got False"):
            GRPO.load(tmp_path / "model", advantage_estimator="toy")

    @pytest.mark.parametrize("kwargs", [dict(), dict(n_groups=1), dict(compile=True)], ids=str)
    @pytest.mark.parametrize("way", ["file", "state_dict"])
    def test_goes_on_with_what_ppo_has_learnt(self, tmp_path, kwargs, way):
        env = make_vec_env("sb3_grpo/TaskCartPole-v0", 2, seed=0)
        ppo = PPO("MlpPolicy", env, **KWARGS).learn(128)
        model = make_model(advantage_estimator="toy", **kwargs)
        if not model.compile:
            # moments of what is replaced
            model.learn(64)
        if way == "file":
            ppo.save(tmp_path / "ppo")
            model.set_parameters(str(tmp_path / "ppo"))
            assert not model.policy.optimizer.state_dict()["state"]
        else:
            model.policy.load_state_dict(ppo.policy.state_dict())
        obs = task_obs()
        expected, actual = (log_prob_of(each) for each in (ppo, model))
        th.testing.assert_close(actual, expected)
        assert model.policy.predict_values(obs).tolist() == [[0]] * 8
        # a compilation takes long
        model.compile = False
        model.learn(64)

    def test_goes_on_with_what_groups_have_learnt(self, tmp_path):
        source = regrouped()
        source.save(tmp_path / "model")
        model = make_model(advantage_estimator="toy", max_groups=5)
        model.set_parameters(str(tmp_path / "model"))
        assert not model.policy.optimizer.state_dict()["state"]
        assert model.policy.grouping.heads == source.policy.grouping.heads
        assert log_prob_of(model).equal(log_prob_of(source))
        model.learn(64)

    def test_control_moments_without_a_critic_are_kept(self):
        model, other = self.make(), make_model(advantage_estimator="toy", max_groups=5)
        params: Any = copy.deepcopy(model.get_parameters())
        other.set_parameters(params)
        one, two = (each.policy.optimizer.state_dict()["state"] for each in (model, other))
        assert one
        assert all(value.equal(two[index][name]) for index, state in one.items() for name, value in state.items())

    def test_parameters_into_a_model_with_a_critic_is_refused(self):
        params: Any = copy.deepcopy(self.make().get_parameters())
        with pytest.raises(RuntimeError, match=r"Missing key.*value_net\.weight"):
            make_model(max_groups=5).set_parameters(params)
