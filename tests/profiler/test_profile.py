import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from costs.families import Network
from costs.shapes import LayerShape
from costs.table import CostTable, NoCost, Setting, TableCost
from profiler import profile
from profiler.__main__ import main
from profiler.energy_request import EnergyRequest
from profiler.meters import METERS, WallClock
from profiler.plan import Plan
from profiler.profile import SITTINGS, profile_device
from profiler.readings import Readings
from profiler.timing import Fed, NoResult, Session

TINY = Network("plain", (4, 4), 8, 1, 3)
SETTING = Setting(batch=2)


@pytest.fixture(autouse=True)
def _calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """No reading is rejected, however busy the machine that runs the tests."""
    monkeypatch.setitem(METERS, "wall_clock", lambda: WallClock(scheduler_delay=lambda: 0.0, page_faults=lambda: 0))


def test_a_profile_prices_everything_the_network_can_become() -> None:
    messages: list[str] = []
    result = profile_device(TINY, "bench", SETTING, 2.0, 2.0, lambda _done, _total, message: messages.append(message), anchors=6)
    assert result.missing == {}
    assert result.table.device == "bench"
    assert result.fingerprint["threads"] == 1
    assert messages[0].startswith("warming up")
    for entry in result.table:
        assert (entry.unit, entry.kind, entry.meter, entry.setting) == ("ms", "measured", "wall_clock", SETTING)
        assert entry.low is not None
        assert entry.high is not None
        assert 0 < entry.low <= entry.value <= entry.high
        assert entry.repetitions >= 5
        assert entry.measured_at.endswith("+00:00")
    cost = TableCost(result.table, "latency_ms", SETTING)
    wiring = TINY.wiring()
    for widths in ((4, 4), (8, 8), (5, 7)):
        whole = cost.network(wiring.shapes(widths))
        assert whole.low is not None
        assert whole.high is not None
        assert 0 <= whole.low < whole.value < whole.high
    with pytest.raises(NoCost):
        cost.network(wiring.shapes((16, 16)))
    (calibration,) = result.table.calibrations
    assert len(calibration.anchors) == 6
    assert calibration.scale > 0
    assert CostTable.from_json(json.loads(json.dumps(result.table.to_json()))).calibrations == result.table.calibrations


