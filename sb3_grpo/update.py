"""Update: how a minibatch changes the policy, operation by operation or as one compiled function."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol, TypeVar

import torch as th
from gymnasium import spaces
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.adam import adam

from sb3_grpo.buffers import Rollout
from sb3_grpo.compilation import CompiledFunction
from sb3_grpo.interrupts import interrupts_delayed
from sb3_grpo.losses import approx_kl
from sb3_grpo.objective import LossTerms, PPOObjective
from sb3_grpo.policies import GroupActorCriticPolicy

# Minibatches on a GPU that are begun before it is known whether the first of them was refused
LOOKAHEAD = 8


class UpdateStep(NamedTuple):
    """What was done with one minibatch."""

    terms: LossTerms  # detached
    accepted: th.Tensor | bool  # whether the optimizer took the step
    gradient_norm: th.Tensor | float  # before clipping; 0 if it was not computed

    @classmethod
    def of(cls, terms: LossTerms, max_kl: float | None) -> "UpdateStep":
        """
        Decide from its loss whether a step is taken.

        :param terms: loss of the minibatch
        :param max_kl: largest KL divergence from the policy that collected the rollout, nats; ``None``: no limit
        :return: accepted if the loss is finite and the divergence within its limit
        """
        terms = LossTerms(*(term.detach() for term in terms))
        accepted = terms.loss.isfinite()
        if max_kl is not None:
            accepted = accepted & (approx_kl(terms.log_ratio) <= max_kl)
        return cls(terms, accepted, th.zeros_like(terms.loss))

    def with_gradient(self, norm: th.Tensor) -> "UpdateStep":
        """
        Decide from its gradient whether a step is taken: that of a finite loss can be NaN or infinite.

        :param norm: norm of the gradient before clipping
        """
        return self._replace(accepted=self.accepted & norm.isfinite(), gradient_norm=norm)


class Update(Protocol):
    """
    Take one optimizer step for each minibatch, except where its loss or gradient is not acceptable.

    It is a context manager around the minibatches of one rollout.
    """

    lookahead: int  # minibatches that may follow one whose step is refused; if it is not 0, their steps are refused too

    def __enter__(self) -> Any: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def __call__(self, batch: Rollout, clip_range: float, clip_range_vf: float | None) -> UpdateStep:
        """
        Use one minibatch.

        :param batch: the minibatch
        :param clip_range: clipping parameter of the surrogate
        :param clip_range_vf: clipping parameter of the value function
        """


class Stepper(Protocol):
    """Turn a loss into a step of the parameters; a context manager around the minibatches of one rollout."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *_: object) -> None: ...

    def clip_gradient(self, loss: th.Tensor) -> th.Tensor:
        """
        Compute the gradient and scale it down to the largest norm.

        :param loss: scalar
        :return: norm of the gradient before clipping
        """

    def step(self) -> None:
        """Take the step with the last gradient."""


class EagerUpdate:
    """
    Update operation by operation.

    :param policy: the policy to train
    :param objective: loss of a minibatch
    :param stepper: what is done with its gradient
    :param max_kl: no step is taken beyond this KL divergence, nats; ``None``: no limit
    """

    lookahead = 0

    def __init__(self, policy: GroupActorCriticPolicy, objective: PPOObjective, stepper: Stepper, max_kl: float | None):
        self.policy, self.objective, self.stepper, self.max_kl = policy, objective, stepper, max_kl

    def __enter__(self) -> "EagerUpdate":
        self.stepper.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stepper.__exit__(*error)

    def __call__(self, batch: Rollout, clip_range: float, clip_range_vf: float | None) -> UpdateStep:
        """Use one minibatch, see :class:`Update`."""
        terms = self.objective(self.policy, batch, clip_range, clip_range_vf)
        step = UpdateStep.of(terms, self.max_kl)
        if step.accepted:
            step = step.with_gradient(self.stepper.clip_gradient(terms.loss))
            if step.accepted:
                self.stepper.step()
        return step


