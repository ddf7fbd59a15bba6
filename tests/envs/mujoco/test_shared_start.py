"""MuJoCo's environments in sampling groups; needs ``gymnasium[mujoco]``."""

import pytest
from vec_env.group_episodes import GROUP_SIZE, N_STARTS, SEED, CutByActions, assert_shared_starts, play_groups

from sb3_grpo import make_group_vec_env

pytest.importorskip("mujoco")


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Hopper-v5", "Reacher-v5"])
def test_members_that_act_alike_see_the_same(env_id):
    env = make_group_vec_env(env_id, GROUP_SIZE, N_STARTS, seed=SEED, wrapper_class=CutByActions)
    assert_shared_starts(play_groups(env))
