"""The one Celery object.  Celery rings the bell: a message carries a job's id and nothing else; the database is the queue.

Messages are acknowledged when they arrive, so the broker never runs a job twice; the lease and the reaper see to lost workers.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

from celery import Celery
from kombu.entity import Queue

from store.settings import Settings

TASK = "wattle.run"
GROWTH_QUEUE = "growth"

Broker = Any  # the Celery app, as a type; celery comes without types


def profile_queue(device: str) -> str:
    """The queue of one device's profile jobs; the worker on that device listens to it."""
    return f"profile.{device}"


def declared(queue: str) -> Any:
    """The kombu queue of this name.  Bound to no exchange of its own: nothing but the list is lost when a broker is wiped."""
    return Queue(queue, routing_key=queue)  # type: ignore[no-untyped-call]  # kombu types some of its modules


def celery_app(settings: Settings) -> Broker:
    """A Celery app on the settings' broker.  Its worker takes growth jobs and the profile jobs of ``settings.device``; start it with
    ``-Q`` to take only some.  Nothing connects before it is used."""
    check_broker_url(settings.broker_url)
    app = Celery("wattle", broker=settings.broker_url, set_as_current=False)
    app.conf.update(
        task_queues=[declared(GROWTH_QUEUE), declared(profile_queue(settings.device))],
        task_default_queue=GROWTH_QUEUE,
        task_create_missing_queues=False,  # a typo must not make a silent queue
        task_acks_late=False,
        task_reject_on_worker_lost=False,  # a job that kills its worker would come back for ever; attempts are counted in the database
        task_ignore_result=True,
        result_backend=None,
        task_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,  # a message must not wait behind a long job while another worker is idle
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=_transport_options(settings),
        enable_utc=True,
    )
    return app


def check_broker_url(url: str) -> None:
    """ValueError unless the URL is one of the forms that are known to work; the message never shows a password."""
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss", "redis+socket", "memory"):
        raise ValueError(f"broker URL names {parts.scheme!r}; use redis://, rediss:// or redis+socket:///PATH?virtual_host=0")
    if parts.scheme == "redis+socket" and "virtual_host" not in parse_qs(parts.query):
        raise ValueError("broker URL redis+socket:// lacks the database number; add ?virtual_host=0")


def _transport_options(settings: Settings) -> dict[str, Any]:
    if settings.broker_url.startswith("memory:"):
        return {}
    return {
        "global_keyprefix": settings.broker_prefix,
        "visibility_timeout": 3600,
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        "socket_timeout": 30,  # a broker that accepts and never answers must not hang the relay
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 25,
    }
