"""Model files: PPO whose files are complete whenever the process is killed, and hold what training needs beside weights."""

import copy
import io
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.save_util import load_from_zip_file, open_path
from stable_baselines3.common.type_aliases import GymEnv, TensorDict

from sb3_grpo.action_masks import make_action_masks
from sb3_grpo.arguments import GroupArguments, refuse_change
from sb3_grpo.envs.entries import TASK
from sb3_grpo.estimators import ESTIMATORS
from sb3_grpo.grouping import default_groups
from sb3_grpo.headed_policy import without_critic
from sb3_grpo.heads import n_heads_in
from sb3_grpo.policies import GroupActorCriticPolicy
from sb3_grpo.reference import ReferencePolicy
from sb3_grpo.regroup_plan import RegroupEvent
from sb3_grpo.regrouping import Regrouper
from sb3_grpo.routing import make_router
from sb3_grpo.saving import (
    HISTORY,
    TRAINING_STATE,
    check_tensors,
    complete_file,
    optimizer_tensors,
    read_attributes,
    read_tensors,
    read_training_state,
    restore_optimizer,
    to_bytes,
    write_safetensors,
)
from sb3_grpo.scores import ScoreHistory

# Beginning of the names of the reference policy's tensors
REFERENCE = "reference."
# Entry of what load() must not change, named as the user knows it
USES_CRITIC = "advantage_estimator.uses_critic"

SelfModelFiles = TypeVar("SelfModelFiles", bound="ModelFiles")


