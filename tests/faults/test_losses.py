"""What is lost: the broker's memory, a worker's time, the space on the disk."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import redis

from store import jobs
from wattle.up import as_environment

if TYPE_CHECKING:
    from conftest import Running

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("faults"), pytest.mark.timeout(300)]

SHORT = {"epochs_per_round": 0.1, "final_epochs": 0.1}


def test_a_wiped_broker_loses_no_job(wattle: Running) -> None:
    first = wattle.submit()
    wattle.in_the_middle(first)
    queued = [wattle.submit(training=SHORT) for _ in range(3)]
    wattle.wait_for(lambda: not jobs.unrung(wattle.db))  # all messages are with the broker
    url = urlsplit(wattle.service.settings.broker_url)
    broker = redis.Redis(unix_socket_path=url.path, password=url.password)
    broker.flushall()
    for job_id in (first, *queued):
        job = wattle.end(job_id)
        assert (job.state, job.attempt) == ("succeeded", 1)
    assert all(len(jobs.attempts(wattle.db, job_id)) == 1 for job_id in (first, *queued))


def test_a_worker_that_slept_beyond_its_lease_writes_nothing(wattle: Running, undisturbed: str) -> None:
    job_id = wattle.submit()
    wattle.in_the_middle(job_id)
    sleepers = [wattle.process(name, job_id) for name in ("worker", "pool child", "training child")]
    for pid in sleepers:
        os.kill(pid, signal.SIGSTOP)
    settings = wattle.service.settings
    command = [sys.executable, "-m", "worker", "--device", "second", "--queues", "growth"]
    second = subprocess.Popen(command, env={**os.environ, **as_environment(settings)}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        job = wattle.end(job_id)
        assert (job.state, job.attempt) == ("succeeded", 2)
        seen = jobs.last_seq(wattle.db)
        for pid in sleepers[:2]:
            os.kill(pid, signal.SIGCONT)
        log = settings.data_dir / "logs" / "worker-1.log"
        wattle.wait_for(lambda: f"lost the lease of job {job_id}" in log.read_text())
    finally:
        second.terminate()
        second.wait(30)
    assert wattle.job(job_id) == job
    assert jobs.last_seq(wattle.db) == seen
    assert wattle.network_sha256(job_id) == undisturbed
    assert not wattle.processes_of(job_id)


def test_a_full_disk_fails_the_job_and_keeps_the_old_checkpoint(wattle: Running) -> None:
    """The limit on file sizes stands for a full disk: it hits the one large file, the checkpoint, and nothing else."""
    limit = 6 * 2**20
    network = {"family": "plain", "widths": [256, 480]}  # 1.1 million weights and as many momenta: 9 MB
    job_id = wattle.submit(network=network, budget={"cost": "macs", "limit": 1e9, "device": "elsewhere"})
    wattle.in_the_middle(job_id)
    resource.prlimit(wattle.process("training child", job_id), resource.RLIMIT_FSIZE, (limit, limit))
    job = wattle.end(job_id)
    assert (job.state, job.cause, job.attempt) == ("failed", "disk_full", 1)
    assert "WATTLE_DATA_DIR" in str(job.message)
    kept = {checkpoint.sha256 for checkpoint in jobs.checkpoints(wattle.db, job_id)}
    on_disk = {path.stem for path in (wattle.service.settings.job_dir(job_id) / "checkpoints").iterdir()}
    assert kept
    assert kept == on_disk
    assert wattle.end(wattle.submit(training=SHORT)).state == "succeeded"
