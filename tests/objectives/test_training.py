"""Training with objectives as groups: against PPO, by hand, and under changes that must not matter."""

import copy
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from objectives.rewards import NAMES, Journey, make_env
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_grpo import GRPO, GroupEvalCallback, ObjectivesWrapper, evaluate_groups
from sb3_grpo.buffers import Rollout
from sb3_grpo.group_kinds import ObjectiveGroups
from sb3_grpo.objectives.recording import ObjectiveRollout
from sb3_grpo.recording import EndedEpisodes, Outcome

N_STEPS = 32


def make_model(env: VecEnv | None = None, **kwargs: Any) -> GRPO:
    arguments: dict[str, Any] = dict(n_steps=N_STEPS, batch_size=32, n_epochs=2, seed=0, device="cpu", gamma=0.9)
    env = make_env() if env is None else env
    return GRPO("MlpPolicy", env, group_by="objectives", policy_kwargs=dict(net_arch=[8]), **{**arguments, **kwargs})


def of_one_objective() -> VecEnv:
    return DummyVecEnv([lambda: Monitor(ObjectivesWrapper(Journey(factors=(1.0,)), ["speed"]))] * 2)


def test_one_objective_is_ppo() -> None:
    kwargs: dict[str, Any] = dict(n_steps=N_STEPS, batch_size=32, seed=0, device="cpu", policy_kwargs=dict(net_arch=[8]))
    ppo = PPO("MlpPolicy", of_one_objective(), **kwargs).learn(4 * N_STEPS)
    grpo = GRPO("MlpPolicy", of_one_objective(), group_by="objectives", **kwargs).learn(4 * N_STEPS)
    expected, found = ppo.policy.state_dict(), grpo.policy.state_dict()
    assert list(expected) == list(found)
    assert all(th.equal(expected[name], found[name]) for name in expected)


def actor(model: GRPO) -> dict[str, np.ndarray]:
    """Parameters that decide about actions."""
    names = ("mlp_extractor.", "action_net.", "log_std")
    return {name: value.numpy() for name, value in model.policy.state_dict().items() if name.startswith(names)}


