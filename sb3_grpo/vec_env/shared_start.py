"""Let episodes of several environments begin in the same state, so that what was done in them can be compared."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from copy import deepcopy
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from sb3_grpo.action_masks import sample_allowed
from sb3_grpo.vec_env.adapter import VectorEnvAdapter, adapt_vector_env
from sb3_grpo.vec_env.joined import JoinedVecEnv
from sb3_grpo.vec_env.lean import LeanVecEnv

N_SEEDS = 2**32  # seeds of NumPy's generators and of Gymnasium's environments are below
N_CHECKED = 4  # episodes that are compared
CHECKED_STEPS = 100
ADVICE = 'GRPO(advantage_estimator="time_step") needs no common start'

MakeEnv = Callable[..., gym.Env[Any, Any]]


def episode_seed(base: int, start: int, episode: int) -> int:
    """
    Return the seed with which an episode is reset.

    :param base: seed of all environments of the ``VecEnv``, from 0 to 2**32 - 1
    :param start: number of the sampling group, from 0
    :param episode: number of the episode, from 0
    :return: from 0 to 2**32 - 1
    """
    return int(np.random.SeedSequence(base, spawn_key=(start, episode)).generate_state(1)[0])


class SharedStart(gym.Wrapper[Any, Any, Any, Any]):
    """
    Environment whose k-th episode begins in the same state as the k-th episodes of its sampling group.

    Every reset is seeded with :func:`episode_seed`, so environments need no messages between them, and their episodes may
    end at different times. This wrapper must be the outermost one: wrappers around it that reset the environment without
    a new episode would change the numbers. ``start`` and ``next_episode``, the number that the next reset gets, are
    public.

    :param env: the environment, in ``Monitor`` or not
    :param start: number of the sampling group, from 0
    :param member: index of this environment in the ``VecEnv``, from 0
    :param seed: the same for all environments of the ``VecEnv``, from 0 to 2**32 - 1
    :raises ValueError: if a number is not an integer of its range
    """

    def __init__(self, env: gym.Env[Any, Any], start: int, member: int, seed: int):
        check_integer("start", start, 0)
        check_integer("member", member, 0)
        check_integer("seed", seed, 0, N_SEEDS - 1)
        super().__init__(env)
        self.start, self.member, self.base_seed = start, member, seed
        self.next_episode = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        Begin the next episode of the sampling group; the numbers of episodes go on, whatever the seed is.

        :param seed: of this environment: that of the ``VecEnv`` plus ``member``, as ``VecEnv.seed`` gives it out;
            ``None``: go on with the one before
        :param options: of the environment
        :return: first observation and info of the environment
        """
        if seed is not None:
            self.base_seed = (seed - self.member) % N_SEEDS
        # without options none are named: DummyVecEnv, too, resets environments whose reset does not know the argument
        named = {} if options is None else {"options": options}
        first = self.env.reset(seed=episode_seed(self.base_seed, self.start, self.next_episode), **named)
        self.next_episode += 1
        return first

    def skip_to(self, episode: int) -> None:
        """
        Set the number of the episode that the next reset begins.

        :param episode: the number, from 0; the same for all environments of a sampling group
        :raises ValueError: if it is not an integer of at least 0
        """
        check_integer("episode", episode, 0)
        self.next_episode = episode


