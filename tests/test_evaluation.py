"""Evaluation by task, on environments whose returns are known."""

import csv
import math

import pytest
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from tiny_envs import ChoosableEnv, CountingEnv

from sb3_grpo import GRPO, GroupEvalCallback, GroupEvaluation, evaluate_groups
from sb3_grpo.envs.cartpole import TaskCartPole

# task 0 pays 1 in each of 3 steps, task 1 pays 2 in each of 5
EXPECTED = {0: GroupEvaluation(3.0, 0.0, 3.0, 2), 1: GroupEvaluation(10.0, 0.0, 5.0, 2)}


def counting(**kwargs):
    return Monitor(CountingEnv(**kwargs))


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
