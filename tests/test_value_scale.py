"""Value heads in units of their group's returns: the unit changes no value, and the scale of rewards does not matter."""

import copy
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_envs import CountingEnv
from tiny_policies import make_scrambled_policy
from trained_tensors import assert_close

from sb3_grpo import GRPO, MlpPolicy
from sb3_grpo.buffers import Rollout
from sb3_grpo.envs.cartpole import FOUR_TASKS
from sb3_grpo.heads import average_heads
from sb3_grpo.objective import PPOObjective
from sb3_grpo.regroup_plan import Merge, Split
from sb3_grpo.update import FlatStepper, OptimizerStepper, make_eager_update
from sb3_grpo.value_scale import HALF_LIFE, ValueScale

N_CELLS = N_HEADS = 4
CELL_TO_GROUP = [0, 1, 2, 2]
FOUR_GROUPS = [0, 1, 2, 3]
UNITS = [0.5, 20.0, 3.0, 7.0]
POLICIES: dict[str, tuple[spaces.Space[Any], dict[str, Any]]] = {
    "discrete": (spaces.Discrete(4), {}),
    "box": (spaces.Box(-1, 1, (2,)), {}),
    "gsde": (spaces.Box(-1, 1, (2,)), dict(use_sde=True)),
}


def make_policy(
    name: str = "discrete", cell_to_group: Sequence[int] = CELL_TO_GROUP, scales: bool = True, all_heads: bool = False
) -> MlpPolicy:
    """All heads different, in different units: those of groups in use only, or of all groups that there can be."""
    action_space, kwargs = POLICIES[name]
    kwargs = dict(kwargs, n_groups=N_CELLS, scale_values=scales, all_heads=all_heads)
    policy = make_scrambled_policy(action_space, N_CELLS, net_arch=[8], **kwargs)
    if policy.value_scale is not None:
        policy.value_scale.scale.copy_(th.tensor(UNITS))
    policy.grouping.assign(cell_to_group)
    policy.take_heads(policy.grouping.heads)
    return policy


def scale_of(policy: MlpPolicy) -> ValueScale:
    assert policy.value_scale is not None
    return policy.value_scale


def make_obs(n: int = 40) -> th.Tensor:
    generator = th.Generator().manual_seed(0)
    return th.cat([th.randn(n, 2, generator=generator), th.eye(N_CELLS)[th.arange(n) % N_CELLS]], dim=1)


def heads_of(policy: MlpPolicy) -> np.ndarray:
    return policy.grouping.heads_at(make_obs()).numpy()


def own_scale(policy: MlpPolicy) -> th.Tensor:
    """
    :return: scale of each observation, shape ``(n, 1)``
    """
    return scale_of(policy).at(policy.grouping.heads_at(make_obs())).clone().unsqueeze(1)


class Behaviour(NamedTuple):
    """All that a policy says about some observations."""

    values: list[th.Tensor]  # by each of the three ways to ask for them
    others: list[th.Tensor | None]


def behaviour(policy: MlpPolicy) -> Behaviour:
    obs = make_obs()
    with th.no_grad():
        actions, values, log_prob = policy(obs, deterministic=True)
        evaluated, *others = policy.evaluate_actions(obs, actions)
        return Behaviour([policy.predict_values(obs), values, evaluated], [actions, log_prob, *others])


def double(tensor: th.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def outputs_by_hand(policy: MlpPolicy, obs: th.Tensor, heads: np.ndarray) -> np.ndarray:
    """
    :return: outputs of these value heads, in their units
    """
    layer, head = policy.mlp_extractor.value_net[0], policy.value_net
    assert isinstance(layer, th.nn.Linear)
    latent = np.tanh(double(obs) @ double(layer.weight).T + double(layer.bias))
    return (latent * double(head.weight)[heads]).sum(axis=1) + double(head.bias)[heads]


def values_by_hand(policy: MlpPolicy, heads: np.ndarray) -> np.ndarray:
    return outputs_by_hand(policy, make_obs(), heads) * double(scale_of(policy).scale)[heads]


def all_of(head: int) -> np.ndarray:
    return np.full(len(make_obs()), head)


def parameters_but_value_heads(policy: MlpPolicy) -> dict[str, th.Tensor]:
    return {name: p.detach().clone() for name, p in policy.named_parameters() if not name.startswith("value_net")}


def assert_same(actual: dict[str, th.Tensor], expected: dict[str, th.Tensor]) -> None:
    """To the last bit."""
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not actual[name].equal(expected[name])] == []