def make_group_vec_env(
    env_id: str | MakeEnv,
    group_size: int,
    n_starts: int = 1,
    seed: int | None = None,
    monitor_dir: str | None = None,
    wrapper_class: Callable[..., gym.Env[Any, Any]] | None = None,
    env_kwargs: dict[str, Any] | None = None,
    vec_env_cls: type[VecEnv | VectorEnv] | None = None,
    vec_env_kwargs: dict[str, Any] | None = None,
    monitor_kwargs: dict[str, Any] | None = None,
    wrapper_kwargs: dict[str, Any] | None = None,
) -> VecEnv:
    """
    Make a ``VecEnv`` of sampling groups: the k-th episodes of a group begin in the same state, see :class:`SharedStart`.

    Environment ``i`` belongs to sampling group ``i // group_size``. Arguments that are not named here are those of SB3's
    ``make_vec_env``. Two more environments are made first, in this process, and closed: they show whether a seed repeats
    an episode, see :func:`check_shared_start`.

    :param env_id: id of the environment, or a function or class that returns a new one
    :param group_size: environments that begin in the same state, at least 2
    :param n_starts: number of sampling groups, at least 1
    :param seed: of all environments, from 0 to 2**32 - 1; ``None``: drawn from NumPy's global generator
    :param monitor_dir: folder of ``Monitor``'s files; ``None``: no files
    :param wrapper_class: wrapper around ``Monitor``, or a function that wraps
    :param env_kwargs: arguments of the environment
    :param vec_env_cls: ``LeanVecEnv`` (default), ``DummyVecEnv``, ``SubprocVecEnv``, ``RayVecEnv``; or Gymnasium's
        ``SyncVectorEnv`` or ``AsyncVectorEnv`` (Gymnasium 1.1 or newer), which
        :func:`~sb3_grpo.vec_env.adapter.adapt_vector_env` adapts
    :param vec_env_kwargs: arguments of ``vec_env_cls``
    :param monitor_kwargs: arguments of ``Monitor``
    :param wrapper_kwargs: arguments of ``wrapper_class``
    :return: ``group_size * n_starts`` environments
    :raises ValueError: if an argument breaks its rule, or a seed does not repeat an episode of the environment
    """
    check_integer("group_size", group_size, 2)
    check_integer("n_starts", n_starts, 1)
    if seed is not None:
        check_integer("seed", seed, 0, N_SEEDS - 1)
    check_env_id("env_id", env_id)
    vec_env_cls = LeanVecEnv if vec_env_cls is None else vec_env_cls
    check_vec_env_cls(vec_env_cls, vec_env_kwargs or {})
    what: dict[str, Any] = dict(env_kwargs=env_kwargs, wrapper_class=wrapper_class, wrapper_kwargs=wrapper_kwargs)
    check_repeats("env_id", partial(make_single, env_id, **what), CHECKED_STEPS)
    base = int(np.random.randint(N_SEEDS, dtype=np.int64)) if seed is None else int(seed)
    info_keywords = tuple((monitor_kwargs or {}).get("info_keywords", ()))
    return make_vec_env(
        env_id,
        n_envs=int(group_size * n_starts),
        seed=base,
        monitor_dir=monitor_dir,
        # a function, where SB3 says a class: it calls it with the functions that make the environments, and `vec_env_kwargs`
        vec_env_cls=partial(make_groups, vec_env_cls, int(group_size), base, info_keywords),  # type: ignore[arg-type]  # as above
        vec_env_kwargs=vec_env_kwargs,
        monitor_kwargs=monitor_kwargs,
        **what,
    )


