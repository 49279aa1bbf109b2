"""What windows of work and idle baselines add up to: joules per repetition with an interval, or no number.

Gross is what the device drew; net is without the idle power, interpolated between the baselines before and after.  How many windows
are needed follows from the scatter of the first stage (Stein's two-stage rule): the interval keeps its coverage although the number
of windows depends on the data, because its width rests on that first scatter only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from operator import or_
from statistics import fmean, median, stdev

from profiler.meters import DeviceState, Origin
from profiler.meters.source import POWER_CAP
from profiler.timing import Measurement, Net

RATIO_WARN, RATIO_TRUST = 0.1, 0.25  # how far counter and integrated power may differ, relative


@dataclass(frozen=True, slots=True)
class Joules:
    """Per repetition, with the 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


@dataclass(frozen=True, slots=True)
class Energy:
    """What one repetition costs, and everything that its credibility rests on.

    The intervals hold the scatter between windows and what the counter's steps leave open.  They don't hold ``origin.sensor_error``,
    which all windows share.  ``counter_ratio`` is counter over integrated power; ``start`` the device before the first window,
    ``loaded`` at the end of the last; ``throttle`` all bits seen.
    """

    gross: Joules
    net: Joules
    seconds: float
    origin: Origin
    windows: int
    repetitions: int
    rejected: dict[str, int]
    period_seconds: float | None
    counter_ratio: float | None
    idle_watts: tuple[float, float]
    start: DeviceState
    loaded: DeviceState
    throttle: int | None
    warnings: tuple[str, ...] = ()

    @property
    def watts(self) -> Joules:
        """Gross power while the work ran, in watts."""
        return Joules(*(joules / self.seconds for joules in (self.gross.value, self.gross.low, self.gross.high)))

    def measurement(self) -> Measurement:
        """In millijoules, beside those of other quantities."""
        (gross, low, high), (net, net_low, net_high) = (
            (1e3 * joules.value, 1e3 * joules.low, 1e3 * joules.high) for joules in (self.gross, self.net)
        )
        return Measurement(gross, low, high, self.windows, sum(self.rejected.values()), self.origin, Net(net, net_low, net_high))


@dataclass(frozen=True, slots=True)
class Window:
    """Mean power while the work ran, and how long one call took.  ``ratio`` is counter over integrated power in the window."""

    middle: float
    watts: float
    seconds_per_call: float
    calls: int
    resolution: float
    ratio: float | None
    start: DeviceState
    states: tuple[DeviceState, ...]

    @property
    def joules(self) -> float:
        return self.watts * self.seconds_per_call


@dataclass(frozen=True, slots=True)
class Idle:
    """Mean power without work, and the time in whose middle it was taken."""

    middle: float
    watts: float


class Doubtful(Exception):  # noqa: N818 - an answer about a session
    """Why the windows give no number, and what would help."""

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(why)
        self.remedy = remedy


def net_and_gross(windows: Sequence[Window], idles: Sequence[Idle], first_stage: int) -> tuple[Joules, Joules]:
    """Net and gross joules per call.  The net interval also holds half of what the idle power moved between two baselines."""
    scatter = student(first_stage) * stdev(window.joules for window in windows[:first_stage]) / math.sqrt(len(windows))
    grain = max(window.resolution * window.joules for window in windows)
    gross = fmean(window.joules for window in windows)
    net = fmean((window.watts - _idle_watts(window.middle, idles)) * window.seconds_per_call for window in windows)
    moved = max(abs(after.watts - before.watts) for before, after in pairwise(idles))
    drift = moved / 2 * fmean(window.seconds_per_call for window in windows)
    return _around(net, scatter + grain + drift), _around(gross, scatter + grain)


def check_idle(before: Idle, after: Idle, watts: float, share: float) -> None:
    """Doubtful when idle power moved by more than ``watts`` and ``share`` of itself."""
    if abs(after.watts - before.watts) > max(watts, share * before.watts):
        raise Doubtful(
            f"idle power went from {before.watts:.1f} to {after.watts:.1f} W", "leave the device to this process alone, and let it settle"
        )


def check_counter(ratio: float | None) -> None:
    """Doubtful when counter and integrated power contradict each other: one of them is wrong, and nothing here says which."""
    if ratio is not None and not 1 / (1 + RATIO_TRUST) <= ratio <= 1 + RATIO_TRUST:
        raise Doubtful(
            f"the counter says {ratio:.2f} times what integrated power says",
            "check both against a wall meter, and choose the meter nvml_power if that one is right",
        )


def check_width(gross: Joules, windows: int, widest: float) -> None:
    """Doubtful when the interval is too wide to be of use."""
    if gross.half_width > widest * gross.value:
        raise Doubtful(
            f"the interval is +-{gross.half_width / gross.value:.0%} after {windows} windows, +-{widest:.0%} is the widest of use",
            "give more time, lock the clocks (nvidia-smi -lgc), or leave the device to this process alone",
        )


def counter_ratio(windows: Sequence[Window]) -> float | None:
    known = [window.ratio for window in windows if window.ratio is not None]
    return median(known) if known else None


def throttle_bits(windows: Sequence[Window]) -> int | None:
    """All bits seen in any window; None if the device does not say."""
    known = [state.throttle for window in windows for state in window.states if state.throttle is not None]
    return reduce(or_, known) if known else None


def doubts(energy: Energy) -> tuple[str, ...]:
    """What a reader should know before relying on the numbers, as sentences."""
    found = []
    if energy.counter_ratio is not None and abs(energy.counter_ratio - 1) > RATIO_WARN:
        found.append(f"the counter says {energy.counter_ratio:.2f} times what integrated power says; check it against a wall meter")
    if (energy.throttle or 0) & POWER_CAP:
        found.append("the device ran at its power limit: its clocks, and so the energy, depend on that limit")
    if energy.net.low <= 0:
        found.append("net energy can't be told from none: the work draws hardly more than the idle device")
    return tuple(found)


def windows_needed(joules: Sequence[float], precision: float) -> int:
    """Stein's rule: how many windows in all bring the half-width to ``precision`` of the mean, from the scatter of the first."""
    half_width = student(len(joules)) * stdev(joules)
    return max(len(joules), math.ceil((half_width / (precision * fmean(joules))) ** 2))


def student(n: int, confidence: float = 0.95) -> float:
    """The quantile of Student's distribution for the mean of ``n`` values, both sides."""
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, (1 + confidence) / 2))


def _idle_watts(moment: float, idles: Sequence[Idle]) -> float:
    """On the line between the baselines before and after that moment."""
    before, after = next(pair for pair in pairwise(idles) if moment <= pair[1].middle)
    share = (moment - before.middle) / (after.middle - before.middle)
    return before.watts + share * (after.watts - before.watts)


def _around(value: float, half_width: float) -> Joules:
    return Joules(value, value - half_width, value + half_width)
