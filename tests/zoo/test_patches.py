"""Functions that are replaced in the process of a script."""

import os
import sys
from collections.abc import Sequence

import pytest
from stable_baselines3.common.vec_env import VecNormalize
from zoo.runs import run_python

from sb3_grpo.zoo.patches import with_grpo_in_children
from sb3_grpo.zoo.scripts import SCRIPTS


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

    assert with_grpo_in_children(call, SCRIPTS.values())(command) == 0
    assert called == [expected]


# A process that is killed while it pickles; first as in SB3, then as in the processes of RL Zoo with this package
KILLED = """
import os
import signal

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_grpo.zoo.patches import patch


class Killer:
    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)


env = VecNormalize(make_vec_env("CartPole-v1"))
for name, prepare in (("plain.pkl", lambda: None), ("patched.pkl", lambda: patch([]))):
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
