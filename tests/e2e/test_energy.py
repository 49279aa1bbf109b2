"""An energy budget from spec to report, through the service: its worker finds the NVML stub where the driver's library would be.

The stub's truth: 5 W, and 50 W more for each core that the worker's process keeps busy.  Its counter steps every 15 ms, so that windows
of 0.3 s hold enough steps for intervals of some 15 %.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from store.settings import Settings
from wattle.up import up

pytestmark = [pytest.mark.xdist_group("service"), pytest.mark.timeout(300), pytest.mark.alone]

IDLE_WATTS, CORE_WATTS = 5.0, 50.0
NETWORK = {"family": "plain", "widths": [6, 8]}
PROFILE = {"network": NETWORK, "image_size": 8, "in_channels": 1, "classes": 10, "max_growth": 2, "seconds": 4}
JOB = {
    "name": "small",
    "data": {"name": "digits"},
    "network": NETWORK,
    "growth": {"rounds": 1, "max_growth": 2, "scoring_samples": 64, "fresh_samples": 32},
    "training": {"epochs_per_round": 0.5, "final_epochs": 0.5},
    "controls": ["uniform"],
}


@pytest.fixture
def client(tmp_path: Path, nvml_library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml_library.parent))
    monkeypatch.setenv("NVML_STUB", f"real_time=1,period=0.015,watts={IDLE_WATTS},cpu_watts={CORE_WATTS}")
    with up(Settings(data_dir=tmp_path, port=0, energy_window_seconds=0.3)) as service:
        service.wait_ready(120)
        with httpx.Client(base_url=service.url, timeout=20, transport=httpx.HTTPTransport(retries=3)) as client:
            yield client


def ended(client: httpx.Client, answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 202, answer.text
    deadline = time.monotonic() + 240
    while True:
        job: dict[str, Any] = client.get(answer.headers["location"]).json()
        if job["state"] in ("succeeded", "failed", "cancelled"):
            return job
        assert time.monotonic() < deadline, job
        time.sleep(0.1)


def with_budget(**budget: Any) -> dict[str, Any]:
    return {**JOB, "budget": {"cost": "energy_mj", "limit": 1e6, **budget}}


@pytest.mark.slow  # and needs a machine as quiet as any measuring does; tests/worker/test_energy_job.py does not
def test_an_energy_budget_from_spec_to_report(client: httpx.Client) -> None:
    profiled = ended(client, client.post("/v1/profiles", json={**PROFILE, "meter": "nvml_total_energy", "energy_seconds": 30}))
    assert profiled["state"] == "succeeded", profiled["message"]
    table = client.get("/v1/devices/this-host/table").json()
    energies = [entry for entry in table["entries"] if entry["quantity"] == "energy_mj"]
    assert {entry["kind"] for entry in energies} == {"measured", "estimated:power_x_time"}
    assert {(entry["meter"], entry["scope"], entry["sensor_error"]) for entry in energies} == {("nvml_total_energy", "gpu", 0.05)}
    for entry in (entry for entry in energies if entry["kind"] == "measured"):
        assert entry["low"] < entry["value"] < entry["high"]
        assert 0 < entry["net_low"] < entry["net"] < entry["value"]

    dry = client.post("/v1/jobs", params={"dry_run": True}, json=with_budget()).json()
    limit = 1.4 * dry["seed_cost"]["value"]
    job = ended(client, client.post("/v1/jobs", json=with_budget(limit=limit)))
    assert job["state"] == "succeeded", job["message"]
    report = client.get(f"/v1/jobs/{job['id']}/report").json()
    assert report["budget"]["unit"] == "mJ"
    for result in (report["seed"], report["grown"], report["controls"]["uniform"]):
        predicted, measured = result["predicted_cost"], result["measured_energy"]
        assert predicted["value"] <= limit
        assert (predicted["quantity"], predicted["unit"], predicted["kind"]) == ("energy_mj", "mJ", "calibrated_sum")
        assert (predicted["meter"], predicted["scope"]) == ("nvml_total_energy", "gpu")
        assert predicted["low"] < predicted["value"] < predicted["high"]
        assert "reason" not in measured, measured
        assert (measured["kind"], measured["meter"], measured["scope"]) == ("measured", "nvml_total_energy", "gpu")
        assert measured["low"] < measured["value"] < measured["high"]
        assert 0 < measured["net"]["value"] < measured["value"]
        assert result["measured_latency"]["kind"] == "measured"
        watts = measured["value"] / result["measured_latency"]["value"]
        assert watts == pytest.approx(IDLE_WATTS + CORE_WATTS, rel=0.35)  # two sessions, on a machine that others use
    agreement = report["predicted_versus_measured"]
    grown_alike = report["grown"]["widths"] == report["controls"]["uniform"]["widths"]  # then it counts once
    named = {"seed", "grown", *([] if grown_alike else ["uniform"])}
    assert (agreement["quantity"], set(agreement["error_percent"])) == ("energy_mj", named)
    assert "Measured, the grown network takes" in report["verdict"]["sentence"]
    page = client.get(f"/jobs/{job['id']}", headers={"accept": "text/html"}).text
    assert "Measured energy" in page


def test_without_a_meter_it_is_refused_with_the_remedy_or_estimated_where_the_spec_allows_it(client: httpx.Client) -> None:
    assert ended(client, client.post("/v1/profiles", json=PROFILE))["state"] == "succeeded"
    refused = client.post("/v1/jobs", json=with_budget())
    assert refused.status_code == 422
    (error,) = refused.json()["errors"]
    assert error["field"] == "budget.cost"
    assert "power_model" in error["remedy"]
    assert "budget.declared_watts" in error["remedy"]
    allowed = with_budget(declared_watts=12.5)
    dry = client.post("/v1/jobs", params={"dry_run": True}, json=allowed).json()
    assert "estimated as 12.5 W times measured time" in " ".join(dry["warnings"])
    job = ended(client, client.post("/v1/jobs", json=with_budget(declared_watts=12.5, limit=1.4 * dry["seed_cost"]["value"])))
    assert job["state"] == "succeeded", job["message"]
    grown = client.get(f"/v1/jobs/{job['id']}/report").json()["grown"]
    predicted = grown["predicted_cost"]
    assert (predicted["kind"], predicted["meter"], predicted["scope"]) == ("estimated:power_model", "power_model", "declared")
    assert "no meter has measured it" in grown["measured_energy"]["reason"]
