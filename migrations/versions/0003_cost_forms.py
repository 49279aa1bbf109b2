"""Keep cost entries by form and widths, so that a few of a million are found fast, and by what the device was when it was measured."""

import hashlib
import json
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_SAID_BY_THE_FORM = ("shape", "setting", "quantity")
_BITS = 20


def upgrade() -> None:
    connection = op.get_bind()
    entries, calibrations = _rows("cost_entries", "entry"), _rows("calibrations", "calibration")
    op.drop_table("cost_entries")
    op.drop_table("calibrations")
    forms = op.create_table(
        "cost_forms",
        sa.Column("id", _SERIAL, primary_key=True),
        _device(),
        sa.Column("measured_as", sa.String(64), nullable=False),
        sa.Column("quantity", sa.String(16), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("form", _JSON, nullable=False),
        sa.Column("widths", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("device", "measured_as", "digest"),
    )
    new_entries = op.create_table(
        "cost_entries",
        sa.Column("place", _SERIAL, primary_key=True, autoincrement=False),
        sa.Column("form_id", _SERIAL, sa.ForeignKey("cost_forms.id", ondelete="CASCADE"), nullable=False),
        sa.Column("entry", _JSON, nullable=False),
        sa.CheckConstraint("place >> 40 = form_id", name="place_in_form"),
    )
    new_calibrations = _calibrations(sa.Column("measured_as", sa.String(64), nullable=False))
    measured_as = _measured_as(connection)
    for number, ((device, _, form), found) in enumerate(_by_form(entries).items(), 1):
        new = json.loads(form)
        row = {"device": device, "measured_as": measured_as[device], "quantity": new.pop("quantity"), "digest": _hash(form), "form": new}
        connection.execute(forms.insert().values(id=number, widths=_packed(found), **row))
        places = [{"place": number << 2 * _BITS | code, "form_id": number, "entry": entry} for code, entry in sorted(found.items())]
        connection.execute(new_entries.insert(), places)
    if connection.dialect.name == "postgresql":  # numbers that were given above are not to be given again
        connection.execute(
            sa.text("SELECT setval(pg_get_serial_sequence('cost_forms', 'id'), (SELECT coalesce(max(id), 0) + 1 FROM cost_forms))")
        )
    for row in calibrations:
        connection.execute(new_calibrations.insert().values(measured_as=measured_as[row["device"]], **row))


def downgrade() -> None:
    """Numbers measured on an earlier state of a device are left out: the tables that come back can't tell them apart."""
    connection = op.get_bind()
    measured_as = _measured_as(connection)
    joined = (
        "SELECT f.device, f.measured_as, f.quantity, f.form, e.place, e.entry FROM cost_entries e JOIN cost_forms f ON f.id = e.form_id"
    )
    columns = {"form": _JSON, "entry": _JSON}
    entries = [dict(row) for row in connection.execute(sa.text(joined + " ORDER BY e.place").columns(**columns)).mappings()]
    calibrations = _rows("calibrations", "calibration", "measured_as")
    for table in ("cost_entries", "cost_forms", "calibrations"):
        op.drop_table(table)
    old_entries = op.create_table(
        "cost_entries",
        sa.Column("id", _SERIAL, primary_key=True),
        _device(),
        sa.Column("quantity", sa.String(16), nullable=False),
        sa.Column("shape_key", sa.String(400), nullable=False),
        sa.Column("setting_key", sa.String(200), nullable=False),
        sa.Column("entry", _JSON, nullable=False),
        sa.UniqueConstraint("device", "quantity", "shape_key", "setting_key"),
    )
    old_calibrations = _calibrations()
    for row in entries:
        if row["measured_as"] == measured_as[row["device"]]:
            connection.execute(old_entries.insert().values(**_whole(row)))
    for row in calibrations:
        if row.pop("measured_as") == measured_as[row["device"]]:
            connection.execute(old_calibrations.insert().values(**row))


def _device() -> sa.Column[str]:
    return sa.Column("device", sa.String(80), sa.ForeignKey("devices.name", ondelete="CASCADE"), nullable=False)


def _calibrations(*more: sa.Column[Any]) -> sa.Table:
    keys = ("device", *(column.name for column in more), "quantity", "setting_key")
    return op.create_table(
        "calibrations",
        sa.Column("id", _SERIAL, primary_key=True),
        _device(),
        *more,
        sa.Column("quantity", sa.String(16), nullable=False),
        sa.Column("setting_key", sa.String(200), nullable=False),
        sa.Column("calibration", _JSON, nullable=False),
        sa.UniqueConstraint(*keys),
    )


def _rows(table: str, data: str, *more: str) -> list[dict[str, Any]]:
    columns = ", ".join(("device", "quantity", "setting_key", data, *more))
    found = op.get_bind().execute(sa.text(f"SELECT {columns} FROM {table} ORDER BY id").columns(**{data: _JSON}))  # noqa: S608 - our names
    return [dict(row) for row in found.mappings()]


def _measured_as(connection: sa.Connection) -> dict[str, str]:
    """By device, what stands for the fingerprint that its numbers were measured with."""
    rows = connection.execute(sa.text("SELECT name, measured_fingerprint AS was FROM devices").columns(was=_JSON))
    return {name: _hash(json.dumps(was, sort_keys=True)) for name, was in rows}


def _by_form(rows: list[dict[str, Any]]) -> dict[tuple[str, str, str], dict[int, dict[str, Any]]]:
    """Entries by device, quantity and form (as JSON), then by the pair of widths as one integer."""
    forms: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
    for row in rows:
        entry = dict(row["entry"])
        shape = dict(entry["shape"])
        i, o = shape["in_channels"], shape["out_channels"]
        depthwise = shape["op"] == "conv2d" and shape["groups"] == i == o > 1
        shape |= {"in_channels": 0, "out_channels": 0, "groups": 0 if depthwise else shape["groups"]}
        form = {"shape": shape, "setting": entry["setting"], "quantity": entry["quantity"]}
        key = (row["device"], row["quantity"], json.dumps(form, sort_keys=True, separators=(",", ":")))
        forms.setdefault(key, {})[i << _BITS | o] = {name: value for name, value in entry.items() if name not in _SAID_BY_THE_FORM}
    return forms


def _whole(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the tables before."""
    shape, setting, code = dict(row["form"]["shape"]), row["form"]["setting"], row["place"] & (1 << 2 * _BITS) - 1
    i, o = code >> _BITS, code & (1 << _BITS) - 1
    shape |= {"in_channels": i, "out_channels": o, "groups": shape["groups"] or i}
    entry = {"shape": shape, "setting": setting, "quantity": row["quantity"], **row["entry"]}
    keys = {"shape_key": _compact(shape), "setting_key": _compact(setting)}
    return {"device": row["device"], "quantity": row["quantity"], **keys, "entry": entry}


def _packed(codes: dict[int, Any]) -> bytes:
    return b"".join(code.to_bytes(8, "little") for code in sorted(codes))


def _compact(fields: dict[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
