"""
Does the worst task get better without the mean getting worse? And which lever does it: the loss, the trust region, the step
size, or the data?

``python benchmarks/balance.py`` runs what is missing, prints the tables and draws the pictures; ``--parts ablation`` is
the comparison of levers and lambdas, with seeds of its own, the other parts are the results. PPO's hyper-parameters are
SB3's defaults, with 1024 steps per rollout; GRPO has the same.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch as th
from common import RESULTS, parse_parts, run_part
from measures import describe, iqm, iqm_interval
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_grpo import GRPO, TaskSamplingCallback, evaluate_groups
from sb3_grpo.buffers import GroupRolloutBufferSamples
from sb3_grpo.heads import HEAD_DIMS, split_heads
from sb3_grpo.losses import GroupBalance, group_means, group_std
from sb3_grpo.update import FlatUpdate, Update, UpdateTerms

N_TASKS = 4
ABLATION_SEEDS, SEEDS, LANDER_SEEDS = range(200, 206), range(10), range(5)
LAMBDAS = (0.005, 0.02, 0.1, 0.5)
CARTPOLE, LANDER = "sb3_grpo/TaskCartPole-v0", "sb3_grpo/TaskLunarLander-v0"
IN_TURN = ["random"] * 8
# of 16 environments two play tasks 1 and 3 (the inverted ones), the others tasks 0 and 2
RARE = [0, 2] * 7 + [1, 3]
SCALES = (1.0, 1.0, 10.0, 0.1)
# RL Zoo's hyper-parameters for PPO
LANDER_KWARGS: dict[str, Any] = dict(n_steps=1024, batch_size=64, gae_lambda=0.98, gamma=0.999, n_epochs=4, ent_coef=0.01)
# which task each training environment plays, the scales of the rewards, steps per environment and rollout
SETTINGS: dict[str, dict[str, Any]] = {
    "drawn": dict(env=CARTPOLE, play=IN_TURN, kwargs=dict(n_steps=128)),
    # hyper-parameters that suit PPO better here
    "drawn_large": dict(env=CARTPOLE, play=IN_TURN, kwargs=dict(n_steps=256, batch_size=256, learning_rate=1e-3)),
    "rare": dict(env=CARTPOLE, play=RARE, kwargs=dict(n_steps=64)),
    "scaled": dict(env=CARTPOLE, play=IN_TURN, scales=SCALES, kwargs=dict(n_steps=128)),
    # the task with the largest rewards has 300 times those of the one with the smallest
    "wide": dict(env=CARTPOLE, play=IN_TURN, scales=(1.0, 30.0, 0.1, 1.0), kwargs=dict(n_steps=128)),
    "lander": dict(env=LANDER, play=["random"] * 16, kwargs=LANDER_KWARGS),
    "lander_scaled": dict(env=LANDER, play=["random"] * 16, scales=SCALES, kwargs=LANDER_KWARGS),
}
# those of the tables; "wide" is a part of balancing_rules.py
RESULT_SETTINGS = tuple(setting for setting in SETTINGS if setting != "wide")
SOLVED = 400
REDUCTIONS: dict[str, Callable[..., Any]] = {"worst task": np.min, "mean of the tasks": np.mean}


class StepSizeGRPO(GRPO):
    """The weight of a group is a factor on the steps of its action head instead of its loss."""

    def _compare_groups(self) -> tuple[Any, GroupBalance]:
        rollout, balance = super()._compare_groups()
        self.head_weights = th.ones(self.policy.max_groups)
        self.head_weights[th.as_tensor(balance.groups)] = th.as_tensor(balance.weights).float()
        return rollout._replace(weights=th.ones_like(rollout.weights)), balance

    def _make_update(self, max_kl: float | None) -> Update:
        update = super()._make_update(max_kl)
        assert isinstance(update, FlatUpdate)
        return ScaledHeads(update, self.head_weights)


class ScaledHeads:
    """
    :param update: takes the steps
    :param head_weights: factor on the steps of each action head, shape ``(n_heads,)``
    """

    def __init__(self, update: FlatUpdate, head_weights: th.Tensor):
        self.update = update
        factors = []
        for name, parameter in zip(update.names, update.parameters, strict=True):
            factor = th.ones_like(parameter)
            if name in HEAD_DIMS and not name.startswith("value_net"):
                heads = split_heads(factor, HEAD_DIMS[name], len(head_weights))
                heads *= head_weights.view(-1, *[1] * (heads.ndim - 1))
            factors.append(factor.flatten())
        self.factor = th.cat(factors)

    def __enter__(self) -> Update:
        self.update.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.update.__exit__()

    def __call__(self, batch: GroupRolloutBufferSamples, clip_range: float, clip_range_vf: float | None) -> UpdateTerms:
        before = self.update.flat.clone()
        terms = self.update(batch, clip_range, clip_range_vf)
        self.update.flat.copy_(th.lerp(before, self.update.flat, self.factor))
        return terms


class TrustRegionGRPO(GRPO):
    """The weight of a group is a factor on its clip range instead of its loss."""

    def _surrogate(self, ratio: th.Tensor, advantages: th.Tensor, weights: th.Tensor, clip_range: float) -> th.Tensor:
        region = clip_range * weights
        return th.min(advantages * ratio, advantages * th.clamp(ratio, 1 - region, 1 + region))


class TaskNormalisedBuffer(RolloutBuffer):
    """Advantages of PPO normalised per task, which the last columns of the observation show."""

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        super().compute_returns_and_advantage(last_values, dones)
        tasks = self.observations[..., -N_TASKS:].argmax(axis=-1).ravel()
        advantages, steps = self.advantages.ravel(), np.bincount(tasks, minlength=N_TASKS)
        means, deviations = (statistic(advantages, tasks, steps)[tasks] for statistic in (group_means, group_std))
        self.advantages = ((advantages - means) / (deviations + 1e-8)).astype(np.float32).reshape(self.advantages.shape)


def is_lander(setting: str) -> bool:
    return SETTINGS[setting]["env"] == LANDER


def make_env(setting: str, seed: int) -> VecEnv:
    given = SETTINGS[setting]
    env = gym.make(given["env"])
    tasks = env.get_wrapper_attr("tasks")
    tasks = [{**task, "reward_scale": scale} for task, scale in zip(tasks, given.get("scales", [1.0] * N_TASKS), strict=True)]
    return make_vec_env_of(given["env"], [dict(tasks=tasks, task=play) for play in given["play"]], seed)


def make_vec_env_of(env_id: str, env_kwargs: list[dict[str, Any]], seed: int) -> VecEnv:
    """As SB3's ``make_vec_env``, with arguments of its own for each environment."""

    def maker(kwargs: dict[str, Any]) -> Callable[[], gym.Env]:
        return lambda: Monitor(gym.make(env_id, **kwargs))

    env = DummyVecEnv([maker(kwargs) for kwargs in env_kwargs])
    env.seed(seed)
    return env


