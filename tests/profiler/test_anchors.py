import pytest
import torch
from torch import nn

from costs.families import Network, largest_widths
from costs.table import CostEntry, CostTable, NoCost, Setting, TableCost
from profiler.anchors import anchor_widths, calibrate, measure_networks
from profiler.meters import METERS, WallClock
from profiler.sweep import plan
from profiler.timing import Measurement, NoResult

ONE = Setting()
NETWORK = Network("mobilenet_v1", (8,) * 14, 16, 1, 10)
WIRING = NETWORK.wiring()
LARGEST = largest_widths(NETWORK.widths, 4)


@pytest.fixture(autouse=True)
def _calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """No reading is rejected, however busy the machine that runs the tests."""
    monkeypatch.setitem(METERS, "wall_clock", lambda: WallClock(scheduler_delay=lambda: 0.0, page_faults=lambda: 0))


def table() -> CostTable:
    return CostTable(
        "bench",
        (
            CostEntry(s, ONE, "latency_ms", 1 + s.macs / 1e5, "ms", "measured", None, None, "wall_clock", 9, 0, "2026-01-01")
            for s in plan(WIRING, LARGEST)
        ),
    )


def measurement(value: float) -> Measurement:
    return Measurement(value, 0.99 * value, 1.01 * value, 9, 0)


def test_anchors_span_the_widths_and_half_of_the_random_ones_lie_off_the_grid() -> None:
    anchors = anchor_widths(WIRING, LARGEST, 8, seed=0)
    assert len(anchors) == len(set(anchors.values())) == 8
    assert anchors["seed"] == (8,) * 14
    assert anchors["largest"] == (32,) * 14
    assert all(low <= w <= high for a in anchors.values() for w, low, high in zip(a, WIRING.widths, LARGEST, strict=True))
    assert [any(w % 8 for w in anchors[f"random {i}"]) for i in (1, 2, 3, 4)] == [False, True, False, True]
    assert anchors == anchor_widths(WIRING, LARGEST, 8, seed=0) != anchor_widths(WIRING, LARGEST, 8, seed=1)
    assert list(anchor_widths(WIRING, LARGEST, 3, seed=0)) == ["seed", "largest", "uniform 0.33"]


def test_a_uniform_bias_is_found_and_leaves_no_error() -> None:
    costs = table()
    measured = {
        name: (w, measurement(1.37 * sum(costs.entry(s, ONE, "latency_ms").value for s in WIRING.shapes(w))))
        for name, w in anchor_widths(WIRING, LARGEST, 8, seed=0).items()
    }
    found = calibrate(costs, WIRING, measured, ONE)
    assert found.scale == pytest.approx(1.37)
    assert found.error_percent == pytest.approx(0, abs=1e-9)
    assert [anchor.name for anchor in found.anchors] == list(measured)
    assert found.anchors[0].measured == pytest.approx(1.37 * found.anchors[0].layer_sum)


def test_what_every_layer_takes_beyond_its_entry_is_found_as_well() -> None:
    costs, layers = table(), len(WIRING.units)
    measured = {
        name: (w, measurement(1.2 * sum(costs.entry(s, ONE, "latency_ms").value for s in WIRING.shapes(w)) + 0.3 * layers))
        for name, w in anchor_widths(WIRING, LARGEST, 8, seed=0).items()
    }
    found = calibrate(costs, WIRING, measured, ONE)
    assert (found.scale, found.per_layer) == (pytest.approx(1.2), pytest.approx(0.3))
    assert found.error_percent == pytest.approx(0, abs=1e-6)
    cost = TableCost(CostTable("bench", costs, [found]), "latency_ms", ONE)
    assert cost.network(WIRING.shapes(LARGEST)).value == pytest.approx(measured["largest"][1].median)


def test_too_few_anchors_or_one_outside_the_table_are_refused() -> None:
    two = {name: (w, measurement(1.0)) for name, w in anchor_widths(WIRING, LARGEST, 2, seed=0).items()}
    with pytest.raises(NoResult, match="2 whole networks measured, 3 needed"):
        calibrate(table(), WIRING, two, ONE)
    with pytest.raises(NoCost):
        calibrate(table(), WIRING, {"wide": ((64,) * 14, measurement(1.0))}, ONE)


def test_whole_networks_are_measured_in_eval_mode_and_left_as_they_were() -> None:
    modes: list[bool] = []

    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            modes.append(self.training or torch.is_grad_enabled())
            return x + 1

    spies = {"a": Spy().train(), "b": Spy().eval()}
    threads = torch.get_num_threads()
    measured = measure_networks(spies, torch.zeros(2, 3), Setting(batch=2), seconds=0.2)
    assert measured.results.keys() | measured.missing.keys() == {"a", "b"}
    assert all(m.repetitions >= 5 and m.low <= m.median <= m.high for m in measured.results.values())
    assert not any(modes)
    assert [spy.training for spy in spies.values()] == [True, False]
    assert torch.get_num_threads() == threads


def test_an_example_of_another_batch_size_is_refused() -> None:
    with pytest.raises(ValueError, match="the example holds 4 images; the setting is batch 1"):
        measure_networks({"a": nn.Identity()}, torch.zeros(4, 1), ONE, seconds=0.1)
