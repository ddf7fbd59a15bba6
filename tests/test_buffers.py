"""Rollout buffers: temporal-difference errors, minibatches, and the head of every step."""

from functools import partial

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_grpo import routing
from sb3_grpo.buffers import GroupDictRolloutBuffer, GroupRolloutBuffer, Rollout
from sb3_grpo.grouping import Grouping
from sb3_grpo.routing import make_router

N_STEPS, N_ENVS = 12, 3
BOX, DICT = spaces.Box(-9, 9, (2,)), spaces.Dict({"obs": spaces.Box(-9, 9, (2,)), "task": spaces.Discrete(4)})


class Episodes:
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
        rollout = Episodes(ends=ends)
        buffer = rollout.fill(make_buffer(gae_lambda=gae_lambda, gamma=gamma))
        assert buffer.td_errors().shape == (N_STEPS * N_ENVS,)
        np.testing.assert_allclose(buffer.td_errors().numpy(), rollout.td_errors(gamma), atol=1e-5)

    @pytest.mark.parametrize(("n_steps", "n_envs"), [(1, 1), (1, 3), (7, 1)])
    def test_of_small_rollouts(self, n_steps, n_envs):
        rollout = Episodes(n_steps, n_envs)
        buffer = rollout.fill(make_buffer(n_steps=n_steps, n_envs=n_envs))
        np.testing.assert_allclose(buffer.td_errors().numpy(), rollout.td_errors(0.99), atol=1e-5)

    def test_of_dict_observations(self):
        rollout = Episodes()
        buffer = rollout.fill(make_buffer(GroupDictRolloutBuffer, DICT))
        np.testing.assert_allclose(buffer.td_errors().numpy(), rollout.td_errors(0.99), atol=1e-5)

    def test_advantages_stay_as_they_are(self):
        buffer = Episodes().fill(make_buffer())
        before = buffer.samples().advantages.clone()
        first = buffer.td_errors()
        assert buffer.samples().advantages.equal(before)
        assert buffer.td_errors().equal(first)
        assert not first.equal(before)

    def test_of_the_next_rollout(self):
        buffer, rollout = make_buffer(), Episodes(ends=0.1)
        Episodes().fill(buffer).td_errors()
        buffer.reset()
        rollout.fill(buffer)
        np.testing.assert_allclose(buffer.td_errors().numpy(), rollout.td_errors(0.99), atol=1e-5)


def constant(cell, obs):
    return th.full((len(obs),), cell)


def positive(obs):
    return (obs[:, 0] > 0).long()


def make_grouping(buffer, router, cell_to_group, **kwargs):
    grouping = Grouping(make_router(router, buffer.observation_space, kwargs), 1, 4)
    grouping.assign(cell_to_group)
    return grouping


class TestHeads:
    """Of the steps of a rollout, whose observations are routed."""

    # groups 0, 1 and 3 have a head each, of which that of group 3 is the last
    cell_to_group, cell_to_head = (3, 0, 0, 1), (2, 0, 0, 1)

    def test_are_those_of_the_cells(self):
        rollout = Episodes()
        buffer = rollout.fill(make_buffer(GroupDictRolloutBuffer, DICT))
        samples, tasks = buffer.samples(), rollout.tasks.T.flatten()
        assert not samples.heads.any()
        grouping = make_grouping(buffer, "discrete", self.cell_to_group, key="task")
        cells = grouping.cells_of_rollout(samples.observations)
        assert cells.tolist() == tasks.tolist()
        assert grouping.heads_at(samples.observations).tolist() == [self.cell_to_head[task] for task in tasks]
        assert grouping.groups_at(samples.observations).tolist() == [self.cell_to_group[task] for task in tasks]

    def test_are_looked_up_in_parts(self, monkeypatch):
        monkeypatch.setattr(routing, "MAX_CHUNK", 10)
        sizes = []

        def counted(obs):
            sizes.append(len(obs))
            return positive(obs)

        rollout = Episodes()
        buffer = rollout.fill(make_buffer())
        grouping = make_grouping(buffer, counted, self.cell_to_group, n_cells=4)
        cells = grouping.cells_of_rollout(buffer.samples().observations)
        assert sizes == [5] * 7 + [1]
        assert cells.tolist() == (rollout.obs[..., 0].T.flatten() > 0).astype(int).tolist()

    def test_can_be_looked_up_again(self):
        buffer = Episodes().fill(make_buffer())
        for cell in (3, 0):
            grouping = make_grouping(buffer, partial(constant, cell), self.cell_to_group, n_cells=4)
            assert set(grouping.heads_at(buffer.samples().observations).tolist()) == {self.cell_to_head[cell]}
        # the buffer itself has learnt nothing of them
        assert not buffer.samples().heads.any()

    def test_without_heads_all_steps_have_the_first_and_the_weight_one(self):
        samples = Episodes().fill(make_buffer()).samples()
        assert samples.heads.tolist() == [0] * (N_STEPS * N_ENVS)
        assert samples.weights.tolist() == [1.0] * (N_STEPS * N_ENVS)
        assert samples.heads.dtype == th.long