class TestValues:
    @pytest.mark.parametrize("all_heads", [False, True])
    @pytest.mark.parametrize("name", list(POLICIES))
    def test_are_outputs_times_units(self, name, all_heads):
        policy = make_policy(name, all_heads=all_heads)
        assert policy.n_heads == (4 if all_heads else 3)
        expected = values_by_hand(policy, heads_of(policy))
        for values in behaviour(policy).values:
            np.testing.assert_allclose(values.numpy().ravel(), expected, rtol=1e-5, atol=1e-5)

    def test_of_the_only_group(self):
        policy = make_policy(cell_to_group=[1] * N_CELLS)
        assert policy.grouping.heads == [1]
        assert scale_of(policy).scale.tolist() == [UNITS[1]]
        expected = values_by_hand(policy, all_of(0))
        for values in behaviour(policy).values:
            np.testing.assert_allclose(values.numpy().ravel(), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("cell_to_group", [CELL_TO_GROUP, [1] * N_CELLS])
    def test_without_units_are_outputs(self, cell_to_group):
        policy = make_policy(cell_to_group=cell_to_group, scales=False)
        assert policy.value_scale is None
        before = behaviour(policy)
        np.testing.assert_allclose(
            before.values[0].numpy().ravel(), outputs_by_hand(policy, make_obs(), heads_of(policy)), rtol=1e-5, atol=1e-6
        )
        scaled = make_policy(cell_to_group=cell_to_group)
        scale_of(scaled).scale.fill_(1.0)
        th.testing.assert_close(behaviour(scaled), before, rtol=0, atol=0)

    def test_everything_else_knows_no_units(self):
        policy, without = make_policy(), make_policy(scales=False)
        th.testing.assert_close(behaviour(policy).others, behaviour(without).others, rtol=0, atol=0)


class TestValueScale:
    """The object alone, by hand."""

    def test_begins_with_one_and_without_steps(self):
        scale = ValueScale(3)
        assert scale.scale.tolist() == [1, 1, 1]
        assert scale.count.tolist() == [0, 0, 0]
        # predicting needs the scale only
        assert list(scale.state_dict()) == ["scale"]

    def test_normalize(self):
        scale = ValueScale(3)
        scale.scale.copy_(th.tensor([0.5, 2.0, 8.0]))
        heads = th.tensor([2, 0, 0, 1])
        assert scale.at(heads).tolist() == [8, 0.5, 0.5, 2]
        assert scale.normalize(th.tensor([8.0, 1.0, -3.0, 1.0]), heads).tolist() == [1, 2, -6, 0.5]

    def test_rescale(self):
        scale, layer = ValueScale(3), th.nn.Linear(2, 3)
        layer.weight.data = th.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
        layer.bias.data = th.tensor([7.0, 8.0, 9.0])
        scale.rescale(layer, th.tensor([2, 0]), th.tensor([0.5, 4.0]))
        assert scale.scale.tolist() == [4, 1, 0.5]
        assert layer.weight.tolist() == [[0.25, 0.5], [3, 4], [10, 12]]
        assert layer.bias.tolist() == [1.75, 8, 18]

    def test_unify(self):
        scale, layer = ValueScale(3), th.nn.Linear(1, 3)
        layer.weight.data, layer.bias.data = th.tensor([[1.0], [1.0], [1.0]]), th.tensor([1.0, 1.0, 1.0])
        scale.scale.copy_(th.tensor([1.0, 5.0, 7.0]))
        scale.count.copy_(th.tensor([10.0, 20.0, 30.0]))
        # 1/4 * 49 + 3/4 * 1 = 13
        scale.unify(layer, 2, 0, 0.25)
        np.testing.assert_allclose(scale.scale, [math.sqrt(13), 5, math.sqrt(13)], rtol=1e-6)
        np.testing.assert_allclose(layer.bias.detach(), [1 / math.sqrt(13), 1, 7 / math.sqrt(13)], rtol=1e-6)
        assert scale.count.tolist() == [10, 20, 40]

    @pytest.mark.parametrize("sources", [[2, 2, 0], [1], [0, 1, 2, 1, 1], [0, 1, 2]])
    def test_take(self, sources):
        scale, before = ValueScale(3), (th.tensor([1.0, 5.0, 7.0]), th.tensor([10.0, 20.0, 30.0]))
        scale.scale.copy_(before[0])
        scale.count.copy_(before[1])
        kept = scale.scale
        scale.take(sources)
        assert scale.scale.tolist() == before[0][sources].tolist()
        assert scale.count.tolist() == before[1][sources].tolist()
        # a compiled function, whose number of heads never changes, refers to the tensor
        assert (scale.scale is kept) == (len(sources) == 3)
        assert dict(scale.named_buffers()).keys() == {"scale", "count"}


UNIT = st.floats(1e-4, 1e4)


class TestRescaling:
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(
        name=st.sampled_from(list(POLICIES)),
        cell_to_group=st.sampled_from([CELL_TO_GROUP, FOUR_GROUPS, [1] * N_CELLS, [3] * N_CELLS]),
        drawn=st.dictionaries(st.integers(0, N_HEADS - 1), UNIT, min_size=1),
    )
    def test_changes_units_of_the_named_heads_and_no_value(self, name, cell_to_group, drawn):
        policy = make_policy(name, cell_to_group)
        units = {head % policy.n_heads: unit for head, unit in drawn.items()}
        before, others, own = behaviour(policy), parameters_but_value_heads(policy), own_scale(policy)
        value_scale = scale_of(policy)
        scale, weight, bias = (t.detach().clone() for t in (value_scale.scale, *policy.value_net.parameters()))
        value_scale.rescale(policy.value_net, th.tensor(list(units)), th.tensor(list(units.values())))
        after = behaviour(policy)
        for actual, expected in zip(after.values, before.values, strict=True):
            th.testing.assert_close(actual / own, expected / own, rtol=1e-5, atol=1e-6)
        th.testing.assert_close(after.others, before.others, rtol=0, atol=0)
        assert_same(parameters_but_value_heads(policy), others)
        for head in range(policy.n_heads):
            if head in units:
                assert value_scale.scale[head].item() == pytest.approx(units[head])
                factor = scale[head].item() / units[head]
                th.testing.assert_close(policy.value_net.weight[head], factor * weight[head])
                th.testing.assert_close(policy.value_net.bias[head], factor * bias[head])
            else:
                assert value_scale.scale[head] == scale[head]
                assert policy.value_net.weight[head].equal(weight[head])
                assert policy.value_net.bias[head].equal(bias[head])

    def test_is_more_than_another_unit(self):
        """Control: a unit that changes without its head changes the values of its group, and of no other."""
        policy = make_policy()
        (before, *_), _ = behaviour(policy)
        scale_of(policy).scale[1] *= 3
        factor = th.where(policy.groups(make_obs()) == 1, 3.0, 1.0).unsqueeze(1)
        th.testing.assert_close(behaviour(policy).values[0], factor * before)

    def test_leaves_the_optimizer_alone(self):
        policy = make_policy()
        before = copy.deepcopy(policy.optimizer.state_dict())
        scale_of(policy).rescale(policy.value_net, th.tensor([0, 2]), th.tensor([5.0, 6.0]))
        for index, state in policy.optimizer.state_dict()["state"].items():
            assert_same(state, before["state"][index])


def learn_all(policy: MlpPolicy, rollouts: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    for returns, heads in rollouts:
        scale_of(policy).update(returns.astype(np.float32), heads, policy.value_net)


def rms(returns: np.ndarray) -> float:
    return math.sqrt(np.mean(np.square(returns, dtype=float)))


@st.composite
def rollouts(draw: st.DrawFn) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns of very different sizes, fewer than would be forgotten; not all groups in all rollouts."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = 10 ** random.uniform(-4, 4, N_HEADS)
    made = []
    for length in draw(st.lists(st.integers(1, 700), min_size=1, max_size=8)):
        present = draw(st.lists(st.integers(0, N_HEADS - 1), min_size=1, unique=True))
        groups = random.choice(present, length)
        made.append((random.normal(1, 1, length) * sizes[groups], groups))
    return made


class TestLearning:
    def test_first_rollout_gives_the_root_mean_square(self):
        policy = make_policy(cell_to_group=FOUR_GROUPS)
        returns, groups = np.array([3.0, -4.0, 0.5, 1000.0]), np.array([0, 0, 1, 2])
        learn_all(policy, [(returns, groups)])
        np.testing.assert_allclose(scale_of(policy).scale, [math.sqrt(12.5), 0.5, 1000.0, UNITS[3]], rtol=1e-6)
        assert scale_of(policy).count.tolist() == [2, 1, 1, 0]

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(made=rollouts())
    def test_all_steps_count_alike_until_there_are_many(self, made):
        assert sum(len(returns) for returns, _ in made) < HALF_LIFE / math.log(2)
        policy = make_policy(cell_to_group=FOUR_GROUPS)
        learn_all(policy, made)
        returns, groups = (np.concatenate(column) for column in zip(*made, strict=True))
        for group in range(N_HEADS):
            own = returns[groups == group]
            assert scale_of(policy).count[group] == len(own)
            expected = rms(own) if len(own) else UNITS[group]
            assert scale_of(policy).scale[group].item() == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("length", [10, 500, 5000, 40_000])
    def test_what_is_old_counts_half_after_the_half_life(self, length):
        """However the steps are divided into rollouts."""
        policy, old, new = make_policy(cell_to_group=FOUR_GROUPS), 3.0, 50.0
        learn_all(policy, [(np.full(100_000, old), np.zeros(100_000, dtype=int))])
        for n in range(length, 2 * HALF_LIFE + 1, length):
            learn_all(policy, [(np.full(length, -new), np.zeros(length, dtype=int))])
            left = 0.5 ** (n / HALF_LIFE)
            assert scale_of(policy).scale[0].item() == pytest.approx(math.sqrt(left * old**2 + (1 - left) * new**2), rel=2e-4)

    # n / (7213 + n) is about 1 - 0.5 ** (n / 5000)
    @pytest.mark.parametrize(("known", "rate"), [(900, 0.1), (7000, 100 / 7100), (7300, 0.013767), (10**6, 0.013767)])
    def test_the_larger_rate_counts(self, known, rate):
        assert HALF_LIFE == 5000
        policy = make_policy(cell_to_group=FOUR_GROUPS)
        scale_of(policy).count[2] = known
        learn_all(policy, [(np.full(100, 11.0), np.full(100, 2))])
        assert scale_of(policy).scale[2].item() ** 2 == pytest.approx((1 - rate) * UNITS[2] ** 2 + rate * 11.0**2, rel=1e-5)
        assert scale_of(policy).count.tolist() == [0, 0, known + 100, 0]

    @settings(max_examples=20, deadline=None, derandomize=True)
    @given(made=rollouts(), cell_to_group=st.sampled_from([CELL_TO_GROUP, [1] * N_CELLS]))
    def test_changes_no_value_and_no_group_without_a_step(self, made, cell_to_group):
        policy = make_policy(cell_to_group=cell_to_group)
        made = [(returns, heads % policy.n_heads) for returns, heads in made]
        before, others, own = behaviour(policy), parameters_but_value_heads(policy), own_scale(policy)
        scale, weight, bias = (t.detach().clone() for t in (scale_of(policy).scale, *policy.value_net.parameters()))
        learn_all(policy, made)
        for actual, expected in zip(behaviour(policy).values, before.values, strict=True):
            th.testing.assert_close(actual / own, expected / own, rtol=1e-5, atol=1e-6)
        assert_same(parameters_but_value_heads(policy), others)
        absent = sorted(set(range(policy.n_heads)) - set(np.concatenate([heads for _, heads in made]).tolist()))
        for actual, expected in zip(
            (scale_of(policy).scale, *policy.value_net.parameters()), (scale, weight, bias), strict=True
        ):
            assert actual[absent].equal(expected[absent])
        assert scale_of(policy).count[absent].tolist() == [0] * len(absent)

    def test_returns_of_zero(self):
        policy, group = make_policy(), np.ones(50, dtype=int)
        before, own = behaviour(policy), own_scale(policy)
        for _ in range(3):
            learn_all(policy, [(np.zeros(50), group)])
            assert scale_of(policy).scale.gt(0).all()
            assert all(tensor.isfinite().all() for tensor in policy.state_dict().values())
            for actual, expected in zip(behaviour(policy).values, before.values, strict=True):
                th.testing.assert_close(actual / own, expected / own, rtol=1e-5, atol=1e-6)
        # and then it gets some
        learn_all(policy, [(np.full(50, 8.0), group)])
        assert scale_of(policy).scale[1].item() == pytest.approx(4.0)
        for actual, expected in zip(behaviour(policy).values, before.values, strict=True):
            th.testing.assert_close(actual / own, expected / own, rtol=1e-5, atol=1e-6)


EQUAL = (1.0,) * N_CELLS
MIXED = (1.0, 1.0, 10.0, 0.1)
N_STEPS, N_ENVS = 32, 4
ROLLOUT = N_STEPS * N_ENVS
OBS_DIMS = {"CartPole": 4, "Pendulum": 3}
TASKS: dict[str, Sequence[Any]] = {"CartPole": FOUR_TASKS, "Pendulum": [{}, {"invert": True}, {"m": 0.5}, {"g": 5.0}]}
NO_EVENTS: dict[str, Any] = dict(merge_kl=None, split_kl=None)


def make_env(scales: Sequence[float], name: str = "CartPole") -> Any:
    tasks = [{**task, "reward_scale": scale} for task, scale in zip(TASKS[name], scales, strict=True)]
    return make_vec_env(f"sb3_grpo/Task{name}-v0", N_ENVS, seed=0, env_kwargs=dict(tasks=tasks))


def make_model(scales: Sequence[float] = EQUAL, name: str = "CartPole", **kwargs: Any) -> GRPO:
    """Values are 0 in the beginning: only rewards have a scale."""
    width = OBS_DIMS[name]
    defaults: dict[str, Any] = dict(
        learning_rate=1e-3,
        n_steps=N_STEPS,
        batch_size=32,
        n_epochs=2,
        seed=0,
        device="cpu",
        policy_kwargs=dict(net_arch=[16]),
        router="one_hot",
        router_kwargs=dict(columns=(width, width + N_CELLS)),
        normalize_advantage="group",
        group_coef=0.0,
    )
    return GRPO("MlpPolicy", make_env(scales, name), **{**defaults, **NO_EVENTS, **kwargs})


class Returns(BaseCallback):
    """Keeps all returns, and the task of each."""

    def _on_training_start(self) -> None:
        self.returns: list[np.ndarray] = []
        self.tasks: list[np.ndarray] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.locals["rollout_buffer"]
        self.returns.append(buffer.returns.ravel().copy())
        self.tasks.append(buffer.observations[..., -N_CELLS:].argmax(axis=-1).ravel())


@pytest.mark.parametrize("name", ["CartPole", "Pendulum"])
@pytest.mark.parametrize("n_groups", [4, 1])
def test_training_learns_the_scale_of_its_returns(name, n_groups):
    seen = Returns()
    model = make_model(MIXED, name, n_groups=n_groups)
    for n_rollouts in (1, 7):
        model.learn(n_rollouts * ROLLOUT, callback=seen, reset_num_timesteps=False)
        if n_rollouts == 1:
            first_returns, first_tasks = seen.returns[0], seen.tasks[0]
    returns = np.concatenate([first_returns, *seen.returns])
    groups = np.concatenate([first_tasks, *seen.tasks]) if n_groups > 1 else np.zeros(len(returns), dtype=int)
    assert len(returns) == 8 * ROLLOUT
    assert scale_of(model.policy).count.tolist() == np.bincount(groups, minlength=n_groups).tolist()
    expected = [rms(returns[groups == group]) for group in range(n_groups)]
    np.testing.assert_allclose(scale_of(model.policy).scale, expected, rtol=1e-5)


UPDATES = 16


@cache
def trained(scales: tuple[float, ...], name: str = "CartPole", off: bool = False, **kwargs: Any) -> Any:
    """
    :param off: value heads stay in the units of the rewards
    """
    model = make_model(scales, name, **kwargs)
    if off:
        # all units stay 1
        scale_of(model.policy).update = lambda *_: None  # type: ignore[method-assign]  # the test's own
    return model.learn(UPDATES * ROLLOUT)


def distance(one: GRPO, other: GRPO) -> float:
    """Largest difference of a parameter."""
    pairs = zip(one.policy.parameters(), other.policy.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def values_of(model: GRPO, name: str = "CartPole") -> np.ndarray:
    """
    :return: values of the same observations in each task, shape ``(N_CELLS, n)``
    """
    generator = th.Generator().manual_seed(0)
    bodies = th.randn(20, OBS_DIMS[name], generator=generator)
    obs = [th.cat([bodies, th.eye(N_CELLS)[task].expand(20, -1)], dim=1) for task in range(N_CELLS)]
    with th.no_grad():
        return np.stack([model.policy.predict_values(part).numpy().ravel() for part in obs])


# Equal within rounding: 3e-7 at most in all cases below
CLOSE = 2e-6
# What a parameter differs by where something depends on the scale, at least
FAR = 1e-3
OPTIONS: dict[str, dict[str, Any]] = {
    "four groups": dict(),
    "clipped values": dict(clip_range_vf=0.01),
    "one group": dict(n_groups=1),
    "one group of four": dict(n_groups=1, max_groups=4),
}


class TestScaleOfRewards:
    """What is learnt does not depend on it."""

    def check(self, scaled: GRPO, plain: GRPO, scales: Sequence[float], name: str = "CartPole") -> None:
        assert distance(scaled, plain) < CLOSE
        units = np.array(scales)[:, np.newaxis]
        expected = units * values_of(plain, name)
        np.testing.assert_allclose(values_of(scaled, name) / units, expected / units, rtol=1e-4, atol=1e-5)
        assert np.abs(expected / units).max() > 0.1

    @pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
    @pytest.mark.parametrize("scale", [1e6, 1e-3])
    def test_does_not_matter(self, scale, options):
        scales = (scale,) * N_CELLS
        self.check(trained(scales, **options), trained(EQUAL, **options), scales)

    @pytest.mark.parametrize("scale", [1000.0, 0.01])
    def test_does_not_matter_for_box_actions(self, scale):
        scales = (scale,) * N_CELLS
        self.check(trained(scales, "Pendulum"), trained(EQUAL, "Pendulum"), scales, "Pendulum")

    @pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
    @pytest.mark.parametrize("scale", [2.0**20])
    def test_does_not_matter_to_the_last_bit(self, scale, options):
        """Powers of two are not rounded."""
        scaled, plain = trained((scale,) * N_CELLS, **options), trained(EQUAL, **options)
        assert distance(scaled, plain) == 0
        np.testing.assert_array_equal(values_of(scaled), scale * values_of(plain))
        assert scale_of(plain.policy).count.gt(0).all()
        assert scale_of(scaled.policy).scale.equal(scale * scale_of(plain.policy).scale)

    @pytest.mark.parametrize("options", [OPTIONS["four groups"], OPTIONS["clipped values"]])
    @pytest.mark.parametrize("scales", [MIXED, (1e4, 1.0, 0.01, 30.0)])
    def test_of_single_tasks_does_not_matter(self, scales, options):
        self.check(trained(scales, **options), trained(EQUAL, **options), scales)

    @pytest.mark.parametrize("scale", [1000.0, 0.01])
    def test_does_not_matter_to_merges(self, scale):
        """Neither to what is merged when, nor to what is learnt afterwards."""
        scales, options = (scale,) * N_CELLS, dict(max_groups=4, merge_kl=0.5, regroup_freq=1, regroup_warmup=2)
        scaled, plain = trained(scales, **options), trained(EQUAL, **options)
        assert len(plain.regroup_history) == 3
        for actual, expected in zip(scaled.regroup_history, plain.regroup_history, strict=True):
            assert actual._replace(kl=0.0) == expected._replace(kl=0.0)
            assert actual.kl == pytest.approx(expected.kl, rel=1e-3, abs=1e-6)
        self.check(scaled, plain, scales)

    @pytest.mark.parametrize("scales", [(0.01,) * N_CELLS, MIXED])
    @pytest.mark.parametrize("options", [dict(normalize_advantage=True), dict(normalize_advantage=False), dict(off=True)])
    def test_matters_without_units(self, scales, options):
        """Control; the last case is about values only: advantages are normalised by group."""
        assert distance(trained(scales, **options), trained(EQUAL, **options)) > FAR

    def test_of_single_tasks_matters_within_one_group(self):
        """Control: a group has one unit."""
        assert distance(trained(MIXED, n_groups=1), trained(EQUAL, n_groups=1)) > FAR

    def test_training_moves_parameters(self):
        """Control: that nothing happens does not depend on the scale either."""
        assert distance(trained(EQUAL), make_model()) > 10 * FAR
        assert distance(trained(EQUAL), trained(EQUAL, seed=1)) > 10 * FAR
        assert distance(trained(EQUAL), trained(EQUAL, **OPTIONS["clipped values"])) > 10 * FAR


@pytest.mark.parametrize("pay", [(0.0, 1.0), (0.0, 0.0)])
def test_training_where_a_task_pays_nothing(pay):
    env = DummyVecEnv([lambda: CountingEnv(pay=pay)] * 2)
    kwargs: dict[str, Any] = dict(n_steps=32, batch_size=32, n_epochs=2, seed=0, policy_kwargs=dict(net_arch=[8]))
    grouping: dict[str, Any] = dict(router="one_hot", router_kwargs=dict(columns=(1, 3)), normalize_advantage="group")
    model = GRPO("MlpPolicy", env, **kwargs, **grouping, **NO_EVENTS, device="cpu")
    model.learn(640)
    policy = model.policy
    assert all(tensor.isfinite().all() for tensor in policy.state_dict().values())
    assert scale_of(policy).scale.gt(0).all()
    assert scale_of(policy).count.gt(0).all()
    with th.no_grad():
        values = policy.predict_values(th.tensor([[0.1, 1.0, 0.0]])).item()
    assert values == 0


def pooled(share: float, *units: float) -> float:
    return math.sqrt(share * units[0] ** 2 + (1 - share) * units[1] ** 2)


class TestMerge:
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(
        name=st.sampled_from(list(POLICIES)),
        pair=st.permutations([0, 1, 2]),
        share=st.floats(0, 1),
        units=st.tuples(UNIT, UNIT),
        all_heads=st.booleans(),
    )
    def test_value_is_the_average_of_both_heads_values(self, name, pair, share, units, all_heads):
        policy, (keep, dropped, other) = make_policy(name, all_heads=all_heads), pair
        value_scale = scale_of(policy)
        value_scale.scale[[keep, dropped]] = th.tensor(units)
        value_scale.count.copy_(th.tensor([100.0, 30.0, 7.0, 0.0])[: policy.n_heads])
        heads, count, scale = heads_of(policy), value_scale.count.tolist(), value_scale.scale.clone()
        before = behaviour(policy).values
        each = [values_by_hand(policy, all_of(head)) for head in (keep, dropped)]
        expected = share * each[0] + (1 - share) * each[1]
        policy.regroup(Merge(keep, dropped, share, 0.0))
        unit, place = pooled(share, *units), policy.grouping.heads.index
        assert policy.grouping.heads == ([0, 1, 2, 3] if all_heads else sorted({0, 1, 2} - {dropped}))
        assert value_scale.scale[place(keep)].item() == pytest.approx(unit, rel=1e-5)
        assert value_scale.count[place(keep)] == count[keep] + count[dropped]
        for head in (other, 3) if all_heads else (other,):
            assert (value_scale.scale[place(head)], value_scale.count[place(head)]) == (scale[head], count[head])
        merged = heads != other
        for actual, old in zip(behaviour(policy).values, before, strict=True):
            values = actual.numpy().ravel()
            np.testing.assert_allclose(values[merged] / unit, expected[merged] / unit, rtol=1e-5, atol=1e-5)
            th.testing.assert_close(actual[~merged], old[~merged], rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
    def test_of_the_last_two_groups(self, share):
        policy = make_policy(cell_to_group=[0, 1, 1, 0])
        expected = share * values_by_hand(policy, all_of(1)) + (1 - share) * values_by_hand(policy, all_of(0))
        policy.regroup(Merge(1, 0, share, 0.0))
        assert policy.grouping.heads == [1]
        for values in behaviour(policy).values:
            np.testing.assert_allclose(values.numpy().ravel(), expected, rtol=1e-4, atol=1e-4)

    def test_heads_without_a_common_unit_have_another_average(self):
        """Control: the average of weights is that of values only where the units are the same."""
        policy = make_policy()
        expected = 0.5 * values_by_hand(policy, all_of(0)) + 0.5 * values_by_hand(policy, all_of(1))
        average_heads(policy, policy.n_heads, 0, 1, 0.5)
        scale_of(policy).scale[0] = pooled(0.5, *UNITS[:2])
        error = np.abs(values_by_hand(policy, all_of(0)) - expected)
        assert np.median(error) > 1

    def test_unit_is_that_of_all_steps(self):
        """As if the two had been one group from the start."""
        random = np.random.default_rng(0)
        policy, groups = make_policy(), random.integers(0, 3, 300)
        returns = random.normal(0, 1, 300) * np.array([1.0, 100.0, 30.0])[groups]
        learn_all(policy, [(returns, groups)])
        n_both = (groups != 2).sum()
        policy.regroup(Merge(1, 0, float((groups == 1).sum() / n_both), 0.0))
        assert policy.grouping.heads == [1, 2]
        assert scale_of(policy).scale[0].item() == pytest.approx(rms(returns[groups != 2]), rel=1e-5)
        assert scale_of(policy).count[0] == n_both

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(share=st.floats(0, 1), unit=st.sampled_from([1.0, 20.0]))
    def test_of_heads_with_the_same_unit_does_not_change_it(self, share, unit):
        policy = make_policy()
        scale_of(policy).scale.fill_(unit)
        policy.regroup(Merge(0, 1, share, 0.0))
        np.testing.assert_allclose(scale_of(policy).scale, [unit] * 2, rtol=1e-6)
        if unit == 1:
            # what has not been scaled is not scaled by a merge, to the last bit
            assert scale_of(policy).scale.tolist() == [1.0] * 2


class TestSplit:
    @pytest.mark.parametrize("all_heads", [False, True])
    @pytest.mark.parametrize("name", list(POLICIES))
    def test_copies_the_unit_and_changes_no_value(self, name, all_heads):
        policy = make_policy(name, all_heads=all_heads)
        scale_of(policy).count.copy_(th.tensor([100.0, 30.0, 7.0, 0.0])[: policy.n_heads])
        before = behaviour(policy)
        policy.regroup(Split(2, 3, [3], 1.0))
        assert policy.grouping.active == policy.grouping.heads == [0, 1, 2, 3]
        assert scale_of(policy).scale.tolist() == [*UNITS[:3], UNITS[2]]
        assert scale_of(policy).count.tolist() == [100, 30, 7, 7]
        th.testing.assert_close(behaviour(policy), before, rtol=1e-6, atol=1e-6)

    def test_of_the_only_group(self):
        policy = make_policy(cell_to_group=[1] * N_CELLS)
        scale_of(policy).count[0] = 5
        before = behaviour(policy)
        policy.regroup(Split(1, 0, [2, 3], 1.0))
        assert policy.grouping.heads == [0, 1]
        assert scale_of(policy).scale.tolist() == [UNITS[1]] * 2
        assert scale_of(policy).count.tolist() == [5, 5]
        th.testing.assert_close(behaviour(policy), before, rtol=1e-5, atol=1e-5)

    def test_lets_units_go_their_own_ways(self):
        policy = make_policy()
        scale_of(policy).count[2] = 100
        policy.regroup(Split(2, 3, [3], 1.0))
        learn_all(policy, [(np.full(100, 30.0), np.full(100, 3))])
        expected = math.sqrt((UNITS[2] ** 2 + 30.0**2) / 2)
        np.testing.assert_allclose(scale_of(policy).scale, [*UNITS[:3], expected], rtol=1e-6)


def regrouped(scales: Sequence[float] = MIXED, **kwargs: Any) -> GRPO:
    """A model whose groups merge and split between updates."""
    model = make_model(scales, n_groups=4, max_groups=5, **kwargs)
    for event in (Merge(0, 2, 0.25, 0.0), Split(0, 4, [2], 1.0), Merge(1, 3, 0.5, 0.0)):
        model.learn(2 * ROLLOUT, reset_num_timesteps=False)
        model.policy.regroup(event)
    return model.learn(2 * ROLLOUT, reset_num_timesteps=False)


def optimizer_tensors(model: GRPO) -> dict[str, th.Tensor]:
    state = model.policy.optimizer.state_dict()["state"]
    return {f"{number}, {name}": value for number, entry in state.items() for name, value in entry.items()}


def test_scale_of_rewards_does_not_matter_to_groups_that_merge_and_split() -> None:
    scaled, plain = regrouped((1024.0,) * N_CELLS), regrouped(EQUAL)
    assert distance(scaled, plain) == 0
    np.testing.assert_array_equal(values_of(scaled), 1024 * values_of(plain))
    assert distance(regrouped((1000.0,) * N_CELLS), plain) < CLOSE


class TestSaving:
    @pytest.fixture
    def saved(self, tmp_path):
        model = regrouped()
        model.save(tmp_path / "model")
        return model, lambda **kwargs: GRPO.load(tmp_path / "model", device="cpu", **kwargs)

    def test_keeps_units_and_values(self, saved):
        model, load = saved
        loaded = load()
        for name in ("scale", "count"):
            assert getattr(scale_of(loaded.policy), name).equal(getattr(scale_of(model.policy), name))
        assert len(set(scale_of(model.policy).scale.tolist())) == 3
        np.testing.assert_array_equal(values_of(loaded), values_of(model))
        # control: they are not known without their units
        scale_of(loaded.policy).scale.fill_(1.0)
        assert np.abs(values_of(loaded) - values_of(model)).max() > 1

    @pytest.mark.parametrize("normalize_advantage", [True, False])
    def test_values_are_the_same_when_units_are_no_longer_learnt(self, saved, normalize_advantage):
        model, load = saved
        loaded = load(normalize_advantage=normalize_advantage, env=make_env(MIXED))
        np.testing.assert_array_equal(values_of(loaded), values_of(model))
        loaded.learn(2 * ROLLOUT, reset_num_timesteps=False)
        assert scale_of(loaded.policy).scale.equal(scale_of(model.policy).scale)
        assert scale_of(loaded.policy).count.equal(scale_of(model.policy).count)
        assert not np.array_equal(values_of(loaded), values_of(model))

    def test_units_are_learnt_after_training_without_them(self, tmp_path):
        model, seen = make_model(MIXED, normalize_advantage=True).learn(2 * ROLLOUT), Returns()
        model.save(tmp_path / "model")
        loaded = GRPO.load(tmp_path / "model", env=make_env(MIXED), device="cpu", normalize_advantage="group")
        np.testing.assert_array_equal(values_of(loaded), values_of(model))
        loaded.learn(ROLLOUT, callback=seen, reset_num_timesteps=False)
        (returns,), (tasks,) = seen.returns, seen.tasks
        for task in range(N_CELLS):
            own = returns[tasks == task]
            expected = rms(own) if len(own) else 1.0
            assert scale_of(loaded.policy).scale[task].item() == pytest.approx(expected, rel=1e-5)

    def test_policy_alone_has_its_units(self, saved, tmp_path):
        model, _ = saved
        model.policy.save(tmp_path / "policy")
        loaded = MlpPolicy.load(tmp_path / "policy")
        obs = make_env(EQUAL).reset()
        np.testing.assert_array_equal(
            loaded.predict_values(th.as_tensor(obs)).detach(), model.policy.predict_values(th.as_tensor(obs)).detach()
        )

    def test_training_goes_on_as_if_nothing_had_happened(self, saved):
        model, load = saved
        before = {name: value.clone() for name, value in model.policy.state_dict().items()}
        models = (model, load())
        for each in models:
            each.set_env(make_env(MIXED))
            each.set_random_seed(3)
            each.learn(3 * ROLLOUT, reset_num_timesteps=False)
        continued, resumed = models
        assert_same(dict(resumed.policy.state_dict()), dict(continued.policy.state_dict()))
        assert_same(optimizer_tensors(resumed), optimizer_tensors(continued))
        assert not scale_of(continued.policy).scale.equal(before["value_scale.scale"])

    def test_parameters_carry_their_units(self, saved):
        model, _ = saved
        other = make_model(MIXED, max_groups=5)
        other.set_parameters(model.get_parameters())
        np.testing.assert_array_equal(values_of(other), values_of(model))

    def test_parameters_without_units_predict_the_same(self, saved):
        """Where values have no unit, heads are multiplied by that which they had."""
        model, _ = saved
        other = make_model(MIXED, max_groups=5, normalize_advantage=True)
        parameters: Any = model.get_parameters()
        other.set_parameters(parameters)
        assert other.policy.value_scale is None
        np.testing.assert_allclose(values_of(other), values_of(model), rtol=1e-4, atol=1e-5)

    def test_parameters_that_had_no_units_predict_the_same(self):
        model, other = make_model(normalize_advantage=True).learn(ROLLOUT), make_model().learn(2 * ROLLOUT)
        parameters: Any = model.get_parameters()
        other.set_parameters(parameters)
        assert scale_of(other.policy).scale.tolist() == [1.0] * N_CELLS
        np.testing.assert_array_equal(values_of(other), values_of(model))

    def test_copies_have_their_own_units(self, saved):
        model, _ = saved
        copied = copy.deepcopy(model.policy)
        model.learn(ROLLOUT, reset_num_timesteps=False)
        assert not scale_of(copied).scale.equal(scale_of(model.policy).scale)


class TestOff:
    @pytest.mark.parametrize("normalize_advantage", [True, False])
    def test_nothing_has_a_unit(self, normalize_advantage):
        model = regrouped(normalize_advantage=normalize_advantage)
        assert model.policy.value_scale is None
        assert not any("value_scale" in name for name in (*model.policy.state_dict(), *model.training_state()))
        # control
        scaled = regrouped()
        assert "value_scale.scale" in scaled.policy.state_dict()
        assert "value_scale.count" in scaled.training_state()

    @pytest.mark.parametrize(("normalize_advantage", "asked"), [(True, False), (False, False), ("group", True)])
    def test_nobody_asks(self, monkeypatch, normalize_advantage, asked):
        calls = []
        for name in ("update", "normalize", "at"):
            original: Callable[..., Any] = getattr(ValueScale, name)

            def spy(*args: Any, original: Callable[..., Any] = original, name: str = name) -> Any:
                calls.append(name)
                return original(*args)

            monkeypatch.setattr(ValueScale, name, spy)
        make_model(normalize_advantage=normalize_advantage).learn(2 * ROLLOUT)
        assert set(calls) == ({"update", "normalize", "at"} if asked else set())
        assert calls.count("update") == (2 if asked else 0)


class TestUpdates:
    """However the update is computed."""

    def stepper(self, model: GRPO) -> type:
        return type(make_eager_update(model.policy, PPOObjective(0.0, 0.5, False), 0.5, None).stepper)

    @pytest.mark.parametrize("kind", ["flat", "compiled"])
    def test_agree(self, kind, monkeypatch, capsys):
        # the same function, not compiled: the test is about its logic
        monkeypatch.setattr(th, "compile", lambda function, **_: function)
        kwargs: dict[str, Any] = dict(clip_range_vf=0.2)
        model = regrouped(**kwargs, compile=kind == "compiled")
        assert self.stepper(model) is FlatStepper
        assert ("compiles" in capsys.readouterr().out) == (kind == "compiled")
        monkeypatch.setattr("sb3_grpo.update.takes_plain_steps", lambda policy: False)
        eager = regrouped(**kwargs)
        assert self.stepper(eager) is OptimizerStepper
        assert_close(model, eager)

    def test_agree_when_one_group_is_left(self, monkeypatch):
        """The only group is trained in the shapes of one head, or among the others that a compiled model holds."""
        monkeypatch.setattr(th, "compile", lambda function, **_: function)
        models = []
        for compile_ in (False, True):
            model = make_model(MIXED, n_groups=2, max_groups=2, compile=compile_).learn(2 * ROLLOUT)
            model.policy.regroup(Merge(1, 0, 0.5, 0.0))
            assert model.policy.grouping.heads == ([0, 1] if compile_ else [1])
            model.learn(3 * ROLLOUT, reset_num_timesteps=False)
            models.append(model)
        assert self.stepper(models[0]) is OptimizerStepper
        np.testing.assert_allclose(values_of(models[0]), values_of(models[1]), rtol=1e-4, atol=1e-4)
        assert_close(*models)

    def test_compiled_equals_flat(self, traced_calls):
        """The unit changes, and the graph sees it."""
        flat, compiled = (regrouped(clip_range_vf=0.2, compile=compile_) for compile_ in (False, True))
        # the update in all of the 8 rollouts, acting from the second on
        assert traced_calls == [8 * 2 * ROLLOUT // 32, 7 * N_STEPS]
        assert_close(flat, compiled)


@pytest.fixture(scope="module")
def model():
    return regrouped()


class TestLoss:
    """Of one minibatch, in numpy."""

    CLIP_RANGES = (None, 0.05, 0.3)

    def batch(self, model: GRPO, n: int = 64) -> Rollout:
        """Old values and returns near the values, at distances in units of their groups."""
        generator = th.Generator().manual_seed(1)
        bodies, tasks = th.randn(n, OBS_DIMS["CartPole"], generator=generator), th.arange(n) % N_CELLS
        obs = th.cat([bodies, th.eye(N_CELLS)[tasks]], dim=1)
        with th.no_grad():
            values, heads = model.policy.predict_values(obs).flatten(), model.policy.grouping.heads_at(obs)
        scale = model.policy.value_scale
        units = th.ones(n) if scale is None else scale.at(heads)
        old_values, returns = (values + size * units * th.randn(n, generator=generator) for size in (0.2, 1.0))
        zeros = th.zeros(n)
        return Rollout(obs, zeros, old_values, zeros, zeros, returns, heads, th.ones(n))

    def loss_by_hand(
        self, model: GRPO, batch: Rollout, clip_range_vf: float | None, in_units: bool = True
    ) -> tuple[float, np.ndarray]:
        """
        :param in_units: whether values are clipped in units of their group, as they should be
        :return: value loss, and its gradient with respect to the biases of the value heads
        """
        policy, heads = model.policy, batch.heads.numpy()
        assert isinstance(batch.observations, th.Tensor)
        outputs, units = outputs_by_hand(policy, batch.observations, heads), double(scale_of(policy).scale)[heads]
        total, gradient = 0.0, np.zeros(policy.n_heads)
        for output, unit, head, old, target in zip(
            outputs, units, heads, double(batch.old_values), double(batch.returns), strict=True
        ):
            bound = math.inf if clip_range_vf is None else clip_range_vf * (unit if in_units else 1.0)
            value = min(max(output * unit, old - bound), old + bound)
            total += ((value - target) / unit) ** 2 / len(heads)
            # a value that is clipped does not depend on the head, any other one does in its unit
            gradient[head] += 2 * (value - target) / unit / len(heads) if value == output * unit else 0.0
        return total, gradient

    @pytest.mark.parametrize("clip_range_vf", CLIP_RANGES)
    def test_is_in_units_of_the_groups(self, model, clip_range_vf):
        batch = self.batch(model)
        terms = PPOObjective(0.0, 0.5, False)(model.policy, batch, 0.2, clip_range_vf)
        loss, gradient = self.loss_by_hand(model, batch, clip_range_vf)
        assert terms.value_loss.item() == pytest.approx(loss, rel=1e-5)
        (actual,) = th.autograd.grad(terms.value_loss, [model.policy.value_net.bias])
        np.testing.assert_allclose(actual, gradient, rtol=1e-4, atol=1e-6)
        assert np.abs(gradient).max() > 0.01

    def test_clipping_depends_on_the_unit(self, model):
        """Control: some values are clipped and some are not, and not those that would be in units of the rewards."""
        batch = self.batch(model)
        losses = [self.loss_by_hand(model, batch, clip_range_vf)[0] for clip_range_vf in self.CLIP_RANGES]
        assert len({round(loss, 3) for loss in losses}) == 3
        for loss, clip_range_vf in zip(losses[1:], self.CLIP_RANGES[1:], strict=True):
            assert self.loss_by_hand(model, batch, clip_range_vf, in_units=False)[0] != pytest.approx(loss, rel=1e-3)

    @pytest.mark.parametrize("clip_range_vf", CLIP_RANGES)
    def test_without_units_is_that_of_ppo(self, clip_range_vf):
        model = regrouped(normalize_advantage=False)
        batch = self.batch(model)
        assert isinstance(batch.observations, th.Tensor)
        values = outputs_by_hand(model.policy, batch.observations, batch.heads.numpy())
        old, returns = double(batch.old_values), double(batch.returns)
        if clip_range_vf is not None:
            values = old + np.clip(values - old, -clip_range_vf, clip_range_vf)
        terms = PPOObjective(0.0, 0.5, False)(model.policy, batch, 0.2, clip_range_vf)
        assert terms.value_loss.item() == pytest.approx(np.mean((values - returns) ** 2), rel=1e-5)
