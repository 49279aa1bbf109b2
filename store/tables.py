"""The tables.  What must always hold is said as a constraint, so that no program can store the opposite."""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast, get_args

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Enum,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from store.columns import JsonData, UtcTime, database_time
from store.views import Cause, Desire, EventType, JobKind, JobState

_Id = String(32)
_Name = String(80)
_Hash = String(64)
# SQLite numbers rows by itself in a column of exactly this type only.
_Serial = BigInteger().with_variant(Integer(), "sqlite")


def _words(name: str, words: Any) -> Enum:
    """A text column that takes the words of a Literal only."""
    return Enum(*get_args(words), name=name, native_enum=False, create_constraint=True, length=16)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UtcTime, dict[str, Any]: JsonData}  # noqa: RUF012  (SQLAlchemy reads it from the class)


def table_of(row: type[Base]) -> Table:
    """The table of a mapped class, for statements that need no objects."""
    return cast(Table, row.__table__)


class JobRow(Base):
    """A job and, while it runs, the lease on it."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint("attempt >= 0 AND attempt <= max_attempts", name="attempts_bounded"),
        CheckConstraint("(state = 'running') = (lease_token IS NOT NULL)", name="running_has_lease"),
        CheckConstraint("(lease_token IS NULL) = (lease_expires_at IS NULL)", name="lease_expires"),
        CheckConstraint("(state IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)", name="terminal_is_finished"),
        CheckConstraint("state <> 'failed' OR cause IS NOT NULL", name="failure_has_cause"),
        Index("ix_jobs_state_queue", "state", "queue"),
        Index("ix_jobs_lease_expires_at", "lease_expires_at", postgresql_where=text("state = 'running'")),
    )

    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    kind: Mapped[JobKind] = mapped_column(_words("kind", JobKind))
    name: Mapped[str] = mapped_column(_Name)
    spec: Mapped[dict[str, Any]]
    queue: Mapped[str] = mapped_column(String(120))
    idempotency_key: Mapped[str | None] = mapped_column(String(200), unique=True)
    state: Mapped[JobState] = mapped_column(_words("state", JobState), default="queued")
    desired: Mapped[Desire] = mapped_column(_words("desired", Desire), default="run")
    attempt: Mapped[int] = mapped_column(default=0)
    max_attempts: Mapped[int]
    progress: Mapped[dict[str, Any]] = mapped_column(default=dict)
    cause: Mapped[Cause | None] = mapped_column(_words("cause", Cause))
    message: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(default=database_time())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    worker: Mapped[str | None] = mapped_column(String(200))
    lease_token: Mapped[str | None] = mapped_column(_Id)
    lease_seconds: Mapped[float | None]
    lease_expires_at: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]


class AttemptRow(Base):
    """One try at a job by one worker."""

    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    worker: Mapped[str] = mapped_column(String(200))
    started_at: Mapped[datetime] = mapped_column(default=database_time())
    finished_at: Mapped[datetime | None]
    cause: Mapped[Cause | None] = mapped_column(_words("cause", Cause))
    message: Mapped[str | None] = mapped_column(Text)


class OutboxRow(Base):
    """A ring of the bell that the broker is owed, or has had since ``sent_at``."""

    __tablename__ = "outbox"
    __table_args__ = (Index("ix_outbox_sent_at", "sent_at"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(_Serial, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    queue: Mapped[str] = mapped_column(String(120))
    created_at: Mapped[datetime] = mapped_column(default=database_time())
    sent_at: Mapped[datetime | None]


class EventRow(Base):
    """Something a watcher wants to hear of.  ``seq`` grows in commit order and is never used twice."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_job_id_seq", "job_id", "seq"), {"sqlite_autoincrement": True})

    seq: Mapped[int] = mapped_column(_Serial, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    type: Mapped[EventType] = mapped_column(_words("type", EventType))
    payload: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=database_time())


