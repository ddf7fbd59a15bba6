"""
Measure how long MiniGrid's three tasks (MT3) are trained for 1000 steps, with EnvPool and with MiniGrid's environments.

``python -m benchmarks.performance.minigrid_speed`` measures PPO and GRPO in turns in one process; ``--smoke FOLDER`` is a
short run, whose rows go there. "as before" is what the committed rows were trained with: MiniGrid's environments, four for
each task, and convolutions of each different view.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch as th
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.lib.minigrid import ENVS_PER_TASK, make_pools, make_python_envs
from benchmarks.lib.rows import RESULTS
from benchmarks.lib.view_network import ViewExtractor
from benchmarks.sweeps.minigrid_tasks import STEPS_PER_ROLLOUT, SUITES, make_model

REPEATS = 5
STEPS_OF_A_RUN = 1_200_000
ALGORITHMS = ("PPO", "GRPO")


class EachView(ViewExtractor):
    """
    The same network, which convolves each different view of a minibatch instead of each different square.

    :param observation_space: a view, and possibly a task
    """

    def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        """
        Return the features, shape ``(B, features_dim)``.

        :param observations: entries of shape ``(B, ...)``
        """
        shown = th.cat([observations[key].flatten(1) for key in ("view", "task") if key in observations], dim=1)
        if self.training:
            different, which = shown.unique(dim=0, return_inverse=True)
            return self.features_of(different).index_select(0, which)
        # numbers are the keys of `remembered`: here those of the rows' bytes
        keys = [hash(row.tobytes()) for row in shown.numpy()]
        new = {key: row for key, row in zip(keys, shown, strict=True) if key not in self.remembered}
        if new:
            self.remembered.update(zip(new, self.features_of(th.stack(list(new.values()))), strict=True))
        return th.stack([self.remembered[key] for key in keys])

    def features_of(self, shown: th.Tensor) -> th.Tensor:
        """
        Return the features of views, shape ``(B, features_dim)``.

        :param shown: the view in 147 columns, the task in ``n_tasks``, shape ``(B, 147 + n_tasks)``
        """
        view, task = shown.tensor_split([3 * 7 * 7], dim=1)
        return th.tanh(self.hidden(th.cat([self.cnn(view.unflatten(1, (3, 7, 7))), task], dim=1)))


# what makes the environments, how many of them for each task, and the network
SETTINGS: dict[str, tuple[Callable[[Sequence[str], int, int], VecEnv], int, type[ViewExtractor]]] = {
    "as before": (make_python_envs, 4, EachView),
    "MiniGrid's environments, 4 per task": (make_python_envs, 4, ViewExtractor),
    f"MiniGrid's environments, {ENVS_PER_TASK} per task": (make_python_envs, ENVS_PER_TASK, ViewExtractor),
    "EnvPool, 4 per task": (make_pools, 4, ViewExtractor),
    f"EnvPool, {ENVS_PER_TASK} per task": (make_pools, ENVS_PER_TASK, ViewExtractor),
}


def seconds_of(model: OnPolicyAlgorithm, n_steps: int) -> float:
    """
    Return the seconds that training takes for 1000 steps.

    :param model: a model that has been trained before
    :param n_steps: number of steps that are measured
    """
    start = time.perf_counter()
    model.learn(n_steps, reset_num_timesteps=False)
    return (time.perf_counter() - start) * 1000 / n_steps


def measure(n_repeats: int, n_warmup: int) -> dict[str, dict[str, list[float]]]:
    """
    Return the seconds for 1000 steps in each repeat, by algorithm and setting.

    :param n_repeats: number of repeats, in each of which all settings take their turn with one rollout and its update
    :param n_warmup: number of rollouts before the first repeat
    """
    n_steps = STEPS_PER_ROLLOUT * len(SUITES["mt3"])
    models = {}
    for algorithm in ALGORITHMS:
        for setting, (make_envs, envs_per_task, extractor) in SETTINGS.items():
            env = make_envs(SUITES["mt3"], 0, envs_per_task)
            models[algorithm, setting] = make_model(algorithm, env, 0, features_extractor_class=extractor)
            models[algorithm, setting].learn(n_warmup * n_steps)
    found: dict[str, dict[str, list[float]]] = {algorithm: {name: [] for name in SETTINGS} for algorithm in ALGORITHMS}
    for _ in range(n_repeats):
        for (algorithm, setting), model in models.items():
            found[algorithm][setting].append(seconds_of(model, n_steps))
    return found


def speed_table(found: dict[str, dict[str, list[float]]]) -> Table:
    """
    Return the table of medians, ratios and minutes of a whole run.

    :param found: seconds from :func:`measure`
    """
    table = Table("algorithm", "setting", "s per 1000 steps", "times as fast", "smallest", "largest", "minutes a run")
    for algorithm, settings in found.items():
        for setting, seconds in settings.items():
            # the speed of the machine varies: settings are compared within a repeat
            ratios = [old / new for old, new in zip(settings["as before"], seconds, strict=True)]
            median = statistics.median(seconds)
            shown = (f"{ratio:.1f}" for ratio in (statistics.median(ratios), min(ratios), max(ratios)))
            table.add_row(algorithm, setting, f"{median:.2f}", *shown, f"{median * STEPS_OF_A_RUN / 60_000:.1f}")
    return table


def main() -> None:
    """Measure, write the seconds, and print their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", type=Path, metavar="FOLDER", help="a short run, whose rows go into this folder")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    with warnings.catch_warnings():
        # the protocol's minibatches do not divide its rollouts
        warnings.filterwarnings("ignore", "You have specified a mini-batch size", UserWarning)
        found = measure(n_repeats=1 if arguments.smoke else REPEATS, n_warmup=0 if arguments.smoke else 2)
    path = (arguments.smoke or RESULTS) / "minigrid_speed.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    Console(width=127).print(speed_table(found))


if __name__ == "__main__":
    main()
