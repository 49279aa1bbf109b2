"""Watching a device while work runs: samples of its counter, its power and its state, and what they say about a stretch of time.

Counters step (about every 100 ms on NVIDIA GPUs), so energy is taken from one step to another, never between two moments: a step is
known to lie between the last sample that showed the old value and the first that showed the new one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from profiler.meters.source import DeviceState, EnergySource

# Calls a function every so many seconds until the returned function is called.  A virtual clock gives its own.
Every = Callable[[float, Callable[[], None]], Callable[[], None]]
Clock = Callable[[], float]

SAMPLE_SECONDS = 0.0093  # no simple fraction of the 20, 25 or 100 ms at which sensors update, which would weigh some updates more
SAMPLES_PER_STATE = 10
CLOCK_CHANGE = 0.01  # relative
# A sampler that was held up so long has missed steps; it also bounds what a counter could wrap unseen (65 kJ take a minute at 1 kW)
LONGEST_GAP_SECONDS = 1.0


class Disturbed(Exception):  # noqa: N818 - an answer about a window, and no fault of the program
    """A stretch of time that must not be used; the message is the reason, the same words for the same reason."""


@dataclass(frozen=True, slots=True)
class Sample:
    seconds: float
    joules: float | None
    watts: float | None


@dataclass(frozen=True, slots=True)
class Span:
    """Energy between two moments that are known to within ``jitter_seconds`` together; ``ticks`` counts the counter's steps in it."""

    start: float
    end: float
    joules: float
    jitter_seconds: float
    ticks: int

    @property
    def seconds(self) -> float:
        return self.end - self.start

    @property
    def watts(self) -> float:
        return self.joules / self.seconds

    @property
    def resolution(self) -> float:
        """Relative: how far the mean power may be off because the ends are not known better."""
        return self.jitter_seconds / self.seconds


@dataclass(slots=True)
class Record:
    """What was seen, in order of time."""

    samples: list[Sample] = field(default_factory=list)
    states: list[tuple[float, DeviceState]] = field(default_factory=list)

    def span(self, start: float, end: float, loaded: bool = True) -> Span:
        """Energy from the counter's first step after ``start`` to its last before ``end``; without a counter, the integral of power.

        Disturbed when there is no such stretch, or something happened to the device in it.  Under load its clock must not move; an
        idle device may lower it.
        """
        self._check_samples([s for s in self.samples if start <= s.seconds <= end])
        self._check_states([state for seconds, state in self.states if start <= seconds <= end], loaded)
        return self._between_ticks(start, end) if self.samples[0].joules is not None else self._integrated(start, end)

    def ticks(self, start: float, end: float) -> list[tuple[float, float, float]]:
        """The counter's steps: (seconds, half-width in seconds of where it happened, joules from then on)."""
        within = [s for s in self.samples if start <= s.seconds <= end]
        return [
            ((before.seconds + after.seconds) / 2, (after.seconds - before.seconds) / 2, after.joules or 0.0)
            for before, after in pairwise(within)
            if after.joules != before.joules
        ]

    def integral(self, start: float, end: float) -> float | None:
        """Joules by the trapezoid rule over the power samples; None where power was not read."""
        points = [(s.seconds, s.watts) for s in self.samples if start <= s.seconds <= end and s.watts is not None]
        if len(points) < 2:
            return None
        area = sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in pairwise(points))
        # The samples don't reach quite to both ends: their mean power stands for the rest
        return area * (end - start) / (points[-1][0] - points[0][0])

    def _between_ticks(self, start: float, end: float) -> Span:
        ticks = self.ticks(start, end)
        if len(ticks) < 2:
            raise Disturbed("the counter did not tick")
        (began, before, joules), (ended, after, total) = ticks[0], ticks[-1]
        return Span(began, ended, total - joules, before + after, len(ticks) - 1)

    def _integrated(self, start: float, end: float) -> Span:
        times = [s.seconds for s in self.samples if start <= s.seconds <= end]
        joules = self.integral(times[0], times[-1]) if len(times) > 1 else None
        if joules is None:
            raise Disturbed("no power reading")
        gap = (times[-1] - times[0]) / (len(times) - 1)
        return Span(times[0], times[-1], joules, gap, len(times) - 1)

    def _check_samples(self, samples: Sequence[Sample]) -> None:
        for before, after in pairwise(samples):
            if after.joules is not None and before.joules is not None and after.joules < before.joules:
                raise Disturbed("the counter was reset")
            if after.seconds - before.seconds > LONGEST_GAP_SECONDS:
                raise Disturbed("the sampler was held up")

    def _check_states(self, states: Sequence[DeviceState], loaded: bool) -> None:
        if any(state.foreign for state in states):
            raise Disturbed("other processes on the device")
        if not loaded:
            return
        if reason := next((state.throttled_by for state in states if state.throttled_by), None):
            raise Disturbed(f"throttled ({reason})")
        for clocks in ([s.sm_clock_mhz for s in states], [s.memory_clock_mhz for s in states]):
            known = [clock for clock in clocks if clock is not None]
            if known and max(known) - min(known) > CLOCK_CHANGE * max(known):
                raise Disturbed("the clock changed")


class Watch:
    """Samples a source between ``start`` and ``stop``.  What a reading raised in the background, ``stop`` raises."""

    def __init__(self, source: EnergySource, clock: Clock, every: Every, sample_seconds: float = SAMPLE_SECONDS) -> None:
        self._source, self._clock, self._every, self._sample_seconds = source, clock, every, sample_seconds
        self._record = Record()
        self._error: Exception | None = None
        self._cancel: Callable[[], None] = _nothing

    def start(self) -> None:
        self._record, self._error = Record(), None
        self._look()
        self._cancel = self._every(self._sample_seconds, self._look_unless_failed)

    def stop(self) -> Record:
        """What was seen.  The last look is taken now."""
        self._cancel()
        if self._error is not None:
            raise self._error
        self._look(closing=True)
        return self._record

    def _look_unless_failed(self) -> None:
        if self._error is None:
            try:
                self._look()
            except Exception as error:  # whatever it is, it belongs to the caller of stop()
                self._error = error

    def _look(self, closing: bool = False) -> None:
        before = self._clock()
        joules, watts = self._source.joules(), self._source.watts()
        seconds = (before + self._clock()) / 2
        if closing or len(self._record.samples) % SAMPLES_PER_STATE == 0:
            self._record.states.append((seconds, self._source.state()))
        self._record.samples.append(Sample(seconds, joules, watts))


def in_background(seconds: float, call: Callable[[], None]) -> Callable[[], None]:
    """``Every`` in real time: a thread of its own, so that work need not pause to be watched."""
    done = threading.Event()

    def loop() -> None:
        while not done.wait(seconds):
            call()

    thread = threading.Thread(target=loop, name="energy-watch", daemon=True)
    thread.start()

    def cancel() -> None:
        done.set()
        thread.join()

    return cancel


def _nothing() -> None:
    """Nothing to cancel before the first start."""