def head_per_task(env: VecEnv) -> dict[str, Any]:
    """
    :return: arguments of GRPO for an environment whose last columns show the task; compiled: the same within rounding,
        and faster
    """
    assert env.observation_space.shape is not None
    (width,) = env.observation_space.shape
    return dict(
        router="one_hot", router_kwargs=dict(columns=(width - N_TASKS, width)), normalize_advantage="group", compile=True
    )


def make_model(method: str, group_coef: float | None, env: VecEnv, **kwargs: Any) -> tuple[PPO, list[Any]]:
    """
    :param method: a name of :data:`METHODS` or of :data:`LEVERS`
    :param group_coef: lambda of a lever; ``None``: what the method has
    :return: the model, and callbacks to train it with
    """
    groups = head_per_task(env)
    if method == "step size":
        # what ScaledHeads changes cannot be compiled
        groups["compile"] = False
    if method in LEVERS:
        # what is compared is what balance does to groups that stay as they are
        groups.update(merge_kl=None, split_kl=None)
        assert group_coef is not None
        algorithm, in_loss, in_data = LEVERS[method]
        callbacks: list[Any] = [TaskSamplingCallback(group_coef)] if in_data else []
        return algorithm("MlpPolicy", env, **groups, **kwargs, group_coef=group_coef if in_loss else 0.0), callbacks
    callbacks = [TaskSamplingCallback()] if "sampling" in method else []
    if method.startswith("PPO"):
        if "by task" in method:
            kwargs.update(rollout_buffer_class=TaskNormalisedBuffer, normalize_advantage=False)
        if "rewards" in method:
            env = VecNormalize(env, norm_obs=False, gamma=kwargs.get("gamma", 0.99))
        return PPO("MlpPolicy", env, **kwargs), callbacks
    if "no balance" in method:
        groups["group_coef"] = 0.0
    return GRPO("MlpPolicy", env, **groups, **kwargs), callbacks


