"""Read the rows of the robustness benchmarks, of the package before and after a change."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.lib.rows import read_rows
from benchmarks.robustness.models import ALGORITHMS

CODES = ("before", "after")
Record = dict[str, Any]


def records_of(part: str, folder: Path) -> list[Record]:
    """
    Return run and result of each row as one dict; of a run that was made again, the last row.

    :param part: name of the part
    :param folder: folder of the rows
    """
    rows = {str(row["run"]): {**row["run"], **row["result"]} for row in read_rows(folder / f"robustness_{part}.jsonl")}
    return list(rows.values())


def select(records: Iterable[Record], **wanted: Any) -> list[Record]:
    """
    Return the records with all of these values.

    :param records: records of a part
    :param wanted: names and values
    """
    return [record for record in records if wanted.items() <= record.items()]


def by_kind(records: list[Record], kinds: Iterable[str]) -> Iterator[tuple[str, str, str, list[Record]]]:
    """
    Return kind, algorithm, code and their records, for each combination that has records.

    :param records: records of a part
    :param kinds: values of ``kind``
    """
    for kind in kinds:
        for algorithm in ALGORITHMS:
            for code in CODES:
                if chosen := select(records, kind=kind, algorithm=algorithm, code=code):
                    yield kind, algorithm, code, chosen
