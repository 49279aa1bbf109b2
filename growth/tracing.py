"""An ordinary ``nn.Module`` as a list of steps, by tracing it once with torch.fx.

Whatever ``growth.handlers`` has no handler for raises ``TraceError`` with the module's path and a remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from growth.handlers import HANDLERS, handler_of
from growth.steps import Step, Steps, TraceError, inside, key_of, name_of


def trace(model: nn.Module, example: Tensor) -> list[Step]:
    """The steps of ``model`` in execution order; the last one is its output.  The model is left as it was found."""
    with evaluating(model), torch.no_grad():
        graph = _symbolic(model)
        shapes = _Shapes(graph)
        shapes.run(example)
    return _lower(model, graph.graph, shapes.found)


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


class _Shapes(fx.Interpreter):
    """Runs the graph and keeps the shape of every tensor."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.extra_traceback = False  # our own error says where
        self.found: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        try:
            value = super().run_node(n)
        except Exception as error:
            raise TraceError(f"'{n.target}' fails on the example batch: {error}; give an example that the model accepts") from error
        if isinstance(value, Tensor):
            self.found[n] = tuple(value.shape)
        return value


def _lower(model: nn.Module, graph: fx.Graph, shapes: dict[fx.Node, tuple[int, ...]]) -> list[Step]:
    steps = Steps(shapes)
    for node in graph.nodes:
        if node.op == "placeholder" and node in shapes:
            steps.add(node, "image", ())
        elif node.op == "output":
            _check_output(steps, node.args[0])
        elif node in shapes:  # sizes and other numbers are none of ours
            module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
            handler = handler_of(key_of(node, module)) if node.op != "get_attr" else None
            if handler is None:
                raise _unknown(node, module)
            handler(steps, node, module)
    return steps.steps


def _check_output(steps: Steps, result: Any) -> None:
    if not isinstance(result, fx.Node) or result not in steps.index:
        raise TraceError(f"the model returns {type(result).__name__}; it must return one tensor, the class scores")
    if steps.index[result] != len(steps.steps) - 1:
        raise TraceError(f"'{steps.steps[-1].path}' comes after the model's output and does not reach it; remove it from forward")


def _unknown(node: fx.Node, module: nn.Module | None) -> TraceError:
    what = f"module '{node.target}' ({type(module).__name__})" if module is not None else f"'{node.name}' ({name_of(node)})"
    known = ", ".join(sorted(key.__name__ for key in HANDLERS if isinstance(key, type)))
    return TraceError(
        f"{what}{inside(node)} can't be followed: its effect on channels is unknown; use {known} and the functions in "
        "growth.pointwise.POINTWISE, or register an activation there"
    )
