"""
Compare speed and learning with TorchRL's advantages without a critic, ``MCAdvantage``, on CartPole.

Both sides: 8 environments whose episodes begin alike, at least 4096 steps per update, two layers of 64 units with tanh, Adam
with learning rate 1e-3, clip range 0.2, 4 epochs, minibatches of 256, each return minus the mean of its group divided by the
group's standard deviation. TorchRL plays in a ``SerialEnv``; its buffer takes whole episodes only, so that environments whose
episode has ended wait for the others. SB3's PPO beside them, with its own defaults.

TorchRL is not among the dependencies: ``pip install torchrl`` (0.14), then ``python -m benchmarks.performance.torchrl_speed``.
The three take turns in one process; ``--smoke FOLDER`` is a short run, whose results go there.
"""

import argparse
import importlib.metadata
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from torch import nn

from benchmarks.lib.measures import describe
from benchmarks.lib.rows import RESULTS
from sb3_grpo import GRPO, LeanVecEnv, make_group_vec_env
from sb3_grpo.losses import clipped_surrogate

N_ENVS, N_STEPS, BATCH_SIZE, N_EPOCHS, LEARNING_RATE, MAX_STEPS = 8, 512, 256, 4, 1e-3, 500
Run = dict[str, Any]


def run_sb3(algorithm: type[PPO], seed: int, total_timesteps: int) -> Run:
    """
    Train PPO, or GRPO without a critic.

    :param algorithm: what is trained
    :param seed: seed of model and environments
    :param total_timesteps: environment steps
    :return: seconds, steps, and the returns of the last episodes
    """
    shared: dict[str, Any] = dict(n_steps=N_STEPS, batch_size=BATCH_SIZE, n_epochs=N_EPOCHS, learning_rate=LEARNING_RATE)
    if algorithm is GRPO:
        env = make_group_vec_env("CartPole-v1", N_ENVS, seed=seed)
        shared |= dict(advantage_estimator="outcome", n_groups=1, gamma=1.0)
    else:
        env = make_vec_env("CartPole-v1", N_ENVS, seed=seed, vec_env_cls=LeanVecEnv)
    model = algorithm("MlpPolicy", env, seed=seed, device="cpu", stats_window_size=40, **shared)
    start = time.perf_counter()
    model.learn(total_timesteps)
    assert model.ep_info_buffer is not None
    last = float(np.mean([episode["r"] for episode in model.ep_info_buffer]))
    return {"seconds": time.perf_counter() - start, "steps": model.num_timesteps, "last": last}


def run_torchrl(seed: int, total_timesteps: int) -> Run:
    """
    Train with TorchRL's ``MCAdvantage``.

    :param seed: seed of model and environments
    :param total_timesteps: environment steps
    :return: as :func:`run_sb3`
    """
    from tensordict.nn import TensorDictModule  # noqa: PLC0415 (not a dependency)
    from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer  # noqa: PLC0415 (not a dependency)
    from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement  # noqa: PLC0415 (not a dependency)
    from torchrl.envs import GymEnv, SerialEnv  # noqa: PLC0415 (not a dependency)
    from torchrl.modules import OneHotCategorical, ProbabilisticActor  # noqa: PLC0415 (not a dependency)
    from torchrl.objectives.llm import MCAdvantage  # noqa: PLC0415 (not a dependency)

    th.manual_seed(seed)
    env = SerialEnv(N_ENVS, lambda: GymEnv("CartPole-v1", device="cpu"))
    network = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    module = TensorDictModule(network, in_keys=["observation"], out_keys=["logits"])
    actor = ProbabilisticActor(
        module,
        in_keys=["logits"],
        distribution_class=OneHotCategorical,
        return_log_prob=True,
        default_interaction_type="random",
    )
    optimizer = th.optim.Adam(network.parameters(), LEARNING_RATE, eps=1e-5)
    start, n_steps, episode, last = time.perf_counter(), 0, 0, []
    while n_steps < total_timesteps:
        buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(4 * N_ENVS * N_STEPS),
            sampler=SamplerWithoutReplacement(),
            batch_size=BATCH_SIZE,
            transform=MCAdvantage(grpo_size=N_ENVS, prompt_key="group", trajectory_return="sum"),
        )
        while len(buffer) < N_ENVS * N_STEPS:
            # one seed for all: each begins the same episode
            env.set_seed(seed * 100_000 + episode, static_seed=True)
            with th.no_grad():
                played = env.rollout(MAX_STEPS, actor, break_when_any_done=False, break_when_all_done=True)
            for own in played.unbind(0):
                done = own["next", "done"].flatten()
                length = int(done.int().argmax()) + 1 if done.any() else len(done)
                trajectory = own[:length].clone()
                trajectory["next", "done"][-1] = True
                trajectory["group"] = th.full((length,), episode)
                buffer.extend(trajectory)
                last.append(length)
                n_steps += length
            episode += 1
        for _ in range(N_EPOCHS):
            for batch in buffer:
                distribution = actor.get_dist(batch)
                ratio = (distribution.log_prob(batch["action"]) - batch["action_log_prob"]).exp()
                loss = -clipped_surrogate(ratio, batch["advantage"].flatten(), 0.2).mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 0.5)
                optimizer.step()
    return {"seconds": time.perf_counter() - start, "steps": n_steps, "last": float(np.mean(last[-40:]))}


VARIANTS: dict[str, Callable[[int, int], Run]] = {
    "PPO": lambda seed, steps: run_sb3(PPO, seed, steps),
    "GRPO, outcome": lambda seed, steps: run_sb3(GRPO, seed, steps),
    "TorchRL, MCAdvantage": run_torchrl,
}


def show(results: dict[str, list[Run]]) -> None:
    """
    Print the table.

    :param results: by variant, a run for each seed
    """
    table = Table("variant", "steps/s", "x PPO", "return of the last 40 episodes")
    speeds = {name: [run["steps"] / run["seconds"] for run in runs] for name, runs in results.items()}
    for name, runs in results.items():
        ratio = statistics.median(own / ppo for own, ppo in zip(speeds[name], speeds["PPO"], strict=True))
        last = describe([run["last"] for run in runs])
        table.add_row(name, f"{statistics.median(speeds[name]):.0f}", f"{ratio:.2f}", last)
    Console().print(table)


def main() -> None:
    """Train all variants in turn, and show the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--smoke", type=Path, help="a short run, whose results go into this folder")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    total_timesteps, n_repeats = (4096, 1) if arguments.smoke else (30_000, arguments.repeats)
    results: dict[str, list[Run]] = {name: [] for name in VARIANTS}
    for seed in range(n_repeats):
        for name, run in VARIANTS.items():
            results[name].append(run(seed, total_timesteps))
    packages = ("stable-baselines3", "torch", "gymnasium", "numpy", "torchrl")
    versions = {name: importlib.metadata.version(name) for name in packages}
    path = (arguments.smoke or RESULTS) / "torchrl_speed.json"
    path.write_text(json.dumps({"results": results, "versions": versions}, indent=1) + "\n")
    show(results)


if __name__ == "__main__":
    main()
