"""What arguments must be: bad ones are named, and nothing is refused that PPO trains with."""

import functools
import inspect
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule
from torch import nn

from sb3_grpo import GRPO, MlpPolicy, MultiInputPolicy
from sb3_grpo.arguments import (
    RULES,
    check_arguments,
    check_learn_arguments,
    finite_schedule_value,
    group_coef_at,
    make_group_coef_schedule,
    schedule_value,
)
from sb3_grpo.balancing import BALANCERS, RelativePenalty
from sb3_grpo.estimators import ESTIMATORS, GAE
from sb3_grpo.rules import NOT_NAN, KeyOf
from sb3_grpo.scores import SCORES, ReturnScore

NAN, INF = math.nan, math.inf
SCHEDULE_TEXT = "a float or an int, finite and at least 0, or a function of the remaining progress"
CLIP_TEXT = "a float or an int above 0, or a function of the remaining progress"

# what each argument must be, as the message says it, and values that it must not be
BAD: dict[str, tuple[str, list[Any]]] = {
    "policy": ("the name of a policy or a subclass of GroupActorCriticPolicy", [None, 5, MlpPolicy.forward]),
    "policy_class": ("a subclass of GroupActorCriticPolicy", [None, "MlpPolicy"]),
    "learning_rate": (SCHEDULE_TEXT, ["3e-4", None, -1e-3, NAN, INF, True, [1e-3], np.float32(1e-3)]),
    "n_steps": ("an integer of at least 1", [0, -1, 32.0, "32", None, NAN, True, [32]]),
    "batch_size": ("an integer of at least 1", [0, -16, 16.0, "16", None, False]),
    "n_epochs": ("an integer of at least 1", [0, -1, 2.0, "2", None, True]),
    "gamma": ("between 0 and 1", [1.5, -0.1, NAN, INF, "0.99", None, True, [0.99]]),
    "gae_lambda": ("between 0 and 1", [1.01, -0.1, NAN, -INF, "0.95", None]),
    "clip_range": (CLIP_TEXT, [0, -0.2, NAN, "0.2", None, True, [0.2]]),
    "clip_range_vf": (f"{CLIP_TEXT}, or None", [0, -0.2, NAN, "0.2", False, [0.2]]),
    "normalize_advantage": ("one of [True, False, 'group']", ["groups", "yes", None, 1, 0, NAN]),
    "ent_coef": ("a finite number", [NAN, INF, "auto", None, True, [0.01], lambda progress: 0.01]),
    "vf_coef": ("a finite number", [NAN, -INF, "0.5", None, th.tensor(0.5)]),
    "max_grad_norm": ("a number above 0", [0, -0.5, NAN, "0.5", None, True]),
    "use_sde": ("True or False", ["yes", "False", None, 2, NAN, 0.0]),
    "sde_sample_freq": ("an integer of at least -1", [-2, 4.0, "4", None, True]),
    "rollout_buffer_class": ("a subclass of GroupRolloutBuffer or GroupDictRolloutBuffer, or None", ["RolloutBuffer", 5]),
    "rollout_buffer_kwargs": ("a dict whose keys are strings, or None", ["x", 5, [1], {1: 2}]),
    "target_kl": ("a number above 0, or None", [0, -0.01, NAN, "0.01", True]),
    "stats_window_size": ("an integer of at least 1, or None", [0, -1, 2.5, "100"]),
    "tensorboard_log": ("a path, or None", [5, True]),
    "policy_kwargs": ("a dict whose keys are strings, or None", ["dict(net_arch=[8])", [1], 5]),
    "verbose": ("an integer", ["1", None, 1.0]),
    "seed": (f"a Python integer from 0 to {2**32 - 1}, or None", ["0", 1.5, -1, 2**32, NAN, True, np.int64(1)]),
    "device": ('"auto" or a device that torch knows', ["gpu", 5.5, None, ["cpu"], "cuda:x"]),
    "n_groups": ("an integer, or None", [2.0, "2", NAN, True, [2]]),
    "max_groups": ("an integer, or None", [4.0, "4", True]),
    "router": ("one of ['random', 'one_hot', 'discrete', 'task'] or a callable", ["nearest", "", None, 5, ["random"]]),
    "router_kwargs": ("a dict whose keys are strings, or None", ["dict(n_cells=4)", [4], 5]),
    "advantage_estimator": ("one of ['gae', 'outcome', 'process', 'time_step']", ["GAE", "", None, 5, ["gae"], GAE]),
    "group_size": ("an integer of at least 2, or None", [1, 0, -2, 2.5, "8", True]),
    "estimator_kwargs": ("a dict whose keys are strings, or None", ["scale", ["scale"], {1: "group"}]),
    "clip_range_high": ("a number above 0, or None", [0, -0.1, NAN, "0.3"]),
    "kl_coef": ("finite and at least 0", [-0.1, NAN, INF, "0", None]),
    "ref_update_freq": ("an integer of at least 1, or None", [0, -1, 1.5, "1"]),
    "ref_tau": ("above 0 and at most 1", [0, -0.1, 1.1, NAN, "1", None]),
    "balancer": (f"one of {list(BALANCERS)}, or None", ["penalty", True, RelativePenalty]),
    "group_score": (f"one of {list(SCORES)}, or None", ["returns", "", True, ["gap"], ReturnScore]),
    "group_by": ("one of ['decisions', 'objectives']", ["objective", "", None, True, ["objectives"]]),
    "group_targets": (
        "a sequence or a dict by name, of finite numbers or pairs (low, high) with low below high, one for each cell, or None",
        [
            *(
                500.0,
                "500",
                [1.0, NAN],
                (INF,),
                ["1"],
                [True],
                [None],
                {0: 1.0},
                {1.0},
                [[1.0], [2.0]],
                np.array(1.0),
                np.eye(2),
            ),
            *([(1.0, 1.0)], [(2.0, 1.0)], [(0.0, INF)], [(NAN, 1.0)], [(0, 1, 2)], {"walk": "far"}, {"walk": (1, 0)}),
        ],
    ),
    "group_scale": ("one of ['std', 'range']", ["rnage", None, 1]),
    "merge_kl": ("finite and at least 0, or None", [-0.1, NAN, INF, "0.1", True, [0.1]]),
    "split_kl": ("finite and at least 0, or None", [-0.1, NAN, INF, "0.3", False]),
    "regroup_freq": ("an integer of at least 1, or None", [0, -1, 1.5, "2", True]),
    "regroup_warmup": ("an integer of at least 0, or None", [-1, 1.5, "2", False]),
    "probe_kl_coef": ("finite and above 0", [0, -1, NAN, INF, None, "0.05", True]),
    "action_mask_key": ("a string, or None", [5, True, ["action_mask"], b"action_mask"]),
    "compile": ("True or False", ["yes", None, 2]),
}
BAD_ROUTER_KWARGS: dict[str, tuple[str, list[Any]]] = {
    "n_cells": ("an integer", [4.0, "4", None, NAN, True]),
    "columns": ("two integers (start, stop)", [(4.0, 8.0), (4,), (4, 6, 8), "48", 4, None, (True, 4)]),
    "key": ("a string", [None, 5, ["task"]]),
    "hide": ("True or False", ["no", None]),
}
BAD_POLICY_KWARGS: dict[str, tuple[str, list[Any]]] = {
    "net_arch": (
        "layer sizes like [64, 64] or dict(pi=[64], vf=[64]), integers of at least 1, or None",
        ["64", 64, [64.0], [0], [-1], ["64"], [True], dict(pi=[8], v=[8]), dict(pi=8), [8, dict(pi=[8])]],
    ),
    "activation_fn": ("a class of layers like nn.Tanh", ["relu", None, th.relu, nn.functional.relu, dict, lambda: 5]),
    "optimizer_class": ("an optimizer class", ["Adam", None]),
    "optimizer_kwargs": ("a dict whose keys are strings, or None", ["lr", 5]),
    "features_extractor_class": ("a class of features extractors", ["FlattenExtractor", None]),
    "features_extractor_kwargs": ("a dict whose keys are strings, or None", ["x"]),
    "log_std_init": ("a finite number", [NAN, INF, "0", None]),
}


