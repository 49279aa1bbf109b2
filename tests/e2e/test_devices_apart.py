"""One spec, two devices: workers that differ in their threads measure two tables, and growth chooses other widths for each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from store.settings import Settings
from wattle.client import Client, Document, Event, ProblemError
from wattle.up import Service, up

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("service"), pytest.mark.timeout(600), pytest.mark.alone]

THREADS = {"one-thread": 1, "two-threads": 2}
NETWORK = {"family": "plain", "widths": [12, 16]}
PROFILE = {"network": NETWORK, "image_size": 16, "in_channels": 1, "classes": 10, "batch_size": 32, "max_growth": 2, "seconds": 45}
JOB: dict[str, Any] = {
    "name": "one-spec",
    "data": {"name": "digits", "image_size": 16},
    "network": NETWORK,
    "growth": {"rounds": 1, "max_growth": 2, "multiple_of": 4, "scoring_samples": 64, "fresh_samples": 32},
    "training": {"epochs_per_round": 0.5, "final_epochs": 0.5},
    "controls": [],
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("devices")
    with up(Settings(data_dir=folder, port=0, lease_seconds=6, heartbeat_seconds=1)) as service:
        service.wait_ready(120)
        yield service


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client


@contextmanager
def worker(service: Service, name: str, threads: int) -> Iterator[subprocess.Popen[bytes]]:
    """As a user starts it in the folder of a running service."""
    settings = service.settings
    given = {"WATTLE_DATA_DIR": str(settings.data_dir), "WATTLE_LEASE_SECONDS": "6", "WATTLE_HEARTBEAT_SECONDS": "1"}
    command = [sys.executable, "-m", "wattle", "worker", "--device", name, "--threads", str(threads), "--only-profiles"]
    with (settings.data_dir / "logs" / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **given}, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def tables(service: Service, client: Client) -> Iterator[dict[str, Document]]:
    """Two devices with their tables, as their own workers measured them."""
    with worker(service, "one-thread", 1), worker(service, "two-threads", 2):
        wait_for(lambda: {name for name in THREADS if alive(client, name)} == THREADS.keys())
        for name in THREADS:
            with pytest.raises(ProblemError, match=rf"wattle profile --device {name} .* --batch-size 32 --threads {THREADS[name]} --wait"):
                client.submit(on(name, 1000.0))
            told: list[Event] = []
            job = client.wait(client.profile({**PROFILE, "device": name})["id"], told.append)
            assert job["state"] == "succeeded", job["message"]
            assert "profiling" in {event.payload.get("phase") for event in told if event.type == "progress"}
        yield {name: client.table(name) for name in THREADS}


def wait_for(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def alive(client: Client, name: str) -> bool:
    return any(device["alive"] for device in client.devices() if device["name"] == name)


def on(device: str, limit: float) -> Document:
    """The one spec; the device's thread count is its own."""
    return {**JOB, "budget": {"cost": "latency_ms", "limit": limit, "device": device, "batch_size": 32}}


def test_each_device_has_a_table_of_its_own(client: Client, tables: Mapping[str, Document]) -> None:
    fingerprints = {name: client.device(name)["fingerprint"] for name in THREADS}
    assert {name: each.pop("threads") for name, each in fingerprints.items()} == THREADS
    assert fingerprints["one-thread"] == fingerprints["two-threads"], "they are one machine"
    entries = {name: table["entries"] for name, table in tables.items()}
    assert {name: {each["setting"]["threads"] for each in entries[name]} for name in THREADS} == {name: {n} for name, n in THREADS.items()}
    assert {name: client.device(name)["threads"] for name in THREADS} == THREADS
    one, two = ({json.dumps(each["shape"]): each for each in entries[name]} for name in THREADS)
    assert two.keys() <= one.keys()
    apart = [one[shape]["low"] > two[shape]["high"] or one[shape]["high"] < two[shape]["low"] for shape in two]
    assert any(apart), "no layer differs by more than both intervals"


@pytest.mark.usefixtures("tables")
def test_one_spec_grows_two_networks(client: Client) -> None:
    limit = 1.5 * client.submit(on("one-thread", 1000.0), dry_run=True)["seed_cost"]["value"]
    reports = {}
    for name in THREADS:
        job = client.wait(client.submit(on(name, limit))["id"])
        assert job["state"] == "succeeded", job["message"]
        reports[name] = client.report(job["id"])
    for name, report in reports.items():
        assert (report["device"], report["budget"]["device"], report["budget"]["threads"]) == (name, name, THREADS[name])
        assert report["grown"]["predicted_cost"]["value"] <= limit
        asked = {key: PROFILE[key] for key in ("image_size", "in_channels", "classes", "batch_size")}
        network = {**NETWORK, "widths": report["grown"]["widths"]}
        assert client.network_cost(name, {**asked, "network": network})["total"] == pytest.approx(
            {key: report["grown"]["predicted_cost"][key] for key in ("value", "unit", "kind", "low", "high", "meter", "scope")}
        ), "priced by the device's own table, in its own number of threads"
        assert "the job ran on this-host" in report["grown"]["measured_latency"]["reason"]
    assert reports["one-thread"]["grown"]["widths"] != reports["two-threads"]["grown"]["widths"]


def test_a_profile_says_that_its_worker_is_not_there(service: Service, client: Client) -> None:
    with worker(service, "leaves", 1) as left:
        wait_for(lambda: alive(client, "leaves"))
        left.terminate()
        left.wait(30)
        wait_for(lambda: not alive(client, "leaves"))
    with worker(service, "is-killed", 1) as killed:
        wait_for(lambda: alive(client, "is-killed"))
        killed.kill()
        wait_for(lambda: not alive(client, "is-killed"))
    for name in ("leaves", "is-killed"):
        job = client.profile({**PROFILE, "device": name})
        assert job["waits_for"] == client.job(job["id"])["waits_for"]
        assert f"wattle worker --device {name}" in job["waits_for"]
        assert client.cancel(job["id"])["state"] == "cancelled"
        assert client.job(job["id"])["waits_for"] is None
