"""Where a device's cost entries lie in the store, and how the few of a million that a question needs are found.

Two tables: forms (layers that agree in everything but their widths), each with the widths that were measured, and entries, whose key
is the number of the form and the pair of widths in one integer.  So any number of layers takes one look at their forms, which are
remembered, and one at the entries.  The rule that answers for widths between measured ones is that of ``costs.table``.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import Connection, Text, bindparam, cast, func, insert, select, update
from sqlalchemy.orm import Session

from costs.model import CostName
from costs.shapes import LayerShape
from costs.table import CostEntry, Form, Setting, form_of, of_form
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


# Made once: making a statement takes longer than running it.
_OF_TABLE = (_FORMS.device == bindparam("device")) & (_FORMS.measured_as == bindparam("measured_as"))
_KNOWN_FORMS = select(_FORMS.digest, _FORMS.id, _FORMS.widths).where(_OF_TABLE, _FORMS.digest.in_(bindparam("digests", expanding=True)))
_EVERY_FORM = select(_FORMS.id, _FORMS.quantity, cast(_FORMS.form, Text), _FORMS.widths).where(_OF_TABLE).order_by(_FORMS.id)
_COUNT = select(func.sum(func.length(_FORMS.widths))).where(_OF_TABLE)  # counting a million rows takes a tenth of a second
_ANY_FORM = select(_FORMS.id).where(_OF_TABLE, _FORMS.quantity == bindparam("quantity")).limit(1)
_AT_PLACES = select(_ENTRIES.place, cast(_ENTRIES.entry, Text)).where(_ENTRIES.place.in_(bindparam("places", expanding=True)))
_IN_FORM = _ENTRIES.place.between(bindparam("first"), bindparam("last"))
_BETWEEN = select(_ENTRIES.place, _ENTRIES.entry).where(_IN_FORM).order_by(_ENTRIES.place)


class StoredEntries:
    """The entries of a device, as one state of it was measured (``costs.table.Entries``).  Entries are replaced, never removed."""

    def __init__(self, db: Database, device: str, measured_as: str) -> None:
        self._db = db
        self._table = _of_table(device, measured_as)
        self._forms: Memory[Form, _Known] = Memory(REMEMBERED_FORMS)
        # Text: garbage collection, which would look through as many objects every now and then, took a third of a large answer's time.
        self._entries: Memory[int, str] = Memory(REMEMBERED_ENTRIES)

    def __len__(self) -> int:
        ((total,),) = self._db.rows(_COUNT, self._table)
        return (total or 0) // Widths.BYTES_PER_PAIR

    def __iter__(self) -> Iterator[CostEntry]:
        with self._db.reading() as session:
            yield from _all(session.connection(), self._table)

    def widths(self, forms: Collection[Form] | None = None) -> Mapping[Form, Widths]:
        known = self._every_form() if forms is None else self._known(forms)
        return {form: widths for form, (_, widths) in known.items()}

    def find(self, layers: Sequence[tuple[Form, Pair]]) -> Sequence[CostEntry]:
        known = self._known({form for form, _ in layers})
        places = [_place(known[form][0], pair) for form, pair in layers]
        found = self._entries.those_of(places)
        for chunk in _chunks({place for place in places if place not in found}):
            found |= self._entries.kept(dict(self._db.rows(_AT_PLACES, {"places": chunk})))
        return [CostEntry(*of_form(*layer), **json.loads(found[place])) for layer, place in zip(layers, places, strict=True)]

    def measures(self, quantity: CostName) -> bool:
        return bool(self._db.rows(_ANY_FORM, {**self._table, "quantity": quantity}))

    def _known(self, forms: Collection[Form]) -> dict[Form, _Known]:
        found = self._forms.those_of(forms)
        for chunk in _chunks(form for form in forms if form not in found):
            by_digest = {_digest(form): form for form in chunk}
            rows = self._db.rows(_KNOWN_FORMS, {**self._table, "digests": list(by_digest)})
            found |= self._forms.kept({by_digest[digest]: (number, Widths.from_bytes(widths)) for digest, number, widths in rows})
        return found

    def _every_form(self) -> dict[Form, _Known]:
        rows = self._db.rows(_EVERY_FORM, self._table)
        return {_form(json.loads(form), quantity): (number, Widths.from_bytes(widths)) for number, quantity, form, widths in rows}


def save(session: Session, device: str, measured_as: str, entries: Iterable[CostEntry]) -> None:
    """Add entries to those of this device as it was measured; what has the same key is replaced.  The device's row must be locked."""
    by_form: dict[Form, dict[int, CostEntry]] = defaultdict(dict)
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


