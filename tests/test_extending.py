"""A new estimator, balancing rule and score: one class and one entry in a dictionary each, and nothing else."""

import re
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_envs import CountingEnv

from sb3_grpo import GRPO, TaskSamplingCallback
from sb3_grpo.balancing import BALANCERS, Balancer, GroupWeights
from sb3_grpo.buffers import GroupBufferMixin
from sb3_grpo.estimators import ESTIMATORS, AdvantageEstimator, Experience
from sb3_grpo.heads import split_heads
from sb3_grpo.recording import Outcome
from sb3_grpo.scores import SCORES, GroupScores, Score, ScoreHistory

N_TASKS, N_STEPS = 3, 30


class SecondAction(AdvantageEstimator):
    """Action 1 is better by the number of its cell plus 1, whatever the rewards are; no value is asked for."""

    uses_critic = False

    def __call__(self, buffer: GroupBufferMixin, outcome: Outcome, ended: np.ndarray) -> Experience:
        advantages = (2 * buffer.samples().actions.cpu().numpy().flatten() - 1) * (outcome.cells + 1)
        return Experience(buffer.samples(), outcome._replace(advantages=advantages), np.zeros(len(advantages), dtype=int))


class ByNumber(Balancer):
    """The weight of a group is its number, times ``group_coef``: the first is not trained."""

    def __call__(self, scores: GroupScores, progress_remaining: float) -> GroupWeights:
        coef = self.group_coef(progress_remaining)
        return GroupWeights(coef * scores.groups, coef)


class ShareOfGains(Score):
    """Share of the steps whose reward is above 0, less what the user wants it to be."""

    uses_targets = True

    def of_steps(self, outcome: Outcome, cell_to_unit: np.ndarray, history: ScoreHistory) -> tuple[np.ndarray, np.ndarray]:
        assert self.targets is not None
        return (outcome.rewards > 0) - self.targets[outcome.cells, 1], np.ones(len(outcome.cells))


@pytest.fixture
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ESTIMATORS, "toy", SecondAction)
    monkeypatch.setitem(BALANCERS, "toy", ByNumber)
    monkeypatch.setitem(SCORES, "toy", ShareOfGains)


def make_env() -> DummyVecEnv:
    return DummyVecEnv([lambda: CountingEnv(pay=(1.0, -2.0, 5.0), length=(3, 5, 4))] * 2)


def make_model(**kwargs: Any) -> GRPO:
    """Full batches and one epoch: all ratios are 1."""
    defaults: dict[str, Any] = dict(
        learning_rate=0.01,
        n_steps=N_STEPS,
        batch_size=2 * N_STEPS,
        n_epochs=1,
        normalize_advantage=False,
        router="one_hot",
        router_kwargs=dict(columns=(1, 1 + N_TASKS)),
        merge_kl=None,
        split_kl=None,
        group_coef=0.5,
        advantage_estimator="toy",
        balancer="toy",
        policy_kwargs=dict(net_arch=[8]),
        seed=0,
        device="cpu",
    )
    return GRPO("MlpPolicy", make_env(), **{**defaults, **kwargs})


def tensors(model: GRPO) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def moved(before: dict[str, th.Tensor], after: dict[str, th.Tensor]) -> set[str]:
    return {name for name in before if not before[name].equal(after[name])}


def share_of_second_action(model: GRPO) -> np.ndarray:
    """
    :return: probability of action 1 in each task, shape ``(N_TASKS,)``
    """
    obs = th.cat([th.full((N_TASKS, 1), 0.1), th.eye(N_TASKS)], dim=1)
    return model.policy.get_distribution(obs).log_prob(th.ones(N_TASKS)).exp().detach().numpy()


def check_decided(model: GRPO, before: dict[str, th.Tensor], first_share: np.ndarray) -> None:
    """Check what the toys do in the last rollout, and to the parameters."""
    buffer, records = model.rollout_buffer, {record.group: record for record in model.groups}
    assert {group: record.weight for group, record in records.items()} == {0: 0.0, 1: 0.5, 2: 1.0}
    samples = buffer.samples()
    assert isinstance(samples.observations, th.Tensor)
    groups = samples.observations[:, 1:].argmax(dim=1).numpy()
    advantages = (2 * samples.actions.numpy().flatten() - 1) * (groups + 1)
    assert model.logger.name_to_value["train/policy_gradient_loss"] == pytest.approx(
        -np.mean(0.5 * groups * advantages), rel=1e-4, abs=1e-6
    )
    assert model.logger.name_to_value["groups/coef_effective"] == 0.5
    after = tensors(model)
    assert not any("value" in name for name in after)
    heads = [split_heads(state["action_net.weight"], 0, N_TASKS) for state in (before, after)]
    assert [one.equal(other) for one, other in zip(*heads, strict=True)] == [True, False, False]
    assert (share_of_second_action(model)[1:] > first_share[1:] + 0.02).all()


