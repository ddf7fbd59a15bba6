"""LunarLander in sampling groups; needs ``gymnasium[box2d]``."""

from functools import partial

from vec_env.group_episodes import GROUP_SIZE, N_STARTS, SEED, assert_shared_starts, cut_by_actions, play_groups

from sb3_grpo import make_group_vec_env


def test_members_that_act_alike_see_the_same():
    for env_id in ("LunarLander-v3", "sb3_grpo/TaskLunarLander-v0"):
        env = make_group_vec_env(partial(cut_by_actions, env_id), GROUP_SIZE, N_STARTS, seed=SEED)
        assert_shared_starts(play_groups(env))
