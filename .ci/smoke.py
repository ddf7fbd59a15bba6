"""
Does the installed package work? ``python smoke.py`` needs nothing but ``pip install sb3-grpo``: train, save, load.

Names of extras as arguments try what they bring: ``python smoke.py core extra``. Files go to a temporary folder.
"""

import argparse
import importlib
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_grpo import (
    GRPO,
    GroupEvalCallback,
    RayVecEnv,
    adapt_vector_env,
    evaluate_groups,
    export_onnx,
    make_group_vec_env,
    plot_regrouping,
)

TASKS = "sb3_grpo/TaskCartPole-v0"
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def make_model(**kwargs: object) -> GRPO:
    """GRPO with a head for each of four tasks."""
    router = {"router": "one_hot", "router_kwargs": {"columns": (4, 8)}}
    env = make_vec_env(TASKS, n_envs=4, seed=0)
    return GRPO("MlpPolicy", env, n_steps=128, n_epochs=2, seed=0, device="cpu", **router, **kwargs)


@contextmanager
def advice(extra: str) -> Iterator[None]:
    """A context that must raise an ``ImportError`` which says how to install an extra."""
    message = ""
    try:
        yield
    except ImportError as error:
        message = str(error)
    assert f'pip install "sb3-grpo[{extra}]"' in message, message


def run(*command: str, folder: Path, status: int = 0) -> str:
    """
    Run Python in a folder.

    :return: what it printed to stderr
    """
    result = subprocess.run([sys.executable, *command], check=False, cwd=folder, capture_output=True, text=True)
    assert result.returncode == status, result.stdout + result.stderr
    return result.stderr


