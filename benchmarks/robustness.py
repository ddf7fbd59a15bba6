"""
What is lost when something goes wrong? PPO and GRPO with bad input, killed, interrupted and started again.

- bad_input: every case of ``bad_input.py``, with PPO too where PPO has it
- kills: the process is killed (SIGKILL) at a random moment, while it trains with checkpoints and a best model, or while it
  saves over one file again and again; then the newest files are loaded
- interrupts: ``learn`` is interrupted (SIGINT, as by Ctrl-C) at a random moment; then the model is looked at, saved, loaded,
  evaluated and trained on
- restarts: a training goes on in a new process, with another number of environments: the odds of ``TaskSamplingCallback``,
  and the best model of ``GroupEvalCallback``

``python benchmarks/robustness.py`` runs what has no row yet and prints the tables. A change of the package is measured with
rows of its own: ``--code before`` with ``PYTHONPATH`` set to the older code, ``--code after`` with the newer.
"""

import argparse
import functools
import math
import multiprocessing
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from bad_input import CASES, limited, outcome_of, silenced
from common import RESULTS, read_rows, sweep
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_grpo
from sb3_grpo import GRPO, GroupEvalCallback, RegroupCallback, TaskSamplingCallback
from sb3_grpo.regroup_plan import Merge, Split

ALGORITHMS: dict[str, Any] = {"PPO": PPO, "GRPO": GRPO}
ONE_HOT: dict[str, Any] = dict(router="one_hot", router_kwargs=dict(columns=(4, 8)))
TASKS = "sb3_grpo/TaskCartPole-v0"
SMALL: dict[str, Any] = dict(n_steps=32, batch_size=32, n_epochs=2, device="cpu")
KILLS_PER_ROW = 10
INTERRUPTS_PER_ROW = 10
LONGEST_WAIT = 60.0  # seconds that a child process may take to get ready


# ---- bad input


def try_case(case: str, algorithm: str, code: str) -> dict[str, Any]:
    """
    :return: see :func:`bad_input.outcome_of`
    """
    return {**outcome_of(CASES[case], ALGORITHMS[algorithm]), "package": package_commit()}


# ---- kills


def train_with_checkpoints(algorithm: str, folder: str, seed: int) -> None:
    """Train until killed, with a checkpoint every 16 steps and an evaluation every 32."""
    th.set_num_threads(1)
    env, eval_env = make_vec_env(TASKS, 4, seed), make_vec_env(TASKS, 2, seed)
    evaluation: Any = EvalCallback if algorithm == "PPO" else GroupEvalCallback
    callbacks = [
        CheckpointCallback(16, folder, name_prefix="model"),
        evaluation(eval_env, eval_freq=32, n_eval_episodes=2, best_model_save_path=folder, verbose=0),
    ]
    with silenced():
        make_model(algorithm, env, seed).learn(10**9, callbacks)


def save_over_and_over(algorithm: str, folder: str, seed: int) -> None:
    """Save a model to one file until killed."""
    th.set_num_threads(1)
    with silenced():
        model = make_model(algorithm, make_vec_env(TASKS, 4, seed), seed).learn(128)
        while True:
            model.save(Path(folder) / "model_steps")


def make_model(algorithm: str, env: Any, seed: int) -> Any:
    """
    :return: a model whose network has the size of SB3's default
    """
    options = {**SMALL, "seed": seed, **(ONE_HOT if algorithm == "GRPO" else {})}
    return ALGORITHMS[algorithm]("MlpPolicy", env, **options)


CHILDREN: dict[str, Callable[[str, str, int], None]] = {"training": train_with_checkpoints, "saving": save_over_and_over}


