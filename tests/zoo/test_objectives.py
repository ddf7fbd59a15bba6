"""Objectives of MO-Gymnasium in RL Zoo, by a wrapper."""

import pytest
from zoo.runs import QUICK

from sb3_grpo import GRPO

pytest.importorskip("mo_gymnasium")

ENTRY = """
deep-sea-treasure-v0:
  env_wrapper:
    - sb3_grpo.add_objectives: {names: [treasure, time]}
  policy: MlpPolicy
  group_by: objectives
  group_targets: {treasure: [0.7, 23.7], time: [-19, -1]}
  n_envs: 2
  n_steps: 128
  n_timesteps: 512
"""


def test_train_and_enjoy(zoo, tmp_path):
    (tmp_path / "objectives.yml").write_text(ENTRY)
    env = ("--algo", "grpo", "--env", "deep-sea-treasure-v0", "--gym-packages", "mo_gymnasium")
    trained = zoo.run(tmp_path, "train", *env, "--conf-file", "objectives.yml", *QUICK)
    (path,) = (tmp_path / "logs").glob("grpo/*/deep-sea-treasure-v0.zip")
    assert [record.name for record in GRPO.load(path).groups] == ["treasure", "time"]
    # Monitor sees the sum
    assert "ep_rew_mean" in trained.stdout
    assert "Eval num_timesteps=512" in trained.stdout
    enjoy = zoo.run(tmp_path, "enjoy", *env, "-n", "200", "--no-render", "-f", "logs")
    assert "Episode Reward: " in enjoy.stdout
