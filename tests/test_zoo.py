"""RL Zoo with GRPO: every command, run as a user runs it."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import rl_zoo3
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from rl_zoo3 import hyperparams_opt, utils
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from sb3_grpo import GRPO, zoo
from sb3_grpo.policies import NonFiniteError
from sb3_grpo.zoo_configs import hyperparams

TASKS = "sb3_grpo/TaskCartPole-v0"
QUICK = ("--eval-freq", "512", "--eval-episodes", "4", "--seed", "3", "--num-threads", "1", "-f", "logs")


def run(folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """
    :param folder: working directory
    :param arguments: of ``python -m sb3_grpo.zoo``
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    command = [sys.executable, "-m", "sb3_grpo.zoo", *arguments]
    result = subprocess.run(command, check=False, cwd=folder, env=environment, capture_output=True, text=True)  # noqa: S603 (own)
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder in which an agent has been trained, with checkpoints and monitor files."""
    path = tmp_path_factory.mktemp("zoo")
    run(path, "train", "--algo", "grpo", "--env", "CartPole-v1", "-n", "1024", "--save-freq", "512", *QUICK)
    return path


@pytest.fixture
def registered(monkeypatch):
    """RL Zoo's dictionaries with GRPO in them, as they were afterwards."""
    for owner, name in (
        (utils, "ALGOS"),
        (hyperparams_opt, "HYPERPARAMS_SAMPLER"),
        (hyperparams_opt, "HYPERPARAMS_CONVERTER"),
    ):
        for key, value in dict(getattr(owner, name)).items():
            monkeypatch.setitem(getattr(owner, name), key, value)
        monkeypatch.setitem(getattr(owner, name), "grpo", None)
    zoo.register()


def mean_return(model: GRPO, n_steps: int) -> float:
    """Of the episodes that end within so many steps, played as ``enjoy`` plays them."""
    env = make_vec_env("CartPole-v1", 1, seed=0)
    obs, returns = env.reset(), []
    for _ in range(n_steps):
        actions, _ = model.predict(obs, deterministic=True)  # type: ignore[arg-type]  # not a Dict here
        obs, _, _, infos = env.step(actions)
        returns += [info["episode"]["r"] for info in infos if "episode" in info]
    return float(np.mean(returns))


class TestCommands:
    def test_train(self, folder):
        written = folder / "logs/grpo/CartPole-v1_1"
        names = ("CartPole-v1.zip", "best_model.zip", "evaluations.npz", "rl_model_512_steps.zip", "CartPole-v1/config.yml")
        assert all((written / name).exists() for name in names)
        assert GRPO.load(written / "CartPole-v1.zip").num_timesteps == 1024

    @pytest.mark.parametrize(
        ("options", "name"),
        [((), "CartPole-v1"), (("--load-best",), "best_model"), (("--load-checkpoint", "512"), "rl_model_512_steps")],
    )
    def test_enjoy_plays_the_agent_that_was_trained(self, folder, options, name):
        command = ("enjoy", "--algo", "grpo", "--env", "CartPole-v1", "-f", "logs", "--no-render", "-n", "1500")
        mean = float(run(folder, *command, *options).stdout.split("Mean reward: ")[1].split()[0])
        expected = mean_return(GRPO.load(folder / f"logs/grpo/CartPole-v1_1/{name}.zip"), 1500)
        assert mean == pytest.approx(expected, abs=0.006)
        # and not any other
        assert abs(mean - mean_return(GRPO("MlpPolicy", "CartPole-v1", seed=0), 1500)) > 0.1

    def test_record_video(self, folder):
        run(folder, "record_video", "--algo", "grpo", "--env", "CartPole-v1", "-f", "logs", "-n", "20", "-o", "videos")
        assert list((folder / "videos").glob("*.mp4"))

    def test_plots_are_saved_as_files(self, folder):
        run(folder, "plot_train", "-a", "grpo", "-e", "CartPole-v1", "-f", "logs", "-w", "2")
        run(folder, "all_plots", "-a", "grpo", "-e", "CartPole-v1", "-f", "logs", "-o", "results", "--no-million")
        assert (folder / "plot_train_1.png").stat().st_size > 1000
        assert (folder / "all_plots_1.png").stat().st_size > 1000
        assert (folder / "results.pkl").exists()

    def test_upload_up_to_the_network_call(self, folder):
        command = ("push_to_hub", "--algo", "grpo", "--env", "CartPole-v1", "-f", "logs", "-orga", "nobody", "--no-render")
        result = run(folder, *command, check=False)
        # everything before the call that needs the network has worked
        assert result.returncode != 0
        assert "Uploading to nobody/grpo-CartPole-v1" in result.stdout
        assert "create_repo" in result.stderr

    def test_unknown_script_and_help(self, tmp_path):
        assert "invalid choice: 'fly'" in run(tmp_path, "fly", check=False).stderr
        assert "RL Zoo's script" in run(tmp_path).stdout
        assert "--trained-agent" in run(tmp_path, "train", "--help").stdout

    def test_other_algorithms(self, tmp_path):
        run(tmp_path, "train", "--algo", "a2c", "--env", "CartPole-v1", "-n", "200", *QUICK)
        assert (tmp_path / "logs/a2c/CartPole-v1_1/CartPole-v1.zip").exists()


