"""Measure the peak memory of a process that trains."""

import subprocess
import sys
from pathlib import Path

from benchmarks.lib.rows import ROOT


def print_peak_memory() -> None:
    """Print the peak resident memory of this process in MiB."""
    # not getrusage: its peak is inherited from the process that started this one
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(line.split()[1]) / 1024)


def peak_memory_of(module: str, *arguments: str) -> float:
    """
    Return what a process prints with :func:`print_peak_memory`, in MiB.

    :param module: name of the module that it runs
    :param arguments: of the command line
    """
    command = [sys.executable, "-m", module, *arguments]
    return float(subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout.split()[-1])  # noqa: S603 (own script)
