"""Where a device's cost entries lie in the store, and how the few of a million that a question needs are found.

Two tables: forms (layers that agree in everything but their widths), each with the widths that were measured, and entries, whose key
is the number of the form and the pair of widths in one integer.  So any number of layers takes one look at their forms, which are
remembered, and one at the entries.  The rule that answers for widths between measured ones is that of ``costs.table``.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, bindparam, func, insert, select, update
from sqlalchemy.orm import Session

from costs.shapes import LayerShape
from costs.table import CostEntry, Key, Setting, form_of, of_form
from costs.widths import BITS, Pair, Widths, decoded, encoded
from store.database import Database
from store.dialects import insert_into
from store.memory import Memory
from store.tables import CostEntryRow, CostFormRow, table_of

AT_ONCE = 5000  # values in one statement; SQLite takes 32 766, PostgreSQL 65 535
REMEMBERED_FORMS, REMEMBERED_ENTRIES = 10_000, 20_000

_FORMS, _ENTRIES = table_of(CostFormRow).c, table_of(CostEntryRow).c
_SAID_BY_THE_FORM = ("shape", "setting", "quantity")

_Known = tuple[int, Widths]  # a form's number, and what was measured of it
_T = TypeVar("_T")


class StoredEntries:
    """The entries of a device, as one state of it was measured (``costs.table.Entries``).  Entries are replaced, never removed."""

    def __init__(self, db: Database, device: str, measured_as: str) -> None:
        self._db = db
        self._table = _of_table(device, measured_as)
        self._forms: Memory[Key, _Known] = Memory(REMEMBERED_FORMS)
        self._entries: Memory[int, CostEntry] = Memory(REMEMBERED_ENTRIES)

    def __len__(self) -> int:
        with self._db.connection() as connection:
            return _count(connection, self._table)

    def __iter__(self) -> Iterator[CostEntry]:
        with self._db.connection() as connection:
            yield from _all(connection, self._table)

    def widths(self, forms: Collection[Key] | None = None) -> Mapping[Key, Widths]:
        known = self._every_form() if forms is None else self._known(forms)
        return {form: widths for form, (_, widths) in known.items()}

    def find(self, keys: Collection[Key]) -> Mapping[Key, CostEntry]:
        forms = {key: form_of(key) for key in keys}
        known = self._known(set(forms.values()))
        places = {_place(known[form][0], key[0]): key for key, form in forms.items()}
        found = self._entries.those_of(places)
        for chunk in _chunks(place for place in places if place not in found):
            with self._db.connection() as connection:
                rows = connection.execute(select(_ENTRIES.place, _ENTRIES.entry).where(_ENTRIES.place.in_(chunk))).all()
            found |= self._entries.kept({place: CostEntry(*places[place], **data) for place, data in rows})
        return {places[place]: entry for place, entry in found.items()}

    def _known(self, forms: Collection[Key]) -> dict[Key, _Known]:
        found = self._forms.those_of(forms)
        for chunk in _chunks(form for form in forms if form not in found):
            by_digest = {_digest(form): form for form in chunk}
            with self._db.connection() as connection:
                rows = _forms(connection, self._table, by_digest)
            found |= self._forms.kept({by_digest[digest]: (number, widths) for digest, (number, widths) in rows.items()})
        return found

    def _every_form(self) -> dict[Key, _Known]:
        columns = select(_FORMS.quantity, _FORMS.form, _FORMS.id, _FORMS.widths).where(self._table).order_by(_FORMS.id)
        with self._db.connection() as connection:
            rows = connection.execute(columns).all()
        return self._forms.kept({_form(form, quantity): (number, Widths.from_bytes(widths)) for quantity, form, number, widths in rows})


def save(session: Session, device: str, measured_as: str, entries: Iterable[CostEntry]) -> None:
    """Add entries to those of this device as it was measured; what has the same key is replaced.  The device's row must be locked."""
    by_form: dict[Key, dict[int, CostEntry]] = defaultdict(dict)
    for each in entries:
        form = form_of((each.shape, each.setting, each.quantity))
        by_form[form][encoded((each.shape.in_channels, each.shape.out_channels))] = each
    entry = insert_into(session, CostEntryRow)
    replace = entry.on_conflict_do_update(index_elements=["place"], set_={"entry": entry.excluded.entry})
    for forms in _chunks(by_form):
        numbers = _save_forms(session, device, measured_as, {form: [decoded(code) for code in by_form[form]] for form in forms})
        rows = (_row(numbers[form], code, each) for form in forms for code, each in by_form[form].items())
        for chunk in _chunks(rows):
            session.execute(replace, chunk)