class TestMinibatches:
    def numbered(self, cls=GroupRolloutBuffer, space=BOX) -> Rollout:
        """A rollout in which every entry tells its step."""
        samples = Episodes().fill(make_buffer(cls, space)).samples()
        number = th.arange(len(samples.heads))
        fields = {
            name: number.float() + place
            for place, name in enumerate(name for name in Rollout._fields[1:] if name != "trajectories")
        }
        observations: PyTorchObs = {"obs": number.unsqueeze(1), "task": -number} if isinstance(space, spaces.Dict) else number
        return Rollout(observations, **{**fields, "heads": number})

    @pytest.mark.parametrize(("cls", "space"), [(GroupRolloutBuffer, BOX), (GroupDictRolloutBuffer, DICT)])
    def test_entries_of_a_step_stay_together(self, cls, space):
        rollout, seen = self.numbered(cls, space), []
        for batch in rollout.minibatches(8):
            number = batch.heads
            assert batch.trajectories is None
            for place, name in enumerate(name for name in Rollout._fields[1:] if name != "trajectories"):
                values = getattr(batch, name)
                assert values.equal(number if name == "heads" else number.float() + place), name
            observations = batch.observations
            if isinstance(observations, dict):
                assert observations["obs"].flatten().equal(number)
                observations = -observations["task"]
            assert observations.equal(number)
            seen.append(number)
        assert [len(part) for part in seen] == [8] * 4 + [4]
        assert th.cat(seen).sort().values.tolist() == list(range(N_STEPS * N_ENVS))

    def test_are_drawn_anew_each_time(self):
        rollout = self.numbered()
        first, second = (th.cat([batch.heads for batch in rollout.minibatches(8)]) for _ in range(2))
        assert not first.equal(second)

    def test_heads_stay_with_their_steps(self):
        buffer = Episodes().fill(make_buffer())
        samples = buffer.samples()
        assert isinstance(samples.observations, th.Tensor)
        for batch in samples._replace(heads=positive(samples.observations)).minibatches(8):
            assert isinstance(batch.observations, th.Tensor)
            assert batch.heads.equal(positive(batch.observations))


LENGTHS = (3, 1, 5, 2, 4, 1, 6, 2)


class TestWholeTrajectories:
    """Minibatches where ratios are those of trajectories, whose steps stand in any order."""

    def rollout(self, lengths=LENGTHS) -> Rollout:
        number = th.arange(sum(lengths))
        trajectories = th.repeat_interleave(th.arange(len(lengths)), th.tensor(lengths))
        trajectories = trajectories[th.randperm(len(number), generator=th.Generator().manual_seed(0))]
        # the entries of a step say which it is
        entries = {name: number.float() for name in Rollout._fields[1:8]}
        return Rollout(number, **{**entries, "heads": number}, trajectories=trajectories)

    @staticmethod
    def drawn(rollout, batch_size):
        return [batch.heads.tolist() for batch in rollout.minibatches(batch_size)]

    @pytest.mark.parametrize("batch_size", [1, 4, 7, 24, 100])
    def test_are_whole_and_in_one_minibatch(self, batch_size):
        rollout = self.rollout()
        assert rollout.trajectories is not None
        batches, seen = list(rollout.minibatches(batch_size)), []
        for batch in batches:
            assert batch.trajectories is not None
            assert batch.trajectories.equal(rollout.trajectories[batch.heads])
            assert all(getattr(batch, name).equal(batch.heads.float()) for name in ("advantages", "weights", "old_log_prob"))
            for number in batch.trajectories.unique().tolist():
                assert (batch.trajectories == number).sum() == LENGTHS[number]
            seen += batch.heads.tolist()
        assert sorted(seen) == list(range(sum(LENGTHS)))
        sizes = [len(batch.heads) for batch in batches]
        assert all(size >= batch_size for size in sizes[:-1])
        # and no more than its last trajectory makes necessary
        for batch, size in zip(batches, sizes, strict=True):
            assert batch.trajectories is not None
            assert size - LENGTHS[int(batch.trajectories[-1])] < batch_size

    def test_the_last_minibatch_may_be_smaller(self):
        """Control of the sizes above: trajectories of 2 steps cannot fill 3 minibatches of 3."""
        assert [len(batch) for batch in self.drawn(self.rollout((2,) * 5), 3)] == [4, 4, 2]

    def test_are_drawn_anew_each_time_by_numpys_generator(self):
        rollout = self.rollout()
        np.random.seed(0)
        first, second = (self.drawn(rollout, 4) for _ in range(2))
        assert first != second
        np.random.seed(0)
        assert [self.drawn(rollout, 4) for _ in range(2)] == [first, second]

    def test_control_without_trajectories_they_are_divided(self):
        rollout = self.rollout()
        assert [len(batch) for batch in self.drawn(rollout._replace(trajectories=None), 4)] == [4] * 6
        assert [len(batch) for batch in self.drawn(rollout, 4)] != [4] * 6


