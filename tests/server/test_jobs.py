"""Submit, list, look at and cancel jobs over REST; every refusal names field, value, limit and remedy."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from store import devices, jobs
from store.database import Database

PROFILE = {"network": {"family": "plain", "widths": [4, 6]}, "image_size": 8, "in_channels": 1, "classes": 10}
YAML = """
name: digits
data: {name: digits}
network: {family: plain, widths: [4, 6, 8]}
budget: {cost: macs, limit: 40000}
"""


def problem(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert document["status"] == status
    assert document["type"].startswith("urn:wattle:")
    assert document["detail"]
    return document


def only_error(response: Any, status: int = 422) -> dict[str, Any]:
    (error,) = problem(response, status)["errors"]
    assert set(error) == {"field", "value", "limit", "remedy", "message"}
    assert error["remedy"]
    assert error["message"]
    return dict(error)


def test_submission_is_accepted_and_owed_to_the_broker(client: TestClient, spec: dict[str, Any], db: Database) -> None:
    response = client.post("/v1/jobs", json=spec)
    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["kind"], job["state"], job["desired"], job["queue"]) == ("growth", "queued", "run", "growth")
    assert job["spec"]["growth"]["rounds"] == 3  # defaults are filled in: what is stored says all that will be done
    assert client.get(response.headers["location"]).json() == job
    assert jobs.queued_per_queue(db) == {"growth": 1}


def test_yaml_is_the_same_as_json(client: TestClient, spec: dict[str, Any]) -> None:
    response = client.post("/v1/jobs", content=YAML, headers={"content-type": "application/yaml; charset=utf-8"})
    assert response.status_code == 202, response.text
    assert response.json()["spec"] == client.post("/v1/jobs", json=spec).json()["spec"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a: [1", "YAML"),
        (b"a: &x [1]\nb: *x", "aliases"),
        (b"\xff\xfe\x00", "YAML"),
        (b"!!python/object:os.system {}", "YAML"),
        (b"[" * 20_000, "YAML"),
        (b"? [1, 2]\n: 3", "YAML"),
    ],
)
def test_yaml_that_can_not_be_read(content: bytes, reason: str, client: TestClient) -> None:
    assert reason in problem(client.post("/v1/jobs", content=content, headers={"content-type": "text/yaml"}), 400)["detail"]


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000])
def test_json_that_can_not_be_read(content: bytes, client: TestClient) -> None:
    response = client.post("/v1/jobs", content=content, headers={"content-type": "application/json"})
    problem(response, response.status_code)
    assert response.status_code in (400, 422)


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_other_media_types(kind: str | None, client: TestClient) -> None:
    headers = {"content-type": kind} if kind else {}
    assert "application/json" in problem(client.post("/v1/jobs", content=b"{}", headers=headers), 415)["detail"]


def test_body_that_is_too_large(client: TestClient) -> None:
    for kind in ("application/json", "application/yaml"):
        problem(client.post("/v1/jobs", content=b" " * 300_000, headers={"content-type": kind}), 413)
        problem(client.post("/v1/jobs", content=_in_pieces(), headers={"content-type": kind}), 413)


def _in_pieces() -> Iterator[bytes]:
    """A body whose length is not told beforehand."""
    for _ in range(30):
        yield b" " * 10_000


def test_misspelt_key_gets_a_guess(client: TestClient, spec: dict[str, Any]) -> None:
    error = only_error(client.post("/v1/jobs", json={**spec, "budget": {"cost": "macs", "limt": 40_000, "limit": 40_000}}))
    assert (error["field"], error["remedy"]) == ("budget.limt", "did you mean limit?")
    assert error["limit"] == ["batch_size", "cost", "declared_watts", "device", "limit", "threads"]


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"budget": {"cost": "macs", "limit": -1}}, "budget.limit", -1),
        ({"budget": {"cost": "macs", "limit": float("nan")}}, "budget.limit", "nan"),
        ({"budget": {"cost": "macs", "limit": float("inf")}}, "budget.limit", "inf"),
        ({"budget": {"cost": "macs"}}, "budget.limit", None),
        ({"budget": {"cost": "joules", "limit": 1}}, "budget.cost", "joules"),
        ({"budget": {"cost": "macs", "limit": 5}}, "budget.limit", 5),
        ({"data": {"name": "imagefolder", "root": "nowhere"}}, "data.root", "nowhere"),
        ({"data": {"name": "imagefolder"}}, "data", "{'name': 'imagefolder'}"),
        ({"network": {"family": "plain", "widths": [4] * 17}}, "network.widths", 17),
        ({"network": {"family": "plain", "widths": [1, 4]}}, "network.widths.0", 1),
        ({"name": "a/b"}, "name", "a/b"),
        ({"name": "n" * 500}, "name", "n" * 199 + "…"),
        ({"growth": {"rounds": 10**30}}, "growth.rounds", str(10**30)),
        ({"growth": {"fresh_samples": 2000}}, "growth", "{'fresh_samples': 2000}"),
        ({"budget": {"cost": "latency_ms", "limit": 1}}, "budget.device", "this-host"),
    ],
)
def test_refusals_name_the_field(change: dict[str, Any], field: str, value: object, client: TestClient, spec: dict[str, Any]) -> None:
    for dry_run in ("false", "true"):
        body = json.dumps({**spec, **change})
        response = client.post(f"/v1/jobs?dry_run={dry_run}", content=body, headers={"content-type": "application/json"})
        error = only_error(response)
        assert (error["field"], error["value"]) == (field, value)
    assert client.get("/v1/jobs").json()["jobs"] == []


def test_dry_run_tells_and_creates_nothing(client: TestClient, spec: dict[str, Any]) -> None:
    response = client.post("/v1/jobs?dry_run=true", json=spec)
    assert response.status_code == 200
    told = response.json()
    absent = dict.fromkeys(("low", "high", "meter", "scope"))
    assert told["seed_cost"] == {"value": told["macs"], "unit": "MACs", "kind": "exact", **absent}
    assert (told["widths"], told["samples"], told["limit"], told["warnings"]) == ([4, 6, 8], 1797, 40_000, [])
    assert client.get("/v1/jobs").json()["jobs"] == []


@pytest.mark.usefixtures("measured")
def test_latency_budget_is_priced_by_the_table(client: TestClient, spec: dict[str, Any]) -> None:
    told = client.post("/v1/jobs?dry_run=true", json={**spec, "budget": {"cost": "latency_ms", "limit": 2}}).json()
    assert told["seed_cost"]["kind"] == "calibrated_sum"
    assert told["seed_cost"]["low"] < told["seed_cost"]["value"] < told["seed_cost"]["high"]


def test_same_key_same_job(client: TestClient, spec: dict[str, Any]) -> None:
    first, second = (client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "k-1"}).json() for _ in range(2))
    assert first["id"] == second["id"]
    error = only_error(client.post("/v1/jobs", json={**spec, "name": "other"}, headers={"Idempotency-Key": "k-1"}), 409)
    assert (error["field"], error["value"]) == ("header.Idempotency-Key", "k-1")
    assert only_error(client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "a b"}))["field"] == "header.Idempotency-Key"


def test_list_pages_and_filters(client: TestClient, submit: Callable[..., str]) -> None:
    ids = [submit(name=f"job-{number}") for number in range(5)]
    client.post(f"/v1/jobs/{ids[2]}/cancel")
    newest_first, cursor, seen = sorted(ids, reverse=True), None, []
    while True:
        page = client.get("/v1/jobs", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == newest_first
    assert [job["id"] for job in client.get("/v1/jobs?state=cancelled").json()["jobs"]] == [ids[2]]
    assert client.get("/v1/jobs?kind=profile").json()["jobs"] == []
    assert client.get("/v1/jobs").json()["last_event"] == 6
    for query in ("state=lost", "kind=x", "limit=0", "limit=201", "cursor=%00"):
        assert only_error(client.get(f"/v1/jobs?{query}"))["field"].startswith("query.")


def test_cancel_queued_then_again(client: TestClient, submit: Callable[..., str]) -> None:
    job_id = submit()
    response = client.post(f"/v1/jobs/{job_id}/cancel")
    assert (response.status_code, response.json()["state"]) == (202, "cancelled")
    assert job_id in problem(client.post(f"/v1/jobs/{job_id}/cancel"), 409)["detail"]


def test_cancel_running_shows_what_is_desired(client: TestClient, submit: Callable[..., str], db: Database) -> None:
    job_id = submit()
    assert jobs.claim(db, job_id, "w", 30) is not None
    job = client.post(f"/v1/jobs/{job_id}/cancel").json()
    assert (job["state"], job["desired"], job["worker"]) == ("running", "cancel", "w")


@pytest.mark.parametrize("path", ["", "/rounds", "/metrics", "/events", "/log", "/report", "/artifacts", "/artifacts/a.bin"])
def test_unknown_job(path: str, client: TestClient) -> None:
    assert only_error(client.get(f"/v1/jobs/nope{path}"), 404)["value"] == "nope"
    assert only_error(client.get(f"/v1/jobs/no%00pe{path}"))["field"] == "path.job_id"


def test_cancel_unknown_job(client: TestClient) -> None:
    problem(client.post("/v1/jobs/nope/cancel"), 404)


def test_profile_is_a_job_of_its_device(client: TestClient, db: Database) -> None:
    error = only_error(client.post("/v1/profiles", json=PROFILE))
    assert (error["field"], error["remedy"]) == ("device", "start a worker on it: wattle worker --device this-host")
    devices.register(db, "this-host", {})
    assert client.post("/v1/profiles?dry_run=true", json=PROFILE).json()["units"] == 6
    job = client.post("/v1/profiles", json=PROFILE).json()
    assert (job["kind"], job["queue"]) == ("profile", "profile.this-host")
    assert "wattle worker --device this-host" in job["waits_for"], "its worker registered, and does not listen"
    assert client.get(f"/v1/jobs/{job['id']}").json() == job
    devices.keep_alive(db, "this-host", 30)
    assert client.get(f"/v1/jobs/{job['id']}").json() == {**job, "waits_for": None}
