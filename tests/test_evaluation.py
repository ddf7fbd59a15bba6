"""Evaluation by task, on environments whose returns are known."""

import csv
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import (
    BaseCallback,
    ConvertCallback,
    EvalCallback,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from tiny_envs import ChoosableEnv, CountingEnv

from sb3_grpo import GRPO, GroupEvalCallback, GroupEvaluation, evaluate_groups
from sb3_grpo.envs.cartpole import TaskCartPole
from sb3_grpo.evaluation import read_label

# task 0 pays 1 in each of 3 steps, task 1 pays 2 in each of 5
EXPECTED = {0: GroupEvaluation(3.0, 0.0, 3.0, 2), 1: GroupEvaluation(10.0, 0.0, 5.0, 2)}


def counting(**kwargs):
    return Monitor(CountingEnv(**kwargs))


class SucceedingEnv(CountingEnv):
    """Every other episode of task 1 is a success, or nothing is told."""

    def __init__(self, tells=True):
        super().__init__()
        self.tells, self.n_ended = tells, 0

    def step(self, action):
        obs, reward, done, truncated, info = super().step(action)
        if done:
            self.n_ended += 1
            if self.tells:
                info["is_success"] = info["task"] == 1 and self.n_ended % 4 == 0
        return obs, reward, done, truncated, info


def choosable(length, n_tasks=6, **kwargs):
    """Episodes of this many steps in every task."""
    return lambda: Monitor(ChoosableEnv(pay=tuple(range(n_tasks)), length=(length,) * n_tasks, **kwargs))


def n_episodes(evaluation):
    return {task: result.n_episodes for task, result in evaluation.items()}


@pytest.fixture
def ppo():
    return PPO("MlpPolicy", CountingEnv(), seed=0, n_steps=8, batch_size=8)


@pytest.fixture
def grpo():
    options = dict(router="one_hot", router_kwargs=dict(columns=(1, 3)))
    return GRPO("MlpPolicy", CountingEnv(), seed=0, n_steps=8, batch_size=8, **options)  # type: ignore[arg-type]  # a dict of mixed types


class TestEvaluateGroups:
    def test_tasks_by_info(self, ppo):
        assert evaluate_groups(ppo, counting(), n_eval_episodes=4) == EXPECTED

    def test_tasks_by_info_for_another_algorithm(self):
        assert evaluate_groups(DQN("MlpPolicy", CountingEnv()), counting(), n_eval_episodes=4) == EXPECTED

    def test_vectorised(self, ppo):
        env = VecMonitor(DummyVecEnv([CountingEnv, lambda: CountingEnv(first_task=1)]))
        assert evaluate_groups(ppo, env, n_eval_episodes=4) == EXPECTED

    def test_without_monitor(self, ppo):
        assert evaluate_groups(ppo, CountingEnv(), n_eval_episodes=4, warn=False) == EXPECTED
        with pytest.warns(UserWarning, match="not wrapped with a ``Monitor``"):
            evaluate_groups(ppo, CountingEnv(), n_eval_episodes=1)

    def test_cells_of_the_router(self, grpo):
        # the first reset of an evaluation plays task 1 where the router says so
        env = counting(report=False)
        assert evaluate_groups(grpo, env, n_eval_episodes=4) == EXPECTED

    def test_cell_is_that_of_the_beginning(self):
        def time_has_passed(obs):
            return (obs[:, 0] > 0).long()

        model = GRPO("MlpPolicy", CountingEnv(), router=time_has_passed, router_kwargs=dict(n_cells=2))
        assert n_episodes(evaluate_groups(model, counting(report=False), n_eval_episodes=4)) == {0: 4}

    def test_policy_may_be_given(self, grpo):
        assert evaluate_groups(grpo.policy, counting(report=False), n_eval_episodes=4) == EXPECTED

    def test_neither_task_nor_router(self, ppo):
        with pytest.raises(ValueError, match=r'does not report info\["task"\], and the model\'s policy has no router'):
            evaluate_groups(ppo, counting(report=False))

    def test_standard_deviation(self, ppo):
        class Alternating(CountingEnv):
            """Every other episode pays 1 more at its end."""

            def step(self, action):
                obs, reward, done, truncated, info = super().step(action)
                if done:
                    self.pay = (3.0,) if self.pay == (1.0,) else (1.0,)
                return obs, reward, done, truncated, info

        model = PPO("MlpPolicy", Alternating(pay=(1.0,), length=(2,)))
        result = evaluate_groups(model, Monitor(Alternating(pay=(1.0,), length=(2,))), n_eval_episodes=4)
        # returns 2, 6, 2, 6
        assert result == {0: GroupEvaluation(4.0, 2.0, 2.0, 4)}

    def test_successes_are_counted_by_task(self, ppo):
        """Task 1 succeeds in every other of its episodes, task 0 never."""
        found = evaluate_groups(ppo, Monitor(SucceedingEnv()), n_eval_episodes=8)
        assert [(task, result.success_rate, result.n_episodes) for task, result in found.items()] == [(0, 0.0, 4), (1, 0.5, 4)]
        silent = evaluate_groups(ppo, Monitor(SucceedingEnv(tells=False)), n_eval_episodes=8)
        assert [result.success_rate for result in silent.values()] == [None, None]

    def test_success_rates_are_logged(self, ppo, tmp_path):
        logger = configure(str(tmp_path), ["json"])
        ppo.set_logger(logger)
        callback = GroupEvalCallback(Monitor(SucceedingEnv()), n_eval_episodes=8, eval_freq=8, verbose=0)
        ppo.learn(8, callback)
        logger.close()
        logged = json.loads((tmp_path / "progress.json").read_text().splitlines()[0])
        assert (logged["eval/task_0_success_rate"], logged["eval/task_1_success_rate"]) == (0.0, 0.5)
        assert logged["eval/success_rate"] == 0.25
        assert logged["eval/task_1"] == 10

    def test_as_many_tasks_are_printed_with_success_rates_as_without(self, capsys):
        class Succeeding(CountingEnv):
            def step(self, action):
                obs, reward, done, truncated, info = super().step(action)
                return obs, reward, done, truncated, {**info, "is_success": done}

        env = Succeeding(pay=(1.0,) * 8, length=(1,) * 8)
        model = PPO("MlpPolicy", env, n_steps=8, batch_size=8)
        model.set_logger(configure(None, ["stdout"]))
        model.learn(8, GroupEvalCallback(Monitor(env), n_eval_episodes=8, eval_freq=8, verbose=0))
        printed = capsys.readouterr().out
        assert "task_7_success_rate" in printed

    def test_reward_scale_is_part_of_the_return(self, grpo):
        env = TaskCartPole(tasks=[{}, {"reward_scale": 10.0}])
        model = PPO("MlpPolicy", env, seed=0)
        scaled = evaluate_groups(model, Monitor(env), n_eval_episodes=2)
        assert scaled[1].mean == pytest.approx(10 * scaled[1].mean_length)
        assert scaled[0].mean == scaled[0].mean_length


class TestTasksInTurn:
    def model(self, env):
        return PPO("MlpPolicy", env, seed=0, n_steps=8, batch_size=8)

    def test_one_environment_plays_all_equally_often(self):
        env = DummyVecEnv([choosable(3)])
        assert n_episodes(evaluate_groups(self.model(env), env, 12)) == dict.fromkeys(range(6), 2)

    def test_returns_are_those_of_the_task(self):
        env = DummyVecEnv([choosable(3)])
        assert [result.mean for result in evaluate_groups(self.model(env), env, 6).values()] == [0, 3, 6, 9, 12, 15]

    def test_several_environments_of_the_same_length(self):
        env = DummyVecEnv([choosable(3)] * 3)
        assert n_episodes(evaluate_groups(self.model(env), env, 12)) == dict.fromkeys(range(6), 2)

    def test_several_environments_of_different_lengths_miss_no_task(self):
        env = DummyVecEnv([choosable(2), choosable(50)])
        assert n_episodes(evaluate_groups(self.model(env), env, 6)) == dict.fromkeys(range(6), 1)

    def test_more_environments_than_episodes_miss_no_task(self):
        env = DummyVecEnv([choosable(3, n_tasks=2)] * 3)
        assert n_episodes(evaluate_groups(self.model(env), env, 2)) == {0: 1, 1: 1}

    def test_a_choice_without_a_method_is_another_thing(self):
        class Other(CountingEnv):
            task_choice = "random"

        env = DummyVecEnv([lambda: Monitor(Other())])
        assert evaluate_groups(self.model(env), env, 4) == EXPECTED

    def test_choice_is_random_again_afterwards(self):
        env = DummyVecEnv([choosable(3)] * 2)
        evaluate_groups(self.model(env), env, 4)
        assert env.get_attr("task_choice") == ["random", "random"]

    def test_choice_is_random_again_after_an_error(self):
        env = DummyVecEnv([choosable(3, report=False)])
        with pytest.raises(ValueError, match="no router"):
            evaluate_groups(self.model(env), env, 4)
        assert env.get_attr("task_choice") == ["random"]

    def test_fixed_tasks_are_respected(self):
        env = DummyVecEnv([lambda: Monitor(TaskCartPole(task=2))])
        assert n_episodes(evaluate_groups(self.model(env), env, 3)) == {2: 3}
        assert env.get_attr("task_choice") == [2]

    def test_task_cartpole(self):
        env = DummyVecEnv([lambda: Monitor(TaskCartPole())])
        assert n_episodes(evaluate_groups(self.model(env), env, 8)) == dict.fromkeys(range(4), 2)


class TestEnoughEpisodes:
    def model(self, env):
        return PPO("MlpPolicy", env, seed=0, n_steps=8, batch_size=8)

    @pytest.mark.parametrize("n_envs", [1, 2, 4, 7])
    @pytest.mark.parametrize("given", [1, 5, 6])
    def test_every_task_is_played(self, n_envs, given):
        env = DummyVecEnv([choosable(3)] * n_envs)
        assert n_episodes(evaluate_groups(self.model(env), env, given)) == dict.fromkeys(range(6), 1)

    def test_every_environment_plays_its_task(self):
        env = DummyVecEnv([partial(TaskCartPole, task=k) for k in range(4)])
        assert n_episodes(evaluate_groups(self.model(env), env, 2, warn=False)) == dict.fromkeys(range(4), 1)

    def test_more_are_as_many_as_asked_for(self):
        env = DummyVecEnv([choosable(3)])
        assert n_episodes(evaluate_groups(self.model(env), env, 8)) == {0: 2, 1: 2, 2: 1, 3: 1, 4: 1, 5: 1}

    def test_of_the_callback(self):
        env, tasks = DummyVecEnv([choosable(3)]), []
        callback = GroupEvalCallback(env, eval_freq=8, verbose=0)
        assert callback.n_eval_episodes == 6

        def note(locals_, globals_):
            tasks.append(n_episodes(callback.last_evaluation))
            return True

        self.model(env).learn(16, callback=[callback, ConvertCallback(note)])
        assert tasks[7] == tasks[15] == dict.fromkeys(range(6), 1)

    @pytest.mark.parametrize("given", [0, -1, 2.5, "5", None])
    def test_bad_numbers(self, ppo, given):
        message = f"`n_eval_episodes` must be an integer of at least 1, got {given!r}"
        with pytest.raises(ValueError, match=message):
            evaluate_groups(ppo, counting(), given)
        with pytest.raises(ValueError, match=message):
            GroupEvalCallback(counting(), n_eval_episodes=given)


class NamedEnv(CountingEnv):
    """``CountingEnv`` that calls its tasks by these names."""

    def __init__(self, names, **kwargs):
        super().__init__(**kwargs)
        self.names = names

    def _info(self):
        return {"task": self.names[self.task]}


LONG = ["pick the red cube up and put it into the left box", "pick the red cube up and put it into the right box"]


class TestLabels:
    """What the environment calls its tasks."""

    @pytest.mark.parametrize(
        ("names", "expected"),
        [
            (["walk", "run"], ["run", "walk"]),
            (LONG, LONG),
            (["walk", 3], [3, "walk"]),
            ([np.int64(7), np.array(2)], [2, 7]),
            ([np.str_("walk"), th.tensor(3)], [3, "walk"]),
            ([1.5, 1], [1, 1.5]),
        ],
    )
    def test_are_keys(self, ppo, names, expected):
        evaluation = evaluate_groups(ppo, Monitor(NamedEnv(names)), n_eval_episodes=4)
        assert list(evaluation) == expected
        assert {type(label) for label in evaluation} <= {int, float, str}
        # the first name is the task that pays 1 in each of 3 steps
        assert [evaluation[read_label(name)] for name in names] == list(EXPECTED.values())

    @pytest.mark.parametrize("label", [None, (1, 2), np.zeros(2), math.nan, {"name": "walk"}])
    def test_that_are_none(self, ppo, label):
        with pytest.raises(ValueError, match=r'info\["task"\] must be a number or a name, got'):
            evaluate_groups(ppo, Monitor(NamedEnv([label, 1])), n_eval_episodes=2)

    def learn(self, names, folder):
        tasks = len(names)
        env = Monitor(NamedEnv(names, pay=tuple(range(tasks)), length=(1,) * tasks))
        ppo = PPO("MlpPolicy", env, n_steps=8, batch_size=8)
        ppo.set_logger(configure(str(folder), ["stdout", "log", "csv"]))
        ppo.learn(8, callback=GroupEvalCallback(env, n_eval_episodes=tasks, eval_freq=8, verbose=0))
        ppo.logger.close()
        return next(csv.DictReader((folder / "progress.csv").read_text().splitlines()))

    def test_are_not_cut_off_in_logs(self, tmp_path, capsys):
        row = self.learn(LONG, tmp_path)
        assert [float(row[f"eval/task_{name}"]) for name in LONG] == [0, 1]
        for printed in (capsys.readouterr().out, (tmp_path / "log.txt").read_text()):
            assert all(f"| task_{name} " in " ".join(printed.split()) for name in LONG)

    @pytest.mark.parametrize(("n_tasks", "printed"), [(8, True), (9, False)])
    def test_of_many_tasks_are_not_printed(self, tmp_path, capsys, n_tasks, printed):
        row = self.learn([f"task number {k}" for k in range(n_tasks)], tmp_path)
        assert float(row[f"eval/task_task number {n_tasks - 1}"]) == n_tasks - 1
        shown = capsys.readouterr().out
        assert ("task number 0" in shown) == printed
        assert "worst_reward" in shown


class TestEnvironmentsWithoutGetAttr:
    class Simulator(DummyVecEnv):
        """As simulators on a GPU: nothing is known of its environments."""

        def get_attr(self, attr_name, indices=None):
            if attr_name == "render_mode":
                return [None] * self.num_envs
            raise NotImplementedError

    def test_evaluation(self, ppo):
        env = self.Simulator([CountingEnv, lambda: CountingEnv(first_task=1)])
        assert evaluate_groups(ppo, env, n_eval_episodes=4, warn=False) == EXPECTED

    def test_callback(self):
        env = self.Simulator([CountingEnv, lambda: CountingEnv(first_task=1)])
        ppo = PPO("MlpPolicy", self.Simulator([CountingEnv]), n_steps=8, batch_size=8)
        callback = GroupEvalCallback(env, n_eval_episodes=4, eval_freq=8, verbose=0, warn=False)
        ppo.learn(8, callback=callback)
        assert callback.last_evaluation == EXPECTED


class TestInterrupt:
    """Ctrl-C while the tasks are played in turn."""

    @pytest.mark.parametrize("nth", range(1, 8))
    def test_tasks_are_drawn_again(self, nth):
        calls = 0

        class Interrupting(ChoosableEnv):
            """An interrupt at one of the calls of ``set_task`` before and during the evaluation."""

            def set_task(self, task):
                nonlocal calls
                calls += 1
                if calls == nth:
                    raise KeyboardInterrupt
                super().set_task(task)

        env = DummyVecEnv([lambda: Monitor(Interrupting(pay=(1.0, 2.0), length=(2, 2)))] * 3)
        model = PPO("MlpPolicy", env, seed=0, n_steps=8, batch_size=24)
        with pytest.raises(KeyboardInterrupt):
            evaluate_groups(model, env, 8)
        assert calls > nth
        assert env.get_attr("task_choice") == ["random"] * 3

    def test_the_callback_is_as_before(self, tmp_path):
        class Interrupting(CountingEnv):
            def step(self, action):
                raise KeyboardInterrupt

        after, model = NoteParentSteps(), PPO("MlpPolicy", CountingEnv(), seed=0, n_steps=8, batch_size=8)
        kwargs: dict[str, Any] = dict(
            best_by="worst", n_eval_episodes=4, eval_freq=8, best_model_save_path=str(tmp_path), verbose=1
        )
        callback = GroupEvalCallback(Monitor(Interrupting()), callback_after_eval=after, **kwargs)
        with pytest.raises(KeyboardInterrupt):
            model.learn(8, callback=callback)
        assert (callback.best_mean_reward, callback.callback, callback.verbose) == (-math.inf, after, 1)
        callback.eval_env = DummyVecEnv([counting])
        model.learn(8, callback=callback, reset_num_timesteps=False)
        assert callback.best_mean_reward == 3.0
        assert after.steps == [16]


class TestGroupEvalCallback:
    def test_logs_tasks_and_worst(self, ppo, tmp_path):
        callback = GroupEvalCallback(counting(), n_eval_episodes=4, eval_freq=8, verbose=0)
        ppo.set_logger(configure(str(tmp_path), ["csv"]))
        ppo.learn(8, callback=callback)
        ppo.logger.close()
        first_row = next(csv.DictReader((tmp_path / "progress.csv").read_text().splitlines()))
        logged = {name: float(first_row[f"eval/{name}"]) for name in ("task_0", "task_1", "worst_reward", "mean_reward")}
        assert logged == {"task_0": 3.0, "task_1": 10.0, "worst_reward": 3.0, "mean_reward": 6.5}
        assert callback.last_evaluation == EXPECTED
        assert callback.last_worst_reward == 3.0

    def test_logs_cells(self, grpo):
        callback = GroupEvalCallback(counting(report=False), n_eval_episodes=4, eval_freq=8, verbose=0)
        grpo.learn(8, callback=callback)
        assert callback.last_evaluation == EXPECTED

    def test_before_the_first_evaluation(self, ppo):
        callback = GroupEvalCallback(counting(), eval_freq=100, verbose=0)
        ppo.learn(8, callback=callback)
        assert callback.last_evaluation == {}
        assert callback.last_worst_reward == -math.inf

    def test_every_evaluation_starts_afresh(self, ppo):
        callback = GroupEvalCallback(counting(), n_eval_episodes=4, eval_freq=4, verbose=0)
        ppo.learn(8, callback=callback)
        assert n_episodes(callback.last_evaluation) == {0: 2, 1: 2}

    def test_task_choice_is_random_afterwards(self, ppo):
        env = DummyVecEnv([choosable(3, n_tasks=2)])
        ppo.learn(8, callback=GroupEvalCallback(env, n_eval_episodes=2, eval_freq=8, verbose=0))
        assert env.get_attr("task_choice") == ["random"]

    def test_unknown_criterion(self):
        with pytest.raises(ValueError, match='`best_by` must be "mean" or "worst", got \'median\''):
            GroupEvalCallback(counting(), best_by="median", verbose=0)  # type: ignore[arg-type]  # the error under test


class Drifting(CountingEnv):
    """From evaluation to evaluation of 2 episodes the mean rises by 4 while the worst task falls by 1, then recovers."""

    PAYS = ((3.0, 3.0), (2.0, 12.0), (5.0, 1.0), (4.0, 4.0))

    def __init__(self):
        super().__init__(pay=self.PAYS[0], length=(1, 1))
        self.n_resets = 0

    def reset(self, *, seed=None, options=None):
        # an evaluation resets at its start and after each of its two episodes
        self.pay = self.PAYS[min(self.n_resets // 3, 3)]
        self.task = self.n_resets % 3 - 1
        self.n_resets += 1
        return super().reset(seed=seed, options=options)


class NoteParentSteps(BaseCallback):
    """Notes when it is called, and may ask to stop."""

    parent: EvalCallback

    def __init__(self, stop=False):
        super().__init__()
        self.stop, self.steps = stop, []

    def _on_step(self):
        self.steps.append(self.parent.num_timesteps)
        return not self.stop


class TestBestModel:
    """Evaluations of the worst task: 3, 2, 1, 4; of the mean: 3, 7, 3, 4."""

    def learn(self, ppo, tmp_path, best_by, **kwargs):
        saved = []
        callback = GroupEvalCallback(
            Monitor(Drifting()),
            best_by=best_by,
            n_eval_episodes=2,
            eval_freq=8,
            best_model_save_path=str(tmp_path),
            verbose=0,
            **kwargs,
        )
        save = ppo.save

        def note(path, *args, **kwargs):
            saved.append((ppo.num_timesteps, callback.last_worst_reward))
            save(path, *args, **kwargs)

        ppo.save = note
        ppo.learn(32, callback=callback)
        del ppo.save
        return saved, callback

    def test_by_the_worst_task(self, ppo, tmp_path):
        saved, callback = self.learn(ppo, tmp_path, "worst")
        assert saved == [(8, 3.0), (32, 4.0)]
        assert callback.best_worst_reward == 4.0
        assert PPO.load(tmp_path / "best_model").num_timesteps == 32

    def test_by_the_mean(self, ppo, tmp_path):
        saved, callback = self.learn(ppo, tmp_path, "mean")
        assert [step for step, _ in saved] == [8, 16]
        assert callback.best_mean_reward == 7.0
        assert PPO.load(tmp_path / "best_model").num_timesteps == 16

    @pytest.mark.parametrize(("best_by", "steps"), [("mean", [8, 16]), ("worst", [8, 32])])
    def test_callback_on_new_best(self, ppo, tmp_path, best_by, steps):
        note = NoteParentSteps()
        self.learn(ppo, tmp_path, best_by, callback_on_new_best=note)
        assert note.steps == steps

    @pytest.mark.parametrize("best_by", ["mean", "worst"])
    def test_callback_on_new_best_can_stop_training(self, ppo, tmp_path, best_by):
        self.learn(ppo, tmp_path, best_by, callback_on_new_best=NoteParentSteps(stop=True))
        assert ppo.num_timesteps == 8

    def test_save_path_is_kept(self, ppo, tmp_path):
        _, callback = self.learn(ppo, tmp_path, "worst")
        assert callback.best_model_save_path == str(tmp_path)

    @pytest.mark.parametrize(("best_by", "threshold", "stop"), [("mean", 6.5, 16), ("worst", 3.5, 32), ("worst", 2.5, 8)])
    def test_threshold_goes_by_it(self, ppo, tmp_path, best_by, threshold, stop):
        _, callback = self.learn(ppo, tmp_path, best_by, callback_on_new_best=StopTrainingOnRewardThreshold(threshold))
        assert ppo.num_timesteps == stop
        assert (callback.best_mean_reward >= threshold) == (callback.last_mean_reward >= threshold or best_by == "worst")

    # no better mean since step 16, no better worst task in steps 16 and 24
    @pytest.mark.parametrize(
        ("best_by", "patience", "stop"), [("mean", 0, 24), ("mean", 1, 32), ("worst", 0, 16), ("worst", 1, 24)]
    )
    def test_no_improvement_goes_by_it(self, ppo, tmp_path, best_by, patience, stop):
        self.learn(ppo, tmp_path, best_by, callback_after_eval=StopTrainingOnNoModelImprovement(patience))
        assert ppo.num_timesteps == stop

    @pytest.mark.parametrize("best_by", ["mean", "worst"])
    def test_order_is_that_of_sb3(self, ppo, tmp_path, best_by):
        def order(kind, folder, **kwargs):
            calls = []

            class Note(BaseCallback):
                def __init__(self, name):
                    super().__init__()
                    self.name = name

                def _on_step(self):
                    calls.append((self.name, (folder / "best_model.zip").exists(), self.num_timesteps))
                    return True

            callbacks = dict(callback_on_new_best=Note("best"), callback_after_eval=Note("after"))
            env = Monitor(CountingEnv())
            paths = dict(best_model_save_path=str(folder), log_path=str(folder))
            ppo.learn(16, callback=kind(env, n_eval_episodes=2, eval_freq=8, verbose=0, **callbacks, **paths, **kwargs))
            return calls

        ours = order(GroupEvalCallback, tmp_path / "ours", best_by=best_by)
        assert ours == order(EvalCallback, tmp_path / "sb3")
        assert ours == [("best", True, 8), ("after", True, 8), ("after", True, 16)]

    def test_printed_lines_are_sb3s_by_the_mean(self, ppo, tmp_path, capsys):
        def printed(callback, env):
            # SB3's logger prints another table, with times
            ppo.set_logger(configure(None, []))
            ppo.learn(32, callback=callback(env, n_eval_episodes=2, eval_freq=8, verbose=1))
            return capsys.readouterr().out

        ours = printed(GroupEvalCallback, Monitor(Drifting()))
        assert ours == printed(EvalCallback, Monitor(Drifting()))
        assert ours.count("New best mean reward!") == 2

    def test_printed_lines_name_the_worst_task(self, ppo, tmp_path, capsys):
        ppo.set_logger(configure(None, []))
        env = Monitor(NamedEnv(["walk", "run"], pay=(3.0, 1.0), length=(2, 4)))
        ppo.learn(8, callback=GroupEvalCallback(env, best_by="worst", n_eval_episodes=4, eval_freq=8))
        assert capsys.readouterr().out.splitlines() == [
            "Eval num_timesteps=8, worst task run: 4.00 +/- 0.00",
            "Its episode length: 4.00; mean reward of all episodes: 5.00",
            "New best reward of the worst task!",
        ]

    def test_nan_is_never_the_best(self, ppo, tmp_path):
        env = Monitor(CountingEnv(pay=(1.0, math.nan)))
        callback = GroupEvalCallback(
            env, best_by="worst", n_eval_episodes=2, eval_freq=8, verbose=0, best_model_save_path=str(tmp_path)
        )
        ppo.learn(8, callback=callback)
        assert callback.last_worst_task == 1
        assert not list(tmp_path.iterdir())


class TestRestart:
    """The best model so far, in a new process: another callback, and a model that continues."""

    def callback(self, folder, pay, **kwargs):
        options = dict(best_by="worst", n_eval_episodes=2, eval_freq=8, verbose=0)
        return GroupEvalCallback(Monitor(CountingEnv(pay=pay)), best_model_save_path=str(folder), **{**options, **kwargs})

    def saved_at(self, folder):
        return PPO.load(folder / "best_model").num_timesteps

    @pytest.fixture
    def trained(self, ppo, tmp_path):
        """Its best is 3 by the worst task, 6.5 by the mean."""
        return ppo.learn(8, callback=self.callback(tmp_path, (1.0, 2.0)))

    @pytest.mark.parametrize("best_by", ["mean", "worst"])
    # returns 3 * pay and 5 * pay
    @pytest.mark.parametrize(("pay", "better"), [((0.5, 1.0), False), ((1.0, 2.0), False), ((1.5, 2.5), True)])
    def test_only_a_better_one_replaces_it(self, trained, tmp_path, best_by, pay, better):
        callback = self.callback(tmp_path, pay, best_by=best_by)
        trained.learn(8, callback=callback, reset_num_timesteps=False)
        assert self.saved_at(tmp_path) == (16 if better else 8)
        old, new = ({"mean": 6.5, "worst": 3.0}[best_by], {"mean": 8.5, "worst": 4.5}[best_by])
        assert callback.best_mean_reward == (new if better else old)

    def test_record(self, trained, tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["best_model.json", "best_model.zip"]
        record = json.loads((tmp_path / "best_model.json").read_text())
        assert record == {"mean_reward": 6.5, "worst_reward": 3.0, "num_timesteps": 8}

    def test_a_new_training_begins_anew(self, trained, tmp_path):
        trained.learn(16, callback=self.callback(tmp_path, (0.1, 0.1)))
        assert json.loads((tmp_path / "best_model.json").read_text())["worst_reward"] == pytest.approx(0.3)

    @pytest.mark.parametrize("record", [None, b"", b"{", b"[]", b"null", b"{}", b'{"worst_reward": "good"}', b"\xff\xfe"])
    def test_a_record_that_cannot_be_read(self, trained, tmp_path, record):
        path = tmp_path / "best_model.json"
        path.unlink()
        if record is not None:
            path.write_bytes(record)
        with pytest.warns(
            UserWarning, match=r"the next evaluation will replace .*best_model.zip: how good it is cannot be read"
        ):
            trained.learn(8, callback=self.callback(tmp_path, (0.5, 1.0)), reset_num_timesteps=False)
        assert self.saved_at(tmp_path) == 16
        assert json.loads(path.read_text())["worst_reward"] == 1.5

    def test_a_record_without_a_model(self, trained, tmp_path):
        (tmp_path / "best_model.zip").unlink()
        trained.learn(8, callback=self.callback(tmp_path, (0.5, 1.0)), reset_num_timesteps=False)
        assert self.saved_at(tmp_path) == 16

    @pytest.mark.parametrize("fails", ["zip", "json"])
    def test_a_failed_save_leaves_both_as_they_were(self, trained, tmp_path, monkeypatch, fails):
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        # SB3 does not write with these
        monkeypatch.setattr(PPO, "save", lambda model, path: path.write_bytes(b"half") and 1 / (fails != "zip"))
        monkeypatch.setattr(Path, "write_text", lambda path, text: path.write_bytes(b"half") and 1 / (fails != "json"))
        with pytest.raises(ZeroDivisionError):
            trained.learn(8, callback=self.callback(tmp_path, (5.0, 5.0)), reset_num_timesteps=False)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_the_evaluations_so_far_stay_in_the_log(self, ppo, tmp_path):
        paths = dict(log_path=str(tmp_path), n_eval_episodes=2)
        ppo.learn(16, callback=self.callback(tmp_path, (1.0, 2.0), **paths))
        ppo.learn(8, callback=self.callback(tmp_path, (0.5, 1.0), **paths), reset_num_timesteps=False)
        with np.load(tmp_path / "evaluations.npz") as log:
            assert log["timesteps"].tolist() == [8, 16, 24]
            assert np.sort(log["results"]).tolist() == [[3.0, 10.0], [3.0, 10.0], [1.5, 5.0]]
            assert np.sort(log["ep_lengths"]).tolist() == [[3, 5]] * 3

    @pytest.mark.parametrize("broken", [b"", b"PK", None])
    def test_a_log_that_does_not_fit_is_begun_anew(self, ppo, tmp_path, broken):
        ppo.learn(16, callback=self.callback(tmp_path, (1.0, 2.0), log_path=str(tmp_path), n_eval_episodes=4))
        if broken is not None:
            (tmp_path / "evaluations.npz").write_bytes(broken)
        ppo.learn(8, callback=self.callback(tmp_path, (1.0, 2.0), log_path=str(tmp_path)), reset_num_timesteps=False)
        with np.load(tmp_path / "evaluations.npz") as log:
            assert log["timesteps"].tolist() == [24]


def test_evaluation_does_not_change_the_model(grpo):
    before = {name: value.clone() for name, value in grpo.policy.state_dict().items()}
    evaluate_groups(grpo, counting(), n_eval_episodes=4)
    assert all(value.equal(grpo.policy.state_dict()[name]) for name, value in before.items())


def test_stochastic_actions_can_be_asked_for():
    env = TaskCartPole(task=0)
    model = PPO("MlpPolicy", env, seed=0)

    def lengths(deterministic):
        return {evaluate_groups(model, Monitor(seeded(env)), 1, deterministic)[0].mean_length for _ in range(6)}

    assert len(lengths(deterministic=True)) == 1
    assert len(lengths(deterministic=False)) > 1


def seeded(env):
    """Every episode starts in the same state."""
    env.reset = lambda **_: type(env).reset(env, seed=0)
    return env
