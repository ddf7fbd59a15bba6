"""Hold the environments with four tasks, and the training on them that the sweeps share."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from benchmarks.lib.groups import n_groups
from benchmarks.lib.hyperparams import LUNAR_LANDER
from benchmarks.lib.measures import describe
from benchmarks.lib.rows import REDUCTIONS, Row, curves
from benchmarks.lib.training import equal_parts, train_and_evaluate
from sb3_grpo import GRPO, evaluate_groups

N_TASKS = 4
CARTPOLE, LANDER = "sb3_grpo/TaskCartPole-v0", "sb3_grpo/TaskLunarLander-v0"
DRAWN = ["random"] * 8
# of 16 environments two play tasks 1 and 3 (the inverted ones), the others tasks 0 and 2
RARE = [0, 2] * 7 + [1, 3]
SCALES = (1.0, 1.0, 10.0, 0.1)
# which task each training environment plays, factors of the rewards, and hyper-parameters that are not SB3's defaults
SETTINGS: dict[str, dict[str, Any]] = {
    "drawn": dict(env=CARTPOLE, play=DRAWN, kwargs=dict(n_steps=128)),
    # hyper-parameters that suit PPO better here
    "drawn_large": dict(env=CARTPOLE, play=DRAWN, kwargs=dict(n_steps=256, batch_size=256, learning_rate=1e-3)),
    "rare": dict(env=CARTPOLE, play=RARE, kwargs=dict(n_steps=64)),
    "scaled": dict(env=CARTPOLE, play=DRAWN, scales=SCALES, kwargs=dict(n_steps=128)),
    # the task with the largest rewards has 300 times those of the one with the smallest
    "wide": dict(env=CARTPOLE, play=DRAWN, scales=(1.0, 30.0, 0.1, 1.0), kwargs=dict(n_steps=128)),
    "lander": dict(env=LANDER, play=["random"] * 16, kwargs=LUNAR_LANDER),
    "lander_scaled": dict(env=LANDER, play=["random"] * 16, scales=SCALES, kwargs=LUNAR_LANDER),
}


def is_lander(setting: str) -> bool:
    """
    Return whether the tasks of a setting are contexts of LunarLander.

    :param setting: a name of :data:`SETTINGS`
    """
    return SETTINGS[setting]["env"] == LANDER


def make_env(setting: str, seed: int) -> VecEnv:
    """
    Return the training environments of a setting.

    :param setting: a name of :data:`SETTINGS`
    :param seed: seed of the environments
    """
    given = SETTINGS[setting]
    tasks = gym.make(given["env"]).get_wrapper_attr("tasks")
    tasks = [{**task, "reward_scale": scale} for task, scale in zip(tasks, given.get("scales", [1.0] * N_TASKS), strict=True)]
    return make_vec_env_of(given["env"], [dict(tasks=tasks, task=play) for play in given["play"]], seed)


def make_eval_env(setting: str, seed: int) -> VecEnv:
    """
    Return 16 environments for evaluation, which draw their tasks; all reward scales are 1.

    :param setting: a name of :data:`SETTINGS`
    :param seed: seed of the training
    """
    return make_vec_env_of(SETTINGS[setting]["env"], [{}] * 16, seed + 10_000)


def make_vec_env_of(env_id: str, env_kwargs: list[dict[str, Any]], seed: int) -> VecEnv:
    """
    Return environments as SB3's ``make_vec_env`` does, with arguments of its own for each of them.

    :param env_id: registered name
    :param env_kwargs: arguments of each environment
    :param seed: seed of the first environment; the next one has ``seed + 1``, and so on
    """

    def maker(kwargs: dict[str, Any]) -> Callable[[], gym.Env]:
        return lambda: Monitor(gym.make(env_id, **kwargs))

    env = DummyVecEnv([maker(kwargs) for kwargs in env_kwargs])
    env.seed(seed)
    return env


def head_per_task(env: VecEnv) -> dict[str, Any]:
    """
    Return GRPO's arguments for one head per task; compiled, which gives the same within rounding and is faster.

    :param env: environments whose last ``N_TASKS`` columns of the observation show the task
    """
    assert env.observation_space.shape is not None
    (width,) = env.observation_space.shape
    return dict(
        router="one_hot", router_kwargs=dict(columns=(width - N_TASKS, width)), normalize_advantage="group", compile=True
    )


def train_on_tasks(
    model: PPO, callbacks: list[Any], setting: str, seed: int, total_timesteps: int, n_evaluations: int
) -> dict[str, Any]:
    """
    Train a model and evaluate every task: 4 episodes per task, half way through and after training 20.

    :param model: model to train
    :param callbacks: callbacks of the training
    :param setting: a name of :data:`SETTINGS`
    :param seed: seed of the training
    :param total_timesteps: environment steps of the whole training
    :param n_evaluations: number of evaluations
    :return: ``steps`` and ``returns`` (per task, all reward scales 1) of each evaluation; of GRPO ``groups``, the number of
        groups after training
    """
    eval_env = make_eval_env(setting, seed)

    def evaluate(index: int) -> list[float]:
        episodes = N_TASKS * (20 if index + 1 in (n_evaluations // 2, n_evaluations) else 4)
        return [round(evaluation.mean, 1) for evaluation in evaluate_groups(model, eval_env, episodes).values()]

    result = train_and_evaluate(model, equal_parts(total_timesteps, n_evaluations), evaluate, callbacks)
    if isinstance(model, GRPO):
        result["groups"] = n_groups(model)
    return result


# columns of :func:`end_and_training`
END_AND_TRAINING = tuple(f"{name}, {when}" for when in ("end", "over training") for name in REDUCTIONS)


def end_and_training(rows: list[Row]) -> list[str]:
    """
    Return the worst task's return and the mean of the tasks, after training and over it, with intervals.

    :param rows: rows of :func:`train_on_tasks` with the same arguments but the seed
    """
    values = [curves(rows, reduce) for reduce in REDUCTIONS.values()]
    return list(map(describe, [*(x[:, -1] for x in values), *(x.mean(axis=1) for x in values)]))