# class, whether lambda is in the model, and whether it is in the sampling of tasks
LEVERS: dict[str, tuple[type[GRPO], bool, bool]] = {
    "loss": (GRPO, True, False),
    "trust region": (TrustRegionGRPO, True, False),
    "step size": (StepSizeGRPO, True, False),
    "data": (GRPO, False, True),
    "loss and data": (GRPO, True, True),
}
# the settings in which a method says something: tasks are sampled where environments draw them, rewards normalised where
# they differ in scale; LunarLander takes too long for what did nothing elsewhere
DRAWN = ("drawn", "drawn_large", "scaled", "lander")
COMPLETE = ("drawn", "scaled", "lander", "rare")
METHODS: dict[str, tuple[str, ...]] = {
    "PPO": RESULT_SETTINGS,
    "PPO, task sampling": DRAWN,
    "PPO, advantages normalised by task": COMPLETE,
    "PPO, rewards normalised": ("scaled", "lander_scaled"),
    "GRPO": RESULT_SETTINGS,
    "GRPO, no balance": COMPLETE,
    "GRPO, task sampling": ("drawn", "scaled"),
}


def run(
    setting: str, method: str, seed: int, total_timesteps: int, n_evaluations: int, group_coef: float | None = None
) -> dict[str, Any]:
    """
    :return: as :func:`train_and_evaluate`
    """
    model, callbacks = make_model(
        method, group_coef, make_env(setting, seed), seed=seed, device="cpu", **SETTINGS[setting]["kwargs"]
    )
    return train_and_evaluate(model, callbacks, setting, seed, total_timesteps, n_evaluations)


