"""Epochs: how often a rollout is used, and what ends it early."""

import math
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from tiny_policies import make_scrambled_policy

from sb3_grpo.buffers import Rollout
from sb3_grpo.epochs import EpochLoop
from sb3_grpo.objective import LossTerms
from sb3_grpo.routing import NonFiniteError
from sb3_grpo.update import UpdateStep

N_STEPS = 20


class Scripted:
    """
    Accept steps until a given one.

    :param refuse_at: index of the minibatch that is refused; ``None``: none
    :param loss: of that minibatch
    :param norm: of its gradient
    :param lookahead: minibatches after it, whose steps are refused too
    """

    def __init__(self, refuse_at: int | None = None, loss: float = 1.0, norm: float = 1.0, lookahead: int = 0):
        self.refuse_at, self.loss, self.norm, self.lookahead = refuse_at, loss, norm, lookahead
        self.batches: list[Rollout] = []
        self.clip_ranges: set[tuple[float, float | None]] = set()

    def __enter__(self) -> None:
        raise AssertionError("entered by whoever made it")

    def __exit__(self, *_: object) -> None:
        raise AssertionError("left by whoever made it")

    def __call__(self, batch: Rollout, clip_range: float, clip_range_vf: float | None) -> UpdateStep:
        place = len(self.batches)
        refused = self.refuse_at is not None and (place == self.refuse_at or 0 < place - self.refuse_at <= self.lookahead)
        self.batches.append(batch)
        self.clip_ranges.add((clip_range, clip_range_vf))
        zero, log_ratio = th.zeros(()), th.tensor([math.log(2), -math.log(2)])
        terms = LossTerms(th.tensor(self.loss if refused else 1.0), zero, zero, zero, log_ratio, zero)
        return UpdateStep(terms, not refused, self.norm if refused else 1.0)


def make_policy() -> Any:
    return make_scrambled_policy(spaces.Discrete(2), 2, n_groups=2, net_arch=[4])


def make_rollout() -> Rollout:
    """A rollout whose advantages number its steps."""
    obs = th.cat([th.zeros(N_STEPS, 2), th.eye(2)[th.arange(N_STEPS) % 2]], dim=1)
    zeros = th.zeros(N_STEPS)
    numbers = th.arange(float(N_STEPS))
    heads = th.arange(N_STEPS) % 2
    return Rollout(obs, zeros.unsqueeze(1), zeros, zeros, numbers, zeros, heads, th.ones(N_STEPS))


def run(update: Scripted, n_epochs: int = 3, batch_size: int = 8, **kwargs: Any) -> EpochLoop:
    epochs = EpochLoop(update, make_policy(), n_epochs, batch_size, **kwargs)
    epochs.run(make_rollout(), 0.2, None)
    return epochs


class TestAllMinibatches:
    def test_every_step_is_used_once_in_each_epoch(self):
        update = Scripted()
        epochs = run(update)
        assert [len(batch.heads) for batch in update.batches] == [8, 8, 4] * 3
        for epoch in range(3):
            numbers = th.cat([batch.advantages for batch in update.batches[3 * epoch : 3 * epoch + 3]])
            assert numbers.sort().values.tolist() == list(range(N_STEPS))
        assert (len(epochs.steps), epochs.n_begun, epochs.last_start) == (9, 3, 6)

    def test_each_epoch_has_its_own_order(self):
        update = Scripted()
        run(update, n_epochs=2, batch_size=N_STEPS)
        first, second = update.batches
        assert not first.advantages.equal(second.advantages)

    def test_the_order_is_that_of_numpys_generator(self):
        update = Scripted()
        np.random.seed(3)
        run(update, n_epochs=2, batch_size=N_STEPS)
        np.random.seed(3)
        for batch in update.batches:
            assert batch.advantages.tolist() == np.random.permutation(N_STEPS).tolist()

    def test_clip_ranges_are_handed_on(self):
        update = Scripted()
        EpochLoop(update, make_policy(), 1, 8).run(make_rollout(), 0.3, 0.4)
        assert update.clip_ranges == {(0.3, 0.4)}

    def test_before_it_runs_there_is_nothing(self):
        epochs = EpochLoop(Scripted(), make_policy(), 3, 8)
        assert (epochs.steps, epochs.n_begun, epochs.last_start) == ([], 0, 0)


class TestEarlyStop:
    @pytest.mark.parametrize(("refuse_at", "n_begun", "last_start"), [(0, 1, 0), (2, 1, 0), (3, 2, 3), (4, 2, 3), (8, 3, 6)])
    def test_ends_with_the_step_that_is_refused(self, refuse_at, n_begun, last_start):
        epochs = run(Scripted(refuse_at))
        assert len(epochs.steps) == refuse_at + 1
        assert [bool(step.accepted) for step in epochs.steps] == [True] * refuse_at + [False]
        assert (epochs.n_begun, epochs.last_start) == (n_begun, last_start)

    @pytest.mark.parametrize("lookahead", [1, 2, 8])
    @pytest.mark.parametrize("refuse_at", range(9))
    def test_is_the_same_where_it_is_found_later(self, refuse_at, lookahead):
        """As on a GPU, which would have to be waited for."""
        at_once, later = run(Scripted(refuse_at)), run(update := Scripted(refuse_at, lookahead=lookahead))
        assert [bool(step.accepted) for step in later.steps] == [bool(step.accepted) for step in at_once.steps]
        assert (later.n_begun, later.last_start) == (at_once.n_begun, at_once.last_start)
        # not beyond the epoch, and not more of them than allowed
        end_of_epoch = refuse_at - refuse_at % 3 + 3
        assert refuse_at + 1 <= len(update.batches) <= min(refuse_at + 1 + lookahead, end_of_epoch)

    def test_is_said_if_asked_for(self, capsys):
        """The divergence: (2 - 1 - log 2 + 1/2 - 1 + log 2) / 2."""
        run(Scripted(4), verbose=1)
        assert capsys.readouterr().out == "Early stopping at step 1 due to reaching max kl: 0.25\n"
        run(Scripted(4), verbose=0)
        run(Scripted(), verbose=1)
        assert capsys.readouterr().out == ""


class TestNonFinite:
    def test_loss(self):
        with pytest.raises(NonFiniteError, match=r"the loss is NaN or infinite"):
            run(Scripted(1, loss=math.nan))

    def test_gradient(self):
        with pytest.raises(NonFiniteError, match=r"the gradient is NaN or infinite although the loss is finite"):
            run(Scripted(1, norm=math.inf))

    @pytest.mark.parametrize("lookahead", [1, 8])
    def test_the_minibatch_that_is_named_is_the_one_that_failed(self, lookahead):
        """Not one after it: its groups are in the message."""
        rollout = make_rollout()
        rollout = rollout._replace(returns=rollout.returns.where(rollout.heads == 1, math.nan))
        loop = EpochLoop(Scripted(1, loss=math.nan, lookahead=lookahead), make_policy(), 3, 8)
        with pytest.raises(NonFiniteError, match=r"in groups \[0\]"):
            loop.run(rollout, 0.2, None)
        assert len(loop.steps) == 2

    def test_a_finite_step_that_is_refused_is_no_error(self):
        assert len(run(Scripted(1)).steps) == 2
