"""Devices and their measured cost tables."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from costs.table import Calibration, CostEntry, CostTable
from store.columns import database_time
from store.database import Database
from store.dialects import insert_into
from store.leases import hold
from store.tables import CalibrationRow, CostEntryRow, DeviceRow
from store.views import Device, Lease, UnknownDevice


def register(db: Database, name: str, fingerprint: dict[str, Any]) -> Device:
    """Make a device known, or give a known one its present fingerprint."""
    with db.transaction() as session:
        insert = insert_into(session, DeviceRow).values(name=name, fingerprint=fingerprint)
        session.execute(insert.on_conflict_do_update(index_elements=["name"], set_={"fingerprint": fingerprint}))
        return _view(session, name)


def all_devices(db: Database) -> list[Device]:
    """All devices, by name."""
    with db.reading() as session:
        return [_view(session, name) for name in session.scalars(select(DeviceRow.name).order_by(DeviceRow.name))]


def device(db: Database, name: str) -> Device:
    """One device.  UnknownDevice if it was never registered."""
    with db.reading() as session:
        return _view(session, name)


def table_version(db: Database, name: str) -> int:
    """How often the device's table was saved.  A loaded table stays true until this number changes.  UnknownDevice if never registered."""
    with db.reading() as session:
        version = session.scalar(select(DeviceRow.table_version).where(DeviceRow.name == name))
    if version is None:
        raise _unknown(name)
    return version


def save_table(db: Database, lease: Lease | None, table: CostTable) -> int:
    """Add a table's entries and calibrations to those of its device; what has the same key is replaced.  Returns the table's version.

    A worker passes its lease; without one (an import by hand) the write is not fenced.
    """
    with db.transaction() as session:
        if lease is not None:
            hold(session, lease)
        row = session.scalar(select(DeviceRow).where(DeviceRow.name == table.device).with_for_update())
        if row is None:
            raise UnknownDevice(f"device {table.device!r} is not registered; `wattle devices` lists those that are")
        _upsert(session, CostEntryRow, [_entry_values(table.device, entry) for entry in table], "entry")
        _upsert(session, CalibrationRow, [_calibration_values(table.device, c) for c in table.calibrations], "calibration")
        row.table_version += 1
        row.measured_at = database_time()
        row.measured_fingerprint = row.fingerprint
        session.flush()
        return row.table_version


def load_table(db: Database, name: str) -> CostTable:
    """The whole cost table of a device, empty if nothing was measured yet.  UnknownDevice if it was never registered."""
    with db.reading() as session:
        _view(session, name)
        entries = session.scalars(select(CostEntryRow.entry).where(CostEntryRow.device == name).order_by(CostEntryRow.id)).all()
        calibrations = session.scalars(select(CalibrationRow.calibration).where(CalibrationRow.device == name).order_by(CalibrationRow.id))
        return CostTable.from_json({"device": name, "entries": entries, "calibrations": calibrations.all()})


def _view(session: Session, name: str) -> Device:
    row = session.get(DeviceRow, name)
    if row is None:
        raise _unknown(name)
    entries, calibrations = (
        session.scalar(select(func.count()).select_from(table).where(table.device == name)) or 0 for table in (CostEntryRow, CalibrationRow)
    )
    return Device(
        row.name, row.fingerprint, row.table_version, entries, calibrations, row.registered_at, row.measured_at, row.measured_fingerprint
    )


def _unknown(name: str) -> UnknownDevice:
    return UnknownDevice(f"device {name!r} is unknown; `wattle devices` lists the known ones, `wattle profile` measures a new one")


def _entry_values(name: str, entry: CostEntry) -> dict[str, Any]:
    shape_key = {"shape_key": _key(asdict(entry.shape))}
    return {"device": name, "quantity": entry.quantity, **shape_key, "setting_key": _key(asdict(entry.setting)), "entry": asdict(entry)}


def _calibration_values(name: str, calibration: Calibration) -> dict[str, Any]:
    setting_key = _key(asdict(calibration.setting))
    return {"device": name, "quantity": calibration.quantity, "setting_key": setting_key, "calibration": asdict(calibration)}


def _key(fields: dict[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def _upsert(session: Session, table: type[CostEntryRow] | type[CalibrationRow], rows: list[dict[str, Any]], data: str) -> None:
    if rows:
        insert = insert_into(session, table)
        keys = [column for column in rows[0] if column != data]
        session.execute(insert.on_conflict_do_update(index_elements=keys, set_={data: insert.excluded[data]}), rows)
