"""
Train one agent for several objectives of MO-Gymnasium's environments, and look at the one that is worst off.

- PPO, sum: on the sum of the objectives, as they come
- PPO, fixed: on a sum with fixed weights, of objectives divided by their ranges; the grid of weights is what a user tries.
  The cheetah's rewards are then multiplied by the 1,000 steps of an episode, so that they are about 1
- lambda 0: GRPO with a value head for each objective and normalised advantages, all of weight 1
- GRPO: with its defaults: balanced by odds, objectives merge and split (those of all others never do). It knows the ranges;
  "no ranges": it has to learn them; "no merging": objectives stay as they are
- penalty, Gini, mirror descent: the same without merging, with other rules
- sub-policies: GRPO with the penalty and an action head for each objective, which learns from it alone; the outputs of the
  heads are summed

An objective is measured by its range, from 0 to 1. Those of the treasures follow from the map: from what an objective is
when only the other one is looked after, to what it can be. The others are from PPO on one objective alone (seed 100,
rounded): up to what that reaches, for costs from what it then is (cheetah) or is before the training (minecart). Evaluated
are the policies as they are trained, with random actions, and at the end with the most likely ones too.

"copies" are the treasures with two more objectives, which are the first one plus noise at each step: objectives that ask for
the same and should merge, beside one that does not and should not.
MO-Gymnasium asks for another pygame than Gymnasium does: ``pip install --no-deps "mo-gymnasium>=1.3,<2"``.
``python -m benchmarks.sweeps.objectives`` runs what has no result row yet, prints the tables and draws the pictures.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor

from benchmarks.lib.balancers import register
from benchmarks.lib.measures import describe
from benchmarks.lib.plots import draw_band, save
from benchmarks.lib.rows import Row, Run, by_method
from benchmarks.lib.sub_policies import SubPolicies, SubPolicyGRPO
from benchmarks.lib.sweep import parse_parts, result_folder, run_part
from sb3_grpo import GRPO, GroupEvalCallback, LeanVecEnv, ObjectivesWrapper, evaluate_groups

# how certain merges must be was chosen on seeds 0 to 19; that GRPO has odds by default, after rows of seeds 0 to 9 of both
# rules
SEEDS, COPIES_SEEDS = range(10), range(20, 40)
N_ENVS, N_EVALUATIONS, EVAL_EPISODES = 8, 10, 10


class Problem(NamedTuple):
    """An environment, the range of each of its objectives, and the arguments that all methods share."""

    env_id: str
    ranges: Mapping[str, tuple[float, float]]
    total_timesteps: int
    kwargs: Mapping[str, Any]
    copies: tuple[float, ...] = ()  # of the first objective: standard deviation of the noise in each step
    factor: float = 1.0  # of PPO's reward with fixed weights, whose value network is not made for tiny rewards

    def all_ranges(self) -> dict[str, tuple[float, float]]:
        """Return the ranges of the objectives and of the copies."""
        name, own = next(iter(self.ranges.items()))
        return {**self.ranges, **{f"{name}, noise {noise:g}": own for noise in self.copies}}


TREASURE = dict(n_steps=128, batch_size=256, n_epochs=4, learning_rate=1e-3, ent_coef=0.01)
PROBLEMS: dict[str, Problem] = {
    "treasure": Problem(
        "deep-sea-treasure-v0",
        {"treasure": (0.7, 23.7), "time": (-19, -1)},
        60_000,
        TREASURE,
    ),
    "copies": Problem(
        "deep-sea-treasure-v0",
        {"treasure": (0.7, 23.7), "time": (-19, -1)},
        60_000,
        TREASURE,
        copies=(1.0, 5.0),
    ),
    "minecart": Problem(
        "minecart-v0",
        {"first ore": (0, 1.2), "second ore": (0, 1.2), "fuel": (-12, 0)},
        150_000,
        dict(n_steps=256, batch_size=256, n_epochs=4, learning_rate=1e-3, ent_coef=0.01),
    ),
    "cheetah": Problem(
        "mo-halfcheetah-v5",
        {"speed": (0, 1000), "energy": (-4000, 0)},
        200_000,
        dict(n_steps=256, batch_size=256, n_epochs=5, learning_rate=5e-4),
        factor=1000.0,  # steps of an episode
    ),
}


class Method(NamedTuple):
    """Weights of the objectives in PPO's reward, or arguments of GRPO."""

    weights: Sequence[float] | None = None
    kwargs: Mapping[str, Any] | None = None
    knows_ranges: bool = True
    merges: bool = False
    sub_policies: bool = False