def train_and_evaluate(
    model: PPO, callbacks: list[Any], setting: str, seed: int, total_timesteps: int, n_evaluations: int
) -> dict[str, Any]:
    """
    :return: environment steps and returns per task (all reward scales 1) of each evaluation: 4 episodes a task, half way
        through and after training 20; number of groups after training
    """
    eval_env = make_vec_env_of(SETTINGS[setting]["env"], [{}] * 16, seed + 10_000)
    steps, returns = [], []
    for part in range(n_evaluations):
        model.learn(total_timesteps // n_evaluations, callbacks, reset_num_timesteps=part == 0)
        episodes = N_TASKS * (20 if part + 1 in (n_evaluations // 2, n_evaluations) else 4)
        steps.append(model.num_timesteps)
        returns.append([round(evaluation.mean, 1) for evaluation in evaluate_groups(model, eval_env, episodes).values()])
    result: dict[str, Any] = {"steps": steps, "returns": returns}
    if isinstance(model, GRPO):
        result["groups"] = len(model.policy.active_groups)
    return result


def ablation_runs(seeds: list[int]) -> list[dict[str, Any]]:
    """On "rare" the environments do not draw their tasks: no lever on the data can be tried there."""
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


def result_runs(setting: str) -> Callable[[list[int]], list[dict[str, Any]]]:
    lengths = {
        "drawn": dict(total_timesteps=122_880, n_evaluations=20),
        "drawn_large": dict(total_timesteps=122_880, n_evaluations=20),
        "rare": dict(total_timesteps=81_920, n_evaluations=40),
        "scaled": dict(total_timesteps=61_440, n_evaluations=10),
        "lander": dict(total_timesteps=524_288, n_evaluations=16),
        "lander_scaled": dict(total_timesteps=524_288, n_evaluations=16),
    }

    def runs(seeds: list[int]) -> list[dict[str, Any]]:
        methods = [method for method, settings in METHODS.items() if setting in settings]
        return [dict(setting=setting, method=method, seed=seed, **lengths[setting]) for seed in seeds for method in methods]

    return runs


PARTS: dict[str, tuple[Callable[[list[int]], list[dict[str, Any]]], range]] = {
    "ablation": (ablation_runs, ABLATION_SEEDS),
    **{setting: (result_runs(setting), LANDER_SEEDS if is_lander(setting) else SEEDS) for setting in RESULT_SETTINGS},
}


def curves(rows: list[dict[str, Any]], reduce: Callable[..., Any]) -> np.ndarray:
    """
    :param reduce: ``np.min`` or ``np.mean``, over the tasks
    :return: shape ``(n_runs, n_evaluations)``
    """
    return reduce(np.array([row["result"]["returns"] for row in rows]), axis=2)


def steps_to_solve(rows: list[dict[str, Any]]) -> list[float]:
    """
    :return: for each run, the steps after which for the first time every task reached :data:`SOLVED` in an evaluation;
        infinite where that never happened
    """
    steps = [np.append(row["result"]["steps"], np.inf) for row in rows]
    solved = [np.append(worst >= SOLVED, True) for worst in curves(rows, np.min)]
    return [float(given[when.argmax()]) for given, when in zip(steps, solved, strict=True)]


def largest_drop(rows: list[dict[str, Any]]) -> float:
    """
    :return: by how much, of all tasks and runs, a return after training is lower than half way through
    """
    returns = np.array([row["result"]["returns"] for row in rows])
    return float((returns[:, returns.shape[1] // 2 - 1] - returns[:, -1]).max())


def describe_steps(steps: list[float]) -> str:
    """
    :return: median in thousands, and in how many runs it was reached at all
    """
    reached = [value for value in steps if np.isfinite(value)]
    median = float(np.median(steps))
    return (
        f"{median / 1000:.0f}k ({len(reached)} of {len(steps)})"
        if np.isfinite(median)
        else f"never ({len(reached)} of {len(steps)})"
    )


def by_method(rows: list[dict[str, Any]], methods: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """
    :param methods: in the order that is wanted
    :return: rows by method, of methods that have some
    """
    found = {method: [row for row in rows if row["run"]["method"] == method] for method in methods}
    return {method: own for method, own in found.items() if own}


def results_table(rows: list[dict[str, Any]], title: str = "") -> Table:
    columns = (
        "method",
        "seeds",
        "worst, half way",
        "worst, end",
        "mean, end",
        "worst over training",
        f"all above {SOLVED}",
        "largest drop",
    )
    table = Table(*columns, title=title)
    for method, own in by_method(rows, METHODS).items():
        worst, mean = curves(own, np.min), curves(own, np.mean)
        half_way = worst.shape[1] // 2 - 1
        values = map(describe, (worst[:, half_way], worst[:, -1], mean[:, -1], worst.mean(axis=1)))
        solved = "" if is_lander(own[0]["run"]["setting"]) else describe_steps(steps_to_solve(own))
        table.add_row(method, str(len(own)), *values, solved, f"{largest_drop(own):.0f}")
    return table


def plot_curves(
    rows: list[dict[str, Any]], methods: Iterable[str], title: str, limits: tuple[float, float], path: Path
) -> None:
    """
    Worst task and mean of the tasks over steps: interquartile mean and its 95 % interval.

    :param methods: in the order of the legend
    :param title: of the vertical axes
    :param limits: of the vertical axes; single early runs can be far below
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), sharey=True, layout="constrained")
    for axis, (name, reduce) in zip(axes, REDUCTIONS.items(), strict=True):
        for method, own in by_method(rows, methods).items():
            columns = curves(own, reduce).T
            steps = np.array(own[0]["result"]["steps"]) / 1000
            line = axis.plot(steps, [iqm(column) for column in columns], label=method)[0]
            low, high = np.array([iqm_interval(column) for column in columns]).T
            axis.fill_between(steps, low, high, alpha=0.15, color=line.get_color())
        axis.set(title=name, xlabel="environment steps (thousands)", ylim=limits)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(title)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def ablation_values(rows: list[dict[str, Any]], setting: str) -> dict[str, dict[float, np.ndarray]]:
    """
    :return: by lever and lambda the worst task's return, mean over training, of each run; empty where there is none
    """
    found = by_method([row for row in rows if row["run"]["setting"] == setting], LEVERS)

    def values(lever: str, coef: float) -> np.ndarray:
        own = [row for row in found.get(lever, []) if row["run"]["group_coef"] == coef]
        return curves(own, np.min).mean(axis=1) if own else np.array([])

    # without lambda the levers on the model are the same, and so are those with the data
    return {
        lever: {0.0: values("data" if LEVERS[lever][2] else "loss", 0.0), **{coef: values(lever, coef) for coef in LAMBDAS}}
        for lever in found
    }


def ablation_table(rows: list[dict[str, Any]], setting: str) -> Table:
    table = Table("lever", *(f"lambda {coef}" for coef in (0, *LAMBDAS)), title=f"{setting}: worst task over training")
    for lever, runs in ablation_values(rows, setting).items():
        table.add_row(lever, *(describe(values) if len(values) else "" for values in runs.values()))
    return table


def plot_ablation(rows: list[dict[str, Any]], path: Path) -> None:
    """The worst task, mean over training, by lever and lambda, up to where lambda is too large."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    for axis, setting in zip(axes, ("drawn", "rare"), strict=True):
        for offset, (lever, runs) in enumerate(ablation_values(rows, setting).items()):
            places, values = zip(*((place, x) for place, x in enumerate(runs.values()) if len(x)), strict=True)
            middle, (low, high) = np.array([iqm(x) for x in values]), np.array([iqm_interval(x) for x in values]).T
            axis.errorbar(
                np.array(places) + 0.08 * (offset - 2),
                middle,
                (middle - low, high - middle),
                label=lever,
                marker="o",
                ms=3,
                capsize=2,
            )
        axis.set(title=f"{setting}: worst task, mean over training", xlabel="lambda")
        axis.set_xticks(range(1 + len(LAMBDAS)), [str(coef) for coef in (0, *LAMBDAS)])
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    arguments = parse_parts(__doc__, PARTS)
    folder = arguments.smoke or RESULTS
    for part in arguments.parts:
        make_runs, seeds = PARTS[part]
        runs = make_runs(arguments.seeds or list(seeds))
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
