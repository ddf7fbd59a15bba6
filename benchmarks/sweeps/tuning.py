r"""
Compare the best trials of RL Zoo's tuning with the entry of ``grpo.yml``, on seeds that the studies have not seen.

The first study (two of these at the same time, in one folder)::

    python -m sb3_grpo.zoo train --algo grpo --env sb3_grpo/TaskCartPole-v0 -n 16000 -optimize --max-total-trials 48 \
        --n-startup-trials 10 --n-evaluations 4 --eval-episodes 20 --sampler tpe --pruner median --objective worst \
        --storage study.log --study-name tasks --no-optim-plots --seed 1 --num-threads 1

The second differs in ``-n 16384 --max-total-trials 64 --n-startup-trials 16 --eval-episodes 40 --study-name again --seed 2
--fix batch_size_pow:6 n_epochs:10``: a step costs what it costs with the entry, whose values are the study's first trial
(``study.enqueue_trial``). Their files are ``benchmarks/results/tuning_*_study.log``.

A trial is one run, and the best of many single runs was lucky: the best few are run again with other seeds. (In the first
study that step was added when trial 30 had done badly on the seeds of the comparison; for the second it was planned.)
``python -m benchmarks.sweeps.tuning`` does that, and compares the best then, and the best in the study, with the entry before.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.lib.measures import describe
from benchmarks.lib.rows import RESULTS, Row, Run, select
from benchmarks.lib.sweep import parse_parts, sweep
from benchmarks.lib.training import train_and_evaluate
from benchmarks.lib.zoo import convert_grpo_params
from sb3_grpo import GRPO, evaluate_groups

ENV, N_ENVS = "sb3_grpo/TaskCartPole-v0", 8
# columns of the observation that show the task
COLUMNS = (4, 8)
# the entry before the studies
BEFORE: dict[str, Any] = dict(n_steps=128, normalize_advantage="group")


class Tuned(NamedTuple):
    """A study, and how its best trials are compared."""

    name: str  # of the study, in its file
    n_best: int  # trials that are run again
    validation_seeds: range
    seeds: range  # of the comparison; nothing is chosen by them
    parts: tuple[int, int]  # steps of a trial, and how many more the comparison trains


STUDIES = {
    "cartpole": Tuned("tasks", 5, range(500, 504), range(400, 410), (16_000, 32_000)),
    "cartpole_again": Tuned("again", 10, range(510, 515), range(410, 420), (16_384, 32_768)),
}


def load_study(study: str) -> optuna.Study:
    """
    Return a study from its file.

    :param study: a name of :data:`STUDIES`
    """
    file = RESULTS / f"tuning_{study}_study.log"
    return optuna.load_study(study_name=STUDIES[study].name, storage=JournalStorage(JournalFileBackend(str(file))))


def run(trial: int | None, seed: int, parts: list[int], study: str = "cartpole") -> dict[str, Any]:
    """
    Train with the hyper-parameters of a trial, and evaluate each task over 20 episodes.

    :param trial: number of the trial; ``None``: the hyper-parameters before the study
    :param seed: seed of model and environments
    :param parts: steps between evaluations
    :param study: a name of :data:`STUDIES`
    :return: ``steps`` and ``returns`` per task of each evaluation
    """
    kwargs = BEFORE if trial is None else convert_grpo_params(load_study(study).trials[trial].params)
    groups: dict[str, Any] = dict(router="one_hot", router_kwargs=dict(columns=list(COLUMNS)))
    env = make_vec_env(ENV, N_ENVS, seed=seed)
    model = GRPO("MlpPolicy", env, seed=seed, device="cpu", **groups, **kwargs)

    def evaluate(index: int) -> list[float]:
        evaluations = evaluate_groups(model, make_vec_env(ENV, N_ENVS, seed=seed + 10_000), n_eval_episodes=80)
        return [evaluation.mean for evaluation in evaluations.values()]

    return train_and_evaluate(model, parts, evaluate)


def show_study(study: optuna.Study) -> None:
    """
    Print the number of trials and the best of them.

    :param study: study to describe
    """
    states = {state: sum(trial.state == state for trial in study.trials) for state in TrialState}
    found = ", ".join(f"{number} {state.name.lower()}" for state, number in states.items() if number)
    print(f"{len(study.trials)} trials ({found}); best: number {study.best_trial.number}, {study.best_trial.value:.0f}")


def best_trials(study: optuna.Study, n_best: int) -> list[int]:
    """
    Return the numbers of the best complete trials, best first.

    :param study: study with the trials
    :param n_best: how many are wanted
    """
    complete = study.get_trials(states=[TrialState.COMPLETE])
    return [trial.number for trial in sorted(complete, key=lambda trial: -(trial.value or 0))][:n_best]


def show_entry(study: optuna.Study, trial: int) -> None:
    """
    Print the hyper-parameters of a trial as an entry of ``grpo.yml``.

    :param study: study with the trial
    :param trial: number of the trial
    """
    params = convert_grpo_params(study.trials[trial].params)
    network = params.pop("policy_kwargs")
    # RL Zoo evaluates this string
    policy_kwargs = f"dict(net_arch={network['net_arch']}, activation_fn=nn.{network['activation_fn'].__name__})"
    print(f"trial {trial}:\n{yaml.safe_dump({**params, 'policy_kwargs': policy_kwargs})}")


def worst_tasks(rows: list[Row], trial: int | None, evaluation: int) -> list[float]:
    """
    Return the return of the worst task, for each run of a trial.

    :param rows: rows of a study
    :param trial: number of the trial; ``None``: the hyper-parameters before the study
    :param evaluation: index of the evaluation
    """
    return [min(row["result"]["returns"][evaluation]) for row in select(rows, trial=trial)]


def choose(rows: list[Row], trials: list[int]) -> int:
    """
    Return the trial with the highest mean return of the worst task.

    :param rows: rows of the runs with validation seeds
    :param trials: numbers of the trials
    """
    validated = {trial: float(np.mean(worst_tasks(rows, trial, 0))) for trial in trials}
    print("worst task of the best trials with other seeds:", {trial: round(value) for trial, value in validated.items()})
    return max(validated, key=lambda trial: validated[trial])


def comparison_table(rows: list[Row], title: str = "") -> Table:
    """
    Return the table of the trials that are compared.

    :param rows: rows of a study; those of validation seeds, which chose the trial, are left out
    :param title: title of the table
    """
    table = Table("hyper-parameters", "seeds", "steps", "worst task", "mean of the tasks", title=title)
    rows = [row for row in rows if len(row["run"]["parts"]) > 1]
    for trial in dict.fromkeys(row["run"]["trial"] for row in rows):
        results = [row["result"] for row in select(rows, trial=trial)]
        for index in range(2):
            means = [np.mean(result["returns"][index]) for result in results]
            columns = (describe(worst_tasks(rows, trial, index)), describe(means))
            name = "before" if trial is None else f"trial {trial}"
            table.add_row(name, str(len(results)), str(results[0]["steps"][index]), *columns)
    return table


def make_runs(study: str, trials: Sequence[int | None], seeds: Sequence[int], n_parts: int) -> list[Run]:
    """
    Return the runs of some trials.

    :param study: a name of :data:`STUDIES`
    :param trials: numbers of the trials; ``None``: the hyper-parameters before the study
    :param seeds: seeds of the runs
    :param n_parts: 1: as long as in the study; 2: as long as in the comparison
    """
    # the rows of the first study do not name it
    named = {} if study == "cartpole" else {"study": study}
    parts = list(STUDIES[study].parts[:n_parts])
    return [dict(trial=trial, seed=seed, parts=parts, **named) for trial in trials for seed in seeds]


def main() -> None:
    """Run what has no row yet of the studies that the command line names, and print their tables."""
    arguments = parse_parts(__doc__, STUDIES)
    for part in arguments.parts:
        tuned, study, path = STUDIES[part], load_study(part), RESULTS / f"tuning_{part}.jsonl"
        show_study(study)
        best = best_trials(study, tuned.n_best)
        chosen = choose(sweep(run, make_runs(part, best, tuned.validation_seeds, 1), path, arguments.jobs), best)
        show_entry(study, chosen)
        compared = list(dict.fromkeys([None, best[0], chosen]))
        rows = sweep(run, make_runs(part, compared, tuned.seeds, 2), path, arguments.jobs)
        Console(width=120).print(comparison_table(rows, ENV))


if __name__ == "__main__":
    main()
