"""Does it learn? Minutes, not seconds: ``make test-slow``."""

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_grpo import GRPO, evaluate_groups
from sb3_grpo.envs.cartpole import FOUR_TASKS

pytestmark = pytest.mark.slow

ENV_ID = "sb3_grpo/TaskCartPole-v0"


def worst_length(model: PPO) -> float:
    eval_env = make_vec_env(ENV_ID, 4, seed=10_000)
    return min(evaluation.mean_length for evaluation in evaluate_groups(model, eval_env, 20).values())


def test_default_grpo_solves_cartpole() -> None:
    model = GRPO("MlpPolicy", make_vec_env("CartPole-v1", 8, seed=7), n_steps=128, seed=7, device="cpu").learn(60_000)
    returns, _ = evaluate_policy(model, make_vec_env("CartPole-v1", 4, seed=8), 20, return_episode_rewards=True)
    assert np.mean(returns) > 400


def test_worst_of_four_tasks_lasts_longer_than_with_ppo() -> None:
    tasks = [{**task, "reward_scale": scale} for task, scale in zip(FOUR_TASKS, (1, 1, 10, 0.1), strict=True)]
    env = make_vec_env(ENV_ID, 8, seed=7, env_kwargs={"tasks": tasks})
    grpo = GRPO(
        "MlpPolicy",
        env,
        n_steps=128,
        seed=7,
        device="cpu",
        router="one_hot",
        router_kwargs={"columns": (4, 8)},
        normalize_advantage="group",
    ).learn(60_000)
    ppo = PPO("MlpPolicy", env, n_steps=128, seed=7, device="cpu").learn(60_000)
    assert worst_length(grpo) > 3 * worst_length(ppo)
