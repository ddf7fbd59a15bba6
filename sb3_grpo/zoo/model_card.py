"""Model card of a GRPO agent on the Hub: what it is, how to load it with this package, and its results by task."""

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import repocard
from huggingface_sb3 import EnvironmentName, ModelName, ModelRepoId
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_grpo.evaluation import GroupEvaluation, evaluate_groups, objective_names_of, task_choices

REPOSITORY = "https://github.com/sb3-grpo/sb3-grpo"
# Where RL Zoo's own card has what is kept of it
HYPERPARAMETERS = "## Hyperparameters"
CARD = """
# **GRPO** Agent playing **{env}**
This is a trained model of a **GRPO** agent playing **{env}**, using [sb3-grpo]({repository}),
a plugin of [stable-baselines3](https://github.com/DLR-RM/stable-baselines3),
and the [RL Zoo](https://github.com/DLR-RM/rl-baselines3-zoo).

GRPO (Group Relative Policy Optimization) is PPO with groups of decisions, each of which has a head of its own.
RL Zoo and Stable-Baselines3 alone do not know it: load it with sb3-grpo.

## Usage (with Python)
```bash
pip install "sb3-grpo[zoo]"
```

A saved model can contain code, which is run when it is loaded; `TRUST_REMOTE_CODE` says that you trust this one.

```python
import os

from huggingface_sb3 import load_from_hub

from sb3_grpo import GRPO

os.environ["TRUST_REMOTE_CODE"] = "True"
model = GRPO.load(load_from_hub("{repo_id}", "{file}"))
```
{statistics}
## Usage (with the RL Zoo)
```bash
export TRUST_REMOTE_CODE=True
python -m sb3_grpo.zoo load_from_hub --algo grpo --env {env} -orga {organization}{name} -f logs/
python -m sb3_grpo.zoo enjoy --algo grpo --env {env} -f logs/
```

## Training (with the RL Zoo)
```bash
python -m sb3_grpo.zoo train --algo grpo --env {env} -f logs/
# Upload the model and generate video (when possible)
python -m sb3_grpo.zoo push_to_hub --algo grpo --env {env} -f logs/ -orga {organization}{name}
```
{results}
"""
STATISTICS = """
It was trained with normalised observations: load `vec_normalize.pkl` in the same way, and its statistics by
`VecNormalize.load(path, env)`. Without them its actions mean nothing.
"""


class ModelCard:
    """
    Model card of an agent that is pushed to the Hub.

    :param options: ``env``, ``organization`` and ``repo_name`` of RL Zoo's ``push_to_hub``
    """

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.results: dict[Any, GroupEvaluation] = {}

    def with_tasks(self, evaluate: Callable[..., tuple[float, float]]) -> Callable[..., tuple[float, float]]:
        """
        Evaluate by task as well, where there are tasks or objectives.

        :param evaluate: the function of ``huggingface_sb3``
        :return: a function to put in its place
        """

        def evaluate_tasks(
            model: BaseAlgorithm, env: VecEnv, n_eval_episodes: int, deterministic: bool, folder: Path
        ) -> tuple[float, float]:
            overall = evaluate(model, env, n_eval_episodes, deterministic, folder)
            # the last evaluation has reset the environments
            if "task" in env.unwrapped.reset_infos[0] or objective_names_of(env):
                n_tasks = max(env.get_attr("n_tasks")) if task_choices(env) else 1
                self.results = evaluate_groups(model, env, n_eval_episodes * n_tasks, deterministic, warn=False)
            return overall

        return evaluate_tasks

    def with_card(self, save: Callable[[Path, dict[str, Any]], None]) -> Callable[[Path, dict[str, Any]], None]:
        """
        Replace RL Zoo's card, but for its hyper-parameters, before its metadata are added.

        :param save: ``metadata_save`` of ``huggingface_hub``
        :return: a function to put in its place
        """

        def save_card(path: Path, metadata: dict[str, Any]) -> None:
            _, heading, rest = path.read_text(encoding="utf-8").partition(HYPERPARAMETERS)
            path.write_text(self.text(path.parent) + heading + rest, encoding="utf-8")
            save(path, {**metadata, "tags": [*metadata["tags"], "sb3-grpo", "grpo"]})

        return save_card

    def text(self, folder: Path) -> str:
        """
        Write the card, without the hyper-parameters.

        :param folder: the files of the repository
        :return: Markdown
        """
        env, organization, name = self.options.env, self.options.organization, self.options.repo_name
        model_name = ModelName("grpo", env)
        return CARD.format(
            env=env.gym_id,
            organization=organization,
            name="" if name is None else f" -name {name}",
            repository=REPOSITORY,
            repo_id=ModelRepoId(organization, name or model_name),
            file=model_name.filename,
            statistics=STATISTICS if (folder / "vec_normalize.pkl").exists() else "",
            results=results_table(self.results),
        )


def install_model_card(argv: list[str]) -> None:
    """
    Have RL Zoo's ``push_to_hub`` evaluate agents of GRPO by task and write their card in this process.

    :param argv: arguments of RL Zoo's ``push_to_hub``
    """
    parser = argparse.ArgumentParser(add_help=False)
    # otherwise `-n` would be short for `-name`
    parser.add_argument("-n", "--n-timesteps")
    parser.add_argument("--algo")
    parser.add_argument("--env", type=EnvironmentName)
    parser.add_argument("-orga", "--organization")
    parser.add_argument("-name", "--repo-name")
    options, _ = parser.parse_known_args(argv)
    if options.algo == "grpo":
        card, evaluation = ModelCard(options), importlib.import_module("huggingface_sb3.push_to_hub")
        vars(evaluation)["_evaluate_agent"] = card.with_tasks(evaluation._evaluate_agent)
        vars(repocard)["metadata_save"] = card.with_card(repocard.metadata_save)


def results_table(results: dict[Any, GroupEvaluation]) -> str:
    """
    Write the results by task.

    :param results: from :func:`~sb3_grpo.evaluation.evaluate_groups`
    :return: Markdown; empty without results
    """
    if not results:
        return ""
    rows = [f"| {task} | {r.mean:.2f} +/- {r.std:.2f} | {r.mean_length:.0f} | {r.n_episodes} |" for task, r in results.items()]
    head = ["## Results by task", "| task | mean return | mean length | episodes |", "|---|---|---|---|"]
    return "\n".join(["", head[0], "", *head[1:], *rows, ""])
