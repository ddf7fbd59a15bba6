"""
Compare GRPO with PPO on four tasks, and the levers that balance tasks with each other.

Does the worst task get better without the mean getting worse? And which lever does it: the loss, the trust region, the step
size, or the data?

``python -m benchmarks.sweeps.balance`` runs what is missing, prints the tables and draws the pictures; ``--parts ablation`` is
the comparison of levers and lambdas, with seeds of its own, the other parts are the results. PPO's hyper-parameters are
SB3's defaults, with 1024 steps per rollout; GRPO has the same.
"""

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from benchmarks.lib.plots import plot_curves
from benchmarks.lib.sweep import parse_parts, result_folder, run_part
from benchmarks.lib.tasks import SETTINGS, is_lander, make_env, train_on_tasks
from benchmarks.sweeps.balance_methods import LAMBDAS, LEVERS, METHODS, RESULT_SETTINGS, make_model
from benchmarks.sweeps.balance_tables import ablation_table, plot_ablation, results_table

ABLATION_SEEDS, SEEDS, LANDER_SEEDS = range(200, 206), range(10), range(5)


def run(
    setting: str, method: str, seed: int, total_timesteps: int, n_evaluations: int, group_coef: float | None = None
) -> dict[str, Any]:
    """
    Train one model, and evaluate each task.

    :param setting: a name of :data:`SETTINGS`
    :param method: a name of :data:`METHODS` or of :data:`LEVERS`
    :param seed: seed of model and environments
    :param total_timesteps: environment steps
    :param n_evaluations: number of evaluations
    :param group_coef: lambda of a lever
    :return: see :func:`benchmarks.lib.tasks.train_on_tasks`
    """
    model, callbacks = make_model(
        method, group_coef, make_env(setting, seed), seed=seed, device="cpu", **SETTINGS[setting]["kwargs"]
    )
    return train_on_tasks(model, callbacks, setting, seed, total_timesteps, n_evaluations)


def ablation_runs(seeds: Sequence[int]) -> list[dict[str, Any]]:
    """
    Return the runs of the comparison of levers and lambdas.

    In setting "rare" the environments do not draw their tasks, so that a lever on the data has no effect there.

    :param seeds: seeds of the runs
    """
    base = dict(total_timesteps=40_960, n_evaluations=10)
    runs = []
    for seed in seeds:
        for setting in ("drawn", "rare"):
            runs.append(dict(setting=setting, method="loss", group_coef=0.0, seed=seed, **base))
            for method, (_, _, in_data) in LEVERS.items():
                if setting == "rare" and in_data:
                    continue
                # without lambda all levers on the model are one
                lambdas = (0.0, *LAMBDAS) if method == "data" else LAMBDAS
                runs += [dict(setting=setting, method=method, group_coef=coef, seed=seed, **base) for coef in lambdas]
    return runs


def result_runs(setting: str) -> Callable[[Sequence[int]], list[dict[str, Any]]]:
    """
    Return the function that makes the runs of a setting from their seeds.

    :param setting: a name of :data:`RESULT_SETTINGS`
    """
    lengths = {
        "drawn": dict(total_timesteps=122_880, n_evaluations=20),
        "drawn_large": dict(total_timesteps=122_880, n_evaluations=20),
        "rare": dict(total_timesteps=81_920, n_evaluations=40),
        "scaled": dict(total_timesteps=61_440, n_evaluations=10),
        "lander": dict(total_timesteps=524_288, n_evaluations=16),
        "lander_scaled": dict(total_timesteps=524_288, n_evaluations=16),
    }

    def runs(seeds: Sequence[int]) -> list[dict[str, Any]]:
        methods = [method for method, settings in METHODS.items() if setting in settings]
        return [dict(setting=setting, method=method, seed=seed, **lengths[setting]) for seed in seeds for method in methods]

    return runs


PARTS: dict[str, tuple[Callable[[Sequence[int]], list[dict[str, Any]]], range]] = {
    "ablation": (ablation_runs, ABLATION_SEEDS),
    **{setting: (result_runs(setting), LANDER_SEEDS if is_lander(setting) else SEEDS) for setting in RESULT_SETTINGS},
}


def main() -> None:
    """Run the parts that the command line names, print their tables and draw their pictures."""
    arguments = parse_parts(__doc__, PARTS)
    folder = result_folder(arguments)
    for part in arguments.parts:
        make_runs, seeds = PARTS[part]
        runs = make_runs(arguments.seeds or seeds)
        rows = run_part(run, runs, f"balance_{part}", arguments, total_timesteps=2048, n_evaluations=2)
        if part == "ablation":
            Console(width=150).print(*(ablation_table(rows, setting) for setting in ("drawn", "rare")))
            plot_ablation(rows, folder / "balance_ablation.png")
        else:
            Console(width=150).print(results_table(rows, part))
            unit, limits = ("return", (-300, 250)) if is_lander(part) else ("return of 500", (-20, 520))
            plot_curves(rows, METHODS, f"{part}: {unit}", limits, folder / f"balance_{part}.png")


if __name__ == "__main__":
    main()
