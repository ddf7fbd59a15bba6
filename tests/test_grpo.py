"""The algorithm from outside: reproducible, saved and loaded, logged, and stopped by bad input."""

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]  # tensorboard has no types
from tiny_envs import CountingEnv, FaultyEnv, RandomEnv

from sb3_grpo import GRPO, GroupRecord
from sb3_grpo.envs.cartpole import TaskCartPole

ONE_HOT: dict[str, Any] = dict(router="one_hot", router_kwargs=dict(columns=(4, 8)))


def make_model(env: Any, policy: Any = "MlpPolicy", algorithm: type[PPO] = GRPO, **kwargs: Any) -> Any:
    defaults: dict[str, Any] = dict(n_steps=32, batch_size=32, n_epochs=2, seed=0, policy_kwargs=dict(net_arch=[16]))
    return algorithm(policy, env, **{**defaults, **kwargs})


def tensors(model):
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def same_tensors(one, other):
    return all(th.equal(one[name], other[name]) for name in one)


def task_vec_env(n_envs=4):
    return make_vec_env("sb3_grpo/TaskCartPole-v0", n_envs=n_envs, seed=0)


class TestReproducibility:
    @pytest.mark.parametrize("options", [dict(), ONE_HOT, dict(n_groups=3, normalize_advantage="group")])
    def test_same_seed_same_weights(self, options):
        one, same, other = (tensors(make_model(task_vec_env(), **options, seed=s).learn(256)) for s in (1, 1, 2))
        assert same_tensors(one, same)
        assert not same_tensors(one, other)

    @pytest.mark.parametrize(
        "option",
        [
            dict(group_coef=0.1),
            dict(group_score="reward"),
            dict(group_score="raw_return"),
            dict(group_scale="range"),
        ],
        ids=str,
    )
    def test_every_option_has_an_effect(self, option):
        plain, changed = (
            tensors(make_model(make_counting_vec_env(), **{**COUNTING, "group_coef": 0.01, **options}).learn(128))
            for options in (dict[str, Any](), option)
        )
        assert not same_tensors(plain, changed)

    @pytest.mark.parametrize("given", [{}, dict(group_score="gap"), dict(balancer="relative_penalty")])
    def test_groups_of_decisions_have_the_penalty_by_default(self, given):
        """Also where gaps are compared, which objectives balance by odds."""
        found, expected = (
            tensors(make_model(make_counting_vec_env(), **COUNTING, **{**given, **each}).learn(256))
            for each in ({}, dict(balancer="relative_penalty", group_coef=0.05))
        )
        assert same_tensors(found, expected)

    def test_lambda_zero_leaves_all_weights_at_one(self):
        model = make_model(make_counting_vec_env(), **COUNTING, group_coef=0.0).learn(128)
        assert [record.weight for record in model.groups] == [1.0, 1.0]


COUNTING: dict[str, Any] = dict(router="one_hot", router_kwargs=dict(columns=(1, 3)))


def make_counting_vec_env(n_envs=2, **kwargs):
    return DummyVecEnv([lambda: CountingEnv(**kwargs)] * n_envs)


