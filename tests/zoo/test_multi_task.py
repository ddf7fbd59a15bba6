"""Several environments as one agent's tasks in RL Zoo: made by id, or added to an environment by a wrapper."""

import pytest
from zoo.runs import QUICK

from sb3_grpo import GRPO

WRAPPED = """
CartPole-v1:
  env_wrapper:
    - sb3_grpo.add_tasks: {tasks: {swing: Acrobot-v1}, name: balance}
  policy: MultiInputPolicy
  router: task
  n_envs: 2
  n_steps: 128
  n_timesteps: 512
"""
MADE = """
sb3_grpo/MultiTask-v0:
  policy: MultiInputPolicy
  router: task
  n_envs: 2
  n_steps: 128
  n_timesteps: 512
"""


@pytest.mark.parametrize(
    ("env", "entry", "options"),
    [
        ("CartPole-v1", WRAPPED, ()),
        ("sb3_grpo/MultiTask-v0", MADE, ("--env-kwargs", "tasks:{'balance': 'CartPole-v1', 'swing': 'Acrobot-v1'}")),
    ],
    ids=["wrapper", "id"],
)
def test_train_and_enjoy(zoo, tmp_path, env, entry, options):
    (tmp_path / "tasks.yml").write_text(entry)
    trained = zoo.run(tmp_path, "train", "--algo", "grpo", "--env", env, "--conf-file", "tasks.yml", *QUICK, *options)
    (path,) = (tmp_path / "logs").glob(f"grpo/*/{env.replace('/', '-')}.zip")
    model = GRPO.load(path)
    assert [group.name for group in model.groups] == ["balance", "swing"]
    # Monitor sees the episodes of both
    assert "ep_rew_mean" in trained.stdout
    assert "Eval num_timesteps=512" in trained.stdout
    enjoy = zoo.run(tmp_path, "enjoy", "--algo", "grpo", "--env", env, "-n", "600", "--no-render", "-f", "logs", *options)
    assert "Episode Reward: " in enjoy.stdout
