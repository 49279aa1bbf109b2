"""What happens while a job runs: progress, metrics, rounds, checkpoints, artifacts.  Every write is fenced by the lease."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from sqlalchemy import and_, delete, func, select
from sqlalchemy.orm import Session

from store.database import Database
from store.dialects import insert_into
from store.events import emit
from store.leases import hold
from store.tables import ArtifactRow, CheckpointRow, JobRow, MetricRow, RoundRow
from store.views import Artifact, Checkpoint, Lease, Metric, Round, UnknownJob

Curve = list[list[float]]  # [step, value] points


def record(db: Database, lease: Lease, progress: dict[str, Any] | None = None, metrics: Sequence[Metric] = ()) -> None:
    """Keep the job's newest progress and append points to its curves; a point of the same step replaces the one before."""
    for metric in metrics:
        if not math.isfinite(metric.value):
            raise ValueError(
                f"metric {metric.name} of run {metric.run} is {metric.value} at step {metric.step}; only finite values are kept"
            )
    rows = [{"job_id": lease.job.id, "run": m.run, "name": m.name, "step": m.step, "value": m.value} for m in metrics]
    with db.transaction() as session:
        row = hold(session, lease)
        if rows:
            insert = insert_into(session, MetricRow)
            keys = ["job_id", "run", "name", "step"]
            session.execute(insert.on_conflict_do_update(index_elements=keys, set_={"value": insert.excluded.value}), rows)
        if progress is not None:
            row.progress = progress
            emit(session, row.id, "progress", progress)


def add_round(db: Database, lease: Lease, run: str, number: int, payload: dict[str, Any], *, step: int) -> None:
    """Keep a growth round, taken at this training step of its run.  The same number again replaces the one before."""
    with db.transaction() as session:
        hold(session, lease)
        insert = insert_into(session, RoundRow).values(job_id=lease.job.id, run=run, number=number, step=step, payload=payload)
        replaced = {"step": insert.excluded.step, "payload": insert.excluded.payload}
        session.execute(insert.on_conflict_do_update(index_elements=["job_id", "run", "number"], set_=replaced))
        emit(session, lease.job.id, "round", {"run": run, "number": number, "step": step, **payload})


def rounds(db: Database, job_id: str) -> list[Round]:
    """All rounds of all runs of a job, by run and number."""
    query = select(RoundRow).where(RoundRow.job_id == job_id).order_by(RoundRow.run, RoundRow.number)
    with _reading(db, job_id) as session:
        return [Round(row.run, row.number, row.step, row.payload) for row in session.scalars(query)]


def metrics(db: Database, job_id: str, max_points: int = 1000, runs: Sequence[str] | None = None) -> dict[str, dict[str, Curve]]:
    """The curves of a job, {run: {name: [[step, value], ...]}}, of all runs or of those named.  A curve longer than ``max_points``
    keeps its lowest and highest point in each of ``max_points // 2`` equal spans of steps, so that no spike is lost."""
    key = (MetricRow.run, MetricRow.name)
    mine = MetricRow.job_id == job_id if runs is None else and_(MetricRow.job_id == job_id, MetricRow.run.in_(runs))
    extents = select(*key, func.count(), func.min(MetricRow.step), func.max(MetricRow.step)).where(mine).group_by(*key)
    points = select(*key, MetricRow.step, MetricRow.value).where(mine).order_by(*key, MetricRow.step).execution_options(yield_per=5000)
    curves: dict[str, dict[str, Curve]] = {}
    with _reading(db, job_id) as session:
        extent = {(run, name): (count, first, last) for run, name, count, first, last in session.execute(extents)}
        for (run, name), rows in groupby(session.execute(points), key=lambda row: (row.run, row.name)):
            count, first, last = extent[run, name]
            curve = ([row.step, row.value] for row in rows)
            span = 1 if count <= max_points else (last - first + 1) / max(1, max_points // 2)
            thinned = curve if count <= max_points else _extremes(curve, first, span)
            curves.setdefault(run, {})[name] = list(thinned)
    return curves


def rewind(db: Database, lease: Lease, run: str, step: int) -> None:
    """Forget what a run did after this step: its metrics, rounds and checkpoints.  Call it when resuming from a checkpoint."""
    with db.transaction() as session:
        hold(session, lease)
        for table in (MetricRow, RoundRow, CheckpointRow):
            session.execute(delete(table).where(table.job_id == lease.job.id, table.run == run, table.step > step))


def register_checkpoint(db: Database, lease: Lease, run: str, step: int, sha256: str, size: int) -> None:
    """Make a checkpoint visible that is complete on disk, ``size`` in bytes."""
    with db.transaction() as session:
        hold(session, lease)
        values = {"attempt": lease.attempt, "run": run, "step": step, "sha256": sha256, "size_bytes": size}
        session.add(CheckpointRow(job_id=lease.job.id, **values))


def checkpoints(db: Database, job_id: str) -> list[Checkpoint]:
    """The registered checkpoints, newest first.  Resume from the first whose file has its hash."""
    query = select(CheckpointRow).where(CheckpointRow.job_id == job_id).order_by(CheckpointRow.id.desc())
    with _reading(db, job_id) as session:
        return [Checkpoint(**{name: getattr(row, name) for name in Checkpoint.__dataclass_fields__}) for row in session.scalars(query)]


def forget_checkpoints(db: Database, lease: Lease, run: str, keep: int) -> list[str]:
    """Forget all but the newest ``keep`` checkpoints of a run.  Returns the hashes that no checkpoint of this job has any more."""
    query = select(CheckpointRow).where(CheckpointRow.job_id == lease.job.id).order_by(CheckpointRow.id.desc())
    with db.transaction() as session:
        hold(session, lease)
        rows = session.scalars(query).all()
        forgotten = [row for row in rows if row.run == run][keep:]
        for row in forgotten:
            session.delete(row)
        return sorted({row.sha256 for row in forgotten} - {row.sha256 for row in rows if row not in forgotten})


def add_artifact(db: Database, lease: Lease, name: str, sha256: str, size: int, media_type: str) -> None:
    """Name a result that lies in the artifact store, ``size`` in bytes.  The same name again replaces the one before."""
    values = {"sha256": sha256, "size_bytes": size, "media_type": media_type}
    with db.transaction() as session:
        hold(session, lease)
        insert = insert_into(session, ArtifactRow).values(job_id=lease.job.id, name=name, **values)
        session.execute(insert.on_conflict_do_update(index_elements=["job_id", "name"], set_=values))
        emit(session, lease.job.id, "artifact", {"name": name, **values})


def artifacts(db: Database, job_id: str) -> list[Artifact]:
    """The named results of a job, by name."""
    query = select(ArtifactRow).where(ArtifactRow.job_id == job_id).order_by(ArtifactRow.name)
    with _reading(db, job_id) as session:
        return [Artifact(**{name: getattr(row, name) for name in Artifact.__dataclass_fields__}) for row in session.scalars(query)]


@contextmanager
def _reading(db: Database, job_id: str) -> Iterator[Session]:
    with db.reading() as session:
        if session.get(JobRow, job_id) is None:
            raise UnknownJob(f"there is no job {job_id!r}; `wattle jobs` lists all")
        yield session


def _extremes(curve: Iterator[list[float]], first: int, span: float) -> Iterator[list[float]]:
    for _, group in groupby(curve, key=lambda point: int((point[0] - first) / span)):
        points = list(group)
        low, high = min(points, key=lambda point: point[1]), max(points, key=lambda point: point[1])
        yield from sorted((low, high)) if low is not high else (low,)
