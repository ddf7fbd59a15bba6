"""
Compare PPO and GRPO head to head, with TensorBoard logs of both in one folder per environment.

- plain: single-task environments with RL Zoo's hyper-parameters for PPO; is default GRPO ever worse?
- clip_range: four CartPole tasks; how much do both depend on the size of the update?
- random: what random actions reach in the plain environments
- thresholds: hidden types, and equal tasks; what do ``merge_kl`` and ``split_kl`` do between too small and too large?

``python -m benchmarks.sweeps.head_to_head`` runs what has no result row yet; ``--parts plain --seeds 1 2`` part of it;
``--ray`` on the nodes of a Ray cluster instead of this machine. What else is compared is in ``balance.py``,
``regrouping.py`` and ``minigrid_tasks.py``. ``tensorboard --logdir benchmark_logs`` shows the logs.
"""

import argparse
import io
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure

from benchmarks.lib.groups import events_of
from benchmarks.lib.hidden_types import EQUAL, HIDDEN, run_tasks
from benchmarks.lib.rows import ROOT, Run
from benchmarks.lib.sweep import parse_parts, run_part
from benchmarks.lib.tasks import N_TASKS, SETTINGS, make_env, make_eval_env
from benchmarks.lib.zoo import CONFIG, use_entry
from benchmarks.sweeps.balance_methods import make_model
from sb3_grpo import GRPO, GroupEvalCallback, evaluate_groups
from sb3_grpo.tensorboard import TensorBoardCallback

LOGS = ROOT / "benchmark_logs"
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
# two problems in which every split is right, one in which every split is wrong; merge_kl and split_kl
VARIED = (*HIDDEN[:2], EQUAL[0])
THRESHOLDS = ((0.01, 0.03), (0.05, 0.15), (0.1, 0.3), (0.2, 0.6), (0.3, 1.0))


def set_logger(model: PPO, logs: str, root: str, seed: int) -> None:
    """
    Write the model's TensorBoard logs into ``<logs>/<root>/PPO_<seed>`` or ``GRPO_<seed>``.

    :param model: PPO or GRPO
    :param logs: folder of all logs
    :param root: folder of the logs that are compared
    :param seed: seed of the run
    """
    model.set_logger(configure(str(Path(logs, root, f"{type(model).__name__}_{seed}")), ["tensorboard"]))


@contextmanager
def experiment(env_id: str, algorithm: str, **kwargs: Any) -> Iterator[tuple[ExperimentManager, PPO]]:
    """
    Open a context with RL Zoo's manager and its model, whose files are deleted at the end and whose prints are not shown.

    :param env_id: registered name of the environment
    :param algorithm: ``"ppo"`` or ``"grpo"``
    :param kwargs: further arguments of RL Zoo's ``ExperimentManager``
    """
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        manager = ExperimentManager(
            argparse.Namespace(),
            algorithm,
            env_id,
            folder,
            n_eval_episodes=EVAL_EPISODES,
            n_eval_envs=EVAL_ENVS,
            verbose=0,
            log_interval=-1,
            device="cpu",
            config=CONFIG,
            **kwargs,
        )
        found = manager.setup_experiment()
        assert found is not None
        model, _ = found
        assert isinstance(model, PPO)
        yield manager, model


