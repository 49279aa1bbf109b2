"""The dashboard's pages as the server sends them: every state, every absence with its reason, nothing loaded from elsewhere."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from costs.table import CostTable
from server import pages, words
from store import jobs
from store.artifacts import ArtifactStore
from store.database import Database
from store.jobs import Lease, Metric
from store.settings import Settings

STATIC = Path(pages.__file__).parent / "static"
VENDORED = {  # uPlot 1.6.32 as it is on npm
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "uPlot.LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}
COST = {"quantity": "macs", "value": 31_234, "unit": "MACs", "kind": "exact", "low": None, "high": None}
RESULT = {
    "widths": [4, 6, 8], "predicted_cost": COST, "measured_latency": {"reason": "the job ran on a, not on b"},
    "macs": 31_234, "params": 812,
    "test_loss": 0.2, "test_accuracy": 0.961, "test_samples": 360, "charged_macs": 3_210_000_000, "steps": 900, "seconds": 20.0,
}  # fmt: skip
MEASURED = {"median_ms": 1.3, "low": 1.28, "high": 1.31, "unit": "ms", "kind": "measured", "repetitions": 9, "rejected": 1, "device": "a"}
REPORT: dict[str, Any] = {
    "job": "j", "name": "digits", "device": "this-host", "budget": {"cost": "macs", "limit": 40_000, "unit": "MACs"},
    "further_budgets": [{"cost": "params", "limit": 900, "unit": "parameters", "device": "pi-4"}],
    "seed": RESULT, "grown": {**RESULT, "measured_latency": MEASURED, "further_costs": [{**COST, "value": 811, "unit": "parameters"}]},
    "controls": {"uniform": RESULT, "random": {"reason": "out of memory"}},
    "verdict": {"paid": True, "best": "grown", "rule": "Lower is better.", "sentence": "Growing paid: 0.2 is lower than 0.3."},
    "predicted_versus_measured": {"reason": "the budget is in macs; nothing was predicted in milliseconds"},
    "samples": {"test": 360}, "torch": "2.14.1", "written_at": "2026-07-11T14:03:22+00:00",
}  # fmt: skip
SPREAD = {
    "test_loss": {"mean": 0.21, "sd": 0.0123, "values": [0.2, 0.22]},
    "test_accuracy": {"mean": 0.958, "sd": 0.004, "values": [0.961, 0.955]},
}
PAIR = {"differences": [-0.01, -0.03], "mean": -0.02, "sd": 0.0141, "low": -0.1471, "high": 0.1071, "confidence": 0.95}
REPORT_OF_SEEDS: dict[str, Any] = {
    **REPORT,
    "seeds": [0, 1],
    "retrained": {**RESULT, "note": "the widths that growing found, trained from scratch"},
    "controls": {"uniform": RESULT, "twins": RESULT},
    "arms": {"grown": SPREAD, "retrained": SPREAD, "uniform": SPREAD, "twins": SPREAD},
    "paired": {
        "grown": {"uniform": PAIR, "twins": {**PAIR, "high": -0.0101}, "retrained": {**PAIR, "low": 0.0012, "high": 0.2}},
        "retrained": {"uniform": PAIR, "twins": PAIR},
    },
    "delivered": {"run": "retrained", "why": "it has the lower loss on the selection images (grown 0.3000, retrained 0.2000)"},
}
ROUND: dict[str, Any] = {
    "number": 1, "widths_before": [4, 6, 8], "widths_after": [4, 9, 8], "channels_added": [0, 3, 0],
    "cost_before": COST, "cost_after": COST,
    "limit": 35_000.0, "predicted_change": -0.031, "predicted_error": 0.0042, "change_at_growth": -0.027, "loss_before": 0.61,
    "loss_after": 0.4, "accuracy_after": 0.92, "rolled_back": False, "reason": "3 channels fit", "channels_scored": 18,
    "channels_gaining": 5,
    "gap": 0.0, "outcome": "grown", "added_by": {"split": 3}, "split_step": 0.3, "run": "grown",
}  # fmt: skip


class _Outline(HTMLParser):
    """Attributes of all elements, and the text without scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def read(client: TestClient) -> Callable[..., str]:
    """The text of a page; each page read is checked for what no page may have."""

    def read(path: str, status: int = 200) -> str:
        response = client.get(path)
        assert response.status_code == status, response.text
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        outline = _Outline(response.text)
        for tag, attributes in outline.elements:
            assert not {name for name in attributes if name == "style" or name.startswith("on")}, (tag, attributes)
            assert tag != "style"
            for name in ("src", "href", "action"):
                assert (attributes.get(name) or "/").startswith(("/", "#", "?", "data:image/svg+xml,")), attributes
                assert not (attributes.get(name) or "").startswith("//"), attributes
        tags = [tag for tag, _ in outline.elements]
        assert [tags.count(tag) for tag in ("html", "main", "header", "h1", "title")] == [1, 1, 1, 1, 1]
        assert ("html", {"lang": "en"}) in outline.elements
        ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        assert "Undefined" not in outline.text
        assert "None" not in outline.text.replace("None yet", "").replace("None:", "").replace("None were", "")
        return outline.text

    return read


