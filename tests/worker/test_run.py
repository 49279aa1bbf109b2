"""A job in this process, with a real store: stopped, robbed, damaged, and in the end the same bits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import update

from costs.families import Network, largest_widths
from costs.table import Calibration, CostEntry, CostTable, Setting
from growth.checkpoint import load_network
from growth.config import GrowthConfig
from growth.training import NotANumber, evaluate
from profiler.meters import METERS, WallClock
from profiler.sweep import plan
from profiler.timing import NoResult, Session
from store import devices, jobs
from store.admission import admit
from store.artifacts import ArtifactStore
from store.columns import database_time
from store.database import Database
from store.jobs import Lease, LeaseLost
from store.problems import InvalidSpec
from store.settings import Settings
from store.spec import JobSpec
from store.tables import JobRow
from worker.attempt import Attempt, Stopped
from worker.data import load
from worker.run import growth_config, run_attempt
from worker.trust import TableOutdated

SPEC: dict[str, Any] = {
    "name": "small",
    "data": {"name": "digits"},
    "network": {"family": "plain", "widths": [3, 4]},
    "growth": {"rounds": 1, "scoring_samples": 64, "fresh_samples": 32},
    "budget": {"cost": "macs", "limit": 9000, "device": "elsewhere"},
    "training": {"epochs_per_round": 0.4, "final_epochs": 0.4},
    "controls": ["uniform", "random"],
}
SEEDS: dict[str, Any] = {
    "seeds": 2,
    "controls": ["uniform", "twins"],
    "training": {"epochs_per_round": 0.2, "final_epochs": 0.2, "seed": 5, "final": "both"},
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, checkpoint_seconds=0.01)


@pytest.fixture
def db(settings: Settings) -> Database:
    db = Database(settings.database)
    db.migrate()
    return db


def submit(db: Database, **changes: object) -> str:
    return jobs.submit(db, "growth", "small", {**SPEC, **changes}, "growth", 50).id


def claim(db: Database, job_id: str) -> Lease:
    lease = jobs.claim(db, job_id, "test", 600)
    assert lease is not None
    return lease


def run(db: Database, settings: Settings, job_id: str, asked_to_stop: Callable[[], bool] = lambda: False) -> None:
    run_attempt(Attempt(db, settings, claim(db, job_id), "this-host", asked_to_stop))


def steal(db: Database, job_id: str) -> None:
    """The lease runs out and the job goes back to the queue."""
    with db.transaction() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id).values(lease_expires_at=database_time(-1)))
    assert jobs.reap(db) == [job_id]


def results(db: Database, settings: Settings, job_id: str) -> dict[str, Any]:
    """Everything of a job that must not depend on how often it was disturbed."""
    artifacts = {artifact.name: artifact.sha256 for artifact in jobs.artifacts(db, job_id)}
    report = json.loads(ArtifactStore(settings.artifact_dir).path(artifacts["report.json"]).read_text())
    for result in (report["grown"], *report["controls"].values(), *([report["retrained"]] if "retrained" in report else [])):
        del result["seconds"]
    del report["job"], report["written_at"], report["used"]
    curves = jobs.metrics(db, job_id, 100_000)
    for run in curves.values():
        del run["seconds"]
    rounds = [(taken.run, taken.number, taken.step, taken.payload) for taken in jobs.rounds(db, job_id)]
    return {"network": artifacts["network.safetensors"], "report": report, "curves": curves, "rounds": rounds}


@dataclass(frozen=True)
class Reference:
    """A job that nobody disturbed."""

    db: Database
    settings: Settings
    job_id: str
    results: dict[str, Any]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    settings = Settings(data_dir=tmp_path_factory.mktemp("reference"), checkpoint_seconds=0.01)
    db = Database(settings.database)
    db.migrate()
    job_id = submit(db)
    run(db, settings, job_id)
    return Reference(db, settings, job_id, results(db, settings, job_id))


@pytest.fixture
def undisturbed(reference: Reference) -> dict[str, Any]:
    return reference.results


class StopAfter:
    """Asks to stop at the ``number``-th look."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def test_a_job_that_is_stopped_again_and_again_ends_the_same(db: Database, settings: Settings, undisturbed: dict[str, Any]) -> None:
    job_id, attempts = submit(db), 0
    while True:
        attempts += 1
        try:
            run(db, settings, job_id, StopAfter(6 + attempts % 3))
            break
        except Stopped:
            steal(db, job_id)
    assert attempts > 4
    assert results(db, settings, job_id) == undisturbed


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """A job with two seeds, its widths trained from scratch too, that nobody disturbed."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("seeds"), checkpoint_seconds=0.01)
    db = Database(settings.database)
    db.migrate()
    job_id = submit(db, **SEEDS)
    run(db, settings, job_id)
    return Reference(db, settings, job_id, results(db, settings, job_id))


@pytest.mark.parametrize("every", [5, 9, 31])
def test_a_job_with_seeds_that_is_stopped_again_and_again_ends_the_same(
    db: Database, settings: Settings, seeds: Reference, every: int
) -> None:
    job_id, attempts = submit(db, **SEEDS), 0
    while True:
        attempts += 1
        try:
            run(db, settings, job_id, StopAfter(every + attempts % 3))
            break
        except Stopped:
            steal(db, job_id)
    assert attempts >= 4
    assert results(db, settings, job_id) == seeds.results


def test_seeds_are_compared_in_pairs(seeds: Reference) -> None:
    report, curves = seeds.results["report"], seeds.results["curves"]
    arms = ["grown", "uniform", "twins", "retrained"]
    assert sorted(curves) == sorted([*arms, *(f"{arm}.1" for arm in arms)])
    assert report["seeds"] == [5, 6]
    assert list(report["arms"]) == arms
    for arm in arms:
        losses = report["arms"][arm]["test_loss"]["values"]
        assert len(set(losses)) == 2
        first = report["controls"].get(arm, report.get(arm))
        assert (first["test_loss"], first["widths"]) == (losses[0], report["arms"][arm]["widths"][0])
        assert max(report["arms"][arm]["charged_macs"]) <= max(report["arms"]["grown"]["charged_macs"])
    grown, uniform = (report["arms"][arm]["test_loss"]["values"] for arm in ("grown", "uniform"))
    pair = report["paired"]["grown"]["uniform"]
    assert pair["differences"] == [our - their for our, their in zip(grown, uniform, strict=True)]
    assert pair["low"] < pair["mean"] < pair["high"]
    assert set(report["paired"]["grown"]) == {"uniform", "twins", "retrained"}
    assert set(report["paired"]["retrained"]) == {"uniform", "twins"}
    assert "over 2 seeds" in report["verdict"]["sentence"]
    assert set(report["repeat_rounds"]) == {"grown.1", "twins.1"}


def test_the_first_seed_is_what_a_job_with_one_seed_gives(db: Database, settings: Settings, seeds: Reference) -> None:
    job_id = submit(db, **{**SEEDS, "seeds": 1})
    run(db, settings, job_id)
    alone = results(db, settings, job_id)
    for key in ("seed", "grown", "controls", "retrained", "rounds", "delivered"):
        assert alone["report"][key] == seeds.results["report"][key], key
    assert alone["network"] == seeds.results["network"]
    assert alone["report"]["arms"]["grown"]["test_loss"]["sd"] is None


@pytest.mark.parametrize("final", ["inherit", "retrain", "both"])
def test_what_is_delivered_is_what_the_report_says(db: Database, settings: Settings, final: str) -> None:
    training = {**SEEDS["training"], "final": final}
    job_id = submit(db, controls=[], training=training)
    run(db, settings, job_id)
    found = results(db, settings, job_id)
    report = found["report"]
    named = report[report["delivered"]["run"]]
    if final == "both":
        assert named["selection_loss"] == min(report["grown"]["selection_loss"], report["retrained"]["selection_loss"])
    else:
        assert report["delivered"]["run"] == {"inherit": "grown", "retrain": "retrained"}[final]
    assert ("retrained" in report) == (final != "inherit")
    sets, _ = load(JobSpec.model_validate({**SPEC, "training": training}).data, settings, seed=5)
    model = load_network(ArtifactStore(settings.artifact_dir).path(found["network"])).model
    assert evaluate(model, sets.selection, 64).loss == pytest.approx(named["selection_loss"], rel=1e-6)


def test_each_list_of_widths_is_measured_once(db: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The grown network, its twins and its widths retrained are one to a stopwatch."""
    measured: list[str] = []

    def note(modules: dict[str, Any], *_: Any, **__: Any) -> Session[str]:
        measured.extend(modules)
        return Session({}, dict.fromkeys(modules, NoResult("not in a test")), 0, None)

    monkeypatch.setattr("worker.measured.measure_networks", note)
    job_id = submit(db, **{**SEEDS, "budget": {**SPEC["budget"], "device": "this-host"}})
    run(db, settings, job_id)
    report = results(db, settings, job_id)["report"]
    expected = {tuple(widths) for arm in report["arms"].values() for widths in arm["widths"]} | {tuple(report["seed"]["widths"])}
    assert sorted(measured) == sorted(map(str, expected))
    assert len(measured) < 1 + sum(len(arm["widths"]) for arm in report["arms"].values())
    assert "not in a test" in report["retrained"]["measured_latency"]["reason"]