def one_by_one(table: dict[str, tuple[str, list[Any]]]) -> list[Any]:
    return [
        pytest.param(name, text, value, id=f"{name}={str(value)[:20]}")
        for name, (text, values) in table.items()
        for value in values
    ]


def message_of(arguments: dict[str, Any]) -> str:
    with pytest.raises(ValueError) as error:
        check_arguments(arguments)
    return str(error.value)


class TestBadValues:
    @pytest.mark.parametrize(("name", "text", "value"), one_by_one(BAD))
    def test_are_named(self, name, text, value):
        assert message_of({name: value}) == f"`{name}` must be {text}, got {value!r}"

    @pytest.mark.parametrize(("name", "text", "value"), one_by_one(BAD_ROUTER_KWARGS))
    def test_of_routers_are_named(self, name, text, value):
        assert message_of(dict(router_kwargs={name: value})) == f"`{name}` must be {text}, got {value!r}"

    @pytest.mark.parametrize(("name", "text", "value"), one_by_one(BAD_POLICY_KWARGS))
    def test_of_policies_are_named(self, name, text, value):
        arguments = dict(policy="MlpPolicy", policy_kwargs={name: value})
        assert message_of(arguments) == f"`{name}` must be {text}, got {value!r}"

    def test_layers_of_a_policy_that_somebody_wrote_are_its_own_matter(self):
        check_arguments(dict(policy=MlpPolicy, policy_kwargs=dict(net_arch="deep")))

    @pytest.mark.parametrize("name", ["n_groups", "max_groups", "router", "router_kwargs"])
    def test_arguments_of_grpo_among_those_of_the_policy(self, name):
        message = message_of(dict(policy_kwargs={name: 3}))
        assert message.startswith(f"`policy_kwargs` must not hold '{name}': GRPO passes it on from its own argument `{name}`")

    def test_group_seed_is_the_seed(self):
        assert "its own argument `seed`" in message_of(dict(policy_kwargs=dict(group_seed=3)))

    def test_the_estimator_decides_on_the_critic(self):
        assert "its own argument `advantage_estimator`" in message_of(dict(policy_kwargs=dict(use_critic=False)))

    def test_thresholds_that_cross(self):
        assert message_of(dict(merge_kl=0.3, split_kl=0.3)) == "`merge_kl` must be below `split_kl`, got 0.3 and 0.3"
        check_arguments(dict(merge_kl=0.3, split_kl=None))
        check_arguments(dict(merge_kl=None, split_kl=0.3))

    @pytest.mark.parametrize("group_score", ["return", "reward", "raw_return"])
    def test_targets_of_a_score_that_has_none(self, group_score):
        given = dict(group_score=group_score, group_targets=[1.0, 2.0])
        expected = f"""`group_targets` needs `group_score="gap"`, got [1.0, 2.0] and {group_score!r}"""
        assert message_of(given) == expected
        check_arguments({**given, "group_targets": None})
        check_arguments({**given, "group_score": "gap"})

    @pytest.mark.parametrize("normalize", [True, "group"])
    def test_minibatches_of_one_step_cannot_be_normalised(self, normalize):
        given = dict(batch_size=1, normalize_advantage=normalize)
        assert message_of(given) == "`batch_size` must be at least 2 where `normalize_advantage` is not False, got 1"
        check_arguments({**given, "normalize_advantage": False})

    def test_no_environment(self):
        assert message_of(dict(env=None, _init_setup_model=True)).startswith("`env` must be an environment or its name")
        # as load() makes a model
        check_arguments(dict(env=None, _init_setup_model=False))


