"""The reporter: in batches, nothing lost while the database is away, and an end to the patience."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from store import jobs
from store.database import Database, DatabaseUnavailable
from store.settings import Settings
from worker import attempt as module
from worker.attempt import Attempt, Reporter


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    settings = Settings(data_dir=tmp_path, lease_seconds=0.3, heartbeat_seconds=0.05)
    db = Database(settings.database)
    db.migrate()
    job = jobs.submit(db, "growth", "small", {}, "growth", 3)
    lease = jobs.claim(db, job.id, "test", 600)
    assert lease is not None
    return Attempt(db, settings, lease, "this-host")


class Outage:
    """A store that can be away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.away, self.calls, self._record = False, 0, jobs.record
        monkeypatch.setattr(jobs, "record", self)

    def __call__(self, *arguments: object) -> None:
        self.calls += 1
        if self.away:
            raise DatabaseUnavailable("locked")
        self._record(*arguments)  # type: ignore[arg-type]


def test_progress_is_sent_once_a_second_and_when_it_matters(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    store, reporter = Outage(monkeypatch), Reporter(attempt)
    for step in range(50):
        reporter.point("grown", step, loss=1.0)
        reporter.tell({"step": step})
    assert store.calls == 1
    reporter.tell({"phase": "scoring"}, at_once=True)
    assert store.calls == 2
    assert jobs.get(attempt.db, attempt.job_id).progress == {"step": 49, "phase": "scoring"}
    assert len(jobs.metrics(attempt.db, attempt.job_id)["grown"]["loss"]) == 50


def test_points_wait_for_a_database_that_is_away(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TELL_EVERY_SECONDS", 0.0)
    store, reporter = Outage(monkeypatch), Reporter(attempt)
    store.away = True
    for step in range(3):
        reporter.point("grown", step, loss=1.0)
        reporter.tell({"step": step})
    store.away = False
    reporter.tell({})
    assert [step for step, _ in jobs.metrics(attempt.db, attempt.job_id)["grown"]["loss"]] == [0, 1, 2]


def test_patience_ends_with_the_lease(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    store, reporter = Outage(monkeypatch), Reporter(attempt)
    store.away = True
    time.sleep(0.4)
    with pytest.raises(DatabaseUnavailable):
        reporter.tell({}, at_once=True)


def test_what_is_not_finite_is_left_out(attempt: Attempt) -> None:
    reporter = Reporter(attempt)
    reporter.point("grown", 1, loss=float("nan"), accuracy=0.5)
    reporter.flush()
    assert set(jobs.metrics(attempt.db, attempt.job_id)["grown"]) == {"accuracy"}
