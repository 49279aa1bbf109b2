"""What the store hands out and what it refuses: frozen views of rows, and its errors.  No row object leaves the store."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

JobKind = Literal["growth", "profile"]
JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
TerminalState = Literal["succeeded", "failed", "cancelled"]
Desire = Literal["run", "cancel"]
Cause = Literal["invalid_data", "out_of_memory", "not_a_number", "disk_full", "lost_worker", "device_error", "internal"]
EventType = Literal["state", "progress", "round", "artifact"]


class UnknownJob(LookupError):  # noqa: N818 - named for what it says
    """There is no job of this id."""


class MeasuredElsewhere(ValueError):  # noqa: N818
    """A device has a cost table already, and another one, to be added, was measured on something else."""

    def __init__(self, name: str, changes: str) -> None:
        remedy = "give the imported table a device name of its own"
        super().__init__(f"{name} has a table that was measured on another machine or state ({changes}); {remedy}")
        self.name, self.changes, self.remedy = name, changes, remedy


class UnknownDevice(LookupError):  # noqa: N818
    """No device of this name was ever registered."""


class JobIsTerminal(RuntimeError):  # noqa: N818
    """The job is over; its state can't change any more.  ``job`` is how it ended."""

    def __init__(self, job: Job) -> None:
        super().__init__(f"job {job.id} is {job.state}; only a queued or running job can be cancelled; submit it again to run it again")
        self.job = job


class IdempotencyConflict(RuntimeError):  # noqa: N818
    """The idempotency key was used before, for something else.  ``job`` is what it made then."""

    def __init__(self, key: str, job: Job) -> None:
        super().__init__(f"idempotency key {key!r} made job {job.id} from another spec; one key stands for one submission: use a new key")
        self.key, self.job = key, job


class LeaseLost(RuntimeError):  # noqa: N818
    """Another attempt may own the job by now.  Stop at once: nothing was written, and nothing will be."""

    def __init__(self, job_id: str, attempt: int) -> None:
        super().__init__(f"the lease on job {job_id} (attempt {attempt}) is lost; stop work on it")


@dataclass(frozen=True, slots=True)
class Submission:
    """A job to be made.  ``spec`` becomes plain JSON; ValueError for what JSON lacks, such as NaN."""

    kind: JobKind
    name: str
    spec: dict[str, Any]
    queue: str
    max_attempts: int
    idempotency_key: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", json.loads(json.dumps(self.spec, allow_nan=False)))


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stands.  ``state`` is observed, ``desired`` is asked for; ``worker`` is set while it runs."""

    id: str
    kind: JobKind
    name: str
    spec: dict[str, Any]
    queue: str
    state: JobState
    desired: Desire
    attempt: int
    max_attempts: int
    progress: dict[str, Any]
    cause: Cause | None
    message: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    worker: str | None
    heartbeat_at: datetime | None


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on a job.  Every write carries its token and is refused once another attempt was given the job."""

    job: Job
    token: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a job; ``cause`` says why it ended without a result, None while it runs or if it ended well."""

    number: int
    worker: str
    started_at: datetime
    finished_at: datetime | None
    cause: Cause | None
    message: str | None


@dataclass(frozen=True, slots=True)
class Metric:
    """One point of the curve ``name`` of the run ``run``.  The value is finite: a loss that is not a number ends a job instead."""

    run: str
    name: str
    step: int
    value: float


@dataclass(frozen=True, slots=True)
class Round:
    """One growth round; ``payload`` is what the worker reported."""

    run: str
    number: int
    step: int
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A registered checkpoint."""

    run: str
    step: int
    attempt: int
    sha256: str
    size_bytes: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Artifact:
    """A named result."""

    name: str
    sha256: str
    size_bytes: int
    media_type: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a job; ``seq`` grows in the order in which watchers can see it."""

    seq: int
    job_id: str
    type: EventType
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ring:
    """A message the broker is owed."""

    id: int
    job_id: str
    queue: str


@dataclass(frozen=True, slots=True)
class Device:
    """A device, and how much its cost table holds.  ``fingerprint`` is what it is now, ``measured_fingerprint`` what it was when its table
    was measured: where they differ, the table's numbers are those of another machine.  ``alive``: a worker listens for its profile jobs."""

    name: str
    fingerprint: dict[str, Any]
    table_version: int
    entries: int
    calibrations: int
    registered_at: datetime
    measured_at: datetime | None
    measured_fingerprint: dict[str, Any] | None
    alive: bool = False

    @property
    def threads(self) -> int:
        """CPU threads of an inference there, where nobody says otherwise."""
        return int(self.fingerprint.get("threads", 1))

    @property
    def waits_for(self) -> str | None:
        """Why a profile of it would not start now; None where a worker listens for it."""
        if self.alive:
            return None
        return f"no worker of {self.name} is there; a profile waits until one is: wattle worker --device {self.name}"

    @property
    def expired(self) -> str | None:
        """What has changed since the table was measured, so that its numbers may no longer hold; None where nothing has."""
        was, now = self.measured_fingerprint, self.fingerprint
        if was is None or was == now:
            return None
        changed, remedy = differences(was, now), "run wattle profile again"
        return f"{self.name} has changed since it was measured ({changed}): its prices may no longer hold; {remedy}"


def differences(was: dict[str, Any], now: dict[str, Any]) -> str:
    """In what two fingerprints differ."""
    keys = (key for key in sorted(was.keys() | now.keys()) if was.get(key) != now.get(key))
    return ", ".join(f"{key} was {was.get(key)!r}, is {now.get(key)!r}" for key in keys)
