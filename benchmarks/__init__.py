"""Measure what the package does: learning results, speed, and behaviour on bad input, kills and interrupts."""
