"""Agreement of objectives: against constants worked out by hand, a policy's exact KL, and under noise."""

import math
from typing import Any

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_grpo.agreement import compare_objectives, compare_wishes, jackknife_error, probe_products
from sb3_grpo.probe_math import N_FOLDS
from sb3_grpo.probes import ObjectiveProbes

# Seeds of tests with noise
N_SEEDS = 200


def products_of(wishes: th.Tensor) -> th.Tensor:
    """Half the inner products of vectors, shape ``(P, N_FOLDS, d)``, each fold's with each other's."""
    return 0.5 * th.einsum("ifd,jgd->ifjg", wishes, wishes)


EQUAL = th.full((N_FOLDS,), 1 / N_FOLDS, dtype=th.float64)


def in_all_folds(*vectors: list[float]) -> th.Tensor:
    return th.tensor(vectors, dtype=th.float64).unsqueeze(1).expand(-1, N_FOLDS, -1)


class TestWishes:
    def test_by_hand(self) -> None:
        """Cosines of 45, 90 and 180 degrees; lengths do not matter."""
        found = compare_wishes(products_of(in_all_folds([1, 0], [5, 5], [0, 0.1], [-3, 0])), EQUAL)
        expected = [
            [0, 2 - math.sqrt(2), 2, 4],
            [2 - math.sqrt(2), 0, 2 - math.sqrt(2), 2 + math.sqrt(2)],
            [2, 2 - math.sqrt(2), 0, 2],
        ]
        np.testing.assert_allclose(found.kl[:3], expected, atol=1e-12)
        np.testing.assert_allclose(found.kl_by_half, found.kl.expand(2, -1, -1), atol=1e-12)
        np.testing.assert_allclose(found.error, 0, atol=1e-12)

    def test_halves_are_every_other_fold(self) -> None:
        wishes = in_all_folds([1, 0], [1, 0]).clone()
        wishes[1, 1::2] = th.tensor([0.0, 1.0], dtype=th.float64)
        found = compare_wishes(products_of(wishes), EQUAL)
        np.testing.assert_allclose(found.kl_by_half[:, 0, 1], [0, 2], atol=1e-12)

    def test_folds_of_different_size(self) -> None:
        """What a fold contributes is its share times what it asks for."""
        shares = th.arange(1, N_FOLDS + 1).to(th.float64)[:, None] / 36
        found = compare_wishes(products_of(in_all_folds([1, 0], [3, 4]) * shares), shares.flatten())
        assert found.kl[0, 1].item() == pytest.approx(2 * (1 - 3 / 5))

    def test_noise_that_objectives_share_does_not_make_them_alike(self) -> None:
        """Their wishes have nothing to do with each other, but the same actions and steps tell of both."""
        random, found, biased = np.random.default_rng(0), [], []
        truth = in_all_folds(*th.eye(200)[:2].tolist())
        for _ in range(N_SEEDS):
            products = products_of(truth + 0.2 * th.as_tensor(random.normal(size=(1, N_FOLDS, 200))))
            found.append(compare_wishes(products, EQUAL).kl[0, 1].item())
            sums = products.sum(dim=(1, 3))
            biased.append(2 * (1 - sums[0, 1] / (sums[0, 0] * sums[1, 1]).sqrt()).item())
        # where it is certain what they ask for
        certain = np.array(found)[np.isfinite(found)]
        assert len(certain) > N_SEEDS / 2
        assert certain.mean() == pytest.approx(2, abs=0.1)
        assert np.mean(biased) < 1.2, "the noise is too small to bias anything: this test says nothing"

    def test_noise_alone_is_no_wish(self) -> None:
        random = np.random.default_rng(1)
        found = [
            compare_wishes(products_of(th.as_tensor(random.normal(size=(2, N_FOLDS, 4)))), EQUAL).kl for _ in range(N_SEEDS)
        ]
        certain = [kl.isfinite().any().item() for kl in found]
        assert np.mean(certain) < 0.05

    def test_errors_are_as_large_as_the_spread(self) -> None:
        random = np.random.default_rng(2)
        truth = in_all_folds([1, 0, 0], [1, 1, 0])
        found = [
            compare_wishes(products_of(truth + 0.2 * th.as_tensor(random.normal(size=truth.shape))), EQUAL)
            for _ in range(N_SEEDS)
        ]
        spread = np.std([each.kl[0, 1].item() for each in found])
        assert np.mean([each.error[0, 1].item() for each in found]) == pytest.approx(spread, rel=0.25)


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = th.tensor([1.0, 4.0, -2.0, 7.0, 0.5], dtype=th.float64)
    without_one = (values.sum() - values) / 4
    assert jackknife_error(without_one).item() == pytest.approx(values.std().item() / math.sqrt(5))


