"""How Celery is set: every choice here guards against something that was seen to go wrong."""

from __future__ import annotations

import pytest
from celery.exceptions import QueueNotFound

from store.queue import celery_app, profile_queue
from store.settings import Settings


def test_a_worker_takes_growth_jobs_and_its_own_devices_profiles() -> None:
    app = celery_app(Settings(device="pi-4", broker_url="memory://"))
    assert set(app.amqp.queues) == {"growth", "profile.pi-4"}
    assert profile_queue("pi-4") == "profile.pi-4"


def test_a_mistyped_queue_is_an_error() -> None:
    app = celery_app(Settings(broker_url="memory://"))
    with pytest.raises(QueueNotFound):
        app.send_task("wattle.run", args=["id"], queue="grwoth")


def test_settings_that_must_not_drift() -> None:
    conf = celery_app(Settings(broker_prefix="x:")).conf
    expected = {
        "task_acks_late": False,
        "task_reject_on_worker_lost": False,
        "task_create_missing_queues": False,
        "task_ignore_result": True,
        "result_backend": None,
        "task_serializer": "json",
        "accept_content": ["json"],
        "worker_disable_prefetch": True,
        "worker_prefetch_multiplier": 1,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
    }
    assert {name: conf[name] for name in expected} == expected
    options = conf.broker_transport_options
    assert options["global_keyprefix"] == "x:"
    assert options["unacked_restore_throttle"] == 1
    assert options["socket_connect_timeout"] <= 5


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("amqp://guest@localhost", "names 'amqp'"),
        ("sqla+sqlite:///x", r"names 'sqla\+sqlite'"),
        ("", "names ''"),
        ("redis+socket://:secret@/tmp/s", r"add \?virtual_host=0"),
    ],
)
def test_other_brokers_are_refused_without_showing_a_password(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        celery_app(Settings(broker_url=url))
    assert "secret" not in str(caught.value)