class TestSaving:
    def test_load(self, task_cartpole, tmp_path):
        model = make_model(task_cartpole, n_groups=2, max_groups=5).learn(256)
        model.save(tmp_path / "model")
        loaded = GRPO.load(tmp_path / "model")
        assert same_tensors(tensors(model), tensors(loaded))
        obs = task_cartpole.reset()
        np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
        assert repr(loaded.groups) == repr(model.groups)
        assert (loaded.n_groups, loaded.max_groups) == (2, 5)

    @pytest.mark.parametrize("n_envs", [1, 4, 7])
    def test_continue(self, task_cartpole, tmp_path, n_envs):
        make_model(task_cartpole, **ONE_HOT).learn(256).save(tmp_path / "model")

        def resume():
            env = task_vec_env(n_envs)
            model = GRPO.load(tmp_path / "model", env=env)
            model.set_random_seed(3)
            before = tensors(model)
            model.learn(32 * n_envs, reset_num_timesteps=False)
            assert not same_tensors(before, tensors(model))
            assert model.num_timesteps == 256 + 32 * n_envs
            return tensors(model)

        weights = resume()
        assert all(value.isfinite().all() for value in weights.values())
        assert same_tensors(weights, resume())

    def test_router_is_not_fitted_again(self, task_cartpole, tmp_path):
        model = make_model(task_cartpole, n_groups=2, merge_kl=None, split_kl=None).learn(128)
        model.save(tmp_path / "model")
        loaded = GRPO.load(tmp_path / "model", env=task_cartpole).learn(128)
        for name in ("grouping.router.weight", "grouping.router.bias", "grouping.cell_to_group"):
            assert loaded.policy.state_dict()[name].equal(model.policy.state_dict()[name])

    def test_loaded_optimizer_continues(self, task_cartpole, tmp_path):
        model = make_model(task_cartpole).learn(256)
        model.save(tmp_path / "model")
        expected = model.policy.optimizer.state_dict()["state"]
        actual = GRPO.load(tmp_path / "model").policy.optimizer.state_dict()["state"]
        assert all(expected[i]["exp_avg"].equal(actual[i]["exp_avg"]) for i in expected)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (dict(n_groups=3), r"`n_groups` of a saved model cannot be changed: it was built with 1, got 3"),
            (dict(max_groups=6), r"`max_groups` of a saved model cannot be changed: it was built with 8, got 6"),
            (dict(router_kwargs=dict(n_cells=9)), r"`n_cells` of a saved model cannot be changed: it was built with 8, got 9"),
            (ONE_HOT, r"`router` of a saved model cannot be changed: it was built with 'random', got 'one_hot'"),
        ],
    )
    def test_groups_of_a_saved_model_cannot_be_changed(self, task_cartpole, tmp_path, change, message):
        make_model(task_cartpole).save(tmp_path / "model")
        with pytest.raises(ValueError, match=message):
            GRPO.load(tmp_path / "model", **change)

    def test_what_does_not_change_the_groups_can_be_given(self, task_cartpole, tmp_path):
        make_model(task_cartpole, n_groups=2).save(tmp_path / "model")
        loaded = GRPO.load(tmp_path / "model", env=task_cartpole, n_groups=2, group_coef=1e-5, learning_rate=1e-5)
        loaded.learn(128)
        assert loaded.group_coef == 1e-5
        assert loaded.logger.name_to_value["groups/coef_effective"] == 1e-5

    def test_set_parameters(self, task_cartpole, tmp_path):
        trained, fresh = make_model(task_cartpole).learn(256), make_model(task_vec_env(), seed=5)
        assert not same_tensors(tensors(trained), tensors(fresh))
        fresh.set_parameters(trained.get_parameters())
        assert same_tensors(tensors(trained), tensors(fresh))
        trained.save(tmp_path / "model")
        other = make_model(task_vec_env(), seed=6)
        other.set_parameters(str(tmp_path / "model"))
        assert same_tensors(tensors(trained), tensors(other))

    def test_continue_without_saving(self, task_cartpole):
        model = make_model(task_cartpole).learn(128)
        model.learn(128, reset_num_timesteps=False)
        assert model.num_timesteps == 256
        model.learn(128)
        assert model.num_timesteps == 128


