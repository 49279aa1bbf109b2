"""Joules per repetition, measured in windows that a counter's grain, heat, throttling and other processes can't falsify.

    warm up · find the counter's period under load · idle baseline · rounds of windows · idle baseline · conclude, or abstain

A round visits everything that still lacks windows, in random order, a fixed piece of work (the sentinel) and its twin among them: how the
sentinel's windows move tells whether the device stayed the same, how far the twins are apart what two measurements of one thing differ
by.  In long sessions the idle baseline is taken again between windows.  What is done on the device is ``profiler.bench``; what windows
add up to, and how many are needed, is ``profiler.energy``.

Where no number can be trusted there is none: ``NoResult``, with the reason and the remedy.  A device that is lost ends the session.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean
from typing import Generic, TypeVar

from profiler.bench import Bench, Subject
from profiler.energy import (
    Doubtful,
    Energy,
    Idle,
    check_counter,
    check_idle,
    check_width,
    counter_ratio,
    doubts,
    net_and_gross,
    throttle_bits,
    windows_needed,
)
from profiler.meters import EnergySource, MeterError
from profiler.meters.watch import Disturbed
from profiler.plan import GRAIN_SHARE, Host, Plan
from profiler.timing import NoResult, Progress, Work, drift, never, silent

__all__ = ["Energies", "Host", "Plan", "measure_energies", "measure_energy"]

Key = TypeVar("Key", bound=Hashable)

PLAN, HOST = Plan(), Host()


@dataclass(frozen=True, slots=True)
class Energies(Generic[Key]):
    """All results of one session.

    ``drift`` is the relative change of the sentinel's energy from the first half of its windows to the second, ``twin`` the relative
    difference between it and its twin; None without enough windows.
    """

    results: dict[Key, Energy]
    missing: dict[Key, NoResult]
    drift: float | None = None
    twin: float | None = None


def measure_energy(
    work: Work,
    source: EnergySource,
    plan: Plan = PLAN,
    host: Host = HOST,
    period_seconds: float | None = None,
    seed: int = 0,
) -> Energy:
    """Energy of one call of ``work``.  ``period_seconds`` of the counter saves finding it again.  NoResult rather than a guess."""
    try:
        found = measure_energies({"work": work}, source, plan, host, period_seconds=period_seconds, seed=seed)
    except MeterError as error:
        raise NoResult(f"no result: {error}") from error
    for reason in found.missing.values():
        raise reason
    return found.results["work"]


def measure_energies(
    work: Mapping[Key, Work],
    source: EnergySource,
    plan: Plan = PLAN,
    host: Host = HOST,
    *,
    sentinel: Work | None = None,
    period_seconds: float | None = None,
    seed: int = 0,
    progress: Progress = silent,
    should_stop: Callable[[], bool] = never,
) -> Energies[Key]:
    """Energy of one call of each piece of work, in one session; what has none is missing, with the reason.

    MeterError, and no numbers at all, when the device is lost or stops answering.
    """
    bench = Bench(source, plan, host, random.Random(seed), should_stop, period_seconds)  # noqa: S311 - a phase is no secret
    subjects = {key: Subject(task, plan.min_windows) for key, task in work.items()}
    twins = [Subject(sentinel, plan.min_windows) for _ in range(2)] if sentinel else []
    try:
        idles = _windows(bench, [*twins, *subjects.values()], progress)
    except Doubtful as reason:
        return Energies({}, {key: _no_result(reason, subject, plan) for key, subject in subjects.items()})
    return _concluded(bench, subjects, twins, idles)


def _windows(bench: Bench, subjects: Sequence[Subject], progress: Progress) -> list[Idle]:
    """Fill the subjects with windows; the idle baselines around them.  Doubtful when the session as a whole can't be trusted."""
    bench.began = bench.host.clock()
    for subject in subjects:
        bench.warm_up(subject)
    bench.period = bench.period or bench.find_period(subjects[0])
    for subject in subjects:
        subject.length = bench.window_seconds(subject)
    _check_time(bench, subjects)
    idles = [bench.idle()]
    while turn := [subject for subject in subjects if _goes_on(bench, subject)]:
        for subject in bench.random.sample(turn, len(turn)):
            if not _goes_on(bench, subject):
                continue
            _report(bench, subjects, progress)
            _visit(bench, subject, idles[-1])
            if bench.host.clock() - idles[-1].middle > bench.plan.idle_every_seconds and _goes_on(bench, subject):
                with suppress(Doubtful):  # what keeps the device busy now may be over when the next one is due
                    idles.append(bench.idle())
    if any(len(subject.windows) >= bench.plan.min_windows for subject in subjects):
        idles.append(bench.idle())
    for before, after in pairwise(idles):
        check_idle(before, after, bench.plan.idle_drift_watts, bench.plan.idle_drift)
    return idles


