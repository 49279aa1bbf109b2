"""The first tables: jobs and what happens to them, devices and what they cost."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_CAUSES = ("invalid_data", "out_of_memory", "not_a_number", "disk_full", "lost_worker", "device_error", "internal")
_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_TIME = sa.DateTime(timezone=True)
_SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _words(name: str, *words: str) -> sa.Enum:
    return sa.Enum(*words, name=name, native_enum=False, create_constraint=True, length=16)


def _job_id(**options: Any) -> sa.Column[str]:
    return sa.Column("job_id", sa.String(32), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, **options)


def _device() -> sa.Column[str]:
    return sa.Column("device", sa.String(80), sa.ForeignKey("devices.name", ondelete="CASCADE"), nullable=False)


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("kind", _words("kind", "growth", "profile"), nullable=False),
        sa.Column("name", sa.String(80), nullable=False),
        sa.Column("spec", _JSON, nullable=False),
        sa.Column("queue", sa.String(120), nullable=False),
        sa.Column("idempotency_key", sa.String(200), unique=True),
        sa.Column("state", _words("state", "queued", "running", "succeeded", "failed", "cancelled"), nullable=False),
        sa.Column("desired", _words("desired", "run", "cancel"), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("max_attempts", sa.Integer, nullable=False),
        sa.Column("progress", _JSON, nullable=False),
        sa.Column("cause", _words("cause", *_CAUSES)),
        sa.Column("message", sa.Text),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("started_at", _TIME),
        sa.Column("finished_at", _TIME),
        sa.Column("worker", sa.String(200)),
        sa.Column("lease_token", sa.String(32)),
        sa.Column("lease_seconds", sa.Double),
        sa.Column("lease_expires_at", _TIME),
        sa.Column("heartbeat_at", _TIME),
        sa.CheckConstraint("attempt >= 0 AND attempt <= max_attempts", name="attempts_bounded"),
        sa.CheckConstraint("(state = 'running') = (lease_token IS NOT NULL)", name="running_has_lease"),
        sa.CheckConstraint("(lease_token IS NULL) = (lease_expires_at IS NULL)", name="lease_expires"),
        sa.CheckConstraint("(state IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)", name="terminal_is_finished"),
        sa.CheckConstraint("state <> 'failed' OR cause IS NOT NULL", name="failure_has_cause"),
    )
    op.create_index("ix_jobs_state_queue", "jobs", ["state", "queue"])
    op.create_index("ix_jobs_lease_expires_at", "jobs", ["lease_expires_at"], postgresql_where=sa.text("state = 'running'"))
    op.create_table(
        "attempts",
        _job_id(primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("worker", sa.String(200), nullable=False),
        sa.Column("started_at", _TIME, nullable=False),
        sa.Column("finished_at", _TIME),
        sa.Column("cause", _words("cause", *_CAUSES)),
        sa.Column("message", sa.Text),
    )
    op.create_table(
        "outbox",
        sa.Column("id", _SERIAL, primary_key=True),
        _job_id(),
        sa.Column("queue", sa.String(120), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("sent_at", _TIME),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_outbox_job_id", "outbox", ["job_id"])
    op.create_index("ix_outbox_sent_at", "outbox", ["sent_at"])
    op.create_table(
        "events",
        sa.Column("seq", _SERIAL, primary_key=True),
        _job_id(),
        sa.Column("type", _words("type", "state", "progress", "round", "artifact"), nullable=False),
        sa.Column("payload", _JSON, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_job_id_seq", "events", ["job_id", "seq"])
    op.create_table(
        "rounds",
        _job_id(primary_key=True),
        sa.Column("run", sa.String(80), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("payload", _JSON, nullable=False),
    )
    op.create_table(
        "metrics",
        _job_id(primary_key=True),
        sa.Column("run", sa.String(80), primary_key=True),
        sa.Column("name", sa.String(80), primary_key=True),
        sa.Column("step", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("value", sa.Double, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "checkpoints",
        sa.Column("id", _SERIAL, primary_key=True),
        _job_id(),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("run", sa.String(80), nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_checkpoints_job_id_id", "checkpoints", ["job_id", "id"])
    op.create_table(
        "artifacts",
        _job_id(primary_key=True),
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("media_type", sa.String(120), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
    )
    op.create_table(
        "devices",
        sa.Column("name", sa.String(80), primary_key=True),
        sa.Column("fingerprint", _JSON, nullable=False),
        sa.Column("table_version", sa.Integer, nullable=False),
        sa.Column("registered_at", _TIME, nullable=False),
        sa.Column("measured_at", _TIME),
    )
    op.create_table(
        "cost_entries",
        sa.Column("id", _SERIAL, primary_key=True),
        _device(),
        sa.Column("quantity", sa.String(16), nullable=False),
        sa.Column("shape_key", sa.String(400), nullable=False),
        sa.Column("setting_key", sa.String(200), nullable=False),
        sa.Column("entry", _JSON, nullable=False),
        sa.UniqueConstraint("device", "quantity", "shape_key", "setting_key"),
    )
    op.create_table(
        "calibrations",
        sa.Column("id", _SERIAL, primary_key=True),
        _device(),
        sa.Column("quantity", sa.String(16), nullable=False),
        sa.Column("setting_key", sa.String(200), nullable=False),
        sa.Column("calibration", _JSON, nullable=False),
        sa.UniqueConstraint("device", "quantity", "setting_key"),
    )


def downgrade() -> None:
    children = ("attempts", "outbox", "events", "rounds", "metrics", "checkpoints", "artifacts", "cost_entries", "calibrations")
    for table in (*children, "jobs", "devices"):
        op.drop_table(table)
