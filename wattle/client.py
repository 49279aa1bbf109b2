"""The Python client: one method per thing the service does, over the same REST API that every user has.

A method returns the JSON document of the server as plain dicts and lists.  It raises ``ProblemError`` with the problem document
(RFC 9457) when the server refuses, and ``NoServerError`` when nothing answers.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
import yaml

Document = dict[str, Any]

DEFAULT_URL = "http://127.0.0.1:8765"
TERMINAL = ("succeeded", "failed", "cancelled")

DOWNLOAD_SECONDS = 600.0  # that a table of a million entries takes before its first byte comes: a minute


class ProblemError(Exception):
    """The server refused.  ``document`` is its problem document: title, status, detail, errors with field, value, limit, remedy."""

    def __init__(self, document: Document) -> None:
        super().__init__(str(document.get("detail") or document.get("title") or "the server refused"))
        self.document = document

    @property
    def status(self) -> int:
        return int(self.document.get("status", 500))


class NoServerError(ProblemError):
    """Nothing answers at the address."""

    def __init__(self, url: str, reason: str) -> None:
        remedy = "start one with `wattle up`, or set WATTLE_URL to the address of a running one"
        detail = f"no Wattle server answers at {url} ({reason}); {remedy}"
        super().__init__({"type": "urn:wattle:no-server", "title": "No server", "status": 503, "detail": detail, "remedy": remedy})


class DamagedDownloadError(ProblemError):
    """An artifact did not arrive as the server registered it."""

    def __init__(self, name: str, expected: str, found: str) -> None:
        detail = f"artifact {name} has sha256 {found}, the server registered {expected}; nothing was kept: download it again"
        super().__init__({"type": "urn:wattle:damaged-download", "title": "Damaged download", "status": 502, "detail": detail})


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a job: ``type`` is state, progress, round or artifact; ``seq`` grows by time."""

    seq: str
    type: str
    payload: Document


