"""
Compare rules that balance tasks which have a head each.

Rewards are equal, or scaled by 1, 1, 10 and 0.1 (settings "drawn" and "scaled" of ``balance.py``, whose hyper-parameters these
are). Part "wide" measures whether lambda does harm where rewards are scaled by 1, 30, 0.1 and 1.

- heads: PPO's normalisation of advantages, nothing else
- group normalisation: advantages and values in units of their own group
- lambda: that, and GRPO's penalty; from 0.005 by decades; 0.05 is the default
- softmax: that, and weights that grow exponentially with how far a group is behind, as group DRO has them
  (https://arxiv.org/abs/1911.08731), with the scores of one rollout as their only memory
- UPGrad: group normalisation, and the Jacobian descent of TorchJD (https://arxiv.org/abs/2406.16232) on the shared layers:
  no step that any task's loss would grow with

``python -m benchmarks.sweeps.balancing_rules`` runs what has no result row yet and prints the tables.
"""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.lib.balancers import register
from benchmarks.lib.hyperparams import FIXED_GROUPS
from benchmarks.lib.rows import Row, Run, by_method
from benchmarks.lib.sweep import parse_parts, run_part
from benchmarks.lib.tasks import END_AND_TRAINING, SETTINGS, end_and_training, head_per_task, make_env, train_on_tasks
from benchmarks.lib.variants import UPGradGRPO
from sb3_grpo import GRPO

SEEDS = {"drawn": range(10), "scaled": range(10), "wide": range(10)}
RULES: dict[str, tuple[type[GRPO], dict[str, Any]]] = {
    "heads": (GRPO, dict(group_coef=0.0, normalize_advantage=True)),
    "group normalisation": (GRPO, dict(group_coef=0.0)),
    "lambda 0.005": (GRPO, dict(group_coef=0.005)),
    "lambda 0.05": (GRPO, dict(group_coef=0.05)),
    "lambda 0.5": (GRPO, dict(group_coef=0.5)),
    "softmax": (GRPO, dict(balancer="softmax", group_coef=1.0)),
    "UPGrad": (UPGradGRPO, dict(group_coef=0.0)),
}


def run(setting: str, method: str, seed: int, total_timesteps: int, n_evaluations: int) -> dict[str, Any]:
    """
    Train one model whose groups stay as they are, and evaluate each task.

    :param setting: ``"drawn"``, ``"scaled"`` or ``"wide"``
    :param method: a name of :data:`RULES`
    :param seed: seed of model and environments
    :param total_timesteps: environment steps
    :param n_evaluations: number of evaluations
    :return: see :func:`benchmarks.lib.tasks.train_on_tasks`
    """
    register()
    env, (algorithm, rule) = make_env(setting, seed), RULES[method]
    kwargs = {**head_per_task(env), **FIXED_GROUPS, **SETTINGS[setting]["kwargs"], **rule}
    model = algorithm("MlpPolicy", env, seed=seed, device="cpu", **kwargs)
    return train_on_tasks(model, [], setting, seed, total_timesteps, n_evaluations)


def make_runs(setting: str, seeds: Sequence[int]) -> list[Run]:
    """
    Return the arguments of the runs of one part.

    :param setting: ``"drawn"``, ``"scaled"`` or ``"wide"``
    :param seeds: seeds of the runs
    """
    base = dict(setting=setting, total_timesteps=40_960, n_evaluations=10)
    methods = ("group normalisation", "lambda 0.005", "lambda 0.05") if setting == "wide" else RULES
    return [dict(method=method, seed=seed, **base) for seed in seeds for method in methods]


def rules_table(rows: list[Row], title: str = "") -> Table:
    """
    Return the table of one setting: worst task and mean of the tasks, by rule.

    :param rows: rows of one setting
    :param title: title of the table
    """
    table = Table("rule", "seeds", *END_AND_TRAINING, title=title)
    for method, own in by_method(rows, RULES).items():
        table.add_row(method, str(len(own)), *end_and_training(own))
    return table


def main() -> None:
    """Run the parts that the command line names, and print their tables."""
    arguments = parse_parts(__doc__, SEEDS)
    for setting in arguments.parts:
        runs = make_runs(setting, arguments.seeds or SEEDS[setting])
        rows = run_part(run, runs, f"balancing_rules_{setting}", arguments, total_timesteps=2048, n_evaluations=2)
        Console(width=150).print(rules_table(rows, setting))


if __name__ == "__main__":
    main()
