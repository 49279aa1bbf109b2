"""A profile job in this process: its table is kept if it was measured to the end, on the right device, under the lease."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from costs.families import Network
from costs.table import Setting, TableCost
from store import devices, jobs
from store.database import Database
from store.settings import Settings
from worker.attempt import Attempt, Stopped
from worker.run import run_attempt

SPEC = {"network": {"family": "plain", "widths": [3]}, "image_size": 8, "in_channels": 1, "classes": 4, "max_growth": 2, "seconds": 0.5}


@pytest.fixture
def db(tmp_path: Path) -> Database:
    db = Database(f"sqlite:///{tmp_path}/wattle.sqlite")
    db.migrate()
    devices.register(db, "this-host", {})
    return db


def attempt(db: Database, folder: Path, device: str = "this-host", asked_to_stop: Callable[[], bool] = lambda: False) -> Attempt:
    job = jobs.submit(db, "profile", "profile", SPEC, f"profile.{device}", 3)
    lease = jobs.claim(db, job.id, "test", 600)
    assert lease is not None
    return Attempt(db, Settings(data_dir=folder), lease, device, asked_to_stop)


def test_measured_and_kept(db: Database, tmp_path: Path) -> None:
    job = attempt(db, tmp_path)
    run_attempt(job)
    table = devices.load_table(db, "this-host")
    cost = TableCost(table, "latency_ms", Setting()).network(Network("plain", (5,), 8, 1, 4).wiring().shapes())
    assert cost.kind == "calibrated_sum"
    assert cost.value > 0
    assert jobs.get(db, job.job_id).progress["overall_fraction"] == 1.0


def test_cut_short_and_thrown_away(db: Database, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run_attempt(attempt(db, tmp_path, asked_to_stop=lambda: True))
    assert len(devices.load_table(db, "this-host")) == 0


def test_another_device(db: Database, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a profile of this-host came to pi-4"):
        run_attempt(attempt(db, tmp_path, device="pi-4"))