def kill(kind: str, algorithm: str, code: str, seed: int, n_kills: int) -> dict[str, Any]:
    """
    :param kind: ``"training"`` or ``"saving"``
    :return: how many of the newest checkpoints and best models could not be loaded, and how many files were left behind
    """
    random = np.random.default_rng(seed)
    destroyed: Counter[str] = Counter()
    n_left, errors = 0, []
    for index in range(n_kills):
        with tempfile.TemporaryDirectory() as folder:
            kill_one(kind, algorithm, folder, seed * 1000 + index, random)
            newest = max(Path(folder).glob("model_*.zip"), key=lambda path: path.stat().st_mtime_ns)
            for path in (newest, Path(folder) / "best_model.zip"):
                if path.exists():
                    try:
                        ALGORITHMS[algorithm].load(path, device="cpu")
                    except Exception as error:  # any: the file is lost to the user
                        destroyed["best model" if path.name == "best_model.zip" else "newest"] += 1
                        errors.append(f"{type(error).__name__}: {error}"[:100])
            n_left += len(list(Path(folder).glob(".*.part")))
    package = package_commit()
    return {"kills": n_kills, "destroyed": dict(destroyed), "left_behind": n_left, "errors": errors[:3], "package": package}


def kill_one(kind: str, algorithm: str, folder: str, seed: int, random: np.random.Generator) -> None:
    """
    Start a process and kill it at a random moment of the second (of the 0.2 seconds where it only saves) after its first file.
    """
    context = multiprocessing.get_context("forkserver")
    # children are forked from a process that has imported what takes time
    context.set_forkserver_preload(["sb3_grpo.envs.cartpole", "joblib", "tqdm.auto", "rich.table"])
    child = context.Process(target=CHILDREN[kind], args=(algorithm, folder, seed), daemon=True)
    child.start()
    try:
        wait_for(lambda: bool(list(Path(folder).glob("model_*.zip"))), child.is_alive)
        time.sleep(float(random.uniform(0, 1.0 if kind == "training" else 0.2)))
        assert child.is_alive()
    finally:
        child.kill()
        child.join()


def wait_for(condition: Callable[[], bool], alive: Callable[[], bool]) -> None:
    """
    :raises TimeoutError: if the condition is not met within ``LONGEST_WAIT`` seconds, or the process has ended
    """
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > LONGEST_WAIT or not alive():
            raise TimeoutError("the child process has not got ready")
        time.sleep(0.002)


# ---- interrupts


class RestlessCallback(RegroupCallback):
    """Merges and splits the same two groups at every look, whatever the probes say: there is always an event to interrupt."""

    def _plan(self, divergences: Any) -> list[Merge | Split]:
        if len(set(self._grpo.policy.cell_to_group.tolist())) == 4:
            return [Merge(keep=0, dropped=1, share=0.5, kl=0.0)]
        return [Split(group=0, new_group=1, cells=[1], kl=1.0)]


