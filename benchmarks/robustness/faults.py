"""Find what is wrong with a model after an interrupt."""

from typing import Any

import numpy as np
import torch as th

from benchmarks.lib.groups import groups_of
from sb3_grpo import GRPO


def environment_state(env: Any) -> list[Any]:
    """
    Return the odds of the tasks and the tasks chosen, of each environment.

    :param env: environments; those without tasks have no state
    """
    if not env.has_attr("get_task_probabilities"):
        return []
    odds = [np.asarray(each).tolist() for each in env.env_method("get_task_probabilities")]
    return [odds, env.get_attr("task_choice")]


def faults_of(model: Any) -> list[str]:
    """
    Return what is wrong with the model's parameters, its optimizer and its groups.

    :param model: PPO or GRPO
    """
    policy = model.policy
    faults = optimizer_faults(policy)
    if not all(parameter.isfinite().all() for parameter in policy.parameters()):
        faults.append("parameters are not finite")
    if isinstance(model, GRPO):
        history = model.regroup_history
        expected = history[-1].cell_to_group if history else model.first_grouping
        if list(expected) != groups_of(model):
            faults.append("the history of the groups does not end in the groups")
        if [record.group for record in model.groups] != sorted(set(groups_of(model))):
            faults.append("groups are not those of the cells")
    return faults


def optimizer_faults(policy: Any) -> list[str]:
    """
    Return what is wrong with the optimizer of a policy.

    :param policy: policy with Adam
    """
    faults = []
    optimized = {id(parameter) for group in policy.optimizer.param_groups for parameter in group["params"]}
    if {id(parameter) for parameter in policy.parameters() if parameter.requires_grad} != optimized:
        faults.append("the optimizer's parameters are not the policy's")
    for parameter, moments in policy.optimizer.state.items():
        if not {"step", "exp_avg", "exp_avg_sq"} <= moments.keys():
            # Adam makes them one after the other in its first step
            faults.append("a moment is missing")
            continue
        for moment in (moments["exp_avg"], moments["exp_avg_sq"]):
            if moment.shape != parameter.shape:
                faults.append("a moment has another shape than its parameter")
            if not moment.isfinite().all():
                faults.append("moments are not finite")
    return list(dict.fromkeys(faults))


def same_parameters(model: Any, other: Any) -> bool:
    """
    Return whether parameters and moments are equal, bit for bit.

    :param model: one model
    :param other: the other model
    """
    mine, theirs = model.policy.state_dict(), other.policy.state_dict()
    state, loaded = (each.policy.optimizer.state_dict()["state"] for each in (model, other))
    return (
        mine.keys() == theirs.keys()
        and all(th.equal(mine[name], theirs[name]) for name in mine)
        and state.keys() == loaded.keys()
        and all(state[key].keys() == loaded[key].keys() for key in state)
        and all(th.equal(state[key]["exp_avg"], loaded[key]["exp_avg"]) for key in state if "exp_avg" in state[key])
    )
