"""Callbacks: evaluation by task, and groups that merge and split."""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zipfile import BadZipFile

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, EvalCallback
from stable_baselines3.common.logger import HumanOutputFormat
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_grpo.evaluation import (
    EpisodeCollector,
    GroupEvaluation,
    TaskLabel,
    check_count,
    enough_episodes,
    make_collector,
    objective_names_of,
)
from sb3_grpo.interrupts import interrupts_delayed
from sb3_grpo.plots import EvaluationMoment, draw_kl, draw_tasks, draw_timeline, new_figure, timeline_height
from sb3_grpo.regroup_plan import Divergences, Merge, RegroupEvent, Split
from sb3_grpo.regrouping import as_regroup_event
from sb3_grpo.rules import is_range
from sb3_grpo.saving import complete_file
from sb3_grpo.tensorboard import tensorboard_outputs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Tasks beyond this number are logged to TensorBoard and files, but not printed.
MAX_PRINTED_TASKS = 8
# More cells than these are counted, not named, in the line of a split
MAX_NAMED_CELLS = 16
# Pictures are at least this many looks at the groups apart
MIN_LOOKS_BETWEEN_PICTURES = 4


class GroupEvalCallback(EvalCallback):
    """
    Evaluate as SB3's ``EvalCallback`` does, and log each task and the worst of them.

    The tags are ``eval/task_0`` ..., or have the task's name, and ``eval/worst_reward``; ``eval/task_0_success_rate`` ...
    where episodes end with ``info["is_success"]``, as for ``EvalCallback``. Where the environment does not
    report ``info["task"]``, the cells of the model's router take the place of tasks. Where it has several objectives these
    do, as ``eval/objective_speed``, and all that is said of tasks below is true of them.

    With ``best_by="worst"`` the worst task takes the place of the mean reward wherever ``EvalCallback`` decides something:
    ``best_mean_reward`` is its mean reward, and SB3's ``StopTrainingOnRewardThreshold`` and
    ``StopTrainingOnNoModelImprovement`` go by it.

    Beside ``best_model.zip`` it writes ``best_model.json`` with the ``mean_reward``, the ``worst_reward`` and the
    ``num_timesteps`` of that model. A training that continues (``reset_num_timesteps=False``) begins with that best, and
    with the evaluations in ``log_path``. If the file cannot be read a warning says so, and the first evaluation replaces
    the best model, as it does in a training that counts its steps from 0.

    :param eval_env: The environment used for evaluation
    :param best_by: what decides which model is the best: ``"mean"`` reward as in SB3, or the ``"worst"`` task's
    :param ranges: for each task, by its label, a low and a high return; the worst task is then that with the lowest
        ``(return - low) / (high - low)``, and its reward this number. Objectives, whose units differ, cannot be compared
        without; tasks can, if ``None``
    :param kwargs: as in ``EvalCallback``; ``n_eval_episodes`` are those of all tasks together. A number below that of the
        tasks (where the environment lets them be chosen) or environments is raised to that.
    :raises ValueError: if ``best_by`` is neither, ``n_eval_episodes`` is below 1, a range is empty, or a task has none
    """

    def __init__(
        self,
        eval_env: gym.Env | VecEnv,
        *,
        best_by: Literal["mean", "worst"] = "mean",
        ranges: Mapping[TaskLabel, tuple[float, float]] | None = None,
        **kwargs: Any,
    ):
        super().__init__(eval_env, **kwargs)
        if best_by not in ("mean", "worst"):
            raise ValueError(f'`best_by` must be "mean" or "worst", got {best_by!r}')
        objectives = objective_names_of(self.eval_env)
        check_ranges(ranges, objectives)
        self.ranges, self._compares = ranges, not objectives or ranges is not None
        if best_by == "worst" and not self._compares:
            raise ValueError('`ranges` must be given with best_by="worst" for objectives, whose units differ, got None')
        self.n_eval_episodes = enough_episodes(self.eval_env, self.n_eval_episodes)
        self.best_by = best_by
        self.last_evaluation: dict[TaskLabel, GroupEvaluation] = {}
        self.moments: list[EvaluationMoment] = []  # one for each evaluation of this object
        self._collector: EpisodeCollector

    @property
    def last_worst_task(self) -> TaskLabel | None:
        """Task with the lowest mean reward in the last evaluation; ``None`` before the first."""
        means = {task: self._in_range(task) for task in self.last_evaluation}
        # nothing is worse than NaN
        return min(means, key=lambda task: -math.inf if math.isnan(means[task]) else means[task], default=None)

    @property
    def last_worst_reward(self) -> float:
        """Mean reward of the worst task in the last evaluation; -inf before the first."""
        task = self.last_worst_task
        return -math.inf if task is None else self._in_range(task)

    def _in_range(self, task: TaskLabel) -> float:
        """Return what a task is compared by: its mean reward, in its range if there are ranges."""
        mean = self.last_evaluation[task].mean
        if self.ranges is None:
            return mean
        if task not in self.ranges:
            raise ValueError(f"`ranges` must have one for each task, got {list(self.ranges)} without {task!r}")
        low, high = self.ranges[task]
        return (mean - low) / (high - low)

    @property
    def best_worst_reward(self) -> float:
        """Mean reward of the best model's worst task; -inf before the first evaluation, and with ``best_by="mean"``."""
        return self.best_mean_reward if self.best_by == "worst" else -math.inf

    def _on_training_start(self) -> None:
        super()._on_training_start()
        if self.model.num_timesteps > 0:
            self._continue_best()
            self._continue_log()

    def _continue_best(self) -> None:
        if self.best_model_save_path is None or not (path := Path(self.best_model_save_path, "best_model.zip")).exists():
            return
        record = path.with_suffix(".json")
        try:
            best = float(json.loads(record.read_text())[f"{self.best_by}_reward"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(
                f"the next evaluation will replace {path}: how good it is cannot be read from {record} ({error!r})",
                stacklevel=2,
            )
            return
        self.best_mean_reward = max(self.best_mean_reward, best)
        if self.verbose >= 1:
            print(f"Going on from the best model in {path}, with a reward of {self.best_mean_reward:.2f}")

    def _continue_log(self) -> None:
        if self.log_path is None or self.evaluations_timesteps:
            return
        try:
            with np.load(f"{self.log_path}.npz") as saved:
                columns = {name: values[saved["timesteps"] <= self.model.num_timesteps] for name, values in saved.items()}
        except (OSError, EOFError, ValueError, KeyError, IndexError, BadZipFile):
            return
        # evaluations of another number of episodes would not fit into the same table
        if {"timesteps", "results", "ep_lengths"} <= columns.keys() and columns["results"].shape[1:] == (
            self.n_eval_episodes,
        ):
            self.evaluations_timesteps = columns["timesteps"].tolist()
            self.evaluations_results = columns["results"].tolist()
            self.evaluations_length = columns["ep_lengths"].tolist()
            self.evaluations_successes = columns["successes"].tolist() if "successes" in columns else []

    def _log_success_callback(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        super()._log_success_callback(locals_, globals_)
        self._collector(locals_, globals_)
        if locals_["done"]:
            # kept up to date, because EvalCallback writes the log before it returns
            self.last_evaluation = self._collector.summarize()
            self._log_tasks()

    def _log_tasks(self) -> None:
        keys: dict[str, float] = {}
        for task, evaluation in self.last_evaluation.items():
            key = f"{self._collector.prefix}_{task}"
            keys[key] = evaluation.mean
            if evaluation.success_rate is not None:
                keys[f"{key}_success_rate"] = evaluation.success_rate
        printed = len(self.last_evaluation) <= MAX_PRINTED_TASKS
        for output in self.logger.output_formats if printed else []:
            if isinstance(output, HumanOutputFormat):
                # it would cut names off, and refuse those that are the same then; it indents them by 3
                output.max_length = max([output.max_length, *(3 + len(key) for key in keys)])
        for key, value in keys.items():
            self.logger.record(f"eval/{key}", value, None if printed else "stdout")
        if self._compares:
            self.logger.record("eval/worst_reward", self.last_worst_reward)

    def _note_moment(self) -> None:
        """Keep what :func:`plot_tasks` draws."""
        returns = {str(label): evaluation.mean for label, evaluation in self.last_evaluation.items()}
        records, names = getattr(self.model, "groups", []), getattr(self.model, "cell_names", [])
        weights = {names[cell]: record.weight for record in records for cell in record.cells if names}
        weights = weights or {str(record.group): record.weight for record in records}
        self.moments.append(EvaluationMoment(self.num_timesteps, returns, weights))

    def _on_step(self) -> bool:
        if self.eval_freq <= 0 or self.n_calls % self.eval_freq != 0:
            return True
        before = self.best_mean_reward, self.callback, self.verbose
        # EvalCallback evaluates and logs; which model is the best, and who is told, is decided here
        self.best_mean_reward, self.callback = math.inf, None
        if self.best_by == "worst":
            self.verbose = 0
        try:
            with make_collector(self.model, self.eval_env) as self._collector:
                super()._on_step()
        finally:
            self.best_mean_reward, self.callback, self.verbose = before
        self._note_moment()
        return self._compare_with_best()

    def _compare_with_best(self) -> bool:
        """Save the model if it is the best so far, tell callbacks, and return whether training goes on."""
        reward, name = self.last_mean_reward, "mean reward"
        if self.best_by == "worst":
            reward, name = self.last_worst_reward, "reward of the worst task"
            self._print_worst()
        continue_training = True
        if reward > self.best_mean_reward:
            if self.verbose >= 1:
                print(f"New best {name}!")
            with interrupts_delayed():
                self._save_best()
                self.best_mean_reward = reward
            if self.callback_on_new_best is not None:
                continue_training = self.callback_on_new_best.on_step()
        if self.callback is not None:
            continue_training = continue_training and self._on_event()
        return continue_training

    def _print_worst(self) -> None:
        task = self.last_worst_task
        if self.verbose >= 1 and task is not None:
            worst = self.last_evaluation[task]
            print(f"Eval num_timesteps={self.num_timesteps}, worst task {task}: {worst.mean:.2f} +/- {worst.std:.2f}")
            print(f"Its episode length: {worst.mean_length:.2f}; mean reward of all episodes: {self.last_mean_reward:.2f}")

    def _save_best(self) -> None:
        if self.best_model_save_path is None:
            return
        folder, worst = Path(self.best_model_save_path), self.last_worst_reward if self._compares else None
        record = dict(mean_reward=self.last_mean_reward, worst_reward=worst, num_timesteps=self.num_timesteps)
        with complete_file(folder / "best_model.zip") as part:
            self.model.save(part)
            # moved to its place first: a process killed in between must not leave a model that is better than its record
            with complete_file(folder / "best_model.json") as record_part:
                record_part.write_text(json.dumps(record))


def check_ranges(ranges: Mapping[TaskLabel, tuple[float, float]] | None, objectives: list[str]) -> None:
    """
    Check the ranges of tasks or objectives.

    :param ranges: low and high return by label; ``None``: none
    :param objectives: names of the objectives; empty: there are tasks, whose labels are not known yet
    :raises ValueError: if a range is empty, or the names are not those of the objectives
    """
    for label, limits in (ranges or {}).items():
        if not is_range(limits):
            raise ValueError(f"`ranges` must hold two numbers (low, high), low below high, got {limits!r} for {label!r}")
    if ranges is not None and objectives and set(ranges) != set(objectives):
        raise ValueError(f"`ranges` must have one for each objective, {objectives}, got {list(ranges)}")


class RegroupCallback(BaseCallback):
    """
    Have groups merged and split at the start of rollouts, and report it.

    Between a rollout and its update this would make the stored log-likelihoods stale. ``GRPO`` adds such a callback by
    itself; pass one of your own to change what is printed or drawn. What is merged and split is decided by
    ``model.regrouper``, with the thresholds that are arguments of ``GRPO``.

    :param figure_freq: TensorBoard gets new pictures at an event, then at growing distances, at least every so many times
        that the groups were looked at, and at the end of training; never more often than every fourth time (or
        ``figure_freq``, if that is less). 0: never
    :param verbose: 1: one line per event; ``None``: as the model
    :raises ValueError: if ``figure_freq`` is no integer of at least 0, or when training starts with another algorithm
    """

    def __init__(self, figure_freq: int = 50, verbose: int | None = None):
        super().__init__(verbose or 0)
        check_count("figure_freq", figure_freq, least=0)
        self.figure_freq = figure_freq
        self._verbose_as_model = verbose is None
        self._looks_since_event, self._looks_since_picture = 0, math.inf
        self._last_look: Divergences | None = None  # that is not in a picture

    @property
    def _grpo(self) -> Any:
        return self.model

    def _init_callback(self) -> None:
        if not hasattr(self.model, "regroup_history"):
            raise ValueError(f"RegroupCallback needs a GRPO model, got {type(self.model).__name__}")
        if self._verbose_as_model:
            self.verbose = self.model.verbose

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        model = self._grpo
        if model.regrouper is not None and model.regrouper.due(model.regroup_rule, model.n_rollouts):
            self._regroup()

    def _on_training_end(self) -> None:
        if self._last_look is not None:
            self._log_figures(self._last_look)

    def _regroup(self) -> None:
        model, n_events = self._grpo, len(self._grpo.regroup_history)
        reward_scale = model.score_history.reward_scale if model.normalizes_by_group else None
        divergences = model.regrouper.regroup(model.policy, model.regroup_rule, self._record, reward_scale)
        self._log(divergences)
        self._last_look = divergences
        if self._picture_due(changed=len(self._grpo.regroup_history) > n_events):
            self._log_figures(divergences)

    def _picture_due(self, changed: bool) -> bool:
        """Return whether it is time for pictures; ``changed`` says whether groups have just been merged or split."""
        self._looks_since_event = 0 if changed else self._looks_since_event + 1
        self._looks_since_picture += 1
        # twice as long after the event, twice as many looks
        apart = max(MIN_LOOKS_BETWEEN_PICTURES, self._looks_since_event / 2)
        return self._looks_since_picture >= min(self.figure_freq, apart)

    def _record(self, event: Merge | Split) -> None:
        model = self._grpo
        if model.use_sde:
            # the noise of this rollout was drawn for the groups before
            model.policy.reset_noise(model.n_envs)
        model.regroup_history.append(as_regroup_event(event, self.num_timesteps, model.cell_to_group))
        if self.verbose >= 1:
            print(describe_event(model.regroup_history[-1], model.cell_names))

    def _log(self, divergences: Divergences) -> None:
        def record(name: str, value: float) -> None:
            # what can be read without the documentation are the lines printed for events
            self.logger.record(f"groups/{name}", value, exclude="stdout")

        active = sorted(set(self._grpo.cell_to_group))
        within, errors = divergences.within[active], divergences.within_error[active]
        if within.isfinite().any():
            worst = within.nan_to_num(-math.inf).argmax()
            record("kl_within", within[worst].item())
            record("kl_within_error", errors[worst].item())
        between = divergences.between[active][:, active].fill_diagonal_(th.nan)
        if between.isfinite().any():
            record("kl_between", between[between.isfinite()].min().item())
        for kind in ("merge", "split"):
            record(f"n_{kind}s", sum(event.kind == kind for event in self._grpo.regroup_history))

    def _log_figures(self, divergences: Divergences) -> None:
        outputs = tensorboard_outputs(self.logger)
        if self.figure_freq == 0 or not outputs:
            return
        model, active = self._grpo, sorted(set(self._grpo.cell_to_group))
        try:
            figures = {"kl": new_figure(6, 5), "timeline": new_figure(8, timeline_height(len(model.first_grouping)))}
            draw_kl(figures["kl"].subplots(), divergences.between, active, group_labels(model))
            now, names = self.num_timesteps, model.cell_names
            draw_timeline(figures["timeline"].subplots(), model.first_grouping, model.regroup_history, now, names)
            for output in outputs:
                for name, figure in figures.items():
                    output.writer.add_figure(f"groups/figure_{name}", figure, self.num_timesteps, close=False)
        except ImportError as error:
            self.figure_freq = 0
            if self.verbose >= 1:
                print(f"TensorBoard gets no pictures of the groups: {error}")
        self._last_look, self._looks_since_picture = None, 0


def describe_event(event: RegroupEvent, cell_names: Sequence[str] = ()) -> str:
    """
    Describe an event in one line: what happened, and why.

    :param event: from ``model.regroup_history``
    :param cell_names: of the cells; empty: their numbers
    """
    stays, other = event.groups
    # an estimate can be below 0
    nats, when = f"{max(event.kl, 0):.2f} nats", f"after {event.timestep} steps"
    cells = [cell for cell, group in enumerate(event.cell_to_group) if group == (stays if event.kind == "merge" else other)]
    plural = "s" if len(cells) > 1 else ""
    named = f"cell{plural} {', '.join(map(str, cells))}" if len(cells) <= MAX_NAMED_CELLS else f"{len(cells)} of its cells"
    if cell_names and len(cells) <= MAX_NAMED_CELLS:
        named = ", ".join(cell_names[cell] for cell in cells)
    if event.kind == "merge":
        joined = f" ({named})" if cell_names else ""
        return f"merge of groups {stays} and {other} into {stays}{joined} {when}: their policies differ by {nats} only"
    return f"split of group {stays} {when}: its cells differ by {nats}, group {other} gets {named}"


def plot_regrouping(model: Any, path: str | Path | None = None) -> "Figure":
    """
    Draw both pictures of the groups for a model that has been trained.

    :param model: a ``GRPO`` model with more than one head, or objective
    :param path: PNG to write; ``None``: none
    :return: the figure
    :raises ValueError: if the model is no ``GRPO`` model, or has one head and one objective only
    :raises ImportError: if matplotlib is not installed
    """
    if not hasattr(model, "regroup_history"):
        raise ValueError(f"`model` must be a GRPO model, got {type(model).__name__}")
    if model.regrouper is None:
        raise ValueError("`model` must have more than one head (`max_groups`) or objective, got 1: its groups cannot change")
    figure = new_figure(12, max(4, timeline_height(len(model.first_grouping))))
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    draw_timeline(left, model.first_grouping, model.regroup_history, model.num_timesteps, model.cell_names)
    divergences = model.regrouper.measure(model.policy, model.regroup_rule)
    draw_kl(right, divergences.between, sorted(set(model.cell_to_group)), group_labels(model))
    if path is not None:
        figure.savefig(path)
    return figure


def plot_tasks(callback: GroupEvalCallback, path: str | Path | None = None) -> "Figure":
    """
    Draw the return of each task, or objective, over the evaluations of a training, and the weights of the groups.

    :param callback: that was given to ``learn``, of any algorithm; other algorithms have no weights
    :param path: PNG to write; ``None``: none
    :return: the figure
    :raises ValueError: if it has not evaluated yet
    :raises ImportError: if matplotlib is not installed
    """
    if not callback.moments:
        raise ValueError("`callback` must have evaluated at least once, got one without an evaluation")
    figure = draw_tasks(callback.moments)
    if path is not None:
        figure.savefig(path)
    return figure


def group_labels(model: Any) -> list[str]:
    """
    Return a label of each group in use, made of the names of its tasks; none if they have no names.

    :param model: a ``GRPO`` model
    """
    return [record.name for record in model.groups if record.name is not None]


def contains_callback(callback: Any, kind: type[BaseCallback]) -> bool:
    """
    Return whether there is a callback of a class where it is told of the start of rollouts.

    SB3's ``EventCallback`` tells its child of events only.

    :param callback: whatever ``learn`` takes
    :param kind: a class of callbacks
    """
    children = callback if isinstance(callback, list) else callback.callbacks if isinstance(callback, CallbackList) else []
    return isinstance(callback, kind) or any(contains_callback(child, kind) for child in children)


def with_callbacks(callback: MaybeCallback, first: list[BaseCallback], last: list[BaseCallback]) -> MaybeCallback:
    """
    Add callbacks to those of the user.

    :param callback: whatever ``learn`` takes
    :param first: callbacks that are called before those of the user, which may call the policy
    :param last: callbacks that are called after those of the user, and left out where there is one of the same class
    :return: what ``learn`` takes
    """
    last = [each for each in last if not contains_callback(callback, type(each))]
    if not first and not last:
        return callback
    given = callback if isinstance(callback, list) else [] if callback is None else [callback]
    return [*first, *(each if isinstance(each, BaseCallback) else ConvertCallback(each) for each in given), *last]


def tell_interrupted(callback: BaseCallback) -> None:
    """
    Call ``on_training_interrupted()`` of a callback and of its children, where they have such a method.

    :param callback: the callback
    """
    # a CallbackList has callbacks, SB3's EventCallback one
    for child in (*getattr(callback, "callbacks", []), getattr(callback, "callback", None)):
        if isinstance(child, BaseCallback):
            tell_interrupted(child)
    if hasattr(callback, "on_training_interrupted"):
        callback.on_training_interrupted()
