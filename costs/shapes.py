"""Layer shapes, and the wiring that says which channel group each layer reads and writes.

A *unit* is what a device executes as one fused piece: convolution + norm + activation (+ residual addition), linear, or pooling.
A *channel group* is one channel axis whose width can change as a whole: the output of one or more producers (residual sums tie
several), passed through norms and depthwise convolutions, read by consumers.  A *wiring* holds every unit with its groups, so the
layer shapes of the same network at any other widths are a pure function of those widths.  No torch here: the server prices
networks too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Op = Literal["conv2d", "linear", "max_pool", "global_pool"]
Activation = Literal["none", "silu", "relu", "other"]  # other: exact counts only, no profiler measures it


@dataclass(frozen=True, slots=True, order=True)
class LayerShape:
    """Shape of one unit.  Spatial sizes are those of the input; padding is ``kernel // 2`` ("same") for odd kernels.

    ``groups == in_channels == out_channels`` is a depthwise convolution.  ``norm`` and ``residual`` say whether a batch norm and
    a residual addition are fused behind the operation; ``residual`` comes after the norm.
    """

    op: Op
    in_channels: int
    out_channels: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    height: int = 1
    width: int = 1
    norm: bool = False
    activation: Activation = "none"
    residual: bool = False

    @property
    def depthwise(self) -> bool:
        return self.op == "conv2d" and self.groups == self.in_channels == self.out_channels > 1

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        if self.op == "global_pool":
            return 1, 1
        if self.op == "max_pool":
            return self.height // self.stride, self.width // self.stride
        return -(-self.height // self.stride), -(-self.width // self.stride)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of convolutions and linear layers for one image; norm, activation and pooling count zero."""
        if self.op not in ("conv2d", "linear"):
            return 0
        height, width = self.output_size
        return self.in_channels // self.groups * self.out_channels * self.kernel**2 * height * width

    @property
    def parameters(self) -> int:
        """Trainable parameters: weights, the bias of a layer without norm, and scale and shift of a norm."""
        if self.op not in ("conv2d", "linear"):
            return 0
        weights = self.in_channels // self.groups * self.out_channels * self.kernel**2
        return weights + self.out_channels * (2 if self.norm else 1)

    def __str__(self) -> str:
        size = f" at {self.height}x{self.width}" if self.op != "linear" else ""
        depthwise = "depthwise " if self.depthwise else ""
        kernel = f" {self.kernel}x{self.kernel}/{self.stride}" if self.op in ("conv2d", "max_pool") else ""
        fused = "".join(
            f"+{part}" for part, on in (("bn", self.norm), ("add", self.residual), (self.activation, self.activation != "none")) if on
        )
        return f"{depthwise}{self.op}{kernel} {self.in_channels}->{self.out_channels}{size}{fused}"


def check_shape(shape: LayerShape) -> None:
    """ValueError, with value, limit and remedy, for a shape that no layer has."""
    channels = f"{shape.in_channels}->{shape.out_channels}"
    if shape.op == "conv2d":
        if shape.in_channels % shape.groups or shape.out_channels % shape.groups:
            raise ValueError(f"groups is {shape.groups} with channels {channels}; it must divide both: give 1, or one that does")
        return
    if shape.groups != 1:
        raise ValueError(f"groups is {shape.groups}; {shape.op} has 1: leave it out")
    if shape.op == "linear":
        if (shape.kernel, shape.stride, shape.height, shape.width) != (1, 1, 1, 1):
            raise ValueError("a linear layer has kernel, stride, height and width 1: leave them out, or ask for conv2d")
    elif shape.in_channels != shape.out_channels:
        raise ValueError(f"channels are {channels}; {shape.op} gives out what it takes in: make them equal")


@dataclass(frozen=True, slots=True, order=True)
class Counted(LayerShape):
    """A part of a network that no unit describes, by its numbers: for exact counts alone, since no profiler can measure it.

    ``positions`` and ``weights`` are multiply-accumulates and parameters for each pair of an input and an output channel, or with
    ``per_channel`` for each channel; ``biases`` are parameters for each output channel.  ``reason`` says why it is in no unit.
    """

    positions: int = 0
    weights: int = 0
    biases: int = 0
    per_channel: bool = False
    reason: str = ""

    @property
    def depthwise(self) -> bool:
        return self.per_channel

    @property
    def macs(self) -> int:
        return self._pairs * self.positions

    @property
    def parameters(self) -> int:
        return self._pairs * self.weights + (self.in_channels if self.per_channel else self.out_channels) * self.biases

    @property
    def _pairs(self) -> int:
        return self.in_channels if self.per_channel else self.in_channels // self.groups * self.out_channels

    def __str__(self) -> str:
        return f"{self.in_channels}->{self.out_channels} channels (only MACs and parameters: {self.reason})"


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit of a network: its module path, its shape, and the channel groups of its input and output.

    ``input`` is None for the image, ``output`` is None for the class scores.  A flattened input has ``in_multiple`` columns per channel.
    """

    name: str
    shape: LayerShape
    input: int | None
    output: int | None
    in_multiple: int = 1

    def at(self, widths: Sequence[int]) -> LayerShape:
        """The shape of this unit when the channel groups have these widths."""
        shape = self.shape
        in_channels = shape.in_channels if self.input is None else widths[self.input] * self.in_multiple
        out_channels = shape.out_channels if self.output is None else widths[self.output]
        groups = in_channels if shape.depthwise else shape.groups
        return replace(shape, in_channels=in_channels, out_channels=out_channels, groups=groups)


@dataclass(frozen=True, slots=True)
class Wiring:
    """All units of a network in execution order, and the width of each channel group."""

    widths: tuple[int, ...]
    units: tuple[Unit, ...]

    def shapes(self, widths: Sequence[int] | None = None) -> tuple[LayerShape, ...]:
        """The layer shapes at ``widths`` (default: the present ones).  ValueError if their number does not match the groups."""
        widths = self.widths if widths is None else widths
        if len(widths) != len(self.widths):
            raise ValueError(f"{len(widths)} widths for {len(self.widths)} channel groups; give one width per group")
        return tuple(unit.at(widths) for unit in self.units)
