"""Registering GRPO loads what that needs and no more; without the extra, messages say how to install it."""

import re
import sys

import pytest
from zoo.runs import run_python

from sb3_grpo import zoo

# What registering adds to the modules that RL Zoo's own dictionaries need, and what is loaded after it all in all
LOADED = """
import sys

import rl_zoo3.hyperparams_opt
import rl_zoo3.utils

import sb3_grpo

before = set(sys.modules)
from sb3_grpo.zoo import register

register()
print(*set(sys.modules) - before)
print(*sys.modules)
"""


def test_registering_loads_the_search_space_only(tmp_path):
    added, loaded = (set(line.split()) for line in run_python(tmp_path, "-c", LOADED).stdout.splitlines())
    assert added == {"sb3_grpo.zoo", "sb3_grpo.zoo.search_space"}
    # the scripts' part; RL Zoo itself imports the hub
    assert not loaded & {"imageio_ffmpeg", "matplotlib", "rl_zoo3.callbacks", "rl_zoo3.exp_manager", "rl_zoo3.import_envs"}
    assert {"huggingface_hub", "huggingface_sb3"} <= loaded


class TestWithoutTheExtra:
    message = 'pip install "sb3-grpo[zoo]"'

    def test_command(self, tmp_path):
        code = "import runpy, sys; sys.modules['rl_zoo3'] = None; runpy.run_module('sb3_grpo.zoo', run_name='__main__')"
        result = run_python(tmp_path, "-c", code, check=False)
        assert result.returncode == 1
        assert self.message in result.stderr
        assert "rl_zoo3" in result.stderr
        assert len(result.stderr.splitlines()) == 1

    def remove(self, monkeypatch, package):
        """Make a package one that is not installed, for what is imported from now on."""
        for name in [name for name in sys.modules if name.startswith("sb3_grpo.zoo.") or name.split(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)

    @pytest.mark.parametrize("package", ["optuna", "rl_zoo3"])
    def test_registering(self, monkeypatch, package):
        self.remove(monkeypatch, package)
        with pytest.raises(ImportError, match=rf"{re.escape(self.message)} \(.*{package}"):
            zoo.register()

    @pytest.mark.parametrize("package", ["optuna", "huggingface_sb3", "imageio_ffmpeg", "matplotlib", "requests", "rl_zoo3"])
    def test_whatever_a_script_misses(self, monkeypatch, package):
        self.remove(monkeypatch, package)
        with pytest.raises(SystemExit, match=rf"{re.escape(self.message)} \(.*{package}"):
            zoo.main(["train"])