class TestSteps:
    """Chosen and joined."""

    def rollout(self, is_dict, optional, first=0):
        number = th.arange(first, first + 6)
        entries = {name: number.float() for name in Rollout._fields[1:] if name in Rollout._fields[1:8] or name in optional}
        observations: PyTorchObs = {"b": number.unsqueeze(1), "a": -number} if is_dict else number
        return Rollout(observations, **{**entries, "heads": number})

    @staticmethod
    def check(rollout, expected, is_dict, optional):
        number = th.tensor(expected)
        observations = rollout.observations
        if is_dict:
            assert list(observations) == ["b", "a"]
            assert observations["b"].equal(number.unsqueeze(1))
            observations = -observations["a"]
        assert observations.equal(number)
        for name in Rollout._fields[1:]:
            entry = getattr(rollout, name)
            if name in Rollout._fields[8:] and name not in optional:
                assert entry is None
            else:
                assert entry.equal(number if name == "heads" else number.float())

    @pytest.mark.parametrize("optional", [(), ("shares",), ("trajectories", "reference_log_prob"), Rollout._fields[8:]])
    @pytest.mark.parametrize("is_dict", [False, True])
    def test_have_all_their_entries(self, is_dict, optional):
        rollout, others = self.rollout(is_dict, optional), self.rollout(is_dict, optional, first=6)
        self.check(rollout, range(6), is_dict, optional)
        for indices in ([4, 0, 4], np.array([4, 0, 4]), th.tensor([4, 0, 4])):
            self.check(rollout.at(indices), [4, 0, 4], is_dict, optional)
        self.check(rollout.followed_by(others), range(12), is_dict, optional)
        self.check(others.followed_by(rollout.at([2])), [*range(6, 12), 2], is_dict, optional)

    def test_are_copies(self):
        rollout = self.rollout(False, ("shares",))
        chosen = rollout.at([0, 1])
        chosen.advantages.fill_(99)
        assert rollout.advantages.tolist() == [0, 1, 2, 3, 4, 5]

    def test_are_none_where_none_is_chosen(self):
        empty = self.rollout(False, ()).at(np.empty(0, dtype=int))
        assert len(empty.heads) == 0
        self.check(empty.followed_by(self.rollout(False, ())), range(6), False, ())

    def test_with_other_observations_are_not_joined(self):
        with pytest.raises(ValueError, match="zip"):
            self.rollout(True, ()).followed_by(self.rollout(False, ()))


def test_rewards_are_in_the_order_of_the_samples():
    rollout = Episodes()
    buffer = rollout.fill(make_buffer())
    samples = buffer.samples()
    assert isinstance(samples.observations, th.Tensor)
    assert buffer.flat_rewards().tolist() == [rollout.rewards[t, env] for env in range(N_ENVS) for t in range(N_STEPS)]
    assert samples.observations[:, 0].tolist() == [rollout.obs[t, env, 0] for env in range(N_ENVS) for t in range(N_STEPS)]


def test_minibatches_are_those_of_sb3():
    sb3 = Episodes().fill(make_buffer(RolloutBuffer))
    ours = Episodes().fill(make_buffer())
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
