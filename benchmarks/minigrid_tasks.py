"""
Several MiniGrid tasks for one agent, after the protocol of MOORE (https://arxiv.org/abs/2311.11385): what do groups do where
multi-head PPO and mixtures of experts have published figures?

``python benchmarks/minigrid_tasks.py`` runs what is missing and prints the table. 400,000 steps per task, the 7x7x3 view as
it is, a small network (convolutions of 16, 32 and 64 channels, one hidden layer of 128) for the actor and one for the
critic, and MOORE's hyper-parameters. A score is the return divided by the return that can be achieved.

- PPO: as it is, the task beside the features
- multi-head PPO: the published baseline: a hidden layer and a head per task, advantages normalised by task; GRPO with fixed
  groups and without balance
- GRPO: with its defaults, heads linear on a hidden layer that all tasks share
- GRPO, advantages normalised by task: as the baseline does

Seed 100 served choosing what is compared.
"""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from balance import REDUCTIONS, by_method, plot_curves
from common import RESULTS, parse_parts, run_part
from gymnasium import spaces
from measures import describe
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import nn

from sb3_grpo import GRPO, evaluate_groups

SEEDS = range(5)
# achievable returns
TASKS = {"MiniGrid-LavaGapS7-v0": 0.9633, "MiniGrid-RedBlueDoors-6x6-v0": 0.99, "MiniGrid-MemoryS11-v0": 0.9777}
SUITES: dict[str, list[str]] = {"mt3": list(TASKS)}
ENVS_PER_TASK, STEPS_PER_ROLLOUT = 4, 2000  # the second per task
EVAL_EPISODES = 16  # per task
HIDDEN = 128