class OptimizerStepper:
    """
    Step of the policy's own optimizer. Gradients stay in ``parameter.grad``, as with PPO.

    :param policy: the policy to train
    :param max_grad_norm: the gradient is scaled down to this norm
    """

    def __init__(self, policy: GroupActorCriticPolicy, max_grad_norm: float):
        self.policy, self.optimizer, self.max_grad_norm = policy, policy.optimizer, max_grad_norm

    def __enter__(self) -> None:
        # the optimizer would move a layer that has been frozen since, by the gradient that it had then
        self.optimizer.zero_grad()
        self.parameters = list(trained_parameters(self.policy).values())

    def __exit__(self, *_: object) -> None:
        pass

    def clip_gradient(self, loss: th.Tensor) -> th.Tensor:
        """Compute and clip the gradient, see :class:`Stepper`."""
        # as zero_grad(), backward() and clip_grad_norm_(), without their bookkeeping
        gradients = th.autograd.grad(loss, self.parameters, allow_unused=True)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        used = [gradient for gradient in gradients if gradient is not None]
        total_norm = th.linalg.vector_norm(th.stack(th._foreach_norm(used)))
        th._foreach_mul_(used, th.clamp(self.max_grad_norm / (total_norm + 1e-6), max=1.0))
        return total_norm

    def step(self) -> None:
        """Take the step; an interrupt waits until it is complete."""
        with interrupts_delayed():
            self.optimizer.step()


class HookedStepper(OptimizerStepper):
    """SB3's own lines, for parameters with hooks: ``backward`` calls them. Parameters as :class:`OptimizerStepper`."""

    def __enter__(self) -> None:
        pass

    def clip_gradient(self, loss: th.Tensor) -> th.Tensor:
        """Compute and clip the gradient, see :class:`Stepper`."""
        self.optimizer.zero_grad()
        loss.backward()
        return clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)


SelfFlatVectors = TypeVar("SelfFlatVectors", bound="FlatVectors")


class FlatVectors:
    """
    Parameters and Adam's moments as one flat vector each while the minibatches of a rollout are used.

    One operation then serves all parameters. On leaving the context the policy and its optimizer are again as saving,
    loading and callbacks know them.

    :param policy: the policy to train; its optimizer must be one that :func:`is_plain_adam`
    :param max_grad_norm: the gradient is scaled down to this norm
    """

    def __init__(self, policy: GroupActorCriticPolicy, max_grad_norm: float):
        self.optimizer, self.settings = policy.optimizer, dict(policy.optimizer.param_groups[0])
        trained = trained_parameters(policy)
        self.names, self.parameters = list(trained), list(trained.values())
        self.sizes = [parameter.numel() for parameter in self.parameters]
        self.max_grad_norm = max_grad_norm
        device = self.parameters[0].device
        # torch has one kernel for the whole step there
        self.fused = device.type in ("cpu", "cuda")
        # where Adam itself keeps its number of steps
        self._step_device = device if self.settings["fused"] or self.settings["capturable"] else th.device("cpu")

    def is_of(self, policy: GroupActorCriticPolicy) -> bool:
        """
        Return whether the parameters are still those that the policy's optimizer changes: loading can replace them.

        :param policy: the policy
        """
        return [id(parameter) for parameter in self.parameters] == list(map(id, trained_parameters(policy).values()))

    def __enter__(self: SelfFlatVectors) -> SelfFlatVectors:
        with interrupts_delayed():
            self._flatten()
        return self

    def _flatten(self) -> None:
        self.flat = th.cat([parameter.detach().flatten() for parameter in self.parameters])
        # a parameter that was frozen, or has not had a gradient yet, has no state of its own
        states = [(parameter, self.optimizer.state[parameter]) for parameter in self.parameters]
        self.exp_avg, self.exp_avg_sq = (
            th.cat([state.get(name, th.zeros_like(parameter)).flatten() for parameter, state in states])
            for name in ("exp_avg", "exp_avg_sq")
        )
        steps = [state["step"] for _, state in states if state]
        self.n_steps = th.stack(steps).max().to(self.flat, copy=True) if steps else self.flat.new_zeros(())
        self.gradient = th.zeros_like(self.flat)  # the last one, clipped
        self._point_to_flat()

    def _point_to_flat(self) -> None:
        """Make the parameters views of the flat vector."""
        for parameter, values in zip(self.parameters, self.unflatten(self.flat), strict=True):
            parameter.data = values

    def __exit__(self, *_: object) -> None:
        with interrupts_delayed():
            self._write_back()

    def _write_back(self) -> None:
        vectors = {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}
        for parameter in self.parameters:
            parameter.data = parameter.data.clone()
            self.optimizer.state[parameter]["step"] = self.n_steps.to(self._step_device, copy=True)
        for name, vector in vectors.items():
            for parameter, values in zip(self.parameters, self.unflatten(vector), strict=True):
                self.optimizer.state[parameter][name] = values.clone()
        # as PPO leaves it behind
        for parameter, values in zip(self.parameters, self.unflatten(self.gradient.clone()), strict=True):
            parameter.grad = values

    def unflatten(self, vector: th.Tensor) -> list[th.Tensor]:
        """
        View a flat vector as one tensor for each parameter.

        :param vector: shape ``(P,)``
        :return: views of the shapes of the parameters
        """
        parts = vector.split(self.sizes)
        return [part.view(parameter.shape) for part, parameter in zip(parts, self.parameters, strict=True)]

    def clip(self, gradients: Sequence[th.Tensor]) -> tuple[th.Tensor, th.Tensor]:
        """
        Join and clip gradients.

        :param gradients: one for each parameter
        :return: all of them as one vector, clipped, and their norm before that
        """
        gradient = th.cat([part.flatten() for part in gradients])
        if gradient.shape != self.flat.shape:
            # the kernel would read what does not belong to it
            raise RuntimeError(f"{gradient.numel()} gradients for {self.flat.numel()} parameters")
        norm = gradient.norm()
        return gradient * th.clamp(self.max_grad_norm / (norm + 1e-6), max=1.0), norm


