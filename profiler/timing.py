"""Repeated measurement of many pieces of work on a machine that others use too.

Each round visits every subject once, in random order, so that a slow minute of the machine falls on all of them.  A visit is one
call to warm the code, then as many calls as are long enough for the meter: one, on a CPU, and in the state of the caches in which a layer
of a network finds them.  A disturbed reading is dropped, counted, and taken again.
What is reported is the median with its 95 % confidence interval by order statistics, which assumes nothing about the noise.  With
fewer than five valid readings there is no result: a reason is given instead of a number.

One kind of noise is the same in every round: where a layer's tensors lie in memory moves its time by several percent for as long as they
lie there.  So a profile has several sittings, each with its tensors in other places, and an interval covers what they differ by.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from statistics import median
from typing import Generic, TypeVar

import torch
from torch import Tensor

from profiler.meters import Meter, Origin
from profiler.meters.base import THIS_PROCESS
from profiler.readings import Readings

Key = TypeVar("Key", bound=Hashable)
Work = Callable[[], object]
Synchronise = Callable[[], None]  # returns when all work that was begun is done
Progress = Callable[[int, int, str], None]  # done, total, message; both in whole seconds of the time budget

MIN_READINGS = 5
PRECISION = 0.02  # wanted half-width of the confidence interval, relative to the median
WARM_UP_AGREEMENT = 0.1
WARM_UP_CALLS = range(3, 50)
WARM_UP_SECONDS = 0.1
ATTEMPTS = 3  # in a round; long windows are disturbed more often and would otherwise end with fewer readings than short ones
# Of the sentinel: more, and readings from before an interruption are of another machine.  Alone it is 4 % quicker than among others
CHANGED = 0.15
SENTINEL = "sentinel"
ELSE_BYTES = 2 * 2**20  # the cores' own caches hold less, the one that they share more
OVERTIME = 2.0  # subjects that still lack readings when the budget is spent are visited until this multiple of it


@dataclass(frozen=True, slots=True)
class Net:
    """An energy per call without the idle power, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """Median of the valid readings per call, in the unit of the meter's quantity, with its 95 % interval; of energy windows their mean."""

    median: float
    low: float
    high: float
    repetitions: int
    rejected: int
    origin: Origin = THIS_PROCESS
    net: Net | None = None

    @property
    def half_width(self) -> float:
        """The larger side of the interval, relative to the median."""
        return max(self.high - self.median, self.median - self.low) / self.median


class NoResult(RuntimeError):  # noqa: N818 - an answer, and no fault of the program
    """No number can be given; the message says why and what would help."""


@dataclass(frozen=True, slots=True)
class Session(Generic[Key]):
    """All results of one interleaved run.

    ``drift`` is the change of the sentinel's median from the first half of the rounds to the second, relative; None without enough
    readings.  ``rounds`` counts those that visited every subject.
    """

    results: dict[Key, Measurement]
    missing: dict[Key, NoResult]
    rounds: int
    drift: float | None


def at_once() -> None:
    """Work is done when its call returns."""


@dataclass(slots=True)
class Fed:
    """Work on inputs.  After ``write`` the next call finds what it finds in use: copies of them that were just written, and the nearest
    caches full of something else."""

    function: Callable[..., object]
    inputs: tuple[Tensor, ...]
    _written: tuple[Tensor, ...] | None = field(default=None, init=False)

    def write(self) -> None:
        _something_else().add_(1)
        self._written = tuple(each + 0 for each in self.inputs)

    def __call__(self) -> object:
        inputs, self._written = self._written or self.inputs, None
        return self.function(*inputs)


@cache
def _something_else() -> Tensor:
    with torch.inference_mode(False):  # else nobody could write to it outside
        return torch.zeros(ELSE_BYTES, dtype=torch.uint8)


