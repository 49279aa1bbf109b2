"""One spec, two devices: the widths that growth chooses for one CPU thread and for two.

A real service that trains, and two workers beside it that only measure, each the device of its own name and thread count.  Both
devices are profiled for the same network, then the same spec is submitted for each of them: once with the same limit in milliseconds,
and once with the same multiple of what the seed costs there.  At the end all networks are measured with both thread counts.

Run: ``python -m benchmarks.devices [--seconds 60] [--factor 1.5] [--output FILE.json]``.  On two cores that are otherwise idle it takes
five minutes; where others use them, two threads wait for each other, and the profile may have to be given more seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Column, Table

from benchmarks.serving import as_environment, started
from costs.families import Network
from costs.table import Setting
from growth.networks import build
from profiler.anchors import measure_networks
from store.settings import Settings
from wattle.client import Client, Document, Event
from wattle.up import Service, up

THREADS = {"one-thread": 1, "two-threads": 2}
BATCH = 32
NETWORK: dict[str, Any] = {"family": "plain", "widths": [12, 16, 24]}
IMAGES: dict[str, Any] = {"image_size": 16, "in_channels": 1, "classes": 10}
MAX_GROWTH = 3
SAY_EVERY_SECONDS = 15.0
JOB: dict[str, Any] = {
    "name": "one-spec",
    "data": {"name": "digits", "image_size": IMAGES["image_size"]},
    "network": NETWORK,
    "growth": {"rounds": 2, "multiple_of": 4, "max_growth": MAX_GROWTH, "scoring_samples": 256, "fresh_samples": 128},
    "training": {"epochs_per_round": 4, "final_epochs": 4, "batch_size": 32, "learning_rate": 0.1},
    "controls": ["uniform", "cost_only"],
}

Measured = dict[str, float | str]  # milliseconds by device, or the reason why there is no number


@dataclass(frozen=True, slots=True)
class Grown:
    """What one job found."""

    asked: str
    device: str
    limit_ms: float
    widths: list[int]
    predicted_ms: float
    test_accuracy: float
    cost_only: list[int]
    measured_ms: Measured


def main() -> None:
    options, console = _options(), Console(width=140)
    with tempfile.TemporaryDirectory(prefix="wattle-") as folder, up(Settings(data_dir=Path(folder), port=0)) as service:
        service.wait_ready(120)
        with Client(service.url) as client, _workers(service, Path(folder), client):
            tables = {name: _profiled(client, name, options.seconds, console) for name in THREADS}
            seeds = {name: client.network_cost(name, {**IMAGES, "network": NETWORK, "batch_size": BATCH})["total"] for name in THREADS}
            one_limit = options.factor * seeds["one-thread"]["value"]
            asked = [("the same limit", name, one_limit) for name in THREADS]
            asked += [(f"{options.factor:g} times the seed's cost", name, options.factor * seeds[name]["value"]) for name in THREADS]
            reports = [(*each, _report(client, *each[1:], console)) for each in asked]
    measured = _measured([NETWORK["widths"], *(report["grown"]["widths"] for *_, report in reports)], options.seconds)
    seed = measured[tuple(NETWORK["widths"])]
    grown = [
        Grown(
            what, name, limit, report["grown"]["widths"], report["grown"]["predicted_cost"]["value"], report["grown"]["test_accuracy"],
            report["controls"]["cost_only"]["widths"], measured[tuple(report["grown"]["widths"])],
        )
        for what, name, limit, report in reports
    ]  # fmt: skip
    _show(console, tables, seeds, seed, grown)
    if options.output:
        document = {
            "job": JOB,
            "batch_size": BATCH,
            "devices": tables,
            "seed_cost": seeds,
            "seed_measured_ms": seed,
            "grown": [asdict(each) for each in grown],
        }
        options.output.write_text(json.dumps(document, indent=1))


@contextmanager
def _workers(service: Service, folder: Path, client: Client) -> Iterator[None]:
    """A worker for each device, that takes its profiles and no growth jobs; until it is alive.  RuntimeError if one does not come."""
    commands = [
        [sys.executable, "-m", "wattle", "worker", "--device", name, "--threads", str(threads), "--only-profiles"]
        for name, threads in THREADS.items()
    ]
    environment = {
        **as_environment(service.settings),
        "WATTLE_LOG_LEVEL": "WARNING",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }  # they run in the folder
    with started(commands, folder, environment) as processes:
        deadline = time.monotonic() + 120
        while not {each["name"] for each in client.devices() if each["alive"]} >= THREADS.keys():
            if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
                raise RuntimeError("a worker ended, or was not there within 120 s; its messages are above")
            time.sleep(0.2)
        yield


def _profiled(client: Client, device: str, seconds: float, console: Console) -> Document:
    """The device, measured; what its worker says meanwhile goes to the console."""
    spec = {**IMAGES, "device": device, "network": NETWORK, "batch_size": BATCH, "max_growth": MAX_GROWTH, "seconds": seconds}
    said = 0.0

    def say(event: Event) -> None:
        nonlocal said
        if event.type == "progress" and (time.monotonic() - said > SAY_EVERY_SECONDS or event.payload.get("phase") == "done"):
            said = time.monotonic()
            console.print(f"{device}: {event.payload.get('message', '')}", style="dim")

    _ended_well(client.wait(client.profile(spec)["id"], say))
    return client.device(device)


def _report(client: Client, device: str, limit: float, console: Console) -> Document:
    """Of the one spec, for this device."""
    budget = {"cost": "latency_ms", "limit": limit, "device": device, "batch_size": BATCH}
    console.print(f"{device}: growing within {limit:.3f} ms", style="dim")
    return client.report(_ended_well(client.wait(client.submit({**JOB, "budget": budget})["id"]))["id"])


def _ended_well(job: Document) -> Document:
    if job["state"] != "succeeded":
        raise RuntimeError(f"{job['name']} {job['state']}: {job['message']}")
    return job


def _measured(found: list[list[int]], seconds: float) -> dict[tuple[int, ...], Measured]:
    """Milliseconds of each network by device, measured here; the reason where there is no number."""
    networks = {str(widths): Network("plain", tuple(widths), *IMAGES.values()) for widths in found}
    modules = {name: build(network).eval() for name, network in networks.items()}
    example = torch.randn(BATCH, IMAGES["in_channels"], IMAGES["image_size"], IMAGES["image_size"])
    result: dict[tuple[int, ...], Measured] = {network.widths: {} for network in networks.values()}
    for device, threads in THREADS.items():
        session = measure_networks(modules, example, Setting(BATCH, threads), seconds)
        for name, network in networks.items():
            number = session.results.get(name)
            result[network.widths][device] = number.median if number else str(session.missing[name])
    return result


def _show(console: Console, tables: Mapping[str, Document], seeds: Mapping[str, Document], seed: Measured, grown: list[Grown]) -> None:
    columns = ("threads", "cost entries", "whole networks predicted within", "the seed, predicted", "measured")
    devices = Table("device", *map(_right, columns), title=f"Two devices, batch {BATCH}")
    for name, device in tables.items():
        error, predicted = f"{device['calibrated'][0]['error_percent']:.1f} % (mean)", f"{seeds[name]['value']:.3f} ms"
        devices.add_row(name, str(device["threads"]), str(device["entries"]), error, predicted, _milliseconds(seed[name]))
    console.print(devices, *(_networks(asked, grown) for asked in dict.fromkeys(each.asked for each in grown)))
    found = [number for measured in (seed, *(each.measured_ms for each in grown)) for number in measured.values()]
    for reason in dict.fromkeys(each for each in found if isinstance(each, str)):
        console.print(f"absent: {reason}")


def _networks(asked: str, grown: list[Grown]) -> Table:
    """What was grown where the same was asked for."""
    columns = ("limit", "grown widths", "predicted", *(f"measured, {name}" for name in THREADS), "accuracy", "cost alone chooses")
    table = Table("device", *map(_right, columns), title=f"One spec, seed {_widths(NETWORK['widths'])}, {asked}")
    for each in (each for each in grown if each.asked == asked):
        table.add_row(
            each.device, f"{each.limit_ms:.3f} ms", _widths(each.widths), f"{each.predicted_ms:.3f} ms",
            *(_milliseconds(each.measured_ms[name]) for name in THREADS), f"{each.test_accuracy:.3f}", _widths(each.cost_only),
        )  # fmt: skip
    return table


def _right(name: str) -> Column:
    return Column(name, justify="right")


def _widths(widths: list[int]) -> str:
    return " ".join(map(str, widths))


def _milliseconds(found: float | str) -> str:
    return f"{found:.3f} ms" if isinstance(found, float) else "absent"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Two devices, two tables, two networks from one spec.")
    parser.add_argument("--seconds", type=float, default=60, help="time budget of each profile, and of measuring what was grown")
    parser.add_argument("--factor", type=float, default=1.5, help="limit as a multiple of the seed's cost")
    parser.add_argument("--output", type=Path, help="write the numbers here as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