@pytest.mark.parametrize("kwargs", [{}, {"group_score": "return"}, {"group_score": "reward"}, {"group_scale": "range"}])
@pytest.mark.parametrize("factors", [(2.0**7, 1.0, 1.0), (1.0, 2.0**-5, 1.0)])
def test_the_unit_of_an_objective_does_not_matter(factors: tuple[float, ...], kwargs: dict[str, Any]) -> None:
    one, other = (make_model(make_env(factors=each), **kwargs).learn(6 * N_STEPS) for each in ((1.0, 1.0, 1.0), factors))
    for name, value in actor(one).items():
        np.testing.assert_allclose(actor(other)[name], value, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kwargs", [dict(normalize_advantage=False), dict(group_score="raw_return")])
def test_where_the_unit_matters(kwargs: dict[str, Any]) -> None:
    """The control: sums of what is not normalised, and scores with a unit."""
    one, other = (make_model(make_env(factors=each), **kwargs).learn(6 * N_STEPS) for each in ((1.0,) * 3, (128.0, 1.0, 1.0)))
    assert any(np.abs(actor(other)[name] - value).max() > 1e-4 for name, value in actor(one).items())


ODDS: dict[str, Any] = dict(balancer="gap_odds", group_coef=5.0)
PENALTY: dict[str, Any] = dict(balancer="relative_penalty", group_coef=0.05)
TARGETS: dict[str, Any] = dict(group_targets=[(0, 10), (-5, 0), (0, 20)])


@pytest.mark.parametrize(
    ("given", "meant", "other"),
    [
        (TARGETS, ODDS, PENALTY),
        (dict(group_score="gap", **TARGETS), ODDS, PENALTY),
        # odds of other scores would depend on their unit
        (dict(group_score="raw_return"), PENALTY, ODDS),
        (dict(balancer="relative_penalty", **TARGETS), PENALTY, ODDS),
        (dict(group_score="raw_return", balancer="gap_odds"), ODDS, PENALTY),
        (dict(group_coef=3.0, **TARGETS), dict(balancer="gap_odds", group_coef=3.0), ODDS),
    ],
)
def test_what_balances_objectives_by_default(given: dict[str, Any], meant: dict[str, Any], other: dict[str, Any]) -> None:
    found, expected, different = (actor(make_model(**{**given, **each}).learn(6 * N_STEPS)) for each in ({}, meant, other))
    assert all((found[name] == value).all() for name, value in expected.items())
    assert any((found[name] != value).any() for name, value in different.items())


def test_odds_by_hand() -> None:
    """Weights of the last rollout from the gaps: e to the 5 times the gap, in relation to the mean."""
    model = make_model(**TARGETS).learn(6 * N_STEPS)
    gaps = -np.array([record.score for record in model.groups])
    odds = np.exp(5 * gaps)
    weights = [record.weight for record in model.groups]
    assert np.ptp(weights) > 0.1
    np.testing.assert_allclose(weights, 3 * odds / odds.sum(), rtol=1e-6)


def test_without_normalisation_and_balance_it_is_the_sum() -> None:
    """Advantages of the sum are the sum of the advantages: the first update is PPO's, but for what the critics learn."""
    kwargs: dict[str, Any] = dict(n_steps=N_STEPS, batch_size=64, n_epochs=1, seed=0, device="cpu", vf_coef=0.0)
    kwargs |= dict(normalize_advantage=False, policy_kwargs=dict(net_arch=dict(pi=[8], vf=[])), max_grad_norm=1e9)
    ppo = PPO("MlpPolicy", make_env(), **kwargs)
    critic = copy.deepcopy(ppo.policy.value_net)
    ppo.learn(1)
    grpo = GRPO("MlpPolicy", make_env(), group_by="objectives", group_coef=0.0, **kwargs)
    with th.no_grad():
        # a third of the value in each objective
        grpo.policy.value_net.weight.copy_(critic.weight.expand(3, -1) / 3)
        grpo.policy.value_net.bias.copy_(critic.bias.expand(3) / 3)
    before = copy.deepcopy(actor(grpo))
    grpo.learn(1)
    for name, value in actor(grpo).items():
        np.testing.assert_allclose(value, ppo.policy.state_dict()[name], atol=1e-6, err_msg=name)
        assert np.abs(value - before[name]).max() > 1e-4


def test_joining_by_hand() -> None:
    """Two objectives, two steps: the advantages of each times the weight of its objective."""
    kind, none = ObjectiveGroups(make_model().policy, ["a", "b"]), np.empty(0)
    values = np.array([[[1.0, 10.0]], [[2.0, 20.0]]])
    kind.recorder.rollout = ObjectiveRollout(paid=none, rewards=none, values=values, advantages=none, returns=none)
    outcome = Outcome(
        np.array([0, 0, 1, 1]), np.array([5.0, 6.0, 7.0, 8.0]), none, none, none, EndedEpisodes(none, none, none, none)
    )
    zeros = th.zeros(2)
    rollout = Rollout(th.zeros(2, 2), zeros, zeros, zeros, zeros, zeros, th.zeros(2, dtype=th.long), th.ones(2))
    joined = kind.join(rollout, outcome, np.array([1.0, -1.0, 2.0, 4.0]), np.array([0.5, 0.5, 3.0, 3.0]))
    assert joined.advantages.tolist() == [6.5, 11.5]
    assert joined.returns.tolist() == [[5.0, 7.0], [6.0, 8.0]]
    assert joined.old_values.tolist() == [[1.0, 10.0], [2.0, 20.0]]
    assert joined.weights.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(learning_rate=1e-2),
        dict(learning_rate=1e-2, group_targets=[3.0, -0.5, 7.0]),
        dict(learning_rate=1e-2, group_targets=dict(zip(NAMES, [(0, 3.0), (-3.0, -0.5), 7.0], strict=True))),
        dict(group_score="return"),
        dict(group_score="raw_return"),
    ],
)
def test_who_is_behind_has_more_weight(kwargs: dict[str, Any]) -> None:
    model = make_model(group_coef=0.05, **kwargs).learn(40 * N_STEPS)
    records = model.groups
    assert [record.name for record in records] == NAMES
    mean = np.mean([record.score for record in records])
    assert max(record.score for record in records) > mean + 1e-3
    for record in records:
        assert (record.weight - 1) * (record.score - mean) < 0


