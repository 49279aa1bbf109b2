"""The application as a whole: every route documented and guarded, outages answered, nothing heavy loaded."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from server import deps
from server.app import create_app
from server.guard import SECURITY_HEADERS
from store import database, devices, jobs
from store.database import SchemaMismatch
from store.settings import Settings

TORCH_FREE = """
import sys
from server.app import create_app
from store.settings import Settings
app = create_app(Settings(broker_url="memory://"))
app.openapi()
heavy = {"torch", "numpy", "scipy", "sklearn", "torchvision", "growth", "profiler", "worker", "wattle"}
print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
"""


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", TORCH_FREE], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "[]"


def test_every_route_is_documented(settings: Settings) -> None:
    app = create_app(settings)
    schema = app.openapi()
    operations = {(method.upper(), path): each for path, methods in schema["paths"].items() for method, each in methods.items()}
    assert len(operations) > 15
    for (method, path), operation in operations.items():
        assert operation["description"], path
        assert {"500", "503"} <= operation["responses"].keys(), path
        makes_it = (method, path) == ("POST", "/v1/devices/{name}/table")  # an import makes a device known
        assert "404" in operation["responses"] or "{" not in path or makes_it
        assert "403" in operation["responses"] or method == "GET"
        for status, response in operation["responses"].items():
            if int(status) >= 400 and status != "416":
                reference = response["content"]["application/problem+json"]["schema"]["$ref"]
                assert reference == "#/components/schemas/ProblemDocument"
    assert "HTTPValidationError" not in schema["components"]["schemas"]


def test_specs_are_documented_in_both_forms(settings: Settings) -> None:
    schema = create_app(settings).openapi()
    for path, model in (("/v1/jobs", "JobSpec"), ("/v1/profiles", "ProfileSpec")):
        content = schema["paths"][path]["post"]["requestBody"]["content"]
        assert {kind: each["schema"]["$ref"].rpartition("/")[2] for kind, each in content.items()} == {
            "application/json": model, "application/yaml": model,
        }  # fmt: skip


def test_reference_page_names_every_path_and_loads_nothing(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    for path in client.get("/openapi.json").json()["paths"]:
        assert path in page.text
    assert "<script" not in page.text
    assert "http" not in page.text.replace("http://127.0.0.1", "")


def test_health(client: TestClient) -> None:
    assert client.get("/healthz").json()["status"] == "ok"
    assert client.get("/readyz").json() == {"status": "ready", "database": "ok", "broker": "ok", "detail": None}


def test_without_broker_jobs_are_kept(settings: Settings, spec: dict[str, Any]) -> None:
    settings = settings.model_copy(update={"broker_url": "redis://127.0.0.1:9/0"})
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        assert client.post("/v1/jobs", json=spec).status_code == 202
        readiness = client.get("/readyz")
        assert readiness.status_code == 200
        assert (readiness.json()["status"], readiness.json()["broker"]) == ("degraded", "down")


def test_locked_database_is_503(
    settings: Settings, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch, submit: Callable[..., str], client: TestClient
) -> None:
    job_id = submit()
    monkeypatch.setattr(database, "BUSY_TIMEOUT_SECONDS", 0)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as impatient:
        locker = sqlite3.connect(settings.data_dir / "wattle.sqlite", isolation_level=None)
        locker.execute("BEGIN EXCLUSIVE")
        for response in (impatient.post("/v1/jobs", json=spec), impatient.post(f"/v1/jobs/{job_id}/cancel")):
            assert response.status_code == 503, response.text
            assert response.headers["retry-after"] == "5"
            assert response.headers["content-type"] == "application/problem+json"
        assert impatient.get("/healthz").status_code == 200
        locker.execute("ROLLBACK")
        locker.close()
        monkeypatch.undo()  # without any patience, a writer of the server's own is in the way
        assert impatient.post("/v1/jobs", json=spec).status_code == 202


def test_a_fault_of_the_server_is_a_problem_document_too(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(devices, "all_devices", fail)
    response = client.get("/v1/devices")
    assert (response.status_code, response.headers["content-type"]) == (500, "application/problem+json")
    assert "secret" not in response.text


def test_database_of_another_version_is_refused(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, broker_url="memory://")
    with pytest.raises(SchemaMismatch, match="python -m migrations"), TestClient(create_app(settings)):
        pass


@pytest.mark.parametrize(("host", "status"), [
    ("127.0.0.1:8765", 200), ("localhost", 200), ("[::1]:8765", 200), ("LOCALHOST:1", 200),
    ("evil.example", 400), ("127.0.0.1.evil.example", 400), ("127.0.0.1@evil.example", 400), ("", 400), ("[", 400), ("0.0.0.0", 400),
])  # fmt: skip
def test_only_loopback_names(host: str, status: int, client: TestClient) -> None:
    assert client.get("/healthz", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 202),
        ({"origin": "http://127.0.0.1:8765"}, 202),
        ({"origin": "http://127.0.0.1:8765", "sec-fetch-site": "same-origin"}, 202),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
    ],
)
def test_pages_of_other_sites_change_nothing(headers: dict[str, str], status: int, client: TestClient, submit: Callable[..., str]) -> None:
    job_id = submit()
    assert client.post(f"/v1/jobs/{job_id}/cancel", headers=headers).status_code == status
    assert client.get(f"/v1/jobs/{job_id}").json()["state"] == ("cancelled" if status == 202 else "queued")


def test_every_answer_is_strict_with_browsers(client: TestClient) -> None:
    for path in ("/healthz", "/docs", "/v1/jobs", "/v1/jobs/nope", "/nope", "/openapi.json"):
        headers = client.get(path).headers
        assert {name: headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS, path
    assert client.get("/healthz", headers={"host": "evil.example"}).headers["x-content-type-options"] == "nosniff"


def test_wrong_paths_and_methods_are_problem_documents(client: TestClient) -> None:
    assert client.get("/nope").json()["detail"] == "there is no /nope; the API is described at /docs"
    response = client.delete("/v1/jobs")
    assert (response.status_code, response.json()["title"]) == (405, "Method not allowed")


def test_keeper_stops_with_the_application(settings: Settings) -> None:
    app = create_app(settings)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        client.get("/healthz")
        keeper = app.state.service.keeper
        assert keeper.is_alive()
    assert not keeper.is_alive()


def test_submitted_job_is_announced(client: TestClient, submit: Callable[..., str], settings: Settings) -> None:
    """The keeper that lives in the server hands the message to the broker, without the request waiting for it."""
    submit()
    service: deps.Service = client.app.state.service  # type: ignore[attr-defined]  # the client's app is ours
    for _ in range(100):
        if not jobs.unrung(service.db):
            return
        time.sleep(0.05)
    pytest.fail("the message was not sent within 5 s")
