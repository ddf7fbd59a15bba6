"""
Time the parts of one update step and of one rollout step, beside their limits: matrix products and environments alone.

``python -m benchmarks.performance.profile_update`` (CartPole, 8 environments, minibatches of 64, four groups).
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.lib.hyperparams import FIXED_GROUPS
from benchmarks.lib.rows import RESULTS
from sb3_grpo import GRPO
from sb3_grpo.objective import PPOObjective
from sb3_grpo.update import CompiledUpdate, EagerUpdate, FlatStepper, OptimizerStepper

N_ENVS, BATCH_SIZE, N_GROUPS = 8, 64, 4
KWARGS: dict[str, Any] = {"n_steps": 128, "batch_size": BATCH_SIZE, "seed": 0, "device": "cpu"}
FIXED: dict[str, Any] = {"n_groups": N_GROUPS, **FIXED_GROUPS}


def microseconds(functions: dict[str, Callable[[], Any]], calls: int = 200, repeats: int = 15) -> dict[str, float]:
    """
    Return the microseconds per call of each function, median over the repeats.

    :param functions: functions by name, which take turns
    :param calls: number of calls in one measurement
    :param repeats: number of measurements
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(calls):
                function()
            if repeat:  # the first is burn-in
                times[name].append((time.perf_counter() - start) / calls * 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


def matrix_products(network_inputs: int, batch: int, n_outputs: int, with_gradient: bool) -> Callable[[], None]:
    """
    Return a function that does the matrix products of two networks 64-64 with their heads, without allocating memory.

    :param network_inputs: width of the observation
    :param batch: number of observations
    :param n_outputs: width of the action head
    :param with_gradient: whether the products of the gradient are done too
    """
    shapes = [(network_inputs, 64), (64, 64), (64, n_outputs), (network_inputs, 64), (64, 64), (64, N_GROUPS)]
    products = []
    for n_in, n_out in shapes:
        x, w, g = th.randn(batch, n_in), th.randn(n_in, n_out), th.randn(batch, n_out)
        products.append((x, w))
        if with_gradient:
            products += [(x.T, g), (g, w.T)]
    buffers = [left @ right for left, right in products]

    def multiply() -> None:
        for (left, right), out in zip(products, buffers, strict=True):
            th.mm(left, right, out=out)

    return multiply


def profile_update() -> dict[str, float]:
    """Return the microseconds of the parts of an update step."""
    env = make_vec_env("CartPole-v1", N_ENVS, seed=0)
    model, compiled = (GRPO("MlpPolicy", env, **KWARGS, **FIXED, compile=choice) for choice in (False, True))
    for either in (model, compiled):
        either.learn(2 * KWARGS["n_steps"] * N_ENVS)
    batch = next(model.rollout_buffer.samples().minibatches(BATCH_SIZE))
    assert isinstance(batch.observations, th.Tensor)
    # one model each: while an update is open, the parameters are its own
    reference = GRPO("MlpPolicy", env, **KWARGS, **FIXED).learn(KWARGS["n_steps"] * N_ENVS)
    objective = PPOObjective(model.ent_coef, model.vf_coef, normalize_advantage=True)
    optimizer_stepper = OptimizerStepper(reference.policy, reference.max_grad_norm)
    by_parameter = EagerUpdate(reference.policy, objective, optimizer_stepper, None)
    stepper = FlatStepper(model.policy, model.max_grad_norm)
    flat = EagerUpdate(model.policy, objective, stepper, None)
    compiled_update = CompiledUpdate(compiled.policy, objective, compiled.max_grad_norm, None)
    with by_parameter, flat, compiled_update:
        loss = objective(model.policy, batch, 0.2, None).loss
        gradients = th.autograd.grad(loss, stepper.parameters, retain_graph=True)

        def clip_and_step() -> None:
            stepper.gradient, _ = stepper.clip(gradients)
            stepper.step()

        return microseconds(
            {
                "eager: whole step": lambda: flat(batch, 0.2, None),
                "eager: whole step with the optimizer's own step": lambda: by_parameter(batch, 0.2, None),
                "eager: loss": lambda: objective(model.policy, batch, 0.2, None),
                "eager: gradient": lambda: th.autograd.grad(loss, stepper.parameters, retain_graph=True),
                "eager: clipping and Adam": clip_and_step,
                "eager: network, inside the loss": lambda: model.policy.mlp_extractor(batch.observations),
                "tried: network without nn.Module.__call__": layer_by_layer(model, batch.observations),
                "eager: choosing the minibatch": iterate(model, batch_size=BATCH_SIZE),
                "compiled: whole step": lambda: compiled_update(batch, 0.2, None),
                "limit: matrix products alone": matrix_products(4, BATCH_SIZE, 2 * N_GROUPS, with_gradient=True),
            }
        )


def layer_by_layer(model: GRPO, observations: th.Tensor) -> Callable[[], Any]:
    """
    Return a function that evaluates the two networks, calling ``forward`` of each layer directly.

    :param model: model with the networks
    :param observations: shape ``(B, width)``
    """
    networks = (model.policy.mlp_extractor.policy_net, model.policy.mlp_extractor.value_net)

    def run() -> list[th.Tensor]:
        outputs = []
        for network in networks:
            x = observations
            for layer in network:
                x = layer.forward(x)
            outputs.append(x)
        return outputs

    return run


def iterate(model: GRPO, batch_size: int) -> Callable[[], Any]:
    """
    Return a function that takes the next minibatch, from a new pass over the rollout where the last has ended.

    :param model: model with a rollout
    :param batch_size: size of the minibatches
    """
    samples = model.rollout_buffer.samples()
    passes = (batch for _ in iter(int, 1) for batch in samples.minibatches(batch_size))
    return lambda: next(passes)


def profile_rollout() -> dict[str, float]:
    """Return the microseconds of the parts of a rollout step."""
    env = make_vec_env("CartPole-v1", N_ENVS, seed=0)
    ppo = PPO("MlpPolicy", env, **KWARGS)
    grpo = GRPO("MlpPolicy", env, **KWARGS, **FIXED)
    compiled = GRPO("MlpPolicy", env, **KWARGS, **FIXED)
    compiled.policy.compile_act()
    obs, actions = th.as_tensor(env.reset()), np.zeros(N_ENVS, dtype=int)
    with th.no_grad():
        return microseconds(
            {
                "PPO: policy": lambda: ppo.policy(obs),
                "GRPO: policy": lambda: grpo.policy(obs),
                "GRPO compiled: policy": lambda: compiled.policy(obs),
                f"limit: {N_ENVS} environments alone": lambda: env.step(actions),
                "limit: matrix products alone": matrix_products(4, N_ENVS, 2 * N_GROUPS, with_gradient=False),
            }
        )


def main() -> None:
    """Time both, store the results and print them."""
    th.set_num_threads(1)
    profile = {"update of a minibatch": profile_update(), f"rollout, step of {N_ENVS} environments": profile_rollout()}
    (RESULTS / "profile.json").write_text(json.dumps(profile, indent=1) + "\n")
    for title, rows in profile.items():
        table = Table("part", "microseconds", title=title)
        for name, value in rows.items():
            table.add_row(name, f"{value:.0f}")
        Console().print(table)


if __name__ == "__main__":
    main()
