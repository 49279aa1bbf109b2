"""A profile job in this process: its table is kept if it was measured to the end, on the right device, under the lease.

What was read before it was interrupted is not read again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from costs.families import Network
from costs.table import Setting, TableCost
from profiler.device import fingerprint
from profiler.profile import Profile, profile_device
from profiler.readings import ReadingsFile
from store import devices, jobs
from store.database import Database, DatabaseUnavailable
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


def test_interrupted_and_gone_on_with(db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiler.readings.KEEP_EVERY_SECONDS", 0.0)
    readings: list[Path] = []

    def after_some_rounds() -> bool:
        readings[:] = tmp_path.glob("jobs/*/readings.json")
        return bool(readings) and json.loads(readings[0].read_text())["seconds"] > 0.1

    stopped = attempt(db, tmp_path, asked_to_stop=after_some_rounds)
    with pytest.raises(Stopped):
        run_attempt(stopped)
    left = ReadingsFile(path=readings[0], plan=json.loads(readings[0].read_text())["plan"])
    assert left.interrupted
    assert sum(map(len, left.values.values())) > 0
    assert len(devices.load_table(db, "this-host")) == 0

    taken_up: list[float] = []

    def spy(*arguments: object, kept: ReadingsFile, **options: object) -> Profile:
        taken_up.append(kept.seconds)
        return profile_device(*arguments, kept=kept, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("profiler.profile.profile_device", spy)
    run_attempt(replace(stopped, asked_to_stop=lambda: False))
    assert taken_up == [left.seconds]
    assert len(devices.load_table(db, "this-host")) > 0
    assert not readings[0].exists()


def test_readings_outlive_a_table_that_could_not_be_saved(db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiler.readings.KEEP_EVERY_SECONDS", 0.0)

    def away(*_: object) -> int:
        raise DatabaseUnavailable("the database did not answer")

    with monkeypatch.context() as outage:
        outage.setattr(devices, "save_table", away)
        with pytest.raises(DatabaseUnavailable):
            run_attempt(attempt(db, tmp_path))
    (readings,) = tmp_path.glob("jobs/*/readings.json")
    assert json.loads(readings.read_text())["seconds"] > 0


def test_a_table_belongs_to_what_the_machine_is_when_it_is_measured(db: Database, tmp_path: Path) -> None:
    devices.register(db, "this-host", {"governor": "powersave", "torch": "of last week"})
    run_attempt(attempt(db, tmp_path))
    device = devices.device(db, "this-host")
    assert device.measured_fingerprint == device.fingerprint == fingerprint(1)
    assert device.expired is None


def test_stopped_before_it_began(db: Database, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run_attempt(attempt(db, tmp_path, asked_to_stop=lambda: True))
    assert len(devices.load_table(db, "this-host")) == 0


def test_another_device(db: Database, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a profile of this-host came to pi-4"):
        run_attempt(attempt(db, tmp_path, device="pi-4"))