def core(folder: Path) -> None:
    """Train, evaluate, save, load."""
    critic_free = {"advantage_estimator": "outcome", "kl_coef": 0.01}
    alike = make_group_vec_env("CartPole-v1", group_size=4, seed=0)
    models = (
        make_model(),
        GRPO("MlpPolicy", "CartPole-v1", n_steps=256, seed=0, device="cpu"),
        GRPO("MlpPolicy", alike, n_steps=512, seed=0, device="cpu", **critic_free),
    )
    for model in models:
        before = {name: value.clone() for name, value in model.policy.named_parameters()}
        model.learn(1024)
        assert any(not th.equal(value, before[name]) for name, value in model.policy.named_parameters())
        model.save(folder / "model")
        loaded = GRPO.load(folder / "model", device="cpu")
        obs = np.stack([model.observation_space.sample() for _ in range(100)])
        assert np.array_equal(model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    model = make_model()
    evaluation = GroupEvalCallback(make_vec_env(TASKS, n_envs=4), eval_freq=128, n_eval_episodes=8, verbose=0)
    # the groups are looked at after every rollout
    model.regroup_freq, model.regroup_warmup = 1, 1
    model.learn(1024, evaluation)
    assert len(evaluation.last_evaluation) == len(evaluate_groups(model, make_vec_env(TASKS))) == 4


def bare(folder: Path) -> None:
    """Without extras their packages are not there, and messages say how to install them."""
    for name in ("matplotlib", "tensorboard", "tqdm", "rich", "rl_zoo3", "Box2D", "envpool", "onnx"):
        assert importlib.util.find_spec(name) is None, name
    with advice("extra"):
        plot_regrouping(make_model())
    with advice("extra"):
        make_model(tensorboard_log=str(folder)).learn(1)
    with advice("extra"):
        make_model().learn(1, progress_bar=True)
    with advice("export"):
        export_onnx(make_model(), folder / "policy.onnx")
    message = run("-m", "sb3_grpo.zoo", "train", folder=folder, status=1)
    assert 'pip install "sb3-grpo[zoo]"' in message
    assert "Traceback" not in message


def extra(folder: Path) -> None:
    """Pictures, TensorBoard, a progress bar."""
    model = make_model(tensorboard_log=str(folder / "tensorboard"))
    model.regroup_freq, model.regroup_warmup = 1, 1
    model.learn(2048, progress_bar=True)
    plot_regrouping(model, folder / "groups.png")
    assert (folder / "groups.png").read_bytes().startswith(b"\x89PNG")
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    (events,) = (folder / "tensorboard").glob("*/events*")
    written = accumulator.EventAccumulator(str(events)).Reload().Tags()
    assert "train/loss" in written["scalars"]
    assert "groups/figure_timeline" in written["images"]


def export(folder: Path) -> None:
    """An ONNX file acts as the model."""
    model = make_model()
    export_onnx(model, folder / "policy.onnx")
    session = importlib.import_module("onnxruntime").InferenceSession(str(folder / "policy.onnx"))
    obs = np.stack([model.observation_space.sample() for _ in range(100)])
    assert np.array_equal(session.run(None, {"observation": obs})[0], model.predict(obs, deterministic=True)[0])


def box2d(folder: Path) -> None:
    """LunarLander with its tasks."""
    env = gym.make("sb3_grpo/TaskLunarLander-v0")
    env.reset(seed=0)
    assert env.observation_space.contains(env.step(env.action_space.sample())[0])


def zoo(folder: Path) -> None:
    """Train by RL Zoo's command line, play and record what was trained, plot."""
    agent = ("--algo", "grpo", "--env", "CartPole-v1", "-f", "logs")
    commands = [
        ("train", *agent, "-n", "1024", "--eval-freq", "512", "-P", "--tensorboard-log", "tensorboard"),
        ("enjoy", *agent, "-n", "100", "--no-render"),
        ("record_video", *agent, "-n", "20", "-o", "videos"),
        ("plot_train", "-a", "grpo", "-e", "CartPole-v1", "-f", "logs", "-w", "2"),
    ]
    for command in commands:
        run("-m", "sb3_grpo.zoo", *command, folder=folder)
    patterns = ("logs/grpo/CartPole-v1_1/CartPole-v1.zip", "tensorboard/CartPole-v1/*/events*", "videos/*.mp4", "*.png")
    for pattern in patterns:
        assert list(folder.glob(pattern)), pattern


def demo(folder: Path) -> None:
    """``make demo``, shorter."""
    link_benchmarks(folder)
    run("-m", "benchmarks.demo", "--total-timesteps", "2400", "--output", "output", folder=folder)
    assert (folder / "output/demo.png").exists()


def bench(folder: Path) -> None:
    """Every benchmark finds what it imports, and MuJoCo is there."""
    link_benchmarks(folder)
    sys.path.insert(0, str(folder))
    for path in sorted(BENCHMARKS.rglob("*.py")):
        importlib.import_module(".".join(path.relative_to(BENCHMARKS.parent).with_suffix("").parts))
    gym.make("HalfCheetah-v5").reset(seed=0)


def envpool(folder: Path) -> None:
    """Learn in EnvPool's environments."""
    made = importlib.import_module("envpool").make("CartPole-v1", env_type="gymnasium", num_envs=4, seed=0)
    GRPO("MlpPolicy", adapt_vector_env(made), n_steps=128, seed=0, device="cpu").learn(512)


def link_benchmarks(folder: Path) -> None:
    """Make ``benchmarks`` importable in a folder, where the repository's ``sb3_grpo`` does not hide the installed one."""
    (folder / "benchmarks").symlink_to(BENCHMARKS)


def dist(folder: Path) -> None:
    """Learn in environments of a Ray cluster of one process."""
    ray = importlib.import_module("ray")
    # another cluster on this machine is left alone
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    env = make_vec_env(TASKS, 2, seed=0, vec_env_cls=RayVecEnv, vec_env_kwargs={"envs_per_actor": 2})
    GRPO("MlpPolicy", env, n_steps=64, seed=0, device="cpu").learn(128)
    env.close()
    ray.shutdown()


PARTS: dict[str, Callable[[Path], None]] = {
    part.__name__: part for part in (core, bare, extra, export, box2d, envpool, zoo, demo, bench, dist)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=PARTS, default="core", metavar="PART", help=f"of {', '.join(PARTS)}")
    parts = parser.parse_args().parts
    # several processes on few cores are faster with one thread each
    th.set_num_threads(1)
    for name in [parts] if isinstance(parts, str) else parts:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[name](Path(folder))
        print(f"works: {name}", flush=True)


if __name__ == "__main__":
    main()