def make_groups(
    vec_env_cls: Any, group_size: int, seed: int, info_keywords: tuple[str, ...], env_fns: list[MakeEnv], **kwargs: Any
) -> VecEnv:
    """
    Make a ``VecEnv`` of environments in :class:`SharedStart`.

    :param vec_env_cls: see :func:`make_group_vec_env`
    :param group_size: see :func:`make_group_vec_env`
    :param seed: of all environments
    :param info_keywords: of ``Monitor``
    :param env_fns: functions that return one environment each, in its other wrappers
    :param kwargs: arguments of ``vec_env_cls``
    """
    members = [partial(make_member, env_fn, i // group_size, i, seed) for i, env_fn in enumerate(env_fns)]
    if issubclass(vec_env_cls, VecEnv):
        return vec_env_cls(members, **kwargs)
    # the step that ends an episode resets the environment itself, as in SB3: no second message to a subprocess
    return adapt_vector_env(vec_env_cls(members, **{"autoreset_mode": "SameStep", **kwargs}), info_keywords=info_keywords)


def make_member(env_fn: MakeEnv, start: int, member: int, seed: int) -> SharedStart:
    """
    Make one environment of a sampling group.

    :param env_fn: function that returns the environment in its other wrappers
    :param start: see :class:`SharedStart`
    :param member: see :class:`SharedStart`
    :param seed: see :class:`SharedStart`
    """
    return SharedStart(env_fn(), start, member, seed)


def make_single(env_id: str | MakeEnv, **kwargs: Any) -> gym.Env[Any, Any]:
    """
    Make one environment as SB3's ``make_vec_env`` makes it, without a file of ``Monitor``.

    :param env_id: see there
    :param kwargs: of ``make_vec_env``
    """
    # without a seed NumPy's global generator, which is the user's, would be drawn from
    vec_env = make_vec_env(env_id, seed=0, vec_env_cls=DummyVecEnv, **kwargs)
    assert isinstance(vec_env, DummyVecEnv)
    return vec_env.envs[0]


def check_shared_start(env: str | MakeEnv, n_steps: int = CHECKED_STEPS) -> None:
    """
    Check that the seed of a reset determines the episode: its first observation, and what follows from the actions.

    Two instances take the same actions after a reset with the same seed, step by step, for several seeds; one of them has
    played another episode right before. This finds environments that ignore the seed, that carry something over from
    one episode to the next, and that draw from generators of their own or of the process. It does not find what shows
    only later than in ``n_steps`` steps, or in other states than random actions lead to. Where observations have an entry
    ``"action_mask"``, the actions are those that it allows.

    :param env: id of the environment, or a function or class that returns a new one
    :param n_steps: of each episode, at least 1; episodes may end earlier
    :raises ValueError: if an argument breaks its rule, or if the instances differ: in the observation, the reward or the end
        of the episode
    """
    check_env_id("env", env)
    check_integer("n_steps", n_steps, 1)
    check_repeats("env", partial(gym.make, env) if isinstance(env, str) else env, n_steps)


def check_repeats(name: str, make_env: MakeEnv, n_steps: int) -> None:
    """
    Compare two instances of an environment, see :func:`check_shared_start`, and close them.

    :param name: of the user's argument
    :param make_env: makes an instance
    :param n_steps: of each episode
    :raises ValueError: if the instances differ, are one object or no environments, or if their reset takes no seed
    """
    with closing(make_env()) as one, closing(make_env()) as other:
        for env in (one, other):
            if not isinstance(env, gym.Env):
                raise ValueError(f"{name} must make single environments (gymnasium.Env), not {type(env)}")
        if one.unwrapped is other.unwrapped:
            raise ValueError(f"{name} must return a new environment at each call, not {other} again")
        action_space = deepcopy(one.action_space)  # with a generator of its own
        for seed in range(N_CHECKED):
            # with the seed that comes next: what is kept for a seed, and changed by other actions, is found there
            action_space.seed(N_CHECKED + seed)
            for _ in play(name, other, seed + 1, action_space, n_steps):
                pass
            action_space.seed(seed)
            compare_episodes(name, one, other, seed, action_space, n_steps)


def play(name: str, env: gym.Env[Any, Any], seed: int, action_space: gym.Space[Any], n_steps: int) -> Iterator[dict[str, Any]]:
    """
    Yield what is seen of an episode: after the reset, and after each step.

    :param name: of the user's argument
    :param env: the environment
    :param seed: of the reset
    :param action_space: that actions are drawn from, those that the observation allows
    :param n_steps: after which the episode is left, if it has not ended
    :raises ValueError: if the reset takes no seed
    """
    try:
        first = env.reset(seed=seed)
    except TypeError as error:
        raise ValueError(
            f"{name} must make environments that are reset with a seed, but reset(seed={seed}) raised TypeError: {error}. "
            f"{ADVICE}"
        ) from error
    obs = first[0]
    yield {"observation": deepcopy(obs)}
    for _ in range(n_steps):
        obs, reward, terminated, truncated, _ = env.step(sample_allowed(action_space, obs))
        yield {"observation": deepcopy(obs), "reward": reward, "end of the episode": (terminated, truncated)}
        if terminated or truncated:
            return


def compare_episodes(
    name: str, one: gym.Env[Any, Any], other: gym.Env[Any, Any], seed: int, action_space: gym.Space[Any], n_steps: int
) -> None:
    """
    Play an episode in two environments, step by step, and refuse a difference.

    :param name: of the user's argument
    :param one: an environment
    :param other: another one
    :param seed: of both resets
    :param action_space: that the actions of both are drawn from
    :param n_steps: see :func:`play`
    :raises ValueError: if observations, rewards or ends differ
    """
    # taking turns: a generator of the process that the reset seeds would repeat its numbers if they played one after another
    # with generators of their own, in the same state: as long as observations are the same, actions are
    plays = (play(name, env, seed, deepcopy(action_space), n_steps) for env in (one, other))
    both = zip(*plays, strict=True)
    for step, (mine, theirs) in enumerate(both):
        for what, value in mine.items():
            if not is_same(value, theirs[what]):
                when = "of the reset" if step == 0 else f"of step {step}"
                values = "" if what == "observation" else f": {value} and {theirs[what]}"
                raise ValueError(
                    f"{name} must make environments in which the seed of a reset determines the episode, but two of them, "
                    f"of which one had played another episode before, were reset with seed {seed}, were given the same "
                    f"actions, and differ in the {what} {when}{values}. {ADVICE}"
                )


def is_same(one: Any, other: Any) -> bool:
    """
    Return whether two observations are equal to the last bit; NaN equals NaN.

    :param one: array, number, string or None, or a mapping or sequence of such
    :param other: what it is compared with
    """
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(is_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    mine, theirs = np.asarray(one), np.asarray(other)
    return np.array_equal(mine, theirs, equal_nan=mine.dtype.kind in "fc" and theirs.dtype.kind in "fc")


def check_integer(name: str, value: Any, smallest: int, largest: int | None = None) -> None:
    """
    Check an argument.

    :param name: of the argument
    :param value: of the argument
    :param smallest: that is allowed
    :param largest: that is allowed; ``None``: there is none
    :raises ValueError: if it is not an integer of this range
    """
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_integer or value < smallest or (largest is not None and value > largest):
        allowed = f"of at least {smallest}" if largest is None else f"from {smallest} to {largest}"
        raise ValueError(f"{name} must be an integer {allowed}, not {value!r}")


def check_env_id(name: str, value: Any) -> None:
    """
    Check an argument that says how an environment is made.

    :param name: of the argument
    :param value: of the argument
    :raises ValueError: if it is neither an id nor a function or class that returns single environments
    """
    is_vectorised = isinstance(value, type) and issubclass(value, VectorEnv | VecEnv)
    if is_vectorised or not (isinstance(value, str) or callable(value)):
        raise ValueError(
            f"{name} must be the id of an environment, or a function that returns a new environment at each call, not "
            f"{value!r}; vectorised environments cannot be seeded one by one"
        )


def check_vec_env_cls(vec_env_cls: Any, vec_env_kwargs: Mapping[str, Any]) -> None:
    """
    Check what sampling groups are made in.

    :param vec_env_cls: see :func:`make_group_vec_env`
    :param vec_env_kwargs: see :func:`make_group_vec_env`
    :raises ValueError: if it is no class that is made of functions, or would make environments again in the midst of training
    """
    is_vectorised = isinstance(vec_env_cls, type) and issubclass(vec_env_cls, VecEnv | SyncVectorEnv | AsyncVectorEnv)
    if not is_vectorised or issubclass(vec_env_cls, VecEnvWrapper | VectorEnvAdapter | JoinedVecEnv):
        raise ValueError(
            "vec_env_cls must be a VecEnv that is made of functions (LeanVecEnv, DummyVecEnv, SubprocVecEnv, RayVecEnv), "
            f"SyncVectorEnv or AsyncVectorEnv, whose environments are seeded one by one, not {vec_env_cls!r}"
        )
    if vec_env_kwargs.get("max_actor_restarts"):
        raise ValueError(
            "vec_env_kwargs must not have max_actor_restarts above 0: an environment that is made again counts its episodes "
            f"from 0 and leaves its sampling group; got {vec_env_kwargs['max_actor_restarts']!r}"
        )
