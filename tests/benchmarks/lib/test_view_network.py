from unittest import mock

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from benchmarks.lib.view_network import HIDDEN, HiddenPerTask, Numbering, ViewExtractor

VIEW, TASK = spaces.Box(0, 255, (3, 7, 7), np.float32), spaces.Discrete(3)
# (extractor, whether it sees the task)
CASES = [(ViewExtractor, False), (ViewExtractor, True), (HiddenPerTask, True)]


def make(cls, sees_task):
    th.manual_seed(0)
    return cls(spaces.Dict({"view": VIEW, "task": TASK} if sees_task else {"view": VIEW}))


def observe(sees_task, n=60, seed=0):
    """Observations in which views, and squares of cells, occur several times."""
    rng = np.random.default_rng(seed)
    views = rng.integers(0, 3, (10, 3, 7, 7)).astype(np.float32)
    views[:, :, :, :3] = 1
    obs = {"view": th.from_numpy(views[rng.integers(0, 10, n)])}
    return obs | {"task": th.eye(3)[rng.integers(0, 3, n)]} if sees_task else obs


def plain(extractor, obs):
    """Features as the layers give them for each observation."""
    convolved = extractor.cnn(obs["view"])
    if isinstance(extractor, HiddenPerTask):
        hidden = th.tanh(extractor.hidden(convolved)).unflatten(1, (3, HIDDEN))
        return (hidden * obs["task"].unsqueeze(-1)).flatten(1)
    return th.tanh(extractor.hidden(th.cat([convolved, *([obs["task"]] if "task" in obs else [])], dim=1)))


@pytest.mark.parametrize(("cls", "sees_task"), CASES)
def test_features_and_gradients_are_those_of_the_layers(cls, sees_task):
    extractor = make(cls, sees_task)
    for seed in range(3):  # later ones add views to those that are known
        obs = observe(sees_task, seed=seed)
        features, expected = extractor(obs), plain(extractor, obs)
        th.testing.assert_close(features, expected, atol=1e-6, rtol=0)
        weights = th.randn_like(features)
        for mine, theirs in zip(
            th.autograd.grad((features * weights).sum(), list(extractor.parameters())),
            th.autograd.grad((expected * weights).sum(), list(extractor.parameters())),
            strict=True,
        ):
            th.testing.assert_close(mine, theirs, atol=1e-5 * float(theirs.abs().max()), rtol=0)


@pytest.mark.parametrize(("cls", "sees_task"), CASES)
def test_a_repeated_view_is_looked_at_once(cls, sees_task):
    extractor, obs = make(cls, sees_task), observe(sees_task)
    different = th.cat([values.flatten(1) for values in obs.values()], dim=1).unique(dim=0)
    assert len(different) < 60
    with mock.patch.object(extractor, "look", wraps=extractor.look) as look:
        extractor(obs)
    assert [len(call.args[0]) for call in look.call_args_list] == [len(different)]


@pytest.mark.parametrize(("cls", "sees_task"), CASES)
def test_a_rollout_remembers_features_until_weights_change(cls, sees_task):
    extractor, obs = make(cls, sees_task), observe(sees_task)
    with mock.patch.object(extractor, "look", wraps=extractor.look) as look, th.no_grad():
        for round_ in range(2):
            extractor.train(False)
            for _ in range(2):
                th.testing.assert_close(extractor(obs), plain(extractor, obs), atol=1e-5, rtol=0)
            assert look.call_count == round_ + 1
            extractor.train(True)
            extractor.hidden.weight += 0.1
        # those of the previous rollout are looked at together with new ones
        extractor.train(False)
        th.testing.assert_close(extractor(observe(sees_task, seed=1)), plain(extractor, observe(sees_task, seed=1)))
        th.testing.assert_close(extractor(obs), plain(extractor, obs), atol=1e-5, rtol=0)
        assert look.call_count == 3


def test_the_hidden_layer_is_a_tasks_own():
    extractor = make(HiddenPerTask, True)
    obs = {"view": observe(True)["view"][:1].repeat(3, 1, 1, 1), "task": th.eye(3)}
    with th.no_grad():
        before = extractor(obs)
        extractor.hidden.weight[HIDDEN : 2 * HIDDEN] += 1.0
        assert (extractor(obs) != before).any(dim=1).tolist() == [False, True, False]
    assert not (before[0] * before[1]).any()


@pytest.mark.parametrize(("sees_task", "differs"), [(True, True), (False, False)])
def test_the_task_matters_where_it_is_shown(sees_task, differs):
    extractor = make(ViewExtractor, sees_task)
    obs = {"view": observe(True)["view"][:1].repeat(2, 1, 1, 1), "task": th.eye(3)[:2]}
    features = extractor(obs if sees_task else {"view": obs["view"]})
    assert th.equal(features[0], features[1]) is not differs


def test_numbers_are_those_of_the_first_occurrence():
    numbering = Numbering(2, np.uint8)
    assert numbering(np.array([[1, 2], [3, 4], [1, 2]])).tolist() == [0, 1, 0]
    assert numbering(np.array([[3, 4], [0, 0], [5, 6]])).tolist() == [1, 2, 3]
    assert numbering.rows[: len(numbering)].tolist() == [[1, 2], [3, 4], [0, 0], [5, 6]]
    many = np.stack(np.divmod(np.arange(1000), 250), axis=1)
    numbers = numbering(many)
    assert (numbering.rows[numbers] == many).all()
