"""What is wanted of energy windows, what they may cost, and the time that they run in."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from profiler.meters import METERS, Meter
from profiler.meters.watch import SAMPLE_SECONDS, Clock, Every, in_background
from profiler.timing import OVERTIME

PERIOD_SECONDS = (3.0, 12.0)  # how long to look for the counter's steps; the second is for slow counters
GRAIN_SHARE = 0.2  # of the wanted precision, that the counter's steps may leave open
# Windows of 5 s suit counters that step every 100 ms: the rest of a plan is in proportion to them
WINDOW_SECONDS, SETTLE_SHARE, TICKS_PER_SECOND = 5.0, 0.3, 10
PRECISION, WIDEST_PER_PRECISION = 0.03, 10 / 3
SLACK = 1.15  # sessions take so much longer than their windows: phases, cooling, idle baselines between


@dataclass(frozen=True, slots=True)
class Plan:
    """What is wanted, and what it may cost.

    ``precision`` is the wanted half-width of the 95 % interval, relative; a result wider than ``widest`` is none.  ``seconds`` is the
    time budget; what has too few windows when it is spent is visited on, until ``overtime`` times that.  Windows last at least
    ``window_seconds`` and ``min_ticks`` steps of the counter, after ``settle_seconds`` of the same work; each starts within
    ``warmer_celsius`` of the first one's temperature, for which it waits ``cool_seconds`` at most.
    """

    precision: float = PRECISION
    widest: float = PRECISION * WIDEST_PER_PRECISION
    seconds: float = 180.0
    overtime: float = 1.0
    window_seconds: float = WINDOW_SECONDS
    min_ticks: int = round(TICKS_PER_SECOND * WINDOW_SECONDS)
    min_windows: int = 5
    max_rejected: int = 10
    settle_seconds: float = SETTLE_SHARE * WINDOW_SECONDS  # some power readings are means of the last second
    idle_seconds: float = WINDOW_SECONDS
    idle_every_seconds: float = 60.0
    idle_drift_watts: float = 2.0
    idle_drift: float = 0.05
    warmer_celsius: float = 2.0
    cool_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.min_windows < 3:
            raise ValueError(f"min_windows is {self.min_windows}; their scatter decides how many are needed: give at least 3")

    @classmethod
    def of(cls, window_seconds: float, seconds: float) -> Plan:
        """A plan of shorter or longer windows, as precise as the grain of samples in them allows."""
        precision = max(PRECISION, SAMPLE_SECONDS / (GRAIN_SHARE * window_seconds))
        return cls(
            precision=precision,
            widest=precision * WIDEST_PER_PRECISION,
            seconds=seconds,
            overtime=OVERTIME,
            window_seconds=window_seconds,
            min_ticks=math.ceil(TICKS_PER_SECOND * window_seconds),
            settle_seconds=SETTLE_SHARE * window_seconds,
            idle_seconds=window_seconds,
        )

    def seconds_for(self, subjects: int) -> float:
        """What so many pieces of work take at least."""
        each = self.min_windows * (self.window_seconds + self.settle_seconds)
        return PERIOD_SECONDS[0] + SLACK * (subjects * each + 2 * (self.idle_seconds + self.settle_seconds))

    def subjects(self) -> int:
        """How many pieces of work the time budget holds."""
        return max(0, int((self.seconds - self.seconds_for(0)) / (self.seconds_for(1) - self.seconds_for(0))))


def _wall_clock() -> Meter:
    return METERS["wall_clock"]()


@dataclass(frozen=True, slots=True)
class Host:
    """The time that work runs in.  ``synchronise`` returns when all work given to the device is done (torch.cuda.synchronize)."""

    clock: Clock = time.perf_counter
    sleep: Callable[[float], None] = time.sleep
    every: Every = in_background
    synchronise: Callable[[], None] = lambda: None
    stopwatch: Callable[[], Meter] = _wall_clock