@pytest.fixture
def claimed(submit: Callable[..., str], db: Database) -> Callable[..., Lease]:
    def claimed(**changes: Any) -> Lease:
        lease = jobs.claim(db, submit(**changes), "this-host@rosella:1", 30)
        assert lease is not None
        return lease

    return claimed


def test_empty_list_says_how_to_submit_the_first_job(read: Callable[..., str]) -> None:
    assert "wattle submit examples/digits.yaml" in read("/")


def test_list_shows_where_jobs_stand(
    read: Callable[..., str], claimed: Callable[..., Lease], db: Database, submit: Callable[..., str]
) -> None:
    submit(name="waiting")
    going, broken = claimed(name="going"), claimed(name="broken")
    progress = {"phase": "scoring", "run": "grown", "round": 1, "rounds": 3, "overall_fraction": 0.42, "cost": 31_234}
    jobs.record(db, going, progress)
    jobs.finish(db, broken, "failed", "disk_full", "no space left")
    shown = read("/")
    assert "All 3 Queued 1 Running 1 Failed 1" in shown
    for part in ("waiting", "not started", "running", "42 % scoring channels", "1 of 3", "31,234 of 40,000 MACs exact", "the disk is full"):
        assert part in shown
    assert "at most 40,000 MACs cost not known yet" in shown


def test_list_by_state(read: Callable[..., str], claimed: Callable[..., Lease], submit: Callable[..., str]) -> None:
    submit(name="waiting")
    claimed(name="going")
    assert "waiting" in (queued := read("/?state=queued"))
    assert "going" not in queued
    assert "No failed job" in read("/?state=failed")
    assert "No job is ever “odd”" in read("/?state=odd", 404)


def test_list_goes_page_by_page(
    read: Callable[..., str], client: TestClient, submit: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "JOBS_PER_PAGE", 2)
    for number in range(5):
        submit(name=f"number-{number}")
    path, seen = "/?state=queued", []
    while True:
        seen.append(re.findall(r"number-\d", read(path)))
        older = re.search(r'href="(/\?[^"]*cursor[^"]*)" rel="next"', client.get(path).text)
        if older is None:
            break
        path = older[1].replace("&amp;", "&")
    assert seen == [["number-4", "number-3"], ["number-2", "number-1"], ["number-0"]]


def test_queued(read: Callable[..., str], submit: Callable[..., str]) -> None:
    shown = read(f"/jobs/{submit()}")
    for part in ("queued", "Waiting for a worker", "Cancel job", "No worker has taken this job yet", "family: plain"):
        assert part in shown


