"""Measured layer costs of one device: exact hits, a step model between measured widths, refusal outside.

The cost of a layer is a staircase in its channels, because kernels work in blocks (16 float32 lanes on AVX-512).  So a width that
was not measured is priced as the next measured width above it, never by a line between two points, and the answer is marked
``interpolated``.  Its interval reaches over both measured neighbours.

Layers measured alone run on warmer caches than inside a network.  A *calibration* corrects that with one factor per quantity and
setting, fitted to whole networks (anchors) measured in the same session; ``TableCost`` applies it.
"""

from __future__ import annotations

import csv
import io
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from costs.model import Cost, CostName, Kind, estimated
from costs.shapes import LayerShape, Wiring

# 95 % of a normal distribution lie within this many mean absolute errors: 1.96 standard deviations, each sqrt(pi / 2) of them
_HALF_WIDTH_PER_MEAN_ERROR = 1.96 * 1.2533

_SAME_LAYER_SUM = 0.05  # relative


class NoCost(LookupError):  # noqa: N818 - an answer the table gives, named for what it says
    """The table holds no answer; the message names what was asked, how far the table reaches, and the remedy."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How a network is executed: images per call, CPU threads, number format, memory layout."""

    batch: int = 1
    threads: int = 1
    dtype: str = "float32"
    layout: str = "contiguous"

    def __str__(self) -> str:
        plain = "" if (self.dtype, self.layout) == ("float32", "contiguous") else f", {self.dtype}, {self.layout}"
        return f"batch {self.batch}, {self.threads} thread{'s' if self.threads > 1 else ''}{plain}"


@dataclass(frozen=True, slots=True)
class CostEntry:
    """One number with its origin: what was measured, how often, by which meter, when (ISO 8601, UTC), and its 95 % interval.

    ``scope`` is what the meter covers.  An energy is gross, all that the scope drew meanwhile; ``net``, known where energy was measured, is
    without its idle power.  ``sensor_error`` is the relative error that all readings of the meter share, which no interval holds.
    """

    shape: LayerShape
    setting: Setting
    quantity: CostName
    value: float
    unit: str
    kind: Kind
    low: float | None
    high: float | None
    meter: str
    repetitions: int
    rejected: int
    measured_at: str
    scope: str = "process"
    net: float | None = None
    net_low: float | None = None
    net_high: float | None = None
    sensor_error: float | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """The interval; an entry without one is taken as a point."""
        return (self.value if self.low is None else self.low, self.value if self.high is None else self.high)


@dataclass(frozen=True, slots=True)
class Anchor:
    """A whole network: the sum of its layers' entries, and what it measured as a whole (95 % interval)."""

    name: str
    widths: tuple[int, ...]
    layer_sum: float
    measured: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """measured = ``scale`` * layer sum.  ``error_percent`` is the mean absolute error when each anchor is left out of the fit.

    ``meter``, ``scope`` and ``kind`` are those of the anchors.
    """

    quantity: CostName
    setting: Setting
    scale: float
    error_percent: float
    anchors: tuple[Anchor, ...]
    meter: str = "wall_clock"
    scope: str = "process"
    kind: Kind = "measured"

    @property
    def kind_of_sums(self) -> Kind:
        """Of a layer sum on this scale: only anchors that were measured calibrate it, an estimate stays one."""
        return "calibrated_sum" if self.kind == "measured" else self.kind


_Key = tuple[LayerShape, Setting, CostName]