class FlatStepper(FlatVectors):
    """
    Step of Adam on flat vectors: equal to :class:`OptimizerStepper` within rounding, and faster.

    Parameters as :class:`FlatVectors`.
    """

    def clip_gradient(self, loss: th.Tensor) -> th.Tensor:
        """Compute and clip the gradient, see :class:`Stepper`."""
        self.gradient, norm = self.clip(th.autograd.grad(loss, self.parameters, materialize_grads=True))
        return norm

    @th.no_grad()
    def step(self) -> None:
        """Take the step."""
        adam(
            [self.flat],
            [self.gradient],
            [self.exp_avg],
            [self.exp_avg_sq],
            [],
            [self.n_steps],
            foreach=False,
            fused=self.fused,
            amsgrad=False,
            maximize=False,
            beta1=self.settings["betas"][0],
            beta2=self.settings["betas"][1],
            lr=self.optimizer.param_groups[0]["lr"],
            weight_decay=self.settings["weight_decay"],
            eps=self.settings["eps"],
        )


class CompiledUpdate(FlatVectors):
    """
    Loss, gradient, clipping and Adam's step as one function, compiled by ``torch.compile``.

    :param policy: the policy to train; its optimizer must be one that :func:`is_plain_adam`
    :param objective: loss of a minibatch
    :param max_grad_norm: the gradient is scaled down to this norm
    :param max_kl: no step is taken beyond this KL divergence, nats; ``None``: no limit
    """

    # what the step changes: Adam's vectors, the clipped gradient, and whether no step of the rollout has been refused
    changed = ("flat", "exp_avg", "exp_avg_sq", "n_steps", "gradient", "going")

    def __init__(self, policy: GroupActorCriticPolicy, objective: PPOObjective, max_grad_norm: float, max_kl: float | None):
        super().__init__(policy, max_grad_norm)
        self.objective, self.max_kl = objective, max_kl
        self.function = _PolicyFunction(policy)
        space = policy.observation_space
        self.keys = list(space) if isinstance(space, spaces.Dict) else None
        on_gpu = self.parameters[0].device.type == "cuda"
        self.compiled_step = CompiledFunction("the update", self._step, cuda_graph=on_gpu)
        self._static: dict[str, th.Tensor] = {}
        # a GPU would have to be waited for at each minibatch
        self.lookahead = LOOKAHEAD if on_gpu else 0

    def configure(self, objective: PPOObjective, max_grad_norm: float, max_kl: float | None) -> None:
        """
        Change the settings between rollouts; values that differ from those before are compiled anew.

        :param objective: loss of a minibatch
        :param max_grad_norm: the gradient is scaled down to this norm
        :param max_kl: no step is taken beyond this KL divergence, nats; ``None``: no limit
        """
        if objective != self.objective:
            self.objective = objective
        self.max_grad_norm, self.max_kl = max_grad_norm, max_kl

    def __enter__(self) -> "CompiledUpdate":
        self.compiled_step.check_again()
        self._schedules: tuple[float | None, ...] = ()
        super().__enter__()
        return self

    def _flatten(self) -> None:
        super()._flatten()
        self.going = self.flat.new_ones((), dtype=th.bool)
        vectors = {name: getattr(self, name) for name in self.changed}
        if not self._static:
            for vector in vectors.values():
                th._dynamo.mark_static_address(vector)
            self._static = vectors
        # a CUDA graph reads and writes the memory that it was recorded with
        for name, vector in self._static.items():
            setattr(self, name, vector.copy_(vectors[name]))
        self._point_to_flat()

    def __call__(self, batch: Rollout, clip_range: float, clip_range_vf: float | None) -> UpdateStep:
        """Use one minibatch, see :class:`Update`."""
        schedules = (self.optimizer.param_groups[0]["lr"], clip_range, clip_range_vf)
        if schedules != self._schedules:
            # as tensors: a number that changes would have everything compiled again
            self._schedules = schedules
            self._tensors = [None if value is None else th.as_tensor(value, device=self.flat.device) for value in schedules]
        arguments = (*(getattr(self, name) for name in self.changed), *self._tensors, *batch.tensors())
        *terms, accepted, norm = self.compiled_step(len(batch.returns), *arguments)
        return UpdateStep(LossTerms(*terms), accepted, norm)

    def _step(self, *tensors: Any) -> tuple[th.Tensor, ...]:
        """Take a step in place; the arguments are as in :meth:`__call__`."""
        vectors, going, (learning_rate, clip_range, clip_range_vf) = tensors[:5], tensors[5], tensors[6:9]
        batch = Rollout.of(self.keys, tensors[9:])

        def loss(parameters: list[th.Tensor]) -> tuple[th.Tensor, UpdateStep]:
            named = {f"policy.{name}": parameter for name, parameter in zip(self.names, parameters, strict=True)}
            arguments = (self.objective, batch, clip_range, clip_range_vf)
            # SB3 registers a shared features extractor under three names: to replace it once is enough
            terms = th.func.functional_call(self.function, named, arguments, tie_weights=False)
            return terms.loss, UpdateStep.of(terms, self.max_kl)

        gradients, step = th.func.grad(loss, has_aux=True)(self.unflatten(vectors[0]))
        gradient, norm = self.clip(gradients)
        step = step.with_gradient(norm)
        accepted = step.accepted & going
        new = adam_step(vectors[:4], gradient, learning_rate, self.settings)
        for vector, value in zip(vectors, (*new, gradient), strict=True):
            vector.copy_(th.where(accepted, value, vector))
        going.copy_(accepted)
        return (*step.terms, accepted, step.gradient_norm)


