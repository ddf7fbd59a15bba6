"""
Train the method of MORL-Baselines for one compromise between objectives on the problems of ``benchmarks.sweeps.objectives``.

NLMOPPO is PPO on the gradient of a utility of the vector of returns, for actions that can be counted; it sees what has been
earned so far beside the observation. The utility is what the others are judged by: the worst objective in its range. Steps,
environments, rollouts, minibatches, epochs, learning rate and entropy are those of the other methods.

MORL-Baselines is not among the dependencies, and asks for other versions than this package does. In an environment of its own:
``pip install --no-deps sb3-grpo morl-baselines "mo-gymnasium>=1.3,<2"``, then ``pip install stable-baselines3 matplotlib rich
tqdm joblib wandb pymoo sortedcontainers seaborn``, then ``python -m benchmarks.sweeps.objectives_peer``, which adds rows to
those of the other methods.
"""

import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from rich.console import Console

from benchmarks.lib.sweep import parse_parts, run_part
from benchmarks.sweeps.objectives import EVAL_EPISODES, N_ENVS, PEER, PROBLEMS, SEEDS, objectives_table


def make_utility(problem: str) -> Callable[[th.Tensor], th.Tensor]:
    """
    Return the utility of a vector of returns: the worst objective in its range.

    :param problem: a name of :data:`benchmarks.sweeps.objectives.PROBLEMS`
    """
    low, high = th.tensor(list(PROBLEMS[problem].ranges.values())).T

    def utility(returns: th.Tensor) -> th.Tensor:
        return ((returns - low) / (high - low)).min()

    return utility


def play(agent: Any, env: gym.Env[Any, Any], gamma: float, episodes: int, seed: int, deterministic: bool) -> np.ndarray:
    """
    Play episodes.

    :param agent: the networks of NLMOPPO
    :param env: whose reward is a vector
    :param gamma: discount factor of what has been earned so far
    :param episodes: their number
    :param seed: seed of the first of them
    :param deterministic: whether to take the most likely actions
    :return: mean of what each objective returned, not discounted, shape ``(K,)``
    """
    totals = []
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed if episode == 0 else None)
        total, earned, ended, step = np.zeros(agent.num_objectives), np.zeros(agent.num_objectives), False, 0
        while not ended:
            inputs = (th.as_tensor(np.array(value), dtype=th.float32) for value in (observation, earned))
            with th.no_grad():
                action = agent.get_greedy_action(*inputs) if deterministic else agent.get_action_and_value(*inputs)[0]
            observation, reward, terminated, truncated, _ = env.step(action.item())
            total, earned = total + np.array(reward), earned + gamma**step * np.array(reward)
            ended, step = terminated or truncated, step + 1
        totals.append(total)
    return np.mean(totals, axis=0)


def run(problem: str, method: str, seed: int, total_timesteps: int | None = None, eval_episodes: int = EVAL_EPISODES) -> Any:
    """
    Train one model, and evaluate it at the end.

    :param problem: a name of :data:`benchmarks.sweeps.objectives.PROBLEMS`
    :param method: :data:`benchmarks.sweeps.objectives.PEER`
    :param seed: seed of model and environments
    :param total_timesteps: environment steps; ``None``: those of the problem
    :param eval_episodes: number of episodes of an evaluation
    :return: as :func:`benchmarks.sweeps.objectives.run`
    """
    assert method == PEER
    vector = importlib.import_module("mo_gymnasium.wrappers.vector")
    peer = importlib.import_module("morl_baselines.single_policy.ser.nl_mo_ppo")
    env_id, _, steps, kwargs, *_ = PROBLEMS[problem]
    steps = total_timesteps or steps
    th.manual_seed(seed)

    def make_env() -> gym.Env[Any, Any]:
        return gym.make(env_id, disable_env_checker=True)

    options = dict(num_steps=kwargs["n_steps"], update_epochs=kwargs["n_epochs"], learning_rate=kwargs["learning_rate"])
    options |= dict(num_minibatches=kwargs["n_steps"] * N_ENVS // kwargs["batch_size"], ent_coef=kwargs["ent_coef"])
    model = peer.NLMOPPO(
        0, vector.MOSyncVectorEnv([make_env] * N_ENVS), total_timesteps=steps, seed=seed, device="cpu", **options
    )
    # what it evaluates is discounted: one episode, not used
    model.policy_evaluate = lambda *_, **__: None
    model.train(make_env(), make_utility(problem))
    found = [play(model.agent, make_env(), model.gamma, eval_episodes, seed + 10_000, each) for each in (False, True)]
    returns, most_likely = ([round(float(value), 3) for value in values] for values in found)
    version = importlib.metadata.version("morl-baselines")
    result = {"steps": [steps], "returns": [returns], "deterministic": most_likely, "weights": [[]], "events": []}
    return {**result, "peer": f"morl-baselines {version}"}


def make_runs(problem: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """
    Return the runs on one problem.

    :param problem: a name of :data:`benchmarks.sweeps.objectives.PROBLEMS`
    :param seeds: seeds of the runs
    """
    return [dict(problem=problem, method=PEER, seed=seed) for seed in seeds]


def main() -> None:
    """Run the problems that the command line names, and print their tables."""
    arguments = parse_parts(__doc__, ["treasure", "minecart"])
    for problem in arguments.parts:
        runs = make_runs(problem, arguments.seeds or SEEDS)
        rows = run_part(run, runs, f"objectives_{problem}", arguments, total_timesteps=2048, eval_episodes=1)
        Console(width=180).print(objectives_table(rows, problem))


if __name__ == "__main__":
    main()
