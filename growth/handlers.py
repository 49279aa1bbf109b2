"""What a trace does with each operation: a handler checks what it relies on, and adds a step.  What it can't follow it refuses with
``NotFollowedError``; then the channels that the operation reads are fixed, and the rest of the model still grows.

``HANDLERS`` maps module types, functions and names of tensor methods to handlers; ``growth.pointwise.POINTWISE`` is looked up first.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from growth.movement import MOVEMENTS, moved
from growth.pointwise import CONFIGURED, POINTWISE, pointwise_of
from growth.record import NotFollowedError, Record
from growth.steps import Call, Slot, Step, Window, key_of
from growth.ties import DIFFERENCES, PRODUCTS, RATIOS, SUMS, concatenated, elementwise

Handler = Callable[[Record, fx.Node, Any], None]  # (what is known so far, node, its module or None)


def handler_of(key: Any) -> Handler | None:
    return _pointwise if key in POINTWISE or key in CONFIGURED else HANDLERS.get(key)


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _once(record: Record, node: fx.Node, module: nn.Module) -> None:
    """Weights may be used once only: their channels would belong to two places."""
    if str(node.target) in record.shared:
        raise NotFollowedError("has weights that are used twice; give each call a module of its own")
    if "weight" not in module._parameters:
        raise NotFollowedError("has a weight that is computed from others; remove its weight or spectral norm")


def _along(record: Record, node: fx.Node, axis: int) -> Step:
    """The source, once it is known to have its channels along ``axis``."""
    before = record.steps[record.source(node)]
    if before.axis not in (None, axis % len(before.shape)):
        raise NotFollowedError(f"works along another axis of its input {before.shape} than their axis {before.axis}")
    return before


def _maps(record: Record, node: fx.Node, dimensions: int) -> Step:
    """The source, once it is known to be a batch of maps with so many dimensions; their channels come before those."""
    before = _along(record, node, 1)
    if len(before.shape) != 2 + dimensions:
        raise NotFollowedError(f"reads shape {before.shape}, which is no batch of maps of {dimensions} dimensions")
    return before


def _conv(record: Record, node: fx.Node, module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
    _once(record, node, module)
    before = _maps(record, node, len(module.kernel_size))
    window = _window(module)
    if module.groups == 1:
        record.start(node, 1, window=window)
    elif module.groups == module.in_channels == module.out_channels:
        record.keep(node, "depthwise", window=window)
    else:
        reason = f"convolution '{node.target}' splits its {module.in_channels} channels into {module.groups} groups of one size"
        record.axes.pin(before.segments, reason)
        record.axes.pin(record.start(node, 1, window=window), reason)


def _window(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Window:
    padding = module.padding
    if module.padding_mode != "zeros":
        raise NotFollowedError(f"has padding mode {module.padding_mode}, not zeros")
    if isinstance(padding, str):
        extents = [dilation * (kernel - 1) for kernel, dilation in zip(module.kernel_size, module.dilation, strict=True)]
        if padding == "same" and any(extent % 2 for extent in extents):
            raise NotFollowedError("pads one side more than the other; use odd kernels")
        padding = tuple(extent // 2 for extent in extents) if padding == "same" else (0,) * len(extents)
    return Window(module.kernel_size, module.stride, padding, module.dilation)


def _linear(record: Record, node: fx.Node, module: nn.Linear) -> None:
    _once(record, node, module)
    before = _along(record, node, -1)
    record.start(node, len(before.shape) - 1)


def _norm(record: Record, node: fx.Node, module: nn.BatchNorm2d) -> None:
    _once(record, node, module)
    _along(record, node, 1)
    if module.running_mean is None:
        raise NotFollowedError("keeps no running statistics, so it can't be frozen; set track_running_stats=True")
    record.keep(node, "norm")


def _mixing_norm(_record: Record, _node: fx.Node, _module: nn.Module | None) -> None:
    raise NotFollowedError("takes its statistics over several channels, which copies of some of them would change")


def _attention(_record: Record, _node: fx.Node, _module: nn.Module | None) -> None:
    raise NotFollowedError("divides one width among its heads, so that neither can grow")


def _pointwise(record: Record, node: fx.Node, module: nn.Module | None) -> None:
    if getattr(module, "approximate", node.kwargs.get("approximate", "none")) == "none":
        record.keep(node, "pointwise", pointwise=pointwise_of(key_of(node, module), module))
    else:
        elementwise(record, node, module)


def _pool(record: Record, node: fx.Node, _module: nn.Module | None, dimensions: int = 2) -> None:
    """Pooling of maps: channel by channel, whatever the settings."""
    _maps(record, node, dimensions)
    record.keep(node, "channelwise")


_pool1d = partial(_pool, dimensions=1)


def _resize(record: Record, node: fx.Node, _module: nn.Module | None) -> None:
    _along(record, node, 1)
    record.keep(node, "channelwise")


def _max_pool(record: Record, node: fx.Node, module: nn.MaxPool2d | None) -> None:
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    defaults = (None, None, 0, 1, False, False)
    if module is not None:
        given = [getattr(module, name) for name in names]
    else:
        given = [_argument(node, place + 1, name, default) for place, (name, default) in enumerate(zip(names, defaults, strict=True))]
    kernel, stride, padding, dilation, ceil_mode, indices = given
    window = Window(*map(_pair, (kernel, stride or kernel, padding, dilation)))
    if ceil_mode or indices or window.square is None:
        _pool(record, node, module)
    else:
        _maps(record, node, 2)
        record.keep(node, "max_pool", window=window)


def _pair(setting: Any) -> tuple[int, ...]:
    return tuple(setting) if isinstance(setting, (tuple, list)) else (setting, setting)


def _adaptive_pool(record: Record, node: fx.Node, module: nn.AdaptiveAvgPool2d | None) -> None:
    _maps(record, node, 2)
    size = module.output_size if module is not None else _argument(node, 1, "output_size", None)
    whole = set(_pair(size)) == {1}
    call = Call("call_function", functional.adaptive_avg_pool2d, (Slot(0), 1)) if whole else None
    record.keep(node, "global_pool" if whole else "channelwise", call=call)


def _mean(record: Record, node: fx.Node, _module: None) -> None:
    before = record.steps[record.source(node)]
    dims, keepdim = _argument(node, 1, "dim", None), bool(_argument(node, 2, "keepdim", False))
    rank = len(before.shape)
    taken = sorted({dim % rank for dim in (dims if isinstance(dims, (tuple, list)) else [dims]) if isinstance(dim, int)})
    if not taken or before.axis in taken:
        raise NotFollowedError(f"takes a mean over {dims}, their axis among them")
    axis = before.axis if keepdim or before.axis is None else before.axis - sum(dim < before.axis for dim in taken)
    whole = rank == 4 and taken == [2, 3]
    call = Call("call_function", torch.mean, (Slot(0),), {"dim": tuple(taken), "keepdim": keepdim})
    record.add(node, "global_pool" if whole else "channelwise", axis, before.segments, call=call)


def _class_scores(record: Record, node: fx.Node, _module: nn.Module | None) -> None:
    record.give_up(node, "mixes them", kind="class_scores")


HANDLERS: dict[Any, Handler] = {
    nn.Conv1d: _conv, nn.Conv2d: _conv, nn.Conv3d: _conv,
    nn.Linear: _linear,
    nn.BatchNorm1d: _norm, nn.BatchNorm2d: _norm, nn.BatchNorm3d: _norm,
    nn.LayerNorm: _mixing_norm, functional.layer_norm: _mixing_norm, nn.GroupNorm: _mixing_norm, functional.group_norm: _mixing_norm,
    nn.MultiheadAttention: _attention,
    **dict.fromkeys((*SUMS, *DIFFERENCES, *PRODUCTS, *RATIOS, operator.neg, torch.neg), elementwise),
    **dict.fromkeys((operator.pow, torch.pow, "pow", torch.square, torch.exp, torch.log, torch.sqrt, torch.erf), elementwise),
    **dict.fromkeys((nn.Softplus, functional.softplus, nn.Mish, functional.mish, nn.CELU, functional.celu), elementwise),
    **dict.fromkeys((nn.Softsign, functional.softsign, nn.LogSigmoid, functional.logsigmoid), elementwise),
    torch.cat: concatenated, torch.concat: concatenated,
    nn.MaxPool2d: _max_pool, functional.max_pool2d: _max_pool, torch.max_pool2d: _max_pool,
    nn.AvgPool2d: _pool, functional.avg_pool2d: _pool, nn.AdaptiveMaxPool2d: _pool, functional.adaptive_max_pool2d: _pool,
    nn.MaxPool1d: _pool1d, nn.AvgPool1d: _pool1d, nn.AdaptiveAvgPool1d: _pool1d, nn.AdaptiveMaxPool1d: _pool1d,
    nn.Upsample: _resize, functional.interpolate: _resize,
    nn.AdaptiveAvgPool2d: _adaptive_pool, functional.adaptive_avg_pool2d: _adaptive_pool,
    torch.mean: _mean, "mean": _mean,
    **dict.fromkeys(MOVEMENTS, moved),
    nn.LogSoftmax: _class_scores, functional.log_softmax: _class_scores, torch.log_softmax: _class_scores, "log_softmax": _class_scores,
    nn.Softmax: _class_scores, functional.softmax: _class_scores, torch.softmax: _class_scores, "softmax": _class_scores,
}  # fmt: skip