def test_each_sitting_finds_its_tensors_in_other_places(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, places = profile.interleave, dict[Any, list[int]]()

    def seen(work: dict[Any, Fed], *arguments: Any, **options: Any) -> Session[Any]:
        for name, each in work.items():
            assert isinstance(each.function, torch.nn.Module)
            for number, tensor in enumerate((*each.inputs, *each.function.parameters())):
                places.setdefault((name, number), []).append(tensor.data_ptr())
        return whole(work, *arguments, **options)

    monkeypatch.setattr(profile, "interleave", seen)
    kept = Readings()
    profile_device(Network("plain", (32, 32), 16, 1, 3), "bench", SETTING, 1.1, 1.0, anchors=3, kept=kept)
    assert all(before != after for found in places.values() for before, after in pairwise(found))
    assert fmean(len(set(found)) for found in places.values()) > 3  # and not two by turns: few find again what was freed
    assert len(kept.values["seed"]) == SITTINGS


def test_a_profile_that_is_stopped_before_it_measured_gives_no_result() -> None:
    with pytest.raises(NoResult, match="0 whole networks measured, 3 needed"):
        profile_device(TINY, "bench", SETTING, seconds=1, should_stop=lambda: True)


def test_the_command_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "table.json"
    tiny = "--family plain --widths 4 4 --image-size 8 --in-channels 1 --classes 3 --max-growth 1.5 --seconds 1.5"
    assert main([*tiny.split(), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "measured" in printed
    assert "calibrated_sum" in printed
    report = json.loads(output.read_text())
    table = CostTable.from_json(report["table"])
    assert len(table) > 0
    assert {"fingerprint", "fingerprint_id", "setting", "network", "missing", "drift_percent"} <= report.keys()


def test_the_command_goes_on_from_its_readings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiler.readings.KEEP_EVERY_SECONDS", 0.0)
    readings = tmp_path / "readings.json"
    tiny = "--family plain --widths 4 4 --image-size 8 --in-channels 1 --classes 3 --max-growth 1.5 --seconds 1.5 --readings"
    with monkeypatch.context() as killed:
        killed.setattr("profiler.profile.calibrate", lambda *_: 1 / 0)  # at the very end
        with pytest.raises(ZeroDivisionError):
            main([*tiny.split(), str(readings)])
    spent = json.loads(readings.read_text())["seconds"]
    warmed_up: list[str] = []
    monkeypatch.setattr("profiler.timing.warm_up", lambda *_: warmed_up.append("again"))
    assert spent > 0
    assert main([*tiny.split(), str(readings)]) == 0
    assert not warmed_up
    assert not readings.exists()


def test_the_command_refuses_what_it_cannot_build(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--family", "plain", "--widths", "4", "4", "--image-size", "3"]) == 1
    assert "image_size is 3" in capsys.readouterr().out


def test_too_little_time_for_energies_is_said_before_anything_is_measured(stub: Any) -> None:
    def asked_too_late() -> bool:
        raise AssertionError("it measured")

    request = EnergyRequest.by("nvml_total_energy", Plan(seconds=100.0))
    with pytest.raises(NoResult, match=r"100 s hold the energy windows of 2 pieces of work; .*set energy_seconds to at least \d+"):
        profile_device(TINY, "bench", SETTING, seconds=3600, energy=request, should_stop=asked_too_late)


def test_a_layer_without_a_number_costs_the_networks_that_hold_it_their_place_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The widest layers have the longest windows, which are disturbed most."""
    whole = profile.interleave

    def lossy(*arguments: Any, **options: Any) -> Session[Any]:
        session = whole(*arguments, **options)
        widest = max((key for key in session.results if isinstance(key, LayerShape)), key=lambda shape: shape.macs)
        results = {key: found for key, found in session.results.items() if key != widest}
        return replace(session, results=results, missing={widest: NoResult("no result: waited for a core")})

    monkeypatch.setattr(profile, "interleave", lossy)
    found = profile_device(TINY, "bench", SETTING, 2.0, 1.0, anchors=6)
    assert found.missing["largest"] == "one of its layers has none"
    assert "waited for a core" in " ".join(found.warnings)
    (calibration,) = found.table.calibrations
    assert 3 <= len(calibration.anchors) < 6
    assert TableCost(found.table, "latency_ms", SETTING).network(TINY.wiring().shapes()).value > 0


def test_latencies_outlive_an_energy_session_that_abstains(
    monkeypatch: pytest.MonkeyPatch, stub: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def abstain(*_: Any) -> None:
        raise NoResult("no result: idle power went from 30.0 to 40.0 W")

    monkeypatch.setattr(profile, "measure_energy_costs", abstain)
    output = tmp_path / "table.json"
    tiny = "--family plain --widths 4 4 --image-size 8 --in-channels 1 --classes 3 --max-growth 1.5 --seconds 1 --meter nvml_total_energy"
    assert main([*tiny.split(), "--output", str(output)]) == 1
    assert "idle power went" in capsys.readouterr().out
    report = json.loads(output.read_text())
    assert report["no_energy"] == "no result: idle power went from 30.0 to 40.0 W"
    assert {entry.quantity for entry in CostTable.from_json(report["table"])} == {"latency_ms"}


def test_a_folder_that_is_not_there_is_said_before_anything_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seconds", "3600", "--output", str(tmp_path / "no" / "table.json")]) == 1
    assert "there is no folder" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("reason", [NoResult("no result: 2 whole networks measured"), NoCost("no latency_ms for conv2d")])
def test_a_machine_too_busy_leaves_no_spent_readings_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], reason: Exception
) -> None:
    """Their time budget would be spent before the next run began."""

    def abstain(*_: Any, kept: Any, **__: Any) -> None:
        kept.keep()
        raise reason

    monkeypatch.setattr("profiler.__main__.profile_device", abstain)
    readings = tmp_path / "readings.json"
    assert main(["--readings", str(readings)]) == 1
    assert str(reason) in " ".join(capsys.readouterr().out.split())
    assert readings.exists() is isinstance(reason, NoCost)
