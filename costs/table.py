"""Measured layer costs of one device: exact hits, a step model between measured widths, refusal outside.

The cost of a layer is a staircase in its channels, because kernels work in blocks (16 float32 lanes on AVX-512).  So a width that
was not measured is priced as the next measured width above it, never by a line between two points, and the answer is marked
``interpolated``.  Its interval reaches over both measured neighbours.

Layers measured alone run on warmer caches than inside a network.  A *calibration* corrects that with one factor and one constant per
layer for each quantity and setting, fitted to whole networks (anchors) measured in the same session; ``TableCost`` applies it.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, replace
from typing import Any, Protocol, Self

from costs.model import Cost, CostName, Kind, estimated
from costs.shapes import LayerShape, Wiring
from costs.widths import Pair, Widths

# 95 % of a normal distribution lie within this many mean absolute errors: 1.96 standard deviations, each sqrt(pi / 2) of them
_HALF_WIDTH_PER_MEAN_ERROR = 1.96 * 1.2533

_SAME_LAYER_SUM = 0.05  # relative
_NEAREST = 8  # measured widths named when a layer can't be priced


class NoCost(LookupError):  # noqa: N818 - an answer the table gives, named for what it says
    """The table holds no answer; the message names what was asked, how far the table reaches, and the remedy.

    ``nearest``: the measured widths of such layers that are nearest to what was asked, nearest first.
    """

    def __init__(self, message: str, nearest: Sequence[Pair] = ()) -> None:
        super().__init__(message)
        self.nearest = tuple(nearest)


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
    """measured = ``scale`` * layer sum + ``per_layer`` * number of layers.

    ``error_percent`` is the mean absolute error when each anchor is left out of the fit.  ``meter``, ``scope`` and ``kind``
    are those of the anchors.
    """

    quantity: CostName
    setting: Setting
    scale: float
    error_percent: float
    anchors: tuple[Anchor, ...]
    meter: str = "wall_clock"
    scope: str = "process"
    kind: Kind = "measured"
    per_layer: float = 0.0

    def in_a_network(self, value: float) -> float:
        """What a layer of this entry contributes."""
        return self.scale * value + self.per_layer

    @property
    def kind_of_sums(self) -> Kind:
        """Of a layer sum on this scale: only anchors that were measured calibrate it, an estimate stays one."""
        return "calibrated_sum" if self.kind == "measured" else self.kind

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Calibration:
        """The calibration that ``dataclasses.asdict`` made this of.  KeyError or TypeError if fields are missing or unknown."""
        anchors = tuple(Anchor(**{**anchor, "widths": tuple(anchor["widths"])}) for anchor in data["anchors"])
        return cls(**{**data, "setting": Setting(**data["setting"]), "anchors": anchors})


Key = tuple[LayerShape, Setting, CostName]
Form = Key  # a key whose shape has no widths (``form_of``): what layers have in common that differ in nothing else


class Entries(Protocol):
    """Where the entries of a table lie: in memory, or in a store that is asked for the few of a million that a question needs."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[CostEntry]: ...

    def widths(self, forms: Collection[Form] | None = None) -> Mapping[Form, Widths]:
        """The widths measured for each of these forms, or for every form; forms that were not measured are left out."""
        ...

    def find(self, layers: Sequence[tuple[Form, Pair]]) -> Sequence[CostEntry]:
        """The entries of these forms at these widths, in order; all of them were measured."""
        ...

    def measures(self, quantity: CostName) -> bool:
        """Whether there is any entry of this quantity."""
        ...


