"""What the service adds to the growth loop: the same job through REST, queue, worker and checkpoints, against the bare library.

Twice, with the same data, config and threads:

- end to end: one run through the whole service, one in a process of its own, pair by pair; the ratio of seconds over the whole run
  (training, scoring, growing, evaluation).  On a machine whose speed changes by the minute the pairs scatter by far more than what is
  looked for.
- in the worker's loop: its time outside the growth loop (progress, curves, checkpoints into a real store) over its time inside.  What
  other processes take from its core is not seen.

    python -m benchmarks.service --output service.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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
from worker.runs import Runs

TARGET_PERCENT = 3.0
INSIDE_RUNS = 3
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
    inside = [in_worker() for _ in range(INSIDE_RUNS)]
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
    result["seconds_in_worker"] = [asdict(run) for run in inside]
    result["added_percent_in_worker"] = [run.added_percent for run in inside]
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
class Inside:
    """Seconds inside the growth loop, and in all, of the worker's loop."""

    growing: float = 0.0
    total: float = 0.0

    @property
    def added_percent(self) -> float:
        return 100 * (self.total / self.growing - 1)

    def timed(self, events: Iterator[Event]) -> Iterator[Event]:
        """The same events."""
        while True:
            since = time.perf_counter()
            event = next(events, None)
            self.growing += time.perf_counter() - since
            if event is None:
                return
            yield event


class TimedGrowth(Growth):
    """Tells ``inside`` how long it takes."""

    inside: Inside

    def events(self) -> Iterator[Event]:
        return self.inside.timed(super().events())


def in_worker() -> Inside:
    """The worker's loop, in this process."""
    with _store() as (db, settings):
        inside = TimedGrowth.inside = Inside()
        growth = _growth(db, settings, TimedGrowth)
        job = jobs.submit(db, "growth", "inside", SPEC, "growth", 1)
        lease = jobs.claim(db, job.id, "benchmark", lease_seconds=3600)
        if lease is None:
            raise RuntimeError(f"job {job.id} could not be claimed")
        attempt = Attempt(db, settings, lease, "this-host")
        runs = Runs(attempt, Reporter(attempt), growth.data, growth.budgets, ("grown",))
        started = time.perf_counter()
        runs.follow("grown", growth)
        inside.total = time.perf_counter() - started
    return inside


@contextmanager
def _store() -> Iterator[tuple[Database, Settings]]:
    with tempfile.TemporaryDirectory(prefix="wattle-") as folder:
        settings = Settings(data_dir=Path(folder))
        db = Database(settings.database)
        db.migrate()
        yield db, settings
        db.close()


def _growth(db: Database, settings: Settings, kind: type[Growth] = Growth) -> Growth:
    spec = JobSpec.model_validate(SPEC)
    torch.set_num_threads(spec.training.threads)
    sets, _ = data.load(spec.data, settings, spec.training.seed)
    admitted = admit(spec, db, settings)
    return kind.start(admitted.network, sets, Macs(), growth_config(spec, sets, admitted.wiring, admitted.budgets))


def show(console: Console, result: dict[str, Any]) -> None:
    table = Table("pair", "library ms/step", "service ms/step", "added", box=None)
    for number, (pair, added) in enumerate(zip(result["seconds_per_step"], result["added_percent"], strict=True), 1):
        table.add_row(str(number), f"{1e3 * pair['in_library']:.2f}", f"{1e3 * pair['through_service']:.2f}", f"{added:+.1f} %")
    console.print(table)
    for added in result["added_percent_in_worker"]:
        console.print(f"in the worker's loop: {added:+.1f} % (target: at most {TARGET_PERCENT:g} %)")
    console.print(f"end to end, median: {result['added_percent_median']:+.1f} % per step (target: at most {TARGET_PERCENT:g} %)")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="write the figures as JSON to this file")
    parser.add_argument("--pairs", type=int, default=10, help="runs of each arm")
    parser.add_argument("--library", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