class TestKeyOf:
    """A rule that follows what users add to a dictionary."""

    def test_by_hand(self):
        registry = {"a": 1, "b": 2}
        rule = KeyOf(registry)
        assert rule.text == "one of ['a', 'b']"
        assert [rule.holds(value) for value in ("a", "c", 1, None, ["a"])] == [True, False, False, False, False]
        registry["c"] = 3
        assert rule.text == "one of ['a', 'b', 'c']"
        assert rule.holds("c")

    @pytest.mark.parametrize(
        ("name", "registry"), [("advantage_estimator", ESTIMATORS), ("balancer", BALANCERS), ("group_score", SCORES)]
    )
    def test_of_arguments(self, name, registry, monkeypatch):
        assert message_of({name: "toy"}).endswith("got 'toy'")
        first, before, or_none = next(iter(registry)), list(registry), "" if name == "advantage_estimator" else ", or None"
        monkeypatch.setitem(registry, "toy", registry[first])
        check_arguments({name: "toy"})
        assert message_of({name: "other"}) == f"`{name}` must be one of {[*before, 'toy']}{or_none}, got 'other'"


class TestGoodValues:
    def test_every_argument_has_a_rule(self):
        arguments = set(inspect.signature(GRPO.__init__).parameters) - {"self", "env", "_init_setup_model", "group_coef"}
        assert arguments <= RULES.keys() == BAD.keys()

    def test_defaults(self):
        parameters = inspect.signature(GRPO.__init__).parameters.values()
        check_arguments({each.name: each.default for each in parameters if each.default is not each.empty})

    def test_what_is_missing_or_unknown_is_not_checked(self):
        check_arguments({})
        check_arguments(dict(rewards="none"))

    def test_attributes_of_a_model(self, task_cartpole, tmp_path):
        one_hot: dict[str, Any] = dict(router="one_hot", router_kwargs=dict(columns=(4, 8)))
        model = GRPO("MlpPolicy", task_cartpole, n_steps=32, device="cpu", clip_range_vf=0.2, **one_hot)
        check_arguments(vars(model))
        model.save(tmp_path / "model")
        loaded = GRPO.load(tmp_path / "model", device="cpu")
        check_arguments(vars(loaded))
        # schedules have taken the place of these two; the others are as they were given
        assert isinstance(loaded.clip_range, FloatSchedule)
        assert isinstance(loaded.clip_range_vf, FloatSchedule)
        for name, value in dict(group_score="returns", n_epochs=0, clip_range=NAN, n_groups=4.0).items():
            assert f"`{name}` must be " in message_of({**vars(loaded), name: value})

    # values that look odd, and that PPO trains with
    @pytest.mark.parametrize(
        "arguments",
        [
            dict(learning_rate=0.0),
            dict(learning_rate=1),
            dict(learning_rate=LinearSchedule(1e-3, 0.0, 1.0)),
            dict(n_steps=np.int64(8), batch_size=np.int32(4), n_epochs=np.int8(1)),
            dict(batch_size=1000),
            dict(batch_size=7),
            dict(batch_size=1, normalize_advantage=False),
            dict(gamma=0, gae_lambda=1),
            dict(gamma=np.float32(1), gae_lambda=0.0),
            dict(clip_range=INF, clip_range_vf=INF),
            dict(clip_range=lambda progress: 0.2 * progress, clip_range_vf=lambda progress: 0.2 * progress),
            dict(ent_coef=-0.01, vf_coef=-0.1),
            dict(ent_coef=np.float32(0.01), vf_coef=0),
            dict(max_grad_norm=INF, target_kl=INF),
            dict(target_kl=1e-9),
            dict(use_sde=0, verbose=True),
            dict(stats_window_size=None),
            dict(sde_sample_freq=0),
            dict(rollout_buffer_kwargs={}, tensorboard_log=None, seed=0),
            dict(policy_kwargs=dict(net_arch=[])),
            dict(policy_kwargs=dict(net_arch=(8, np.int64(8)))),
            dict(policy_kwargs=dict(net_arch=dict(vf=[8]))),
            dict(policy_kwargs=dict(activation_fn=functools.partial(nn.LeakyReLU, 0.2), optimizer_kwargs=None)),
            dict(policy_kwargs=dict(optimizer_class=th.optim.SGD, log_std_init=-1)),
            dict(device=th.device("cpu")),
        ],
        ids=lambda arguments: ", ".join(f"{name}={value!s:.20}" for name, value in arguments.items()),
    )
    def test_what_ppo_trains_with_is_allowed(self, arguments):
        given = {**dict(n_steps=8, batch_size=4, n_epochs=1, device="cpu"), **arguments}
        check_arguments(dict(policy="MlpPolicy", **given))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You have specified a mini-batch size of", UserWarning)
            model = PPO("MlpPolicy", "CartPole-v1", **given).learn(16)
        assert all(parameter.isfinite().all() for parameter in model.policy.parameters())

    @pytest.mark.parametrize(
        "arguments",
        [
            dict(n_groups=np.int64(2), max_groups=None),
            dict(router=lambda obs: obs[:, 0] > 0, router_kwargs=dict(n_cells=np.int32(2))),
            dict(router="one_hot", router_kwargs=dict(columns=np.array([4, 8]), hide=np.bool_(True))),
            dict(router="one_hot", router_kwargs=dict(columns=[4, 8])),
            dict(merge_kl=0, split_kl=1, regroup_freq=np.int64(1), regroup_warmup=0),
            dict(group_coef="lin_0.05"),
            dict(group_coef=np.float32(0.1)),
            dict(group_coef=lambda progress: 0.1 * progress),
            dict(group_score="gap", group_targets=None),
            dict(group_score="gap", group_targets=[500, -1.5, np.float32(2)]),
            dict(group_score="gap", group_targets=(500.0,)),
            dict(group_score="gap", group_targets=np.array([500, 200])),
            dict(group_score="gap", group_targets=np.array([[0, 500], [-1, 200]])),
            dict(group_score="gap", group_targets=[500, (-5, np.float32(2))]),
            dict(group_score="gap", group_targets={"walk": 500, "turn": [-5, 2.5]}),
            dict(compile=False, normalize_advantage="group"),
        ],
    )
    def test_of_groups(self, arguments):
        check_arguments(arguments)


