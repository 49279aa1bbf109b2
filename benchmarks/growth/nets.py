"""The small network of all experiments: MobileNetV1's stem and blocks, six channel groups, two halvings of a 16-pixel image.

Facts known from earlier work are about this network, so results can be set beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from costs.families import Network
from costs.model import Macs
from costs.shapes import LayerShape, Unit, Wiring
from growth.controls import Widths

STRIDES = (1, 1, 2, 1, 2, 1)  # of the stem, then of each block's depthwise convolution
PYRAMID: Widths = (4, 4, 8, 8, 12, 12)  # what an expert would do: 42 k MACs, doubled 113 k, four times 339 k
CONSTANT: Widths = (5,) * len(STRIDES)
IMAGE_SIZE = 16


@dataclass(frozen=True, slots=True)
class SmallMobileNet(Network):
    """A network as data, with a wiring of its own: ``family`` only names the kind of its blocks."""

    def wiring(self) -> Wiring:
        """The units and channel groups."""
        size, units, source = self.image_size, list[Unit](), self.in_channels
        for group, (width, stride) in enumerate(zip(self.widths, STRIDES, strict=True)):
            if group == 0:
                units.append(Unit("stem", self._conv(source, width, 3, stride, 1, size), None, 0))
            else:
                depthwise, pointwise = f"blocks.{group - 1}.depthwise", f"blocks.{group - 1}.pointwise"
                units.append(Unit(depthwise, self._conv(source, source, 3, stride, source, size), group - 1, group - 1))
                size //= stride
                units.append(Unit(pointwise, self._conv(source, width, 1, 1, 1, size), group - 1, group))
            source = width
        last = len(self.widths) - 1
        units.append(Unit("pool", LayerShape("global_pool", source, source, 1, 1, 1, size, size), last, last))
        units.append(Unit("classifier", LayerShape("linear", source, self.classes), last, None))
        return Wiring(self.widths, tuple(units))

    def _conv(self, source: int, width: int, kernel: int, stride: int, groups: int, size: int) -> LayerShape:
        return LayerShape("conv2d", source, width, kernel, stride, groups, size, size, self.norm, self.activation)


def small(widths: Widths, classes: int) -> SmallMobileNet:
    """For grey images of 16 pixels."""
    return SmallMobileNet("mobilenet_v1", widths, IMAGE_SIZE, 1, classes)


def macs(network: Network) -> int:
    """Of one image."""
    return int(Macs().network(network.wiring().shapes()).value)


def times(network: Network, factor: float) -> Network:
    """The same network with all widths times ``factor``."""
    return replace(network, widths=tuple(round(factor * width) for width in network.widths))
