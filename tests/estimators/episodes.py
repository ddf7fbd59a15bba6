"""Episodes of sampling groups, told apart by plain lists, and environments that play them into a rollout buffer."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_grpo.buffers import GroupRolloutBuffer
from sb3_grpo.recording import EndedEpisodes, Outcome


class Step(NamedTuple):
    row: tuple[float, ...]  # observation; no other step has the same
    reward: float
    done: bool = False
    truncated: bool = False


@dataclass
class Episode:
    start: int
    number: int
    steps: list[Step] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return bool(self.steps) and self.steps[-1].done

    @property
    def rows(self) -> list[tuple[float, ...]]:
        return [step.row for step in self.steps]


class PlainGroups:
    """
    What is to be handed out, by lists of episodes: those of the same start and number, once none of them is running.

    :param group_size: environments of a sampling group
    """

    def __init__(self, group_size: int):
        self.group_size = group_size
        self.episodes: list[Episode] = []  # that have not been handed out or left out
        self.running: list[Episode] = []  # of each environment

    def begin(self, numbers: list[int]) -> None:
        """
        Forget all episodes; new ones begin.

        :param numbers: of the episodes that begin
        """
        self.running = [Episode(env // self.group_size, number) for env, number in enumerate(numbers)]
        self.episodes = list(self.running)

    def step(self, env: int, step: Step, next_number: int) -> None:
        """
        Take a step of an environment.

        :param env: which
        :param step: what it did
        :param next_number: number of the episode that begins if this one has ended
        """
        self.running[env].steps.append(step)
        if step.done:
            self.running[env] = Episode(env // self.group_size, next_number)
            self.episodes.append(self.running[env])

    def hand_out(self) -> tuple[list[list[Episode]], int]:
        """The sampling groups that are complete, and the steps of those who were alone in theirs."""
        groups: dict[tuple[int, int], list[Episode]] = {}
        for episode in self.episodes:
            groups.setdefault((episode.start, episode.number), []).append(episode)
        complete = [group for group in groups.values() if all(episode.ended for episode in group)]
        gone = [episode for group in complete for episode in group]
        self.episodes = [episode for episode in self.episodes if not any(episode is other for other in gone)]
        alone = [group[0] for group in complete if len(group) == 1]
        return [group for group in complete if len(group) > 1], sum(len(episode.steps) for episode in alone)


def plain_returns(episode: Episode, gamma: float) -> list[float]:
    """
    Discounted sums of the rewards from each step on.

    :param episode: with all its steps
    :param gamma: discount factor
    """
    rewards = [step.reward for step in episode.steps]
    return [sum(gamma**k * reward for k, reward in enumerate(rewards[t:])) for t in range(len(rewards))]


def plain_comparison(sets: list[list[float]], scale: str) -> list[list[float]]:
    """
    Compare the values of each set with their mean.

    :param sets: values that are compared with each other
    :param scale: what differences are divided by: the sample deviation of the set ("group"), the root mean square of all
        differences in sets that are not all alike ("batch"), nothing ("none")
    """
    differences = [[value - sum(values) / len(values) for value in values] for values in sets]
    varied = [max(values) - min(values) > 1e-6 for values in sets]
    squares = [each**2 for own, differs in zip(differences, varied, strict=True) if differs for each in own]
    compared = []
    for own, differs in zip(differences, varied, strict=True):
        divisor = {"group": float(th.tensor(own, dtype=th.float64).std(correction=int(len(own) > 1))), "none": 1.0}
        divisor["batch"] = (sum(squares) / max(1, len(squares))) ** 0.5
        compared.append([each / divisor[scale] if differs else 0.0 for each in own])
    return compared


def plain_advantages(groups: list[list[Episode]], estimator: str, gamma: float, scale: str = "group") -> dict[Any, float]:
    """
    Advantages by observation.

    :param groups: sampling groups that are complete
    :param estimator: value of ``advantage_estimator``
    :param gamma: discount factor
    :param scale: see :func:`plain_comparison`
    """
    returns = [[plain_returns(episode, gamma) for episode in group] for group in groups]
    found: dict[Any, float] = {}
    if estimator == "time_step":
        moments = [(g, t) for g, group in enumerate(groups) for t in range(max(len(episode.steps) for episode in group))]
        alive = [[i for i, episode in enumerate(groups[g]) if len(episode.steps) > t] for g, t in moments]
        values = [[returns[g][i][t] for i in members] for (g, t), members in zip(moments, alive, strict=True)]
        for (g, t), members, compared in zip(moments, alive, plain_comparison(values, scale), strict=True):
            found |= {groups[g][i].rows[t]: value for i, value in zip(members, compared, strict=True)}
        return found
    outcomes = plain_comparison([[own[0] for own in group] for group in returns], scale)
    for group, compared in zip(groups, outcomes, strict=True):
        found |= {row: value for episode, value in zip(group, compared, strict=True) for row in episode.rows}
    if estimator == "outcome":
        return found
    rewards = plain_comparison([[step.reward for episode in group for step in episode.steps] for group in groups], scale)
    for group, compared in zip(groups, rewards, strict=True):
        if any(compared):  # otherwise all rewards are alike, and the advantages are those of the outcomes
            left = iter(compared)
            for episode in group:
                normalised = Episode(
                    episode.start, episode.number, [step._replace(reward=next(left)) for step in episode.steps]
                )
                found |= dict(zip(episode.rows, plain_returns(normalised, gamma), strict=True))
    return found


def fill(rollout: list[list[Step]]) -> tuple[GroupRolloutBuffer, Outcome, np.ndarray]:
    """
    Make a rollout; each environment's first step begins an episode, as far as the buffer knows.

    :param rollout: steps of each environment
    :return: the buffer, what the steps brought (the cell of step ``t`` is ``t % 2``), whether the last steps ended episodes
    """
    n_envs, n_steps, box = len(rollout), len(rollout[0]), spaces.Box(-np.inf, np.inf, (len(rollout[0][0].row),))
    buffer = GroupRolloutBuffer(n_steps, box, spaces.Discrete(2), "cpu", gae_lambda=1.0, gamma=0.9, n_envs=n_envs)
    starts = np.ones(n_envs)
    for steps in zip(*rollout, strict=True):
        rewards, nothing = np.array([step.reward for step in steps]), np.zeros((n_envs, 1))
        buffer.add(np.array([step.row for step in steps]), nothing, rewards, starts, th.zeros(n_envs), th.zeros(n_envs))
        starts = np.array([float(step.done) for step in steps])
    buffer.compute_returns_and_advantage(th.zeros(n_envs), starts)
    flat = [step for steps in rollout for step in steps]
    rewards, returns = np.array([step.reward for step in flat], dtype=np.float32), buffer.samples().returns.numpy()
    ends = np.array([place for place, step in enumerate(flat) if step.done], dtype=int)
    truncated = np.array([flat[place].truncated for place in ends.tolist()], dtype=bool)
    # return and length of the episodes are not what estimators look at
    episodes = EndedEpisodes(ends, np.zeros(len(ends)), np.zeros(len(ends), dtype=int), truncated)
    cells = np.tile(np.arange(n_steps) % 2, n_envs)
    return buffer, Outcome(cells, returns, rewards, rewards, np.zeros(len(flat)), episodes), starts.astype(bool)


class World:
    """
    Environments whose episodes have random lengths and rewards, and number themselves as ``SharedStart`` does.

    Observations are ``(environment, number of the episode, time)``.

    :param random: generator
    :param group_size: environments of a sampling group
    :param n_starts: sampling groups
    :param n_steps: of a rollout
    :param longest: number of steps that an episode can have
    :param rewards: what they are drawn from; ``None``: the normal distribution
    """

    def __init__(
        self, random: Any, group_size: int, n_starts: int, n_steps: int, longest: int, rewards: list[float] | None = None
    ):
        self.random, self.n_envs, self.n_steps, self.longest = random, group_size * n_starts, n_steps, longest
        self.rewards, self.plain = rewards, PlainGroups(group_size)
        self.next_number = np.zeros(self.n_envs, dtype=int)
        self.time, self.length = np.zeros(self.n_envs, dtype=int), self._draw_lengths(self.n_envs)

    def _draw_lengths(self, n: int) -> np.ndarray:
        return self.random.integers(1, self.longest + 1, size=n)

    def reset(self) -> None:
        """Begin an episode in every environment."""
        self.plain.begin(self.next_number.tolist())
        self.next_number += 1
        self.time, self.length = np.zeros(self.n_envs, dtype=int), self._draw_lengths(self.n_envs)

    def skip_to(self, number: int) -> None:
        """
        Set the number of the next episode of every environment.

        :param number: of the episode
        """
        self.next_number[:] = number

    def rollout(self) -> tuple[GroupRolloutBuffer, Outcome, np.ndarray]:
        """Play a rollout, see :func:`fill`."""
        played: list[list[Step]] = [[self._step(env) for _ in range(self.n_steps)] for env in range(self.n_envs)]
        return fill(played)

    def _step(self, env: int) -> Step:
        reward = np.float32(self.random.normal() if self.rewards is None else self.random.choice(self.rewards))
        row = (float(env), float(self.plain.running[env].number), float(self.time[env]))
        self.time[env] += 1
        done = bool(self.time[env] == self.length[env])
        step = Step(row, float(reward), done, done and bool(self.random.random() < 0.3))
        self.plain.step(env, step, int(self.next_number[env]))
        if done:
            self.next_number[env] += 1
            self.time[env], self.length[env] = 0, self._draw_lengths(1)[0]
        return step