class CostTable:
    """The cost entries and calibrations of one device.  A later entry or calibration of the same key replaces an earlier one."""

    def __init__(self, device: str, entries: Iterable[CostEntry] = (), calibrations: Iterable[Calibration] = ()) -> None:
        self.device = device
        self._entries: Entries = InMemory(entries)
        self._calibrations = {(c.quantity, c.setting): c for c in calibrations}

    @classmethod
    def over(cls, device: str, entries: Entries, calibrations: Iterable[Calibration]) -> Self:
        """A table whose entries lie elsewhere."""
        table = cls(device, (), calibrations)
        table._entries = entries
        return table

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[CostEntry]:
        return iter(self._entries)

    @property
    def where(self) -> Entries:
        """Where its entries lie."""
        return self._entries

    @property
    def calibrations(self) -> tuple[Calibration, ...]:
        return tuple(self._calibrations.values())

    @property
    def forms(self) -> Mapping[Form, Widths]:
        """Every form that was measured, with its widths."""
        return self._entries.widths()

    def measures(self, quantity: CostName) -> bool:
        """Whether there is any entry of this quantity."""
        return self._entries.measures(quantity)

    def entry(self, shape: LayerShape, setting: Setting, quantity: CostName) -> CostEntry:
        """The measured entry, or one of kind ``interpolated`` from the next measured widths.  NoCost beyond what was measured."""
        (found,) = self.entries([(shape, setting, quantity)])
        if isinstance(found, NoCost):
            raise found
        return found

    def entries(self, asked: Sequence[Key]) -> list[CostEntry | NoCost]:
        """The same for many at once, in order, with NoCost as an answer: two questions to where the entries lie, however many these are."""
        forms = [form_of(key) for key in asked]
        grids = self._entries.widths(set(forms))
        widths = [grids.get(form) for form in forms]
        steps = [_step(_pair(key), measured) for key, measured in zip(asked, widths, strict=True)]
        found = iter(self._entries.find([(form, pair) for form, step in zip(forms, steps, strict=True) for pair in step]))
        entries = [[next(found) for _ in step] for step in steps]
        return [self._answer(*each) for each in zip(asked, widths, entries, strict=True)]

    def edges(self, shape: LayerShape, setting: Setting, quantity: CostName) -> tuple[Sequence[int], Sequence[int]]:
        """The measured input and output widths of layers of this form, rising: between two of them the step model is constant."""
        form = form_of((shape, setting, quantity))
        widths = self._entries.widths({form}).get(form)
        return widths.axes if widths else ((), ())

    def calibration(self, quantity: CostName, setting: Setting) -> Calibration:
        """The calibration of a quantity in a setting.  NoCost if that setting was never anchored."""
        found = self._calibrations.get((quantity, setting))
        if found is None:
            known = "; ".join(str(s) for q, s in self._calibrations if q == quantity)
            measured = len(self._entries) > 0
            state = f"was profiled for {known}" if known else "no whole network was measured" if measured else "was not profiled"
            command = "wattle profile --meter METER" if quantity == "energy_mj" else "wattle profile"
            raise NoCost(f"{quantity} ({setting}) on {self.device}: {state}; run `{command}` with this batch size and thread count")
        return found

    def _answer(self, key: Key, widths: Widths | None, step: Sequence[CostEntry]) -> CostEntry | NoCost:
        if not step:
            return self._no_cost(key, widths)
        upper, *below = step
        if upper.shape == key[0]:
            return upper
        lower = below[0].interval if below else (0.0, 0.0)
        # Not simply (lower, upper): depthwise costs can fall towards the next multiple of the vector width.
        low, high = min(lower[0], upper.interval[0]), max(lower[1], upper.interval[1])
        kind: Kind = upper.kind if estimated(upper.kind) else "interpolated"
        return replace(upper, shape=key[0], kind=kind, low=low, high=high, net=None, net_low=None, net_high=None)

    def _no_cost(self, key: Key, widths: Widths | None) -> NoCost:
        shape, setting, quantity = key
        reach = "the widest measured is {}->{}".format(*widths.largest) if widths else "no layer of this form was measured"
        nearest = widths.nearest(_pair(key), _NEAREST) if widths else ()
        return NoCost(
            f"no {quantity} for {shape} ({setting}) on {self.device}: {reach}; "
            f"run `wattle profile` for this network, image size and setting, with a max_growth that covers these widths",
            nearest,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` gives an equal table."""
        return {
            "device": self.device,
            "entries": [asdict(entry) for entry in self],
            "calibrations": [asdict(calibration) for calibration in self.calibrations],
        }

    def to_csv(self) -> Iterator[str]:
        """The entries, a line each, with a column per field and a line of their names first; calibrations are left out."""
        line = _Line()
        writer = csv.DictWriter(line, ["device", *(field.name for field in flat_fields())], lineterminator="\n")
        writer.writeheader()
        yield line.text
        for entry in self:
            writer.writerow({"device": self.device, **flat(asdict(entry))})
            yield line.text

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CostTable:
        """A table from ``to_json`` data.  ValueError if fields are missing or unknown."""
        try:
            return cls(data["device"], map(_entry, data["entries"]), map(Calibration.from_json, data["calibrations"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is not a cost table ({error}); expected the output of CostTable.to_json") from error


@dataclass(frozen=True, slots=True)
class TableCost:
    """A cost model (``costs.model.CostModel``) that answers from a table: calibrated sums of one quantity in one setting.

    Intervals: a layer carries its entry's, corrected.  For a network the layers' half-widths add up (entries of one session share
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
        return self._known.get(shape) or self._layers([shape])[0]

    def edges(self, shape: LayerShape) -> tuple[Sequence[int], Sequence[int]]:
        """Where the cost of such a layer can change (``costs.model.Stepped``)."""
        return self.table.edges(shape, self.setting, self.quantity)

    def network(self, shapes: Sequence[LayerShape]) -> Cost:
        """The sum over the layers.  NoCost if the table does not reach one of them."""
        layers = self._layers(shapes)
        value = sum(layer.value for layer in layers)
        calibration_half = _HALF_WIDTH_PER_MEAN_ERROR * self._calibration.error_percent / 100 * value
        below = sum(layer.value - layer.low for layer in layers if layer.low is not None)
        above = sum(layer.high - layer.value for layer in layers if layer.high is not None)
        low, high = value - (below**2 + calibration_half**2) ** 0.5, value + (above**2 + calibration_half**2) ** 0.5
        return self._cost(value, max(0.0, low), high)

    def _layers(self, shapes: Sequence[LayerShape]) -> list[Cost]:
        """What each layer adds, asked of the table in one go where it is not known yet."""
        unknown = [shape for shape in dict.fromkeys(shapes) if shape not in self._known]
        if unknown:
            corrected = self._calibration.in_a_network
            for shape, entry in zip(unknown, self._entries(unknown), strict=True):
                low, high = entry.interval
                kind = entry.kind if estimated(entry.kind) else self._calibration.kind_of_sums
                self._known[shape] = replace(self._cost(corrected(entry.value), corrected(low), corrected(high)), kind=kind)
        return [self._known[shape] for shape in shapes]

    def _entries(self, shapes: Sequence[LayerShape]) -> Iterator[CostEntry]:
        """NoCost if the table does not reach one of them."""
        for found in self.table.entries([(shape, self.setting, self.quantity) for shape in shapes]):
            if isinstance(found, NoCost):
                raise found
            yield found

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
            layer_sum = sum(entry.value for entry in self._entries(wiring.shapes(anchor.widths)))
        except NoCost:
            return False
        return abs(layer_sum - anchor.layer_sum) <= _SAME_LAYER_SUM * anchor.layer_sum


UNITS: dict[CostName, str] = {"latency_ms": "ms", "energy_mj": "mJ", "macs": "MACs", "params": "parameters"}


class InMemory:
    """Entries in a dict (``Entries``)."""

    def __init__(self, entries: Iterable[CostEntry]) -> None:
        self._entries: dict[Key, CostEntry] = {(e.shape, e.setting, e.quantity): e for e in entries}
        self._pairs: dict[Key, list[Pair]] = defaultdict(list)
        self._widths: dict[Key, Widths] = {}
        for key in self._entries:
            self._pairs[form_of(key)].append((key[0].in_channels, key[0].out_channels))

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[CostEntry]:
        return iter(self._entries.values())

    def widths(self, forms: Collection[Form] | None = None) -> Mapping[Form, Widths]:
        for form in self._pairs if forms is None else forms:
            if form in self._pairs and form not in self._widths:
                self._widths[form] = Widths(self._pairs[form])
        return self._widths

    def find(self, layers: Sequence[tuple[Form, Pair]]) -> Sequence[CostEntry]:
        return [self._entries[of_form(*layer)] for layer in layers]

    def measures(self, quantity: CostName) -> bool:
        return any(of == quantity for _, _, of in self._pairs)


def _step(pair: Pair, widths: Widths | None) -> tuple[Pair, ...]:
    """The measured widths above these and, where there are any, below; these alone where they were measured; none beyond all."""
    above = widths.above(pair) if widths else None
    if widths is None or above is None:
        return ()
    below = widths.below(pair) if above != pair else None
    return (above,) if below is None else (above, below)


def _pair(key: Key) -> Pair:
    return key[0].in_channels, key[0].out_channels


def form_of(key: Key) -> Form:
    """The key with the shape's channel axes blanked; depthwise layers keep apart from full convolutions by ``groups``."""
    shape, setting, quantity = key
    return _sized(shape, 0, 0, 0 if shape.depthwise else shape.groups), setting, quantity


def of_form(form: Form, pair: Pair) -> Key:
    """The key of this form and these widths."""
    shape, setting, quantity = form
    return _sized(shape, *pair, shape.groups or pair[0]), setting, quantity


def _sized(shape: LayerShape, i: int, o: int, groups: int) -> LayerShape:
    if type(shape) is not LayerShape:  # one that was never measured
        return replace(shape, in_channels=i, out_channels=o, groups=groups)
    # `replace` takes six times as long, which was half the time of a lookup
    return LayerShape(
        shape.op, i, o, shape.kernel, shape.stride, groups, shape.height, shape.width, shape.norm, shape.activation, shape.residual
    )


class _Line:
    """A file that remembers what was written to it last."""

    text = ""

    def write(self, text: str) -> None:
        self.text = text


def flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an entry, plain data as in ``CostTable.to_json``, with those of shape and setting in their places."""
    own = {name: value for name, value in entry.items() if name not in ("shape", "setting")}
    return {**entry["shape"], **entry["setting"], **own}


def flat_fields() -> list[Field[Any]]:
    """The fields that ``flat`` gives, in order."""
    return [*fields(LayerShape), *fields(Setting), *(field for field in fields(CostEntry) if field.name not in ("shape", "setting"))]


def _entry(data: Mapping[str, Any]) -> CostEntry:
    return CostEntry(**{**data, "shape": LayerShape(**data["shape"]), "setting": Setting(**data["setting"])})
