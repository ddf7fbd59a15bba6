"""GRPO: PPO with groups of decisions that have their own heads and are balanced against each other."""

import io
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file, recursive_getattr
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule, TensorDict
from stable_baselines3.common.utils import FloatSchedule, explained_variance, obs_as_tensor
from torch.nn import functional as F

from sb3_grpo.arguments import (
    NOT_NAN,
    check_arguments,
    check_learn_arguments,
    finite_schedule_value,
    group_coef_at,
    make_group_coef_schedule,
    schedule_value,
)
from sb3_grpo.buffers import GroupBufferMixin, GroupDictRolloutBuffer, GroupRolloutBuffer, GroupRolloutBufferSamples
from sb3_grpo.callbacks import RegroupCallback, contains_callback
from sb3_grpo.heads import split_heads
from sb3_grpo.interrupts import interrupts_delayed
from sb3_grpo.losses import GroupBalance, approx_kl, balance_groups, clipped_surrogate, group_means, group_std
from sb3_grpo.policies import CnnPolicy, GroupActorCriticPolicy, MlpPolicy, MultiInputPolicy
from sb3_grpo.probes import N_FOLDS
from sb3_grpo.regroup_plan import RegroupEvent
from sb3_grpo.reward_units import RewardRecorder
from sb3_grpo.routing import NonFiniteError, make_router
from sb3_grpo.saving import (
    HISTORY,
    check_tensors,
    complete_file,
    optimizer_tensors,
    read_attributes,
    read_tensors,
    restore_optimizer,
    write_safetensors,
)
from sb3_grpo.tensorboard import TensorBoardCallback, tensorboard_outputs
from sb3_grpo.update import (
    CompiledUpdate,
    EagerUpdate,
    FlatUpdate,
    PlainUpdate,
    Update,
    UpdateTerms,
    check_plain_adam,
    has_hooks,
    takes_plain_steps,
)

SelfGRPO = TypeVar("SelfGRPO", bound="GRPO")

# Defaults of regroup_freq and regroup_warmup: rollouts differ in length, what can be learnt from them does too.
MIN_REGROUP_STEPS = 2048
MIN_WARMUP_STEPS = 10_000


class GroupRecord(NamedTuple):
    """What is known of one active group."""

    group: int
    cells: list[int]
    steps: int  # in the last rollout
    score: float  # mean over these steps; nan without steps
    weight: float  # factor on the group's policy-gradient loss; 1 = PPO