class Configuration:
    """
    What is interrupted.

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
    env = make_vec_env(TASKS, 2)
    return [GroupEvalCallback(env, eval_freq=32, n_eval_episodes=4, best_model_save_path=folder, verbose=0)]


LOOKING: dict[str, Any] = dict(regroup_freq=1, regroup_warmup=0)
CONFIGURATIONS: dict[str, Configuration] = {
    "PPO": Configuration(),  # GRPO's arguments are left out
    "default": Configuration("CartPole-v1"),
    "one head": Configuration("CartPole-v1", n_groups=1),
    "merges and splits": Configuration(callbacks=lambda folder: [RestlessCallback()], **ONE_HOT, **LOOKING),
    "task sampling": Configuration(callbacks=lambda folder: [TaskSamplingCallback()], **ONE_HOT),
    "evaluation": Configuration(callbacks=evaluating, **ONE_HOT),
    "gSDE": Configuration("Pendulum-v1", use_sde=True, router="random", **LOOKING),
    "continuous actions": Configuration("Pendulum-v1", n_groups=4, **LOOKING),
    "group normalisation": Configuration(normalize_advantage="group", **ONE_HOT, **LOOKING),
    "all together": Configuration(
        callbacks=lambda folder: [RestlessCallback(), TaskSamplingCallback(), *evaluating(folder)],
        normalize_advantage="group",
        **ONE_HOT,
        **LOOKING,
    ),
}


def interrupt(configuration: str, code: str, seed: int, n_interrupts: int) -> dict[str, Any]:
    """
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
    :param delay: seconds from the start of ``learn`` to the interrupt
    :return: what was wrong afterwards
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
        # the interrupt came while torch left a `no_grad`; later interrupts are to be counted by themselves
        faults.append("torch computes no gradients any more")
        th.set_grad_enabled(True)
    eval_envs = [each.eval_env for each in callbacks if isinstance(each, EvalCallback)]
    if any(choice != "random" for each in eval_envs for choice in each.get_attr("task_choice")):
        faults.append("the evaluation environment still plays a chosen task")
    faults += faults_of(model)
    try:
        model.save(Path(folder) / "model")
        loaded = algorithm.load(Path(folder) / "model", env=env)
        if not same_parameters(model, loaded):
            faults.append("the loaded model differs")
        loaded.predict(np.asarray(env.reset()), deterministic=True)
        evaluate_policy(loaded, env, n_eval_episodes=1)
        loaded.learn(2 * SMALL["n_steps"] * env.num_envs, configuration.callbacks(folder), reset_num_timesteps=False)
        model.learn(2 * SMALL["n_steps"] * env.num_envs, callbacks, reset_num_timesteps=False)
        faults += [f"trained on: {fault}" for fault in faults_of(model)]
        faults += [f"loaded and trained on: {fault}" for fault in faults_of(loaded)]
    except Exception as error:  # any: it should have worked
        faults.append(f"{type(error).__name__}: {error}"[:150])
    return faults