@pytest.mark.usefixtures("_toys")
def test_both_decide_before_and_after_a_file(tmp_path):
    model = make_model()
    before, share = tensors(model), share_of_second_action(model)
    model.learn(10 * 2 * N_STEPS)
    check_decided(model, before, share)
    model.save(tmp_path / "model")
    loaded = GRPO.load(tmp_path / "model", env=make_env(), device="cpu")
    assert (loaded.advantage_estimator, loaded.balancer) == ("toy", "toy")
    before, share = tensors(loaded), share_of_second_action(loaded)
    assert moved(before, tensors(model)) == set()
    loaded.learn(10 * 2 * N_STEPS, reset_num_timesteps=False)
    check_decided(loaded, before, share)


@pytest.mark.usefixtures("_toys")
@pytest.mark.parametrize("name", ["advantage_estimator", "balancer"])
def test_each_alone(name):
    """Control: without the toy in its place the other decides what it decides, and this one does not."""
    builtin = {"advantage_estimator": "gae", "balancer": "relative_penalty"}[name]
    model = make_model(**{name: builtin})
    before = tensors(model)
    model.learn(4 * 2 * N_STEPS)
    trained_values = any(each.startswith("value_net.") for each in moved(before, tensors(model)))
    assert trained_values == (name == "advantage_estimator")
    by_number = [record.weight for record in model.groups] == [0.0, 0.5, 1.0]
    assert by_number == (name == "advantage_estimator")


@pytest.mark.usefixtures("_toys")
def test_the_rule_of_balancing_can_be_changed_between_trainings_and_the_estimator_cannot():
    model = make_model()
    model.learn(2 * N_STEPS)
    model.balancer = "relative_penalty"
    model.learn(2 * N_STEPS)
    assert [record.weight for record in model.groups] != [0.0, 0.5, 1.0]
    # a policy has a critic or has none
    model.advantage_estimator = "gae"
    with pytest.raises(ValueError, match=r"`advantage_estimator`.* of a model that is built cannot be assigned, got \('gae'"):
        model.learn(2 * N_STEPS)


class ThreeTasks(CountingEnv):
    """``CountingEnv`` whose tasks are played in turn, whatever probabilities are set."""

    probabilities = np.full(3, 1 / 3)

    def get_task_probabilities(self) -> np.ndarray:
        return self.probabilities

    def set_task_probabilities(self, probabilities: np.ndarray) -> None:
        self.probabilities = probabilities


# shares of gains are 1, 0 and 1: scores 0.5, -0.1 and 0.2
WANTED = [0.5, 0.1, 0.8]


@pytest.mark.usefixtures("_toys")
@pytest.mark.parametrize("lambda_", [0.01, 0.0])
def test_a_score_decides_in_the_loss_and_in_the_sampling_of_tasks(tmp_path, lambda_):
    env = DummyVecEnv([lambda: ThreeTasks(pay=(1.0, -2.0, 5.0), length=(5, 5, 5))] * 2)
    options: dict[str, Any] = dict(group_score="toy", group_targets=WANTED)
    model = make_model(**options, advantage_estimator="gae", balancer="relative_penalty", group_coef=lambda_)
    model.set_env(env)

    def check(model: GRPO) -> None:
        sampling = TaskSamplingCallback(lambda_, **options)
        model.learn(2 * N_STEPS, callback=sampling)
        assert [record.score for record in model.groups] == pytest.approx([0.5, -0.1, 0.2])
        weights, shares = [record.weight for record in model.groups], sampling.probabilities.tolist()
        if lambda_:
            # the mean is 0.2
            assert weights[1] > 1 > weights[0]
            assert weights[2] == pytest.approx(1)
            assert shares[1] > 1 / 3 > shares[0]
        else:
            assert (weights, shares) == ([1] * 3, pytest.approx([1 / 3] * 3))

    check(model)
    model.save(tmp_path / "model")
    loaded = GRPO.load(tmp_path / "model", env=env, device="cpu")
    assert (loaded.group_score, loaded.group_targets) == ("toy", WANTED)
    check(loaded)


def test_a_file_that_names_what_is_not_there_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(ESTIMATORS, "toy", SecondAction)
        patch.setitem(BALANCERS, "toy", ByNumber)
        patch.setitem(SCORES, "toy", ShareOfGains)
        make_model(group_score="toy", group_targets=WANTED).save(tmp_path / "model")
    with pytest.raises(ValueError, match=re.escape(f"`advantage_estimator` must be one of {list(ESTIMATORS)}, got 'toy'")):
        GRPO.load(tmp_path / "model", device="cpu")
    with pytest.raises(ValueError, match=re.escape(f"`balancer` must be one of {list(BALANCERS)}, or None, got 'toy'")):
        make_model(advantage_estimator="gae")
    with pytest.raises(ValueError, match=re.escape(f"`group_score` must be one of {list(SCORES)}, or None, got 'toy'")):
        make_model(advantage_estimator="gae", balancer="relative_penalty", group_score="toy")
