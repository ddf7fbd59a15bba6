"""Probes learn what the data say, and what is only noise does not look like a contradiction."""

import copy
import itertools
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_grpo import MlpPolicy, probes
from sb3_grpo.distributions import ActionFamily, BernoulliFamily, CategoricalFamily, GaussianFamily
from sb3_grpo.grouping import MIN_STANDARD_ERRORS, Divergences, Split, bipartition, plan_regrouping
from sb3_grpo.probes import HALF_LIFE, MAX_DIM, MIN_GROUP_STEPS, MIN_STEPS, N_FOLDS, N_KEPT, SCALE_HALF_LIFE, Probes, product

LATENT_DIM, N_OUTPUTS = 3, 2
LEASH = 0.05
# What a test of many repetitions may be off by, in standard errors of their mean; all of them are seeded
TOLERANCE = 3.5


class Rollout(NamedTuple):
    latent: th.Tensor
    score: th.Tensor
    advantages: th.Tensor
    cells: th.Tensor
    folds: th.Tensor


def make_probes(n_cells: int, latent_dim: int = LATENT_DIM, n_outputs: int = N_OUTPUTS, **kwargs: Any) -> Probes:
    return Probes(latent_dim, n_outputs, n_cells, **{"family": CategoricalFamily(), **kwargs})


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
    actions = (rollout.score[:, 0] > 0).long()
    better = actions == th.tensor(preferred)[rollout.cells]
    score = th.nn.functional.one_hot(actions, 2) - 0.5
    return rollout._replace(score=score, advantages=2.0 * better - 1 + noise * rollout.advantages)


def learn(model: Probes, *rollouts: Rollout, scale_by_cell: bool = False) -> Probes:
    for rollout in rollouts:
        model.learn(*rollout, scale_by_cell=scale_by_cell)
    return model


def measure(model: Probes, cell_to_group: list[int] | None = None, leash: float = LEASH) -> Divergences:
    """With heads that are all equal; one group if nothing else is said."""
    n_cells = len(model.scale)
    groups = th.tensor([0] * n_cells if cell_to_group is None else cell_to_group)
    outputs = th.zeros(int((model.cells >= 0).sum()), n_cells, model.gradient.shape[2])
    log_std = th.zeros_like(outputs) if isinstance(model.family, GaussianFamily) else None
    return model.measure(groups, n_cells, leash, outputs, log_std)


def assert_equal_on(one: Divergences, other: Divergences, cells: list[int]) -> None:
    """What is known of group 0 and of these cells is the same."""
    for name in ("within", "within_error"):
        th.testing.assert_close(getattr(one, name)[0], getattr(other, name)[0])
    for matrix, expected in ((one.cells, other.cells), (one.cells_by_half, other.cells_by_half)):
        th.testing.assert_close(matrix[..., cells, :][..., cells], expected[..., cells, :][..., cells])


class Sums:
    """What ``Probes`` keeps, step by step."""

    def __init__(self, n_cells: int):
        dim = LATENT_DIM + 1
        self.gradient = np.zeros((N_FOLDS, n_cells, N_OUTPUTS, dim))
        self.steps = np.zeros((N_FOLDS, n_cells))
        self.score_moment = np.zeros((n_cells, N_OUTPUTS, N_OUTPUTS))
        self.latent_moment = np.zeros((n_cells, dim, dim))
        self.scale = np.zeros(n_cells)

    def learn(self, rollout: Rollout, scale_by_cell: bool) -> None:
        latent, score, advantages, cells, folds = (column.double().numpy() for column in rollout)
        for name in ("gradient", "steps", "score_moment", "latent_moment"):
            setattr(self, name, getattr(self, name) * 0.5 ** (len(cells) / HALF_LIFE))
        self.scale *= 0.5 ** (len(cells) / SCALE_HALF_LIFE)
        for cell in range(len(self.scale)):
            if not scale_by_cell or cell in cells:
                self.scale[cell] = max(self.scale[cell], np.std(advantages[cells == cell] if scale_by_cell else advantages))
        scaled = [min(max(a / self.scale[int(c)], -3), 3) for a, c in zip(advantages, cells, strict=True)]
        for step, (cell, fold) in enumerate(zip(cells.astype(int), folds.astype(int), strict=True)):
            point = np.append(latent[step], 1.0)
            peers = [scaled[other] for other in range(len(cells)) if (cells[other], folds[other]) == (cell, fold)]
            self.gradient[fold, cell] += (scaled[step] - np.mean(peers)) * np.outer(score[step], point)
            self.steps[fold, cell] += 1
            self.score_moment[cell] += np.outer(score[step], score[step])
            self.latent_moment[cell] += np.outer(point, point)


