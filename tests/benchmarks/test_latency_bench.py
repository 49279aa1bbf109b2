"""What the latency benchmark says of numbers that are known."""

from typing import Any

import pytest

from benchmarks import latency_curve, latency_steps
from benchmarks.latency_networks import Row, _errors, affine_leave_one_out
from benchmarks.latency_steps import STEPS, Step, _compared, _is_free, _over_places
from costs.table import Anchor, Calibration, CostEntry, CostTable, Setting, TableCost
from profiler.paired import Difference
from profiler.sweep import plan
from profiler.timing import NoResult

FREE = next(step for step in STEPS if step.free)
DEAR = STEPS[0]


def cost(step: Step, after_ms: float) -> TableCost:
    """A table in which the networks of a step differ by ``after_ms``, all in the stem."""
    before, after = (network.wiring() for network in step.networks)
    stems = {before.shapes()[0]: 1.0, after.shapes()[0]: 1.0 + after_ms}
    setting = latency_steps.SETTING
    shapes = {*plan(before, before.widths), *plan(after, after.widths)}
    entries = [
        CostEntry(shape, setting, "latency_ms", stems.get(shape, 0.0), "ms", "measured", None, None, "wall_clock", 9, 0, "2026-01-01")
        for shape in shapes
    ]
    return TableCost(CostTable("bench", entries, [Calibration("latency_ms", setting, 1.0, 0.0, ())]), "latency_ms", setting)


def difference(median: float, half: float = 0.1) -> Difference:
    return Difference(median, median - half, median + half, 20.0, 30)


@pytest.mark.parametrize(("table", "measured", "good"), [(1.0, 1.0, True), (1.2, 1.0, True), (1.3, 1.0, False), (0.7, 1.0, False)])
def test_a_step_is_priced_within_a_quarter_of_what_was_measured(table: float, measured: float, good: bool) -> None:
    found = _compared(DEAR, [cost(DEAR, table)], difference(measured))
    assert found["within_target"] is good
    assert found["error_percent"] == pytest.approx(100 * (table / measured - 1))


def test_the_median_of_the_tables_is_judged_and_each_is_given() -> None:
    found = _compared(DEAR, [cost(DEAR, added) for added in (0.9, 1.6, 1.1)], difference(1.0))
    assert found["within_target"]
    assert found["table_ms"] == pytest.approx(1.1)
    assert found["tables_ms"] == pytest.approx([0.9, 1.6, 1.1])


@pytest.mark.parametrize(("table", "measured", "good"), [(0.0, 0.05, True), (0.0, 1.0, False), (1.0, 0.0, False)])
def test_a_free_step_must_be_free_when_measured_and_in_the_table(table: float, measured: float, good: bool) -> None:
    assert _compared(FREE, [cost(FREE, table)], difference(measured))["within_target"] is good


def test_a_step_that_could_not_be_measured_misses_its_target() -> None:
    found: dict[str, Any] = _compared(DEAR, [cost(DEAR, 1.0)], NoResult("0 undisturbed pairs"))
    assert (found["within_target"], found["reason"]) == (False, "0 undisturbed pairs")


def test_a_step_that_adds_less_than_one_percent_of_the_network_or_saves_is_free() -> None:
    assert _is_free(0.19, 20.0)
    assert _is_free(-3.0, 20.0)
    assert not _is_free(0.21, 20.0)


def test_differences_are_the_median_over_places() -> None:
    processes = [difference(value) for value in (0.1, 0.9, 0.4, 0.5, 0.3)]
    found = _over_places([*processes, NoResult("too busy")])
    assert isinstance(found, Difference)
    assert (found.median, found.low, found.high, found.rounds) == (0.4, 0.1, 0.9, 150)
    lacking = _over_places([*processes[:4], NoResult("too busy")])
    assert isinstance(lacking, NoResult)
    assert "4 of 5 places gave a difference, 5 needed" in str(lacking)


def test_a_line_with_an_intercept_predicts_what_lies_on_it() -> None:
    assert affine_leave_one_out([1, 2, 3, 5], [5, 7, 9, 13]) == pytest.approx([0, 0, 0, 0])


def test_families_with_scales_of_their_own_are_judged_apart_and_together() -> None:
    rows = [
        Row(family, Anchor(str(total), (), total, scale * total, 0, 0), 20, 1e6 * total**0.5)
        for family, scale in (("mobilenet_v1", 1.3), ("plain", 1.1))
        for total in (1.0, 2.0, 3.0, 4.0)
    ]
    found = _errors(rows, target=5.0)
    assert found["mean_error_percent"]["fit_per_family"]["table"] == pytest.approx(0, abs=1e-9)
    assert found["mean_error_percent"]["one_fit"]["table"] > 5
    assert found["within_target"] == {"fit_per_family": True, "one_fit": False}
    assert found["mean_error_percent"]["fit_per_family"]["macs"] > 5


def test_a_table_is_judged_by_the_networks_as_measured_by_the_end() -> None:
    anchors = tuple(Anchor(str(total), (), total, 99.0, 0, 0) for total in (1.0, 2.0, 3.0))
    calibration = Calibration("latency_ms", Setting(), 1.0, 0.0, anchors)
    assert latency_curve._error(calibration, {"1.0": 1.5, "2.0": 3.0, "3.0": 4.5}) == pytest.approx(0, abs=1e-9)