class TaskView(gym.Wrapper[dict[str, Any], int, Any, int]):
    """
    What the agent sees, channels first, beside the number of its task.

    :param env: a MiniGrid environment
    :param task: number of the task
    :param n_tasks: how many there are
    """

    def __init__(self, env: gym.Env[Any, int], task: int, n_tasks: int):
        super().__init__(env)
        self.task = task
        self.observation_space = spaces.Dict(
            {"view": spaces.Box(0, 255, (3, 7, 7), np.float32), "task": spaces.Discrete(n_tasks)}
        )

    def _observe(self, obs: dict[str, Any]) -> dict[str, Any]:
        return {"view": obs["image"].transpose(2, 0, 1).astype(np.float32), "task": self.task}

    def reset(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        return self._observe(obs), {**info, "task": self.task}

    def step(self, action: int) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._observe(obs), reward, terminated, truncated, {**info, "task": self.task}


def remember_views(env: gym.Env[Any, int]) -> gym.Env[Any, int]:
    """
    MiniGrid draws what the agent sees anew after each step, which takes most of the time of a step; there are few different
    views of a task: the same situation is drawn once.

    :param env: a MiniGrid environment whose mission does not change
    :return: the same environment
    """
    world: Any = env.unwrapped
    draw, drawn = world.gen_obs, {}

    def gen_obs() -> dict[str, Any]:
        encoded = tuple(cell and cell.encode() for cell in (world.carrying, *world.grid.grid))
        situation = (*world.agent_pos, world.agent_dir, encoded)
        if situation not in drawn:
            drawn[situation] = draw()
        view = drawn[situation]
        return {**view, "image": view["image"].copy()}  # Gymnasium warns of observations that are one object

    world.gen_obs = gen_obs
    return env


class ViewExtractor(BaseFeaturesExtractor):
    """
    MOORE's convolutions and hidden layer, which is shown the task where the agent is. The 6000 steps of a rollout show some
    450 different views: in an update each is looked at once, in a rollout its features are remembered.
    """

    def __init__(self, observation_space: spaces.Dict):
        super().__init__(observation_space, HIDDEN)
        task = observation_space.spaces.get("task")
        self.n_tasks = int(task.n) if isinstance(task, spaces.Discrete) else 0
        layers = (nn.Conv2d(3, 16, 2), nn.ReLU(), nn.Conv2d(16, 32, 2), nn.ReLU(), nn.Conv2d(32, 64, 2), nn.Tanh())
        self.cnn = nn.Sequential(*layers, nn.Flatten())
        self.hidden = nn.Linear(64 * 4 * 4 + self.n_tasks, HIDDEN)
        self.remembered: dict[bytes, th.Tensor] = {}

    def train(self, mode: bool = True) -> "ViewExtractor":
        # SB3 sets the mode before each rollout, and while one is collected no weight changes
        self.remembered = {}
        return super().train(mode)

    def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        shown = th.cat([observations[key].flatten(1) for key in ("view", "task") if key in observations], dim=1)
        if self.training or th.is_grad_enabled():
            different, which = shown.unique(dim=0, return_inverse=True)
            return self.look(different).index_select(0, which)
        keys = [row.tobytes() for row in shown.numpy()]
        new = {key: row for key, row in zip(keys, shown, strict=True) if key not in self.remembered}
        if new:
            self.remembered.update(zip(new, self.look(th.stack(list(new.values()))), strict=True))
        return th.stack([self.remembered[key] for key in keys])

    def look(self, shown: th.Tensor) -> th.Tensor:
        """
        :param shown: the view in 147 columns, the task in ``n_tasks``, shape ``(B, 147 + n_tasks)``
        :return: shape ``(B, features_dim)``
        """
        view, task = shown.tensor_split([3 * 7 * 7], dim=1)
        return th.tanh(self.hidden(th.cat([self.cnn(view.unflatten(1, (3, 7, 7))), task], dim=1)))


class HiddenPerTask(ViewExtractor):
    """The same with a hidden layer for each task: features of all tasks, those of the others are 0."""

    def __init__(self, observation_space: spaces.Dict):
        super().__init__(observation_space)
        self._features_dim = self.n_tasks * HIDDEN
        self.hidden = nn.Linear(64 * 4 * 4, self.features_dim)

    def look(self, shown: th.Tensor) -> th.Tensor:
        view, task = shown.tensor_split([3 * 7 * 7], dim=1)
        hidden = th.tanh(self.hidden(self.cnn(view.unflatten(1, (3, 7, 7))))).unflatten(1, (-1, HIDDEN))
        return (hidden * task.unsqueeze(-1)).flatten(1)


def make_env(names: list[str], seed: int) -> VecEnv:
    def make(task: int) -> gym.Env[dict[str, Any], int]:
        # a process of a sweep has imported nothing: Gymnasium imports what registers the environment
        return Monitor(TaskView(remember_views(gym.make(f"minigrid:{names[task]}")), task, len(names)))

    env = DummyVecEnv([partial(make, task) for task in range(len(names)) for _ in range(ENVS_PER_TASK)])
    env.seed(seed)
    return env


def run(suite: str, method: str, seed: int, steps_per_task: int = 400_000, n_evaluations: int = 10) -> dict[str, Any]:
    """
    :param method: a name of :data:`METHODS`
    :return: environment steps and scores per task of each evaluation: returns in units of those that can be achieved
    """
    names = SUITES[suite]
    kwargs: dict[str, Any] = dict(
        n_steps=STEPS_PER_ROLLOUT // ENVS_PER_TASK,
        batch_size=256 * len(names),
        n_epochs=8,
        learning_rate=1e-3,
        ent_coef=0.01,
        **METHODS[method],
    )
    algorithm = PPO if method == "PPO" else GRPO
    env = make_env(names, seed)
    model = algorithm("MultiInputPolicy", env, seed=seed, device="cpu", **kwargs)
    eval_env = make_env(names, seed + 10_000)
    steps: list[int] = []
    returns: list[list[float]] = []
    for _ in range(n_evaluations):
        model.learn(steps_per_task * len(names) // n_evaluations, reset_num_timesteps=not steps)
        found = evaluate_groups(model, eval_env, EVAL_EPISODES * len(names), deterministic=False)
        steps.append(model.num_timesteps)
        returns.append([found[task].mean / TASKS[name] for task, name in enumerate(names)])
    result: dict[str, Any] = {"steps": steps, "returns": returns}
    if isinstance(model, GRPO):
        result["events"] = [[event.timestep, event.kind, *event.groups, event.kl] for event in model.regroup_history]
    return result


NETWORK: dict[str, Any] = dict(
    features_extractor_class=ViewExtractor, share_features_extractor=False, net_arch=[], normalize_images=False
)
HEADS: dict[str, Any] = dict(router="discrete", router_kwargs=dict(key="task", hide=True), policy_kwargs=NETWORK)
METHODS: dict[str, dict[str, Any]] = {
    "PPO": dict(policy_kwargs=NETWORK),
    "multi-head PPO": dict(
        router="discrete",
        router_kwargs=dict(key="task"),
        normalize_advantage="group",
        group_coef=0.0,
        merge_kl=None,
        split_kl=None,
        policy_kwargs={**NETWORK, "features_extractor_class": HiddenPerTask},
    ),
    "GRPO": HEADS,
    "GRPO, advantages normalised by task": dict(normalize_advantage="group", **HEADS),
}


def make_runs(seeds: list[int]) -> list[dict[str, Any]]:
    return [dict(suite="mt3", method=method, seed=seed) for seed in seeds for method in METHODS]


def scores_table(rows: list[dict[str, Any]], suite: str) -> Table:
    columns = (f"{name.removeprefix('MiniGrid-').removesuffix('-v0')}, end" for name in SUITES[suite])
    reduced = (f"{name}, {when}" for name in REDUCTIONS for when in ("half way", "end", "second half"))
    table = Table("method", "seeds", *reduced, *columns, title=suite)
    for method, own in by_method(rows, METHODS).items():
        returns = np.array([row["result"]["returns"] for row in own])  # by run, evaluation and task
        half = returns.shape[1] // 2
        # an evaluation has few episodes: the mean over the second half is the least noisy of the three
        scores = (returns[:, half - 1], returns[:, -1], returns[:, half:].mean(axis=1))
        values = [reduce(score, axis=1) for reduce in REDUCTIONS.values() for score in scores]
        table.add_row(method, str(len(own)), *(describe(column, 2) for column in (*values, *returns[:, -1].T)))
    return table


def main() -> None:
    arguments = parse_parts(__doc__, SUITES)
    for suite in arguments.parts:
        runs = make_runs(arguments.seeds or list(SEEDS))
        rows = run_part(run, runs, f"minigrid_{suite}", arguments, steps_per_task=2000, n_evaluations=1)
        Console(width=200).print(scores_table(rows, suite))
        path = (arguments.smoke or RESULTS) / f"minigrid_{suite}.png"
        plot_curves(rows, METHODS, "return, 1: achievable", (-0.05, 1.05), path)


if __name__ == "__main__":
    main()
