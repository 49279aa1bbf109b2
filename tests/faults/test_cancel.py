"""Cancelled means dead: queued, running, while the worker dies, and with no worker at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from worker.processes import group_alive

if TYPE_CHECKING:
    from conftest import Running

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("faults"), pytest.mark.timeout(300)]


def cancel(wattle: Running, job_id: str) -> None:
    answer = wattle.client.post(f"/v1/jobs/{job_id}/cancel")
    assert answer.is_success, answer.text


def test_running_and_queued(wattle: Running) -> None:
    running, queued = wattle.submit(), wattle.submit()
    wattle.in_the_middle(running)
    child = wattle.process("training child", running)
    cancel(wattle, queued)
    assert wattle.job(queued).state == "cancelled"
    cancel(wattle, running)
    assert wattle.end(running).state == "cancelled"
    assert not group_alive(child)
    assert wattle.job(queued).attempt == 0


def test_while_the_worker_dies(wattle: Running) -> None:
    job_id = wattle.submit()
    wattle.in_the_middle(job_id)
    child = wattle.process("training child", job_id)
    wattle.kill("worker", job_id)
    cancel(wattle, job_id)
    job = wattle.end(job_id)
    assert (job.state, job.attempt) == ("cancelled", 1)
    assert not group_alive(child)


def test_with_no_worker_up(wattle_without_worker: Running) -> None:
    wattle = wattle_without_worker
    job_id = wattle.submit()
    cancel(wattle, job_id)
    assert wattle.job(job_id).state == "cancelled"
    assert wattle.client.post(f"/v1/jobs/{job_id}/cancel").status_code == 409
