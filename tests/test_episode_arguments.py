"""What estimators without a critic ask of arguments and environments; errors come before anything is built or trained."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecNormalize
from tiny_envs import CountingEnv

from sb3_grpo import GRPO, MlpPolicy, make_group_vec_env
from sb3_grpo.arguments import check_arguments

CRITIC_FREE = ["outcome", "process", "time_step"]
OPTIONS = ["scale", "aggregation", "ratio", "alike", "truncated", "max_rollouts"]
N_STEPS = 16


def counting() -> gym.Env:
    return CountingEnv(pay=(1.0,), length=(4,))


def groups(group_size: int = 2, n_starts: int = 2, make_env: Any = counting, **kwargs: Any) -> VecEnv:
    return make_group_vec_env(make_env, group_size, n_starts, seed=0, **kwargs)


def build(env: VecEnv | None = None, **kwargs: Any) -> GRPO:
    given = dict(advantage_estimator="outcome", n_steps=N_STEPS, batch_size=N_STEPS, n_epochs=1, device="cpu")
    return GRPO(MlpPolicy, groups() if env is None else env, **{**given, **kwargs})


@pytest.fixture
def built(monkeypatch):
    """Policies that have been built."""
    made: list[MlpPolicy] = []
    initialise = MlpPolicy.__init__

    def counted(self, *args, **kwargs):
        made.append(self)
        initialise(self, *args, **kwargs)

    monkeypatch.setattr(MlpPolicy, "__init__", counted)
    return made


@pytest.fixture
def refused(built):
    """Check that a model is refused before a policy is built, and return the message."""

    def refuse(env: VecEnv | None = None, **kwargs: Any) -> str:
        with pytest.raises(ValueError) as error:
            build(env, **kwargs)
        assert built == []
        return str(error.value)

    return refuse


class Nothing(BaseCallback):
    """Fail when a step has been done."""

    def _on_step(self) -> bool:
        raise AssertionError("training has begun")


class TestGroupSize:
    @pytest.mark.parametrize(("size", "n_envs"), [(3, 4), (4, 6), (5, 4), (8, 4)])
    @pytest.mark.parametrize("estimator", CRITIC_FREE)
    def test_must_divide_the_environments(self, refused, estimator, size, n_envs):
        env = groups(2, n_envs // 2)
        rule = "`group_size` must be at least 2 and divide the number of environments, whose episodes are compared"
        assert refused(env, advantage_estimator=estimator, group_size=size) == f"{rule}; got {size} for {n_envs}"

    def test_one_environment(self, refused):
        message = refused(make_vec_env(counting), advantage_estimator="time_step")
        assert message.startswith("`group_size` must be at least 2 and divide")
        assert message.endswith("got 1 for 1")

    @pytest.mark.parametrize("size", [1, 0, 2.0])
    def test_range(self, refused, size):
        assert refused(group_size=size) == f"`group_size` must be an integer of at least 2, or None, got {size}"

    def test_with_a_critic(self, refused):
        message = refused(advantage_estimator="gae", group_size=2)
        assert message.startswith("`group_size` must be None with advantage_estimator='gae', which has a critic")
        assert message.endswith("got 2")

    def test_is_that_of_the_environments(self, refused):
        message = refused(groups(2, 2), group_size=4)
        assert message == ("`group_size` must be that of make_group_vec_env, got 4 for environments with starts [0, 0, 1, 1]")
        # None is all environments
        assert refused(groups(2, 2)) == message
        assert refused(groups(4, 1), group_size=2).endswith("got 2 for environments with starts [0, 0, 0, 0]")

    @pytest.mark.parametrize("estimator", CRITIC_FREE)
    def test_that_fits(self, estimator, built):
        build(groups(2, 2), advantage_estimator=estimator, group_size=2)
        build(groups(4, 1), advantage_estimator=estimator)
        assert len(built) == 2

    def test_time_step_compares_across_starts(self):
        build(groups(2, 2), advantage_estimator="time_step")


class TestSharedStart:
    @pytest.mark.parametrize("estimator", ["outcome", "process"])
    @pytest.mark.parametrize("wrap", [lambda env: env, VecNormalize])
    def test_is_needed(self, refused, estimator, wrap):
        message = refused(wrap(make_vec_env(counting, 4)), advantage_estimator=estimator)
        assert message.startswith("`env` must be made by make_group_vec_env, so that episodes begin alike")
        assert "'time_step' needs no such environments" in message

    @pytest.mark.parametrize("estimator", ["outcome", "process"])
    def test_in_wrappers(self, estimator):
        build(VecNormalize(groups(4, 1)), advantage_estimator=estimator)

    @pytest.mark.parametrize("estimator", ["time_step", "gae"])
    def test_is_not_needed(self, estimator):
        build(make_vec_env(counting, 4), advantage_estimator=estimator)

    def test_environments_that_are_set_later(self):
        model = build(groups(4, 1))
        model.set_env(make_vec_env(counting, 4))
        with pytest.raises(ValueError, match="`env` must be made by make_group_vec_env"):
            model.learn(64, Nothing())
        model.set_env(groups(2, 2))
        with pytest.raises(ValueError, match="got 4 for environments with starts"):
            model.learn(64, Nothing())


def limited(length: int) -> gym.Env:
    return TimeLimit(CountingEnv(pay=(1.0,), length=(1000,)), length)


def called(**kwargs: Any) -> gym.Env:
    return CountingEnv((1.0,), (kwargs["length"](),))


class TestLengths:
    @pytest.mark.parametrize("estimator", CRITIC_FREE)
    def test_longer_than_a_rollout(self, refused, estimator):
        env = groups(4, 1, partial(limited, N_STEPS + 1))
        message = refused(env, advantage_estimator=estimator)
        assert message.startswith(f"`n_steps` must be at least {N_STEPS + 1}, the length of the longest episode")
        assert f"got {N_STEPS}." in message
        assert "max_rollouts" in message

    def test_registered(self, refused):
        assert refused(groups(4, 1, "CartPole-v1"), n_steps=499, batch_size=4).startswith("`n_steps` must be at least 500")
        build(groups(4, 1, "CartPole-v1"), n_steps=500)

    def test_as_long_as_a_rollout(self):
        build(groups(4, 1, partial(limited, N_STEPS)))

    @pytest.mark.parametrize("length", [2 * N_STEPS + 1, 3 * N_STEPS])
    def test_of_several_rollouts(self, refused, length):
        env, options = groups(4, 1, partial(limited, length)), {"max_rollouts": 2}
        assert refused(env, estimator_kwargs=options).startswith(f"`n_steps` must be at least {length},")

    def test_of_several_rollouts_that_suffice(self):
        build(groups(4, 1, partial(limited, 3 * N_STEPS)), estimator_kwargs={"max_rollouts": 3})

    def test_with_a_critic(self):
        build(groups(4, 1, partial(limited, 100 * N_STEPS)), advantage_estimator="gae")

    def test_in_subprocesses(self, refused):
        # arguments that cannot be sent back, of which Gymnasium's spec holds a copy
        kwargs: dict[str, Any] = dict(env_kwargs={"length": lambda: 5}, vec_env_kwargs={"start_method": "fork"})
        gym.register("Test/Limited-v0", called, max_episode_steps=N_STEPS + 3)
        try:
            env = make_vec_env("Test/Limited-v0", 2, vec_env_cls=SubprocVecEnv, **kwargs)
        finally:
            del gym.registry["Test/Limited-v0"]
        try:
            assert refused(env, advantage_estimator="time_step").startswith(f"`n_steps` must be at least {N_STEPS + 3},")
            build(env, advantage_estimator="time_step", n_steps=N_STEPS + 3, batch_size=2)
        finally:
            env.close()

    def test_without_a_limit(self):
        # nothing tells the length of an episode before it is too long
        too_long, shorter = (groups(4, 1, partial(CountingEnv, (1.0,), (length,))) for length in (40, N_STEPS))
        model = build(too_long)
        with pytest.raises(ValueError, match=r"`n_steps` must be at least .* has 32 steps so far; got 16"):
            model.learn(1000)
        build(shorter).learn(2 * 4 * N_STEPS)


class TestCritic:
    @pytest.mark.parametrize("estimator", CRITIC_FREE)
    @pytest.mark.parametrize(
        ("name", "value", "default"), [("gae_lambda", 0.9, 0.95), ("vf_coef", 0.0, 0.5), ("clip_range_vf", 0.2, None)]
    )
    def test_arguments_that_only_a_critic_uses(self, refused, estimator, name, value, default):
        message = refused(advantage_estimator=estimator, **{name: value})
        assert message == (
            f"`{name}` must be {default} with advantage_estimator={estimator!r}, which has no critic, got {value}"
        )
        # the controls: the default, and the value with a critic
        check_arguments({"advantage_estimator": estimator, name: default})
        check_arguments({"advantage_estimator": "gae", name: value})

    @pytest.mark.parametrize("estimator", CRITIC_FREE)
    def test_normalisation(self, refused, estimator):
        message = refused(advantage_estimator=estimator, normalize_advantage="group")
        assert message.startswith("`normalize_advantage` must be True or False")
        assert message.endswith("got 'group'")
        for value in (True, False):
            check_arguments(dict(advantage_estimator=estimator, normalize_advantage=value))
        check_arguments(dict(advantage_estimator="gae", normalize_advantage="group"))


BAD_OPTIONS: dict[str, tuple[str, list[Any]]] = {
    "scale": ("one of ['group', 'batch', 'none']", ["std", None, 1]),
    "aggregation": ("one of ['trajectory', 'step', 'constant']", ["token", None]),
    "ratio": ("one of ['step', 'trajectory']", ["sequence", True]),
    "alike": ("one of ['keep', 'skip']", ["resample", None]),
    "truncated": ("one of ['keep', 'mask']", ["drop", False]),
    "max_rollouts": ("an integer of at least 1", [0, -1, 1.5, "2", None, True]),
}


class TestOptions:
    @pytest.mark.parametrize("estimator", CRITIC_FREE)
    def test_unknown(self, refused, estimator):
        message = refused(advantage_estimator=estimator, estimator_kwargs={"scale": "batch", "size": 3})
        assert message == (
            f"`estimator_kwargs` must hold options of advantage_estimator={estimator!r}, which are {OPTIONS}, got ['size']"
        )

    @pytest.mark.parametrize("name", ["group_size", "gamma"])
    def test_arguments_of_grpo_are_none(self, refused, name):
        assert refused(estimator_kwargs={name: 2}).endswith(f"got ['{name}']")

    @pytest.mark.parametrize("name", OPTIONS)
    def test_with_a_critic(self, refused, name):
        message = refused(advantage_estimator="gae", estimator_kwargs={name: "group"})
        assert message == f"`estimator_kwargs` must hold options of advantage_estimator='gae', which are [], got ['{name}']"

    @pytest.mark.parametrize(("name", "value"), [(name, bad) for name, (_, values) in BAD_OPTIONS.items() for bad in values])
    def test_out_of_range(self, refused, name, value):
        assert refused(estimator_kwargs={name: value}) == f"`{name}` must be {BAD_OPTIONS[name][0]}, got {value!r}"

    def test_every_option_is_tested(self):
        assert list(BAD_OPTIONS) == OPTIONS

    @pytest.mark.parametrize("estimator", CRITIC_FREE)
    def test_good_ones(self, estimator):
        good: list[dict[str, Any]] = [dict(scale=scale, aggregation="constant") for scale in ("group", "batch", "none")]
        good += [dict(ratio="trajectory", alike="skip", truncated="mask"), dict(max_rollouts=5, aggregation="step")]
        for options in (None, {}, *good):
            check_arguments(dict(advantage_estimator=estimator, estimator_kwargs=options, compile=False))

    def test_ratios_of_trajectories_are_not_compiled(self, refused):
        message = refused(estimator_kwargs={"ratio": "trajectory"}, compile=True)
        assert message == "`compile` must be False with ratio='trajectory', whose minibatches differ in size, got True"
        check_arguments(dict(advantage_estimator="outcome", estimator_kwargs={"ratio": "step"}, compile=True))

    @pytest.mark.parametrize("estimator", ["gae", "outcome"])
    def test_a_reference_that_is_not_used(self, refused, estimator):
        message = refused(advantage_estimator=estimator, ref_update_freq=3)
        assert message == "`ref_update_freq` must be None where `kl_coef` is 0, got 3"
        check_arguments(dict(advantage_estimator=estimator, ref_update_freq=3, kl_coef=0.1))


class TestBuiltModels:
    @pytest.mark.parametrize(
        ("name", "value"),
        [("advantage_estimator", "process"), ("group_size", 4), ("group_size", None), ("estimator_kwargs", {"scale": "none"})],
    )
    def test_nothing_can_be_assigned(self, name, value):
        model = build(group_size=2)
        before = getattr(model, name)
        setattr(model, name, value)
        with pytest.raises(ValueError, match=r"of a model that is built cannot be assigned, got .* give them to `load`"):
            model.learn(64, Nothing())
        setattr(model, name, before)
        model.learn(4 * N_STEPS)

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"group_size": 3}, "`group_size` must be at least 2 and divide"),
            ({"group_size": 4}, "`group_size` must be that of make_group_vec_env"),
            ({"group_size": 1}, "`group_size` must be an integer of at least 2"),
            ({"gae_lambda": 0.9}, "`gae_lambda` must be 0.95"),
            ({"vf_coef": 1.0}, "`vf_coef` must be 0.5"),
            ({"clip_range_vf": 0.2}, "`clip_range_vf` must be None"),
            ({"normalize_advantage": "group"}, "`normalize_advantage` must be True or False"),
            ({"estimator_kwargs": {"size": 3}}, "`estimator_kwargs` must hold options"),
            ({"estimator_kwargs": {"scale": "std"}}, "`scale` must be one of"),
            ({"ref_update_freq": 2}, "`ref_update_freq` must be None"),
            ({"estimator_kwargs": {"ratio": "trajectory"}, "compile": True}, "`compile` must be False"),
        ],
    )
    def test_loaded_with_bad_values(self, tmp_path, kwargs, message):
        build(group_size=2).save(tmp_path / "model")
        with pytest.raises(ValueError) as error:
            GRPO.load(tmp_path / "model", groups(2, 2), **kwargs)
        assert str(error.value).startswith(message)

    def test_loaded_with_other_environments(self, tmp_path):
        build(group_size=2).save(tmp_path / "model")
        with pytest.raises(ValueError, match="`env` must be made by make_group_vec_env"):
            GRPO.load(tmp_path / "model", make_vec_env(counting, 4))
        with pytest.raises(ValueError, match=f"`n_steps` must be at least {2 * N_STEPS},"):
            GRPO.load(tmp_path / "model", groups(2, 2, partial(limited, 2 * N_STEPS)))

    def test_loaded_with_good_values(self, tmp_path):
        build(group_size=2).save(tmp_path / "model")
        given: dict[str, Any] = dict(
            advantage_estimator="process", group_size=3, estimator_kwargs={"scale": "none", "max_rollouts": 2}
        )
        model = GRPO.load(tmp_path / "model", groups(3, 2, partial(limited, 2 * N_STEPS)), **given)
        assert (model.advantage_estimator, model.group_size) == ("process", 3)
        model.learn(2 * 6 * N_STEPS)
        # without environments it predicts
        obs = groups(2, 2).reset()
        assert isinstance(obs, np.ndarray)
        assert GRPO.load(tmp_path / "model").predict(obs)[0].shape == (4,)


class TestReferenceUpdates:
    def make(self) -> GRPO:
        return GRPO(
            "MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, n_epochs=1, kl_coef=0.1, ref_update_freq=3, device="cpu"
        )

    def test_beyond_the_training_are_refused(self):
        model = self.make()
        with pytest.raises(ValueError, match=r"`ref_update_freq` must be at most 2, the rollouts of the training, got 3"):
            model.learn(16)
        assert model.num_timesteps == 0

    def test_within_the_training_are_not(self):
        # 17 steps need a third rollout
        assert self.make().learn(17).n_rollouts == 3

    def test_of_a_training_that_goes_on(self):
        model = self.make().learn(24)
        assert model.learn(8, reset_num_timesteps=False).n_rollouts == 4
        assert model.learn(0).num_timesteps == 0
