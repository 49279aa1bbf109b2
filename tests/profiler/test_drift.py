"""A table's entries measured again on a machine that is quicker or slower than it was, on a clock that only work moves."""

from collections.abc import Callable, Iterable

import pytest

from costs.shapes import LayerShape
from costs.table import CostEntry, CostTable, Setting
from profiler import drift
from profiler.drift import ENTRIES, measure_drift, probes
from profiler.meters import Meter, Reading
from profiler.processor import Processor
from profiler.timing import NoResult, Work

ONE = Setting()


class Machine:
    """A processor and its meter: executes a layer in its MACs times ``pace``, in nanoseconds."""

    quantity = "latency_ms"
    window_seconds = 1e-3

    def __init__(self, pace: float, disturbed: str | None = None) -> None:
        self.pace, self.disturbed, self.now, self.began = pace, disturbed, 0.0, 0.0

    def units(self, shapes: Iterable[LayerShape], _setting: Setting, _on: Processor) -> dict[LayerShape, Work]:
        return {shape: self._call(shape) for shape in shapes}

    def meter(self) -> Meter:
        return self  # type: ignore[return-value]

    def synchronise(self) -> None: ...

    def _call(self, shape: LayerShape) -> Callable[[], None]:
        def call() -> None:
            self.now += 1e-9 * shape.macs * self.pace

        return call

    def start(self) -> None:
        self.began = self.now

    def stop(self) -> Reading:
        return Reading(1e3 * (self.now - self.began), self.disturbed)


def table(widths: Iterable[int], kind: str = "measured") -> CostTable:
    shapes = [LayerShape("conv2d", width, width, 3, 1, 1, 16, 16) for width in widths]
    return CostTable("bench", [entry(shape, kind) for shape in shapes])


def entry(shape: LayerShape, kind: str) -> CostEntry:
    value = 1e-6 * shape.macs
    return CostEntry(shape, ONE, "latency_ms", value, "ms", kind, value, value, "wall_clock", 9, 0, "2026-01-01")  # type: ignore[arg-type]


def measured(monkeypatch: pytest.MonkeyPatch, machine: Machine, costs: CostTable) -> drift.Drift:
    monkeypatch.setattr(drift, "unit_work", machine.units)
    return measure_drift(costs, ONE, 1.0, machine, lambda: machine.now)  # type: ignore[arg-type]


@pytest.mark.parametrize("pace", [1.0, 0.5, 1.7])
def test_the_pace_of_the_machine_is_found(monkeypatch: pytest.MonkeyPatch, pace: float) -> None:
    found = measured(monkeypatch, Machine(pace), table(range(8, 72)))
    assert (found.ratio, found.low, found.high) == (pytest.approx(pace), pytest.approx(pace), pytest.approx(pace))
    assert found.entries == ENTRIES


def test_quick_layers_and_slow_ones_are_measured_again_but_not_the_slowest() -> None:
    widths = [found.shape.in_channels for found in probes(table(range(1, 101)), ONE)]
    assert len(widths) == ENTRIES
    assert widths == sorted(widths)
    assert widths[0] < 10
    assert 70 < widths[-1] <= 90


@pytest.mark.parametrize("entries", [13, 14, 24, 38])
def test_probes_are_spread_over_small_tables_too(entries: int) -> None:
    ranks = [found.shape.in_channels for found in probes(table(range(1, entries + 1)), ONE)]
    assert len(set(ranks)) == ENTRIES
    assert ranks[0] <= 2
    assert ranks[-1] >= 0.8 * entries


def test_a_machine_that_is_too_busy_gives_a_reason_and_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoResult, match=r"0 entries could be measured again, 6 needed: .*waited for a core"):
        measured(monkeypatch, Machine(1.0, "waited for a core"), table(range(8, 72)))


@pytest.mark.parametrize("costs", [table([]), table([8, 16, 24]), table(range(8, 72), kind="interpolated")])
def test_a_table_with_too_few_measured_latencies_can_not_be_checked(monkeypatch: pytest.MonkeyPatch, costs: CostTable) -> None:
    with pytest.raises(NoResult, match=r"6 needed: the table has [03] measured latencies for batch 1"):
        measured(monkeypatch, Machine(1.0), costs)


def test_on_this_machine_it_draws_no_random_numbers() -> None:
    import torch

    before = torch.get_rng_state()
    with pytest.raises(NoResult, match="6 needed"):
        measure_drift(table([8, 16]), ONE, 0.01)
    assert torch.equal(before, torch.get_rng_state())
