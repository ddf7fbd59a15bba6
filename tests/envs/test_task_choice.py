"""Which task an episode plays: drawn, in turn or fixed, by number or name."""

import pytest

from sb3_grpo.envs.cartpole import TaskCartPole
from sb3_grpo.envs.tasks import Task

NAMED: dict[str, Task] = {"light": {}, "heavy": {"masspole": 0.5}, "inverted": {"invert": True}}


def played(env, n):
    return [env.reset()[1]["task"] for _ in range(n)]


def test_in_turn():
    env = TaskCartPole(task="in_turn")
    assert env.task_choice == "in_turn"
    assert played(env, 6) == [0, 1, 2, 3, 0, 1]
    env.set_task_probabilities([1, 0, 0, 0])
    assert played(env, 2) == [2, 3]


def test_in_turn_from_a_task_on():
    env = TaskCartPole(tasks=NAMED)
    env.begin_turn("inverted")
    assert played(env, 4) == [2, 0, 1, 2]
    env.begin_turn(1)
    assert played(env, 2) == [1, 2]
    env.set_task("in_turn")
    assert played(env, 2) == [0, 1]


def test_by_name():
    env = TaskCartPole(tasks=NAMED, task="heavy")
    assert env.task_names == ["light", "heavy", "inverted"]
    assert env.reset()[1] == {"task": 1, "task_name": "heavy"}
    assert env.step(0)[4] == {"task": 1, "task_name": "heavy"}
    env.set_task("inverted")
    assert env.reset()[1] == {"task": 2, "task_name": "inverted"}


def test_a_list_of_tasks_has_no_names():
    env = TaskCartPole()
    assert env.task_names is None
    assert env.reset()[1].keys() == {"task"}


@pytest.mark.parametrize("task", ["heavy", "", None, 2.5, True])
def test_a_task_that_does_not_exist(task):
    env = TaskCartPole()
    for choose in (env.set_task, env.begin_turn):
        with pytest.raises(ValueError, match=r'`task` must be "random", "in_turn" or a number from 0 to 3, got'):
            choose(task)
    assert env.task_choice == "random"


@pytest.mark.parametrize("names", [{"": {}}, {"in_turn": {}}])
def test_names_that_are_not_valid(names):
    with pytest.raises(ValueError, match="names of `tasks` must"):
        TaskCartPole(tasks=names)
