"""The embedded service as a user meets it: profile, grow within a latency budget, report; and how it starts and stops."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from store.settings import Settings
from wattle.state import read_state
from wattle.up import Service, ServiceError, up
from worker.processes import Identity

pytestmark = [pytest.mark.xdist_group("service"), pytest.mark.timeout(300)]

WAIT_SECONDS = 120.0
NETWORK = {"family": "plain", "widths": [6, 8]}


def wait_for(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with up(Settings(data_dir=tmp_path_factory.mktemp("service"), port=0)) as service:
        service.wait_ready(WAIT_SECONDS)
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=20, transport=httpx.HTTPTransport(retries=3)) as client:
        yield client


def finished(client: httpx.Client, answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 202, answer.text
    place = answer.headers["location"]
    wait_for(lambda: client.get(place).json()["state"] in ("succeeded", "failed", "cancelled"))
    job: dict[str, Any] = client.get(place).json()
    assert job["state"] == "succeeded", job
    return job


@pytest.mark.alone
def test_profile_grow_report(client: httpx.Client) -> None:
    profile = {"network": NETWORK, "image_size": 8, "in_channels": 1, "classes": 10, "max_growth": 2, "seconds": 4}
    finished(client, client.post("/v1/profiles", json=profile))
    spec = {
        "name": "small",
        "data": {"name": "digits"},
        "network": NETWORK,
        "growth": {"rounds": 1, "max_growth": 2, "scoring_samples": 64, "fresh_samples": 32},
        "budget": {"cost": "latency_ms", "limit": 1000},
        "training": {"epochs_per_round": 0.5, "final_epochs": 0.5},
        "controls": ["uniform"],
    }
    dry = client.post("/v1/jobs", params={"dry_run": True}, json=spec).json()
    limit = 1.3 * dry["seed_cost"]["value"]
    job = finished(client, client.post("/v1/jobs", json={**spec, "budget": {"cost": "latency_ms", "limit": limit}}))
    report = client.get(f"/v1/jobs/{job['id']}/report").json()
    for result in (report["seed"], report["grown"], report["controls"]["uniform"]):
        assert result["predicted_cost"]["kind"] == "calibrated_sum"
        assert result["predicted_cost"]["value"] <= limit
        assert result["measured_latency"]["kind"] == "measured"
        assert 0 <= result["test_accuracy"] <= 1
    assert report["seed"]["widths"] == NETWORK["widths"]
    grown_alike = report["grown"]["widths"] == report["controls"]["uniform"]["widths"]  # then it counts once
    assert set(report["predicted_versus_measured"]["error_percent"]) == {"seed", "grown", *([] if grown_alike else ["uniform"])}
    assert report["rounds"][0]["number"] == 1
    assert job["progress"]["overall_fraction"] == 1
    names = {artifact["name"] for artifact in client.get(f"/v1/jobs/{job['id']}/artifacts").json()["artifacts"]}
    assert names == {"network.safetensors", "report.json", "spec.json", "costs.json"}


def test_the_device_is_alive_while_its_worker_listens(client: httpx.Client) -> None:
    wait_for(lambda: client.get("/v1/devices/this-host").json()["alive"])


def test_a_killed_server_is_back_by_itself(service: Service, client: httpx.Client) -> None:
    before = service.pids["server"]
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: service.pids.get("server", before) != before)
    wait_for(lambda: _answers(client))
    state = read_state(service.settings.data_dir)
    assert state is not None
    assert state["processes"] == service.pids


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("name", ["server", "worker-1"])
def test_only_the_training_child_holds_torch(service: Service, name: str) -> None:
    assert "libtorch" not in Path(f"/proc/{service.pids[name]}/maps").read_text()


def test_one_service_per_data_folder(service: Service) -> None:
    with pytest.raises(ServiceError, match="already runs on"), up(service.settings.model_copy(update={"port": 0})):
        pass


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=f"port {port} .* WATTLE_PORT"), up(Settings(data_dir=tmp_path, port=port)):
            pass


def test_stopping_leaves_nothing_behind(tmp_path: Path) -> None:
    with up(Settings(data_dir=tmp_path, port=0), workers=0) as service:
        service.wait_ready(WAIT_SECONDS)
        pids = list(service.pids.values())
        assert len(pids) == 2
        socket_path = Path(service.settings.broker_url.partition("@")[2].partition("?")[0])
        assert socket_path.exists()
        assert (tmp_path / "service.json").stat().st_mode & 0o077 == 0
    assert [pid for pid in pids if Identity.of(pid) is not None] == []
    assert read_state(tmp_path) is None
    assert not socket_path.parent.exists()
