"""The wall clock, which knows when its window was spent waiting for a core or for memory."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable

from costs.model import CostName
from profiler.meters.base import Reading

DISTURBED_FRACTION = 0.02
# A network that page-faulted 5 344 times per run took 18 ms longer than with its memory kept
PAGE_FAULT_SECONDS = 3.4e-6


class WallClock:
    """Milliseconds.  A window is disturbed when its threads waited for a core, or page-faulted, for more than 2 % of it."""

    quantity: CostName = "latency_ms"
    window_seconds = 1e-6  # the clock resolves some ten nanoseconds

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        scheduler_delay: Callable[[], float] | None = None,
        page_faults: Callable[[], int] | None = None,
    ) -> None:
        self._clock = clock
        self._scheduler_delay = scheduler_delay or scheduler_delay_seconds
        self._page_faults = page_faults or minor_page_faults
        self._before = (0.0, 0, 0.0)

    def start(self) -> None:
        self._before = (self._scheduler_delay(), self._page_faults(), self._clock())

    def stop(self) -> Reading:
        now = self._clock()
        delay, faults = self._scheduler_delay() - self._before[0], self._page_faults() - self._before[1]
        seconds = now - self._before[2]
        if delay > DISTURBED_FRACTION * seconds:
            return Reading(seconds * 1e3, "waited for a core")
        if faults * PAGE_FAULT_SECONDS > DISTURBED_FRACTION * seconds:
            return Reading(seconds * 1e3, "page faults")
        return Reading(seconds * 1e3)


def scheduler_delay_seconds() -> float:
    """How long the threads of this process were ready to run without a core, so far.  0.0 where the kernel does not say."""
    nanoseconds = 0
    try:
        for thread in os.listdir("/proc/self/task"):
            try:
                with open(f"/proc/self/task/{thread}/schedstat", "rb") as file:
                    nanoseconds += int(file.read().split()[1])
            except OSError:
                continue  # the thread ended meanwhile
    except OSError:
        return 0.0
    return nanoseconds * 1e-9


def minor_page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