@dataclass(slots=True)
class Subject:
    """One piece of work, how many calls fill a window, its readings in this sitting, and those in each one before."""

    work: Work
    calls: int = 0  # until it is known how many
    readings: list[float] = field(default_factory=list)
    earlier: Sequence[Sequence[float]] = ()
    origin: Origin = THIS_PROCESS
    disturbances: Counter[str] = field(default_factory=Counter)

    def prepare(self, meter: Meter, clock: Callable[[], float], synchronise: Synchronise = at_once) -> None:
        """Find out how many calls fill a window, where that is not known."""

        def call() -> None:
            self.work()
            synchronise()

        if not self.calls:
            self.calls = max(1, math.ceil(meter.window_seconds / warm_up(call, clock)))

    def visit(self, meter: Meter) -> bool:
        """One reading; False if it was disturbed."""
        self.work()
        if isinstance(self.work, Fed):
            self.work.write()
        meter.start()
        for _ in range(self.calls):
            self.work()
        reading = meter.stop()
        if reading.disturbed is None:
            self.readings.append(reading.value / self.calls)
            self.origin = reading.origin
            return True
        self.disturbances[reading.disturbed] += 1
        return False

    def read(self, meter: Meter, enough: int) -> None:
        """Visit until there are so many readings, for as many attempts as they are worth."""
        for _ in range(ATTEMPTS * enough):
            if len(self.readings) >= enough:
                break
            self.visit(meter)

    @property
    def count(self) -> int:
        """How many readings all sittings have."""
        return len(self.readings) + sum(map(len, self.earlier))

    @property
    def all_readings(self) -> list[float]:
        """Of all sittings, in their order."""
        return [reading for sitting in (*self.earlier, self.readings) for reading in sitting]

    def measurement(self) -> Measurement | None:
        """The median of all readings; its interval holds theirs, and that of the sittings' medians.  None with too few readings."""
        if self.count < MIN_READINGS:
            return None
        readings = self.all_readings
        ends = list(median_interval(readings))
        if self.earlier:
            ends += median_interval([median(sitting) for sitting in (*self.earlier, self.readings) if sitting])
        return Measurement(median(readings), min(ends), max(ends), len(readings), self.disturbances.total(), self.origin)

    def converged(self) -> bool:
        """Whether another round of this sitting would tell little."""
        alone = replace(self, earlier=()).measurement()
        return alone is not None and alone.half_width <= PRECISION


def silent(_done: int, _total: int, _message: str) -> None:
    """No progress wanted."""


def never() -> bool:
    """Nobody stops the run early."""
    return False


def interleave(
    work: Mapping[Key, Work],
    meter: Meter,
    seconds: float,
    *,
    sentinel: Work | None = None,
    synchronise: Synchronise = at_once,
    seed: int = 0,
    progress: Progress = silent,
    should_stop: Callable[[], bool] = never,
    clock: Callable[[], float] = time.perf_counter,
    kept: Readings | None = None,
) -> Session[Key]:
    """Measure all ``work`` in rounds until every interval is within 2 % or ``seconds`` have passed: one sitting.

    A subject that has fewer than five valid readings by then is visited on, for at most as long again.  ``should_stop`` ends the
    run early, as if all time were spent.  ``sentinel`` is a fixed reference visited in every round.  ``synchronise`` waits for work that
    outlasts its call.  ``kept`` holds what earlier sittings of the same work have read, and the time that they took, which counts.  They
    belong to the result, unless they were interrupted and the sentinel says that the machine has changed since.
    """
    kept = kept or Readings()
    subjects = {key: _subject(str(key), task, kept) for key, task in work.items()}
    watch = _subject(SENTINEL, sentinel, kept) if sentinel else None
    everyone = [*subjects.values(), *([watch] if watch else [])]
    if kept.interrupted and watch and _changed(watch, meter):
        kept.forget()
    kept.interrupted = False
    start = clock() - kept.seconds
    order, rounds = random.Random(seed), 0  # noqa: S311 - an order of visits is no secret

    def report(message: str) -> None:
        progress(min(int(clock() - start), int(seconds)), int(seconds), message)

    for number, subject in enumerate(everyone):
        if should_stop():
            break
        subject.prepare(meter, clock, synchronise)
        if number % 10 == 0:
            report(f"warming up, {number} of {len(everyone)}")

    while subjects and not should_stop():
        spent = clock() - start
        lacking = [subject for subject in subjects.values() if subject.count < MIN_READINGS]
        within = sum(subject.converged() for subject in subjects.values())
        if within == len(subjects) or spent > OVERTIME * seconds or (spent > seconds and not lacking):
            break
        report(f"round {rounds + 1}, {within} of {len(subjects)} within {PRECISION:.0%}")
        turn = lacking if spent > seconds else everyone
        for subject in order.sample(turn, len(turn)):
            if should_stop() or clock() - start > OVERTIME * seconds:
                break
            any(subject.visit(meter) for _ in range(ATTEMPTS))
        else:
            rounds += turn is everyone
        kept.seconds = clock() - start
        kept.calls = {str(key): subject.calls for key, subject in subjects.items()} | ({SENTINEL: watch.calls} if watch else {})
        kept.keep()

    results = {key: measured for key, subject in subjects.items() if (measured := subject.measurement())}
    missing = {key: _no_result(subject, seconds) for key, subject in subjects.items() if key not in results}
    progress(int(seconds), int(seconds), f"{len(results)} of {len(subjects)} measured in {rounds} rounds")
    return Session(results, missing, rounds, drift(watch.all_readings) if watch else None)