class Client:
    """A connection to one server.  Address: argument, else WATTLE_URL, else http://127.0.0.1:8765."""

    def __init__(self, url: str | None = None, *, timeout_seconds: float = 30.0, transport: httpx.BaseTransport | None = None) -> None:
        self.url = (url or os.environ.get("WATTLE_URL") or DEFAULT_URL).rstrip("/")
        self._http = httpx.Client(base_url=self.url, timeout=timeout_seconds, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # jobs

    def submit(self, spec: Mapping[str, Any] | str | Path, *, dry_run: bool = False, idempotency_key: str | None = None) -> Document:
        """Submits a growth job and returns it; with ``dry_run`` returns what the server would say and creates nothing.

        ``spec`` is a dict or the path of a YAML or JSON file.  The same ``idempotency_key`` with the same spec gives the same job.
        """
        document = dict(spec) if isinstance(spec, Mapping) else load_spec(spec)
        return self._create("/v1/jobs", document, dry_run, idempotency_key)

    def profile(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Document:
        """Submits a profiling job (see ``store.spec.ProfileSpec``) and returns it."""
        return self._create("/v1/profiles", dict(spec), False, idempotency_key)

    def job(self, job_id: str) -> Document:
        return self._get(f"/v1/jobs/{quote(job_id, safe='')}")

    def jobs(self, *, state: str | None = None, kind: str | None = None, limit: int = 50, cursor: str | None = None) -> Document:
        """Jobs, newest first: ``{"jobs": [...], "next": cursor or None}``."""
        return self._get("/v1/jobs", state=state, kind=kind, limit=limit, cursor=cursor)

    def cancel(self, job_id: str) -> Document:
        return self._send("POST", f"/v1/jobs/{quote(job_id, safe='')}/cancel")

    def rounds(self, job_id: str) -> Document:
        return self._get(f"/v1/jobs/{quote(job_id, safe='')}/rounds")

    def metrics(self, job_id: str, *, max_points: int = 500) -> Document:
        return self._get(f"/v1/jobs/{quote(job_id, safe='')}/metrics", max_points=max_points)

    def report(self, job_id: str) -> Document:
        return self._get(f"/v1/jobs/{quote(job_id, safe='')}/report")

    def artifacts(self, job_id: str) -> list[Document]:
        """The artifacts of a job: name, sha256, size in bytes, media type."""
        artifacts: list[Document] = self._get(f"/v1/jobs/{quote(job_id, safe='')}/artifacts")["artifacts"]
        return artifacts

    def download(self, job_id: str, folder: str | Path) -> list[Path]:
        """Downloads every artifact of a job into ``folder``, each checked against the sha256 the server registered."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        return [self._fetch(job_id, artifact, folder) for artifact in self.artifacts(job_id)]

    def events(self, job_id: str, *, after: str | None = None, patience_seconds: float = 120.0) -> Iterator[Event]:
        """The events of a job as they happen, until it ends.  A lost connection is taken up again after the last event seen;
        NoServerError if none can be had for ``patience_seconds``."""
        last, since, pause = after, time.monotonic(), 0.2
        while True:
            try:
                for event in self._stream(job_id, last):
                    last, since, pause = event.seq or last, time.monotonic(), 0.2
                    yield event
                    if event.type == "state" and event.payload.get("state") in TERMINAL:
                        return
                if self.job(job_id)["state"] in TERMINAL:
                    return
            except (httpx.TransportError, ProblemError) as error:
                if isinstance(error, ProblemError) and error.status < 500:
                    raise
                if time.monotonic() - since > patience_seconds:
                    raise NoServerError(self.url, f"no answer for {patience_seconds:g} s: {error}") from error
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    def wait(self, job_id: str, on_event: Callable[[Event], None] | None = None) -> Document:
        """Waits until a job has ended and returns it."""
        for event in self.events(job_id):
            if on_event is not None:
                on_event(event)
        return self.job(job_id)

    # devices and costs

    def devices(self) -> list[Document]:
        devices: list[Document] = self._get("/v1/devices")["devices"]
        return devices

    def device(self, name: str) -> Document:
        return self._get(f"/v1/devices/{quote(name, safe='')}")

    def cost(self, device: str, **shape: Any) -> Document:
        """The cost of one layer shape on a device; ``shape``: op, in_channels, out_channels, kernel, batch_size, threads, ..."""
        return self._get(f"/v1/devices/{quote(device, safe='')}/costs", **shape)

    def costs(self, device: str, shapes: Sequence[Mapping[str, Any]]) -> list[Document]:
        """The costs of many layer shapes, in order: ``{"entry": ..., "problem": ...}``, one of the two None."""
        body = {"queries": [dict(shape) for shape in shapes]}
        answers: list[Document] = self._send("POST", f"/v1/devices/{quote(device, safe='')}/costs:query", body=body)["answers"]
        return answers

    def table(self, device: str) -> Document:
        """The whole cost table of a device, as ``costs.table.CostTable.from_json`` reads it."""
        return self._get(f"/v1/devices/{quote(device, safe='')}/table")

    def save_table(self, device: str, path: str | Path, file_format: str = "json") -> None:
        """Writes the cost table of a device to a file: ``json``, which ``import_table`` takes, or ``csv``, the entries alone."""
        url, query = f"/v1/devices/{quote(device, safe='')}/table", {"format": file_format}
        with whole_or_none(Path(path)) as part:
            self._save(part, url, params=query, timeout=DOWNLOAD_SECONDS)

    def import_table(self, device: str, document: Mapping[str, Any], *, dry_run: bool = False) -> Document:
        """Adds a cost table, as ``table`` gives it, to that of a device, which becomes known by it if it was not.

        ProblemError if anything in it is wrong, or if the device's own table was measured on something else: nothing is kept then.
        """
        parameters = {"dry_run": "true"} if dry_run else None
        return self._send("POST", f"/v1/devices/{quote(device, safe='')}/table", body=dict(document), params=parameters)

    def network_cost(self, device: str, network: Mapping[str, Any]) -> Document:
        """The cost of a whole network on a device, per layer and in total."""
        return self._send("POST", f"/v1/devices/{quote(device, safe='')}/costs:network", body=dict(network))

    def ready(self) -> bool:
        """Whether the server answers and is ready for work."""
        try:
            self._get("/readyz")
        except ProblemError:
            return False
        return True

    # transport

    def _create(self, path: str, spec: Document, dry_run: bool, key: str | None) -> Document:
        headers = {} if dry_run else {"Idempotency-Key": key or str(uuid.uuid4())}
        return self._send("POST", path, body=spec, params={"dry_run": "true"} if dry_run else None, headers=headers)

    def _get(self, path: str, **params: Any) -> Document:
        return self._send("GET", path, params={name: value for name, value in params.items() if value is not None})

    def _send(
        self,
        method: str,
        path: str,
        *,
        body: Document | None = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Document:
        # NaN and dates travel as the server's JSON reader takes them, so that it can refuse them by field
        content = None if body is None else json.dumps(body, default=str)
        kind = {} if body is None else {"Content-Type": "application/json"}
        all_headers = {"Accept": "application/json", **kind, **(headers or {})}
        try:
            response = self._http.request(method, path, content=content, params=params, headers=all_headers)
        except httpx.TransportError as error:
            raise NoServerError(self.url, _reason(error)) from error
        document = _document(response, self.url)
        if response.is_error:
            raise ProblemError(document)
        return document

    def _stream(self, job_id: str, last: str | None) -> Iterator[Event]:
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
        with self._http.stream("GET", f"/v1/jobs/{quote(job_id, safe='')}/events", headers=headers) as response:
            if response.is_error:
                response.read()
                raise ProblemError(_document(response, self.url))
            yield from parse_events(response.iter_lines())

    def _fetch(self, job_id: str, artifact: Document, folder: Path) -> Path:
        name = str(artifact["name"])
        if name in ("", ".", "..") or Path(name).name != name:
            raise ProblemError({"title": "Bad artifact name", "status": 502, "detail": f"artifact name {name!r} is no plain file name"})
        with whole_or_none(folder / name) as part:
            sha256 = self._save(part, f"/v1/jobs/{quote(job_id, safe='')}/artifacts/{quote(name, safe='')}")
            if sha256 != artifact["sha256"]:
                raise DamagedDownloadError(name, artifact["sha256"], sha256)
        return folder / name

    def _save(self, path: Path, url: str, **options: Any) -> str:
        """Writes an answer to a file as it comes; its sha256."""
        digest = hashlib.sha256()
        try:
            with self._http.stream("GET", url, **options) as response, path.open("wb") as file:
                if response.is_error:
                    response.read()
                    raise ProblemError(_document(response, self.url))
                for chunk in response.iter_bytes():
                    digest.update(chunk)
                    file.write(chunk)
        except httpx.TransportError as error:
            raise NoServerError(self.url, _reason(error)) from error
        return digest.hexdigest()


@contextmanager
def whole_or_none(path: Path) -> Iterator[Path]:
    """A file to write beside ``path``, which takes its place if all goes well, and is gone otherwise."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load_spec(path: str | Path) -> Document:
    """A spec from a YAML or JSON file.  ProblemError when it can't be read or is no mapping."""
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise _bad_spec(path, f"{error.strerror}: give the path of a YAML or JSON file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _bad_spec(path, f"not readable as YAML: {error}") from error
    if not isinstance(document, dict):
        raise _bad_spec(path, f"holds a {type(document).__name__}; a job spec is a mapping with name, data, network and budget")
    return document


def parse_events(lines: Iterator[str] | Sequence[str]) -> Iterator[Event]:
    """Server-sent events: ``id``, ``event`` and ``data`` lines closed by an empty line; comments (``:``) are keep-alives."""
    fields: dict[str, str] = {}
    for line in lines:
        if line == "":
            if "data" in fields:
                yield Event(fields.get("id", ""), fields.get("event", "message"), json.loads(fields["data"]))
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            fields[name] = f"{fields[name]}\n{value}" if name == "data" and "data" in fields else value


def _document(response: httpx.Response, url: str) -> Document:
    try:
        document = response.json()
    except ValueError:
        document = None
    if isinstance(document, dict):
        return {"status": response.status_code, **document} if response.is_error else document
    detail = f"{url} answered {response.status_code} with something that is no JSON document; is it a Wattle server? Check WATTLE_URL"
    raise ProblemError({"title": "Not a Wattle server", "status": response.status_code if response.is_error else 502, "detail": detail})


def _bad_spec(path: str | Path, message: str) -> ProblemError:
    return ProblemError({"type": "urn:wattle:bad-spec", "title": "Spec not readable", "status": 422, "detail": f"{path}: {message}"})


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
