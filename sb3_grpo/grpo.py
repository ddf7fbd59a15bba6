"""GRPO: PPO with groups of decisions that have their own heads and are balanced against each other."""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule

from sb3_grpo.advantages import normalize_by_group, smallest_divisor
from sb3_grpo.arguments import (
    NOT_NAN,
    check_arguments,
    check_built,
    check_classes,
    check_learn_arguments,
    finite_schedule_value,
    keep_group_arguments,
    make_balancer,
    name_of_score,
    policy_refusal,
    schedule_value,
)
from sb3_grpo.balancing import GroupWeights
from sb3_grpo.buffers import GroupBufferMixin, GroupDictRolloutBuffer, GroupRolloutBuffer, Rollout
from sb3_grpo.callbacks import RegroupCallback, tell_interrupted, with_callbacks
from sb3_grpo.diagnostics import GroupRecord, group_records, log_groups, log_policy, log_update
from sb3_grpo.env_tasks import find_task
from sb3_grpo.envs.entries import ACTION_MASK, TASK
from sb3_grpo.episode_arguments import check_episodes, check_reference
from sb3_grpo.epochs import EpochLoop
from sb3_grpo.estimators import ESTIMATORS, Experience
from sb3_grpo.group_kinds import DecisionGroups, GroupKind, ObjectiveGroups
from sb3_grpo.interrupts import interrupts_delayed
from sb3_grpo.model_files import ModelFiles
from sb3_grpo.objective import PPOObjective
from sb3_grpo.objectives.arguments import read_objective_names
from sb3_grpo.policies import POLICIES, GroupActorCriticPolicy
from sb3_grpo.probe_math import N_FOLDS
from sb3_grpo.recording import Outcome
from sb3_grpo.reference import ReferencePolicy
from sb3_grpo.regrouping import Credit, RegroupRule
from sb3_grpo.routing import check_first_observations
from sb3_grpo.scores import SCORES, GroupScores, ScoreHistory
from sb3_grpo.targets import Targets, target_ranges
from sb3_grpo.tensorboard import TensorBoardCallback, tensorboard_outputs
from sb3_grpo.update import CompiledUpdate, Update, check_plain_adam, has_hooks, make_eager_update

SelfGRPO = TypeVar("SelfGRPO", bound="GRPO")


