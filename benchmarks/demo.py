"""
PPO and GRPO side by side on four CartPole tasks: two kinds of physics, each with normal and with inverted
actions, and rewards scaled by 1, 1, 10 and 0.1. One agent has to do all four.

``python benchmarks/demo.py`` shows one seed; ``--seeds 1 2 3 4 5`` measures several and keeps their results.
"""

import argparse
import multiprocessing as mp
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from common import RESULTS, sweep
from measures import describe, iqm
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_grpo import GRPO, GroupEvalCallback
from sb3_grpo.envs.cartpole import FOUR_TASKS

ENV_ID = "sb3_grpo/TaskCartPole-v0"
REWARD_SCALES = (1.0, 1.0, 10.0, 0.1)
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
    Keeps what each evaluation measured, and reports progress.

    :param queue: where to put ``(algorithm, environment steps, worst length, mean length)``
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
    :param algorithm: ``"PPO"`` or ``"GRPO"``
    :param seed: seed of the model and of its environments
    :param tensorboard_log: folder for event files
    """
    tasks = [{**task, "reward_scale": scale} for task, scale in zip(FOUR_TASKS, REWARD_SCALES, strict=True)]
    env = make_vec_env(ENV_ID, N_ENVS, seed=seed, env_kwargs={"tasks": tasks})
    kwargs = {**SHARED, "seed": seed, "tensorboard_log": tensorboard_log}
    if algorithm == "PPO":
        return PPO("MlpPolicy", env, **kwargs)
    return GRPO("MlpPolicy", env, **kwargs, **GROUPS)


def train(
    algorithm: str, seed: int, total_timesteps: int, tensorboard_log: str | None = None, queue: Any = None
) -> dict[str, Any]:
    """
    :return: environment steps and episode lengths per task of each evaluation (5 episodes a task, deterministic)
    """
    model = make_model(algorithm, seed, tensorboard_log)
    # the evaluation has the same tasks with all rewards at scale 1: the return is the length of the episode
    eval_env = make_vec_env(ENV_ID, 4, seed=seed + 10_000)
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
    """Train the two algorithms in two processes, with a progress display."""
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


def plot(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """
    :param results: what :func:`train` returned for each seed, by algorithm; drawn is the interquartile mean over
        the seeds, and the range between the lowest and the highest
    :param path: PNG file
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
    for axis, title in zip(axes, ("worst task", "mean of the tasks"), strict=True):
        for name, runs in results.items():
            lengths = np.array([run["lengths"] for run in runs])  # (seed, evaluation, task)
            curves = lengths.min(axis=2) if title == "worst task" else lengths.mean(axis=2)
            steps = np.array(runs[0]["steps"]) / 1000
            axis.plot(steps, [iqm(column) for column in curves.T], label=name, marker="o", ms=3)
            axis.fill_between(steps, curves.min(axis=0), curves.max(axis=0), alpha=0.2)
        axis.set(title=title, xlabel="environment steps (thousands)", ylim=(0, 510))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("episode length (500 = solved)")
    axes[0].legend()
    figure.savefig(path, dpi=120)


def show_one(seed: int, total_timesteps: int, output: Path) -> None:
    """The demo: one seed, a table, a picture, event files."""
    console = Console()
    console.print(f"One agent, four CartPole tasks, {total_timesteps} environment steps (seed {seed}).")
    output.mkdir(parents=True, exist_ok=True)
    results = train_both(seed, total_timesteps, output)
    table = Table("task", *ALGORITHMS, title="episode length after training, of 500")
    for task, name in enumerate(TASK_NAMES):
        table.add_row(name, *(f"{results[algorithm]['lengths'][-1][task]:.0f}" for algorithm in ALGORITHMS))
    for label, reduce in (("worst", np.min), ("mean", np.mean)):
        table.add_row(label, *(f"{reduce(results[algorithm]['lengths'][-1]):.0f}" for algorithm in ALGORITHMS), style="bold")
    console.print(table)
    plot({name: [result] for name, result in results.items()}, output / "demo.png")
    console.print(f"Picture: {output / 'demo.png'}   TensorBoard: tensorboard --logdir {output / 'tensorboard'}")


def measure(seeds: list[int], total_timesteps: int) -> None:
    """Several seeds, kept in a result file."""
    runs = [{"algorithm": name, "seed": s, "total_timesteps": total_timesteps} for s in seeds for name in ALGORITHMS]
    rows = sweep(train, runs, RESULTS / "demo.jsonl")
    table = Table("seeds " + " ".join(map(str, seeds)), *ALGORITHMS, title="episode length after training, IQM [95 %]")
    final = {n: np.array([r["result"]["lengths"][-1] for r in rows if r["run"]["algorithm"] == n]) for n in ALGORITHMS}
    for task, name in enumerate(TASK_NAMES):
        table.add_row(name, *(describe(final[algorithm][:, task]) for algorithm in ALGORITHMS))
    table.add_row("worst", *(describe(final[algorithm].min(axis=1)) for algorithm in ALGORITHMS), style="bold")
    table.add_row("mean", *(describe(final[algorithm].mean(axis=1)) for algorithm in ALGORITHMS), style="bold")
    Console().print(table)
    plot({n: [r["result"] for r in rows if r["run"]["algorithm"] == n] for n in ALGORITHMS}, RESULTS / "demo.png")


def main() -> None:
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
