"""Is the machine still what it was when its table was measured?  Some entries are measured again, in a second or so.

What is compared is the pace: the median over the entries of now / then.  One factor on all entries leaves the order of all prices as it
was, and shifts every limit in milliseconds by that factor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from costs.table import CostEntry, CostTable, Setting
from profiler.device import ready_to_measure
from profiler.processor import CPU, Processor
from profiler.timing import NoResult, interleave, median_interval
from profiler.units import unit_work

ENTRIES = 12
SECONDS = 1.0
MIN_ENTRIES = 6  # fewest ratios whose whole range encloses the median with 95 %


@dataclass(frozen=True, slots=True)
class Drift:
    """Time now / time in the table: the median over so many entries, with its 95 % interval."""

    ratio: float
    low: float
    high: float
    entries: int


def measure_drift(
    table: CostTable,
    setting: Setting,
    seconds: float = SECONDS,
    on: Processor = CPU,
    clock: Callable[[], float] = time.perf_counter,
) -> Drift:
    """Measure a few latencies of the table again, on this machine.  NoResult where too few were measured then, or can be now."""
    before = {entry.shape: entry for entry in probes(table, setting)}
    with ready_to_measure(setting):
        session = interleave(unit_work(before, setting, on), on.meter(), seconds, synchronise=on.synchronise, clock=clock)
    ratios = [found.median / before[shape].value for shape, found in session.results.items()]
    if len(ratios) < MIN_ENTRIES:
        reason = next(
            (str(why) for why in session.missing.values()),
            f"the table has {len(before)} measured latencies for {setting}; profile it for longer",
        )
        raise NoResult(f"{len(ratios)} entries could be measured again, {MIN_ENTRIES} needed: {reason}")
    low, high = median_interval(ratios)
    return Drift(median(ratios), low, high, len(ratios))


def probes(table: CostTable, setting: Setting) -> Sequence[CostEntry]:
    """Measured latencies to measure again, evenly from the quickest to the slowest, the slowest tenth left out: they take most time."""
    measured = [entry for entry in table if (entry.quantity, entry.kind, entry.setting) == ("latency_ms", "measured", setting)]
    ranked = sorted(measured, key=lambda entry: (entry.value, entry.shape))
    quick = ranked[: max(ENTRIES, len(ranked) * 9 // 10)]
    return [quick[int((i + 0.5) * len(quick) / ENTRIES)] for i in range(ENTRIES)] if len(quick) > ENTRIES else quick
