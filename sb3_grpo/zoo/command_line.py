"""Translate the arguments of ``python -m sb3_grpo.zoo`` into those of RL Zoo's scripts."""

import argparse
import ast
import os
from collections.abc import Callable
from typing import Any

from huggingface_sb3 import EnvironmentName

# Where RL Zoo finds the hyper-parameters: a module that it imports
CONFIG = "sb3_grpo.zoo.hyperparams"


def parse_training(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """
    Split the arguments of ``train`` into the options of this package and those of RL Zoo.

    :param argv: arguments of RL Zoo's ``train``; ``--objective worst`` for trials that are judged by their worst task, and
        ``--fix name:value ...`` for hyper-parameters that all trials share
    :return: ``objective`` (``"mean"`` or ``"worst"``) and ``fix`` (pairs of name and value); the arguments of RL Zoo's
        ``train``, with the hyper-parameters of this package for GRPO
    """
    own, shared = (argparse.ArgumentParser(add_help=False, allow_abbrev=False) for _ in range(2))
    own.add_argument("--objective", choices=("mean", "worst"), default="mean")
    own.add_argument("--fix", nargs="+", type=name_and_value, default=[])
    shared.add_argument("--algo")
    options, rest = own.parse_known_args(argv)
    if shared.parse_known_args(rest)[0].algo == "grpo":
        # in front, because the last `--conf-file` counts: the user's, if there is one
        rest = ["--conf-file", CONFIG, *rest]
    return options, rest


def name_and_value(text: str) -> tuple[str, Any]:
    """
    Parse an argument of ``--fix``.

    :param text: ``"name:value"``
    :return: name and value: a number or another literal of Python, or else the text as it is
    """
    name, _, value = text.partition(":")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def with_absolute_output(argv: list[str]) -> list[str]:
    """
    Make the output folder absolute: RL Zoo joins videos inside of it, and would look for a relative one there.

    :param argv: arguments of RL Zoo's ``record_training``
    :return: the same with an absolute output folder, if one is given
    """
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("-o", "--output-folder")
    given, rest = own.parse_known_args(argv)
    return argv if given.output_folder is None else [*rest, "-o", os.path.abspath(given.output_folder)]


def with_folder_names(argv: list[str]) -> list[str]:
    """
    Write environments as in the names of their folders: RL Zoo's plots look for folders, which have no slash.

    :param argv: arguments of RL Zoo's ``all_plots`` or ``plot_train``
    :return: the same with names of folders, if environments are given
    """
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("-e", "--env", nargs="+", default=[])
    given, rest = own.parse_known_args(argv)
    return [*rest, "-e", *map(EnvironmentName, given.env)] if given.env else argv


# What is changed in the arguments of a script
REWRITES: dict[str, Callable[[list[str]], list[str]]] = {
    "record_training": with_absolute_output,
    "all_plots": with_folder_names,
    "plot_train": with_folder_names,
}