class CostTable:
    """The cost entries and calibrations of one device.  A later entry or calibration of the same key replaces an earlier one."""

    def __init__(self, device: str, entries: Iterable[CostEntry] = (), calibrations: Iterable[Calibration] = ()) -> None:
        self.device = device
        self._entries: dict[_Key, CostEntry] = {(e.shape, e.setting, e.quantity): e for e in entries}
        self._calibrations = {(c.quantity, c.setting): c for c in calibrations}
        self._widths: dict[_Key, _Widths] = defaultdict(_Widths)
        for shape, setting, quantity in self._entries:
            self._widths[_without_widths(shape), setting, quantity].add(shape)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[CostEntry]:
        return iter(self._entries.values())

    @property
    def calibrations(self) -> tuple[Calibration, ...]:
        return tuple(self._calibrations.values())

    def entry(self, shape: LayerShape, setting: Setting, quantity: CostName) -> CostEntry:
        """The measured entry, or one of kind ``interpolated`` from the next measured widths.  NoCost beyond what was measured."""
        return self._entries.get((shape, setting, quantity)) or self._step(shape, setting, quantity)

    def edges(self, shape: LayerShape, setting: Setting, quantity: CostName) -> tuple[Sequence[int], Sequence[int]]:
        """The measured input and output widths of layers of this form, rising: between two of them the step model is constant."""
        widths = self._widths.get((_without_widths(shape), setting, quantity))
        return widths.axes() if widths else ((), ())

    def calibration(self, quantity: CostName, setting: Setting) -> Calibration:
        """The calibration of a quantity in a setting.  NoCost if that setting was never anchored."""
        found = self._calibrations.get((quantity, setting))
        if found is None:
            known = "; ".join(str(s) for q, s in self._calibrations if q == quantity)
            state = f"was profiled for {known}" if known else "no whole network was measured" if self._entries else "was not profiled"
            command = "wattle profile --meter METER" if quantity == "energy_mj" else "wattle profile"
            raise NoCost(f"{quantity} ({setting}) on {self.device}: {state}; run `{command}` with this batch size and thread count")
        return found

    def _step(self, shape: LayerShape, setting: Setting, quantity: CostName) -> CostEntry:
        widths = self._widths.get((_without_widths(shape), setting, quantity))
        above = widths.above(shape) if widths else None
        if widths is None or above is None:
            reach = f"the widest measured is {widths.largest()}" if widths else "no layer of this form was measured"
            raise NoCost(
                f"no {quantity} for {shape} ({setting}) on {self.device}: {reach}; "
                f"run `wattle profile` for this network, image size and setting, with a max_growth that covers these widths"
            )
        upper = self._entries[above, setting, quantity]
        below = widths.below(shape)
        lower = (0.0, 0.0) if below is None else self._entries[below, setting, quantity].interval
        # Not simply (lower, upper): depthwise costs can fall towards the next multiple of the vector width.
        low, high = min(lower[0], upper.interval[0]), max(lower[1], upper.interval[1])
        kind: Kind = upper.kind if estimated(upper.kind) else "interpolated"
        return replace(upper, shape=shape, kind=kind, low=low, high=high, net=None, net_low=None, net_high=None)

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` gives an equal table."""
        return {
            "device": self.device,
            "entries": [asdict(entry) for entry in self],
            "calibrations": [asdict(calibration) for calibration in self.calibrations],
        }

    def to_csv(self) -> str:
        """The entries, one per line, with a column per field; calibrations are left out."""
        rows = [{"device": self.device, **_flat(entry)} for entry in self]
        text = io.StringIO()
        writer = csv.DictWriter(text, ["device", *_flat_names()], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CostTable:
        """A table from ``to_json`` data.  ValueError if fields are missing or unknown."""
        try:
            return cls(data["device"], map(_entry, data["entries"]), map(_calibration, data["calibrations"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is not a cost table ({error}); expected the output of CostTable.to_json") from error


@dataclass(frozen=True, slots=True)
class TableCost:
    """A cost model (``costs.model.CostModel``) that answers from a table: calibrated sums of one quantity in one setting.

    Intervals: a layer carries its entry's, scaled.  For a network the layers' half-widths add up (entries of one session share
    their noise, and equal layers share one entry, so they can't be taken as independent) and are combined in quadrature with
    the calibration's leave-one-out error, widened from a mean to 95 %.
    """

    table: CostTable
    quantity: CostName
    setting: Setting
    _known: dict[LayerShape, Cost] = field(default_factory=dict, init=False, repr=False, compare=False)  # selection asks again and again

    @property
    def name(self) -> CostName:
        return self.quantity

    @property
    def unit(self) -> str:
        return UNITS[self.quantity]

    def layer(self, shape: LayerShape) -> Cost:
        """What this layer adds to a network.  NoCost if the table does not reach it."""
        known = self._known.get(shape)
        if known is None:
            scale, entry = self._calibration.scale, self.table.entry(shape, self.setting, self.quantity)
            low, high = entry.interval
            known = self._known[shape] = self._cost(scale * entry.value, scale * low, scale * high)
        return known

    def edges(self, shape: LayerShape) -> tuple[Sequence[int], Sequence[int]]:
        """Where the cost of such a layer can change (``costs.model.Stepped``)."""
        return self.table.edges(shape, self.setting, self.quantity)

    def network(self, shapes: Sequence[LayerShape]) -> Cost:
        """The sum over the layers.  NoCost if the table does not reach one of them."""
        layers = [self.layer(shape) for shape in shapes]
        value = sum(layer.value for layer in layers)
        calibration_half = _HALF_WIDTH_PER_MEAN_ERROR * self._calibration.error_percent / 100 * value
        below = sum(layer.value - layer.low for layer in layers if layer.low is not None)
        above = sum(layer.high - layer.value for layer in layers if layer.high is not None)
        low, high = value - (below**2 + calibration_half**2) ** 0.5, value + (above**2 + calibration_half**2) ** 0.5
        return self._cost(value, max(0.0, low), high)

    def calibrated_on(self, wiring: Wiring) -> bool:
        """Whether the scale was fitted to networks of this wiring.  A device has one scale per setting, that of its last profile.

        It was, if pricing the anchors' widths in this wiring gives their layer sums again (nearly: another number of classes is no other
        network).
        """
        return all(self._layer_sum_is_known(anchor, wiring) for anchor in self._calibration.anchors)

    @property
    def _calibration(self) -> Calibration:
        return self.table.calibration(self.quantity, self.setting)

    def _cost(self, value: float, low: float, high: float) -> Cost:
        found = self._calibration
        return Cost(value, self.unit, found.kind_of_sums, low, high, found.meter, found.scope)

    def _layer_sum_is_known(self, anchor: Anchor, wiring: Wiring) -> bool:
        if len(anchor.widths) != len(wiring.widths):
            return False
        try:
            layer_sum = sum(self.table.entry(shape, self.setting, self.quantity).value for shape in wiring.shapes(anchor.widths))
        except NoCost:
            return False
        return abs(layer_sum - anchor.layer_sum) <= _SAME_LAYER_SUM * anchor.layer_sum


UNITS: dict[CostName, str] = {"latency_ms": "ms", "energy_mj": "mJ", "macs": "MACs", "params": "parameters"}


class _Widths:
    """The (input, output) widths measured for shapes that agree in everything else; depthwise layers and pools have both equal."""

    def __init__(self) -> None:
        self.shapes: dict[tuple[int, int], LayerShape] = {}
        self._inputs: list[int] | None = None
        self._outputs: list[int] = []

    def add(self, shape: LayerShape) -> None:
        self.shapes[shape.in_channels, shape.out_channels] = shape
        self._inputs = None

    def above(self, shape: LayerShape) -> LayerShape | None:
        """Each axis rounded up to the next measured width.  Where just that pair is missing, the smallest pair that covers it."""
        inputs, outputs = self.axes()
        first, second = bisect_left(inputs, shape.in_channels), bisect_left(outputs, shape.out_channels)
        if first == len(inputs) or second == len(outputs):
            return None
        if found := self.shapes.get((inputs[first], outputs[second])):
            return found
        covering = (self.shapes.get((i, o)) for i in inputs[first:] for o in outputs[second:])
        return min((s for s in covering if s), key=lambda s: (s.in_channels * s.out_channels, s), default=None)

    def below(self, shape: LayerShape) -> LayerShape | None:
        """Each axis rounded down to the next measured width; None if that pair was not measured."""
        inputs, outputs = self.axes()
        first, second = bisect_right(inputs, shape.in_channels), bisect_right(outputs, shape.out_channels)
        return self.shapes.get((inputs[first - 1], outputs[second - 1])) if first and second else None

    def largest(self) -> str:
        widest_in, widest_out = (max(axis) for axis in self.axes())
        return f"{widest_in}->{widest_out}"

    def axes(self) -> tuple[list[int], list[int]]:
        if self._inputs is None:
            self._inputs = sorted({i for i, _ in self.shapes})
            self._outputs = sorted({o for _, o in self.shapes})
        return self._inputs, self._outputs


def _without_widths(shape: LayerShape) -> LayerShape:
    """The shape with its channel axes blanked; depthwise layers keep apart from full convolutions by ``groups``."""
    return replace(shape, in_channels=0, out_channels=0, groups=0 if shape.depthwise else shape.groups)


def _flat(entry: CostEntry) -> dict[str, Any]:
    """Its fields, with those of shape and setting in their places."""
    data = asdict(entry)
    return {**data.pop("shape"), **data.pop("setting"), **data}


def _flat_names() -> list[str]:
    own = [field.name for field in fields(CostEntry) if field.name not in ("shape", "setting")]
    return [*(field.name for field in fields(LayerShape)), *(field.name for field in fields(Setting)), *own]


def _entry(data: Mapping[str, Any]) -> CostEntry:
    return CostEntry(**{**data, "shape": LayerShape(**data["shape"]), "setting": Setting(**data["setting"])})


def _calibration(data: Mapping[str, Any]) -> Calibration:
    anchors = tuple(Anchor(**{**anchor, "widths": tuple(anchor["widths"])}) for anchor in data["anchors"])
    return Calibration(**{**data, "setting": Setting(**data["setting"]), "anchors": anchors})
