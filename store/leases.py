"""The life of a job in a worker's hands: claim, heartbeat, finish, requeue; and the reaper, for workers that went silent.

A claim is one compare-and-swap UPDATE.  Every later write of that worker first updates the job's row under its token
(``hold``), in the same transaction: it then owns the row's lock, so no reaper and no other attempt can come between.
"""

from __future__ import annotations

import secrets
from typing import Any

from sqlalchemy import ColumnElement, Row, func, select, update
from sqlalchemy.orm import Session

from store.columns import database_time
from store.database import Database
from store.events import emit_state
from store.outbox import ring, silence
from store.tables import AttemptRow, JobRow
from store.views import Cause, Desire, Job, Lease, LeaseLost, TerminalState

NO_LEASE: dict[str, Any] = {"lease_token": None, "lease_expires_at": None, "lease_seconds": None, "worker": None}


def claim(db: Database, job_id: str, worker: str, lease_seconds: float) -> Lease | None:
    """Win the lease on a queued job; None if it is not queued (any more): somebody else has it, or it is over."""
    token = secrets.token_hex(16)
    swap = (
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.state == "queued")
        .values(
            state="running",
            attempt=JobRow.attempt + 1,
            worker=worker,
            lease_token=token,
            lease_seconds=lease_seconds,
            lease_expires_at=database_time(lease_seconds),
            heartbeat_at=database_time(),
            started_at=func.coalesce(JobRow.started_at, database_time()),
            cause=None,
            message=None,
        )
        .returning(JobRow)
    )
    with db.transaction() as session:
        row = session.scalar(swap)
        if row is None:
            return None
        silence(session, job_id)
        session.add(AttemptRow(job_id=job_id, number=row.attempt, worker=worker))
        emit_state(session, row)
        return Lease(job_view(row), token, row.attempt)


def adopt(db: Database, job_id: str, token: str) -> Lease:
    """The lease that a parent process won, for the child that does the work.  LeaseLost if it is not the current one."""
    with db.reading() as session:
        row = session.scalar(select(JobRow).where(JobRow.id == job_id, JobRow.lease_token == token))
        if row is None:
            raise LeaseLost(job_id, 0)
        return Lease(job_view(row), token, row.attempt)


def heartbeat(db: Database, lease: Lease) -> Desire:
    """Extend the lease by its length from now; returns what is desired of the job.  LeaseLost if another attempt may have it."""
    with db.transaction() as session:
        row = hold(session, lease, heartbeat_at=database_time(), lease_expires_at=database_time(JobRow.lease_seconds))
        return row.desired


def hold(session: Session, lease: Lease, **values: Any) -> JobRow:
    """The fence: the job's row, updated and locked until the transaction ends.  LeaseLost if the token is not the current one."""
    row = _lock(session, JobRow.id == lease.job.id, JobRow.lease_token == lease.token, **values)
    if row is None:
        raise LeaseLost(lease.job.id, lease.attempt)
    return row


def finish(db: Database, lease: Lease, state: TerminalState, cause: Cause | None = None, message: str | None = None) -> Job:
    """End the job.  ``cancelled`` is for when no process of the job is alive any more; ``failed`` needs a cause and a sentence."""
    if state == "failed" and (cause is None or not message):
        raise ValueError(f"job {lease.job.id} fails with cause {cause} and message {message!r}; a failure needs both")
    with db.transaction() as session:
        return _end(session, hold(session, lease), state, cause, message)


def requeue(db: Database, lease: Lease, cause: Cause, message: str, *, counts: bool = True) -> Job:
    """Give the job up: queued again, or failed when its attempts are used up, or cancelled when that is what is desired.

    With ``counts`` False (a worker that is asked to stop) the attempt is given back.
    """
    with db.transaction() as session:
        row = hold(session, lease)
        if not counts:
            row.max_attempts += 1
        return _give_up(session, row, cause, message)


def reap(db: Database) -> list[str]:
    """Take jobs from workers whose lease ran out.  Returns the ids of the jobs taken."""
    expired = JobRow.lease_expires_at < database_time()
    with db.reading() as session:
        candidates = session.scalars(select(JobRow.id).where(JobRow.state == "running", expired)).all()
    return [job_id for job_id in candidates if _reap_one(db, job_id, expired)]


def _reap_one(db: Database, job_id: str, expired: ColumnElement[bool]) -> bool:
    with db.transaction() as session:
        row = _lock(session, JobRow.id == job_id, JobRow.state == "running", expired)  # a heartbeat may have come since
        if row is None:
            return False
        _give_up(session, row, "lost_worker", f"worker {row.worker} was not heard of for {row.lease_seconds:g} s")
        return True


def _lock(session: Session, *conditions: ColumnElement[bool], **values: Any) -> JobRow | None:
    touch = values or {"lease_token": JobRow.lease_token}
    return session.scalar(update(JobRow).where(*conditions).values(touch).returning(JobRow))


def _give_up(session: Session, row: JobRow, cause: Cause, message: str) -> Job:
    if row.desired == "cancel":
        return _end(session, row, "cancelled", None, None)
    if row.attempt >= row.max_attempts:
        return _end(session, row, "failed", cause, f"{message}; attempt {row.attempt} of {row.max_attempts}")
    _close_attempt(session, row, cause, message)
    for name, value in {**NO_LEASE, "state": "queued", "cause": cause, "message": message}.items():
        setattr(row, name, value)
    ring(session, row.id, row.queue)
    emit_state(session, row)
    return job_view(row)


def _end(session: Session, row: JobRow, state: TerminalState, cause: Cause | None, message: str | None) -> Job:
    _close_attempt(session, row, cause, message)
    for name, value in {**NO_LEASE, "state": state, "cause": cause, "message": message, "finished_at": database_time()}.items():
        setattr(row, name, value)
    emit_state(session, row)
    return job_view(row)


def _close_attempt(session: Session, row: JobRow, cause: Cause | None, message: str | None) -> None:
    attempt = (AttemptRow.job_id == row.id, AttemptRow.number == row.attempt)
    session.execute(update(AttemptRow).where(*attempt).values(finished_at=database_time(), cause=cause, message=message))


def job_view(row: JobRow | Row[Any]) -> Job:
    """The row as the outside may see it."""
    return Job(**{name: getattr(row, name) for name in Job.__dataclass_fields__})
