"""Share what several benchmarks need: sweeps, rows, statistics, plots, environments, training loops."""
