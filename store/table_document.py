"""A cost table as it travels between stores: a device's entries and calibrations, with the fingerprint that they were measured with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from costs.model import EXACT
from costs.table import UNITS, Calibration, CostEntry, CostTable
from costs.widths import encoded
from store.views import Device

_ANSWERS = ("exact", "interpolated", "calibrated_sum")  # kinds of an answer, made from entries; no entry has them


def _sound(entry: CostEntry) -> CostEntry:
    """The entry, if it can be one.  ValueError with value, limit and remedy."""
    shape, setting = entry.shape, entry.setting
    encoded((shape.in_channels, shape.out_channels))
    counts = {name: getattr(shape, name) for name in ("kernel", "stride", "groups", "height", "width")}
    for name, value in {**counts, "batch": setting.batch, "threads": setting.threads}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be 1 or more: correct it, or leave this entry out")
    if entry.quantity in EXACT:
        raise ValueError(f"quantity is {entry.quantity}, which is counted and never measured: leave this entry out")
    if entry.unit != UNITS[entry.quantity]:
        raise ValueError(f"unit is {entry.unit!r}; {entry.quantity} is in {UNITS[entry.quantity]}: convert the numbers")
    if entry.kind in _ANSWERS:
        raise ValueError(
            f"kind is {entry.kind}; a table holds measured and estimated entries, and what lies between is made of them: leave it out"
        )
    low, high = entry.interval
    if not 0 <= low <= entry.value <= high:
        raise ValueError(f"value is {entry.value:g} with interval {low:g} to {high:g}; it must lie inside, at 0 or more: correct it")
    measured_at(entry)
    return entry


def _calibrates(calibration: Calibration) -> Calibration:
    if calibration.scale <= 0 or calibration.error_percent < 0 or calibration.per_layer < 0:
        numbers = f"scale is {calibration.scale:g}, error_percent {calibration.error_percent:g}, per_layer {calibration.per_layer:g}"
        raise ValueError(f"{numbers}; they must be above 0, and 0 or more: leave this calibration out")
    return calibration


class TableDocument(BaseModel):
    """A cost table with its origin, as GET /v1/devices/{name}/table writes it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_max_length=4096)

    device: str = Field(description="what the device was called where it was measured")
    fingerprint: dict[str, Any] = Field(description="what the device was when it was measured: processor, threads, torch, ...")
    calibrations: tuple[Annotated[Calibration, AfterValidator(_calibrates)], ...] = ()
    entries: tuple[Annotated[CostEntry, AfterValidator(_sound)], ...] = ()

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
