"""Ctrl-C is delayed to the end of a context, and no further."""

import signal
import threading
from types import FrameType
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EveryNTimesteps

from sb3_grpo import GRPO
from sb3_grpo.interrupts import interrupts_delayed


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


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


class Told(BaseCallback):
    """Notes that the training was interrupted."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def _on_step(self) -> bool:
        return True

    def on_training_interrupted(self) -> None:
        self.calls += 1


class Interrupting(BaseCallback):
    """Ctrl-C where gradients are off."""

    def __init__(self, after: int):
        super().__init__()
        self.after = after

    def _on_step(self) -> bool:
        if self.n_calls == self.after:
            th.set_grad_enabled(False)
            interrupt()
        return True


@pytest.mark.parametrize("options", [dict(), dict(n_groups=1), dict(n_groups=3)], ids=str)
def test_a_training_that_is_interrupted_can_go_on(options: dict[str, Any]):
    model = GRPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, device="cpu", **options)
    direct, listed, nested = Told(), Told(), Told()
    callbacks: list[BaseCallback] = [direct, CallbackList([listed]), EveryNTimesteps(8, nested), Interrupting(after=50)]
    with pytest.raises(KeyboardInterrupt):
        model.learn(320, callbacks)
    assert [each.calls for each in (direct, listed, nested)] == [1, 1, 1]
    assert th.is_grad_enabled()
    assert model.num_timesteps == 50
    model.learn(64, reset_num_timesteps=False)
    assert model.num_timesteps == 114


def test_callbacks_are_told_nothing_of_a_training_that_ends_by_itself():
    model, told = GRPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, device="cpu"), Told()
    model.learn(64, told)
    assert told.calls == 0
