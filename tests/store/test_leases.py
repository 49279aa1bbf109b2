"""One owner at a time: claim, heartbeat, loss, reaping, and every write of a former owner refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from costs.table import CostTable
from store import devices, jobs, leases
from store.database import Database

CLAIM_ALL = """
import sys
from store import jobs
from store.database import Database
db, ids = Database(sys.argv[1]), sys.stdin.read().split()
print("ready", flush=True)
for job_id in ids:
    if jobs.claim(db, job_id, sys.argv[2], 30):
        print(job_id)
"""


def submitted(db: Database, attempts: int = 3) -> jobs.Job:
    return jobs.submit(db, "growth", "a", {}, "growth", attempts)


def claimed(db: Database, attempts: int = 3) -> jobs.Lease:
    lease = jobs.claim(db, submitted(db, attempts).id, "first", 30)
    assert lease
    return lease


def test_claim_takes_a_queued_job_once(db: Database) -> None:
    job = submitted(db)
    lease = jobs.claim(db, job.id, "host-a", 30)
    assert lease
    assert (lease.attempt, lease.job.state, lease.job.worker, lease.job.attempt) == (1, "running", "host-a", 1)
    assert lease.job.started_at is not None
    assert jobs.claim(db, job.id, "host-b", 30) is None
    assert jobs.unrung(db) == [], "a claimed job needs no message"
    assert jobs.adopt(db, job.id, lease.token) == lease
    with pytest.raises(jobs.LeaseLost):
        jobs.adopt(db, job.id, "another token")


def test_four_processes_claim_each_job_once(db: Database, url: str) -> None:
    ids = [submitted(db).id for _ in range(40)]
    workers = [
        subprocess.Popen([sys.executable, "-c", CLAIM_ALL, url, f"w{i}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for i in range(4)
    ]
    for worker in workers:
        assert worker.stdin
        worker.stdin.write("\n".join(ids))
        worker.stdin.close()
    won = []
    for worker in workers:
        assert worker.stdout
        won += worker.stdout.read().split()[1:]
        assert worker.wait() == 0
    assert sorted(won) == sorted(ids)
    assert jobs.count_by_state(db) == {"running": 40}
    assert all(len(jobs.attempts(db, job_id)) == 1 for job_id in ids[:5])


def test_heartbeat_extends_by_the_leases_length(db: Database, lose_leases: Callable[[], None]) -> None:
    lease = claimed(db)
    lose_leases()
    assert jobs.heartbeat(db, lease) == "run", "late, but nobody took the job"
    assert jobs.reap(db) == []
    assert jobs.get(db, lease.job.id).state == "running"


def zombie_writes(db: Database, lease: jobs.Lease) -> dict[str, Callable[[], object]]:
    return {
        "heartbeat": lambda: jobs.heartbeat(db, lease),
        "record": lambda: jobs.record(db, lease, {"step": 9}, [jobs.Metric("grown", "loss", 9, 1.0)]),
        "add_round": lambda: jobs.add_round(db, lease, "grown", 9, {}, step=9),
        "register_checkpoint": lambda: jobs.register_checkpoint(db, lease, "grown", 9, "0" * 64, 1),
        "forget_checkpoints": lambda: jobs.forget_checkpoints(db, lease, "grown", 0),
        "rewind": lambda: jobs.rewind(db, lease, "grown", 0),
        "add_artifact": lambda: jobs.add_artifact(db, lease, "report.json", "0" * 64, 1, "application/json"),
        "save_table": lambda: devices.save_table(db, lease, CostTable("pi-4")),
        "finish": lambda: jobs.finish(db, lease, "succeeded"),
        "requeue": lambda: jobs.requeue(db, lease, "lost_worker", "gone"),
    }


@pytest.mark.parametrize("lost_by", ["reaped", "taken over", "cancelled", "finished"])
def test_a_zombie_writes_nothing(db: Database, lose_leases: Callable[[], None], lost_by: str) -> None:
    devices.register(db, "pi-4", {})
    lease = claimed(db)
    jobs.record(db, lease, {"step": 1}, [jobs.Metric("grown", "loss", 1, 2.0)])
    jobs.register_checkpoint(db, lease, "grown", 1, "a" * 64, 1)
    if lost_by == "finished":
        jobs.finish(db, lease, "succeeded")
    else:
        if lost_by == "cancelled":
            jobs.cancel(db, lease.job.id)
        lose_leases()
        assert jobs.reap(db) == [lease.job.id]
        if lost_by == "taken over":
            assert jobs.claim(db, lease.job.id, "second", 30)

    def all_there_is() -> tuple[object, ...]:
        of_job = [look(db, lease.job.id) for look in (jobs.get, jobs.attempts, jobs.metrics, jobs.rounds, jobs.checkpoints, jobs.artifacts)]
        return *of_job, jobs.events_after(db, 0), jobs.unrung(db), devices.device(db, "pi-4")

    before = all_there_is()
    for name, write in zombie_writes(db, lease).items():
        with pytest.raises(jobs.LeaseLost, match="stop work"):
            write()
        assert all_there_is() == before, name


def test_reaped_job_waits_again_then_fails_as_lost_worker(db: Database, lose_leases: Callable[[], None]) -> None:
    job = submitted(db, attempts=3)
    for attempt in (1, 2, 3):
        assert [ring.job_id for ring in jobs.unrung(db)] == [job.id]
        lease = jobs.claim(db, job.id, f"worker-{attempt}", 7)
        assert lease
        assert lease.attempt == attempt
        assert jobs.reap(db) == [], "a fresh lease holds"
        lose_leases()
        assert jobs.reap(db) == [job.id]
        assert jobs.reap(db) == []
    failed = jobs.get(db, job.id)
    assert (failed.state, failed.cause, failed.attempt) == ("failed", "lost_worker", 3)
    assert failed.message == "worker worker-3 was not heard of for 7 s; attempt 3 of 3"
    assert jobs.unrung(db) == []
    tries = jobs.attempts(db, job.id)
    assert [(a.number, a.worker, a.cause) for a in tries] == [(i, f"worker-{i}", "lost_worker") for i in (1, 2, 3)]
    assert all(a.finished_at is not None for a in tries)


def test_a_heartbeat_just_before_the_reaper_saves_the_job(
    db: Database, lose_leases: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = claimed(db)
    lose_leases()
    reap_one = leases._reap_one

    def heartbeat_first(*arguments: Any) -> bool:
        jobs.heartbeat(db, lease)
        return reap_one(*arguments)

    monkeypatch.setattr(leases, "_reap_one", heartbeat_first)
    assert jobs.reap(db) == []
    assert jobs.get(db, lease.job.id).state == "running"


def test_reaper_honours_a_cancel(db: Database, lose_leases: Callable[[], None]) -> None:
    lease = claimed(db)
    jobs.cancel(db, lease.job.id)
    lose_leases()
    assert jobs.reap(db) == [lease.job.id]
    assert jobs.get(db, lease.job.id).state == "cancelled"


def test_requeue_until_attempts_are_used_up(db: Database) -> None:
    lease = claimed(db, attempts=2)
    again = jobs.requeue(db, lease, "lost_worker", "the child died")
    assert (again.state, again.cause, again.message, again.worker) == ("queued", "lost_worker", "the child died", None)
    second = jobs.claim(db, again.id, "second", 30)
    assert second
    assert (second.job.cause, second.job.message) == (None, None)
    assert second.job.started_at == lease.job.started_at, "a job starts once"
    failed = jobs.requeue(db, second, "out_of_memory", "the child was killed for memory")
    assert (failed.state, failed.cause) == ("failed", "out_of_memory")


def test_requeue_of_a_worker_that_was_asked_to_stop_costs_no_attempt(db: Database) -> None:
    job_id = submitted(db, attempts=1).id
    for _ in range(3):
        lease = jobs.claim(db, job_id, "w", 30)
        assert lease
        assert jobs.requeue(db, lease, "lost_worker", "the worker was stopped", counts=False).state == "queued"


def test_requeue_honours_a_cancel(db: Database) -> None:
    lease = claimed(db)
    jobs.cancel(db, lease.job.id)
    assert jobs.requeue(db, lease, "lost_worker", "the child died").state == "cancelled"


def test_a_failure_needs_a_cause_and_a_sentence(db: Database) -> None:
    lease = claimed(db)
    for cause, message in ((None, "broke"), ("internal", None), ("internal", "")):
        with pytest.raises(ValueError, match="needs both"):
            jobs.finish(db, lease, "failed", cause, message)
    done = jobs.finish(db, lease, "failed", "disk_full", "the disk is full; free 2 GB")
    assert (done.state, done.cause, done.message) == ("failed", "disk_full", "the disk is full; free 2 GB")


def test_time_is_the_databases(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose clock is an hour fast neither loses nor keeps a lease by it."""
    monkeypatch.setattr("time.time_ns", lambda: 2_000_000_000_000_000_000)
    lease = claimed(db)
    assert jobs.reap(db) == []
    with db.reading() as session:
        left = session.execute(text("SELECT lease_expires_at FROM jobs")).scalar_one()
    assert "2033" not in str(left), "2e18 ns is in 2033"
    assert jobs.heartbeat(db, lease) == "run"
