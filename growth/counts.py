"""Exact counts of a network that has steps in no unit: multiply-accumulates and parameters, layer by layer.

A layer that reads a concatenation counts as one part per segment: its MACs and weights are sums over them.  What growth does not
change (attention, layer norms, tokens) is one constant part, the difference to the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from costs.shapes import Counted, Unit
from growth.steps import Segment, Step
from growth.tracing import evaluating

_COUNTED = ("mix", "depthwise", "norm", "parameter")


def count(model: nn.Module, steps: Sequence[Step], example: Tensor, reason: str) -> tuple[Unit, ...]:
    """All parts in execution order; ``reason`` says why they are not units."""
    units = [unit for step in steps if step.kind in _COUNTED for unit in _parts(model, steps, step, reason)]
    macs = 0
    if any(step.kind == "opaque" and step.inputs for step in steps):
        macs = _macs(model, example) - sum(unit.shape.macs for unit in units)
    parameters = sum(parameter.numel() for parameter in model.parameters()) - sum(unit.shape.parameters for unit in units)
    if macs or parameters:
        units.append(Unit("rest", Counted("linear", 1, 1, positions=macs, weights=parameters, reason=reason), None, None))
    return tuple(units)


def _parts(model: nn.Module, steps: Sequence[Step], step: Step, reason: str) -> Iterator[Unit]:
    if step.kind == "parameter":
        total = sum(segment.entries for segment in step.segments)
        for name, segment in zip(_names(step.path, step.segments), step.segments, strict=True):
            weights = math.prod(step.shape) // total
            shape = Counted("linear", segment.entries, segment.entries, weights=weights, per_channel=True, reason=reason)
            yield Unit(name, shape, segment.group, segment.group, segment.columns)
        return
    module = model.get_submodule(step.path)
    if step.kind == "mix":
        yield from _mix(module, steps[step.inputs[0]], step, reason)
        return
    channels = step.segments or (Segment(None, step.shape[1]),)
    weights = 0 if module.weight is None else cast(Tensor, module.weight)[0].numel()
    positions = weights * _positions(step) if step.kind == "depthwise" else 0
    for name, segment in zip(_names(step.path, channels), channels, strict=True):
        width = segment.entries
        shape = Counted(
            "conv2d", width, width, positions=positions, weights=weights, biases=int(module.bias is not None),
            per_channel=True, reason=reason,
        )  # fmt: skip
        yield Unit(name, shape, segment.group, segment.group, segment.columns)


def _mix(module: nn.Module, source: Step, step: Step, reason: str) -> Iterator[Unit]:
    linear = isinstance(module, nn.Linear)
    read = source.segments or (Segment(None, source.shape[-1 if linear else 1]),)
    (written,) = step.segments
    extent = cast(Tensor, module.weight)[0, 0].numel()
    for number, (name, segment) in enumerate(zip(_names(step.path, read), read, strict=True)):
        shape = Counted(
            "linear" if linear else "conv2d", segment.entries, written.width, groups=1 if linear else cast(int, module.groups),
            positions=extent * _positions(step), weights=extent, biases=int(module.bias is not None and number == 0), reason=reason,
        )  # fmt: skip
        yield Unit(name, shape, segment.group, written.group, segment.columns)


def _names(path: str, segments: Sequence[Segment]) -> list[str]:
    return [path if len(segments) == 1 else f"{path}[{number}]" for number in range(len(segments))]


def _positions(step: Step) -> int:
    """Places of one image where the layer's weights are applied."""
    channels = step.shape[-1 if step.window is None else 1]
    return math.prod(step.shape) // step.shape[0] // channels


def _macs(model: nn.Module, example: Tensor) -> int:
    """Of one image, as torch counts them."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused attention is not counted
    try:
        with evaluating(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2 // len(example)
