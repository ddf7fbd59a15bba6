"""RL Zoo with GRPO: every command, run as a user runs it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import optuna
import pytest
import rl_zoo3
import torch as th
import tuning
import yaml
from common import RESULTS, read_rows
from huggingface_hub import metadata_load
from huggingface_sb3 import EnvironmentName
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from rl_zoo3 import hyperparams_opt, utils
from stable_baselines3 import PPO, HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_grpo import GRPO, rl_zoo, zoo
from sb3_grpo.heads import split_heads
from sb3_grpo.routing import NonFiniteError
from sb3_grpo.regroup_plan import Split
from sb3_grpo.zoo_configs import hyperparams

TASKS = "sb3_grpo/TaskCartPole-v0"
# below the log folder
TASKS_AGENT = "grpo/sb3_grpo-TaskCartPole-v0_1/sb3_grpo-TaskCartPole-v0.zip"
QUICK = ("--eval-freq", "512", "--eval-episodes", "4", "--seed", "3", "--num-threads", "1", "-f", "logs")


def run_python(folder: Path, *arguments: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
    """
    :param folder: working directory
    :param arguments: of ``python``
    :param variables: of the environment
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    command, environment = [sys.executable, *arguments], {**environment, **variables}
    result = subprocess.run(command, check=False, cwd=folder, env=environment, capture_output=True, text=True)  # noqa: S603 (the commands of this file)
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


