"""Measure speed, and where the time of training goes."""
