"""The client against a scripted server: errors, event streams that break, downloads that are damaged."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from wattle import Client
from wattle.client import DamagedDownloadError, Event, NoServerError, ProblemError, parse_events

Handler = Callable[[httpx.Request], httpx.Response]


def client(handler: Handler) -> Client:
    return Client("http://test", transport=httpx.MockTransport(handler))


def test_import_needs_no_torch() -> None:
    code = "import sys; from wattle import Client; import wattle.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_submit_sends_file_with_key(tmp_path: Path) -> None:
    spec = tmp_path / "job.yaml"
    spec.write_text("name: a\nbudget: {limit: .nan}\n")
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(202, json={"id": "j1", "state": "queued"})

    assert client(handler).submit(spec)["id"] == "j1"
    client(handler).submit({"name": "a"}, idempotency_key="mine")
    client(handler).submit({"name": "a"}, dry_run=True)
    assert b"NaN" in seen[0].content  # the server refuses it by field
    assert len(seen[0].headers["Idempotency-Key"]) > 20
    assert seen[1].headers["Idempotency-Key"] == "mine"
    assert seen[2].url.params["dry_run"] == "true"
    assert "Idempotency-Key" not in seen[2].headers


@pytest.mark.parametrize("text", ["[1, 2]", "name: [", None])
def test_unreadable_spec_is_a_problem(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "job.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ProblemError) as caught:
        client(lambda _: httpx.Response(500)).submit(path)
    assert str(path) in str(caught.value)
    assert caught.value.status == 422


def test_problem_document_is_carried() -> None:
    problem = {"title": "Spec refused", "status": 422, "detail": "one problem", "errors": [{"field": "budget.limit", "value": -1}]}
    with pytest.raises(ProblemError) as caught:
        client(lambda _: httpx.Response(422, json=problem)).job("x")
    assert caught.value.document == problem


def test_no_server_names_the_remedy() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(NoServerError, match="wattle up"):
        client(refuse).jobs()


def test_something_else_that_answers() -> None:
    with pytest.raises(ProblemError, match="Wattle server"):
        client(lambda _: httpx.Response(200, text="<html>hello</html>")).jobs()


def test_ids_can_not_leave_their_path() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.raw_path == b"/v1/jobs/..%2Fdevices"
        return httpx.Response(404, json={"title": "No such job", "status": 404})

    with pytest.raises(ProblemError):
        client(handler).job("../devices")


def test_events_are_parsed() -> None:
    lines = [": ping", "", "id: 7", "event: progress", 'data: {"step": 1,', 'data: "loss": 0.5}', "", "event: cut off"]
    assert list(parse_events(lines)) == [Event("7", "progress", {"step": 1, "loss": 0.5})]


def test_events_are_taken_up_again_after_the_last_one_seen() -> None:
    """The stream breaks, the server is away for a moment, then goes on: no event lost or seen twice."""
    script: Iterator[object] = iter(
        [
            [(1, "state", {"state": "running"}), (2, "progress", {"step": 5})],
            httpx.ConnectError("restarting"),
            httpx.Response(503, json={"title": "not ready", "status": 503}),
            [(3, "progress", {"step": 6}), (4, "state", {"state": "succeeded"})],
        ]
    )
    asked: list[str | None] = []

    def handler(request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/events"):
            return httpx.Response(200, json={"id": "j", "state": "running"})
        asked.append(request.headers.get("Last-Event-ID"))
        turn = next(script)
        if isinstance(turn, Exception):
            raise turn
        if isinstance(turn, httpx.Response):
            return turn
        assert isinstance(turn, list)
        text = "".join(f"id: {seq}\nevent: {kind}\ndata: {json.dumps(payload)}\n\n" for seq, kind, payload in turn)
        return httpx.Response(200, text=text, headers={"Content-Type": "text/event-stream"})

    assert [event.seq for event in client(handler).events("j")] == ["1", "2", "3", "4"]
    assert asked == [None, "2", "2", "2"]


def test_events_end_when_the_job_had_ended_before() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            return httpx.Response(200, text="")
        return httpx.Response(200, json={"id": "j", "state": "failed"})

    assert list(client(handler).events("j")) == []
    assert client(handler).wait("j")["state"] == "failed"


def test_events_give_up_without_a_server() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(NoServerError, match="no answer for 0 s"):
        list(client(refuse).events("j", patience_seconds=0))


def test_events_of_an_unknown_job_are_refused_at_once() -> None:
    with pytest.raises(ProblemError) as caught:
        list(client(lambda _: httpx.Response(404, json={"title": "No such job", "status": 404})).events("j"))
    assert caught.value.status == 404


def artifact_server(name: str, sha256: str, content: bytes) -> Handler:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/artifacts"):
            return httpx.Response(200, json={"artifacts": [{"name": name, "sha256": sha256, "size": len(content)}]})
        return httpx.Response(200, content=content)

    return handler


def test_download_is_verified(tmp_path: Path) -> None:
    content = b"weights"
    good = hashlib.sha256(content).hexdigest()
    (path,) = client(artifact_server("network.safetensors", good, content)).download("j", tmp_path / "new")
    assert path.read_bytes() == content
    with pytest.raises(DamagedDownloadError, match="nothing was kept"):
        client(artifact_server("other.json", good, b"damaged")).download("j", tmp_path)
    assert not (tmp_path / "other.json").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "..", ""])
def test_download_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProblemError, match="no plain file name"):
        client(artifact_server(name, "0" * 64, b"x")).download("j", tmp_path)
