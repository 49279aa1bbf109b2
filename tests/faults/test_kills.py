"""kill -9 of every process that takes part in a job: it ends by itself, with the bits of an undisturbed one."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from store import jobs

if TYPE_CHECKING:
    from conftest import Running

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("faults"), pytest.mark.timeout(300)]


@pytest.mark.parametrize("name", ["training child", "pool child", "worker", "server"])
def test_killed_in_the_middle_of_a_job(wattle: Running, undisturbed: str, name: str) -> None:
    job_id = wattle.submit()
    wattle.in_the_middle(job_id)
    child = wattle.training_child(job_id)
    wattle.kill(name, job_id)
    job = wattle.end(job_id)
    assert (job.state, job.attempt) == ("succeeded", 1 if name == "server" else 2)
    assert wattle.network_sha256(job_id) == undisturbed
    assert_whole_curves(wattle, job_id)
    assert (child != wattle.training_child(job_id)) or child is None
    wattle.wait_for(lambda: wattle.client.get("/readyz").status_code == 200)


def test_a_worker_that_is_told_to_stop_gives_the_attempt_back(wattle: Running, undisturbed: str) -> None:
    job_id = wattle.submit()
    wattle.in_the_middle(job_id)
    os.kill(wattle.service.pids["worker-1"], signal.SIGTERM)
    job = wattle.end(job_id)
    assert (job.state, job.attempt, job.max_attempts) == ("succeeded", 2, 4)
    assert wattle.network_sha256(job_id) == undisturbed
    assert_whole_curves(wattle, job_id)


def test_a_job_that_always_dies_fails_and_the_next_one_runs(wattle: Running) -> None:
    poison, healthy = wattle.submit(), wattle.submit()
    for attempt in range(1, 4):
        wattle.wait_for(lambda attempt=attempt: wattle.job(poison).attempt == attempt and wattle.training_child(poison))
        wattle.kill("training child", poison)
    job = wattle.end(poison)
    assert (job.state, job.cause, job.attempt) == ("failed", "lost_worker", 3)
    assert "signal 9 (SIGKILL)" in str(job.message)
    assert wattle.end(healthy).state == "succeeded"


def assert_whole_curves(wattle: Running, job_id: str) -> None:
    """Every step is there, once."""
    for run in jobs.metrics(wattle.db, job_id, 100_000).values():
        steps = [step for step, _ in run["loss"]]
        assert steps == list(range(1, len(steps) + 1))
