"""Power times time: an estimate that keeps its interval and never loses its mark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from costs.families import Network
from costs.model import Kind
from costs.power import Power, at_declared_power, power_times_time
from costs.table import Anchor, Calibration, CostEntry, CostTable, Form, InMemory, Setting, TableCost
from costs.widths import Pair

ONE = Setting()
NETWORK = Network("plain", (4, 8), 8, 1, 3)
SHAPES = NETWORK.wiring().shapes()


def time(shape: object, milliseconds: float = 2.0) -> CostEntry:
    when = "2026-01-01T00:00:00+00:00"
    return CostEntry(shape, ONE, "latency_ms", milliseconds, "ms", "measured", 1.9, 2.2, "wall_clock", 9, 1, when)  # type: ignore[arg-type]


def test_both_intervals_are_carried_through() -> None:
    power = Power(10.0, 9.0, 12.0, "rapl_package", "package", "estimated:power_x_time", 0.05)
    energy = power_times_time(power, time(SHAPES[0]))
    assert (energy.value, energy.low, energy.high, energy.unit) == pytest.approx((20.0, 17.1, 26.4, "mJ"))
    assert (energy.quantity, energy.kind, energy.meter, energy.scope) == ("energy_mj", power.kind, "rapl_package", "package")
    assert (energy.net, energy.sensor_error, energy.repetitions) == (None, 0.05, 9)


def table() -> CostTable:
    anchors = (Anchor("seed", NETWORK.widths, 2.0 * len(SHAPES), 3.0 * len(SHAPES), 1.0, 9.0),)
    return CostTable("bench", map(time, SHAPES), [Calibration("latency_ms", ONE, 1.5, 2.0, anchors)])


def test_declared_watts_scale_every_latency_and_its_mark_is_never_lost() -> None:
    declared = at_declared_power(table(), 5.0)
    assert {entry.quantity for entry in declared} == {"energy_mj"}
    cost, latency = TableCost(declared, "energy_mj", ONE), TableCost(table(), "latency_ms", ONE)
    assert cost.calibrated_on(NETWORK.wiring())
    wholes = cost.network(SHAPES), latency.network(SHAPES)
    assert (wholes[0].value, wholes[0].low, wholes[0].high) == pytest.approx(
        tuple(5 * x for x in (wholes[1].value, wholes[1].low, wholes[1].high))
    )  # type: ignore[operator]
    assert (wholes[1].kind, wholes[1].meter, wholes[1].scope) == ("calibrated_sum", "wall_clock", "process")
    for priced in (wholes[0], cost.layer(SHAPES[0])):
        assert (priced.kind, priced.meter, priced.scope, priced.unit) == ("estimated:power_model", "power_model", "declared", "mJ")
    narrower = Network("plain", (3, 7), 8, 1, 3).wiring().shapes()
    assert declared.entry(narrower[1], ONE, "energy_mj").kind == "estimated:power_model"


def test_no_more_times_are_asked_for_than_energies_are() -> None:
    """A stored table holds a million of them."""
    asked: list[int] = []

    class Noting(InMemory):
        def find(self, layers: Sequence[tuple[Form, Pair]]) -> Sequence[CostEntry]:
            asked.append(len(layers))
            return super().find(layers)

        def __iter__(self) -> Iterator[CostEntry]:
            raise AssertionError("all of them were read")

    stored = CostTable.over("bench", Noting(map(time, SHAPES)), table().calibrations)
    assert TableCost(at_declared_power(stored, 5.0), "energy_mj", ONE).network(SHAPES[:2]).value > 0
    assert asked == [2]


@pytest.mark.parametrize(("kind", "between"), [("measured", "interpolated"), ("estimated:power_x_time", "estimated:power_x_time")])
def test_between_two_entries_there_is_no_net_and_an_estimate_stays_one(kind: Kind, between: Kind) -> None:
    entries = [replace(time(shape), kind=kind, net=1.0, net_low=0.9, net_high=1.1) for shape in SHAPES]
    found = CostTable("bench", entries).entry(Network("plain", (3, 7), 8, 1, 3).wiring().shapes()[1], ONE, "latency_ms")
    assert (found.kind, found.net, found.net_low) == (between, None, None)
