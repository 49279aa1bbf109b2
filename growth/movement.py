"""Operations that only move entries about (flatten, view, permute, slices, ...), followed by doing them to a tensor of channel numbers."""

from __future__ import annotations

import operator
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from growth.record import NotFollowedError, Record, call_of
from growth.steps import Call, Slot, Step, key_of

_SIZED = ("view", "reshape", "expand", torch.reshape)  # take sizes as numbers
_IN_ORDER = (
    nn.Flatten, torch.flatten, "flatten", "view", "reshape", torch.reshape, "contiguous",
    torch.squeeze, "squeeze", torch.unsqueeze, "unsqueeze",
)  # fmt: skip
MOVEMENTS = (*_IN_ORDER, "expand", torch.permute, "permute", torch.transpose, "transpose", operator.getitem)


def moved(record: Record, node: fx.Node, module: nn.Module | None) -> None:
    """Add the step with its channels where the movement takes them."""
    before = record.steps[record.index[node.all_input_nodes[0]]]
    shape = record.shape(node)
    if not before.segments:
        record.add(node, "opaque")
        return
    if len(record.tensors(node)) > 1:
        raise NotFollowedError("moves them by the values of another tensor")
    axis, columns = _follow(record, node, before)
    _check_sizes(node, axis)
    segments = [replace(segment, columns=segment.columns * columns) for segment in before.segments]
    in_order = key_of(node, module) in _IN_ORDER  # no entry changes its place in memory
    if in_order and shape == before.shape:
        record.alias(node, record.source(node))
    elif in_order and before.axis == 1 and len(shape) == 2 and axis == 1:
        record.add(node, "flatten", 1, segments, call=Call("call_function", torch.flatten, (Slot(0), 1)))
    else:
        record.add(node, "channelwise", axis, segments)


def _follow(record: Record, node: fx.Node, before: Step) -> tuple[int, int]:
    """The channel axis of the result, and how many of its entries come from each of those before, side by side."""
    assert before.axis is not None
    entries = before.shape[before.axis]
    numbers = torch.arange(entries).view(-1, *[1] * (len(before.shape) - before.axis - 1)).expand(before.shape).contiguous()
    values = [record.results.numbers.get(read, numbers) for read in node.all_input_nodes]
    after: Tensor = call_of(node)(record.model, values)
    for axis, size in enumerate(after.shape):
        along = after.movedim(axis, -1)
        expected = torch.arange(entries).repeat_interleave(size // entries)
        if entries > 1 and size == len(expected) and torch.equal(along, expected.expand(along.shape)):
            return axis, size // entries
    raise NotFollowedError(f"does not keep the {entries} channels side by side along one axis")


def _check_sizes(node: fx.Node, axis: int) -> None:
    """Where sizes are given, that of the channel axis must follow from the input's, or it would no longer fit once they grow."""
    if node.target not in _SIZED:
        return
    sizes = node.args[1] if len(node.args) > 1 and isinstance(node.args[1], (tuple, list)) else node.args[1:]
    size = sizes[axis] if axis < len(sizes) else node.kwargs
    if not isinstance(size, fx.Node) and size != -1:
        raise NotFollowedError(f"has the size of their axis written as {size}; write -1 or take it from x.shape")
