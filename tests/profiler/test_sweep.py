from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs.families import Network, default_widths, largest_widths
from costs.table import CostEntry, CostTable, NoCost, Setting
from profiler.meters import METERS, PowerModel, WallClock
from profiler.sweep import as_entries, grid, plan
from profiler.timing import Measurement, interleave
from profiler.units import unit_work

ONE = Setting()
SEED = Network("mobilenet_v1", (8,) * 14, 16, 1, 10)


@pytest.fixture(autouse=True)
def _calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """No reading is rejected, however busy the machine that runs the tests."""
    monkeypatch.setitem(METERS, "wall_clock", lambda: WallClock(scheduler_delay=lambda: 0.0, page_faults=lambda: 0))


def test_the_grid_is_fine_below_64_and_has_four_steps_per_doubling_above() -> None:
    assert grid(8, 32) == [8, 16, 24, 32]
    assert grid(5, 20) == [5, 8, 16, 24]
    assert grid(36, 100) == [36, 40, 48, 56, 64, 80, 96, 112]
    assert grid(128, 512) == [128, 160, 192, 224, 256, 320, 384, 448, 512]
    assert grid(20, 20) == [20]


@given(st.integers(2, 2000), st.floats(1, 8))
def test_a_grid_starts_at_the_groups_width_and_covers_the_largest(width: int, growth: float) -> None:
    largest = largest_widths((width,), growth)[0]
    points = grid(width, largest)
    assert points[0] == width
    assert points == sorted(set(points))
    assert points[-1] >= largest
    assert points[-2] < largest if len(points) > 1 else largest == width
    assert all(after <= max(before + 8, 1.25 * before) for before, after in pairwise(points))


def test_the_plan_keeps_a_sane_size() -> None:
    quarter = Network("mobilenet_v1", default_widths("mobilenet_v1", 0.25), 32, 3, 10)
    assert len(plan(SEED.wiring(), (32,) * 14)) < 150
    assert len(plan(quarter.wiring(), largest_widths(quarter.widths, 4))) < 700


@given(st.lists(st.integers(8, 32), min_size=14, max_size=14))
def test_a_table_of_the_plan_answers_for_every_width_that_growth_may_choose(widths: list[int]) -> None:
    answers = TABLE.entry
    for shape in SEED.wiring().shapes(widths):
        assert answers(shape, ONE, "latency_ms").value >= shape.macs


def test_a_table_of_the_plan_covers_residual_networks_and_refuses_wider_ones() -> None:
    network = Network("mobilenet_v2", default_widths("mobilenet_v2", 0.1), 16, 3, 10)
    wiring, largest = network.wiring(), largest_widths(network.widths, 2)
    table = table_of(network, largest)
    for widths in (network.widths, largest, [w + 1 for w in network.widths]):
        for shape in wiring.shapes(widths):
            assert table.entry(shape, ONE, "latency_ms").value >= shape.macs
    with pytest.raises(NoCost):
        table.entry(wiring.shapes([8 * w for w in largest])[0], ONE, "latency_ms")


def test_the_seeds_own_widths_are_measured_not_interpolated() -> None:
    network = Network("plain", (5, 9, 13), 16, 3, 4)
    table = table_of(network, largest_widths(network.widths, 3))
    assert all(table.entry(shape, ONE, "latency_ms").kind == "measured" for shape in network.wiring().shapes())


def test_depthwise_layers_are_also_measured_off_the_grid() -> None:
    widths = {shape.in_channels for shape in plan(SEED.wiring(), (32,) * 14) if shape.depthwise}
    assert widths == {8, 15, 16, 23, 24, 31, 32}


def table_of(network: Network, largest: tuple[int, ...]) -> CostTable:
    """A table whose costs are the MACs: never falling with a width, so a step never prices below the truth."""
    measured = Measurement(1.0, 1.0, 1.0, 5, 0)
    return CostTable(
        "bench",
        (
            CostEntry(s, ONE, "latency_ms", s.macs, "ms", "measured", s.macs, s.macs, "wall_clock", measured.repetitions, 0, "2026-01-01")
            for s in plan(network.wiring(), largest)
        ),
    )


TABLE = table_of(SEED, (32,) * 14)


def test_what_an_estimating_meter_reads_is_never_called_measured() -> None:
    meter = PowerModel(10.0, WallClock(scheduler_delay=lambda: 0.0, page_faults=lambda: 0))
    shapes = plan(Network("plain", (4, 4), 8, 1, 3).wiring(), (4, 4))
    results = interleave(unit_work(shapes, ONE), meter, 0.5).results
    entries = as_entries(results, ONE, "energy_mj")
    assert entries
    assert {(e.kind, e.unit, e.meter, e.scope) for e in entries} == {("estimated:power_model", "mJ", "power_model", "declared")}