def test_running(read: Callable[..., str], claimed: Callable[..., Lease], db: Database) -> None:
    lease = claimed()
    assert "time left not known yet" in read(f"/jobs/{lease.job.id}")
    progress = {
        "phase": "training", "run": "grown", "runs": 4, "round": 1, "rounds": 3, "step": 120, "total_steps": 480,
        "overall_fraction": 0.0625,
        "eta_seconds": 200.0, "loss": 0.51, "accuracy": 0.9, "cost": 31_234, "widths": [4, 9, 8],
    }  # fmt: skip
    jobs.record(db, lease, progress, [Metric("grown", "loss", step, 1 / (step + 1)) for step in range(120)])
    jobs.add_round(db, lease, "grown", 1, ROUND, step=60)
    jobs.add_round(db, lease, "grown", 2, {**ROUND, "number": 2, "rolled_back": True, "reason": "the loss rose"}, step=90)
    jobs.add_round(
        db, lease, "grown", 3, {**ROUND, "number": 3, "channels_added": [0, 0, 0], "outcome": None, "reason": "none is negative"}, step=110
    )
    doubtful = {"channels_added": [0, 0, 0], "outcome": "no_reliable_gain", "reason": "it may be chance", "change_at_growth": None}
    jobs.add_round(db, lease, "grown", 4, {**ROUND, "number": 4, **doubtful}, step=120)
    shown = read(f"/jobs/{lease.job.id}")
    for part in (
        "Training the grown network", "about 3 min 20 s left", "6 %", "one of 4 runs", "0.510 nats", "90.0 %", "31,234 of 40,000 MACs",
        "exact, 78 % of the limit", "−0.0310 ± 0.0042", "−0.0270", "0.6100 → 0.4000", "92.0 %", "kept 3 channels fit",
        "rolled back the loss rose", "nothing added none is negative", "no reliable gain it may be chance", "limit 35,000 MACs",
        "1.50×", "by this-host@rosella:1",
    ):  # fmt: skip
        assert part in shown, part


def test_asked_to_stop(read: Callable[..., str], claimed: Callable[..., Lease], db: Database) -> None:
    lease = claimed()
    jobs.cancel(db, lease.job.id)
    shown = read(f"/jobs/{lease.job.id}")
    assert "running, cancelling" in shown
    assert "Cancel job" not in shown


def test_failed_and_tried_before(read: Callable[..., str], claimed: Callable[..., Lease], db: Database) -> None:
    lease = claimed()
    jobs.requeue(db, lease, "lost_worker", "the worker went silent")
    assert "The last attempt ended early: its worker was lost" in read(f"/jobs/{lease.job.id}")
    again = jobs.claim(db, lease.job.id, "other:2", 30)
    assert again is not None
    jobs.finish(db, again, "failed", "out_of_memory", "Lower training.batch_size.")
    shown = read(f"/jobs/{lease.job.id}")
    for part in ("Failed: out of memory", "Lower training.batch_size.", "attempt 2 of at most", "the worker went silent"):
        assert part in shown
    assert "There is no report: the job failed before it was written" in shown
    assert "There are none: the job failed before its first training step" in shown


def test_cancelled(read: Callable[..., str], submit: Callable[..., str], db: Database) -> None:
    job_id = submit()
    jobs.cancel(db, job_id)
    shown = read(f"/jobs/{job_id}")
    assert "cancelled" in shown
    assert "No worker has taken this job." in shown


def test_succeeded(read: Callable[..., str], claimed: Callable[..., Lease], db: Database, settings: Settings) -> None:
    lease, store = claimed(), ArtifactStore(settings.artifact_dir)
    jobs.add_artifact(db, lease, "report.json", *store.put_bytes(json.dumps(REPORT).encode()), "application/json")
    points = [Metric(run, name, step, 0.5) for run in ("grown", "random") for name in ("loss", "accuracy", "cost") for step in (0, 40, 80)]
    jobs.record(db, lease, {"run": "random"}, points)
    jobs.finish(db, lease, "succeeded")
    shown = read(f"/jobs/{lease.job.id}")
    for part in (
        "Verdict", "at most 40,000 MACs on this-host; at most 900 parameters on pi-4", "811 parameters", REPORT["verdict"]["sentence"],
        "Lower is better.", "31,234 MACs exact", "1.300 ms [1.280, 1.310] measured",
        "not measured: the job ran on a, not on b", "no result: out of memory", "812 parameters", "3.21 G MACs", "96.1 %", "0.2000 nats",
        "not compared: the budget is in macs", "9 repetitions (1 rejected)", "report.json", "11 Jul 2026, 14:03 UTC",
        "Step grown random (control)",
    ):  # fmt: skip
        assert part in shown, part


