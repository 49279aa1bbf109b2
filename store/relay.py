"""The keeper: sends owed messages to the broker, takes jobs from silent workers, rings again for messages that a broker lost.

Any number of keepers may run on one database.  None is needed for a job to be accepted, so the API never waits for the broker.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from store import jobs
from store.database import Database
from store.queue import TASK, Broker, declared
from store.settings import Settings

log = logging.getLogger(__name__)

BROKER_TIMEOUT_SECONDS = 5
MESSAGES_PER_PASS = 25  # paces the relay: more jobs a second than workers start, and a burst of submissions is not slowed by its messages


def relay_once(db: Database, app: Broker) -> int:
    """Send the oldest messages owed, up to ``MESSAGES_PER_PASS``; returns how many.

    Raises what the broker raises; what was sent until then is marked as sent.
    """
    rings = jobs.unrung(db, MESSAGES_PER_PASS)
    if not rings:
        return 0
    sent: list[int] = []
    try:
        with _connected(app) as connection, app.amqp.Producer(connection) as producer:
            for ring in rings:
                app.send_task(TASK, args=[ring.job_id], queue=declared(ring.queue), producer=producer, retry=False)
                sent.append(ring.id)
    finally:
        if sent:
            jobs.mark_rung(db, sent)
    return len(sent)


def ring_lost(db: Database, app: Broker, older_than_seconds: float) -> list[str]:
    """Ring again for queued jobs in queues that hold fewer messages than jobs wait for: those messages are lost.

    A queue that holds enough of them is left alone, however long its jobs have waited; so messages don't pile up behind a long job.
    """
    waiting = jobs.queued_per_queue(db)
    if not waiting:
        return []
    with _connected(app) as connection:
        short = [queue for queue, count in waiting.items() if _depth(connection, queue) < count]
    return jobs.ring_again(db, older_than_seconds, short) if short else []


@contextmanager
def _connected(app: Broker) -> Iterator[Any]:
    """A connection of its own each time: there is no stale one to recover from, and messages are rare."""
    with app.connection_for_write(transport_options={"socket_timeout": BROKER_TIMEOUT_SECONDS}) as connection:
        connection.connect()  # fails in two seconds, where the first use would try again for six
        yield connection


def _depth(connection: Any, queue: str) -> int:
    # Not a passive declaration: kombu 5.7 looks for the queue without the key prefix then, and never finds it.
    with connection.channel() as channel:
        return int(declared(queue).bind(channel).queue_declare().message_count)


class Keeper(threading.Thread):
    """Does the three chores at their periods until it is stopped.  No error ends it; an outage is logged once, and its end."""

    def __init__(self, db: Database, app: Broker, settings: Settings) -> None:
        super().__init__(name="wattle-keeper", daemon=True)
        self._stopping = threading.Event()
        # The look for lost messages comes often, so that a new outage of one job's message is not found late.
        self._chores = [
            _Chore("send messages to the broker", settings.relay_seconds, lambda: relay_once(db, app)),
            _Chore("take jobs from silent workers", settings.reap_seconds, lambda: jobs.reap(db)),
            _Chore("look for lost messages", settings.ring_again_seconds / 4, lambda: ring_lost(db, app, settings.ring_again_seconds)),
        ]

    def run(self) -> None:
        while not self._stopping.is_set():
            for chore in self._chores:
                chore.do_if_due()
            self._stopping.wait(max(0.0, min(chore.due for chore in self._chores) - time.monotonic()))

    def stop(self, timeout_seconds: float = 5) -> None:
        """Ask it to end and wait for the chore in hand."""
        self._stopping.set()
        self.join(timeout_seconds)


class _Chore:
    """One task of the keeper, when it is next due, and whether it failed last time."""

    def __init__(self, purpose: str, period_seconds: float, action: Callable[[], object]) -> None:
        self.due = 0.0
        self._purpose, self._period_seconds, self._action = purpose, period_seconds, action
        self._failing = False

    def do_if_due(self) -> None:
        if time.monotonic() < self.due:
            return
        try:
            self._action()
        except Exception as error:  # the keeper outlives whatever the broker or the database throws
            if not self._failing:
                log.warning("can't %s: %s; trying again every %g s", self._purpose, error, self._period_seconds)
            self._failing = True
        else:
            if self._failing:
                log.warning("can %s again", self._purpose)
            self._failing = False
        self.due = time.monotonic() + self._period_seconds