class GRPO(PPO):
    """
    Group Relative Policy Optimization: decisions are divided into groups, every group has its own
    sub-policy (head), and the groups are balanced: ``L = L_PPO + group_coef * ||M||_F^2`` with
    ``M_ij = (R_i - R_j) / sigma_R``. With ``n_groups=1`` it is SB3's PPO, bit for bit.

    The arguments up to ``_init_setup_model`` are PPO's, in PPO's order and with PPO's defaults; the others are
    keyword-only.

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
    :param clip_range_vf: Clipping parameter for the value function, ``None`` for no clipping; it depends on
        the reward scaling, but with ``normalize_advantage="group"`` it is in units of the group's returns
    :param normalize_advantage: ``True``: per minibatch, as PPO. ``"group"``: subtract each group's mean over
        the rollout and divide by its standard deviation, and have value heads in units of their group's returns;
        for groups that are whole episodes (tasks), above all when their rewards have different scales. It removes
        real information where groups are regions inside an episode. ``False``: not at all.
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
    :param n_groups: number of groups to start with, at least 1. ``None``: one per cell where the cells are given
        (``"one_hot"``, ``"discrete"``, a callable), one that may split with the random router.
    :param max_groups: number of heads, fixed for the life of the model, at least ``n_groups``. ``None``: one per cell,
        but one if ``n_groups=1`` is given, and ``n_groups`` if groups never split (``split_kl=None``). With one head it
        is PPO and stays it; to begin with one group that may split, give both: ``n_groups=1, max_groups=8``.
    :param router: how an observation is assigned to its cell: ``"random"`` (Voronoi cells of the
        observation space), ``"one_hot"``, ``"discrete"``, or a function that maps a batch of observations
        (tensor, or dict of tensors) to integer cells of shape ``(B,)``. Give the router whenever you know
        what your tasks or phases are.
    :param router_kwargs: ``n_cells`` (random: default 8 or ``n_groups`` if that is more; callable: required),
        ``columns=(start, stop)`` and ``hide`` (one_hot), ``key`` and ``hide`` (discrete); ``hide=True`` keeps what
        names the cell from the policy's trunk
    :param group_coef: lambda, how strongly groups that are behind are favoured: a number, a function of the
        remaining progress (from 1 to 0), or ``"lin_0.05"`` (from 0.05 linearly to 0). At least 0; where the
        cap binds (``groups/coef_effective`` stays below ``group_coef``) a larger value changes nothing. 0: no
        balancing. The scores are compared as they are: with rewards on different scales, use a small value or 0.
    :param group_score: what groups are compared by: ``"return"`` (mean return-to-go of their steps, as SB3 estimates
        it for the value function) or ``"reward"`` (mean reward, to which SB3 adds the value of the last observation
        where a time limit ends the episode; for groups that are phases, when what comes after should not count)
    :param group_scale: ``sigma_R``, pooled over the steps of a rollout: ``"std"`` or ``"range"`` (largest minus
        smallest: weaker and bounded, for scores with rare extreme values)
    :param merge_kl: groups whose policies differ by less (KL divergence in nats, the larger direction, at least 0) are
        merged; ``None``: never. Below ``split_kl``.
    :param split_kl: groups whose cells contradict each other by more (KL divergence in nats of what each cell wants
        from what suits all of them) are split, as soon as that is certain; ``None``: never
    :param regroup_freq: groups are looked at every so many rollouts; ``None``: about every 2048 steps
    :param regroup_warmup: rollouts before a group may be merged: equal heads are alike because they have not had the
        time to differ. ``None``: as many as make 10,000 steps, but at least 5. The groups of the random router,
        of which nobody has said that they differ, do not wait.
    :param probe_kl_coef: coefficient of the KL divergence that holds probes to their group's head, above 0, typically
        0.03 to 0.2: half of it makes all contradictions four times as large
    :param compile: compile the update with ``torch.compile``: several times faster after half a minute of
        compilation (see docs/performance.md for when that pays). Results agree within rounding.
    :raises ValueError: if an argument is out of its range, before anything is built
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: GroupActorCriticPolicy
    rollout_buffer: GroupRolloutBuffer
    normalize_advantage: bool | Literal["group"]  # type: ignore[assignment]  # PPO knows two values, here are three

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
        n_groups: int | None = None,
        max_groups: int | None = None,
        router: str | Callable[[Any], Any] = "random",
        router_kwargs: dict[str, Any] | None = None,
        group_coef: float | Schedule | str = 0.005,
        group_score: Literal["return", "reward"] = "return",
        group_scale: Literal["std", "range"] = "std",
        merge_kl: float | None = 0.1,
        split_kl: float | None = 0.3,
        regroup_freq: int | None = None,
        regroup_warmup: int | None = None,
        probe_kl_coef: float = 0.05,
        compile: bool = False,
    ):
        check_arguments(locals())
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            clip_range_vf=clip_range_vf,
            normalize_advantage=normalize_advantage,  # type: ignore[arg-type]  # PPO only asks whether it is true
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            target_kl=target_kl,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.n_groups = n_groups
        self.max_groups = max_groups
        self.router = router
        self.router_kwargs = router_kwargs
        self.group_coef = group_coef
        self.group_score = group_score
        self.group_scale = group_scale
        self.merge_kl = merge_kl
        self.split_kl = split_kl
        self.regroup_freq = regroup_freq
        self.regroup_warmup = regroup_warmup
        self.probe_kl_coef = probe_kl_coef
        self.regroup_history: list[RegroupEvent] = []
        self.first_grouping: list[int] = []  # group of each cell before the first event
        self.compile = compile
        self._compiled_update: CompiledUpdate | None = None
        self._callback: BaseCallback | None = None  # of the training that is going on
        self._reward_recorder = RewardRecorder()
        # (group, steps, score, weight) of the last rollout
        self._group_stats: list[tuple[int, int, float, float]] = []
        self._group_seed: int | None = None
        # what the policy was built with; load() must not be able to change it by keyword
        self._built_groups: dict[str, Any] = {}
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        # again: load() writes its keyword arguments into the model
        check_arguments(vars(self))
        if self.rollout_buffer_class is None:
            is_dict = isinstance(self.observation_space, spaces.Dict)
            self.rollout_buffer_class = GroupDictRolloutBuffer if is_dict else GroupRolloutBuffer
        if not issubclass(self.rollout_buffer_class, GroupBufferMixin):
            wanted = "`rollout_buffer_class` must be a subclass of GroupRolloutBuffer or GroupDictRolloutBuffer"
            raise ValueError(f"{wanted}, got {self.rollout_buffer_class.__name__}")
        if not issubclass(self.policy_class, GroupActorCriticPolicy):
            raise ValueError(f"`policy` must be a subclass of GroupActorCriticPolicy, got {self.policy_class.__name__}")
        self._group_coef_schedule = make_group_coef_schedule(self.group_coef)
        router = self.router if isinstance(self.router, str) else "a callable"
        self._refuse_change(n_groups=self.n_groups, max_groups=self.max_groups, router=router)
        own_policy_kwargs, group_kwargs = self.policy_kwargs, self._make_group_kwargs()
        router_settings = make_router(self.router, self.observation_space, group_kwargs["router_kwargs"]).settings()
        self._refuse_change(**router_settings)
        self.policy_kwargs = {**own_policy_kwargs, **group_kwargs}
        try:
            super()._setup_model()
        finally:
            # what the user gave is what load(policy_kwargs=...) compares with
            self.policy_kwargs = own_policy_kwargs
        self.n_groups, self.max_groups = self.policy.n_groups, self.policy.max_groups
        # a saved model holds plain lists
        self.regroup_history = [RegroupEvent.from_json(event) for event in self.regroup_history]
        if not self.first_grouping:
            self.first_grouping = self.policy.cell_to_group.tolist()
        self._built_groups = dict(
            n_groups=self.n_groups,
            max_groups=self.max_groups,
            router=router,
            scale_values=self.policy.scales_values,
            **router_settings,
        )
        # another number of heads would have everything compiled again
        self.policy.exact_single_group = not self.compile
        self.policy.check_heads()
        self.policy.note_groups()
        if self.router == "random":
            # nobody has said that random groups differ: they need not show for long that they do not
            self.policy.group_age.fill_(self.warmup_rollouts)
        if self.compile:
            check_plain_adam(self.policy.optimizer)

    def _make_group_kwargs(self) -> dict[str, Any]:
        n_groups, max_groups = (self._built_groups.get(name, getattr(self, name)) for name in ("n_groups", "max_groups"))
        router_kwargs = dict(self.router_kwargs or {})
        if self.router == "random":
            router_kwargs.setdefault("n_cells", max(8, n_groups or 1))
            if n_groups is None:
                # nothing is known of random regions: they share a head until their probes object
                n_groups, max_groups = 1, router_kwargs["n_cells"] if max_groups is None else max_groups
        if self.max_groups is None and self.split_kl is None:
            # heads in reserve would never be used
            max_groups = n_groups
        if self._group_seed is None:
            # the global generators must not be drawn from: parity with PPO
            self._group_seed = th.initial_seed() % 2**32 if self.seed is None else self.seed
        return dict(
            n_groups=n_groups,
            max_groups=max_groups,
            router=self.router,
            router_kwargs=router_kwargs,
            group_seed=self._group_seed,
            # a model that was saved with units keeps them
            scale_values=self._built_groups.get("scale_values", False) or self.normalize_advantage == "group",
        )

    def _refuse_change(self, **given: Any) -> None:
        """
        ``load(**kwargs)`` writes into the model before it is set up: what decides the shapes of a saved policy must
        not be changed by that.

        :param given: what the model is to be built with; ``None``: as before
        :raises ValueError: if it was built with something else
        """
        for name, value in given.items():
            saved = self._built_groups.get(name)
            if value is not None and saved is not None and value != saved:
                raise ValueError(f"`{name}` of a saved model cannot be changed: it was built with {saved!r}, got {value!r}")

    def _maybe_recommend_cpu(self, mlp_class_name: str = "GroupActorCriticPolicy") -> None:
        super()._maybe_recommend_cpu(mlp_class_name)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        try:
            total_timesteps, made_callback = super()._setup_learn(
                total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
            )
        except ImportError as error:
            raise ImportError(f'{error} They come with an extra: pip install "sb3-grpo[extra]"') from error
        if reset_num_timesteps:
            # its time is counted in these steps
            self.regroup_history, self.first_grouping = [], self.policy.cell_to_group.tolist()
        self.policy.check_heads()
        if self.policy.max_groups == 1 and self.router == "random":
            # nobody reads the observations: they may hold what a features extractor replaces
            return total_timesteps, made_callback
        # the first look at real observations, before any training time is spent
        router, normalize = self.policy.router, self._vec_normalize_env
        assert self._last_obs is not None
        if normalize is None:
            router.check(obs_as_tensor(self._last_obs, self.device))
        elif normalize is self.env:
            router.check(obs_as_tensor(normalize.get_original_obs(), self.device))
        else:
            # wrapped further: what was normalised cannot be told from here, but it must at least be routed
            router.check_routed(obs_as_tensor(self._last_obs, self.device))
        return total_timesteps, made_callback

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_compiled_update", "_callback", "_reward_recorder"]

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        added: list[BaseCallback] = []
        if self.regroups and not contains_callback(callback, RegroupCallback):
            added.append(RegroupCallback())
        if tensorboard_outputs(self.logger) and not contains_callback(callback, TensorBoardCallback):
            added.append(TensorBoardCallback())
        if self.policy.max_groups > 1:
            added.append(self._reward_recorder)
        if added:
            callbacks = callback if isinstance(callback, list) else [] if callback is None else [callback]
            callback = [*(each if isinstance(each, BaseCallback) else ConvertCallback(each) for each in callbacks), *added]
        self._callback = super()._init_callback(callback, progress_bar)
        return self._callback

    @property
    def groups(self) -> list[GroupRecord]:
        """One record per active group, in the order of the group IDs."""
        stats = {group: (steps, score, weight) for group, steps, score, weight in self._group_stats}
        cell_to_group = self.policy.cell_to_group.tolist()
        return [
            GroupRecord(group, [c for c, g in enumerate(cell_to_group) if g == group], *stats.get(group, (0, math.nan, 1.0)))
            for group in sorted(set(cell_to_group))
        ]

    def train(self) -> None:
        """Update the policy with the rollout in the buffer."""
        self.policy.set_training_mode(True)
        progress = self._current_progress_remaining
        finite_schedule_value("learning_rate", self.lr_schedule, progress)
        self._update_learning_rate(self.policy.optimizer)
        # PPO._setup_model made schedules of them
        assert callable(self.clip_range)
        clip_range, clip_range_vf = schedule_value("clip_range", self.clip_range, progress, NOT_NAN), None
        if self.clip_range_vf is not None:
            assert callable(self.clip_range_vf)
            clip_range_vf = schedule_value("clip_range_vf", self.clip_range_vf, progress, NOT_NAN)

        rollout, balance = self._compare_groups()
        probe_rollout = self._probe_rollout(rollout)

        history: list[UpdateTerms] = []
        max_kl = None if self.target_kl is None else 1.5 * self.target_kl
        early_stopping = False
        with self._make_update(max_kl) as update:
            for epoch in range(self.n_epochs):
                epoch_start = len(history)
                for batch in rollout.minibatches(self.batch_size):
                    history.append(update(batch, clip_range, clip_range_vf))
                    if not history[-1].accepted:
                        self._raise_if_nonfinite(history[-1], batch)
                        early_stopping = True
                        break
                self._n_updates += 1
                if early_stopping:
                    if self.verbose >= 1:
                        kl = approx_kl(history[-1].log_ratio)
                        print(f"Early stopping at step {epoch} due to reaching max kl: {kl:.2f}")
                    break

        if self._compiled_update is not None and self._compiled_update.works:
            self.policy.compile_act()
        if probe_rollout is not None:
            assert self.policy.probes is not None
            with interrupts_delayed():
                self.policy.probes.learn(**probe_rollout, scale_by_cell=self.normalize_advantage == "group")
                self.policy.group_age += 1
        self._log_update(history, epoch_start, clip_range, clip_range_vf)
        self._log_groups(balance)

    def _make_update(self, max_kl: float | None) -> Update:
        """
        :param max_kl: no step is taken beyond this KL divergence
        """
        if has_hooks(self.policy):
            return PlainUpdate(self.policy, self._update_terms, self.max_grad_norm, max_kl)
        if not self.compile:
            # with one group PPO's arithmetic to the last bit
            flat = self.policy.max_groups > 1 and self.policy.only_group is None and takes_plain_steps(self.policy)
            return (FlatUpdate if flat else EagerUpdate)(self.policy, self._update_terms, self.max_grad_norm, max_kl)
        if self._compiled_update is None:
            print("GRPO: the first update compiles the training step; this takes about half a minute", flush=True)
            self._compiled_update = CompiledUpdate(self.policy, self._update_terms, self.max_grad_norm, max_kl)
        self._compiled_update.max_grad_norm, self._compiled_update.max_kl = self.max_grad_norm, max_kl
        return self._compiled_update

    def _compare_groups(self) -> tuple[GroupRolloutBufferSamples, GroupBalance]:
        """
        :return: the rollout as tensors, with groups, weights (and advantages, where they are normalised per
            group), and how its groups compare
        """
        buffer, policy = self.rollout_buffer, self.policy
        router = policy.router if policy.max_groups > 1 else None
        buffer.assign_groups(router, policy.cell_to_group)
        rollout = buffer.samples()
        # advantages last, because rewards are their cause. Observations may hold what a features extractor replaces
        columns = {"rewards": th.as_tensor(buffer.flat_rewards(), device=self.device), "advantages": rollout.advantages}
        check_finite(columns, rollout.groups, "the policy was left as it was")
        if router is not None and not router.is_fitted:
            # the policy that collected the rollout had one head, that of cell 0
            policy.spread_head(int(policy.cell_to_group[0]))
            router.fit(buffer.samples().observations, policy.group_seed)
            buffer.assign_groups(router, policy.cell_to_group)
        rollout = buffer.samples()
        groups, returns = rollout.groups.cpu().numpy(), rollout.returns.cpu().numpy()
        if self.normalize_advantage == "group":
            policy.learn_value_scale(returns, groups)
        rollout, advantage_scale = self._normalize_by_group(rollout)
        coef = group_coef_at(self._group_coef_schedule, self._current_progress_remaining)
        scores = returns if self.group_score == "return" else buffer.flat_rewards()
        # what a reward is worth differs from group to group: scores are compared in units of the group's rewards
        per_unit = self._follow_reward_units()
        balance = balance_groups(groups, scores * per_unit[groups], advantage_scale * per_unit, coef, self.group_scale)
        weights = th.ones(policy.max_groups)
        weights[th.as_tensor(balance.groups)] = th.as_tensor(balance.weights.astype(np.float32))
        return rollout._replace(weights=weights.to(self.device)[rollout.groups]), balance

    def _follow_reward_units(self) -> np.ndarray:
        """
        :return: 1 / unit of each group's rewards, shape ``(max_groups,)``; 0 for groups that have had no reward other than
            0: there is nothing to be measured by it
        """
        policy, buffer = self.policy, self.rollout_buffer
        recorded = self._reward_recorder.rewards(buffer.buffer_size)
        rewards = buffer.flat_rewards() if recorded is None else recorded.ravel()
        with interrupts_delayed():
            policy.reward_units.update(rewards, buffer.cells.cpu().numpy())
        units = policy.reward_units.of_groups(policy.cell_to_group.cpu().numpy(), policy.max_groups)
        return np.divide(1, units, out=np.zeros_like(units), where=units > 0)

    def _normalize_by_group(self, rollout: GroupRolloutBufferSamples) -> tuple[GroupRolloutBufferSamples, np.ndarray]:
        """
        :return: the rollout, and the divisor of each group's advantages, shape ``(max_groups,)``
        """
        n_groups, advantages = self.policy.max_groups, rollout.advantages.cpu().numpy().astype(np.float64)
        if self.normalize_advantage != "group":
            scale = advantages.std(ddof=1) + 1e-8 if self.normalize_advantage else 1.0
            return rollout, np.full(n_groups, scale)
        groups = rollout.groups.cpu().numpy()
        steps = np.bincount(groups, minlength=n_groups)
        # SB3's arithmetic: in float32 the summand disappears beside all but the smallest deviations
        scale = group_std(advantages, groups, steps).astype(np.float32) + np.float32(1e-8)
        centred = (advantages - group_means(advantages, groups, steps)[groups]).astype(np.float32)
        return rollout._replace(advantages=th.as_tensor(centred / scale[groups], device=self.device)), scale

    def _update_terms(self, batch: GroupRolloutBufferSamples, clip_range: float, clip_range_vf: float | None) -> UpdateTerms:
        """
        PPO's loss, in which each step's surrogate is multiplied by its group's weight: the gradient of
        ``L_PPO + lambda * L_group`` at the policy that collected the rollout.
        """
        values, log_prob, entropy = self.policy.evaluate_rollout(batch.observations, self._actions(batch), batch.groups)
        values, old_values, returns = values.flatten(), batch.old_values, batch.returns
        if self.policy.scales_values:
            units = self.policy.value_units(batch.groups)
            values, old_values, returns = values / units, old_values / units, returns / units
        advantages = batch.advantages
        if self.normalize_advantage is True and len(advantages) > 1:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)

        log_ratio = log_prob - batch.old_log_prob
        policy_loss = -self._surrogate(log_ratio.exp(), advantages, batch.weights, clip_range).mean()
        if clip_range_vf is not None:
            values = old_values + th.clamp(values - old_values, -clip_range_vf, clip_range_vf)
        value_loss = F.mse_loss(returns, values)
        # without an analytical form the entropy is approximated
        entropy_loss = -th.mean(-log_prob if entropy is None else entropy)
        loss = policy_loss if self.ent_coef == 0 else policy_loss + self.ent_coef * entropy_loss
        loss = loss + self.vf_coef * value_loss
        return UpdateTerms(loss, policy_loss, value_loss, entropy_loss, log_ratio)

    def _surrogate(self, ratio: th.Tensor, advantages: th.Tensor, weights: th.Tensor, clip_range: float) -> th.Tensor:
        """
        :return: what is maximised at each step, shape ``(b,)``
        """
        return clipped_surrogate(ratio, advantages * weights, clip_range)

    def _actions(self, batch: GroupRolloutBufferSamples) -> th.Tensor:
        return batch.actions.long().flatten() if isinstance(self.action_space, spaces.Discrete) else batch.actions

    def _probe_rollout(self, rollout: GroupRolloutBufferSamples) -> dict[str, th.Tensor] | None:
        """
        :param rollout: the rollout that the policy is about to be updated with
        :return: what the probes learn from it once the update has succeeded
        """
        policy, buffer = self.policy, self.rollout_buffer
        if not self.regroups:
            return None
        latent = self._rollout_latents(rollout)
        return dict(
            latent=latent,
            grad_log_prob=policy.score(latent, rollout.groups, self._actions(rollout)),
            # an advantage of many steps has more noise, and the noise of neighbouring steps is the same
            advantages=buffer.td_errors(),
            cells=buffer.cells,
            # environments take turns: what one of them does in one rollout is in one fold
            folds=(th.arange(self.n_envs, device=self.device) + self._n_rollouts).repeat_interleave(buffer.buffer_size)
            % N_FOLDS,
        )

    def _rollout_latents(self, rollout: GroupRolloutBufferSamples) -> th.Tensor:
        """
        :return: output of the actor's trunk at each step, shape ``(B, latent_dim)``
        """
        policy = self.policy
        kept, policy.kept_latents = policy.kept_latents, None
        if kept is not None and len(kept) == self.n_steps:
            return th.stack(kept, dim=1).flatten(0, 1)
        # nobody has kept them, or somebody else has called the policy in between.
        # Dropout and the like must neither draw random numbers nor learn anything here
        policy.set_training_mode(False)
        with th.no_grad():
            latent = policy.router.map_parts(policy.latent_pi, rollout.observations)
        policy.set_training_mode(True)
        return latent

    @property
    def _n_rollouts(self) -> int:
        return self.num_timesteps // (self.n_steps * self.n_envs)

    @property
    def regroups(self) -> bool:
        """Whether groups may be merged or split."""
        return self.policy.probes is not None and (self.merge_kl is not None or self.split_kl is not None)

    @property
    def warmup_rollouts(self) -> int:
        """``regroup_warmup``, or what it is by default."""
        if self.regroup_warmup is not None:
            return self.regroup_warmup
        return max(5, math.ceil(MIN_WARMUP_STEPS / (self.n_steps * self.n_envs)))

    @property
    def regrouping_due(self) -> bool:
        """Whether groups are looked at before the next rollout."""
        freq = self.regroup_freq or max(1, round(MIN_REGROUP_STEPS / (self.n_steps * self.n_envs)))
        if not self.regroups or self._n_rollouts % freq != 0:
            return False
        assert self.policy.probes is not None
        return bool((self.policy.probes.cells >= 0).any())

    def _raise_if_nonfinite(self, terms: UpdateTerms, batch: GroupRolloutBufferSamples) -> None:
        """
        :param terms: of a minibatch with which no step was taken
        :param batch: the minibatch
        :raises NonFiniteError: if the reason is a loss or a gradient that is NaN or infinite
        """
        if terms.loss.isfinite() and math.isfinite(terms.gradient_norm):
            return
        rollout = self.rollout_buffer.samples()
        observations = rollout.observations if isinstance(rollout.observations, dict) else {"": rollout.observations}
        columns = {f"observations {key!r}" if key else "observations": values for key, values in observations.items()}
        check_finite(columns, rollout.groups, "the update was stopped before the optimizer step")
        if terms.loss.isfinite():
            raise NonFiniteError(
                "the gradient is NaN or infinite although the loss is finite; the update was stopped before the optimizer "
                "step. Look for an operation in the network whose derivative is not finite, such as the square root of 0."
            )
        with th.no_grad():
            values, log_prob, _ = self.policy.evaluate_rollout(batch.observations, self._actions(batch), batch.groups)
        squared_error, ratio = (batch.returns - values.flatten()).square(), (log_prob - batch.old_log_prob).exp()
        groups = batch.groups[~(squared_error.isfinite() & ratio.isfinite())].unique().tolist()
        raise NonFiniteError(
            f"the loss is NaN or infinite in groups {groups or batch.groups.unique().tolist()}; "
            "the update was stopped before the optimizer step. Lower `learning_rate`, or normalise the rewards."
        )

    def _log_update(
        self, history: list[UpdateTerms], epoch_start: int, clip_range: float, clip_range_vf: float | None
    ) -> None:
        """
        PPO's tags, unchanged.

        :param history: terms of every minibatch
        :param epoch_start: index of the first minibatch of the last epoch
        """

        def mean_of(name: str) -> float:
            return th.stack([getattr(terms, name) for terms in history]).mean().item()

        self.logger.record("train/entropy_loss", mean_of("entropy_loss"))
        self.logger.record("train/policy_gradient_loss", mean_of("policy_loss"))
        self.logger.record("train/value_loss", mean_of("value_loss"))
        last_epoch = th.cat([terms.log_ratio for terms in history[epoch_start:]])
        self.logger.record("train/approx_kl", approx_kl(last_epoch).item())
        clipped = (th.cat([terms.log_ratio for terms in history]).exp() - 1).abs() > clip_range
        self.logger.record("train/clip_fraction", clipped.float().mean().item())
        self.logger.record("train/loss", history[-1].loss.item())
        values, returns = self.rollout_buffer.values.flatten(), self.rollout_buffer.returns.flatten()
        self.logger.record("train/explained_variance", explained_variance(values, returns))
        if hasattr(self.policy, "log_std"):
            log_std = split_heads(self.policy.log_std.detach(), -1, self.policy.max_groups)
            self.logger.record("train/std", log_std[self.policy.active_groups].exp().mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip_range)
        if clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", clip_range_vf)

    def _log_groups(self, balance: GroupBalance) -> None:
        columns = (balance.groups, balance.steps, balance.scores, balance.weights)
        self._group_stats = list(zip(*(column.tolist() for column in columns), strict=True))
        self.logger.record("groups/n_active", len(self.policy.active_groups))
        self.logger.record("groups/eta_squared", balance.eta_squared)
        self.logger.record("groups/coef_effective", balance.coef)
        self.logger.record("groups/penalty", balance.penalty, "stdout")
        for group, steps, score, weight in self._group_stats:
            for name, value in (("score", score), ("weight", weight), ("share", steps / balance.steps.sum())):
                # in files and TensorBoard; a table of the console would be too long
                self.logger.record(f"groups/{name}_{group}", value, "stdout")

    def learn(
        self: SelfGRPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "GRPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfGRPO:
        check_learn_arguments({**locals(), "env": self.env})
        self._adopt_assigned_values()
        with_gradients = th.is_grad_enabled()
        try:
            return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        except BaseException:
            # Ctrl-C at the end of torch.no_grad() would leave gradients off for the whole process
            th.set_grad_enabled(with_gradients)
            self._end_interrupted_training()
            raise

    def _adopt_assigned_values(self) -> None:
        """
        Check what has been assigned to the model since it was built, as the constructor would have.

        :raises ValueError: if a value is out of its range, or cannot be changed any more
        """
        check_arguments(vars(self))
        if self.n_steps != self.rollout_buffer.buffer_size:
            raise ValueError(
                f"`n_steps` of a model that is built cannot be assigned, since its rollout buffer holds "
                f"{self.rollout_buffer.buffer_size} steps, got {self.n_steps}; give it to `load`"
            )
        # numbers become schedules, as in PPO._setup_model
        self.clip_range = FloatSchedule(self.clip_range)
        if self.clip_range_vf is not None:
            self.clip_range_vf = FloatSchedule(self.clip_range_vf)

    def _end_interrupted_training(self) -> None:
        """Leave environments and callbacks as they are after a training that ends by itself, also after Ctrl-C."""
        # an environment may have been stopped in the middle of a step: the next training begins with a reset
        self._last_obs = None
        if self._callback is not None:
            tell_interrupted(self._callback)

    def save(
        self, path: str | Path | io.BufferedIOBase, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None
    ) -> None:
        """
        Save the model in a zip file; the file is replaced when the new one is complete, also if the process is killed.

        :param path: file, with or without ``.zip``, whose folders are made if they are missing; or an open file
        :param exclude: names of attributes that are not saved, in addition to SB3's
        :param include: names of attributes that are saved although they would not be
        """
        if not isinstance(path, (str, Path)):
            super().save(path, exclude, include)
            return
        content = io.BytesIO()
        super().save(content, exclude, include)
        path = Path(path)
        path = path if path.suffix else path.with_name(f"{path.name}.zip")
        path.parent.mkdir(parents=True, exist_ok=True)
        with complete_file(path) as part:
            part.write_bytes(content.getbuffer())

    @classmethod
    def load(
        cls: type[SelfGRPO],
        path: str | Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfGRPO:
        """
        Load a model from a zip file; as in SB3 this can run code that the file contains.

        Load only files that you trust. For others build the model with its arguments and call :meth:`load_tensors`, which
        reads numbers only.

        :param path: file, or an open file
        :param env: environment to train in; ``None``: none, enough for ``predict``. The number of environments may differ
        :param device: as in the constructor
        :param custom_objects: objects to use instead of those in the file, by name
        :param print_system_info: print the versions of the packages of the saved model and of this process
        :param force_reset: reset the environment before training goes on
        :param kwargs: arguments of the constructor that are to be changed, with the same checks
        :return: the model
        :raises ValueError: if the file is one of another algorithm, or an argument that is to be changed is out of its range
            or decides the meaning of the saved groups
        """
        saved = read_attributes(path)
        if "regroup_history" not in saved:
            raise ValueError(
                f"`path` must be a file of GRPO, got one of another algorithm (perhaps PPO): {path}. To begin with what PPO "
                "has learnt, build a GRPO model and call its set_parameters(path): every group gets a copy of PPO's head."
            )
        if unknown := sorted(kwargs.keys() - saved.keys()):
            raise ValueError(f"`load` can change arguments of {cls.__name__}, got {unknown}, which it does not have")
        return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)

    def set_parameters(
        self, load_path_or_dict: str | TensorDict, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        Copy the parameters of a saved model, or of ``get_parameters()``, into this one.

        The parameters may be PPO's, or those of GRPO with one group: then every group gets a copy of their head. If there
        are several groups, the optimizer begins anew, since the moments of one head do not fit them.

        :param load_path_or_dict: zip file, or dictionary of ``state_dict()``
        :param exact_match: whether all names must be there
        :param device: device to load the file to
        """
        params: Any = load_path_or_dict
        if not isinstance(params, dict):
            _, params, _ = load_from_zip_file(params, device=device, load_data=False)
        if self.policy.max_groups > 1 and self.policy.is_one_head(params.get("policy", {})):
            empty = {**self.policy.optimizer.state_dict(), "state": {}}
            params = {**params, "policy.optimizer": empty}
        super().set_parameters(params, exact_match, device)

    def save_tensors(self, path: str | Path) -> None:
        """
        Write weights, optimizer state, groups and history into a safetensors file, which holds no code.

        :param path: file to write
        :raises ImportError: if the package safetensors is not installed
        """
        write_safetensors(Path(path), self._tensors(), {name: getattr(self, name) for name in HISTORY})

    def load_tensors(self, path: str | Path) -> None:
        """
        Take over weights, optimizer state, groups and history from a file without running code that it may contain.

        :param path: zip file of :meth:`save`, or safetensors file of :meth:`save_tensors`, of a model that was built with the
            same arguments
        :raises ValueError: if the file does not fit this model; the model is left as it was
        """
        tensors, history = read_tensors(Path(path), str(self.device))
        events = [RegroupEvent.from_json(event) for event in history["regroup_history"]]
        check_tensors(tensors, self._tensors(), self.policy.optimizer)
        self.policy.load_state_dict({name: tensors[f"policy/{name}"] for name in self.policy.state_dict()})
        restore_optimizer(self.policy.optimizer, tensors)
        for name in self._get_torch_save_params()[1]:
            recursive_getattr(self, name).copy_(tensors[name])
        self.regroup_history, self.num_timesteps = events, int(history["num_timesteps"])
        self.first_grouping = [int(group) for group in history["first_grouping"]]

    def _tensors(self) -> dict[str, th.Tensor]:
        """
        :return: everything that is to be saved and is a tensor, by name
        """
        policy, kept = self.policy, self._get_torch_save_params()[1]
        return {
            **{f"policy/{name}": tensor for name, tensor in policy.state_dict().items()},
            **optimizer_tensors(policy.optimizer),
            **{name: recursive_getattr(self, name) for name in kept},
        }

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        return state_dicts, [*tensors, *(f"policy.{name}" for name in self.policy.bookkeeping())]


def tell_interrupted(callback: BaseCallback) -> None:
    """
    :param callback: whose ``on_training_interrupted()``, if it has one, is to be called, as well as those of its children
    """
    # a CallbackList has callbacks, SB3's EventCallback one
    for child in (*getattr(callback, "callbacks", []), getattr(callback, "callback", None)):
        if isinstance(child, BaseCallback):
            tell_interrupted(child)
    if hasattr(callback, "on_training_interrupted"):
        callback.on_training_interrupted()


def check_finite(columns: dict[str, th.Tensor], groups: th.Tensor, consequence: str) -> None:
    """
    :param columns: what is to be checked, by what it is called, each with ``B`` steps in the first dimension
    :param groups: group of each step, shape ``(B,)``
    :param consequence: what has been done about it
    :raises NonFiniteError: if something is NaN or infinite, for the first column where it is
    """
    for name, values in columns.items():
        finite = values.reshape(len(values), -1).isfinite().all(dim=1)
        if not finite.all():
            raise NonFiniteError(
                f"{name} must be finite, but {int((~finite).sum())} of {len(finite)} steps of the rollout have NaN or "
                f"infinite values, in groups {groups[~finite].unique().tolist()}; {consequence}"
            )