def run(folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """
    :param folder: working directory
    :param arguments: of ``python -m sb3_grpo.zoo``
    :param options: of :func:`run_python`
    """
    return run_python(folder, "-m", "sb3_grpo.zoo", *arguments, **options)


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


def play(model: GRPO, n_steps: int, env_id: str = "CartPole-v1") -> list[float]:
    """Returns of the episodes that end within so many steps, played as ``enjoy`` plays them."""
    env = make_vec_env(env_id, 1, seed=0)
    obs, returns = env.reset(), []
    for _ in range(n_steps):
        actions, _ = model.predict(obs, deterministic=True)  # type: ignore[arg-type]  # VecEnv.reset may return a Dict, here an array
        obs, _, _, infos = env.step(actions)
        returns += [info["episode"]["r"] for info in infos if "episode" in info]
    return returns


def printed_returns(result: subprocess.CompletedProcess[str]) -> list[float]:
    """What ``enjoy`` says of the same episodes."""
    return [float(number) for number in re.findall(r"Episode Reward: (\S+)", result.stdout)]


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
        returns = printed_returns(run(folder, *command, *options))
        assert returns == play(GRPO.load(folder / f"logs/grpo/CartPole-v1_1/{name}.zip"), 1500)
        # and not any other
        assert returns != play(GRPO("MlpPolicy", "CartPole-v1", seed=0), 1500)

    def test_record_video(self, folder):
        run(folder, "record_video", "--algo", "grpo", "--env", "CartPole-v1", "-f", "logs", "-n", "20", "-o", "videos")
        assert list((folder / "videos").glob("*.mp4"))

    def test_record_training(self, folder, tmp_path):
        source, target = folder / "logs/grpo/CartPole-v1_1", tmp_path / "logs/grpo/CartPole-v1_1"
        # one model, one video
        shutil.copytree(source / "CartPole-v1", target / "CartPole-v1")
        shutil.copy(source / "CartPole-v1.zip", target)
        command = ("record_training", "--algo", "grpo", "--env", "CartPole-v1", "-f", "logs", "-n", "20", "-o", "videos", "-g")
        # whatever ffmpeg the machine has is not found there
        run(tmp_path, *command, PATH=str(tmp_path))
        videos = {path.name: path.read_bytes() for path in (tmp_path / "videos").iterdir()}
        assert len(videos) == 3
        assert videos["training.gif"].startswith(b"GIF8")
        assert videos["training.mp4"][4:8] == b"ftyp"

    def test_plots_are_saved_as_files(self, folder, tmp_path):
        # plot_from_file skips what has been run only once
        for number in (1, 2):
            shutil.copytree(folder / "logs/grpo/CartPole-v1_1", tmp_path / f"logs/grpo/CartPole-v1_{number}")
        run(tmp_path, "plot_train", "-a", "grpo", "-e", "CartPole-v1", "-f", "logs", "-w", "2")
        run(tmp_path, "all_plots", "-a", "grpo", "-e", "CartPole-v1", "-f", "logs", "-o", "results", "--no-million")
        # without a format the named file would be an SVG, whatever its name
        run(tmp_path, "plot_from_file", "-i", "results", "-o", "scores.png", "--format", "png", "-b")
        pictures = {path.stem: path.read_bytes() for path in tmp_path.glob("*.png")}
        # the last three: learning curve, bars, boxes
        names = ("plot_train_1", "all_plots_1", "plot_from_file_1", "plot_from_file_2", "plot_from_file_3")
        assert pictures.keys() == {*names, "scores"}
        assert all(picture.startswith(b"\x89PNG") and len(picture) > 1000 for picture in pictures.values())
        assert len({pictures[name] for name in names}) == len(names)
        assert pictures["scores"] == pictures["plot_from_file_2"]

    def test_benchmark(self, folder, trained, tmp_path):
        for source in (folder, trained):
            shutil.copytree(source / "logs", tmp_path / "logs", dirs_exist_ok=True)
        directories = ("--log-dir", "logs", "--benchmark-dir", "results/benchmark")
        run(tmp_path, "benchmark", *directories, "-n", "600", "--no-hub", "--num-threads", "1")
        rows = re.findall(r"^\|grpo\|.*$", (tmp_path / "benchmark.md").read_text(), re.MULTILINE)
        # an environment has a slash in its name, a folder cannot
        agents = {"CartPole-v1": "grpo/CartPole-v1_1/CartPole-v1.zip", TASKS.replace("/", "-"): TASKS_AGENT}
        assert len(rows) == len(agents)
        for row, (name, path) in zip(rows, agents.items(), strict=True):
            _, env_id, mean, std, _, n_steps, n_episodes = (cell.strip() for cell in row.strip("|").split("|"))
            returns = play(GRPO.load(tmp_path / "logs" / path), 600, TASKS if path == TASKS_AGENT else name)
            # every step earns 1
            assert (env_id, int(n_steps), int(n_episodes)) == (name, sum(returns), len(returns))
            assert (float(mean), float(std)) == pytest.approx((np.mean(returns), np.std(returns)), abs=0.0006)

    def test_unknown_script_and_help(self, tmp_path):
        assert "invalid choice: 'fly'" in run(tmp_path, "fly", check=False).stderr
        assert "RL Zoo's script" in run(tmp_path).stdout
        assert "--trained-agent" in run(tmp_path, "train", "--help").stdout

    def test_other_algorithms(self, tmp_path):
        run(tmp_path, "train", "--algo", "a2c", "--env", "CartPole-v1", "-n", "200", *QUICK)
        assert (tmp_path / "logs/a2c/CartPole-v1_1/CartPole-v1.zip").exists()


# The network is a folder: `remote/<owner>/<name>` are the files of a repository
HUB = """
import shutil
from pathlib import Path

import huggingface_hub
import huggingface_sb3
from huggingface_hub.errors import EntryNotFoundError

from sb3_grpo.zoo import main


def download(repo_id, filename):
    path = Path("remote", repo_id, filename)
    if not path.exists():
        raise EntryNotFoundError(f"404: {path}")
    return str(path)


def create(api, repo_id, **kwargs):
    Path("remote", repo_id).mkdir(parents=True, exist_ok=True)
    return f"hub/{repo_id}"


def copy_out(api, repo_id, local_dir):
    shutil.copytree(Path("remote", repo_id), local_dir)


def copy_in(api, repo_id, folder_path, commit_message):
    shutil.copytree(folder_path, Path("remote", repo_id), dirs_exist_ok=True)


hub = huggingface_hub.HfApi
hub.create_repo, hub.snapshot_download, hub.upload_folder = create, copy_out, copy_in
huggingface_sb3.load_from_hub = download
agent = ("--algo", "grpo", "--env", "CartPole-v1", "-orga", "nobody")
main(["push_to_hub", *agent, "-f", "logs", "-n", "20"])
main(["load_from_hub", *agent, "-f", "downloaded"])
"""


@pytest.fixture(scope="module")
def shared(folder, tmp_path_factory) -> Path:
    """A folder with an agent in `logs` that has gone through the hub to `downloaded`."""
    path = tmp_path_factory.mktemp("hub")
    shutil.copytree(folder / "logs/grpo/CartPole-v1_1", path / "logs/grpo/CartPole-v1_1")
    # whatever ffmpeg the machine has is not found there
    run_python(path, "-c", HUB, PATH=str(path))
    return path


class TestHub:
    def test_agent_comes_back_as_it_was(self, shared):
        paths = []
        for name in ("logs", "downloaded"):
            # where enjoy looks for it
            _, path, _ = utils.get_model_path(0, str(shared / name), "grpo", EnvironmentName("CartPole-v1"))
            paths.append(Path(path))
        pushed, loaded = (GRPO.load(path).policy.state_dict() for path in paths)
        assert pushed.keys() == loaded.keys()
        assert all(th.equal(pushed[name], loaded[name]) for name in pushed)
        assert play(GRPO.load(paths[1]), 200) == play(GRPO.load(paths[0]), 200)
        for name in ("evaluations.npz", "0.monitor.csv", "CartPole-v1/args.yml", "CartPole-v1/config.yml"):
            assert (paths[1].parent / name).read_bytes() == (paths[0].parent / name).read_bytes()

    def test_model_card_and_video(self, shared):
        files = shared / "remote/nobody/grpo-CartPole-v1"
        assert "# **GRPO** Agent playing **CartPole-v1**" in (files / "README.md").read_text()
        assert (files / "replay.mp4").read_bytes()[4:8] == b"ftyp"

    def test_model_card_can_be_read(self, shared):
        """The hub refuses a card that cannot."""
        metadata = metadata_load(shared / "remote/nobody/grpo-CartPole-v1/README.md")
        assert metadata is not None
        assert metadata["library_name"] == "stable-baselines3"
        assert metadata["model-index"][0]["name"] == "GRPO"


def test_plain_rl_zoo(tmp_path):
    """What the documentation says does it."""
    (lines,) = re.findall(
        r"```text\n(from sb3_grpo.zoo .*?)```", (Path(__file__).parents[1] / "docs/zoo.md").read_text(), re.DOTALL
    )
    assert len(lines.splitlines()) == 2
    (tmp_path / "custom_envs.py").write_text(lines)
    command = ("--algo", "grpo", "--conf-file", "sb3_grpo.zoo_configs", "--env", TASKS, "-n", "256", *QUICK)
    run_python(tmp_path, "-m", "rl_zoo3.train", *command)
    model = GRPO.load(tmp_path / "logs" / TASKS_AGENT)
    # one rollout
    assert model.num_timesteps == hyperparams[TASKS]["n_envs"] * hyperparams[TASKS]["n_steps"]
    assert model.router_kwargs == hyperparams[TASKS]["router_kwargs"]


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


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder in which an agent has merged all of its groups."""
    path = tmp_path_factory.mktemp("regrouped")
    # everything is alike at the first look
    merging = ("regroup_warmup:0", "regroup_freq:1", "merge_kl:50.0", "split_kl:100.0")
    run(path, "train", "--algo", "grpo", "--env", TASKS, "-n", "2048", *QUICK, "-params", *merging)
    return path


@pytest.fixture(scope="module")
def merged(trained) -> GRPO:
    return GRPO.load(trained / "logs" / TASKS_AGENT)


def action_heads(agent: Any) -> th.Tensor:
    """
    :return: a view of the weights, heads in the first dimension
    """
    return split_heads(agent.policy.action_net.weight.data, 0, agent.policy.max_groups)


@pytest.fixture(scope="module")
def split(trained, merged) -> GRPO:
    """The same agent with a second head for two of its tasks, which stands in the folder in its place."""
    final = trained / "logs" / TASKS_AGENT
    agent = GRPO.load(final)
    agent.policy.regroup(Split(0, 2, [1, 3], 1.0))
    action_heads(agent)[2] *= -1
    for path in (final, final.with_name("best_model.zip")):
        assert path.exists()
        agent.save(path)
    return agent


class TestAfterRegrouping:
    """What the zoo does with a model whose groups are not those that it was built with."""

    def test_zoo_merges(self, merged):
        assert [event.kind for event in merged.regroup_history] == ["merge"] * 3
        assert merged.regroup_history[-1].cell_to_group == merged.policy.grouping.cell_to_group.tolist() == [0, 0, 0, 0]

    @pytest.mark.parametrize("options", [(), ("--load-best",)])
    def test_enjoy_plays_with_all_heads(self, trained, merged, split, options):
        command = ("enjoy", "--algo", "grpo", "--env", TASKS, "-f", "logs", "--no-render", "-n", "500")
        returns = printed_returns(run(trained, *command, *options))
        assert returns == play(split, 500, TASKS)
        # and not with one
        assert returns != play(merged, 500, TASKS)

    def continue_training(self, folder: Path, *params: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        agent = str(folder / "logs" / TASKS_AGENT)
        command = ("train", "--algo", "grpo", "--env", TASKS, "-n", "1024", "-i", agent, *QUICK[:-1], "more")
        return run(folder, *command, "-params", *params, check=check)

    def test_continuing_keeps_groups(self, trained, split):
        # looked at, but never far enough apart or alike
        self.continue_training(trained, "regroup_warmup:0", "regroup_freq:1", "merge_kl:0.0", "split_kl:100.0")
        continued = GRPO.load(trained / "more" / TASKS_AGENT)
        assert continued.policy.grouping.cell_to_group.tolist() == split.policy.grouping.cell_to_group.tolist() == [0, 2, 0, 2]
        # the zoo counts steps from 0 again
        assert continued.regroup_history == []
        assert continued.first_grouping == [0, 2, 0, 2]
        # heads that are used have learnt
        changed = (action_heads(continued) != action_heads(split)).flatten(1).any(dim=1)
        assert changed.tolist() == [True, False, True, False]

    def test_number_of_heads_stays(self, trained, split):
        result = self.continue_training(trained, "max_groups:7", check=False)
        assert result.returncode != 0
        assert "`max_groups` of a saved model cannot be changed: it was built with 4, got 7" in result.stderr


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

    def test_what_is_fixed_stays(self, tmp_path):
        storage = ("--storage", "journal.log", "--study-name", "tasks")
        command = ("train", "--algo", "grpo", "--env", TASKS, "-n", "256", *OPTIMIZE, *storage, *QUICK, "--fix")
        run(tmp_path, *command, "batch_size_pow:8", "n_epochs:1", "groups:one")
        trials = load_study(tmp_path).trials
        assert [(t.params["batch_size_pow"], t.params["n_epochs"], t.params["groups"]) for t in trials] == [(8, 1, "one")] * 2
        assert len({t.params["learning_rate"] for t in trials}) == 2

    def test_what_the_search_space_does_not_offer_makes_no_study(self, tmp_path):
        storage = ("--storage", "journal.log", "--study-name", "tasks")
        command = ("train", "--algo", "grpo", "--env", TASKS, "-n", "256", *OPTIMIZE, *storage, *QUICK)
        result = run(tmp_path, *command, "--fix", "n_epochs:4", check=False)
        assert result.returncode != 0
        assert "`--fix n_epochs` must be one of [1, 5, 10, 20], as in the search space; got 4" in result.stderr
        assert not (tmp_path / "journal.log").exists()

    def test_database(self, tmp_path):
        storage = ("--storage", "sqlite:///study.db", "--study-name", "tasks")
        cheap = ("--fix", "batch_size_pow:8", "n_steps_pow:5")
        run(tmp_path, "train", "--algo", "grpo", "--env", TASKS, "-n", "256", *OPTIMIZE, *storage, *QUICK, *cheap)
        assert len(optuna.load_study(study_name="tasks", storage=f"sqlite:///{tmp_path}/study.db").trials) == 2


def test_tuned_entry_is_the_chosen_trial_of_the_study():
    study = tuning.load_study("cartpole_again")
    assert len(study.trials) >= 40
    chosen = tuning.choose(read_rows(RESULTS / "tuning_cartpole_again.jsonl"), tuning.best_trials(study, 10))
    entry = dict(hyperparams[TASKS])
    # as RL Zoo reads it
    entry["policy_kwargs"] = eval(entry["policy_kwargs"], {"nn": th.nn})  # noqa: S307 (our own file)
    entry["n_groups"] = None
    for name, value in rl_zoo.convert_grpo_params(study.trials[chosen].params).items():
        assert entry[name] == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value), name


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
        rl_zoo.check_fixed(params, self.space)

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
            rl_zoo.check_fixed(params, self.space)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("a:1", ("a", 1)),
            ("a:0.5", ("a", 0.5)),
            ("a:one", ("a", "one")),
            ("a:'one'", ("a", "one")),
            ("a:b:c", ("a", "b:c")),
        ],
    )
    def test_values_are_written_as_trials_print_them(self, text, expected):
        assert rl_zoo.name_and_value(text) == expected

    @pytest.mark.parametrize("with_her", [False, True])
    def test_search_space_of_another_algorithm(self, with_her):
        manager = rl_zoo.GroupExperimentManager.__new__(rl_zoo.GroupExperimentManager)
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
        manager = rl_zoo.GroupExperimentManager.__new__(rl_zoo.GroupExperimentManager)
        manager.algo = "grpo"
        # failed, never made, another study
        for name, number in (("tasks", 0), ("tasks", 1), ("other", 0)):
            with pytest.raises(ValueError, match=f"trial {number} of study '{name}' cannot be used"):
                manager.load_trial(path, name, number)


# A process that is killed while it pickles; first as in SB3, then as in the processes of RL Zoo with this package
KILLED = """
import os
import signal

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_grpo.rl_zoo import patch


class Killer:
    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)


