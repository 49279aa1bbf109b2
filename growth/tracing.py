"""An ordinary ``nn.Module`` as a list of steps, by tracing it once with torch.fx.

Each step says what it does to the channel axis: *mix* (convolution, linear: reads one axis, writes a new one), *depthwise*, *norm*,
*pointwise*, *add* and pooling (all channel by channel), *flatten* (several columns per channel).  ``HANDLERS`` maps what a trace meets
to the function that turns it into a step; whatever is in no dict raises ``TraceError`` with the module's path and a remedy.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from growth.pointwise import POINTWISE, Pointwise

Kind = Literal["image", "mix", "depthwise", "norm", "pointwise", "add", "max_pool", "global_pool", "flatten", "class_scores"]


class TraceError(ValueError):
    """The model holds something whose channels can't be followed; the message names the module and a remedy."""


@dataclass(frozen=True, slots=True)
class Step:
    """One operation.  ``path`` is its module (or the name of the call), ``inputs`` are indices of earlier steps."""

    kind: Kind
    path: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]  # of the output, for the example batch
    axis: int = 1  # which one is the channel axis
    columns: int = 1  # entries of that axis per channel; more than 1 behind a flatten
    pointwise: Pointwise | None = None
    window: tuple[int, int, int] | None = None  # kernel, stride, padding of a convolution or max pooling
    call: Callable[[Tensor], Tensor] | None = None  # what a global pool or class scores computes

    @property
    def channels(self) -> int:
        return self.shape[self.axis] // self.columns


def trace(model: nn.Module, example: Tensor) -> list[Step]:
    """The steps of ``model`` in execution order; the last one is its output.  The model is left as it was found."""
    with evaluating(model), torch.no_grad():
        graph = _symbolic(model)
        shapes = _Shapes(graph)
        shapes.run(example)
    return _Steps(model, shapes.found).lower(graph.graph)


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
        return type(module) in POINTWISE or type(module) in HANDLERS or super().is_leaf_module(module, path)

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


