"""
Compute the mathematics of GRPO: pure functions that know neither policy nor algorithm.

Functions of a few groups take NumPy arrays or tensors. Statistics of a whole rollout are computed with NumPy in float64,
so that they are the same on every device: some have no float64, and on others sums have no fixed order.

Notation: ``B`` steps in a rollout, ``K`` groups with at least one step in it, ``R_i`` the mean score
of group ``i``, ``n_i`` its number of steps, ``sigma_R`` the fluctuation of the scores over *all* steps,
``lambda`` the group coefficient, ``s_i`` the divisor that normalises the advantages of group ``i``.
"""

import math
from typing import Any, TypeVar

import numpy as np
import torch as th

Array = TypeVar("Array", np.ndarray, th.Tensor)

# Below this fluctuation the scores are equal but for rounding: the penalty is 0
MIN_SCALE = 1e-8


def relative_advantage_matrix(scores: Array, scale: Any) -> Array:
    """
    Compare every group with every other: ``D_ij = (R_i - R_j) / sigma_R``.

    ``scale`` must be pooled over steps. With the standard deviation of the K means themselves the
    squared norm of the matrix is ``2 K^2`` whatever the scores: a constant without a signal.

    :param scores: mean score of each group, shape ``(K,)``
    :param scale: fluctuation of the scores over all steps, same unit as ``scores``, at least 0
    :return: antisymmetric matrix with zero diagonal, shape ``(K, K)``; all zeros if
        ``scale`` is below ``MIN_SCALE``
    :raises ValueError: if ``scores`` is not one-dimensional
    """
    if scores.ndim != 1:
        raise ValueError(f"`scores` must have shape (K,), got {tuple(scores.shape)}")
    differences = scores[:, None] - scores[None, :]
    return differences / scale if scale >= MIN_SCALE else 0 * differences


def group_penalty(matrix: Array) -> Any:
    """
    Compute the penalty ``L_group = ||M||_F^2 = sum_ij D_ij^2``; for equally large groups it is ``2 K^2 eta^2``.

    :param matrix: relative advantages, shape ``(K, K)``
    :return: scalar, at least 0
    """
    return (matrix**2).sum()


def penalty_slope(scores: Array, scale: Any) -> Array:
    """
    Compute ``d L_group / d R_i = 4 K (R_i - mean_j R_j) / sigma_R^2``, the derivative of the penalty.

    :param scores: mean score of each group, shape ``(K,)``
    :param scale: fluctuation of the scores over all steps
    :return: shape ``(K,)``, sums to 0; positive for groups that are ahead
    """
    if scale < MIN_SCALE:
        return 0 * scores
    return 4 * len(scores) * (scores - scores.mean()) / scale**2


def largest_group_coef(slope: Array, shares: Array, advantage_scale: Array) -> float:
    """
    Compute the largest lambda at which no group is trained to become worse.

    Group ``i`` enters the objective with the weight ``w_i = share_i / s_i - lambda * slope_i``; this is
    the lambda at which the first ``w_i`` reaches 0.

    :param slope: derivative of the penalty with respect to each group's score, shape ``(K,)``
    :param shares: share of the steps that belong to each group, ``n_i / B``, shape ``(K,)``
    :param advantage_scale: divisor that normalises each group's advantages, shape ``(K,)``
    :return: at least 0; ``inf`` when no group is ahead of the others
    """
    # advantages that are all 0 have a weight of 1 whatever lambda is
    ahead = (slope > 0) & (advantage_scale > 0)
    return float((shares[ahead] / (advantage_scale[ahead] * slope[ahead])).min()) if ahead.any() else math.inf


def group_weights(slope: Array, shares: Array, advantage_scale: Array, coef: float) -> Array:
    """
    Compute the factor on each group's policy-gradient loss that makes its gradient that of ``L_PPO + lambda * L_group``.

    ``w_i / (share_i / s_i) = 1 - lambda * slope_i * s_i / share_i``: 1 is PPO, more than 1 is a group
    that is behind, less than 1 one that is ahead.

    :param slope: derivative of the penalty with respect to each group's score, shape ``(K,)``
    :param shares: share of the steps that belong to each group, shape ``(K,)``
    :param advantage_scale: divisor that normalises each group's advantages, shape ``(K,)``
    :param coef: lambda, between 0 and :func:`largest_group_coef`
    :return: shape ``(K,)``, at least 0
    """
    # at the largest lambda rounding can leave a weight a little below 0
    return (1 - coef * slope * advantage_scale / shares).clip(0)