env = VecNormalize(make_vec_env("CartPole-v1"))
for name, prepare in (("plain.pkl", lambda: None), ("patched.pkl", patch)):
    prepare()
    env.save(name)
    child = os.fork()
    if child == 0:
        env.killer = Killer()
        env.save(name)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked and killed on this system")
def test_statistics_survive_a_kill(tmp_path, cartpole):
    run_python(tmp_path, "-c", KILLED)
    assert VecNormalize.load(str(tmp_path / "patched.pkl"), cartpole).epsilon == 1e-8
    with pytest.raises(EOFError):
        VecNormalize.load(str(tmp_path / "plain.pkl"), cartpole)


class TestWithoutTheExtra:
    message = 'pip install "sb3-grpo[zoo]"'

    def test_command(self, tmp_path):
        code = "import runpy, sys; sys.modules['rl_zoo3'] = None; runpy.run_module('sb3_grpo.zoo', run_name='__main__')"
        result = run_python(tmp_path, "-c", code, check=False)
        assert result.returncode == 1
        assert self.message in result.stderr
        assert "rl_zoo3" in result.stderr
        assert len(result.stderr.splitlines()) == 1

    @pytest.mark.parametrize("package", ["optuna", "huggingface_sb3", "imageio_ffmpeg", "matplotlib", "requests", "rl_zoo3"])
    def test_whatever_is_missing(self, monkeypatch, package):
        for name in [name for name in sys.modules if name == "sb3_grpo.rl_zoo" or name.split(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=re.escape(self.message)):
            zoo.register()
        with pytest.raises(SystemExit, match=re.escape(self.message)):
            zoo.main(["train"])


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
        # as RL Zoo reads it
        kwargs["policy_kwargs"] = eval(kwargs.get("policy_kwargs", "{}"), {"nn": th.nn})  # noqa: S307 (our own file)
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
            groups = rl_zoo.convert_group_params(trial.params)
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

        monkeypatch.setattr(rl_zoo.exp_manager.ExperimentManager, "objective", objective)
        manager = rl_zoo.GroupExperimentManager.__new__(rl_zoo.GroupExperimentManager)
        manager.algo = "grpo"
        trial: Any = optuna.trial.FixedTrial({})
        with pytest.raises(expected):
            manager.objective(trial)

    def test_other_algorithms_as_in_the_zoo(self, monkeypatch):
        def objective(*_: Any) -> float:
            raise optuna.TrialPruned from ValueError("columns")

        monkeypatch.setattr(rl_zoo.exp_manager.ExperimentManager, "objective", objective)
        manager = rl_zoo.GroupExperimentManager.__new__(rl_zoo.GroupExperimentManager)
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

    assert rl_zoo.run_by_this_module(call)(command) == 0
    assert called == [expected]


@pytest.mark.parametrize("script", ["all_plots", "plot_train"])
@pytest.mark.parametrize("option", ["-e", "--env"])
def test_plots_look_for_folders(script, option):
    argv = rl_zoo.PREPARATIONS[script](["-a", "grpo", option, TASKS, "CartPole-v1", "-f", "logs"])
    assert argv == ["-a", "grpo", "-f", "logs", "-e", TASKS.replace("/", "-"), "CartPole-v1"]
    assert rl_zoo.PREPARATIONS[script](["-a", "grpo"]) == ["-a", "grpo"]


@pytest.mark.parametrize("option", ["-o", "--output-folder", "--output"])
def test_videos_are_joined_in_an_absolute_folder(option):
    argv = rl_zoo.prepare_recording(["--algo", "grpo", option, "videos"])
    assert argv == ["--algo", "grpo", "-o", os.path.abspath("videos")]
    assert rl_zoo.prepare_recording(["--algo", "grpo"]) == ["--algo", "grpo"]


def test_registering(registered):
    assert utils.ALGOS["grpo"] is GRPO
    assert utils.ALGOS["ppo"] is PPO
