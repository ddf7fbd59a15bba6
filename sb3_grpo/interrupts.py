"""Delay Ctrl-C until related changes are complete."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def interrupts_delayed() -> Iterator[None]:
    """
    Delay Ctrl-C to the end of a context, so that it interrupts before or after the changes made there, not between them.

    Only the main thread receives signals: in other threads, and where Ctrl-C is handled outside of Python, this does
    nothing.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    received: list[tuple[int, FrameType | None]] = []

    def record(number: int, frame: FrameType | None) -> Any:
        received.append((number, frame))

    signal.signal(signal.SIGINT, record)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received:
            handler(*received[-1])