class TestAsPpo:
    def test_arguments_come_in_the_same_order_with_the_same_defaults(self):
        ppo, grpo = (list(inspect.signature(cls.__init__).parameters.values()) for cls in (PPO, GRPO))
        assert [(p.name, p.default, p.kind) for p in grpo[: len(ppo)]] == [(p.name, p.default, p.kind) for p in ppo]
        assert {p.kind for p in grpo[len(ppo) :]} == {inspect.Parameter.KEYWORD_ONLY}

    def test_eval_and_checkpoint_callbacks(self, task_cartpole, tmp_path):
        evaluation = EvalCallback(
            task_vec_env(1), eval_freq=32, n_eval_episodes=2, best_model_save_path=f"{tmp_path}", verbose=0
        )
        checkpoint = CheckpointCallback(save_freq=32, save_path=str(tmp_path), name_prefix="grpo")
        model = make_model(task_cartpole)
        initial = tensors(model)
        model.learn(256, callback=[evaluation, checkpoint])
        assert evaluation.n_calls == 64
        assert math.isfinite(evaluation.best_mean_reward)
        GRPO.load(tmp_path / "best_model")
        # checkpoints are written before the first and before the second update
        first, second = (tensors(GRPO.load(tmp_path / f"grpo_{steps}_steps")) for steps in (128, 256))
        assert same_tensors(initial, first)
        assert not same_tensors(initial, second)
        assert not same_tensors(second, tensors(model))

    @pytest.mark.parametrize("options", [dict(), ONE_HOT])
    def test_vec_normalize(self, options):
        env = VecNormalize(task_vec_env())
        model = make_model(env, **options).learn(256)
        assert model.get_vec_normalize_env() is env
        assert env.ret_rms.var != 1
        assert sum(record.steps for record in model.groups) == 128

    def test_frame_stack(self, cartpole):
        assert make_model(VecFrameStack(cartpole, 3)).learn(64).num_timesteps == 64

    def test_frame_stack_over_vec_normalize(self, cartpole):
        assert make_model(VecFrameStack(VecNormalize(cartpole), 3)).learn(64).num_timesteps == 64

    # tqdm calls its own rich progress bar experimental
    @pytest.mark.filterwarnings("ignore:rich is experimental/alpha")
    def test_progress_bar(self, cartpole):
        assert make_model(cartpole).learn(64, progress_bar=True).num_timesteps == 64

    def test_set_logger(self, cartpole, tmp_path):
        model = make_model(cartpole)
        model.set_logger(configure(str(tmp_path), ["csv"]))
        # the values of an update are written after the next rollout
        model.learn(128)
        model.logger.close()
        header = (tmp_path / "progress.csv").read_text().splitlines()[0]
        assert "train/loss" in header
        assert "groups/eta_squared" in header

    def test_verbose_output(self, task_cartpole, capsys):
        make_model(task_cartpole, verbose=1).learn(256)
        printed = capsys.readouterr().out
        assert "approx_kl" in printed
        assert "eta_squared" in printed


def tags(path):
    accumulator = EventAccumulator(str(path))
    accumulator.Reload()
    return set(accumulator.Tags()["scalars"])


class TestTensorBoard:
    @pytest.mark.parametrize("options", [dict(), dict(clip_range_vf=0.2)], ids=["defaults", "clip_range_vf"])
    def test_tags_are_those_of_ppo_and_groups(self, tmp_path, options):
        # a second rollout, after which the first episodes' statistics are written
        options = dict(options, tensorboard_log=str(tmp_path))
        make_model(task_vec_env(), algorithm=PPO, **options).learn(256)
        make_model(task_vec_env(), n_groups=2, **options).learn(256)
        ppo, grpo = tags(tmp_path / "PPO_1"), tags(tmp_path / "GRPO_1")
        assert {"train/loss", "rollout/ep_rew_mean", "time/fps"} <= ppo <= grpo
        extra = grpo - ppo
        assert all(tag.startswith("groups/") for tag in extra)
        assert {"groups/penalty", "groups/eta_squared", "groups/coef_effective"} <= extra
        active = {tag.rsplit("_", 1)[1] for tag in extra if tag.startswith("groups/weight_")}
        assert len(active) > 1
        assert {f"groups/{name}_{group}" for name in ("score", "weight", "share") for group in active} <= extra

    def test_box_actions_have_the_tag_of_their_standard_deviation(self, tmp_path):
        make_model("Pendulum-v1", tensorboard_log=str(tmp_path)).learn(64)
        assert "train/std" in tags(tmp_path / "GRPO_1")

    def test_log_name(self, cartpole, tmp_path):
        make_model(cartpole, tensorboard_log=str(tmp_path)).learn(64, tb_log_name="mine")
        assert [path.name for path in tmp_path.iterdir()] == ["mine_1"]

    def test_many_groups_are_logged_but_not_printed(self, tmp_path, capsys):
        env = RandomEnv(spaces.Box(-1, 1, (2,)), spaces.Discrete(2))
        make_model(env, n_groups=10, tensorboard_log=str(tmp_path), verbose=1, n_steps=256).learn(512)
        printed = capsys.readouterr().out
        assert len([tag for tag in tags(tmp_path / "GRPO_1") if tag.startswith("groups/score_")]) == 10
        assert "score_" not in printed
        assert "eta_squared" in printed


