"""Jobs: the whole story in one place.  Each function is one transaction; the first argument is the database.

A user submits, looks, cancels.  A worker claims a job, heartbeats, records what happens, and finishes or requeues it
(``store.leases``, ``store.history``).  The keeper sends messages, reaps expired leases and rings again (``store.outbox``, ``store.relay``).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import case, func, select, update
from sqlalchemy.orm import Session

from store.columns import database_time
from store.database import Database
from store.dialects import insert_into
from store.events import emit_state, events_after, last_seq
from store.history import (
    add_artifact,
    add_round,
    artifacts,
    checkpoints,
    forget_checkpoints,
    metrics,
    record,
    register_checkpoint,
    rewind,
    rounds,
)
from store.leases import adopt, claim, finish, heartbeat, job_view, reap, requeue
from store.outbox import mark_rung, oldest_unrung_seconds, owe, queued_per_queue, ring_again, silence, unrung
from store.tables import AttemptRow, JobRow, table_of
from store.views import (
    Artifact,
    Attempt,
    Cause,
    Checkpoint,
    Desire,
    Event,
    IdempotencyConflict,
    Job,
    JobIsTerminal,
    JobKind,
    JobState,
    Lease,
    LeaseLost,
    Metric,
    Ring,
    Round,
    Submission,
    UnknownJob,
)

__all__ = [
    "Artifact",
    "Attempt",
    "Cause",
    "Checkpoint",
    "Desire",
    "Event",
    "IdempotencyConflict",
    "Job",
    "JobIsTerminal",
    "JobKind",
    "JobState",
    "Lease",
    "LeaseLost",
    "Metric",
    "Ring",
    "Round",
    "Submission",
    "UnknownJob",
    "add_artifact",
    "add_round",
    "adopt",
    "artifacts",
    "attempts",
    "cancel",
    "checkpoints",
    "claim",
    "count_by_state",
    "events_after",
    "find",
    "finish",
    "forget_checkpoints",
    "get",
    "heartbeat",
    "last_seq",
    "mark_rung",
    "metrics",
    "oldest_unrung_seconds",
    "queued_per_queue",
    "reap",
    "record",
    "register_checkpoint",
    "requeue",
    "rewind",
    "ring_again",
    "rounds",
    "submit",
    "submit_all",
    "unrung",
]

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # base 32 without i, l, o, u: nothing to mistake when read aloud


def submit(
    db: Database, kind: JobKind, name: str, spec: dict[str, Any], queue: str, max_attempts: int, idempotency_key: str | None = None
) -> Job:
    """Make a job and owe the broker a message, in one transaction.

    The same key with the same submission gives the job it made before; with another one, IdempotencyConflict.
    """
    (outcome,) = submit_all(db, [Submission(kind, name, spec, queue, max_attempts, idempotency_key)])
    if isinstance(outcome, IdempotencyConflict):
        raise outcome
    return outcome


def submit_all(db: Database, submissions: Sequence[Submission]) -> list[Job | IdempotencyConflict]:
    """Make jobs as ``submit`` does, all in one transaction; a conflict of one leaves the others alone."""
    if not submissions:
        return []
    rows = [{"id": _new_id(), **asdict(submission)} for submission in submissions]
    with db.transaction() as session:
        # Two submissions of one key at once: the second waits here for the first, then finds its job below.
        statement = insert_into(session, JobRow).on_conflict_do_nothing(index_elements=["idempotency_key"])
        made = {row.id: row for row in session.execute(statement.returning(*table_of(JobRow).columns), rows)}
        new = [made[row["id"]] for row in rows if row["id"] in made]
        owe(session, [(row.id, row.queue) for row in new])
        emit_state(session, *new)
        return [
            job_view(made[row["id"]]) if row["id"] in made else _made_before(session, submission)
            for row, submission in zip(rows, submissions, strict=True)
        ]


def _made_before(session: Session, submission: Submission) -> Job | IdempotencyConflict:
    """The job that this submission's key made earlier."""
    key = submission.idempotency_key
    job = job_view(session.scalars(select(JobRow).where(JobRow.idempotency_key == key)).one())
    same = (job.kind, job.name, job.spec, job.queue) == (submission.kind, submission.name, submission.spec, submission.queue)
    return job if same else IdempotencyConflict(str(key), job)


def get(db: Database, job_id: str) -> Job:
    """The job.  UnknownJob if there is none."""
    with db.reading() as session:
        return job_view(_row(session, job_id))


def find(db: Database, state: JobState | None = None, kind: JobKind | None = None, before: str | None = None, limit: int = 50) -> list[Job]:
    """Jobs, newest first.  ``before`` is the id of the last job of the page before."""
    query = select(JobRow).order_by(JobRow.id.desc()).limit(limit)
    for column, wanted in ((JobRow.state, state), (JobRow.kind, kind)):
        query = query if wanted is None else query.where(column == wanted)
    if before is not None:
        query = query.where(JobRow.id < before)
    with db.reading() as session:
        return [job_view(row) for row in session.scalars(query)]


def count_by_state(db: Database) -> dict[str, int]:
    """How many jobs are in each state; states without a job are left out."""
    with db.reading() as session:
        return {row.state: row.jobs for row in session.execute(select(JobRow.state, func.count().label("jobs")).group_by(JobRow.state))}


def cancel(db: Database, job_id: str) -> Job:
    """Cancel a queued job at once; ask the worker of a running one to stop (it is ``cancelled`` when its processes are dead).

    JobIsTerminal if it is over, UnknownJob if there is none.
    """
    queued = JobRow.state == "queued"
    # one statement: whatever a worker does at the same moment happens wholly before it or wholly after
    statement = (
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.state.in_(("queued", "running")))
        .values(
            desired="cancel",
            state=case((queued, "cancelled"), else_=JobRow.state),
            finished_at=case((queued, database_time()), else_=None),
            cause=case((queued, None), else_=JobRow.cause),
            message=case((queued, None), else_=JobRow.message),
        )
        .returning(JobRow)
    )
    with db.transaction() as session:
        row = session.scalar(statement)
        if row is None:
            raise JobIsTerminal(job_view(_row(session, job_id)))
        if row.state == "cancelled":
            silence(session, job_id)
        emit_state(session, row)
        return job_view(row)


def attempts(db: Database, job_id: str) -> list[Attempt]:
    """All tries at the job, first one first."""
    query = select(AttemptRow).where(AttemptRow.job_id == job_id).order_by(AttemptRow.number)
    with db.reading() as session:
        _row(session, job_id)
        return [Attempt(**{name: getattr(row, name) for name in Attempt.__dataclass_fields__}) for row in session.scalars(query)]


def _row(session: Session, job_id: str) -> JobRow:
    row = session.get(JobRow, job_id)
    if row is None:
        raise UnknownJob(f"there is no job {job_id!r}; `wattle jobs` lists all")
    return row


def _new_id() -> str:
    """18 characters that sort by time (48 bits of milliseconds, 40 random bits)."""
    number = (time.time_ns() // 1_000_000) << 40 | secrets.randbits(40)
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(85, -1, -5))
