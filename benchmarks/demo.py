"""
Train PPO and GRPO side by side on four CartPole tasks, with one agent for all four.

The tasks are two kinds of physics, each with normal and with inverted actions, and rewards scaled by 1, 1, 10 and 0.1.
``python -m benchmarks.demo`` shows one seed; ``--seeds 1 2 3 4 5`` measures several and keeps their results.
"""

import argparse
import multiprocessing as mp
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.lib.measures import describe
from benchmarks.lib.plots import draw_band, save
from benchmarks.lib.rows import REDUCTIONS, RESULTS, Run, results
from benchmarks.lib.sweep import sweep
from benchmarks.lib.tasks import CARTPOLE, SCALES
from sb3_grpo import GRPO, GroupEvalCallback
from sb3_grpo.envs.cartpole import FOUR_TASKS

TASK_NAMES = ("plain", "plain, inverted", "long pole (rewards x 10)", "long pole, inverted (rewards x 0.1)")
ALGORITHMS = ("PPO", "GRPO")
TOTAL_TIMESTEPS = 60_000
N_ENVS = 8
# the hyper-parameters both algorithms share
SHARED: dict[str, Any] = {"n_steps": 128, "batch_size": 64, "device": "cpu"}
GROUPS: dict[str, Any] = {
    "router": "one_hot",
    "router_kwargs": {"columns": (4, 8)},
    "normalize_advantage": "group",
}


class History(BaseCallback):
    """
    Record the episode lengths of each evaluation, and report progress.

    :param queue: receives ``(algorithm, environment steps, worst length, mean length)``
    :param algorithm: name of the algorithm
    """

    parent: GroupEvalCallback

    def __init__(self, queue: Any = None, algorithm: str = ""):
        super().__init__()
        self.queue, self.algorithm = queue, algorithm
        self.steps: list[int] = []
        self.lengths: list[list[float]] = []

    def _on_step(self) -> bool:
        lengths = [evaluation.mean_length for evaluation in self.parent.last_evaluation.values()]
        self.steps.append(self.num_timesteps)
        self.lengths.append(lengths)
        if self.queue is not None:
            self.queue.put((self.algorithm, self.num_timesteps, min(lengths), float(np.mean(lengths))))
        return True


def make_model(algorithm: str, seed: int, tensorboard_log: str | None = None) -> BaseAlgorithm:
    """
    Return a model with its training environments.

    :param algorithm: ``"PPO"`` or ``"GRPO"``
    :param seed: seed of the model and of its environments
    :param tensorboard_log: folder for event files
    """
    tasks = [{**task, "reward_scale": scale} for task, scale in zip(FOUR_TASKS, SCALES, strict=True)]
    env = make_vec_env(CARTPOLE, N_ENVS, seed=seed, env_kwargs={"tasks": tasks})
    kwargs = {**SHARED, "seed": seed, "tensorboard_log": tensorboard_log}
    if algorithm == "PPO":
        return PPO("MlpPolicy", env, **kwargs)
    return GRPO("MlpPolicy", env, **kwargs, **GROUPS)


def train(
    algorithm: str, seed: int, total_timesteps: int, tensorboard_log: str | None = None, queue: Any = None
) -> dict[str, Any]:
    """
    Train one model, and evaluate each task over 5 episodes 12 times.

    :param algorithm: ``"PPO"`` or ``"GRPO"``
    :param seed: seed of the model and of its environments
    :param total_timesteps: environment steps
    :param tensorboard_log: folder for event files
    :param queue: see :class:`History`
    :return: ``steps`` and ``lengths``, episode lengths per task, of each evaluation (deterministic)
    """
    model = make_model(algorithm, seed, tensorboard_log)
    # the evaluation has the same tasks with all rewards at scale 1: the return is the length of the episode
    eval_env = make_vec_env(CARTPOLE, 4, seed=seed + 10_000)
    history = History(queue, algorithm)
    evaluate = GroupEvalCallback(
        eval_env,
        n_eval_episodes=20,
        eval_freq=total_timesteps // 12 // N_ENVS,
        callback_after_eval=history,
        verbose=0,
    )
    model.learn(total_timesteps, evaluate, tb_log_name=algorithm)
    return {"steps": history.steps, "lengths": history.lengths}


