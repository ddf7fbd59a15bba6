"""
Find two hidden types among ten CartPole tasks: half of them have inverted actions.

Only the router sees the task, the network does not. GRPO starts with one group and splits it into the two types.

``python examples/hidden_types.py`` (about a minute)
"""

import argparse

from stable_baselines3.common.env_util import make_vec_env

from sb3_grpo import GRPO, evaluate_groups, plot_regrouping

TASKS = [dict(length=length, invert=invert) for invert in (False, True) for length in (0.4, 0.45, 0.5, 0.55, 0.6)]


def main(total_timesteps: int = 40_000, picture: str | None = None) -> GRPO:
    """
    Train, then print what was split or merged and the return of each task.

    :param total_timesteps: environment steps to train for
    :param picture: PNG to write: which task belonged to which group when; ``None``: no file
    :return: the trained model
    """
    env = make_vec_env("sb3_grpo/TaskCartPole-v0", n_envs=8, seed=0, env_kwargs=dict(tasks=TASKS))
    model = GRPO(
        "MlpPolicy",
        env,
        n_groups=1,
        max_groups=10,
        router="one_hot",
        router_kwargs=dict(columns=(4, 14), hide=True),
        n_steps=256,
        batch_size=256,
        learning_rate=1e-3,
        seed=0,
    )
    model.learn(total_timesteps)
    for event in model.regroup_history:
        print(f"after {event.timestep} steps: {event.kind} of groups {event.groups}, KL {event.kl:.2f}")
    eval_env = make_vec_env("sb3_grpo/TaskCartPole-v0", n_envs=10, env_kwargs=dict(tasks=TASKS))
    groups = model.policy.grouping.cell_to_group.tolist()
    for task, result in evaluate_groups(model, eval_env).items():
        print(f"{TASKS[task]}: group {groups[task]}, {result.mean:.0f} of 500")
    plot_regrouping(model, picture)
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--total-timesteps", type=int, default=40_000)
    parser.add_argument("--picture", default="hidden_types.png")
    main(**vars(parser.parse_args()))
