"""An ordinary ``nn.Module`` as a list of steps, by tracing it once with torch.fx.

An operation without a handler in ``growth.handlers`` fixes the channels it reads; only a model that can't be traced at all, or that
does not return one tensor, raises ``TraceError``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, fx, nn

from growth.handlers import handler_of
from growth.record import NotFollowedError, Record, Results
from growth.steps import Step, TraceError, attribute, key_of


def trace(model: nn.Module, example: Tensor) -> tuple[Record, int]:
    """The steps of ``model`` in execution order with their channel axes, and the index of its output.  The model is left as found."""
    with evaluating(model), torch.no_grad():
        graph = _symbolic(model)
        _refuse_training_heads(model, graph.graph)
        run = _Run(graph)
        run.run(example)
        record = Record(model, run.results, _shared(model, graph.graph))
        return record, _lower(record, graph.graph)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; every module's own training flag restored outside."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in flags.items():
            module.training = training


class _Tracer(fx.Tracer):
    """Goes into every module but torch's own and registered pointwise ones, and remembers where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.where = ""

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return handler_of(type(module)) is not None or super().is_leaf_module(module, path)

    def call_module(self, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        outer, self.where = self.where, self.path_of_module(module)
        result = super().call_module(module, forward, args, kwargs)
        self.where = outer  # not restored when it raises: the innermost module is the one to name
        return result


def _symbolic(model: nn.Module) -> fx.GraphModule:
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:
        where = f"module '{tracer.where}' ({type(model.get_submodule(tracer.where)).__name__})"
        raise TraceError(
            f"{where} can't be traced: {error}; write its forward without control flow that depends on tensors, and with one input"
        ) from error
    second = [str(node.target) for node in graph.nodes if node.op == "placeholder" and node.users][1:]
    if second:
        raise TraceError(f"the model has a second input '{second[0]}'; only models with one input can be followed")
    return fx.GraphModule(model, graph)


class _Run(fx.Interpreter):
    """Runs the graph and keeps the shape of every tensor, and every number."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.extra_traceback = False  # our own error says where
        self.results = Results()

    def run_node(self, n: fx.Node) -> Any:
        first = self.env.get(n.args[0]) if n.args and isinstance(n.args[0], fx.Node) else None
        version = first._version if isinstance(first, Tensor) else 0
        try:
            value = super().run_node(n)
        except Exception as error:
            raise TraceError(f"'{n.target}' fails on the example batch: {error}; give an example that the model accepts") from error
        if isinstance(first, Tensor) and first._version != version:
            self.results.overwriting.add(n)
        elif value is first:
            self.results.unchanged.add(n)
        if isinstance(value, Tensor):
            self.results.shapes[n] = tuple(value.shape)
        elif not any(isinstance(part, Tensor) for part in torch.utils._pytree.tree_leaves(value)):
            self.results.numbers[n] = value
        return value


def _refuse_training_heads(model: nn.Module, graph: fx.Graph) -> None:
    """A layer that only training reaches may read channels that grow, and the trace, in eval mode, would not know."""
    weighted = {path for path, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))}
    idle = weighted - _reached(weighted, graph)
    if not idle:
        return
    model.train()
    trained = _symbolic(model).graph
    model.eval()
    for path in sorted(_reached(idle, trained)):
        raise TraceError(
            f"module '{path}' is used in training only, so the channels that it reads are not known; remove its head before growth"
        )


def _reached(paths: set[str], graph: fx.Graph) -> set[str]:
    """The modules among ``paths`` that the graph reads, as part of another or by a parameter."""
    read = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    read |= {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    return {path for path in paths if not read.isdisjoint(accumulate(path.split("."), "{}.{}".format))}


def _shared(model: nn.Module, graph: fx.Graph) -> frozenset[str]:
    """Paths of the parameters, and of the modules with one, that are read more than once."""
    uses: Counter[int] = Counter()
    modules = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    for path in modules:
        uses.update({id(parameter) for parameter in model.get_submodule(path).parameters()})
    attributes = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
    uses.update(id(attribute(model, path)) for path in attributes)
    calls = Counter(modules)
    shared = {path for path in modules if calls[path] > 1 or any(uses[id(p)] > 1 for p in model.get_submodule(path).parameters())}
    return frozenset(shared | {path for path in attributes if uses[id(attribute(model, path))] > 1})


def _lower(record: Record, graph: fx.Graph) -> int:
    output = -1
    for node in graph.nodes:
        if node.op == "output":
            output = _output(record, node.args[0])
        elif node.op == "placeholder":
            if node in record.results.shapes:
                record.index[node] = len(record.steps)
                record.steps.append(Step("image", node.name, (), record.results.shapes[node]))
        elif node in record.results.numbers:
            record.add(node, "number")
        elif node.op == "get_attr":
            record.add(node, "opaque" if str(node.target) in record.shared else "parameter")
        elif node in record.results.unchanged:
            record.alias(node, record.source(node))
        else:
            _step(record, node)
        if node in record.results.overwriting:
            _overwrite(record, node)
    return output


def _overwrite(record: Record, node: fx.Node) -> None:
    """Whoever reads what the node changed in place reads the node's value from now on."""
    (old,) = {record.index[read] for read in node.args[:1] if isinstance(read, fx.Node)}
    for read, index in record.index.items():
        if index == old:
            record.index[read] = record.index[node]


def _step(record: Record, node: fx.Node) -> None:
    module = record.model.get_submodule(str(node.target)) if node.op == "call_module" else None
    handler = handler_of(key_of(node, module))
    try:
        if handler is None:
            raise NotFollowedError("does something unknown to them; register an activation in growth.pointwise.POINTWISE")
        handler(record, node, module)
    except NotFollowedError as error:
        record.give_up(node, str(error))


def _output(record: Record, result: Any) -> int:
    if not isinstance(result, fx.Node) or result not in record.results.shapes:
        raise TraceError(f"the model returns {type(result).__name__}; it must return one tensor, the class scores")
    output = record.index[result]
    record.axes.pin(record.steps[output].segments, "its channels are the model's output")
    return output
