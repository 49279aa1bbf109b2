"""What an energy meter reads: a cumulative counter, or power, or both; and the state of the device meanwhile.

A source only reads.  ``watch`` samples it while work runs, ``energy`` makes a meter of it, and ``profiler.windows`` measures joules
per repetition with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from profiler.meters.base import Origin

# Bits of nvmlDeviceGetCurrentClocksEventReasons that slow the device down against its will
THROTTLING: Mapping[int, str] = {0x8: "hardware slowdown", 0x20: "software thermal", 0x40: "hardware thermal", 0x80: "power brake"}
POWER_CAP = 0x4  # usual under full load at the power limit: recorded; if it moves the clock, the clock check says so


@dataclass(frozen=True, slots=True)
class DeviceState:
    """A device at one moment.  None: the device does not say.  ``foreign`` are processes on it that are not ours."""

    temperature_celsius: float | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    throttle: int | None = None
    foreign: frozenset[int] = frozenset()

    @property
    def throttled_by(self) -> str | None:
        return next((name for bit, name in THROTTLING.items() if (self.throttle or 0) & bit), None)


class EnergySource(Protocol):
    """A device whose energy can be read.

    ``joules`` counts up from an unknown start, None where there is no counter; ``watts`` is the power now, None where it can't be
    read.  At least one is there.  All may raise ``MeterError``.
    """

    @property
    def origin(self) -> Origin: ...

    def joules(self) -> float | None: ...

    def watts(self) -> float | None: ...

    def state(self) -> DeviceState: ...
