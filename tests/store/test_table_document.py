"""A table that travels from one store to another arrives whole, with its origin, or not at all."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from costs.shapes import LayerShape
from costs.table import Anchor, Calibration, CostEntry, CostTable, Setting
from store import devices
from store.database import Database
from store.table_document import MOST_ENTRIES, TableDocument, as_json
from store.views import Device, MeasuredElsewhere, UnknownDevice

FINGERPRINT = {"cpu": "some CPU", "threads": 1, "flags": ["a", "b"]}
SHAPES = (
    LayerShape("conv2d", 8, 16, 3, 2, 1, 14, 14, True, "silu", True),
    LayerShape("conv2d", 8, 8, 3, 1, 8, 14, 14),
    LayerShape("linear", 16, 10),
)
ENTRIES = [
    CostEntry(s, Setting(4, 2), "latency_ms", 0.1, "ms", "measured", 0.09, 0.11, "wall_clock", 9, 1, "2026-01-02T03:04:05Z") for s in SHAPES
]
CALIBRATION = Calibration("latency_ms", Setting(4, 2), 1.5, 2.0, (Anchor("seed", (8, 16), 1.0, 1.5, 1.4, 1.6),))


@pytest.fixture
def exported(db: Database) -> str:
    devices.register(db, "pi-4", FINGERPRINT)
    devices.save_table(db, None, CostTable("pi-4", ENTRIES, [CALIBRATION]))
    return "".join(as_json(*devices.open_table(db, "pi-4")))


def changed(document: str, **entry: Any) -> str:
    """The document with its first entry changed."""
    data = json.loads(document)
    shape = entry.pop("shape", {})
    data["entries"][0] |= entry
    data["entries"][0]["shape"] |= shape
    return json.dumps(data)


def test_a_table_arrives_as_it_left_and_makes_its_device_known(db: Database, exported: str) -> None:
    document = TableDocument.model_validate_json(exported)
    device = devices.import_table(db, "copy", document)
    assert (device.fingerprint, device.measured_fingerprint, device.expired) == (FINGERPRINT, FINGERPRINT, None)
    assert (device.entries, device.calibrations, device.table_version) == (3, 1, 1)
    assert device.measured_at is not None
    assert device.measured_at.isoformat() == "2026-01-02T03:04:05+00:00", "when it was measured, not when it came"
    first, second = devices.load_table(db, "pi-4"), devices.load_table(db, "copy")
    assert (list(second), second.calibrations) == (list(first), first.calibrations)
    assert "".join(as_json(*devices.open_table(db, "copy"))) == exported.replace('"pi-4"', '"copy"')


def test_importing_again_changes_nothing_but_the_version(db: Database, exported: str) -> None:
    device = devices.import_table(db, "pi-4", TableDocument.model_validate_json(exported))
    assert (device.entries, device.table_version) == (3, 2)
    assert "".join(as_json(*devices.open_table(db, "pi-4"))) == exported


def test_a_dry_run_keeps_nothing(db: Database, exported: str) -> None:
    device = devices.import_table(db, "copy", TableDocument.model_validate_json(exported), dry_run=True)
    assert device.entries == 3
    with pytest.raises(UnknownDevice):
        devices.device(db, "copy")


def test_numbers_of_two_machines_are_never_mixed(db: Database, exported: str) -> None:
    devices.register(db, "other", {"cpu": "another"})
    devices.save_table(db, None, CostTable("other", ENTRIES[:1]))
    with pytest.raises(MeasuredElsewhere, match=r"other has a table .*cpu was 'another', is 'some CPU'.*a device name of its own"):
        devices.import_table(db, "other", TableDocument.model_validate_json(exported))
    assert (devices.device(db, "other").entries, devices.device(db, "other").table_version) == (1, 1)


def test_a_device_that_was_not_measured_takes_a_table_of_another_state_and_says_so(db: Database, exported: str) -> None:
    devices.register(db, "other", {**FINGERPRINT, "cpu": "another"})
    device = devices.import_table(db, "other", TableDocument.model_validate_json(exported))
    assert device.entries == 3
    assert "(cpu was 'some CPU', is 'another'): its prices may no longer hold" in str(device.expired)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"value": -1.0}, "value is -1 .*above 0"),
        ({"value": 0.5, "high": 0.2}, "value is 0.5 with interval 0.09 to 0.2; it must lie inside"),
        ({"value": 0.0, "low": 0.0}, "value is 0 .*above 0"),
        ({"high": None}, "an interval has one end only"),
        ({"net": 0.05}, "a net value has none; give all"),
        ({"repetitions": -1}, "repetitions is -1; it must be 0 or more"),
        ({"sensor_error": -0.1}, "sensor_error is -0.1; it must be 0 or more"),
        ({"shape": {"groups": 3}}, "groups is 3 with channels 8->16; it must divide both"),
        ({"shape": {"op": "linear"}}, "a linear layer has kernel, stride, height and width 1"),
        ({"shape": {"op": "max_pool"}}, "channels are 8->16; max_pool gives out what it takes in"),
        ({"setting": {"batch": 4, "threads": 2, "dtype": 41 * "x", "layout": "contiguous"}}, "dtype has 41 characters; it may have 40"),
        ({"value": "NaN"}, "finite number"),
        ({"unit": "s"}, "unit is 's'; latency_ms is in ms: convert"),
        ({"kind": "interpolated"}, "kind is interpolated; .*leave it out"),
        ({"kind": "guessed"}, "kind"),
        ({"quantity": "macs", "unit": "MACs"}, "counted and never measured"),
        ({"measured_at": "yesterday"}, "measured_at is 'yesterday'; .*2026-01-31"),
        ({"shape": {"in_channels": 0}}, "widths are 0->16; .*leave this one out"),
        ({"shape": {"stride": 0}}, "stride is 0; it must be 1 or more"),
        ({"repititions": 3}, "repititions"),
    ],
)
def test_what_can_be_no_entry_is_refused_in_words(change: dict[str, Any], words: str) -> None:
    device = Device("pi-4", {}, 1, 3, 1, datetime.now(UTC), None, FINGERPRINT)
    document = "".join(as_json(device, CostTable("pi-4", ENTRIES, [CALIBRATION])))
    TableDocument.model_validate_json(document)
    with pytest.raises(ValidationError, match=words):
        TableDocument.model_validate_json(changed(document, **change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scale": 0}, "scale is 0, .*above 0"),
        ({"kind": "exact"}, "quantity is latency_ms, kind exact; what is measured or estimated is calibrated"),
        ({"quantity": "macs"}, "quantity is macs, kind measured"),
        ({"anchors": []}, "anchors are none; .*give those that it was fitted to"),
        (
            {"anchors": [{"name": "a", "widths": [8], "layer_sum": 1, "measured": 2, "low": 3, "high": 4}]},
            "anchor 'a' has .*inside: correct",
        ),
    ],
)
def test_what_can_be_no_calibration_is_refused_in_words(exported: str, change: dict[str, Any], words: str) -> None:
    document = json.loads(exported)
    document["calibrations"][0] |= change
    with pytest.raises(ValidationError, match=words):
        TableDocument.model_validate_json(json.dumps(document))


@pytest.mark.parametrize(
    ("fingerprint", "words"),
    [
        ({"threads": "auto"}, "threads is 'auto'; it must be a whole number from 1 to 256"),
        ({"threads": None}, "threads is None"),
        ({"threads": True}, "threads is True"),
        ({"threads": 0}, "threads is 0"),
        ({"clock": float("nan")}, "not JSON compliant|finite number"),
    ],
)
def test_a_fingerprint_that_no_device_can_have_is_refused(exported: str, fingerprint: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TableDocument.model_validate({**json.loads(exported), "fingerprint": fingerprint})


def test_a_document_of_too_many_entries_is_refused_as_one_error(exported: str, monkeypatch: pytest.MonkeyPatch) -> None:
    document = json.loads(exported)
    with pytest.raises(ValidationError, match=f"at most {MOST_ENTRIES} items") as caught:
        TableDocument.model_validate({**document, "entries": (MOST_ENTRIES + 1) * document["entries"][:1]})
    assert caught.value.error_count() == 1


def test_the_date_of_the_last_measurement_never_goes_back(db: Database, exported: str) -> None:
    newer = changed(exported, measured_at="2026-05-06T00:00:00Z")
    for document in (newer, exported):
        device = devices.import_table(db, "copy", TableDocument.model_validate_json(document))
        assert device.measured_at is not None
        assert device.measured_at.isoformat() == "2026-05-06T00:00:00+00:00"