class _PolicyFunction(nn.Module):
    """Make the loss a function of the policy's parameters, for ``torch.func.functional_call``."""

    def __init__(self, policy: GroupActorCriticPolicy):
        super().__init__()
        self.policy = policy

    def forward(self, objective: PPOObjective, *args: Any) -> LossTerms:
        return objective(self.policy, *args)


def adam_step(
    vectors: Sequence[th.Tensor], gradient: th.Tensor, learning_rate: th.Tensor, settings: Mapping[str, Any]
) -> tuple[th.Tensor, ...]:
    """
    Take one step of Adam (algorithm 1 of https://arxiv.org/abs/1412.6980) in tensor operations that compile everywhere.

    Torch refuses to compile its own function for CUDA.

    :param vectors: parameters, Adam's two moments, each of shape ``(P,)``, and its number of steps, without dimensions
    :param gradient: shape ``(P,)``
    :param learning_rate: without dimensions
    :param settings: ``betas``, ``eps`` and ``weight_decay``, as in ``torch.optim.Adam``
    :return: the new vectors
    """
    flat, exp_avg, exp_avg_sq, n_steps = vectors
    (beta1, beta2), n_steps = settings["betas"], n_steps + 1
    if settings["weight_decay"]:
        gradient = gradient + settings["weight_decay"] * flat
    exp_avg = th.lerp(exp_avg, gradient, 1 - beta1)
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * gradient * gradient
    step_size = learning_rate / (1 - beta1**n_steps)
    denominator = exp_avg_sq.sqrt() / (1 - beta2**n_steps).sqrt() + settings["eps"]
    return flat - step_size * (exp_avg / denominator), exp_avg, exp_avg_sq, n_steps