class RoundRow(Base):
    """One growth round of one run; ``step`` is the training step it was taken at."""

    __tablename__ = "rounds"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    run: Mapped[str] = mapped_column(_Name, primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    step: Mapped[int]
    payload: Mapped[dict[str, Any]]


class MetricRow(Base):
    """One point of one curve."""

    __tablename__ = "metrics"
    __table_args__ = ({"sqlite_with_rowid": False},)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    run: Mapped[str] = mapped_column(_Name, primary_key=True)
    name: Mapped[str] = mapped_column(_Name, primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[float]


class CheckpointRow(Base):
    """A checkpoint that is complete on disk; only what is registered here is ever resumed."""

    __tablename__ = "checkpoints"
    __table_args__ = (Index("ix_checkpoints_job_id_id", "job_id", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(_Serial, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    attempt: Mapped[int]
    run: Mapped[str] = mapped_column(_Name)
    step: Mapped[int]
    sha256: Mapped[str] = mapped_column(_Hash)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(default=database_time())


class ArtifactRow(Base):
    """A named result of a job, held in the artifact store under its hash."""

    __tablename__ = "artifacts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    sha256: Mapped[str] = mapped_column(_Hash)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    media_type: Mapped[str] = mapped_column(String(120))
    created_at: Mapped[datetime] = mapped_column(default=database_time())


class DeviceRow(Base):
    """A device that was profiled, or is about to be.  ``table_version`` grows with each change of its cost table, and of the device
    under it.  The table in use is the one that was measured as ``measured_fingerprint``.  ``alive_until`` moves on as long as a worker
    listens for its profile jobs."""

    __tablename__ = "devices"

    name: Mapped[str] = mapped_column(_Name, primary_key=True)
    fingerprint: Mapped[dict[str, Any]]
    table_version: Mapped[int] = mapped_column(default=0)
    registered_at: Mapped[datetime] = mapped_column(default=database_time())
    measured_at: Mapped[datetime | None]
    measured_fingerprint: Mapped[dict[str, Any] | None] = mapped_column(JsonData)
    alive_until: Mapped[datetime | None]


class CostFormRow(Base):
    """Layers that agree in everything but their widths, in one setting, as they were measured on one state of the device.

    ``measured_as`` is a hash of the device's fingerprint then, ``digest`` one of quantity, setting and shape; ``form`` holds the last
    two in plain words, and ``widths`` the measured pairs (``costs.widths``): what an answer needs to know before it reads an entry.
    """

    __tablename__ = "cost_forms"
    __table_args__ = (UniqueConstraint("device", "measured_as", "digest"),)

    id: Mapped[int] = mapped_column(_Serial, primary_key=True)
    device: Mapped[str] = mapped_column(ForeignKey("devices.name", ondelete="CASCADE"))
    measured_as: Mapped[str] = mapped_column(_Hash)
    quantity: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(_Hash)
    form: Mapped[dict[str, Any]]
    widths: Mapped[bytes] = mapped_column(LargeBinary)


class CostEntryRow(Base):
    """One measured cost of one layer; ``entry`` is what ``costs.table`` writes, without what its form says already.

    ``place`` is the form's number and the pair of widths in one: a single key, so that thousands are found in one go.
    """

    __tablename__ = "cost_entries"
    __table_args__ = (CheckConstraint("place >> 40 = form_id", name="place_in_form"),)

    place: Mapped[int] = mapped_column(_Serial, primary_key=True, autoincrement=False)
    form_id: Mapped[int] = mapped_column(ForeignKey("cost_forms.id", ondelete="CASCADE"))
    entry: Mapped[dict[str, Any]]


class CalibrationRow(Base):
    """The scale from layer sums to whole networks, fitted for one quantity and setting."""

    __tablename__ = "calibrations"
    __table_args__ = (UniqueConstraint("device", "measured_as", "quantity", "setting_key"),)

    id: Mapped[int] = mapped_column(_Serial, primary_key=True)
    device: Mapped[str] = mapped_column(ForeignKey("devices.name", ondelete="CASCADE"))
    measured_as: Mapped[str] = mapped_column(_Hash)
    quantity: Mapped[str] = mapped_column(String(16))
    setting_key: Mapped[str] = mapped_column(String(200))
    calibration: Mapped[dict[str, Any]]