class TestGroupRecords:
    def test_before_training(self, task_cartpole):
        records = make_model(task_cartpole, **ONE_HOT).groups
        assert [(r.group, r.cells, r.steps, r.weight) for r in records] == [(g, [g], 0, 1.0) for g in range(4)]
        assert all(math.isnan(record.score) for record in records)

    # both environments play 4 rollouts of 3 + 5 steps; with gamma 1 the returns-to-go are 3, 2, 1 and 2 (5, 4, 3, 2, 1), in
    # units of the rewards 1 and 2: scores 2 and 3, shares 3/8 and 5/8, variance 111/64, slopes 4 * 2 * -+0.5 / (111/64)
    slope = 256 / 111

    def test_by_hand(self):
        model = make_model(make_counting_vec_env(), **COUNTING, gamma=1.0, gae_lambda=1.0, group_coef=0.01).learn(64)
        first, second = model.groups
        assert (first.group, first.cells, first.steps) == (0, [0], 24)
        assert (second.group, second.cells, second.steps) == (1, [1], 40)
        assert (first.score, second.score) == pytest.approx((2.0, 3.0), abs=1e-6)
        logged = model.logger.name_to_value
        assert logged["groups/share_0"] == pytest.approx(3 / 8)
        assert logged["groups/score_1"] == pytest.approx(3.0)
        assert logged["groups/eta_squared"] == pytest.approx(15 / 111, abs=1e-6)
        assert logged["groups/penalty"] == pytest.approx(128 / 111, rel=1e-5)
        # what one gains the other loses: 3/8 (w_0 - 1) = 5/8 (1 - w_1)
        assert first.weight > 1 > second.weight >= 0
        assert 3 * (first.weight - 1) == pytest.approx(5 * (1 - second.weight))

    @pytest.mark.parametrize("normalize_advantage", [True, False])
    def test_weights_of_advantages_that_are_not_normalised_by_group(self, normalize_advantage):
        options = dict(gamma=1.0, gae_lambda=1.0, group_coef=0.01, normalize_advantage=normalize_advantage)
        model = make_model(make_counting_vec_env(), **COUNTING, **options)
        for parameter in model.policy.value_net.parameters():
            th.nn.init.zeros_(parameter)
        first, second = model.learn(64).groups
        # with values of 0 advantages are returns, and have their deviation, sqrt(111) / 8 in units of the rewards
        step = 0.01 * self.slope * math.sqrt(111) / 8
        assert first.weight == pytest.approx(1 + step / (3 / 8), rel=1e-5)
        assert second.weight == pytest.approx(1 - step / (5 / 8), rel=1e-5)

    @pytest.mark.parametrize("normalize_advantage", [True, "group"])
    @pytest.mark.parametrize("pay", [(1.0, 2.0), (1.0, 30.0), (0.1, 1.0), (-1.0, -7.0)])
    def test_the_size_of_the_rewards_puts_no_group_ahead(self, pay, normalize_advantage):
        """Where both tasks are played alike the weights are 1, whatever they pay for it."""
        env = DummyVecEnv([lambda: CountingEnv(pay=pay, length=(4, 4))] * 2)
        options = dict(gamma=1.0, gae_lambda=1.0, group_coef=0.5, normalize_advantage=normalize_advantage)
        model = make_model(env, **COUNTING, **options).learn(64)
        sign = math.copysign(1, pay[0])
        assert [record.score for record in model.groups] == pytest.approx([2.5 * sign, 2.5 * sign])
        assert [record.weight for record in model.groups] == pytest.approx([1, 1], abs=1e-5)

    def test_of_a_group_without_rewards_is_zero(self):
        env = DummyVecEnv([lambda: CountingEnv(pay=(0.0, 2.0), length=(4, 4))] * 2)
        model = make_model(env, **COUNTING, gamma=1.0, gae_lambda=1.0, group_coef=0.01).learn(64)
        first, second = model.groups
        assert (first.score, second.score) == pytest.approx((0.0, 2.5))
        # nothing says how large a step of it would have to be, and the other has none to be compared with
        assert (first.weight, second.weight) == (1, 1)

    def test_the_value_at_a_time_limit_is_no_reward(self):
        """SB3 adds it to the last reward; a policy that lasts to the limit would look worse for it."""

        class Long(CountingEnv):
            def step(self, action):
                obs, reward, end, _, info = super().step(action)
                return obs, reward, False, end, info

        env = DummyVecEnv([lambda: Long(pay=(1.0, 1.0), length=(4, 4))] * 2)
        model = make_model(env, **COUNTING, gamma=1.0, gae_lambda=1.0)
        th.nn.init.constant_(model.policy.value_net.bias, 100.0)
        model.learn(64)
        assert model.rollout_buffer.rewards.max() > 50
        assert model.score_history.reward_scale.scale.tolist() == pytest.approx([1.0, 1.0])

    def test_all_steps_and_cells_belong_to_a_group(self, task_cartpole):
        model = make_model(task_cartpole, n_groups=3, router_kwargs=dict(n_cells=7)).learn(256)
        assert all(isinstance(record, GroupRecord) for record in model.groups)
        assert sum(record.steps for record in model.groups) == 4 * 32
        assert sorted(cell for record in model.groups for cell in record.cells) == list(range(7))
        assert len({record.weight for record in model.groups}) > 1

    def test_score_by_reward_or_return(self):
        options = dict(**COUNTING, gamma=1.0, gae_lambda=1.0)
        by_return, by_reward = (
            make_model(make_counting_vec_env(), **options, group_score=kind).learn(64).groups for kind in ("return", "reward")
        )
        # in units of the rewards, 1 and 2; mean return-to-go: (3 + 2 + 1) / 3 and (5 + 4 + 3 + 2 + 1) / 5
        assert [record.score for record in by_reward] == pytest.approx([1.0, 1.0])
        assert [record.score for record in by_return] == pytest.approx([2.0, 3.0])

    def test_default_number_of_groups(self, cartpole, task_cartpole):
        assert make_model(cartpole).n_groups == 1
        assert make_model(cartpole, max_groups=1).n_groups == 1
        assert make_model(cartpole, max_groups=5).n_groups == 1
        assert make_model(task_cartpole, **ONE_HOT).n_groups == 4
        assert make_model(cartpole, router=left_or_right, router_kwargs=dict(n_cells=2)).n_groups == 2

    @pytest.mark.parametrize(
        ("options", "max_groups"),
        [
            (dict(), 8),
            (dict(n_groups=1), 1),
            (dict(n_groups=2), 8),
            (dict(n_groups=10), 10),
            (dict(max_groups=5), 5),
            (dict(router_kwargs=dict(n_cells=5)), 5),
            (dict(n_groups=2, **ONE_HOT), 4),
            (dict(split_kl=None), 1),
            (dict(n_groups=2, split_kl=None), 2),
            (dict(n_groups=3, split_kl=None, **ONE_HOT), 3),
            (dict(max_groups=3, split_kl=None), 3),
        ],
        ids=str,
    )
    def test_default_number_of_heads(self, task_cartpole, options, max_groups):
        assert make_model(task_cartpole, **options).max_groups == max_groups