def count(connection: Connection, device: str, measured_as: str) -> int:
    """How many entries there are of this device as it was measured."""
    return (connection.scalar(_COUNT, _of_table(device, measured_as)) or 0) // Widths.BYTES_PER_PAIR


def fingerprint_digest(fingerprint: Mapping[str, Any] | None) -> str:
    """What stands for a fingerprint in a key."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()


def _of_table(device: str, measured_as: str) -> dict[str, str]:
    return {"device": device, "measured_as": measured_as}


def _all(connection: Connection, table: Mapping[str, str]) -> Iterator[CostEntry]:
    """Form by form, in each by rising widths."""
    for number, quantity, data, _ in connection.execute(_EVERY_FORM, table).all():
        form = _form(json.loads(data), quantity)
        first, last = number << 2 * BITS, (number + 1 << 2 * BITS) - 1
        for place, entry in connection.execute(_BETWEEN, {"first": first, "last": last}):
            yield CostEntry(*of_form(form, decoded(place - first)), **entry)


def _forms(connection: Connection, table: Mapping[str, str], digests: Iterable[str]) -> dict[str, _Known]:
    """Number and widths of the forms with these digests."""
    rows = connection.execute(_KNOWN_FORMS, {**table, "digests": list(digests)})
    return {digest: (number, Widths.from_bytes(widths)) for digest, number, widths in rows}


def _save_forms(session: Session, device: str, measured_as: str, pairs: Mapping[Form, Iterable[Pair]]) -> dict[Form, int]:
    """Makes known which widths were measured of each form; the forms' numbers."""
    connection, table, digests = session.connection(), _of_table(device, measured_as), {form: _digest(form) for form in pairs}
    known = _forms(connection, table, digests.values())
    # not by an upsert: that would use up a number for every form that is there already
    wider = [{"number": known[d][0], "all": Widths([*known[d][1], *pairs[form]]).to_bytes()} for form, d in digests.items() if d in known]
    if wider:
        forms = table_of(CostFormRow)
        connection.execute(update(forms).where(_FORMS.id == bindparam("number")).values(widths=bindparam("all")), wider)
    if new := [{**table, **_form_row(form, pairs[form])} for form, digest in digests.items() if digest not in known]:
        connection.execute(insert(table_of(CostFormRow)), new)
    numbers = _forms(connection, table, digests.values())
    return {form: numbers[digest][0] for form, digest in digests.items()}


def _form_row(form: Form, pairs: Iterable[Pair]) -> dict[str, Any]:
    shape, setting, quantity = form
    words = {"shape": _words(shape), "setting": _words(setting)}
    return {"quantity": quantity, "digest": _digest(form), "form": words, "widths": Widths(pairs).to_bytes()}


def _row(number: int, code: int, entry: CostEntry) -> dict[str, Any]:
    data = asdict(entry)
    for name in _SAID_BY_THE_FORM:
        del data[name]
    return {"place": number << 2 * BITS | code, "form_id": number, "entry": data}


def _place(form_number: int, pair: Pair) -> int:
    return form_number << 2 * BITS | encoded(pair)


def _form(data: Mapping[str, Any], quantity: Any) -> Form:
    return LayerShape(**data["shape"]), Setting(**data["setting"]), quantity


def _digest(form: Form) -> str:
    shape, setting, quantity = form
    words = {"shape": _words(shape), "setting": _words(setting), "quantity": quantity}
    return hashlib.sha256(json.dumps(words, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _words(of: LayerShape | Setting) -> dict[str, Any]:
    """``asdict``, which copies what needs no copy, and was half of the time that a thousand forms take."""
    return {field.name: getattr(of, field.name) for field in fields(of)}


def _chunks(items: Iterable[_T]) -> Iterator[list[_T]]:
    rest = iter(items)
    while chunk := list(islice(rest, AT_ONCE)):
        yield chunk