BOX = spaces.Box(-1, 1, (4,))
TWO = spaces.Discrete(2)


class TestSpaces:
    def check(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any] = TWO, policy: Any = MlpPolicy
    ) -> None:
        kwargs: dict[str, Any] = dict(policy_class=policy, policy_kwargs={})
        check_arguments(dict(observation_space=observation_space, action_space=action_space, **kwargs))

    @pytest.mark.parametrize(
        ("observation_space", "action_space", "message"),
        [
            (spaces.Tuple([BOX]), TWO, r"the observation space must be one of Box, .* or a Dict of these, got Tuple"),
            (spaces.Text(5), TWO, r"the observation space must be one of Box"),
            (spaces.Dict(a=BOX, b=spaces.Text(5)), TWO, r"entry 'b' of the observation space must be one of Box"),
            (spaces.Box(-1, 1, (0,)), TWO, r"the observation space must hold at least one number, got Box"),
            (spaces.Box(-1, 1, ()), TWO, r"the observation space must have at least one dimension, got Box.*shape=\(1,\)"),
            (spaces.Discrete(3, start=1), TWO, r"the observation space must start at 0, got Discrete\(3, start=1\)"),
            (
                BOX,
                spaces.Discrete(3, start=1),
                r"the action space must start at 0, .*would take its values for those of Discrete",
            ),
            (BOX, spaces.Box(-1, 1, (0,)), r"the action space must hold at least one number"),
        ],
    )
    def test_bad(self, observation_space, action_space, message):
        with pytest.raises(ValueError, match=message):
            self.check(observation_space, action_space)

    @pytest.mark.parametrize(
        "space",
        [BOX, TWO, spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3), spaces.MultiBinary((2, 2)), spaces.Dict(a=BOX, b=TWO)],
    )
    def test_good(self, space):
        self.check(space)
        if not isinstance(space, spaces.Dict):
            self.check(BOX, space)

    def test_policy_for_dicts(self):
        with pytest.raises(ValueError, match=r"`policy` MultiInputPolicy needs a Dict observation space, got Box"):
            self.check(BOX, policy=MultiInputPolicy)
        self.check(spaces.Dict(a=BOX), policy=MultiInputPolicy)


