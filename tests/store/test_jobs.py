"""Submitting, looking and cancelling."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest

from store import jobs
from store.database import Database

SPEC = {"widths": [8, 16], "limit": 0.9, "nested": {"text": "grün"}}


def submit(db: Database, name: str = "a", queue: str = "growth", attempts: int = 3, key: str | None = None) -> jobs.Job:
    return jobs.submit(db, "growth", name, SPEC, queue, attempts, key)


def test_a_submitted_job_is_queued_and_owed_a_message(db: Database) -> None:
    job = jobs.submit(db, "profile", "a", SPEC, "profile.pi-4", 4)
    assert (job.kind, job.name, job.spec, job.queue, job.state, job.desired) == ("profile", "a", SPEC, "profile.pi-4", "queued", "run")
    assert (job.attempt, job.max_attempts, job.progress, job.cause, job.worker, job.started_at) == (0, 4, {}, None, None, None)
    assert abs(job.created_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert jobs.get(db, job.id) == job
    assert [(ring.job_id, ring.queue) for ring in jobs.unrung(db)] == [(job.id, "profile.pi-4")]
    assert [(event.type, event.payload["state"]) for event in jobs.events_after(db, 0)] == [("state", "queued")]


def test_a_submission_that_fails_leaves_nothing(db: Database) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        jobs.submit(db, "growth", "a", {"limit": float("nan")}, "growth", 3)
    assert jobs.find(db) == []
    assert jobs.unrung(db) == []
    assert jobs.last_seq(db) == 0


def test_same_key_same_spec_is_the_same_job(db: Database) -> None:
    first = submit(db, key="k")
    assert jobs.submit(db, "growth", "a", SPEC, "growth", 3, "k") == first
    assert len(jobs.unrung(db)) == 1
    jobs.cancel(db, first.id)
    assert jobs.submit(db, "growth", "a", SPEC, "growth", 3, "k").state == "cancelled", "a key stays taken when its job is over"


def test_submissions_of_one_transaction_are_answered_one_by_one_in_their_order(db: Database) -> None:
    before = submit(db, key="old")
    keys = (None, "old", "new", "new", "old", None)
    names = ("first", "a", "a", "a", "other", "last")
    outcomes = jobs.submit_all(db, [jobs.Submission("growth", name, SPEC, "growth", 3, key) for name, key in zip(names, keys, strict=True)])
    first, old, new, again, conflict, last = outcomes
    assert isinstance(conflict, jobs.IdempotencyConflict)
    assert (conflict.key, conflict.job) == ("old", before)
    assert old == before
    assert new == again
    made = [job for job in (first, new, last) if isinstance(job, jobs.Job)]
    assert [job.name for job in made] == ["first", "a", "last"]
    assert [ring.job_id for ring in jobs.unrung(db)] == [before.id, *(job.id for job in made)]
    assert [event.job_id for event in jobs.events_after(db, 0)] == [before.id, *(job.id for job in made)]
    assert jobs.submit_all(db, []) == []


@pytest.mark.parametrize(("kind", "name", "spec", "queue"), [
    ("growth", "a", {"other": 1}, "growth"),
    ("growth", "b", SPEC, "growth"),
    ("profile", "a", SPEC, "growth"),
    ("growth", "a", SPEC, "profile.x"),
])  # fmt: skip
def test_same_key_other_submission_is_a_conflict(db: Database, kind: jobs.JobKind, name: str, spec: dict, queue: str) -> None:
    first = submit(db, key="k")
    with pytest.raises(jobs.IdempotencyConflict, match="use a new key") as caught:
        jobs.submit(db, kind, name, spec, queue, 3, "k")
    assert caught.value.job == first
    assert len(jobs.find(db)) == 1


def test_one_key_from_many_threads_makes_one_job(db: Database) -> None:
    made: list[jobs.Job] = []
    threads = [threading.Thread(target=lambda: made.append(jobs.submit(db, "growth", "a", SPEC, "growth", 3, "k"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({job.id for job in made}) == 1
    assert len(jobs.unrung(db)) == 1


def test_find_pages_newest_first_and_filters(db: Database) -> None:
    ids = [submit(db, name=f"job-{i}").id for i in range(7)]
    jobs.cancel(db, ids[2])
    profile = jobs.submit(db, "profile", "p", {}, "profile.x", 3)
    listed, before = [], None
    while page := jobs.find(db, before=before, limit=3):
        listed += [job.id for job in page]
        before = page[-1].id
    assert sorted(listed, reverse=True) == listed
    assert set(listed) == {*ids, profile.id}
    assert len(listed) == 8
    assert [job.id for job in jobs.find(db, state="cancelled")] == [ids[2]]
    assert [job.id for job in jobs.find(db, kind="profile")] == [profile.id]
    assert jobs.find(db, state="cancelled", kind="profile") == []
    assert jobs.count_by_state(db) == {"queued": 7, "cancelled": 1}
    assert jobs.queued_per_queue(db) == {"growth": 6, "profile.x": 1}


def test_an_unknown_job_is_named(db: Database) -> None:
    for look in (jobs.get, jobs.cancel, jobs.attempts, jobs.rounds, jobs.metrics, jobs.checkpoints, jobs.artifacts):
        with pytest.raises(jobs.UnknownJob, match="no job 'nosuch'"):
            look(db, "nosuch")
    assert jobs.claim(db, "nosuch", "w", 30) is None


def test_cancel_queued_is_at_once_and_silences_the_bell(db: Database) -> None:
    job = submit(db)
    cancelled = jobs.cancel(db, job.id)
    assert (cancelled.state, cancelled.desired) == ("cancelled", "cancel")
    assert cancelled.finished_at is not None
    assert jobs.unrung(db) == []
    assert jobs.claim(db, job.id, "w", 30) is None


def test_cancel_running_asks_its_worker(db: Database) -> None:
    lease = jobs.claim(db, submit(db).id, "w", 30)
    assert lease
    assert jobs.heartbeat(db, lease) == "run"
    asked = jobs.cancel(db, lease.job.id)
    assert (asked.state, asked.desired, asked.finished_at) == ("running", "cancel", None)
    assert jobs.cancel(db, lease.job.id) == asked, "asking twice is asking once"
    assert jobs.heartbeat(db, lease) == "cancel"
    done = jobs.finish(db, lease, "cancelled")
    assert (done.state, done.worker) == ("cancelled", None)


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_cancel_of_a_job_that_is_over_is_refused(db: Database, state: jobs.JobState) -> None:
    lease = jobs.claim(db, submit(db).id, "w", 30)
    assert lease
    done = jobs.finish(db, lease, state, *(("internal", "broke") if state == "failed" else ()))
    with pytest.raises(jobs.JobIsTerminal, match=f"is {state}") as caught:
        jobs.cancel(db, done.id)
    assert caught.value.job == done == jobs.get(db, done.id)


def test_cancel_against_finish_ends_in_one_honest_state(db: Database) -> None:
    for i in range(20):
        lease = jobs.claim(db, submit(db, name=f"job-{i}").id, "w", 30)
        assert lease
        gate = threading.Barrier(2)
        refused: list[bool] = []

        def cancel(job_id: str = lease.job.id, gate: threading.Barrier = gate, refused: list[bool] = refused) -> None:
            gate.wait()
            try:
                jobs.cancel(db, job_id)
            except jobs.JobIsTerminal:
                refused.append(True)

        thread = threading.Thread(target=cancel)
        thread.start()
        gate.wait()
        done = jobs.finish(db, lease, "succeeded")
        thread.join()
        assert done.state == jobs.get(db, done.id).state == "succeeded"
        assert done.desired == ("run" if refused else "cancel")
        ends = [event for event in jobs.events_after(db, 0, done.id) if event.payload["state"] == "succeeded"]
        assert len(ends) == 1


def test_ids_sort_by_time_and_are_easy_to_say(db: Database) -> None:
    job = submit(db)
    assert len(job.id) == 18
    assert not set(job.id) & set("ilou")