def _subject(name: str, work: Work, kept: Readings) -> Subject:
    *earlier, readings = kept.sittings(name)
    return Subject(work, kept.calls.get(name, 0), readings, earlier)


def _changed(watch: Subject, meter: Meter) -> bool:
    """Whether the sentinel is not as quick as it was before the interruption.  Not where that can't be told for lack of readings."""
    before = watch.all_readings
    if len(before) < MIN_READINGS:
        return False
    now = Subject(watch.work, watch.calls)
    now.read(meter, 2 * MIN_READINGS)
    return len(now.readings) >= MIN_READINGS and abs(median(now.readings) / median(before) - 1) > CHANGED


def warm_up(work: Work, clock: Callable[[], float]) -> float:
    """Call until the last three durations agree within 10 %, for at most 0.1 s or three calls; seconds per call."""
    durations: list[float] = []
    start = clock()
    for _ in range(WARM_UP_CALLS.stop):
        before = clock()
        work()
        durations.append(clock() - before)
        if len(durations) >= WARM_UP_CALLS.start:
            last = durations[-3:]
            if max(last) <= (1 + WARM_UP_AGREEMENT) * min(last) or clock() - start > WARM_UP_SECONDS:
                break
    return max(min(durations[-3:]), 1e-9)


def median_interval(samples: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the median from order statistics.

    The r-th smallest and r-th largest of n independent samples enclose the median with probability 1 - 2 P(Binomial(n, 1/2) < r); the
    largest r that keeps ``confidence`` is taken.  Five samples reach 93.75 % at most: their whole range.
    """
    ordered, rank = sorted(samples), _rank(len(samples), confidence)
    return ordered[rank - 1], ordered[-rank]


@cache
def _rank(n: int, confidence: float) -> int:
    """The largest such r, at least 1.  In whole numbers: the terms are beyond a float from 1 030 samples on."""
    fewer = ways = rank = 1  # of ``all_ways``, those with fewer than ``rank`` samples below the median, and with one less than ``rank``
    all_ways = 2**n
    while rank < (n + 1) // 2:
        ways = ways * (n - rank + 1) // rank
        fewer += ways
        if 2 * fewer / all_ways > 1 - confidence:
            break
        rank += 1
    return rank


def drift(readings: Sequence[float]) -> float | None:
    """The relative change of the median from the first half to the second; None with too few readings."""
    half = len(readings) // 2
    return median(readings[half:]) / median(readings[:half]) - 1 if half >= MIN_READINGS else None


def _no_result(subject: Subject, seconds: float) -> NoResult:
    rejected = ", ".join(f"{count} x {reason}" for reason, count in subject.disturbances.most_common()) or "none"
    return NoResult(
        f"no result: {subject.count} valid readings, {MIN_READINGS} needed; rejected: {rejected}; "
        f"time budget {seconds:g} s: give more time, or measure while the machine is quieter"
    )
