"""Groups merge and split while a model learns: nothing but the groups changes, and hidden types are found."""

import csv
import math
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from tiny_policies import make_scrambled_policy

from sb3_grpo import GRPO, MlpPolicy, RegroupCallback, RegroupEvent
from sb3_grpo.distributions import make_action_distribution
from sb3_grpo.heads import HEAD_DIMS, split_heads
from sb3_grpo.probes import Probes
from sb3_grpo.regroup_plan import Merge, Split
from sb3_grpo.regrouping import LatentRecorder, head_outputs

N_CELLS, MAX_GROUPS = 6, 4
N_STEPS, N_ENVS = 32, 4
ROLLOUT = N_STEPS * N_ENVS
ENVS = {"cartpole": "sb3_grpo/TaskCartPole-v0", "pendulum": "sb3_grpo/TaskPendulum-v0"}
OBS_DIMS = {"cartpole": 4, "pendulum": 3}
# Merge whatever is old enough and has been seen, split nothing
MERGE_ALL: dict[str, Any] = dict(merge_kl=1e6, split_kl=None)
GSDE: dict[str, Any] = dict(name="pendulum", use_sde=True, sde_sample_freq=8)


def one_task_each(name: str) -> VecEnv:
    """Environment ``i`` always plays task ``i``: all cells get the same number of steps."""
    tasks = [dict(invert=i % 2 == 1) for i in range(N_ENVS)]
    return DummyVecEnv([partial(gym.make, ENVS[name], tasks=tasks, task=i) for i in range(N_ENVS)])


def make_model(name: str = "cartpole", **kwargs: Any) -> Any:
    """Four cells, two groups, two heads to spare."""
    width = OBS_DIMS[name]
    defaults: dict[str, Any] = dict(
        n_steps=N_STEPS,
        batch_size=32,
        n_epochs=2,
        seed=0,
        device="cpu",
        policy_kwargs=dict(net_arch=[16]),
        n_groups=2,
        max_groups=4,
        router="one_hot",
        router_kwargs=dict(columns=(width, width + N_ENVS)),
        regroup_freq=1,
        regroup_warmup=0,
    )
    return GRPO("MlpPolicy", one_task_each(name), **{**defaults, **kwargs})


def cells_of(model: Any, group: int) -> list[int]:
    return (model.policy.grouping.cell_to_group == group).nonzero().flatten().tolist()


class Scripted(RegroupCallback):
    """
    Events at given times; afterwards what the measurement says.

    :param script: events by the number of rollouts before them
    """

    def __init__(self, script: dict[int, Merge | Split], **kwargs: Any):
        super().__init__(**kwargs)
        self.script, self.last = dict(script), max(script)

    def _on_training_start(self) -> None:
        super()._on_training_start()
        model: Any = self.model
        own_plan = type(model.regrouper).plan

        def plan(*args: Any) -> list[Merge | Split]:
            now = self.num_timesteps // ROLLOUT
            if now > self.last:
                return own_plan(model.regrouper, *args)
            return [self.script.pop(now)] if now in self.script else []

        model.regrouper.plan = plan


class TestCallback:
    """Who calls it, and how often."""

    ROLLOUTS = 3

    @pytest.fixture
    def starts(self, monkeypatch):
        """The callbacks that heard of each start of a rollout."""
        heard: list[RegroupCallback] = []

        def hear(callback: RegroupCallback) -> None:
            heard.append(callback)

        monkeypatch.setattr(RegroupCallback, "_on_rollout_start", hear)
        return heard

    class Counting(BaseCallback):
        def _on_step(self) -> bool:
            return True

    @pytest.mark.parametrize("form", ["none", "single", "list", "function", "empty list", "CallbackList"])
    def test_is_added_beside_any_other(self, starts, form):
        one, other, calls = self.Counting(), self.Counting(), []

        def function(locals_: dict[str, Any], globals_: dict[str, Any]) -> bool:
            calls.append(locals_)
            return True

        callbacks: dict[str, Any] = {
            "none": None,
            "single": one,
            "list": [one, other],
            "function": function,
            "empty list": [],
            "CallbackList": CallbackList([one, other]),
        }
        make_model().learn(self.ROLLOUTS * ROLLOUT, callback=callbacks[form])
        assert len(starts) == self.ROLLOUTS
        assert len(set(map(id, starts))) == 1
        steps = self.ROLLOUTS * N_STEPS
        assert one.n_calls == (steps if form in ("single", "list", "CallbackList") else 0)
        assert other.n_calls == (steps if form in ("list", "CallbackList") else 0)
        assert len(calls) == (steps if form == "function" else 0)

    @pytest.mark.parametrize("form", ["single", "list", "CallbackList", "nested"])
    def test_is_not_added_twice(self, starts, form):
        own, other = RegroupCallback(), self.Counting()
        callbacks: dict[str, Any] = {
            "single": own,
            "list": [other, own],
            "CallbackList": CallbackList([other, own]),
            "nested": [other, CallbackList([CallbackList([own])])],
        }
        make_model().learn(self.ROLLOUTS * ROLLOUT, callback=callbacks[form])
        assert starts == [own] * self.ROLLOUTS
        assert other.n_calls == (0 if form == "single" else self.ROLLOUTS * N_STEPS)

    @pytest.mark.parametrize("options", [dict(merge_kl=None, split_kl=None), dict(n_groups=1, max_groups=1)])
    def test_is_not_added_where_groups_cannot_change(self, starts, options):
        make_model(**options).learn(2 * ROLLOUT)
        assert starts == []

    @pytest.mark.parametrize("options", [dict(merge_kl=None), dict(split_kl=None)])
    def test_is_added_where_they_can_only_merge_or_only_split(self, starts, options):
        make_model(**options).learn(2 * ROLLOUT)
        assert len(starts) == 2

    @pytest.mark.parametrize("options", [dict(merge_kl=None, split_kl=None), dict(n_groups=1, max_groups=1)])
    def test_own_one_does_nothing_where_groups_cannot_change(self, options):
        model = make_model(**options).learn(2 * ROLLOUT, callback=RegroupCallback())
        assert model.regroup_history == []

    def test_is_added_again_when_learning_continues(self, starts):
        model = make_model().learn(ROLLOUT)
        model.learn(ROLLOUT, reset_num_timesteps=False)
        assert len(starts) == 2


