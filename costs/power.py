"""Energy as power times time, where no meter measured it: an estimate, and marked as one.

It ranks layers of one power exactly as their times do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from costs.model import Kind
from costs.table import UNITS, Anchor, Calibration, CostEntry, CostTable


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
    entries = (power_times_time(power, entry) for entry in table if entry.quantity == "latency_ms")
    scales = (_calibration(power, found) for found in table.calibrations if found.quantity == "latency_ms")
    return CostTable(table.device, entries, scales)


def _calibration(power: Power, found: Calibration) -> Calibration:
    anchors = tuple(_anchor(power.watts, anchor) for anchor in found.anchors)
    return replace(found, quantity="energy_mj", anchors=anchors, meter=power.meter, scope=power.scope, kind=power.kind)


def _anchor(watts: float, anchor: Anchor) -> Anchor:
    numbers = {name: watts * getattr(anchor, name) for name in ("layer_sum", "measured", "low", "high")}
    return replace(anchor, **numbers)