class TestLambda:
    def effective(self, group_coef):
        model = make_model(make_counting_vec_env(), **COUNTING, group_coef=group_coef)
        values = []

        class Watch(BaseCallback):
            def _on_step(self):
                return True

            def _on_rollout_start(self):
                values.append(self.logger.name_to_value.get("groups/coef_effective"))

        model.learn(256, callback=Watch(), log_interval=100)
        return [*values[1:], model.logger.name_to_value["groups/coef_effective"]]

    def test_number(self):
        assert self.effective(0.001) == [0.001] * 4

    def test_string(self):
        # the progress that remains at the end of rollouts 1 to 4
        assert self.effective("lin_0.004") == pytest.approx([0.003, 0.002, 0.001, 0.0])

    def test_function_of_the_remaining_progress(self):
        assert self.effective(lambda left: 0.001 * left**2) == pytest.approx([0.001 * x**2 for x in (0.75, 0.5, 0.25, 0)])

    def test_cap(self):
        capped = self.effective(1000)
        assert max(capped) < 1
        assert min(capped) > 0

    @pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
    def test_schedule_that_becomes_bad(self, bad):
        model = make_model(make_counting_vec_env(), **COUNTING, group_coef=lambda left: 0.01 if left > 0.6 else bad)
        snapshot = Snapshot()
        with pytest.raises(ValueError, match=rf"`group_coef` must be finite and at least 0, got {bad}"):
            model.learn(256, callback=snapshot)
        assert snapshot.n_updates == 2
        assert same_tensors(snapshot.weights, tensors(model))


