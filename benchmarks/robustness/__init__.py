"""Measure what bad input, kills, interrupts and restarts do to PPO and GRPO."""