def trained_parameters(policy: GroupActorCriticPolicy) -> dict[str, nn.Parameter]:
    """
    Return the parameters that the policy's optimizer changes, by name, in the policy's order.

    :param policy: the policy
    """
    known = {id(parameter) for group in policy.optimizer.param_groups for parameter in group["params"]}
    return {name: p for name, p in policy.named_parameters() if id(p) in known and p.requires_grad}


def is_plain_adam(optimizer: th.optim.Optimizer) -> bool:
    """
    Return whether :class:`CompiledUpdate` can take the place of an optimizer.

    :param optimizer: the optimizer
    """
    settings = optimizer.param_groups[0]
    unusual = ("amsgrad", "maximize", "differentiable", "decoupled_weight_decay")
    return type(optimizer) is th.optim.Adam and len(optimizer.param_groups) == 1 and not any(map(settings.get, unusual))


def takes_plain_steps(policy: GroupActorCriticPolicy) -> bool:
    """
    Return whether :class:`FlatStepper` does what the policy's optimizer would do.

    That is so if every parameter moves at each step by the same rule, and no hook is called.

    :param policy: the policy
    """
    optimizer = policy.optimizer
    if not is_plain_adam(optimizer) or optimizer.param_groups[0]["weight_decay"] or "step" in vars(optimizer):
        return False
    states = [optimizer.state.get(parameter, {}) for parameter in trained_parameters(policy).values()]
    # a layer that was frozen for a while has taken fewer steps than others
    steps = {float(state["step"]) if state else None for state in states}
    return len(steps) == 1 and not (optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)


def has_hooks(policy: GroupActorCriticPolicy) -> bool:
    """
    Return whether hooks are registered on parameters of a policy.

    :param policy: the policy
    """
    return any(p._backward_hooks or p._post_accumulate_grad_hooks for p in policy.parameters())


def check_plain_adam(optimizer: th.optim.Optimizer) -> None:
    """
    Refuse an optimizer whose step cannot be compiled.

    :param optimizer: the optimizer
    :raises ValueError: if it is not plain Adam
    """
    if not is_plain_adam(optimizer):
        raise ValueError(
            "`compile=True` needs torch.optim.Adam without `amsgrad`, `maximize` and decoupled decay as optimizer, got "
            f"{type(optimizer).__name__} with {optimizer.defaults}"
        )


def make_eager_update(
    policy: GroupActorCriticPolicy, objective: PPOObjective, max_grad_norm: float, max_kl: float | None
) -> EagerUpdate:
    """
    Choose the fastest stepper that does what the policy's optimizer would do.

    :param policy: the policy to train
    :param objective: loss of a minibatch
    :param max_grad_norm: the gradient is scaled down to this norm
    :param max_kl: no step is taken beyond this KL divergence, nats; ``None``: no limit
    """
    if has_hooks(policy):
        stepper: Stepper = HookedStepper(policy, max_grad_norm)
    elif policy.n_heads > 1 and takes_plain_steps(policy):
        stepper = FlatStepper(policy, max_grad_norm)
    else:
        # with one head PPO's arithmetic to the last bit
        stepper = OptimizerStepper(policy, max_grad_norm)
    return EagerUpdate(policy, objective, stepper, max_kl)
