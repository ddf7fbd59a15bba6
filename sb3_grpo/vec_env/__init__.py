"""Run SB3's algorithms on other vectorised environments than ``DummyVecEnv`` and ``SubprocVecEnv``."""

from sb3_grpo.vec_env.adapter import VectorEnvAdapter, adapt_vector_env
from sb3_grpo.vec_env.joined import JoinedVecEnv
from sb3_grpo.vec_env.lean import LeanVecEnv
from sb3_grpo.vec_env.ray import LostActorError, RayVecEnv

__all__ = ["JoinedVecEnv", "LeanVecEnv", "LostActorError", "RayVecEnv", "VectorEnvAdapter", "adapt_vector_env"]
