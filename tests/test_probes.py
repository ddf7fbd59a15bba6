"""Probes learn what the data say, and what is only noise does not look like a contradiction."""

import copy
import itertools
import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch as th
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sb3_grpo import probe_math, probes
from sb3_grpo.distributions import ActionDistribution, BernoulliActions, CategoricalActions, GaussianActions
from sb3_grpo.probe_math import N_FOLDS, Sums, cells_kl, product
from sb3_grpo.probes import (
    HALF_LIFE,
    MAX_DIM,
    MIN_CELL_COUNT,
    MIN_DIM,
    MIN_GROUP_COUNT,
    N_KEPT,
    SCALE_HALF_LIFE,
    Probes,
)
from sb3_grpo.regroup_plan import MIN_Z_SCORE, Divergences, Split, bipartition, plan_regrouping

LATENT_DIM, N_OUTPUTS = 3, 2
KL_COEF = 0.05
# What a test of many repetitions may be off by, in standard errors of their mean; all of them are seeded
TOLERANCE = 3.5


class Rollout(NamedTuple):
    latent: th.Tensor
    grad_log_prob: th.Tensor
    advantages: th.Tensor
    cells: th.Tensor
    folds: th.Tensor


def make_probes(n_cells: int, latent_dim: int = LATENT_DIM, n_outputs: int = N_OUTPUTS, **kwargs: Any) -> Probes:
    return Probes(latent_dim, n_outputs, n_cells, **{"family": CategoricalActions(), **kwargs})


def random_rollout(seed: int, steps: int, n_cells: int, latent_dim: int = LATENT_DIM, n_outputs: int = N_OUTPUTS) -> Rollout:
    """All of it drawn independently of everything else."""
    generator = th.Generator().manual_seed(seed)
    return Rollout(
        th.randn(steps, latent_dim, generator=generator),
        th.randn(steps, n_outputs, generator=generator),
        th.randn(steps, generator=generator),
        th.randint(n_cells, (steps,), generator=generator),
        th.randint(N_FOLDS, (steps,), generator=generator),
    )


def two_actions(seed: int, steps: int, preferred: list[int], noise: float = 1.0) -> Rollout:
    """A coin chooses one of two actions; the one that a cell prefers is better there."""
    rollout = random_rollout(seed, steps, len(preferred))
    actions = (rollout.grad_log_prob[:, 0] > 0).long()
    better = actions == th.tensor(preferred)[rollout.cells]
    grad_log_prob = th.nn.functional.one_hot(actions, 2) - 0.5
    return rollout._replace(grad_log_prob=grad_log_prob, advantages=2.0 * better - 1 + noise * rollout.advantages)


def learn(model: Probes, *rollouts: Rollout, scale_by_cell: bool = False) -> Probes:
    for rollout in rollouts:
        model.learn(*rollout, scale_by_cell=scale_by_cell)
    return model


