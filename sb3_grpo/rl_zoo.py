"""What :mod:`sb3_grpo.zoo` does once RL Zoo is known to be installed: GRPO as one of its algorithms, and its scripts."""

import argparse
import ast
import importlib
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import huggingface_sb3
import imageio_ffmpeg
import matplotlib
import numpy as np
import optuna
from huggingface_hub.errors import EntryNotFoundError
from huggingface_sb3 import EnvironmentName
from matplotlib import pyplot as plt
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler
from requests.exceptions import HTTPError
from rl_zoo3 import exp_manager, hyperparams_opt, utils
from rl_zoo3.callbacks import TrialEvalCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_grpo.callbacks import GroupEvalCallback
from sb3_grpo.grpo import GRPO
from sb3_grpo.policies import NonFiniteError
from sb3_grpo.saving import complete_file

SCRIPTS = {
    **{name: f"rl_zoo3.{name}" for name in ("train", "enjoy", "record_video", "record_training", "benchmark")},
    **{name: f"rl_zoo3.{name}" for name in ("push_to_hub", "load_from_hub")},
    **{name: f"rl_zoo3.plots.{name}" for name in ("all_plots", "plot_train", "plot_from_file")},
}
NEED_FFMPEG = ("record_training", "push_to_hub")
# Where RL Zoo finds the hyper-parameters
CONFIG = "sb3_grpo.zoo_configs"


def register() -> None:
    """Make ``grpo`` one of RL Zoo's algorithms, in this process."""
    utils.ALGOS["grpo"] = GRPO
    hyperparams_opt.HYPERPARAMS_SAMPLER["grpo"] = sample_grpo_params
    hyperparams_opt.HYPERPARAMS_CONVERTER["grpo"] = convert_grpo_params


def sample_grpo_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    PPO's search space, and that of the groups.

    :param trial: the trial
    :param n_actions: see RL Zoo
    :param n_envs: see RL Zoo
    :param additional_args: see RL Zoo
    :return: arguments of :class:`~sb3_grpo.grpo.GRPO`
    """
    ppo_params = hyperparams_opt.sample_ppo_params(trial, n_actions, n_envs, additional_args)
    trial.suggest_categorical("groups", ["default", "one", "two"])
    trial.suggest_float("group_coef", 1e-4, 0.5, log=True)
    trial.suggest_categorical("normalize_advantage", ["minibatch", "group"])
    trial.suggest_float("split_kl", 0.1, 1.0, log=True)
    trial.suggest_float("merge_to_split", 0.1, 0.9)
    return {**ppo_params, **convert_group_params(trial.params)}


def convert_grpo_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    :param sampled_params: what a trial of :func:`sample_grpo_params` was suggested
    :return: arguments of :class:`~sb3_grpo.grpo.GRPO`
    """
    groups = convert_group_params(sampled_params)
    ppo_names = set(sampled_params) - {"groups", "group_coef", "normalize_advantage", "split_kl", "merge_to_split"}
    return {**hyperparams_opt.convert_onpolicy_params({name: sampled_params[name] for name in ppo_names}), **groups}


def convert_group_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    :param sampled_params: what a trial was suggested
    :return: those arguments of :class:`~sb3_grpo.grpo.GRPO` that PPO does not have
    """
    return {
        "n_groups": {"default": None, "one": 1, "two": 2}[sampled_params["groups"]],
        "group_coef": sampled_params["group_coef"],
        "normalize_advantage": {"minibatch": True, "group": "group"}[sampled_params["normalize_advantage"]],
        "split_kl": sampled_params["split_kl"],
        # a share, so that the thresholds cannot be crossed
        "merge_kl": sampled_params["merge_to_split"] * sampled_params["split_kl"],
    }


class WorstTaskEvalCallback(GroupEvalCallback):
    """What it reports as the mean reward is that of the worst task."""

    def _on_step(self) -> bool:
        continue_training = super()._on_step()
        if self.last_evaluation:
            self.last_mean_reward = self.last_worst_reward
        return continue_training


class WorstTaskTrialEvalCallback(TrialEvalCallback, WorstTaskEvalCallback):
    """RL Zoo's evaluation of a trial, by its worst task."""


class TrialNumber(int):
    """A number that is true even if it is 0: RL Zoo takes 0 for "no trial"."""

    def __bool__(self) -> bool:
        return True


