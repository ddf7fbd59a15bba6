"""Compilation: call what ``torch.compile`` makes of a function, without checks that would give the same answer again."""

import importlib
import itertools
import warnings
from collections.abc import Callable, Hashable, Sequence
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import torch as th

Tensors = Sequence[th.Tensor | None]
_numbers = itertools.count()


class GraphCall(NamedTuple):
    """A call of a compiled graph: what of it was an argument of the function, and what of it the function returned."""

    graph: Callable[..., Sequence[th.Tensor]]
    inputs: list[Any]  # of the graph; those that are arguments of the function are replaced at each call
    arguments: list[tuple[int, int]]  # index among the inputs, index among the arguments of the function
    results: list[int]  # index among the outputs of the graph, for each result of the function

    @classmethod
    def of(cls, recorded: "RecordedCall", arguments: Tensors, results: Sequence[th.Tensor]) -> "GraphCall | None":
        """
        Find out by identity which tensors of a call of the graph are those of the function.

        :param recorded: the call of the graph
        :param arguments: arguments of the function
        :param results: what the function has returned
        :return: the call; ``None`` if a result of the function is not one of the graph, or if an argument has reached the
            graph as another object
        """
        given = {id(argument): place for place, argument in enumerate(arguments) if argument is not None}
        made = {id(output): place for place, output in enumerate(recorded.outputs)}
        views = {(argument.data_ptr(), argument.shape) for argument in arguments if argument is not None}
        others = [value for value in recorded.inputs if isinstance(value, th.Tensor) and id(value) not in given]
        if any(id(result) not in made for result in results) or any((t.data_ptr(), t.shape) in views for t in others):
            return None
        sources = [(place, given[id(value)]) for place, value in enumerate(recorded.inputs) if id(value) in given]
        return cls(recorded.graph, list(recorded.inputs), sources, [made[id(result)] for result in results])

    def __call__(self, arguments: Tensors) -> list[th.Tensor]:
        """
        Call the graph with other arguments.

        :param arguments: arguments of the function
        :return: what the function would return
        """
        inputs = self.inputs
        for place, source in self.arguments:
            inputs[place] = arguments[source]
        outputs = self.graph(*inputs)
        return [outputs[place] for place in self.results]


class RecordedCall(NamedTuple):
    """What went into a compiled graph, and what came out."""

    graph: Callable[..., Sequence[th.Tensor]]
    inputs: Sequence[Any]
    outputs: Sequence[th.Tensor]


def with_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """
    Return a copy of a function whose code is an object of its own.

    Torch counts how often code is compiled, and refuses after eight times: the ninth model of a process would not train.

    :param function: a function or a method
    """
    method = function if isinstance(function, MethodType) else None
    original = function if method is None else method.__func__
    assert isinstance(original, FunctionType)
    code = original.__code__.replace(co_name=f"{original.__name__}_{next(_numbers)}")
    copy = FunctionType(code, original.__globals__, code.co_name, original.__defaults__, original.__closure__)
    return copy if method is None else MethodType(copy, method.__self__)


class CompiledFunction:
    """
    Function of tensors that is compiled, and called without torch's checks as long as only its arguments change.

    Before each call torch checks whether what it has compiled still fits: every attribute that the function reads. For a
    small network that takes nearly as long as the computation. Here a call with these checks shows which compiled graph
    torch chooses and where the inputs of that come from. Later calls go to the graph directly, until :meth:`check_again`.

    If the compilation fails a warning says so, and the function is called as it is.

    :param name: what the function does, for that warning
    :param function: takes tensors, some of which may be ``None``, and returns a tuple of tensors
    :param options: of torch's compiler, see ``torch.compile``
    :param cuda_graph: record the kernels as one CUDA graph, where there is a GPU. Arguments that the function changes must
        then be the same objects in every call, and marked as ``torch._dynamo.mark_static_address`` does
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Sequence[th.Tensor]],
        options: dict[str, Any] | None = None,
        cuda_graph: bool = False,
    ):
        self.name, self.function, self.cuda_graph = name, function, cuda_graph
        # the asserts compare shapes at each call, which torch's checks have done
        self.options = {"size_asserts": False, "triton.cudagraphs": cuda_graph, **(options or {})}
        self.works = True
        self._compiled = th.compile(with_own_code(function), fullgraph=True, backend=self._compile_graph)
        self._graphs: dict[Hashable, GraphCall | None] = {}
        self._recorded: RecordedCall | None = None

    def _compile_graph(self, module: th.fx.GraphModule, examples: list[Any]) -> Callable[..., Sequence[th.Tensor]]:
        inductor = importlib.import_module("torch._inductor")  # takes a second, and nothing else needs it
        with warnings.catch_warnings():
            # advice on how to write the function for a GPU; results do not depend on it
            warnings.simplefilter("ignore", UserWarning)
            graph = inductor.compile(module, examples, options=self.options)

        def run(*inputs: Any) -> Sequence[th.Tensor]:
            outputs = graph(*inputs)
            self._recorded = RecordedCall(graph, inputs, outputs)
            return outputs

        return run

    def check_again(self) -> None:
        """Have the next call for each key checked by torch."""
        self._graphs.clear()

    def __call__(self, key: Hashable, *arguments: th.Tensor | None) -> Sequence[th.Tensor]:
        """
        Call the function.

        :param key: differs between calls whose arguments differ in shape or type
        :param arguments: of the function
        :return: what it returns
        """
        results = self._call(key, arguments)
        # the next call of a CUDA graph writes to the same memory
        return [result.clone() for result in results] if self.cuda_graph else results

    def _call(self, key: Hashable, arguments: Tensors) -> Sequence[th.Tensor]:
        if self.cuda_graph:
            th.compiler.cudagraph_mark_step_begin()
        known = self._graphs.get(key)
        if known is not None:
            return known(arguments)
        if not self.works:
            return self.function(*arguments)
        self._recorded = None
        try:
            results = self._compiled(*arguments)
        except Exception as error:  # whatever torch's compiler raises, training can go on without it
            self._give_up(error)
            return self.function(*arguments)
        if self._recorded is not None:
            self._graphs[key] = GraphCall.of(self._recorded, arguments, results)
            self._recorded = None
        return results

    def _give_up(self, error: Exception) -> None:
        self.works = False
        # otherwise torch remembers the failure, and compiles this function for no other model either
        th.compiler.reset()
        cause = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
        warnings.warn(f"`compile=True` does not work here for {self.name}, which goes on without it ({cause})", stacklevel=4)
