"""How a minibatch changes the policy: step by step, or as one compiled function."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol, TypeVar

import torch as th
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.adam import adam

from sb3_grpo.buffers import GroupRolloutBufferSamples
from sb3_grpo.interrupts import interrupts_delayed
from sb3_grpo.losses import approx_kl
from sb3_grpo.policies import GroupActorCriticPolicy


class UpdateTerms(NamedTuple):
    """What one minibatch of ``b`` steps is judged by."""

    loss: th.Tensor  # scalar
    policy_loss: th.Tensor  # scalar
    value_loss: th.Tensor  # scalar
    entropy_loss: th.Tensor  # scalar
    log_ratio: th.Tensor  # log-probability of the actions, new minus old, shape (b,)
    accepted: th.Tensor | bool = True  # whether the optimizer took the step
    gradient_norm: th.Tensor | float = 0.0  # before clipping; 0 if it was not computed

    def judge(self, max_kl: float | None) -> "UpdateTerms":
        """
        :param max_kl: largest KL divergence from the policy that collected the rollout, nats; ``None``: no limit
        :return: the terms, detached, accepted if the loss is finite and the divergence within its limit
        """
        loss, policy_loss, value_loss, entropy_loss, log_ratio = (term.detach() for term in self[:5])
        accepted = loss.isfinite()
        if max_kl is not None:
            accepted = accepted & (approx_kl(log_ratio) <= max_kl)
        return UpdateTerms(loss, policy_loss, value_loss, entropy_loss, log_ratio, accepted, th.zeros_like(loss))

    def with_gradient(self, norm: th.Tensor) -> "UpdateTerms":
        """
        :param norm: of the gradient, before clipping
        :return: the terms, no longer accepted if the norm is NaN or infinite: a finite loss can have such a gradient
        """
        return self._replace(accepted=self.accepted & norm.isfinite(), gradient_norm=norm)


LossFunction = Callable[[GroupRolloutBufferSamples, Any, Any], UpdateTerms]


class Update(Protocol):
    """
    One optimizer step per minibatch; none where the terms are not acceptable. To be used as a context manager
    around the minibatches of one rollout.
    """

    def __enter__(self) -> "Update": ...

    def __exit__(self, *_: object) -> None: ...

    def __call__(self, batch: GroupRolloutBufferSamples, clip_range: float, clip_range_vf: float | None) -> UpdateTerms:
        """
        :param batch: the minibatch
        :param clip_range: clipping parameter of the surrogate
        :param clip_range_vf: clipping parameter of the value function
        """


class EagerUpdate:
    """
    Operation by operation, with whatever optimizer the policy has. Gradients stay in ``parameter.grad``, as with PPO.

    :param policy: what is trained
    :param loss: maps a minibatch, ``clip_range`` and ``clip_range_vf`` to its terms
    :param max_grad_norm: the gradient is scaled down to this norm
    :param max_kl: steps are refused beyond this KL divergence
    """

    def __init__(self, policy: GroupActorCriticPolicy, loss: LossFunction, max_grad_norm: float, max_kl: float | None):
        self.policy, self.optimizer = policy, policy.optimizer
        self.loss, self.max_grad_norm, self.max_kl = loss, max_grad_norm, max_kl

    def __enter__(self) -> "EagerUpdate":
        self._alone = self.policy.trained_alone()
        with interrupts_delayed():
            self._alone.__enter__()
        # the optimizer would move a layer that has been frozen since, by the gradient that it had then
        self.optimizer.zero_grad()
        self.parameters = list(trained_parameters(self.policy).values())
        return self

    def __exit__(self, *_: object) -> None:
        with interrupts_delayed():
            self._alone.__exit__(None, None, None)

    def __call__(self, batch: GroupRolloutBufferSamples, clip_range: float, clip_range_vf: float | None) -> UpdateTerms:
        terms = self.loss(batch, clip_range, clip_range_vf)
        judged = terms.judge(self.max_kl)
        if judged.accepted:
            judged = judged.with_gradient(self._clip_gradient(terms.loss))
            if judged.accepted:
                with interrupts_delayed():
                    self.optimizer.step()
        return judged

    def _clip_gradient(self, loss: th.Tensor) -> th.Tensor:
        """
        :return: norm of the gradient before it was clipped
        """
        # as zero_grad(), backward() and clip_grad_norm_(), without their bookkeeping
        for parameter, gradient in zip(
            self.parameters, th.autograd.grad(loss, self.parameters, allow_unused=True), strict=True
        ):
            parameter.grad = gradient
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        total_norm = th.linalg.vector_norm(th.stack(th._foreach_norm(gradients)))
        th._foreach_mul_(gradients, th.clamp(self.max_grad_norm / (total_norm + 1e-6), max=1.0))
        return total_norm


class PlainUpdate(EagerUpdate):
    """
    SB3's four lines on all heads, for parameters with hooks: these are called as torch says, and see the parameter that
    they were registered on. Arguments as in :class:`EagerUpdate`.
    """

    def __enter__(self) -> "PlainUpdate":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _clip_gradient(self, loss: th.Tensor) -> th.Tensor:
        self.optimizer.zero_grad()
        loss.backward()
        return clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)


SelfFlatAdam = TypeVar("SelfFlatAdam", bound="_FlatAdam")


class _FlatAdam:
    """
    Parameters and Adam's moments as one flat vector each while the minibatches of a rollout are used: one operation
    for all parameters instead of one for each. On leaving the context the policy and its optimizer are again
    as saving, loading and everything else know them.

    :param policy: what is trained; its optimizer must be one that :func:`is_plain_adam`
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

    def __enter__(self: SelfFlatAdam) -> SelfFlatAdam:
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
        for parameter, values in zip(self.parameters, self._unflatten(self.flat), strict=True):
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
            for parameter, values in zip(self.parameters, self._unflatten(vector), strict=True):
                self.optimizer.state[parameter][name] = values.clone()
        # as PPO leaves it behind
        for parameter, values in zip(self.parameters, self._unflatten(self.gradient), strict=True):
            parameter.grad = values

    def _unflatten(self, vector: th.Tensor) -> list[th.Tensor]:
        parts = vector.split(self.sizes)
        return [part.view(parameter.shape) for part, parameter in zip(parts, self.parameters, strict=True)]

    def _clip(self, gradients: Sequence[th.Tensor]) -> tuple[th.Tensor, th.Tensor]:
        """
        :param gradients: one for each parameter
        :return: all of them as one vector, clipped, and their norm before that
        """
        gradient = th.cat([part.flatten() for part in gradients])
        if gradient.shape != self.flat.shape:
            # the kernel would read what does not belong to it
            raise RuntimeError(f"{gradient.numel()} gradients for {self.flat.numel()} parameters")
        norm = gradient.norm()
        return gradient * th.clamp(self.max_grad_norm / (norm + 1e-6), max=1.0), norm


