"""Run RL Zoo's scripts as a user runs them, for the tests of this folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from stable_baselines3.common.env_util import make_vec_env

from sb3_grpo import GRPO

TASKS = "sb3_grpo/TaskCartPole-v0"
# below the log folder
TASKS_AGENT = "grpo/sb3_grpo-TaskCartPole-v0_1/sb3_grpo-TaskCartPole-v0.zip"
QUICK = ("--eval-freq", "512", "--eval-episodes", "4", "--seed", "3", "--num-threads", "1", "-f", "logs")
OPTIMIZE = ("-optimize", "--n-trials", "2", "--no-optim-plots", "--n-evaluations", "2", "--n-startup-trials", "1")


def environment() -> dict[str, str]:
    """Variables for a process that has no display."""
    return {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}


def checked(result: subprocess.CompletedProcess[str], check: bool) -> subprocess.CompletedProcess[str]:
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


def run_python(folder: Path, *arguments: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
    """
    :param folder: working directory
    :param arguments: of ``python``
    :param variables: of the environment
    """
    command, variables = [sys.executable, *arguments], environment() | variables
    result = subprocess.run(command, check=False, cwd=folder, env=variables, capture_output=True, text=True)  # noqa: S603 (the commands of this file)
    return checked(result, check)


def run(folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """
    :param folder: working directory
    :param arguments: of ``python -m sb3_grpo.zoo``
    :param options: of :func:`run_python`
    """
    return run_python(folder, "-m", "sb3_grpo.zoo", *arguments, **options)


class Zoo:
    """A process that runs commands one after the other, where it does not matter that each has a process of its own."""

    def __init__(self, folder: Path):
        """
        :param folder: for what the commands print
        """
        self.outputs = folder / "stdout", folder / "stderr"
        command = [sys.executable, str(Path(__file__).with_name("serve.py")), *map(str, self.outputs)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment(), stdin=pipe, stdout=pipe, text=True)  # noqa: S603 (our own file)

    def run(self, folder: Path, *arguments: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        """Return what :func:`run` returns."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([str(folder), arguments, variables]), file=self.process.stdin, flush=True)
        status = self.process.stdout.readline()
        stdout, stderr = (path.read_text() for path in self.outputs)
        assert status, f"the process has ended: {stdout}{stderr}"
        return checked(subprocess.CompletedProcess(arguments, int(status), stdout, stderr), check)

    def close(self) -> None:
        """End the process, which reads until there is no more input."""
        with self.process:
            pass


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


def load_study(path: Path) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(path / "journal.log")))
    return optuna.load_study(study_name="tasks", storage=storage)
