"""Channel groups: the channel axes of a model whose widths can change, found by tracing it.

Walking the steps of the model, a *mix* (convolution, linear) starts a new channel axis.  Everything else passes the axis of its input
on, ties those of several inputs into one, lines them up, or can't be followed: then what it reads is fixed, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from costs.shapes import Unit, Wiring
from growth.counts import count
from growth.record import Record
from growth.steps import Segment, Step, TraceError
from growth.tracing import trace
from growth.units import NoUnitError, wire

__all__ = ["ChannelGraph", "ChannelGroup", "Fixed", "Place", "TraceError", "find_groups"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an axis of a module or parameter holds the channels of a group: ``columns`` entries for each from ``offset`` on.

    ``columns`` is above 1 after a flatten.  ``beside`` counts the axis's other entries: other groups in a concatenation, or fixed ones.
    """

    name: str
    columns: int = 1
    offset: int = 0
    beside: int = 0
    axis: int = 0  # of a scale, 0 or 1

    def entries(self, channels: Tensor) -> Tensor:
        """Those of these channels of the group, [*channels, columns]."""
        return self.offset + channels.unsqueeze(-1) * self.columns + torch.arange(self.columns, device=channels.device)


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """One channel axis.  Its offspring are summed again at the inputs of its consumers: the merge points.

    A channel's parameter theta_k is row k of each producer's weight, flattened and concatenated in the order of ``producers``, no bias.
    """

    width: int
    producers: tuple[str, ...]  # convolutions and linear layers that write it, in execution order
    passengers: tuple[Place, ...]  # rows of the batch norms and depthwise convolutions it passes through
    consumers: tuple[Place, ...]  # input columns of the layers that read it
    scales: tuple[Place, ...] = ()  # parameters of no layer that it is combined with, along their axis ``axis``

    @property
    def rows(self) -> tuple[Place, ...]:
        """Where it is written: in its producers and its passengers."""
        return (*map(Place, self.producers), *self.passengers)


@dataclass(frozen=True, slots=True)
class Fixed:
    """A module with weights whose channels can't be split, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class ChannelGraph:
    """What a model is to growth: its groups, numbered by first producer, the layers that can't grow, its steps (for scoring), and its
    wiring (for costs).

    ``output`` is the index of the step that gives the class scores.
    """

    groups: tuple[ChannelGroup, ...]
    fixed: tuple[Fixed, ...] = ()
    steps: tuple[Step, ...] = ()
    output: int = -1
    wiring: Wiring = field(default_factory=lambda: Wiring((), ()))


def find_groups(model: nn.Module, example: Tensor) -> ChannelGraph:
    """The channel groups of ``model``, traced with ``example`` (any batch it accepts; only its shape counts).

    TraceError for a model that can't be traced, or has no channels to split.  The model is left as it was found.
    """
    record, output = trace(model, example)
    _pin_unread(record)
    steps, fixed = _numbered(record), _fixed(record)
    count = 1 + max((segment.group for step in steps for segment in step.segments if segment.group is not None), default=-1)
    if count == 0:
        reasons = "; ".join(f"'{one.path}': {one.reason}" for one in fixed)
        raise TraceError(f"the model has no channels to split between its image and its class scores; give it a hidden layer ({reasons})")
    groups = tuple(_group(steps, number) for number in range(count))
    wiring = Wiring(tuple(group.width for group in groups), _units(model, steps, example))
    return ChannelGraph(groups, fixed, steps, output, wiring)


def _units(model: nn.Module, steps: Sequence[Step], example: Tensor) -> tuple[Unit, ...]:
    """What a device executes, where that can be said; else counts alone."""
    try:
        return wire(model, steps)
    except NoUnitError as error:
        return count(model, steps, example, str(error))


def _pin_unread(record: Record) -> None:
    read = {record.axes.root(segment.group) for step in record.steps if step.kind == "mix"
            for segment in record.steps[step.inputs[0]].segments if segment.group is not None}  # fmt: skip
    for step in record.steps:
        for segment in step.segments:
            if segment.group is not None and record.axes.root(segment.group) not in read:
                record.axes.pin([segment], "no convolution or linear layer reads its channels")


def _numbered(record: Record) -> tuple[Step, ...]:
    """The steps with group numbers, in order of the first producer; None for axes that can't grow."""
    numbers: dict[int, int] = {}

    def number(segment: Segment) -> Segment:
        if segment.group is None or record.axes.reason(segment.group) is not None:
            return replace(segment, group=None)
        return replace(segment, group=numbers.setdefault(record.axes.root(segment.group), len(numbers)))

    return tuple(replace(step, segments=tuple(map(number, step.segments))) for step in record.steps)


def _fixed(record: Record) -> tuple[Fixed, ...]:
    """In execution order, a module once."""
    reasons = {
        step.path: record.opaque.get(step.path) if step.kind != "mix" else record.axes.reason(cast(int, step.segments[0].group))
        for step in record.steps
        if step.kind == "mix" or _has_weights(record.model, step)
    }
    return tuple(Fixed(path, reason) for path, reason in reasons.items() if reason is not None)


def _has_weights(model: nn.Module, step: Step) -> bool:
    if step.call is None or step.call.op != "call_module":
        return False
    return any(parameter.dim() > 1 for parameter in model.get_submodule(step.path).parameters())


def _group(steps: Sequence[Step], number: int) -> ChannelGroup:
    own = [step for step in steps if any(segment.group == number for segment in step.segments)]
    producers = [step for step in own if step.kind == "mix"]
    passengers = [place for step in own if step.kind in ("norm", "depthwise") for place in _places(step.path, step.segments, number)]
    consumers = [place for step in steps if step.kind == "mix" for place in _places(step.path, steps[step.inputs[0]].segments, number)]
    scales = [
        replace(place, axis=cast(int, step.axis)) for step in own if step.kind == "parameter"
        for place in _places(step.path, step.segments, number)
    ]  # fmt: skip
    width = producers[0].segments[0].width
    return ChannelGroup(width, tuple(step.path for step in producers), tuple(passengers), tuple(consumers), tuple(scales))


def _places(name: str, segments: Sequence[Segment], number: int) -> Iterator[Place]:
    total, offset = sum(segment.entries for segment in segments), 0
    for segment in segments:
        if segment.group == number:
            yield Place(name, segment.columns, offset, total - segment.entries)
        offset += segment.entries
