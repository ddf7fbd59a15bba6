"""Sampling groups: the episodes of a rollout, and which of them are compared with each other."""

from typing import NamedTuple

import numpy as np
import torch as th

from sb3_grpo.buffers import GroupBufferMixin, Rollout
from sb3_grpo.recording import Outcome


class Steps(NamedTuple):
    """``B`` steps of trajectories, in any order; arrays of shape ``(B,)``."""

    rollout: Rollout  #: as tensors
    cells: np.ndarray  #: cell of each step
    rewards: np.ndarray  #: as the environments gave them
    trajectory: np.ndarray  #: number of the trajectory, never used again
    time: np.ndarray  #: number of the step in its trajectory, from 0

    def at(self, indices: np.ndarray) -> "Steps":
        """
        Copy some of the steps.

        :param indices: of the steps
        """
        if len(indices) == len(self.time) and (indices == np.arange(len(indices))).all():
            return self
        return Steps(self.rollout.at(indices), *(column[indices] for column in self[1:]))

    def followed_by(self, others: "Steps") -> "Steps":
        """
        Join steps.

        :param others: come after these
        """
        columns = (np.concatenate(pair) for pair in zip(self[1:], others[1:], strict=True))
        return Steps(self.rollout.followed_by(others.rollout), *columns)


class Trajectories(NamedTuple):
    """``n`` complete episodes of ``B`` steps, one after the other."""

    steps: Steps  #: of all of them
    member: np.ndarray  #: trajectory of each step, from 0 to n - 1, ascending, shape (B,)
    lengths: np.ndarray  #: steps of each trajectory, shape (n,)
    group: np.ndarray  #: sampling group of each trajectory, from 0, shape (n,)
    truncated: np.ndarray  #: whether a time limit ended it, shape (n,)


