"""What the service adds to the growth loop: the same job through REST, queue, worker and checkpoints, against the bare library.

Both run in turn on this machine, with the same data, config and threads; the figure is the ratio of seconds per training step over the
whole run (training, scoring, splitting, evaluation), pair by pair.

    python benchmarks/service.py --output service.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from costs.model import Macs
from growth.loop import Growth
from store.admission import admit
from store.database import Database
from store.settings import Settings
from store.spec import JobSpec
from wattle.client import Client
from wattle.demo import own_settings
from wattle.up import up
from worker import data
from worker.run import growth_config

TARGET_PERCENT = 3.0
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
    pairs = []
    with tempfile.TemporaryDirectory(prefix="wattle-") as folder, up(own_settings(Path(folder))) as running, Client(running.url) as client:
        running.wait_ready()
        for number in range(options.pairs):
            with console.status(f"pair {number + 1} of {options.pairs}"):
                arms = (through_service, in_library) if number % 2 else (in_library, through_service)
                pairs.append({arm.__name__: arm(client) for arm in arms})
    ratios = [pair["through_service"] / pair["in_library"] for pair in pairs]
    result = {"target_percent": TARGET_PERCENT, "seconds_per_step": pairs, "added_percent": [100 * (ratio - 1) for ratio in ratios]}
    result["added_percent_median"] = 100 * (median(ratios) - 1)
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
    command = [sys.executable, __file__, "--library"]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))


def library() -> float:
    """Seconds per training step of the bare loop."""
    spec = JobSpec.model_validate(SPEC)
    torch.set_num_threads(spec.training.threads)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder))
        db = Database(settings.database)
        db.migrate()
        network = admit(spec, db, settings).network
        db.close()
        sets, _ = data.load(spec.data, settings, spec.training.seed)
    growth = Growth.start(network, sets, Macs(), growth_config(spec, sets))
    started = time.monotonic()
    for _ in growth.events():
        pass
    return (time.monotonic() - started) / growth.step


def show(console: Console, result: dict[str, object]) -> None:
    table = Table("pair", "library ms/step", "service ms/step", "added", box=None)
    for number, (pair, added) in enumerate(zip(result["seconds_per_step"], result["added_percent"], strict=True), 1):  # type: ignore[call-overload]
        table.add_row(str(number), f"{1e3 * pair['in_library']:.2f}", f"{1e3 * pair['through_service']:.2f}", f"{added:+.1f} %")
    console.print(table)
    console.print(f"median: {result['added_percent_median']:+.1f} % per step (target: at most {TARGET_PERCENT:g} %)")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="write the figures as JSON to this file")
    parser.add_argument("--pairs", type=int, default=10, help="runs of each arm")
    parser.add_argument("--library", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
