"""Run code silently, for a limited time, or with an interrupt."""

import io
import signal
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import numpy as np


@contextmanager
def silenced() -> Iterator[None]:
    """Open a context in which nothing is printed and no warning shown."""
    with redirect_stdout(io.StringIO()), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


class TimeLimitError(BaseException):
    """End of a time limit; not an ``Exception``, which the code that is tried might catch."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """
    Open a context that ends in a :class:`TimeLimitError` after some time; in the main thread only.

    :param seconds: time limit
    """

    def stop(signum: int, frame: types.FrameType | None) -> None:
        raise TimeLimitError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def interrupted_after(delay: float) -> Iterator[None]:
    """
    Open a context in which Ctrl-C is pressed after a delay, and again every 10 seconds until it takes effect.

    :param delay: seconds of computing time of this process
    """

    def press(signum: int, frame: types.FrameType | None) -> None:
        signal.raise_signal(signal.SIGINT)

    handlers = {signal.SIGVTALRM: press, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    # counts the time in which this process computes; the alarm of the other timer is that of a time limit
    signal.setitimer(signal.ITIMER_VIRTUAL, max(delay, 1e-6), 10)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
