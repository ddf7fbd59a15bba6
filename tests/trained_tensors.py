"""All that training changes in a model, so that two models can be compared."""

import torch as th

from sb3_grpo import GRPO
from sb3_grpo.heads import HEAD_DIMS, split_heads


def tensors_of(model: GRPO) -> dict[str, th.Tensor]:
    """
    Collect parameters, the optimizer's moments and what training goes on with.

    :param model: the model
    :return: tensors by name; of heads those of the groups in use, because a compiled model holds heads for others too
    """
    policy, optimizer = model.policy, model.policy.optimizer
    in_use = [policy.grouping.heads.index(group) for group in policy.grouping.active]
    tensors: dict[str, th.Tensor] = {f"parameter {name}": tensor for name, tensor in policy.named_parameters()}
    for name, parameter in policy.named_parameters():
        tensors |= {f"{key} {name}": value for key, value in optimizer.state.get(parameter, {}).items()}
    for label, tensor in tensors.items():
        name = label.partition(" ")[2]
        if name in HEAD_DIMS and tensor.ndim > 0:
            tensors[label] = split_heads(tensor, HEAD_DIMS[name], policy.n_heads)[in_use]
    state = {f"state {name}": tensor for name, tensor in model.training_state().items()}
    if policy.value_scale is not None:
        buffers = policy.value_scale.named_buffers()
        state |= {f"state value_scale.{name}": buffer[in_use] for name, buffer in buffers}
    return {name: tensor.detach() for name, tensor in {**tensors, **state}.items()}


def assert_close(left: GRPO, right: GRPO) -> None:
    """
    Check that two models are equal within rounding.

    :param left: the one
    :param right: the other
    """
    expected, actual = tensors_of(left), tensors_of(right)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        atol, rtol = (1e-3, 1e-2) if name.startswith("exp_avg") else (1e-5, 1e-4)
        if "probes." in name:
            # sums over all steps, in which terms cancel
            atol = 1e-4 * max(1.0, value.abs().max().item())
        th.testing.assert_close(actual[name], value, msg=name, atol=atol, rtol=rtol)