class GroupExperimentManager(exp_manager.ExperimentManager):
    """RL Zoo's experiment manager without the traps that this package knows of; parameters as there."""

    # what all trials of a study have in common, by the names of the search space
    fixed_params: ClassVar[dict[str, Any]] = {}

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.trial_id is not None:
            self.trial_id = TrialNumber(self.trial_id)

    def _create_sampler(self, sampler_method: str) -> BaseSampler:
        seed = self.seed
        if self.storage is not None:
            # workers of one study that were given the same seed would be suggested the same
            self.seed = int(np.random.SeedSequence([seed, os.getpid(), time.time_ns()]).generate_state(1)[0])
        try:
            sampler = super()._create_sampler(sampler_method)
        finally:
            self.seed = seed
        if not self.fixed_params:
            return sampler
        # before there is a study: it would keep the trial that failed
        check_fixed(self.fixed_params, self._search_space())
        return PartialFixedSampler(self.fixed_params, sampler)

    def _search_space(self) -> dict[str, BaseDistribution]:
        """
        :return: what a trial of this algorithm is suggested, by name
        """
        trial = optuna.create_study(sampler=RandomSampler()).ask()
        with_her = self._hyperparams.get("replay_buffer_class") is exp_manager.HerReplayBuffer
        her = {"using_her_replay_buffer": with_her, "her_kwargs": dict(self._hyperparams.get("replay_buffer_kwargs", {}))}
        hyperparams_opt.HYPERPARAMS_SAMPLER[self.algo](trial, self.n_actions, 1, her)
        return trial.distributions

    def load_trial(self, storage: str, study_name: str, trial_id: int | None = None, convert: bool = True) -> dict[str, Any]:
        try:
            return super().load_trial(storage, study_name, trial_id, convert)
        except (IndexError, KeyError) as error:
            wrong = "there is no such study or trial, or it failed before it was given values for all hyper-parameters"
            raise ValueError(f"trial {trial_id} of study {study_name!r} cannot be used: {wrong}") from error

    def objective(self, trial: optuna.Trial) -> float:
        try:
            return super().objective(trial)
        except optuna.TrialPruned as pruned:
            # RL Zoo prunes for every ValueError; only one that comes from bad luck with hyper-parameters is a reason
            if self.algo == "grpo" and pruned.__cause__ is not None and not isinstance(pruned.__cause__, NonFiniteError):
                raise RuntimeError(f"the trial could not be run: {pruned.__cause__}") from pruned.__cause__
            raise


def check_fixed(params: dict[str, Any], space: dict[str, BaseDistribution]) -> None:
    """
    Refuse what a search space does not offer.

    :param params: values by the names of the search space
    :param space: what a trial is suggested, by name
    :raises ValueError: if the space has no such name or does not contain the value
    """
    unknown = sorted(set(params) - set(space))
    if unknown:
        raise ValueError(f"`--fix` must name what the search space has, {sorted(space)}; got {unknown}")
    for name, value in params.items():
        match space[name]:
            case CategoricalDistribution(choices=choices):
                # 1 is not True
                offered, wanted = any(value == c and type(value) is type(c) for c in choices), f"one of {list(choices)}"
            case IntDistribution(low=low, high=high, step=step):
                offered = type(value) is int and low <= value <= high and (value - low) % step == 0
                wanted = f"an integer from {low} to {high}" + (f" in steps of {step}" if step > 1 else "")
            case FloatDistribution(low=low, high=high):
                offered, wanted = type(value) in (int, float) and low <= value <= high, f"from {low} to {high}"
        if not offered:
            raise ValueError(f"`--fix {name}` must be {wanted}, as in the search space; got {value!r}")


def name_and_value(text: str) -> tuple[str, Any]:
    """
    Read an argument of ``--fix``.

    :param text: ``"name:value"``
    :return: name and value: a number or another literal of Python, or else the text as it is
    """
    name, _, value = text.partition(":")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def has_display() -> bool:
    """Whether windows can be opened."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def save_figures(script: str) -> None:
    """
    Write what ``plt.show()`` would have shown.

    :param script: first part of the files' names
    """
    for number in plt.get_fignums():
        path = f"{script}_{number}.png"
        plt.figure(number).savefig(path)
        print(f"Figure: {path}")


@contextmanager
def ffmpeg_on_path() -> Iterator[None]:
    """A context in which there is a command ``ffmpeg``: if the machine has none, the one that comes as a package."""
    if shutil.which("ffmpeg") is not None or os.name != "posix":
        yield
        return
    path = os.environ.get("PATH", os.defpath)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
        os.environ["PATH"] = f"{path}{os.pathsep}{folder}"
        try:
            yield
        finally:
            os.environ["PATH"] = path


def run_by_this_module(call: Callable[..., int]) -> Callable[..., int]:
    """
    :param call: ``subprocess.call``
    :return: the same, but scripts of RL Zoo that are started by one know GRPO, whatever "python" is here
    """

    def call_script(command: Sequence[str], *args: Any, **kwargs: Any) -> int:
        match command:
            case ["python", "-m", module, *rest] if module in SCRIPTS.values():
                command = [sys.executable, "-m", "sb3_grpo.zoo", module.rpartition(".")[2], *rest]
            case ["python", "enjoy.py", *rest]:
                command = [sys.executable, "-m", "sb3_grpo.zoo", "enjoy", *rest]
        return call([getattr(word, "gym_id", word) for word in command], *args, **kwargs)

    return call_script


def run_script(argv: Sequence[str]) -> None:
    """
    Run one of RL Zoo's scripts.

    :param argv: name of the script and its arguments
    """
    parser = argparse.ArgumentParser(prog="python -m sb3_grpo.zoo", description="Run one of RL Zoo's scripts with GRPO.")
    parser.add_argument("script", choices=SCRIPTS, help="RL Zoo's script; all further arguments are the script's")
    script, rest = parser.parse_args(list(argv[:1]) or ["--help"]).script, argv[1:]
    register()
    if script in PREPARATIONS:
        rest = PREPARATIONS[script](list(rest))
    if not has_display():
        matplotlib.use("Agg")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    patch()
    # the package of the plots imports its scripts, which are run here once more
    warnings.filterwarnings("ignore", "'rl_zoo3.* found in sys.modules", RuntimeWarning)
    sys.argv = [script, *rest]
    with ffmpeg_on_path() if script in NEED_FFMPEG else nullcontext():
        runpy.run_module(SCRIPTS[script], run_name="__main__", alter_sys=True)
    if not has_display():
        save_figures(script)


def patch() -> None:
    """Mend in this process what keeps some of RL Zoo's scripts from running."""
    subprocess.call = run_by_this_module(subprocess.call)
    VecNormalize.save = with_complete_file(VecNormalize.save)  # type: ignore[method-assign]  # RL Zoo calls it
    vars(utils)["get_trained_models"] = with_names_of_folders(utils.get_trained_models)
    vars(huggingface_sb3)["load_from_hub"] = with_requests_error(huggingface_sb3.load_from_hub)
    hub = importlib.import_module("huggingface_sb3.push_to_hub")
    if not hasattr(hub, "generate_metadata"):
        # RL Zoo imports it under its former name, and wants what it was then
        vars(hub)["generate_metadata"] = lambda *args: hub._generate_metadata(*args).to_dict()


