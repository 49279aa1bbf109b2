"""Operations on several values: elementwise ones tie their channels, a concatenation lines them up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from growth.record import NotFollowedError, Record
from growth.steps import Kind, Segment, Step, inside

_SUMS: tuple[Any, ...] = ("add", "add_")


def elementwise(record: Record, node: fx.Node, _module: nn.Module | None) -> None:
    """A sum, product, ... of tensors that may broadcast; with numbers it is channelwise."""
    by = f"'{node.name}'{inside(node)}"
    operands = [record.steps[source] for source in record.tensors(node)]
    rank = len(record.results.shapes[node])
    leaders = [step for step in operands if step.segments and not _broadcasts(record, node, step)]
    axes = {rank - len(step.shape) + _axis(step) for step in leaders}
    for step in operands:
        if step.segments and step not in leaders:
            record.axes.pin(step.segments, f"{by} broadcasts it over other channels")
    if len(axes) != 1:
        for step in leaders:
            record.axes.pin(step.segments, f"{by} ties it to another axis")
        record.add(node, "opaque")
        return
    axis = axes.pop()
    for step in leaders[1:]:
        record.axes.tie(leaders[0].segments, step.segments, by)
    for step in operands:
        if step not in leaders and _size(step, axis - rank) > 1:
            record.axes.pin(leaders[0].segments, f"{by} ties it to a tensor whose channels are fixed")
    record.add(node, _kind(node, operands), axis, leaders[0].segments)


def _kind(node: fx.Node, operands: Sequence[Step]) -> Kind:
    if len(operands) == 1 and len(node.all_input_nodes) == 1:
        return "channelwise" if sum(isinstance(given, fx.Node) for given in node.args) == 1 else "combine"
    one, other = operands[0], operands[-1]
    summed = node.target in _SUMS or getattr(node.target, "__name__", "") in ("add", "iadd")
    plain = summed and len(operands) == 2 and not node.kwargs and (one.shape, one.axis) == (other.shape, other.axis)
    return "add" if plain else "combine"


def _axis(step: Step) -> int:
    assert step.axis is not None
    return step.axis


def _size(step: Step, axis: int) -> int:
    """Size along an axis counted from the end; 1 where the operand has none."""
    return step.shape[axis] if -axis <= len(step.shape) else 1


def _broadcasts(record: Record, node: fx.Node, step: Step) -> bool:
    axis = _axis(step) - len(step.shape)
    return step.shape[axis] != record.results.shapes[node][axis]


def concatenated(record: Record, node: fx.Node, _module: nn.Module | None) -> None:
    given = node.args[0] if node.args else node.kwargs.get("tensors")
    if not isinstance(given, (tuple, list)) or not all(isinstance(read, fx.Node) for read in given):
        raise NotFollowedError("concatenates something other than a list of tensors")
    parts = [record.steps[record.index[read]] for read in given if isinstance(read, fx.Node)]
    axes = {step.axis for step in parts if step.segments}
    if len(axes) != 1:
        for step in parts:
            record.axes.pin(step.segments, f"'{node.name}'{inside(node)} concatenates it with channels along another axis")
        record.add(node, "opaque")
        return
    (axis,) = axes
    assert axis is not None
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if isinstance(dim, int) and dim % len(parts[0].shape) == axis:
        record.add(node, "cat", axis, [segment for step in parts for segment in step.segments or (Segment(None, step.shape[axis]),)])
        return
    for step in parts[1:]:
        record.axes.tie(parts[0].segments or _fixed(parts[0], axis), step.segments or _fixed(step, axis), f"'{node.name}'{inside(node)}")
    record.add(node, "combine", axis, next(step.segments for step in parts if step.segments))


def _fixed(step: Step, axis: int) -> tuple[Segment, ...]:
    return (Segment(None, step.shape[axis]),)


_SUMS = (*_SUMS, torch.add)
