"""Tasks by name: the router finds the task by itself, and names take the place of numbers wherever tasks are shown."""

import csv
import re
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from tiny_envs import RandomEnv

from sb3_grpo import (
    GRPO,
    GroupEvalCallback,
    MultiTaskEnv,
    TaskSamplingCallback,
    evaluate_groups,
    make_multi_task_vec_env,
    plot_regrouping,
    plot_tasks,
)
from sb3_grpo.callbacks import describe_event
from sb3_grpo.env_tasks import label_cells
from sb3_grpo.envs.multi_task import TaskSource
from sb3_grpo.plots import EvaluationMoment, draw_tasks
from sb3_grpo.regroup_plan import RegroupEvent

TASKS: dict[str, TaskSource] = {
    "swing": partial(gym.make, "Pendulum-v1", max_episode_steps=8),
    "drive": partial(gym.make, "MountainCarContinuous-v0", max_episode_steps=4),
    "hold": partial(gym.make, "Pendulum-v1", max_episode_steps=8),
}

# as soon as anything is known of the groups they are merged
MERGES: dict[str, Any] = dict(n_steps=64, merge_kl=1e6, split_kl=None, regroup_warmup=0, regroup_freq=1)


def make_env(n_envs=3, task="fixed", tasks=TASKS, **kwargs):
    return make_multi_task_vec_env(tasks, n_envs, task, seed=0, multi_task_kwargs=kwargs)


