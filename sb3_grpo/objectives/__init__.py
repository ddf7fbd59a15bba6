"""Objectives: the parts of a reward, each with its value head, whose advantages are balanced."""

from sb3_grpo.objectives.wrapper import ObjectivesWrapper

__all__ = ["ObjectivesWrapper"]
