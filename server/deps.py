"""What a route may ask for: the database, the settings, the cost tables, the job its path names."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Path, Request

from costs.table import CostTable
from server.problems import Refusal, not_found
from server.submissions import Submissions
from store import devices, jobs
from store.artifacts import ArtifactStore
from store.database import Database
from store.jobs import Job
from store.queue import Broker
from store.relay import Keeper
from store.settings import Settings
from store.views import Device, UnknownDevice

ID_PATTERN = r"^[0-9A-Za-z_-]{1,32}$"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


@dataclass(slots=True)
class Tables:
    """Devices with their cost tables, opened again when their version in the store has grown."""

    recent_seconds: float = 0.05
    _known: dict[str, tuple[float, Device, CostTable]] = field(default_factory=dict)

    def load(self, db: Database, name: str) -> CostTable:
        return self.opened(db, name)[1]

    def opened(self, db: Database, name: str) -> tuple[Device, CostTable]:
        """The device as it was when its table was opened, and the table.  UnknownDevice if it was never registered."""
        known, now = self._known.get(name), time.monotonic()
        # Until something is measured the version stays 0, whatever becomes of the device.
        if known is None or known[1].table_version == 0 or devices.table_version(db, name) != known[1].table_version:
            known = (now, *devices.open_table(db, name))
        self._known[name] = (now, *known[1:])
        return known[1:]

    def recent(self, db: Database, name: str) -> tuple[Device, CostTable]:
        """The same, as it was up to ``recent_seconds`` ago: asking for the version takes as long as answering for a layer."""
        known = self._known.get(name)
        return known[1:] if known and time.monotonic() - known[0] < self.recent_seconds else self.opened(db, name)


@dataclass(slots=True)
class Streams:
    """Event streams: how many are open, and whether all are to end because the server stops."""

    open: int = 0
    ending: bool = False


@dataclass(frozen=True, slots=True)
class Service:
    """All that lives as long as the application."""

    settings: Settings
    db: Database
    artifacts: ArtifactStore
    broker: Broker
    keeper: Keeper
    submissions: Submissions
    tables: Tables = field(default_factory=Tables)
    streams: Streams = field(default_factory=Streams)


async def service(request: Request) -> Service:
    found: Service = request.app.state.service
    return found


TheService = Annotated[Service, Depends(service)]


def existing_job(service: TheService, job_id: Annotated[str, Path(pattern=ID_PATTERN, description="id of the job")]) -> Job:
    """The job of the path; 404 if there is none."""
    try:
        return jobs.get(service.db, job_id)
    except jobs.UnknownJob as error:
        raise not_found("job", job_id, "GET /v1/jobs (wattle jobs) lists all jobs") from error


DeviceName = Annotated[str, Path(pattern=NAME_PATTERN, max_length=80, description="name of the device")]


def existing_device(service: TheService, name: DeviceName) -> Device:
    """The device of the path; 404 if no worker has registered it."""
    try:
        return devices.device(service.db, name)
    except UnknownDevice as error:
        raise _no_device(name) from error


@dataclass(frozen=True, slots=True)
class KnownTable:
    """A device with its cost table, and the entity tag of whatever is answered from it alone."""

    origin: Device
    table: CostTable

    @property
    def device(self) -> str:
        return self.origin.name

    @property
    def etag(self) -> str:
        made = round(1e6 * self.origin.registered_at.timestamp())  # another store's device of the same name has other numbers
        return f'"{self.device}/{made}/{self.origin.table_version}"'

    def unchanged(self, if_none_match: str | None) -> bool:
        """Whether the client has the answer already."""
        return if_none_match is not None and self.etag in if_none_match

    @property
    def headers(self) -> dict[str, str]:
        """For a client to keep the answer, and to ask each time whether it still holds."""
        return {"ETag": self.etag, "Cache-Control": "no-cache"}


def existing_table(service: TheService, name: DeviceName) -> KnownTable:
    """The cost table of the path's device; 404 if no worker has registered it."""
    return _table(service.tables.opened, service.db, name)


def recent_table(service: Service, name: str) -> KnownTable:
    """The same as it was a moment ago."""
    return _table(service.tables.recent, service.db, name)


def _table(find: Callable[[Database, str], tuple[Device, CostTable]], db: Database, name: str) -> KnownTable:
    try:
        return KnownTable(*find(db, name))
    except UnknownDevice as error:
        raise _no_device(name) from error


def _no_device(name: str) -> Refusal:
    return not_found("device", name, f"start a worker on it: wattle worker --device {name}")


TheTable = Annotated[KnownTable, Depends(existing_table)]
TheJob = Annotated[Job, Depends(existing_job)]
TheDevice = Annotated[Device, Depends(existing_device)]
