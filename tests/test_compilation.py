"""Compilation: the graph that torch has made is called with the arguments of each call, and checked when asked."""

from typing import Any

import pytest
import torch as th
import torch._inductor

from sb3_grpo.compilation import CompiledFunction, GraphCall, RecordedCall

X, Y = th.arange(3.0), th.tensor([2.0, 0.0, -1.0])


@pytest.fixture
def graph_calls(monkeypatch: pytest.MonkeyPatch) -> list[th.fx.GraphModule]:
    """The graphs of torch's tracing take the place of what its compiler makes of them, which takes seconds."""
    graphs: list[th.fx.GraphModule] = []

    def as_it_is(module: th.fx.GraphModule, examples: Any, options: Any) -> Any:
        graphs.append(module)
        return module.forward

    monkeypatch.setattr(torch._inductor, "compile", as_it_is)
    return graphs


class Scaled:
    """A function that reads an attribute, which may be a number or a tensor."""

    def __init__(self, factor: Any):
        self.factor = factor

    def __call__(self, x: th.Tensor, y: th.Tensor | None) -> tuple[th.Tensor, ...]:
        return self.factor * x, x.sum() if y is None else (x * y).sum()


def values(results: Any) -> list[Any]:
    return [result.tolist() for result in results]


def test_arguments_of_each_call_are_used(graph_calls):
    compiled = CompiledFunction("this", Scaled(2.0).__call__)
    assert values(compiled("key", X, Y)) == [[0, 2, 4], -2]
    assert values(compiled("key", X + 1, Y)) == [[2, 4, 6], -1]
    assert values(compiled("key", X, Y + 1)) == [[0, 2, 4], 1]
    # the same tensor twice is compiled anew, and so is one argument less
    assert values(compiled("twice", X, X)) == [[0, 2, 4], 5]
    assert values(compiled("less", X, None)) == [[0, 2, 4], 3]
    assert values(compiled("key", Y, X)) == [[4, 0, -2], -2]


def test_what_the_function_reads_is_looked_at_when_asked(graph_calls):
    function = Scaled(2.0)
    compiled = CompiledFunction("this", function.__call__)
    compiled("key", X, Y)
    function.factor = 3.0
    # without checks: the graph that is known
    assert values(compiled("key", X, Y))[0] == [0, 2, 4]
    assert values(compiled("another key", X, Y))[0] == [0, 3, 6]
    compiled.check_again()
    assert values(compiled("key", X, Y))[0] == [0, 3, 6]


def test_a_tensor_that_the_function_reads_may_change_in_place(graph_calls):
    """As parameters do; a new tensor in its place is seen at the next check."""
    function = Scaled(th.tensor(2.0))
    compiled = CompiledFunction("this", function.__call__)
    compiled("key", X, Y)
    function.factor.fill_(5.0)
    assert values(compiled("key", X, Y))[0] == [0, 5, 10]
    function.factor = th.tensor(7.0)
    compiled.check_again()
    assert values(compiled("key", X, Y))[0] == [0, 7, 14]
    # nothing had to be compiled for that
    assert len(graph_calls) == 1


def test_an_argument_may_be_changed_in_place(graph_calls):
    def add(total: th.Tensor, x: th.Tensor) -> tuple[th.Tensor, ...]:
        total.add_(x)
        return (total * 1,)

    compiled, total = CompiledFunction("this", add), th.zeros(3)
    for _ in range(3):
        results = compiled("key", total, X)
    assert total.tolist() == results[0].tolist() == [0, 3, 6]


def test_results_that_are_arguments_have_every_call_checked(graph_calls):
    class Passing(Scaled):
        def __call__(self, x: th.Tensor, y: th.Tensor | None) -> tuple[th.Tensor, ...]:
            return x, self.factor * x

    function = Passing(2.0)
    compiled = CompiledFunction("this", function.__call__)
    for factor in (2.0, 3.0):
        function.factor = factor
        x = X.clone()
        results = compiled("key", x, Y)
        assert results[0] is x
        assert results[1].tolist() == [0, factor, 2 * factor]


def test_an_argument_that_reaches_the_graph_as_another_object_is_noticed():
    """It would be taken for something that stays the same."""

    def graph(x: th.Tensor, y: th.Tensor) -> tuple[th.Tensor, ...]:
        return (x + y,)

    for passed, expected in ((X, [[3, 2, 2]]), (X.view_as(X), None), (X.clone(), [[2, 1, 1]])):
        inputs = (passed, Y)
        outputs = graph(*inputs)
        call = GraphCall.of(RecordedCall(graph, inputs, outputs), [X, Y], outputs)
        # a copy is not an argument, and stays what it was
        assert (None if call is None else values(call([X + 1, Y]))) == expected


def test_shapes_have_keys_of_their_own(graph_calls):
    compiled = CompiledFunction("this", Scaled(2.0).__call__)
    for size in (3, 5, 7, 3, 5, 7):
        x = th.arange(float(size))
        scaled, total = compiled(size, x, x)
        assert scaled.tolist() == (2 * x).tolist()
        assert total == (x * x).sum()


def test_many_models_are_compiled_in_one_process(graph_calls):
    """Torch refuses to compile the same code more than eight times."""

    def twice(x: th.Tensor) -> tuple[th.Tensor, ...]:
        return (2 * x,)

    for number in range(20):
        methods = CompiledFunction("this", Scaled(float(number)).__call__)
        assert values(methods("key", X, Y))[0] == [0, number, 2 * number]
        assert values(CompiledFunction("this", twice)("key", X)) == [[0, 2, 4]]
        assert methods.works
    assert len(graph_calls) == 40


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_with_torchs_compiler(compiled_calls):
    """Random numbers are those of torch, call by call."""

    def draw(x: th.Tensor) -> tuple[th.Tensor, ...]:
        return (x + th.empty_like(x).exponential_(), x.exp())

    compiled = CompiledFunction("this", draw, {"fallback_random": True})
    both: list[list[Any]] = []
    for function in (lambda x: compiled("key", x), draw):
        th.manual_seed(0)
        both.append([values(function(X + step)) for step in range(3)])
    assert both[0] == [[pytest.approx(value) for value in step] for step in both[1]]
    assert compiled_calls == [3]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_results_of_a_cuda_graph_are_copied():
    """Elsewhere there is none, but the rest is the same."""

    def add(total: th.Tensor, x: th.Tensor) -> tuple[th.Tensor, ...]:
        total.add_(x)
        return (total * 1,)

    compiled, total = CompiledFunction("this", add, cuda_graph=True), th.zeros(3)
    torch._dynamo.mark_static_address(total)
    results = [compiled("key", total, X + step)[0] for step in range(3)]
    assert values(results) == [[0, 1, 2], [1, 3, 5], [3, 6, 9]]
    assert total.tolist() == [3, 6, 9]


def test_where_it_fails_the_function_itself_is_called(graph_calls):
    def depends_on_data(x: th.Tensor) -> tuple[th.Tensor, ...]:
        return (2 * x if x.sum().item() > 0 else -x,)

    compiled = CompiledFunction("this", depends_on_data)
    message = r"`compile=True` does not work here for this, which goes on without it \(\w+: .+\)$"
    with pytest.warns(UserWarning, match=message):
        assert values(compiled("key", X)) == [[0, 2, 4]]
    assert not compiled.works
    assert values(compiled("key", -X)) == [[0, 1, 2]]
    # others are compiled as before
    other = CompiledFunction("this", Scaled(2.0).__call__)
    assert values(other("key", X, Y))[0] == [0, 2, 4]
    assert other.works
    assert len(graph_calls) == 1
