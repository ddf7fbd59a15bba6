"""Recording: what each step of a rollout brought for each objective, and the advantages that follow."""

from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_grpo.buffers import GroupBufferMixin
from sb3_grpo.objectives.wrapper import OBJECTIVES
from sb3_grpo.recording import EndedEpisodes, Outcome, RolloutRecorder


class ObjectiveRollout(NamedTuple):
    """What a rollout of ``n_steps`` steps in ``n_envs`` environments brought for ``K`` objectives."""

    paid: np.ndarray  # rewards as the environments gave them, shape (n_steps, n_envs, K)
    rewards: np.ndarray  # with the discounted value of the last observation where a time limit ended an episode
    values: np.ndarray  # of the observations, by the policy that collected them, shape (n_steps, n_envs, K)
    advantages: np.ndarray  # shape (n_steps, n_envs, K)
    returns: np.ndarray  # advantages plus values, shape (n_steps, n_envs, K)


def generalized_advantages(
    rewards: np.ndarray,
    values: np.ndarray,
    last_values: np.ndarray,
    episode_starts: np.ndarray,
    dones: np.ndarray,
    gamma: float,
    gae_lambda: float,
) -> np.ndarray:
    """
    Compute the advantages of all objectives in one pass (eq. 16 of https://arxiv.org/abs/1506.02438).

    The operations are those of SB3's ``RolloutBuffer``, in its order, so that each objective's advantages are those that PPO
    would compute if it were the reward.

    :param rewards: shape ``(n_steps, n_envs, K)``
    :param values: of the observations, same shape
    :param last_values: of the observations after the rollout, shape ``(n_envs, K)``
    :param episode_starts: whether an episode begins with the observation, shape ``(n_steps, n_envs)``
    :param dones: whether the last step ended an episode, shape ``(n_envs,)``
    :param gamma: discount factor, 0 to 1
    :param gae_lambda: 0 to 1
    :return: shape ``(n_steps, n_envs, K)``, float32
    """
    advantages, last = np.zeros_like(rewards), np.zeros_like(last_values)
    goes_on, next_values = 1.0 - dones.astype(np.float32), last_values
    for step in reversed(range(len(rewards))):
        if step < len(rewards) - 1:
            goes_on, next_values = 1.0 - episode_starts[step + 1], values[step + 1]
        keeps = goes_on[:, None]
        delta = rewards[step] + gamma * next_values * keeps - values[step]
        last = delta + gamma * gae_lambda * keeps * last
        advantages[step] = last
    return advantages


class ObjectiveRecorder(RolloutRecorder):
    """
    Record the objectives and their values in a rollout, and the episodes that ended in it.

    :param names: of the ``K`` objectives
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names
        self.rollout: ObjectiveRollout | None = None
        self._bootstrapped: list[np.ndarray] = []
        self._values: list[np.ndarray] = []

    @property
    def _reward_shape(self) -> tuple[int, ...]:
        return (len(self.names),)

    @property
    def _algorithm(self) -> Any:
        return self.model

    def _on_rollout_start(self) -> None:
        super()._on_rollout_start()
        self.rollout, self._bootstrapped, self._values = None, [], []

    def _step_rewards(self) -> np.ndarray:
        infos = self.locals["infos"]
        if without := [index for index, info in enumerate(infos) if OBJECTIVES not in info]:
            raise ValueError(
                f'`env` must put its objectives into info["{OBJECTIVES}"] in every step, as ObjectivesWrapper does; '
                f"environments {without} do not"
            )
        return np.stack([info[OBJECTIVES] for info in infos]).astype(np.float32)

    def _episode_return(self, index: int, info: dict[str, Any]) -> Any:
        return self._returns[index].copy()

    def _on_step(self) -> bool:
        goes_on = super()._on_step()
        self._values.append(self._algorithm.policy.last_values.cpu().numpy())
        self._bootstrapped.append(self._with_last_values(self._rewards[-1]))
        return goes_on

    def _with_last_values(self, rewards: np.ndarray) -> np.ndarray:
        """Return the rewards with the discounted value of the last observation where a time limit ended an episode, as SB3."""
        model, rewards, infos = self._algorithm, rewards.copy(), self.locals["infos"]
        for index in self.locals["dones"].nonzero()[0].tolist():
            last = infos[index].get("terminal_observation")
            if last is not None and infos[index].get("TimeLimit.truncated", False):
                with th.no_grad():
                    values = model.policy.objective_values(model.policy.obs_to_tensor(last)[0])
                rewards[index] += model.gamma * values[0].cpu().numpy()
        return rewards

    def _on_rollout_end(self) -> None:
        model = self._algorithm
        paid, rewards, values = (np.stack(each) for each in (self._rewards, self._bootstrapped, self._values))
        with th.no_grad():
            last_values = model.policy.objective_values(model.policy.obs_to_tensor(self.locals["new_obs"])[0])
        advantages = generalized_advantages(
            rewards,
            values,
            last_values.cpu().numpy(),
            model.rollout_buffer.episode_starts,
            self.locals["dones"],
            model.gamma,
            model.gae_lambda,
        )
        self.rollout = ObjectiveRollout(paid, rewards, values, advantages, advantages + values)

    def outcome_of_objectives(self, buffer: GroupBufferMixin) -> Outcome:
        """
        Put together what the steps of the last rollout brought: each of them once for each objective.

        :param buffer: the complete rollout of ``B`` steps
        :return: ``K * B`` entries, objective by objective and then environment by environment; ``cells`` are the objectives
        :raises RuntimeError: if this callback has not seen the whole rollout
        """
        if self.rollout is None:
            raise RuntimeError("the objectives of the rollout were not recorded: train with `learn`")
        n_steps, n_objectives = buffer.buffer_size * buffer.n_envs, len(self.names)
        cells = np.repeat(np.arange(n_objectives), n_steps)
        returns, rewards, paid, advantages = (
            by_objective(values).ravel()
            for values in (self.rollout.returns, self.rollout.rewards, self.rollout.paid, self.rollout.advantages)
        )
        ended = self.episodes(buffer.buffer_size)
        steps = (np.arange(n_objectives)[:, None] * n_steps + ended.steps).ravel()
        lengths, truncated = (np.tile(column, n_objectives) for column in (ended.lengths, ended.truncated))
        episodes = EndedEpisodes(steps, ended.returns.reshape(-1, n_objectives).T.ravel(), lengths, truncated)
        return Outcome(cells, returns, rewards, paid, advantages, episodes)


def by_objective(values: np.ndarray) -> np.ndarray:
    """
    Sort what a rollout holds by objective, and then environment by environment.

    :param values: shape ``(n_steps, n_envs, K)``
    :return: shape ``(K, n_envs * n_steps)``
    """
    return values.transpose(2, 1, 0).reshape(values.shape[2], -1)
