"""Where widths are added: on a staircase whose steps are known, on a plateau, and within the time that there is."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs.families import Network
from costs.shapes import LayerShape
from costs.table import CostEntry, CostTable, Setting
from profiler.refine import VISIT_MS, refined, slowdown
from profiler.sweep import grids_of, shapes_on
from profiler.timing import Measurement

WIRING = Network("plain", (64, 64), 16, 3, 10).wiring()
LARGEST = (128, 256)
GRIDS = grids_of(WIRING, LARGEST)


def staircase(shape: LayerShape, lanes: int = 16) -> float:
    """Milliseconds of a device that executes channels in blocks."""
    blocks = math.ceil(shape.in_channels / lanes) * math.ceil(shape.out_channels / lanes)
    return 0.01 * blocks if shape.op == "conv2d" else 0.001


def times(grids: list[list[int]], cost: Callable[[LayerShape], float]) -> dict[LayerShape, float]:
    return {shape: cost(shape) for shape in shapes_on(WIRING, grids)}


def test_every_coarse_interval_that_rises_is_halved_at_a_multiple_of_16() -> None:
    finer = refined(WIRING, GRIDS, times(GRIDS, staircase), round_seconds=100)
    assert GRIDS == [[64, 80, 96, 112, 128], [64, 80, 96, 112, 128, 160, 192, 224, 256]]
    assert finer[0] == [64, 72, 80, 88, 96, 104, 112, 120, 128]
    assert set(finer[1]) - set(GRIDS[1]) == {72, 88, 104, 120, 144, 176, 208, 240}


def test_a_plateau_is_left_alone() -> None:
    once = refined(WIRING, GRIDS, times(GRIDS, staircase), round_seconds=100)
    twice = refined(WIRING, once, times(once, staircase), round_seconds=100)
    added = set(twice[1]) - set(once[1])
    assert added == {136, 152, 168, 184, 200, 216, 232, 248}  # halves of intervals of 16 that rise; 8 wide, they are fine enough
    thrice = refined(WIRING, twice, times(twice, staircase), round_seconds=100)
    assert thrice == twice
    flat = refined(WIRING, GRIDS, times(GRIDS, lambda _shape: 1.0), round_seconds=100)
    assert flat == GRIDS


def test_where_everything_is_a_plateau_but_one_interval_only_that_is_halved() -> None:
    finer = refined(WIRING, GRIDS, times(GRIDS, lambda shape: 2.0 if shape.out_channels > 192 else 1.0), round_seconds=100)
    assert set(finer[1]) - set(GRIDS[1]) == {208}
    assert finer[0] == GRIDS[0]


@given(st.floats(0.0, 0.5))
def test_a_round_stays_within_its_time_or_is_as_it_was(round_seconds: float) -> None:
    found = refined(WIRING, GRIDS, times(GRIDS, staircase), round_seconds)
    assert all(set(points) <= set(more) and more == sorted(set(more)) for points, more in zip(GRIDS, found, strict=True))
    if found != GRIDS:
        assert sum(2 * time + VISIT_MS for time in times(found, staircase).values()) <= 1e3 * round_seconds * 1.001


def test_around_a_shape_without_a_result_nothing_is_added() -> None:
    known = {shape: time for shape, time in times(GRIDS, staircase).items() if shape.out_channels != 160}
    added = set(refined(WIRING, GRIDS, known, round_seconds=100)[1]) - set(GRIDS[1])
    assert added == {72, 88, 104, 120, 208, 240}
    assert refined(WIRING, GRIDS, {}, round_seconds=100) == GRIDS
    middling = WIRING.shapes([points[len(points) // 2] for points in GRIDS])[0]  # by which a rise is judged
    assert refined(WIRING, GRIDS, {s: t for s, t in times(GRIDS, staircase).items() if s != middling}, round_seconds=100) == GRIDS


def test_widths_between_are_priced_exactly_once_the_steps_are_found() -> None:
    def worst(grids: list[list[int]]) -> float:
        table = CostTable("bench", (as_entry(shape, time) for shape, time in times(grids, staircase).items()))
        shapes = [shape for i in range(64, 129) for shape in WIRING.shapes((i, 2 * i))]
        return max(table.entry(shape, Setting(), "latency_ms").value / staircase(shape) - 1 for shape in shapes)

    finer = refined(WIRING, GRIDS, times(GRIDS, staircase), round_seconds=100)
    assert worst(GRIDS) > 0.1
    assert worst(finer) == pytest.approx(0)


def test_a_busy_machine_is_as_slow_as_it_shows() -> None:
    readings = [Measurement(4.0, 4.0, 4.0, 100, 0), Measurement(0.5, 0.5, 0.5, 100, 0)]
    undisturbed = 100 * (2 * 4.0 + 2 * 0.5 + 2 * VISIT_MS) / 1e3
    assert slowdown(readings, undisturbed) == pytest.approx(1)
    assert slowdown(readings, 10 * undisturbed) == pytest.approx(10, rel=0.01)
    assert slowdown([], 0.0) == 1


def as_entry(shape: LayerShape, value: float) -> CostEntry:
    return CostEntry(shape, Setting(), "latency_ms", value, "ms", "measured", value, value, "wall_clock", 9, 0, "2026-01-01")