class ModelFiles(GroupArguments, PPO):
    """
    PPO that saves and loads groups.

    A file is SB3's zip file with one entry more, which ``PPO.load`` ignores: tensors that training goes on with (the cells of
    each group, the router, ages, probes, the history of scores). With one group all else in it is as PPO would have saved it.
    """

    policy: GroupActorCriticPolicy
    regrouper: Regrouper | None
    score_history: ScoreHistory
    reference: ReferencePolicy | None
    normalize_advantage: bool | Literal["group"]  # type: ignore[assignment]  # PPO knows two values, here are three

    def __init__(self, *args: Any, **kwargs: Any):
        self.regroup_history: list[RegroupEvent] = []
        self.first_grouping: list[int] = []  # group of each cell before the first event
        self._saved_groups: list[int] = []  # group of each cell when the model was saved
        self._built_groups: dict[str, Any] = {}  # what load() must not change
        self._group_seed: int | None = None
        self.reference = None
        self.objective_names: list[str] = []  # empty where groups consist of decisions
        self._found_task: dict[str, Any] = {}  # where observations show the task; empty unless the router is "task"
        self._next_episode = 0  # number of the next episode of every environment
        super().__init__(*args, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        # a saved model holds plain lists
        self.regroup_history = [RegroupEvent.from_json(event) for event in self.regroup_history]

    def _make_group_kwargs(self) -> dict[str, Any]:
        """
        Return the policy's arguments that decide groups and heads, and remember them for the next :meth:`load`.

        :raises ValueError: if the model is a saved one whose parameters would change their meaning
        """
        if self._group_seed is None:
            # drawn from no generator: PPO would draw other numbers afterwards
            self._group_seed = th.initial_seed() % 2**32 if self.seed is None else self.seed
        built = self._built_groups
        n_groups, max_groups = (built.get(name, getattr(self, name)) for name in ("n_groups", "max_groups"))
        if self.group_by == "objectives":
            n_groups = max_groups = 1
        given, router_kwargs = self.router, self.router_kwargs
        if given == TASK:
            given, router_kwargs = self._found_task["router"], {**self._found_task["router_kwargs"], **(router_kwargs or {})}
        kwargs = default_groups(given, router_kwargs, n_groups, max_groups, can_split=self.split_kl is not None)
        router = make_router(given, self.observation_space, kwargs["router_kwargs"])
        fixed: dict[str, Any] = dict(n_groups=self.n_groups, max_groups=self.max_groups)
        fixed["group_by"] = self.group_by
        masks = make_action_masks(self.action_mask_key, self.observation_space, self.action_space)
        # probes remember masks, and heads never learnt what they say of actions that were not allowed
        fixed["action_mask_key"] = "no masks" if masks is None else masks.key
        fixed["router"] = self.router if isinstance(self.router, str) else "a callable"
        fixed |= router.settings()
        fixed[USES_CRITIC] = use_critic = ESTIMATORS[self.advantage_estimator].uses_critic
        # files of earlier versions do not say it: all of their models had a critic
        refuse_change({USES_CRITIC: True, **built} if built else built, fixed)
        # a model that was saved with scaled values keeps them
        scale_values = built.get("scale_values", False) or (use_critic and self.normalizes_by_group)
        self._built_groups = {**fixed, "scale_values": scale_values}
        # another number of heads would be another compilation
        all_heads = bool(self.compile)
        own = dict(router=given, group_seed=self._group_seed, scale_values=scale_values, all_heads=all_heads)
        others = dict(use_critic=use_critic, action_mask_key=self.action_mask_key)
        return {**kwargs, **own, **others, "n_objectives": max(1, len(self.objective_names))}

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks, which are the cells; empty unless the router is ``"task"`` and tasks have names."""
        return self._found_task.get("names", [])

    @property
    def cell_names(self) -> list[str]:
        """Names of what groups consist of: of the objectives, or of the tasks; empty if they have none."""
        return self.objective_names or self.task_names

    @property
    def normalizes_by_group(self) -> bool:
        """Whether advantages are normalised group by group, and values are in units of the group's returns."""
        if len(self.objective_names) > 1:
            return self.normalize_advantage is not False
        return self.normalize_advantage == "group"

    def training_state(self) -> dict[str, th.Tensor]:
        """
        Collect the tensors that training goes on with, but that are neither parameters nor the optimizer's.

        :return: the tensors themselves by name, but for counts of value heads, which are copied and have the shape
            ``(max_groups,)``, or with objectives ``(n_objectives,)``
        """
        grouping, scale = self.policy.grouping, self.policy.value_scale
        modules: dict[str, th.nn.Module | None] = {"grouping": grouping}
        modules |= {"score_history": self.score_history, "regrouper": self.regrouper}
        state: dict[str, th.Tensor] = {}
        for prefix, module in modules.items():
            if module is not None:
                state |= {f"{prefix}.{name}": buffer for name, buffer in module.named_buffers()}
        # follows from the groups
        del state["grouping.cell_to_head"]
        if scale is not None:
            # by group, because the heads that a model holds depend on `compile`. The scales are in the state_dict
            counts = scale.count.new_zeros(max(grouping.max_groups, self.policy.n_objectives))
            state["value_scale.count"] = counts.index_copy(0, self._value_heads(), scale.count)
        if self.reference is not None:
            own = self.reference.policy
            # with one head they are not in its state_dict, but decide whether it can be averaged with the policy
            groups = {"grouping.cell_to_group": own.grouping.cell_to_group.float()}
            state |= {f"{REFERENCE}{name}": tensor for name, tensor in {**own.state_dict(), **groups}.items()}
        return state

    def _restore_training_state(self, state: dict[str, th.Tensor]) -> None:
        """Copy the tensors of a file, whose shapes are those of this model."""
        grouping, scale = self.policy.grouping, self.policy.value_scale
        for name, tensor in self.training_state().items():
            if name != "value_scale.count" and not name.startswith(REFERENCE):
                tensor.copy_(state[name])
        self.policy.adopt_groups(grouping.cell_to_group)
        reference = {name.removeprefix(REFERENCE): tensor for name, tensor in state.items() if name.startswith(REFERENCE)}
        self.reference = None
        if reference and self.kl_coef > 0:
            self.reference = ReferencePolicy(self.policy)
            self.reference.policy.adopt_groups(reference["grouping.cell_to_group"])
            self.reference.load(reference)
        # a model that is loaded with normalize_advantage="group" may have been saved without
        if scale is not None and "value_scale.count" in state:
            scale.count.copy_(state["value_scale.count"][self._value_heads()])

    def _value_heads(self) -> th.Tensor:
        """Return the group, or the objective, of each value head."""
        policy = self.policy
        numbers = range(policy.n_objectives) if policy.n_objectives > 1 else policy.grouping.heads
        return th.as_tensor(list(numbers), device=policy.device)

    def save(
        self, path: str | Path | io.BufferedIOBase, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None
    ) -> None:
        """
        Save the model in a zip file, which is replaced when the new one is complete, also if the process is killed.

        :param path: file, with or without ``.zip``, whose folders are made if they are missing; or an open file
        :param exclude: names of attributes that are not saved, in addition to SB3's
        :param include: names of attributes that are saved although they would not be
        """
        self._saved_groups = self.policy.grouping.cell_to_group.tolist()
        content = io.BytesIO()
        super().save(content, exclude, include)
        with zipfile.ZipFile(content, "a") as archive:
            archive.writestr(TRAINING_STATE, to_bytes(self.training_state()))
        if not isinstance(path, (str, Path)):
            # SB3 says what is wrong with a file that is closed or only read
            open_path(path, "w").write(content.getbuffer())
            return
        path = Path(path)
        path = path if path.suffix else path.with_name(f"{path.name}.zip")
        path.parent.mkdir(parents=True, exist_ok=True)
        with complete_file(path) as part:
            part.write_bytes(content.getbuffer())

    @classmethod
    def load(
        cls: type[SelfModelFiles],
        path: str | Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfModelFiles:
        """
        Load a model from a zip file; as in SB3 this can run code that the file contains.

        Load only files that you trust. For others build the model with its arguments and call :meth:`load_tensors`, which
        reads numbers only.

        :param path: file, or an open file
        :param env: environment to train in; ``None``: none, enough for ``predict``. The number of environments may differ
        :param device: as in the constructor
        :param custom_objects: objects to use instead of those in the file, by name
        :param print_system_info: print the versions of the packages of the saved model and of this process
        :param force_reset: reset the environment before training goes on; without a critic it is reset in any case
        :param kwargs: arguments of the constructor that are to be changed, with the same checks
        :return: the model
        :raises ValueError: if the file is one of another algorithm or of an earlier version, or an argument that is to be
            changed is out of its range or decides the meaning of the saved groups
        """
        saved, state = read_attributes(path), read_training_state(path, "cpu")
        if state is None or "regroup_history" not in saved:
            raise ValueError(
                f"`path` must be a file of GRPO, got one of another algorithm (such as PPO) or of an earlier version: {path}. "
                "To begin with what PPO has learnt, build a GRPO model and call its set_parameters(path): every group gets a "
                "copy of PPO's head."
            )
        if unknown := sorted(kwargs.keys() - saved.keys()):
            raise ValueError(f"`load` can change arguments of {cls.__name__}, got {unknown}, which it does not have")
        model = super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        model._restore_training_state(state)
        return model

    def set_parameters(
        self, load_path_or_dict: str | TensorDict, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        Copy the parameters of a saved model, or of ``get_parameters()``, into this one.

        The parameters may be PPO's, or those of GRPO with one group: then every group gets a copy of their head. If there
        are several groups, the optimizer begins anew, since the moments of one head do not fit them. A model without a
        critic leaves out the parameters of a critic, and its optimizer begins anew too.

        :param load_path_or_dict: zip file, or dictionary of ``state_dict()``
        :param exact_match: whether all names must be there
        :param device: device to load the file to
        """
        params: Any = load_path_or_dict
        if not isinstance(params, dict):
            _, params, _ = load_from_zip_file(params, device=device, load_data=False)
        all_heads = self.policy.grouping.all_heads
        # the optimizer's moments fit heads in use, whichever heads the two models hold beside them
        self.policy.hold_heads(False)
        try:
            state = params.get("policy", {})
            more_heads = self.policy.n_heads > 1 and n_heads_in(state, self.policy, self.policy.n_heads) == 1
            if more_heads or len(without_critic(self.policy, state)) < len(state):
                empty = {**self.policy.optimizer.state_dict(), "state": {}}
                params = {**params, "policy.optimizer": empty}
            super().set_parameters(params, exact_match, device)
        finally:
            self.policy.hold_heads(all_heads)

    def save_tensors(self, path: str | Path) -> None:
        """
        Write weights, optimizer state, groups and history into a safetensors file, which holds no code.

        :param path: file to write
        :raises ImportError: if the package safetensors is not installed
        """
        write_safetensors(Path(path), self._tensors(self.policy), {name: getattr(self, name) for name in HISTORY})

    def load_tensors(self, path: str | Path) -> None:
        """
        Take over weights, optimizer state, groups and history from a file without running code that it may contain.

        :param path: zip file of :meth:`save`, or safetensors file of :meth:`save_tensors`, of a model that was built with the
            same arguments
        :raises ValueError: if the file does not fit this model; the model is left as it was
        """
        tensors, history = read_tensors(Path(path), str(self.device))
        events = [RegroupEvent.from_json(event) for event in history["regroup_history"]]
        groups = tensors.get("grouping.cell_to_group", self.policy.grouping.cell_to_group)
        trial = copy.deepcopy(self.policy)
        if groups.shape == trial.grouping.cell_to_group.shape:
            trial.adopt_groups(groups)
        own = {name: tensor for name, tensor in self._tensors(trial).items() if not name.startswith(REFERENCE)}
        check_tensors(tensors, own, trial.optimizer)
        self.policy.adopt_groups(groups)
        self.policy.load_state_dict({name: tensors[f"policy/{name}"] for name in self.policy.state_dict()})
        restore_optimizer(self.policy.optimizer, tensors)
        self._restore_training_state(tensors)
        self.regroup_history, self.num_timesteps = events, int(history["num_timesteps"])
        self.first_grouping = [int(group) for group in history["first_grouping"]]
        self._next_episode = int(history["_next_episode"])

    def _tensors(self, policy: GroupActorCriticPolicy) -> dict[str, th.Tensor]:
        """
        Collect all that is to be saved and is a tensor.

        :param policy: the policy to take parameters and optimizer from
        """
        parameters = {f"policy/{name}": tensor for name, tensor in policy.state_dict().items()}
        return {**parameters, **optimizer_tensors(policy.optimizer), **self.training_state()}
