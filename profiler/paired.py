"""The price of a change, measured: two networks in turns, and the difference between them in each round.

What disturbs the machine for longer than a round falls on both and cancels, so a difference is known better than either number.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from profiler.meters import Meter
from profiler.timing import MIN_READINGS, Key, NoResult, Subject, Work, median_interval

ATTEMPTS = 10  # in a round: one disturbed reading would cost the pair


@dataclass(frozen=True, slots=True)
class Difference:
    """Median over the rounds of (changed - base), with its 95 % interval, and of the base, in the unit of the meter's quantity."""

    median: float
    low: float
    high: float
    base: float
    rounds: int


def paired_differences(
    base: Work,
    changed: Mapping[Key, Work],
    meter: Meter,
    seconds: float,
    *,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Key, Difference | NoResult]:
    """What each of ``changed`` takes beyond ``base``, in rounds of random order for ``seconds``, one round at least.

    A round without a valid reading of one of the two is no pair; with fewer than five pairs there is no result.
    """
    start, order = clock(), random.Random(seed)  # noqa: S311 - an order of visits is no secret
    subjects: dict[Key | None, Subject] = {None: Subject(base)}
    subjects.update((key, Subject(task)) for key, task in changed.items())
    for subject in subjects.values():
        subject.prepare(meter, clock)
    rounds: list[dict[Key | None, float]] = []
    while not rounds or clock() - start < seconds:
        turn = order.sample(list(subjects), len(subjects))
        found = {key: _read(subjects[key], meter) for key in turn}
        rounds.append({key: value for key, value in found.items() if value is not None})
    return {key: _difference(key, rounds) for key in changed}


def _read(subject: Subject, meter: Meter) -> float | None:
    """One valid reading per call; None if every attempt was disturbed."""
    return subject.readings[-1] if any(subject.visit(meter) for _ in range(ATTEMPTS)) else None


def _difference(key: Key, rounds: list[dict[Key | None, float]]) -> Difference | NoResult:
    pairs = [(found[None], found[key]) for found in rounds if None in found and key in found]
    if len(pairs) < MIN_READINGS:
        return NoResult(f"{len(pairs)} undisturbed pairs in {len(rounds)} rounds, {MIN_READINGS} needed; measure while it is quieter")
    differences = [after - before for before, after in pairs]
    low, high = median_interval(differences)
    return Difference(median(differences), low, high, median(before for before, _ in pairs), len(pairs))
