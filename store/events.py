"""The event feed that watchers follow.

Of progress events only a job's latest is kept: an older one says nothing that a late watcher still needs, and the table stays small.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, delete, insert, select, text
from sqlalchemy.orm import Session

from store.database import Database
from store.tables import EventRow, JobRow, table_of
from store.views import Event, EventType

_ORDER_LOCK = 0x77A77EE
_APPEND = insert(table_of(EventRow))


def emit(session: Session, job_id: str, kind: EventType, payload: dict[str, Any]) -> None:
    """Append an event.  Call it last in a transaction: from here on no other transaction can append until this one ends."""
    if kind == "progress":
        session.execute(delete(EventRow).where(EventRow.job_id == job_id, EventRow.type == "progress"))
    _append(session, [{"job_id": job_id, "type": kind, "payload": payload}])


def emit_state(session: Session, *rows: JobRow | Row[Any]) -> None:
    """Append what a watcher of these jobs' states wants to know.  Call it last, like ``emit``."""
    names = ("state", "desired", "attempt", "max_attempts", "cause", "message")
    _append(session, [{"job_id": row.id, "type": "state", "payload": {name: getattr(row, name) for name in names}} for row in rows])


def _append(session: Session, events: list[dict[str, Any]]) -> None:
    session.flush()  # all else is written before the others are made to wait
    if not events:
        return
    if session.get_bind().dialect.name == "postgresql":
        # Sequence numbers are drawn before they are committed; without order a watcher could see 7, ask for more than 7, and miss 6.
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ORDER_LOCK})
    session.execute(_APPEND, events)


def events_after(db: Database, seq: int, job_id: str | None = None, limit: int = 500) -> list[Event]:
    """The next events after ``seq``, of one job or of all, oldest first."""
    query = select(EventRow).where(EventRow.seq > seq).order_by(EventRow.seq).limit(limit)
    if job_id is not None:
        query = query.where(EventRow.job_id == job_id)
    with db.reading() as session:
        return [Event(row.seq, row.job_id, row.type, row.payload) for row in session.scalars(query)]


def last_seq(db: Database) -> int:
    """The newest event's number, 0 if there is none: where a watcher starts who has just read the state of things."""
    with db.reading() as session:
        return session.scalar(select(EventRow.seq).order_by(EventRow.seq.desc()).limit(1)) or 0
