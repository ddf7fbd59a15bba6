"""Build the models that are killed, interrupted and started again."""

import functools
from pathlib import Path
from typing import Any

from stable_baselines3 import PPO

import sb3_grpo
from benchmarks.lib.sweep import commit_of
from benchmarks.lib.tasks import CARTPOLE
from benchmarks.robustness.cases.case import ONE_HOT
from sb3_grpo import GRPO

ALGORITHMS: dict[str, Any] = {"PPO": PPO, "GRPO": GRPO}
TASKS = CARTPOLE
SMALL: dict[str, Any] = dict(n_steps=32, batch_size=32, n_epochs=2, device="cpu")


def make_model(algorithm: str, env: Any, seed: int) -> Any:
    """
    Return a model whose network has the size of SB3's default.

    :param algorithm: ``"PPO"`` or ``"GRPO"``
    :param env: environments of :data:`TASKS`
    :param seed: seed of the model
    """
    options = {**SMALL, "seed": seed, **(ONE_HOT if algorithm == "GRPO" else {})}
    return ALGORITHMS[algorithm]("MlpPolicy", env, **options)


@functools.cache
def package_commit() -> str:
    """Return the commit of the package that is measured, with "-dirty" where its code differs from it."""
    return commit_of(Path(sb3_grpo.__file__).parent, ".")