def score_fluctuation(step_scores: Array, kind: str) -> Any:
    """
    Compute ``sigma_R``, the fluctuation of the scores over all steps of the rollout.

    :param step_scores: score of each step, shape ``(B,)``
    :param kind: ``"std"`` (population standard deviation) or ``"range"`` (largest minus smallest)
    :return: scalar, at least 0
    """
    if kind == "range":
        return step_scores.max() - step_scores.min()
    return ((step_scores - step_scores.mean()) ** 2).mean() ** 0.5


def group_means(values: np.ndarray, member: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """
    Compute the mean of ``values`` in each group.

    :param values: shape ``(B,)``
    :param member: group of each step, shape ``(B,)``, integers in ``[0, K)``
    :param counts: number of steps of each group, shape ``(K,)``; the mean of a group without steps is 0
    :return: shape ``(K,)``, float64
    """
    return np.bincount(member, values, minlength=len(counts)) / np.maximum(counts, 1)


def group_std(values: np.ndarray, member: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """
    Compute the sample standard deviation of ``values`` in each group.

    :param values: shape ``(B,)``
    :param member: group of each step, shape ``(B,)``, integers in ``[0, K)``
    :param counts: number of steps of each group, shape ``(K,)``
    :return: shape ``(K,)``, float64; 0 for groups of less than two steps
    """
    centred = values - group_means(values, member, counts)[member]
    return np.sqrt(np.bincount(member, centred**2, minlength=len(counts)) / np.maximum(counts - 1, 1))


def clipped_surrogate(
    ratio: th.Tensor, advantages: th.Tensor, clip_range: float, clip_range_high: float | None = None
) -> th.Tensor:
    """
    Compute ``min(rho A, clip(rho, 1 - eps, 1 + eps) A)`` of each step: PPO, eq. 7 of https://arxiv.org/abs/1707.06347.

    :param ratio: probability ratio ``rho`` of new to old policy, shape ``(B,)``
    :param advantages: shape ``(B,)``
    :param clip_range: ``eps``, above 0
    :param clip_range_high: ``eps`` on the upper side, above 0 (DAPO, eq. 10 of https://arxiv.org/abs/2503.14476); ``None``:
        ``clip_range``
    :return: shape ``(B,)``
    """
    high = clip_range if clip_range_high is None else clip_range_high
    # the order of the factors is SB3's: parity is exact to the last bit
    return th.min(advantages * ratio, advantages * th.clamp(ratio, 1 - clip_range, 1 + high))


def k3(log_prob: th.Tensor, reference_log_prob: th.Tensor) -> th.Tensor:
    """
    Estimate KL(policy || reference) from actions of the policy: ``q / p - log(q / p) - 1``.

    Eq. 4 of https://arxiv.org/abs/2402.03300, from http://joschu.net/blog/kl-approx.html. As a term of the loss it is
    differentiated with the actions held fixed; its expected gradient is then that of KL(reference || policy), which
    agrees with that of KL(policy || reference) as long as the two policies are near each other.

    :param log_prob: log-likelihood ``log p`` of the actions by the policy, shape ``(B,)``
    :param reference_log_prob: ``log q``, by the reference policy, shape ``(B,)``
    :return: nats, at least 0, unbiased if the actions are the policy's, shape ``(B,)``
    """
    difference = reference_log_prob - log_prob
    return difference.exp() - 1 - difference


def trajectory_log_ratio(log_ratio: th.Tensor, trajectories: th.Tensor) -> th.Tensor:
    """
    Average the log-ratios of each trajectory's steps: ``log s_i``, eq. 7 of https://arxiv.org/abs/2507.18071 (GSPO).

    :param log_ratio: of each step, shape ``(B,)``
    :param trajectories: number of the trajectory of each step, integers from 0, shape ``(B,)``
    :return: that of its trajectory for each step, shape ``(B,)``
    """
    n_trajectories = int(trajectories.max()) + 1
    zeros = log_ratio.new_zeros(n_trajectories)
    counts = zeros.index_add(0, trajectories, th.ones_like(log_ratio))
    return (zeros.index_add(0, trajectories, log_ratio) / counts.clamp(min=1))[trajectories]


def approx_kl(log_ratio: th.Tensor) -> th.Tensor:
    """
    Estimate KL(old || new) by ``mean(rho - 1 - log rho)``, which is unbiased and has low variance.

    Source: http://joschu.net/blog/kl-approx.html

    :param log_ratio: ``log rho`` of each step, shape ``(b,)``
    :return: scalar, nats
    """
    return (log_ratio.exp() - 1 - log_ratio).mean()
