"""Test short runs of kills and interrupts, and that the benchmarks notice faults."""

from pathlib import Path
from typing import Any

import pytest
import torch as th
from stable_baselines3 import PPO

from benchmarks.robustness import kills
from benchmarks.robustness.faults import faults_of
from benchmarks.robustness.interrupts import CONFIGURATIONS, Configuration, interrupt
from benchmarks.robustness.kills import kill
from benchmarks.robustness.models import make_model

# the context managers of the benchmark set signal handlers, and interrupts must not reach pytest
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")


class TestKills:
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of multiprocessing, on some versions of Python
    def test_no_file_is_lost(self):
        assert kill("saving", "GRPO", "after", seed=0, n_kills=2)["destroyed"] == {}

    def test_a_lost_file_is_noticed(self, monkeypatch):
        def leave_half(kind: str, algorithm: str, folder: str, seed: int, random: Any) -> None:
            Path(folder, "model_steps.zip").write_bytes(b"PK")
            Path(folder, "best_model.zip").write_bytes(b"")
            Path(folder, ".model_steps.zip.1.part").touch()

        monkeypatch.setattr(kills, "kill_one", leave_half)
        found = kill("training", "PPO", "after", seed=0, n_kills=2)
        assert found["destroyed"] == {"newest": 2, "best model": 2}
        assert found["left_behind"] == 2


class TestInterrupts:
    @pytest.mark.parametrize("configuration", ["default", "merges and splits", "task sampling", "evaluation", "gSDE"])
    def test_nothing_is_wrong_afterwards(self, configuration):
        found = interrupt(configuration, "after", seed=100, n_interrupts=1)
        assert (found["interrupts"], found["faults"]) == (1, {})

    def test_faults_are_noticed(self, task_cartpole):
        model = make_model("GRPO", task_cartpole, 0).learn(128)
        assert faults_of(model) == []
        parameter = next(model.policy.parameters())
        moment = model.policy.optimizer.state[parameter]["exp_avg"]
        moment[0] = th.inf
        assert faults_of(model) == ["moments are not finite"]
        model.policy.optimizer.state[parameter]["exp_avg"] = moment[:1].nan_to_num()
        assert faults_of(model) == ["a moment has another shape than its parameter"]
        missing = model.policy.optimizer.state[list(model.policy.parameters())[1]].pop("exp_avg_sq")
        assert faults_of(model) == ["a moment has another shape than its parameter", "a moment is missing"]
        model.policy.optimizer.state[list(model.policy.parameters())[1]]["exp_avg_sq"] = missing
        parameter.data[0] = th.nan
        model.first_grouping = [0, 0, 0, 0]
        model.policy.value_net = th.nn.Linear(64, 4)
        assert set(faults_of(model)) == {
            "the optimizer's parameters are not the policy's",
            "parameters are not finite",
            "a moment has another shape than its parameter",
            "the history of the groups does not end in the groups",
        }

    def test_gradients_that_stay_off_are_noticed(self, monkeypatch):
        learn = PPO.learn

        def switches_off(self: PPO, total_timesteps: int, *args: Any, **kwargs: Any) -> Any:
            if total_timesteps == 10**9:  # the training that is interrupted, not those that try the model afterwards
                return th.set_grad_enabled(False)
            return learn(self, total_timesteps, *args, **kwargs)

        monkeypatch.setattr(PPO, "learn", switches_off)
        found = interrupt("PPO", "after", seed=0, n_interrupts=1)
        assert found["faults"] == {"torch computes no gradients any more": 1}
        assert th.is_grad_enabled()

    def test_odds_that_stay_are_noticed(self, monkeypatch):
        # PPO does not end callbacks on an interrupt
        monkeypatch.setitem(CONFIGURATIONS, "PPO", Configuration(callbacks=CONFIGURATIONS["task sampling"].callbacks))
        found = interrupt("PPO", "after", seed=0, n_interrupts=1)
        assert found["faults"] == {"odds of the tasks are not the environment's own": 1}