def train_both(seed: int, total_timesteps: int, output: Path) -> dict[str, dict[str, Any]]:
    """
    Train the two algorithms in two processes, and show their progress.

    :param seed: seed of both
    :param total_timesteps: environment steps of each
    :param output: folder for event files
    :return: what :func:`train` returns, by algorithm
    """
    context = mp.get_context("spawn")
    queue = context.Manager().Queue()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeRemainingColumn())
    with context.Pool(2) as pool, Progress(*columns) as progress:
        arguments = [(name, seed, total_timesteps, str(output / "tensorboard"), queue) for name in ALGORITHMS]
        pending = pool.starmap_async(train, arguments)
        bars: dict[str, TaskID] = {n: progress.add_task(f"{n:4}", total=total_timesteps, state="") for n in ALGORITHMS}
        while not (pending.ready() and queue.empty()):
            if queue.empty():
                pending.wait(0.2)
                continue
            name, steps, worst, mean = queue.get()
            progress.update(bars[name], completed=steps, state=f"worst task {worst:3.0f}, mean {mean:3.0f} of 500")
        return dict(zip(ALGORITHMS, pending.get(), strict=True))


def plot(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """
    Draw the interquartile mean over the seeds, and the range between the lowest and the highest.

    :param found: what :func:`train` returned for each seed, by algorithm
    :param path: PNG file
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
    for axis, (title, reduce) in zip(axes, REDUCTIONS.items(), strict=True):
        for name, runs in found.items():
            columns = reduce(np.array([run["lengths"] for run in runs]), axis=2).T  # (evaluation, seed)
            steps = np.array(runs[0]["steps"]) / 1000
            limits = [(column.min(), column.max()) for column in columns]
            draw_band(axis, steps, columns, name, limits, marker="o", ms=3)
        axis.set(title=title, xlabel="environment steps (thousands)", ylim=(0, 510))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("episode length (500 = solved)")
    axes[0].legend()
    save(figure, path, dpi=120)


def show_one(seed: int, total_timesteps: int, output: Path) -> None:
    """
    Train with one seed, print a table, and write a picture and event files.

    :param seed: seed of both algorithms
    :param total_timesteps: environment steps of each
    :param output: folder for picture and event files
    """
    console = Console()
    console.print(f"One agent, four CartPole tasks, {total_timesteps} environment steps (seed {seed}).")
    output.mkdir(parents=True, exist_ok=True)
    found = train_both(seed, total_timesteps, output)
    table = Table("task", *ALGORITHMS, title="episode length after training, of 500")
    for task, name in enumerate(TASK_NAMES):
        table.add_row(name, *(f"{found[algorithm]['lengths'][-1][task]:.0f}" for algorithm in ALGORITHMS))
    for label, reduce in (("worst", np.min), ("mean", np.mean)):
        table.add_row(label, *(f"{reduce(found[algorithm]['lengths'][-1]):.0f}" for algorithm in ALGORITHMS), style="bold")
    console.print(table)
    plot({name: [result] for name, result in found.items()}, output / "demo.png")
    console.print(f"Picture: {output / 'demo.png'}   TensorBoard: tensorboard --logdir {output / 'tensorboard'}")


def make_runs(seeds: list[int], total_timesteps: int) -> list[Run]:
    """
    Return the runs of both algorithms.

    :param seeds: seeds of the runs
    :param total_timesteps: environment steps of each run
    """
    return [{"algorithm": name, "seed": s, "total_timesteps": total_timesteps} for s in seeds for name in ALGORITHMS]


def measure(seeds: list[int], total_timesteps: int) -> None:
    """
    Train with several seeds, keep their rows, print a table and draw the picture.

    :param seeds: seeds of both algorithms
    :param total_timesteps: environment steps of each run
    """
    rows = sweep(train, make_runs(seeds, total_timesteps), RESULTS / "demo.jsonl")
    table = Table("seeds " + " ".join(map(str, seeds)), *ALGORITHMS, title="episode length after training, IQM [95 %]")
    found = {name: results(rows, algorithm=name) for name in ALGORITHMS}
    final = {name: np.array([result["lengths"][-1] for result in own]) for name, own in found.items()}
    for task, name in enumerate(TASK_NAMES):
        table.add_row(name, *(describe(final[algorithm][:, task]) for algorithm in ALGORITHMS))
    table.add_row("worst", *(describe(final[algorithm].min(axis=1)) for algorithm in ALGORITHMS), style="bold")
    table.add_row("mean", *(describe(final[algorithm].mean(axis=1)) for algorithm in ALGORITHMS), style="bold")
    Console().print(table)
    plot(found, RESULTS / "demo.png")


def main() -> None:
    """Show one seed, or measure several, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="more than one: measure and keep the results")
    parser.add_argument("--total-timesteps", type=int, default=TOTAL_TIMESTEPS)
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="for picture and event files")
    arguments = parser.parse_args()
    if len(arguments.seeds) == 1:
        show_one(arguments.seeds[0], arguments.total_timesteps, arguments.output)
    else:
        measure(arguments.seeds, arguments.total_timesteps)


if __name__ == "__main__":
    main()
