"""Which layers are measured, and what the others are estimated to draw."""

from __future__ import annotations

from typing import Any

import pytest

from costs.families import Network, largest_widths
from costs.shapes import LayerShape
from costs.table import CostEntry, CostTable, Setting
from profiler.__main__ import main
from profiler.energy import Energy, Joules
from profiler.energy_costs import _class, estimates, measure_energy_costs, shortlist
from profiler.energy_request import EnergyRequest
from profiler.meters import DeviceState, Origin
from profiler.sweep import plan
from profiler.timing import NoResult, never, silent
from profiler.windows import Energies, Plan

ONE = Setting()
WIRING = Network("mobilenet_v1", (8,) * 14, 16, 1, 10).wiring()
SHAPES = plan(WIRING, largest_widths(WIRING.widths, 2.0))
CLASSES = {_class(shape) for shape in SHAPES}


def time(shape: LayerShape) -> CostEntry:
    value = 0.01 + shape.macs / 1e6
    return CostEntry(shape, ONE, "latency_ms", value, "ms", "measured", 0.9 * value, 1.1 * value, "wall_clock", 9, 0, "2026-01-01")


TIMES = {shape: time(shape) for shape in SHAPES}


@pytest.mark.parametrize("room", [len(CLASSES), 2 * len(CLASSES), 20, 60])
def test_the_shortlist_has_every_class_and_no_more_than_there_is_room_for(room: int) -> None:
    chosen = shortlist(TIMES, room)
    assert {_class(shape) for shape in chosen} == CLASSES
    assert len(chosen) == len(set(chosen)) <= room
    if room >= 2 * len(CLASSES):
        for key in CLASSES:  # the quickest and the slowest
            alike = sorted((s for s in SHAPES if _class(s) == key), key=lambda s: TIMES[s].value)
            assert {TIMES[alike[0]].value, TIMES[alike[-1]].value} <= {TIMES[s].value for s in chosen if _class(s) == key}


def drew(watts: float, half_width: float = 1.0, seconds: float = 1e-3) -> Energy:
    gross = Joules(*(seconds * w for w in (watts, watts - half_width, watts + half_width)))
    origin, state = Origin("rapl_package", "measured", "package", "cpu 0", sensor_error=0.02), DeviceState()
    return Energy(gross, gross, seconds, origin, 5, 500, {}, 0.1, None, (5.0, 5.0), state, state, None)


def test_an_estimate_is_the_power_of_its_class_times_its_time() -> None:
    wide, deep, *others = [shape for shape in SHAPES if _class(shape) == ("conv2d", 1, False)]
    (depthwise, other, *_) = [shape for shape in SHAPES if shape.depthwise]
    measured = {wide: drew(10.0), deep: drew(14.0), depthwise: drew(4.0)}
    found = {entry.shape: entry for entry in estimates(measured, [TIMES[others[0]], TIMES[other]])}
    energy, milliseconds = found[others[0]], TIMES[others[0]]
    assert energy.value == pytest.approx(12.0 * milliseconds.value)
    assert (energy.low, energy.high) == pytest.approx((9.0 * milliseconds.interval[0], 15.0 * milliseconds.interval[1]))
    assert (energy.kind, energy.unit, energy.meter, energy.scope) == ("estimated:power_x_time", "mJ", "rapl_package", "package")
    assert (energy.sensor_error, energy.net) == (0.02, None)
    alone = found[other]  # one of its class is no range: it may draw what any layer did
    assert (alone.low, alone.high) == pytest.approx((3.0 * TIMES[other].interval[0], 15.0 * TIMES[other].interval[1]))


def test_a_time_budget_without_room_for_each_class_says_what_it_takes() -> None:
    request: Any = EnergyRequest(object(), Plan.of(5.0, 100.0))  # type: ignore[arg-type]
    wholes = {name: (WIRING.widths, lambda: None) for name in "abc"}
    with pytest.raises(NoResult, match=r"100 s hold .* of 2 pieces of work; 5 classes .*, 3 whole networks .* at least 392"):
        measure_energy_costs(CostTable("x", TIMES.values()), WIRING, wholes, ONE, request, silent, never)


def test_the_command_names_the_meter_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = "--family plain --widths 4 4 --image-size 8 --in-channels 1 --classes 3"
    assert main([*tiny.split(), "--meter", "ina3221"]) == 1
    assert "choose another meter" in capsys.readouterr().out


def test_fewer_whole_networks_than_calibrate_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    request: Any = EnergyRequest(object(), Plan.of(5.0, 1000.0))  # type: ignore[arg-type]
    reason = NoResult("no result: 2 valid windows, 5 needed")
    wholes = {name: (WIRING.widths, lambda: None) for name in "abc"}
    failed: Energies[Any] = Energies({}, dict.fromkeys("abc", reason))
    monkeypatch.setattr(EnergyRequest, "measure", lambda *_: failed)
    with pytest.raises(NoResult, match="0 whole networks and 0 layers have an energy: no result: 2 valid windows"):
        measure_energy_costs(CostTable("x", TIMES.values()), WIRING, wholes, ONE, request, silent, never)
    monkeypatch.setattr(EnergyRequest, "measure", lambda *_: Energies({}, {}))
    with pytest.raises(NoResult, match="2 whole networks were given, 3 are needed"):
        measure_energy_costs(CostTable("x", TIMES.values()), WIRING, dict(list(wholes.items())[:2]), ONE, request, silent, never)
