"""Run SB3's algorithms on other vectorised environments than ``DummyVecEnv`` and ``SubprocVecEnv``."""

from sb3_grpo.vec_env.adapter import VectorEnvAdapter, adapt_vector_env
from sb3_grpo.vec_env.joined import JoinedVecEnv
from sb3_grpo.vec_env.lean import LeanVecEnv
from sb3_grpo.vec_env.multi_task import make_multi_task_vec_env
from sb3_grpo.vec_env.ray import LostActorError, RayVecEnv
from sb3_grpo.vec_env.shared_start import SharedStart, check_shared_start, make_group_vec_env

__all__ = [
    "JoinedVecEnv",
    "LeanVecEnv",
    "LostActorError",
    "RayVecEnv",
    "SharedStart",
    "VectorEnvAdapter",
    "adapt_vector_env",
    "check_shared_start",
    "make_group_vec_env",
    "make_multi_task_vec_env",
]
