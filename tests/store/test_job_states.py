"""Any order of what users, workers and the keeper may do leaves every job in the state that a simple model says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import select, text

from store import jobs
from store.database import Database
from store.tables import OutboxRow


@dataclass
class Model:
    """What a job should be like."""

    max_attempts: int
    state: str = "queued"
    desired: str = "run"
    cause: str | None = None
    lease: jobs.Lease | None = None
    former: list[jobs.Lease] = field(default_factory=list)
    attempts: int = 0
    expired: bool = False

    def end(self, state: str, cause: str | None = None) -> None:
        self.leave()
        self.state, self.cause = state, cause

    def leave(self) -> None:
        if self.lease:
            self.former.append(self.lease)
        self.lease, self.expired = None, False

    def give_up(self, cause: str) -> None:
        if self.desired == "cancel":
            self.end("cancelled")
        elif self.attempts >= self.max_attempts:
            self.end("failed", cause)
        else:
            self.leave()
            self.state, self.cause = "queued", cause


class JobStates(RuleBasedStateMachine):
    ids = Bundle("ids")

    def __init__(self, db: Database, expire: Callable[[str], None]) -> None:
        super().__init__()
        self.db, self.expire = db, expire
        self.models: dict[str, Model] = {}
        with db.transaction() as session:
            session.execute(text("DELETE FROM jobs"))

    @rule(target=ids, attempts=st.integers(1, 3))
    def submit(self, attempts: int) -> str:
        job = jobs.submit(self.db, "growth", "a", {"n": len(self.models)}, "growth", attempts, f"key-{len(self.models)}")
        assert job.id not in self.models
        self.models[job.id] = Model(attempts)
        return job.id

    @rule(job_id=ids)
    def claim(self, job_id: str) -> None:
        model = self.models[job_id]
        lease = jobs.claim(self.db, job_id, "w", 30)
        assert (lease is not None) == (model.state == "queued")
        if lease:
            model.attempts += 1
            model.state, model.cause, model.lease = "running", None, lease
            assert lease.attempt == model.attempts

    @rule(job_id=ids)
    def cancel(self, job_id: str) -> None:
        model = self.models[job_id]
        if model.state in ("queued", "running"):
            jobs.cancel(self.db, job_id)
            model.desired = "cancel"
            if model.state == "queued":
                model.end("cancelled")
        else:
            with pytest.raises(jobs.JobIsTerminal):
                jobs.cancel(self.db, job_id)

    @rule(job_id=ids, state=st.sampled_from(["succeeded", "failed", "cancelled"]))
    def finish(self, job_id: str, state: jobs.JobState) -> None:
        model = self.models[job_id]
        if model.lease:
            cause = ("disk_full", "full") if state == "failed" else ()
            jobs.finish(self.db, model.lease, state, *cause)
            model.end(state, *cause[:1])

    @rule(job_id=ids, counts=st.booleans())
    def requeue(self, job_id: str, counts: bool) -> None:
        model = self.models[job_id]
        if model.lease:
            model.max_attempts += not counts
            jobs.requeue(self.db, model.lease, "lost_worker", "died", counts=counts)
            model.give_up("lost_worker")

    @rule(job_id=ids)
    def fall_silent(self, job_id: str) -> None:
        model = self.models[job_id]
        if model.lease:
            self.expire(job_id)
            model.expired = True

    @rule()
    def reap(self) -> None:
        expected = {job_id for job_id, model in self.models.items() if model.expired}
        assert set(jobs.reap(self.db)) == expected
        for job_id in expected:
            self.models[job_id].give_up("lost_worker")

    @rule(job_id=ids)
    def heartbeat(self, job_id: str) -> None:
        model = self.models[job_id]
        if model.lease:
            assert jobs.heartbeat(self.db, model.lease) == model.desired
            model.expired = False

    @rule(job_id=ids)
    def zombie(self, job_id: str) -> None:
        for lease in self.models[job_id].former:
            for write in (
                lambda lease: jobs.heartbeat(self.db, lease),
                lambda lease: jobs.record(self.db, lease, {"zombie": True}),
                lambda lease: jobs.finish(self.db, lease, "succeeded"),
            ):
                with pytest.raises(jobs.LeaseLost):
                    write(lease)

    @rule()
    def relay(self) -> None:
        jobs.mark_rung(self.db, [ring.id for ring in jobs.unrung(self.db)])

    @rule()
    def broker_wiped(self) -> None:
        jobs.ring_again(self.db, -1)

    @invariant()
    def every_job_is_as_the_model_says(self) -> None:
        found = {job.id: job for job in jobs.find(self.db, limit=1000)}
        assert set(found) == set(self.models)
        for job_id, model in self.models.items():
            job = found[job_id]
            assert (job.state, job.desired, job.cause, job.attempt) == (model.state, model.desired, model.cause, model.attempts)
            assert (job.worker is not None) == (job.state == "running")

    @invariant()
    def exactly_the_queued_jobs_have_one_ring(self) -> None:
        with self.db.reading() as session:
            rung = sorted(session.scalars(select(OutboxRow.job_id)))
        assert rung == sorted(job_id for job_id, model in self.models.items() if model.state == "queued")

    def teardown(self) -> None:
        for job_id, model in self.models.items():
            assert len(jobs.attempts(self.db, job_id)) == model.attempts
            ends = [e for e in jobs.events_after(self.db, 0, job_id) if e.payload["state"] in ("succeeded", "failed", "cancelled")]
            assert len(ends) == (model.state in ("succeeded", "failed", "cancelled"))


def test_job_states(db: Database) -> None:
    def expire(job_id: str) -> None:
        with db.transaction() as session:
            past = text("UPDATE jobs SET lease_expires_at = '2000-01-01 00:00:00.000000' WHERE id = :id")
            session.execute(past, {"id": job_id})

    examples = 25 if db.backend == "sqlite" else 8
    checks = list(HealthCheck)
    run_state_machine_as_test(
        lambda: JobStates(db, expire),
        settings=settings(max_examples=examples, stateful_step_count=25, deadline=None, suppress_health_check=checks),
    )