POLICIES: dict[str, tuple[spaces.Space[Any], dict[str, Any]]] = {
    "discrete": (spaces.Discrete(4), {}),
    "box": (spaces.Box(-1, 1, (2,)), {}),
    "multi_discrete": (spaces.MultiDiscrete([2, 3]), {}),
    "multi_binary": (spaces.MultiBinary(3), {}),
    "gsde": (spaces.Box(-1, 1, (2,)), dict(use_sde=True)),
    "gsde, one std": (spaces.Box(-1, 1, (2,)), dict(use_sde=True, full_std=False)),
    "gsde, squashed": (spaces.Box(-1, 1, (2,)), dict(use_sde=True, squash_output=True)),
}


def make_policy(action_space: spaces.Space[Any], seed: int = 0, **kwargs: Any) -> MlpPolicy:
    given = {"net_arch": [16], "n_groups": 2, "max_groups": MAX_GROUPS, **kwargs}
    return make_scrambled_policy(action_space, N_CELLS, seed, **given)


@pytest.fixture(params=POLICIES.values(), ids=list(POLICIES))
def policy(request):
    action_space, kwargs = request.param
    return make_policy(action_space, **kwargs)


def make_obs(n: int = 60) -> th.Tensor:
    generator = th.Generator().manual_seed(0)
    cells = th.arange(n) % N_CELLS
    return th.cat([th.randn(n, 2, generator=generator), th.nn.functional.one_hot(cells, N_CELLS)], dim=1)


class Behaviour(NamedTuple):
    """All that a policy says about some observations."""

    modes: th.Tensor
    values: th.Tensor
    log_prob: th.Tensor
    entropy: th.Tensor | None


def behaviour(policy: Any) -> Behaviour:
    obs = make_obs()
    policy.action_space.seed(0)
    actions = th.as_tensor(np.stack([policy.action_space.sample() for _ in obs])).float()
    with th.no_grad():
        modes = policy.get_distribution(obs).get_actions(deterministic=True)
        return Behaviour(modes, policy.predict_values(obs), *policy.evaluate_actions(obs, actions)[1:])


def distributions(policy: Any, groups: th.Tensor) -> Any:
    """Of all actions, by the heads of these groups."""
    return params_of(policy, policy.latent_pi(make_obs()), groups)


def params_of(policy: Any, latent: th.Tensor, groups: th.Tensor) -> Any:
    """Distributions of the actions at latent vectors, by the heads of these groups."""
    family = make_action_distribution(policy.action_space, use_sde=False)
    every, chosen = th.arange(len(groups)), th.tensor([policy.grouping.heads.index(group) for group in groups.tolist()])
    with th.no_grad():
        outputs, log_std = head_outputs(policy, latent, list(range(policy.n_heads)))
    return family.params(outputs[every, chosen], None if log_std is None else log_std[every, chosen])


def heads(policy: Any) -> dict[str, dict[int, th.Tensor]]:
    """Weights and moments of the head of each group."""
    entries = {}
    for name, parameter in policy.named_parameters():
        if name in HEAD_DIMS:
            entries[name] = parameter.detach()
            state = policy.optimizer.state[parameter]
            entries |= {f"{name}, {key}": state[key] for key in ("exp_avg", "exp_avg_sq")}
    dims = {name: HEAD_DIMS[name.split(",")[0]] for name in entries}
    separate = {name: split_heads(value, dims[name], policy.n_heads).clone() for name, value in entries.items()}
    return {name: dict(zip(policy.grouping.heads, value, strict=True)) for name, value in separate.items()}


def trunk(policy: Any) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in policy.state_dict().items() if name.split(".")[0] == "mlp_extractor"}


