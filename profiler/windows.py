"""Joules per repetition, measured in windows that a counter's grain, heat, throttling and other processes can't falsify.

    warm up · find the counter's period under load · idle baseline · windows · idle baseline · conclude, or abstain

A window loops the work back to back and takes energy from the counter's first step to its last inside it (``meters.watch``).
What windows add up to, and how many are needed, is ``profiler.energy``.

Parts that sample power 25 % of the time see a repeating pattern at the same place again and again; on those, short pauses move the
work's phase evenly over the sampling period.

Where no number can be trusted there is none: ``NoResult``, with the reason and the remedy.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import TypeVar

from profiler.energy import (
    Doubtful,
    Energy,
    Idle,
    Window,
    check_counter,
    check_idle,
    check_width,
    counter_ratio,
    doubts,
    net_and_gross,
    throttle_bits,
    windows_needed,
)
from profiler.meters import DeviceState, EnergySource, Meter, MeterError, WallClock
from profiler.meters.watch import SAMPLE_SECONDS, Clock, Disturbed, Every, Record, Span, Watch, in_background
from profiler.timing import NoResult, Work, warm_up

T = TypeVar("T")

BATCH_SECONDS = 0.05  # of work between two looks at the clock
PERIOD_SAMPLE_SECONDS = 0.002
PERIOD_SECONDS = (3.0, 12.0)  # how long to look for the counter's steps; the second is for slow counters
MIN_PERIODS = 5
GRAIN_SHARE = 0.2  # of the wanted precision, that the counter's steps may leave open
MIN_CALLS = 10  # in a window, so that a cut-off repetition at its ends weighs little
PHASES = 16  # of the work against the sampling, in a window
UNSEEN = 0.5  # of a sampling period: what a window's first and last step leave open where each stands for a quarter that was seen
SAMPLING_SECONDS = 0.1  # the period of partly sampled parts, where no counter shows it
IDLE_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """What is wanted, and what it may cost.

    ``precision`` is the wanted half-width of the 95 % interval, relative; a result wider than ``widest`` is none.  ``seconds`` is the
    time budget.  Windows last at least ``window_seconds`` and ``min_ticks`` steps of the counter, after ``settle_seconds`` of the same
    work; each starts within ``warmer_celsius`` of the first one's temperature, for which it waits ``cool_seconds`` at most.
    """

    precision: float = 0.03
    widest: float = 0.10
    seconds: float = 180.0
    window_seconds: float = 5.0
    min_ticks: int = 50
    min_windows: int = 5
    max_rejected: int = 10
    settle_seconds: float = 1.5  # some power readings are means of the last second
    idle_seconds: float = 5.0
    idle_drift_watts: float = 2.0
    idle_drift: float = 0.05
    warmer_celsius: float = 2.0
    cool_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.min_windows < 3:
            raise ValueError(f"min_windows is {self.min_windows}; their scatter decides how many are needed: give at least 3")


@dataclass(frozen=True, slots=True)
class Host:
    """The time that work runs in.  ``synchronise`` returns when all work given to the device is done (torch.cuda.synchronize)."""

    clock: Clock = time.perf_counter
    sleep: Callable[[float], None] = time.sleep
    every: Every = in_background
    synchronise: Callable[[], None] = lambda: None
    stopwatch: Callable[[], Meter] = WallClock


@dataclass(frozen=True, slots=True)
class _Loop:
    start: float
    end: float
    calls: int
    pauses: tuple[tuple[float, float], ...]

    @property
    def seconds_per_call(self) -> float:
        return (self.end - self.start - sum(end - start for start, end in self.pauses)) / self.calls

    def paused(self, span: Span) -> float:
        """Seconds of the span without work."""
        return sum(max(0.0, min(end, span.end) - max(start, span.start)) for start, end in self.pauses)


def measure_energy(
    work: Work,
    source: EnergySource,
    plan: Plan = Plan(),
    host: Host = Host(),
    period_seconds: float | None = None,
    seed: int = 0,
) -> Energy:
    """Energy of one call of ``work``.  ``period_seconds`` of the counter saves finding it again.  NoResult rather than a guess."""
    session = _Session(work, source, plan, host, random.Random(seed))  # noqa: S311 - a phase is no secret
    try:
        return session.run(period_seconds)
    except Doubtful as reason:
        raise NoResult(session.explained(reason)) from reason
    except MeterError as error:
        raise NoResult(f"no result: {error}") from error


def counter_period(record: Record) -> float | None:
    """Seconds between two steps of the counter, from all that were seen; None if they were fewer than five."""
    ticks = record.ticks(-math.inf, math.inf)
    return (ticks[-1][0] - ticks[0][0]) / (len(ticks) - 1) if len(ticks) > MIN_PERIODS else None


@dataclass(slots=True)
class _Session:
    work: Work
    source: EnergySource
    plan: Plan
    host: Host
    random: random.Random
    began: float = 0.0
    batch: int = 1
    seconds_per_call: float = 0.0
    period: float | None = None
    start: DeviceState | None = None
    rejected: Counter[str] = field(default_factory=Counter)

    def run(self, period_seconds: float | None) -> Energy:
        self.began = self.host.clock()
        self._warm_up()
        self.period = period_seconds or self._find_period()
        length = self._window_seconds()
        before = self._idle()
        windows = self._windows(length, before)
        after = self._idle()
        return self._conclude(windows, before, after)

    def _warm_up(self) -> None:
        def call() -> None:
            self.work()
            self.host.synchronise()

        self.seconds_per_call = warm_up(call, self.host.clock)
        self.batch = max(1, int(BATCH_SECONDS / self.seconds_per_call))

    def _find_period(self) -> float | None:
        """None for a source without a counter."""
        if self.source.joules() is None:
            return None
        for seconds in PERIOD_SECONDS:
            _, record = self._watched(partial(self._loop, seconds), PERIOD_SAMPLE_SECONDS)
            if (period := counter_period(record)) is not None:
                return period
        raise Doubtful(
            f"the energy counter did not tick: {len(record.ticks(-math.inf, math.inf))} steps in {seconds:g} s of work",
            "choose a meter that integrates power (nvml_power), or power_model",
        )

    def _window_seconds(self) -> float:
        """Long enough for the wanted precision, the counter's steps and enough repetitions.  Doubtful if they don't fit the budget."""
        length = max(
            self.plan.window_seconds,
            (self.plan.min_ticks + 2) * (self.period or 0.0),
            MIN_CALLS * self.seconds_per_call,
            SAMPLE_SECONDS / (GRAIN_SHARE * self.plan.precision) + 2 * (self.period or 0.0),
        )
        needed = self.plan.min_windows * (length + self.plan.settle_seconds) + 2 * (self.plan.idle_seconds + self.plan.settle_seconds)
        if needed > self._left():
            left = self._left()
            raise Doubtful(
                f"{self.plan.min_windows} windows of {length:.3g} s and two idle baselines take {needed:.3g} s, {left:.3g} s are left",
                f"give a time budget of at least {needed + self.plan.seconds - left:.0f} s",
            )
        return length

    def _idle(self) -> Idle:
        """Power without work, the context alive."""
        for _ in range(IDLE_ATTEMPTS):
            self.host.sleep(self.plan.settle_seconds)
            began = self.host.clock()
            _, record = self._watched(lambda: self.host.sleep(self.plan.idle_seconds))
            try:
                span = record.span(began, self.host.clock(), loaded=False)
                return Idle((span.start + span.end) / 2, span.watts)
            except Disturbed as reason:
                why = str(reason)
        raise Doubtful(f"no idle baseline: {why}", "leave the device to this process alone")

    def _windows(self, length: float, idle: Idle) -> list[Window]:
        windows: list[Window] = []
        wanted = self.plan.min_windows
        closing = self.plan.idle_seconds + self.plan.settle_seconds
        while len(windows) < wanted and self._left() >= length + self.plan.settle_seconds + closing:
            try:
                windows.append(self._window(length, idle))
            except Disturbed as reason:
                self.rejected[str(reason)] += 1
                if self.rejected.total() > self.plan.max_rejected:
                    break
                continue
            if len(windows) == self.plan.min_windows:
                grain = max(window.resolution for window in windows)
                share = max(self.plan.precision - grain, GRAIN_SHARE * self.plan.precision)
                wanted = windows_needed([window.joules for window in windows], share)
        if len(windows) < self.plan.min_windows:
            raise Doubtful(
                f"{len(windows)} valid windows, {self.plan.min_windows} needed",
                "leave the device to this process alone, cool it, lock its clocks (nvidia-smi -lgc), or give more time",
            )
        return windows

    def _window(self, length: float, idle: Idle) -> Window:
        """One window.  Disturbed with the reason if it must not be used."""
        self._cool_down()
        self.host.sleep(self.random.uniform(0.0, self.period or SAMPLING_SECONDS))
        start = self.source.state()
        self.start = self.start or start
        stopwatch = self.host.stopwatch()
        stopwatch.start()
        loop, record = self._watched(partial(self._loop, self.plan.settle_seconds + length, self.source.origin.partly_sampled))
        if reason := stopwatch.stop().disturbed:
            raise Disturbed(reason)
        span = record.span(loop.start + self.plan.settle_seconds, loop.end)
        if self.period is not None and span.ticks < self.plan.min_ticks:
            raise Disturbed("too few steps of the counter")
        if self.source.origin.partly_sampled:
            span = replace(span, jitter_seconds=span.jitter_seconds + UNSEEN * (self.period or SAMPLING_SECONDS))
        if span.resolution > self.plan.precision:
            raise Disturbed("the counter's steps could not be placed in time")
        paused, integral = loop.paused(span), record.integral(span.start, span.end)
        watts = (span.joules - idle.watts * paused) / (span.seconds - paused)
        if not watts > 0:
            raise Disturbed("no energy was counted")
        ratio = span.joules / integral if self.period is not None and integral else None
        states = tuple(state for seconds, state in record.states if span.start <= seconds <= span.end)
        middle = (span.start + span.end) / 2
        return Window(middle, watts, loop.seconds_per_call, loop.calls, span.resolution, ratio, start, states)

    def _cool_down(self) -> None:
        """Wait until the device is as cool as before the first window."""
        if self.start is None or self.start.temperature_celsius is None:
            return
        warmest = self.start.temperature_celsius + self.plan.warmer_celsius
        deadline = self.host.clock() + min(self.plan.cool_seconds, self._left())
        while (self.source.state().temperature_celsius or 0.0) > warmest:
            if self.host.clock() >= deadline:
                raise Disturbed("the device did not cool down")
            self.host.sleep(0.1)

    def _loop(self, seconds: float, shift_phase: bool = False) -> _Loop:
        """Repeat the work for so long; with short pauses, evenly spaced, that add up to whole sampling periods, if wanted."""
        clock, pauses, calls = self.host.clock, list[tuple[float, float]](), 0
        measured = seconds - self.plan.settle_seconds
        # Whole periods in all look at every phase alike; how many is drawn anew for each window, so that pauses which just undo
        # the drift between work and sampling in one window don't in the next
        pause = self.random.choice((1, 2, 3)) * (self.period or SAMPLING_SECONDS) / PHASES
        start = now = clock()
        while now - start < seconds:
            for _ in range(self.batch):
                self.work()
            self.host.synchronise()
            calls, now = calls + self.batch, clock()
            if shift_phase and now - start > self.plan.settle_seconds + (len(pauses) + 1) * measured / PHASES and now - start < seconds:
                self.host.sleep(pause)
                pauses.append((now, clock()))
        return _Loop(start, now, calls, tuple(pauses))

    def _watched(self, run: Callable[[], T], sample_seconds: float = SAMPLE_SECONDS) -> tuple[T, Record]:
        watch = Watch(self.source, self.host.clock, self.host.every, sample_seconds)
        watch.start()
        try:
            result = run()
        finally:
            record = watch.stop()
        return result, record

    def _conclude(self, windows: list[Window], before: Idle, after: Idle) -> Energy:
        ratio = counter_ratio(windows)
        check_idle(before, after, self.plan.idle_drift_watts, self.plan.idle_drift)
        check_counter(ratio)
        net, gross = net_and_gross(windows, before, after, self.plan.min_windows)
        check_width(gross, len(windows), self.plan.widest)
        energy = Energy(
            gross=gross,
            net=net,
            seconds=fmean(window.seconds_per_call for window in windows),
            origin=self.source.origin,
            windows=len(windows),
            repetitions=sum(window.calls for window in windows),
            rejected=dict(self.rejected),
            period_seconds=self.period,
            counter_ratio=ratio,
            idle_watts=(before.watts, after.watts),
            start=windows[0].start,
            loaded=windows[-1].states[-1],
            throttle=throttle_bits(windows),
        )
        return replace(energy, warnings=doubts(energy))

    def _left(self) -> float:
        return self.plan.seconds - (self.host.clock() - self.began)

    def explained(self, reason: Doubtful) -> str:
        rejected = ", ".join(f"{count} x {why}" for why, count in self.rejected.most_common()) or "none"
        return f"no result: {reason}; rejected windows: {rejected}; time budget {self.plan.seconds:g} s: {reason.remedy}"