class TestLearn:
    @pytest.mark.parametrize("scale_by_cell", [False, True])
    def test_sums_are_those_of_a_loop(self, scale_by_cell):
        model, sums = make_probes(4), Sums(4)
        # cell 3 is seen in the second rollout only, and what is learnt from it differs in scale
        first, second = random_rollout(0, 300, 3), random_rollout(1, 200, 4)
        second = second._replace(advantages=0.3 * second.advantages * (1 + second.cells))
        for rollout in (first, second, first):
            model.learn(*rollout, scale_by_cell=scale_by_cell)
            sums.learn(rollout, scale_by_cell)
        for name, expected in vars(sums).items():
            np.testing.assert_allclose(getattr(model, name).numpy(), expected, rtol=1e-4, atol=1e-4, err_msg=name)

    def test_what_was_learnt_counts_half_after_the_half_life(self):
        model, rollout = make_probes(2), random_rollout(0, HALF_LIFE, 2)
        learn(model, rollout)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        # nothing is said by advantages that are all the same
        learn(model, rollout._replace(advantages=th.zeros(HALF_LIFE)))
        th.testing.assert_close(model.gradient, before["gradient"] / 2)
        for name in ("steps", "score_moment", "latent_moment"):
            th.testing.assert_close(getattr(model, name), 1.5 * before[name])

    def test_an_advantage_that_all_actions_have_says_nothing(self):
        model, rollout = make_probes(2), random_rollout(0, 500, 2)
        fold_and_cell = (rollout.folds + 2 * rollout.cells).float()
        assert learn(model, rollout._replace(advantages=fold_and_cell)).gradient.abs().max() < 1e-3
        assert learn(make_probes(2), rollout).gradient.abs().max() > 1

    def test_no_gradient_is_recorded(self):
        latent, *others = random_rollout(0, 50, 2)
        model = learn(make_probes(2), Rollout(latent.requires_grad_(), *others))
        assert not any(value.requires_grad for value in model.state_dict(keep_vars=True).values())
        assert list(model.parameters()) == []