class SamplingGroups:
    """
    Divide rollouts into episodes, and hand them out as soon as all members of their sampling group are complete.

    The episodes number ``k`` of ``group_size`` environments, which follow each other, are one sampling group. Environments
    whose episodes are short get ahead of the others, so that after each rollout all of them go on with the same number, the
    first one that nobody has had; :attr:`next_episode` says which. No episode can then join the groups that exist.

    What the end of a rollout cuts off is kept until it is complete, and so are the members that wait for it. A member that
    has no other to be compared with is left out.

    :param group_size: number of members
    :param max_rollouts: an episode may last so many rollouts: the actions in its first ones are those of older policies
    """

    def __init__(self, group_size: int, max_rollouts: int):
        self.group_size, self.max_rollouts = group_size, max_rollouts
        self.next_episode = 0
        self._kept: Steps | None = None
        self._n_trajectories = 0
        # by number of the trajectory: its sampling group, which is (number of the group, number of the episode); whether
        # a time limit ended it, where it has ended
        self._groups: dict[int, tuple[int, int]] = {}
        self._truncated: dict[int, bool] = {}
        self._running = np.empty(0, dtype=int)  # trajectory of each environment
        self._time = np.empty(0, dtype=int)  # steps of it so far

    def begin(self, n_envs: int, next_episode: int) -> None:
        """
        Forget all episodes, because the environments are about to be reset.

        :param n_envs: number of environments
        :param next_episode: number of the episode that begins in each of them
        """
        self._kept = None
        self._groups, self._truncated = {}, {}
        self._time = np.zeros(n_envs, dtype=int)
        self._running = np.array([self._new_trajectory(index, next_episode) for index in range(n_envs)], dtype=int)
        self.next_episode = next_episode + 1

    def _new_trajectory(self, env: int, episode: int) -> int:
        number = self._n_trajectories
        self._n_trajectories += 1
        self._groups[number] = (env // self.group_size, episode)
        return number

    def add(self, buffer: GroupBufferMixin, outcome: Outcome, ended: np.ndarray) -> tuple[Trajectories, int]:
        """
        Take a rollout, and return the sampling groups that are complete now.

        :param buffer: the complete rollout
        :param outcome: what its steps brought
        :param ended: whether the last step of each environment ended its episode, shape ``(n_envs,)``
        :return: the trajectories, and the number of steps that are left out because they have nothing to be compared with
        :raises ValueError: if an episode has lasted too many rollouts
        """
        steps = self._number(buffer, outcome, ended)
        if self._kept is not None:
            steps = self._kept.followed_by(steps)
        self._check_lengths(buffer.buffer_size)
        running = {self._groups[trajectory] for trajectory in self._running.tolist()}
        complete = [number for number in self._truncated if self._groups[number] not in running]
        sizes: dict[tuple[int, int], int] = {}
        for number in complete:
            sizes[self._groups[number]] = sizes.get(self._groups[number], 0) + 1
        used = [number for number in complete if sizes[self._groups[number]] > 1]
        is_used, is_complete = np.isin(steps.trajectory, used), np.isin(steps.trajectory, complete)
        order = np.lexsort((steps.time, steps.trajectory))
        trajectories = self._describe(steps.at(order[is_used[order]]))
        kept = np.flatnonzero(~is_complete)
        self._kept = steps.at(kept) if len(kept) else None
        for number in complete:
            del self._groups[number], self._truncated[number]
        return trajectories, int((is_complete & ~is_used).sum())

    def _number(self, buffer: GroupBufferMixin, outcome: Outcome, ended: np.ndarray) -> Steps:
        """Find trajectory and time of each step of a rollout, and number the episodes that begin in it."""
        n_envs, n_steps = buffer.n_envs, buffer.buffer_size
        if len(self._running) != n_envs:
            raise RuntimeError(f"begin() was called for {len(self._running)} environments, the rollout has {n_envs}")
        starts, truncated = buffer.episode_starts.T.astype(bool), np.zeros((n_envs, n_steps), dtype=bool)
        truncated.flat[outcome.episodes.steps] = outcome.episodes.truncated
        trajectory, time = np.empty((n_envs, n_steps), dtype=int), np.empty((n_envs, n_steps), dtype=int)
        first, largest = self.next_episode, self.next_episode
        for env in range(n_envs):
            number, episode, begin = int(self._running[env]), first, 0
            # the episode of the first step has its number already
            for start in [*(np.flatnonzero(starts[env, 1:]) + 1).tolist(), n_steps]:
                self._time[env] = 0 if begin else self._time[env]
                trajectory[env, begin:start] = number
                time[env, begin:start] = self._time[env] + np.arange(start - begin)
                self._time[env] += start - begin
                if start < n_steps or ended[env]:
                    self._truncated[number] = bool(truncated[env, start - 1])
                    number, episode, begin = self._new_trajectory(env, episode), episode + 1, start
            self._running[env], self._time[env] = number, 0 if ended[env] else self._time[env]
            largest = max(largest, episode)
        self.next_episode = largest
        return Steps(buffer.samples(), outcome.cells, outcome.paid, trajectory.ravel(), time.ravel())

    def _check_lengths(self, n_steps: int) -> None:
        longest = int(self._time.argmax())
        if self._time[longest] > self.max_rollouts * n_steps:
            raise ValueError(
                f"`n_steps` must be at least the length of the longest episode (or of {self.max_rollouts} rollouts, which "
                f"`max_rollouts` allows in `estimator_kwargs`): without a critic nothing is known of an episode before it "
                f"ends, and that of environment {longest} has {self._time[longest]} steps so far; got {n_steps}"
            )

    def _describe(self, steps: Steps) -> Trajectories:
        """Say what the trajectories are whose steps stand one after the other."""
        numbers, member, lengths = np.unique(steps.trajectory, return_inverse=True, return_counts=True)
        keys = [self._groups[number] for number in numbers.tolist()]
        places = {key: place for place, key in enumerate(sorted(set(keys)))}
        group = np.array([places[key] for key in keys], dtype=int)
        truncated = np.array([self._truncated[number] for number in numbers.tolist()], dtype=bool)
        return Trajectories(steps, member, lengths, group, truncated)


def to_device(values: np.ndarray, like: th.Tensor) -> th.Tensor:
    """
    Make a tensor of an array.

    :param values: the array
    :param like: a tensor of the wanted type and device
    """
    return th.as_tensor(values, dtype=like.dtype, device=like.device)
