"""Heads as they are stored: side by side in a few parameters, each with the optimizer's moments."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

# Dimension along which the heads stand side by side
HEAD_DIMS = {"action_net.weight": 0, "action_net.bias": 0, "value_net.weight": 0, "value_net.bias": 0, "log_std": -1}


def split_heads(tensor: th.Tensor, dim: int, n_heads: int) -> th.Tensor:
    """
    :param tensor: ``n_heads`` heads side by side in dimension ``dim``
    :param dim: 0 or -1
    :param n_heads: number of heads
    :return: a view in which the first dimension counts the heads
    """
    heads = tensor.unflatten(dim, (n_heads, -1))
    # a permutation that changes nothing would be written into exported models, which cannot be loaded then
    return heads if dim == 0 or tensor.ndim == 1 else heads.movedim(-2, 0)


def _head_views(policy: ActorCriticPolicy, n_heads: int) -> Iterator[tuple[th.Tensor, bool]]:
    """
    :return: for each parameter that holds heads, and each of its moments in the optimizer: a view with one entry
        per head, and whether it is a moment
    """
    for name, parameter in policy.named_parameters():
        if name not in HEAD_DIMS:
            continue
        moments = [value for value in policy.optimizer.state[parameter].values() if _is_moment(value, parameter)]
        for tensor, is_moment in [(parameter.data, False), *((moment, True) for moment in moments)]:
            yield split_heads(tensor, HEAD_DIMS[name], n_heads), is_moment


def _is_moment(value: Any, parameter: th.Tensor) -> bool:
    return isinstance(value, th.Tensor) and value.shape == parameter.shape


def copy_head(policy: ActorCriticPolicy, source: int, target: int, n_heads: int) -> None:
    """
    Make a head equal to another one, moments included.

    :param policy: with ``n_heads`` heads
    :param source: head to copy
    :param target: head to overwrite
    :param n_heads: number of heads
    """
    for heads, _ in _head_views(policy, n_heads):
        heads[target] = heads[source]


def merge_heads(policy: ActorCriticPolicy, keep: int, gone: int, share: float, n_heads: int) -> None:
    """
    Average two heads, moments included. The moments of the head that is no longer used become 0, so that the
    optimizer does not move it.

    :param policy: with ``n_heads`` heads
    :param keep: head that becomes the average
    :param gone: head that is no longer used; its weights stay as they are
    :param share: weight of ``keep`` in the average, 0 to 1
    :param n_heads: number of heads
    """
    for heads, is_moment in _head_views(policy, n_heads):
        heads[keep].lerp_(heads[gone], 1 - share)
        if is_moment:
            heads[gone] = 0


def repeat_heads(state_dict: Mapping[str, th.Tensor], n_heads: int) -> dict[str, th.Tensor]:
    """
    :param state_dict: of a policy with one head
    :param n_heads: number of heads
    :return: that of a policy with ``n_heads`` copies of the head
    """
    repeated = dict(state_dict)
    for name, dim in HEAD_DIMS.items():
        if name in state_dict:
            repeated[name] = th.cat([state_dict[name]] * n_heads, dim=dim)
    return repeated


@contextmanager
def only_head(policy: ActorCriticPolicy, head: int, n_heads: int) -> Iterator[None]:
    """
    A context in which the parameters and moments of a policy are those of one head, in the shapes of SB3's policy:
    so everything that is done to them is SB3's arithmetic, to the last bit. What happened to them is written
    back at the end.

    :param policy: with ``n_heads`` heads
    :param head: the head that remains
    :param n_heads: number of heads
    """
    whole = {name: parameter for name, parameter in policy.named_parameters() if name in HEAD_DIMS}
    # new objects instead of new data: a graph that is still alive remembers the shape of a parameter
    narrow = {
        name: nn.Parameter(_own(parameter.data, name, head, n_heads).clone(), requires_grad=parameter.requires_grad)
        for name, parameter in whole.items()
    }
    states = policy.optimizer.state
    for name, parameter in whole.items():
        states[narrow[name]] = {
            key: _own(value, name, head, n_heads).clone() if _is_moment(value, parameter) else value
            for key, value in states[parameter].items()
        }
        _replace(policy, name, narrow[name])
    try:
        yield
    finally:
        for name, parameter in whole.items():
            _replace(policy, name, parameter)
            if (gradient := narrow[name].grad) is not None:
                parameter.grad = th.zeros_like(parameter)
                _own(parameter.grad, name, head, n_heads).copy_(gradient)
            _own(parameter.data, name, head, n_heads).copy_(narrow[name].data)
            for key, value in states.pop(narrow[name]).items():
                if _is_moment(value, narrow[name]):
                    moment = states[parameter].setdefault(key, th.zeros_like(parameter.data))
                    _own(moment, name, head, n_heads).copy_(value)
                else:
                    states[parameter][key] = value


def _own(tensor: th.Tensor, name: str, head: int, n_heads: int) -> th.Tensor:
    return split_heads(tensor, HEAD_DIMS[name], n_heads)[head]


def _replace(policy: ActorCriticPolicy, name: str, parameter: nn.Parameter) -> None:
    """Put a parameter into the place of that with this name, in the policy and in its optimizer."""
    module_name, _, attribute = name.rpartition(".")
    module = policy.get_submodule(module_name)
    old = getattr(module, attribute)
    setattr(module, attribute, parameter)
    for group in policy.optimizer.param_groups:
        group["params"] = [parameter if each is old else each for each in group["params"]]