def make_model(env=None, policy="MlpPolicy", **kwargs):
    settings = dict(n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu", router="task")
    return GRPO(policy, make_env() if env is None else env, **{**settings, **kwargs})


class TestTheRouterFindsTheTask:
    def test_in_columns(self):
        model = make_model().learn(96)
        assert [(group.cells, group.name, group.steps) for group in model.groups] == [
            ([0], "swing", 32),
            ([1], "drive", 32),
            ([2], "hold", 32),
        ]

    def test_as_the_columns_given_by_hand(self):
        by_hand = make_model(router="one_hot", router_kwargs={"columns": (3, 6)}).learn(96)
        model = make_model().learn(96)
        for name, tensor in by_hand.policy.state_dict().items():
            assert tensor.equal(model.policy.state_dict()[name]), name
        assert [group.name for group in by_hand.groups] == [None] * 3

    def test_in_an_entry(self):
        model = make_model(make_env(task_observation="dict"), "MultiInputPolicy").learn(96)
        assert [group.steps for group in model.groups] == [32, 32, 32]
        assert model.task_names == list(TASKS)

    def test_in_an_entry_of_an_environment_of_another_kind(self):
        space = spaces.Dict({"task": spaces.Discrete(4), "x": spaces.Box(0, 1, (2,))})
        env = DummyVecEnv([lambda: RandomEnv(space, spaces.Discrete(2))])
        model = make_model(env, "MultiInputPolicy")
        assert len(model.groups) == 4
        assert model.task_names == []

    def test_in_the_environments_of_this_package(self):
        named = {"tasks": {"plain": {}, "inverted": {"invert": True}}}
        model = make_model(make_vec_env("sb3_grpo/TaskCartPole-v0", 2, env_kwargs=named))
        assert [group.name for group in model.groups] == ["plain", "inverted"]
        assert [group.name for group in make_model(make_vec_env("sb3_grpo/TaskCartPole-v0", 2)).groups] == [None] * 4

    def test_among_normalised_observations(self):
        model = make_model(VecNormalize(make_env())).learn(192)
        assert [group.steps for group in model.groups] == [32, 32, 32]

    def test_hidden_from_the_trunk(self):
        model = make_model(router_kwargs={"hide": True})
        assert model.policy.mlp_extractor.policy_net[0].in_features == 3
        assert make_model().policy.mlp_extractor.policy_net[0].in_features == 6

    @pytest.mark.parametrize("make", [lambda: make_env(task_observation=None), lambda: make_vec_env("CartPole-v1")])
    def test_where_it_is_not_shown(self, make):
        with pytest.raises(ValueError, match=r"`router` must not be 'task' unless the environments show their task"):
            make_model(make())

    def test_where_workers_have_other_orders(self):
        """Task 0 would be "swing" in one and "drive" in the other."""
        order = dict(sorted(TASKS.items()))
        env = DummyVecEnv([partial(MultiTaskEnv, tasks) for tasks in (TASKS, order)])
        message = re.escape("`env` must have the same `task_names` in all environments, got [['swing', 'drive', 'hold'], ['d")
        ppo = PPO("MlpPolicy", env, n_steps=8, batch_size=16)
        for refused in (partial(make_model, env), partial(evaluate_groups, ppo, env)):
            with pytest.raises(ValueError, match=message):
                refused()
        # a control: the same order
        assert make_model(DummyVecEnv([partial(MultiTaskEnv, TASKS)] * 2)).task_names == list(TASKS)

    def test_where_a_wrapper_has_moved_the_columns(self):
        with pytest.raises(ValueError, match=r"must hold a one-hot block"):
            make_model(VecFrameStack(make_env(), 2)).learn(96)


class TestSavedModels:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "model.zip"
        make_model().learn(96).save(path)
        return path

    def test_keep_their_names(self, path):
        model = GRPO.load(path)
        assert [group.name for group in model.groups] == list(TASKS)
        obs = make_env().reset()
        assert model.policy.groups(model.policy.obs_to_tensor(obs)[0]).tolist() == [0, 1, 2]

    def test_go_on_with_the_same_tasks(self, path):
        model = GRPO.load(path, make_env()).learn(96)
        assert [group.steps for group in model.groups] == [32, 32, 32]

    def test_are_not_trained_on_other_tasks(self, path):
        others = {"drive": TASKS["drive"], "swing": TASKS["swing"], "hold": TASKS["hold"]}
        with pytest.raises(ValueError, match=r"`env` must have the tasks that the model was built with, .*'swing', 'drive'"):
            GRPO.load(path, make_env(tasks=others))
        model = GRPO.load(path)
        model.set_env(make_env(tasks=others))
        with pytest.raises(ValueError, match=r"`env` must have the tasks that the model was built with"):
            model.learn(96)


class TestNamesTakeThePlaceOfNumbers:
    def test_in_evaluations(self):
        env = make_env(n_envs=1, task="random")
        found = evaluate_groups(make_model(), env, 6)
        assert list(found) == list(TASKS)
        assert [result.mean_length for result in found.values()] == [8, 4, 8]
        assert env.get_attr("task_choice") == ["random"]

    def test_tasks_in_turn_are_all_evaluated(self):
        env = make_env(n_envs=2, task="in_turn")
        assert [result.n_episodes for result in evaluate_groups(make_model(), env, 6).values()] == [2, 2, 2]
        assert env.get_attr("task_choice") == ["in_turn"] * 2

    def test_in_logs(self, tmp_path):
        model = make_model(make_env(task="random"))
        model.set_logger(configure(str(tmp_path), ["csv"]))
        evaluation = GroupEvalCallback(make_env(n_envs=1, task="random"), eval_freq=32, n_eval_episodes=3, verbose=0)
        model.learn(192, [evaluation, TaskSamplingCallback()])
        model.logger.close()
        with (tmp_path / "progress.csv").open() as file:
            columns = set(next(csv.reader(file)))
        for name in TASKS:
            tags = {f"groups/score_{name}", f"groups/weight_{name}", f"groups/share_{name}"}
            tags |= {f"tasks/score_{name}", f"tasks/probability_{name}", f"eval/task_{name}"}
            assert tags <= columns
        assert not {column for column in columns if column.endswith(("_0", "_1", "_2"))}
        assert evaluation.last_worst_task in TASKS

    def test_in_what_is_printed(self, capsys):
        model = make_model(make_env(task="random"), verbose=1, **MERGES)
        model.learn(768, TaskSamplingCallback())
        printed = capsys.readouterr().out
        assert "merge of groups 0 and" in printed
        assert "(swing, " in printed
        assert any(f"task {name} (" in printed for name in TASKS)

    def test_of_merged_groups(self):
        model = make_model(**MERGES).learn(768)
        (group,) = model.groups
        assert group.cells == [0, 1, 2]
        assert group.name == "swing+2 more"

    def test_in_pictures(self):
        model = make_model().learn(96)
        timeline, heat_map, *_ = plot_regrouping(model).axes
        assert [label.get_text() for label in timeline.get_yticklabels()] == list(TASKS)
        assert timeline.get_ylabel() == ""
        assert [label.get_text() for label in heat_map.get_xticklabels()] == list(TASKS)


def heights(curve):
    return np.asarray(curve.get_ydata(), dtype=float).tolist()


class TestPictureOfTheTasks:
    def evaluated(self, algorithm=GRPO, **kwargs):
        callback = GroupEvalCallback(make_env(n_envs=1, task="random"), eval_freq=32, n_eval_episodes=3, verbose=0)
        settings = dict(n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
        algorithm("MlpPolicy", make_env(), **settings, **kwargs).learn(192, callback)
        return callback

    def test_curves_are_the_evaluations(self, tmp_path):
        callback = self.evaluated(router="task")
        figure = plot_tasks(callback, tmp_path / "tasks.png")
        assert (tmp_path / "tasks.png").read_bytes().startswith(b"\x89PNG")
        *panels, weights = figure.axes
        assert [axes.get_title() for axes in panels] == list(TASKS)
        for axes in panels:
            (curve,) = axes.lines
            assert np.asarray(curve.get_xdata()).tolist() == [96, 192]
            assert heights(curve)[-1] == callback.last_evaluation[axes.get_title()].mean
        assert [curve.get_label() for curve in weights.lines] == list(TASKS)
        assert {tuple(heights(curve)) for curve in weights.lines} != {(1.0, 1.0)}

    def test_without_balance_all_weights_are_one(self):
        *_, weights = plot_tasks(self.evaluated(router="task", group_coef=0.0)).axes
        assert [heights(curve) for curve in weights.lines] == [[1.0, 1.0]] * 3

    def test_other_algorithms_have_no_weights(self):
        assert [axes.get_title() for axes in plot_tasks(self.evaluated(PPO)).axes] == list(TASKS)

    def test_many_tasks_stand_in_rows(self):
        moments = [EvaluationMoment(step, {str(task): 1.0 * task for task in range(6)}, {}) for step in (10, 20)]
        axes = draw_tasks(moments).axes
        assert [panel.get_title() for panel in axes if panel.get_visible()] == list("012345")
        # the lowest panel of each column says what its axis is
        assert [panel.get_xlabel() != "" for panel in axes] == [False] * 2 + [True] * 4 + [False] * 2

    def test_a_task_that_was_not_played_leaves_a_gap(self):
        moments = [EvaluationMoment(1, {"a": 1.0}, {"0": 1.0}), EvaluationMoment(2, {"a": 2.0, "b": 3.0}, {"1": 0.5})]
        panels = draw_tasks(moments).axes
        assert np.isnan(heights(panels[1].lines[0])).tolist() == [True, False]
        assert [np.isnan(heights(line)).tolist() for line in panels[2].lines] == [[False, True], [True, False]]

    def test_nothing_to_draw(self):
        with pytest.raises(ValueError, match="`callback` must have evaluated at least once"):
            plot_tasks(GroupEvalCallback(make_env()))


@pytest.mark.parametrize(
    ("cells", "expected"), [([1], "b"), ([0, 2], "a+c"), ([0, 1, 2], "a+2 more"), ([2, 1, 0, 3], "c+3 more")]
)
def test_labels_of_groups(cells, expected):
    assert label_cells(cells, ["a", "b", "c", "d"]) == expected
    assert label_cells(cells, []) is None


def test_events_by_name():
    names = ["walk", "turn", "jump"]
    split = RegroupEvent(4096, "split", (0, 1), 0.5, [0, 1, 1])
    assert (
        describe_event(split, names)
        == "split of group 0 after 4096 steps: its cells differ by 0.50 nats, group 1 gets turn, jump"
    )
    merge = RegroupEvent(4096, "merge", (0, 1), 0.05, [0, 0, 2])
    assert describe_event(merge, names) == (
        "merge of groups 0 and 1 into 0 (walk, turn) after 4096 steps: their policies differ by 0.05 nats only"
    )
    assert "(" not in describe_event(merge)


def test_numbers_that_are_not_those_of_named_tasks_stay():
    class Odd(RandomEnv):
        task_names = ("a", "b")

        def step(self, action):
            return *super().step(action)[:4], {"task": 7}

    env = DummyVecEnv([lambda: Odd(spaces.Box(0, 1, (2,)), spaces.Discrete(2))])
    model = GRPO("MlpPolicy", env, n_steps=8, batch_size=8, n_groups=1)
    assert list(evaluate_groups(model, env, 2, warn=False)) == [7]
    assert np.isfinite(evaluate_groups(model, env, 2, warn=False)[7].mean)
