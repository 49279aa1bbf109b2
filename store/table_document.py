"""A cost table as it travels between stores: a device's entries and calibrations, with the fingerprint that they were measured with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from costs.model import EXACT, estimated
from costs.shapes import check_shape
from costs.table import UNITS, Calibration, CostEntry, CostTable, Setting
from costs.widths import encoded
from store.views import Device

MOST_ENTRIES = 20_000  # in one document; larger tables come in pieces
MOST_THREADS = 256
LONGEST_WORD = 40
_ANSWERS = ("exact", "interpolated", "calibrated_sum")  # kinds of an answer, made from entries; no entry has them


def _sound(entry: CostEntry) -> CostEntry:
    """The entry, if it can be one.  ValueError with value, limit and remedy."""
    shape, setting = entry.shape, entry.setting
    encoded((shape.in_channels, shape.out_channels))
    counts = {name: getattr(shape, name) for name in ("kernel", "stride", "groups", "height", "width")}
    for name, value in {**counts, "batch": setting.batch, "threads": setting.threads}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be 1 or more: correct it, or leave this entry out")
    for name, value in {"repetitions": entry.repetitions, "rejected": entry.rejected, "sensor_error": entry.sensor_error or 0}.items():
        if value < 0:
            raise ValueError(f"{name} is {value}; it must be 0 or more: correct it, or leave this entry out")
    check_shape(shape)
    _check_setting(setting)
    if entry.quantity in EXACT:
        raise ValueError(f"quantity is {entry.quantity}, which is counted and never measured: leave this entry out")
    if entry.unit != UNITS[entry.quantity]:
        raise ValueError(f"unit is {entry.unit!r}; {entry.quantity} is in {UNITS[entry.quantity]}: convert the numbers")
    if entry.kind in _ANSWERS:
        raise ValueError(
            f"kind is {entry.kind}; a table holds measured and estimated entries, and what lies between is made of them: leave it out"
        )
    if len({entry.low is None, entry.high is None}) > 1 or len({entry.net is None, entry.net_low is None, entry.net_high is None}) > 1:
        raise ValueError("an interval has one end only, or a net value has none; give all of its numbers, or none")
    low, high = entry.interval
    if not 0 <= low <= entry.value <= high or not entry.value > 0:
        raise ValueError(f"value is {entry.value:g} with interval {low:g} to {high:g}; it must lie inside, above 0: correct it")
    measured_at(entry)
    return entry


def _check_setting(setting: Setting) -> None:
    for name, word in (("dtype", setting.dtype), ("layout", setting.layout)):
        if len(word) > LONGEST_WORD:
            raise ValueError(f"{name} has {len(word)} characters; it may have {LONGEST_WORD}: give torch's name of it")


def _calibrates(calibration: Calibration) -> Calibration:
    _check_setting(calibration.setting)
    if calibration.quantity in EXACT or not (calibration.kind == "measured" or estimated(calibration.kind)):
        words = f"quantity is {calibration.quantity}, kind {calibration.kind}"
        raise ValueError(f"{words}; what is measured or estimated is calibrated, and nothing else: leave this calibration out")
    if not calibration.anchors:
        raise ValueError("anchors are none; a calibration rests on whole networks: give those that it was fitted to, or leave it out")
    for anchor in calibration.anchors:
        if not (anchor.layer_sum > 0 and 0 < anchor.low <= anchor.measured <= anchor.high):
            numbers = f"layer_sum {anchor.layer_sum:g}, measured {anchor.measured:g} with interval {anchor.low:g} to {anchor.high:g}"
            raise ValueError(f"anchor {anchor.name!r} has {numbers}; all must be above 0, and the value inside: correct it")
    if calibration.scale <= 0 or calibration.error_percent < 0 or calibration.per_layer < 0:
        numbers = f"scale is {calibration.scale:g}, error_percent {calibration.error_percent:g}, per_layer {calibration.per_layer:g}"
        raise ValueError(f"{numbers}; they must be above 0, and 0 or more: leave this calibration out")
    return calibration


def _identifies(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """The fingerprint, if a device may have it: its threads are what questions mean that name none."""
    threads = fingerprint.get("threads", 1)
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS:
        raise ValueError(f"threads is {threads!r}; it must be a whole number from 1 to {MOST_THREADS}: correct it, or leave it out")
    json.dumps(fingerprint, allow_nan=False)  # a ValueError of its own words
    return fingerprint


class TableDocument(BaseModel):
    """A cost table with its origin, as GET /v1/devices/{name}/table writes it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_max_length=4096)

    device: str = Field(description="what the device was called where it was measured")
    fingerprint: Annotated[dict[str, Any], AfterValidator(_identifies)] = Field(
        description="what the device was when it was measured: processor, threads, torch, ..."
    )
    calibrations: tuple[Annotated[Calibration, AfterValidator(_calibrates)], ...] = ()
    entries: tuple[Annotated[CostEntry, AfterValidator(_sound)], ...] = Field(default=(), max_length=MOST_ENTRIES)

    def table(self, device: str) -> CostTable:
        """The cost table, as that of a device of this name."""
        return CostTable(device, self.entries, self.calibrations)

    @property
    def measured_at(self) -> datetime | None:
        """When its last entry was measured."""
        return max(map(measured_at, self.entries), default=None)


def measured_at(entry: CostEntry) -> datetime:
    """When the entry was measured.  ValueError for what is no date."""
    try:
        moment = datetime.fromisoformat(entry.measured_at)
    except ValueError:
        remedy = "write it as 2026-01-31T12:00:00+00:00"
        raise ValueError(f"measured_at is {entry.measured_at!r}; it must be a date and time in ISO 8601: {remedy}") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def as_json(device: Device, table: CostTable) -> Iterator[str]:
    """The document, piece by piece, one entry a line: it can be larger than memory."""
    calibrations = [asdict(calibration) for calibration in table.calibrations]
    head = {"device": device.name, "fingerprint": device.measured_fingerprint or {}, "calibrations": calibrations}
    yield json.dumps(head).removesuffix("}") + ', "entries": ['
    separator = "\n"
    for entry in table:
        yield separator + json.dumps(asdict(entry))
        separator = ",\n"
    yield "]}\n"