@contextmanager
def interrupted_after(delay: float) -> Iterator[None]:
    """A context in which Ctrl-C is pressed after ``delay`` seconds, and every 10 seconds while nobody listens."""

    def press(signum: int, frame: types.FrameType | None) -> None:
        signal.raise_signal(signal.SIGINT)

    handlers = {signal.SIGVTALRM: press, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    # counts the time in which this process computes; the alarm of the other timer is that of a time limit
    signal.setitimer(signal.ITIMER_VIRTUAL, max(delay, 1e-6), 10)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def environment_state(env: Any) -> list[Any]:
    """
    :return: odds of the tasks, and the tasks chosen, of each environment
    """
    if not env.has_attr("get_task_probabilities"):
        return []
    odds = [np.asarray(each).tolist() for each in env.env_method("get_task_probabilities")]
    return [odds, env.get_attr("task_choice")]


def faults_of(model: Any) -> list[str]:
    """
    :return: what is wrong with the model's parameters, its optimizer and its groups
    """
    policy = model.policy
    faults = optimizer_faults(policy)
    if not all(parameter.isfinite().all() for parameter in policy.parameters()):
        faults.append("parameters are not finite")
    if isinstance(model, GRPO):
        history = model.regroup_history
        expected = history[-1].cell_to_group if history else model.first_grouping
        if list(expected) != policy.cell_to_group.tolist():
            faults.append("the history of the groups does not end in the groups")
        if [record.group for record in model.groups] != sorted(set(policy.cell_to_group.tolist())):
            faults.append("groups are not those of the cells")
    return faults


def optimizer_faults(policy: Any) -> list[str]:
    """
    :return: what is wrong with the optimizer of a policy, an Adam
    """
    faults = []
    optimized = {id(parameter) for group in policy.optimizer.param_groups for parameter in group["params"]}
    if {id(parameter) for parameter in policy.parameters() if parameter.requires_grad} != optimized:
        faults.append("the optimizer's parameters are not the policy's")
    for parameter, moments in policy.optimizer.state.items():
        if not {"step", "exp_avg", "exp_avg_sq"} <= moments.keys():
            # Adam makes them one after the other in its first step
            faults.append("a moment is missing")
            continue
        for moment in (moments["exp_avg"], moments["exp_avg_sq"]):
            if moment.shape != parameter.shape:
                faults.append("a moment has another shape than its parameter")
            if not moment.isfinite().all():
                faults.append("moments are not finite")
    return list(dict.fromkeys(faults))


def same_parameters(model: Any, other: Any) -> bool:
    """
    :return: whether parameters and moments are equal, bit for bit
    """
    mine, theirs = model.policy.state_dict(), other.policy.state_dict()
    state, loaded = (each.policy.optimizer.state_dict()["state"] for each in (model, other))
    return (
        mine.keys() == theirs.keys()
        and all(th.equal(mine[name], theirs[name]) for name in mine)
        and state.keys() == loaded.keys()
        and all(state[key].keys() == loaded[key].keys() for key in state)
        and all(th.equal(state[key]["exp_avg"], loaded[key]["exp_avg"]) for key in state if "exp_avg" in state[key])
    )


# ---- restarts


class FirstOdds(BaseCallback):
    """Notes the odds with which the environments begin the first rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.odds: list[list[float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if not self.odds:
            self.odds = [np.asarray(each).tolist() for each in self.training_env.env_method("get_task_probabilities")]


def continue_sampling(algorithm: str, folder: str, n_envs: int) -> dict[str, Any]:
    """
    :return: the odds with which a loaded model goes on
    """
    first = FirstOdds()
    model = ALGORITHMS[algorithm].load(Path(folder) / "model", env=make_vec_env(TASKS, n_envs, 1))
    model.learn(model.n_steps * n_envs, [TaskSamplingCallback(), first], reset_num_timesteps=False)
    return {"odds": first.odds}


def continue_evaluating(algorithm: str, folder: str, n_envs: int) -> dict[str, Any]:
    """Go on with a model that has been made as bad as can be."""
    model = ALGORITHMS[algorithm].load(Path(folder) / "model", env=make_vec_env(TASKS, n_envs, 1), learning_rate=0.0)
    for parameter in model.policy.parameters():
        parameter.data.zero_()
    model.learn(4 * model.n_steps * n_envs, best_model_callback(algorithm, folder), reset_num_timesteps=False)
    return {}


def best_model_callback(algorithm: str, folder: str) -> Any:
    kwargs: dict[str, Any] = dict(eval_freq=64, n_eval_episodes=8, best_model_save_path=folder, verbose=0)
    if algorithm == "PPO":
        return EvalCallback(make_vec_env(TASKS, 4, 1), **kwargs)
    return GroupEvalCallback(make_vec_env(TASKS, 4, 1), best_by="worst", **kwargs)


CONTINUED: dict[str, Callable[[str, str, int], dict[str, Any]]] = {
    "task sampling": continue_sampling,
    "best model": continue_evaluating,
}


def restart(kind: str, algorithm: str, code: str, n_envs: int, seed: int) -> dict[str, Any]:
    """
    :param kind: ``"task sampling"`` or ``"best model"``
    :param n_envs: number of environments after the restart; it was 4 before
    :return: whether what was known before is lost afterwards, and how that shows
    """
    with tempfile.TemporaryDirectory() as folder, silenced():
        env = make_vec_env(TASKS, 4, seed)
        model = make_model(algorithm, env, seed)
        best = best_model_callback(algorithm, folder)
        sampling = TaskSamplingCallback()
        model.learn(2048, [sampling] if kind == "task sampling" else best)
        model.save(Path(folder) / "model")
        file = Path(folder) / "best_model.zip"
        content = file.read_bytes() if file.exists() else b""
        error, continued = in_new_process(kind, algorithm, folder, n_envs)
        result: dict[str, Any] = {"error": error, "package": package_commit()}
        if kind == "task sampling":
            odds = np.asarray(continued.get("odds", [[math.nan] * 4]))
            difference = float(np.abs(odds - sampling.probabilities).max())
            result.update(odds_before=sampling.probabilities.round(4).tolist(), odds_after=odds[0].round(4).tolist())
            result["lost"] = bool(error) or not difference < 1e-6
        else:
            result["lost"] = bool(error) or file.read_bytes() != content
        return result


def in_new_process(kind: str, algorithm: str, folder: str, n_envs: int) -> tuple[str, dict[str, Any]]:
    """
    :return: the error if there was one, and what the process has found
    """
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe(duplex=False)
    child = context.Process(target=tell, args=(its, kind, algorithm, folder, n_envs))
    child.start()
    its.close()
    try:
        return mine.recv()
    finally:
        child.join()


def tell(connection: Any, kind: str, algorithm: str, folder: str, n_envs: int) -> None:
    """Go on in this process, and send what was found."""
    th.set_num_threads(1)
    try:
        with silenced():
            connection.send(("", CONTINUED[kind](algorithm, folder, n_envs)))
    except Exception as error:  # any: it is what was found
        connection.send((f"{type(error).__name__}: {error}"[:150], {}))


# ---- all of them


@functools.cache
def package_commit() -> str:
    """
    :return: commit of the package that is measured, with "-dirty" where its code differs from it
    """
    folder = Path(sb3_grpo.__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603 (git with arguments from here)

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if git("diff", "--name-only", "HEAD", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


Runs = list[dict[str, Any]]


def bad_input_runs(code: str) -> Runs:
    both = [dict(case=case.name, algorithm=name, code=code) for case in CASES.values() for name in ALGORITHMS]
    return [run for run in both if run["algorithm"] == "GRPO" or not CASES[run["case"]].own]


def kill_runs(code: str) -> Runs:
    rows = {"training": 5, "saving": 10}
    return [
        dict(kind=kind, algorithm=algorithm, code=code, seed=seed, n_kills=KILLS_PER_ROW)
        for algorithm in ALGORITHMS
        for kind, n in rows.items()
        for seed in range(n)
    ]


def interrupt_runs(code: str) -> Runs:
    return [
        dict(configuration=name, code=code, seed=seed, n_interrupts=INTERRUPTS_PER_ROW)
        for name in CONFIGURATIONS
        for seed in range(2)
    ]


def restart_runs(code: str) -> Runs:
    return [
        dict(kind=kind, algorithm=algorithm, code=code, n_envs=n_envs, seed=0)
        for kind in CONTINUED
        for algorithm in ALGORITHMS
        for n_envs in (4, 2, 8)
    ]


PARTS: dict[str, tuple[Callable[..., dict[str, Any]], Callable[[str], Runs]]] = {
    "bad_input": (try_case, bad_input_runs),
    "kills": (kill, kill_runs),
    "interrupts": (interrupt, interrupt_runs),
    "restarts": (restart, restart_runs),
}
CODES = ("before", "after")


def rows_of(part: str, folder: Path) -> list[dict[str, Any]]:
    """
    :return: run and result of each row as one dict; the last where a run was made again
    """
    rows = {str(row["run"]): {**row["run"], **row["result"]} for row in read_rows(folder / f"robustness_{part}.jsonl")}
    return list(rows.values())


def bad_input_table(rows: list[dict[str, Any]]) -> Table:
    """
    :return: how many kinds of input had which outcome
    """
    table = Table(title="Bad input")
    for column in ("kinds", "algorithm", "code", "number", "clear", "obscure", "silent", "fine", "refused"):
        table.add_column(column)
    for own in (False, True):
        for algorithm in ALGORITHMS:
            for code in CODES:
                chosen = [r for r in rows if (r["algorithm"], r["code"]) == (algorithm, code)]
                found = Counter(r["outcome"] for r in chosen if r["case"] in CASES and CASES[r["case"]].own == own)
                if found:
                    numbers = (found[name] for name in ("clear", "obscure", "silent", "fine", "refused"))
                    kinds = "only GRPO has" if own else "PPO has too"
                    table.add_row(kinds, algorithm, code, str(found.total()), *map(str, numbers))
    return table


def what_is_left(rows: list[dict[str, Any]], code: str) -> Table:
    """
    :return: kinds of input that GRPO does not answer clearly, and what becomes of them
    """
    table = Table(title=f"What GRPO does not answer clearly, {code}")
    for column in ("kind", "GRPO", "PPO", "error", "raised in"):
        table.add_column(column)
    ppo = {row["case"]: row["outcome"] for row in rows if (row["algorithm"], row["code"]) == ("PPO", code)}
    for row in rows:
        if (row["algorithm"], row["code"]) == ("GRPO", code) and row["outcome"] in ("obscure", "silent", "refused"):
            message = f"{row['error']}: {row['message']}"[:100] if row["error"] else row["message"]
            table.add_row(row["case"], row["outcome"], ppo.get(row["case"], ""), message, row["where"])
    return table


def kill_table(rows: list[dict[str, Any]]) -> Table:
    """
    :return: how many files were destroyed
    """
    table = Table(title="Kills")
    for column in ("killed while", "algorithm", "code", "kills", "newest file lost", "best model lost", "parts left behind"):
        table.add_column(column)
    for kind in CHILDREN:
        for algorithm in ALGORITHMS:
            for code in CODES:
                chosen = [r for r in rows if (r["kind"], r["algorithm"], r["code"]) == (kind, algorithm, code)]
                if chosen:
                    lost = sum((Counter(row["destroyed"]) for row in chosen), Counter())
                    sums = (sum(r["kills"] for r in chosen), lost["newest"], lost["best model"])
                    table.add_row(kind, algorithm, code, *map(str, sums), str(sum(r["left_behind"] for r in chosen)))
    return table


def interrupt_table(rows: list[dict[str, Any]]) -> Table:
    """
    :return: after how many interrupts something was wrong
    """
    table = Table(title="Interrupts")
    for column in ("configuration", "code", "interrupts", "with faults", "faults"):
        table.add_column(column)
    for name in CONFIGURATIONS:
        for code in CODES:
            chosen = [r for r in rows if (r["configuration"], r["code"]) == (name, code)]
            if chosen:
                faults = sum((Counter(row["faults"]) for row in chosen), Counter())
                sums = (sum(row[key] for row in chosen) for key in ("interrupts", "faulty"))
                table.add_row(name, code, *map(str, sums), "; ".join(f"{fault} ({n})" for fault, n in faults.most_common()))
    return table


def restart_table(rows: list[dict[str, Any]]) -> Table:
    """
    :return: after how many restarts something was lost
    """
    table = Table(title="Restarts")
    for column in ("what", "algorithm", "code", "restarts", "lost", "errors"):
        table.add_column(column)
    for kind in CONTINUED:
        for algorithm in ALGORITHMS:
            for code in CODES:
                chosen = [r for r in rows if (r["kind"], r["algorithm"], r["code"]) == (kind, algorithm, code)]
                if chosen:
                    errors = sorted({row["error"] for row in chosen} - {""})
                    lost = sum(row["lost"] for row in chosen)
                    table.add_row(kind, algorithm, code, str(len(chosen)), str(lost), "; ".join(errors))
    return table


def tables(folder: Path) -> Iterator[Table]:
    """
    :param folder: of the rows
    :return: a table for every part that has rows
    """
    bad_input = rows_of("bad_input", folder)
    if bad_input:
        yield bad_input_table(bad_input)
        yield what_is_left(bad_input, CODES[-1])
    drawn: dict[str, Callable[[list[dict[str, Any]]], Table]] = dict(
        kills=kill_table, interrupts=interrupt_table, restarts=restart_table
    )
    for part, draw in drawn.items():
        if rows := rows_of(part, folder):
            yield draw(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--code", choices=CODES, default="after", help="what the rows are called")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    parser.add_argument("--report", action="store_true", help="only the tables of the rows that are there")
    arguments = parser.parse_args()
    # to compile what is misspelt would take longer than everything else
    th.compiler.set_stance("force_eager")
    if not arguments.report:
        for part in arguments.part:
            function, runs = PARTS[part]
            # signals arrive in the main thread of this process
            sweep(function, runs(arguments.code), arguments.results / f"robustness_{part}.jsonl", jobs=1)
    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in tables(arguments.results):
        console.print(table)


if __name__ == "__main__":
    main()
