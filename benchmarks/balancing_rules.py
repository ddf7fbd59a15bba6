"""
What balances tasks that have a head each? Rules of the field on the same heads, with equal rewards and with rewards scaled
by 1, 1, 10 and 0.1 (settings "drawn" and "scaled" of ``balance.py``, whose hyper-parameters these are). Part "wide" asks
whether lambda does harm where rewards are scaled by 1, 30, 0.1 and 1.

- heads: PPO's normalisation of advantages, nothing else
- group normalisation: advantages and values in units of their own group
- lambda: that, and GRPO's penalty; from 0.005, the default, by decades
- softmax: that, and weights that grow exponentially with how far a group is behind, as group DRO has them
  (https://arxiv.org/abs/1911.08731), with the scores of one rollout as their only memory
- UPGrad: group normalisation, and the Jacobian descent of TorchJD (https://arxiv.org/abs/2406.16232) on the shared layers:
  no step that any task's loss would grow with

``python benchmarks/balancing_rules.py`` runs what has no result row yet and prints the tables.
"""

from typing import Any

import numpy as np
import torch as th
from balance import REDUCTIONS, SEEDS, SETTINGS, by_method, curves, head_per_task, make_env, train_and_evaluate
from common import parse_parts, run_part
from measures import describe
from rich.console import Console
from rich.table import Table
from scipy.special import softmax
from torchjd.aggregation import UPGrad

from sb3_grpo import GRPO
from sb3_grpo.buffers import GroupRolloutBufferSamples
from sb3_grpo.heads import HEAD_DIMS
from sb3_grpo.losses import GroupBalance
from sb3_grpo.update import EagerUpdate, Update, UpdateTerms, trained_parameters


class SoftmaxGRPO(GRPO):
    """Weights ``q_i / share_i`` with ``q_i ~ share_i exp(-R_i / sigma_R)``: as GRPO's they are 1 where all are alike."""

    def _compare_groups(self) -> tuple[GroupRolloutBufferSamples, GroupBalance]:
        rollout, balance = super()._compare_groups()
        shares = balance.steps / balance.steps.sum()
        weights = softmax(np.log(shares) - balance.scores / balance.scale) / shares
        table = th.ones(self.policy.max_groups)
        table[th.as_tensor(balance.groups)] = th.as_tensor(weights).float()
        return rollout._replace(weights=table[rollout.groups]), balance._replace(weights=weights)


class UPGradGRPO(GRPO):
    """The gradients of the groups' losses are made one by UPGrad, where the groups share parameters."""

    def _make_update(self, max_kl: float | None) -> Update:
        return UPGradUpdate(self.policy, self._update_terms, self.max_grad_norm, max_kl)


class UPGradUpdate(EagerUpdate):
    """Arguments as in ``EagerUpdate``."""

    def __enter__(self) -> "UPGradUpdate":
        super().__enter__()
        self.aggregator = UPGrad()
        self.shared = [p for name, p in trained_parameters(self.policy).items() if name not in HEAD_DIMS]
        self.heads = [p for name, p in trained_parameters(self.policy).items() if name in HEAD_DIMS]
        return self

    def __call__(self, batch: GroupRolloutBufferSamples, clip_range: float, clip_range_vf: float | None) -> UpdateTerms:
        terms = self.loss(batch, clip_range, clip_range_vf).judge(self.max_kl)
        if terms.accepted:
            losses = []
            for group in batch.groups.unique():
                of_group = GroupRolloutBufferSamples(*(field[batch.groups == group] for field in batch))
                losses.append(self.loss(of_group, clip_range, clip_range_vf).loss)
            self._descend(losses)
        return terms

    def _descend(self, losses: list[th.Tensor]) -> None:
        rows = [th.autograd.grad(loss, [*self.shared, *self.heads], retain_graph=True) for loss in losses]
        n_shared = len(self.shared)
        jacobian = th.stack([th.cat([gradient.flatten() for gradient in row[:n_shared]]) for row in rows])
        sizes = [parameter.numel() for parameter in self.shared]
        # UPGrad is linear in the scale, but leaves alone what it takes for zero: small gradients early in training
        scale = jacobian.norm().clamp(min=1e-12)
        shared_gradient = self.aggregator(jacobian / scale) * scale
        for parameter, gradient in zip(self.shared, shared_gradient.split(sizes), strict=True):
            parameter.grad = gradient.view_as(parameter)
        # what is a group's own has no conflicts; UPGrad is a mean over the losses too
        for position, parameter in enumerate(self.heads):
            parameter.grad = th.stack([row[n_shared + position] for row in rows]).mean(dim=0)
        th.nn.utils.clip_grad_norm_([*self.shared, *self.heads], self.max_grad_norm)
        self.optimizer.step()


RULES: dict[str, tuple[type[GRPO], dict[str, Any]]] = {
    "heads": (GRPO, dict(group_coef=0.0, normalize_advantage=True)),
    "group normalisation": (GRPO, dict(group_coef=0.0)),
    "lambda 0.005": (GRPO, dict(group_coef=0.005)),
    "lambda 0.05": (GRPO, dict(group_coef=0.05)),
    "lambda 0.5": (GRPO, dict(group_coef=0.5)),
    "softmax": (SoftmaxGRPO, dict(group_coef=0.0)),
    "UPGrad": (UPGradGRPO, dict(group_coef=0.0)),
}


def run(setting: str, method: str, seed: int, total_timesteps: int, n_evaluations: int) -> dict[str, Any]:
    """
    :param method: a name of :data:`RULES`
    :return: as ``balance.train_and_evaluate``
    """
    env, (algorithm, rule) = make_env(setting, seed), RULES[method]
    kwargs = {**head_per_task(env), "merge_kl": None, "split_kl": None, **SETTINGS[setting]["kwargs"], **rule}
    model = algorithm("MlpPolicy", env, seed=seed, device="cpu", **kwargs)
    return train_and_evaluate(model, [], setting, seed, total_timesteps, n_evaluations)


def make_runs(setting: str, seeds: list[int]) -> list[dict[str, Any]]:
    base = dict(setting=setting, total_timesteps=40_960, n_evaluations=10)
    methods = ("group normalisation", "lambda 0.005", "lambda 0.05") if setting == "wide" else RULES
    return [dict(method=method, seed=seed, **base) for seed in seeds for method in methods]


def rules_table(rows: list[dict[str, Any]], title: str = "") -> Table:
    table = Table(
        "rule", "seeds", *(f"{name}, {when}" for when in ("end", "over training") for name in REDUCTIONS), title=title
    )
    for method, own in by_method(rows, RULES).items():
        values = [curves(own, reduce) for reduce in REDUCTIONS.values()]
        columns = [*(x[:, -1] for x in values), *(x.mean(axis=1) for x in values)]
        table.add_row(method, str(len(own)), *map(describe, columns))
    return table


def main() -> None:
    arguments = parse_parts(__doc__, ("drawn", "scaled", "wide"))
    for setting in arguments.parts:
        runs = make_runs(setting, arguments.seeds or list(range(5) if setting == "wide" else SEEDS))
        rows = run_part(run, runs, f"balancing_rules_{setting}", arguments, total_timesteps=2048, n_evaluations=2)
        Console(width=150).print(rules_table(rows, setting))


if __name__ == "__main__":
    main()
