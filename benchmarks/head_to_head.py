"""
PPO and GRPO head to head, with TensorBoard logs of both under one root per environment.

- plain: single-task environments with RL Zoo's hyper-parameters for PPO; is default GRPO ever worse?
- clip_range: four CartPole tasks; how much do both depend on the size of the update?
- random: what random actions reach in the plain environments
- thresholds: hidden types, and equal tasks; what do ``merge_kl`` and ``split_kl`` do between far too small and far too large?

``python benchmarks/head_to_head.py`` runs what has no result row yet; ``--parts plain --seeds 1 2`` part of it;
``--ray`` on the nodes of a Ray cluster instead of this machine. What else is compared is in ``balance.py``,
``regrouping.py`` and ``minigrid_tasks.py``. ``tensorboard --logdir head_to_head`` shows the logs.
"""

import argparse
import io
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from balance import N_TASKS, SETTINGS, make_env, make_model, make_vec_env_of
from common import RESULTS, parse_parts, run_part
from regrouping import EQUAL, HIDDEN, run_tasks
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure

from sb3_grpo import GRPO, GroupEvalCallback, evaluate_groups, zoo_configs
from sb3_grpo.rl_zoo import CONFIG, register
from sb3_grpo.tensorboard import TensorBoardCallback

LOGS = RESULTS.parents[1] / "head_to_head"
SEEDS, FEW_SEEDS = range(10), range(5)
# steps; RL Zoo's own budgets are up to ten times as large
PLAIN = {
    "CartPole-v1": 100_000,
    "Acrobot-v1": 200_000,
    "MountainCarContinuous-v0": 20_000,
    "Pendulum-v1": 100_000,
    "LunarLander-v3": 750_000,
    "BipedalWalker-v3": 500_000,
    "HalfCheetah-v5": 300_000,
    "Hopper-v5": 300_000,
}
LONG = ("BipedalWalker-v3", "HalfCheetah-v5", "Hopper-v5")
# hyper-parameters are those of the version that RL Zoo knows
TUNED_AS = {"HalfCheetah-v5": "HalfCheetah-v4", "Hopper-v5": "Hopper-v4"}
N_EVALUATIONS, EVAL_EPISODES, EVAL_ENVS = 20, 20, 5
CLIP_RANGES = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
# problems in which every split is right, or every split is wrong; merge_kl and split_kl
VARIED = (HIDDEN[0], EQUAL[0])
THRESHOLDS = ((0.001, 0.003), (0.01, 0.03), (0.03, 0.1), (0.1, 0.3), (0.3, 1.0), (1.0, 3.0), (10.0, 30.0))


def set_logger(model: PPO, logs: str, root: str, seed: int) -> None:
    """TensorBoard logs in ``<logs>/<root>/PPO_<seed>`` or ``GRPO_<seed>``."""
    model.set_logger(configure(str(Path(logs, root, f"{type(model).__name__}_{seed}")), ["tensorboard"]))


def run_plain(
    env_id: str,
    algorithm: str,
    seed: int,
    total_timesteps: int | None = None,
    n_evaluations: int = N_EVALUATIONS,
    logs: str = str(LOGS),
) -> dict[str, Any]:
    """
    :param algorithm: ``"ppo"`` or ``"grpo"``, which has the same hyper-parameters and its defaults
    :param logs: folder for TensorBoard
    :return: environment steps, and mean return of 20 episodes at each evaluation
    """
    total_timesteps = total_timesteps or PLAIN[env_id]
    register()
    # RL Zoo changes what it gets
    entry = zoo_configs.load_hyperparams()[TUNED_AS.get(env_id, env_id)]
    zoo_configs.hyperparams[env_id] = entry
    # RL Zoo prints, the sweep shows its progress
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        manager = ExperimentManager(
            argparse.Namespace(),
            algorithm,
            env_id,
            folder,
            n_timesteps=total_timesteps,
            eval_freq=total_timesteps // n_evaluations,
            n_eval_episodes=EVAL_EPISODES,
            n_eval_envs=EVAL_ENVS,
            seed=seed,
            verbose=0,
            log_interval=-1,
            device="cpu",
            config=CONFIG,
        )
        experiment = manager.setup_experiment()
        assert experiment is not None
        model, _ = experiment
        assert isinstance(model, PPO)
        set_logger(model, logs, env_id, seed)
        manager.callbacks.append(TensorBoardCallback())
        manager.learn(model)
        evaluations = np.load(Path(manager.save_path) / "evaluations.npz")
        result = {
            "steps": evaluations["timesteps"].tolist(),
            "returns": evaluations["results"].mean(axis=1).round(3).tolist(),
        }
    if isinstance(model, GRPO):
        result["events"] = [[event.timestep, event.kind, *event.groups, event.kl] for event in model.regroup_history]
    return result


