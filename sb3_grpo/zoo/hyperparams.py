"""
Read the hyper-parameters for RL Zoo: those of its own ``ppo.yml``, and the entries of ``grpo.yml``.

RL Zoo's option ``--conf-file`` takes the name of this module:
``python -m rl_zoo3.train --algo grpo --conf-file sb3_grpo.zoo.hyperparams ...``
"""

from importlib.resources import files
from typing import Any

import yaml


def load_hyperparams() -> dict[str, dict[str, Any]]:
    """
    Return hyper-parameters by environment.

    :return: the entries of both files; an entry of ``grpo.yml`` replaces the one of ``ppo.yml`` for the same environment
    """
    ppo = files("rl_zoo3") / "hyperparams" / "ppo.yml"
    own = files("sb3_grpo.zoo_configs") / "grpo.yml"
    return {**yaml.safe_load(ppo.read_text()), **yaml.safe_load(own.read_text())}


# RL Zoo reads this name
hyperparams = load_hyperparams()
