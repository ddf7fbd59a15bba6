"""Objectives: the parts of a reward, each with its value head, whose advantages are balanced."""

from sb3_grpo.objectives.wrapper import ObjectivesWrapper, add_objectives

__all__ = ["ObjectivesWrapper", "add_objectives"]
