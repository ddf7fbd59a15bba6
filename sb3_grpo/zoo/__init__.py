"""
Run RL Zoo with GRPO as one of its algorithms.

``python -m sb3_grpo.zoo train --algo grpo --env CartPole-v1`` runs RL Zoo's script of that name with all of its options.
RL Zoo is imported when one of the functions is called, so that this package can be imported without the extra ``zoo`` and
says how to install it.
"""

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType


def register() -> None:
    """
    Make ``grpo`` one of RL Zoo's algorithms in this process, with its search space.

    :raises ImportError: if a package that this needs is not installed; the message says how to install the extra
    """
    _load("search_space").register()


def main(argv: Sequence[str] | None = None) -> None:
    """
    Run one of RL Zoo's scripts; without the extra ``zoo`` the process ends with a message and status 1.

    :param argv: name of the script and its arguments; ``None``: those of the command line
    """
    try:
        scripts = _load("scripts")
    except ImportError as error:
        sys.exit(str(error))
    scripts.run_script(sys.argv[1:] if argv is None else argv)


def _load(name: str) -> ModuleType:
    """
    Import a module of this package that needs the extra ``zoo``.

    :param name: without the names of the packages around it
    :return: the module
    :raises ImportError: if a package that it imports is not installed
    """
    try:
        return importlib.import_module(f"sb3_grpo.zoo.{name}")
    except ModuleNotFoundError as error:
        raise ImportError(f'GRPO in RL Zoo needs an extra: pip install "sb3-grpo[zoo]" ({error})') from error
