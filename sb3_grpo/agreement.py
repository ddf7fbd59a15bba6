"""
Measure whether objectives ask for the same change of the policy, as pure functions of sums over steps.

What an objective asks for is its probe, see :class:`sb3_grpo.probes.ProbeSums`: one natural-gradient step for this objective
alone. Objectives that are nearly satisfied ask for little, but what they ask for can still contradict. Probes are therefore
compared at equal strength: each is scaled to ``MAX_PROBE_KL`` nats from the head. Then the KL divergence between two of them
is, to second order, ``2 * MAX_PROBE_KL * (1 - cos)``, where ``cos`` is their cosine in the metric of the Fisher matrix: 0 for
the same wishes, 2 nats for wishes that have nothing to do with each other, 4 nats for opposite ones.

Notation: ``K`` objectives, ``G`` groups of them, ``F`` folds. Every step belongs to all objectives.
"""

from typing import NamedTuple

import torch as th

from sb3_grpo.probe_math import MAX_PROBE_KL, Sums
from sb3_grpo.regroup_plan import MIN_Z_SCORE, Divergences


class Wishes(NamedTuple):
    """How the probes of ``P`` objectives, or groups of them, compare."""

    kl: th.Tensor  # at equal strength, nats, shape (P, P); NaN where one of the two wishes is not certain
    error: th.Tensor  # standard error of `kl`, shape (P, P)
    kl_by_half: th.Tensor  # from each half of the folds, shape (2, P, P)


def probe_products(sums: Sums) -> th.Tensor:
    """
    Compute ``<X, F Y> / 2`` for what each two folds contribute to the probes of each two objectives.

    :param sums: sums over the same steps for each of ``K`` objectives
    :return: nats, shape ``(K, F, K, F)``
    """
    contributions = sums.solve().contributions
    # the same steps have the same moments
    grad_moment, latent_moment = (moment[0] for moment in sums.moments())
    transformed = grad_moment @ contributions @ latent_moment
    return 0.5 * th.einsum("ifnd,jgnd->ifjg", contributions, transformed)


def compare_wishes(products: th.Tensor, shares: th.Tensor) -> Wishes:
    """
    Compare probes, without the bias that noise adds to a square: only products of different folds are used.

    Standard errors are those of the jackknife over folds (https://doi.org/10.1214/aos/1176345462).

    :param products: of :func:`probe_products`, shape ``(P, F, P, F)``
    :param shares: share of each fold in the steps, shape ``(F,)``
    :return: the comparison; a wish is certain if its squared strength is ``MIN_Z_SCORE`` standard errors above 0
    """
    n_folds = products.shape[1]
    every = th.ones(1, n_folds, dtype=th.bool)
    half = (th.arange(n_folds) % 2 == th.arange(2).unsqueeze(1)) & every
    used = th.cat([every, half, ~th.eye(n_folds, dtype=th.bool)])
    pairs = used.unsqueeze(1) & used.unsqueeze(2) & ~th.eye(n_folds, dtype=th.bool)
    sums = th.einsum("mfg,ifjg->mij", pairs.to(products), products)
    strengths = sums.diagonal(dim1=1, dim2=2)
    # noise can make a square negative: there is no cosine then, but NaN
    lengths = strengths.sqrt()
    kls = 2 * MAX_PROBE_KL * (1 - sums / (lengths.unsqueeze(1) * lengths.unsqueeze(2)))
    # what a fold contributes grows with its share
    strengths = strengths / th.einsum("mfg,f,g->m", pairs.to(products), shares, shares).unsqueeze(1)
    errors = [jackknife_error(values[3:]) for values in (strengths, kls)]
    certain = strengths[0] > MIN_Z_SCORE * errors[0]
    kl, *by_half = kls[:3].where(certain & certain.unsqueeze(1), th.nan)
    return Wishes(kl, errors[1], th.stack(by_half))


def jackknife_error(values: th.Tensor) -> th.Tensor:
    """
    Return the standard error of an estimate from what it is without each of the folds.

    :param values: shape ``(F, ...)``
    :return: shape ``(...)``
    """
    n_folds = len(values)
    return ((n_folds - 1) * values.var(dim=0, correction=0)).sqrt()


def compare_objectives(sums: Sums, cell_to_group: th.Tensor, n_groups: int) -> Divergences:
    """
    Measure how groups of objectives, and the objectives within them, differ.

    A group asks for the mean of what its objectives ask for. Within a group the two objectives that differ most count.

    :param sums: sums over the same steps for each of ``K`` objectives
    :param cell_to_group: group of each objective, shape ``(K,)``, integers in ``[0, n_groups)``
    :param n_groups: largest number of groups
    """
    # every fold has the same steps of all objectives. To leave out an empty one changes nothing: errors would seem smaller
    counts, groups = sums.counts[0], cell_to_group.unique()
    filled = (counts > 0) | (counts.sum() == 0)
    products, shares = probe_products(sums)[:, filled][..., filled], counts[filled] / counts.sum()
    members = (cell_to_group == groups.unsqueeze(1)).to(products)
    means = members / members.sum(dim=1, keepdim=True)
    of_groups = compare_wishes(th.einsum("gi,ifje,hj->gfhe", means, products, means), shares)
    wishes = compare_wishes(products, shares)
    between, between_error = products.new_full((2, n_groups, n_groups), th.nan)
    between[groups.unsqueeze(1), groups] = of_groups.kl.clamp(min=0)
    between_error[groups.unsqueeze(1), groups] = of_groups.error
    within, within_error = products.new_full((2, n_groups), th.nan)
    for group, own in zip(groups.tolist(), members.bool(), strict=True):
        kl = wishes.kl[own][:, own].fill_diagonal_(th.nan).nan_to_num(-th.inf)
        if kl.isfinite().any():
            within[group] = kl.max()
            within_error[group] = wishes.error[own][:, own].flatten()[kl.argmax()]
    cell_counts = sums.counts.sum(dim=1)
    return Divergences(between, within, within_error, wishes.kl, wishes.kl_by_half, cell_counts, between_error)
