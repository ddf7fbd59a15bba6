"""RL Zoo's scripts with GRPO, run as a user runs them."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from huggingface_hub import metadata_load
from huggingface_sb3 import EnvironmentName
from rl_zoo3 import utils
from zoo.runs import QUICK, TASKS, TASKS_AGENT, Zoo, play, printed_returns, run_python

from sb3_grpo import GRPO
from sb3_grpo.grouping import Split
from sb3_grpo.heads import split_heads


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
    def test_enjoy_plays_the_agent_that_was_trained(self, zoo, folder, options, name):
        command = ("enjoy", "--algo", "grpo", "--env", "CartPole-v1", "-f", "logs", "--no-render", "-n", "1500")
        returns = printed_returns(zoo.run(folder, *command, *options))
        assert returns == play(GRPO.load(folder / f"logs/grpo/CartPole-v1_1/{name}.zip"), 1500)
        # and not any other
        assert returns != play(GRPO("MlpPolicy", "CartPole-v1", seed=0), 1500)

    def test_record_video(self, zoo, folder):
        zoo.run(folder, "record_video", "--algo", "grpo", "--env", "CartPole-v1", "-f", "logs", "-n", "20", "-o", "videos")
        assert list((folder / "videos").glob("*.mp4"))

    def test_record_training(self, zoo, folder, tmp_path):
        source, target = folder / "logs/grpo/CartPole-v1_1", tmp_path / "logs/grpo/CartPole-v1_1"
        # one model, one video
        shutil.copytree(source / "CartPole-v1", target / "CartPole-v1")
        shutil.copy(source / "CartPole-v1.zip", target)
        command = ("record_training", "--algo", "grpo", "--env", "CartPole-v1", "-f", "logs", "-n", "20", "-o", "videos", "-g")
        # whatever ffmpeg the machine has is not found there
        zoo.run(tmp_path, *command, PATH=str(tmp_path))
        videos = {path.name: path.read_bytes() for path in (tmp_path / "videos").iterdir()}
        assert len(videos) == 3
        assert videos["training.gif"].startswith(b"GIF8")
        assert videos["training.mp4"][4:8] == b"ftyp"

    def test_plots_are_saved_as_files(self, zoo, folder, tmp_path):
        # plot_from_file skips what has been run only once
        for number in (1, 2):
            shutil.copytree(folder / "logs/grpo/CartPole-v1_1", tmp_path / f"logs/grpo/CartPole-v1_{number}")
        zoo.run(tmp_path, "plot_train", "-a", "grpo", "-e", "CartPole-v1", "-f", "logs", "-w", "2")
        zoo.run(tmp_path, "all_plots", "-a", "grpo", "-e", "CartPole-v1", "-f", "logs", "-o", "results", "--no-million")
        # without a format the named file would be an SVG, whatever its name
        zoo.run(tmp_path, "plot_from_file", "-i", "results", "-o", "scores.png", "--format", "png", "-b")
        pictures = {path.stem: path.read_bytes() for path in tmp_path.glob("*.png")}
        # the last three: learning curve, bars, boxes
        names = ("plot_train_1", "all_plots_1", "plot_from_file_1", "plot_from_file_2", "plot_from_file_3")
        assert pictures.keys() == {*names, "scores"}
        assert all(picture.startswith(b"\x89PNG") and len(picture) > 1000 for picture in pictures.values())
        assert len({pictures[name] for name in names}) == len(names)
        assert pictures["scores"] == pictures["plot_from_file_2"]

    def test_benchmark(self, zoo, folder, trained, tmp_path):
        for source in (folder, trained):
            shutil.copytree(source / "logs", tmp_path / "logs", dirs_exist_ok=True)
        directories = ("--log-dir", "logs", "--benchmark-dir", "results/benchmark")
        zoo.run(tmp_path, "benchmark", *directories, "-n", "600", "--no-hub", "--num-threads", "1")
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

    def test_unknown_script_and_help(self, zoo, tmp_path):
        assert "invalid choice: 'fly'" in zoo.run(tmp_path, "fly", check=False).stderr
        assert "RL Zoo's script" in zoo.run(tmp_path).stdout
        assert "--trained-agent" in zoo.run(tmp_path, "train", "--help").stdout

    def test_other_algorithms(self, zoo, tmp_path):
        zoo.run(tmp_path, "train", "--algo", "a2c", "--env", "CartPole-v1", "-n", "200", *QUICK)
        assert (tmp_path / "logs/a2c/CartPole-v1_1/CartPole-v1.zip").exists()


# The network is a folder: `remote/<owner>/<name>` are the files of a repository
HUB = """
import shutil
import sys
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
script, *options = sys.argv[1:]
main([script, *options, "-orga", "nobody"])
"""


def share(path: Path, *agent: str, load: bool = True) -> None:
    """Push an agent from `logs` of the folder to the hub, and load it into `downloaded`."""
    # whatever ffmpeg the machine has is not found there
    run_python(path, "-c", HUB, "push_to_hub", *agent, "-f", "logs", "-n", "20", PATH=str(path))
    if load:
        run_python(path, "-c", HUB, "load_from_hub", *agent, "-f", "downloaded")


@pytest.fixture(scope="module")
def shared(folder, tmp_path_factory) -> Path:
    """A folder with an agent in `logs` that has gone through the hub to `downloaded`."""
    path = tmp_path_factory.mktemp("hub")
    shutil.copytree(folder / "logs/grpo/CartPole-v1_1", path / "logs/grpo/CartPole-v1_1")
    share(path, "--algo", "grpo", "--env", "CartPole-v1")
    return path


def code_of(card: str) -> str:
    """The Python code of a model card."""
    (code,) = re.findall(r"^```python\n(import.*?)^```$", card, re.MULTILINE | re.DOTALL)
    return code


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
        card = (files / "README.md").read_text()
        assert "# **GRPO** Agent playing **CartPole-v1**" in card
        assert "[sb3-grpo](https://github.com/sb3-grpo/sb3-grpo)" in card
        # RL Zoo's own commands do not know the algorithm
        assert "rl_zoo3" not in card
        # what it tells of the agent stays
        assert "## Hyperparameters\n```python\nOrderedDict(" in card
        # there is one task, and nothing is normalised
        assert "Results by task" not in card
        assert "vec_normalize" not in card
        assert (files / "replay.mp4").read_bytes()[4:8] == b"ftyp"

    def test_commands_of_the_card_are_those_that_loaded_it(self, shared):
        card = (shared / "remote/nobody/grpo-CartPole-v1/README.md").read_text()
        commands = re.findall(r"^python -m sb3_grpo.zoo (\w+) (.*)$", card, re.MULTILINE)
        assert [name for name, _ in commands] == ["load_from_hub", "enjoy", "train", "push_to_hub"]
        assert commands[0][1] == "--algo grpo --env CartPole-v1 -orga nobody -f logs/"

    def test_code_of_the_card_loads_the_agent(self, shared):
        card = (shared / "remote/nobody/grpo-CartPole-v1/README.md").read_text()
        hub, _, _ = HUB.partition("script, *options")
        program = f"{hub}{code_of(card)}print(model.num_timesteps, type(model).__name__)"
        assert run_python(shared, "-c", program).stdout.split() == ["1024", "GRPO"]

    def test_model_card_can_be_read(self, shared):
        """The hub refuses a card that cannot."""
        metadata = metadata_load(shared / "remote/nobody/grpo-CartPole-v1/README.md")
        assert metadata is not None
        assert metadata["library_name"] == "stable-baselines3"
        assert metadata["model-index"][0]["name"] == "GRPO"
        assert {"sb3-grpo", "grpo", "stable-baselines3", "CartPole-v1"} <= set(metadata["tags"])

    def test_results_by_task_and_normalisation(self, zoo, tmp_path):
        options = ("--algo", "grpo", "--env", TASKS)
        normalize = ("normalize:dict(norm_obs=True,norm_reward=False)",)
        zoo.run(tmp_path, "train", *options, "-n", "1024", *QUICK, "-params", *normalize)
        share(tmp_path, *options, "-name", "tasks", "--no-render", load=False)
        files = tmp_path / "remote/nobody/tasks"
        card = (files / "README.md").read_text()
        assert "load `vec_normalize.pkl` in the same way" in card
        assert (files / "vec_normalize.pkl").exists()
        assert f"--env {TASKS} -orga nobody -name tasks -f logs/" in card
        assert 'load_from_hub("nobody/tasks", "grpo-sb3_grpo-TaskCartPole-v0.zip")' in card
        rows = re.findall(r"^\| (\d) \| ([\d.]+) \+/- [\d.]+ \| (\d+) \| (\d+) \|$", card, re.MULTILINE)
        assert [task for task, *_ in rows] == ["0", "1", "2", "3"]
        for _, mean, length, n_episodes in rows:
            # every step earns 1
            assert float(mean) == pytest.approx(int(length), abs=0.51)
            assert n_episodes == "10"

    def test_card_of_another_algorithm_is_rl_zoos(self, zoo, tmp_path):
        options = ("--algo", "ppo", "--env", "CartPole-v1")
        zoo.run(tmp_path, "train", *options, "-n", "200", *QUICK)
        share(tmp_path, *options, "--no-render", load=False)
        card = (tmp_path / "remote/nobody/ppo-CartPole-v1/README.md").read_text()
        assert "python -m rl_zoo3.load_from_hub --algo ppo" in card
        assert "sb3-grpo" not in card


def test_one_group_is_ppo(zoo, tmp_path):
    """The same evaluation files, whatever the zoo does around the algorithms."""
    command = ("train", "--env", "CartPole-v1", "-n", "1024", *QUICK)
    zoo.run(tmp_path, *command, "--algo", "ppo")
    zoo.run(tmp_path, *command, "--algo", "grpo", "-params", "n_groups:1", "group_coef:0.0")
    ppo, grpo = (np.load(tmp_path / f"logs/{name}/CartPole-v1_1/evaluations.npz") for name in ("ppo", "grpo"))
    assert ppo.files == grpo.files
    assert len(ppo["results"]) == 2
    for name in ppo.files:
        np.testing.assert_array_equal(ppo[name], grpo[name])


class TestContinuing:
    def test_goes_on(self, zoo, folder):
        agent = str(folder / "logs/grpo/CartPole-v1_1/CartPole-v1.zip")
        zoo.run(folder, "train", "--algo", "grpo", "--env", "CartPole-v1", "-n", "512", "-i", agent, *QUICK[:-1], "more")
        assert (folder / "more/grpo/CartPole-v1_1/CartPole-v1.zip").exists()

    def test_other_groups_are_refused(self, zoo, folder):
        agent = str(folder / "logs/grpo/CartPole-v1_1/CartPole-v1.zip")
        command = ("train", "--algo", "grpo", "--env", "CartPole-v1", "-n", "512", "-i", agent, *QUICK[:-1], "refused")
        result = zoo.run(folder, *command, "-params", "n_groups:2", check=False)
        assert result.returncode != 0
        assert "`n_groups` of a saved model cannot be changed: it was built with 1, got 2" in result.stderr


@pytest.fixture(scope="module")
def merged(trained) -> GRPO:
    return GRPO.load(trained / "logs" / TASKS_AGENT)


def action_heads(agent: Any) -> th.Tensor:
    """
    :return: a view of the weights, heads in the first dimension
    """
    return split_heads(agent.policy.action_net.weight.data, 0, agent.policy.n_heads)


@pytest.fixture(scope="module")
def split_folder(trained, tmp_path_factory) -> Path:
    """A copy of the folder: the other one stays as it is, in whatever order tests are run."""
    return shutil.copytree(trained, tmp_path_factory.mktemp("split"), dirs_exist_ok=True)


@pytest.fixture(scope="module")
def split(split_folder) -> GRPO:
    """The same agent with a second head for two of its tasks, which stands in the copy in its place."""
    final = split_folder / "logs" / TASKS_AGENT
    agent = GRPO.load(final)
    agent.policy.regroup(Split(0, 2, [1, 3], 1.0))
    action_heads(agent)[agent.policy.grouping.heads.index(2)] *= -1
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
    def test_enjoy_plays_with_all_heads(self, zoo, split_folder, merged, split, options):
        command = ("enjoy", "--algo", "grpo", "--env", TASKS, "-f", "logs", "--no-render", "-n", "500")
        returns = printed_returns(zoo.run(split_folder, *command, *options))
        assert returns == play(split, 500, TASKS)
        # and not with one
        assert returns != play(merged, 500, TASKS)

    def continue_training(self, zoo: Zoo, folder: Path, *params: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        agent = str(folder / "logs" / TASKS_AGENT)
        command = ("train", "--algo", "grpo", "--env", TASKS, "-n", "1024", "-i", agent, *QUICK[:-1], "more")
        return zoo.run(folder, *command, "-params", *params, check=check)

    def test_continuing_keeps_groups(self, zoo, split_folder, split):
        # looked at, but never far enough apart or alike
        self.continue_training(zoo, split_folder, "regroup_warmup:0", "regroup_freq:1", "merge_kl:0.0", "split_kl:100.0")
        continued = GRPO.load(split_folder / "more" / TASKS_AGENT)
        assert continued.policy.grouping.cell_to_group.tolist() == split.policy.grouping.cell_to_group.tolist() == [0, 2, 0, 2]
        # the zoo counts steps from 0 again
        assert continued.regroup_history == []
        assert continued.first_grouping == [0, 2, 0, 2]
        # both heads have learnt
        changed = (action_heads(continued) != action_heads(split)).flatten(1).any(dim=1)
        assert changed.tolist() == [True, True]

    def test_number_of_heads_stays(self, zoo, split_folder, split):
        result = self.continue_training(zoo, split_folder, "max_groups:7", check=False)
        assert result.returncode != 0
        assert "`max_groups` of a saved model cannot be changed: it was built with 4, got 7" in result.stderr