def test_logs_have_names() -> None:
    model = make_model().learn(4 * N_STEPS)
    logged = model.logger.name_to_value
    for name in NAMES:
        for column in ("score", "weight", "share", "return"):
            assert f"objectives/{name}_{column}" in logged
    assert sum(logged[f"objectives/{name}_share"] for name in NAMES) == pytest.approx(1)
    assert -7 <= logged["objectives/cost_return"] <= 0
    assert not any(key.startswith("groups/score") for key in logged)


def test_saving_and_loading_goes_on(tmp_path: Path) -> None:
    model = make_model().learn(4 * N_STEPS)
    model.save(tmp_path / "model")
    loaded = GRPO.load(tmp_path / "model", make_env())
    assert loaded.objective_names == NAMES
    assert [record.name for record in loaded.groups] == NAMES
    for mine, other in zip(model.training_state().items(), loaded.training_state().items(), strict=True):
        assert mine[0] == other[0]
        assert th.equal(mine[1], other[1])
    observation = np.array([[0.2, 0.3]], dtype=np.float32)
    values = [each.policy.objective_values(th.as_tensor(observation)).detach().numpy() for each in (model, loaded)]
    np.testing.assert_array_equal(values[0], values[1])
    assert values[0].shape == (1, 3)
    loaded.learn(2 * N_STEPS)
    # nothing is needed to predict
    np.testing.assert_array_equal(
        model.predict(observation, deterministic=True)[0],
        GRPO.load(tmp_path / "model").predict(observation, deterministic=True)[0],
    )


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_compiled_agrees(compiler_calls: list[int]) -> None:
    eager, compiled = (make_model(compile=each, normalize_advantage=True).learn(2 * N_STEPS) for each in (False, True))
    assert min(compiler_calls) > 0
    for name, value in actor(eager).items():
        np.testing.assert_allclose(actor(compiled)[name], value, atol=1e-4, err_msg=name)


def test_evaluation_by_objective() -> None:
    model, env = make_model(), make_env(seed=5)
    found = evaluate_groups(model, env, 4)
    assert list(found) == NAMES
    assert {each.n_episodes for each in found.values()} == {4}
    # against a plain loop over the same episodes
    env.seed(5)
    observations: Any = env.reset()
    returns, done = np.zeros((2, 3)), np.zeros(2, dtype=int)
    totals: list[np.ndarray] = []
    while (done < 2).any():
        observations, _, dones, infos = env.step(model.predict(observations, deterministic=True)[0])
        returns += [info["objectives"] for info in infos]
        for index in dones.nonzero()[0].tolist():
            if done[index] < 2:
                totals.append(returns[index].copy())
            returns[index], done[index] = 0, int(done[index]) + 1
    for index, name in enumerate(NAMES):
        assert found[name].mean == pytest.approx(np.mean([total[index] for total in totals]))


def last_logged(model: GRPO, callback: GroupEvalCallback, folder: Path) -> dict[str, float]:
    """Train, and return what was logged last under each name."""
    model.set_logger(configure(str(folder), ["json"]))
    model.learn(4 * N_STEPS, callback)
    model.logger.close()
    last: dict[str, float] = {}
    for line in (folder / "progress.json").read_text().splitlines():
        last |= json.loads(line)
    return last


def test_best_model_by_the_worst_objective(tmp_path: Path) -> None:
    ranges = {"speed": (-7.0, 7.0), "cost": (-7.0, 0.0), "comfort": (-7.0, 7.0)}
    callback = GroupEvalCallback(
        make_env(), best_by="worst", ranges=ranges, eval_freq=N_STEPS, best_model_save_path=str(tmp_path), verbose=0
    )
    last = last_logged(make_model(), callback, tmp_path)
    means = {name: evaluation.mean for name, evaluation in callback.last_evaluation.items()}
    shares = {name: (means[name] - low) / (high - low) for name, (low, high) in ranges.items()}
    assert callback.last_worst_task == min(shares, key=lambda name: shares[name])
    assert callback.last_worst_reward == pytest.approx(min(shares.values()))
    assert (tmp_path / "best_model.zip").exists()
    assert last["eval/objective_cost"] == pytest.approx(means["cost"])
    assert last["eval/worst_reward"] == pytest.approx(min(shares.values()))


