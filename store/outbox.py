"""Rings of the bell.  A job that becomes queued leaves a row here in the same transaction; the relay sends it and marks it sent.

A message may be sent twice or be lost with the broker: the lease makes the first harmless, ``ring_again`` mends the second.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import delete, exists, func, insert, select, update
from sqlalchemy.orm import Session

from store.columns import database_time
from store.database import Database
from store.tables import JobRow, OutboxRow, table_of
from store.views import Ring

_APPEND = insert(table_of(OutboxRow))


def ring(session: Session, job_id: str, queue: str) -> None:
    """Owe the broker a message about this job, and forget earlier ones."""
    silence(session, job_id)
    owe(session, [(job_id, queue)])


def owe(session: Session, jobs: Sequence[tuple[str, str]]) -> None:
    """Owe the broker the first message about each of these jobs, given as id and queue."""
    if jobs:
        session.execute(_APPEND, [{"job_id": job_id, "queue": queue} for job_id, queue in jobs])


def silence(session: Session, job_id: str) -> None:
    """Nothing is owed any more: the job was claimed or is over."""
    session.execute(delete(OutboxRow).where(OutboxRow.job_id == job_id))


def unrung(db: Database, limit: int = 100) -> list[Ring]:
    """Messages not sent yet, oldest first."""
    query = select(OutboxRow).where(OutboxRow.sent_at.is_(None)).order_by(OutboxRow.id).limit(limit)
    with db.reading() as session:
        return [Ring(row.id, row.job_id, row.queue) for row in session.scalars(query)]


def mark_rung(db: Database, ids: Sequence[int]) -> None:
    """These messages were handed to the broker."""
    with db.transaction() as session:
        session.execute(update(OutboxRow).where(OutboxRow.id.in_(ids)).values(sent_at=database_time()))


def queued_per_queue(db: Database) -> dict[str, int]:
    """How many jobs wait in each queue."""
    with db.reading() as session:
        query = select(JobRow.queue, func.count().label("jobs")).where(JobRow.state == "queued").group_by(JobRow.queue)
        return {row.queue: row.jobs for row in session.execute(query)}


def ring_again(db: Database, older_than_seconds: float, queues: Collection[str] | None = None) -> list[str]:
    """Owe a new message for each queued job (of ``queues``, default all) whose last one was sent so long ago.  Returns their ids."""
    recent = exists().where(
        OutboxRow.job_id == JobRow.id, OutboxRow.sent_at.is_(None) | (OutboxRow.sent_at > database_time(-older_than_seconds))
    )
    query = select(JobRow).where(JobRow.state == "queued", ~recent).order_by(JobRow.id)
    if queues is not None:
        query = query.where(JobRow.queue.in_(queues))
    with db.reading() as session:
        if session.scalar(query.with_only_columns(JobRow.id).limit(1)) is None:
            return []  # the usual case takes no write lock
    with db.transaction() as session:
        rows = session.scalars(query.with_for_update(skip_locked=True)).all()
        for row in rows:
            ring(session, row.id, row.queue)
        return [row.id for row in rows]


def oldest_unrung_seconds(db: Database) -> float | None:
    """Age of the oldest message not sent yet; None if none waits.  More than a few seconds: the broker is down or the relay is."""
    query = select(OutboxRow.created_at, database_time()).where(OutboxRow.sent_at.is_(None)).order_by(OutboxRow.id).limit(1)
    with db.reading() as session:
        row = session.execute(query).one_or_none()
        return None if row is None else float((row[1] - row[0]).total_seconds())