class FlatUpdate(_FlatAdam):
    """
    Operation by operation, but clipping and Adam's step act on flat vectors: equal to :class:`EagerUpdate` within
    rounding, and faster.

    :param policy: what is trained; its optimizer must be one that :func:`is_plain_adam`
    :param loss: maps a minibatch, ``clip_range`` and ``clip_range_vf`` to its terms
    :param max_grad_norm: the gradient is scaled down to this norm
    :param max_kl: steps are refused beyond this KL divergence
    """

    def __init__(self, policy: GroupActorCriticPolicy, loss: LossFunction, max_grad_norm: float, max_kl: float | None):
        super().__init__(policy, max_grad_norm)
        self.loss, self.max_kl = loss, max_kl

    def __call__(self, batch: GroupRolloutBufferSamples, clip_range: float, clip_range_vf: float | None) -> UpdateTerms:
        terms = self.loss(batch, clip_range, clip_range_vf)
        judged = terms.judge(self.max_kl)
        if judged.accepted:
            self.gradient, norm = self._clip(th.autograd.grad(terms.loss, self.parameters, materialize_grads=True))
            judged = judged.with_gradient(norm)
            if judged.accepted:
                with th.no_grad():
                    self._adam()
        return judged

    def _adam(self) -> None:
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


class CompiledUpdate(_FlatAdam):
    """
    Loss, gradient, clipping and Adam's step as one function, compiled by ``torch.compile``.

    :param policy: what is trained; its optimizer must be one that :func:`is_plain_adam`
    :param loss: maps a minibatch, ``clip_range`` and ``clip_range_vf`` to its terms
    :param max_grad_norm: the gradient is scaled down to this norm
    :param max_kl: steps are refused beyond this KL divergence
    """

    def __init__(self, policy: GroupActorCriticPolicy, loss: LossFunction, max_grad_norm: float, max_kl: float | None):
        super().__init__(policy, max_grad_norm)
        self.max_kl = max_kl
        self.function = _LossModule(policy, loss)
        self.compiled_step: Callable[..., UpdateTerms] = th.compile(self._step, fullgraph=True)
        self.works = True

    def __enter__(self) -> "CompiledUpdate":
        self._checked_sizes: set[int] = set()
        return super().__enter__()

    def __call__(self, batch: GroupRolloutBufferSamples, clip_range: float, clip_range_vf: float | None) -> UpdateTerms:
        # schedules as tensors: a number that changes would have everything compiled again
        schedules = (self.optimizer.param_groups[0]["lr"], clip_range, clip_range_vf)
        tensors = (None if value is None else th.as_tensor(value, device=self.flat.device) for value in schedules)
        vectors = (self.flat, self.exp_avg, self.exp_avg_sq, self.n_steps, self.gradient)
        arguments: tuple[Any, ...] = (vectors, batch, *tensors)
        size = len(batch.returns)
        if size in self._checked_sizes:
            # nothing but the size of the minibatch changes within a rollout: one check of the function's
            # assumptions per size is enough
            with skip_guards():
                return self.compiled_step(*arguments)
        try:
            terms = self.compiled_step(*arguments)
        except Exception as error:
            if not self.works:
                raise
            self.works = False
            # or torch would remember the failure, and would not compile this step for any other model either
            th.compiler.reset()
            cause = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
            warnings.warn(f"`compile=True` does not work here, training goes on without it ({cause})", stacklevel=2)
            self.compiled_step = self._step
            terms = self.compiled_step(*arguments)
        self._checked_sizes.add(size)
        return terms

    def _step(
        self,
        vectors: tuple[th.Tensor, ...],
        batch: GroupRolloutBufferSamples,
        learning_rate: th.Tensor,
        clip_range: th.Tensor,
        clip_range_vf: th.Tensor | None,
    ) -> UpdateTerms:
        def loss(parameters: list[th.Tensor]) -> tuple[th.Tensor, UpdateTerms]:
            named = {f"policy.{name}": parameter for name, parameter in zip(self.names, parameters, strict=True)}
            # SB3 registers a shared features extractor under three names: to replace it once is enough
            terms = th.func.functional_call(self.function, named, (batch, clip_range, clip_range_vf), tie_weights=False)
            return terms.loss, terms.judge(self.max_kl)

        gradients, terms = th.func.grad(loss, has_aux=True)(self._unflatten(vectors[0]))
        gradient, norm = self._clip(gradients)
        terms = terms.with_gradient(norm)
        new = adam_step(vectors[:4], gradient, learning_rate, self.settings)
        for vector, value in zip(vectors, (*new, gradient), strict=True):
            vector.copy_(th.where(terms.accepted, value, vector))
        return terms