TIME = {"value": 61.5, "unit": "s", "kind": "measured", "meter": "monotonic_clock", "scope": "process"}
ENERGY = {"unit": "J", "kind": "measured", "meter": "rapl_package", "scope": "package", "note": "all that the scope drew meanwhile (gross)"}
USED: dict[str, Any] = {
    "phases": {"training": {"time": TIME, "energy": {"value": 1234.5, **ENERGY}}},
    "total": {
        "time": TIME, "energy": {"value": 1234.5, **ENERGY},
        "co2": {
            "value": 0.1029, "unit": "g", "kind": "estimated:stated_factor", "grams_per_kwh": 300.0, "source": "a label",
            "scope": "package",
        },
    },
    "attempts": 2, "missing": ["attempt 1 was killed"],
}  # fmt: skip


def test_what_the_job_used_is_shown_with_kinds(
    read: Callable[..., str], claimed: Callable[..., Lease], db: Database, settings: Settings
) -> None:
    lease, store = claimed(), ArtifactStore(settings.artifact_dir)
    report = json.dumps({**REPORT, "used": USED}).encode()
    jobs.add_artifact(db, lease, "report.json", *store.put_bytes(report), "application/json")
    jobs.finish(db, lease, "succeeded")
    shown = read(f"/jobs/{lease.job.id}")
    for part in (
        "Used by the job itself", "61.50 s measured", "1234 J", "over 2 attempts", "rapl_package, scope package; all that the scope drew",
        "0.1029 g (estimated: energy × stated factor) of scope package, at 300 g/kWh: a label", "Missing: attempt 1 was killed.",
    ):  # fmt: skip
        assert part in shown, part


def test_a_job_without_a_report_shows_what_it_used_as_well(read: Callable[..., str], claimed: Callable[..., Lease], db: Database) -> None:
    lease, none = claimed(), {"reason": "no meter: no zone; declare watts"}
    total = {**USED["total"], "energy": none, "co2": {"reason": "no factor is stated"}}
    jobs.record(db, lease, {"used": {"phases": {"loading": {"time": TIME, "energy": none}}, "total": total, "attempts": 1, "missing": []}})
    jobs.finish(db, lease, "failed", "out_of_memory", "Lower training.batch_size.")
    shown = read(f"/jobs/{lease.job.id}")
    for part in ("Energy is not known: no meter: no zone; declare watts.", "CO₂: not known; no factor is stated.", "loading 61.50 s"):
        assert part in shown, part


