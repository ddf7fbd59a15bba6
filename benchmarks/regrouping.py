"""
Do groups find hidden structure, and do they leave alone what has none?

- recovery: tasks of two or three hidden types, one group to begin with; PPO with the same observations beside it
- merging: the same tasks visible, one group per task to begin with
- null: equal tasks, one group to begin with; every split is a false one
- harm: default ``GRPO("MlpPolicy", env)`` beside PPO with the same hyper-parameters

``python benchmarks/regrouping.py`` runs what has no result row yet and shows tables and pictures;
``--parts recovery --seeds 1 2`` part of it. Seeds 100 to 110 were used to choose the defaults and are not reported.
"""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from common import RESULTS, parse_parts, run_part
from gymnasium import spaces
from measures import describe, ratio_of_iqms, with_interval
from rich.console import Console
from rich.table import Table
from sklearn.metrics import adjusted_rand_score
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_grpo import GRPO, evaluate_groups

SEEDS = range(20)
HARM_SEEDS = range(10)
STEPS = 100_000
N_ENVS = 8
CARTPOLE: dict[str, Any] = dict(n_steps=256, batch_size=256, learning_rate=1e-3)
PENDULUM: dict[str, Any] = dict(n_steps=512, batch_size=256, learning_rate=1e-3, gamma=0.9)
LENGTHS, MASSES, LINK_MASSES = (0.4, 0.45, 0.5, 0.55, 0.6), (0.9, 0.95, 1.0, 1.05, 1.1), (0.9, 1.0, 1.1)
# environment, tasks, their true types, hyper-parameters, and the return from which on a task counts as solved
PROBLEMS: dict[str, dict[str, Any]] = {
    "CartPole, inverted actions": dict(
        env="sb3_grpo/TaskCartPole-v0",
        tasks=[dict(length=length, invert=invert) for invert in (False, True) for length in LENGTHS],
        types=[0] * 5 + [1] * 5,
        kwargs=CARTPOLE,
        solved=475,
    ),
    "Acrobot, permuted actions": dict(
        env="sb3_grpo/TaskAcrobot-v0",
        tasks=[
            dict(actions=actions, LINK_MASS_1=mass) for actions in ((0, 1, 2), (1, 2, 0), (2, 0, 1)) for mass in LINK_MASSES
        ],
        types=[0] * 3 + [1] * 3 + [2] * 3,
        kwargs=dict(n_steps=256, batch_size=256, learning_rate=1e-3, gae_lambda=0.94),
        solved=-150,
    ),
    "Pendulum, inverted torque": dict(
        env="sb3_grpo/TaskPendulum-v0",
        tasks=[dict(m=mass, invert=invert) for invert in (False, True) for mass in MASSES],
        types=[0] * 5 + [1] * 5,
        kwargs=PENDULUM,
        solved=-400,
    ),
    "CartPole, equal tasks": dict(
        env="sb3_grpo/TaskCartPole-v0", tasks=[{}] * 10, types=[0] * 10, kwargs=CARTPOLE, solved=475
    ),
    "Pendulum, equal tasks": dict(
        env="sb3_grpo/TaskPendulum-v0", tasks=[{}] * 10, types=[0] * 10, kwargs=PENDULUM, solved=-400
    ),
    "Acrobot, equal tasks": dict(
        env="sb3_grpo/TaskAcrobot-v0",
        tasks=[{}] * 9,
        types=[0] * 9,
        kwargs=dict(n_steps=256, batch_size=256, learning_rate=1e-3, gae_lambda=0.94),
        solved=-150,
    ),
}
HIDDEN = list(PROBLEMS)[:3]
EQUAL = list(PROBLEMS)[3:]
TWO_GROUPS = "GRPO, two random groups"
# RL Zoo's hyper-parameters for PPO, but for the number of steps
PLAIN: dict[str, dict[str, Any]] = {
    "CartPole-v1": dict(
        n_envs=8,
        steps=60_000,
        kwargs=dict(n_steps=32, batch_size=256, n_epochs=20, gae_lambda=0.8, gamma=0.98, learning_rate=1e-3, clip_range=0.2),
    ),
    "Acrobot-v1": dict(
        n_envs=16, steps=150_000, normalize=True, kwargs=dict(n_steps=256, n_epochs=4, gae_lambda=0.94, gamma=0.99)
    ),
    "Pendulum-v1": dict(
        n_envs=4,
        steps=100_000,
        kwargs=dict(n_steps=1024, gae_lambda=0.95, gamma=0.9, learning_rate=1e-3, use_sde=True, sde_sample_freq=4),
    ),
    "LunarLander-v3": dict(
        n_envs=16, steps=250_000, kwargs=dict(n_steps=1024, n_epochs=4, gae_lambda=0.98, gamma=0.999, ent_coef=0.01)
    ),
}