class TestSplit:
    def test_changes_nothing_that_the_policy_does(self, policy):
        before, cells = behaviour(policy), (policy.grouping.cell_to_group == 1).nonzero().flatten().tolist()
        policy.regroup(Split(1, 3, cells[1:], 1.0))
        assert policy.grouping.active == [0, 1, 3]
        assert policy.groups(make_obs()[cells]).tolist() == [1, 3, 3]
        after = behaviour(policy)
        # products of other shapes round differently
        th.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)

    def test_of_the_only_group_changes_nothing_but_the_shape_of_products(self):
        for action_space, kwargs in POLICIES.values():
            policy = make_policy(action_space, **kwargs, n_groups=1)
            assert policy.n_heads == 1
            before = behaviour(policy)
            policy.regroup(Split(0, 1, [2, 3], 1.0))
            assert policy.n_heads == 2
            th.testing.assert_close(behaviour(policy), before, rtol=1e-5, atol=1e-6)

    def test_lets_heads_go_their_own_ways(self, policy):
        before = behaviour(policy)
        policy.regroup(Split(1, 3, [(policy.grouping.cell_to_group == 1).nonzero().flatten().tolist()[0]], 1.0))
        with th.no_grad():
            split_heads(policy.value_net.weight, 0, policy.n_heads)[policy.grouping.heads.index(3)] += 1
        changed = (behaviour(policy).values != before.values).flatten()
        assert changed.equal(policy.groups(make_obs()) == 3)


class TestMerge:
    @pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
    @pytest.mark.parametrize("size", [0.01, 0.1])
    def test_of_heads_that_are_alike_changes_little(self, policy, share, size):
        """On average over the steps of both, no more than the divergence for which they were merged."""
        with th.no_grad():
            for name, parameter in policy.named_parameters():
                if name in HEAD_DIMS:
                    each = split_heads(parameter.data, HEAD_DIMS[name], policy.n_heads)
                    each[1] = each[0] + size * th.randn_like(each[0])
        groups, family = policy.groups(make_obs()), make_action_distribution(policy.action_space, use_sde=False)
        both = [distributions(policy, th.full_like(groups, group)) for group in (0, 1)]
        merge_kl = max(family.kl(*pair).mean().item() for pair in (both, both[::-1]))
        before = distributions(policy, groups)
        policy.regroup(Merge(0, 1, share, merge_kl))
        assert policy.groups(make_obs()).eq(0).all()
        changed = family.kl(before, distributions(policy, th.zeros_like(groups))).mean().item()
        assert changed <= merge_kl * 1.001 + 1e-6
        assert changed > 0.05 * merge_kl * min(share, 1 - share)

    def test_averages_weights_and_moments(self, policy):
        before, before_trunk = heads(policy), trunk(policy)
        policy.regroup(Merge(1, 0, 0.75, 0.0))
        after = heads(policy)
        for name, value in before.items():
            th.testing.assert_close(after[name][1], 0.75 * value[1] + 0.25 * value[0])
            assert after[name].keys() == value.keys() - {0}
        assert all(value.equal(before_trunk[name]) for name, value in trunk(policy).items())

    @pytest.mark.parametrize("options", [dict(), GSDE], ids=["cartpole", "gsde"])
    def test_in_training_stays_within_its_threshold(self, options):
        """Every merge that a model decides on, on the latents that it was decided on."""
        changes = []

        # with so large a coefficient only the heads count
        model = make_model(**{"n_groups": 4, "merge_kl": 0.02, "split_kl": None, "probe_kl_coef": 1e6, **options})
        probes, own_regroup = model.regrouper.probes, model.policy.regroup

        def regroup(event: Merge | Split) -> None:
            kept = probes.cells >= 0
            params = []
            for step in ("before", "after"):
                if step == "after":
                    own_regroup(event)
                groups = model.policy.grouping.cell_to_group[probes.cells[kept]]
                params.append(params_of(model.policy, probes.latent[kept], groups))
            changes.append((probes.family.kl(*params).mean().item(), event.kl))

        model.policy.regroup = regroup
        model.learn(10 * ROLLOUT)
        assert changes
        for changed, kl in changes:
            assert kl < 0.02
            assert changed <= kl


OPERATIONS = st.lists(st.tuples(st.booleans(), st.integers(0, 10**6), st.floats(0, 1)), min_size=1, max_size=12)


