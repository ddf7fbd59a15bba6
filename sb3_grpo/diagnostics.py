"""Diagnostics: say what is NaN or infinite and in which group, log an update, and describe the groups."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import explained_variance

from sb3_grpo.buffers import GroupBufferMixin, Rollout
from sb3_grpo.env_tasks import label_cells
from sb3_grpo.heads import split_heads
from sb3_grpo.losses import approx_kl, group_penalty, relative_advantage_matrix
from sb3_grpo.routing import NonFiniteError

if TYPE_CHECKING:
    from sb3_grpo.balancing import GroupWeights
    from sb3_grpo.policies import GroupActorCriticPolicy
    from sb3_grpo.scores import GroupScores
    from sb3_grpo.update import UpdateStep


class GroupRecord(NamedTuple):
    """What is known of one group in use."""

    group: int  #: its number, which it keeps for life
    cells: list[int]  #: its cells
    steps: int  #: in the last rollout
    score: float  #: mean over these steps; nan without steps
    weight: float  #: factor on the group's policy-gradient loss; 1 = PPO
    name: str | None = None  #: of the objective, or of its cells; ``None`` where they have none


def group_records(
    cell_to_group: Sequence[int], stats: Iterable[tuple[int, int, float, float]], names: Sequence[str] = ()
) -> list[GroupRecord]:
    """
    Return one record per group in use, in the order of their numbers.

    :param cell_to_group: group of each cell
    :param stats: group, steps, score and weight of the groups that had steps in the last rollout
    :param names: of the cells; empty: they have none
    """
    cells = cells_of_groups(cell_to_group)
    known = {group: numbers for group, *numbers in stats}
    unknown = (0, math.nan, 1.0)
    records = []
    for group, own in cells.items():
        steps, score, weight = known.get(group, unknown)
        records.append(GroupRecord(group, own, int(steps), score, weight, label_cells(own, names)))
    return records


def cells_of_groups(cell_to_group: Sequence[int]) -> dict[int, list[int]]:
    """
    Return the cells of each group in use, in the order of the groups' numbers.

    :param cell_to_group: group of each cell
    """
    return {group: [c for c, g in enumerate(cell_to_group) if g == group] for group in sorted(set(cell_to_group))}


def explain_failure(policy: "GroupActorCriticPolicy", obs: PyTorchObs) -> None:
    """
    Find out why the network failed on observations.

    :param policy: the policy
    :param obs: batch of observations on which it raised an error
    :raises ValueError: if observations, or the network's outputs for them, are the reason
    """
    check_discrete(obs, policy.observation_space)
    policy.grouping.router.check_routed(obs)
    raise_if_nonfinite(policy, obs)


def raise_if_nonfinite(policy: "GroupActorCriticPolicy", obs: PyTorchObs) -> None:
    """
    Refuse observations for which the policy's outputs are not finite.

    :param policy: the policy
    :param obs: batch of ``B`` observations
    :raises NonFiniteError: if there are such observations; the message says which, and in which groups
    :raises ValueError: if the reason is an action mask
    """
    params, values, _ = policy.heads(obs)
    # what is NaN in an observation makes values NaN, a mask does not
    if policy.action_masks is not None and values.isfinite().all():
        policy.action_masks.check(policy.action_masks.read(obs))
    mode_log_prob = policy.actions.log_prob(params, policy.actions.mode(params))
    finite = values.flatten().isfinite() & mode_log_prob.isfinite()
    if not finite.all():
        raise NonFiniteError(describe_nonfinite(obs, policy.groups(obs), finite))


def check_discrete(obs: PyTorchObs, space: spaces.Space) -> None:
    """
    Refuse observations outside of Discrete and MultiDiscrete spaces.

    :param obs: batch of observations
    :param space: their space
    :raises ValueError: if an entry is outside of its space
    """
    if isinstance(space, spaces.Dict):
        assert isinstance(obs, dict)
        for key, entry in space.items():
            check_discrete(obs[key], entry)
        return
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        assert isinstance(obs, th.Tensor)
        sizes = th.as_tensor(space.n if isinstance(space, spaces.Discrete) else space.nvec, device=obs.device)
        outside = (obs < 0) | (obs >= sizes)
        if outside.any():
            raise ValueError(f"observations must lie in {space}, got {obs[outside][0].item():g}")


def describe_nonfinite(obs: PyTorchObs, groups: th.Tensor, finite_output: th.Tensor) -> str:
    """
    Say for which observations the policy's outputs are not finite, and whether the observations are.

    :param obs: batch of ``B`` observations
    :param groups: group of each, shape ``(B,)``
    :param finite_output: whether the policy's output is finite for each, shape ``(B,)``
    :return: the message for the user
    """
    entries = obs.values() if isinstance(obs, dict) else [obs]
    finite = th.stack([entry.isfinite().reshape(len(groups), -1).all(dim=1) for entry in entries]).all(dim=0)
    if finite.all():
        failed = groups[~finite_output].unique().tolist()
        return f"the policy's output is NaN or infinite for finite observations (groups {failed})"
    return (
        f"observations must be finite, but {int((~finite).sum())} of {len(groups)} have NaN or infinite values "
        f"(environments {(~finite).nonzero().flatten().tolist()}, groups {groups[~finite].unique().tolist()})"
    )


def check_finite(columns: dict[str, th.Tensor], groups: th.Tensor, consequence: str) -> None:
    """
    Refuse what is NaN or infinite in a rollout.

    :param columns: tensors by the name for the message, each with ``B`` steps in the first dimension
    :param groups: group of each step, shape ``(B,)``
    :param consequence: what has been done about it, for the message
    :raises NonFiniteError: for the first column that is not finite
    """
    for name, values in columns.items():
        finite = values.reshape(len(values), -1).isfinite().all(dim=1)
        if not finite.all():
            raise NonFiniteError(
                f"{name} must be finite, but {int((~finite).sum())} of {len(finite)} steps of the rollout have NaN or "
                f"infinite values, in groups {groups[~finite].unique().tolist()}; {consequence}"
            )


def explain_refused_step(policy: "GroupActorCriticPolicy", step: "UpdateStep", batch: Rollout, rollout: Rollout) -> None:
    """
    Find out whether an optimizer step was refused because something is NaN or infinite.

    :param policy: the policy, before the step
    :param step: the step that was not taken
    :param batch: its minibatch
    :param rollout: the rollout that the minibatch is from
    :raises NonFiniteError: if the loss or the norm of the gradient is not finite
    """
    if step.terms.loss.isfinite() and math.isfinite(step.gradient_norm):
        return
    group_of_head = th.as_tensor(policy.grouping.heads, device=batch.heads.device)
    observations = rollout.observations if isinstance(rollout.observations, dict) else {"": rollout.observations}
    columns = {f"observations {key!r}" if key else "observations": values for key, values in observations.items()}
    check_finite(columns, group_of_head[rollout.heads], "the update was stopped before the optimizer step")
    if step.terms.loss.isfinite():
        raise NonFiniteError(
            "the gradient is NaN or infinite although the loss is finite; the update was stopped before the optimizer "
            "step. Look for an operation in the network whose derivative is not finite, such as the square root of 0."
        )
    actions = batch.actions.long().flatten() if isinstance(policy.action_space, spaces.Discrete) else batch.actions
    with th.no_grad():
        values, log_prob, _ = policy.evaluate_rollout(batch.observations, actions, batch.heads)
    finite = (log_prob - batch.old_log_prob).exp().isfinite()
    if policy.use_critic:
        errors = (batch.returns - values.view_as(batch.returns)).square()
        finite = finite & errors.reshape(len(finite), -1).isfinite().all(dim=1)
    failed = batch.heads[~finite]
    groups = group_of_head[failed if len(failed) else batch.heads].unique().tolist()
    raise NonFiniteError(
        f"the loss is NaN or infinite in groups {groups}; "
        "the update was stopped before the optimizer step. Lower `learning_rate`, or normalise the rewards."
    )


def log_update(
    logger: Logger, steps: list["UpdateStep"], epoch_start: int, clip_ranges: tuple[float, float], names: Iterable[str]
) -> None:
    """
    Log the terms of the loss under PPO's tags.

    :param logger: of the model
    :param steps: one for each minibatch
    :param epoch_start: index of the first minibatch of the last epoch
    :param clip_ranges: clipping parameters of the surrogate below and above 1
    :param names: of the terms
    """
    terms = [step.terms for step in steps]
    for name in names:
        logger.record(f"train/{name}", th.stack([getattr(each, name) for each in terms]).mean().item())
    log_ratio = [each.log_ratio for each in terms]
    logger.record("train/approx_kl", approx_kl(th.cat(log_ratio[epoch_start:])).item())
    change = th.cat(log_ratio).exp() - 1
    clipped = (change < -clip_ranges[0]) | (change > clip_ranges[1])
    logger.record("train/clip_fraction", clipped.float().mean().item())
    logger.record("train/loss", terms[-1].loss.item())


def log_policy(logger: Logger, policy: "GroupActorCriticPolicy", buffer: GroupBufferMixin) -> None:
    """
    Log PPO's figures of the policy after an update.

    :param logger: of the model
    :param policy: the policy
    :param buffer: the rollout that it was updated with
    """
    if policy.use_critic:
        logger.record("train/explained_variance", explained_variance(buffer.values.flatten(), buffer.returns.flatten()))
    log_std: Any = getattr(policy, "log_std", None)
    if log_std is not None:
        heads = [policy.grouping.heads.index(group) for group in policy.grouping.active]
        in_use = split_heads(log_std.detach(), -1, policy.n_heads)[heads]
        logger.record("train/std", in_use.exp().mean().item())


def log_groups(logger: Logger, n_active: int, scores: "GroupScores", weights: "GroupWeights") -> None:
    """
    Log how far the groups differ.

    :param logger: of the model
    :param n_active: number of groups in use
    :param scores: the comparison
    :param weights: what follows from it
    """
    logger.record("groups/n_active", n_active)
    logger.record("groups/eta_squared", scores.eta_squared)
    logger.record("groups/coef_effective", weights.coef)
    penalty = group_penalty(relative_advantage_matrix(scores.scores, scores.scale))
    logger.record("groups/penalty", float(penalty), "stdout")


def log_columns(logger: Logger, columns: Mapping[str, Iterable[float]], tags: Mapping[str, Sequence[str]]) -> None:
    """
    Log figures of single groups, in files and TensorBoard only: the table of the console would be too long.

    :param logger: of the model
    :param columns: figures of all groups, by the name of the figure
    :param tags: of these figures, by the name of the figure
    """
    for name, values in columns.items():
        for tag, value in zip(tags[name], values, strict=True):
            logger.record(tag, float(value), "stdout")