def measure(
    model: Probes,
    cell_to_group: list[int] | None = None,
    kl_coef: float = KL_COEF,
    weight: th.Tensor | None = None,
    mergeable: list[bool] | None = None,
    merge_kl: float | None = 0.1,
    split_kl: float | None = 0.3,
) -> Divergences:
    """One group if nothing else is said, and a head per cell, all equal, or with this weight, shape ``(K, n, latent_dim)``."""
    groups = th.tensor([0] * len(model.scale) if cell_to_group is None else cell_to_group)
    heads = th.zeros(len(groups), model.n_outputs, model.latent.shape[1]) if weight is None else weight

    def head_outputs(latent: th.Tensor, chosen: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        outputs = th.einsum("kij,bj->bki", heads[chosen], latent)
        # heads with other means have other standard deviations as well
        return outputs, heads[chosen].mean(dim=2).expand_as(outputs) if isinstance(model.family, GaussianActions) else None

    flags = th.tensor([True] * len(heads) if mergeable is None else mergeable)
    return model.measure(groups, kl_coef, head_outputs, flags, merge_kl, split_kl)


def everything(model: Probes) -> Sums:
    """What is known of all cells."""
    return model.sums(th.arange(len(model.scale)))


def assert_equal_on(one: Divergences, other: Divergences, cells: list[int]) -> None:
    """What is known of group 0 and of these cells is the same."""
    for name in ("within", "within_error"):
        th.testing.assert_close(getattr(one, name)[0], getattr(other, name)[0])
    for matrix, expected in ((one.cells, other.cells), (one.cells_by_half, other.cells_by_half)):
        th.testing.assert_close(matrix[..., cells, :][..., cells], expected[..., cells, :][..., cells])


class StepByStep:
    """What ``Probes`` keeps."""

    def __init__(self, n_cells: int):
        dim = LATENT_DIM + 1
        self.gradient = np.zeros((n_cells, N_FOLDS, N_OUTPUTS, dim))
        self.counts = np.zeros((n_cells, N_FOLDS))
        self.grad_moment = np.zeros((n_cells, N_OUTPUTS, N_OUTPUTS))
        self.latent_moment = np.zeros((n_cells, dim, dim))
        self.scale = np.zeros(n_cells)

    def learn(self, rollout: Rollout, scale_by_cell: bool) -> None:
        latent, grad_log_prob, advantages, cells, folds = (column.double().numpy() for column in rollout)
        for name in ("gradient", "counts", "grad_moment", "latent_moment"):
            setattr(self, name, getattr(self, name) * 0.5 ** (len(cells) / HALF_LIFE))
        self.scale *= 0.5 ** (len(cells) / SCALE_HALF_LIFE)
        for cell in range(len(self.scale)):
            if not scale_by_cell or cell in cells:
                self.scale[cell] = max(self.scale[cell], np.std(advantages[cells == cell] if scale_by_cell else advantages))
        scaled = [min(max(a / self.scale[int(c)], -3), 3) for a, c in zip(advantages, cells, strict=True)]
        for step, (cell, fold) in enumerate(zip(cells.astype(int), folds.astype(int), strict=True)):
            point = np.append(latent[step], 1.0)
            peers = [scaled[other] for other in range(len(cells)) if (cells[other], folds[other]) == (cell, fold)]
            self.gradient[cell, fold] += (scaled[step] - np.mean(peers)) * np.outer(grad_log_prob[step], point)
            self.counts[cell, fold] += 1
            self.grad_moment[cell] += np.outer(grad_log_prob[step], grad_log_prob[step])
            self.latent_moment[cell] += np.outer(point, point)


class TestLearn:
    @pytest.mark.parametrize("scale_by_cell", [False, True])
    def test_sums_are_those_of_a_loop(self, scale_by_cell):
        model, sums = make_probes(4), StepByStep(4)
        # cell 3 is seen in the second rollout only, and what is learnt from it differs in scale
        first, second = random_rollout(0, 300, 3), random_rollout(1, 200, 4)
        second = second._replace(advantages=0.3 * second.advantages * (1 + second.cells))
        for rollout in (first, second, first):
            model.learn(*rollout, scale_by_cell=scale_by_cell)
            sums.learn(rollout, scale_by_cell)
        known = {**everything(model)._asdict(), "scale": model.scale}
        assert vars(sums).keys() == known.keys()
        for name, expected in vars(sums).items():
            np.testing.assert_allclose(known[name].numpy(), expected, rtol=1e-4, atol=1e-4, err_msg=name)

    def test_what_was_learnt_counts_half_after_the_half_life(self):
        model, rollout = make_probes(2), random_rollout(0, HALF_LIFE, 2)
        learn(model, rollout)
        before = {name: value.clone() for name, value in model.named_buffers()}
        # nothing is said by advantages that are all the same
        learn(model, rollout._replace(advantages=th.zeros(HALF_LIFE)))
        th.testing.assert_close(model.gradient, before["gradient"] / 2)
        for name in ("counts", "grad_moment", "latent_moment"):
            th.testing.assert_close(getattr(model, name), 1.5 * before[name])

    def test_an_advantage_that_all_actions_have_says_nothing(self):
        model, rollout = make_probes(2), random_rollout(0, 500, 2)
        fold_and_cell = (rollout.folds + 2 * rollout.cells).float()
        assert learn(model, rollout._replace(advantages=fold_and_cell)).gradient.abs().max() < 1e-3
        assert learn(make_probes(2), rollout).gradient.abs().max() > 1

    def test_no_gradient_is_recorded(self):
        latent, *others = random_rollout(0, 50, 2)
        model = learn(make_probes(2), Rollout(latent.requires_grad_(), *others))
        assert not any(value.requires_grad for value in dict(model.named_buffers()).values())
        assert list(model.parameters()) == []


class TestKept:
    @pytest.mark.parametrize(
        ("lengths", "strides"),
        [
            ([100], [1]),
            ([300, 300], [1, 1]),
            ([N_KEPT, 10], [1, 1]),
            ([500, N_KEPT + 1], [1, 2]),
            ([N_KEPT, 3 * N_KEPT - 1, 7], [1, 3, 1]),
        ],
    )
    def test_are_the_newest_latents_and_their_cells(self, lengths, strides):
        model, kept = make_probes(5), []
        for seed, (length, stride) in enumerate(zip(lengths, strides, strict=True)):
            rollout = random_rollout(seed, length, 5)
            learn(model, rollout)
            kept += [(rollout.latent[i].tolist(), int(rollout.cells[i])) for i in range(0, length, stride)]
        expected = kept[-N_KEPT:]
        seen = model.cells >= 0
        assert model.latent[seen].tolist() == [latent for latent, _ in expected]
        assert model.cells[seen].tolist() == [cell for _, cell in expected]
        assert model.latent.shape == (N_KEPT, LATENT_DIM)

    def test_nothing_is_kept_before_the_first_rollout(self):
        assert (make_probes(2).cells == -1).all()


class TestScale:
    def gradients(self, *factors: float) -> list[th.Tensor]:
        """What each of several rollouts adds that differ in the scale of their advantages only."""
        model, rollout, added = make_probes(3), random_rollout(0, 100, 3), []
        for factor in factors:
            before = model.gradient * 0.5 ** (100 / HALF_LIFE)
            learn(model, rollout._replace(advantages=factor * rollout.advantages))
            added.append(model.gradient - before)
        return added

    def test_does_not_shrink_with_the_advantages(self):
        large, small = self.gradients(10.0, 0.1)
        assert small.norm() < 0.011 * large.norm()
        assert small.norm() > 0.009 * large.norm()

    def test_grows_with_the_advantages_at_once(self):
        small, large = self.gradients(0.1, 10.0)
        th.testing.assert_close(small, large, rtol=1e-3, atol=1e-3)

    def test_forgets_slowly(self):
        model, rollout = make_probes(3), random_rollout(0, 1000, 3)
        learn(model, rollout)
        first = model.scale.clone()
        learn(model, *[rollout._replace(advantages=0.01 * rollout.advantages)] * 50)
        th.testing.assert_close(model.scale, first * 0.5 ** (50_000 / SCALE_HALF_LIFE))

    def test_is_that_of_all_cells_unless_asked_otherwise(self):
        rollout = random_rollout(0, 1000, 2)
        factors = th.tensor([1.0, 1000.0])
        unequal = rollout._replace(advantages=rollout.advantages * factors[rollout.cells])
        equal, together, by_cell = (
            learn(make_probes(2), given, scale_by_cell=flag).gradient
            for given, flag in ((rollout, True), (unequal, False), (unequal, True))
        )
        th.testing.assert_close(by_cell, equal, rtol=1e-3, atol=1e-3)
        assert together[0].norm() < 0.01 * equal[0].norm()
        assert together[1].norm() > 0.5 * equal[1].norm()

    def test_cell_that_was_not_in_a_rollout_keeps_its_scale(self):
        model = learn(make_probes(2), random_rollout(0, 500, 2), scale_by_cell=True)
        before = model.scale.clone()
        large = random_rollout(1, 500, 1)
        learn(model, large._replace(advantages=9 * large.advantages), scale_by_cell=True)
        assert model.scale[0] > 5 * before[0]
        assert model.scale[1] <= before[1]

    @pytest.mark.parametrize("sign", [-1, 1])
    def test_extreme_advantages_count_as_three_standard_deviations(self, sign):
        gradients = []
        for extreme in (200.0, 299.0, 301.0, 400.0, 600.0):
            model, rollout = make_probes(1), random_rollout(0, 100, 1)
            # larger than the standard deviation of these advantages
            model.scale.fill_(100.0)
            advantages = rollout.advantages.clone()
            advantages[17] = sign * extreme
            gradients.append(learn(model, rollout._replace(advantages=advantages)).gradient)
        two, almost, three, four, six = gradients
        assert three.equal(four)
        assert three.equal(six)
        assert not almost.equal(three)
        assert (three - two).norm() > 50 * (three - almost).norm()

    def test_advantages_that_are_all_zero(self):
        model = learn(make_probes(2), random_rollout(0, 100, 2)._replace(advantages=th.zeros(100)))
        assert not model.gradient.any()


def single_product(left: th.Tensor, right: th.Tensor, *moments: th.Tensor) -> th.Tensor:
    """Of one pair of heads."""
    return product(left[None, None], right[None, None], *(moment[None] for moment in moments))[0, 0]


def outer_mean(rows: th.Tensor) -> th.Tensor:
    return rows.T @ rows / len(rows)


class TestProduct:
    """Against KL divergences in closed form; the trunk's output is independent of the probabilities: a full grid."""

    def exact(self, family: ActionDistribution, logits: th.Tensor, points: th.Tensor, change: th.Tensor) -> float:
        """
        :return: mean of ``KL(head || head + change)``
        """
        changed = logits.unsqueeze(1) + points @ change.T
        return family.kl(family.params(logits.unsqueeze(1), None), family.params(changed, None)).mean().item()

    def draw(self, n_outputs: int) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        generator = th.Generator().manual_seed(0)
        logits, points = (th.randn(50, n, generator=generator, dtype=th.double) for n in (n_outputs, 4))
        return logits, points, th.randn(n_outputs, 4, generator=generator, dtype=th.double)

    def fisher_of(self, family: ActionDistribution, logits: th.Tensor) -> th.Tensor:
        """Covariance of the gradient of the log-likelihood, by hand."""
        if isinstance(family, BernoulliActions):
            p = logits.sigmoid()
            return th.diag((p * (1 - p)).mean(dim=0))
        p = logits.softmax(dim=1)
        return th.diag(p.mean(dim=0)) - outer_mean(p)

    @pytest.mark.parametrize("family", [CategoricalActions(), BernoulliActions()], ids=["categorical", "bernoulli"])
    def test_is_the_kl_divergence_to_second_order(self, family):
        logits, points, direction = self.draw(3)
        fisher, moment = self.fisher_of(family, logits), outer_mean(points)
        errors = []
        for size in (1e-2, 1e-3):
            change = size * direction
            exact = self.exact(family, logits, points, change)
            errors.append(abs(single_product(change, change, fisher, moment).item() / exact - 1))
        assert errors[0] < 0.02
        # what is left out is of third order
        assert errors[1] < 0.15 * errors[0]

    def test_for_unit_gaussians_it_is_exact(self):
        mean, points, change = self.draw(2)
        std = th.tensor([0.3, 4.0], dtype=th.double)
        # gradients in units of the standard deviation have second moment 1: the change is in these units too
        changed = mean.unsqueeze(1) + std * (points @ change.T)
        family = GaussianActions()
        exact = family.kl(*(family.params(x, std.log()) for x in (mean.unsqueeze(1), changed))).mean()
        th.testing.assert_close(single_product(change, change, th.eye(2, dtype=th.double), outer_mean(points)), exact)

    def test_is_wrong_where_latents_tell_the_probabilities(self):
        """Negative control: the factored Fisher matrix is an approximation."""
        _, points, direction = self.draw(3)
        logits, change = 3 * points[:, :3], 1e-3 * direction
        family = CategoricalActions()
        changed = logits + points @ change.T
        exact = family.kl(family.params(logits), family.params(changed)).mean()
        assert abs(single_product(change, change, self.fisher_of(family, logits), outer_mean(points)) / exact - 1) > 0.05

    def test_is_bilinear_for_each_cell_and_fold(self):
        generator = th.Generator().manual_seed(0)
        left, right = th.randn(2, 5, 2, 3, 4, generator=generator)
        moments = [th.stack([outer_mean(th.randn(9, n, generator=generator)) for _ in range(5)]) for n in left.shape[2:]]
        both = product(left + right, left + right, *moments)
        parts = product(left, left, *moments) + 2 * product(left, right, *moments) + product(right, right, *moments)
        assert both.shape == (5, 2)
        th.testing.assert_close(both, parts, rtol=1e-4, atol=1e-4)
        th.testing.assert_close(both[3, 1], single_product(*[(left + right)[3, 1]] * 2, *(moment[3] for moment in moments)))


@pytest.fixture
def no_ridge(monkeypatch):
    """Next to nothing is added to moments: what has no steps must still be inverted."""
    monkeypatch.setattr(probe_math, "RIDGE", 1e-6)
    monkeypatch.setattr(probe_math, "GRAD_FLOOR", 1e-6)


class TestProbe:
    def gaussian_data(self, steps: int = 4000) -> Rollout:
        """One cell, one fold, gradients with second moment 1, and advantages that are left as they are."""
        rollout = random_rollout(0, steps, 1)
        advantages = rollout.grad_log_prob[:, 0].sign() * rollout.latent[:, 1] + 0.5 * rollout.grad_log_prob.prod(dim=1)
        advantages = advantages.clamp(-2, 2) - advantages.clamp(-2, 2).mean()
        grad_log_prob = th.linalg.solve(th.linalg.cholesky(outer_mean(rollout.grad_log_prob)), rollout.grad_log_prob.T).T
        return Rollout(
            rollout.latent, grad_log_prob, advantages / advantages.std(correction=0), rollout.cells, 0 * rollout.folds
        )

    @pytest.mark.usefixtures("no_ridge")
    @pytest.mark.parametrize("kl_coef", [0.05, 2.0])
    def test_maximises_the_advantage_minus_the_kl(self, kl_coef):
        rollout = self.gaussian_data()
        assert rollout.advantages.abs().max() < 3
        model = learn(make_probes(1, family=GaussianActions()), rollout)
        contributions, _ = everything(model).solve()
        probe = (contributions[0].sum(dim=0) / kl_coef).requires_grad_()
        changes = th.nn.functional.pad(rollout.latent, (0, 1), value=1.0) @ probe.T
        head, changed = th.zeros_like(changes), changes
        kl = GaussianActions().kl((head, th.ones_like(head)), (changed, th.ones_like(head))).mean()
        surrogate = (rollout.advantages * (rollout.grad_log_prob * changes).sum(dim=1)).mean()
        (slope,) = th.autograd.grad(surrogate - kl_coef * kl, probe)
        steepest = model.gradient[0, 0] / len(rollout.cells)
        assert slope.abs().max() < 1e-4 * steepest.abs().max()
        assert kl > 0
        # at the maximum of a linear gain with a quadratic price, the gain is twice the price
        th.testing.assert_close(surrogate, 2 * kl_coef * kl, rtol=1e-3, atol=0)

    @pytest.mark.usefixtures("no_ridge")
    def test_is_the_mean_of_what_the_folds_ask_for(self):
        rollout = self.gaussian_data()
        folds = th.arange(len(rollout.cells)) % 3
        (contributions,), (shares,) = everything(learn(make_probes(1), rollout._replace(folds=folds))).solve()
        assert contributions[3:].eq(0).all()
        th.testing.assert_close(shares[:3], folds.bincount() / len(folds))
        moments = (outer_mean(x) for x in (rollout.grad_log_prob, th.nn.functional.pad(rollout.latent, (0, 1), value=1.0)))
        inverses = [moment.inverse() for moment in moments]
        points = th.nn.functional.pad(rollout.latent, (0, 1), value=1.0)
        for fold in range(3):
            own = folds == fold
            advantages = rollout.advantages[own] - rollout.advantages[own].mean()
            gradient = (advantages.unsqueeze(1) * rollout.grad_log_prob[own]).T @ points[own] / len(folds)
            th.testing.assert_close(contributions[fold], inverses[0] @ gradient @ inverses[1], rtol=1e-3, atol=1e-4)

    def test_floor_and_ridge_hold_back_what_cannot_be_known(self):
        """A policy that is nearly deterministic, and an output of the trunk that is always 0."""
        rollout = random_rollout(0, 4000, 1)
        latent = rollout.latent * th.tensor([1.0, 1.0, 0.0])
        model = learn(make_probes(1), rollout._replace(latent=latent, grad_log_prob=1e-4 * rollout.grad_log_prob))
        contributions, _ = everything(model).solve()
        assert contributions.isfinite().all()
        assert contributions.sum(dim=1).norm() < 1e-3


# How often an experiment is repeated to see whether an estimate is right on average
REPETITIONS = 100
CELLS = 4


class Experiment(NamedTuple):
    """One step of every experiment: signs as gradients and latents, so that all second moments are 1."""

    steps: int = MIN_GROUP_COUNT
    noise: float = 1.0
    by_fold: bool = False  # noise that all steps of a cell in a fold have in common
    common: float = 0.0
    contradiction: float = 0.0

    @property
    def wants(self) -> th.Tensor:
        """What each cell wants, beside what all of them want, shape (CELLS, n, d)."""
        pattern = th.tensor([[1.0, -1.0, 0.0, 0.5], [0.0, 1.0, 0.5, -1.0]])
        return self.contradiction * th.tensor([1.0, -1.0, 1.0, -1.0])[:, None, None] * pattern

    def run(self, seed: int) -> Probes:
        generator = th.Generator().manual_seed(seed)
        latent, grad_log_prob = (
            2.0 * th.randint(2, (self.steps, n), generator=generator) - 1 for n in (LATENT_DIM, N_OUTPUTS)
        )
        cells, folds = (th.randint(n, (self.steps,), generator=generator) for n in (CELLS, N_FOLDS))
        points = th.nn.functional.pad(latent, (0, 1), value=1.0)
        asked = self.common + self.wants[cells]
        if self.by_fold:
            asked = asked + 0.3 * th.randn(N_FOLDS, CELLS, N_OUTPUTS, LATENT_DIM + 1, generator=generator)[folds, cells]
        advantages = th.einsum("bi,bij,bj->b", grad_log_prob, asked, points) + self.noise * th.randn(
            self.steps, generator=generator
        )
        return learn(make_probes(CELLS), Rollout(latent, grad_log_prob, advantages, cells, folds))


class Estimates(NamedTuple):
    """Of many repetitions, in units of the advantages, at ``kl_coef`` 1, shape ``(REPETITIONS,)``."""

    within: np.ndarray
    error: np.ndarray


@cache
def repeat(experiment: Experiment) -> Estimates:
    columns = []
    for seed in range(REPETITIONS):
        model = experiment.run(seed)
        # heads need not be compared
        model.cells.fill_(-1)
        result = measure(model, kl_coef=1.0)
        columns.append(th.stack([result.within[0], result.within_error[0]]) * model.scale[0] ** 2)
    return Estimates(*th.stack(columns, dim=1).numpy())


NOISES = [Experiment(noise=3.0), Experiment(by_fold=True)]
NOISE_IDS = ["noise of steps", "noise of folds"]
CONTRADICTIONS = [
    Experiment(noise=3.0, contradiction=0.3),
    Experiment(by_fold=True, contradiction=0.3),
    Experiment(contradiction=1.0),
]


def standard_errors_from(expected: float, values: np.ndarray) -> float:
    return abs(values.mean() - expected) / (values.std(ddof=1) / np.sqrt(len(values)))


def naive_within(model: Probes) -> float:
    """The same as a plain square: what the data ask for, less what the data of all cells together ask for."""
    sums = everything(model)
    (of_cells, _), (of_group, _) = sums.solve(), sums.pooled(th.ones(1, CELLS)).solve()
    difference = (of_cells - of_group).sum(dim=1, keepdim=True)
    steps = model.counts.sum(dim=1)
    return (steps @ product(difference, difference, *sums.moments())).item() / steps.sum().item()


@pytest.fixture
def exact_estimates(no_ridge, monkeypatch):
    """No ridge, no clipping: nothing that is not exact on average."""
    monkeypatch.setattr(probes, "MAX_ADVANTAGE", th.inf)


@pytest.mark.usefixtures("exact_estimates")
class TestOnAverage:
    @pytest.mark.parametrize("experiment", NOISES, ids=NOISE_IDS)
    def test_noise_is_no_contradiction(self, experiment):
        values = repeat(experiment).within
        assert standard_errors_from(0.0, values) < TOLERANCE
        # noise has both signs
        assert 0.2 < (values > 0).mean() < 0.8

    @pytest.mark.parametrize("experiment", NOISES, ids=NOISE_IDS)
    def test_but_in_a_plain_square_it_would_be(self, experiment):
        """Negative control."""
        naive = np.array([naive_within(experiment.run(seed)) for seed in range(50)])
        assert naive.min() > 0
        assert standard_errors_from(0.0, naive) > 10

    @pytest.mark.parametrize("experiment", CONTRADICTIONS, ids=[*NOISE_IDS, "little noise"])
    def test_a_contradiction_is_measured_without_bias(self, experiment):
        expected = 0.5 * experiment.wants[0].square().sum().item()
        values = repeat(experiment).within
        # moments are estimated from the same steps: that is a few times 1 / steps of a cell
        assert standard_errors_from(expected, values) < TOLERANCE or abs(values.mean() / expected - 1) < 0.03
        assert abs(values.mean() / expected - 1) < 0.2

    def test_what_all_cells_want_is_no_contradiction(self):
        """Here the same makes the estimate a little too small: that is the safe side."""
        experiment = Experiment(common=0.3)
        values = repeat(experiment).within
        assert -0.01 * 0.5 * 8 * 0.3**2 < values.mean() < TOLERANCE * values.std() / np.sqrt(REPETITIONS)

    @pytest.mark.parametrize("experiment", NOISES, ids=NOISE_IDS)
    def test_standard_error_of_noise_is_its_standard_deviation(self, experiment):
        ratio = repeat(experiment).error.mean() / repeat(experiment).within.std(ddof=1)
        assert 0.5 < ratio < 2

    @pytest.mark.parametrize("experiment", CONTRADICTIONS, ids=[*NOISE_IDS, "little noise"])
    def test_standard_error_of_a_contradiction_is_of_the_right_order(self, experiment):
        """Too small by a factor of two and a bit (all folds have most of their data in common), which decides nothing."""
        ratio = repeat(experiment).error.mean() / repeat(experiment).within.std(ddof=1)
        assert 0.3 < ratio < 2
        assert repeat(experiment).within.min() > 0

    @pytest.mark.parametrize("contradiction", [0.3, 1.0])
    def test_cells_and_groups_differ_by_what_they_want(self, contradiction):
        experiment = Experiment(contradiction=contradiction)
        squared_norm = experiment.wants[0].square().sum().item()
        models = [experiment.run(seed) for seed in range(50)]
        results = [measure(model, [0, 1, 0, 1], kl_coef=1.0) for model in models]
        scales = th.stack([model.scale[0] for model in models]) ** 2
        of_cells = [cells_kl(everything(model), [slice(None)])[0].clamp(min=0) for model in models]
        cells, between = (
            (th.stack(measured) * scales[:, None, None]).mean(dim=0)
            for measured in (of_cells, [result.between for result in results])
        )
        other_type = th.tensor([0, 1, 0, 1]).unsqueeze(1) != th.tensor([0, 1, 0, 1])
        # two probes that differ by 2 * wants
        th.testing.assert_close(cells[other_type], th.full((8,), 2 * squared_norm), rtol=0.1, atol=0)
        assert cells[~other_type].max() < 0.1 * squared_norm
        # and one in the middle, from which both differ by wants
        th.testing.assert_close(between[0, 1].item(), 0.5 * squared_norm, rtol=0.1, atol=0)
        assert between[0, 1] == between[1, 0]

    def test_a_group_with_more_steps_is_nearer_to_what_suits_both(self):
        """Cells 0, 1, 2 against cell 3: ``KL`` to the mean is ``share * (1 - share) * KL(one || other)``."""
        values = []
        for seed in range(50):
            rollout = two_actions(seed, MIN_GROUP_COUNT, [0, 0, 0, 1])
            model = learn(make_probes(4), rollout)
            result = measure(model, [0, 0, 0, 1], kl_coef=1.0)
            of_cells = cells_kl(everything(model), [slice(None)])[0]
            values.append([result.between[0, 1].item() / of_cells[:3, 3].mean().item(), 3 / 16])
        ratio, expected = np.mean(values, axis=0)
        assert ratio == pytest.approx(expected, rel=0.05)


TYPES = [0] * 5 + [1] * 5


class TestContradiction:
    def test_is_found_and_divided(self):
        result = measure(learn(make_probes(10), two_actions(0, 8000, TYPES)))
        assert result.within[0] > 5 * MIN_Z_SCORE * result.within_error[0] > 0
        assert result.within[0] > 0.5
        assert bipartition(list(range(10)), result.cells, result.cell_counts) == [5, 6, 7, 8, 9]

    @pytest.mark.parametrize("types", [[0, 1] * 5, [1, 0, 0, 0, 0, 0, 0, 0, 1, 0], [0, 0, 1, 1, 0, 1, 0, 0, 1, 1]])
    def test_however_the_cells_are_numbered(self, types):
        result = measure(learn(make_probes(10), two_actions(0, 8000, types)))
        moving = [cell for cell in range(10) if types[cell] != types[0]]
        (event,) = plan_regrouping(result, th.zeros(10, dtype=th.long), th.ones(10, dtype=th.bool), 0.1, 0.3)
        assert isinstance(event, Split)
        assert sorted(event.cells) == moving

    def test_there_is_none_where_all_cells_want_the_same(self):
        contradictory, common = (measure(learn(make_probes(10), two_actions(0, 8000, types))) for types in (TYPES, [0] * 10))
        assert common.within[0].abs() < 0.01 * contradictory.within[0]
        assert common.within[0] < MIN_Z_SCORE * common.within_error[0]
        assert plan_regrouping(common, th.zeros(10, dtype=th.long), th.ones(10, dtype=th.bool), None, 0.3) == []

    def test_nor_where_nobody_wants_anything(self):
        for seed in range(20):
            result = measure(learn(make_probes(10), random_rollout(seed, 8000, 10)))
            assert plan_regrouping(result, th.zeros(10, dtype=th.long), th.ones(10, dtype=th.bool), None, 0.3) == []

    def test_of_two_cells(self):
        contradictory, common = (measure(learn(make_probes(2), two_actions(0, 8000, types))) for types in ([0, 1], [0, 0]))
        assert contradictory.within[0] > 10 * MIN_Z_SCORE * contradictory.within_error[0]
        assert bipartition([0, 1], contradictory.cells, contradictory.cell_counts) == [1]
        assert common.within[0] < MIN_Z_SCORE * common.within_error[0]

    def test_between_groups(self):
        """Groups of one type each: nothing within, all of it between."""
        result = measure(learn(make_probes(10), two_actions(0, 10_000, TYPES)), TYPES)
        assert (result.within[:2] < MIN_Z_SCORE * result.within_error[:2]).all()
        assert result.between[0, 1] > 0.5
        mixed = measure(learn(make_probes(10), two_actions(0, 10_000, TYPES)), [0, 1] * 5)
        assert (mixed.within[:2] > 0.5).all()
        # the joint probes of mixed groups hardly differ from the heads: no limit applies
        free = measure(learn(make_probes(10), two_actions(0, 10_000, TYPES)), TYPES, kl_coef=1.0)
        assert mixed.between[0, 1] < 0.2 * free.between[0, 1] / KL_COEF**2

    def test_of_latents(self):
        """Cells that agree on average, but want opposite things at each point of the latent space."""
        rollout = random_rollout(0, 8000, 4)
        want = (1 - 2 * (rollout.cells % 2)) * rollout.latent[:, 0] * rollout.grad_log_prob[:, 0]
        result = measure(learn(make_probes(4), rollout._replace(advantages=want + rollout.advantages)))
        assert result.within[0] > 5 * MIN_Z_SCORE * result.within_error[0]
        assert bipartition([0, 1, 2, 3], result.cells, result.cell_counts) == [1, 3]

    # a cell that has turned up in one environment only: none of its data can be held against each other
    @pytest.mark.parametrize("fold", range(0, N_FOLDS, 3))
    def test_cell_with_a_single_fold_does_not_spoil_the_division(self, fold):
        rollout = two_actions(0, 8000, TYPES)
        folds = rollout.folds.where(rollout.cells != 9, fold)
        result = measure(learn(make_probes(10), rollout._replace(folds=folds)))
        assert result.within[0] > 0.5
        events = plan_regrouping(result, th.zeros(10, dtype=th.long), th.ones(10, dtype=th.bool), None, 0.3)
        # to wait is fine, and so is to leave that cell where it is
        for event in events:
            assert isinstance(event, Split)
            assert set(event.cells) - {9} == {5, 6, 7, 8}


class TestUnseen:
    def test_cell_has_no_influence(self):
        """Cell 3 of five is never seen: the others are as they would be among four."""
        rollout = two_actions(0, 8000, [0, 0, 1, 1])
        names = th.tensor([0, 1, 2, 4])
        four = measure(learn(make_probes(4), rollout))
        five = measure(learn(make_probes(5), rollout._replace(cells=names[rollout.cells])))
        assert five.cell_counts[3] == 0
        renamed = five._replace(cells=five.cells[names][:, names], cells_by_half=five.cells_by_half[:, names][:, :, names])
        assert_equal_on(renamed, four, [0, 1, 2, 3])

    def test_cell_with_few_steps_has_no_influence(self):
        rollout, few = two_actions(0, 8000, [0, 0, 1, 1]), random_rollout(1, MIN_CELL_COUNT - 1, 1)
        both = Rollout(*(th.cat(columns) for columns in zip(rollout, few._replace(cells=few.cells + 4), strict=True)))
        # each cell with a scale of its own: what is shared would depend on all advantages
        without, with_few = (learn(make_probes(5), data, scale_by_cell=True) for data in (rollout, both))
        results = [measure(model) for model in (without, with_few)]
        assert with_few.counts.sum(dim=1)[4] == MIN_CELL_COUNT - 1
        assert results[1].cell_counts[4] == 0
        assert_equal_on(results[0], results[1], [0, 1, 2, 3])

    def test_cell_that_was_not_seen_for_long_is_forgotten(self):
        model = learn(make_probes(5), two_actions(0, 8000, [0, 0, 0, 1, 1]))
        assert (measure(model).cell_counts > 0).all()
        learn(model, *(two_actions(seed, 8000, [0, 0, 0]) for seed in range(1, 7)))
        assert measure(model).cell_counts.gt(0).tolist() == [True, True, True, False, False]
        assert measure(model).within[0] < MIN_Z_SCORE * measure(model).within_error[0]

    def test_group_has_no_distance(self):
        result = measure(learn(make_probes(4), two_actions(0, 8000, [0, 0, 1])), [0, 0, 1, 2])
        seen = th.tensor([True, True, False, False])
        assert result.between.isfinite().equal(seen & seen.unsqueeze(1))

    def test_nothing_has_been_seen(self):
        model = make_probes(3)
        result = measure(model)
        assert result.within.isnan().all()
        assert result.between.isnan().all()
        assert result.cell_counts.tolist() == [0, 0, 0]


class TestNoAnswer:
    def test_for_a_group_with_one_cell(self):
        result = measure(learn(make_probes(4), two_actions(0, 16_000, [0, 0, 1, 1])), [0, 1, 2, 2])
        assert result.within.isnan().tolist() == [True, True, False, True]

    def test_for_a_group_of_which_one_cell_has_been_seen(self):
        result = measure(learn(make_probes(3), two_actions(0, 16_000, [0, 1])), [0, 1, 1])
        assert result.within[1].isnan()

    @pytest.mark.parametrize(("steps", "known"), [(MIN_GROUP_COUNT - 1, False), (MIN_GROUP_COUNT, True)])
    def test_before_there_are_enough_steps(self, steps, known):
        assert bool(measure(learn(make_probes(2), two_actions(0, steps, [0, 1]))).within[0].isfinite()) == known

    def test_where_cells_are_enough_only_together(self):
        """Each group must have its own steps."""
        result = measure(learn(make_probes(4), two_actions(0, MIN_GROUP_COUNT, [0, 1, 0, 1])), [0, 0, 1, 1])
        assert result.within.isnan().all()


class TestKLCoef:
    def test_contradictions_grow_with_its_inverse_square(self):
        model = learn(make_probes(10), two_actions(0, 8000, TYPES))
        one, other = (measure(model, TYPES, kl_coef=kl_coef) for kl_coef in (1.0, 3.0))
        for name in ("within", "within_error", "cells", "cells_by_half"):
            th.testing.assert_close(getattr(one, name), 9 * getattr(other, name), equal_nan=True)
        assert one.between[0, 1] == pytest.approx(9 * other.between[0, 1])

    @pytest.mark.parametrize("kl_coef", [0.05, 0.005])
    def test_probes_stay_near_the_head_however_small_it_is(self, kl_coef):
        """All that the cells ask for is contradiction: the KL within is how far their probes are from the head."""
        model = learn(make_probes(10), two_actions(0, 8000, TYPES))
        result = measure(model, kl_coef=kl_coef)
        assert result.within[0].item() == pytest.approx(0.8, rel=0.02)
        # z-score and partition are those of a coefficient that sets no limit
        free = measure(model, kl_coef=1.0, split_kl=0.01)
        assert free.within[0] < 0.4
        th.testing.assert_close(result.within_error[0] / result.within[0], free.within_error[0] / free.within[0])
        th.testing.assert_close(result.cells / result.within[0], free.cells / free.within[0], rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(("n_opposed", "splits"), [(1, False), (5, True)])
    def test_what_cells_have_in_common_is_held_against_a_split(self, n_opposed, splits):
        """With ``p`` of the cells opposed, ``4 p (1 - p)`` of what all ask for is contradiction: 0.23 and 0.86."""
        model = learn(make_probes(16), two_actions(0, 10_000, [1] * n_opposed + [0] * (16 - n_opposed), noise=0.5))
        result = measure(model)
        p = n_opposed / 16
        assert result.within[0].item() == pytest.approx(0.8 * 4 * p * (1 - p), rel=0.1)
        assert result.within[0] > MIN_Z_SCORE * result.within_error[0]
        # half the threshold finds both
        for split_kl, found in ((0.3, splits), (0.15, True)):
            result = measure(model, split_kl=split_kl)
            events = plan_regrouping(result, th.zeros(16, dtype=th.long), th.ones(16, dtype=th.bool), None, split_kl)
            assert [len(event.cells) for event in events if isinstance(event, Split)] == [16 - n_opposed] * found

    def test_measuring_changes_nothing(self):
        model = learn(make_probes(10), two_actions(0, 8000, TYPES))
        before = copy.deepcopy(dict(model.named_buffers()))
        first, second = measure(model), measure(model)
        th.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
        assert all(before[name].equal(value) for name, value in model.named_buffers())


def random_heads(seed: int, n_groups: int, size: float = 1.0, n_outputs: int = N_OUTPUTS) -> th.Tensor:
    return size * th.randn(n_groups, n_outputs, LATENT_DIM, generator=th.Generator().manual_seed(seed))


class Direct:
    """What ``measure`` says, from the definitions: double precision, one pair of cells or folds at a time, dense matrices."""

    def __init__(self, sums: Sums):
        columns: list[np.ndarray] = [tensor.double().numpy() for tensor in sums]
        self.gradient, self.per_fold, self.grad_moment, self.latent_moment = columns

    def steps(self, cells: list[int], folds: list[int]) -> float:
        return self.per_fold[cells][:, folds].sum()

    def fisher(self, cells: list[int], floor: float = 0.0, ridge: float = 0.0) -> np.ndarray:
        steps = self.steps(cells, FOLDS)
        grad_log_prob, latent = (moment[cells].sum(axis=0) / steps for moment in (self.grad_moment, self.latent_moment))
        latent = latent + ridge * np.trace(latent) / len(latent) * np.eye(len(latent))
        return np.kron(grad_log_prob + floor * np.eye(len(grad_log_prob)), latent)

    def probe(self, cells: list[int], folds: list[int]) -> np.ndarray:
        fisher = self.fisher(cells, probe_math.GRAD_FLOOR, probe_math.RIDGE)
        gradient = self.gradient[cells][:, folds].sum(axis=(0, 1)).flatten() / self.steps(cells, folds)
        return np.linalg.solve(fisher, gradient) / KL_COEF

    def by_fold(self, part: list[int], whole: list[int]) -> np.ndarray:
        """
        ``KL(probe of the part || probe of the whole)`` on the data of the part; each fold against all others.

        With an empty whole it is the KL from the head.
        """
        kls = []
        for fold in FOLDS:
            others = [other for other in FOLDS if other != fold]
            one, rest = (self.probe(part, folds) - (self.probe(whole, folds) if whole else 0) for folds in ([fold], others))
            kls.append(one @ self.fisher(part) @ rest / 2)
        return np.array(kls)

    def terms(self, group: list[int], parts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        steps = np.array([[self.steps(part, [fold]) for fold in FOLDS] for part in parts])
        return steps * [self.by_fold(part, group) for part in parts] / steps.sum(), steps.sum(axis=0) / steps.sum()

    def limit(self, parts: list[list[int]]) -> float:
        """What divergences are multiplied by, so that the probes of the parts are at most 0.8 nats from the head."""
        return 0.8 / max(0.8, self.terms([], parts)[0].sum())

    def within(self, group: list[int], parts: list[list[int]]) -> tuple[float, float]:
        terms, share = self.terms(group, parts)
        mean = terms.sum()
        error = np.sqrt(np.square(terms.sum(axis=0) - share * mean).sum() * N_FOLDS / (N_FOLDS - 1))
        return mean * self.limit(parts), 2 * error * self.limit(parts)

    def distance(self, a: int, b: int, folds: list[int]) -> float:
        fisher, wants = self.fisher([a]), {cell: self.probe([cell], folds) for cell in (a, b)}

        def square(cell: int) -> float:
            share = {fold: self.steps([cell], [fold]) / self.steps([cell], folds) for fold in folds}
            own = {fold: share[fold] * self.probe([cell], [fold]) for fold in folds}
            different = sum(own[one] @ fisher @ own[two] / 2 for one, two in itertools.permutations(folds, 2))
            return different / sum(share[one] * share[two] for one, two in itertools.permutations(folds, 2))

        return max(square(a) + square(b) - wants[a] @ fisher @ wants[b], 0)


FOLDS = list(range(N_FOLDS))


# two types of cells in two groups, and one cell by itself
GROUPS = ([0, 1, 2, 3], [4, 5], [6])


@pytest.fixture(scope="module")
def both() -> tuple[Divergences, Direct]:
    """What ``measure`` says, and the same directly."""
    model = make_probes(7)
    for seed in range(4):
        rollout = two_actions(seed, 8000, [0, 1, 1, 0, 0, 1, 0])
        # what cells want depends on the latent vector too
        learn(model, rollout._replace(advantages=rollout.advantages * rollout.latent[:, 0].abs().add(0.5)))
    return measure(model, [0, 0, 0, 0, 1, 1, 2]), Direct(everything(model))


class TestDefinition:
    """Against a direct and slow computation."""

    def test_within(self, both):
        result, direct = both
        for group, cells in enumerate(GROUPS[:2]):
            within, error = direct.within(cells, [[cell] for cell in cells])
            assert result.within[group].item() == pytest.approx(within, rel=1e-3)
            assert result.within_error[group].item() == pytest.approx(error, rel=1e-3)
        assert result.within[2].isnan()

    def test_between(self, both):
        result, direct = both
        for i, j in itertools.combinations(range(3), 2):
            united, _ = direct.within(GROUPS[i] + GROUPS[j], [GROUPS[i], GROUPS[j]])
            # heads are equal
            assert result.between[i, j].item() == pytest.approx(max(united, 0), rel=1e-3)
            assert result.between[j, i] == result.between[i, j]

    def test_cells(self, both):
        result, direct = both
        for group in GROUPS[:2]:
            limit = direct.limit([[cell] for cell in group])
            assert limit < 0.1
            for a, b in itertools.permutations(group, 2):
                for measured, folds in (
                    (result.cells, FOLDS),
                    *zip(result.cells_by_half, (FOLDS[::2], FOLDS[1::2]), strict=True),
                ):
                    # nearly equal cells are the difference of large numbers
                    assert measured[a, b].item() == pytest.approx(limit * direct.distance(a, b, folds), rel=1e-3, abs=0.005)
        assert result.cells.isfinite().sum() == sum(len(group) ** 2 for group in GROUPS[:2])


class TestHeads:
    """With so large a ``kl_coef`` that probes equal the heads, only the heads are compared."""

    @pytest.mark.parametrize("chunk", [probe_math.MAX_OUTPUTS, 100])
    @pytest.mark.parametrize("family", [CategoricalActions(), GaussianActions()], ids=["categorical", "gaussian"])
    def test_differ_by_the_mean_divergence_in_the_worse_direction(self, family, chunk, monkeypatch):
        monkeypatch.setattr(probe_math, "MAX_OUTPUTS", chunk)
        cell_to_group = [0, 1, 1, 2]
        model = learn(make_probes(4, family=family), random_rollout(0, 600, 4))
        weight = random_heads(1, 4)
        result = measure(model, cell_to_group, 1e6, weight)
        groups = [cell_to_group[cell] for cell in model.cells[model.cells >= 0].tolist()]
        outputs = th.einsum("kij,bj->bki", weight, model.latent[model.cells >= 0])
        log_std = weight.mean(dim=2).expand_as(outputs) if isinstance(family, GaussianActions) else None
        for i, j in itertools.combinations(range(3), 2):
            steps = [step for step, group in enumerate(groups) if group in (i, j)]
            means = []
            for one, other in ((i, j), (j, i)):
                p, q = (family.params(outputs[steps, k], None if log_std is None else log_std[steps, k]) for k in (one, other))
                means.append(family.kl(p, q).mean().item())
            assert means[0] != pytest.approx(means[1], rel=1e-3)
            assert result.between[i, j].item() == pytest.approx(max(means), rel=1e-4)
            assert result.between[j, i] == result.between[i, j]

    @pytest.mark.parametrize(("cell_to_group", "computed"), [([0, 3, 3, 1], [0, 1, 3]), ([0, 3, 3, 3], [0, 3]), ([2] * 4, [])])
    def test_only_those_of_the_compared_groups_are_computed(self, cell_to_group, computed):
        model, seen = learn(make_probes(4), random_rollout(0, 600, 4)), []

        def head_outputs(latent: th.Tensor, groups: th.Tensor) -> tuple[th.Tensor, None]:
            seen.extend(groups.tolist())
            return th.zeros(len(latent), len(groups), N_OUTPUTS), None

        mergeable = th.ones(5, dtype=th.bool)
        model.measure(th.tensor(cell_to_group), KL_COEF, head_outputs, mergeable, 0.1, 0.3)
        assert seen == computed

    def test_that_are_alike_still_differ_if_their_cells_contradict_each_other(self):
        result = measure(learn(make_probes(2), two_actions(0, 8000, [0, 1])), [0, 1])
        assert result.between[0, 1] > 0.5


class TestUnions:
    """Measured where two groups can be merged."""

    def contradicting(self, **kwargs: Any) -> Divergences:
        """Cells 0 and 1 against 2 and 3, with equal heads."""
        model = learn(make_probes(4), two_actions(0, 16_000, [0, 0, 1, 1]))
        return measure(model, [0, 1, 2, 3], **kwargs)

    def test_is_not_known_of_young_groups(self):
        old, young = (self.contradicting(mergeable=mergeable) for mergeable in ([True] * 4, [True, False, True, True]))
        known = th.tensor([True, False, True, True])
        th.testing.assert_close(young.between[known][:, known], old.between[known][:, known])
        assert young.between[1].isfinite().tolist() == [False, True, False, False]

    def test_are_not_asked_for_where_heads_differ(self):
        weight = random_heads(0, 4)
        far, alone = (self.contradicting(weight=weight, kl_coef=kl_coef) for kl_coef in (KL_COEF, 1e6))
        assert far.between[~th.eye(4, dtype=th.bool)].min() > 0.1
        # the contradiction of cells 0 and 2 is not what is said, but their heads
        assert self.contradicting().between[0, 2] > 0.5
        th.testing.assert_close(far.between, alone.between)

    def test_no_merging_no_unions(self):
        assert self.contradicting(merge_kl=None).between.eq(0).all()

    @pytest.mark.parametrize("limit", ["MAX_PAIRS", "MAX_UNION_ENTRIES"])
    def test_of_too_many_pairs_those_with_the_most_similar_heads(self, monkeypatch, limit):
        weight = 1e-3 * th.tensor([0.0, 1.0, 3.0, 7.0])[:, None, None] * random_heads(0, 1)
        everything, nearest = self.contradicting(weight=weight), None
        entries = N_FOLDS * N_OUTPUTS * (LATENT_DIM + 1)
        monkeypatch.setattr(probe_math, limit, 2 if limit == "MAX_PAIRS" else 2 * entries + 1)
        nearest = self.contradicting(weight=weight)
        measured = nearest.between.isfinite().triu(1).nonzero().tolist()
        assert measured == [[0, 1], [1, 2]]
        for i, j in measured:
            th.testing.assert_close(nearest.between[i, j], everything.between[i, j])

    def test_together_or_one_by_one_is_the_same(self, monkeypatch):
        together = self.contradicting()
        monkeypatch.setattr(probe_math, "PAIRS_PER_CHUNK", 1)
        th.testing.assert_close(self.contradicting(), together, equal_nan=True)


class TestProjection:
    WIDE = MAX_DIM + 36

    @pytest.mark.parametrize("latent_dim", [1, MAX_DIM - 1, MAX_DIM])
    def test_narrow_trunks_are_taken_as_they_are(self, latent_dim):
        rollout = random_rollout(0, 500, 1, latent_dim)
        points = th.nn.functional.pad(rollout.latent, (0, 1), value=1.0)
        model = learn(make_probes(1, latent_dim), rollout)
        th.testing.assert_close(everything(model).latent_moment[0], points.T @ points, rtol=1e-4, atol=1e-3)

    def test_wide_trunks_are_projected(self):
        wide, narrow = make_probes(2, self.WIDE), make_probes(2, MAX_DIM)
        assert wide.projection is not None
        assert wide.projection.shape == (self.WIDE, MAX_DIM)
        rollout = random_rollout(0, 500, 2, latent_dim=self.WIDE)
        learn(wide, rollout)
        learn(narrow, rollout._replace(latent=rollout.latent @ wide.projection))
        th.testing.assert_close(everything(wide), everything(narrow))
        # heads are measured on the whole of it
        assert wide.latent[wide.cells >= 0].equal(rollout.latent)

    def test_no_direction_is_lost_that_counts(self):
        """What cells want of one output out of many still shows."""
        rollout = random_rollout(0, 8000, 4, latent_dim=self.WIDE)
        want = (1 - 2 * (rollout.cells % 2)) * rollout.latent[:, 7] * rollout.grad_log_prob[:, 0]
        result = measure(learn(make_probes(4, self.WIDE), rollout._replace(advantages=want)))
        assert result.within[0] > MIN_Z_SCORE * result.within_error[0]

    def test_is_the_same_every_time_and_everywhere(self):
        th.manual_seed(1)
        one = make_probes(2, self.WIDE, self.WIDE)
        th.manual_seed(2)
        other = make_probes(5, self.WIDE, self.WIDE)
        for name in ("projection", "grad_projection"):
            assert getattr(one, name).equal(getattr(other, name))

    @pytest.mark.parametrize("latent_dim", [8, WIDE])
    def test_no_global_random_number_is_drawn(self, latent_dim):
        states = th.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]  # not the legacy dict
        learn(make_probes(3, latent_dim), random_rollout(0, 100, 3, latent_dim=latent_dim))
        assert th.get_rng_state().equal(states[0])
        assert (np.random.get_state()[1] == states[1]).all()  # type: ignore[index]  # not the legacy dict


def softmax_rollout(seed: int, steps: int, n_actions: int, n_used: int) -> Rollout:
    """A policy that uses some of its actions; two cells want opposite halves of those, two others the same."""
    rollout = random_rollout(seed, steps, 4)
    generator = th.Generator().manual_seed(seed)
    actions = th.randint(n_used, (steps,), generator=generator)
    p = th.zeros(n_actions)
    p[:n_used] = 1 / n_used
    grad_log_prob = th.nn.functional.one_hot(actions, n_actions) - p
    better = (actions < n_used // 2) == (rollout.cells % 2 == 0)
    return rollout._replace(grad_log_prob=grad_log_prob, advantages=2.0 * better - 1 + rollout.advantages)


class TestManyActions:
    def test_those_that_are_not_used_change_little(self):
        """Contradictions are measured as if the other actions did not exist."""
        few = measure(learn(make_probes(4, n_outputs=6), softmax_rollout(0, 8000, 6, 6)))
        many = measure(learn(make_probes(4, n_outputs=3000), softmax_rollout(0, 8000, 3000, 6)))
        assert many.within[0] == pytest.approx(few.within[0].item(), rel=0.3)
        events = plan_regrouping(many, th.zeros(4, dtype=th.long), th.ones(4, dtype=th.bool), 0.1, 0.3)
        assert [sorted(event.cells) for event in events if isinstance(event, Split)] == [[1, 3]]

    def test_none_is_invented(self):
        rollout = softmax_rollout(0, 8000, 3000, 6)
        result = measure(
            learn(make_probes(4, n_outputs=3000), rollout._replace(advantages=random_rollout(1, 8000, 4).advantages))
        )
        assert result.within[0] < MIN_Z_SCORE * result.within_error[0]

    @pytest.mark.parametrize("n_outputs", [500, 4672, 20_000])
    def test_buffers_are_of_the_order_of_the_parameters(self, n_outputs):
        model = make_probes(8, 64, n_outputs)
        of_heads = 8 * n_outputs * 65
        assert sum(buffer.numel() for buffer in model.buffers()) < 0.3 * of_heads + 2**19


class Watching(TorchDispatchMode):
    """Notes size and type of every tensor that torch computes."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[th.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.tensors += [leaf.to("meta") for leaf in tree_leaves(out) if isinstance(leaf, th.Tensor)]
        return out


class TestManyCells:
    @pytest.mark.parametrize(("n_cells", "dim"), [(8, MAX_DIM), (256, MAX_DIM), (1024, 32), (5000, 14), (50_000, MIN_DIM)])
    def test_latents_are_projected_to_fewer_numbers(self, n_cells, dim):
        model = make_probes(n_cells, MAX_DIM, 4)
        assert model.gradient.shape == (n_cells, N_FOLDS, 4, dim + 1)
        assert model.latent_moment.numel() <= max(2**20, 45 * n_cells)

    def test_gradients_too(self):
        assert make_probes(64, 64, 64).gradient.shape[2] == 64
        assert make_probes(256, 64, 64).gradient.shape[2] == 31
        assert make_probes(50_000, 64, 64).gradient.shape[2] == MIN_DIM

    def test_nothing_is_larger_than_pairs_of_cells_or_what_is_kept(self):
        """Of 128 cells with a group each, all of them alike, and in one group that contradicts itself."""
        n_cells, n_outputs = 128, 4
        model = make_probes(n_cells, 64, n_outputs)
        rollout = random_rollout(0, MIN_CELL_COUNT * n_cells, n_cells, 64, n_outputs)
        rollout = rollout._replace(cells=th.arange(len(rollout.cells)) % n_cells)
        want = (1 - 2 * (rollout.cells % 2)) * rollout.latent[:, 0] * rollout.grad_log_prob[:, 0]
        with Watching() as watched:
            learn(model, rollout._replace(advantages=want))
            of_one = measure(model)
            of_each = measure(model, list(range(n_cells)))
        assert of_one.cells.isfinite().all()
        assert of_each.between.isfinite().sum() == n_cells + 2 * probe_math.MAX_PAIRS
        sizes = [tensor.numel() for tensor in watched.tensors]
        assert len(sizes) > 1000
        # the rollout itself has 12,800 * 65 numbers
        assert max(sizes) <= 2**20 < n_cells**2 * n_outputs * 65


class TestNotFinite:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e25])
    @pytest.mark.parametrize("name", ["latent", "grad_log_prob", "advantages"])
    def test_rollout_is_left_out(self, name, value):
        model, rollout = learn(make_probes(3), random_rollout(0, 300, 3)), random_rollout(1, 300, 3)
        before = copy.deepcopy(dict(model.named_buffers()))
        broken = getattr(rollout, name).clone()
        broken.view(-1)[-1] = value
        for scale_by_cell in (False, True):
            learn(model, rollout._replace(**{name: broken}), scale_by_cell=scale_by_cell)
        assert all(before[key].equal(buffer) for key, buffer in model.named_buffers())
        learn(model, rollout)
        assert not model.gradient.equal(before["gradient"])

    def test_largest_numbers_that_are_learnt_from_stay_finite(self):
        model, rollout = make_probes(3), random_rollout(0, 300, 3)
        for name in ("latent", "grad_log_prob", "advantages"):
            learn(model, *[rollout._replace(**{name: 1e12 * getattr(rollout, name)})] * 20, scale_by_cell=True)
        assert model.counts.sum() > 0
        assert all(buffer.isfinite().all() for buffer in model.buffers())


class TestSaved:
    def test_nothing_is_in_the_state_dict(self):
        assert make_probes(3).state_dict() == {}

    @pytest.mark.parametrize("latent_dim", [LATENT_DIM, MAX_DIM + 1])
    def test_training_goes_on_as_if_nothing_had_happened(self, latent_dim):
        """A copy that gets the named buffers measures the same from then on."""
        first, second = (two_actions(seed, 5000, [0, 1, 0, 1]) for seed in range(2))
        first, second = (
            r._replace(latent=th.randn(5000, latent_dim, generator=th.Generator().manual_seed(0))) for r in (first, second)
        )
        model, loaded = learn(make_probes(4, latent_dim), first), make_probes(4, latent_dim)
        for name in model.saved_buffers():
            getattr(loaded, name).copy_(getattr(model, name))
        for _ in range(2):
            th.testing.assert_close(measure(loaded), measure(model), rtol=0, atol=0, equal_nan=True)
            for each in (model, loaded):
                learn(each, second)
        assert measure(model).within[0] > 0.3

    def test_all_are_needed(self):
        """Negative control: without any one of them something is lost."""
        model = learn(make_probes(4, MAX_DIM + 1, MAX_DIM + 1), random_rollout(0, 500, 4, MAX_DIM + 1, MAX_DIM + 1))
        names = model.saved_buffers()
        assert set(names) == {name for name, _ in model.named_buffers()}
        assert {"projection", "grad_projection"} <= set(names)
        assert not {"projection", "grad_projection"} & set(make_probes(4).saved_buffers())

    def test_size_for_cartpole(self):
        """Less than twice PPO's file, 144 kB."""
        model = make_probes(8, 64, 2)
        assert sum(getattr(model, name).nbytes for name in model.saved_buffers()) < 245_000

    @pytest.mark.parametrize(("n_cells", "n_kept"), [(1, N_KEPT), (10, N_KEPT), (256, 1024)])
    def test_latents_are_kept_for_every_cell(self, n_cells, n_kept):
        assert make_probes(n_cells).latent.shape == (n_kept, LATENT_DIM)


def test_no_double_precision():
    model = learn(make_probes(4, MAX_DIM + 1, MAX_DIM + 1), random_rollout(0, 8000, 4, MAX_DIM + 1, MAX_DIM + 1))
    with Watching() as watched:
        learn(model, random_rollout(1, 8000, 4, MAX_DIM + 1, MAX_DIM + 1), scale_by_cell=True)
        result = measure(model, split_kl=-1e9)
        plan_regrouping(result, th.zeros(4, dtype=th.long), th.ones(4, dtype=th.bool), 0.1, 0.3)
    dtypes = {tensor.dtype for tensor in watched.tensors}
    assert th.float32 in dtypes
    assert th.float64 not in dtypes