class TestSequences:
    """Any splits and merges, one after the other."""

    def choose(self, split: bool, number: int, share: float, groups: list[set[int]]) -> Merge | Split | None:
        """
        :param groups: cells of each head
        :return: an event that is possible, made from arbitrary numbers
        """
        active = [group for group, cells in enumerate(groups) if cells]
        if split:
            divisible, free = (
                [group for group in active if len(groups[group]) > 1],
                [g for g in range(MAX_GROUPS) if not groups[g]],
            )
            if not divisible or not free:
                return None
            group, cells = divisible[number % len(divisible)], sorted(groups[divisible[number % len(divisible)]])
            moving = [cell for i, cell in enumerate(cells) if number >> i & 1]
            return Split(group, free[number % len(free)], moving if 0 < len(moving) < len(cells) else cells[:1], 1.0)
        if len(active) < 2:
            return None
        keep = active[number % len(active)]
        others = [group for group in active if group != keep]
        return Merge(keep, others[number // 7 % len(others)], share, 0.0)

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(name=st.sampled_from(list(POLICIES)), n_groups=st.integers(1, MAX_GROUPS), operations=OPERATIONS)
    def test_every_cell_is_in_one_group_and_other_heads_stay_as_they_are(self, name, n_groups, operations):
        action_space, kwargs = POLICIES[name]
        policy = make_policy(action_space, **kwargs, n_groups=n_groups)
        cell_to_group = policy.grouping.cell_to_group.tolist()
        groups = [{c for c, g in enumerate(cell_to_group) if g == group} for group in range(MAX_GROUPS)]
        before_trunk = trunk(policy)
        policy.grouping.age.copy_(th.arange(3, 3 + MAX_GROUPS))
        for split, number, share in operations:
            event = self.choose(split, number, share, groups)
            if event is None:
                continue
            before, ages = heads(policy), policy.grouping.age.tolist()
            policy.regroup(event)
            if isinstance(event, Split):
                groups[event.group] -= set(event.cells)
                groups[event.new_group] = set(event.cells)
                kept, average = event.new_group, {event.group: 1.0}
                ages[event.group] = ages[event.new_group] = 0
            else:
                groups[event.keep] |= groups[event.dropped]
                groups[event.dropped] = set()
                kept = event.keep
                average = {event.keep: event.share, event.dropped: 1 - event.share}
                ages[event.keep] = min(ages[event.keep], ages[event.dropped])
            expected = [group for cell in range(N_CELLS) for group in range(MAX_GROUPS) if cell in groups[group]]
            assert policy.grouping.cell_to_group.tolist() == expected
            active = [group for group in range(MAX_GROUPS) if groups[group]]
            assert policy.grouping.active == active
            assert policy.grouping.heads == active
            assert policy.grouping.age.tolist() == ages
            for entry, after in heads(policy).items():
                assert sorted(after) == active
                for other in set(active) - {kept}:
                    assert after[other].equal(before[entry][other])
                mean = sum(share * before[entry][group] for group, share in average.items())
                th.testing.assert_close(after[kept], mean)
        assert all(value.equal(before_trunk[entry]) for entry, value in trunk(policy).items())
        assert all(value.isfinite().all() for value in policy.state_dict().values())
        policy(make_obs())


def script_for(model: Any) -> dict[int, Merge | Split]:
    """A split before the third rollout, a merge before the fourth."""
    return {2: Split(0, 3, cells_of(model, 0)[1:], 1.0), 3: Merge(1, 0, 0.4, 0.0)}


def optimizer_tensors(model: Any) -> dict[Any, th.Tensor]:
    state = model.policy.optimizer.state_dict()["state"]
    return {(number, name): value for number, entry in state.items() for name, value in entry.items()}


class TestResume:
    def resume(self, model: Any, name: str) -> Any:
        model.set_env(one_task_each(name))
        model.set_random_seed(3)
        return model.learn(6 * ROLLOUT, callback=Scripted(script_for(make_model(name))), reset_num_timesteps=False)

    # before the split, between the events, after both of them
    @pytest.mark.parametrize("rollouts", [2, 3, 4])
    @pytest.mark.parametrize("options", [dict(), GSDE], ids=["cartpole", "gsde"])
    def test_goes_on_as_if_nothing_had_happened(self, tmp_path, rollouts, options):
        name = options.get("name", "cartpole")
        model = make_model(**MERGE_ALL, **{**options, "regroup_warmup": 5})
        script = script_for(model)
        model.learn(rollouts * ROLLOUT, callback=Scripted(script))
        assert len(model.regroup_history) == rollouts - 2
        model.save(tmp_path / "model")
        loaded = GRPO.load(tmp_path / "model", env=one_task_each(name), device="cpu")
        assert loaded.regroup_history == model.regroup_history
        continued, resumed = self.resume(model, name), self.resume(loaded, name)
        # the two that are left have become old enough to be merged, after both had been saved
        assert [event.kind for event in continued.regroup_history] == ["split", "merge", "merge"]
        assert continued.policy.n_heads == 1
        assert resumed.regroup_history == continued.regroup_history
        assert resumed.first_grouping == continued.first_grouping
        assert resumed.num_timesteps == continued.num_timesteps == (rollouts + 6) * ROLLOUT
        for tensors in (lambda m: m.policy.state_dict(), lambda m: m.training_state(), optimizer_tensors):
            expected, actual = tensors(continued), tensors(resumed)
            assert expected.keys() == actual.keys()
            assert [entry for entry in expected if not actual[entry].equal(expected[entry])] == []
        probes = {f"regrouper.probes.{name}" for name in ("gradient", "counts", "latent", "scale")}
        assert resumed.training_state().keys() >= {"grouping.cell_to_group", "grouping.age"} | probes

    def test_history_is_loaded_as_events(self, tmp_path):
        model = make_model()
        model.learn(4 * ROLLOUT, callback=Scripted(script_for(model)))
        model.save(tmp_path / "model")
        loaded = GRPO.load(tmp_path / "model")
        assert loaded.regroup_history == model.regroup_history
        assert all(type(event) is RegroupEvent and type(event.groups) is tuple for event in loaded.regroup_history)
        assert loaded.policy.grouping.active == model.policy.grouping.active == [1, 3]
        assert loaded.first_grouping == make_model().policy.grouping.cell_to_group.tolist()

    def test_history_starts_anew_with_the_steps(self, tmp_path):
        model = make_model(regroup_warmup=100)
        model.learn(4 * ROLLOUT, callback=Scripted(script_for(model)))
        assert len(model.regroup_history) == 2
        groups = model.policy.grouping.cell_to_group.tolist()
        assert groups != model.first_grouping
        model.learn(2 * ROLLOUT)
        assert model.regroup_history == []
        model.save(tmp_path / "model")
        for each in (model, GRPO.load(tmp_path / "model")):
            assert each.policy.grouping.cell_to_group.tolist() == each.first_grouping == groups

    def test_single_group_has_one_head_when_loaded(self, tmp_path):
        model = make_model(**MERGE_ALL).learn(6 * ROLLOUT)
        assert model.policy.n_heads == 1
        model.save(tmp_path / "model")
        loaded = GRPO.load(tmp_path / "model")
        assert loaded.policy.grouping.heads == model.policy.grouping.heads
        assert loaded.policy.n_heads == 1


class TestHistory:
    def test_says_what_happened_when(self):
        model = make_model()
        first = model.policy.grouping.cell_to_group.tolist()
        stay, move = cells_of(model, 0)
        model.learn(5 * ROLLOUT, callback=Scripted(script_for(model), figure_freq=0))
        split, merge = model.regroup_history[:2]
        after_split = [3 if cell == move else group for cell, group in enumerate(first)]
        assert split == RegroupEvent(2 * ROLLOUT, "split", (0, 3), 1.0, after_split)
        after_merge = [1 if group == 0 else group for group in after_split]
        assert merge == RegroupEvent(3 * ROLLOUT, "merge", (1, 0), 0.0, after_merge)
        assert after_merge[stay] == 1
        assert model.policy.grouping.cell_to_group.tolist() == model.regroup_history[-1].cell_to_group

    @pytest.mark.parametrize(("verbose", "own", "printed"), [(1, None, 2), (0, None, 0), (1, 0, 0), (0, 1, 2)])
    def test_a_line_is_printed_per_event(self, capsys, verbose, own, printed):
        model = make_model(merge_kl=0.0, verbose=verbose)
        model.learn(5 * ROLLOUT, callback=Scripted(script_for(model), verbose=own))
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("split of", "merge of"))]
        assert len(lines) == printed
        _, move = cells_of(make_model(), 0)
        expected = [
            f"split of group 0 after {2 * ROLLOUT} steps: its cells differ by 1.00 nats, group 3 gets cell {move}",
            f"merge of groups 1 and 0 into 1 after {3 * ROLLOUT} steps: their policies differ by 0.00 nats only",
        ]
        assert lines == expected[:printed]

    def test_is_empty_without_events(self):
        model = make_model(merge_kl=None, split_kl=None).learn(4 * ROLLOUT)
        assert model.regroup_history == []
        assert model.policy.grouping.age.tolist() == [0] * 4


