"""Channel groups: the channel axes of a model whose widths can change, found by tracing it.

Walking the steps of the model, a *mix* (convolution, linear) starts a new channel axis; everything else passes its input's axis on, and
a sum ties the axes of its operands into one (union-find).  The image's axis and the class scores' axis can't be split.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from costs.shapes import Wiring
from growth.steps import Step, TraceError
from growth.tracing import trace
from growth.units import wire

__all__ = ["ChannelGraph", "ChannelGroup", "Consumer", "TraceError", "find_groups"]


@dataclass(frozen=True, slots=True)
class Consumer:
    """A layer that reads the group: its module path, and how many of its input columns belong to one channel (above 1 after a flatten)."""

    name: str
    columns: int


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """One channel axis.  Its offspring are summed again at the inputs of its consumers: the merge points.

    A channel's parameter theta_k is row k of each producer's weight, flattened and concatenated in the order of ``producers``, no bias.
    """

    width: int
    producers: tuple[str, ...]  # convolutions and linear layers that write it, in execution order
    passengers: tuple[str, ...]  # batch norms and depthwise convolutions it passes through
    consumers: tuple[Consumer, ...]


@dataclass(frozen=True, slots=True)
class ChannelGraph:
    """What a model is to growth: its groups, numbered by first producer, its wiring (for costs) and its steps (for scoring).

    ``step_groups`` has the group of each step's output, None for the image's and the class scores' axis.
    """

    groups: tuple[ChannelGroup, ...]
    wiring: Wiring
    steps: tuple[Step, ...]
    step_groups: tuple[int | None, ...]


def find_groups(model: nn.Module, example: Tensor) -> ChannelGraph:
    """The channel groups of ``model``, traced with ``example`` (any batch it accepts; only its shape counts).

    TraceError names what can't be followed, and a remedy.  The model is left as it was found.
    """
    steps = trace(model, example)
    step_groups = _number(steps, _axes(steps))
    count = max((group for group in step_groups if group is not None), default=-1) + 1
    if count == 0:
        raise TraceError("the model has no channels to split between its image and its class scores; give it a hidden layer")
    groups = tuple(_group(steps, step_groups, number) for number in range(count))
    widths = tuple(group.width for group in groups)
    return ChannelGraph(groups, Wiring(widths, wire(model, steps, step_groups)), tuple(steps), step_groups)


def _axes(steps: list[Step]) -> list[int]:
    """The channel axis of each step's output, named by the first step that has it."""
    parent = list(range(len(steps)))

    def root(step: int) -> int:
        while parent[step] != step:
            step = parent[step]
        return step

    for index, step in enumerate(steps):
        if step.kind not in ("image", "mix"):
            tied = sorted({root(source) for source in step.inputs})
            for axis in (*tied, index):
                parent[axis] = tied[0]
    return [root(index) for index in range(len(steps))]


def _number(steps: list[Step], axes: list[int]) -> tuple[int | None, ...]:
    """Group numbers in order of the first producer; None for axes that can't be split."""
    fixed = {axes[0], axes[-1]} | {axis for axis, step in zip(axes, steps, strict=True) if step.kind == "class_scores"}
    numbers: dict[int, int] = {}
    for axis in axes:
        if axis not in fixed:
            numbers.setdefault(axis, len(numbers))
    return tuple(numbers.get(axis) for axis in axes)


def _group(steps: list[Step], step_groups: tuple[int | None, ...], number: int) -> ChannelGroup:
    members = [step for step, group in zip(steps, step_groups, strict=True) if group == number]
    producers = [step for step in members if step.kind == "mix"]
    readers = [step for step in steps if step.kind == "mix" and step_groups[step.inputs[0]] == number]
    return ChannelGroup(
        producers[0].channels,
        tuple(step.path for step in producers),
        tuple(step.path for step in members if step.kind in ("norm", "depthwise")),
        tuple(Consumer(step.path, steps[step.inputs[0]].columns) for step in readers),
    )
