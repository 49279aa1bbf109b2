"""Start a worker: ``python -m worker --device this-host``.

It takes growth jobs, and the profile jobs of its device, one at a time, each in a child process of its own.  SIGTERM makes it save
a checkpoint, give the job back to the queue, and leave.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import subprocess
import sys

from store import devices
from store.database import Database
from store.queue import GROWTH_QUEUE, celery_app, profile_queue
from store.settings import Settings
from worker.tasks import register_task

# Kernels that oneDNN keeps compiled.  A growing network meets many shapes; at the default of 1024 it would compile again and again.
ONEDNN_CACHE = "16384"


def main(arguments: list[str] | None = None) -> int:
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", ONEDNN_CACHE)
    settings = Settings()
    options = _parse(arguments, settings.device)
    settings = settings.model_copy(update={"device": options.device})
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(message)s")
    db = Database(settings.database)
    db.check_revision()
    devices.register(db, settings.device, fingerprint())
    db.close()  # the pool forks from here on: no open connection may cross
    app = celery_app(settings)
    register_task(app, settings)
    queues = options.queues.split(",") if options.queues else [GROWTH_QUEUE, profile_queue(settings.device)]
    worker = app.Worker(
        hostname=f"{settings.device}-{os.getpid()}@{socket.gethostname()}",
        pool="prefork", concurrency=1, queues=queues, loglevel=settings.log_level,
        without_gossip=True, without_mingle=True,
    )  # fmt: skip
    worker.start()
    return int(worker.exitcode or 0)


def fingerprint() -> dict[str, object]:
    """What this machine is.  Asked in a process of its own, so that torch never enters the one that forks."""
    code = "import json; from profiler.device import fingerprint; print(json.dumps(fingerprint(threads=1)))"
    answer = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE)
    return dict(json.loads(answer.stdout))


def _parse(arguments: list[str] | None, device: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m worker", description="Run Wattle's jobs on this machine.")
    parser.add_argument("--device", default=device, help=f"name under which this machine's measurements are kept (default: {device})")
    parser.add_argument("--queues", help="comma-separated queues (default: growth,profile.DEVICE)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