class Snapshot(BaseCallback):
    """Notes the weights before every rollout and every update."""

    def __init__(self):
        super().__init__()
        self.weights: dict[str, th.Tensor] = {}
        self.n_updates = 0

    def _on_step(self):
        return True

    def _on_rollout_start(self):
        self.weights = tensors(self.model)

    def _on_rollout_end(self):
        self.weights = tensors(self.model)
        self.n_updates += 1


def left_or_right(obs):
    return (obs[:, 0] > 0).long()


def outside(obs):
    return th.full((len(obs),), 7)


def negative(obs):
    return th.full((len(obs),), -1)


BAD_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    (dict(router="one_hot", router_kwargs=dict(columns=(4, 9))), r"`columns` must be .*<= 8.*got \(4, 9\)"),
    (dict(router="discrete", router_kwargs=dict(key="task")), r'router="discrete" needs a Dict observation, got Box'),
    (dict(n_groups=0), r"`n_groups` must be between 1 and `max_groups` \(8\), got 0"),
    (dict(n_groups=0, split_kl=None), r"`n_groups` must be between 1 and `max_groups` \(0\), got 0"),
    (dict(n_groups=-2, max_groups=3), r"`n_groups` must be between 1 and `max_groups` \(3\), got -2"),
    (dict(max_groups=0), r"`n_groups` must be between 1 and `max_groups` \(0\), got 1"),
    (dict(n_groups=5, max_groups=4), r"`n_groups` must be between 1 and `max_groups` \(4\), got 5"),
    (dict(n_groups=5, **ONE_HOT), r"`n_groups` must be at most the number of cells \(4\), got 5"),
    (dict(group_coef=-0.1), r"`group_coef` must be finite and at least 0, got -0.1"),
    (dict(group_coef=math.nan), r"`group_coef` must be finite and at least 0, got nan"),
    (dict(group_coef=math.inf), r"`group_coef` must be finite and at least 0, got inf"),
    (dict(group_coef="lin_-0.1"), r"`group_coef` must be finite and at least 0, got -0.1"),
    (dict(group_coef="exp_0.1"), r"`group_coef` must be a number, a schedule or a string like \"lin_0.05\", got 'exp_0.1'"),
    (dict(group_coef="lin_much"), r"`group_coef` must be .* got 'lin_much'"),
    (dict(group_coef="0.05"), r"`group_coef` must be .* got '0.05'"),
    (dict(router="nearest"), r"`router` must be one of .* got 'nearest'"),
    (dict(router_kwargs=dict(cells=3)), r"`router_kwargs` .*'cells': 3.* do not fit router 'random'"),
    (dict(group_score="median"), r"`group_score` must be one of \['return', .*\], or None, got 'median'"),
    (dict(group_scale="iqr"), r"`group_scale` must be one of \['std', 'range'\], got 'iqr'"),
    (dict(merge_kl=-0.1), r"`merge_kl` must be finite and at least 0, or None, got -0.1"),
    (dict(split_kl=math.inf), r"`split_kl` must be finite and at least 0, or None, got inf"),
    (dict(split_kl=math.nan), r"`split_kl` must be finite and at least 0, or None, got nan"),
    (dict(merge_kl=0.3, split_kl=0.3), r"`merge_kl` must be below `split_kl`, got 0.3 and 0.3"),
    (dict(regroup_freq=0), r"`regroup_freq` must be an integer of at least 1, or None, got 0"),
    (dict(regroup_freq=1.5), r"`regroup_freq` must be an integer of at least 1, or None, got 1.5"),
    (dict(regroup_warmup=-1), r"`regroup_warmup` must be an integer of at least 0, or None, got -1"),
    (dict(probe_kl_coef=0.0), r"`probe_kl_coef` must be finite and above 0, got 0.0"),
    (dict(probe_kl_coef=math.nan), r"`probe_kl_coef` must be finite and above 0, got nan"),
    (dict(normalize_advantage="task"), r"`normalize_advantage` must be one of \[True, False, 'group'\], got 'task'"),
]


