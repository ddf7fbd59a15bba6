"""Run SB3's algorithms on other vectorised environments than ``DummyVecEnv`` and ``SubprocVecEnv``."""

from sb3_grpo.vec_env.adapter import VectorEnvAdapter, adapt_vector_env
from sb3_grpo.vec_env.joined import JoinedVecEnv

__all__ = ["JoinedVecEnv", "VectorEnvAdapter", "adapt_vector_env"]
