"""Register multi-task environments with Gymnasium; importing ``sb3_grpo`` does it."""

import gymnasium as gym


def register_envs() -> None:
    """Register the environments by name, so that their modules are imported only when one is made."""
    gym.register("sb3_grpo/TaskCartPole-v0", "sb3_grpo.envs.cartpole:TaskCartPole", max_episode_steps=500)
    gym.register("sb3_grpo/TaskAcrobot-v0", "sb3_grpo.envs.acrobot:TaskAcrobot", max_episode_steps=500)
    gym.register("sb3_grpo/TaskPendulum-v0", "sb3_grpo.envs.pendulum:TaskPendulum", max_episode_steps=200)
    gym.register("sb3_grpo/TaskLunarLander-v0", "sb3_grpo.envs.lunar_lander:TaskLunarLander", max_episode_steps=1000)
    gym.register("sb3_grpo/MultiTask-v0", "sb3_grpo.envs.multi_task:MultiTaskEnv")
