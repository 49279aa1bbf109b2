"""The supervisor with small children in place of the real one: what ends up in the store, and what is alive afterwards."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from store import jobs
from store.database import Database
from store.jobs import Job
from store.settings import Settings
from worker.processes import Identity, Register, group_alive, kill_group
from worker.supervisor import log_path, supervise


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", lease_seconds=1.5, heartbeat_seconds=0.1)


@pytest.fixture
def db(settings: Settings) -> Database:
    db = Database(settings.database)
    db.migrate()
    return db


def submit(db: Database, max_attempts: int = 3) -> str:
    return jobs.submit(db, "growth", "small", {}, "growth", max_attempts).id


def child(code: str) -> list[str]:
    """A child that reads its order, then runs ``code``."""
    lines = ("import json, os, signal, sys, time", "order = json.loads(sys.stdin.readline())", *code.strip().splitlines())
    return [sys.executable, "-c", "\n".join(lines)]


SUCCEED = child("""print(json.dumps({"state": "succeeded"}))""")
SLEEP = child("time.sleep(60)")
DEAF = child("signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', file=sys.stderr, flush=True)\ntime.sleep(60)")
POLITE = child(
    """
def leave(*_):
    print(json.dumps({"state": "stopped"}))
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print('listening', file=sys.stderr, flush=True)
time.sleep(60)
"""
)


class Attempt:
    """``supervise`` in a thread; its child is found through the pid file."""

    def __init__(self, db: Database, settings: Settings, job_id: str, command: list[str], stopping: Callable[[], bool] = lambda: False):
        self.db, self.settings, self.job_id = db, settings, job_id
        arguments = (db, settings, job_id, "this-host", stopping, command, 0.5)
        self.thread = threading.Thread(target=supervise, args=arguments)
        self.thread.start()

    def child(self) -> int:
        folder = self.settings.data_dir / "pids"
        wait_for(lambda: any(folder.glob(f"{self.job_id}-*.json")))
        return int(next(folder.glob(f"{self.job_id}-*.json")).stem.rpartition("-")[2])

    def says(self, word: str) -> None:
        self.child()
        wait_for(lambda: word in log_path(self.settings, self.job_id).read_text())

    def end(self) -> Job:
        self.thread.join(20)
        assert not self.thread.is_alive()
        return jobs.get(self.db, self.job_id)


def wait_for(true: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_success(db: Database, settings: Settings) -> None:
    job = Attempt(db, settings, submit(db), SUCCEED).end()
    assert (job.state, job.attempt, job.cause) == ("succeeded", 1, None)
    assert list((settings.data_dir / "pids").iterdir()) == []


def test_child_gets_its_order_and_its_words_go_to_the_log(db: Database, settings: Settings) -> None:
    tell = child("""print(order["job"], order["device"], order["settings"]["lease_seconds"], file=sys.stderr)""")
    job = Attempt(db, settings, submit(db), [*tell]).end()
    text = log_path(settings, job.id).read_text()
    assert "attempt 1 of 3" in text
    assert f"{job.id} this-host 1.5" in text


def test_failure_with_a_cause_is_final(db: Database, settings: Settings) -> None:
    fail = child("""print(json.dumps({"state": "failed", "cause": "invalid_data", "message": "one class; add another"}))""")
    job = Attempt(db, settings, submit(db), fail).end()
    assert (job.state, job.cause, job.message, job.attempt) == ("failed", "invalid_data", "one class; add another", 1)


@pytest.mark.parametrize(
    ("code", "word"),
    [("os.kill(os.getpid(), signal.SIGKILL)", "signal 9 (SIGKILL)"), ("sys.exit(3)", "exit code 3"), ("pass", "exit code 0")],
)
def test_a_child_that_dies_without_a_word_is_tried_again(db: Database, settings: Settings, code: str, word: str) -> None:
    job = Attempt(db, settings, submit(db), child(code)).end()
    assert (job.state, job.cause, job.attempt) == ("queued", "lost_worker", 1)
    assert word in str(job.message)


def test_attempts_are_bounded(db: Database, settings: Settings) -> None:
    job_id = submit(db, max_attempts=2)
    for _ in range(2):
        job = Attempt(db, settings, job_id, child("sys.exit(1)")).end()
    assert (job.state, job.cause, job.attempt) == ("failed", "lost_worker", 2)


@pytest.mark.parametrize(("command", "word"), [(POLITE, "listening"), (DEAF, "deaf")])
def test_cancelled_means_dead(db: Database, settings: Settings, command: list[str], word: str) -> None:
    attempt = Attempt(db, settings, submit(db), command)
    attempt.says(word)
    pid = attempt.child()
    jobs.cancel(db, attempt.job_id)
    assert attempt.end().state == "cancelled"
    assert not group_alive(pid)


def test_cancel_takes_the_grandchildren_along(db: Database, settings: Settings) -> None:
    fork = child(
        "if os.fork() == 0:\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('two', file=sys.stderr, flush=True)\ntime.sleep(60)"
    )
    attempt = Attempt(db, settings, submit(db), fork)
    attempt.says("two")
    pid = attempt.child()
    jobs.cancel(db, attempt.job_id)
    assert attempt.end().state == "cancelled"
    assert not group_alive(pid)


def test_success_is_honest_when_a_cancel_came_too_late(db: Database, settings: Settings) -> None:
    done = child("""signal.signal(signal.SIGTERM, lambda *_: None)\nprint(json.dumps({"state": "succeeded"}))\ntime.sleep(1)""")
    attempt = Attempt(db, settings, submit(db), done)
    attempt.child()
    jobs.cancel(db, attempt.job_id)
    assert attempt.end().state in ("succeeded", "cancelled")  # the signal may have come before the child said its word


def test_a_worker_that_makes_way_gives_the_attempt_back(db: Database, settings: Settings) -> None:
    stop = threading.Event()
    attempt = Attempt(db, settings, submit(db), POLITE, stop.is_set)
    attempt.says("listening")
    stop.set()
    job = attempt.end()
    assert (job.state, job.attempt, job.max_attempts) == ("queued", 1, 4)


def test_a_worker_that_can_not_write_its_log_says_so(db: Database, settings: Settings) -> None:
    (settings.data_dir / "logs").write_text("in the way")
    job = Attempt(db, settings, submit(db), SUCCEED).end()
    assert (job.state, job.cause) == ("queued", "internal")
    assert "could not run the job" in str(job.message)


def test_a_job_that_is_not_queued_is_left_alone(db: Database, settings: Settings) -> None:
    job_id = submit(db)
    jobs.cancel(db, job_id)
    supervise(db, settings, job_id, "this-host", command=SLEEP)
    assert jobs.get(db, job_id).state == "cancelled"
    assert not log_path(settings, job_id).exists()


def test_a_lost_lease_kills_and_writes_nothing(db: Database, settings: Settings) -> None:
    attempt = Attempt(db, settings, submit(db), SLEEP)
    pid = attempt.child()
    other = _steal(db, attempt.job_id)
    job = attempt.end()
    assert not group_alive(pid)
    assert (job.state, job.attempt, job.worker) == ("running", 2, "other")
    assert jobs.heartbeat(db, other) == "run"


def _steal(db: Database, job_id: str) -> jobs.Lease:
    """What a reaper and another worker do while the first one sleeps."""
    from sqlalchemy import update

    from store.columns import database_time
    from store.tables import JobRow

    with db.transaction() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id).values(lease_expires_at=database_time(-1)))
    assert jobs.reap(db) == [job_id]
    lease = jobs.claim(db, job_id, "other", 60)
    assert lease is not None
    return lease


def test_strays_of_a_dead_supervisor_are_ended(db: Database, settings: Settings) -> None:
    register = Register(settings.data_dir / "pids")
    stray, friend = (
        os.posix_spawn("/bin/sleep", ["sleep", "60"], {}, setsid=True),
        os.posix_spawn("/bin/sleep", ["sleep", "60"], {}, setsid=True),
    )
    try:
        note = register.add(stray, "old-job")
        note.write_text(note.read_text().replace(f'"pid": {os.getpid()},', '"pid": 4194303,'))  # a supervisor that is no more
        register.add(friend, "other-job")
        assert Attempt(db, settings, submit(db), SUCCEED).end().state == "succeeded"
        assert os.waitpid(stray, 0)[1] == signal.SIGKILL
        assert Identity.of(friend) is not None
    finally:
        kill_group(friend)
        os.waitpid(friend, 0)
