"""Network families as data: a list of widths in, a wiring out.  ``growth.networks`` builds the torch modules from the same wiring.

mobilenet_v1: Howard et al. 2017 (arXiv 1704.04861).  mobilenet_v2: Sandler et al. 2018 (arXiv 1801.04381), with plain identity skips.
plain: VGG-like, 3x3 convolutions and max pooling.

Small images get fewer halvings: the last ones of the family's list are kept, as many as leave a final map at least two pixels wide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from costs.shapes import Activation, LayerShape, Unit, Wiring

Family = Literal["mobilenet_v1", "mobilenet_v2", "plain"]

IMAGE_SIZES = range(8, 225)
MIN_WIDTH = 2  # with one channel a depthwise convolution and a full one could not be told apart
MAX_WIDTH = 4096

_V1_WIDTHS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
_V1_HALVINGS = (0, 2, 4, 6, 12)  # stem and blocks, counted from 0
# expansion factor, output channels, repeats, stride of the first block (table 2 of the paper)
_V2_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_PLAIN_WIDTHS = (64, 128, 256, 256, 512, 512)


@dataclass(frozen=True, slots=True)
class Network:
    """A network as data: everything needed to build it again.  ``widths`` has one entry per channel group."""

    family: Family
    widths: tuple[int, ...]
    image_size: int
    in_channels: int
    classes: int
    activation: Activation = "silu"
    norm: bool = True  # a batch norm behind every convolution

    def wiring(self) -> Wiring:
        """The units and channel groups.  ValueError with value, limit and remedy when a field is out of range."""
        _known("family", self.family, tuple(_FAMILIES))
        _known("activation", self.activation, ("silu", "relu"))
        for name, value, low, high in (
            ("image_size", self.image_size, IMAGE_SIZES[0], IMAGE_SIZES[-1]),
            ("in_channels", self.in_channels, 1, 3),
            ("classes", self.classes, 2, 100_000),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; it must lie between {low} and {high}")
        expected = len(default_widths(self.family))
        if self.family == "plain":
            if not 1 <= len(self.widths) <= 16:
                raise ValueError(f"plain has {len(self.widths)} widths; give 1 to 16, one per convolution")
        elif len(self.widths) != expected:
            raise ValueError(f"{self.family} has {len(self.widths)} widths; give {expected}, one per channel group")
        for width in self.widths:
            if not MIN_WIDTH <= width <= MAX_WIDTH:
                raise ValueError(f"width is {width}; it must lie between {MIN_WIDTH} and {MAX_WIDTH}")
        return _FAMILIES[self.family](self)


def _known(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")


def default_widths(family: Family, multiplier: float = 1.0) -> tuple[int, ...]:
    """The published widths times ``multiplier``, rounded, at least 2 (no rounding to multiples of 8).  ValueError out of range."""
    _known("family", family, tuple(_FAMILIES))
    if not 0 < multiplier < math.inf:
        raise ValueError(f"width multiplier is {multiplier}; it must be above 0 and finite")
    if family == "mobilenet_v1":
        base: Sequence[int] = _V1_WIDTHS
    elif family == "plain":
        base = _PLAIN_WIDTHS
    else:
        base = _v2_widths()
    return tuple(max(MIN_WIDTH, round(width * multiplier)) for width in base)


def largest_widths(widths: Sequence[int], max_growth: float) -> tuple[int, ...]:
    """The widest each channel group may become.  ValueError when ``max_growth`` would shrink them, or is not finite."""
    if not 1 <= max_growth < math.inf:
        raise ValueError(f"max_growth is {max_growth}; it is the largest multiple of a width: give at least 1")
    return tuple(min(MAX_WIDTH, int(width * max_growth)) for width in widths)


def _v2_widths() -> list[int]:
    widths, previous = [32], 32
    for expansion, out, repeats, _ in _V2_STAGES:
        for block in range(repeats):
            if expansion > 1:
                widths.append(previous * expansion)
            if block == 0:
                widths.append(out)
            previous = out
    return [*widths, 1280]


@dataclass(slots=True)
class _Builder:
    """Appends units and follows the spatial size and the channel group of the running activation."""

    network: Network
    size: int = 0
    group: int | None = None
    units: list[Unit] = field(default_factory=list)
    groups: int = 0

    def __post_init__(self) -> None:
        self.size = self.network.image_size

    def _width(self, group: int | None) -> int:
        return self.network.in_channels if group is None else self.network.widths[group]

    def new_group(self) -> int:
        self.groups += 1
        return self.groups - 1

    def conv(self, name: str, output: int, kernel: int, stride: int = 1, activation: Activation = "none", residual: bool = False) -> None:
        shape = LayerShape(
            "conv2d", self._width(self.group), self._width(output), kernel, stride,
            1, self.size, self.size, self.network.norm, activation, residual,
        )  # fmt: skip
        self._append(name, shape, output)

    def depthwise(self, name: str, stride: int, activation: Activation) -> None:
        width = self._width(self.group)
        shape = LayerShape("conv2d", width, width, 3, stride, width, self.size, self.size, self.network.norm, activation)
        self._append(name, shape, self.group)

    def max_pool(self, name: str) -> None:
        width = self._width(self.group)
        self._append(name, LayerShape("max_pool", width, width, 2, 2, 1, self.size, self.size), self.group)

    def head(self) -> Wiring:
        width = self._width(self.group)
        self._append("pool", LayerShape("global_pool", width, width, 1, 1, 1, self.size, self.size), self.group)
        self.units.append(Unit("classifier", LayerShape("linear", width, self.network.classes), self.group, None))
        return Wiring(self.network.widths, tuple(self.units))

    def _append(self, name: str, shape: LayerShape, output: int | None) -> None:
        self.units.append(Unit(name, shape, self.group, output))
        self.group = output
        self.size = shape.output_size[0]


def _kept_halvings(image_size: int, positions: Sequence[int]) -> set[int]:
    """The positions that still halve: the last ones, as many as leave at least 2 pixels."""
    count = min(len(positions), max(0, (image_size // 2).bit_length() - 1))
    return set(positions[len(positions) - count :])


def _mobilenet_v1(network: Network) -> Wiring:
    build, act = _Builder(network), network.activation
    halve = _kept_halvings(network.image_size, _V1_HALVINGS)
    build.conv("stem", build.new_group(), 3, 2 if 0 in halve else 1, act)
    for block in range(1, len(network.widths)):
        build.depthwise(f"blocks.{block - 1}.depthwise", 2 if block in halve else 1, act)
        build.conv(f"blocks.{block - 1}.pointwise", build.new_group(), 1, 1, act)
    return build.head()


def _mobilenet_v2(network: Network) -> Wiring:
    build, act = _Builder(network), network.activation
    starts = [(stage, block) for stage, (_, _, repeats, _) in enumerate(_V2_STAGES) for block in range(repeats)]
    strided = [i for i, (stage, block) in enumerate(starts) if block == 0 and _V2_STAGES[stage][3] == 2]
    halve = _kept_halvings(network.image_size, [-1, *strided])
    build.conv("stem", build.new_group(), 3, 2 if -1 in halve else 1, act)
    for index, (stage, block) in enumerate(starts):
        expansion, source = _V2_STAGES[stage][0], build.group
        if expansion > 1:
            build.conv(f"blocks.{index}.expand", build.new_group(), 1, 1, act)
        build.depthwise(f"blocks.{index}.depthwise", 2 if index in halve else 1, act)
        output = build.new_group() if block == 0 or source is None else source
        build.conv(f"blocks.{index}.project", output, 1, residual=block > 0)
    build.conv("last", build.new_group(), 1, 1, act)
    return build.head()


def _plain(network: Network) -> Wiring:
    build, count = _Builder(network), len(network.widths)
    halve = _kept_halvings(network.image_size, range(count))
    for index in range(count):
        build.conv(f"blocks.{index}.conv", build.new_group(), 3, 1, network.activation)
        if index in halve:
            build.max_pool(f"blocks.{index}.pool")
    return build.head()


_FAMILIES: dict[Family, Callable[[Network], Wiring]] = {
    "mobilenet_v1": _mobilenet_v1,
    "mobilenet_v2": _mobilenet_v2,
    "plain": _plain,
}
