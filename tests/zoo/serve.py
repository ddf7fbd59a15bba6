"""
Run commands one after the other, each as ``python -m sb3_grpo.zoo`` runs it: to import torch takes longer than most of them.

Arguments: files for standard output and standard error of the last command. Each line of input is a JSON list of a command's
working directory, its arguments, and variables of its environment; the answer is a line with its exit status.
"""

import json
import os
import runpy
import subprocess
import sys
import traceback
import warnings
from unittest.mock import patch

import matplotlib.pyplot as plt
from stable_baselines3.common.vec_env import VecNormalize


def forget() -> None:
    """Have each command import RL Zoo and the modules of this package for it anew, and find nothing of others."""
    plt.close("all")
    for name in list(sys.modules):
        if name.split(".")[0] in ("huggingface_sb3", "rl_zoo3") or name.startswith("sb3_grpo.zoo"):
            del sys.modules[name]


def run(arguments: list[str]) -> int:
    """
    :param arguments: of ``python -m sb3_grpo.zoo``
    :return: exit status
    """
    sys.argv = ["", *arguments]
    try:
        runpy.run_module("sb3_grpo.zoo", run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def serve(stdout: str, stderr: str) -> None:
    """
    :param stdout: path of the file for a command's standard output
    :param stderr: path of the file for its standard error
    """
    # as for `python -m`: the working directory in place of this file's folder
    sys.path[0] = ""
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        folder, arguments, variables = json.loads(line)
        os.chdir(folder)
        # of this process and of those that it starts
        for number, path in ((1, stdout), (2, stderr)):
            with open(path, "wb") as file:
                os.dup2(file.fileno(), number)
        forget()
        # replaced outside of RL Zoo
        replaced = patch.object(subprocess, "call", subprocess.call), patch.object(VecNormalize, "save", VecNormalize.save)
        with replaced[0], replaced[1], patch.dict(os.environ, variables), warnings.catch_warnings():
            status = run(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        print(status, file=answers, flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
