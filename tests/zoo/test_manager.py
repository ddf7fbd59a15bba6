"""Studies of several workers, what is fixed in them, and what prunes a trial."""

from pathlib import Path
from typing import Any, ClassVar

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from rl_zoo3 import exp_manager
from stable_baselines3 import HerReplayBuffer
from zoo.runs import OPTIMIZE, QUICK, TASKS, load_study, run

from sb3_grpo import GRPO
from sb3_grpo.routing import NonFiniteError
from sb3_grpo.zoo.manager import GroupExperimentManager, WorstTaskTrialEvalCallback, check_fixed, install_manager

# a trial with small minibatches, long rollouts or many epochs takes minutes
CHEAP = ("--fix", "batch_size_pow:8", "n_steps_pow:5", "n_epochs:1")


@pytest.fixture(scope="module")
def study(zoo, tmp_path_factory) -> Path:
    """A folder with a study of two workers, processes with the same seed, one after the other."""
    path = tmp_path_factory.mktemp("study")
    options = ("--storage", "journal.log", "--study-name", "tasks", "--objective", "worst")
    for worker in (run, zoo.run):
        worker(path, "train", "--algo", "grpo", "--env", TASKS, "-n", "512", *OPTIMIZE, *QUICK, *options, *CHEAP)
    return path


class TestStudies:
    def test_suggestions_of_workers_differ(self, study):
        trials = load_study(study).trials
        assert len(trials) == 4
        assert len({trial.params["group_coef"] for trial in trials}) == 4

    @pytest.mark.parametrize("number", ["0", "1"])
    def test_a_trial_is_loaded_again(self, zoo, study, number):
        command = ("train", "--algo", "grpo", "--env", TASKS, "-n", "256", *QUICK[:-1], f"trial{number}")
        zoo.run(study, *command, "--storage", "journal.log", "--study-name", "tasks", "--trial-id", number)
        model = GRPO.load(next((study / f"trial{number}").glob("grpo/*_1/*.zip")))
        params = load_study(study).trials[int(number)].params
        assert model.group_coef == params["group_coef"]
        assert model.n_steps == 2 ** params["n_steps_pow"]

    def test_what_is_fixed_stays(self, zoo, tmp_path):
        storage = ("--storage", "journal.log", "--study-name", "tasks")
        command = ("train", "--algo", "grpo", "--env", TASKS, "-n", "256", *OPTIMIZE, *storage, *QUICK, *CHEAP)
        zoo.run(tmp_path, *command, "groups:one")
        trials = load_study(tmp_path).trials
        assert [(t.params["batch_size_pow"], t.params["n_epochs"], t.params["groups"]) for t in trials] == [(8, 1, "one")] * 2
        assert len({t.params["learning_rate"] for t in trials}) == 2

    def test_what_the_search_space_does_not_offer_makes_no_study(self, zoo, tmp_path):
        storage = ("--storage", "journal.log", "--study-name", "tasks")
        command = ("train", "--algo", "grpo", "--env", TASKS, "-n", "256", *OPTIMIZE, *storage, *QUICK)
        result = zoo.run(tmp_path, *command, "--fix", "n_epochs:4", check=False)
        assert result.returncode != 0
        assert "`--fix n_epochs` must be one of [1, 5, 10, 20], as in the search space; got 4" in result.stderr
        assert not (tmp_path / "journal.log").exists()

    def test_database(self, zoo, tmp_path):
        storage = ("--storage", "sqlite:///study.db", "--study-name", "tasks")
        zoo.run(tmp_path, "train", "--algo", "grpo", "--env", TASKS, "-n", "256", *OPTIMIZE, *storage, *QUICK, *CHEAP)
        assert len(optuna.load_study(study_name="tasks", storage=f"sqlite:///{tmp_path}/study.db").trials) == 2


class TestFixed:
    space: ClassVar[dict[str, BaseDistribution]] = {
        "choice": CategoricalDistribution([1, 5, "one"]),
        "number": IntDistribution(2, 10, step=4),
        "share": FloatDistribution(0.1, 0.9),
    }

    @pytest.mark.parametrize(
        "params", [{}, {"choice": 5}, {"choice": "one", "number": 6}, {"number": 10}, {"share": 0.1}, {"share": 0.9}]
    )
    def test_what_is_offered(self, params):
        check_fixed(params, self.space)

    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ({"chance": 1}, r"must name what the search space has, \['choice', 'number', 'share'\]; got \['chance'\]"),
            ({"choice": 4}, r"`--fix choice` must be one of \[1, 5, 'one'\].* got 4"),
            ({"choice": True}, "got True"),
            ({"choice": "1"}, "got '1'"),
            ({"number": 7}, "`--fix number` must be an integer from 2 to 10 in steps of 4.* got 7"),
            ({"number": 6.0}, "got 6.0"),
            ({"number": 14}, "got 14"),
            ({"share": 0.95}, "`--fix share` must be from 0.1 to 0.9.* got 0.95"),
            ({"share": float("nan")}, "got nan"),
            ({"share": "0.5"}, "got '0.5'"),
            ({"choice": 5, "share": 0.0}, "got 0.0"),
        ],
    )
    def test_what_is_not(self, params, message):
        with pytest.raises(ValueError, match=message):
            check_fixed(params, self.space)

    @pytest.mark.parametrize("with_her", [False, True])
    def test_search_space_of_another_algorithm(self, with_her):
        manager = GroupExperimentManager.__new__(GroupExperimentManager)
        manager.algo, manager.n_actions = "sac", 1
        manager._hyperparams = {"replay_buffer_class": HerReplayBuffer, "replay_buffer_kwargs": {}} if with_her else {}
        space = manager._search_space()
        assert "train_freq" in space
        assert ("n_sampled_goal" in space) == with_her