class TestBadInput:
    @pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS, ids=lambda value: str(value)[:40])
    def test_of_the_constructor(self, task_cartpole, arguments, message):
        with pytest.raises(ValueError, match=message):
            make_model(task_cartpole, **arguments)

    @pytest.mark.parametrize(
        ("policy", "advice"),
        [
            (ActorCriticPolicy, "'ActorCriticPolicy': derive your class from sb3_grpo.policies.GroupActorCriticPolicy"),
            ("LinearPolicy", "'LinearPolicy': derive your class from"),
            ("MlpLstmPolicy", "'MlpLstmPolicy': recurrent policies have no groups; .* VecFrameStack"),
            (type("RecurrentPolicy", (ActorCriticPolicy,), {}), "'RecurrentPolicy': recurrent policies have no groups"),
        ],
    )
    def test_policy_of_another_package(self, cartpole, policy, advice):
        with pytest.raises(
            ValueError, match=rf"`policy` must be one of .* or a subclass of GroupActorCriticPolicy, got {advice}"
        ):
            make_model(cartpole, policy=policy)

    def test_key_that_does_not_exist(self):
        with pytest.raises(ValueError, match=r"`key` must be one of .*\['obs', 'task'\], got 'job'"):
            make_model(
                TaskCartPole(task_observation="dict"), "MultiInputPolicy", router="discrete", router_kwargs=dict(key="job")
            )

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (dict(router="one_hot", router_kwargs=dict(columns=(0, 3))), r"`columns` \(0, 3\) must hold a one-hot block"),
            (dict(router=outside, router_kwargs=dict(n_cells=3)), r"must lie in \[0, 3\), got values from 7 to 7"),
            (dict(router=negative, router_kwargs=dict(n_cells=3)), r"must lie in \[0, 3\), got values from -1 to -1"),
            (dict(router=lambda obs: obs, router_kwargs=dict(n_cells=3)), r"must have shape \(4,\), got \(4, 8\)"),
        ],
    )
    @pytest.mark.parametrize("normalize", [True, False])
    def test_found_in_the_first_observations(self, options, message, normalize):
        env = VecNormalize(task_vec_env()) if normalize else task_vec_env()
        model, snapshot = make_model(env, **options), Snapshot()
        with pytest.raises(ValueError, match=message):
            model.learn(128, callback=snapshot)
        assert model.num_timesteps == snapshot.n_updates == 0

    def test_callable_that_reads_a_discrete_entry_may_train(self):
        env = TaskCartPole(task_observation="dict")
        options: dict[str, Any] = dict(router=lambda obs: obs["task"].long(), router_kwargs=dict(n_cells=4), batch_size=32)
        assert make_model(env, "MultiInputPolicy", **options).learn(64).num_timesteps == 64

    def test_callable_that_reads_a_discrete_observation_may_train(self):
        env = RandomEnv(spaces.Discrete(3), spaces.Discrete(2))
        assert make_model(env, router=lambda obs: obs.long(), router_kwargs=dict(n_cells=3)).learn(64).num_timesteps == 64


class Poison(Snapshot):
    """Makes one parameter of one head NaN before the second update, or before the rollout after the first one."""

    def __init__(self, layer, n_outputs, group, before):
        super().__init__()
        self.layer, self.row, self.before = layer, n_outputs * group, before

    def _poison(self):
        with th.no_grad():
            getattr(self.model.policy, self.layer).weight[self.row] = th.nan

    def _on_rollout_start(self):
        if self.before == "rollout" and self.n_updates == 1:
            self._poison()
        super()._on_rollout_start()

    def _on_rollout_end(self):
        if self.before == "update" and self.n_updates == 1:
            self._poison()
        super()._on_rollout_end()


def bits(state):
    return {name: value.numpy().tobytes() for name, value in state.items()}


# its advantages are computed before GRPO sees the rewards
SB3_SUBTRACTS_INFINITIES = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


