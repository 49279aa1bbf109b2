"""The dashboard in a real browser, against a real server: drawn, live, strict, cancellable, readable at any size and without script."""

from __future__ import annotations

import json
import math
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest

from store import jobs
from store.artifacts import ArtifactStore
from store.database import Database
from store.jobs import Lease, Metric
from store.settings import Settings

pytestmark = pytest.mark.browser

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
)  # fmt: skip
PATIENCE_MS = 15_000
SEED_WIDTHS = [8] * 14
SPEC: dict[str, Any] = {
    "name": "digits",
    "data": {"name": "digits", "image_size": 16},
    "network": {"family": "mobilenet_v1", "widths": SEED_WIDTHS},
    "growth": {"scorer": "splitting", "rounds": 3},
    "budget": {"cost": "latency_ms", "limit": 1.8, "device": "this-host", "batch_size": 32, "threads": 1},
    "training": {"epochs_per_round": 4, "final_epochs": 8, "batch_size": 64, "seed": 0},
    "controls": ["uniform", "cost_only", "random"],
}
STEPS = 480


# ---- jobs in a store, written by the functions that workers use


def cost(value: float, kind: str = "calibrated_sum") -> dict[str, Any]:
    return {"value": value, "unit": "ms", "kind": kind, "low": value * 0.97, "high": value * 1.03}


def widths_after(number: int) -> list[int]:
    return [8 + 4 * sum((5 * group + each) % 3 == 0 for each in range(number)) for group in range(14)]


def claimed(db: Database, name: str = "digits", kind: Any = "growth", spec: dict[str, Any] | None = None) -> Lease:
    job = jobs.submit(db, kind, name, {**(spec or SPEC), "name": name}, "growth", 5)
    lease = jobs.claim(db, job.id, "this-host@rosella:4711", 3600)
    assert lease is not None
    return lease


