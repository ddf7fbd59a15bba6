"""Rollout buffers: temporal-difference errors, and the group of every step."""

from functools import partial

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_grpo import routing
from sb3_grpo.buffers import GroupDictRolloutBuffer, GroupRolloutBuffer
from sb3_grpo.routing import make_router

N_STEPS, N_ENVS = 12, 3
BOX, DICT = spaces.Box(-9, 9, (2,)), spaces.Dict({"obs": spaces.Box(-9, 9, (2,)), "task": spaces.Discrete(4)})


class Rollout:
    """Random rewards, values and episode ends; what a buffer is filled with, in the shape (step, environment)."""

    def __init__(self, n_steps=N_STEPS, n_envs=N_ENVS, ends=0.3):
        random = np.random.default_rng(0)
        self.obs = random.normal(size=(n_steps, n_envs, 2)).astype(np.float32)
        self.tasks = random.integers(4, size=(n_steps, n_envs))
        self.rewards, self.values = (random.normal(size=(n_steps, n_envs)).astype(np.float32) for _ in range(2))
        # whether the episode ends with the step
        self.dones = random.random((n_steps, n_envs)) < ends
        self.last_values = random.normal(size=n_envs).astype(np.float32)

    def fill(self, buffer):
        n_steps, n_envs = self.rewards.shape
        starts = np.vstack([np.ones((1, n_envs)), self.dones[:-1]])
        for t in range(n_steps):
            obs = {"obs": self.obs[t], "task": self.tasks[t]} if isinstance(buffer, GroupDictRolloutBuffer) else self.obs[t]
            values = th.as_tensor(self.values[t])
            buffer.add(obs, np.zeros((n_envs, 1)), self.rewards[t], starts[t], values, th.zeros(n_envs))
        buffer.compute_returns_and_advantage(th.as_tensor(self.last_values), self.dones[-1])
        return buffer

    def td_errors(self, gamma):
        """r + gamma V(s') - V(s), environment by environment."""
        errors = []
        n_steps, n_envs = self.rewards.shape
        for env in range(n_envs):
            for t in range(n_steps):
                following = self.last_values[env] if t == n_steps - 1 else self.values[t + 1, env]
                value_after = 0.0 if self.dones[t, env] else following
                errors.append(self.rewards[t, env] + gamma * value_after - self.values[t, env])
        return np.array(errors)


def make_buffer(cls=GroupRolloutBuffer, space=BOX, n_steps=N_STEPS, n_envs=N_ENVS, gae_lambda=0.95, gamma=0.99):
    return cls(n_steps, space, spaces.Discrete(2), "cpu", gae_lambda=gae_lambda, gamma=gamma, n_envs=n_envs)


class TestTdErrors:
    @pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 0.95, 1.0])
    @pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
    @pytest.mark.parametrize("ends", [0.0, 0.3, 1.0])
    def test_equal_a_loop(self, gae_lambda, gamma, ends):
        rollout = Rollout(ends=ends)
        buffer = rollout.fill(make_buffer(gae_lambda=gae_lambda, gamma=gamma))
        assert buffer.td_errors().shape == (N_STEPS * N_ENVS,)
        np.testing.assert_allclose(buffer.td_errors().numpy(), rollout.td_errors(gamma), atol=1e-5)

    @pytest.mark.parametrize(("n_steps", "n_envs"), [(1, 1), (1, 3), (7, 1)])
    def test_of_small_rollouts(self, n_steps, n_envs):
        rollout = Rollout(n_steps, n_envs)
        buffer = rollout.fill(make_buffer(n_steps=n_steps, n_envs=n_envs))
        np.testing.assert_allclose(buffer.td_errors().numpy(), rollout.td_errors(0.99), atol=1e-5)

    def test_of_dict_observations(self):
        rollout = Rollout()
        buffer = rollout.fill(make_buffer(GroupDictRolloutBuffer, DICT))
        np.testing.assert_allclose(buffer.td_errors().numpy(), rollout.td_errors(0.99), atol=1e-5)

    def test_advantages_stay_as_they_are(self):
        buffer = Rollout().fill(make_buffer())
        before = buffer.samples().advantages.clone()
        first = buffer.td_errors()
        assert buffer.samples().advantages.equal(before)
        assert buffer.td_errors().equal(first)
        assert not first.equal(before)

    def test_of_the_next_rollout(self):
        buffer, rollout = make_buffer(), Rollout(ends=0.1)
        Rollout().fill(buffer).td_errors()
        buffer.reset()
        rollout.fill(buffer)
        np.testing.assert_allclose(buffer.td_errors().numpy(), rollout.td_errors(0.99), atol=1e-5)


def constant(cell, obs):
    return th.full((len(obs),), cell)


class TestGroups:
    cell_to_group = th.tensor([2, 0, 0, 1])

    def test_are_those_of_the_cells(self):
        rollout = Rollout()
        buffer = rollout.fill(make_buffer(GroupDictRolloutBuffer, DICT))
        assert not buffer.samples().groups.any()
        buffer.assign_groups(make_router("discrete", DICT, dict(key="task")), self.cell_to_group)
        assert buffer.cells.tolist() == rollout.tasks.T.flatten().tolist()
        assert buffer.samples().groups.tolist() == [[2, 0, 0, 1][task] for task in rollout.tasks.T.flatten()]

    def test_are_looked_up_in_parts(self, monkeypatch):
        monkeypatch.setattr(routing, "MAX_CHUNK", 10)
        sizes = []

        def positive(obs):
            sizes.append(len(obs))
            return (obs[:, 0] > 0).long()

        rollout = Rollout()
        buffer = rollout.fill(make_buffer())
        buffer.assign_groups(make_router(positive, buffer.observation_space, dict(n_cells=4)), self.cell_to_group)
        assert sizes == [5] * 7 + [1]
        assert buffer.cells.tolist() == (rollout.obs[..., 0].T.flatten() > 0).astype(int).tolist()

    def test_can_be_assigned_again(self):
        buffer = Rollout().fill(make_buffer())
        for cell in (3, 0):
            always = make_router(partial(constant, cell), buffer.observation_space, dict(n_cells=4))
            buffer.assign_groups(always, self.cell_to_group)
            assert set(buffer.cells.tolist()) == {cell}
            assert set(buffer.samples().groups.tolist()) == {self.cell_to_group[cell].item()}

    def test_stay_with_their_steps_in_minibatches(self):
        buffer = Rollout().fill(make_buffer())
        router = make_router(lambda obs: (obs[:, 0] > 0).long(), buffer.observation_space, dict(n_cells=2))
        buffer.assign_groups(router, th.tensor([1, 0]))
        groups = []
        for batch in buffer.get(8):
            assert isinstance(batch.observations, th.Tensor)
            assert batch.groups.equal((batch.observations[:, 0] <= 0).long())
            groups.append(batch.groups)
        assert [len(part) for part in groups] == [8] * 4 + [4]


def test_minibatches_are_those_of_sb3():
    sb3 = Rollout().fill(make_buffer(RolloutBuffer))
    ours = Rollout().fill(make_buffer())
    batches = []
    for buffer in (sb3, ours):
        np.random.seed(0)
        batches.append(list(buffer.get(10)))
    for expected, actual in zip(*batches, strict=True):
        assert all(one.equal(other) for one, other in zip(expected, actual[:6], strict=True))


def test_rollout_must_be_complete():
    buffer = make_buffer()
    with pytest.raises(RuntimeError, match=r"the rollout is not complete: 0 of 12 steps"):
        buffer.td_errors()