def test_an_attempt_that_dies_between_checkpoints_leaves_no_trace(
    db: Database, settings: Settings, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is gone with points and a round written that no checkpoint covers."""
    from worker.checkpoints import Checkpoints

    job_id, saved, save = submit(db), 0, Checkpoints.save

    def die_at_the_fourth(self: Checkpoints, name: str, growth: Any) -> None:
        nonlocal saved
        saved += 1
        if saved == 4:
            raise KeyboardInterrupt
        save(self, name, growth)

    monkeypatch.setattr(Checkpoints, "save", die_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        run(db, settings, job_id)
    steal(db, job_id)
    run(db, settings, job_id)
    assert results(db, settings, job_id) == undisturbed


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-9]), lambda path: path.unlink()])
def test_a_damaged_checkpoint_is_passed_over(
    db: Database, settings: Settings, undisturbed: dict[str, Any], damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    job_id = submit(db)
    with pytest.raises(Stopped):
        run(db, settings, job_id, StopAfter(12))
    steal(db, job_id)
    newest, older = jobs.checkpoints(db, job_id)
    damage(settings.job_dir(job_id) / "checkpoints" / f"{newest.sha256}.safetensors")
    with caplog.at_level("INFO"):
        run(db, settings, job_id)
    assert f"goes on from step {older.step} " in caplog.text
    assert results(db, settings, job_id) == undisturbed


def test_a_zombie_writes_nothing(db: Database, settings: Settings) -> None:
    """The lease goes to somebody else while the process sleeps; it notices at its first write."""
    job_id, looks = submit(db), 0

    def sleep_too_long() -> bool:
        nonlocal looks
        looks += 1
        if looks == 8:
            steal(db, job_id)
            claim(db, job_id)
        return False

    with pytest.raises(LeaseLost):
        run(db, settings, job_id, sleep_too_long)
    assert jobs.get(db, job_id).attempt == 2
    assert {checkpoint.step for checkpoint in jobs.checkpoints(db, job_id)} <= set(range(8))
    written = jobs.metrics(db, job_id).get("grown", {}).get("loss", [])  # on a slow machine it may not have come to write any
    assert all(step <= 8 for step, _ in written)


def priced(device: str, factor: float) -> CostTable:
    """A table in which a layer's latency is its MACs times ``factor``."""
    wiring, setting, when = Network("plain", (3, 4), 8, 1, 10).wiring(), Setting(), "2026-01-01T00:00:00+00:00"
    entries = [
        CostEntry(shape, setting, "latency_ms", factor * (shape.macs + 1), "ms", "measured", None, None, "wall_clock", 9, 0, when)
        for shape in plan(wiring, largest_widths(wiring.widths, 4.0))
    ]
    return CostTable(device, entries, [Calibration("latency_ms", setting, 1.0, 2.0, ())])


def test_a_device_that_is_profiled_again_does_not_change_a_job(db: Database, settings: Settings) -> None:
    devices.register(db, "elsewhere", {})
    devices.save_table(db, None, priced("elsewhere", 1e-4))
    budget = {"cost": "latency_ms", "limit": 0.9, "device": "elsewhere"}
    undisturbed, job_id = submit(db, budget=budget, controls=[]), submit(db, budget=budget, controls=[])
    run(db, settings, undisturbed)
    with pytest.raises(Stopped):
        run(db, settings, job_id, StopAfter(3))
    steal(db, job_id)
    devices.save_table(db, None, priced("elsewhere", 3e-4))
    run(db, settings, job_id)
    expected = results(db, settings, undisturbed)
    assert results(db, settings, job_id) == expected
    assert expected["report"]["grown"]["widths"] != SPEC["network"]["widths"]
    assert expected["report"]["grown"]["predicted_cost"]["kind"] == "calibrated_sum"
    assert expected["report"]["grown"]["measured_latency"] == {"reason": "the job ran on this-host, not on elsewhere"}


def test_a_table_that_this_machine_does_not_keep_to_is_refused_before_anything_is_trained(
    db: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METERS, "wall_clock", lambda: WallClock(scheduler_delay=lambda: 0.0, page_faults=lambda: 0))
    devices.register(db, "this-host", {})
    devices.save_table(db, None, priced("this-host", 1.0))  # a second and more for what takes microseconds
    job_id = submit(db, budget={"cost": "latency_ms", "limit": 9000, "device": "this-host"})
    for _ in range(2):  # an attempt that was stopped before it trained has not begun
        with pytest.raises(TableOutdated, match="wattle profile"):
            run(db, settings, job_id)
        steal(db, job_id)
    assert jobs.checkpoints(db, job_id) == []


def test_old_checkpoints_are_removed(reference: Reference) -> None:
    registered = {checkpoint.sha256 for checkpoint in jobs.checkpoints(reference.db, reference.job_id)}
    on_disk = {path.stem for path in (reference.settings.job_dir(reference.job_id) / "checkpoints").iterdir()}
    assert on_disk == registered
    assert len(registered) == 2 * 3  # two of each run


def test_the_network_can_be_used(reference: Reference) -> None:
    used = load_network(ArtifactStore(reference.settings.artifact_dir).path(reference.results["network"]))
    grown = reference.results["report"]["grown"]
    assert list(used.network.widths) == grown["widths"]
    sets, preprocessing = load(JobSpec.model_validate(SPEC).data, reference.settings, seed=0)
    assert used.preprocessing == preprocessing
    images, classes = sets.test[:]  # type: ignore[index]  # a TensorDataset
    with torch.no_grad():
        accuracy = (used.model(images).argmax(1) == classes).float().mean().item()
    assert accuracy == pytest.approx(grown["test_accuracy"], abs=1e-6)


def test_the_report_says_what_the_network_expects(reference: Reference) -> None:
    _, preprocessing = load(JobSpec.model_validate(SPEC).data, reference.settings, seed=0)
    report = reference.results["report"]
    assert (report["input"]["image_size"], report["input"]["channels"], report["input"]["range"]) == (8, 1, [0, 1])
    assert (report["input"]["mean"], report["input"]["std"]) == (list(preprocessing.mean), list(preprocessing.std))
    assert "shorter side" in report["input"]["fitting"]
    assert report["class_names"] == list("0123456789")


def test_a_loss_that_is_not_a_number_ends_the_job(db: Database, settings: Settings) -> None:
    job_id = submit(db, training={"epochs_per_round": 2, "final_epochs": 1, "learning_rate": 100, "weight_decay": 1})
    with pytest.raises(NotANumber, match="lower the learning rate"):
        run(db, settings, job_id)


def test_a_budget_below_the_seed_is_refused(db: Database, settings: Settings) -> None:
    job_id = submit(db, budget={"cost": "macs", "limit": 10})
    with pytest.raises(InvalidSpec, match="does not cover the seed"):
        run(db, settings, job_id)


def test_epochs_become_steps_and_samples_those_there_are(db: Database, settings: Settings) -> None:
    spec = JobSpec.model_validate(
        {
            **SPEC,
            "growth": {"rounds": 1},
            "data": {"name": "synthetic", "samples": 150, "classes": 2},
            "budget": {"cost": "macs", "limit": 90_000},
        }
    )
    config = config_of(spec, db, settings)
    assert config.steps_per_round == 1  # 0.4 epochs of one batch each
    assert config.scoring_samples + 2 * config.fresh_samples == 104
    assert config.scoring_samples == pytest.approx(2 * config.fresh_samples, rel=0.05)


def test_moments_deal_the_same_steps_out_anew(db: Database, settings: Settings) -> None:
    growth, training = {"rounds": 2, "scoring_samples": 64, "fresh_samples": 32}, {"epochs_per_round": 4, "final_epochs": 4}
    spec = JobSpec.model_validate({**SPEC, "growth": growth, "training": training})
    early = JobSpec.model_validate({**SPEC, "growth": {**growth, "moments": [0.02, 0.1]}, "training": training})
    config, sooner = (config_of(each, db, settings) for each in (spec, early))
    assert config.stage_steps == (config.final_steps,) * 3
    assert sooner.stage_steps[0] < config.stage_steps[0]
    assert sooner.stage_steps[1] < sooner.stage_steps[2] == pytest.approx(sooner.final_steps, abs=1)


def config_of(spec: JobSpec, db: Database, settings: Settings) -> GrowthConfig:
    admitted = admit(spec, db, settings)
    return growth_config(spec, load(spec.data, settings, seed=0)[0], admitted.wiring, admitted.budgets)


def test_a_job_keeps_to_all_its_budgets_and_to_its_rounding(db: Database, settings: Settings) -> None:
    further = [{"cost": "params", "limit": 700, "device": "elsewhere"}]
    job_id = submit(
        db, further_budgets=further, growth={**SPEC["growth"], "multiple_of": 2}, network={"family": "plain", "widths": [4, 6]},
        controls=["uniform", "cost_only", "random", "slimming"], budget={**SPEC["budget"], "limit": 90_000},
    )  # fmt: skip
    stops = 0
    while True:
        try:
            run(db, settings, job_id, StopAfter(40))
            break
        except Stopped:
            stops += 1
            steal(db, job_id)
    report = results(db, settings, job_id)["report"]
    assert stops
    assert report["budget"]["cost"] == "macs"
    assert [(each["cost"], each["limit"], each["unit"]) for each in report["further_budgets"]] == [("params", 700.0, "parameters")]
    for arm in (report["grown"], *report["controls"].values()):
        (params,) = arm["further_costs"]
        assert (params["quantity"], params["value"]) == ("params", arm["params"])
        assert params["value"] <= 700
        assert arm["macs"] <= 90_000
    for arm in (report["grown"], *(report["controls"][name] for name in ("uniform", "cost_only", "random"))):
        assert all(width % 2 == 0 for width in arm["widths"])
    assert report["controls"]["uniform"]["widths"] != [4, 6]
