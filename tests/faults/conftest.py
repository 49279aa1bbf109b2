"""A real service in a temporary folder, with short leases, and ways to find and kill its processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from store import jobs
from store.database import Database
from store.settings import Settings
from wattle.up import Service, up
from worker.processes import Identity, members

TERMINAL = ("succeeded", "failed", "cancelled")
# enough steps for a fault to strike in the middle; a device that is not here, so that nothing is measured
SPEC: dict[str, Any] = {
    "name": "fault",
    "data": {"name": "digits"},
    "network": {"family": "plain", "widths": [4, 6]},
    "growth": {"rounds": 1, "scoring_samples": 64, "fresh_samples": 32},
    "budget": {"cost": "macs", "limit": 20_000, "device": "elsewhere"},
    "training": {"epochs_per_round": 3, "final_epochs": 16, "batch_size": 32},
    "controls": [],
}
WAIT_SECONDS = 100.0


def wait_for(true: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@dataclass(frozen=True)
class Running:
    """A running service, its store, and a client of its API."""

    service: Service
    db: Database
    client: httpx.Client

    def submit(self, **changes: Mapping[str, Any]) -> str:
        answer = self.client.post("/v1/jobs", json={**SPEC, **changes})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> jobs.Job:
        return jobs.get(self.db, job_id)

    def end(self, job_id: str) -> jobs.Job:
        wait_for(lambda: self.job(job_id).state in TERMINAL)
        return self.job(job_id)

    def in_the_middle(self, job_id: str) -> None:
        """Wait until the job trains and has a checkpoint to go on from."""
        wait_for(lambda: self.job(job_id).state == "running" and jobs.checkpoints(self.db, job_id))

    def network_sha256(self, job_id: str) -> str:
        return next(artifact.sha256 for artifact in jobs.artifacts(self.db, job_id) if artifact.name == "network.safetensors")

    def training_child(self, job_id: str) -> int | None:
        """The process that trains this job, if there is one."""
        for note in (self.service.settings.data_dir / "pids").glob(f"{job_id}-*.json"):
            pid = int(note.stem.rpartition("-")[2])
            if Identity.of(pid) is not None:
                return pid
        return None

    def kill(self, name: str, job_id: str) -> None:
        os.kill(self.process(name, job_id), signal.SIGKILL)

    def wait_for(self, true: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
        wait_for(true, seconds)

    def process(self, name: str, job_id: str) -> int:
        """A process by the part it plays in running this job."""
        child = self.training_child(job_id)
        assert child is not None
        worker = self.worker_of(child)
        found = {"training child": child, "pool child": children(worker)[0], "worker": worker, "server": self.service.pids["server"]}
        return found[name]

    def worker_of(self, child: int) -> int:
        """The worker whose pool child started this process."""
        workers = [pid for name, pid in self.service.pids.items() if name.startswith("worker")]
        return next(worker for worker in workers if any(child in children(pool_child) for pool_child in children(worker)))

    def processes_of(self, job_id: str) -> list[int]:
        """Every living process that was started for this job: the training child is told of no other."""
        notes = (self.service.settings.data_dir / "pids").glob(f"{job_id}-*.json")
        return [member for note in notes for member in members(int(note.stem.rpartition("-")[2]))]


def settings_for(folder: Path) -> Settings:
    return Settings(
        data_dir=folder, port=0, lease_seconds=5, heartbeat_seconds=0.5, max_attempts=3, checkpoint_seconds=0.5,
        relay_seconds=0.1, reap_seconds=0.5, ring_again_seconds=2,
    )  # fmt: skip


def start(folder: Path, workers: int = 1, **changes: Any) -> Iterator[Running]:
    settings = settings_for(folder).model_copy(update=changes)
    with up(settings, workers) as service:
        service.wait_ready(WAIT_SECONDS)
        transport = httpx.HTTPTransport(retries=3)
        with httpx.Client(base_url=service.url, transport=transport, timeout=20) as client:
            yield Running(service, Database(service.settings.database), client)


@pytest.fixture(scope="session")
def wattle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    yield from start(tmp_path_factory.mktemp("service"))


@pytest.fixture
def wattle_without_worker(tmp_path: Path) -> Iterator[Running]:
    yield from start(tmp_path, workers=0)


@pytest.fixture(scope="session")
def undisturbed(wattle: Running) -> str:
    """The weights of a job that nobody disturbed."""
    job_id = wattle.submit()
    assert wattle.end(job_id).state == "succeeded"
    return wattle.network_sha256(job_id)


@pytest.fixture
def patient_wattle(tmp_path: Path) -> Iterator[Running]:
    """A service that lets a job lose more of its processes."""
    yield from start(tmp_path, max_attempts=5)


@pytest.fixture(scope="module")
def busy_wattle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service whose two workers keep many checkpoints."""
    yield from start(tmp_path_factory.mktemp("busy"), workers=2, checkpoint_seconds=0.1)
