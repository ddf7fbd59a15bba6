"""Measure learning results, one script per question and one row per run."""
