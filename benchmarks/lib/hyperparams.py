"""Hold the hyper-parameters that several benchmarks share."""

from typing import Any

# RL Zoo's for PPO
CARTPOLE: dict[str, Any] = dict(
    n_steps=32, batch_size=256, n_epochs=20, gae_lambda=0.8, gamma=0.98, learning_rate=1e-3, clip_range=0.2
)
ACROBOT: dict[str, Any] = dict(n_steps=256, n_epochs=4, gae_lambda=0.94, gamma=0.99)
PENDULUM: dict[str, Any] = dict(n_steps=1024, gae_lambda=0.95, gamma=0.9, learning_rate=1e-3, use_sde=True, sde_sample_freq=4)
LUNAR_LANDER: dict[str, Any] = dict(n_steps=1024, n_epochs=4, batch_size=64, gae_lambda=0.98, gamma=0.999, ent_coef=0.01)

# GRPO's groups stay as they are
FIXED_GROUPS: dict[str, Any] = dict(merge_kl=None, split_kl=None)
