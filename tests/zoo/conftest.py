"""Agents that RL Zoo's scripts have trained, and RL Zoo with GRPO in its dictionaries."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from rl_zoo3 import hyperparams_opt, utils
from zoo.runs import QUICK, TASKS, Zoo, run

from sb3_grpo.zoo import register


@pytest.fixture(scope="session")
def zoo(tmp_path_factory) -> Iterator[Zoo]:
    started = Zoo(tmp_path_factory.mktemp("outputs"))
    yield started
    started.close()


@pytest.fixture(scope="session")
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
    register()


@pytest.fixture(scope="session")
def trained(zoo, tmp_path_factory) -> Path:
    """A folder in which an agent has merged all of its groups."""
    path = tmp_path_factory.mktemp("regrouped")
    # everything is alike at the first look
    merging = ("regroup_warmup:0", "regroup_freq:1", "merge_kl:50.0", "split_kl:100.0")
    zoo.run(path, "train", "--algo", "grpo", "--env", TASKS, "-n", "2048", *QUICK, "-params", *merging)
    return path
