"""
GRPO in RL Zoo. ``python -m sb3_grpo.zoo train --algo grpo --env CartPole-v1`` runs RL Zoo's script of that name, with all
of its options and algorithms, GRPO among them.

RL Zoo is imported by :mod:`sb3_grpo.rl_zoo` alone. Without the extra ``zoo`` this module can still say what is missing.
"""

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType


def load_rl_zoo() -> ModuleType:
    """
    Import what needs RL Zoo.

    :return: :mod:`sb3_grpo.rl_zoo`
    :raises ImportError: if a package of the extra ``zoo`` is not installed; the message says how to install it
    """
    try:
        return importlib.import_module("sb3_grpo.rl_zoo")
    except ModuleNotFoundError as error:
        raise ImportError(f'GRPO in RL Zoo needs an extra: pip install "sb3-grpo[zoo]" ({error})') from error


def register() -> None:
    """
    Make ``grpo`` one of RL Zoo's algorithms, in this process.

    :raises ImportError: if a package of the extra ``zoo`` is not installed
    """
    load_rl_zoo().register()


def main(argv: Sequence[str] | None = None) -> None:
    """
    Run one of RL Zoo's scripts. Without the extra ``zoo`` the process ends with a message.

    :param argv: name of the script and its arguments; ``None``: those of the command line
    """
    try:
        rl_zoo = load_rl_zoo()
    except ImportError as error:
        sys.exit(str(error))
    rl_zoo.run_script(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    main()
