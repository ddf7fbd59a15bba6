"""
Does a study of RL Zoo's tuning find something better than the entry of ``sb3_grpo/zoo_configs/grpo.yml``, on seeds that
it has not seen?

The study (two of these at the same time, in one folder)::

    python -m sb3_grpo.zoo train --algo grpo --env sb3_grpo/TaskCartPole-v0 -n 16000 -optimize --max-total-trials 48 \\
        --n-startup-trials 10 --n-evaluations 4 --eval-episodes 20 --sampler tpe --pruner median --objective worst \\
        --storage study.log --study-name tasks --no-optim-plots --seed 1 --num-threads 1

It is kept as ``benchmarks/results/tuning_study.log``. A trial is one run, and the best of many single runs was lucky: the
best five are run again with other seeds, a step that was added when trial 30 had done badly on :data:`SEEDS`.
``python benchmarks/tuning.py`` does that, and compares the best then, and the best in the study, with the entry.
"""

from typing import Any

import numpy as np
import optuna
import yaml
from common import RESULTS, sweep
from measures import describe
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.env_util import make_vec_env

from sb3_grpo import GRPO, evaluate_groups
from sb3_grpo.zoo import convert_grpo_params

ENV = "sb3_grpo/TaskCartPole-v0"
STUDY = RESULTS / "tuning_study.log"
# the study has seen seed 1 and seeds that its workers drew from it and the time
VALIDATION_SEEDS, SEEDS = range(500, 504), range(400, 410)
N_BEST = 5
# training goes on after as many steps as a trial has
TRIAL_STEPS, MORE_STEPS = 16_000, 32_000
N_ENVS = 8
GROUPS: dict[str, Any] = dict(router="one_hot", router_kwargs=dict(columns=[4, 8]))
BEFORE: dict[str, Any] = dict(n_steps=128, normalize_advantage="group")


def load_study() -> optuna.Study:
    return optuna.load_study(study_name="tasks", storage=JournalStorage(JournalFileBackend(str(STUDY))))


def run(trial: int | None, seed: int, parts: list[int]) -> dict[str, Any]:
    """
    :param trial: number of the trial whose hyper-parameters are used; ``None``: those before the study
    :param parts: steps between evaluations
    :return: environment steps and returns per task of each evaluation
    """
    kwargs = BEFORE if trial is None else convert_grpo_params(load_study().trials[trial].params)
    env = make_vec_env(ENV, N_ENVS, seed=seed)
    model = GRPO("MlpPolicy", env, seed=seed, device="cpu", **GROUPS, **kwargs)
    steps: list[int] = []
    returns: list[list[float]] = []
    for part in parts:
        model.learn(part, reset_num_timesteps=not steps)
        evaluations = evaluate_groups(model, make_vec_env(ENV, N_ENVS, seed=seed + 10_000), n_eval_episodes=80)
        steps.append(model.num_timesteps)
        returns.append([evaluation.mean for evaluation in evaluations.values()])
    return {"steps": steps, "returns": returns}


def show_study(study: optuna.Study) -> None:
    states = {state: sum(trial.state == state for trial in study.trials) for state in TrialState}
    found = ", ".join(f"{number} {state.name.lower()}" for state, number in states.items() if number)
    print(f"{len(study.trials)} trials ({found}); best: number {study.best_trial.number}, {study.best_trial.value:.0f}")


def best_trials(study: optuna.Study) -> list[int]:
    complete = study.get_trials(states=[TrialState.COMPLETE])
    return [trial.number for trial in sorted(complete, key=lambda trial: -(trial.value or 0))][:N_BEST]


def show_entry(study: optuna.Study, trial: int) -> None:
    """As ``grpo.yml`` would have it."""
    params = convert_grpo_params(study.trials[trial].params)
    network = params.pop("policy_kwargs")
    # RL Zoo evaluates this string
    policy_kwargs = f"dict(net_arch={network['net_arch']}, activation_fn=nn.{network['activation_fn'].__name__})"
    print(f"trial {trial}:\n{yaml.safe_dump({**params, 'policy_kwargs': policy_kwargs})}")


def worst_tasks(rows: list[dict[str, Any]], trial: int | None, evaluation: int) -> list[float]:
    """
    :return: of each run the return of its worst task
    """
    return [min(row["result"]["returns"][evaluation]) for row in rows if row["run"]["trial"] == trial]


def main() -> None:
    path, study = RESULTS / "tuning.jsonl", load_study()
    show_study(study)
    best = best_trials(study)
    runs = [dict(trial=trial, seed=seed, parts=[TRIAL_STEPS]) for trial in best for seed in VALIDATION_SEEDS]
    rows = sweep(run, runs, path)
    validated = {trial: float(np.mean(worst_tasks(rows, trial, 0))) for trial in best}
    print("worst task of the best trials with other seeds:", {trial: round(value) for trial, value in validated.items()})
    chosen = max(validated, key=lambda trial: validated[trial])
    show_entry(study, chosen)

    compared = dict.fromkeys([None, best[0], chosen])
    runs = [dict(trial=trial, seed=s, parts=[TRIAL_STEPS, MORE_STEPS]) for trial in compared for s in SEEDS]
    rows = sweep(run, runs, path)
    table = Table("hyper-parameters", "seeds", "steps", "worst task", "mean of the tasks", title=ENV)
    for trial in compared:
        results = [row["result"] for row in rows if row["run"]["trial"] == trial]
        for index in range(2):
            means = [np.mean(result["returns"][index]) for result in results]
            columns = (describe(worst_tasks(rows, trial, index)), describe(means))
            name = "before" if trial is None else f"trial {trial}"
            table.add_row(name, str(len(results)), str(results[0]["steps"][index]), *columns)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
