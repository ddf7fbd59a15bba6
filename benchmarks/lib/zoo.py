"""Access the entries for RL Zoo: the only place in which the benchmarks import the package's zoo."""

from sb3_grpo.zoo import hyperparams as zoo_configs
from sb3_grpo.zoo import register
from sb3_grpo.zoo.command_line import CONFIG
from sb3_grpo.zoo.search_space import convert_grpo_params

__all__ = ["CONFIG", "convert_grpo_params", "hyperparams", "use_entry"]

# entries of grpo.yml and of RL Zoo's ppo.yml by environment; RL Zoo reads them, and changes those that it uses
hyperparams = zoo_configs.hyperparams


def use_entry(env_id: str, of_env_id: str) -> None:
    """
    Register GRPO with RL Zoo, and let an environment have the hyper-parameters of another, unchanged by earlier runs.

    :param env_id: registered name of the environment
    :param of_env_id: name of the entry
    """
    register()
    hyperparams[env_id] = zoo_configs.load_hyperparams()[of_env_id]
