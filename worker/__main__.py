"""Start a worker: ``python -m worker --device this-host``.

It takes growth jobs, and the profile jobs of its device, one at a time, each in a child process of its own; ``--only-profiles`` leaves
training to other machines.  SIGTERM makes it save a checkpoint, give the job back to the queue, and leave.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import subprocess
import sys
from typing import Any

from pydantic import ValidationError

from store import devices
from store.database import Database
from store.queue import GROWTH_QUEUE, celery_app, profile_queue
from store.settings import Settings
from worker.pulse import register_pulse
from worker.tasks import register_task

# Kernels that oneDNN keeps compiled.  A growing network meets many shapes; at the default of 1024 it would compile again and again.
ONEDNN_CACHE = "16384"

ASK = """
import json, sys
from profiler.device import fingerprint
from profiler.processor import open_processor
try:
    print(json.dumps(fingerprint(int(sys.argv[1]), open_processor(sys.argv[2]))))
except ValueError as error:
    sys.exit(str(error))
"""


def main(arguments: list[str] | None = None) -> int:
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", ONEDNN_CACHE)
    settings = Settings()
    options = _parse(arguments, settings)
    try:
        settings = Settings(device=options.device, device_threads=options.threads, torch_device=options.torch_device)
    except ValidationError as error:
        sys.exit("\n".join(f"{wrong['loc'][0]} is {wrong['input']!r}: {wrong['msg']}" for wrong in error.errors()))
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(message)s")
    found = fingerprint(settings.device_threads, settings.torch_device)
    if not 1 <= settings.device_threads <= found["cores"]:
        sys.exit(f"threads is {settings.device_threads}; this process may use {found['cores']} cores: give --threads 1 to {found['cores']}")
    db = Database(settings.database)
    db.check_revision()
    devices.register(db, settings.device, found)
    db.close()  # the pool forks from here on: no open connection may cross
    app = celery_app(settings)
    register_task(app, settings)
    queues = options.queues.split(",") if options.queues else [profile_queue(settings.device)]
    if not (options.queues or options.only_profiles):
        queues.append(GROWTH_QUEUE)
    if profile_queue(settings.device) in queues:
        register_pulse(app, settings)
    worker = app.Worker(
        hostname=f"{settings.device}-{os.getpid()}@{socket.gethostname()}",
        pool="prefork", concurrency=1, queues=queues, loglevel=settings.log_level,
        without_gossip=True, without_mingle=True,
    )  # fmt: skip
    worker.start()
    return int(worker.exitcode or 0)


def fingerprint(threads: int, torch_device: str = "cpu") -> dict[str, Any]:
    """What this machine is.  Asked in a process of its own, so that torch never enters the one that forks."""
    answer = subprocess.run([sys.executable, "-c", ASK, str(threads), torch_device], check=False, stdout=subprocess.PIPE)
    if answer.returncode:
        sys.exit("this worker does not start: its device could not be asked what it is (above)")
    return dict(json.loads(answer.stdout))


def _parse(arguments: list[str] | None, settings: Settings) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m worker",
        description="Run Wattle's jobs on this machine.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--device", default=settings.device, help="name under which this machine's measurements are kept")
    parser.add_argument("--threads", type=int, default=settings.device_threads, help="CPU threads of an inference on this device")
    parser.add_argument("--torch-device", default=settings.torch_device, help="what trains and is measured: cpu, cuda, cuda:1")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--only-profiles", action="store_true", help="take no growth jobs")
    which.add_argument("--queues", help="comma-separated queues (None: profile.DEVICE,growth)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
