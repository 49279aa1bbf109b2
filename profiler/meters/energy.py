"""A meter of joules over any energy source: one window, watched from start to stop.

Mean power is taken between the counter's first and last step inside the window and multiplied with the window's length, so the
window's own ends need not fall on steps.  That holds for steady work, repeated back to back, which is how meters are used here.
"""

from __future__ import annotations

import time

from costs.model import CostName
from profiler.meters.base import Reading
from profiler.meters.source import EnergySource
from profiler.meters.watch import Clock, Disturbed, Every, Watch, in_background

SETTLE_FRACTION = 0.1  # of the window, left out at its start while clocks and power rise


class EnergyMeter:
    """Millijoules.  Windows of 5 s hold about 50 steps of an NVIDIA counter, which leaves its grain under 1 %."""

    quantity: CostName = "energy_mj"

    def __init__(
        self, source: EnergySource, window_seconds: float = 5.0, clock: Clock = time.perf_counter, every: Every = in_background
    ) -> None:
        self.source, self.window_seconds = source, window_seconds
        self._clock, self._watch = clock, Watch(source, clock, every)
        self._began = 0.0

    def start(self) -> None:
        self._watch.start()
        self._began = self._clock()

    def stop(self) -> Reading:
        """MeterError when the device was lost or stopped answering meanwhile."""
        seconds = self._clock() - self._began
        record = self._watch.stop()
        try:
            span = record.span(self._began + SETTLE_FRACTION * seconds, self._began + seconds)
        except Disturbed as reason:
            return Reading(0.0, str(reason), self.source.origin)
        joules = span.watts * seconds
        return Reading(joules * 1e3, None, self.source.origin, span.resolution * joules * 1e3)
