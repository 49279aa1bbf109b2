"""One device under watch, and what can be learnt of it: its counter's period, its idle power, what it draws in one window of work.

A window loops the work back to back and takes energy from the counter's first step to its last inside it (``meters.watch``).  Parts
that sample power 25 % of the time see a repeating pattern at the same place again and again; on those, short pauses move the work's
phase evenly over the sampling period.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from profiler.energy import Doubtful, Idle, Window
from profiler.meters import DeviceState, EnergySource
from profiler.meters.watch import SAMPLE_SECONDS, Disturbed, Record, Span, Watch
from profiler.plan import GRAIN_SHARE, PERIOD_SECONDS, Host, Plan
from profiler.timing import Work, never, warm_up

T = TypeVar("T")

BATCH_SECONDS = 0.05  # of work between two looks at the clock
PERIOD_SAMPLE_SECONDS = 0.002
MIN_PERIODS = 5
MIN_CALLS = 10  # in a window, so that a cut-off repetition at its ends weighs little
PHASES = 16  # of the work against the sampling, in a window
UNSEEN = 0.5  # of a sampling period: what a window's first and last step leave open where each stands for a quarter that was seen
SAMPLING_SECONDS = 0.1  # the period of partly sampled parts, where no counter shows it
IDLE_ATTEMPTS = 3


@dataclass(slots=True)
class Subject:
    """One piece of work and its windows so far: ``wanted`` are needed, each of ``length`` seconds.  ``batch`` calls between two looks at
    the clock."""

    work: Work
    wanted: int
    batch: int = 1
    seconds_per_call: float = 0.0
    length: float = 0.0
    windows: list[Window] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)


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


@dataclass(slots=True)
class Bench:
    """A device and the host that gives it work, until the plan's time is over or ``should_stop`` says so."""

    source: EnergySource
    plan: Plan
    host: Host
    random: random.Random
    should_stop: Callable[[], bool] = never
    period: float | None = None
    start: DeviceState | None = None
    began: float = 0.0

    def left(self, overtime: bool = False) -> float:
        """Seconds of the time budget."""
        seconds = self.plan.seconds * (self.plan.overtime if overtime else 1.0)
        return 0.0 if self.should_stop() else seconds - (self.host.clock() - self.began)

    def warm_up(self, subject: Subject) -> None:
        def call() -> None:
            subject.work()
            self.host.synchronise()

        subject.seconds_per_call = warm_up(call, self.host.clock)
        subject.batch = max(1, int(BATCH_SECONDS / subject.seconds_per_call))

    def find_period(self, subject: Subject) -> float | None:
        """Seconds between two steps of the counter under this work; None for a source without a counter."""
        if self.source.joules() is None:
            return None
        for seconds in PERIOD_SECONDS:
            _, record = self._watched(partial(self._loop, subject, seconds), PERIOD_SAMPLE_SECONDS)
            if (period := counter_period(record)) is not None:
                return period
        raise Doubtful(
            f"the energy counter did not tick: {len(record.ticks(-math.inf, math.inf))} steps in {seconds:g} s of work",
            "choose a meter that integrates power (nvml_power), or power_model",
        )

    def window_seconds(self, subject: Subject) -> float:
        """Long enough for the wanted precision, the counter's steps and enough repetitions."""
        period = self.period or 0.0
        return max(
            self.plan.window_seconds,
            (self.plan.min_ticks + 2) * period,
            MIN_CALLS * subject.seconds_per_call,
            SAMPLE_SECONDS / (GRAIN_SHARE * self.plan.precision) + 2 * period,
        )

    def idle(self) -> Idle:
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

    def window(self, subject: Subject, idle: Idle) -> Window:
        """One window.  Disturbed with the reason if it must not be used."""
        self._cool_down()
        self.host.sleep(self.random.uniform(0.0, self.period or SAMPLING_SECONDS))
        start = self.source.state()
        self.start = self.start or start
        stopwatch = self.host.stopwatch()
        stopwatch.start()
        loop, record = self._watched(
            partial(self._loop, subject, self.plan.settle_seconds + subject.length, self.source.origin.partly_sampled)
        )
        if reason := stopwatch.stop().disturbed:
            raise Disturbed(reason)
        span = self._trusted(record.span(loop.start + self.plan.settle_seconds, loop.end))
        paused, integral = loop.paused(span), record.integral(span.start, span.end)
        watts = (span.joules - idle.watts * paused) / (span.seconds - paused)
        if not watts > 0:
            raise Disturbed("no energy was counted")
        ratio = span.joules / integral if self.period is not None and integral else None
        states = tuple(state for seconds, state in record.states if span.start <= seconds <= span.end)
        middle = (span.start + span.end) / 2
        return Window(middle, watts, loop.seconds_per_call, loop.calls, span.resolution, ratio, start, states)

    def _trusted(self, span: Span) -> Span:
        """The span with all that its steps leave open.  Disturbed if that is too much."""
        if self.period is not None and span.ticks < self.plan.min_ticks:
            raise Disturbed("too few steps of the counter")
        if self.source.origin.partly_sampled:
            span = replace(span, jitter_seconds=span.jitter_seconds + UNSEEN * (self.period or SAMPLING_SECONDS))
        if span.resolution > self.plan.precision:
            raise Disturbed("the counter's steps could not be placed in time")
        return span

    def _cool_down(self) -> None:
        """Wait until the device is as cool as before the first window."""
        if self.start is None or self.start.temperature_celsius is None:
            return
        warmest = self.start.temperature_celsius + self.plan.warmer_celsius
        deadline = self.host.clock() + min(self.plan.cool_seconds, self.left(overtime=True))
        while (self.source.state().temperature_celsius or 0.0) > warmest:
            if self.host.clock() >= deadline:
                raise Disturbed("the device did not cool down")
            self.host.sleep(0.1)

    def _loop(self, subject: Subject, seconds: float, shift_phase: bool = False) -> _Loop:
        """Repeat the work for so long; with short pauses, evenly spaced, that add up to whole sampling periods, if wanted."""
        clock, pauses, calls = self.host.clock, list[tuple[float, float]](), 0
        measured = seconds - self.plan.settle_seconds
        # Whole periods in all look at every phase alike; how many is drawn anew for each window, so that pauses which just undo
        # the drift between work and sampling in one window don't in the next
        pause = self.random.choice((1, 2, 3)) * (self.period or SAMPLING_SECONDS) / PHASES
        start = now = clock()
        while now - start < seconds:
            for _ in range(subject.batch):
                subject.work()
            self.host.synchronise()
            calls, now = calls + subject.batch, clock()
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


def counter_period(record: Record) -> float | None:
    """Seconds between two steps of the counter, from all that were seen; None if they were fewer than five."""
    ticks = record.ticks(-math.inf, math.inf)
    return (ticks[-1][0] - ticks[0][0]) / (len(ticks) - 1) if len(ticks) > MIN_PERIODS else None