class TestLoadingTrials:
    def test_a_trial_without_values_is_refused(self, tmp_path, registered):
        path = str(tmp_path / "journal.log")
        study = optuna.create_study(study_name="tasks", storage=JournalStorage(JournalFileBackend(path)))
        study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
        manager = GroupExperimentManager.__new__(GroupExperimentManager)
        manager.algo = "grpo"
        # failed, never made, another study
        for name, number in (("tasks", 0), ("tasks", 1), ("other", 0)):
            with pytest.raises(ValueError, match=f"trial {number} of study '{name}' cannot be used"):
                manager.load_trial(path, name, number)


CROSSED, UNKNOWN, COLUMNS = ("merge_kl:0.5", "split_kl:0.3"), ("grop_coef:0.1",), ("router_kwargs:dict(columns=(0,4))",)


@pytest.mark.parametrize(
    ("params", "message", "optimize"),
    [
        # in a study the sampler suggests the thresholds
        (CROSSED, "`merge_kl` must be below `split_kl`", False),
        (UNKNOWN, "grop_coef", False),
        (UNKNOWN, "grop_coef", True),
        (COLUMNS, "one-hot", False),
        (COLUMNS, "one-hot", True),
    ],
)
def test_bad_values_stop(zoo, tmp_path, params, message, optimize):
    """Not even a study counts them as trials that were pruned."""
    storage = ("--storage", "journal.log", "--study-name", "tasks") if optimize else ()
    command = ("train", "--algo", "grpo", "--env", TASKS, "-n", "256", *QUICK, "-params", *params)
    result = zoo.run(tmp_path, *command, *(OPTIMIZE if optimize else ()), *storage, check=False)
    assert result.returncode != 0
    assert message in result.stderr
    if optimize:
        states = [trial.state for trial in load_study(tmp_path).trials]
        assert states == [optuna.trial.TrialState.FAIL]


class TestPruning:
    @pytest.mark.parametrize(
        ("cause", "expected"),
        [
            (NonFiniteError("NaN"), optuna.TrialPruned),
            (ValueError("columns"), RuntimeError),
            (AssertionError("no"), RuntimeError),
            (None, optuna.TrialPruned),
        ],
    )
    def test_only_bad_luck_prunes(self, monkeypatch, cause, expected):
        def objective(*_: Any) -> float:
            raise optuna.TrialPruned from cause

        monkeypatch.setattr(exp_manager.ExperimentManager, "objective", objective)
        manager = GroupExperimentManager.__new__(GroupExperimentManager)
        manager.algo = "grpo"
        trial: Any = optuna.trial.FixedTrial({})
        with pytest.raises(expected):
            manager.objective(trial)

    def test_other_algorithms_as_in_the_zoo(self, monkeypatch):
        def objective(*_: Any) -> float:
            raise optuna.TrialPruned from ValueError("columns")

        monkeypatch.setattr(exp_manager.ExperimentManager, "objective", objective)
        manager = GroupExperimentManager.__new__(GroupExperimentManager)
        manager.algo = "ppo"
        trial: Any = optuna.trial.FixedTrial({})
        with pytest.raises(optuna.TrialPruned):
            manager.objective(trial)


@pytest.mark.parametrize("objective", ["mean", "worst"])
def test_installing_changes_the_zoo_only(monkeypatch, objective):
    evaluation = exp_manager.TrialEvalCallback
    for owner, name in ((GroupExperimentManager, "fixed_params"), (exp_manager, "TrialEvalCallback")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(exp_manager, "ExperimentManager", None)
    install_manager(objective, {"n_epochs": 5})
    assert exp_manager.ExperimentManager is GroupExperimentManager
    assert GroupExperimentManager.fixed_params == {"n_epochs": 5}
    assert exp_manager.TrialEvalCallback is {"mean": evaluation, "worst": WorstTaskTrialEvalCallback}[objective]
