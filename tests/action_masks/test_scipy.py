"""Entropies and divergences of masked distributions are those that scipy finds for the allowed actions alone."""

import numpy as np
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from scipy.stats import entropy

from sb3_grpo.distributions import make_action_distribution, mask_outputs
from sb3_grpo.probe_math import heads_kl

property_test = settings(deadline=None, max_examples=100, derandomize=True, database=None)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray]:
    """Sizes of variables, outputs of two heads for five steps, and masks."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    one, other = draw(st.floats(0.01, 20)) * random.standard_normal((2, 5, sum(sizes)))
    masks = random.random((5, sum(sizes))) < draw(st.floats(0, 1))
    for part in np.split(masks, np.cumsum(sizes)[:-1], axis=1):
        part[np.arange(5), random.integers(part.shape[1], size=5)] = True
    return sizes, one, other, masks


def expected(sizes: list[int], one: np.ndarray, other: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Entropy of one head and divergence of the other from it, at one step."""
    edges = np.cumsum(sizes)[:-1]
    parts = zip(*(np.split(array, edges) for array in (one, other, mask)), strict=True)
    pairs = [(np.exp(log_softmax(p[allowed])), np.exp(log_softmax(q[allowed]))) for p, q, allowed in parts]
    return sum(entropy(p) for p, _ in pairs), sum(entropy(p, q) for p, q in pairs)


@property_test
@given(cases())
def test_entropy_and_divergence(case):
    sizes, one, other, masks = case
    family = make_action_distribution(spaces.MultiDiscrete(sizes), use_sde=False, masked=True)
    p, q = (family.params(mask_outputs(th.as_tensor(outputs), th.as_tensor(masks)), None) for outputs in (one, other))
    wanted = np.array([expected(sizes, *step) for step in zip(one, other, masks, strict=True)])
    found = family.entropy(p)
    assert found is not None
    np.testing.assert_allclose(found, wanted[:, 0], atol=1e-9)
    np.testing.assert_allclose(family.kl(p, q), wanted[:, 1], rtol=1e-9, atol=1e-9)


@property_test
@given(cases())
def test_divergence_of_heads(case):
    """As regrouping measures it: three steps of one group, two of another, the larger direction."""
    sizes, one, other, masks = case
    family = make_action_distribution(spaces.MultiDiscrete(sizes), use_sde=False, masked=True)
    heads = th.as_tensor(np.stack([one, other], axis=1))
    member = th.tensor([0, 1, 0, 1, 0])
    # the latent vector is the number of the step
    kl = heads_kl(
        th.arange(5.0, dtype=th.float64).unsqueeze(1),
        member,
        th.arange(2),
        lambda points, groups: (heads[points.flatten().long()][:, groups], None),
        family,
        sum(sizes),
        th.as_tensor(masks),
    )
    there = np.mean([expected(sizes, *step)[1] for step in zip(one, other, masks, strict=True)])
    back = np.mean([expected(sizes, *step)[1] for step in zip(other, one, masks, strict=True)])
    np.testing.assert_allclose(kl[0, 1], max(there, back), rtol=1e-9, atol=1e-9)
    assert kl[1, 0] == kl[0, 1]


def test_a_mask_changes_a_divergence():
    """Negative control: heads that differ in what is not allowed are the same where it is not."""
    one, other, mask = th.tensor([[0.0, 0.0, 5.0]]), th.tensor([[0.0, 0.0, -5.0]]), th.tensor([[1, 1, 0]])
    family = make_action_distribution(spaces.Discrete(3), use_sde=False, masked=True)
    masked, plain = (family.kl(*(family.params(mask_outputs(x, m), None) for x in (one, other))) for m in (mask, None))
    assert masked.item() == 0.0
    assert plain.item() > 5
