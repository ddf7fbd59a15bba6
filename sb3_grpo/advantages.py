"""Normalisation of advantages by group, and the smallest number that they are divided by."""

import numpy as np

from sb3_grpo.losses import group_means, group_std


def _ratio(total: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Divide, with 0 where there is nothing to divide by."""
    return np.divide(total, by, out=np.zeros(total.shape), where=by > 0)


def single_reward_deviation(groups: np.ndarray, per_scale: np.ndarray, discount: float, n_steps: int) -> np.ndarray:
    """
    Compute the root mean square of each group's advantages in a rollout that has a single reward, which was not expected.

    Generalized advantage estimation adds such a reward, times ``discount ** k``, to the advantage of the step ``k`` steps
    before it. With a reward as large as the group's usually are, this is
    ``scale * sqrt(sum(discount ** (2 * k) for k in range(n_steps)) / n)``, ``n`` the steps of the group.

    :param groups: group of each step, shape ``(B,)``, integers in ``[0, K)``
    :param per_scale: 1 / scale of each group's rewards, 0 where it has had none, shape ``(K,)``; from
        :meth:`~sb3_grpo.reward_scale.RewardScale.inverse_of_groups`
    :param discount: ``gamma * gae_lambda``, 0 to 1
    :param n_steps: steps of the rollout in each environment
    :return: in units of the rewards, shape ``(K,)``; 0 for a group that has had no reward or has no steps
    """
    counts = np.bincount(groups, minlength=len(per_scale))
    credit = np.square(discount ** np.arange(n_steps)).sum()
    return _ratio(np.ones(len(counts)), per_scale) * np.sqrt(_ratio(np.full(len(counts), credit), counts))


def smallest_divisor(
    groups: np.ndarray, rewards: np.ndarray, per_scale: np.ndarray, discount: float, n_steps: int
) -> np.ndarray:
    """
    Compute the floor of each group's divisor: what a single reward would make of its advantages, if it has had none.

    A group with a reward in the rollout has no floor: what it learns from is in the deviation of its advantages. So tasks
    that pay in each step never have one.

    :param groups: group of each step, shape ``(B,)``, integers in ``[0, K)``
    :param rewards: as the environments gave them, shape ``(B,)``
    :param per_scale: see :func:`single_reward_deviation`
    :param discount: see :func:`single_reward_deviation`
    :param n_steps: see :func:`single_reward_deviation`
    :return: in units of the rewards, at least 0, shape ``(K,)``
    """
    rewarded = np.bincount(groups, rewards != 0, minlength=len(per_scale)) > 0
    return np.where(rewarded, 0.0, single_reward_deviation(groups, per_scale, discount, n_steps))


def normalize_by_group(advantages: np.ndarray, groups: np.ndarray, floor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Subtract the mean of each group's advantages, and divide by their standard deviation or the floor, whichever is larger.

    A rollout of a sparse task without a success has advantages that are errors of the value function, some ten times smaller
    than those of a rollout with one. Divided by their own standard deviation they become as large, and the policy follows
    them until it has lost its exploration. The floor keeps them small.

    :param advantages: shape ``(B,)``
    :param groups: group of each step, shape ``(B,)``, integers in ``[0, K)``
    :param floor: smallest divisor of each group, in units of its advantages, at least 0, shape ``(K,)``; see
        :func:`smallest_divisor`
    :return: normalised advantages, float32, shape ``(B,)``, and the divisor of each group, shape ``(K,)``; it is 0 for a
        group whose advantages have all been 0, which they stay
    """
    advantages, counts = advantages.astype(np.float64), np.bincount(groups, minlength=len(floor))
    largest = np.zeros(len(floor))
    np.maximum.at(largest, groups, np.abs(advantages))
    # below the last term differences between advantages are rounding errors of float32
    divisor = np.maximum.reduce([group_std(advantages, groups, counts), floor, np.finfo(np.float32).eps * largest])
    centred = advantages - group_means(advantages, groups, counts)[groups]
    return _ratio(centred, divisor[groups]).astype(np.float32), divisor
