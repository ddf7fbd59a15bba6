"""Recording: what a rollout brought that SB3's buffer does not keep."""

from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from sb3_grpo.buffers import GroupBufferMixin


class EndedEpisodes(NamedTuple):
    """The episodes that ended in a rollout, in the order in which they ended; arrays of shape ``(E,)``."""

    steps: np.ndarray  #: of the last step, an index of the rollout's ``B`` steps, environment by environment
    returns: np.ndarray  #: as ``Monitor`` reports them, else sums of the rewards that the algorithm got
    lengths: np.ndarray  #: steps
    truncated: np.ndarray  #: whether a time limit ended it


class Outcome(NamedTuple):
    """What the ``B`` steps of a rollout brought, environment by environment; arrays of shape ``(B,)``."""

    cells: np.ndarray  #: cell of each step
    returns: np.ndarray  #: returns-to-go, as SB3 estimates them for the value function
    rewards: np.ndarray  #: where a time limit ended an episode, with the value that SB3 adds
    paid: np.ndarray  #: rewards as the environments gave them
    advantages: np.ndarray  #: not normalised
    episodes: EndedEpisodes  #: that ended in the rollout


class RolloutRecorder(BaseCallback):
    """
    Record the rewards of a rollout as the environments gave them, and the episodes that ended in it.

    The rollout buffer does not have these rewards: where a time limit ends an episode SB3 adds the discounted value of the
    last observation. Episodes whose beginning was not seen are left out.
    """

    def __init__(self, verbose: int = 0) -> None:
        super().__init__(verbose)
        self._rewards: list[np.ndarray] = []
        # step of the rollout, environment, return, length, whether a time limit was the reason
        self._ended: list[tuple[int, int, Any, int, bool]] = []
        self._returns = np.empty(0)  # of the running episode of each environment; NaN if its beginning was not seen
        self._lengths = np.empty(0, dtype=int)
        self._last_model: Any = None  # model to which the running episodes belong

    @property
    def _reward_shape(self) -> tuple[int, ...]:
        """Shape of what one step of one environment brings."""
        return ()

    def _on_training_start(self) -> None:
        n_envs = self.training_env.num_envs
        if self._last_model is not self.model or len(self._returns) != n_envs:
            self._returns, self._lengths = np.full((n_envs, *self._reward_shape), np.nan), np.zeros(n_envs, dtype=int)
        self._last_model = self.model
        # environments that SB3 has just reset
        fresh = self.model._last_episode_starts
        self._returns[fresh], self._lengths[fresh] = 0.0, 0

    def _on_rollout_start(self) -> None:
        self._rewards, self._ended = [], []

    def _on_step(self) -> bool:
        rewards = self._step_rewards()
        self._rewards.append(rewards)
        self._returns += rewards
        self._lengths += 1
        for index in self.locals["dones"].nonzero()[0].tolist():
            info = self.locals["infos"][index]
            if np.isfinite(self._returns[index]).all():
                truncated = bool(info.get("TimeLimit.truncated", False))
                ended = (
                    len(self._rewards) - 1,
                    index,
                    self._episode_return(index, info),
                    int(self._lengths[index]),
                    truncated,
                )
                self._ended.append(ended)
            self._returns[index], self._lengths[index] = 0.0, 0
        return True

    def _step_rewards(self) -> np.ndarray:
        """Return what the last step brought, shape ``(n_envs, ...)``."""
        # a copy, because SB3 changes the array
        return np.array(self.locals["rewards"])

    def _episode_return(self, index: int, info: dict[str, Any]) -> Any:
        """Return what the episode of an environment that has just ended brought."""
        # VecNormalize changes rewards, but not what Monitor reports
        return float(info.get("episode", {}).get("r", self._returns[index]))

    def outcome(self, buffer: GroupBufferMixin, cells: np.ndarray) -> Outcome:
        """
        Put together what the steps of the last rollout brought.

        :param buffer: the complete rollout
        :param cells: cell of each step, shape ``(B,)``, in the order of ``buffer.samples()``
        :return: with the advantages that the buffer holds
        """
        stored, recorded, samples = buffer.flat_rewards(), self.rewards(buffer.buffer_size), buffer.samples()
        paid = stored if recorded is None else recorded.ravel()
        returns, advantages = (tensor.cpu().numpy() for tensor in (samples.returns, samples.advantages))
        return Outcome(cells, returns, stored, paid, advantages, self.episodes(buffer.buffer_size))

    def rewards(self, n_steps: int) -> np.ndarray | None:
        """
        Return the rewards of the last rollout.

        :param n_steps: steps of the rollout in each of the ``n_envs`` environments
        :return: shape ``(n_envs, n_steps)``; ``None`` if this callback has not seen the whole rollout
        """
        return np.stack(self._rewards, axis=1) if len(self._rewards) == n_steps else None

    def episodes(self, n_steps: int) -> EndedEpisodes:
        """
        Return the episodes that ended in the last rollout.

        :param n_steps: steps of the rollout in each of the ``n_envs`` environments
        :return: none if this callback has not seen the whole rollout
        """
        ended = self._ended if len(self._rewards) == n_steps else []
        steps = np.array([index * n_steps + step for step, index, *_ in ended], dtype=int)
        returns, lengths, truncated = (np.array([row[column] for row in ended]) for column in (2, 3, 4))
        return EndedEpisodes(steps, returns, lengths.astype(int), truncated.astype(bool))
