"""Step environments in Ray actors, which may run on several machines."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_grpo.vec_env.lean import LeanVecEnv

# With these options Ray itself would start a lost actor again, but without its environments
OPTIONS_OF_RESTARTS = {"max_restarts", "max_task_retries"}
# Ray's reports that a process or a machine is gone, or a result that was there
ERRORS_OF_LOSS = (
    "RayActorError",
    "WorkerCrashedError",
    "NodeDiedError",
    "LocalRayletDiedError",
    "OutOfMemoryError",
    "ObjectLostError",
)

# Method of the vectorised environment in the actor, its positional and its keyword arguments
Request = tuple[str, tuple[Any, ...], dict[str, Any]]


class LostActorError(RuntimeError):
    """Error of a ``RayVecEnv`` whose actor is gone: its process was killed or has crashed, or its machine is gone."""


def import_ray() -> ModuleType:
    """
    Return the package ``ray``.

    :raises ImportError: if it is not installed
    """
    try:
        import ray  # noqa: PLC0415 (an optional package)
    except ImportError as error:
        raise ImportError('RayVecEnv needs Ray: pip install "sb3-grpo[dist]"') from error
    return ray


def concatenate_obs(parts: Sequence[Any]) -> VecEnvObs:
    """
    Return the observations of several vectorised environments as those of one, in new arrays.

    :param parts: arrays, or dicts or tuples of arrays, whose first axis counts environments
    """
    first = parts[0]
    if isinstance(first, dict):
        return {key: np.concatenate([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple):
        return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return np.concatenate(parts)


def obs_of_env(obs: Any, index: int) -> Any:
    """
    Return a copy of the observation of one environment.

    :param obs: array, or dict or tuple of arrays, whose first axis counts environments
    :param index: number of the environment
    """
    if isinstance(obs, dict):
        return {key: array[index].copy() for key, array in obs.items()}
    if isinstance(obs, tuple):
        return tuple(array[index].copy() for array in obs)
    return obs[index].copy()


class ActorVecEnv(LeanVecEnv):
    """``LeanVecEnv`` that is reset and stepped by one call each, as an actor needs it."""

    def reset_with(self, seeds: list[int | None], options: list[dict[str, Any]]) -> tuple[VecEnvObs, list[dict[str, Any]]]:
        """
        Reset all environments, and return their observations and reset infos.

        :param seeds: seed of each environment
        :param options: options of each environment
        """
        self._seeds, self._options = seeds, options
        return self.reset(), self.reset_infos

    def step_with(self, actions: Any) -> tuple[Any, ...]:
        """
        Step all environments, and return what ``step`` returns, and the reset infos if one of them was reset.

        :param actions: action of each environment
        """
        obs, rewards, dones, infos = self.step(actions)
        return obs, rewards, dones, infos, self.reset_infos if dones.any() else None


class EnvActor:
    """
    Some environments in the process of a Ray actor.

    Arguments and results are pickled here instead of by Ray, whose arrays are read-only: environments and SB3 may write into
    those that they get. Ray's own cloudpickle is used, because two copies of cloudpickle do not recognise each other's
    classes: an exception that a script defines would arrive as another class of that name.
    """

    def __init__(self) -> None:
        self.cloudpickle = import_ray().cloudpickle
        self.venv: ActorVecEnv | None = None

    def make(self, env_fns: bytes) -> bytes:
        """
        Make the environments, and return their pickled observation space and action space.

        It is not done in the constructor, whose errors Ray reports as the loss of the actor.

        :param env_fns: pickled functions that return one environment each
        """
        self.venv = ActorVecEnv(self.cloudpickle.loads(env_fns))
        return self.cloudpickle.dumps((self.venv.observation_space, self.venv.action_space))

    def call(self, request: bytes) -> bytes:
        """
        Call a method of the vectorised environment, and return its pickled result.

        :param request: pickled :data:`Request`
        """
        method, args, kwargs = self.cloudpickle.loads(request)
        return self.cloudpickle.dumps(getattr(self.venv, method)(*args, **kwargs))

    def close(self) -> bytes:
        """Close the environments, if they were made, and return a pickled ``None``."""
        if self.venv is not None:
            self.venv.close()
        return self.cloudpickle.dumps(None)


class RemoteEnvs:
    """
    The environments of one actor, seen from outside.

    :param ray: the package
    :param actor_class: :class:`EnvActor` as Ray's actor class, with its options
    :param env_fns: functions that return one environment each
    :param indices: numbers of these environments in the ``RayVecEnv``
    """

    def __init__(self, ray: ModuleType, actor_class: Any, env_fns: list[Callable[[], gym.Env]], indices: range):
        self.ray, self.cloudpickle = ray, ray.cloudpickle
        self.actor_class, self.indices = actor_class, indices
        self.errors_of_loss = tuple(getattr(ray.exceptions, name) for name in ERRORS_OF_LOSS)
        self.pickled_env_fns = self.cloudpickle.dumps(env_fns)
        # First observations and reset infos after a restart that the next step has to report
        self.restarted_with: tuple[VecEnvObs, list[dict[str, Any]]] | None = None

    def start(self) -> Any:
        """Start an actor, and return the reference to its spaces."""
        self.actor = self.actor_class.remote()
        return self.actor.make.remote(self.pickled_env_fns)

    def send(self, request: Request) -> Any:
        """
        Have the actor answer the request after those that were sent before, and return the reference to the answer.

        :param request: what to call
        """
        return self.actor.call.remote(self.cloudpickle.dumps(request))

    def receive(self, reference: Any) -> Any:
        """
        Wait for an answer and return it.

        :param reference: from :meth:`start` or :meth:`send`
        :raises LostActorError: if the actor is gone
        :raises Exception: the error that was raised in the actor, if one was
        """
        try:
            return self.cloudpickle.loads(self.ray.get(reference))
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self.errors_of_loss as error:
            raise LostActorError(
                f"the Ray actor of environments {self.indices[0]} to {self.indices[-1]} is gone ({type(error).__name__}). "
                f"RayVecEnv(max_actor_restarts=...) starts lost actors again. Ray reports: {error}"
            ) from error

    def close(self) -> Any:
        """Have the actor close the environments after all else, and return the reference to ``None``."""
        return self.actor.close.remote()

    def stop(self) -> None:
        """End the actor as it is."""
        self.ray.kill(self.actor)


def check_arguments(
    env_fns: list[Any], envs_per_actor: int, max_actor_restarts: int, actor_options: Mapping[str, Any]
) -> None:
    """
    Check the arguments of :class:`RayVecEnv`.

    :param env_fns: see there
    :param envs_per_actor: see there
    :param max_actor_restarts: see there
    :param actor_options: see there
    :raises ValueError: if one of them breaks its rule
    """
    if not env_fns or not all(callable(env_fn) for env_fn in env_fns):
        raise ValueError(f"env_fns must hold at least one function, and nothing but functions, not {env_fns}")
    for name, value, smallest in (
        ("envs_per_actor", envs_per_actor, 1),
        ("max_actor_restarts", max_actor_restarts, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < smallest:
            raise ValueError(f"{name} must be an integer of at least {smallest}, not {value!r}")
    if refused := OPTIONS_OF_RESTARTS & actor_options.keys():
        raise ValueError(
            f"actor_options must not have {' or '.join(sorted(refused))}: max_actor_restarts says how often actors are "
            "started again"
        )


class RayVecEnv(VecEnv):
    """
    Vectorised environment whose environments run in Ray actors, on one machine or on those of a cluster.

    It is used like ``SubprocVecEnv``: ``make_vec_env(..., vec_env_cls=RayVecEnv, vec_env_kwargs=...)``. The types of
    observations and rewards are those of ``DummyVecEnv``. Every machine of the cluster needs this package and whatever the
    environments import.

    An actor is lost if its process is killed or crashes, or its machine is gone. By default this is a
    :class:`LostActorError`. With ``max_actor_restarts`` above 0, a warning says which environments were lost, their actor is
    started again (on another machine, if Ray finds one for ``actor_options``), and its environments are made anew and reset;
    what ``set_attr`` and ``env_method`` had changed in them is gone. The step is reported as the end of the episode by a time
    limit: ``dones`` is true, the reward 0, ``info["TimeLimit.truncated"]`` true, ``info["terminal_observation"]`` the
    observation from which the lost step was made, ``info["actor_restarted"]`` true. PPO continues the return with the
    value of that observation, as at every time limit, so that the loss counts neither as a success nor as a failure. If
    the environments were seeded, each restarted one is seeded with its last seed plus ``num_envs`` times the number of
    restarts so far.

    :param env_fns: functions that return one environment each; they are pickled by cloudpickle
    :param envs_per_actor: number of environments that take turns in one actor, at least 1; the last actor has the remainder
    :param max_actor_restarts: how often lost actors may be started again, all together; 0 or more
    :param actor_options: options of each actor as Ray's ``.options()`` takes them: ``num_cpus``, ``resources``,
        ``scheduling_strategy``, ...; without ``num_cpus`` Ray does not limit the number of actors on a machine. Actors for
        which the cluster has no room are waited for
    :param ray_init_kwargs: arguments of ``ray.init``, which is called if Ray is not initialised yet. Ray stays so after
        ``close``
    :raises ValueError: if an argument breaks its rule
    :raises ImportError: if Ray is not installed
    :raises LostActorError: if an actor is lost and may not be started again
    """

    def __init__(
        self,
        env_fns: Iterable[Callable[[], gym.Env]],
        envs_per_actor: int = 1,
        max_actor_restarts: int = 0,
        actor_options: Mapping[str, Any] | None = None,
        ray_init_kwargs: Mapping[str, Any] | None = None,
    ):
        env_fns, actor_options = list(env_fns), actor_options or {}
        check_arguments(env_fns, envs_per_actor, max_actor_restarts, actor_options)
        ray = import_ray()
        actor_class = ray.remote(EnvActor).options(**actor_options)
        if not ray.is_initialized():
            ray.init(**(ray_init_kwargs or {}))
        self.max_actor_restarts, self.n_restarts = max_actor_restarts, 0
        self.last_seeds: list[int] | None = None
        self.last_obs: VecEnvObs | None = None
        self.closed = False
        indices = range(len(env_fns))
        parts = [indices[first : first + envs_per_actor] for first in indices[::envs_per_actor]]
        self.remotes = [RemoteEnvs(ray, actor_class, env_fns[part.start : part.stop], part) for part in parts]
        references = [remote.start() for remote in self.remotes]
        try:
            spaces = [remote.receive(reference) for remote, reference in zip(self.remotes, references, strict=True)]
            super().__init__(len(env_fns), *spaces[0])
        except BaseException:  # of any kind: actors must not outlive it
            self.close()
            raise

    def reset(self) -> VecEnvObs:
        if self._seeds[0] is not None:
            self.last_seeds = list(self._seeds)  # type: ignore[arg-type]  # `seed` sets all or none
        requests: list[tuple[RemoteEnvs, Request]] = [
            (remote, ("reset_with", (self._of(self._seeds, remote), self._of(self._options, remote)), {}))
            for remote in self.remotes
        ]
        parts = self._answers(requests)
        for remote in self.remotes:
            remote.restarted_with = None
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [info for _, infos in parts for info in infos]
        self.last_obs = concatenate_obs([obs for obs, _ in parts])
        return self.last_obs

    def step_async(self, actions: np.ndarray) -> None:
        self._check_open()
        if len(actions) != self.num_envs:
            raise ValueError(f"actions must hold one action per environment, {self.num_envs}, not {len(actions)}")
        self.references = [
            # a restarted actor has already begun the next episode; its environments are not stepped
            remote.send(("step_with", (self._of(actions, remote),), {})) if remote.restarted_with is None else None
            for remote in self.remotes
        ]

    def step_wait(self) -> VecEnvStepReturn:
        parts = [self._step_of(remote, reference) for remote, reference in zip(self.remotes, self.references, strict=True)]
        obs, rewards, dones, infos, reset_infos = zip(*parts, strict=True)
        for remote, reset_info in zip(self.remotes, reset_infos, strict=True):
            if reset_info is not None:
                self.reset_infos[remote.indices.start : remote.indices.stop] = reset_info
        self.last_obs = concatenate_obs(obs)
        return self.last_obs, np.concatenate(rewards), np.concatenate(dones), [info for part in infos for info in part]

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if not import_ray().is_initialized():
            return  # `ray.shutdown` has ended all actors
        references = [remote.close() for remote in self.remotes]
        try:
            for remote, reference in zip(self.remotes, references, strict=True):
                with suppress(LostActorError):
                    remote.receive(reference)
        finally:
            for remote in self.remotes:
                remote.stop()

    def get_images(self) -> Sequence[np.ndarray | None]:
        if self.render_mode != "rgb_array":
            warnings.warn(
                f"get_images needs render_mode='rgb_array', not {self.render_mode!r}: there are no images", stacklevel=2
            )
            return [None] * self.num_envs
        return self.env_method("render")

    def has_attr(self, attr_name: str) -> bool:
        return all(self._answers([(remote, ("has_attr", (attr_name,), {})) for remote in self.remotes]))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return self._per_env(indices, "get_attr", attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        self._answers(self._requests(self._numbers(indices), "set_attr", attr_name, value))

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        return self._per_env(indices, "env_method", method_name, *method_args, **method_kwargs)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        return self._per_env(indices, "env_is_wrapped", wrapper_class)

    def _of(self, values: Any, remote: RemoteEnvs) -> Any:
        return values[remote.indices.start : remote.indices.stop]

    def _numbers(self, indices: VecEnvIndices) -> list[int]:
        """Return the numbers of environments that indices, which may be negative as those of a list, stand for."""
        return [range(self.num_envs)[i] for i in self._get_indices(indices)]

    def _requests(self, numbers: list[int], method: str, *args: Any, **kwargs: Any) -> list[tuple[RemoteEnvs, Request]]:
        """Return one request to each actor that has some of the environments, which it numbers from 0."""
        own = [[i - remote.indices.start for i in numbers if i in remote.indices] for remote in self.remotes]
        return [
            (remote, (method, args, kwargs | {"indices": indices}))
            for remote, indices in zip(self.remotes, own, strict=True)
            if indices
        ]

    def _per_env(self, indices: VecEnvIndices, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Return what a method of ``DummyVecEnv`` that has one result per environment would return for all of them."""
        numbers = self._numbers(indices)
        requests = self._requests(numbers, method, *args, **kwargs)
        results = {
            remote.indices[index]: result
            for (remote, (_, _, arguments)), answer in zip(requests, self._answers(requests), strict=True)
            for index, result in zip(arguments["indices"], answer, strict=True)
        }
        return [results[i] for i in numbers]

    def _answers(self, requests: list[tuple[RemoteEnvs, Request]]) -> list[Any]:
        """Send all requests and wait for all answers."""
        self._check_open()
        references = [remote.send(request) for remote, request in requests]
        return [
            self._answer(remote, request, reference) for (remote, request), reference in zip(requests, references, strict=True)
        ]

    def _answer(self, remote: RemoteEnvs, request: Request, reference: Any) -> Any:
        """Wait for an answer; a lost actor is started again and asked again."""
        try:
            return remote.receive(reference)
        except LostActorError as error:
            self._restart(remote, error)
            return self._answer(remote, request, remote.send(request))

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError("this RayVecEnv is closed: its environments are gone")

    def _step_of(self, remote: RemoteEnvs, reference: Any) -> tuple[Any, ...]:
        """Wait for the step of an actor; if it is lost, now or since the last step, report the end of the episodes."""
        if remote.restarted_with is None:
            try:
                return remote.receive(reference)
            except LostActorError as error:
                self._restart(remote, error)
        assert remote.restarted_with is not None
        (obs, reset_infos), remote.restarted_with = remote.restarted_with, None
        infos = [
            {
                "TimeLimit.truncated": True,
                "terminal_observation": obs_of_env(self.last_obs, i),
                "actor_restarted": True,
            }
            for i in remote.indices
        ]
        n = len(infos)
        return obs, np.zeros(n, np.float32), np.ones(n, bool), infos, reset_infos

    def _restart(self, remote: RemoteEnvs, error: LostActorError) -> None:
        """Start a lost actor again and reset its environments, or raise the error if no restart is left."""
        if self.n_restarts >= self.max_actor_restarts:
            raise error
        self.n_restarts += 1
        first, last = remote.indices[0], remote.indices[-1]
        warnings.warn(
            f"the Ray actor of environments {first} to {last} was lost and is started again "
            f"({self.n_restarts} of {self.max_actor_restarts} restarts)",
            stacklevel=3,
        )
        n = len(remote.indices)
        seeds = (
            [None] * n
            if self.last_seeds is None
            else [seed + self.n_restarts * self.num_envs for seed in self._of(self.last_seeds, remote)]
        )
        remote.stop()
        try:
            remote.receive(remote.start())
            remote.restarted_with = remote.receive(remote.send(("reset_with", (seeds, [{}] * n), {})))
        except LostActorError as again:
            self._restart(remote, again)