def load(connection: Connection, device: str, measured_as: str) -> list[CostEntry]:
    """All entries of this device as it was measured."""
    return list(_all(connection, _of_table(device, measured_as)))


def measured(connection: Connection, device: str, measured_as: str) -> bool:
    """Whether there is any entry of this device as it is described."""
    return connection.scalar(select(_FORMS.id).where(_of_table(device, measured_as)).limit(1)) is not None


def count(connection: Connection, device: str, measured_as: str) -> int:
    """How many entries there are of this device as it was measured."""
    return _count(connection, _of_table(device, measured_as))


def _count(connection: Connection, table: ColumnElement[bool]) -> int:
    # from the forms alone: counting a million rows takes a tenth of a second
    return (connection.scalar(select(func.sum(func.length(_FORMS.widths))).where(table)) or 0) // Widths.BYTES_PER_PAIR


def fingerprint_digest(fingerprint: Mapping[str, Any] | None) -> str:
    """What stands for a fingerprint in a key."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()


def _of_table(device: str, measured_as: str) -> ColumnElement[bool]:
    return (_FORMS.device == device) & (_FORMS.measured_as == measured_as)


def _all(connection: Connection, table: ColumnElement[bool]) -> Iterator[CostEntry]:
    """Form by form, in each by rising widths."""
    for number, quantity, data in connection.execute(
        select(_FORMS.id, _FORMS.quantity, _FORMS.form).where(table).order_by(_FORMS.id)
    ).all():
        form = _form(data, quantity)
        rows = select(_ENTRIES.place, _ENTRIES.entry).where(_ENTRIES.place.between(number << 2 * BITS, (number + 1 << 2 * BITS) - 1))
        for place, entry in connection.execute(rows.order_by(_ENTRIES.place)):
            yield CostEntry(*of_form(form, decoded(place - (number << 2 * BITS))), **entry)


def _forms(connection: Connection, table: ColumnElement[bool], digests: Iterable[str]) -> dict[str, _Known]:
    """Number and widths of the forms with these digests."""
    rows = connection.execute(select(_FORMS.digest, _FORMS.id, _FORMS.widths).where(table, _FORMS.digest.in_(list(digests)))).all()
    return {digest: (number, Widths.from_bytes(widths)) for digest, number, widths in rows}


def _save_forms(session: Session, device: str, measured_as: str, pairs: Mapping[Key, Iterable[Pair]]) -> dict[Key, int]:
    """Makes known which widths were measured of each form; the forms' numbers."""
    connection, table, digests = session.connection(), _of_table(device, measured_as), {form: _digest(form) for form in pairs}
    known = _forms(connection, table, digests.values())
    # not by an upsert: that would use up a number for every form that is there already
    wider = [{"number": known[d][0], "all": Widths([*known[d][1], *pairs[form]]).to_bytes()} for form, d in digests.items() if d in known]
    if wider:
        forms = table_of(CostFormRow)
        connection.execute(update(forms).where(_FORMS.id == bindparam("number")).values(widths=bindparam("all")), wider)
    of_table = {"device": device, "measured_as": measured_as}
    if new := [{**of_table, **_form_row(form, pairs[form])} for form, digest in digests.items() if digest not in known]:
        connection.execute(insert(table_of(CostFormRow)), new)
    numbers = _forms(connection, table, digests.values())
    return {form: numbers[digest][0] for form, digest in digests.items()}


def _form_row(form: Key, pairs: Iterable[Pair]) -> dict[str, Any]:
    shape, setting, quantity = form
    words = {"shape": asdict(shape), "setting": asdict(setting)}
    return {"quantity": quantity, "digest": _digest(form), "form": words, "widths": Widths(pairs).to_bytes()}


def _row(number: int, code: int, entry: CostEntry) -> dict[str, Any]:
    data = asdict(entry)
    for name in _SAID_BY_THE_FORM:
        del data[name]
    return {"place": number << 2 * BITS | code, "form_id": number, "entry": data}


def _place(form_number: int, shape: LayerShape) -> int:
    return form_number << 2 * BITS | encoded((shape.in_channels, shape.out_channels))


def _form(data: Mapping[str, Any], quantity: Any) -> Key:
    return LayerShape(**data["shape"]), Setting(**data["setting"]), quantity


def _digest(form: Key) -> str:
    shape, setting, quantity = form
    words = {"shape": asdict(shape), "setting": asdict(setting), "quantity": quantity}
    return hashlib.sha256(json.dumps(words, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _chunks(items: Iterable[_T]) -> Iterator[list[_T]]:
    rest = iter(items)
    while chunk := list(islice(rest, AT_ONCE)):
        yield chunk
