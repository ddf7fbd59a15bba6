"""Export: files with which a trained policy acts where neither this package nor SB3 is installed."""

import copy
import importlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_grpo.policies import GroupActorCriticPolicy
from sb3_grpo.reference import frozen_copy
from sb3_grpo.routing import CallableRouter, as_collected
from sb3_grpo.saving import complete_file

# Observations on which a file is compared with `predict`, if the user gives none
N_CHECKED = 256
# Largest difference between actions, relative to the largest one, and between log-likelihoods of actions that rounding
# decides between
TOLERANCE = 1e-4
# Name of the input where observations are no dicts, and of the output
OBSERVATION, ACTION = "observation", "action"
# Batch of the file's inputs -> actions
Act = Callable[[Sequence[np.ndarray]], np.ndarray]


class ObservationScale(nn.Module):
    """
    Normalise observations as ``VecNormalize`` does, with the statistics that it has now.

    :param statistics: of ``VecNormalize``
    :param epsilon: added to the variance
    :param clip: largest absolute value of what is normalised
    """

    mean: th.Tensor
    std: th.Tensor

    def __init__(self, statistics: RunningMeanStd, epsilon: float, clip: float):
        super().__init__()
        # float64, as there: the mean can be much larger than the differences that matter
        self.register_buffer("mean", th.as_tensor(statistics.mean, dtype=th.float64).clone())
        self.register_buffer("std", th.as_tensor(statistics.var + epsilon, dtype=th.float64).sqrt())
        self.clip = clip

    def forward(self, obs: th.Tensor) -> th.Tensor:
        """
        Normalise a batch of observations.

        :param obs: shape ``(B, ...)``
        :return: floats of the same shape
        """
        return ((obs - self.mean) / self.std).clamp(-self.clip, self.clip).float()


class UncheckedRouter(nn.Module):
    """
    Call the user's function without the checks of its cells, which look at values and cannot be traced.

    :param router: the router with that function
    """

    def __init__(self, router: CallableRouter):
        super().__init__()
        self.router = router

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        """
        Route a batch of observations.

        :param obs: batch of ``B`` observations
        :return: cells, shape ``(B,)``
        """
        return self.router.function(as_collected(obs, self.router.observation_space)).long()


