"""Move heads between groups: they stand side by side in a few parameters, each with the optimizer's moments."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

# Dimension along which the heads stand side by side
HEAD_DIMS = {"action_net.weight": 0, "action_net.bias": 0, "value_net.weight": 0, "value_net.bias": 0, "log_std": -1}


def split_heads(tensor: th.Tensor, dim: int, n_heads: int) -> th.Tensor:
    """
    View heads that stand side by side as one entry per head.

    :param tensor: ``n_heads`` heads side by side in dimension ``dim``
    :param dim: 0 or -1
    :param n_heads: number of heads
    :return: a view whose first dimension has the length ``n_heads``
    """
    heads = tensor.unflatten(dim, (n_heads, -1))
    # no movedim where it changes nothing: torch.export writes it into the model, and fails to load that
    return heads if dim == 0 or tensor.ndim == 1 else heads.movedim(-2, 0)


def pick_heads(tensor: th.Tensor, dim: int, n_heads: int, sources: Sequence[int]) -> th.Tensor:
    """
    Copy some of the heads that stand side by side.

    :param tensor: ``n_heads`` heads side by side in dimension ``dim``
    :param dim: 0 or -1
    :param n_heads: number of heads
    :param sources: index of the head to copy for each head of the result
    :return: ``len(sources)`` heads side by side in the same dimension
    """
    index = th.as_tensor(sources, device=tensor.device)
    return tensor.unflatten(dim, (n_heads, -1)).index_select(0 if dim == 0 else tensor.ndim - 1, index).flatten(*_joined(dim))


def _joined(dim: int) -> tuple[int, int]:
    """Return the two dimensions that hold head and entry after ``unflatten(dim, ...)``."""
    return (0, 1) if dim == 0 else (-2, -1)


def take_heads(policy: ActorCriticPolicy, n_heads: int, sources: Sequence[int]) -> None:
    """
    Replace all heads of a policy by copies of some of them, including the moments in the optimizer.

    Where the number of heads changes, the parameters become new objects: a graph that is still alive remembers the shape
    of a parameter, and autograd would reduce a gradient of another shape to it without an error. Hooks move to them.

    :param policy: has ``n_heads`` heads and an optimizer
    :param n_heads: number of heads before
    :param sources: index of the head to copy for each head afterwards
    """
    if list(sources) == list(range(n_heads)):
        return
    for name, old in _head_parameters(policy):
        dim, state = HEAD_DIMS[name], policy.optimizer.state.get(old, {})
        taken = {
            key: pick_heads(value, dim, n_heads, sources) if _is_moment(value, old) else value for key, value in state.items()
        }
        values = pick_heads(old.data, dim, n_heads, sources)
        if values.shape == old.shape:
            # the same object: compiled functions refer to it
            old.data.copy_(values)
            new = old
        else:
            new = nn.Parameter(values, requires_grad=old.requires_grad)
            _replace(policy, name, old, new)
        if state:
            policy.optimizer.state[new] = taken


def repeat_value_head(policy: ActorCriticPolicy, n_copies: int) -> None:
    """
    Replace the only value head of a policy by copies of it.

    :param policy: changed in place, its optimizer too, which has not taken a step yet
    :param n_copies: number of value heads afterwards
    """
    for name, old in _head_parameters(policy):
        if name.startswith("value_net."):
            values = pick_heads(old.data, HEAD_DIMS[name], 1, [0] * n_copies)
            _replace(policy, name, old, nn.Parameter(values, requires_grad=old.requires_grad))


def _replace(policy: ActorCriticPolicy, name: str, old: nn.Parameter, new: nn.Parameter) -> None:
    """Put a parameter into the place of another one, in the policy, in its optimizer, and for those who registered hooks."""
    module_name, _, attribute = name.rpartition(".")
    module = policy.get_submodule(module_name)
    setattr(module, attribute, new)
    if isinstance(module, nn.Linear):
        module.out_features = len(new)
    new._backward_hooks = old._backward_hooks
    new._post_accumulate_grad_hooks = old._post_accumulate_grad_hooks
    policy.optimizer.state.pop(old, None)
    for group in policy.optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]


def average_heads(policy: ActorCriticPolicy, n_heads: int, target: int, other: int, share: float) -> None:
    """
    Replace a head by its weighted average with another one, including the moments in the optimizer.

    :param policy: has ``n_heads`` heads and an optimizer
    :param n_heads: number of heads
    :param target: index of the head that becomes the average
    :param other: index of the head that is no longer used; its weights stay as they are, its moments become 0
    :param share: weight of ``target`` in the average, 0 to 1
    """
    for name, parameter in _head_parameters(policy):
        state = policy.optimizer.state.get(parameter, {})
        moments = [value for value in state.values() if _is_moment(value, parameter)]
        for tensor in (parameter.data, *moments):
            heads = split_heads(tensor, HEAD_DIMS[name], n_heads)
            heads[target].lerp_(heads[other], 1 - share)
        for tensor in moments:
            # where all heads are held, the optimizer would go on moving this one
            split_heads(tensor, HEAD_DIMS[name], n_heads)[other] = 0


def _head_parameters(policy: ActorCriticPolicy) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield name and parameter for each parameter that holds heads."""
    yield from [(name, parameter) for name, parameter in policy.named_parameters() if name in HEAD_DIMS]


def _is_moment(value: Any, parameter: th.Tensor) -> bool:
    """Return whether an entry of the optimizer's state belongs to single weights, as Adam's moments do."""
    return isinstance(value, th.Tensor) and value.shape == parameter.shape


def n_heads_in(state_dict: Mapping[str, th.Tensor], policy: ActorCriticPolicy, n_heads: int) -> int | None:
    """
    Count the heads in a ``state_dict`` by the outputs that a head of a policy has.

    Value heads come first, because they have one output for every action space; a policy without a critic has none.

    :param state_dict: of SB3's policy, or of one of this package
    :param policy: has ``n_heads`` heads, each with as many outputs as one in the ``state_dict``
    :param n_heads: number of heads of the policy
    :return: number of heads in the ``state_dict``; ``None`` if it has no layer of heads that the policy has too
    """
    own = dict(policy.named_parameters())
    for name in ("value_net.bias", "action_net.bias"):
        if name in state_dict and name in own:
            return len(state_dict[name]) * n_heads // len(own[name])
    return None


def pick_heads_in(state_dict: Mapping[str, th.Tensor], n_heads: int, sources: Sequence[int]) -> dict[str, th.Tensor]:
    """
    Replace the heads in a ``state_dict`` by copies of some of them.

    :param state_dict: of a policy with ``n_heads`` heads
    :param n_heads: number of heads in it
    :param sources: index of the head to copy for each head of the result
    :return: the ``state_dict`` of a policy with ``len(sources)`` heads
    """
    picked = {
        name: pick_heads(state_dict[name], dim, n_heads, sources) for name, dim in HEAD_DIMS.items() if name in state_dict
    }
    return {**state_dict, **picked}