def test_without_ranges_objectives_are_not_compared(tmp_path: Path) -> None:
    last = last_logged(make_model(), GroupEvalCallback(make_env(), eval_freq=N_STEPS, verbose=0), tmp_path)
    assert "eval/objective_speed" in last
    assert "eval/worst_reward" not in last


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        (None, "given with best_by"),
        ({"speed": (0.0, 1.0)}, "one for each objective"),
        (dict.fromkeys(NAMES, (1.0, 1.0)), "low below high"),
        ({name: (0.0, float("nan")) for name in NAMES}, "two numbers"),
    ],
)
def test_ranges_that_are_refused(ranges: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"`ranges` must .*{message}"):
        GroupEvalCallback(make_env(), best_by="worst", ranges=ranges)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(router="discrete"), "`router` must be 'random'"),
        (dict(router_kwargs=dict(n_cells=3)), "`router_kwargs` must be None"),
        (dict(n_groups=2), "`n_groups` must be None or 1"),
        (dict(max_groups=2), "`max_groups` must be None or 1"),
        (dict(advantage_estimator="time_step"), "`advantage_estimator` must be 'gae'"),
        (dict(group_targets=[1.0, 2.0]), "`group_targets` must have one target for each of the 3"),
        (dict(group_targets={"speed": 1.0}), rf"`group_targets` must be one for each of {re.escape(str(NAMES))}, got"),
    ],
)
def test_arguments_that_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(**kwargs)


def test_environments_that_are_refused() -> None:
    with pytest.raises(ValueError, match="wrapped in ObjectivesWrapper"):
        make_model(DummyVecEnv([lambda: Journey(factors=(1.0,))]))
    mixed = DummyVecEnv([partial(ObjectivesWrapper, Journey(), names) for names in (["a", "b", "c"], NAMES)])
    with pytest.raises(ValueError, match="same objectives in all environments"):
        make_model(mixed)
    model = make_model()
    model.set_env(make_env(names=["a", "b", "c"]))
    with pytest.raises(ValueError, match="objectives that the model was built with"):
        model.learn(1)


def test_a_step_without_objectives_is_refused() -> None:

    class Forgetful(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            return (*self.env.step(action)[:4], {})

    complete = ObjectivesWrapper(Journey(), NAMES)
    envs: list[Any] = [lambda: complete, lambda: Forgetful(ObjectivesWrapper(Journey(), NAMES))]
    with pytest.raises(ValueError, match=r"environments \[1\] do not"):
        make_model(DummyVecEnv(envs)).learn(1)


def test_rewards_that_float32_does_not_hold_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be finite in float32, .* refused \['cost'\]"):
        make_model(make_env(factors=(1.0, 1e39, 1.0))).learn(1)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_advantages_that_overflow_are_refused() -> None:
    model = make_model(make_env(factors=(1.0, 3e38, 1.0)), gamma=1.0, gae_lambda=1.0)
    before = actor(model)
    with pytest.raises(ValueError, match=r"advantages must be finite, .* in groups \[1\]; the policy was left as it was"):
        model.learn(1)
    for name, value in actor(model).items():
        np.testing.assert_array_equal(value, before[name])


def test_normalisation_cannot_be_assigned_to_values_without_a_scale(tmp_path: Path) -> None:
    model = make_model(normalize_advantage=False).learn(1)
    model.normalize_advantage = True
    with pytest.raises(ValueError, match=r"`normalize_advantage` .* cannot be assigned, got True; give it to `load`"):
        model.learn(1)
    model.normalize_advantage = False
    model.save(tmp_path / "model")
    loaded = GRPO.load(tmp_path / "model", make_env(), normalize_advantage=True).learn(1)
    assert loaded.policy.value_scale is not None


def test_group_by_of_a_built_model(tmp_path: Path) -> None:
    model = make_model()
    model.group_by = "decisions"
    with pytest.raises(ValueError, match="`group_by` of a model that is built cannot be changed"):
        model.learn(1)
    model.group_by = "objectives"
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="`group_by` of a saved model cannot be changed"):
        GRPO.load(tmp_path / "model", make_env(), group_by="decisions")