class DeployedPolicy(nn.Module):
    """
    All that lies between the observations of an environment and the actions that it is given.

    These are the statistics of ``VecNormalize``, preprocessing, router, trunk and heads, the most likely action, and its
    fitting into the action space: what ``model.predict(obs, deterministic=True)`` does. It is a copy, on the CPU.

    :param model: GRPO, or PPO or A2C of SB3
    :param vec_normalize: normalises the observations of the environment; ``None``: that of the model's environments, if
        they have one
    :raises ValueError: if the model has another kind of policy, or ``vec_normalize`` other observations
    """

    low: th.Tensor
    high: th.Tensor

    def __init__(self, model: BaseAlgorithm, vec_normalize: VecNormalize | None = None):
        super().__init__()
        if not isinstance(model.policy, ActorCriticPolicy):
            raise ValueError(f"`model` must be GRPO or another one with SB3's ActorCriticPolicy, got {type(model).__name__}")
        self.policy = frozen_copy(model.policy).to("cpu")
        if isinstance(self.policy, GroupActorCriticPolicy) and isinstance(self.policy.grouping.router, CallableRouter):
            self.policy.grouping.router = UncheckedRouter(self.policy.grouping.router)  # type: ignore[assignment]  # only called
        self.vec_normalize = model.get_vec_normalize_env() if vec_normalize is None else vec_normalize
        space = model.observation_space
        self.is_dict = isinstance(space, spaces.Dict)
        entries = dict(space.spaces) if isinstance(space, spaces.Dict) else {OBSERVATION: space}
        scaled = scaled_entries(self.vec_normalize, entries)
        self.spaces = {name: scaled[name][0] if name in scaled else entry for name, entry in entries.items()}
        self.scales = nn.ModuleList(scaled[name][1] if name in scaled else nn.Identity() for name in entries)
        self.action_space = model.action_space
        if isinstance(self.action_space, spaces.Box):
            self.register_buffer("low", th.as_tensor(self.action_space.low))
            self.register_buffer("high", th.as_tensor(self.action_space.high))

    @property
    def names(self) -> list[str]:
        """Names of the inputs: the keys of Dict observations in the order of their space, or ``"observation"``."""
        return list(self.spaces)

    def forward(self, *observations: th.Tensor) -> th.Tensor:
        """
        Act on a batch of ``B`` observations as the environment gives them.

        :param observations: one tensor for each input
        :return: actions as the environment takes them, shape ``(B, ...)``
        """
        scaled = [scale(entry) for scale, entry in zip(self.scales, observations, strict=True)]
        obs = dict(zip(self.spaces, scaled, strict=True)) if self.is_dict else scaled[0]
        if isinstance(self.policy, GroupActorCriticPolicy):
            actions = self.policy.most_likely(obs)
        else:
            actions = self.policy.get_distribution(obs).get_actions(deterministic=True)
        assert self.action_space.shape is not None
        actions = actions.reshape((-1, *self.action_space.shape))
        if not isinstance(self.action_space, spaces.Box):
            return actions
        if self.policy.squash_output:
            return self.low + 0.5 * (actions + 1.0) * (self.high - self.low)
        return actions.maximum(self.low).minimum(self.high)

    def draw(self, n: int) -> list[np.ndarray]:
        """
        Draw observations from their space, or near the mean of the statistics where there are any.

        :param n: number of observations
        :return: one array for each input, shape ``(n, ...)``; the same at every call
        """
        drawn, masks = [], getattr(self.policy, "action_masks", None)
        for (name, space), scale in zip(copy.deepcopy(self.spaces).items(), self.scales, strict=True):
            space.seed(0)
            values = np.stack([space.sample() for _ in range(n)])
            if isinstance(scale, ObservationScale):
                assert isinstance(space, spaces.Box)
                noise = np.random.default_rng(0).standard_normal(values.shape)
                values = (scale.mean.numpy() + scale.std.numpy() * noise).clip(space.low, space.high).astype(space.dtype)
            # `predict` refuses a mask that allows nothing
            drawn.append(masks.allow_something(values) if masks is not None and name == masks.key else values)
        return drawn

    def split(self, observations: Any) -> list[np.ndarray]:
        """
        Divide a batch of observations into the inputs.

        :param observations: as the environment gives them, an array or a dict of arrays
        :return: one array for each input
        :raises ValueError: if an input is missing
        """
        entries = observations if self.is_dict else {OBSERVATION: observations}
        if not isinstance(entries, dict) or not self.spaces.keys() <= entries.keys():
            raise ValueError(f"`observations` must be a dict with the keys {self.names}, got {type(observations).__name__}")
        return [np.asarray(entries[name], dtype=space.dtype) for name, space in self.spaces.items()]

    def join(self, inputs: Sequence[np.ndarray]) -> Any:
        """
        Make of the inputs what ``predict`` takes.

        :param inputs: one array for each input
        :return: observations, normalised by ``VecNormalize`` itself
        """
        obs: Any = dict(zip(self.spaces, inputs, strict=True)) if self.is_dict else inputs[0]
        return obs if self.vec_normalize is None else self.vec_normalize.normalize_obs(obs)


def scaled_entries(
    vec_normalize: VecNormalize | None, entries: dict[str, spaces.Space[Any]]
) -> dict[str, tuple[spaces.Box, ObservationScale]]:
    """
    Find the entries of observations that are normalised.

    :param vec_normalize: normalises observations; ``None``: nothing is normalised
    :param entries: observation spaces of the policy, by name
    :return: for each of them the space before normalisation, and what normalises it
    :raises ValueError: if the statistics are those of other observations
    """
    if vec_normalize is None or not vec_normalize.norm_obs:
        return {}
    statistics = vec_normalize.obs_rms if isinstance(vec_normalize.obs_rms, dict) else {OBSERVATION: vec_normalize.obs_rms}
    before = vec_normalize.venv.observation_space
    found = {}
    for name, own in statistics.items():
        if name not in entries or entries[name].shape != own.mean.shape:
            raise ValueError(
                f"`vec_normalize` must have statistics of the observations of the policy, {entries}, got {name!r} of shape "
                f"{own.mean.shape}"
            )
        space = before[name] if isinstance(before, spaces.Dict) else before
        assert isinstance(space, spaces.Box)
        found[name] = space, ObservationScale(own, vec_normalize.epsilon, vec_normalize.clip_obs)
    return found


