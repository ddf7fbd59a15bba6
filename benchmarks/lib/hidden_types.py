"""Hold the problems whose tasks are of hidden types, and the training on them that the sweeps share."""

from typing import Any

import numpy as np
from gymnasium import spaces
from sklearn.metrics import adjusted_rand_score
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.lib.groups import events_of, groups_of
from sb3_grpo import GRPO, evaluate_groups

STEPS = 100_000
N_ENVS = 8
CARTPOLE: dict[str, Any] = dict(n_steps=256, batch_size=256, learning_rate=1e-3)
ACROBOT: dict[str, Any] = dict(n_steps=256, batch_size=256, learning_rate=1e-3, gae_lambda=0.94)
PENDULUM: dict[str, Any] = dict(n_steps=512, batch_size=256, learning_rate=1e-3, gamma=0.9)
LENGTHS, MASSES, LINK_MASSES = (0.4, 0.45, 0.5, 0.55, 0.6), (0.9, 0.95, 1.0, 1.05, 1.1), (0.9, 1.0, 1.1)
# environment, tasks, their true types, hyper-parameters, and the return from which on a task counts as solved
PROBLEMS: dict[str, dict[str, Any]] = {
    "CartPole, inverted actions": dict(
        env="sb3_grpo/TaskCartPole-v0",
        tasks=[dict(length=length, invert=invert) for invert in (False, True) for length in LENGTHS],
        types=[0] * 5 + [1] * 5,
        kwargs=CARTPOLE,
        solved=475,
    ),
    "Acrobot, permuted actions": dict(
        env="sb3_grpo/TaskAcrobot-v0",
        tasks=[
            dict(actions=actions, LINK_MASS_1=mass) for actions in ((0, 1, 2), (1, 2, 0), (2, 0, 1)) for mass in LINK_MASSES
        ],
        types=[0] * 3 + [1] * 3 + [2] * 3,
        kwargs=ACROBOT,
        solved=-150,
    ),
    "Pendulum, inverted torque": dict(
        env="sb3_grpo/TaskPendulum-v0",
        tasks=[dict(m=mass, invert=invert) for invert in (False, True) for mass in MASSES],
        types=[0] * 5 + [1] * 5,
        kwargs=PENDULUM,
        solved=-400,
    ),
    "CartPole, equal tasks": dict(
        env="sb3_grpo/TaskCartPole-v0", tasks=[{}] * 10, types=[0] * 10, kwargs=CARTPOLE, solved=475
    ),
    "Pendulum, equal tasks": dict(
        env="sb3_grpo/TaskPendulum-v0", tasks=[{}] * 10, types=[0] * 10, kwargs=PENDULUM, solved=-400
    ),
    "Acrobot, equal tasks": dict(env="sb3_grpo/TaskAcrobot-v0", tasks=[{}] * 9, types=[0] * 9, kwargs=ACROBOT, solved=-150),
}
HIDDEN = list(PROBLEMS)[:3]
EQUAL = list(PROBLEMS)[3:]


class Curve(BaseCallback):
    """
    Record values of the logger at the end of each rollout.

    :param tags: names of the values; rows are ``[timestep, mean return of recent episodes, *values]``
    """

    def __init__(self, tags: list[str]):
        super().__init__()
        self.tags = tags
        self.rows: list[list[float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        returns = [episode["r"] for episode in self.model.ep_info_buffer or []]
        values = [float(self.logger.name_to_value.get(tag, np.nan)) for tag in self.tags]
        self.rows.append([self.num_timesteps, float(np.mean(returns)) if returns else np.nan, *np.round(values, 4)])


def make_task_env(problem: dict[str, Any], seed: int, n_envs: int, task_observation: str | None) -> VecEnv:
    """
    Return environments that draw one of the problem's tasks at each reset.

    :param problem: a value of :data:`PROBLEMS`
    :param seed: seed of the environments
    :param n_envs: number of environments
    :param task_observation: how the observation shows the task; ``None``: it does not
    """
    env_kwargs = dict(tasks=problem["tasks"], task_observation=task_observation)
    return make_vec_env(problem["env"], n_envs, seed=seed, env_kwargs=env_kwargs)


def make_model(given: dict[str, Any], env: VecEnv, algorithm: str, seed: int, start: str, **kwargs: Any) -> PPO:
    """
    Return PPO, or GRPO with the task as its cell.

    :param given: a value of :data:`PROBLEMS`
    :param env: training environments
    :param algorithm: ``"GRPO"`` or ``"PPO"``
    :param seed: seed of the model
    :param start: see :func:`run_tasks`
    :param kwargs: further arguments of GRPO
    """
    if algorithm == "PPO":
        return PPO("MlpPolicy", env, seed=seed, device="cpu", **given["kwargs"])
    assert isinstance(env.observation_space, spaces.Box)
    width, n_tasks = env.observation_space.shape[0], len(given["tasks"])
    return GRPO(
        "MlpPolicy",
        env,
        n_groups=1 if start == "one group" else n_tasks,
        max_groups=n_tasks,
        router="one_hot",
        router_kwargs=dict(columns=(width - n_tasks, width), hide=start == "one group"),
        seed=seed,
        device="cpu",
        **{**given["kwargs"], **kwargs},
    )


def train_tasks(
    problem: str, algorithm: str, seed: int, start: str = "one group", total_timesteps: int = STEPS, **kwargs: Any
) -> tuple[PPO, dict[str, Any]]:
    """
    Train on a problem, and return the model and what :func:`run_tasks` returns.

    :param problem: see :func:`run_tasks`
    :param algorithm: see :func:`run_tasks`
    :param seed: see :func:`run_tasks`
    :param start: see :func:`run_tasks`
    :param total_timesteps: see :func:`run_tasks`
    :param kwargs: see :func:`run_tasks`
    """
    given = PROBLEMS[problem]
    n_tasks = len(given["tasks"])
    task_observation = None if algorithm == "PPO" else "one_hot"
    model = make_model(given, make_task_env(given, seed, N_ENVS, task_observation), algorithm, seed, start, **kwargs)
    curve = Curve(["groups/kl_within", "groups/kl_within_error", "groups/n_active"])
    model.learn(total_timesteps, callback=curve)
    eval_env = make_task_env(given, 10_000 + seed, n_tasks, task_observation)
    evaluation = evaluate_groups(model, eval_env, n_eval_episodes=5 * n_tasks)
    returns = [evaluation[task].mean for task in sorted(evaluation)]
    result: dict[str, Any] = {"worst": min(returns), "mean": float(np.mean(returns)), "curve": curve.rows}
    if isinstance(model, GRPO):
        groups = groups_of(model)
        result["cell_to_group"] = groups
        result["ari"] = float(adjusted_rand_score(given["types"], groups))
        result["events"] = events_of(model)
    return model, result


def run_tasks(problem: str, algorithm: str, seed: int, **kwargs: Any) -> dict[str, Any]:
    """
    Train on a problem, and evaluate each of its tasks over 5 episodes.

    :param problem: a name of :data:`PROBLEMS`
    :param algorithm: ``"GRPO"``, or ``"PPO"``, which sees what GRPO's trunk sees
    :param seed: seed of model and environments
    :param kwargs: ``start``: ``"one group"``, the default, with the task hidden from the trunk, or ``"one per task"`` with the
        task visible; ``total_timesteps``; further arguments of GRPO
    :return: ``worst`` and ``mean`` return of the tasks and the training's ``curve``; of GRPO also ``cell_to_group``, its
        adjusted Rand index with the true types, ``ari``, and the ``events``
    """
    return train_tasks(problem, algorithm, seed, **kwargs)[1]