class Callback(BaseCallback):
    def _on_step(self):
        return True


class TestLearn:
    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("total_timesteps", ["64", None, NAN, -1, True]),
            ("callback", [5, "x", [5], Callback, [Callback()] * 2 + [Callback]]),
            ("log_interval", [0, -1, "1", NAN]),
            ("reset_num_timesteps", ["no", None]),
            ("progress_bar", ["no", None]),
            ("env", [None]),
        ],
    )
    def test_bad(self, name, values):
        for value in values:
            with pytest.raises(ValueError, match=f"`{name}` must be .*got") as error:
                check_learn_arguments({name: value})
            assert str(error.value).endswith(f"got {value!r}")

    def test_good(self):
        check_learn_arguments({})
        callbacks: list[Any] = [
            None,
            Callback(),
            [],
            [Callback(), Callback()],
            CallbackList([]),
            lambda locals_, globals_: True,
        ]
        for callback in callbacks:
            check_learn_arguments(dict(total_timesteps=1e5, callback=callback, log_interval=None, reset_num_timesteps=False))
        check_learn_arguments(dict(total_timesteps=0, log_interval=np.int64(4), progress_bar=True))


def returns(value: Any) -> Any:
    return lambda progress: value


class TestSchedules:
    @pytest.mark.parametrize("value", [NAN, INF, -INF])
    def test_value_that_is_not_finite(self, value):
        with pytest.raises(
            ValueError, match=rf"`learning_rate` must be a finite number, got {value} .*remaining progress 0.5"
        ):
            finite_schedule_value("learning_rate", FloatSchedule(returns(value)), 0.5)

    @pytest.mark.parametrize("value", [None, "x", [1.0, 2.0]])
    def test_value_that_is_no_number(self, value):
        with pytest.raises(ValueError, match=r"`clip_range` must return numbers, but failed at remaining progress 0.25: "):
            finite_schedule_value("clip_range", FloatSchedule(returns(value)), 0.25)

    def test_clip_range_may_be_infinite(self):
        assert schedule_value("clip_range", returns(INF), 1.0, NOT_NAN) == INF
        with pytest.raises(ValueError, match=r"`clip_range` must be a number, not NaN, got nan"):
            schedule_value("clip_range", returns(NAN), 1.0, NOT_NAN)

    def test_value_is_that_of_the_schedule(self):
        # slightly below 0, where training ends inside a rollout
        assert finite_schedule_value("learning_rate", LinearSchedule(1.0, 0.0, 1.0), 0.25) == 0.25
        assert finite_schedule_value("learning_rate", lambda progress: progress, -0.01) == -0.01

    def test_error_of_the_users_own_code_is_not_hidden(self):
        def wrong(progress: float) -> float:
            raise KeyError("start")

        with pytest.raises(KeyError, match="start"):
            finite_schedule_value("learning_rate", wrong, 1.0)


