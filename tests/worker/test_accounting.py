"""What a job used itself: on a clock that the tests turn, with the NVML stub as the meter, over attempts that end well and that don't."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from profiler.meters import SOURCES, EnergySource, MeterError, MeterUnavailable, Origin
from profiler.meters.source import DeviceState
from store import jobs
from store.artifacts import ArtifactStore
from store.database import Database
from store.problems import InvalidSpec
from store.settings import Settings
from store.spec import AccountingSpec, CounterName
from worker.accounting import Account, Phase, phase_of
from worker.attempt import Attempt, Stopped
from worker.joules import LONGEST_SECONDS, Counted, Declared, Joules, Unmetered, open_joules
from worker.run import run_attempt
from worker.used import Factor

NOBODY = Unmetered("nothing here counts")
SPEC: dict[str, Any] = {
    "name": "small",
    "data": {"name": "digits"},
    "network": {"family": "plain", "widths": [3, 4]},
    "growth": {"rounds": 1, "scoring_samples": 64, "fresh_samples": 32},
    "budget": {"cost": "macs", "limit": 9000, "device": "elsewhere"},
    "training": {"epochs_per_round": 0.4, "final_epochs": 0.4},
    "controls": ["uniform"],
}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Counter:
    """A counter of a device that draws ``draws`` watts by the clock; lost where it is told so."""

    def __init__(self, clock: Clock, meter: str = "rapl_package", draws: float = 50.0) -> None:
        self.origin = Origin(meter, "measured", "package", "powercap package-0 (intel-rapl:0)")
        self.clock, self.draws, self.lost, self.offset = clock, draws, False, 0.0

    def joules(self) -> float:
        if self.lost:
            raise MeterError("the counter can't be read")
        return self.draws * self.clock.now + self.offset

    def watts(self) -> None:
        """It counts only."""

    def state(self) -> DeviceState:
        return DeviceState()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def spend(account: Account, clock: Clock, *spans: tuple[Phase, float]) -> None:
    for phase, seconds in spans:
        account.enter(phase)
        clock.now += seconds


def account_of(folder: Path, clock: Clock, joules: Joules = NOBODY, number: int = 1, factor: Factor | None = None) -> Account:
    return Account(folder, number, joules, factor, clock)


def seconds(used: dict[str, Any]) -> dict[str, float]:
    assert all(span["time"]["unit"] == "s" for span in used["phases"].values())
    assert all(span["time"]["kind"] == "measured" for span in used["phases"].values())
    return {phase: span["time"]["value"] for phase, span in used["phases"].items()}


def test_phases_sum_to_the_total(tmp_path: Path, clock: Clock) -> None:
    began, account = clock.now, account_of(tmp_path, clock)
    clock.now += 2.0
    spend(account, clock, ("training", 30.0), ("training", 0.25), ("scoring", 5.0), ("training", 7.0), ("controls", 60.0), ("report", 1.0))
    found = account.used()
    assert seconds(found) == pytest.approx({"loading": 2.0, "training": 37.25, "scoring": 5.0, "controls": 60.0, "report": 1.0})
    assert found["total"]["time"]["value"] == pytest.approx(clock.now - began)
    assert found["missing"] == []


def test_attempts_add_up(tmp_path: Path, clock: Clock) -> None:
    first = account_of(tmp_path, clock, Counted(Counter(clock)))
    spend(first, clock, ("training", 10.0))
    first.close()
    clock.now += 1000.0  # the job waits: nothing is used
    second = account_of(tmp_path, clock, Counted(Counter(clock)), number=2)
    spend(second, clock, ("training", 4.0), ("scoring", 1.0))
    found = second.used()
    assert seconds(found) == pytest.approx({"loading": 0.0, "training": 14.0, "scoring": 1.0})
    assert found["phases"]["training"]["energy"]["value"] == pytest.approx(700.0)
    assert found["total"]["energy"]["value"] == pytest.approx(750.0)
    assert (found["attempts"], found["missing"]) == (2, [])


def test_a_killed_attempt_keeps_what_it_had_written_and_the_rest_is_said_to_be_missing(tmp_path: Path, clock: Clock) -> None:
    killed = account_of(tmp_path, clock)
    spend(killed, clock, ("training", 5.5), ("training", 0.9), ("training", 0.0))  # 0.9 s are too few to write for
    (tmp_path / "attempt-2.json").write_text("")  # the machine went down with it
    found = account_of(tmp_path, clock, number=3).used()
    assert seconds(found)["training"] == pytest.approx(5.5)
    assert "attempt 1 was killed: what it used after 20" in found["missing"][0]
    assert found["missing"][1] == "attempt 2 left no account: what it used is not counted"


def test_a_counter_gives_measured_joules(tmp_path: Path, stub: Any) -> None:
    joules = open_joules(AccountingSpec(meter="nvml_total_energy"), Settings(data_dir=tmp_path))
    account = Account(tmp_path, 1, joules, clock=stub.clock)
    for phase, length, watts in (("training", 20.0, 40.0), ("scoring", 10.0, 90.0)):
        account.enter(phase)  # type: ignore[arg-type]  # words of the list above
        stub.set("watts", watts)
        stub.sleep(length)
    energies = {phase: span["energy"] for phase, span in account.used()["phases"].items()}
    assert energies["training"]["value"] == pytest.approx(800.0, rel=0.02)  # the counter steps every 100 ms
    assert energies["scoring"]["value"] == pytest.approx(900.0, rel=0.02)
    label = {"unit": "J", "kind": "measured", "meter": "nvml_total_energy", "scope": "gpu", "sensor_error": 0.05}
    assert energies["training"].items() >= label.items()
    assert "other processes' share included" in energies["training"]["note"]
    assert energies["training"]["device"].startswith("GPU-")


def no_meter() -> EnergySource:
    raise MeterUnavailable("rapl_package: no package zone")


NONE: dict[str, Callable[..., EnergySource]] = dict.fromkeys(SOURCES, no_meter)


def test_without_a_meter_there_is_a_reason_and_no_number(tmp_path: Path, clock: Clock) -> None:
    account = account_of(tmp_path, clock, open_joules(AccountingSpec(), Settings(data_dir=tmp_path), NONE), factor=Factor(300.0, "a label"))
    spend(account, clock, ("training", 10.0))
    total = account.used()["total"]
    assert set(total["energy"]) == {"reason"}
    assert "rapl_package: no package zone" in total["energy"]["reason"]
    assert "declare watts" in total["energy"]["reason"]
    assert set(total["co2"]) == {"reason"}


@pytest.mark.parametrize(("asked", "watts"), [({"declared_watts": 20.0}, 20.0), ({}, 65.0)])
def test_declared_watts_give_an_estimate_that_says_so(tmp_path: Path, clock: Clock, asked: dict[str, float], watts: float) -> None:
    settings = Settings(data_dir=tmp_path, declared_watts=65.0)
    account = account_of(tmp_path, clock, open_joules(AccountingSpec(**asked), settings, NONE))  # type: ignore[arg-type]
    spend(account, clock, ("training", 10.0))
    energy = account.used()["phases"]["training"]["energy"]
    assert energy["value"] == pytest.approx(10 * watts)
    assert energy.items() >= {"unit": "J", "kind": "estimated:power_model", "scope": "declared"}.items()
    assert energy["note"] == f"{watts:g} W declared x measured time; no meter: rapl_package: no package zone"


def test_the_specs_meter_goes_before_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiler.energy_request.torch_uuid", lambda index: f" of GPU {index}")
    opened: list[str] = []

    def opens(name: str) -> Callable[..., EnergySource]:
        def source(device: str = "") -> EnergySource:
            opened.append(name + device)
            return Counter(Clock(), name)

        return source

    sources = {name: opens(name) for name in get_args(CounterName)}
    worker = Settings(data_dir=tmp_path, accounting_meter="rapl_dram")
    on_gpu = Settings(data_dir=tmp_path, torch_device="cuda")
    for asked, settings in (("nvml_total_energy", worker), (None, worker), (None, Settings(data_dir=tmp_path)), (None, on_gpu)):
        open_joules(AccountingSpec(meter=asked), settings, sources)  # type: ignore[arg-type]  # one of the literals
    assert opened == ["nvml_total_energy", "rapl_dram", "rapl_package", "nvml_total_energy of GPU 0"]


def test_every_counter_of_the_spec_is_a_source() -> None:
    assert set(get_args(CounterName)) <= set(SOURCES)


def test_co2_needs_a_factor_and_shows_it(tmp_path: Path, clock: Clock) -> None:
    account = account_of(tmp_path, clock, Declared(1000.0, "none"))
    spend(account, clock, ("training", 3600.0))
    assert "no factor is stated" in account.used()["total"]["co2"]["reason"]
    account.factor = Factor(300.0, "label of my supplier")
    co2 = account.used()["total"]["co2"]
    assert co2["value"] == pytest.approx(300.0)  # one kilowatt-hour
    said = {"unit": "g", "kind": "estimated:stated_factor", "grams_per_kwh": 300.0, "source": "label of my supplier"}
    assert co2.items() >= {**said, "scope": "declared", "energy_kind": "estimated:power_model"}.items()


def test_a_factor_needs_its_source(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="go together"):
        AccountingSpec(co2_grams_per_kwh=300.0)
    with pytest.raises(ValidationError, match="go together"):
        Settings(data_dir=tmp_path, co2_source="a label")
    stated = AccountingSpec(co2_grams_per_kwh=1.0, co2_source="spec")
    worker = Settings(data_dir=tmp_path, co2_grams_per_kwh=2.0, co2_source="worker")
    assert Factor.stated(stated, worker) == Factor(1.0, "spec")
    assert Factor.stated(AccountingSpec(), worker) == Factor(2.0, "worker")
    assert Factor.stated(AccountingSpec(), Settings(data_dir=tmp_path)) is None


def test_a_counter_that_fails_costs_the_energy_of_its_span_alone(tmp_path: Path, clock: Clock) -> None:
    counter = Counter(clock)
    account = account_of(tmp_path, clock, Counted(counter))
    spend(account, clock, ("training", 10.0), ("scoring", 5.0))
    counter.lost = True
    account.enter("controls")
    counter.lost = False
    spend(account, clock, ("controls", 5.0), ("profiling", 5.0))
    energies = {phase: span["energy"] for phase, span in account.used()["phases"].items()}
    assert energies["training"]["value"] == pytest.approx(500.0)
    assert energies["scoring"] == {"reason": "the counter can't be read"}
    assert "had not answered at the beginning" in energies["controls"]["reason"]
    assert energies["profiling"]["value"] == pytest.approx(250.0)
    assert "reason" in account.used()["total"]["energy"]


def test_a_counter_that_was_reset_or_may_have_wrapped_gives_nothing(clock: Clock) -> None:
    counter = Counter(clock)
    joules = Counted(counter)
    counter.offset = -1e6
    with pytest.raises(MeterError, match="reset meanwhile"):
        joules.since(1.0)
    with pytest.raises(MeterError, match="may have wrapped"):
        joules.since(LONGEST_SECONDS + 1)
    assert Counted(Counter(clock, "nvml_total_energy")).since(LONGEST_SECONDS + 1) == 0.0


def test_meters_of_different_attempts_are_not_added(tmp_path: Path, clock: Clock) -> None:
    for number, joules in ((1, Counted(Counter(clock))), (2, Declared(10.0, "none"))):
        account = account_of(tmp_path, clock, joules, number)
        spend(account, clock, ("training", 10.0))
        account.close()
    assert "powercap package-0" in account.so_far()["total"]["energy"]["reason"]
    assert account.so_far()["total"]["time"]["value"] == pytest.approx(20.0)


def test_phases_follow_what_is_told() -> None:
    told = [("training", "grown"), ("scoring", "grown.2"), ("scoring", "random"), ("training", "retrained.1"), ("training", "size.1")]
    assert [phase_of({"phase": phase, "run": run}) for phase, run in told] == ["training", "scoring", "controls", "training", "advice"]
    assert [phase_of({"phase": phase}) for phase in ("loading", "profiling", "measuring", "report", "done")] == [
        "loading", "profiling", "profiling", "report", "report",
    ]  # fmt: skip


# Of jobs


@pytest.fixture
def db(tmp_path: Path) -> Database:
    db = Database(Settings(data_dir=tmp_path).database)
    db.migrate()
    return db


def run(db: Database, job_id: str, settings: Settings, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """What the job has used, by its progress."""
    lease = jobs.claim(db, job_id, "test", 600)
    assert lease is not None
    try:
        run_attempt(Attempt(db, settings, lease, "this-host", stop))
    except Stopped:
        jobs.requeue(db, lease, "lost_worker", "stopped", counts=False)
    used: dict[str, Any] = jobs.get(db, job_id).progress["used"]
    return used


def test_a_job_that_is_stopped_and_goes_on_reports_all_that_it_used(db: Database, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, checkpoint_seconds=0.01)
    spec = {**SPEC, "accounting": {"declared_watts": 20.0, "co2_grams_per_kwh": 300.0, "co2_source": "a label"}}
    job_id, looks = jobs.submit(db, "growth", "small", spec, "growth", 5).id, iter(range(1000))
    before = run(db, job_id, settings, lambda: next(looks) > 5)
    assert set(before["phases"]) == {"loading", "profiling", "training"}
    used = run(db, job_id, settings)
    assert set(used["phases"]) == {"loading", "training", "scoring", "controls", "profiling", "report"}
    assert used["attempts"] == 2
    assert used["missing"] == []
    for phase, span in before["phases"].items():
        assert used["phases"][phase]["time"]["value"] > span["time"]["value"]
    parts = [span["time"]["value"] for span in used["phases"].values()]
    assert used["total"]["time"]["value"] == pytest.approx(sum(parts))
    kept = {artifact.name: artifact.sha256 for artifact in jobs.artifacts(db, job_id)}
    report = json.loads(ArtifactStore(settings.artifact_dir).path(kept["report.json"]).read_text())
    assert report["used"]["phases"]["training"] == used["phases"]["training"]  # the report itself was written after it
    assert report["used"]["total"]["co2"]["source"] == "a label"
    assert "value" in report["used"]["total"]["energy"]


def test_a_job_that_fails_says_what_it_used(db: Database, tmp_path: Path) -> None:
    job_id = jobs.submit(db, "growth", "small", {**SPEC, "budget": {**SPEC["budget"], "limit": 1}}, "growth", 5).id
    with pytest.raises(InvalidSpec):
        run(db, job_id, Settings(data_dir=tmp_path))
    progress = jobs.get(db, job_id).progress
    assert progress["phase"] == "loading"
    assert set(progress["used"]["phases"]) == {"loading"}