def progress(run: str, step: int, fraction: float, **more: Any) -> dict[str, Any]:
    return {
        "phase": "training", "run": run, "runs": 4, "round": min(3, step // 90), "rounds": 3, "step": step, "total_steps": STEPS,
        "overall_fraction": fraction, "eta_seconds": 200 * (1 - fraction), "limit": 1.8, "unit": "ms", "cost": 1.13 + step / 1000,
        "widths": widths_after(min(3, step // 90)), "loss": loss(step), "accuracy": 0.9, **more,
    }  # fmt: skip


def loss(step: int, pace: float = 70, noise: float = 0.0) -> float:
    return 0.06 + 2.2 * math.exp(-step / pace) + noise


def points(run: str, first: int, last: int, pace: float = 70) -> list[Metric]:
    draw = random.Random(f"{run}{first}")
    found = []
    for step in range(first, last):
        value = max(0.01, loss(step, pace, draw.gauss(0, 0.09) * (0.3 + math.exp(-step / 90))))
        found += [Metric(run, "loss", step, value), Metric(run, "accuracy", step, min(1.0, max(0.05, 1 - 0.4 * value)))]
    return found


def growth_round(number: int, run: str, **changes: Any) -> dict[str, Any]:
    before, after = widths_after(number - 1), widths_after(number)
    return {
        "number": number, "widths_before": before, "widths_after": after,
        "channels_added": [b - a for a, b in zip(before, after, strict=True)],
        "cost_before": cost(1.0 + 0.2 * number), "cost_after": cost(1.2 + 0.2 * number), "limit": 1.2 + 0.2 * number,
        "predicted_change": -0.031 / number, "predicted_error": 0.0042 / number, "change_at_growth": -0.027 / number,
        "loss_before": 0.61 / number, "loss_after": 0.4 / number, "accuracy_after": 0.9 + 0.02 * number, "rolled_back": False,
        "reason": "12 of 40 channels with a negative index fit the round's limit",
        "channels_scored": 112, "channels_gaining": 40, "gap": 0.0,
        "run": run, **changes,
    }  # fmt: skip


def train(db: Database, lease: Lease, runs: tuple[str, ...], rounds: int = 3) -> None:
    """All that a worker tells about finished runs."""
    for index, run in enumerate(runs):
        extra = [Metric(run, "cost", 0, 1.13)]
        if run in ("grown", "random"):
            for number in range(1, rounds + 1):
                rolled = {"rolled_back": True, "widths_after": widths_after(number - 1), "reason": "loss rose from 0.2033 to 0.2241"}
                payload = growth_round(number, run, **(rolled if (run, number) == ("random", 3) else {}))
                jobs.add_round(db, lease, run, number, payload, step=90 * number)
                extra += [
                    Metric(run, "cost", 90 * number, payload["cost_after"]["value"]),
                    Metric(run, "selection_loss", 90 * number + 89, 0.7 / number),
                ]
        else:
            extra = [Metric(run, "cost", 0, 1.74)]
        jobs.record(db, lease, None, points(run, 1, STEPS, 55 + 18 * index) + extra)


def result(widths: list[int], latency: float, test_loss: float) -> dict[str, Any]:
    measured = {
        "median_ms": latency * 1.04, "low": latency * 1.02, "high": latency * 1.07, "unit": "ms", "kind": "measured", "repetitions": 212,
        "rejected": 9, "device": "this-host", "batch": 32, "threads": 1,
    }  # fmt: skip
    return {
        "widths": widths, "layers": [], "predicted_cost": {"quantity": "latency_ms", **cost(latency)}, "measured_latency": measured,
        "macs": 1_254_512 + 9_000 * sum(widths), "params": 31 * sum(widths), "test_loss": test_loss, "test_accuracy": 1 - test_loss / 3.2,
        "test_samples": 360, "charged_macs": 48_211_000_000, "steps": STEPS, "seconds": 63.2,
    }  # fmt: skip


def report(job_id: str) -> dict[str, Any]:
    uniform = {**result([12] * 14, 1.71, 0.1042), "measured_latency": {"reason": "the machine was too busy: 41 of 60 repetitions rejected"}}
    return {
        "job": job_id, "name": "digits", "device": "this-host", "budget": {**SPEC["budget"], "unit": "ms"},
        "seed": {**result(SEED_WIDTHS, 1.13, 0.31), "note": "at the end of its own stage, in the middle of the schedule; not a control"},
        "grown": result(widths_after(3), 1.76, 0.0931),
        "controls": {
            "uniform": uniform, "cost_only": result([16] * 7 + [8] * 7, 1.79, 0.0873), "random": result(widths_after(2), 1.77, 0.1127),
        },
        "rounds": [], "control_rounds": {},
        "verdict": {
            "paid": False, "best": "cost_only", "better_than": ["random", "uniform"], "not_better_than": ["cost_only"],
            "rule": "Growing paid if the grown network's mean cross-entropy on the test images is lower than that of every control.",
            "sentence": "Growing did not pay: cost_only did no worse with the same budget and compute (test loss 0.0931; controls: "
            "cost_only 0.0873, uniform 0.1042, random 0.1127). One seed: not a significance statement.",
        },
        "predicted_versus_measured": {"error_percent": {}, "mean_absolute_error_percent": 3.84, "quantity": "latency_ms"},
        "samples": {"train": 1149, "selection": 288, "test": 360}, "torch": "2.14.1", "written_at": "2026-07-11T14:03:22+00:00",
    }  # fmt: skip


ARMS = ("grown", "uniform", "cost_only", "random", "twins", "seed_alone", "slimming", "retrained")
SEEDS = 20


def report_of_seeds(job_id: str) -> dict[str, Any]:
    """As large as they come: every control, the widths retrained, the most seeds that a spec may ask for."""
    one = report(job_id)
    numbers = [0.0931 + 0.001 * number for number in range(SEEDS)]
    spread = {name: {"mean": 0.1026, "sd": 0.0059, "values": numbers} for name in ("test_loss", "test_accuracy", "selection_loss")}
    pair = {"differences": [-0.0211] * SEEDS, "mean": -0.0211, "sd": 0.0102, "low": -0.0259, "high": -0.0163, "confidence": 0.95}
    other = result(SEED_WIDTHS, 1.13, 0.31)
    return {
        **one,
        "seeds": list(range(SEEDS)),
        "retrained": {**one["grown"], "note": "the widths that growing found, trained from scratch; finding them cost that much again"},
        "controls": {**one["controls"], "twins": one["grown"], "seed_alone": other},
        "arms": dict.fromkeys(ARMS, spread),
        "paired": {arm: {name: pair for name in ARMS[1:] if name != arm} for arm in ("grown", "retrained")},
        "delivered": {"run": "retrained", "why": "training.final is both: it has the lower loss on the selection images"},
    }


def job_over_seeds(db: Database, settings: Settings) -> Lease:
    spec = {**SPEC, "controls": list(ARMS[1:-1]), "seeds": SEEDS, "training": {**SPEC["training"], "final": "both"}}
    lease, store = claimed(db, "seeds", spec=spec), ArtifactStore(settings.artifact_dir)
    train(db, lease, ARMS)
    for number in range(1, SEEDS):
        jobs.record(db, lease, None, [*points(f"grown.{number}", 1, 40), Metric(f"grown.{number}", "cost", 0, 1.13)])
        jobs.add_round(db, lease, f"grown.{number}", 1, growth_round(1, f"grown.{number}"), step=90)
    jobs.add_artifact(db, lease, "report.json", *store.put_bytes(json.dumps(report_of_seeds(lease.job.id)).encode()), "application/json")
    jobs.record(db, lease, progress(f"retrained.{SEEDS - 1}", STEPS, 1.0, phase="done", eta_seconds=0.0))
    jobs.finish(db, lease, "succeeded")
    return lease


def running_job(db: Database, name: str = "digits") -> Lease:
    lease = claimed(db, name)
    jobs.record(db, lease, progress("grown", 200, 0.1), [*points("grown", 1, 200), Metric("grown", "cost", 0, 1.13)])
    jobs.add_round(db, lease, "grown", 1, growth_round(1, "grown"), step=90)
    jobs.record(db, lease, None, [Metric("grown", "cost", 90, 1.4)])
    return lease


def succeeded_job(db: Database, settings: Settings, name: str = "digits") -> Lease:
    lease, store = claimed(db, name), ArtifactStore(settings.artifact_dir)
    train(db, lease, ("grown", "uniform", "cost_only", "random"))
    contents = {"report.json": json.dumps(report(lease.job.id)), "spec.json": json.dumps(SPEC), "network.safetensors": "x" * 183_211}
    for artifact, content in contents.items():
        jobs.add_artifact(db, lease, artifact, *store.put_bytes(content.encode()), "application/json")
    jobs.record(db, lease, progress("random", STEPS, 1.0, phase="done", eta_seconds=0.0))
    jobs.finish(db, lease, "succeeded")
    return lease


# ---- a server process and a browser


@dataclass
class Site:
    """A server of our own, its store, and what went wrong in the browser."""

    url: str
    db: Database
    settings: Settings
    faults: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("dashboard")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = Settings(data_dir=folder, broker_url="memory://", port=port)
    db = Database(settings.database)
    db.migrate()
    environment = {**os.environ, "WATTLE_DATA_DIR": str(folder), "WATTLE_BROKER_URL": "memory://", "WATTLE_PORT": str(port)}
    process = subprocess.Popen([sys.executable, "-m", "server"], env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{url}/healthz", process)
        yield Site(url, db, settings)
    finally:
        process.terminate()
        process.wait(20)
        db.close()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except (URLError, OSError):
            assert process.poll() is None, "the server ended"
            time.sleep(0.1)
    pytest.fail(f"{url} did not answer within 30 s")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright

        assert Path(CHROMIUM).exists(), f"{CHROMIUM} is not installed"
    except (ImportError, AssertionError) as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no browser: {error}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def site(server: Site) -> Iterator[Site]:
    """The server.  After the test: nothing on the browser's console, no request to anywhere else."""
    server.faults.clear()
    yield server
    assert server.faults == []


@pytest.fixture(scope="module")
def done(server: Site) -> str:
    """Id of a job that has succeeded, with a report."""
    return succeeded_job(server.db, server.settings).job.id


@pytest.fixture(scope="module")
def over_seeds(server: Site) -> str:
    """Id of a job that has succeeded, with a report over many seeds."""
    return job_over_seeds(server.db, server.settings).job.id


@pytest.fixture(scope="module")
def going(server: Site) -> str:
    """Id of a job that runs."""
    return running_job(server.db).job.id


def open_page(browser: Any, site: Site, path: str, **options: Any) -> Any:
    """A page that records what must not happen: messages on the console, errors, refusals by the policy, foreign requests."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce", **options})
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.on("console", lambda message: site.faults.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: site.faults.append(f"uncaught: {error}"))
    page.on("request", lambda request: site.faults.append(request.url) if not request.url.startswith((site.url, "data:")) else None)
    page.goto(site.url + path)
    return page


def text(page: Any, selector: str) -> str:
    return " ".join(page.inner_text(selector).split())


def await_text(page: Any, selector: str, words: str) -> None:
    page.wait_for_function(
        "([selector, words]) => document.querySelector(selector)?.innerText.replace(/\\s+/g, ' ').includes(words)", arg=[selector, words]
    )


DRAWING = "name => document.querySelector(`[data-curve=${name}] canvas`)?.toDataURL() ?? ''"


def drawing(page: Any, curve: str) -> str:
    """A chart as it is drawn, as a data URL."""
    return str(page.evaluate(DRAWING, curve))


def is_drawn(page: Any, curve: str) -> bool:
    """Whether a chart differs from an empty canvas of its size."""
    blank = """name => {
        const {width, height} = document.querySelector(`[data-curve=${name}] canvas`);
        return Object.assign(document.createElement("canvas"), {width, height}).toDataURL();
    }"""
    return drawing(page, curve) != page.evaluate(blank, curve)


def test_report_and_curves_are_shown(browser: Any, site: Site, done: str) -> None:
    page = open_page(browser, site, f"/jobs/{done}")
    page.wait_for_selector("[data-curve=cost] canvas")
    assert all(is_drawn(page, curve) for curve in ("loss", "accuracy", "cost"))
    legend = text(page, "[data-curve=cost] .u-legend")
    assert all(word in legend for word in ("grown", "uniform (control)", "cost only (control)", "random (control)", "limit"))
    assert "Growing did not pay" in text(page, "#standing")
    smooth = drawing(page, "loss")
    page.uncheck("#smooth")
    page.wait_for_function(f"before => ({DRAWING})('loss') !== before", arg=smooth)


def test_charts_show_the_first_of_many_seeds(browser: Any, site: Site, over_seeds: str) -> None:
    page = open_page(browser, site, f"/jobs/{over_seeds}")
    page.wait_for_selector("[data-curve=cost] canvas")
    legend = text(page, "[data-curve=loss] .u-legend")
    assert all(word in legend for word in ("grown", "twins (control)", "seed alone (control)", "retrained"))
    assert "repeat" not in legend
    assert page.eval_on_selector_all(".paired tbody tr", "rows => rows.length") == 11


def test_page_follows_the_job_without_reload(browser: Any, site: Site) -> None:
    lease = running_job(site.db, "live")
    page = open_page(browser, site, f"/jobs/{lease.job.id}")
    page.evaluate("window.same = true")
    await_text(page, "#connection", "Live")
    assert "Training the grown network" in text(page, ".progress-card")
    page.click("#table-loss summary")
    page.wait_for_selector("[data-curve=loss] canvas")
    drawn = drawing(page, "loss")

    jobs.record(site.db, lease, progress("grown", 260, 0.31), points("grown", 200, 260))
    await_text(page, ".progress-card", "260 of 480")
    await_text(page, ".bar-line", "31 %")
    await_text(page, "#table-loss", "259")
    page.wait_for_function(f"before => ({DRAWING})('loss') !== before", arg=drawn)
    assert page.get_attribute("#table-loss", "open") is not None  # what the user opened stays open

    jobs.add_round(site.db, lease, "grown", 2, growth_round(2, "grown"), step=180)
    await_text(page, ".widths thead", "round 2")
    jobs.finish(site.db, lease, "failed", "not_a_number", "The loss was not a number at step 261; lower training.learning_rate.")
    await_text(page, "#standing", "lower training.learning_rate")
    assert text(page, "#spoken") == "Job live is failed."
    assert page.title().startswith("live: failed")
    assert page.evaluate("window.same")


def test_list_follows_all_jobs(browser: Any, site: Site) -> None:
    page = open_page(browser, site, "/")
    await_text(page, "#connection", "Live")
    lease = claimed(site.db, "newcomer")
    await_text(page, f"#job-{lease.job.id}", "newcomer")
    page.focus(f"#job-{lease.job.id} a")
    claimed(site.db, "another")
    await_text(page, "#list", "another")
    assert page.evaluate("document.activeElement.textContent") == "newcomer"  # focus stays where it was
    jobs.finish(site.db, lease, "succeeded")
    await_text(page, f"#job-{lease.job.id}", "succeeded")


def test_cancel_button(browser: Any, site: Site) -> None:
    job = jobs.submit(site.db, "growth", "waiting", SPEC, "growth", 5)
    page = open_page(browser, site, f"/jobs/{job.id}")
    page.focus("#cancel summary")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Yes, cancel it"
    page.keyboard.press("Enter")
    await_text(page, "#head", "cancelled")
    assert jobs.get(site.db, job.id).state == "cancelled"
    assert page.locator("#cancel").count() == 0


def test_cancelling_a_running_job_says_that_it_goes_on_for_a_moment(browser: Any, site: Site) -> None:
    lease = running_job(site.db, "stopping")
    page = open_page(browser, site, f"/jobs/{lease.job.id}")
    page.click("#cancel summary")
    page.click("#cancel button")
    await_text(page, "#head", "running, cancelling")
    assert jobs.heartbeat(site.db, lease) == "cancel"
    jobs.finish(site.db, lease, "cancelled")
    await_text(page, "#head .badge", "cancelled")


def test_hostile_words_stay_words(browser: Any, site: Site) -> None:
    lease = claimed(site.db, "<img src=x onerror=window.hit=1>")
    page = open_page(browser, site, f"/jobs/{lease.job.id}")
    await_text(page, "#connection", "Live")
    jobs.finish(site.db, lease, "failed", "internal", "</p><script>window.hit=1</script>")
    await_text(page, "#standing", "<script>window.hit=1</script>")
    assert page.evaluate("window.hit") is None
    assert text(page, "h1") == "<img src=x onerror=window.hit=1>"


def test_without_script_everything_but_the_drawings_is_there(browser: Any, site: Site, done: str) -> None:
    page = open_page(browser, site, f"/jobs/{done}", java_script_enabled=False)
    page.click("#table-loss summary")
    assert "grown" in page.inner_text("#table-loss table")
    assert "needs JavaScript" in page.inner_text("#curves noscript")
    job = jobs.submit(site.db, "growth", "waiting", SPEC, "growth", 5)
    page.goto(f"{site.url}/jobs/{job.id}")
    page.click("#cancel summary")
    page.click("#cancel button")
    assert jobs.get(site.db, job.id).state == "cancelled"


@pytest.mark.parametrize("width", [400, 700, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_and_all_text_has_contrast(
    width: int, scheme: str, browser: Any, site: Site, done: str, going: str, over_seeds: str
) -> None:
    page = open_page(browser, site, "/", viewport={"width": width, "height": 800}, color_scheme=scheme)
    for path in (f"/jobs/{done}", f"/jobs/{over_seeds}", f"/jobs/{going}", "/devices", "/"):
        page.goto(site.url + path)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        assert page.evaluate(_LOW_CONTRAST) == [], path


# Text whose contrast with the ground behind it is below 4.5:1 (WCAG 2.2, 1.4.3), by the formula of relative luminance.
_LOW_CONTRAST = """() => {
    const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return {r, g, b, a}; };
    const part = (v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
    const light = ({r, g, b}) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
    const ground = (node) => {
        for (; node; node = node.parentElement) {
            const colour = parse(getComputedStyle(node).backgroundColor);
            if (colour.a === 1) return colour;
        }
        return {r: 255, g: 255, b: 255};
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const text = walker.currentNode.nodeValue.trim(), node = walker.currentNode.parentElement;
        if (!text || !node.checkVisibility() || node.closest("script, noscript, .hidden")) continue;
        const [a, b] = [light(parse(getComputedStyle(node).color)), light(ground(node))].sort((x, y) => y - x);
        const contrast = (a + 0.05) / (b + 0.05);
        if (contrast < 4.5) found.push(`${text.slice(0, 30)}: ${contrast.toFixed(2)}`);
    }
    return found;
}"""


@pytest.mark.parametrize("kind", ["done", "over_seeds"])
def test_landmarks_names_and_order(browser: Any, site: Site, kind: str, request: pytest.FixtureRequest) -> None:
    page = open_page(browser, site, f"/jobs/{request.getfixturevalue(kind)}")
    assert page.get_attribute("html", "lang") == "en"
    for role in ("banner", "main", "contentinfo"):
        assert page.get_by_role(role).count() == 1
    assert page.get_by_role("heading", level=1).count() == 1
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map(each => Number(each.tagName[1]))")
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.eval_on_selector_all(
        "table:not(.u-legend)", "all => all.every(each => each.caption && each.querySelector('th[scope=col]'))"
    )
    assert page.eval_on_selector_all("section", "all => all.every(each => document.getElementById(each.getAttribute('aria-labelledby')))")
    assert page.eval_on_selector_all("[id]", "all => new Set(all.map(each => each.id)).size === all.length")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
