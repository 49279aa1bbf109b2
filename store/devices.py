"""Devices and their measured cost tables."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Text, bindparam, cast, func, select, update
from sqlalchemy.orm import Session

from costs.table import Calibration, CostTable
from store import entries
from store.columns import database_time
from store.database import Database
from store.dialects import insert_into
from store.entries import StoredEntries, fingerprint_digest
from store.leases import hold
from store.table_document import TableDocument
from store.tables import CalibrationRow, DeviceRow
from store.views import Device, Lease, MeasuredElsewhere, UnknownDevice, differences

_VERSION = select(DeviceRow.table_version).where(DeviceRow.name == bindparam("name"))  # made once: it is part of every answer
_FINGERPRINT = select(cast(DeviceRow.fingerprint, Text)).where(DeviceRow.name == bindparam("name"))
_ALIVE = select(DeviceRow.name).where(DeviceRow.name == bindparam("name"), DeviceRow.alive_until > database_time())


def register(db: Database, name: str, fingerprint: dict[str, Any]) -> Device:
    """Make a device known, or give a known one its present fingerprint.

    Where another fingerprint was measured before, its table comes into use again.
    """
    with db.transaction() as session:
        row = session.scalar(select(DeviceRow).where(DeviceRow.name == name).with_for_update())
        if row is None:
            insert = insert_into(session, DeviceRow).values(name=name, fingerprint=fingerprint)
            session.execute(insert.on_conflict_do_update(index_elements=["name"], set_={"fingerprint": fingerprint}))
        elif row.fingerprint != fingerprint:
            row.fingerprint = fingerprint
            row.table_version += 1 if row.table_version else 0
            if entries.count(session.connection(), name, fingerprint_digest(fingerprint)):
                row.measured_fingerprint = fingerprint
            session.flush()
        return _view(session, name)


def keep_alive(db: Database, name: str, seconds: float) -> None:
    """Say that a worker listens for the device's profile jobs, and will for so many more seconds; 0: that it leaves."""
    with db.transaction() as session:
        session.execute(update(DeviceRow).where(DeviceRow.name == name).values(alive_until=database_time(seconds)))


def all_devices(db: Database) -> list[Device]:
    """All devices, by name."""
    with db.reading() as session:
        return [_view(session, name) for name in session.scalars(select(DeviceRow.name).order_by(DeviceRow.name))]


def device(db: Database, name: str) -> Device:
    """One device.  UnknownDevice if it was never registered."""
    with db.reading() as session:
        return _view(session, name)


def threads(db: Database, name: str) -> int:
    """How many CPU threads an inference has there where nobody says otherwise; 1 on a device that was never registered."""
    return next((int(json.loads(found).get("threads", 1)) for (found,) in db.rows(_FINGERPRINT, {"name": name})), 1)


def table_version(db: Database, name: str) -> int:
    """How often the device's table was saved.  An opened table stays true until this number changes.  UnknownDevice if never registered."""
    found = db.rows(_VERSION, {"name": name})
    if not found:
        raise _unknown(name)
    version: int = found[0][0]
    return version


def save_table(db: Database, lease: Lease | None, table: CostTable) -> int:
    """Add a table's entries and calibrations to those of its device; what has the same key is replaced.  Returns the table's version.

    Numbers that were measured on another state of the device (its fingerprint) are kept, but belong to no table any more until the
    device is that again.  A worker passes its lease; without one the write is not fenced.
    """
    with db.transaction() as session:
        if lease is not None:
            hold(session, lease)
        row = session.scalar(select(DeviceRow).where(DeviceRow.name == table.device).with_for_update())
        if row is None:
            raise UnknownDevice(f"device {table.device!r} is not registered; `wattle devices` lists those that are")
        row.measured_fingerprint = row.fingerprint
        row.measured_at = database_time()
        return add_to_table(session, row, table)


