"""What the service adds to the growth loop: the same job through REST, queue, worker and checkpoints, against the bare library.

Twice, with the same data, config and threads; the figure is the ratio of seconds over the whole run (training, scoring, splitting,
evaluation):

- in turns: the bare loop and the worker's (progress, curves, checkpoints into a real store) in one process, taking turns step by step, so
  that a change of the machine's speed meets both.  What other processes take from this one's core is not seen.
- end to end: one run through the whole service, one in a process of its own, pair by pair.  On a machine whose speed changes by the minute
  the pairs scatter by far more than what is looked for.

    python -m benchmarks.service --output service.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from costs.model import Macs
from growth.events import Event
from growth.loop import Growth
from store import jobs
from store.admission import admit
from store.database import Database
from store.settings import Settings
from store.spec import JobSpec
from wattle.client import Client
from wattle.demo import own_settings
from wattle.up import up
from worker import data
from worker.attempt import Attempt, Reporter
from worker.run import growth_config
from worker.runs import Runs, Trained

TARGET_PERCENT = 3.0
TURN_RUNS = 3
SPEC = {
    "name": "overhead",
    "data": {"name": "digits", "image_size": 16},
    "network": {"family": "mobilenet_v1", "widths": [8] * 14},
    "growth": {"rounds": 2},
    "budget": {"cost": "macs", "limit": 3e5},
    "training": {"epochs_per_round": 4, "final_epochs": 4, "batch_size": 32, "learning_rate": 0.1},
    "controls": [],
}


def main() -> None:
    options = _options()
    if options.library:
        print(json.dumps(library()))
        return
    console = Console()
    turns = [in_turns() for _ in range(TURN_RUNS)]
    pairs = []
    with tempfile.TemporaryDirectory(prefix="wattle-") as folder, up(own_settings(Path(folder))) as running, Client(running.url) as client:
        running.wait_ready()
        for number in range(options.pairs):
            with console.status(f"pair {number + 1} of {options.pairs}"):
                arms = (through_service, in_library) if number % 2 else (in_library, through_service)
                pairs.append({arm.__name__: arm(client) for arm in arms})
    ratios = [pair["through_service"] / pair["in_library"] for pair in pairs]
    result: dict[str, Any] = {"target_percent": TARGET_PERCENT, "seconds_per_step": pairs}
    result["added_percent"] = [100 * (ratio - 1) for ratio in ratios]
    result["added_percent_median"] = 100 * (median(ratios) - 1)
    result["seconds_in_turns"] = [{"library": turn.library, "service": turn.service, "events": turn.events} for turn in turns]
    result["added_percent_in_turns"] = [turn.added_percent for turn in turns]
    show(console, result)
    if options.output:
        options.output.write_text(json.dumps(result, indent=1))


def through_service(client: Client) -> float:
    """Seconds per training step of the job's grown run."""
    job = client.wait(client.submit(SPEC)["id"])
    if job["state"] != "succeeded":
        raise RuntimeError(f"the job {job['state']}: {job['message']}")
    grown = client.report(job["id"])["grown"]
    return float(grown["seconds"] / grown["steps"])


def in_library(_: Client) -> float:
    """The same in a process of its own, without the service."""
    command = [sys.executable, "-m", "benchmarks.service", "--library"]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))


def library() -> float:
    """Seconds per training step of the bare loop."""
    with _store() as (db, settings):
        growth = _growth(db, settings)
    started = time.monotonic()
    for _ in growth.events():
        pass
    return (time.monotonic() - started) / growth.step


@dataclass(slots=True)
class Turns:
    """Seconds of two loops that take turns in one process, and events that each has met."""

    library: float = 0.0
    service: float = 0.0
    events: int = 0
    _library_may: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _service_may: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _since: float | None = None
    _failed: bool = False

    @property
    def added_percent(self) -> float:
        return 100 * (self.service / self.library - 1)

    def over(self) -> bool:
        """Ends a turn of the worker's loop, which asks at each of its events whether it is to stop.  What comes before is its start."""
        if self._since is not None:
            self.service += time.perf_counter() - self._since
        self._library_may.release()
        self._service_may.acquire()
        self._since = time.perf_counter()
        return self._failed

    def follow(self, events: Iterator[Event], service: Future[Trained]) -> None:
        """Take the bare loop's turns until the worker's loop has ended."""
        service.add_done_callback(lambda _: self._library_may.release())
        try:
            while self._library_may.acquire() and not service.done():
                since = time.perf_counter()
                next(events)
                self.library += time.perf_counter() - since if self.events else 0.0  # the worker's first event is not counted either
                self.events += 1
                self._service_may.release()
        except BaseException:
            self._failed = True  # the worker's loop must not wait for ever
            self._service_may.release()
            raise


def in_turns() -> Turns:
    """The bare loop and the worker's, event by event."""
    turns = Turns()
    with _one_core(), _store() as (db, settings), ThreadPoolExecutor(1) as pool:
        growth = _growth(db, settings)
        job = jobs.submit(db, "growth", "turns", SPEC, "growth", 1)
        lease = jobs.claim(db, job.id, "benchmark", lease_seconds=3600)
        if lease is None:
            raise RuntimeError(f"job {job.id} could not be claimed")
        attempt = Attempt(db, settings, lease, "this-host", turns.over)
        runs = Runs(attempt, Reporter(attempt), growth.data, Macs(), growth.config.limit, ("grown",))
        service = pool.submit(runs.train, "grown", growth.network, growth.config)
        turns.follow(growth.events(), service)
        service.result()
    return turns


@contextmanager
def _one_core() -> Iterator[None]:
    """Both loops on the same core: neighbours slow one core down and not another."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@contextmanager
def _store() -> Iterator[tuple[Database, Settings]]:
    with tempfile.TemporaryDirectory(prefix="wattle-") as folder:
        settings = Settings(data_dir=Path(folder))
        db = Database(settings.database)
        db.migrate()
        yield db, settings
        db.close()


def _growth(db: Database, settings: Settings) -> Growth:
    spec = JobSpec.model_validate(SPEC)
    torch.set_num_threads(spec.training.threads)
    sets, _ = data.load(spec.data, settings, spec.training.seed)
    return Growth.start(admit(spec, db, settings).network, sets, Macs(), growth_config(spec, sets))


def show(console: Console, result: dict[str, Any]) -> None:
    table = Table("pair", "library ms/step", "service ms/step", "added", box=None)
    for number, (pair, added) in enumerate(zip(result["seconds_per_step"], result["added_percent"], strict=True), 1):
        table.add_row(str(number), f"{1e3 * pair['in_library']:.2f}", f"{1e3 * pair['through_service']:.2f}", f"{added:+.1f} %")
    console.print(table)
    for added in result["added_percent_in_turns"]:
        console.print(f"in turns: {added:+.1f} % (target: at most {TARGET_PERCENT:g} %)")
    console.print(f"end to end, median: {result['added_percent_median']:+.1f} % per step (target: at most {TARGET_PERCENT:g} %)")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="write the figures as JSON to this file")
    parser.add_argument("--pairs", type=int, default=10, help="runs of each arm")
    parser.add_argument("--library", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
