"""Test that other balancing rules weigh groups and combine gradients as they say."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch as th

from benchmarks.lib.balancers import Softmax
from benchmarks.lib.tasks import head_per_task
from benchmarks.lib.variants import OwnDeviationGRPO, UPGradUpdate
from benchmarks.sweeps.balancing_rules import RULES
from sb3_grpo import GRPO
from sb3_grpo.balancing import BALANCERS


def cosine(left: Sequence[th.Tensor], right: Sequence[th.Tensor]) -> float:
    x, y = (th.cat([gradient.flatten() for gradient in gradients]) for gradients in (left, right))
    return float(th.nn.functional.cosine_similarity(x, y, dim=0))


class TestBalancingRules:
    @pytest.fixture
    def train(self, task_cartpole: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
        """A function that trains for one rollout, and returns the model."""

        def train(rule: str) -> Any:
            monkeypatch.setitem(BALANCERS, "softmax", Softmax)
            algorithm, kwargs = RULES[rule]
            kwargs = {**head_per_task(task_cartpole), "compile": False, "n_steps": 64, "seed": 0, **kwargs}
            return algorithm("MlpPolicy", task_cartpole, **kwargs).learn(1)

        return train

    def test_softmax_prefers_groups_that_are_behind(self, train: Any) -> None:
        model = train("softmax")
        counts, scores, weights = np.array([(group.steps, group.score, group.weight) for group in model.groups]).T
        assert float(counts / counts.sum() @ weights) == pytest.approx(1)
        # the ratio of two weights, by hand; all rewards are 1, so that scores are returns
        behind = float(scores[1] - scores[0]) / float(model.rollout_buffer.samples().returns.std(correction=0))
        assert float(weights[0] / weights[1]) == pytest.approx(np.exp(behind), rel=1e-5)

    def test_no_loss_grows_with_a_step_of_upgrad(self, train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        descend = UPGradUpdate._descend
        cosines: list[float] = []
        cosines_of_mean: list[float] = []

        def check(update: UPGradUpdate, losses: list[th.Tensor]) -> None:
            rows = [th.autograd.grad(loss, update.shared, retain_graph=True) for loss in losses]
            mean = [th.stack(gradients).mean(dim=0) for gradients in zip(*rows, strict=True)]
            descend(update, losses)
            step = [parameter.grad for parameter in update.shared if parameter.grad is not None]
            cosines.extend(cosine(row, step) for row in rows)
            cosines_of_mean.extend(cosine(row, mean) for row in rows)

        monkeypatch.setattr(UPGradUpdate, "_descend", check)
        train("UPGrad")
        assert min(cosines) > -0.01
        # the negative control: the mean of the gradients is against some loss
        assert min(cosines_of_mean) < -0.1


@pytest.mark.parametrize(("algorithm", "full_size"), [(OwnDeviationGRPO, True), (GRPO, False)])
def test_own_deviation_has_no_floor(task_cartpole: Any, algorithm: type[GRPO], full_size: bool) -> None:
    class Recorded(algorithm):  # type: ignore[misc, valid-type]  # a variable as base
        def _normalize_advantages(self, experience: Any) -> Any:
            # as if there had been no reward in this rollout, and before it some a million times as large
            self.score_history.reward_scale.scale *= 1e6
            outcome = experience.outcome._replace(paid=0 * experience.outcome.paid)
            found = super()._normalize_advantages(experience._replace(outcome=outcome))
            self.advantages, self.groups_of_steps = found[0], np.array(self.cell_to_group)[outcome.cells]
            return found

    kwargs = {**head_per_task(task_cartpole), "compile": False, "n_steps": 64, "seed": 0, "normalize_advantage": "group"}
    model = Recorded("MlpPolicy", task_cartpole, **kwargs).learn(1)
    for group in set(model.groups_of_steps.tolist()):
        deviation = model.advantages[model.groups_of_steps == group].std(ddof=1)
        assert deviation == pytest.approx(1, rel=1e-3) if full_size else deviation < 1e-3
