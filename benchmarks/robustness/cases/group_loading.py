"""List files and arguments of groups that GRPO cannot be loaded or built with."""

from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy

from benchmarks.robustness.cases.case import ONE_HOT, Algorithm, Case, argument, make, own, saved, tasks, train
from benchmarks.robustness.cases.routers import cells_of


def loading_tasks(name: str, words: tuple[str, ...], fine: bool | None = False, **given: Any) -> Case:
    """
    Return the case of a model of four tasks that is loaded with other arguments, and trained.

    :param name: name of the case after "load: "
    :param words: see :class:`Case`
    :param fine: see :class:`Case`
    :param given: arguments of ``load``
    """

    def act(algorithm: Algorithm, folder: Path) -> Any:
        path = saved(algorithm, folder, tasks(), **ONE_HOT)
        return algorithm.load(path, env=tasks(), **given).learn(96, reset_num_timesteps=False)

    return own(f"load: {name}", act, *words, fine=fine)


CASES = [
    loading_tasks("normalize_advantage='groups'", ("normalize_advantage",), normalize_advantage="groups"),
    loading_tasks("group_score='returns'", ("group_score",), group_score="returns"),
    loading_tasks("group_scale='rnage'", ("group_scale",), group_scale="rnage"),
    loading_tasks("columns moved", ("columns",), router_kwargs=dict(columns=(3, 7))),
    loading_tasks("columns fewer", ("columns", "n_cells"), router_kwargs=dict(columns=(4, 7))),
    loading_tasks("hide changed", ("hide",), router_kwargs=dict(columns=(4, 8), hide=True)),
    loading_tasks("n_groups=2", ("n_groups",), n_groups=2),
    loading_tasks("n_groups=4.0", ("n_groups",), n_groups=4.0),
    loading_tasks("max_groups=9", ("max_groups",), max_groups=9),
    loading_tasks("router='random'", ("router",), router="random", router_kwargs=None),
    loading_tasks("router: a function", ("router",), router=cells_of, router_kwargs=dict(n_cells=4)),
    loading_tasks("group_coef=-1", ("group_coef",), group_coef=-1),
    loading_tasks("group_coef='x'", ("group_coef",), group_coef="x"),
    loading_tasks("merge_kl='0.1'", ("merge_kl",), merge_kl="0.1"),
    loading_tasks("merge_kl above split_kl", ("merge_kl",), merge_kl=0.5),
    loading_tasks("probe_kl_coef=None", ("probe_kl_coef",), probe_kl_coef=None),
    loading_tasks("regroup_freq='2'", ("regroup_freq",), regroup_freq="2"),
    loading_tasks("compile='no'", ("compile",), compile="no"),
    loading_tasks("policy_kwargs=dict(n_groups=4)", ("policy_kwargs", "n_groups"), policy_kwargs=dict(n_groups=4)),
    loading_tasks("merge_kl=0.2", (), fine=True, merge_kl=0.2),
    own("load: a file of PPO", lambda a, f: a.load(saved(PPO, f), env=gym.make("CartPole-v1")).learn(96), "PPO"),
    own("set_parameters: a file of PPO", lambda a, f: make(a).set_parameters(saved(PPO, f)), "PPO", fine=None),
    own(
        "load_state_dict: PPO's",
        lambda a, f: make(a).policy.load_state_dict(make(PPO).policy.state_dict()),
        "PPO",
        fine=None,
    ),
    own(
        "a file of GRPO loaded as PPO",
        lambda a, f: PPO.load(saved(a, f), env=gym.make("CartPole-v1")).learn(96),
        "n_groups",
        "GRPO",
    ),
    own("policy of PPO", lambda a, f: train(a, policy=ActorCriticPolicy), "policy"),
    *(
        argument("policy_kwargs", {name: value}, own=True)
        for name, value in dict(n_groups=3, max_groups=3, router="random", router_kwargs=dict(n_cells=3), group_seed=1).items()
    ),
    own("n_groups=5 of 4 cells", lambda a, f: train(a, tasks(), n_groups=5, **ONE_HOT), "n_groups"),
    own("n_groups=5, max_groups=4", lambda a, f: train(a, n_groups=5, max_groups=4), "n_groups", "max_groups"),
]