class TestKept:
    @pytest.mark.parametrize(
        ("lengths", "strides"),
        [
            ([100], [1]),
            ([700, 700], [1, 1]),
            ([N_KEPT, 10], [1, 1]),
            ([500, N_KEPT + 1], [1, 2]),
            ([N_KEPT, 3000, 7], [1, 3, 1]),
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
        assert together[:, 0].norm() < 0.01 * equal[:, 0].norm()
        assert together[:, 1].norm() > 0.5 * equal[:, 1].norm()

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


def outer_mean(rows: th.Tensor) -> th.Tensor:
    return rows.T @ rows / len(rows)


class TestProduct:
    """Against KL divergences in closed form; the trunk's output is independent of the probabilities: a full grid."""

    def exact(self, family: ActionFamily, logits: th.Tensor, points: th.Tensor, change: th.Tensor) -> float:
        """
        :return: mean of ``KL(head || head + change)``
        """
        changed = logits.unsqueeze(1) + points @ change.T
        return family.kl(family.params(logits.unsqueeze(1), None), family.params(changed, None)).mean().item()

    def draw(self, n_outputs: int) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        generator = th.Generator().manual_seed(0)
        logits, points = (th.randn(50, n, generator=generator, dtype=th.double) for n in (n_outputs, 4))
        return logits, points, th.randn(n_outputs, 4, generator=generator, dtype=th.double)

    def fisher_of(self, family: ActionFamily, logits: th.Tensor) -> th.Tensor:
        """Covariance of the score, by hand."""
        if isinstance(family, BernoulliFamily):
            p = logits.sigmoid()
            return th.diag((p * (1 - p)).mean(dim=0))
        p = logits.softmax(dim=1)
        return th.diag(p.mean(dim=0)) - outer_mean(p)

    @pytest.mark.parametrize("family", [CategoricalFamily(), BernoulliFamily()], ids=["categorical", "bernoulli"])
    def test_is_the_kl_divergence_to_second_order(self, family):
        logits, points, direction = self.draw(3)
        fisher, moment = self.fisher_of(family, logits), outer_mean(points)
        errors = []
        for size in (1e-2, 1e-3):
            change = size * direction
            exact = self.exact(family, logits, points, change)
            errors.append(abs(product(change, change, fisher, moment).item() / exact - 1))
        assert errors[0] < 0.02
        # what is left out is of third order
        assert errors[1] < 0.15 * errors[0]

    def test_for_unit_gaussians_it_is_exact(self):
        mean, points, change = self.draw(2)
        std = th.tensor([0.3, 4.0], dtype=th.double)
        # scores in units of the standard deviation have second moment 1: the change is in these units too
        changed = mean.unsqueeze(1) + std * (points @ change.T)
        family = GaussianFamily()
        exact = family.kl(*(family.params(x, std.log()) for x in (mean.unsqueeze(1), changed))).mean()
        th.testing.assert_close(product(change, change, th.eye(2, dtype=th.double), outer_mean(points)), exact)

    def test_is_wrong_where_latents_tell_the_probabilities(self):
        """Negative control: the factored Fisher matrix is an approximation."""
        _, points, direction = self.draw(3)
        logits, change = 3 * points[:, :3], 1e-3 * direction
        family = CategoricalFamily()
        changed = logits + points @ change.T
        exact = family.kl(family.params(logits), family.params(changed)).mean()
        assert abs(product(change, change, self.fisher_of(family, logits), outer_mean(points)) / exact - 1) > 0.05

    def test_is_bilinear_and_broadcasts(self):
        generator = th.Generator().manual_seed(0)
        left, right = th.randn(2, 5, 3, 4, generator=generator)
        moments = outer_mean(th.randn(9, 3, generator=generator)), outer_mean(th.randn(9, 4, generator=generator))
        both = product(left + right, left + right, *moments)
        parts = product(left, left, *moments) + 2 * product(left, right, *moments) + product(right, right, *moments)
        assert both.shape == (5,)
        th.testing.assert_close(both, parts, rtol=1e-4, atol=1e-4)


@pytest.fixture
def no_ridge(monkeypatch):
    """Next to nothing is added to moments: what has no steps must still be inverted."""
    monkeypatch.setattr(probes, "RIDGE", 1e-6)
    monkeypatch.setattr(probes, "SCORE_FLOOR", 1e-6)


class TestProbe:
    def gaussian_data(self, steps: int = 4000) -> Rollout:
        """One cell, one fold, scores with second moment 1, and advantages that are left as they are."""
        rollout = random_rollout(0, steps, 1)
        advantages = rollout.score[:, 0].sign() * rollout.latent[:, 1] + 0.5 * rollout.score.prod(dim=1)
        advantages = advantages.clamp(-2, 2) - advantages.clamp(-2, 2).mean()
        score = th.linalg.solve(th.linalg.cholesky(outer_mean(rollout.score)), rollout.score.T).T
        return Rollout(rollout.latent, score, advantages / advantages.std(correction=0), rollout.cells, 0 * rollout.folds)

    @pytest.mark.usefixtures("no_ridge")
    @pytest.mark.parametrize("leash", [0.05, 2.0])
    def test_maximises_advantage_on_a_leash(self, leash):
        rollout = self.gaussian_data()
        assert rollout.advantages.abs().max() < 3
        model = learn(make_probes(1, family=GaussianFamily()), rollout)
        contributions, _ = model._solve(th.ones(1, 1))
        probe = (contributions.sum(dim=0)[0] / leash).requires_grad_()
        changes = th.nn.functional.pad(rollout.latent, (0, 1), value=1.0) @ probe.T
        head, changed = th.zeros_like(changes), changes
        kl = GaussianFamily().kl((head, th.ones_like(head)), (changed, th.ones_like(head))).mean()
        surrogate = (rollout.advantages * (rollout.score * changes).sum(dim=1)).mean()
        (slope,) = th.autograd.grad(surrogate - leash * kl, probe)
        steepest = model.gradient[0, 0] / len(rollout.cells)
        assert slope.abs().max() < 1e-4 * steepest.abs().max()
        assert kl > 0
        # at the maximum of a linear gain with a quadratic price, the gain is twice the price
        th.testing.assert_close(surrogate, 2 * leash * kl, rtol=1e-3, atol=0)

    @pytest.mark.usefixtures("no_ridge")
    def test_is_the_mean_of_what_the_folds_ask_for(self):
        rollout = self.gaussian_data()
        folds = th.arange(len(rollout.cells)) % 3
        contributions, shares = learn(make_probes(1), rollout._replace(folds=folds))._solve(th.ones(1, 1))
        assert contributions[3:].eq(0).all()
        th.testing.assert_close(shares[:3, 0], folds.bincount() / len(folds))
        moments = (outer_mean(x) for x in (rollout.score, th.nn.functional.pad(rollout.latent, (0, 1), value=1.0)))
        inverses = [moment.inverse() for moment in moments]
        points = th.nn.functional.pad(rollout.latent, (0, 1), value=1.0)
        for fold in range(3):
            own = folds == fold
            advantages = rollout.advantages[own] - rollout.advantages[own].mean()
            gradient = (advantages.unsqueeze(1) * rollout.score[own]).T @ points[own] / len(folds)
            th.testing.assert_close(contributions[fold, 0], inverses[0] @ gradient @ inverses[1], rtol=1e-3, atol=1e-4)

    def test_floor_and_ridge_hold_back_what_cannot_be_known(self):
        """A policy that is nearly deterministic, and an output of the trunk that is always 0."""
        rollout = random_rollout(0, 4000, 1)
        latent = rollout.latent * th.tensor([1.0, 1.0, 0.0])
        contributions, _ = learn(make_probes(1), rollout._replace(latent=latent, score=1e-4 * rollout.score))._solve(
            th.ones(1, 1)
        )
        assert contributions.isfinite().all()
        assert contributions.sum(dim=0).norm() < 1e-3


# How often an experiment is repeated to see whether an estimate is right on average
REPETITIONS = 100
CELLS = 4


class Experiment(NamedTuple):
    """One step of every experiment: signs as scores and latents, so that all second moments are 1."""

    steps: int = MIN_GROUP_STEPS
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
        latent, score = (2.0 * th.randint(2, (self.steps, n), generator=generator) - 1 for n in (LATENT_DIM, N_OUTPUTS))
        cells, folds = (th.randint(n, (self.steps,), generator=generator) for n in (CELLS, N_FOLDS))
        points = th.nn.functional.pad(latent, (0, 1), value=1.0)
        asked = self.common + self.wants[cells]
        if self.by_fold:
            asked = asked + 0.3 * th.randn(N_FOLDS, CELLS, N_OUTPUTS, LATENT_DIM + 1, generator=generator)[folds, cells]
        advantages = th.einsum("bi,bij,bj->b", score, asked, points) + self.noise * th.randn(self.steps, generator=generator)
        return learn(make_probes(CELLS), Rollout(latent, score, advantages, cells, folds))


class Estimates(NamedTuple):
    """Of many repetitions, in units of the advantages, on a leash of 1, shape ``(REPETITIONS,)``."""

    within: np.ndarray
    error: np.ndarray


@cache
def repeat(experiment: Experiment) -> Estimates:
    columns = []
    for seed in range(REPETITIONS):
        model = experiment.run(seed)
        # heads need not be compared
        model.cells.fill_(-1)
        result = measure(model, leash=1.0)
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
    of_cells, _ = model._solve(th.eye(CELLS))
    of_group, _ = model._solve(th.ones(1, CELLS))
    difference = (of_cells - of_group).sum(dim=0)
    steps = model.steps.sum(dim=0)
    return (steps * product(difference, difference, *model._moments(th.eye(CELLS)))).sum().item() / steps.sum().item()


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
        results = [measure(model, [0, 1, 0, 1], leash=1.0) for model in models]
        scales = th.stack([model.scale[0] for model in models]) ** 2
        cells, between = (
            (th.stack([getattr(result, name) for result in results]) * scales[:, None, None]).mean(dim=0)
            for name in ("cells", "between")
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
            rollout = two_actions(seed, MIN_GROUP_STEPS, [0, 0, 0, 1])
            result = measure(learn(make_probes(4), rollout), [0, 0, 0, 1])
            values.append([result.between[0, 1].item() / result.cells[:3, 3].mean().item(), 3 / 16])
        ratio, expected = np.mean(values, axis=0)
        assert ratio == pytest.approx(expected, rel=0.05)


TYPES = [0] * 5 + [1] * 5


class TestContradiction:
    def test_is_found_and_divided(self):
        result = measure(learn(make_probes(10), two_actions(0, 8000, TYPES)))
        assert result.within[0] > 5 * MIN_STANDARD_ERRORS * result.within_error[0] > 0
        assert result.within[0] > 10
        assert bipartition(list(range(10)), result.cells, result.cell_steps) == [5, 6, 7, 8, 9]

    @pytest.mark.parametrize("types", [[0, 1] * 5, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 1, 0, 0, 1, 1]])
    def test_however_the_cells_are_numbered(self, types):
        result = measure(learn(make_probes(10), two_actions(0, 8000, types)))
        moving = [cell for cell in range(10) if types[cell] != types[0]]
        (event,) = plan_regrouping(result, th.zeros(10, dtype=th.long), th.ones(10, dtype=th.bool), 0.1, 0.3)
        assert isinstance(event, Split)
        assert sorted(event.cells) == moving

    def test_there_is_none_where_all_cells_want_the_same(self):
        contradictory, common = (measure(learn(make_probes(10), two_actions(0, 8000, types))) for types in (TYPES, [0] * 10))
        assert common.within[0].abs() < 0.01 * contradictory.within[0]
        assert common.within[0] < MIN_STANDARD_ERRORS * common.within_error[0]
        assert plan_regrouping(common, th.zeros(10, dtype=th.long), th.ones(10, dtype=th.bool), None, 0.3) == []

    def test_nor_where_nobody_wants_anything(self):
        for seed in range(20):
            result = measure(learn(make_probes(10), random_rollout(seed, 8000, 10)))
            assert plan_regrouping(result, th.zeros(10, dtype=th.long), th.ones(10, dtype=th.bool), None, 0.3) == []

    def test_of_two_cells(self):
        contradictory, common = (measure(learn(make_probes(2), two_actions(0, 8000, types))) for types in ([0, 1], [0, 0]))
        assert contradictory.within[0] > 10 * MIN_STANDARD_ERRORS * contradictory.within_error[0]
        assert bipartition([0, 1], contradictory.cells, contradictory.cell_steps) == [1]
        assert common.within[0] < MIN_STANDARD_ERRORS * common.within_error[0]

    def test_between_groups(self):
        """Groups of one type each: nothing within, all of it between."""
        result = measure(learn(make_probes(10), two_actions(0, 10_000, TYPES)), TYPES)
        assert (result.within[:2] < MIN_STANDARD_ERRORS * result.within_error[:2]).all()
        assert result.between[0, 1] > 10
        mixed = measure(learn(make_probes(10), two_actions(0, 10_000, TYPES)), [0, 1] * 5)
        assert mixed.between[0, 1] < 0.2 * result.between[0, 1]
        assert (mixed.within[:2] > 10).all()

    def test_of_latents(self):
        """Cells that agree on average, but want opposite things at each point of the latent space."""
        rollout = random_rollout(0, 8000, 4)
        want = (1 - 2 * (rollout.cells % 2)) * rollout.latent[:, 0] * rollout.score[:, 0]
        result = measure(learn(make_probes(4), rollout._replace(advantages=want + rollout.advantages)))
        assert result.within[0] > 5 * MIN_STANDARD_ERRORS * result.within_error[0]
        assert bipartition([0, 1, 2, 3], result.cells, result.cell_steps) == [1, 3]

    # a cell that has turned up in one environment only: none of its data can be held against each other
    @pytest.mark.parametrize("fold", range(0, N_FOLDS, 3))
    def test_cell_with_a_single_fold_does_not_spoil_the_division(self, fold):
        rollout = two_actions(0, 8000, TYPES)
        folds = rollout.folds.where(rollout.cells != 9, fold)
        result = measure(learn(make_probes(10), rollout._replace(folds=folds)))
        assert result.within[0] > 10
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
        assert five.cell_steps[3] == 0
        renamed = five._replace(cells=five.cells[names][:, names], cells_by_half=five.cells_by_half[:, names][:, :, names])
        assert_equal_on(renamed, four, [0, 1, 2, 3])

    def test_cell_with_few_steps_has_no_influence(self):
        rollout, few = two_actions(0, 8000, [0, 0, 1, 1]), random_rollout(1, MIN_STEPS - 1, 1)
        both = Rollout(*(th.cat(columns) for columns in zip(rollout, few._replace(cells=few.cells + 4), strict=True)))
        # each cell with a scale of its own: what is shared would depend on all advantages
        without, with_few = (learn(make_probes(5), data, scale_by_cell=True) for data in (rollout, both))
        results = [measure(model) for model in (without, with_few)]
        assert with_few.steps.sum(dim=0)[4] == MIN_STEPS - 1
        assert results[1].cell_steps[4] == 0
        assert_equal_on(results[0], results[1], [0, 1, 2, 3])

    def test_cell_that_was_not_seen_for_long_is_forgotten(self):
        model = learn(make_probes(5), two_actions(0, 8000, [0, 0, 0, 1, 1]))
        assert (measure(model).cell_steps > 0).all()
        learn(model, *(two_actions(seed, 8000, [0, 0, 0]) for seed in range(1, 7)))
        assert measure(model).cell_steps.gt(0).tolist() == [True, True, True, False, False]
        assert measure(model).within[0] < MIN_STANDARD_ERRORS * measure(model).within_error[0]

    def test_group_has_no_distance(self):
        result = measure(learn(make_probes(4), two_actions(0, 8000, [0, 0, 1])), [0, 0, 1, 2])
        seen = th.tensor([True, True, False, False])
        assert result.between.isfinite().equal(seen & seen.unsqueeze(1))

    def test_nothing_has_been_seen(self):
        model = make_probes(3)
        result = measure(model)
        assert result.within.isnan().all()
        assert result.between.isnan().all()
        assert result.cell_steps.tolist() == [0, 0, 0]


class TestNoAnswer:
    def test_for_a_group_with_one_cell(self):
        result = measure(learn(make_probes(4), two_actions(0, 16_000, [0, 0, 1, 1])), [0, 1, 2, 2])
        assert result.within.isnan().tolist() == [True, True, False, True]

    def test_for_a_group_of_which_one_cell_has_been_seen(self):
        result = measure(learn(make_probes(3), two_actions(0, 16_000, [0, 1])), [0, 1, 1])
        assert result.within[1].isnan()

    @pytest.mark.parametrize(("steps", "known"), [(MIN_GROUP_STEPS - 1, False), (MIN_GROUP_STEPS, True)])
    def test_before_there_are_enough_steps(self, steps, known):
        assert bool(measure(learn(make_probes(2), two_actions(0, steps, [0, 1]))).within[0].isfinite()) == known

    def test_where_cells_are_enough_only_together(self):
        """Each group must have its own steps."""
        result = measure(learn(make_probes(4), two_actions(0, MIN_GROUP_STEPS, [0, 1, 0, 1])), [0, 0, 1, 1])
        assert result.within.isnan().all()


class TestLeash:
    def test_contradictions_grow_with_its_inverse_square(self):
        model = learn(make_probes(10), two_actions(0, 8000, TYPES))
        one, other = (measure(model, TYPES, leash=leash) for leash in (0.03, 0.09))
        for name in ("within", "within_error", "cells", "cells_by_half"):
            th.testing.assert_close(getattr(one, name), 9 * getattr(other, name), equal_nan=True)
        assert one.between[0, 1] == pytest.approx(9 * other.between[0, 1])

    def test_measuring_changes_nothing(self):
        model = learn(make_probes(10), two_actions(0, 8000, TYPES))
        before = copy.deepcopy(model.state_dict())
        first, second = measure(model), measure(model)
        th.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
        assert all(before[name].equal(value) for name, value in model.state_dict().items())


class TestHeads:
    """A leash so tight that probes do not differ leaves the heads as they are."""

    @pytest.mark.parametrize("family", [CategoricalFamily(), GaussianFamily()], ids=["categorical", "gaussian"])
    def test_differ_by_the_mean_divergence_in_the_worse_direction(self, family):
        n_groups, cell_to_group = 3, [0, 1, 1, 2]
        model = learn(make_probes(4, family=family), random_rollout(0, 600, 4))
        generator = th.Generator().manual_seed(1)
        outputs = th.randn(600, n_groups, N_OUTPUTS, generator=generator)
        log_std = 0.3 * th.randn(600, n_groups, N_OUTPUTS, generator=generator)
        given = log_std if isinstance(family, GaussianFamily) else None
        result = model.measure(th.tensor(cell_to_group), n_groups, 1e6, outputs, given)
        groups = [cell_to_group[cell] for cell in model.cells[model.cells >= 0].tolist()]
        for i, j in itertools.combinations(range(n_groups), 2):
            steps = [step for step in range(600) if groups[step] in (i, j)]
            means = []
            for one, other in ((i, j), (j, i)):
                p, q = (family.params(outputs[steps, k], None if given is None else given[steps, k]) for k in (one, other))
                means.append(family.kl(p, q).mean().item())
            assert means[0] != pytest.approx(means[1], rel=1e-3)
            assert result.between[i, j].item() == pytest.approx(max(means), rel=1e-4)
            assert result.between[j, i] == result.between[i, j]

    def test_that_are_alike_still_differ_if_their_cells_contradict_each_other(self):
        result = measure(learn(make_probes(2), two_actions(0, 8000, [0, 1])), [0, 1])
        assert result.between[0, 1] > 10


class TestProjection:
    WIDE = MAX_DIM + 36

    @pytest.mark.parametrize("latent_dim", [1, MAX_DIM - 1, MAX_DIM])
    def test_narrow_trunks_are_taken_as_they_are(self, latent_dim):
        assert make_probes(2, latent_dim).projection.equal(th.eye(latent_dim))

    def test_wide_trunks_are_projected(self):
        wide, narrow = make_probes(2, self.WIDE), make_probes(2, MAX_DIM)
        assert wide.projection.shape == (self.WIDE, MAX_DIM)
        assert wide.gradient.shape == narrow.gradient.shape
        rollout = random_rollout(0, 500, 2, latent_dim=self.WIDE)
        learn(wide, rollout)
        learn(narrow, rollout._replace(latent=rollout.latent @ wide.projection))
        for name in ("gradient", "latent_moment", "score_moment", "steps"):
            th.testing.assert_close(getattr(wide, name), getattr(narrow, name))
        # heads are measured on the whole of it
        assert wide.latent[wide.cells >= 0].equal(rollout.latent)

    def test_no_direction_is_lost_that_counts(self):
        """What cells want of one output out of many still shows."""
        rollout = random_rollout(0, 8000, 4, latent_dim=self.WIDE)
        want = (1 - 2 * (rollout.cells % 2)) * rollout.latent[:, 7] * rollout.score[:, 0]
        result = measure(learn(make_probes(4, self.WIDE), rollout._replace(advantages=want)))
        assert result.within[0] > MIN_STANDARD_ERRORS * result.within_error[0]

    def test_is_the_same_every_time_and_everywhere(self):
        th.manual_seed(1)
        one = make_probes(2, self.WIDE)
        th.manual_seed(2)
        other = make_probes(5, self.WIDE)
        assert one.projection.equal(other.projection)

    @pytest.mark.parametrize("latent_dim", [8, WIDE])
    def test_no_global_random_number_is_drawn(self, latent_dim):
        states = th.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]  # not the legacy dict
        learn(make_probes(3, latent_dim), random_rollout(0, 100, 3, latent_dim=latent_dim))
        assert th.get_rng_state().equal(states[0])
        assert (np.random.get_state()[1] == states[1]).all()  # type: ignore[index]  # not the legacy dict

    def test_saved_and_loaded_with_the_policy(self, tmp_path):
        space = spaces.Box(-1, 1, (5,))
        policy = MlpPolicy(
            space,
            spaces.Discrete(2),
            lambda _: 1e-3,
            net_arch=[self.WIDE],
            router="one_hot",
            router_kwargs=dict(columns=(2, 5)),
        )
        assert policy.probes is not None
        learn(policy.probes, random_rollout(0, 500, 3, latent_dim=self.WIDE))
        policy.save(str(tmp_path / "policy.pth"))
        loaded = MlpPolicy.load(str(tmp_path / "policy.pth"))
        assert isinstance(loaded.probes, Probes)
        expected = policy.probes.state_dict()
        assert set(expected) >= {"projection", "gradient", "scale", "steps", "latent", "cells"}
        assert all(expected[name].equal(value) for name, value in loaded.probes.state_dict().items())
