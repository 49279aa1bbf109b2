"""Transactions: all or nothing, readers beside a writer, and an error of one kind when the database is away."""

from __future__ import annotations

import sqlite3
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import bindparam, create_engine, make_url, select, text

from store import jobs
from store.columns import database_time
from store.database import Database, DatabaseUnavailable
from store.tables import Base, JobRow

ONE_JOB = select(JobRow.id).where(JobRow.name == bindparam("name"))


def test_time_is_aware_and_offsets_count_seconds(db: Database) -> None:
    with db.reading() as session:
        now, later, earlier = session.execute(select(database_time(), database_time(90.5), database_time(-3600))).one()
    assert abs(now - datetime.now(UTC)) < timedelta(minutes=1)
    assert now.tzinfo is not None
    assert later - now == pytest.approx(timedelta(seconds=90.5), abs=timedelta(milliseconds=50))
    assert now - earlier == pytest.approx(timedelta(hours=1), abs=timedelta(milliseconds=50))


def test_an_exception_undoes_everything(db: Database) -> None:
    job = jobs.submit(db, "growth", "a", {}, "growth", 3)

    def half_done() -> None:
        with db.transaction() as session:
            session.execute(text("UPDATE jobs SET name = 'changed'"))
            raise InterruptedError

    with pytest.raises(InterruptedError):
        half_done()
    assert jobs.get(db, job.id).name == "a"


def test_constraints_refuse_states_that_can_not_be(db: Database) -> None:
    jobs.submit(db, "growth", "a", {}, "growth", 3)
    for nonsense in (
        "state = 'running'",
        "state = 'failed'",
        "state = 'succeeded'",
        "state = 'happy'",
        "attempt = 4",
        "cause = 'bad luck'",
    ):
        with pytest.raises(Exception, match=r"(?i)check constraint"), db.transaction() as session:
            session.execute(text(f"UPDATE jobs SET {nonsense}"))
    with pytest.raises(Exception, match=r"(?i)foreign key"), db.transaction() as session:
        session.execute(text("INSERT INTO metrics VALUES ('nosuch', 'run', 'loss', 1, 1.0)"))


def test_readers_do_not_wait_for_a_writer(db: Database) -> None:
    job = jobs.submit(db, "growth", "a", {}, "growth", 3)
    with db.transaction() as session:
        session.execute(text("UPDATE jobs SET name = 'changed'"))
        seen: list[str] = []
        reader = threading.Thread(target=lambda: seen.append(jobs.get(db, job.id).name))
        reader.start()
        reader.join(20)
        assert seen == ["a"]
    assert jobs.get(db, job.id).name == "changed"


def test_a_writer_waits_for_its_turn(db: Database) -> None:
    threads = [threading.Thread(target=lambda: jobs.submit(db, "growth", "a", {}, "growth", 3)) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert jobs.count_by_state(db) == {"queued": 10}


def test_reading_first_and_writing_later_never_fails(url: str) -> None:
    """As from two processes: without BEGIN IMMEDIATE SQLite refuses the second of them, and no waiting helps."""
    failures: list[BaseException] = []

    def count_up() -> None:
        db = Database(url)
        try:
            for _ in range(25):
                with db.transaction() as session:
                    row = session.scalars(select(JobRow).with_for_update()).one()
                    row.max_attempts += 1
        except BaseException as error:
            failures.append(error)
        db.close()

    db = Database(url)
    job = jobs.submit(db, "growth", "a", {}, "growth", 1)
    threads = [threading.Thread(target=count_up) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert jobs.get(db, job.id).max_attempts == 76
    db.close()


def test_a_locked_file_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.database.BUSY_TIMEOUT_SECONDS", 0.1)
    db = Database(f"sqlite:///{tmp_path / 'wattle.sqlite'}")
    Base.metadata.create_all(db.engine)
    other = sqlite3.connect(tmp_path / "wattle.sqlite", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(DatabaseUnavailable, match="did not answer: database is locked"):
        jobs.submit(db, "growth", "a", {}, "growth", 3)
    assert jobs.find(db) == [], "readers go on"
    other.execute("ROLLBACK")
    other.close()
    jobs.submit(db, "growth", "a", {}, "growth", 3)
    with db.transaction():
        refused: list[BaseException] = []

        def write() -> None:
            try:
                jobs.submit(db, "growth", "b", {}, "growth", 3)
            except DatabaseUnavailable as error:
                refused.append(error)

        writer = threading.Thread(target=write)
        writer.start()
        writer.join()
        assert len(refused) == 1
    db.close()


@pytest.mark.postgres
def test_a_server_that_is_away_is_unavailable(postgres_server: str) -> None:
    db = Database(make_url(postgres_server).set(query={"host": "/tmp/no-such-folder"}).render_as_string(hide_password=False))
    for ask in (lambda: jobs.find(db), lambda: db.rows(ONE_JOB, {"name": "a"})):
        with pytest.raises(DatabaseUnavailable, match="did not answer"):
            ask()


def test_a_small_question_can_not_write(db: Database) -> None:
    asked = db._asker._engine
    with pytest.raises(Exception, match=r"readonly|read-only"), asked.connect() as connection:
        connection.execute(text("DELETE FROM jobs"))


@pytest.mark.postgres
def test_reading_can_not_write_on_postgresql(postgres_tables: str) -> None:
    db = Database(postgres_tables)
    with pytest.raises(Exception, match="read-only transaction"), db.reading() as session:
        session.execute(text("DELETE FROM jobs"))
    with db.transaction() as session:
        session.execute(text("DELETE FROM jobs"))
    db.close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://localhost/wattle"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="database URL"):
        Database(url)


def test_sqlite_is_set_up_on_every_connection(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path / 'folder' / 'wattle.sqlite'}")
    pragmas = {"journal_mode": "wal", "synchronous": 1, "foreign_keys": 1, "busy_timeout": 30_000}
    with db.engine.connect() as first, db.engine.connect() as second:
        for connection in (first, second):
            raw = connection.connection.cursor()
            assert {name: raw.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas} == pragmas
    db.close()


def test_a_migration_does_not_leave_foreign_keys_off(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path / 'wattle.sqlite'}")
    db.migrate()
    with db.reading() as session:
        assert session.execute(text("PRAGMA foreign_keys")).scalar_one() == 1
    db.close()


def test_times_are_kept_as_they_are_read(db: Database) -> None:
    """SQLite compares times as text: what Python writes and what the database writes must look alike."""
    moment = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
    job = jobs.submit(db, "growth", "a", {}, "growth", 3)
    with db.transaction() as session:
        row = session.get_one(JobRow, job.id)
        row.started_at = moment
    with db.reading() as session:
        assert session.get_one(JobRow, job.id).started_at == moment
        assert session.scalar(select(JobRow.id).where(JobRow.started_at <= moment, JobRow.started_at < database_time())) == job.id
    assert len({len(str(value)) for value in _raw_times(db)}) == 1


def _raw_times(db: Database) -> list[object]:
    engine = create_engine(db.engine.url)
    with engine.connect() as connection:
        created, started = connection.execute(text("SELECT created_at, started_at FROM jobs")).one()
    engine.dispose()
    return [created, started] if db.backend == "sqlite" else ["same", "same"]
