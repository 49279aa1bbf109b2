"""What one attempt has at hand, and how it speaks to the store: progress, curves, rounds, artifacts, all fenced by its lease."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from store import jobs
from store.artifacts import ArtifactStore
from store.database import Database, DatabaseUnavailable
from store.jobs import Lease, Metric
from store.settings import Settings

logger = logging.getLogger(__name__)

TELL_EVERY_SECONDS = 1.0


class Stopped(Exception):  # noqa: N818 - named for what happened
    """The attempt was told to stop, and what must be kept is kept."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a job.  ``asked_to_stop`` turns true when the supervisor wants the process to end soon."""

    db: Database
    settings: Settings
    lease: Lease
    device: str
    asked_to_stop: Callable[[], bool] = lambda: False

    @property
    def job_id(self) -> str:
        return self.lease.job.id

    @property
    def artifacts(self) -> ArtifactStore:
        return ArtifactStore(self.settings.artifact_dir)

    def stop_if_asked(self) -> None:
        if self.asked_to_stop():
            raise Stopped

    def publish(self, name: str, content: bytes, media_type: str) -> None:
        """Keep a result under a name."""
        sha256, size = self.artifacts.put_bytes(content)
        jobs.add_artifact(self.db, self.lease, name, sha256, size, media_type)


def _nobody(_progress: Mapping[str, Any]) -> None:
    """Does not listen."""


@dataclass(slots=True)
class Reporter:
    """Sends progress and curves to the store in batches, at most one a second: training must not wait for the database.

    A database that does not answer is bridged for as long as the lease may last; the points wait here.  The listener hears all progress.
    """

    attempt: Attempt
    progress: dict[str, Any] = field(default_factory=dict)
    listener: Callable[[Mapping[str, Any]], None] = _nobody
    _points: list[Metric] = field(default_factory=list)
    _told: float = -math.inf
    _answered: float = field(default_factory=time.monotonic)

    def point(self, run: str, step: int, **values: float) -> None:
        """Points of the run's curves.  What is not finite is left out: the store keeps numbers only."""
        self._points += [Metric(run, name, step, value) for name, value in values.items() if math.isfinite(value)]

    def tell(self, changes: Mapping[str, Any], at_once: bool = False) -> None:
        """Update the progress; send it with all waiting points if a second has passed, or at once."""
        self.progress.update(changes)
        self.listener(self.progress)
        if at_once or time.monotonic() - self._told >= TELL_EVERY_SECONDS:
            self._send()

    def flush(self) -> None:
        """Send everything now.  DatabaseUnavailable if that can't be done."""
        jobs.record(self.attempt.db, self.attempt.lease, dict(self.progress), self._points)
        self._points, self._told = [], time.monotonic()
        self._answered = self._told

    def _send(self) -> None:
        try:
            self.flush()
        except DatabaseUnavailable as error:
            if time.monotonic() - self._answered > self.attempt.settings.lease_seconds:
                raise
            logger.warning("progress can't be written: %s", error)
            self._told = time.monotonic()