def adam_step(
    vectors: Sequence[th.Tensor], gradient: th.Tensor, learning_rate: th.Tensor, settings: Mapping[str, Any]
) -> tuple[th.Tensor, ...]:
    """
    Take one step of Adam (algorithm 1 of https://arxiv.org/abs/1412.6980) in tensor operations that compile on every
    device; torch refuses to compile its own function for CUDA.

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


def skip_guards() -> AbstractContextManager[None]:
    """A context in which compiled functions do not check again what they were compiled for, where torch can do so."""
    try:
        return th.compiler.set_stance("default", skip_guard_eval_unsafe=True)
    except (AttributeError, TypeError):
        # torch before 2.7
        return nullcontext()


def trained_parameters(policy: GroupActorCriticPolicy) -> dict[str, nn.Parameter]:
    """
    :return: the parameters that the policy's optimizer changes, by name, in the policy's order
    """
    known = {id(parameter) for group in policy.optimizer.param_groups for parameter in group["params"]}
    return {name: p for name, p in policy.named_parameters() if id(p) in known and p.requires_grad}


def is_plain_adam(optimizer: th.optim.Optimizer) -> bool:
    """
    :return: whether :class:`CompiledUpdate` can take the place of this optimizer
    """
    settings = optimizer.param_groups[0]
    unusual = ("amsgrad", "maximize", "differentiable", "decoupled_weight_decay")
    return type(optimizer) is th.optim.Adam and len(optimizer.param_groups) == 1 and not any(map(settings.get, unusual))


def takes_plain_steps(policy: GroupActorCriticPolicy) -> bool:
    """
    :return: whether :class:`FlatUpdate` does what the policy's optimizer would do: every parameter moves at each step, all
        by the same rule, and nobody looks on
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
    :return: whether hooks are registered on parameters of the policy
    """
    return any(p._backward_hooks or p._post_accumulate_grad_hooks for p in policy.parameters())


def check_plain_adam(optimizer: th.optim.Optimizer) -> None:
    """
    :raises ValueError: if the optimizer is another one
    """
    if not is_plain_adam(optimizer):
        raise ValueError(
            "`compile=True` needs torch.optim.Adam without `amsgrad`, `maximize` and decoupled decay as optimizer, got "
            f"{type(optimizer).__name__} with {optimizer.defaults}"
        )


class _LossModule(nn.Module):
    """Makes the loss a function of the policy's parameters, for ``torch.func.functional_call``."""

    def __init__(self, policy: GroupActorCriticPolicy, loss: LossFunction):
        super().__init__()
        self.policy = policy
        self.loss = loss

    def forward(self, *args: Any) -> UpdateTerms:
        return self.loss(*args)