class TestObserve:
    """What the probes learn from."""

    class Disturbing(BaseCallback):
        """Call the policy in the middle of a rollout."""

        def _on_step(self) -> bool:
            self.model.policy(th.as_tensor(np.stack([self.model.observation_space.sample()] * N_ENVS)))
            return True

    @pytest.mark.parametrize("options", [dict(), GSDE, dict(n_groups=1)], ids=["cartpole", "gsde", "one group"])
    @pytest.mark.parametrize("callbacks", [[], [Disturbing()]], ids=["alone", "disturbed"])
    def test_latents_are_those_of_the_policy_that_collected_the_rollout(self, monkeypatch, options, callbacks):
        """And no second forward pass is needed for them."""
        model, learnt, n_computed = make_model(**MERGE_ALL, **options), [], 0
        own_learn, own_latent_pi = Probes.learn, MlpPolicy.latent_pi

        def learn(probes: Probes, latent: th.Tensor, *args: Any) -> None:
            rollout = model.rollout_buffer.samples()
            # not updated yet: the likelihoods of the actions are those of the rollout
            actions = rollout.actions.flatten() if isinstance(model.action_space, spaces.Discrete) else rollout.actions
            _, log_prob, _ = model.policy.evaluate_actions(rollout.observations, actions)
            th.testing.assert_close(log_prob, rollout.old_log_prob, rtol=1e-4, atol=1e-5)
            th.testing.assert_close(latent, own_latent_pi(model.policy, rollout.observations).detach())
            learnt.append(len(latent))
            own_learn(probes, latent, *args)

        def latent_pi(policy: MlpPolicy, obs: Any) -> th.Tensor:
            nonlocal n_computed
            n_computed += 1
            return own_latent_pi(policy, obs)

        monkeypatch.setattr(Probes, "learn", learn)
        monkeypatch.setattr(MlpPolicy, "latent_pi", latent_pi)
        model.learn(4 * ROLLOUT, callbacks)
        assert learnt == [ROLLOUT] * 4
        assert n_computed == 0

    def test_latents_are_computed_where_the_rollout_was_not_recorded(self, monkeypatch):
        model, learnt = make_model(**MERGE_ALL), []
        model.learn(2 * ROLLOUT)
        model.regrouper.recorder = LatentRecorder()
        expected = model.policy.latent_pi(model.rollout_buffer.samples().observations).detach()
        monkeypatch.setattr(Probes, "learn", lambda probes, latent, *args: learnt.append(latent))
        model.train()
        th.testing.assert_close(learnt, [expected])
        assert model.policy.training

    def test_is_left_out_where_groups_cannot_change(self):
        model = make_model(merge_kl=None, split_kl=None)
        model.learn(ROLLOUT, RegroupCallback())
        assert model.regrouper.probes.counts.sum() == 0
        assert model.policy.grouping.age.eq(0).all()