class TestGroupCoef:
    @pytest.mark.parametrize(
        ("given", "at_start", "halfway"),
        [(0.1, 0.1, 0.1), (0, 0, 0), ("lin_0.05", 0.05, 0.025), (lambda progress: progress**2, 1, 0.25)],
    )
    def test_schedule(self, given, at_start, halfway):
        schedule = make_group_coef_schedule(given)
        assert group_coef_at(schedule, 1.0) == pytest.approx(at_start)
        assert group_coef_at(schedule, 0.5) == pytest.approx(halfway)

    def test_progress_is_clamped(self):
        # a schedule that falls to 0 would be negative where training ends inside a rollout
        schedule = make_group_coef_schedule(lambda progress: 0.1 * progress)
        assert group_coef_at(schedule, -0.2) == 0
        assert group_coef_at(schedule, 1.2) == pytest.approx(0.1)

    @pytest.mark.parametrize("given", ["lin", "lin_", "lin_x", "exp_0.1", "0.1", True, [0.1], returns(None), lambda: 0.1])
    def test_what_is_no_schedule(self, given):
        with pytest.raises(ValueError, match=r"`group_coef` must be a number, a schedule or a string like \"lin_0.05\", got "):
            check_arguments(dict(group_coef=given))

    @pytest.mark.parametrize("value", [-0.1, NAN, INF])
    def test_range(self, value):
        for given in (value, returns(value)):
            with pytest.raises(ValueError, match=rf"`group_coef` must be finite and at least 0, got {value}"):
                check_arguments(dict(group_coef=given))
        with pytest.raises(ValueError, match=r"`group_coef` must be finite and at least 0, got "):
            check_arguments(dict(group_coef=f"lin_{value}"))

    @pytest.mark.parametrize("value", [-0.1, NAN, INF])
    def test_range_later(self, value):
        schedule = make_group_coef_schedule(lambda progress: 0.1 if progress > 0.5 else value)
        with pytest.raises(ValueError, match=rf"`group_coef` must be finite and at least 0, got {value} .* progress 0.5"):
            group_coef_at(schedule, 0.5)


def test_buffer_class_of_sb3_is_left_to_the_model():
    # which knows what its observations are
    check_arguments(dict(rollout_buffer_class=RolloutBuffer))