def import_table(db: Database, name: str, document: TableDocument, dry_run: bool = False) -> Device:
    """Add a table from elsewhere to that of a device, which becomes known by it if it was not.  Returns the device as it then is.

    MeasuredElsewhere where the device has a table that was measured on something else: all stays as it was.
    """
    with db.transaction() as session:
        new = {"name": name, "fingerprint": document.fingerprint, "table_version": 0}
        session.execute(insert_into(session, DeviceRow).on_conflict_do_nothing(), [new])  # two may bring it at once
        row = session.scalars(select(DeviceRow).where(DeviceRow.name == name).with_for_update()).one()
        if row.measured_fingerprint != document.fingerprint and _view(session, name).entries:
            raise MeasuredElsewhere(name, differences(row.measured_fingerprint or {}, document.fingerprint))
        moments = [row.measured_at if row.measured_fingerprint == document.fingerprint else None, document.measured_at]
        row.measured_fingerprint = document.fingerprint
        add_to_table(session, row, document.table(name))
        row.measured_at = max((moment for moment in moments if moment), default=row.measured_at)
        session.flush()
        device = _view(session, name)
        if dry_run:
            session.rollback()
        return device


def add_to_table(session: Session, row: DeviceRow, table: CostTable) -> int:
    """Add to the table of a device whose row is locked, as it is measured; the table's new version."""
    measured_as = fingerprint_digest(row.measured_fingerprint)
    entries.save(session, row.name, measured_as, table)
    _save_calibrations(session, row.name, measured_as, table.calibrations)
    row.table_version += 1
    session.flush()
    return row.table_version


def open_table(db: Database, name: str) -> tuple[Device, CostTable]:
    """A device, and its cost table, which reads what a question needs when it is asked.  UnknownDevice if it was never registered."""
    with db.reading() as session:
        device = _view(session, name)
        measured_as = fingerprint_digest(device.measured_fingerprint)
        return device, CostTable.over(name, StoredEntries(db, name, measured_as), _calibrations(session.connection(), name, measured_as))


def load_table(db: Database, name: str) -> CostTable:
    """The whole cost table of a device, empty if nothing was measured yet.  UnknownDevice if it was never registered."""
    with db.reading() as session:
        connection, measured_as = session.connection(), fingerprint_digest(_view(session, name).measured_fingerprint)
        return CostTable(name, entries.load(connection, name, measured_as), _calibrations(connection, name, measured_as))


def _view(session: Session, name: str) -> Device:
    row = session.get(DeviceRow, name)
    if row is None:
        raise _unknown(name)
    connection, measured_as = session.connection(), fingerprint_digest(row.measured_fingerprint)
    return Device(
        row.name, row.fingerprint, row.table_version, entries.count(connection, name, measured_as),
        _calibration_count(connection, name, measured_as), row.registered_at, row.measured_at, row.measured_fingerprint,
        session.scalar(_ALIVE, {"name": name}) is not None,
    )  # fmt: skip


def _unknown(name: str) -> UnknownDevice:
    return UnknownDevice(f"device {name!r} is unknown; `wattle devices` lists the known ones, `wattle profile` measures a new one")


def _calibration_count(connection: Connection, name: str, measured_as: str) -> int:
    of_table = (CalibrationRow.device == name, CalibrationRow.measured_as == measured_as)
    return connection.scalar(select(func.count()).select_from(CalibrationRow).where(*of_table)) or 0


def _calibrations(connection: Connection, name: str, measured_as: str) -> list[Calibration]:
    found = select(CalibrationRow.calibration).where(CalibrationRow.device == name, CalibrationRow.measured_as == measured_as)
    return [Calibration.from_json(data) for data in connection.scalars(found.order_by(CalibrationRow.id))]


def _save_calibrations(session: Session, name: str, measured_as: str, calibrations: tuple[Calibration, ...]) -> None:
    rows = [
        {
            "device": name, "measured_as": measured_as, "quantity": each.quantity, "setting_key": _key(asdict(each.setting)),
            "calibration": asdict(each),
        }
        for each in calibrations
    ]  # fmt: skip
    if rows:
        insert = insert_into(session, CalibrationRow)
        keys = ["device", "measured_as", "quantity", "setting_key"]
        session.execute(insert.on_conflict_do_update(index_elements=keys, set_={"calibration": insert.excluded.calibration}), rows)


def _key(fields: dict[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))
