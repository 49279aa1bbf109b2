"""Declared watts times measured time: an estimate, for machines without any energy meter, and marked as one everywhere."""

from __future__ import annotations

from costs.model import CostName
from profiler.meters.base import Meter, MeterUnavailable, Origin, Reading
from profiler.meters.wall_clock import WallClock


class PowerModel:
    """Millijoules, if the device drew the declared watts all the time.

    It ranks layers exactly as time does, so it can't tell a layer that is slow from one that is hungry.
    """

    quantity: CostName = "energy_mj"

    def __init__(self, watts: float | None = None, stopwatch: Meter | None = None) -> None:
        """MeterUnavailable without watts: they are never guessed."""
        if watts is None or not watts > 0:
            given = "no watts" if watts is None else f"{watts:g} W"
            remedy = "declare what the device draws under load, in watts above 0 (from a wall meter, or its data sheet)"
            raise MeterUnavailable(f"power_model was given {given}; {remedy}")
        self._watts, self._stopwatch = watts, stopwatch or WallClock()
        self._origin = Origin("power_model", "estimated:power_model", "declared", "declared", f"{watts:g} W declared x measured time")

    @property
    def window_seconds(self) -> float:
        return self._stopwatch.window_seconds

    def start(self) -> None:
        self._stopwatch.start()

    def stop(self) -> Reading:
        time = self._stopwatch.stop()  # milliseconds; times watts gives millijoules
        return Reading(self._watts * time.value, time.disturbed, self._origin)
