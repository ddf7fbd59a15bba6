"""Group Relative Policy Optimization for Stable-Baselines3."""

from sb3_grpo.action_masks import ActionMaskWrapper
from sb3_grpo.callbacks import GroupEvalCallback, RegroupCallback, plot_regrouping, plot_tasks
from sb3_grpo.diagnostics import GroupRecord
from sb3_grpo.envs import register_envs
from sb3_grpo.envs.multi_task import MultiTaskEnv, add_tasks
from sb3_grpo.episode_log import EpisodeLogCallback
from sb3_grpo.evaluation import GroupEvaluation, evaluate_groups
from sb3_grpo.export import export_onnx, export_pt2, export_torchscript
from sb3_grpo.grpo import GRPO
from sb3_grpo.objectives import ObjectivesWrapper, add_objectives
from sb3_grpo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_grpo.regroup_plan import RegroupEvent
from sb3_grpo.task_sampling import TaskSamplingCallback
from sb3_grpo.vec_env import (
    JoinedVecEnv,
    LeanVecEnv,
    RayVecEnv,
    adapt_vector_env,
    check_shared_start,
    make_group_vec_env,
    make_multi_task_vec_env,
)

__version__ = "0.1.0"
__all__ = [
    "GRPO",
    "ActionMaskWrapper",
    "CnnPolicy",
    "EpisodeLogCallback",
    "GroupEvalCallback",
    "GroupEvaluation",
    "GroupRecord",
    "JoinedVecEnv",
    "LeanVecEnv",
    "MlpPolicy",
    "MultiInputPolicy",
    "MultiTaskEnv",
    "ObjectivesWrapper",
    "RayVecEnv",
    "RegroupCallback",
    "RegroupEvent",
    "TaskSamplingCallback",
    "adapt_vector_env",
    "add_objectives",
    "add_tasks",
    "check_shared_start",
    "evaluate_groups",
    "export_onnx",
    "export_pt2",
    "export_torchscript",
    "make_group_vec_env",
    "make_multi_task_vec_env",
    "plot_regrouping",
    "plot_tasks",
]

register_envs()