def export_onnx(
    model: BaseAlgorithm, path: str | Path, vec_normalize: VecNormalize | None = None, observations: Any = None
) -> None:
    """
    Write a trained policy as an ONNX file, which is compared with ``predict`` before it takes its place.

    Inputs are called as the keys of Dict observations, or ``"observation"``, the output ``"action"``.

    :param model: GRPO, or PPO or A2C of SB3
    :param path: the file to write or to replace
    :param vec_normalize: as in :class:`DeployedPolicy`
    :param observations: batch of the environment's observations to compare on, not normalised; ``None``: drawn ones
    :raises ImportError: if a package that this needs is not installed, with what to install
    :raises ValueError: if the policy cannot be traced, or the file does not act as ``predict`` does
    """
    runtime, _ = (load_package(name) for name in ("onnxruntime", "onnxscript"))
    deployed = DeployedPolicy(model, vec_normalize)
    with complete_file(path) as part:
        with quiet_torch():
            named: dict[str, Any] = dict(input_names=deployed.names, output_names=[ACTION], dynamic_shapes=any_batch(deployed))
            # one file, however large the network
            th.onnx.export(capture(deployed), (), str(part), **named, dynamo=True, external_data=False, verbose=False)
        session = runtime.InferenceSession(str(part), providers=["CPUExecutionProvider"])

        def act(inputs: Sequence[np.ndarray]) -> np.ndarray:
            return session.run([ACTION], dict(zip(deployed.names, inputs, strict=True)))[0]

        check(model, deployed, act, observations)


def export_pt2(
    model: BaseAlgorithm, path: str | Path, vec_normalize: VecNormalize | None = None, observations: Any = None
) -> None:
    """
    Write a trained policy as a file of ``torch.export``, which is compared with ``predict`` before it takes its place.

    ``torch.export.load(path).module()`` takes the entries of Dict observations in the order of their space.

    :param model: GRPO, or PPO or A2C of SB3
    :param path: the file to write or to replace
    :param vec_normalize: as in :class:`DeployedPolicy`
    :param observations: as in :func:`export_onnx`
    :raises ValueError: as :func:`export_onnx`
    """
    deployed = DeployedPolicy(model, vec_normalize)
    with complete_file(path) as part, quiet_torch():
        with part.open("wb") as file:
            th.export.save(capture(deployed), file)
        with part.open("rb") as file:
            module = th.export.load(file).module()
        check(model, deployed, call_with_tensors(module), observations)


def export_torchscript(
    model: BaseAlgorithm, path: str | Path, vec_normalize: VecNormalize | None = None, observations: Any = None
) -> None:
    """
    Write a trained policy as a TorchScript file, which is compared with ``predict`` before it takes its place.

    ``torch.jit.load(path)`` takes the entries of Dict observations in the order of their space. Torch calls TorchScript
    deprecated; :func:`export_pt2` is what replaces it.

    :param model: GRPO, or PPO or A2C of SB3
    :param path: the file to write or to replace
    :param vec_normalize: as in :class:`DeployedPolicy`
    :param observations: as in :func:`export_onnx`
    :raises ValueError: as :func:`export_onnx`
    """
    deployed = DeployedPolicy(model, vec_normalize)
    with complete_file(path) as part, quiet_torch():
        with traceable():
            # what Python decides by values would be written into the file as a constant
            warnings.simplefilter("error", th.jit.TracerWarning)
            traced = th.jit.trace(deployed, example(deployed), check_trace=False)
        th.jit.save(traced, str(part))
        check(model, deployed, call_with_tensors(th.jit.load(str(part))), observations)


