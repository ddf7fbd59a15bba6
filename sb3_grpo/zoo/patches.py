"""Replace functions of RL Zoo, its libraries and SB3 in this process, so that RL Zoo's scripts run with GRPO."""

import importlib
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

import huggingface_sb3
from huggingface_hub.errors import EntryNotFoundError
from huggingface_sb3 import EnvironmentName
from requests.exceptions import HTTPError
from rl_zoo3 import utils
from stable_baselines3.common.vec_env import VecNormalize

from sb3_grpo.saving import complete_file


def patch(modules: Collection[str]) -> None:
    """
    Replace in this process what keeps RL Zoo's scripts from running.

    :param modules: names of the modules that are RL Zoo's scripts
    """
    subprocess.call = with_grpo_in_children(subprocess.call, modules)
    VecNormalize.save = with_complete_file(VecNormalize.save)  # type: ignore[method-assign]  # RL Zoo calls it
    vars(utils)["get_trained_models"] = with_folder_names(utils.get_trained_models)
    vars(huggingface_sb3)["load_from_hub"] = with_requests_error(huggingface_sb3.load_from_hub)
    hub = importlib.import_module("huggingface_sb3.push_to_hub")
    if not hasattr(hub, "generate_metadata"):
        # RL Zoo imports it by its former name and expects a dictionary, which it returned then
        vars(hub)["generate_metadata"] = lambda *args: hub._generate_metadata(*args).to_dict()


def with_grpo_in_children(call: Callable[..., int], modules: Collection[str]) -> Callable[..., int]:
    """
    Run the scripts that RL Zoo starts as processes by ``python -m sb3_grpo.zoo``, so that GRPO is registered there too.

    :param call: ``subprocess.call``
    :param modules: names of the modules that are RL Zoo's scripts
    :return: a function to put in its place; it also replaces ``python``, which may be another one, by this interpreter
    """

    def call_script(command: Sequence[str], *args: Any, **kwargs: Any) -> int:
        match command:
            case ["python", "-m", module, *rest] if module in modules:
                command = [sys.executable, "-m", "sb3_grpo.zoo", module.rpartition(".")[2], *rest]
            case ["python", "enjoy.py", *rest]:
                command = [sys.executable, "-m", "sb3_grpo.zoo", "enjoy", *rest]
        return call([getattr(word, "gym_id", word) for word in command], *args, **kwargs)

    return call_script


def with_complete_file(save: Callable[[VecNormalize, str], None]) -> Callable[..., None]:
    """
    Write statistics beside the former file and replace it when they are complete, so that a killed process leaves it whole.

    :param save: ``VecNormalize.save``
    :return: a method to put in its place
    """

    def save_completely(env: VecNormalize, save_path: str) -> None:
        with complete_file(save_path) as path:
            save(env, str(path))

    return save_completely


def with_folder_names(get_trained_models: Callable[[str], dict[str, tuple[str, str]]]) -> Callable[..., Any]:
    """
    Return environments that know the names of their folders: ``benchmark`` would not find those with a slash.

    :param get_trained_models: RL Zoo's function of that name
    :return: a function to put in its place
    """

    def get(log_folder: str) -> dict[str, tuple[str, str]]:
        return {name: (algo, EnvironmentName(env_id)) for name, (algo, env_id) in get_trained_models(log_folder).items()}

    return get


def with_requests_error(load_from_hub: Callable[[str, str], str]) -> Callable[[str, str], str]:
    """
    Raise the error that RL Zoo expects when the hub has no such file, because RL Zoo tries files that need not exist.

    :param load_from_hub: the function of ``huggingface_sb3``
    :return: a function to put in its place
    """

    def load(repo_id: str, filename: str) -> str:
        try:
            return load_from_hub(repo_id, filename)
        except EntryNotFoundError as error:
            raise HTTPError(str(error)) from error

    return load
