"""What the package writes beside the curves, read with TensorBoard's own reader; and training without matplotlib."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.utils import LinearSchedule
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]  # tensorboard has no types
from tensorboard.plugins.custom_scalar import layout_pb2  # type: ignore[import-untyped]  # the same
from tensorboard.plugins.hparams import plugin_data_pb2  # type: ignore[import-untyped]  # the same
from tiny_envs import CountingEnv

from sb3_grpo import GRPO
from sb3_grpo.tensorboard import LAYOUT, TensorBoardCallback, read_hyperparameters

SMALL: dict[str, Any] = dict(n_steps=8, batch_size=8, n_epochs=1, policy_kwargs=dict(net_arch=[4]), seed=0, device="cpu")


def make_grpo(folder: Any, **kwargs: Any) -> GRPO:
    options = dict(SMALL, router="one_hot", router_kwargs=dict(columns=(1, 3)), tensorboard_log=str(folder))
    return GRPO("MlpPolicy", CountingEnv(), **{**options, **kwargs})


def read_run(folder: Path) -> Any:
    (run,) = folder.iterdir()
    accumulator = EventAccumulator(str(run))
    accumulator.Reload()
    return accumulator


def read_start(folder: Path) -> Any:
    """Hyper-parameters of the session, as TensorBoard's plugin reads them."""
    content = read_run(folder).SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    return plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams


def read_layout(folder: Path) -> Any:
    (event,) = read_run(folder).Tensors("custom_scalars__config__")
    return layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])


class TestPages:
    @pytest.mark.parametrize("groups", [dict(), dict(n_groups=1)], ids=["two groups", "one group"])
    def test_are_filled_by_themselves(self, tmp_path, groups):
        make_grpo(tmp_path, **groups, gamma=0.9, learning_rate=LinearSchedule(1e-3, 0, 1)).learn(8)
        found = read_start(tmp_path)
        assert found["algorithm"].string_value == "GRPO"
        assert found["gamma"].number_value == 0.9
        assert found["n_envs"].number_value == 1
        assert found["max_groups"].number_value == (1 if groups else 2)
        assert found["clip_range"].number_value == 0.2
        assert found["learning_rate"].string_value.startswith("LinearSchedule(")
        assert found["use_sde"].bool_value is False
        layout = read_layout(tmp_path)
        assert {
            category.title: {chart.title: list(chart.multiline.tag) for chart in category.chart}
            for category in layout.category
        } == {title: {name: tags for name, (_, tags) in charts.items()} for title, charts in LAYOUT.items()}

    @pytest.mark.parametrize("form", ["single", "list", "CallbackList"])
    def test_are_not_written_twice(self, tmp_path, form):
        own = TensorBoardCallback()
        forms: dict[str, Any] = {"single": own, "list": [own], "CallbackList": CallbackList([own])}
        make_grpo(tmp_path).learn(8, forms[form])
        # reading it expects one event
        assert read_layout(tmp_path).category

    def test_of_another_algorithm(self, tmp_path):
        PPO("MlpPolicy", CountingEnv(), **SMALL, tensorboard_log=str(tmp_path)).learn(8, TensorBoardCallback())
        assert read_start(tmp_path)["algorithm"].string_value == "PPO"
        assert "max_groups" not in read_start(tmp_path)

    def test_without_tensorboard(self, tmp_path, monkeypatch):
        written: list[Any] = []

        def note(callback: TensorBoardCallback) -> None:
            written.append(callback)

        monkeypatch.setattr(TensorBoardCallback, "_on_training_start", note)
        make_grpo(tmp_path, tensorboard_log=None).learn(8)
        assert written == []
        make_grpo(tmp_path).learn(8)
        assert len(written) == 1

    def test_errors_do_not_end_the_training(self, tmp_path, monkeypatch):
        def fail(model: Any) -> Any:
            raise OSError("no space left on device")

        monkeypatch.setattr("sb3_grpo.tensorboard.read_hyperparameters", fail)
        model = make_grpo(tmp_path)
        with pytest.warns(UserWarning, match=r"HPARAMS and CUSTOM SCALARS could not be written: OSError\('no space left"):
            model.learn(16)
        assert model.num_timesteps == 16

    def test_nothing_else_changes(self, tmp_path):
        """The same weights as without TensorBoard, to the last bit."""
        logged, plain = make_grpo(tmp_path), make_grpo(tmp_path, tensorboard_log=None)
        for model in (logged, plain):
            th.manual_seed(0)
            np.random.seed(0)
            model.learn(32)
        weights = plain.policy.state_dict()
        assert all(value.equal(weights[name]) for name, value in logged.policy.state_dict().items())


class TestHyperparameters:
    @pytest.mark.parametrize("algorithm", [A2C, DQN, PPO])
    def test_are_plain(self, algorithm):
        found = read_hyperparameters(algorithm("MlpPolicy", CountingEnv(), seed=3))
        assert {type(value) for value in found.values()} <= {bool, int, float, str}
        assert (found["seed"], found["gamma"], found["policy"]) == (3, 0.99, found["policy"])
        assert not {"env", "verbose", "tensorboard_log"} & found.keys()

    def test_functions_are_not_called(self):
        calls: list[Any] = []

        def falling(progress: float) -> float:
            calls.append(progress)
            return 0.1 * progress

        def router(obs: th.Tensor) -> th.Tensor:
            calls.append(obs)
            return obs[:, 1].long()

        options: dict[str, Any] = dict(clip_range=falling, router=router, router_kwargs=dict(n_cells=2))
        model = GRPO("MlpPolicy", CountingEnv(), **SMALL, **options)
        calls.clear()
        found = read_hyperparameters(model)
        assert (found["clip_range"], found["router"]) == ("falling", "router")
        assert calls == []


WITHOUT_MATPLOTLIB = """
import sys
import warnings
warnings.simplefilter("error")
sys.modules["matplotlib"] = None
from tiny_envs import CountingEnv
from sb3_grpo import GRPO, plot_regrouping
folder = sys.argv[1]
options = dict(router="one_hot", router_kwargs=dict(columns=(1, 3)), n_steps=32, batch_size=32, regroup_freq=1)
model = GRPO("MlpPolicy", CountingEnv(), **options, device="cpu", verbose=1, tensorboard_log=folder)
model.learn(320)
model.save(folder + "/model")
model = GRPO.load(folder + "/model", device="cpu")
try:
    plot_regrouping(model)
except ImportError as error:
    print("ImportError:", error)
"""


def test_everything_but_pictures_works_without_matplotlib(tmp_path):
    arguments = [sys.executable, "-c", WITHOUT_MATPLOTLIB, str(tmp_path)]
    done = subprocess.run(arguments, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)  # noqa: S603 (our own)
    assert done.returncode == 0, done.stderr
    sentence = 'pictures need matplotlib: pip install "sb3-grpo[extra]"'
    assert f"ImportError: {sentence}" in done.stdout
    # said once, and not again for each picture
    assert done.stdout.count(f"TensorBoard gets no pictures of the groups: {sentence}") == 1
    (run,) = tmp_path.glob("GRPO_*")
    accumulator = EventAccumulator(str(run))
    accumulator.Reload()
    assert "groups/n_active" in accumulator.Tags()["scalars"]
    assert accumulator.Tags()["images"] == []
