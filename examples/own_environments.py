"""One agent for three environments that have nothing to do with each other; the example of the README."""

import gymnasium as gym

from sb3_grpo import GRPO, GroupEvalCallback, evaluate_groups, make_multi_task_vec_env, plot_tasks
from sb3_grpo.envs.lights_out import LightsOut


def make_swing():
    return gym.make("Acrobot-v1", max_episode_steps=300)


# two, three and six actions; rewards of 1 and -1 for each step, and of 1 at the end
tasks = {"balance": "CartPole-v1", "swing": make_swing, "lights": LightsOut}
ranges = {"balance": (0, 500), "swing": (-300, -80), "lights": (0, 1)}  # to say which task is the worst

env = make_multi_task_vec_env(tasks, n_envs=12, task="fixed", seed=0)
eval_env = make_multi_task_vec_env(tasks, n_envs=3, task="fixed", seed=1)
model = GRPO("MultiInputPolicy", env, router="task", normalize_advantage="group", group_score="gap", n_steps=128)
best = GroupEvalCallback(eval_env, ranges=ranges, best_by="worst", best_model_save_path="best", eval_freq=500)
model.learn(60_000, best)
for name, result in evaluate_groups(model, eval_env, 30).items():
    print(f"{name}: {result.mean:.1f}")
plot_tasks(best, "tasks.png")