class TestNotFinite:
    def run(self, where, value, after, n_steps=32, **kwargs):
        model = make_model(FaultyEnv(where, value, after), **COUNTING, n_steps=n_steps, batch_size=n_steps, **kwargs)
        snapshot = Snapshot()
        initial = tensors(model)
        with pytest.raises(ValueError) as error:
            model.learn(4 * n_steps, callback=snapshot)
        before, now = snapshot.weights or initial, tensors(model)
        return str(error.value), {name for name in now if not th.equal(before[name], now[name])}, snapshot.n_updates

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize(("after", "n_updates"), [(8, 1), (70, 3)])
    @SB3_SUBTRACTS_INFINITIES
    def test_rewards(self, value, after, n_updates):
        message, changed, updates = self.run("reward", value, after)
        assert message.startswith("rewards must be finite, but 1 of 32 steps")
        assert "in groups [1]" in message
        assert not changed
        assert updates == n_updates

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("after", [8, 70])
    def test_observations(self, value, after):
        message, changed, _ = self.run("observation", value, after)
        # NaN is met while the rollout is collected; the trunk's tanh makes infinity finite, so it is met afterwards
        assert message.startswith(f"observations must be finite, but 1 of {1 if math.isnan(value) else 32} ")
        assert "groups [1]" in message
        assert not changed

    def test_infinite_observation_of_the_first_rollout_does_not_reach_the_random_router(self):
        model, snapshot = make_model(FaultyEnv("observation", math.inf, after=8)), Snapshot()
        with pytest.raises(ValueError, match="observations must be finite"):
            model.learn(64, callback=snapshot)
        assert bits(snapshot.weights) == bits(tensors(model))

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_observation_after_the_last_step_of_a_rollout(self, value):
        # of episodes of 3 steps the 5th step lies inside that of task 1
        message, changed, _ = self.run("observation", value, after=4, n_steps=5)
        assert "observations must be finite" in message
        assert "groups [1]" in message
        assert not changed

    def test_loss_that_overflows_names_the_group(self):
        message, changed, updates = self.run("reward", 1e25, after=70)
        assert message.startswith("the loss is NaN or infinite")
        assert "in groups [1]" in message
        assert not changed
        assert updates == 3

    @pytest.mark.parametrize(("layer", "n_outputs"), [("value_net", 1), ("action_net", 2)])
    @pytest.mark.parametrize("group", [0, 1])
    @pytest.mark.parametrize(("before", "n_updates"), [("rollout", 1), ("update", 2)])
    def test_head(self, layer, n_outputs, group, before, n_updates):
        model = make_model(make_counting_vec_env(), **COUNTING)
        poison = Poison(layer, n_outputs, group, before)
        with pytest.raises(ValueError, match=rf"NaN or infinite .*groups \[{group}\]"):
            model.learn(256, callback=poison)
        assert poison.n_updates == n_updates
        assert bits(poison.weights) == bits(tensors(model))

    @pytest.mark.parametrize("before", ["rollout", "update"])
    def test_head_of_gaussian_actions(self, before):
        env = DummyVecEnv([lambda: RandomEnv(spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (2,)))])
        model = make_model(env, router=left_or_right, router_kwargs=dict(n_cells=2))
        poison = Poison("action_net", 2, 1, before)
        with pytest.raises(ValueError, match=r"NaN or infinite .*groups \[1\]"):
            model.learn(128, callback=poison)
        assert bits(poison.weights) == bits(tensors(model))

    def test_the_same_environment_without_a_fault_trains(self):
        model = make_model(FaultyEnv("reward", 1.0, after=8), **COUNTING)
        assert model.learn(128).num_timesteps == 128


class ZeroValues(BaseCallback):
    """The values start at 0, so that advantages are proportional to rewards."""

    def _on_step(self):
        return True

    def _on_training_start(self):
        with th.no_grad():
            for parameter in self.model.policy.get_submodule("value_net").parameters():
                parameter.zero_()


@pytest.mark.parametrize(("normalize_advantage", "invariant"), [("group", True), (True, False), (False, False)])
def test_reward_scale_of_one_task(normalize_advantage, invariant):
    def train(pay):
        options = dict(**COUNTING, group_coef=0.0, vf_coef=0.0, normalize_advantage=normalize_advantage, batch_size=64)
        model = make_model(make_counting_vec_env(pay=pay), **options)
        return tensors(model.learn(64, callback=ZeroValues()))["mlp_extractor.policy_net.0.weight"]

    assert th.allclose(train((1.0, 2.0)), train((1.0, 20.0)), atol=1e-6) == invariant