def bandit(tables: Any, steps: int = 4000, seed: int = 0, noise: float = 0.0, n_folds: int = N_FOLDS) -> ObjectiveProbes:
    """
    What a policy that draws each action equally often has seen; each step is one of each objective.

    :param tables: what each action pays for each objective, shape ``(K, n_actions)``
    """
    random, table = np.random.default_rng(seed), th.as_tensor(np.array(tables), dtype=th.float32)
    n_objectives, n_actions = table.shape
    # every action equally often in every fold
    actions = th.arange(steps) % n_actions
    folds = (th.arange(steps) // n_actions) % n_folds
    gradient = th.nn.functional.one_hot(actions, n_actions) - 1 / n_actions
    credit = table[:, actions] + noise * th.as_tensor(random.normal(size=(n_objectives, steps)), dtype=th.float32)
    latent = th.ones(steps, 2)
    sums = ObjectiveProbes(2, n_actions, n_objectives)
    sums.learn(latent, gradient, credit, folds)
    return sums


def compare(sums: ObjectiveProbes, cell_to_group: list[int]) -> Any:
    return compare_objectives(sums.sums(th.arange(len(cell_to_group))), th.tensor(cell_to_group), len(cell_to_group))


# pays for each of four actions
TABLES = [[1.0, 0.0, 0.0, -1.0], [2.0, 1.0, -1.0, -2.0], [-1.0, 2.0, 0.0, 1.0]]


def correlation_kl(one: list[float], other: list[float]) -> float:
    return 2 * (1 - np.corrcoef(one, other)[0, 1])


class TestBandit:
    """All directions are alike where actions are drawn equally often: the cosine is the correlation of what they pay."""

    def test_closed_form(self) -> None:
        found = compare(bandit(TABLES), [0, 1, 2])
        for i, one in enumerate(TABLES):
            for j, other in enumerate(TABLES):
                assert found.between[i, j].item() == pytest.approx(correlation_kl(one, other), abs=1e-3)
        assert found.within.isnan().all()

    def test_it_is_the_kl_of_policies_at_equal_strength(self) -> None:
        """A second derivation: heads that have moved as each objective wants, so far that their KL from before is small."""
        distance, moved = 1e-4, []
        for table in TABLES:
            direction = th.tensor(table, dtype=th.float64) - float(np.mean(table))

            def policy(length: float, direction: th.Tensor = direction) -> th.Tensor:
                return (length * direction).log_softmax(dim=0)

            def kl(one: th.Tensor, other: th.Tensor) -> float:
                return (one.exp() * (one - other)).sum().item()

            # the KL grows with the square of the length
            length = 1e-2 * math.sqrt(distance / kl(policy(0), policy(1e-2)))
            moved.append(policy(length))
        found = compare(bandit(TABLES), [0, 1, 2]).between
        for i, one in enumerate(moved):
            for j, other in enumerate(moved):
                assert found[i, j].item() == pytest.approx(kl(one, other) / distance, abs=0.05)

    def test_a_group_asks_for_the_mean(self) -> None:
        """Of what its objectives ask for in units of their own deviation."""
        scaled = [np.array(table) / np.std(table) for table in TABLES]
        found = compare(bandit(TABLES), [1, 1, 2])
        expected = correlation_kl(list(scaled[0] + scaled[1]), TABLES[2])
        assert found.between[1, 2].item() == pytest.approx(expected, abs=1e-3)
        assert found.between[0].isnan().all()
        assert found.within[1].item() == pytest.approx(correlation_kl(TABLES[0], TABLES[1]), abs=1e-3)

    def test_within_a_group_the_two_that_differ_most(self) -> None:
        found = compare(bandit(TABLES, noise=0.5), [0, 0, 0])
        pairs = [found.cells[0, 1], found.cells[0, 2], found.cells[1, 2]]
        assert found.within[0].item() == pytest.approx(max(pairs).item(), rel=1e-5)
        assert 0 < found.within_error[0] < 0.5

    def test_an_objective_that_pays_the_same_for_all_actions_asks_for_nothing(self) -> None:
        found = compare(bandit([TABLES[0], [3.0] * 4, TABLES[2]]), [0, 1, 2])
        assert found.between[1].isnan().all()
        assert found.between[0, 2].isfinite()
        # in a group of its own wishes it changes nothing
        assert compare(bandit([TABLES[0], [3.0] * 4, TABLES[2]]), [0, 0, 2]).within.isnan().all()

    @pytest.mark.parametrize("n_folds", [3, 5])
    def test_empty_folds_do_not_make_errors_smaller(self, n_folds: int) -> None:
        """One environment fills a fold in each rollout."""
        sums = bandit(TABLES, noise=1.0, n_folds=n_folds).sums(th.arange(3))
        products = probe_products(sums)[:, :n_folds][..., :n_folds]
        shares = sums.counts[0, :n_folds] / sums.counts[0].sum()
        found = compare_objectives(sums, th.arange(3), 3)
        assert found.between_error is not None
        th.testing.assert_close(found.between_error, compare_wishes(products, shares).error, equal_nan=True)
        assert found.between_error[0, 1] > 0.01

    @pytest.mark.parametrize("n_folds", [1, 2])
    def test_two_folds_are_too_few(self, n_folds: int) -> None:
        assert compare(bandit(TABLES, n_folds=n_folds), [0, 1, 2]).between.isnan().all()

    def test_unobserved_objectives_are_not_compared(self) -> None:
        found = compare(ObjectiveProbes(2, 4, 3), [0, 1, 2])
        assert all(part.isnan().all() for part in (found.between, found.within, found.cells))

    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 1000), st.integers(-6, 20), st.permutations(range(3)))
    def test_units_and_order_do_not_matter(self, seed: int, power: int, order: list[int]) -> None:
        tables = np.random.default_rng(seed).normal(size=(3, 4)).tolist()
        expected = compare(bandit(tables, steps=512, seed=seed), [0, 1, 2]).between
        scaled = [[2.0**power * pay for pay in tables[0]], *tables[1:]]
        found = compare(bandit([scaled[place] for place in order], steps=512, seed=seed), [0, 1, 2]).between
        np.testing.assert_allclose(found, expected[order][:, order], atol=1e-3)


def test_products_are_those_of_the_probes() -> None:
    """Summed over folds: half the square of the probe of an objective in the metric of the Fisher matrix."""
    sums = bandit(TABLES, noise=1.0).sums(th.arange(3))
    probes = sums.solve().contributions.sum(dim=1)
    found = probe_products(sums).sum(dim=(1, 3))
    for i in range(3):
        for j in range(3):
            grad_moment, latent_moment = (moment[0] for moment in sums.moments())
            expected = 0.5 * th.trace(probes[i].T @ grad_moment @ probes[j] @ latent_moment)
            assert found[i, j].item() == pytest.approx(expected.item(), rel=1e-4)
