"""
Measure the training speed with vectorised environments, beside SB3's PPO with ``DummyVecEnv``.

CartPole with RL Zoo's number of environments and with eight times as many, and HalfCheetah with RL Zoo's network; rollouts of
the same number of steps. All variants of a setting take turns in one process. "C++" is torch's option ``cpp_wrapper``
(``TORCHINDUCTOR_CPP_WRAPPER=1``): faster, but compiled for longer.

``python -m benchmarks.performance.vector_speed`` measures all settings; ``--settings cartpole_8`` some of them; ``--smoke
FOLDER`` is a short run, whose results go there. EnvPool takes part where it is installed, and so does SBX's PPO.
"""

import argparse
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.lib.rows import RESULTS
from benchmarks.lib.sweep import PACKAGES
from benchmarks.performance.settings import Clock
from sb3_grpo import GRPO, LeanVecEnv, adapt_vector_env

CARTPOLE = ("CartPole-v1", "CartPole-v1")
CHEETAH = ("HalfCheetah-v5", "HalfCheetah-v4")
# names of the environment in Gymnasium and in EnvPool, number of environments, arguments of PPO
SETTINGS: dict[str, tuple[tuple[str, str], int, dict[str, Any]]] = {
    "cartpole_8": (CARTPOLE, 8, {"n_steps": 512}),
    "cartpole_64": (CARTPOLE, 64, {"n_steps": 64}),
    "halfcheetah_8": (CHEETAH, 8, {"n_steps": 64, "n_epochs": 20, "policy_kwargs": {"net_arch": [256, 256]}}),
}


def envpool_env(name: str, n_envs: int) -> VecEnv:
    """
    Return EnvPool's environments.

    :param name: of the environment
    :param n_envs: number of environments
    """
    return adapt_vector_env(importlib.import_module("envpool").make(name, env_type="gymnasium", num_envs=n_envs, seed=0))


def vectorised_env(name: str, n_envs: int) -> VecEnv:
    """
    Return Gymnasium's own vectorised environments.

    :param name: of the environment
    :param n_envs: number of environments
    """
    return adapt_vector_env(gym.make_vec(name, num_envs=n_envs, vectorization_mode="vector_entry_point"))


def make_envs(names: tuple[str, str], n_envs: int) -> dict[str, Callable[[], VecEnv]]:
    """
    Return what makes the environments of a setting, by the name for the table.

    :param names: of the environment, in Gymnasium and in EnvPool
    :param n_envs: number of environments
    """
    envs: dict[str, Callable[[], VecEnv]] = {
        "DummyVecEnv": lambda: make_vec_env(names[0], n_envs, seed=0),
        "LeanVecEnv": lambda: make_vec_env(names[0], n_envs, seed=0, vec_env_cls=LeanVecEnv),
    }
    if names is CARTPOLE:
        envs["Gymnasium's vectorised"] = lambda: vectorised_env(names[0], n_envs)
    if importlib.util.find_spec("envpool"):
        envs["EnvPool"] = lambda: envpool_env(names[1], n_envs)
    return envs


def make_variants() -> dict[str, Callable[..., OnPolicyAlgorithm]]:
    """Return the constructors that are compared, by name; groups may be merged and split as by default."""
    grpo = functools.partial(GRPO, n_groups=4)
    variants: dict[str, Callable[..., OnPolicyAlgorithm]] = {"PPO": PPO, "GRPO 4": grpo}
    variants["GRPO 4 compiled"] = functools.partial(grpo, compile=True)
    variants["GRPO 4 compiled, C++"] = functools.partial(grpo, compile=True)
    if importlib.util.find_spec("sbx"):
        variants["SBX PPO"] = importlib.import_module("sbx").PPO
    return variants


def compiler_options(variant: str) -> AbstractContextManager[Any]:
    """
    Return a context in which what a variant compiles is compiled.

    :param variant: a name of :func:`make_variants`
    """
    if not variant.endswith("C++"):
        return nullcontext()
    return importlib.import_module("torch._inductor.config").patch(cpp_wrapper=True)


def measure(setting: str, n_repeats: int, store: Callable[[dict[str, Any]], None]) -> None:
    """
    Train all variants of a setting in turn, in rounds that are stored as they end.

    :param setting: a name of :data:`SETTINGS`
    :param n_repeats: number of rounds
    :param store: takes, by environment and variant, seconds of ``burn_in`` and those of each repeat
    """
    names, n_envs, kwargs = SETTINGS[setting]
    models = {
        f"{variant} | {kind}": constructor("MlpPolicy", make(), seed=0, device="cpu", **kwargs)
        for kind, make in make_envs(names, n_envs).items()
        for variant, constructor in make_variants().items()
    }
    n_steps = n_envs * kwargs["n_steps"]
    results: dict[str, Any] = {}
    for name, model in models.items():
        start = time.perf_counter()
        with compiler_options(name.split(" | ")[0]):
            # the compiled rollout begins with the second
            model.learn(2 * n_steps)
        results[name] = {"burn_in": time.perf_counter() - start, "repeats": []}
    clocks = {name: Clock(model) for name, model in models.items()}
    for _ in range(n_repeats):
        for name, model in models.items():
            clocks[name].reset()
            start = time.perf_counter()
            model.learn(n_steps, reset_num_timesteps=False)
            results[name]["repeats"].append({"all": time.perf_counter() - start, **clocks[name].seconds})
        store({"n_steps": n_steps, "results": results})


def show(setting: str, stored: dict[str, Any]) -> None:
    """
    Print the table of a setting.

    :param setting: title of the table
    :param stored: an entry of the result file
    """
    table = Table("environments", "variant", "steps/s", "x PPO with DummyVecEnv", "rollout", "burn-in", title=setting)
    reference = stored["results"]["PPO | DummyVecEnv"]["repeats"]
    for name, result in stored["results"].items():
        variant, kind = name.split(" | ")
        seconds = [repeat["all"] for repeat in result["repeats"]]
        ratio = statistics.median(one["all"] / own for one, own in zip(reference, seconds, strict=True))
        share = statistics.median(repeat["collect_rollouts"] / repeat["all"] for repeat in result["repeats"])
        steps = f"{stored['n_steps'] / statistics.median(seconds):.0f}"
        table.add_row(kind, variant, steps, f"{ratio:.2f}", f"{share:.0%}", f"{result['burn_in']:.0f} s")
    Console().print(table)


def main() -> None:
    """Measure the settings that the command line names, then show all that have results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="*", choices=list(SETTINGS), default=list(SETTINGS), help="none: show results")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--smoke", type=Path, help="a short run, whose results go into this folder")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    # compilation is measured as on the first use: nothing is taken from what earlier processes compiled
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()
    path = (arguments.smoke or RESULTS) / "vector_speed.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    for setting in arguments.settings:
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}

        def store(results: dict[str, Any], setting: str = setting, versions: dict[str, str] = versions) -> None:
            stored[setting] = {**results, "versions": versions}
            path.write_text(json.dumps(stored, indent=1) + "\n")

        measure(setting, 1 if arguments.smoke else arguments.repeats, store)
    for setting, results in stored.items():
        show(setting, results)


if __name__ == "__main__":
    main()