def test_one_group_is_ppo(tmp_path):
    """The same evaluation files, whatever the zoo does around the algorithms."""
    command = ("train", "--env", "CartPole-v1", "-n", "1024", *QUICK)
    run(tmp_path, *command, "--algo", "ppo")
    run(tmp_path, *command, "--algo", "grpo", "-params", "n_groups:1", "group_coef:0.0")
    ppo, grpo = (np.load(tmp_path / f"logs/{name}/CartPole-v1_1/evaluations.npz") for name in ("ppo", "grpo"))
    assert ppo.files == grpo.files
    assert len(ppo["results"]) == 2
    for name in ppo.files:
        np.testing.assert_array_equal(ppo[name], grpo[name])


class TestContinuing:
    def test_goes_on(self, folder):
        agent = str(folder / "logs/grpo/CartPole-v1_1/CartPole-v1.zip")
        run(folder, "train", "--algo", "grpo", "--env", "CartPole-v1", "-n", "512", "-i", agent, *QUICK[:-1], "more")
        assert (folder / "more/grpo/CartPole-v1_1/CartPole-v1.zip").exists()

    def test_other_groups_are_refused(self, folder):
        agent = str(folder / "logs/grpo/CartPole-v1_1/CartPole-v1.zip")
        command = ("train", "--algo", "grpo", "--env", "CartPole-v1", "-n", "512", "-i", agent, *QUICK[:-1], "refused")
        result = run(folder, *command, "-params", "n_groups:2", check=False)
        assert result.returncode != 0
        assert "`n_groups` of a saved model cannot be changed: it was built with 1, got 2" in result.stderr


