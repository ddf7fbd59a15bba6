"""What bad input, kills and interrupts leave: short runs of the benchmark, and whether it would notice a fault."""

import time
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import bad_input
import pytest
import robustness
import torch as th
from bad_input import CASES, SHARED, Case, outcome_of
from robustness import CONFIGURATIONS, faults_of, interrupt, kill, make_model, tables
from stable_baselines3 import PPO

from sb3_grpo import GRPO

# the context managers of the benchmark set signal handlers, and interrupts must not reach pytest
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")


def raises(error: Exception) -> Any:
    def act(algorithm: Any, folder: Path) -> None:
        raise error

    return act


class TestOutcomes:
    @pytest.mark.parametrize(
        ("error", "outcome"),
        [
            (ValueError("`n_steps` must be above 0, got 0"), "clear"),
            (AssertionError("N_STEPS must be above 0"), "clear"),
            (ValueError("must be above 0"), "obscure"),
            # another word, of which it is a part
            (ValueError("total_n_steps must be above 0"), "obscure"),
            # from inside, whatever it says
            (AttributeError("no attribute n_steps"), "obscure"),
        ],
    )
    def test_errors(self, error, outcome):
        found = outcome_of(Case("x", raises(error), ("n_steps",)), PPO)
        assert (found["outcome"], found["error"], found["message"]) == (outcome, type(error).__name__, str(error))
        assert found["where"] == "tests/test_robustness.py"
        assert outcome_of(Case("x", raises(error), ("n_steps",), fine=True), PPO)["outcome"] == "refused"

    def test_without_an_error(self):
        outcomes = {fine: outcome_of(Case("x", lambda a, f: None, (), fine), PPO)["outcome"] for fine in (True, False, None)}
        assert outcomes == {True: "fine", False: "silent", None: "fine"}

    def test_weights_that_are_nan(self):
        def act(algorithm: Any, folder: Path) -> Any:
            model = bad_input.make(algorithm)
            next(model.policy.parameters()).data[0] = th.nan
            return model

        assert outcome_of(Case("x", act, (), fine=True), PPO)["outcome"] == "silent"

    def test_without_an_end(self, monkeypatch):
        monkeypatch.setattr(bad_input, "TIME_LIMIT", 0.1)
        assert outcome_of(Case("x", lambda a, f: time.sleep(5), ()), PPO)["outcome"] == "silent"


# those that are refused before anything is built
ARGUMENTS = [
    case
    for case in SHARED
    if case.fine is False
    and any(case.name.startswith(f"{name}=") for name in bad_input.BAD_ARGUMENTS)
    and "later" not in case.name
]


def test_bad_arguments_are_named_by_grpo():
    outcomes = {case.name: outcome_of(case, GRPO) for case in ARGUMENTS}
    assert len(outcomes) > 80
    assert {name: found for name, found in outcomes.items() if found["outcome"] != "clear"} == {}
    # a rule that PPO does not have: the benchmark tells them apart
    assert outcome_of(CASES["max_grad_norm=-0.5"], PPO)["outcome"] == "silent"
    assert outcome_of(CASES["n_epochs='2'"], PPO)["outcome"] == "obscure"


class TestKills:
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of multiprocessing, on some versions of Python
    def test_no_file_is_lost(self):
        assert kill("saving", "GRPO", "after", seed=0, n_kills=2)["destroyed"] == {}

    def test_a_lost_file_is_noticed(self, monkeypatch):
        def leave_half(kind: str, algorithm: str, folder: str, seed: int, random: Any) -> None:
            Path(folder, "model_steps.zip").write_bytes(b"PK")
            Path(folder, "best_model.zip").write_bytes(b"")
            Path(folder, ".model_steps.zip.1.part").touch()

        monkeypatch.setattr(robustness, "kill_one", leave_half)
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
        monkeypatch.setitem(
            CONFIGURATIONS, "PPO", robustness.Configuration(callbacks=CONFIGURATIONS["task sampling"].callbacks)
        )
        found = interrupt("PPO", "after", seed=0, n_interrupts=1)
        assert found["faults"] == {"odds of the tasks are not the environment's own": 1}


class TestTables:
    ROWS: ClassVar[dict[str, list[dict[str, Any]]]] = {
        "bad_input": [
            dict(case="n_steps=0", algorithm=algorithm, code="after", outcome=outcome, error="", message="", where="")
            for algorithm, outcome in {"PPO": "silent", "GRPO": "obscure"}.items()
        ],
        "kills": [
            dict(kind="saving", algorithm="GRPO", code=code, seed=seed, kills=10, destroyed=destroyed, left_behind=1)
            for code, destroyed in {"before": {"newest": 9, "best model": 2}, "after": {}}.items()
            for seed in (0, 1)
        ],
        "interrupts": [
            dict(configuration="gSDE", code="after", seed=seed, interrupts=10, faulty=2, faults={"a": 2, "b": 1})
            for seed in (0, 1)
        ],
        "restarts": [
            dict(kind="best model", algorithm="PPO", code="after", n_envs=n_envs, seed=0, lost=n_envs == 2, error="")
            for n_envs in (4, 2)
        ],
    }

    def test_rows_are_counted(self, monkeypatch, tmp_path):
        monkeypatch.setattr(robustness, "rows_of", lambda part, folder: self.ROWS[part])
        found = {str(table.title): [list(column.cells) for column in table.columns] for table in tables(tmp_path)}
        titles = ["Bad input", "What GRPO does not answer clearly, after", "Kills", "Interrupts", "Restarts"]
        assert list(found) == titles
        bad, left, kills, interrupts, restarts = ([list(row) for row in zip(*found[title], strict=True)] for title in titles)
        assert bad == [
            ["PPO has too", "PPO", "after", "1", "0", "0", "1", "0", "0"],
            ["PPO has too", "GRPO", "after", "1", "0", "1", "0", "0", "0"],
        ]
        assert left == [["n_steps=0", "obscure", "silent", "", ""]]
        assert kills == [
            ["saving", "GRPO", "before", "20", "18", "4", "2"],
            ["saving", "GRPO", "after", "20", "0", "0", "2"],
        ]
        assert interrupts == [["gSDE", "after", "20", "4", "a (4); b (2)"]]
        assert restarts == [["best model", "PPO", "after", "2", "1", ""]]

    def test_every_case_has_a_name_of_its_own_and_words(self):
        names = Counter(case.name for case in CASES.values())
        assert max(names.values()) == 1
        assert all(case.words for case in CASES.values() if case.fine is False)
        assert sum(not case.own and case.fine is False for case in CASES.values()) >= 150
        assert sum(case.own and case.fine is False for case in CASES.values()) >= 100