def with_complete_file(save: Callable[[VecNormalize, str], None]) -> Callable[..., None]:
    """
    :param save: ``VecNormalize.save``
    :return: the same, but a process that is killed meanwhile leaves the former file as it was
    """

    def save_completely(env: VecNormalize, save_path: str) -> None:
        with complete_file(save_path) as path:
            save(env, str(path))

    return save_completely


def with_names_of_folders(get_trained_models: Callable[[str], dict[str, tuple[str, str]]]) -> Callable[..., Any]:
    """
    :param get_trained_models: RL Zoo's function of that name
    :return: the same with environments as they are called in paths: ``benchmark`` would not find those with a slash
    """

    def get(log_folder: str) -> dict[str, tuple[str, str]]:
        return {name: (algo, EnvironmentName(env_id)) for name, (algo, env_id) in get_trained_models(log_folder).items()}

    return get


def with_requests_error(load_from_hub: Callable[[str, str], str]) -> Callable[[str, str], str]:
    """
    :param load_from_hub: the function of ``huggingface_sb3``
    :return: the same, but a file that is not there raises what RL Zoo expects (it tries files that need not exist)
    """

    def load(repo_id: str, filename: str) -> str:
        try:
            return load_from_hub(repo_id, filename)
        except EntryNotFoundError as error:
            raise HTTPError(str(error)) from error

    return load


def prepare_training(argv: list[str]) -> list[str]:
    """
    :param argv: arguments of RL Zoo's ``train``, ``--objective worst`` for trials that are judged by their worst task, and
        ``--fix name:value`` for what no trial is to change
    :return: arguments of RL Zoo's ``train``, with the hyper-parameters of this package for GRPO
    """
    own, shared = (argparse.ArgumentParser(add_help=False, allow_abbrev=False) for _ in range(2))
    own.add_argument("--objective", choices=("mean", "worst"), default="mean")
    shared.add_argument("--algo")
    own.add_argument("--fix", nargs="+", type=name_and_value, default=[])
    given, argv = own.parse_known_args(argv)
    vars(exp_manager)["ExperimentManager"] = GroupExperimentManager
    GroupExperimentManager.fixed_params = dict(given.fix)
    if given.objective == "worst":
        vars(exp_manager)["TrialEvalCallback"] = WorstTaskTrialEvalCallback
    # in front: the last one counts, which is the user's if there is one
    return ["--conf-file", CONFIG, *argv] if shared.parse_known_args(argv)[0].algo == "grpo" else argv


def prepare_recording(argv: list[str]) -> list[str]:
    """
    :param argv: arguments of RL Zoo's ``record_training``
    :return: the same with an absolute output folder: a relative one would be taken from itself when videos are joined
    """
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("-o", "--output-folder")
    given, argv = own.parse_known_args(argv)
    return argv if given.output_folder is None else [*argv, "-o", os.path.abspath(given.output_folder)]


def prepare_plot(argv: list[str]) -> list[str]:
    """
    :param argv: arguments of RL Zoo's ``all_plots`` or ``plot_train``
    :return: the same with environments as they are called in paths
    """
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("-e", "--env", nargs="+", default=[])
    given, argv = own.parse_known_args(argv)
    return [*argv, "-e", *map(EnvironmentName, given.env)] if given.env else argv


PREPARATIONS: dict[str, Callable[[list[str]], list[str]]] = {
    "train": prepare_training,
    "record_training": prepare_recording,
    "all_plots": prepare_plot,
    "plot_train": prepare_plot,
}
