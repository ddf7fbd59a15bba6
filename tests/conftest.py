"""What all tests share: one thread, the CPU, environments."""

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch as th
import torch._inductor
from stable_baselines3.common.env_util import make_vec_env

import sb3_grpo  # noqa: F401  # registers the environments

th.set_num_threads(1)

# Tests run on the CPU wherever they are run, their processes and what is built while they are collected too; only those
# marked `gpu` see the GPU (below). It is asked for first: CUDA looks at the variable once in a process.
has_gpu = th.cuda.is_available
# workers of pytest-xdist inherit the variable as it was changed here; what it was is handed on beside it
HANDED_ON, UNSET = "SB3_GRPO_TESTS_VISIBLE_GPUS", "unset"
visible_gpus = os.environ.setdefault(HANDED_ON, os.environ.get("CUDA_VISIBLE_DEVICES", UNSET))
os.environ.pop("CUDA_VISIBLE_DEVICES", None)
if visible_gpus != UNSET:
    os.environ["CUDA_VISIBLE_DEVICES"] = visible_gpus
HAS_GPU = has_gpu()
th.cuda.is_available = lambda: False
os.environ["CUDA_VISIBLE_DEVICES"] = ""


# Ray's workers would give way to the tests of other processes, which keep all processors busy
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray's own name)


@pytest.fixture
def cartpole():
    return make_vec_env("CartPole-v1", n_envs=2, seed=0)


@pytest.fixture
def task_cartpole():
    return make_vec_env("sb3_grpo/TaskCartPole-v0", n_envs=4, seed=0)


def count_calls(monkeypatch: pytest.MonkeyPatch, compile_: Callable[..., Callable[..., Any]]) -> list[int]:
    """
    :param compile_: takes the place of torch's compiler; a failure would be a warning
    :return: calls of each graph, in the order of their compilation
    """
    calls: list[int] = []

    def counted(*arguments: Any, **kwargs: Any) -> Any:
        made, place = compile_(*arguments, **kwargs), len(calls)
        calls.append(0)

        def call(*inputs: Any) -> Any:
            calls[place] += 1
            return made(*inputs)

        return call

    monkeypatch.setattr(torch._inductor, "compile", counted)
    return calls


@pytest.fixture
def compiled_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Calls of each graph that torch has compiled."""
    return count_calls(monkeypatch, torch._inductor.compile)


@pytest.fixture
def traced_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Calls of each graph as torch has traced it; to make code of it takes seconds, and few tests are about that."""
    return count_calls(monkeypatch, lambda module, examples, options: module.forward)


@pytest.fixture(params=["traced", pytest.param("compiled", marks=pytest.mark.slow)])
def compiler_calls(request: pytest.FixtureRequest) -> list[int]:
    """Calls of each graph: as torch has traced it, and among the slow tests as its compiler made it."""
    return request.getfixturevalue(f"{request.param}_calls")


@pytest.fixture(autouse=True)
def _handler_of_interrupts() -> Iterator[None]:
    """Python's own: a process that is started in the background ignores Ctrl-C, and a test may have left another."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # RL Zoo's scripts first: as the last ones they would keep one process busy while the others have nothing to do
    items.sort(key=lambda item: item.path.parent.name != "zoo")
    for item in items:
        if item.get_closest_marker("gpu") and not HAS_GPU:
            item.add_marker(pytest.mark.skip(reason="this machine has no GPU that torch can use"))


@pytest.fixture(autouse=True)
def _gpu_for_those_marked(request, monkeypatch):
    if request.node.get_closest_marker("gpu"):
        monkeypatch.setattr(th.cuda, "is_available", has_gpu)
        if visible_gpus == UNSET:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible_gpus)
