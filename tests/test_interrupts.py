"""Ctrl-C is delayed to the end of a context, and no further."""

import signal
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from sb3_grpo.interrupts import interrupts_delayed


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    """Python's own, whatever the tests before have left."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_comes_at_the_end():
    done = []

    def work() -> None:
        with interrupts_delayed():
            interrupt()
            done.append("all of it")
        done.append("more")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all of it"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_the_context_it_comes_at_once():
    done = []

    def work() -> None:
        interrupt()
        done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == []


def test_nothing_happens_without_one():
    with interrupts_delayed():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_nested_it_comes_at_the_end_of_the_outer_one():
    done = []

    def work() -> None:
        with interrupts_delayed():
            with interrupts_delayed():
                interrupt()
                done.append("inner")
            done.append("outer")
        done.append("more")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["inner", "outer"]


def test_after_an_error_both_are_told():
    @interrupts_delayed()
    def work() -> None:
        interrupt()
        raise ZeroDivisionError

    with pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert isinstance(caught.value.__context__, ZeroDivisionError)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_user_is_called_at_the_end():
    calls = []

    def note(number: int, frame: FrameType | None) -> None:
        calls.append(number)

    signal.signal(signal.SIGINT, note)
    with interrupts_delayed():
        interrupt()
        assert calls == []
    assert calls == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is note


def test_ignored_interrupts_stay_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts_delayed():
        interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_another_thread_changes_nothing():
    handlers = []

    def work() -> None:
        with interrupts_delayed():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]
