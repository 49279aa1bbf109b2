"""Energy budgets in this process, with a real store and the NVML stub in real time; the machine counts as calm, however busy it is.

The stub's truth: 5 W, and 50 W more for each core that this process keeps busy.  Its counter steps every 15 ms, so that windows of
0.2 s hold enough steps for intervals of some 25 %.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from costs.families import Network
from costs.model import Budget
from costs.table import Calibration, CostTable, Setting, TableCost
from profiler.meters import METERS, SOURCES, DeviceLost, MeterUnavailable, WallClock
from profiler.processor import CPU
from profiler.timing import NoResult
from store import devices, jobs
from store.admission import admit
from store.artifacts import ArtifactStore
from store.database import Database
from store.settings import Settings
from store.spec import BudgetSpec, JobSpec, MeterName
from worker import run as run_module
from worker.attempt import Attempt
from worker.causes import explain
from worker.measured import Measurements, measure_energy
from worker.run import run_attempt

IDLE_WATTS, CORE_WATTS = 5.0, 50.0
NETWORK = {"family": "plain", "widths": [6, 8]}
PROFILE: dict[str, Any] = {
    "network": NETWORK, "image_size": 8, "in_channels": 1, "classes": 10, "max_growth": 2,
    "seconds": 2, "meter": "nvml_total_energy", "energy_seconds": 18,
}  # fmt: skip
JOB: dict[str, Any] = {
    "name": "small",
    "data": {"name": "digits"},
    "network": NETWORK,
    "growth": {"rounds": 1, "max_growth": 2, "scoring_samples": 64, "fresh_samples": 32},
    "budget": {"cost": "energy_mj", "limit": 1e6},
    "training": {"epochs_per_round": 0.3, "final_epochs": 0.3},
    "controls": [],
}


@pytest.fixture(autouse=True)
def _calm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METERS, "wall_clock", lambda: WallClock(scheduler_delay=lambda: 0.0, page_faults=lambda: 0))


@pytest.fixture
def gpu(stub: Any) -> Any:
    for knob, value in (("period", 0.015), ("watts", IDLE_WATTS), ("cpu_watts", CORE_WATTS)):
        stub.set(knob, value)
    stub.real_time()
    return stub


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, energy_window_seconds=0.2)


@pytest.fixture
def db(settings: Settings) -> Database:
    db = Database(settings.database)
    db.migrate()
    devices.register(db, "this-host", {})
    return db


def run(db: Database, settings: Settings, kind: Any, spec: dict[str, Any], stop: Callable[[], bool] = lambda: False) -> str:
    job = jobs.submit(db, kind, "energy", spec, "queue", 3)
    lease = jobs.claim(db, job.id, "test", 600)
    assert lease is not None
    run_attempt(Attempt(db, settings, lease, "this-host", stop))
    return job.id


@pytest.mark.timeout(180)
def test_from_spec_to_report(db: Database, settings: Settings, gpu: Any) -> None:
    run(db, settings, "profile", PROFILE)
    energies = [entry for entry in devices.load_table(db, "this-host") if entry.quantity == "energy_mj"]
    assert {entry.kind for entry in energies} == {"measured", "estimated:power_x_time"}
    assert {(entry.meter, entry.scope, entry.sensor_error) for entry in energies} == {("nvml_total_energy", "gpu", 0.05)}
    for entry in energies:
        low, high = entry.interval
        assert low < entry.value < high
        if entry.kind == "measured":
            assert entry.net_low is not None
            assert entry.net is not None
            assert 0 < entry.net_low < entry.net < entry.value

    seed = admit(JobSpec.model_validate(JOB), db, settings).seed_cost
    limit = 1.4 * seed.value
    job_id = run(db, settings, "growth", {**JOB, "budget": {"cost": "energy_mj", "limit": limit}})
    kept = {artifact.name: artifact.sha256 for artifact in jobs.artifacts(db, job_id)}
    report = json.loads(ArtifactStore(settings.artifact_dir).path(kept["report.json"]).read_text())
    for result in (report["seed"], report["grown"]):
        predicted, measured = result["predicted_cost"], result["measured_energy"]
        assert predicted["low"] < predicted["value"] < predicted["high"]
        assert predicted["value"] <= limit
        where = {"unit": "mJ", "meter": "nvml_total_energy", "scope": "gpu"}
        assert predicted.items() >= {**where, "quantity": "energy_mj", "kind": "calibrated_sum"}.items()
        assert "reason" not in measured
        assert measured.items() >= {**where, "kind": "measured", "sensor_error": 0.05, "device": "this-host"}.items()
        assert measured["low"] < measured["value"] < measured["high"]
        assert 0 < measured["net"]["value"] < measured["value"]
        assert result["measured_latency"]["unit"] == "ms"
    assert report["predicted_versus_measured"]["quantity"] == "energy_mj"
    assert report["verdict"]["sentence"].count("mJ") >= 2


def test_a_gpu_lost_while_profiling_fails_the_job_and_keeps_nothing(db: Database, settings: Settings, gpu: Any) -> None:
    threading.Timer(4.0, lambda: gpu.set("lost", 1)).start()
    with pytest.raises(DeviceLost, match="GPU is lost") as caught:
        run(db, settings, "profile", {**PROFILE, "seconds": 0.5})
    assert len(devices.load_table(db, "this-host")) == 0
    cause, sentence = explain(caught.value, settings.data_dir)
    assert cause == "device_error"
    assert "reset it (nvidia-smi --gpu-reset) or reboot" in sentence


def test_a_meter_that_is_not_there_fails_the_job_before_it_measures(db: Database, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(MeterUnavailable, match="choose another meter") as caught:
        run(db, settings, "profile", {**PROFILE, "meter": "ina3221", "seconds": 3600})
    assert explain(caught.value, settings.data_dir)[0] == "device_error"


def test_latencies_are_kept_when_the_energy_session_abstains(
    db: Database, settings: Settings, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def abstain(*_: Any) -> None:
        raise NoResult("no result: idle power went from 5.0 to 50.0 W")

    monkeypatch.setattr("profiler.profile.measure_energy_costs", abstain)
    with pytest.raises(NoResult, match="idle power went"):
        run(db, settings, "profile", PROFILE)
    assert {entry.quantity for entry in devices.load_table(db, "this-host")} == {"latency_ms"}


def test_work_that_the_gpu_does_not_do_has_no_energy(db: Database, settings: Settings, gpu: Any) -> None:
    """The trap of a machine whose torch has no CUDA: the counter runs, and counts an idle GPU."""
    gpu.set("cpu_watts", 0.0)
    network = Network("plain", (6, 8), 8, 1, 10)
    found = measure_energy([network], prices(), "this-host", CPU, settings, lambda: False)
    assert found.results == {}
    assert "draws hardly more than without; nvml_total_energy measures another device" in found.of(network)["reason"]


def test_a_gpu_lost_after_training_costs_the_report_its_energies_and_nothing_else(settings: Settings, gpu: Any) -> None:
    gpu.set("lost", 1)
    network = Network("plain", (6, 8), 8, 1, 10)
    found = measure_energy([network], prices(), "this-host", CPU, settings, lambda: False)
    assert "GPU is lost" in found.of(network)["reason"]


def prices() -> TableCost:
    calibration = Calibration("energy_mj", Setting(), 1.0, 1.0, (), "nvml_total_energy", "gpu")
    return TableCost(CostTable("this-host", (), [calibration]), "energy_mj", Setting())


def test_every_meter_of_the_spec_is_there() -> None:
    assert get_args(MeterName) == tuple(SOURCES)


def test_the_report_speaks_of_the_first_budget_of_energy(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """One on another device, of which nothing can be measured here, is not answered with this machine's joules."""
    network = Network("plain", (6, 8), 8, 1, 10)
    monkeypatch.setattr(run_module, "measure_latency", lambda *_: Measurements.none([network], "not asked"))
    monkeypatch.setattr(run_module, "measure_energy", lambda *_: Measurements({}, {network.widths: "of this host"}, "this-host"))
    budgets = [BudgetSpec(cost="energy_mj", limit=2, device=device, threads=1) for device in ("pi-4", "this-host")]
    attempt: Any = SimpleNamespace(device="this-host", asked_to_stop=lambda: False, settings=settings, stop_if_asked=lambda: None)
    priced: Any = SimpleNamespace(setting=Setting(), budgets=[Budget(prices(), 2.0)] * 2)
    for order, reason in ((budgets, "the job ran on this-host, not on pi-4"), (budgets[::-1], "of this host")):
        spec: Any = SimpleNamespace(budget=order[0], budgets=order)
        reporter: Any = SimpleNamespace(tell=lambda *_, **__: None)
        measured = run_module._measure(attempt, reporter, spec, priced, CPU, [network])
        assert measured["energy_mj"].of(network) == {"reason": reason}