def run_clip_range(
    algorithm: str, clip_range: float, seed: int, total_timesteps: int = 40_960, logs: str = str(LOGS)
) -> dict[str, Any]:
    """
    :param algorithm: ``"PPO"`` or ``"GRPO"``
    :param logs: folder for TensorBoard
    :return: return per task after training
    """
    given = SETTINGS["drawn"]
    eval_env = make_vec_env_of(given["env"], [{}] * 16, seed + 10_000)
    model, _ = make_model(
        algorithm, None, make_env("drawn", seed), seed=seed, device="cpu", clip_range=clip_range, **given["kwargs"]
    )
    set_logger(model, logs, f"clip_range {clip_range}", seed)
    evaluation = GroupEvalCallback(eval_env, eval_freq=1024, n_eval_episodes=4 * N_TASKS, verbose=0)
    model.learn(total_timesteps, [TensorBoardCallback(), evaluation])
    found = evaluate_groups(model, eval_env, 20 * N_TASKS)
    return {"returns": [found[task].mean for task in range(N_TASKS)]}


def run_random(env_id: str, seed: int) -> dict[str, Any]:
    """
    :return: mean return of 100 episodes with random actions
    """
    env = make_vec_env(env_id, 1, seed=seed)
    env.action_space.seed(seed)
    episodes: list[float] = []
    env.reset()
    while len(episodes) < 100:
        infos = env.step(np.array([env.action_space.sample()]))[3]
        episodes += [info["episode"]["r"] for info in infos if "episode" in info]
    return {"return": float(np.mean(episodes))}


def plain_runs(seeds: list[int] | None) -> list[dict[str, Any]]:
    runs = []
    for env_id in PLAIN:
        for seed in seeds or (FEW_SEEDS if env_id in LONG else SEEDS):
            runs += [dict(env_id=env_id, algorithm=algorithm, seed=seed) for algorithm in ("ppo", "grpo")]
    return runs


def clip_range_runs(seeds: list[int] | None) -> list[dict[str, Any]]:
    return [
        dict(algorithm=algorithm, clip_range=clip_range, seed=seed)
        for seed in seeds or SEEDS
        for clip_range in CLIP_RANGES
        for algorithm in ("PPO", "GRPO")
    ]


def threshold_runs(seeds: list[int] | None) -> list[dict[str, Any]]:
    return [
        dict(problem=problem, algorithm="GRPO", merge_kl=merge_kl, split_kl=split_kl, seed=seed)
        for problem in VARIED
        for seed in seeds or FEW_SEEDS
        for merge_kl, split_kl in THRESHOLDS
    ]


def random_runs(seeds: list[int] | None) -> list[dict[str, Any]]:
    return [dict(env_id=env_id, seed=0) for env_id in PLAIN]


PARTS: dict[str, Any] = {
    "random": (run_random, random_runs),
    "plain": (run_plain, plain_runs),
    "clip_range": (run_clip_range, clip_range_runs),
    "thresholds": (run_tasks, threshold_runs),
}


def main() -> None:
    arguments = parse_parts(__doc__, PARTS)
    for part in arguments.parts:
        function, make_runs = PARTS[part]
        short: dict[str, Any] = {} if part == "random" else {"total_timesteps": 2048}
        if function is run_plain:
            short["n_evaluations"] = 2
        if function in (run_plain, run_clip_range):
            short["logs"] = f"{arguments.smoke}/tensorboard"
        run_part(function, make_runs(arguments.seeds), f"head_to_head_{part}", arguments, **short)


if __name__ == "__main__":
    main()
