"""What a trace does with each operation: a handler checks what it relies on, and adds a step.

``HANDLERS`` maps module types, functions and names of tensor methods to handlers; ``growth.pointwise.POINTWISE`` is looked up first.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from growth.pointwise import POINTWISE
from growth.steps import Steps, TraceError, inside, key_of

Handler = Callable[[Steps, fx.Node, Any], None]  # (steps so far, node, its module or None)


def handler_of(key: Any) -> Handler | None:
    return _pointwise if key in POINTWISE else HANDLERS.get(key)


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _conv(steps: Steps, node: fx.Node, module: nn.Conv2d) -> None:
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


def _linear(steps: Steps, node: fx.Node, module: nn.Linear) -> None:
    source = steps.source(node)
    steps.once(node, module)
    before = steps.steps[source]
    if before.axis != len(before.shape) - 1:
        raise TraceError(f"linear '{node.target}' reads shape {before.shape} along its last axis, which is not the channels; flatten first")
    steps.add(node, "mix", (source,), axis=len(before.shape) - 1)


def _norm(steps: Steps, node: fx.Node, module: nn.BatchNorm2d) -> None:
    source = steps.source(node)
    steps.once(node, module)
    if module.running_mean is None:
        raise TraceError(f"batch norm '{node.target}' keeps no running statistics, so it can't be frozen; set track_running_stats=True")
    if steps.steps[source].columns > 1:
        raise TraceError(f"batch norm '{node.target}' reads flattened maps; put it before the flatten")
    steps.add(node, "norm", (source,))


def _pointwise(steps: Steps, node: fx.Node, module: nn.Module | None) -> None:
    extra = {"inplace", "input", *(("approximate",) if node.kwargs.get("approximate") == "none" else ())}
    positional = node.args[1:2] if node.target in (functional.relu, functional.silu) else ()  # inplace, of no consequence
    if len(node.args) > 1 + len(positional) or set(node.kwargs) - extra or getattr(module, "approximate", "none") != "none":
        raise TraceError(f"'{node.target}' is called in a variant whose derivatives are unknown; use its plain form or register your own")
    steps.add(node, "pointwise", (steps.source(node),), pointwise=POINTWISE[key_of(node, module)])


def _add(steps: Steps, node: fx.Node, _module: None) -> None:
    sources = [steps.index.get(operand) if isinstance(operand, fx.Node) else None for operand in node.args[:2]]
    first, second = sources if len(sources) == 2 else (None, None)
    if first is None or second is None or len(node.args) > 2 or node.kwargs:
        raise TraceError(
            f"'{node.name}'{inside(node)} adds something other than two tensors of the model; only residual sums can be followed"
        )
    one, other = steps.steps[first], steps.steps[second]
    if (one.shape, one.axis, one.columns) != (other.shape, other.axis, other.columns):
        raise TraceError(f"'{node.name}'{inside(node)} adds shapes {one.shape} and {other.shape}; only equal shapes can be followed")
    steps.add(node, "add", (first, second))


def _skip(steps: Steps, node: fx.Node, _module: nn.Module | None) -> None:
    """The identity (in eval mode)."""
    steps.index[node] = steps.source(node)


def _max_pool(steps: Steps, node: fx.Node, module: nn.MaxPool2d | None) -> None:
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


def _spatial(steps: Steps, node: fx.Node) -> int:
    source = steps.source(node)
    before = steps.steps[source]
    if len(before.shape) != 4 or before.axis != 1:
        raise TraceError(f"pooling '{node.target}' reads shape {before.shape}; it must be images [B, C, H, W]")
    return source


def _adaptive_pool(steps: Steps, node: fx.Node, module: nn.AdaptiveAvgPool2d | None) -> None:
    size = module.output_size if module is not None else _argument(node, 1, "output_size", None)
    if _one(size) != 1:
        raise TraceError(f"adaptive pooling '{node.target}' has output size {size}; only 1 (global pooling) can be priced")
    steps.add(node, "global_pool", (_spatial(steps, node),), call=partial(functional.adaptive_avg_pool2d, output_size=1))


def _mean(steps: Steps, node: fx.Node, _module: None) -> None:
    dims, keepdim = _argument(node, 1, "dim", None), bool(_argument(node, 2, "keepdim", False))
    if not isinstance(dims, (tuple, list)) or sorted(dim % 4 for dim in dims) != [2, 3]:
        raise TraceError(
            f"'{node.name}'{inside(node)} takes a mean over {dims}; only the mean over height and width (2, 3) can be followed"
        )
    steps.add(node, "global_pool", (_spatial(steps, node),), call=partial(torch.mean, dim=(2, 3), keepdim=keepdim))


def _flatten(steps: Steps, node: fx.Node, _module: nn.Module | None) -> None:
    """flatten, view and reshape from [B, C, H, W] to [B, C*H*W]."""
    source = steps.source(node)
    before, shape = steps.steps[source], steps.shapes[node]
    if shape == before.shape:
        steps.index[node] = source
    elif before.axis == 1 and shape == (before.shape[0], math.prod(before.shape[1:])):
        steps.add(node, "flatten", (source,), columns=before.columns * math.prod(before.shape[2:]))
    else:
        raise TraceError(
            f"'{node.name}'{inside(node)} reshapes {before.shape} to {shape}; only flattening all but the batch can be followed"
        )


def _class_scores(steps: Steps, node: fx.Node, module: nn.Module | None) -> None:
    function = (
        functional.log_softmax
        if key_of(node, module) in (nn.LogSoftmax, functional.log_softmax, torch.log_softmax, "log_softmax")
        else functional.softmax
    )
    dim = module.dim if isinstance(module, (nn.LogSoftmax, nn.Softmax)) else _argument(node, 1, "dim", None)
    if dim is None:
        raise TraceError(f"'{node.target}' has no dim; give one")
    steps.add(node, "class_scores", (steps.source(node),), call=partial(function, dim=dim))


HANDLERS: dict[Any, Handler] = {
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
