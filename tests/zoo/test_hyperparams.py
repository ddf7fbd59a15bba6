"""Hyper-parameters: where RL Zoo finds them, and that they fit."""

import re
from pathlib import Path

import pytest
import rl_zoo3
import torch as th
import yaml
from rl_zoo3 import utils
from zoo.runs import QUICK, TASKS, TASKS_AGENT, run_python

from sb3_grpo import GRPO
from sb3_grpo.zoo.hyperparams import hyperparams


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


def test_plain_rl_zoo(tmp_path):
    """What the documentation says does it."""
    (lines,) = re.findall(
        r"```text\n(from sb3_grpo.zoo .*?)```", (Path(__file__).parents[2] / "docs/zoo.md").read_text(), re.DOTALL
    )
    assert len(lines.splitlines()) == 2
    (tmp_path / "custom_envs.py").write_text(lines)
    command = ("--algo", "grpo", "--conf-file", "sb3_grpo.zoo.hyperparams", "--env", TASKS, "-n", "256", *QUICK)
    run_python(tmp_path, "-m", "rl_zoo3.train", *command)
    model = GRPO.load(tmp_path / "logs" / TASKS_AGENT)
    # one rollout
    assert model.num_timesteps == hyperparams[TASKS]["n_envs"] * hyperparams[TASKS]["n_steps"]
    assert model.router_kwargs == hyperparams[TASKS]["router_kwargs"]
