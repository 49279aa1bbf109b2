"""A worker's pulse: as long as it listens to the broker, its device is alive in the store."""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery, bootsteps

from store import devices
from store.database import Database, DatabaseUnavailable
from store.settings import Settings

logger = logging.getLogger(__name__)


def register_pulse(app: Celery, settings: Settings) -> None:
    """Let the workers of ``app`` say, again and again, that the device of ``settings`` is alive; until they leave or lose the broker."""

    class Pulse(bootsteps.StartStopStep):  # type: ignore[misc]  # celery has no types
        """In the worker's main loop, which goes on while a job runs in the pool."""

        requires = ("celery.worker.consumer.tasks:Tasks",)  # only from then on is it listening
        beats: Any = None

        def start(self, consumer: Any) -> None:
            _beat(settings, settings.lease_seconds)
            self.beats = consumer.timer.call_repeatedly(settings.heartbeat_seconds, _beat, (settings, settings.lease_seconds))

        def stop(self, consumer: Any) -> None:  # noqa: ARG002 - celery's signature
            if self.beats is not None:
                self.beats.cancel()
                self.beats = None
                _beat(settings, 0)

    app.steps["consumer"].add(Pulse)


def _beat(settings: Settings, seconds: float) -> None:
    """One connection for one beat: none may be open when the pool forks."""
    db = Database(settings.database)
    try:
        devices.keep_alive(db, settings.device, seconds)
    except DatabaseUnavailable as error:
        logger.warning("the store can't be told that %s is alive: %s", settings.device, error)
    finally:
        db.close()
