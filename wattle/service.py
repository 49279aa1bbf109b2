"""The embedded service as the commands use it: ready when it is handed over, its failures told as problem documents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from store.settings import Settings
from wattle.client import ProblemError
from wattle.up import Service, ServiceError, up


@contextmanager
def running(settings: Settings, workers: int = 1) -> Iterator[Service]:
    """The service, ready for work; stopped with all its processes when the block is left.  ProblemError if it can't start."""
    try:
        with up(settings, workers) as service:
            service.wait_ready()
            yield service
    except ServiceError as error:
        problem = {"type": "urn:wattle:not-started", "title": "Service not started", "status": 503, "detail": str(error)}
        raise ProblemError(problem) from error