class GRPO(ModelFiles):
    """
    Group Relative Policy Optimization: PPO whose decisions are divided into groups that are balanced against each other.

    Every group has its own sub-policy (head). The loss is ``L = L_PPO + group_coef * ||M||_F^2`` with
    ``M_ij = (R_i - R_j) / sigma_R``. With ``n_groups=1`` it is SB3's PPO, bit for bit.

    The arguments up to ``_init_setup_model`` are PPO's, with its order and defaults; the others are keyword-only.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a subclass of
        :class:`~sb3_grpo.policies.GroupActorCriticPolicy`
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate, it can be a function of the current progress remaining (from 1 to 0)
    :param n_steps: The number of steps to run for each environment per update
    :param batch_size: Minibatch size
    :param n_epochs: Number of epochs when optimizing the surrogate loss
    :param gamma: Discount factor
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator
    :param clip_range: Clipping parameter, it can be a function of the current progress remaining (from 1 to 0)
    :param clip_range_vf: Clipping parameter for the value function, ``None`` for no clipping; it depends on the reward
        scaling, but with ``normalize_advantage="group"`` it is in units of the group's returns
    :param normalize_advantage: ``True``: per minibatch, as PPO. ``"group"``: subtract each group's mean over the rollout
        and divide by its standard deviation, but at least by what a single reward would make it, and have value heads
        in units of their group's returns, without which advantages could not be in such units; for groups that are
        whole episodes (tasks). It removes information where groups are regions in an episode. ``False``: not at all.
    :param ent_coef: Entropy coefficient for the loss calculation
    :param vf_coef: Value function coefficient for the loss calculation
    :param max_grad_norm: The maximum value for the gradient clipping
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE)
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE, -1: only at the start of a rollout
    :param rollout_buffer_class: Rollout buffer class to use, a subclass of
        :class:`~sb3_grpo.buffers.GroupRolloutBuffer` or its Dict twin; ``None``: chosen by the observation space
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param target_kl: Limit the KL divergence between updates, ``None``: no limit
    :param stats_window_size: Window size for the rollout logging, in episodes
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators; the groups' own generator is seeded with it too
    :param device: Device (cpu, cuda, ...) on which the code should be run
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :param group_by: what a group consists of: ``"decisions"``, each of which belongs to one group, or ``"objectives"``, to
        which every decision belongs: the parts of the reward, from an environment with
        :class:`~sb3_grpo.objectives.ObjectivesWrapper`. Each of them has a value head and its own advantages, normalised
        unless ``normalize_advantage`` is False; their weighted sum is what the policy learns from, normalised once more if
        it is True. There is one action head, and ``n_groups``, ``max_groups`` and the router must be left as they are.
        Objectives that merge count as one (docs/objectives.md).
    :param n_groups: number of groups to start with, at least 1. ``None``: one per cell where the cells are given
        (``"one_hot"``, ``"discrete"``, a callable), one that may split with the random router.
    :param max_groups: largest number of groups, at least ``n_groups``. ``None``: one per cell, but one if ``n_groups=1`` is
        given, and ``n_groups`` if groups never split (``split_kl=None``). To begin with one group that may split, give
        both: ``n_groups=1, max_groups=8``; until it splits it is PPO.
    :param router: how an observation is assigned to its cell: ``"task"`` (by the task that it shows, in an environment such
        as :class:`~sb3_grpo.envs.multi_task.MultiTaskEnv`, or as entry ``"task"`` of a Dict), ``"random"`` (Voronoi cells of
        the observation space), ``"one_hot"``, ``"discrete"``, or a function that maps a batch of observations (tensor, or
        dict of tensors) to integer cells of shape ``(B,)``. Give the router whenever you know what your tasks or phases are.
    :param router_kwargs: ``n_cells`` (random: default 8 or ``n_groups`` if that is more; callable: required),
        ``columns=(start, stop)`` and ``hide`` (one_hot), ``key`` and ``hide`` (discrete), ``hide`` (task); ``hide=True``
        keeps what names the cell from the policy's trunk
    :param advantage_estimator: a key of :data:`sb3_grpo.estimators.ESTIMATORS`: ``"gae"``, as PPO; or without a critic, which
        compares episodes with each other: ``"outcome"`` and ``"process"`` (episodes that begin alike, see
        :func:`~sb3_grpo.vec_env.shared_start.make_group_vec_env`), ``"time_step"``
    :param group_size: number of environments whose episodes are compared with each other where there is no critic, at least
        2, a divisor of the number of environments; ``None``: all of them
    :param estimator_kwargs: options of an estimator without a critic, see
        :class:`~sb3_grpo.estimators.critic_free.CriticFreeEstimator`: ``scale``, ``aggregation``, ``ratio``, ``alike``,
        ``truncated``, ``max_rollouts``
    :param clip_range_high: how far above 1 ratios may rise where that is not ``clip_range`` (DAPO,
        https://arxiv.org/abs/2503.14476), above 0; ``None``: ``clip_range``
    :param kl_coef: beta, coefficient of the KL divergence from the reference policy in the loss, estimated by k3 (eq. 4 of
        https://arxiv.org/abs/2402.03300); 0: there is no reference policy
    :param ref_update_freq: the reference policy follows the policy every so many rollouts; ``None``: it stays the policy
        with which the first training began
    :param ref_tau: share of the policy in what the reference policy becomes, above 0, at most 1
    :param balancer: rule by which groups are weighed, a key of :data:`sb3_grpo.balancing.BALANCERS`:
        ``"relative_penalty"``, the penalty of the loss above, or ``"gap_odds"``. ``None``: the former, but the latter for
        objectives that are compared by gaps
    :param group_coef: lambda, how strongly groups that are behind are favoured: a number, a function of the
        remaining progress (from 1 to 0), or ``"lin_0.05"`` (from 0.05 linearly to 0). At least 0, which is no balancing;
        where the cap binds (``groups/coef_effective`` stays below ``group_coef``) a larger value changes nothing. ``None``:
        the balancer's ``DEFAULT_COEF``, 0.05 for the penalty, 5 for the odds
    :param group_score: what groups are compared by, a key of :data:`sb3_grpo.scores.SCORES`: ``"return"`` (mean
        return-to-go of their steps) or ``"reward"`` (mean reward), both in units of the group's rewards; ``"gap"`` (how
        near episodes come to ``group_targets``, or to the best episode so far); ``"raw_return"`` (in the rewards' unit).
        ``None``: ``"return"``, but ``"gap"`` for objectives, whose signs may differ
    :param group_targets: with ``"gap"``, the return of an episode that is to be reached in each cell, or for each objective,
        or a pair (low, high) from where to where it is to go; in their order, or a dict by name
    :param group_scale: ``sigma_R``, pooled over the steps of a rollout: ``"std"`` or ``"range"`` (largest minus
        smallest: weaker and bounded, for scores with rare extreme values)
    :param merge_kl: groups whose policies differ by less (KL divergence in nats, the larger direction, at least 0) are
        merged; ``None``: never. Below ``split_kl``.
    :param split_kl: groups whose cells contradict each other by more (KL divergence in nats of what each cell wants
        from what suits all of them) are split, as soon as that is certain; ``None``: never
    :param regroup_freq: the groups are looked at every so many rollouts; ``None``: about every 2048 steps
    :param regroup_warmup: rollouts before a group may be merged: heads begin equal, and need time to differ. ``None``: as
        many as make 10,000 steps, but at least 5. The groups that the random router begins with do not wait.
    :param probe_kl_coef: coefficient of the KL divergence that keeps probes near their group's head, above 0, typically
        0.03 to 0.2: half of it makes small contradictions four times as large; probes are at most 1 nat away
    :param action_mask_key: entry of Dict observations that holds 1 for each action that is allowed and 0 for others, which
        are then never taken: for Discrete actions, or MultiDiscrete ones, where the masks of the variables follow each
        other. An entry ``"action_mask"``, the default, need not be there; ``None``: there are no masks
    :param compile: compile the update with ``torch.compile``: several times faster after half a minute of
        compilation (see docs/performance.md for when that pays). Results agree within rounding.
    :raises ValueError: if an argument is out of its range, before anything is built
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = POLICIES
    rollout_buffer: GroupBufferMixin
    _compiled_update: CompiledUpdate | None = None
    _callback: BaseCallback | None = None  # of the training that is going on
    _group_stats: Sequence[tuple[int, int, float, float]] = ()  # group, steps, score, weight of the last rollout

    def __init__(
        self,
        policy: str | type[GroupActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool | Literal["group"] = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        group_by: Literal["decisions", "objectives"] = "decisions",
        n_groups: int | None = None,
        max_groups: int | None = None,
        router: str | Callable[[Any], Any] = "random",
        router_kwargs: dict[str, Any] | None = None,
        advantage_estimator: str = "gae",
        group_size: int | None = None,
        estimator_kwargs: dict[str, Any] | None = None,
        clip_range_high: float | None = None,
        kl_coef: float = 0.0,
        ref_update_freq: int | None = None,
        ref_tau: float = 1.0,
        balancer: str | None = None,
        group_coef: float | Schedule | str | None = None,
        group_score: str | None = None,
        group_targets: Targets | None = None,
        group_scale: Literal["std", "range"] = "std",
        merge_kl: float | None = 0.1,
        split_kl: float | None = 0.3,
        regroup_freq: int | None = None,
        regroup_warmup: int | None = None,
        probe_kl_coef: float = 0.05,
        action_mask_key: str | None = ACTION_MASK,
        compile: bool = False,
    ):
        super().__init__(**keep_group_arguments(self, locals()) | {"_init_setup_model": False})
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        # again, because load() writes its keyword arguments into the model
        check_arguments(vars(self))
        if self.rollout_buffer_class is None:
            is_dict = isinstance(self.observation_space, spaces.Dict)
            self.rollout_buffer_class = GroupDictRolloutBuffer if is_dict else GroupRolloutBuffer
        check_classes(self.policy_class, self.rollout_buffer_class)
        self.built_estimator = (self.advantage_estimator, self.group_size, self.estimator_kwargs)
        group_size = self.n_envs if self.group_size is None else self.group_size
        self._estimator = ESTIMATORS[self.advantage_estimator](group_size, self.gamma, **(self.estimator_kwargs or {}))
        check_episodes(self.env, self._estimator, self.n_steps)
        if self.group_by == "objectives":
            self.objective_names = read_objective_names(self.env, self.objective_names)
        if self.router == TASK:
            self._found_task = find_task(self.env, self.observation_space, self._found_task)
        policy_kwargs, self.policy_kwargs = self.policy_kwargs, {**self.policy_kwargs, **self._make_group_kwargs()}
        try:
            super()._setup_model()
        finally:
            # load(policy_kwargs=...) compares with what the user gave
            self.policy_kwargs = policy_kwargs
        grouping = self.policy.grouping
        self._built_groups |= dict(n_groups=len(grouping.active), max_groups=grouping.max_groups)
        self.n_groups, self.max_groups = len(grouping.active), grouping.max_groups
        self.policy.adopt_groups(self._saved_groups or grouping.cell_to_group)
        self.policy.adopt_changes()
        if self.router == "random":
            # nothing is known of random regions: they may be merged at once
            grouping.age.fill_(self.regroup_rule.warmup)
        if not self._estimator.uses_critic:
            # without values the returns that the buffer computes are sums of rewards
            self.rollout_buffer.gae_lambda = 1.0
        self._kind: GroupKind = DecisionGroups(self.policy, self.task_names)
        if len(self.objective_names) > 1:
            self._kind = ObjectiveGroups(self.policy, self.objective_names)
        self.score_history = ScoreHistory(len(self._kind.cell_to_group)).to(self.device)
        self.first_grouping = self.first_grouping or self.cell_to_group
        regrouper = self._kind.make_regrouper()
        self.regrouper = None if regrouper is None else regrouper.to(self.device)
        self._choose_parts()

    def _choose_parts(self) -> None:
        """Make what the arguments name, and what must fit the optimizer."""
        if self.compile:
            check_plain_adam(self.policy.optimizer)
        score = name_of_score(self.group_score, self.group_by)
        self._balancer = make_balancer(self.balancer, self.group_coef, self.group_by, score)
        self._score = SCORES[score](target_ranges(self.group_targets, len(self._kind.cell_to_group), self.cell_names))

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name not in self.policy_aliases:
            raise ValueError(policy_refusal(policy_name))
        return super()._get_policy_from_name(policy_name)

    def _maybe_recommend_cpu(self, mlp_class_name: str = "GroupActorCriticPolicy") -> None:
        super()._maybe_recommend_cpu(mlp_class_name)

    def _excluded_save_params(self) -> list[str]:
        own = ["_compiled_update", "_callback", "_kind", "_balancer", "_estimator", "_score", "score_history", "regrouper"]
        return [*super()._excluded_save_params(), *own, "built_estimator", "reference"]

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        check_episodes(self.env, self._estimator, self.n_steps)
        if self.group_by == "objectives":
            read_objective_names(self.env, self.objective_names)
        if self.router == TASK:
            find_task(self.env, self.observation_space, self._found_task)
        if not self._estimator.uses_critic and not self.rollout_buffer.full:
            # the last rollout was stopped, or another model played it: the running episodes have steps that were not recorded
            self._last_obs = None
        if reset_num_timesteps or self._last_obs is None:
            # the environments are about to be reset
            self._estimator.begin(self.n_envs, self._next_episode)
            self._tell_next_episode()
        try:
            total_timesteps, made_callback = super()._setup_learn(
                total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
            )
        except ImportError as error:
            raise ImportError(f'{error} They come with an extra: pip install "sb3-grpo[extra]"') from error
        if reset_num_timesteps:
            # its time is counted in these steps
            self.regroup_history, self.first_grouping = [], self.cell_to_group
        self.policy.adopt_changes()
        if self.kl_coef == 0:
            self.reference = None
        elif self.reference is None:
            self.reference = ReferencePolicy(self.policy)
        if self.max_groups != 1 or self.router != "random":
            # otherwise observations are not routed, and may hold what a features extractor replaces
            assert self._last_obs is not None
            router, normalize = self.policy.grouping.router, self._vec_normalize_env
            check_first_observations(router, self._last_obs, self.env, normalize, self.device)
        return total_timesteps, made_callback

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        is_recorded = self.policy.grouping.max_groups > 1 or len(self.objective_names) > 1 or not self._estimator.uses_critic
        recorders: list[BaseCallback] = [self._kind.recorder] if is_recorded else []
        others: list[BaseCallback] = [TensorBoardCallback()] if tensorboard_outputs(self.logger) else []
        if self.regrouper is not None and self.regroup_rule.changes_groups:
            recorders = [*recorders, self.regrouper.recorder] if self._estimator.uses_critic else recorders
            others = [RegroupCallback(), *others]
        self._callback = super()._init_callback(with_callbacks(callback, recorders, others), progress_bar)
        return self._callback

    @property
    def regroup_rule(self) -> RegroupRule:
        """Thresholds and times of regrouping, with the defaults filled in."""
        thresholds = (self.merge_kl, self.split_kl, self.probe_kl_coef)
        return RegroupRule.of(*thresholds, self.regroup_freq, self.regroup_warmup, self.n_steps * self.n_envs)

    @property
    def n_rollouts(self) -> int:
        """Rollouts so far, with the present number of environments."""
        return self.num_timesteps // (self.n_steps * self.n_envs)

    @property
    def groups(self) -> list[GroupRecord]:
        """One record per group in use, in the order of their numbers."""
        return group_records(self.cell_to_group, self._group_stats, self.cell_names)

    @property
    def cell_to_group(self) -> list[int]:
        """Number of the group of each cell, or of each objective."""
        return self._kind.cell_to_group.tolist()

    def train(self) -> None:
        """Update the policy with the rollout in the buffer: group, estimate, normalize, weigh, observe, update, log."""
        self.policy.set_training_mode(True)
        clip_range, clip_range_vf = self._read_schedules()
        outcome = self._kind.outcome(self.rollout_buffer)
        cell_to_group = self._kind.cell_to_group
        experience = self._estimate_advantages(outcome)
        for tag, figure in experience.figures.items():
            self.logger.record(tag, figure)
        # without a critic there may be nothing that is complete
        if len(experience.parts):
            advantages, divisors = self._normalize_advantages(experience)
            scores, weights = self._weigh_groups(experience.outcome, cell_to_group, divisors)
            entry_weights = weights.at(scores.groups, cell_to_group[experience.outcome.cells])
            rollout = self._kind.join(experience.rollout, experience.outcome, advantages, entry_weights)
            if self.reference is not None:
                rollout = rollout._replace(reference_log_prob=self.reference.log_prob(rollout))
            self._observe(experience)
            self._update_policy(rollout, clip_range, clip_range_vf)
            log_groups(self.logger, len(set(cell_to_group.tolist())), scores, weights)
            self._kind.log(self.logger, scores, weights, self.score_history)
        if self.reference is not None and self.ref_update_freq is not None and self.n_rollouts % self.ref_update_freq == 0:
            with interrupts_delayed():
                self.reference.follow(self.policy, self.ref_tau)

    def _update_policy(self, rollout: Rollout, clip_range: float, clip_range_vf: float | None) -> None:
        """Use the rollout for some epochs, and log what became of it."""
        with self._make_update() as update:
            epochs = EpochLoop(update, self.policy, self.n_epochs, self.batch_size, self.verbose)
            epochs.run(rollout, clip_range, clip_range_vf)
        self._n_updates += epochs.n_begun
        if self._compiled_update is not None and self._compiled_update.compiled_step.works:
            self.policy.compile_act()
        clip_ranges = (clip_range, clip_range if self.clip_range_high is None else self.clip_range_high)
        names = self._make_objective().logged_terms(self.policy.use_critic)
        log_update(self.logger, epochs.steps, epochs.last_start, clip_ranges, names)
        log_policy(self.logger, self.policy, self.rollout_buffer)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip_range)
        if clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", clip_range_vf)

    def _read_schedules(self) -> tuple[float, float | None]:
        """Set the learning rate, and return both clip ranges."""
        progress = self._current_progress_remaining
        finite_schedule_value("learning_rate", self.lr_schedule, progress)
        self._update_learning_rate(self.policy.optimizer)
        values = []
        for name in ("clip_range", "clip_range_vf"):
            schedule = getattr(self, name)
            values.append(None if schedule is None else schedule_value(name, schedule, progress, NOT_NAN))
        assert values[0] is not None
        return values[0], values[1]

    def _estimate_advantages(self, outcome: Outcome) -> Experience:
        """Take what the steps of the rollout brought into the history of scores, and estimate advantages."""
        with interrupts_delayed():
            self.score_history.update(outcome)
            assert self._last_episode_starts is not None  # whether the last step of the rollout ended an episode
            experience = self._estimator(self.rollout_buffer, outcome, self._last_episode_starts)
            self._next_episode = self._estimator.next_episode
        self._tell_next_episode()
        return experience

    def _tell_next_episode(self) -> None:
        """Have environments that number their episodes go on with the same number."""
        assert self.env is not None
        if not self._estimator.uses_critic and self.env.has_attr("skip_to"):
            self.env.env_method("skip_to", self._next_episode)

    def _normalize_advantages(self, experience: Experience) -> tuple[np.ndarray, np.ndarray | None]:
        """Return advantages, and what each of them was divided by; update the value scale."""
        policy, outcome, cell_to_unit = self.policy, experience.outcome, self._kind.cell_to_unit
        advantages, divisors = outcome.advantages, experience.divisors
        if divisors is None and self.normalizes_by_group:
            assert policy.value_scale is not None
            with interrupts_delayed():
                policy.value_scale.update(outcome.returns, self._kind.value_heads(outcome.cells), policy.value_net)
            units = cell_to_unit[outcome.cells]
            per_scale = self.score_history.reward_scale.inverse_of_groups(cell_to_unit, int(cell_to_unit.max()) + 1)
            floor = smallest_divisor(units, outcome.paid, per_scale, self.gamma * self.gae_lambda, self.n_steps)
            advantages, divisor = normalize_by_group(advantages, units, floor)
            divisors = divisor[units]
        return advantages, divisors

    def _weigh_groups(
        self, outcome: Outcome, cell_to_group: np.ndarray, divisors: np.ndarray | None
    ) -> tuple[GroupScores, GroupWeights]:
        """Compare the groups of the rollout, and weigh them."""
        history, cell_to_unit = self.score_history, self._kind.cell_to_unit
        scores = self._score.compare(outcome, cell_to_group, history, divisors, self.group_scale, cell_to_unit)
        scores = self._kind.steps_of_groups(scores)
        weights = self._balancer(scores, self._current_progress_remaining)
        columns = (scores.groups, scores.counts, scores.scores, weights.weights)
        self._group_stats = list(zip(*(column.tolist() for column in columns), strict=True))
        return scores, weights

    def _observe(self, experience: Experience) -> None:
        """Have the probes learn what cells ask for."""
        if self.regrouper is None or not self.regroup_rule.changes_groups:
            return
        buffer, outcome, uses_critic = self.rollout_buffer, experience.outcome, self._estimator.uses_critic
        cells, parts = (th.as_tensor(values, device=self.device) for values in (outcome.cells, experience.parts))
        credit = self._kind.credit(buffer, outcome) if uses_critic else experience.rollout.advantages
        latent = self.regrouper.recorder.latents(buffer.buffer_size) if uses_critic else None
        # parts take turns, so that each fold has something of all of them
        folds, by_cell = (parts + self.n_rollouts) % N_FOLDS, self.normalize_advantage == "group"
        self.regrouper.observe(self.policy, experience.rollout, latent, Credit(credit, cells, folds, by_cell))

    def _make_objective(self) -> PPOObjective:
        is_normalized = self.normalize_advantage is True and self._estimator.uses_critic
        return PPOObjective(self.ent_coef, self.vf_coef, is_normalized, self.clip_range_high, self.kl_coef)

    def _make_update(self) -> Update:
        objective = self._make_objective()
        max_kl = None if self.target_kl is None else 1.5 * self.target_kl
        # uncompiled, what was to be compiled is slower than the eager update
        failed = self._compiled_update is not None and not self._compiled_update.compiled_step.works
        if not self.compile or failed or has_hooks(self.policy):
            return make_eager_update(self.policy, objective, self.max_grad_norm, max_kl)
        if self._compiled_update is None or not self._compiled_update.is_of(self.policy):
            print("GRPO: the first update compiles the training step; this takes about half a minute", flush=True)
            self._compiled_update = CompiledUpdate(self.policy, objective, self.max_grad_norm, max_kl)
        self._compiled_update.configure(objective, self.max_grad_norm, max_kl)
        return self._compiled_update

    def learn(
        self: SelfGRPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "GRPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfGRPO:
        """
        Train, as in SB3.

        :raises ValueError: if an argument, or what has been assigned to the model, is out of its range
        """
        check_learn_arguments({**locals(), "env": self.env})
        check_built(self)
        before = 0 if reset_num_timesteps else self.num_timesteps
        check_reference(self.ref_update_freq, math.ceil((before + total_timesteps) / (self.n_steps * self.n_envs)))
        # numbers that have been assigned become schedules, as in PPO._setup_model
        self.clip_range = FloatSchedule(self.clip_range)
        if self.clip_range_vf is not None:
            self.clip_range_vf = FloatSchedule(self.clip_range_vf)
        self._choose_parts()
        self.policy.hold_heads(bool(self.compile))
        with_gradients = th.is_grad_enabled()
        try:
            return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        except BaseException:
            # Ctrl-C at the end of torch.no_grad() would leave gradients off for the whole process
            th.set_grad_enabled(with_gradients)
            # an environment may have been stopped in the middle of a step: the next training begins with a reset
            self._last_obs = None
            if self._callback is not None:
                tell_interrupted(self._callback)
            raise
