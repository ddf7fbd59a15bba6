"""MuJoCo's environments in sampling groups; needs ``gymnasium[mujoco]``."""

from functools import partial

import pytest
from vec_env.group_episodes import GROUP_SIZE, N_STARTS, SEED, assert_shared_starts, cut_by_actions, play_groups

from sb3_grpo import make_group_vec_env

pytest.importorskip("mujoco")


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Hopper-v5", "Reacher-v5"])
def test_members_that_act_alike_see_the_same(env_id):
    env = make_group_vec_env(partial(cut_by_actions, env_id), GROUP_SIZE, N_STARTS, seed=SEED)
    assert_shared_starts(play_groups(env))
