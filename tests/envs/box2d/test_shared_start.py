"""LunarLander in sampling groups; needs ``gymnasium[box2d]``."""

from vec_env.group_episodes import GROUP_SIZE, N_STARTS, SEED, CutByActions, assert_shared_starts, play_groups

from sb3_grpo import make_group_vec_env


def test_members_that_act_alike_see_the_same():
    for env_id in ("LunarLander-v3", "sb3_grpo/TaskLunarLander-v0"):
        env = make_group_vec_env(env_id, GROUP_SIZE, N_STARTS, seed=SEED, wrapper_class=CutByActions)
        assert_shared_starts(play_groups(env))
