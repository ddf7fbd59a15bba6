"""
Four gridworlds of unequal difficulty, after a published comparison of task sampling (https://arxiv.org/abs/2605.14350).

Each is a grid of 5 x 5 cells. The agent starts in the upper left corner and has to reach the upper right one. The middle
column has a wall of 1, 2, 3 or 4 cells from the top, so that the shortest ways have 6, 8, 10 and 12 of the 15 steps of an
episode.
"""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_grpo.envs.tasks import Task, TaskEnv

SIZE = 5
START, GOAL = 0, SIZE - 1  # cells are numbered row by row from the upper left corner
MAX_STEPS = 15
STEP_REWARD, GOAL_REWARD = -0.001, 1.0
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # up, down, left, right
WALLS = (1, 2, 3, 4)  # length of the wall of each task
N_CELLS, N_TASKS = SIZE * SIZE, len(WALLS)


def next_cells(wall: int) -> np.ndarray:
    """
    Return the cell that each action leads to from each cell; against a wall or an edge the agent stays.

    :param wall: number of cells of the wall, from the top of the middle column
    :return: shape ``(N_CELLS, 4)``
    """
    cells = np.arange(N_CELLS)
    moved = np.stack([cells // SIZE, cells % SIZE], axis=-1)[:, np.newaxis] + np.array(MOVES)
    rows, columns = np.moveaxis(moved.clip(0, SIZE - 1), -1, 0)
    blocked = (columns == SIZE // 2) & (rows < wall)
    return np.where(blocked, cells[:, np.newaxis], rows * SIZE + columns)


NEXT_CELLS = {wall: next_cells(wall) for wall in WALLS}


class GridWorld(gym.Env[np.ndarray, np.int64]):
    """
    A grid with a wall, in which the observation is the agent's cell, one-hot.

    The reward is 1 at the goal and -0.001 for each other step. ``info["is_success"]`` tells whether the goal is reached. An
    episode ends there or after 15 steps; the latter is no truncation, as in the published protocol.
    """

    action_space = spaces.Discrete(len(MOVES))
    observation_space = spaces.Box(0, 1, (N_CELLS,), np.float32)

    def __init__(self) -> None:
        self._rows = np.eye(N_CELLS, dtype=np.float32)
        self.set_wall(WALLS[0])

    def set_wall(self, wall: int) -> None:
        """
        Set the wall, before the environment is reset.

        :param wall: number of cells of the wall, from the top of the middle column
        """
        self._next_cells = NEXT_CELLS[wall]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Put the agent on the start.

        :param seed: of the environment, which draws nothing
        :param options: not used
        """
        super().reset(seed=seed)
        self._cell, self._n_steps = START, 0
        return self._rows[START], {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        Move the agent.

        :param action: index in ``MOVES``
        """
        self._cell = int(self._next_cells[self._cell, action])
        self._n_steps += 1
        success = self._cell == GOAL
        reward = GOAL_REWARD if success else STEP_REWARD
        return self._rows[self._cell], reward, success or self._n_steps == MAX_STEPS, False, {"is_success": success}


class TaskGridWorld(TaskEnv):
    """
    The four gridworlds as tasks, which differ in the length of the wall.

    :param kwargs: see :class:`~sb3_grpo.envs.tasks.TaskEnv`
    """

    TASK_DEFAULTS: ClassVar[dict[str, Any]] = {**TaskEnv.TASK_DEFAULTS, "wall": WALLS[0]}

    def __init__(self, **kwargs: Any):
        self.grid_world = GridWorld()
        super().__init__(self.grid_world, [{"wall": wall} for wall in WALLS], **kwargs)

    def _apply_task(self, task: Task) -> None:
        self.grid_world.set_wall(task["wall"])


def success_probabilities(model: OnPolicyAlgorithm) -> np.ndarray:
    """
    Compute the probability that an episode of each task reaches the goal, with actions drawn from the policy.

    The distribution of the agent's cell is followed for the steps of an episode, so that the result has no noise.

    :param model: trained on :class:`TaskGridWorld`
    :return: shape ``(N_TASKS,)``
    """
    shape = (N_TASKS, N_CELLS, len(MOVES))
    tasks, cells, actions = np.indices(shape).reshape(3, -1)
    obs = np.concatenate([np.eye(N_CELLS)[cells], np.eye(N_TASKS)[tasks]], axis=1).astype(np.float32)
    with th.no_grad():
        _, log_likelihoods, _ = model.policy.evaluate_actions(th.as_tensor(obs), th.as_tensor(actions))
    probabilities = log_likelihoods.exp().double().numpy().reshape(shape)
    return np.array(list(map(_success_probability, NEXT_CELLS.values(), probabilities)))


def _success_probability(following: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the probability of the goal within an episode; both arrays have shape ``(N_CELLS, 4)``."""
    transitions = np.zeros((N_CELLS, N_CELLS))
    np.add.at(transitions, (np.arange(N_CELLS)[:, np.newaxis], following), probabilities)
    transitions[GOAL] = np.eye(N_CELLS)[GOAL]  # the episode has ended
    return float(np.linalg.matrix_power(transitions, MAX_STEPS)[START, GOAL])
