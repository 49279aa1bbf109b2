"""What a job leaves: rounds, curves, log, report, artifacts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient

from store import jobs
from store.artifacts import ArtifactStore
from store.database import Database
from store.jobs import Lease, Metric
from store.settings import Settings

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def lease(submit: Callable[..., str], db: Database) -> Lease:
    """A running job, as its worker holds it."""
    lease = jobs.claim(db, submit(), "w", 30)
    assert lease is not None
    return lease


@pytest.fixture
def keep(lease: Lease, settings: Settings, db: Database) -> Callable[[str, bytes, str], str]:
    """Stores an artifact of the running job; returns its sha256."""

    def keep(name: str, content: bytes, media_type: str) -> str:
        sha256, size = ArtifactStore(settings.artifact_dir).put_bytes(content)
        jobs.add_artifact(db, lease, name, sha256, size, media_type)
        return sha256

    return keep


def test_rounds(client: TestClient, lease: Lease, db: Database) -> None:
    jobs.add_round(db, lease, "grown", 1, {"widths_after": [4, 6, 9]}, step=10)
    (taken,) = client.get(f"/v1/jobs/{lease.job.id}/rounds").json()["rounds"]
    assert (taken["run"], taken["number"], taken["step"]) == ("grown", 1, 10)
    assert taken["payload"]["widths_after"] == [4, 6, 9]


def test_metrics_are_thinned_and_keep_extremes(client: TestClient, lease: Lease, db: Database) -> None:
    points = [Metric("grown", "loss", step, 99.0 if step == 617 else step / 1000) for step in range(1000)]
    jobs.record(db, lease, None, points)
    url = f"/v1/jobs/{lease.job.id}/metrics"
    assert len(client.get(f"{url}?max_points=10000").json()["metrics"]["grown"]["loss"]) == 1000
    few = client.get(f"{url}?max_points=20").json()["metrics"]["grown"]["loss"]
    assert len(few) <= 20
    assert [617, 99.0] in few
    assert client.get(f"{url}?max_points=1").status_code == 422


def test_metrics_of_some_runs(client: TestClient, lease: Lease, db: Database) -> None:
    jobs.record(db, lease, None, [Metric(run, "loss", step, 0.5) for run in ("grown", "uniform", "grown.1") for step in range(5)])
    url = f"/v1/jobs/{lease.job.id}/metrics"
    assert set(client.get(url).json()["metrics"]) == {"grown", "uniform", "grown.1"}
    found = client.get(f"{url}?run=grown&run=grown.1&run=none").json()["metrics"]
    assert {run: len(curves["loss"]) for run, curves in found.items()} == {"grown": 5, "grown.1": 5}


def test_log_by_byte_offset(client: TestClient, lease: Lease, settings: Settings) -> None:
    url = f"/v1/jobs/{lease.job.id}/log"
    empty = client.get(url)
    assert (empty.status_code, empty.text, empty.headers["wattle-log-size"]) == (200, "", "0")
    path = settings.data_dir / "logs" / f"{lease.job.id}.log"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"first line\nsecond line\n")
    assert client.get(url).text == "first line\nsecond line\n"
    part = client.get(url, params={"offset": 6, "limit": 4})
    assert (part.text, part.headers["wattle-log-offset"], part.headers["wattle-log-next"]) == ("line", "6", "10")
    assert client.get(url, params={"offset": -5}).text == "line\n"
    assert client.get(url, params={"offset": -500}).text == "first line\nsecond line\n"
    past = client.get(url, params={"offset": 500})
    assert (past.text, past.headers["wattle-log-next"]) == ("", "23")
    assert past.headers["content-type"] == "text/plain; charset=utf-8"


def test_report_once_there_is_one(client: TestClient, lease: Lease, keep: Callable[[str, bytes, str], str]) -> None:
    url = f"/v1/jobs/{lease.job.id}/report"
    early = client.get(url)
    assert early.status_code == 404
    assert early.headers["content-type"] == "application/problem+json"
    assert "this growth job is running" in early.json()["detail"]
    keep("report.json", json.dumps({"verdict": {"sentence": "it paid"}}).encode(), "application/json")
    assert client.get(url).json()["verdict"]["sentence"] == "it paid"


def test_artifacts_are_listed_and_downloaded(client: TestClient, lease: Lease, keep: Callable[[str, bytes, str], str]) -> None:
    sha256 = keep("network.safetensors", CONTENT, "application/octet-stream")
    (listed,) = client.get(f"/v1/jobs/{lease.job.id}/artifacts").json()["artifacts"]
    assert (listed["name"], listed["sha256"], listed["size"]) == ("network.safetensors", sha256, len(CONTENT))
    url = f"/v1/jobs/{lease.job.id}/artifacts/network.safetensors"
    response = client.get(url)
    assert hashlib.sha256(response.content).hexdigest() == sha256
    assert response.headers["etag"] == f'"{sha256}"'
    assert response.headers["content-disposition"] == 'attachment; filename="network.safetensors"'
    assert response.headers["x-content-type-options"] == "nosniff"
    assert client.get(url, headers={"If-None-Match": f'"{sha256}"'}).status_code == 304


def test_download_is_taken_up_by_range(client: TestClient, lease: Lease, keep: Callable[[str, bytes, str], str]) -> None:
    sha256 = keep("a.bin", CONTENT, "application/octet-stream")
    url = f"/v1/jobs/{lease.job.id}/artifacts/a.bin"
    rest = client.get(url, headers={"Range": "bytes=1000-", "If-Range": f'"{sha256}"'})
    assert (rest.status_code, rest.content) == (206, CONTENT[1000:])
    assert rest.headers["content-range"] == f"bytes 1000-{len(CONTENT) - 1}/{len(CONTENT)}"
    assert client.get(url, headers={"Range": "bytes=999999-"}).status_code == 416
    other = client.get(url, headers={"Range": "bytes=1000-", "If-Range": '"changed"'})
    assert (other.status_code, len(other.content)) == (200, len(CONTENT))


def test_page_like_artifact_is_not_shown_as_a_page(client: TestClient, lease: Lease, keep: Callable[[str, bytes, str], str]) -> None:
    keep("x.html", b"<script>alert(1)</script>", "text/html")
    headers = client.get(f"/v1/jobs/{lease.job.id}/artifacts/x.html").headers
    assert headers["content-disposition"].startswith("attachment")
    assert "script-src 'self'" in headers["content-security-policy"]


@pytest.mark.parametrize("name", ["%2E%2E", "..%2F..%2Fwattle.sqlite", "nope", "a%00b", ".hidden"])
def test_artifact_names_lead_nowhere_else(name: str, client: TestClient, lease: Lease) -> None:
    response = client.get(f"/v1/jobs/{lease.job.id}/artifacts/{name}")
    assert response.status_code in (404, 422)
    assert response.headers["content-type"] == "application/problem+json"


def test_artifact_whose_file_is_gone(client: TestClient, lease: Lease, keep: Callable[[str, bytes, str], str], settings: Settings) -> None:
    sha256 = keep("a.bin", CONTENT, "application/octet-stream")
    ArtifactStore(settings.artifact_dir).path(sha256).unlink()
    response = client.get(f"/v1/jobs/{lease.job.id}/artifacts/a.bin")
    assert response.status_code == 404
    assert sha256 in response.json()["detail"]
