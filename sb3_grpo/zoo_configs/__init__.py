"""
Hyper-parameters for RL Zoo: those of its own ``ppo.yml`` with GRPO's defaults, and the entries of ``grpo.yml``.

For RL Zoo's option ``--conf-file``: ``python -m rl_zoo3.train --algo grpo --conf-file sb3_grpo.zoo_configs ...``
"""

from pathlib import Path
from typing import Any

import rl_zoo3
import yaml


def load_hyperparams() -> dict[str, dict[str, Any]]:
    """
    :return: hyper-parameters by environment; an entry of ``grpo.yml`` stands in place of one of ``ppo.yml``
    """
    ppo = Path(rl_zoo3.__file__).parent / "hyperparams" / "ppo.yml"
    own = Path(__file__).parent / "grpo.yml"
    return {**yaml.safe_load(ppo.read_text()), **yaml.safe_load(own.read_text())}


hyperparams = load_hyperparams()