def test_succeeded_over_seeds(read: Callable[..., str], claimed: Callable[..., Lease], db: Database, settings: Settings) -> None:
    lease, store = claimed(seeds=2, controls=["uniform", "twins"]), ArtifactStore(settings.artifact_dir)
    jobs.add_artifact(db, lease, "report.json", *store.put_bytes(json.dumps(REPORT_OF_SEEDS).encode()), "application/json")
    runs = [f"{arm}{repeat}" for repeat in ("", ".1") for arm in ("grown", "uniform", "twins", "retrained")]
    jobs.record(db, lease, {"run": "retrained.1"}, [Metric(run, "loss", step, 0.5) for run in runs for step in (0, 40, 80)])
    for run in ("grown", "grown.1", "twins.1"):
        jobs.add_round(db, lease, run, 1, ROUND, step=60)
    jobs.finish(db, lease, "succeeded")
    shown = read(f"/jobs/{lease.job.id}")
    for part in (
        "0.2100 ± 0.0123 nats", "95.8 ± 0.4 %", "mean ± sd over 2 seeds", "Paired differences in test loss",
        "grown uniform (control) −0.0200 [−0.1471, +0.1071] 0.0141 no clear difference −0.0100 −0.0300",
        "grown twins (control) −0.0200 [−0.1471, −0.0101] 0.0141 better", "grown retrained −0.0200 [+0.0012, +0.2000] 0.0141 worse",
        "holds the retrained network of the first seed: it has the lower loss on the selection images",
        "the widths that growing found, trained from scratch", "Runs of the first of 2 seeds",
        "Rounds with the other seeds grown, repeat 1", "twins (control), repeat 1",
        "Step grown uniform (control) twins (control) retrained 0 ",
    ):  # fmt: skip
        assert part in shown, part


def test_training_with_a_further_seed(read: Callable[..., str], claimed: Callable[..., Lease], db: Database) -> None:
    lease = claimed(seeds=3)
    jobs.record(db, lease, {"phase": "training", "run": "uniform.2", "runs": 12}, [Metric("uniform.2", "loss", 1, 0.5)])
    shown = read(f"/jobs/{lease.job.id}")
    assert "Training the uniform (control), repeat 2 network" in shown
    assert "one of 12 runs" in shown


def test_report_whose_file_is_gone(read: Callable[..., str], claimed: Callable[..., Lease], db: Database) -> None:
    lease = claimed()
    jobs.add_artifact(db, lease, "report.json", "0" * 64, 3, "application/json")
    jobs.finish(db, lease, "succeeded")
    assert "There is no report: no artifact 0000" in read(f"/jobs/{lease.job.id}")


def test_profile(read: Callable[..., str], client: TestClient, db: Database, measured: CostTable) -> None:
    network = {"family": "plain", "widths": [4, 6, 8]}
    response = client.post("/v1/profiles", json={"network": network, "image_size": 8, "in_channels": 1, "classes": 10})
    assert response.status_code == 202, response.text
    lease = jobs.claim(db, response.json()["id"], "w", 30)
    assert lease is not None
    jobs.record(db, lease, {"phase": "profiling", "overall_fraction": 0.37, "eta_seconds": 38, "message": "conv2d 3x3"})
    shown = read(f"/jobs/{lease.job.id}")
    assert "Measuring layers about 38 s left 37 % conv2d 3x3" in shown
    assert "Curves" not in shown
    jobs.finish(db, lease, "succeeded")
    assert "Cost table of this-host" in read(f"/jobs/{lease.job.id}")
    assert "no budget" in read("/")


def test_unknown_job_and_device(read: Callable[..., str]) -> None:
    assert "No job has the id nope" in read("/jobs/nope", 404)
    assert "wattle worker --device" in read("/devices/nope", 404)


def test_hostile_words_are_only_words(read: Callable[..., str], client: TestClient, db: Database) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    spec = {"network": {"family": "plain", "widths": [4]}, "budget": {"cost": "macs", "limit": 1, "device": evil}, "note": evil}
    job = jobs.submit(db, "growth", evil, spec, "growth", 5)
    lease = jobs.claim(db, job.id, evil, 30)
    assert lease is not None
    jobs.record(db, lease, {"phase": evil, "run": evil, "overall_fraction": 0.1}, [Metric(evil, "loss", 0, 1.0)])
    assert evil in read(f"/jobs/{job.id}")
    jobs.finish(db, lease, "failed", "internal", evil)
    for path in ("/", f"/jobs/{job.id}", "/jobs/%3Cscript%3E", "/?state=%3Cscript%3E", "/devices/%3Cscript%3E"):
        assert "<script>" not in client.get(path).text, path
        assert "<img" not in client.get(path).text, path