class Curve(BaseCallback):
    """Notes what the logger knows at the end of each rollout."""

    def __init__(self, tags: list[str]):
        super().__init__()
        self.tags = tags
        self.rows: list[list[float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        returns = [episode["r"] for episode in self.model.ep_info_buffer or []]
        values = [float(self.logger.name_to_value.get(tag, np.nan)) for tag in self.tags]
        self.rows.append([self.num_timesteps, float(np.mean(returns)) if returns else np.nan, *np.round(values, 4)])


def make_task_env(problem: dict[str, Any], seed: int, n_envs: int, task_observation: str | None) -> VecEnv:
    env_kwargs = dict(tasks=problem["tasks"], task_observation=task_observation)
    return make_vec_env(problem["env"], n_envs, seed=seed, env_kwargs=env_kwargs)


def run_tasks(
    problem: str, algorithm: str, seed: int, start: str = "one group", total_timesteps: int = STEPS, **kwargs: Any
) -> dict[str, Any]:
    """
    :param algorithm: ``"GRPO"``, or ``"PPO"``, which sees what GRPO's trunk sees
    :param start: ``"one group"`` with the task hidden from the trunk, ``"one per task"`` with the task visible
    :param kwargs: of GRPO
    """
    given = PROBLEMS[problem]
    n_tasks = len(given["tasks"])
    task_observation = None if algorithm == "PPO" else "one_hot"
    env = make_task_env(given, seed, N_ENVS, task_observation)
    curve = Curve(["groups/kl_within", "groups/kl_within_error", "groups/n_active"])
    if algorithm == "GRPO":
        assert isinstance(env.observation_space, spaces.Box)
        width = env.observation_space.shape[0]
        model: PPO = GRPO(
            "MlpPolicy",
            env,
            n_groups=1 if start == "one group" else n_tasks,
            max_groups=n_tasks,
            router="one_hot",
            router_kwargs=dict(columns=(width - n_tasks, width), hide=start == "one group"),
            seed=seed,
            device="cpu",
            **{**given["kwargs"], **kwargs},
        )
    else:
        model = PPO("MlpPolicy", env, seed=seed, device="cpu", **given["kwargs"])
    model.learn(total_timesteps, callback=curve)
    eval_env = make_task_env(given, 10_000 + seed, n_tasks, task_observation)
    evaluation = evaluate_groups(model, eval_env, n_eval_episodes=5 * n_tasks)
    returns = [evaluation[task].mean for task in sorted(evaluation)]
    result: dict[str, Any] = {"worst": min(returns), "mean": float(np.mean(returns)), "curve": curve.rows}
    if isinstance(model, GRPO):
        groups = model.policy.cell_to_group.tolist()
        result["cell_to_group"] = groups
        result["ari"] = float(adjusted_rand_score(given["types"], groups))
        result["events"] = [[event.timestep, event.kind, *event.groups, event.kl] for event in model.regroup_history]
    return result


def run_plain(env_id: str, algorithm: str, seed: int, total_timesteps: int | None = None) -> dict[str, Any]:
    given = PLAIN[env_id]

    def make(env_seed: int) -> VecEnv:
        env = make_vec_env(env_id, given["n_envs"], seed=env_seed)
        return VecNormalize(env) if given.get("normalize") else env

    curve = Curve(["groups/n_active"])
    if algorithm == "random":
        model: PPO = PPO("MlpPolicy", make(seed), seed=seed, device="cpu", **given["kwargs"])
    else:
        groups: dict[str, Any] = {"n_groups": 2} if algorithm == TWO_GROUPS else {}
        maker = PPO if algorithm == "PPO" else GRPO
        model = maker("MlpPolicy", make(seed), seed=seed, device="cpu", **given["kwargs"], **groups)
        model.learn(total_timesteps or given["steps"], callback=curve)
    eval_env = make(10_000 + seed)
    if isinstance(eval_env, VecNormalize):
        trained_env = model.get_vec_normalize_env()
        assert trained_env is not None
        eval_env.obs_rms, eval_env.training, eval_env.norm_reward = trained_env.obs_rms, False, False
    final, _ = evaluate_policy(model, eval_env, n_eval_episodes=32, deterministic=algorithm != "random")
    returns = [row[1] for row in curve.rows]
    result: dict[str, Any] = {
        "final": float(np.mean(final)),
        "area": float(np.nanmean(returns)) if returns else None,
        "curve": curve.rows,
    }
    if isinstance(model, GRPO):
        result["events"] = [[event.timestep, event.kind, *event.groups, event.kl] for event in model.regroup_history]
    return result


def recovery_runs(seeds: list[int]) -> list[dict[str, Any]]:
    return [dict(problem=p, algorithm=a, seed=s) for p in HIDDEN for a in ("GRPO", "PPO") for s in seeds]


def null_runs(seeds: list[int]) -> list[dict[str, Any]]:
    return [dict(problem=p, algorithm="GRPO", seed=s) for p in EQUAL for s in seeds]


def merging_runs(seeds: list[int]) -> list[dict[str, Any]]:
    return [dict(problem=HIDDEN[0], algorithm="GRPO", seed=s, start="one per task") for s in seeds]


def harm_runs(seeds: list[int]) -> list[dict[str, Any]]:
    runs = [(env_id, algorithm) for env_id in PLAIN for algorithm in ("PPO", "GRPO", "random")]
    return [dict(env_id=e, algorithm=a, seed=s) for e, a in [*runs, ("CartPole-v1", TWO_GROUPS)] for s in seeds]


PARTS: dict[str, Any] = {
    "recovery": (run_tasks, recovery_runs, SEEDS),
    "merging": (run_tasks, merging_runs, SEEDS),
    "null": (run_tasks, null_runs, SEEDS),
    "harm": (run_plain, harm_runs, HARM_SEEDS),
}


def tasks_table(rows: list[dict[str, Any]], title: str = "") -> Table:
    """Of tasks with types: how often the types were found, and what the worst and the mean task reach."""
    table = Table("problem", "algorithm", "seeds", "types found", "worst task solved", "worst task", "mean", title=title)
    for problem, algorithm in sorted({(row["run"]["problem"], row["run"]["algorithm"]) for row in rows}):
        run = {"problem": problem, "algorithm": algorithm}
        results = [row["result"] for row in rows if run.items() <= row["run"].items()]
        solved = sum(result["worst"] >= PROBLEMS[problem]["solved"] for result in results)
        found = sum(result.get("ari", 0) == 1 for result in results) if algorithm == "GRPO" else ""
        worst, mean = (describe(result[name] for result in results) for name in ("worst", "mean"))
        table.add_row(problem, algorithm, str(len(results)), str(found), str(solved), worst, mean)
    return table


def null_table(rows: list[dict[str, Any]]) -> Table:
    table = Table("problem", "seeds", "with a split", "largest KL within", title="equal tasks: every split is a false one")
    for problem in dict.fromkeys(row["run"]["problem"] for row in rows):
        results = [row["result"] for row in rows if row["run"]["problem"] == problem]
        split = sum(any(event[1] == "split" for event in result["events"]) for result in results)
        table.add_row(problem, str(len(results)), str(split), f"{max(largest_kl(result) for result in results):.2f}")
    return table


def largest_kl(result: dict[str, Any]) -> float:
    """
    :return: the largest KL within that was measured while there was one group
    """
    splits = [event for event in result["events"] if event[1] == "split"]
    before = [row[2] for row in result["curve"] if not splits or row[0] <= splits[0][0]]
    return float(np.nanmax([0.0, *before, *(event[4] for event in splits[:1])]))


def plot_kl(rows: list[dict[str, Any]], path: Path) -> None:
    """KL within, while there is one group, of groups that contradict themselves and of groups that do not."""
    problems = list(dict.fromkeys(row["run"]["problem"] for row in rows))
    figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
    for position, problem in enumerate(problems):
        values = [largest_kl(row["result"]) for row in rows if row["run"]["problem"] == problem]
        jitter = np.linspace(-0.25, 0.25, len(values))
        axis.plot(np.clip(values, 1e-3, None), position + jitter, "o", ms=4, color="C0" if problem in HIDDEN else "0.5")
    axis.axvline(0.3, color="black", lw=0.8, label="split_kl")
    axis.set(xscale="log", xlabel="largest KL within, nats", yticks=range(len(problems)), yticklabels=problems)
    axis.invert_yaxis()
    axis.legend()
    figure.savefig(path, dpi=110)


def harm_table(rows: list[dict[str, Any]]) -> Table:
    """GRPO beside PPO; ratios are of returns counted from that of a random policy, with the interval for paired seeds."""
    names = ("end", "last tenth", "over training")
    columns = ("environment", "algorithm", "seeds", *names, *(f"ratio, {name}" for name in names), "with a split")
    table = Table(*columns, title="plain problems, random router")
    for env_id in PLAIN:
        results: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            if row["run"]["env_id"] == env_id:
                results.setdefault(row["run"]["algorithm"], []).append(row["result"])
        if not results:
            continue
        base = float(np.mean([result["final"] for result in results.pop("random")]))
        ppo = harm_measures(results["PPO"])
        for algorithm, own in sorted(results.items(), key=lambda entry: entry[0] != "PPO"):
            values = harm_measures(own)
            found = [ratio_of_iqms(x, y, base) for x, y in zip(values, ppo, strict=True)]
            ratios = [with_interval(ratio, 2) for ratio in found]
            split = sum(any(event[1] == "split" for event in result.get("events", [])) for result in own)
            table.add_row(env_id, algorithm, str(len(own)), *map(describe, values), *ratios, str(split))
    return table


def harm_measures(results: list[dict[str, Any]]) -> list[list[float]]:
    """
    :return: the deterministic policy after training; mean return of the episodes of the last tenth of training, and of all
        of it. One value per run each
    """
    last = [[row[1] for row in result["curve"][-max(1, len(result["curve"]) // 10) :]] for result in results]
    final, area = ([result[name] for result in results] for name in ("final", "area"))
    return [final, [float(np.nanmean(returns)) for returns in last], area]


def main() -> None:
    arguments = parse_parts(__doc__, PARTS)
    rows = {}
    for part in arguments.parts:
        function, runs, seeds = PARTS[part]
        given = runs(arguments.seeds or list(seeds))
        rows[part] = run_part(function, given, f"regrouping_{part}", arguments, total_timesteps=4096)
    console = Console(width=200)
    for part, title in (("recovery", "one group to begin with"), ("merging", "one group per task to begin with")):
        if part in rows:
            console.print(tasks_table(rows[part], title))
    for part, table in (("null", null_table), ("harm", harm_table)):
        if part in rows:
            console.print(table(rows[part]))
    if "recovery" in rows and "null" in rows:
        grpo = [row for row in rows["recovery"] if row["run"]["algorithm"] == "GRPO"]
        plot_kl(grpo + rows["null"], (arguments.smoke or RESULTS) / "regrouping_kl.png")


if __name__ == "__main__":
    main()