@dataclass(slots=True)
class _Steps:
    """Turns fx nodes into steps."""

    model: nn.Module
    shapes: dict[fx.Node, tuple[int, ...]]
    steps: list[Step] = field(default_factory=list)
    index: dict[fx.Node, int] = field(default_factory=dict)
    called: set[int] = field(default_factory=set)

    def lower(self, graph: fx.Graph) -> list[Step]:
        for node in graph.nodes:
            if node.op == "output":
                return self._finish(node)
            if node in self.shapes:
                self._lower(node)
        raise AssertionError("a graph ends with its output")

    def _lower(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.add(node, "image", ())
            return
        module = self.model.get_submodule(str(node.target)) if node.op == "call_module" else None
        key = _key(node, module)
        handler = _pointwise if key in POINTWISE else HANDLERS.get(key)
        if handler is None or node.op == "get_attr":
            what = f"module '{node.target}' ({type(module).__name__})" if module is not None else f"'{node.name}' ({_name(node)})"
            raise TraceError(
                f"{what}{_inside(node)} can't be followed: its effect on channels is unknown; use "
                f"{', '.join(sorted({key.__name__ for key in HANDLERS if isinstance(key, type)}))} and the functions in "
                "growth.pointwise.POINTWISE, or register an activation there"
            )
        handler(self, node, module)

    def _finish(self, node: fx.Node) -> list[Step]:
        result = node.args[0]
        if not isinstance(result, fx.Node) or result not in self.index:
            raise TraceError(f"the model returns {type(result).__name__}; it must return one tensor, the class scores")
        if self.index[result] != len(self.steps) - 1:
            last = self.steps[-1]
            raise TraceError(f"'{last.path}' comes after the model's output and does not reach it; remove it from forward")
        return self.steps

    def source(self, node: fx.Node) -> int:
        """Index of the step whose output the node reads first."""
        first = node.args[0] if node.args else node.kwargs.get("input")
        if not isinstance(first, fx.Node) or first not in self.index:
            raise TraceError(f"'{node.name}' ({_name(node)}){_inside(node)} does not read a tensor of the model")
        return self.index[first]

    def add(self, node: fx.Node, kind: Kind, inputs: tuple[int, ...], **fields: Any) -> None:
        """Append a step; axis and columns are those of its first input unless given."""
        if inputs and kind != "mix":
            fields = {"axis": self.steps[inputs[0]].axis, "columns": self.steps[inputs[0]].columns} | fields
        path = str(node.target) if node.op == "call_module" else node.name
        self.index[node] = len(self.steps)
        self.steps.append(Step(kind, path, inputs, self.shapes[node], **fields))

    def once(self, node: fx.Node, module: nn.Module) -> None:
        """A module with weights may be called once only: its channels would belong to two places."""
        if id(module) in self.called:
            raise TraceError(f"module '{node.target}' is called twice; shared weights can't be split: give each call a module of its own")
        self.called.add(id(module))


def _key(node: fx.Node, module: nn.Module | None) -> Any:
    """What a handler is registered under: the module's type, the function, or the method's name."""
    return type(module) if module is not None else node.target


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _inside(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path] if node.op != "call_module" else []
    return f" inside module '{paths[-1]}'" if paths else ""


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


# One handler per operation: it checks what it relies on and adds a step.


def _conv(steps: _Steps, node: fx.Node, module: nn.Conv2d) -> None:
    source = steps.source(node)
    steps.once(node, module)
    window = tuple(_one(setting) for setting in (module.kernel_size, module.stride, module.padding))
    if None in window or _one(module.dilation) != 1 or module.padding_mode != "zeros":
        raise TraceError(
            f"convolution '{node.target}' ({module}) can't be priced; use a square kernel, stride and padding (numbers), "
            "no dilation and padding mode zeros"
        )
    if module.groups == 1:
        steps.add(node, "mix", (source,), window=window)
    elif module.groups == module.in_channels == module.out_channels:
        steps.add(node, "depthwise", (source,), window=window)
    else:
        raise TraceError(
            f"convolution '{node.target}' maps {module.in_channels} to {module.out_channels} channels in {module.groups} groups; "
            "only groups=1 and depthwise (groups = in = out) can be followed"
        )


def _linear(steps: _Steps, node: fx.Node, module: nn.Linear) -> None:
    source = steps.source(node)
    steps.once(node, module)
    before = steps.steps[source]
    if before.axis != len(before.shape) - 1:
        raise TraceError(f"linear '{node.target}' reads shape {before.shape} along its last axis, which is not the channels; flatten first")
    steps.add(node, "mix", (source,), axis=len(before.shape) - 1)


def _norm(steps: _Steps, node: fx.Node, module: nn.BatchNorm2d) -> None:
    source = steps.source(node)
    steps.once(node, module)
    if module.running_mean is None:
        raise TraceError(f"batch norm '{node.target}' keeps no running statistics, so it can't be frozen; set track_running_stats=True")
    if steps.steps[source].columns > 1:
        raise TraceError(f"batch norm '{node.target}' reads flattened maps; put it before the flatten")
    steps.add(node, "norm", (source,))


def _pointwise(steps: _Steps, node: fx.Node, module: nn.Module | None) -> None:
    extra = {"inplace", "input", *(("approximate",) if node.kwargs.get("approximate") == "none" else ())}
    positional = node.args[1:2] if node.target in (functional.relu, functional.silu) else ()  # inplace, of no consequence
    if len(node.args) > 1 + len(positional) or set(node.kwargs) - extra or getattr(module, "approximate", "none") != "none":
        raise TraceError(f"'{node.target}' is called in a variant whose derivatives are unknown; use its plain form or register your own")
    steps.add(node, "pointwise", (steps.source(node),), pointwise=POINTWISE[_key(node, module)])


def _add(steps: _Steps, node: fx.Node, _module: None) -> None:
    sources = [steps.index.get(operand) if isinstance(operand, fx.Node) else None for operand in node.args[:2]]
    first, second = sources if len(sources) == 2 else (None, None)
    if first is None or second is None or len(node.args) > 2 or node.kwargs:
        raise TraceError(
            f"'{node.name}'{_inside(node)} adds something other than two tensors of the model; only residual sums can be followed"
        )
    one, other = steps.steps[first], steps.steps[second]
    if (one.shape, one.axis, one.columns) != (other.shape, other.axis, other.columns):
        raise TraceError(f"'{node.name}'{_inside(node)} adds shapes {one.shape} and {other.shape}; only equal shapes can be followed")
    steps.add(node, "add", (first, second))


def _skip(steps: _Steps, node: fx.Node, _module: nn.Module | None) -> None:
    """The identity (in eval mode)."""
    steps.index[node] = steps.source(node)


def _max_pool(steps: _Steps, node: fx.Node, module: nn.MaxPool2d | None) -> None:
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    defaults = (None, None, 0, 1, False, False)
    if module is not None:
        given = [getattr(module, name) for name in names]
    else:
        given = [_argument(node, place + 1, name, default) for place, (name, default) in enumerate(zip(names, defaults, strict=True))]
    kernel, stride, padding, dilation, ceil_mode, indices = given
    sizes = [_one(value) for value in (kernel, stride or kernel, padding)]
    if any(size is None for size in sizes) or _one(dilation) != 1 or ceil_mode or indices:
        raise TraceError(f"max pooling '{node.target}' is not plain and square; use kernel, stride and padding alone, one number each")
    steps.add(node, "max_pool", (_spatial(steps, node),), window=tuple(sizes))


def _one(value: Any) -> int | None:
    """The one number of a square setting."""
    distinct = set(value) if isinstance(value, (tuple, list)) else {value}
    only = distinct.pop()
    return only if not distinct and isinstance(only, int) else None


def _spatial(steps: _Steps, node: fx.Node) -> int:
    source = steps.source(node)
    before = steps.steps[source]
    if len(before.shape) != 4 or before.axis != 1:
        raise TraceError(f"pooling '{node.target}' reads shape {before.shape}; it must be images [B, C, H, W]")
    return source


def _adaptive_pool(steps: _Steps, node: fx.Node, module: nn.AdaptiveAvgPool2d | None) -> None:
    size = module.output_size if module is not None else _argument(node, 1, "output_size", None)
    if _one(size) != 1:
        raise TraceError(f"adaptive pooling '{node.target}' has output size {size}; only 1 (global pooling) can be priced")
    steps.add(node, "global_pool", (_spatial(steps, node),), call=partial(functional.adaptive_avg_pool2d, output_size=1))


def _mean(steps: _Steps, node: fx.Node, _module: None) -> None:
    dims, keepdim = _argument(node, 1, "dim", None), bool(_argument(node, 2, "keepdim", False))
    if not isinstance(dims, (tuple, list)) or sorted(dim % 4 for dim in dims) != [2, 3]:
        raise TraceError(
            f"'{node.name}'{_inside(node)} takes a mean over {dims}; only the mean over height and width (2, 3) can be followed"
        )
    steps.add(node, "global_pool", (_spatial(steps, node),), call=partial(torch.mean, dim=(2, 3), keepdim=keepdim))


def _flatten(steps: _Steps, node: fx.Node, _module: nn.Module | None) -> None:
    """flatten, view and reshape from [B, C, H, W] to [B, C*H*W]."""
    source = steps.source(node)
    before, shape = steps.steps[source], steps.shapes[node]
    if shape == before.shape:
        steps.index[node] = source
    elif before.axis == 1 and shape == (before.shape[0], math.prod(before.shape[1:])):
        steps.add(node, "flatten", (source,), columns=before.columns * math.prod(before.shape[2:]))
    else:
        raise TraceError(
            f"'{node.name}'{_inside(node)} reshapes {before.shape} to {shape}; only flattening all but the batch can be followed"
        )


def _class_scores(steps: _Steps, node: fx.Node, module: nn.Module | None) -> None:
    function = (
        functional.log_softmax
        if _key(node, module) in (nn.LogSoftmax, functional.log_softmax, torch.log_softmax, "log_softmax")
        else functional.softmax
    )
    dim = module.dim if isinstance(module, (nn.LogSoftmax, nn.Softmax)) else _argument(node, 1, "dim", None)
    if dim is None:
        raise TraceError(f"'{node.target}' has no dim; give one")
    steps.add(node, "class_scores", (steps.source(node),), call=partial(function, dim=dim))


HANDLERS: dict[Any, Callable[[_Steps, fx.Node, Any], None]] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.BatchNorm1d: _norm, nn.BatchNorm2d: _norm,
    nn.Identity: _skip, nn.Dropout: _skip, nn.Dropout2d: _skip, functional.dropout: _skip, "contiguous": _skip,
    operator.add: _add, operator.iadd: _add, torch.add: _add, "add": _add, "add_": _add,
    nn.MaxPool2d: _max_pool, functional.max_pool2d: _max_pool, torch.max_pool2d: _max_pool,
    nn.AdaptiveAvgPool2d: _adaptive_pool, functional.adaptive_avg_pool2d: _adaptive_pool,
    torch.mean: _mean, "mean": _mean,
    nn.Flatten: _flatten, torch.flatten: _flatten, "flatten": _flatten, "view": _flatten, "reshape": _flatten,
    nn.LogSoftmax: _class_scores, functional.log_softmax: _class_scores, torch.log_softmax: _class_scores, "log_softmax": _class_scores,
    nn.Softmax: _class_scores, functional.softmax: _class_scores, torch.softmax: _class_scores, "softmax": _class_scores,
}  # fmt: skip