def _check_time(bench: Bench, subjects: Sequence[Subject]) -> None:
    """Doubtful if the fewest windows don't fit the time budget."""
    plan, windows = bench.plan, bench.plan.min_windows * len(subjects)
    working = plan.min_windows * sum(subject.length + plan.settle_seconds for subject in subjects)
    needed, left = working + 2 * (plan.idle_seconds + plan.settle_seconds), bench.left()
    if needed > left:
        longest = max(subject.length for subject in subjects)
        raise Doubtful(
            f"{windows} windows of {longest:.3g} s and two idle baselines take {needed:.3g} s, {left:.3g} s are left",
            f"give a time budget of at least {needed + plan.seconds - left:.0f} s",
        )


def _goes_on(bench: Bench, subject: Subject) -> bool:
    """It lacks windows, is not hopeless, and there is time for one and the last idle baseline."""
    plan, lacks = bench.plan, len(subject.windows) < bench.plan.min_windows
    needed = subject.length + plan.idle_seconds + 2 * plan.settle_seconds
    hopeful = subject.rejected.total() <= plan.max_rejected
    return len(subject.windows) < subject.wanted and hopeful and bench.left(overtime=lacks) >= needed


def _visit(bench: Bench, subject: Subject, idle: Idle) -> None:
    """One window, kept or counted as rejected.  The first ones say how many are wanted."""
    try:
        subject.windows.append(bench.window(subject, idle))
    except Disturbed as reason:
        subject.rejected[str(reason)] += 1
        return
    if len(subject.windows) == bench.plan.min_windows:
        grain = max(window.resolution for window in subject.windows)
        share = max(bench.plan.precision - grain, GRAIN_SHARE * bench.plan.precision)
        subject.wanted = windows_needed([window.joules for window in subject.windows], share)


def _report(bench: Bench, subjects: Sequence[Subject], progress: Progress) -> None:
    done, wanted = (sum(count) for count in zip(*((len(s.windows), s.wanted) for s in subjects), strict=True))
    seconds = int(bench.plan.seconds)
    progress(min(seconds, int(bench.host.clock() - bench.began)), seconds, f"energy, {done} of {wanted} windows")


def _concluded(bench: Bench, subjects: Mapping[Key, Subject], twins: Sequence[Subject], idles: Sequence[Idle]) -> Energies[Key]:
    results, missing = dict[Key, Energy](), dict[Key, NoResult]()
    for key, subject in subjects.items():
        try:
            results[key] = _energy(bench, subject, idles)
        except Doubtful as reason:
            missing[key] = _no_result(reason, subject, bench.plan)
    if not all(len(twin.windows) >= bench.plan.min_windows for twin in twins):
        return Energies(results, missing)
    windows = sorted((window for twin in twins for window in twin.windows), key=lambda window: window.middle)
    means = [fmean(window.joules for window in twin.windows) for twin in twins]
    return Energies(results, missing, drift([window.joules for window in windows]), means[1] / means[0] - 1 if means else None)


def _energy(bench: Bench, subject: Subject, idles: Sequence[Idle]) -> Energy:
    """What the windows add up to.  Doubtful if they can't be trusted."""
    windows, plan = subject.windows, bench.plan
    if len(windows) < plan.min_windows:
        raise Doubtful(
            f"{len(windows)} valid windows, {plan.min_windows} needed",
            "leave the device to this process alone, cool it, lock its clocks (nvidia-smi -lgc), or give more time",
        )
    ratio = counter_ratio(windows)
    check_counter(ratio)
    net, gross = net_and_gross(windows, idles, plan.min_windows)
    check_width(gross, len(windows), plan.widest)
    energy = Energy(
        gross=gross,
        net=net,
        seconds=fmean(window.seconds_per_call for window in windows),
        origin=bench.source.origin,
        windows=len(windows),
        repetitions=sum(window.calls for window in windows),
        rejected=dict(subject.rejected),
        period_seconds=bench.period,
        counter_ratio=ratio,
        idle_watts=(idles[0].watts, idles[-1].watts),
        start=windows[0].start,
        loaded=windows[-1].states[-1],
        throttle=throttle_bits(windows),
    )
    return replace(energy, warnings=doubts(energy))


def _no_result(reason: Doubtful, subject: Subject, plan: Plan) -> NoResult:
    rejected = _words(subject.rejected)
    return NoResult(f"no result: {reason}; rejected windows: {rejected}; time budget {plan.seconds:g} s: {reason.remedy}")


def _words(rejected: Counter[str]) -> str:
    return ", ".join(f"{count} x {why}" for why, count in rejected.most_common()) or "none"
