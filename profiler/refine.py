"""Further widths to measure, where the cost of a network bends.

Between two measured widths the step model charges for the upper one.  That is right where both cost alike, a plateau, which is left
alone; elsewhere a width between them says where the step is.  Above 64 the grid is coarse, so that is where widths are added: first
those that explain the largest rise for the time that they take, as long as a round of everything still fits often into the time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from costs.shapes import LayerShape, Unit, Wiring
from profiler.sweep import FINE_STEP, Grids, shapes_of
from profiler.timing import Measurement

WORTH = 0.005  # of a middling network: a rise below is a plateau
VECTOR = 16  # widths between are multiples of it where there is room: many devices take steps of this many channels or a part of it
VISIT_MS = 0.1  # of a visit, beside its two calls


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A width of a group below the measured one ``above``, and the milliseconds of the rise that it explains for each that it takes."""

    group: int
    width: int
    above: int
    worth: float


def refined(wiring: Wiring, grids: Grids, times: Mapping[LayerShape, float], round_seconds: float) -> list[list[int]]:
    """The grids with further widths: each interval between two is halved at most once, and a round of all shapes takes ``round_seconds``.

    ``times`` are the milliseconds of the shapes on the present grids; around one that has none, nothing is added.
    """
    finer = [list(points) for points in grids]
    spent = sum(map(_visit, times.values()))
    for candidate in sorted(_candidates(wiring, grids, times), key=lambda each: each.worth, reverse=True):
        visits = _visits(candidate, wiring, finer, grids, times)
        if spent + visits <= 1e3 * round_seconds:
            spent += visits
            finer[candidate.group] = sorted([*finer[candidate.group], candidate.width])
    return finer


def slowdown(results: Iterable[Measurement], seconds: float) -> float:
    """How many times as long as its readings themselves a session takes: for what is rejected and taken again on a busy machine."""
    return max(1.0, 1e3 * seconds / sum((_visit(found.median) * found.repetitions for found in results), VISIT_MS))


def _candidates(wiring: Wiring, grids: Grids, times: Mapping[LayerShape, float]) -> Iterator[_Candidate]:
    middling = [points[len(points) // 2] for points in grids]
    middle = _sum(wiring.shapes(middling), times)
    if middle is None:
        return
    for group, points in enumerate(grids):
        units = [unit for unit in wiring.units if group in (unit.input, unit.output)]
        for below, above in pairwise(points):
            if above - below <= FINE_STEP:
                continue
            before, after = (_sum(_at(units, middling, group, width), times) for width in (below, above))
            if before is not None and after is not None and after - before > WORTH * middle:
                candidate = _Candidate(group, _between(below, above), above, after - before)
                yield replace(candidate, worth=candidate.worth / _visits(candidate, wiring, grids, grids, times))


def _between(below: int, above: int) -> int:
    """The multiple of 16, or of 8 where none lies between, that is nearest to the middle."""
    for step in (VECTOR, FINE_STEP):
        nearest = step * round((below + above) / 2 / step)
        if below < nearest < above:
            return nearest
    return (below + above) // 2


def _at(units: Iterable[Unit], widths: Sequence[int], group: int, width: int) -> list[LayerShape]:
    at = [width if number == group else other for number, other in enumerate(widths)]
    return [unit.at(at) for unit in units]


def _visits(candidate: _Candidate, wiring: Wiring, finer: Grids, grids: Grids, times: Mapping[LayerShape, float]) -> float:
    """What all shapes that the width meets on the finer grids add to a round, each as slow as the next one that was measured."""
    group = candidate.group
    met = [[candidate.width] if number == group else points for number, points in enumerate(finer)]
    known = [[candidate.above] if number == group else _rounded_up(points, grids[number]) for number, points in enumerate(finer)]
    row = {
        shape: times.get(slower, 0.0)
        for unit in wiring.units
        if group in (unit.input, unit.output)
        for shape, slower in zip(shapes_of(unit, wiring.widths, met), shapes_of(unit, wiring.widths, known), strict=True)
    }
    return sum(map(_visit, row.values()))


def _rounded_up(points: Sequence[int], measured: Sequence[int]) -> list[int]:
    return [measured[bisect_left(measured, point)] for point in points]


def _sum(shapes: Iterable[LayerShape], times: Mapping[LayerShape, float]) -> float | None:
    """None if one of them has no time."""
    found = [times.get(shape) for shape in shapes]
    known = [time for time in found if time is not None]
    return sum(known) if len(known) == len(found) else None


def _visit(milliseconds: float) -> float:
    """What a visit takes: a call to warm the caches, and the one that is timed."""
    return 2 * milliseconds + VISIT_MS
