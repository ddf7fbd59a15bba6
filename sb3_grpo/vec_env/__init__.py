"""Provide vectorised environments for SB3."""