# of two objectives, and of three
GRIDS: dict[int, list[tuple[float, ...]]] = {
    2: [(0, 1), (0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (1, 0)],
    3: [(0.33, 0.33, 0.33), (0.6, 0.2, 0.2), (0.2, 0.6, 0.2), (0.2, 0.2, 0.6), (0.45, 0.45, 0.1)],
}
FIXED = {f"PPO, fixed {' : '.join(map(str, weights))}": Method(weights) for grid in GRIDS.values() for weights in grid}
PENALTY = dict(balancer="relative_penalty", group_coef=0.05)
METHODS: dict[str, Method] = {
    "PPO, sum": Method(),
    **FIXED,
    "lambda 0": Method(kwargs=dict(group_coef=0.0)),
    "GRPO": Method(kwargs={}, merges=True),
    "GRPO, no ranges": Method(kwargs={}, merges=True, knows_ranges=False),
    "GRPO, no merging": Method(kwargs={}),
    "GRPO, penalty": Method(kwargs=PENALTY),
    "Gini": Method(kwargs=dict(balancer="generalized_gini", group_coef=0.5)),
    "mirror descent": Method(kwargs=dict(balancer="mirror_descent", group_coef=0.2)),
    "sub-policies": Method(kwargs=PENALTY, sub_policies=True),
}
# its rows are those of `benchmarks.sweeps.objectives_peer`
PEER = "MORL-Baselines, NLMOPPO"
# where merging is all that is compared
COPIES_METHODS = ("GRPO", "GRPO, no merging")


class NoisyCopies(gym.Wrapper[Any, Any, Any, Any]):
    """
    Append copies of the first objective to the reward, each with noise of its own in every step.

    :param env: an environment whose reward is a vector
    :param noise: standard deviation of the noise of each copy
    """

    def __init__(self, env: gym.Env[Any, Any], noise: Sequence[float]):
        super().__init__(env)
        self.noise = np.array(noise)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step, see :class:`gymnasium.Env`."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        first: Any = np.asarray(reward)[0]
        noise = self.noise * self.np_random.standard_normal(len(self.noise))
        return observation, np.concatenate([np.asarray(reward), first + noise]), terminated, truncated, info


def make_env(problem: str, weights: Sequence[float] | None = None) -> Callable[[], gym.Env[Any, Any]]:
    """
    Return a function that makes one environment.

    :param problem: a name of :data:`PROBLEMS`
    :param weights: of the objectives in the reward, each divided by its range; ``None``: the reward is their plain sum
    """
    copies, ranges = PROBLEMS[problem].copies, PROBLEMS[problem].all_ranges()

    def make() -> gym.Env[Any, Any]:
        wrappers = importlib.import_module("mo_gymnasium.wrappers")  # registers the environments
        # Gymnasium's checks know rewards that are numbers
        env = gym.make(PROBLEMS[problem].env_id, disable_env_checker=True)
        if copies:
            return Monitor(ObjectivesWrapper(NoisyCopies(env, copies), list(ranges)))
        spans = np.array([high - low for low, high in ranges.values()])
        factors = np.ones(len(spans)) if weights is None else PROBLEMS[problem].factor * np.array(weights) / spans
        return Monitor(ObjectivesWrapper(wrappers.LinearReward(env, factors), list(ranges), "vector_reward"))

    return make


def make_model(problem: str, method: str, seed: int) -> PPO:
    """
    Return the untrained model of a method.

    :param problem: a name of :data:`PROBLEMS`
    :param method: a name of :data:`METHODS`
    :param seed: seed of model and environments
    """
    register()
    weights, kwargs, knows_ranges, merges, sub_policies = METHODS[method]
    env = LeanVecEnv([make_env(problem, weights)] * N_ENVS)
    shared: dict[str, Any] = dict(PROBLEMS[problem].kwargs, seed=seed, device="cpu")
    if kwargs is None:
        return PPO("MlpPolicy", env, **shared)
    targets = PROBLEMS[problem].all_ranges() if knows_ranges and kwargs.get("group_coef") != 0 else None
    merging: dict[str, Any] = {} if merges else dict(merge_kl=None, split_kl=None)
    shared |= dict(group_by="objectives", group_targets=targets, **merging, **kwargs)
    return SubPolicyGRPO(SubPolicies, env, **shared) if sub_policies else GRPO("MlpPolicy", env, **shared)


def run(
    problem: str,
    method: str,
    seed: int,
    total_timesteps: int | None = None,
    n_evaluations: int = N_EVALUATIONS,
    eval_episodes: int = EVAL_EPISODES,
) -> dict[str, Any]:
    """
    Train one model, and evaluate it objective by objective from time to time.

    :param problem: a name of :data:`PROBLEMS`
    :param method: a name of :data:`METHODS`
    :param seed: seed of model and environments
    :param total_timesteps: environment steps; ``None``: those of the problem
    :param n_evaluations: number of evaluations
    :param eval_episodes: number of episodes of each
    :return: ``steps``, and for each evaluation ``returns``, the mean of each objective, and ``weights``, those of GRPO;
        ``deterministic``: the mean of each objective at the end, with the most likely actions; ``events``: merges and splits
    """
    model = make_model(problem, method, seed)
    total_timesteps = total_timesteps or PROBLEMS[problem].total_timesteps
    eval_env = LeanVecEnv([make_env(problem)] * eval_episodes)  # an episode in each
    eval_env.seed(seed + 10_000)
    frequency = total_timesteps // n_evaluations // N_ENVS
    options: dict[str, Any] = dict(n_eval_episodes=eval_episodes, deterministic=False, verbose=0)
    callback = GroupEvalCallback(eval_env, eval_freq=frequency, **options)
    model.learn(total_timesteps, callback)
    names = list(PROBLEMS[problem].ranges)
    most_likely = evaluate_groups(model, eval_env, eval_episodes)
    return {
        "steps": [moment.timestep for moment in callback.moments],
        "returns": [[round(moment.returns[name], 3) for name in names] for moment in callback.moments],
        "deterministic": [round(most_likely[name].mean, 3) for name in names],
        "weights": [[round(moment.weights[name], 4) for name in names if moment.weights] for moment in callback.moments],
        "events": [[event.timestep, event.kind, event.cell_to_group] for event in getattr(model, "regroup_history", [])],
    }


def make_runs(problem: str, seeds: Sequence[int]) -> list[Run]:
    """
    Return the runs of all methods on one problem.

    :param problem: a name of :data:`PROBLEMS`
    :param seeds: seeds of the runs
    """
    if PROBLEMS[problem].copies:
        return [dict(problem=problem, method=method, seed=seed) for seed in seeds for method in COPIES_METHODS]
    n_objectives = len(PROBLEMS[problem].ranges)
    fitting = [name for name, method in METHODS.items() if method.weights is None or len(method.weights) == n_objectives]
    methods = [name for name in fitting if name != "GRPO, no merging"]
    return [dict(problem=problem, method=method, seed=seed) for seed in seeds for method in methods]


def seeds_of(problem: str) -> Sequence[int]:
    """
    Return the seeds of the tables.

    :param problem: a name of :data:`PROBLEMS`
    """
    return COPIES_SEEDS if PROBLEMS[problem].copies else SEEDS


def in_ranges(returns: Any, problem: str) -> np.ndarray:
    """
    Return what the objectives are in their ranges.

    :param returns: shape ``(..., objectives)``
    :param problem: a name of :data:`PROBLEMS`
    :return: of the same shape
    """
    low, high = np.array(list(PROBLEMS[problem].ranges.values())).T
    return (np.array(returns) - low) / (high - low)


def objectives_table(rows: list[Row], problem: str) -> Table:
    """
    Return the table of one problem: at the end the worst objective (also with the most likely actions), their mean, the
    hypervolume, and each of them.

    The hypervolume of one policy is the product of its objectives, in their ranges and from 0 to 1.

    :param rows: rows of the problem
    :param problem: a name of :data:`PROBLEMS`
    """
    names = list(PROBLEMS[problem].ranges)
    columns = ("worst objective", "most likely actions", "mean", "hypervolume")
    table = Table("method", "seeds", *columns, *names, title=problem)
    for method, own in by_method(rows, [*METHODS, PEER]).items():
        returns = np.array([row["result"]["returns"][-1] for row in own])
        ends = in_ranges(returns, problem)
        most_likely = in_ranges([row["result"]["deterministic"] for row in own], problem)
        measures = (ends.min(axis=1), most_likely.min(axis=1), ends.mean(axis=1), ends.clip(0, 1).prod(axis=1))
        cells = [describe(values, 2) for values in measures]
        digits = [max(0, 2 - int(np.log10(high - low))) for low, high in PROBLEMS[problem].ranges.values()]
        ends_of_each = [describe(returns[:, place], digits[place]) for place in range(len(names))]
        table.add_row(method, str(len(own)), *cells, *ends_of_each)
    return table


def merges_table(rows: list[Row], problem: str) -> Table:
    """
    Return how many runs merged the copies, and what else.

    :param rows: rows of the problem
    :param problem: a name of :data:`PROBLEMS`
    """
    columns = ("all copies merged at the end", "steps until then, median", "merged with another objective, ever", "splits")
    table = Table("method", "seeds", *columns, title=f"{problem}: merges")
    n_objectives = len(PROBLEMS[problem].ranges)
    n_copies = len(PROBLEMS[problem].copies)
    for method, own in by_method(rows, METHODS).items():
        if not METHODS[method].merges:
            continue
        events = [row["result"]["events"] for row in own]
        ends = [run_events[-1][2] if run_events else list(range(n_objectives + n_copies)) for run_events in events]
        merged = [len({groups[0], *groups[n_objectives:]}) == 1 for groups in ends]
        times = [run_events[-1][0] for run_events, is_merged in zip(events, merged, strict=True) if is_merged]
        wrong = [any(groups[other] == groups[0] for *_, groups in es for other in range(1, n_objectives)) for es in events]
        splits = sum(kind == "split" for run_events in events for _, kind, _ in run_events)
        median = f"{np.median(times):,.0f}" if times else "-"
        table.add_row(method, str(len(own)), str(sum(merged)), median, str(sum(wrong)), str(splits))
    return table


def draw_objectives(rows: list[Row], problem: str, path: Path) -> None:
    """
    Draw the worst objective over steps, and the weights of the first one: interquartile mean and its 95 % interval.

    :param rows: rows of the problem
    :param problem: a name of :data:`PROBLEMS`
    :param path: PNG file
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    name = next(iter(PROBLEMS[problem].ranges))
    for method, own in by_method(rows, METHODS).items():
        if method in FIXED:
            continue
        steps, colour = np.array(own[0]["result"]["steps"]) / 1000, f"C{list(METHODS).index(method) % 10}"
        worst = in_ranges([row["result"]["returns"] for row in own], problem).min(axis=2)
        draw_band(axes[0], steps, worst.T, method, alpha=0.1, color=colour)
        if METHODS[method].kwargs is not None:
            weights = np.array([row["result"]["weights"] for row in own])[:, :, 0]
            draw_band(axes[1], steps, weights.T, method, alpha=0.1, color=colour)
    axes[0].set(title=f"{problem}: worst objective, in its range", xlabel="environment steps (thousands)", ylim=(-0.1, 1))
    axes[1].set(title=f'weight of "{name}"', xlabel="environment steps (thousands)")
    axes[0].legend(fontsize=8)
    for axis in axes:
        axis.grid(alpha=0.3)
    save(figure, path, dpi=110)


def main() -> None:
    """Run the problems that the command line names, print their tables and draw their pictures."""
    arguments = parse_parts(__doc__, PROBLEMS)
    for problem in arguments.parts:
        runs = make_runs(problem, arguments.seeds or seeds_of(problem))
        rows = run_part(run, runs, f"objectives_{problem}", arguments, total_timesteps=2048, n_evaluations=1, eval_episodes=1)
        Console(width=180).print(objectives_table(rows, problem))
        if PROBLEMS[problem].copies:
            Console(width=180).print(merges_table(rows, problem))
            continue
        draw_objectives(rows, problem, result_folder(arguments) / f"objectives_{problem}.png")


if __name__ == "__main__":
    main()
