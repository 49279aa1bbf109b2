"""Server-sent events: nothing lost, nothing twice, taken up after Last-Event-ID, and an end."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from server import events
from store import jobs
from store.database import Database
from wattle.client import parse_events


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "POLL_SECONDS", 0.01)


@pytest.fixture
def finished(submit: Callable[..., str], db: Database) -> str:
    """A job that has run to its end: queued, running, progress, a round, succeeded."""
    job_id = submit()
    lease = jobs.claim(db, job_id, "w", 30)
    assert lease is not None
    jobs.record(db, lease, {"step": 1})
    jobs.record(db, lease, {"step": 2})
    jobs.add_round(db, lease, "grown", 1, {}, step=2)
    jobs.finish(db, lease, "succeeded")
    return job_id


def read(client: TestClient, path: str, **headers: str) -> list[tuple[int, str, dict[str, Any]]]:
    response = client.get(path, headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return [(int(event.seq), event.type, event.payload) for event in parse_events(response.text.splitlines())]


def test_history_of_a_finished_job(client: TestClient, finished: str) -> None:
    seen = read(client, f"/v1/jobs/{finished}/events")
    assert [(kind, payload.get("state") or payload.get("step")) for _, kind, payload in seen] == [
        ("state", "queued"), ("state", "running"), ("progress", 2), ("round", 2), ("state", "succeeded"),
    ]  # fmt: skip
    assert [seq for seq, _, _ in seen] == sorted({seq for seq, _, _ in seen})


def test_taken_up_after_any_event(client: TestClient, finished: str) -> None:
    url = f"/v1/jobs/{finished}/events"
    whole = read(client, url)
    for number, (seq, _, _) in enumerate(whole[:-1], start=1):
        assert read(client, url, **{"Last-Event-ID": str(seq)}) == whole[number:]
        assert read(client, f"{url}?after={seq}") == whole[number:]
        # a browser that connects again sends both: the header is the newer one
        assert read(client, f"{url}?after=0", **{"Last-Event-ID": str(seq)}) == whole[number:]


def test_nothing_more_tells_a_browser_to_stay_away(client: TestClient, finished: str) -> None:
    url = f"/v1/jobs/{finished}/events"
    last = read(client, url)[-1][0]
    assert client.get(url, headers={"Last-Event-ID": str(last)}).status_code == 204


def test_follows_until_the_end(client: TestClient, submit: Callable[..., str], db: Database) -> None:
    job_id, other = submit(), submit()
    threading.Timer(0.2, lambda: (jobs.cancel(db, other), jobs.cancel(db, job_id))).start()
    seen = read(client, f"/v1/jobs/{job_id}/events")
    assert [payload["state"] for _, _, payload in seen] == ["queued", "cancelled"]


def test_history_longer_than_a_batch(client: TestClient, finished: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read(client, f"/v1/jobs/{finished}/events")
    for size in (1, 2, len(whole)):
        monkeypatch.setattr(events, "BATCH", size)
        assert read(client, f"/v1/jobs/{finished}/events") == whole


@pytest.mark.parametrize("value", ["x", "-1", "1e3", str(2**63)])
def test_wrong_last_event_id(value: str, client: TestClient, finished: str) -> None:
    for response in (
        client.get(f"/v1/jobs/{finished}/events", headers={"Last-Event-ID": value}),
        client.get("/v1/events", headers={"Last-Event-ID": value}),
    ):
        assert response.status_code == 422
        assert json.loads(response.text)["errors"][0]["field"] == "header.last-event-id"


def test_no_more_streams_than_a_server_holds(client: TestClient, finished: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_STREAMS", 0)
    response = client.get(f"/v1/jobs/{finished}/events")
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    monkeypatch.setattr(events, "MAX_STREAMS", 1)
    for _ in range(3):  # a stream that has ended no longer counts
        assert client.get(f"/v1/jobs/{finished}/events").status_code == 200