def run_plain(
    env_id: str,
    algorithm: str,
    seed: int,
    total_timesteps: int | None = None,
    n_evaluations: int = N_EVALUATIONS,
    logs: str = str(LOGS),
) -> dict[str, Any]:
    """
    Train with RL Zoo on a problem with one task.

    :param env_id: a name of :data:`PLAIN`
    :param algorithm: ``"ppo"``, or ``"grpo"``, which has the same hyper-parameters and its defaults
    :param seed: seed of model and environments
    :param total_timesteps: environment steps; ``None``: those of the problem
    :param n_evaluations: number of evaluations
    :param logs: folder for TensorBoard
    :return: ``steps``, and ``returns``, the mean of 20 episodes at each evaluation; of GRPO ``events``
    """
    total_timesteps = total_timesteps or PLAIN[env_id]
    use_entry(env_id, TUNED_AS.get(env_id, env_id))
    lengths = dict(n_timesteps=total_timesteps, eval_freq=total_timesteps // n_evaluations)
    with experiment(env_id, algorithm, seed=seed, **lengths) as (manager, model):
        set_logger(model, logs, env_id, seed)
        manager.callbacks.append(TensorBoardCallback())
        manager.learn(model)
        evaluations = np.load(Path(manager.save_path) / "evaluations.npz")
        result = {
            "steps": evaluations["timesteps"].tolist(),
            "returns": evaluations["results"].mean(axis=1).round(3).tolist(),
        }
    if isinstance(model, GRPO):
        result["events"] = events_of(model)
    return result


def run_clip_range(
    algorithm: str, clip_range: float, seed: int, total_timesteps: int = 40_960, logs: str = str(LOGS)
) -> dict[str, Any]:
    """
    Train on four CartPole tasks.

    :param algorithm: ``"PPO"`` or ``"GRPO"``
    :param clip_range: PPO's clip range
    :param seed: seed of model and environments
    :param total_timesteps: environment steps
    :param logs: folder for TensorBoard
    :return: ``returns``, the mean of each task after training
    """
    given = SETTINGS["drawn"]
    eval_env = make_eval_env("drawn", seed)
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
    Return the mean return of 100 episodes with random actions.

    :param env_id: registered name of the environment
    :param seed: seed of environment and actions
    """
    env = make_vec_env(env_id, 1, seed=seed)
    env.action_space.seed(seed)
    episodes: list[float] = []
    env.reset()
    while len(episodes) < 100:
        infos = env.step(np.array([env.action_space.sample()]))[3]
        episodes += [info["episode"]["r"] for info in infos if "episode" in info]
    return {"return": float(np.mean(episodes))}


def plain_runs(seeds: Sequence[int] | None) -> list[Run]:
    """
    Return the runs on problems with one task.

    :param seeds: seeds of the runs; ``None``: those of the tables
    """
    runs = []
    for env_id in PLAIN:
        for seed in seeds or (FEW_SEEDS if env_id in LONG else SEEDS):
            runs += [dict(env_id=env_id, algorithm=algorithm, seed=seed) for algorithm in ("ppo", "grpo")]
    return runs


def clip_range_runs(seeds: Sequence[int] | None) -> list[Run]:
    """
    Return the runs over clip ranges.

    :param seeds: seeds of the runs; ``None``: those of the tables
    """
    return [
        dict(algorithm=algorithm, clip_range=clip_range, seed=seed)
        for seed in seeds or SEEDS
        for clip_range in CLIP_RANGES
        for algorithm in ("PPO", "GRPO")
    ]


def threshold_runs(seeds: Sequence[int] | None) -> list[Run]:
    """
    Return the runs over ``merge_kl`` and ``split_kl``.

    :param seeds: seeds of the runs; ``None``: those of the tables
    """
    return [
        dict(problem=problem, algorithm="GRPO", merge_kl=merge_kl, split_kl=split_kl, seed=seed)
        for problem in VARIED
        for seed in seeds or FEW_SEEDS
        for merge_kl, split_kl in THRESHOLDS
    ]


def random_runs(seeds: Sequence[int] | None) -> list[Run]:
    """
    Return the runs with random actions, one per environment.

    :param seeds: not used: the mean of 100 episodes needs one run
    """
    return [dict(env_id=env_id, seed=0) for env_id in PLAIN]


PARTS: dict[str, Any] = {
    "random": (run_random, random_runs),
    "plain": (run_plain, plain_runs),
    "clip_range": (run_clip_range, clip_range_runs),
    "thresholds": (run_tasks, threshold_runs),
}


def main() -> None:
    """Run the parts that the command line names; ``benchmarks.report`` makes their tables and pictures."""
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