def test_cancel_form(client: TestClient, submit: Callable[..., str], db: Database) -> None:
    job_id = submit()
    path, same = f"/jobs/{job_id}/cancel", {"origin": "http://127.0.0.1:8765"}
    for headers in (
        {},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "none"},
    ):
        assert client.post(path, headers=headers).status_code == 403
    assert jobs.get(db, job_id).state == "queued"
    assert client.get(path).status_code == 405
    for _ in range(2):  # again does no harm
        response = client.post(path, headers=same, follow_redirects=False)
        assert (response.status_code, response.headers["location"]) == (303, f"/jobs/{job_id}")
    assert jobs.get(db, job_id).state == "cancelled"
    assert client.post("/jobs/nope/cancel", headers=same).status_code == 404


def test_devices(read: Callable[..., str], measured: CostTable, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "gone: run wattle worker --device this-host" in read("/devices")
    shown = read("/devices/this-host")
    assert "Latency, batch 1, 1 thread: scale 1.500, error 2.0 %" in shown
    assert "0.7000 ms" in shown
    assert "0.04000 ms [0.03600, 0.04400] measured" in shown
    assert f"Entries 1 to {len(measured)} of {len(measured)}" in shown
    monkeypatch.setattr(pages, "ENTRIES_PER_PAGE", 4)
    assert f"Entries 5 to 8 of {len(measured)}" in read("/devices/this-host?page=2")
    assert "There is no page 99" in read("/devices/this-host?page=99")


def test_no_device(read: Callable[..., str]) -> None:
    assert "No device has registered yet" in read("/devices")


@pytest.mark.parametrize(("name", "digest"), VENDORED.items())
def test_vendored_files_are_as_published(name: str, digest: str) -> None:
    assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == digest


def test_static_files_are_served_and_named_by_content(client: TestClient) -> None:
    for name in ("dashboard.css", "dashboard.js", "uPlot.min.css", "uPlot.iife.min.js"):
        response = client.get(pages.asset(name))
        assert response.content == (STATIC / name).read_bytes()
        assert hashlib.sha256(response.content).hexdigest()[:12] in pages.asset(name)
    assert client.get("/static/../pages.py").status_code == 404


@pytest.mark.parametrize("name", ["dashboard.css", "dashboard.js"])
def test_our_static_files_load_nothing_from_elsewhere(name: str) -> None:
    content = (STATIC / name).read_text()
    assert not re.search(r"https?://|@import|innerHTML|eval\(|new Function", content)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (words.number(1.3), "1.300"), (words.number(0.0184512), "0.01845"), (words.number(1_254_512), "1,254,512"), (words.number(0), "0"),
        (words.number(12_345.6), "12,346"), (words.number(None), "–"), (words.number(True), "–"), (words.number(1234.4), "1234"),
        (words.plain(1.8), "1.8"), (words.plain(40_000.0), "40,000"), (words.signed(-0.031), "−0.0310"), (words.signed(0.02), "+0.0200"),
        (words.percent(0.961), "96.1 %"), (words.scaled(48_211_000_000), "48.2 G"), (words.scaled(999), "999"),
        (words.scaled(123_456), "123 k"),
        (words.bytes_words(812), "812 bytes"), (words.bytes_words(183_211), "183 kB"), (words.duration(0.2), "under 1 s"),
        (words.duration(9.64), "9.6 s"), (words.duration(200), "3 min 20 s"), (words.duration(7500), "2 h 5 min"),
        (words.duration(60), "1 min"),
        (words.duration(3600 * 76), "3 d 4 h"), (words.duration(None), "–"), (words.run_words("cost_only"), "cost only (control)"),
        (words.run_words("retrained"), "retrained"), (words.run_words("grown.3"), "grown, repeat 3"),
        (words.run_words("seed_alone.1"), "seed alone (control), repeat 1"),
        (words.kind_words("calibrated_sum"), "calibrated sum"), (words.kind_words("estimated:power_x_time"), "estimated: power × time"),
    ],
)  # fmt: skip
def test_words(written: str, expected: str) -> None:
    assert written == expected