OPTIMIZE = ("-optimize", "--n-trials", "2", "--no-optim-plots", "--n-evaluations", "2", "--n-startup-trials", "1")


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A folder with a study of two workers, one after the other, with the same seed."""
    path = tmp_path_factory.mktemp("study")
    for _ in range(2):
        storage = ("--storage", "journal.log", "--study-name", "tasks", "--objective", "worst")
        run(path, "train", "--algo", "grpo", "--env", TASKS, "-n", "512", *OPTIMIZE, *storage, *QUICK)
    return path


def load_study(path: Path) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(path / "journal.log")))
    return optuna.load_study(study_name="tasks", storage=storage)


class TestStudies:
    def test_suggestions_of_workers_differ(self, study):
        trials = load_study(study).trials
        assert len(trials) == 4
        assert len({trial.params["group_coef"] for trial in trials}) == 4

    @pytest.mark.parametrize("number", ["0", "1"])
    def test_a_trial_is_loaded_again(self, study, number):
        command = ("train", "--algo", "grpo", "--env", TASKS, "-n", "256", *QUICK[:-1], f"trial{number}")
        run(study, *command, "--storage", "journal.log", "--study-name", "tasks", "--trial-id", number)
        model = GRPO.load(next((study / f"trial{number}").glob("grpo/*_1/*.zip")))
        params = load_study(study).trials[int(number)].params
        assert model.group_coef == params["group_coef"]
        assert model.n_steps == 2 ** params["n_steps_pow"]

    def test_database(self, tmp_path):
        storage = ("--storage", "sqlite:///study.db", "--study-name", "tasks")
        run(tmp_path, "train", "--algo", "grpo", "--env", TASKS, "-n", "256", *OPTIMIZE, *storage, *QUICK)
        assert len(optuna.load_study(study_name="tasks", storage=f"sqlite:///{tmp_path}/study.db").trials) == 2


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
def test_bad_values_stop(tmp_path, params, message, optimize):
    """Not even a study counts them as trials that were pruned."""
    storage = ("--storage", "journal.log", "--study-name", "tasks") if optimize else ()
    command = ("train", "--algo", "grpo", "--env", TASKS, "-n", "256", *QUICK, "-params", *params)
    result = run(tmp_path, *command, *(OPTIMIZE if optimize else ()), *storage, check=False)
    assert result.returncode != 0
    assert message in result.stderr
    if optimize:
        states = [trial.state for trial in load_study(tmp_path).trials]
        assert states == [optuna.trial.TrialState.FAIL]


class TestHyperparams:
    ppo = yaml.safe_load((Path(rl_zoo3.__file__).parent / "hyperparams/ppo.yml").read_text())

    def test_those_of_ppo_are_unchanged(self):
        assert set(self.ppo) <= set(hyperparams)
        assert {"default", "atari", "CartPole-v1"} <= set(self.ppo)
        for env_id, values in self.ppo.items():
            assert {name: hyperparams[env_id].get(name) for name in values} == values, env_id

    @pytest.mark.parametrize("env_id", [name for name in hyperparams if name.startswith("sb3_grpo/")])
    def test_entries_of_the_task_environments_fit(self, env_id):
        kwargs = {name: value for name, value in hyperparams[env_id].items() if name not in ("n_envs", "n_timesteps")}
        model = GRPO(kwargs.pop("policy"), utils.gym.make(env_id), **kwargs)
        model._setup_learn(1)
        assert model.n_groups == utils.gym.make(env_id).unwrapped.get_wrapper_attr("n_tasks")


class TestSearchSpace:
    def test_converter_gives_what_the_sampler_gave(self, registered):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(20):
            trial = study.ask()
            sampled = hyperparams_opt.HYPERPARAMS_SAMPLER["grpo"](trial, 1, 1, {})
            assert hyperparams_opt.HYPERPARAMS_CONVERTER["grpo"](trial.params) == sampled
            assert sampled["merge_kl"] < sampled["split_kl"]
            groups = zoo.convert_group_params(trial.params)
            assert groups.items() <= sampled.items()
            assert GRPO("MlpPolicy", "CartPole-v1", **groups).group_coef == sampled["group_coef"]

    def test_contains_that_of_ppo(self, registered):
        trials = [optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask() for _ in range(2)]
        for trial, name in zip(trials, ("ppo", "grpo"), strict=True):
            hyperparams_opt.HYPERPARAMS_SAMPLER[name](trial, 1, 1, {})
        ppo, grpo = (set(trial.params) for trial in trials)
        assert grpo - ppo == {"groups", "group_coef", "normalize_advantage", "split_kl", "merge_to_split"}
        assert ppo <= grpo


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

        monkeypatch.setattr(zoo.exp_manager.ExperimentManager, "objective", objective)
        manager = zoo.GroupExperimentManager.__new__(zoo.GroupExperimentManager)
        manager.algo = "grpo"
        trial: Any = optuna.trial.FixedTrial({})
        with pytest.raises(expected):
            manager.objective(trial)

    def test_other_algorithms_as_in_the_zoo(self, monkeypatch):
        def objective(*_: Any) -> float:
            raise optuna.TrialPruned from ValueError("columns")

        monkeypatch.setattr(zoo.exp_manager.ExperimentManager, "objective", objective)
        manager = zoo.GroupExperimentManager.__new__(zoo.GroupExperimentManager)
        manager.algo = "ppo"
        trial: Any = optuna.trial.FixedTrial({})
        with pytest.raises(optuna.TrialPruned):
            manager.objective(trial)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            ["python", "-m", "rl_zoo3.record_video", "-n", "5"],
            [sys.executable, "-m", "sb3_grpo.zoo", "record_video", "-n", "5"],
        ),
        (["python", "enjoy.py", "-n", "5"], [sys.executable, "-m", "sb3_grpo.zoo", "enjoy", "-n", "5"]),
        (["ffmpeg", "-i", "x"], ["ffmpeg", "-i", "x"]),
    ],
)
def test_children_know_grpo(command: Sequence[str], expected: Sequence[str]) -> None:
    called: list[Sequence[str]] = []

    def call(given: Sequence[str]) -> int:
        called.append(given)
        return 0

    assert zoo.run_by_this_module(call)(command) == 0
    assert called == [expected]


def test_registering(registered):
    assert utils.ALGOS["grpo"] is GRPO
    assert utils.ALGOS["ppo"] is PPO
