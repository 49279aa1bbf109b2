"""Operations on several values: elementwise ones tie their channels, a concatenation lines them up."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from growth.record import NotFollowedError, Record
from growth.steps import Kind, Segment, Step, inside

SUMS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
DIFFERENCES: tuple[Any, ...] = (operator.sub, operator.isub, torch.sub, "sub", "sub_")
PRODUCTS: tuple[Any, ...] = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
RATIOS: tuple[Any, ...] = (operator.truediv, operator.itruediv, torch.div, "div", "div_")


def elementwise(record: Record, node: fx.Node, _module: nn.Module | None) -> None:
    """A smooth function of one or more tensors, which may broadcast, and of numbers."""
    if any(read in record.results.numbers for read in node.all_input_nodes):
        raise NotFollowedError("computes with a size, which growth may change")
    operands = [record.steps[source] for source in record.tensors(node)]
    by, rank = f"'{node.name}'{inside(node)}", len(record.shape(node))
    whole = [step for step in operands if step.segments and not _broadcasts(record, node, step)]
    for step in operands:
        if step not in whole:
            record.axes.pin(step.segments, f"{by} broadcasts it over other channels")
    axes = {_from_end(step) + rank for step in whole}
    if len(axes) != 1:
        for step in whole:
            record.axes.pin(step.segments, f"{by} ties it to another axis")
        record.add(node, "opaque")
        return
    (axis,) = axes
    leader, *others = whole
    for step in others:
        record.axes.tie(leader.segments, step.segments, by)
    for step in operands:
        if step not in whole and _size(step, axis - rank) > 1:
            own = axis - rank + len(step.shape)
            if step.kind == "parameter" and own <= 1:
                record.adopt(step, own, leader.segments)
            else:
                record.axes.pin(leader.segments, f"{by} ties it to a tensor whose channels are fixed")
    record.add(node, _kind(node, operands), axis, leader.segments)


def _kind(node: fx.Node, operands: Sequence[Step]) -> Kind:
    """A sum of two equals, a linear function of one tensor, or anything else."""
    tensors = sum(isinstance(given, fx.Node) for given in node.args)
    if node.target in SUMS and tensors == 2 and len(operands) == 2 and not node.kwargs:
        one, other = operands
        return "add" if (one.shape, one.axis) == (other.shape, other.axis) else "elementwise"
    divided = node.target in RATIOS and isinstance(node.args[0], fx.Node)
    linear = tensors == 1 and (divided or node.target in (*SUMS, *DIFFERENCES, *PRODUCTS, operator.neg))
    return "channelwise" if linear else "elementwise"


def _from_end(step: Step) -> int:
    """The channel axis, counted from the end, as broadcasting does."""
    assert step.axis is not None
    return step.axis - len(step.shape)


def _size(step: Step, axis: int) -> int:
    """Size along an axis counted from the end; 1 where the operand has none."""
    return step.shape[axis] if -axis <= len(step.shape) else 1


def _broadcasts(record: Record, node: fx.Node, step: Step) -> bool:
    """Whether the operand is repeated along its own channel axis."""
    axis = _from_end(step)
    return step.shape[axis] != record.shape(node)[axis]


def concatenated(record: Record, node: fx.Node, _module: nn.Module | None) -> None:
    """Line the channels up, or along another axis tie them."""
    given = node.args[0] if node.args else node.kwargs.get("tensors")
    if not isinstance(given, (tuple, list)) or not all(isinstance(read, fx.Node) for read in given):
        raise NotFollowedError("concatenates something other than a list of tensors")
    parts = [record.steps[record.index[read]] for read in given if isinstance(read, fx.Node)]
    axes = {step.axis for step in parts if step.axis is not None}
    if len(axes) != 1:
        raise NotFollowedError("concatenates them with channels along another axis" if axes else "reads none of them")
    (axis,) = axes
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    segments = [step.segments or (Segment(None, step.shape[axis]),) for step in parts]
    if isinstance(dim, int) and dim % len(parts[0].shape) == axis:
        record.add(node, "cat", axis, [segment for part in segments for segment in part])
        return
    for part in segments[1:]:
        record.axes.tie(segments[0], part, f"'{node.name}'{inside(node)}")
    record.add(node, "elementwise", axis, segments[0])
