"""Energy as power times time, where no meter measured it: an estimate, and marked as one.

It ranks layers of one power exactly as their times do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from costs.model import CostName, Kind
from costs.table import UNITS, Anchor, Calibration, CostEntry, CostTable, Entries, Form
from costs.widths import Pair, Widths


@dataclass(frozen=True, slots=True)
class Power:
    """Watts with the interval they lie in, and where they come from."""

    watts: float
    low: float
    high: float
    meter: str
    scope: str
    kind: Kind
    sensor_error: float | None = None


def power_times_time(power: Power, time: CostEntry) -> CostEntry:
    """An energy in millijoules from a latency in milliseconds; repetitions and date stay those of the time."""
    low, high = time.interval
    return replace(
        time, quantity="energy_mj", unit=UNITS["energy_mj"], value=power.watts * time.value, low=power.low * low, high=power.high * high,
        meter=power.meter, scope=power.scope, kind=power.kind, sensor_error=power.sensor_error,
    )  # fmt: skip


def at_declared_power(table: CostTable, watts: float) -> CostTable:
    """The latencies of a table as energies, if the device drew ``watts`` all the time."""
    power = Power(watts, watts, watts, "power_model", "declared", "estimated:power_model")
    scales = (_calibration(power, found) for found in table.calibrations if found.quantity == "latency_ms")
    return CostTable.over(table.device, _Powered(table.where, power), scales)


@dataclass(frozen=True, slots=True)
class _Powered:
    """The latencies among other entries, as energies; only those that are asked for are made (``costs.table.Entries``)."""

    times: Entries
    power: Power

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[CostEntry]:
        return (power_times_time(self.power, entry) for entry in self.times if entry.quantity == "latency_ms")

    def widths(self, forms: Collection[Form] | None = None) -> Mapping[Form, Widths]:
        found = self.times.widths(None if forms is None else {_of(form, "latency_ms") for form in forms})
        return {_of(form, "energy_mj"): widths for form, widths in found.items() if form[2] == "latency_ms"}

    def find(self, layers: Sequence[tuple[Form, Pair]]) -> Sequence[CostEntry]:
        found = self.times.find([(_of(form, "latency_ms"), pair) for form, pair in layers])
        return [power_times_time(self.power, time) for time in found]

    def measures(self, quantity: CostName) -> bool:
        return quantity == "energy_mj" and self.times.measures("latency_ms")


def _of(form: Form, quantity: CostName) -> Form:
    return form[0], form[1], quantity


def _calibration(power: Power, found: Calibration) -> Calibration:
    anchors = tuple(_anchor(power.watts, anchor) for anchor in found.anchors)
    per_layer = power.watts * found.per_layer
    return replace(found, quantity="energy_mj", anchors=anchors, per_layer=per_layer, meter=power.meter, scope=power.scope, kind=power.kind)


def _anchor(watts: float, anchor: Anchor) -> Anchor:
    numbers = {name: watts * getattr(anchor, name) for name in ("layer_sum", "measured", "low", "high")}
    return replace(anchor, **numbers)
