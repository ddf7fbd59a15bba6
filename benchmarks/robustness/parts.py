"""List the parts of the robustness benchmark, and make their tables."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.lib.rows import Run
from benchmarks.robustness.bad_input import bad_input_runs, bad_input_table, try_case, what_is_left
from benchmarks.robustness.interrupts import interrupt, interrupt_runs, interrupt_table
from benchmarks.robustness.kills import kill, kill_runs, kill_table
from benchmarks.robustness.records import CODES, Record, records_of
from benchmarks.robustness.restarts import restart, restart_runs, restart_table

PARTS: dict[str, tuple[Callable[..., dict[str, Any]], Callable[[str], list[Run]]]] = {
    "bad_input": (try_case, bad_input_runs),
    "kills": (kill, kill_runs),
    "interrupts": (interrupt, interrupt_runs),
    "restarts": (restart, restart_runs),
}
TABLES: dict[str, list[Callable[[list[Record]], Table]]] = {
    "bad_input": [bad_input_table, lambda records: what_is_left(records, CODES[-1])],
    "kills": [kill_table],
    "interrupts": [interrupt_table],
    "restarts": [restart_table],
}


def tables(folder: Path) -> Iterator[Table]:
    """
    Return the tables of every part that has rows.

    :param folder: folder of the rows
    """
    for part, makers in TABLES.items():
        if records := records_of(part, folder):
            yield from (make_table(records) for make_table in makers)
