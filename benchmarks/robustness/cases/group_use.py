"""List environments with tasks, callbacks, and functions of this package that are used wrongly."""

from collections.abc import Callable
from functools import partial
from typing import Any

from stable_baselines3 import PPO

from benchmarks.robustness.cases.case import NAN, OBS, ONE_HOT, Case, make, own, tasks, train
from benchmarks.robustness.cases.odd_envs import BrokenOneHot, OddEnv
from sb3_grpo import GroupEvalCallback, RegroupCallback, TaskSamplingCallback, evaluate_groups, plot_regrouping


def broken_block(name: str, block: list[float], after: int, *words: str) -> Case:
    """
    Return the case of :class:`BrokenOneHot`.

    :param name: name of the case after "one-hot block: "
    :param block: the columns of the task
    :param after: number of the step from which on they are wrong
    :param words: further words, see :class:`Case`
    """
    words = ("columns", "one-hot", *words)
    return own(f"one-hot block: {name}", lambda a, f: train(a, BrokenOneHot(block, after), **ONE_HOT), *words)


BROKEN_BLOCKS = {
    "all zeros": [0.0] * 4,
    "two ones": [1.0, 1.0, 0.0, 0.0],
    "halves": [0.5, 0.5, 0, 0],
    "another 1": [2.0, 0, 0, 0],
}
OWN_ENVIRONMENTS = [
    *(
        broken_block(f"{name} {when}", block, after)
        for name, block in BROKEN_BLOCKS.items()
        for when, after in {"at first": 0, "later": 40}.items()
    ),
    broken_block("NaN later", [NAN] * 4, 40, *OBS),
    own("TaskCartPole(tasks=[])", lambda a, f: train(a, tasks(tasks=[])), "tasks"),
    own("TaskCartPole, unknown name", lambda a, f: train(a, tasks(tasks=[{"lenght": 1.0}])), "lenght"),
    own("TaskCartPole(task=7)", lambda a, f: train(a, tasks(task=7)), "task"),
    own("TaskCartPole(task_observation='x')", lambda a, f: train(a, tasks(task_observation="x")), "task_observation"),
    own("set_task(9)", lambda a, f: tasks().set_task(9), "task"),
]


def with_callback(name: str, make_callback: Callable[[], Any], *words: str, fine: bool | None = False) -> Case:
    """
    Return the case of a callback of this package, for four tasks.

    :param name: name of the case after "callback: "
    :param make_callback: makes the callback
    :param words: see :class:`Case`
    :param fine: see :class:`Case`
    """
    return own(f"callback: {name}", lambda a, f: make(a, tasks(), **ONE_HOT).learn(96, make_callback()), *words, fine=fine)


BAD_SAMPLING: dict[str, list[Any]] = dict(group_coef=[-1, NAN, "x", None], uniform_share=[0, 2, NAN, "x", None])
BAD_CRITERIA: list[Any] = ["median", None, 1]
CALLBACKS = [
    own("callback: RegroupCallback with PPO", lambda a, f: make(PPO).learn(96, RegroupCallback()), "RegroupCallback", "GRPO"),
    with_callback("RegroupCallback(figure_freq='x')", lambda: RegroupCallback(figure_freq="x"), "figure_freq"),  # type: ignore[arg-type]  # what is tried
    with_callback("RegroupCallback twice", lambda: [RegroupCallback(), RegroupCallback()], "RegroupCallback", fine=None),
    *(
        with_callback(f"TaskSamplingCallback({name}={bad!r})", partial(TaskSamplingCallback, **{name: bad}), name)
        for name, values in BAD_SAMPLING.items()
        for bad in values
    ),
    *(
        with_callback(f"GroupEvalCallback(best_by={bad!r})", partial(GroupEvalCallback, tasks(), best_by=bad), "best_by")
        for bad in BAD_CRITERIA
    ),
    own(
        "callback: TaskSamplingCallback without tasks",
        lambda a, f: make(a).learn(96, TaskSamplingCallback()),
        "get_task_probabilities",
    ),
    own("plot_regrouping with PPO", lambda a, f: plot_regrouping(train(PPO)), "GRPO"),
    own("plot_regrouping with one head", lambda a, f: plot_regrouping(train(a, n_groups=1)), "max_groups"),
    own("plot_regrouping: no such folder", lambda a, f: plot_regrouping(train(a), f / "none" / "x.png"), "none", "x.png"),
    own("evaluate_groups with PPO, no tasks", lambda a, f: evaluate_groups(train(PPO), OddEnv()), "task", "router"),
    own(
        "evaluate_groups, no episodes",
        lambda a, f: evaluate_groups(train(a, tasks(), **ONE_HOT), tasks(), 0),
        "n_eval_episodes",
    ),
]

CASES = [*OWN_ENVIRONMENTS, *CALLBACKS]
