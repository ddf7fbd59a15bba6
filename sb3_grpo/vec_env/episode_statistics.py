"""Sum rewards and count steps of each environment's episode, as SB3's ``Monitor`` does it for one environment."""

import time
from typing import Any

import numpy as np


class EpisodeStatistics:
    """
    Return and length of the episodes that ``num_envs`` environments are in; sums are in float64, as in ``Monitor``.

    :param num_envs: number of environments
    """

    def __init__(self, num_envs: int):
        self.returns = np.zeros(num_envs, dtype=np.float64)
        self.lengths = np.zeros(num_envs, dtype=np.int64)
        self.start_time = time.time()

    def restart(self) -> None:
        """Drop what was recorded of unfinished episodes, because all environments are reset."""
        self.returns[:] = 0
        self.lengths[:] = 0

    def add(self, rewards: np.ndarray) -> None:
        """
        Record one step of all environments.

        :param rewards: of the step, shape ``(num_envs,)``
        """
        self.returns += rewards
        self.lengths += 1

    def finish(self, index: int) -> dict[str, Any]:
        """
        Return what ``Monitor`` says of an episode that has ended, and begin the next one.

        :param index: of the environment, in ``[0, num_envs)``
        :return: ``"r"``: sum of the rewards; ``"l"``: number of steps; ``"t"``: seconds since this object was made
        """
        seconds = round(time.time() - self.start_time, 6)
        statistics = {"r": round(float(self.returns[index]), 6), "l": int(self.lengths[index]), "t": seconds}
        self.returns[index] = 0
        self.lengths[index] = 0
        return statistics