def load_package(name: str) -> Any:
    """
    Import a package of the extra ``export``.

    :param name: of the package
    :return: the package
    :raises ImportError: if it is not installed, with what to install
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f'ONNX files need {name}: pip install "sb3-grpo[export]"') from error


def example(deployed: DeployedPolicy) -> tuple[th.Tensor, ...]:
    """
    Make the inputs with which a policy is traced.

    :param deployed: the policy
    :return: a batch of two, since torch takes a dimension of 1 for one that is always 1
    """
    return tuple(th.as_tensor(entry) for entry in deployed.draw(2))


def capture(deployed: DeployedPolicy) -> th.export.ExportedProgram:
    """
    Write down the operations of a policy, for batches of any size.

    :param deployed: the policy
    :return: from ``torch.export``
    :raises ValueError: if it cannot be traced
    """
    with traceable():
        return th.export.export(deployed, example(deployed), dynamic_shapes=any_batch(deployed), strict=False)


def any_batch(deployed: DeployedPolicy) -> tuple[tuple[dict[int, Any], ...]]:
    """
    Say that the number of observations may be any.

    :param deployed: the policy
    :return: names of dimensions of its inputs, as ``torch.export`` takes them
    """
    batch = th.export.Dim("batch")
    return (tuple({0: batch} for _ in deployed.names),)


@contextmanager
def traceable() -> Iterator[None]:
    """
    Let torch trace what SB3's policies do, and say what is wrong where it cannot.

    :return: context in which a policy is to be traced
    :raises ValueError: if the tracer raises an error
    """
    # what torch's distributions check of their arguments looks at values
    before = th.distributions.Distribution._validate_args
    th.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    except Exception as error:  # whatever the tracer raises, or the user's function when it is traced
        cause = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
        raise ValueError(
            f"`model` must have a policy that torch can trace, but it cannot ({cause}). A router function, and layers of your "
            "own, may do nothing but torch's operations on the whole batch: no NumPy, and neither `if`, `int` nor `len` of "
            "tensors; torch.where and .shape[0] take their place"
        ) from error
    finally:
        th.distributions.Distribution.set_default_validate_args(before)


@contextmanager
def quiet_torch() -> Iterator[None]:
    """
    Suppress what torch says about its own code while it exports.

    :return: context without these warnings
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    # that torchvision, which nothing here uses, is not installed
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`torch\.jit", DeprecationWarning)
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            # all inputs of Dict observations have the same batch
            warnings.filterwarnings("ignore", "# The axis name", UserWarning)
            yield
    finally:
        logger.setLevel(level)


def call_with_tensors(module: Callable[..., th.Tensor]) -> Act:
    """
    Make what calls a module of torch with arrays.

    :param module: takes one tensor for each input
    :return: takes arrays
    """

    @th.no_grad()
    def act(inputs: Sequence[np.ndarray]) -> np.ndarray:
        return module(*map(th.as_tensor, inputs)).numpy()

    return act


def check(model: BaseAlgorithm, deployed: DeployedPolicy, act: Act, observations: Any) -> None:
    """
    Compare an exported policy with ``predict``, for a batch and for a single observation.

    :param model: what was exported
    :param deployed: knows the inputs
    :param act: runs the exported policy
    :param observations: of the environment, not normalised; ``None``: drawn ones
    :raises ValueError: if an action differs by more than rounding, or ``predict`` refuses the observations
    """
    inputs = deployed.draw(N_CHECKED) if observations is None else deployed.split(observations)
    obs = deployed.join(inputs)
    try:
        expected, _ = model.predict(obs, deterministic=True)
    except ValueError as error:
        raise ValueError(f"`observations` must be some that `predict` accepts, got {error}") from error
    differ = np.zeros(len(expected), dtype=bool)
    for n in (len(expected), 1):
        actions = act([entry[:n] for entry in inputs])
        differ |= wrong_actions(model.policy, obs, expected, np.concatenate([actions, expected[n:]]))
    if differ.any():
        row = int(differ.argmax())
        raise ValueError(
            f"`model` must act as its policy does when it is traced, but at {differ.sum()} of {len(differ)} observations "
            f"`predict` chooses another action, the first of them {expected[row].tolist()}; no file was written"
        )


def wrong_actions(policy: Any, obs: Any, expected: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """
    Tell which actions differ by more than what rounding can change.

    :param policy: of SB3
    :param obs: batch of ``B`` observations as ``predict`` takes them
    :param expected: from ``predict``, shape ``(B, ...)``
    :param actions: from the exported policy, shape ``(B, ...)``
    :return: shape ``(B,)``
    """
    if isinstance(policy.action_space, spaces.Box):
        distance = np.abs(actions - expected).reshape(len(expected), -1).max(axis=1)
        return ~(distance <= TOLERANCE * max(1.0, np.abs(expected).max()))
    differ = (actions != expected).reshape(len(expected), -1).any(axis=1)
    if differ.any():
        # which of two actions is the more likely one can be a matter of rounding
        with th.no_grad():
            distribution = policy.get_distribution(policy.obs_to_tensor(obs)[0])
            one, other = (distribution.log_prob(th.as_tensor(a, device=policy.device)) for a in (expected, actions))
        differ &= ~((one - other).abs() < TOLERANCE).cpu().numpy()
    return differ
