"""
Interrupt ``learn`` (SIGINT, as by Ctrl-C) at a random moment, and look at what is left.

The model is looked at, saved, loaded, evaluated and trained on.
"""

import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from benchmarks.lib.rows import Run
from benchmarks.robustness.cases.case import ONE_HOT
from benchmarks.robustness.faults import environment_state, faults_of, same_parameters
from benchmarks.robustness.guards import interrupted_after, limited, silenced
from benchmarks.robustness.models import SMALL, TASKS, package_commit
from benchmarks.robustness.records import CODES, Record, select
from benchmarks.robustness.restless import RestlessCallback
from sb3_grpo import GRPO, GroupEvalCallback, TaskSamplingCallback

INTERRUPTS_PER_ROW = 10


class Configuration:
    """
    Hold what a model is made of that is interrupted.

    :param env: name of the environments
    :param callbacks: makes the callbacks, of a folder
    :param n_envs: number of environments
    :param kwargs: of ``GRPO``
    """

    def __init__(
        self,
        env: str = TASKS,
        callbacks: Callable[[str], list[BaseCallback]] = lambda folder: [],
        n_envs: int = 4,
        **kwargs: Any,
    ):
        self.env, self.callbacks, self.n_envs, self.kwargs = env, callbacks, n_envs, kwargs


def evaluating(folder: str) -> list[BaseCallback]:
    """
    Return the callback of an evaluation that saves the best model.

    :param folder: folder of the model
    """
    env = make_vec_env(TASKS, 2)
    return [GroupEvalCallback(env, eval_freq=32, n_eval_episodes=4, best_model_save_path=folder, verbose=0)]


# groups are compared after every rollout
OFTEN: dict[str, Any] = dict(regroup_freq=1, regroup_warmup=0)
CONFIGURATIONS: dict[str, Configuration] = {
    "PPO": Configuration(),  # GRPO's arguments are left out
    "default": Configuration("CartPole-v1"),
    "one head": Configuration("CartPole-v1", n_groups=1),
    "merges and splits": Configuration(callbacks=lambda folder: [RestlessCallback()], **ONE_HOT, **OFTEN),
    "task sampling": Configuration(callbacks=lambda folder: [TaskSamplingCallback()], **ONE_HOT),
    "evaluation": Configuration(callbacks=evaluating, **ONE_HOT),
    "gSDE": Configuration("Pendulum-v1", use_sde=True, router="random", **OFTEN),
    "continuous actions": Configuration("Pendulum-v1", n_groups=4, **OFTEN),
    "group normalisation": Configuration(normalize_advantage="group", **ONE_HOT, **OFTEN),
    "all together": Configuration(
        callbacks=lambda folder: [RestlessCallback(), TaskSamplingCallback(), *evaluating(folder)],
        normalize_advantage="group",
        **ONE_HOT,
        **OFTEN,
    ),
}


def interrupt(configuration: str, code: str, seed: int, n_interrupts: int) -> dict[str, Any]:
    """
    Interrupt trainings at random moments, and look at the model after each.

    :param configuration: a name of :data:`CONFIGURATIONS`
    :param code: ``"before"`` or ``"after"``, which names the package that is measured
    :param seed: seed of the moments
    :param n_interrupts: number of interrupts
    :return: how many interrupts there were, after how many something was wrong, and what
    """
    random = np.random.default_rng(seed)
    faults: list[list[str]] = []
    for index in range(n_interrupts):
        with tempfile.TemporaryDirectory() as folder, limited(60), silenced():
            faults.append(interrupt_one(configuration, folder, seed * 1000 + index, float(random.uniform(0, 0.4))))
    kinds = Counter(fault for each in faults for fault in each)
    n_faulty = sum(bool(each) for each in faults)
    return {"interrupts": n_interrupts, "faulty": n_faulty, "faults": dict(kinds), "package": package_commit()}


def interrupt_one(name: str, folder: str, seed: int, delay: float) -> list[str]:
    """
    Interrupt one training, and return what was wrong afterwards.

    :param name: a name of :data:`CONFIGURATIONS`
    :param folder: folder of the files
    :param seed: seed of the training
    :param delay: seconds from the start of ``learn`` to the interrupt
    """
    configuration = CONFIGURATIONS[name]
    env = make_vec_env(configuration.env, configuration.n_envs, seed)
    algorithm = PPO if name == "PPO" else GRPO
    model = algorithm("MlpPolicy", env, seed=seed, **SMALL, **configuration.kwargs)
    callbacks = configuration.callbacks(folder)
    before = environment_state(env)
    with suppress(KeyboardInterrupt), interrupted_after(delay):
        model.learn(10**9, callbacks)
    faults = [] if environment_state(env) == before else ["odds of the tasks are not the environment's own"]
    if not th.is_grad_enabled():
        # the interrupt came while torch left a `no_grad`; later interrupts must be counted by themselves
        faults.append("torch computes no gradients any more")
        th.set_grad_enabled(True)
    eval_envs = [each.eval_env for each in callbacks if isinstance(each, EvalCallback)]
    if any(choice != "random" for each in eval_envs for choice in each.get_attr("task_choice")):
        faults.append("the evaluation environment still plays a chosen task")
    return faults + faults_of(model) + faults_of_use(model, callbacks, configuration, folder)


def faults_of_use(model: PPO, callbacks: list[BaseCallback], configuration: Configuration, folder: str) -> list[str]:
    """
    Save, load, evaluate and train a model, and return what was wrong.

    :param model: model after an interrupt
    :param callbacks: callbacks of its training
    :param configuration: what it is made of
    :param folder: folder of the files
    """
    env, faults = model.get_env(), []
    assert env is not None
    steps = 2 * SMALL["n_steps"] * env.num_envs
    try:
        model.save(Path(folder) / "model")
        loaded = type(model).load(Path(folder) / "model", env=env)
        if not same_parameters(model, loaded):
            faults.append("the loaded model differs")
        loaded.predict(np.asarray(env.reset()), deterministic=True)
        evaluate_policy(loaded, env, n_eval_episodes=1)
        loaded.learn(steps, configuration.callbacks(folder), reset_num_timesteps=False)
        model.learn(steps, callbacks, reset_num_timesteps=False)
        faults += [f"trained on: {fault}" for fault in faults_of(model)]
        faults += [f"loaded and trained on: {fault}" for fault in faults_of(loaded)]
    except Exception as error:  # any: it should have worked
        faults.append(f"{type(error).__name__}: {error}"[:150])
    return faults


def interrupt_runs(code: str) -> list[Run]:
    """
    Return the runs of all configurations.

    :param code: ``"before"`` or ``"after"``
    """
    return [
        dict(configuration=name, code=code, seed=seed, n_interrupts=INTERRUPTS_PER_ROW)
        for name in CONFIGURATIONS
        for seed in range(2)
    ]


def interrupt_table(records: list[Record]) -> Table:
    """
    Return the table of faults after interrupts.

    :param records: records of this part
    """
    table = Table("configuration", "code", "interrupts", "with faults", "faults", title="Interrupts")
    for name in CONFIGURATIONS:
        for code in CODES:
            if chosen := select(records, configuration=name, code=code):
                faults: Counter[str] = sum((Counter(row["faults"]) for row in chosen), Counter())
                sums = (sum(row[key] for row in chosen) for key in ("interrupts", "faulty"))
                table.add_row(name, code, *map(str, sums), "; ".join(f"{fault} ({n})" for fault, n in faults.most_common()))
    return table
