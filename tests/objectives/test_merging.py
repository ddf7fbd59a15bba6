"""Objectives that merge and split while they are trained: where it is known on paper who agrees with whom."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_grpo import GRPO, GroupEvalCallback, ObjectivesWrapper, plot_regrouping
from sb3_grpo.buffers import Rollout
from sb3_grpo.group_kinds import ObjectiveGroups
from sb3_grpo.objectives.recording import ObjectiveRollout
from sb3_grpo.recording import EndedEpisodes, Outcome
from sb3_grpo.regroup_plan import Merge, RegroupEvent

# What each of four actions pays: the first two agree but for noise, the third wants something else
PAYS = {"profit": [1.0, 0.5, 0.0, -1.0], "sales": [2.0, 1.0, 0.0, -2.0], "rest": [-1.0, 0.0, 0.5, 1.0]}
ROLLOUT = 256


class Shop(gym.Env[np.ndarray, int]):
    """
    Each step pays what :data:`PAYS` says, plus noise. Ten steps are an episode.

    :param pays: of each action, for each objective, shape ``(K, 4)``
    :param noise: standard deviation
    """

    observation_space = spaces.Box(0, 1, (1,), np.float32)

    def __init__(self, pays: list[list[float]], noise: float = 1.0):
        self.action_space = spaces.Discrete(4)  # type: ignore[assignment]  # its actions are NumPy's integers
        self.pays, self.noise = np.array(pays), noise

    def turn(self, objective: int) -> None:
        """Have an objective pay for the opposite from now on."""
        self.pays[objective] *= -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        self.time += 1
        noise = self.noise * np.abs(self.pays).max(axis=1) * self.np_random.standard_normal(len(self.pays))
        return np.zeros(1, np.float32), self.pays[:, action] + noise, self.time == 10, False, {}


def make_env(pays: dict[str, list[float]] | None = None, seed: int = 0, **kwargs: Any) -> VecEnv:
    pays = PAYS if pays is None else pays

    def make() -> gym.Env[Any, Any]:
        return Monitor(ObjectivesWrapper(Shop(list(pays.values()), **kwargs), list(pays)))

    env = DummyVecEnv([partial(make)] * 8)
    env.seed(seed)
    return env


def make_model(env: VecEnv | None = None, **kwargs: Any) -> GRPO:
    arguments: dict[str, Any] = dict(n_steps=ROLLOUT // 8, batch_size=128, n_epochs=2, seed=0, device="cpu", gamma=0.5)
    arguments |= dict(regroup_freq=1, regroup_warmup=4, ent_coef=0.1, policy_kwargs=dict(net_arch=[8]))
    return GRPO("MlpPolicy", make_env() if env is None else env, group_by="objectives", **{**arguments, **kwargs})


@pytest.mark.parametrize("seed", range(3))
def test_the_same_up_to_noise_merge_and_others_do_not(seed: int) -> None:
    model = make_model(make_env(seed=seed), seed=seed).learn(20 * ROLLOUT)
    assert [(event.kind, event.groups, event.cell_to_group) for event in model.regroup_history] == [
        ("merge", (0, 1), [0, 0, 2])
    ]
    assert model.first_grouping == [0, 1, 2]
    assert model.cell_to_group == [0, 0, 2]


@pytest.mark.parametrize("kwargs", [dict(merge_kl=None), dict(regroup_warmup=1000), dict(regroup_freq=1000)])
def test_they_do_not_merge(kwargs: dict[str, Any]) -> None:
    assert make_model(**kwargs).learn(10 * ROLLOUT).regroup_history == []


def test_no_merge_before_the_warmup() -> None:
    first = make_model(regroup_warmup=7).learn(20 * ROLLOUT).regroup_history[0]
    assert first.timestep >= 7 * ROLLOUT


def test_an_objective_that_never_pays_stays_alone() -> None:
    model = make_model(make_env({**PAYS, "nothing": [0.0] * 4})).learn(20 * ROLLOUT)
    assert model.cell_to_group == [0, 0, 2, 3]


def test_who_stops_agreeing_splits() -> None:
    env = make_env()
    model = make_model(env).learn(10 * ROLLOUT)
    assert model.cell_to_group == [0, 0, 2]
    env.env_method("turn", 1)
    # what was seen before the turn is forgotten with a half-life of 8000 steps
    model.learn(80 * ROLLOUT, reset_num_timesteps=False)
    assert [event.kind for event in model.regroup_history][:2] == ["merge", "split"]
    assert model.regroup_history[1].cell_to_group == [0, 1, 2]
    assert model.regroup_history[1].kl > 0.3
    assert model.cell_to_group[1] != model.cell_to_group[0]


def test_merged_objectives_have_one_weight_and_their_names() -> None:
    model = make_model().learn(20 * ROLLOUT)
    records = model.groups
    assert [(record.name, record.cells, record.steps) for record in records] == [
        ("profit+sales", [0, 1], ROLLOUT),
        ("rest", [2], ROLLOUT),
    ]
    logged = model.logger.name_to_value
    assert logged["objectives/profit_weight"] == logged["objectives/sales_weight"] == records[0].weight
    assert logged["objectives/rest_weight"] == records[1].weight
    shares = [logged[f"objectives/{name}_share"] for name in PAYS]
    assert sum(shares) == pytest.approx(1)
    # two halves of what the group has
    total = records[0].weight + records[1].weight
    assert shares == pytest.approx([records[0].weight / 2 / total, records[0].weight / 2 / total, records[1].weight / total])
    assert logged["groups/n_active"] == 2
    assert all(f"objectives/{name}_return" in logged for name in PAYS)


def test_lines_and_pictures_have_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, callback = make_model(verbose=1), GroupEvalCallback(make_env(), eval_freq=2 * ROLLOUT // 8, verbose=0)
    model.learn(12 * ROLLOUT, callback)
    assert "merge of groups 0 and 1 into 0 (profit, sales) after" in capsys.readouterr().out
    assert [list(moment.weights) for moment in callback.moments] == [list(PAYS)] * 6
    last = callback.moments[-1].weights
    assert last["profit"] == last["sales"] != last["rest"]
    figure = plot_regrouping(model, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    labels = [[label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes[:2]]
    assert labels == [list(PAYS), ["profit+sales", "rest"]]


def test_joining_by_hand() -> None:
    """Three objectives, two steps, the last two merged: their mean, as large as they are, times the weight of the group."""
    kind, none = ObjectiveGroups(make_model().policy, ["a", "b", "c"]), np.empty(0)
    kind.groups.apply_event(Merge(1, 2, 0.5, 0.0))
    values = np.zeros((2, 1, 3))
    kind.recorder.rollout = ObjectiveRollout(paid=none, rewards=none, values=values, advantages=none, returns=none)
    cells = np.repeat(np.arange(3), 2)
    outcome = Outcome(cells, np.zeros(6), none, none, none, EndedEpisodes(none, none, none, none))
    zeros = th.zeros(2)
    rollout = Rollout(th.zeros(2, 2), zeros, zeros, zeros, zeros, zeros, th.zeros(2, dtype=th.long), th.ones(2))
    weights = np.array([0.5, 0.5, 3.0, 3.0, 3.0, 3.0])

    def advantages(*of_merged: float) -> list[float]:
        return kind.join(rollout, outcome, np.array([4.0, 2.0, *of_merged]), weights).advantages.tolist()

    # deviations 1 and 3, root mean square sqrt 5
    assert advantages(1, -1, 3, -3) == pytest.approx([2 + 3 * math.sqrt(5), 1 - 3 * math.sqrt(5)])
    # what they say against each other is lost, and what is left is at most sqrt 2 times as large
    assert advantages(1, -1, -1, 1) == [2, 1]
    assert advantages(2, 0, -1, 1) == [2 + 3 / 2, 1 + 3 / 2]
    assert advantages(3, -3, -1, 1) == pytest.approx([2 + 3 * math.sqrt(2), 1 - 3 * math.sqrt(2)])


def actor(model: GRPO) -> dict[str, th.Tensor]:
    return {name: value for name, value in model.policy.state_dict().items() if "value" not in name}


@pytest.mark.parametrize("kwargs", [{}, dict(group_score="return")])
def test_the_unit_of_a_merged_objective_does_not_matter(kwargs: dict[str, Any]) -> None:
    scaled = {**PAYS, "sales": [64 * pay for pay in PAYS["sales"]]}
    one, other = (make_model(make_env(pays), **kwargs).learn(20 * ROLLOUT) for pays in (PAYS, scaled))
    assert one.cell_to_group == other.cell_to_group == [0, 0, 2]
    for name, value in actor(one).items():
        np.testing.assert_allclose(actor(other)[name], value, atol=1e-4, err_msg=name)


def test_copies_of_an_objective_change_nothing_once_they_are_merged() -> None:
    """Without noise: the update is that of one of them; as long as they are apart it is not."""
    copies = {"profit": PAYS["profit"], "rest": PAYS["rest"], "again": PAYS["profit"], "once more": PAYS["profit"]}
    differences = []
    for merged in (True, False):
        two = make_model(make_env(dict(list(copies.items())[:2]), noise=0.0), merge_kl=None, split_kl=None)
        four = make_model(make_env(copies, noise=0.0), merge_kl=None, split_kl=None)
        four.policy.load_state_dict({**four.policy.state_dict(), **actor(two)})
        if merged:
            for other in (2, 3):
                four._kind.groups.apply_event(Merge(0, other, 0.5, 0.0))
        for model in (two, four):
            model.policy.optimizer.param_groups[0]["params"] = list(model.policy.action_net.parameters())
            model.vf_coef = 0.0
            model.set_random_seed(1)
            model.learn(2 * ROLLOUT)
        differences.append(max((actor(two)[name] - value).abs().max().item() for name, value in actor(four).items()))
    assert differences[0] < 1e-4
    assert differences[1] > 1e-3


def test_saving_and_loading_goes_on(tmp_path: Path) -> None:
    model = make_model().learn(10 * ROLLOUT)
    assert model.cell_to_group == [0, 0, 2]
    model.save(tmp_path / "model")
    model.save_tensors(tmp_path / "model.safetensors")
    loaded = GRPO.load(tmp_path / "model", make_env())
    other = make_model()
    other.load_tensors(tmp_path / "model.safetensors")
    for each in (loaded, other):
        assert each.cell_to_group == [0, 0, 2]
        assert each.regroup_history == model.regroup_history
        assert isinstance(each.regroup_history[0], RegroupEvent)
        assert each.first_grouping == [0, 1, 2]
        for (name, mine), (_, theirs) in zip(model.training_state().items(), each.training_state().items(), strict=True):
            assert th.equal(mine, theirs), name
    for each in (model, loaded, other):
        each.set_env(make_env())
        each.set_random_seed(5)
        each.learn(4 * ROLLOUT, reset_num_timesteps=False)
    for each in (loaded, other):
        for name, value in model.policy.state_dict().items():
            assert th.equal(each.policy.state_dict()[name], value), name


def test_observing_changes_nothing() -> None:
    """Probes draw no random numbers: as long as nothing merges, a training is the same without them."""
    with_probes, without = make_model(regroup_warmup=1000), make_model(merge_kl=None, split_kl=None)
    for model in (with_probes, without):
        model.set_random_seed(1)
        model.learn(5 * ROLLOUT)
    assert with_probes.regrouper is not None
    assert with_probes.regrouper.probes.counts.sum() > 0, "the probes have not learnt: this test says less"
    for name, value in with_probes.policy.state_dict().items():
        assert th.equal(value, without.policy.state_dict()[name]), name
