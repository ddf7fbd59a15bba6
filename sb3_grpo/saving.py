"""Files that are either as they were or complete, whenever the process is killed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def complete_file(path: str | Path) -> Iterator[Path]:
    """
    Write a file beside its final place and move it there once it is complete.

    A process that is killed in between leaves the old file as it was, and a hidden file ``.NAME.PID.part`` beside it.

    :param path: the file to write or to replace; its folder must exist
    :return: context in which the file at the returned path is to be written; an exception removes it and leaves the
        old file as it was
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb") as written:
            # the content must be on the disk before the name is: a machine may lose its power as well
            os.fsync(written.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
