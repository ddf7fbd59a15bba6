"""
Measure what is lost when something goes wrong: PPO and GRPO with bad input, killed, interrupted and started again.

``python -m benchmarks.robustness`` runs what has no row yet and prints the tables. A change of the package is measured with
rows of its own: ``--code after`` with the newer code, ``--code before`` with the older, which needs Python 3.11 or newer:
``PYTHONSAFEPATH=1 PYTHONPATH=OLDER_CODE:. python -m benchmarks.robustness --code before``.
"""

import argparse
import sys
from pathlib import Path

import torch as th
from rich.console import Console

from benchmarks.lib.rows import RESULTS
from benchmarks.lib.sweep import sweep
from benchmarks.robustness.parts import PARTS, tables
from benchmarks.robustness.records import CODES


def main() -> None:
    """Run what has no row yet of the parts that the command line names, and print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--code", choices=CODES, default="after", help="name of the rows")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    parser.add_argument("--report", action="store_true", help="only print the tables of the rows that are there")
    arguments = parser.parse_args()
    # compiling takes longer than the errors of wrong arguments
    th.compiler.set_stance("force_eager")
    if not arguments.report:
        for part in arguments.part:
            function, runs = PARTS[part]
            # signals arrive in the main thread of this process
            sweep(function, runs(arguments.code), arguments.results / f"robustness_{part}.jsonl", jobs=1)
    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in tables(arguments.results):
        console.print(table)


if __name__ == "__main__":
    main()