class TestTiming:
    def merges(self, **kwargs: Any) -> list[int]:
        """After how many rollouts groups were merged."""
        model = make_model(**MERGE_ALL, **kwargs)
        model.learn(12 * ROLLOUT)
        return [event.timestep // ROLLOUT for event in model.regroup_history]

    # a cell has enough steps after four rollouts
    @pytest.mark.parametrize(("warmup", "expected"), [(0, 4), (4, 4), (5, 5), (9, 9)])
    def test_groups_are_merged_after_the_warmup(self, warmup, expected):
        assert self.merges(regroup_warmup=warmup) == [expected]

    @pytest.mark.parametrize(("freq", "expected"), [(1, 4), (3, 6), (5, 5), (7, 7)])
    def test_groups_are_looked_at_every_so_many_rollouts(self, freq, expected):
        assert self.merges(regroup_freq=freq) == [expected]

    def test_a_split_starts_the_warmup_again(self):
        model = make_model(**MERGE_ALL, n_groups=1, regroup_warmup=4)
        model.learn(16 * ROLLOUT, callback=Scripted({6: Split(0, 1, [1, 3], 1.0)}))
        assert [event.timestep // ROLLOUT for event in model.regroup_history] == [6, 10]

    def test_defaults_are_numbers_of_steps(self):
        for n_steps, freq, warmup in ((32, 16, 79), (256, 2, 10), (512, 1, 5), (4096, 1, 5)):
            model = make_model(n_steps=n_steps, regroup_freq=None, regroup_warmup=None)
            assert model.regroup_rule.warmup == warmup
            model.regrouper.probes.counts[0] = 1
            due = []
            for rollout in range(1, 33):
                model.num_timesteps = rollout * n_steps * N_ENVS
                due += [rollout] if model.regrouper.due(model.regroup_rule, model.n_rollouts) else []
            assert due == list(range(freq, 33, freq))


@pytest.mark.parametrize(
    ("scale", "normalize_advantage", "n_groups"), [(2.0, "group", 1), (0.5, "group", 1), (10.0, "group", 2), (10.0, True, 1)]
)
def test_groups_that_learn_in_different_units_are_not_merged(scale, normalize_advantage, n_groups):
    tasks = [dict(reward_scale=1.0), dict(reward_scale=scale)]
    env = DummyVecEnv([partial(gym.make, ENVS["cartpole"], tasks=tasks, task=i % 2) for i in range(N_ENVS)])
    options: dict[str, Any] = dict(router="one_hot", router_kwargs=dict(columns=(4, 6)), regroup_freq=1, regroup_warmup=0)
    model = GRPO(
        "MlpPolicy",
        env,
        n_steps=N_STEPS,
        batch_size=32,
        n_epochs=2,
        normalize_advantage=normalize_advantage,
        policy_kwargs=dict(net_arch=[16]),
        seed=0,
        device="cpu",
        **options,
        **MERGE_ALL,
    )
    model.learn(8 * ROLLOUT)
    assert len(model.groups) == n_groups


TWO_TYPES: list[dict[str, Any]] = [{}, {"invert": True}, {"length": 0.55}, {"length": 0.55, "invert": True}]
STEPS = 14_000


def learn_tasks(tasks: list[dict[str, Any]], seed: int, folder: Any = None) -> Any:
    env = make_vec_env("sb3_grpo/TaskCartPole-v0", 8, seed=seed, env_kwargs=dict(tasks=tasks))
    model = GRPO(
        "MlpPolicy",
        env,
        n_steps=256,
        batch_size=256,
        learning_rate=1e-3,
        n_groups=1,
        max_groups=4,
        router="one_hot",
        router_kwargs=dict(columns=(4, 8), hide=True),
        seed=seed,
        device="cpu",
    )
    if folder is not None:
        model.set_logger(configure(str(folder), ["csv"]))
    return model.learn(STEPS)


SEEDS = [200, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (201, 202))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that has found two types, and its log."""
    folder = tmp_path_factory.mktemp("log")
    model = learn_tasks(TWO_TYPES, 200, folder)
    model.logger.close()
    with open(folder / "progress.csv") as file:
        return model, list(csv.DictReader(file))


class TestHiddenTypes:
    def check(self, model: Any) -> None:
        assert model.policy.grouping.cell_to_group.tolist() == [0, 1, 0, 1]
        (event,) = model.regroup_history
        assert (event.kind, event.groups, event.cell_to_group) == ("split", (0, 1), [0, 1, 0, 1])
        assert event.kl > model.split_kl
        assert 4000 <= event.timestep < STEPS
        assert [record.cells for record in model.groups] == [[0, 2], [1, 3]]

    def test_are_found(self, trained):
        self.check(trained[0])

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", [201, 202])
    def test_are_found_with_other_seeds(self, seed):
        self.check(learn_tasks(TWO_TYPES, seed))

    @pytest.mark.parametrize("seed", SEEDS)
    def test_nothing_is_split_where_there_are_none(self, seed):
        model = learn_tasks([{}] * 4, seed)
        assert model.regroup_history == []
        assert model.policy.n_heads == 1

    def test_are_logged(self, trained):
        model, rows = trained
        (event,) = model.regroup_history

        def column(tag: str) -> dict[int, float]:
            return {int(row["time/total_timesteps"]): float(row[tag]) for row in rows if row.get(tag)}

        # what happens before a rollout is written at its end, what an update finds at the end of the next rollout
        rollout = 8 * 256
        for step, n_splits in column("groups/n_splits").items():
            assert n_splits == (step > event.timestep)
        assert set(column("groups/n_merges").values()) == {0}
        for step, n_active in column("groups/n_active").items():
            assert n_active == (2 if step > event.timestep + rollout else 1)
        assert set(column("groups/n_splits").values()) == {0, 1}
        assert set(column("groups/n_active").values()) == {1, 2}
        within = column("groups/kl_within")
        assert within.keys() == column("groups/kl_within_error").keys()
        # after the split nothing contradicts itself
        assert all(value < model.split_kl for step, value in within.items() if step > event.timestep)
        assert all(math.isfinite(value) for value in within.values())
        assert min(column("groups/kl_between")) > event.timestep
        assert min(column("groups/kl_between").values()) > model.merge_kl

    def test_survive_saving(self, trained, tmp_path):
        model, _ = trained
        model.save(tmp_path / "model")
        loaded: Any = GRPO.load(tmp_path / "model")
        self.check(loaded)
        measured = [each.regrouper.measure(each.policy, each.regroup_rule) for each in (loaded, model)]
        th.testing.assert_close(*measured, rtol=0, atol=0, equal_nan=True)


class TestRandomRouter:
    @pytest.mark.parametrize("seed", range(2))
    def test_its_groups_merge_early(self, seed):
        env = make_vec_env("CartPole-v1", 4, seed=seed)
        small: dict[str, Any] = dict(n_steps=64, n_epochs=2, policy_kwargs=dict(net_arch=[16]), device="cpu")
        model = GRPO("MlpPolicy", env, **small, seed=seed, n_groups=2)
        assert model.policy.grouping.active == [0, 1]
        assert model.max_groups == 8
        assert model.policy.n_heads == 2
        model.learn(4096)
        (event,) = model.regroup_history
        assert (event.kind, event.groups) == ("merge", (0, 1))
        assert event.kl < 0.1
        # at the first look
        assert event.timestep == 2048
        assert model.policy.grouping.active == [0]
        assert model.policy.n_heads == 1
        assert [record.cells for record in model.groups] == [list(range(8))]

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(3))
    def test_with_all_other_defaults(self, seed):
        model = GRPO("MlpPolicy", "CartPole-v1", seed=seed, n_groups=2, device="cpu")
        assert model.policy.grouping.active == [0, 1]
        model.learn(4097)
        assert [event.kind for event in model.regroup_history] == ["merge"]
        # one environment, one part of the data per rollout: two rollouts are the least that can be compared
        assert model.regroup_history[0].timestep == 4096
        assert model.policy.n_heads == 1

    def test_given_groups_wait(self):
        """Nobody has said that random groups differ; of a given router's groups the user has."""
        model = make_model(n_groups=4, regroup_warmup=None, merge_kl=1e6, split_kl=None)
        model.learn(8 * ROLLOUT)
        assert model.regroup_history == []
        assert len(model.policy.grouping.active) == 4


BAD: list[tuple[dict[str, Any], str]] = [
    (dict(merge_kl=0.5, split_kl=0.3), r"`merge_kl` must be below `split_kl`, got 0.5 and 0.3"),
    (dict(merge_kl=0.3, split_kl=0.3), r"`merge_kl` must be below `split_kl`, got 0.3 and 0.3"),
    (dict(merge_kl=-0.1), r"`merge_kl` must be finite and at least 0, or None, got -0.1"),
    (dict(split_kl=-1), r"`split_kl` must be finite and at least 0, or None, got -1"),
    (dict(merge_kl=math.nan), r"`merge_kl` must be finite and at least 0, or None, got nan"),
    (dict(split_kl=math.inf), r"`split_kl` must be finite and at least 0, or None, got inf"),
    (dict(regroup_freq=0), r"`regroup_freq` must be an integer of at least 1, or None, got 0"),
    (dict(regroup_freq=1.5), r"`regroup_freq` must be an integer of at least 1, or None, got 1.5"),
    (dict(regroup_warmup=-1), r"`regroup_warmup` must be an integer of at least 0, or None, got -1"),
    (dict(probe_kl_coef=0), r"`probe_kl_coef` must be finite and above 0, got 0"),
    (dict(probe_kl_coef=-0.05), r"`probe_kl_coef` must be finite and above 0, got -0.05"),
    (dict(probe_kl_coef=math.nan), r"`probe_kl_coef` must be finite and above 0, got nan"),
]


class TestBadInput:
    @pytest.mark.parametrize(("options", "message"), BAD)
    def test_is_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            make_model(**options)

    @pytest.mark.parametrize(("options", "message"), BAD)
    def test_is_refused_when_loading(self, tmp_path, options, message):
        make_model().save(tmp_path / "model")
        with pytest.raises(ValueError, match=message):
            GRPO.load(tmp_path / "model", **options)

    @pytest.mark.parametrize(
        "options",
        [
            dict(merge_kl=None),
            dict(merge_kl=None, split_kl=None),
            dict(merge_kl=0.0, split_kl=0.5),
            dict(merge_kl=5.0, split_kl=None),
            dict(regroup_freq=np.int64(3), regroup_warmup=np.int64(0)),
        ],
    )
    def test_everything_else_is_not(self, tmp_path, options):
        make_model(**options).save(tmp_path / "model")
        loaded = GRPO.load(tmp_path / "model")
        assert {name: getattr(loaded, name) for name in options} == options

    def test_thresholds_can_be_changed_when_loading(self, tmp_path):
        make_model(merge_kl=None).learn(5 * ROLLOUT).save(tmp_path / "model")
        loaded = GRPO.load(tmp_path / "model", env=one_task_each("cartpole"), **MERGE_ALL)
        assert loaded.regroup_history == []
        loaded.learn(ROLLOUT, reset_num_timesteps=False)
        assert [event.kind for event in loaded.regroup_history] == ["merge"]


class TestGsde:
    def test_noise_is_drawn_anew_for_the_new_groups(self):
        noises = []

        model = make_model(**GSDE, merge_kl=0.0)
        own_reset = model.policy.reset_noise

        def reset_noise(n_envs: int = 1) -> None:
            own_reset(n_envs)
            noises.append((len(model.regroup_history), model.policy.n_heads, model.policy.action_dist.exploration_matrices))

        model.policy.reset_noise = reset_noise
        all_events = {**script_for(model), 5: Merge(1, 3, 0.5, 0.0), 7: Split(1, 0, [0], 1.0)}
        before = {name: value.clone() for name, value in model.policy.state_dict().items()}
        model.learn(9 * ROLLOUT, callback=Scripted(all_events))
        assert [event.kind for event in model.regroup_history] == ["split", "merge", "merge", "split"]
        # the first drawing after each event is by the event: SB3's collect_rollouts has drawn before it
        first = {n_events: (n_heads, noise) for n_events, n_heads, noise in reversed(noises)}
        assert [n_heads for n_heads, _ in first.values()][::-1] == [2, 3, 2, 1, 2]
        for n_heads, noise in first.values():
            # one matrix per environment, with a column per head
            assert noise.shape == (N_ENVS, 16, n_heads)
        assert all(value.isfinite().all() for value in model.policy.state_dict().values())
        assert model.policy.log_std.shape[1] == 2
        assert not model.policy.state_dict()["log_std"].equal(before["log_std"])

    @pytest.mark.parametrize("full_std", [True, False])
    def test_training_goes_on_after_events(self, full_std):
        model = make_model(**GSDE, **MERGE_ALL, policy_kwargs=dict(net_arch=[16], full_std=full_std))
        model.learn(9 * ROLLOUT, callback=Scripted(script_for(model)))
        assert model.policy.n_heads == 1
        weights = model.policy.action_net.weight.clone()
        model.learn(ROLLOUT, reset_num_timesteps=False)
        assert (model.policy.action_net.weight != weights).any()


class TestCompile:
    """No shapes may change: everything would be compiled again."""

    @pytest.mark.parametrize("compiled", [True, False])
    def test_all_heads_are_held_from_the_start(self, compiled, tmp_path):
        model = make_model(n_groups=1, compile=compiled)
        assert model.policy.n_heads == (4 if compiled else 1)
        weight = model.policy.action_net.weight
        model.policy.regroup(Split(0, 1, [1, 2], 1.0))
        assert model.policy.n_heads == (4 if compiled else 2)
        model.policy.regroup(Merge(0, 1, 0.5, 0.0))
        assert model.policy.n_heads == (4 if compiled else 1)
        # compiled functions refer to the parameters
        assert (model.policy.action_net.weight is weight) == compiled
        model.save(tmp_path / "model")
        assert GRPO.load(tmp_path / "model").policy.n_heads == model.policy.n_heads
        model.set_parameters(model.get_parameters())
        assert model.policy.n_heads == (4 if compiled else 1)

    def test_heads_that_are_not_used_change_nothing_but_the_last_bits(self):
        alone, among_others = (make_policy(spaces.Discrete(4), n_groups=1, all_heads=held) for held in (False, True))
        among_others.load_state_dict(alone.state_dict())
        assert (alone.n_heads, among_others.n_heads) == (1, MAX_GROUPS)
        th.testing.assert_close(behaviour(alone), behaviour(among_others), rtol=1e-5, atol=1e-6)
