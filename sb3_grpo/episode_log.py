"""Log what episodes brought, by task: returns, lengths, and numbers that environments report in their infos."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from sb3_grpo.env_tasks import task_names_of
from sb3_grpo.envs.entries import TASK

Summary = Literal["sum", "mean", "last"]
# What a number of each step becomes for an episode
SUMMARIES: dict[str, Callable[[list[float]], float]] = {
    "sum": lambda values: float(np.sum(values)),
    "mean": lambda values: float(np.mean(values)),
    "last": lambda values: values[-1],
}


class EpisodeLogCallback(BaseCallback):
    """
    Log means over the last episodes, of all of them and of each task: returns, lengths, and named numbers of ``info``.

    Works with any algorithm of SB3. A reward that is a sum of parts can be followed part by part in this way, if the
    environment reports them: ``EpisodeLogCallback(["reward_forward", "reward_ctrl"])``. The tags are
    ``episodes/reward_forward`` and, where environments report ``info["task"]``, ``episodes/reward_forward_walk``; for each
    task also ``episodes/return_walk`` and ``episodes/length_walk``, from ``Monitor``.

    :param summaries: names of numbers in ``info``, and what becomes of those of an episode: their ``"sum"``, their ``"mean"``
        or the ``"last"``; a list of names alone: sums. A step without the number is left out, and an episode without any too
    :param verbose: as in SB3
    :raises ValueError: if a summary is none of these, or during training if a number is none
    """

    def __init__(self, summaries: Mapping[str, Summary] | Iterable[str] = (), verbose: int = 0):
        super().__init__(verbose)
        if isinstance(summaries, str):
            raise ValueError(f"`summaries` must be a list of names, or a dict, got {summaries!r}")
        given = dict(summaries) if isinstance(summaries, Mapping) else dict.fromkeys(summaries, "sum")
        if wrong := {name: how for name, how in given.items() if how not in SUMMARIES}:
            raise ValueError(f"`summaries` must be one of {list(SUMMARIES)} for each name, got {wrong}")
        self.summaries = given
        self._episodes: dict[str, deque[float]] = {}  # figures of the last episodes by tag
        self._values: list[dict[str, list[float]]] = []  # numbers of the running episode of each environment

    def _on_training_start(self) -> None:
        self._names = task_names_of(self.training_env)
        self._values = [{} for _ in range(self.training_env.num_envs)]

    def _on_step(self) -> bool:
        for values, info, done in zip(self._values, self.locals["infos"], self.locals["dones"], strict=True):
            for name in self.summaries.keys() & info.keys():
                values.setdefault(name, []).append(read_number(name, info[name]))
            if done:
                self._end_episode(values, info)
                values.clear()
        return True

    def _end_episode(self, values: dict[str, list[float]], info: dict[str, Any]) -> None:
        """Take an episode into the windows of its tags."""
        figures = {name: SUMMARIES[self.summaries[name]](own) for name, own in values.items()}
        for name, figure in figures.items():
            self._add(name, figure)
        if TASK in info:
            label = self._names[info[TASK]] if self._names else info[TASK]
            # Monitor's
            figures |= {"return": info["episode"]["r"], "length": info["episode"]["l"]} if "episode" in info else {}
            for name, figure in figures.items():
                self._add(f"{name}_{label}", figure)

    def _add(self, tag: str, figure: float) -> None:
        # SB3's window for `rollout/ep_rew_mean`
        self._episodes.setdefault(tag, deque(maxlen=self.model._stats_window_size)).append(float(figure))

    def _on_rollout_end(self) -> None:
        for tag, figures in self._episodes.items():
            self.logger.record(f"episodes/{tag}", float(np.mean(figures)), exclude="stdout")


def read_number(name: str, value: Any) -> float:
    """
    Read a number of an info.

    :param name: of the entry
    :param value: of the entry
    :raises ValueError: if it is not a single number
    """
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"info[{name!r}] must be a number, to be logged for each episode, got {value!r}") from error
