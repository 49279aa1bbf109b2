"""How long it takes to ask a cost table of a million entries: one layer at a time, and a thousand in one request.

A real server process, SQLite on this disk, and beside it in turns a server with nothing but an empty FastAPI route, so that what
counts is the ratio within one run.  Every question is another one, of a random form and random widths, most of them between
measured ones, some beyond; nothing is asked twice on purpose.

Run: ``python -m benchmarks.lookup [--entries 1000000] [--database URL] [--output FILE.json]``
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import islice, product
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from urllib.parse import urlencode

import uvicorn
from fastapi import FastAPI
from rich.console import Console
from rich.table import Table

from benchmarks.serving import SERVER, as_environment, cpu_seconds, exchange, free_port, request, started, wait_ready
from costs.model import CostName
from costs.shapes import Activation, LayerShape
from costs.table import UNITS, CostEntry, CostTable, Setting
from profiler.sweep import grid
from store import devices
from store.database import Database
from store.settings import Settings

P99_TARGET_MS, BATCH_TARGET_MS, RATE_TARGET = 10.0, 100.0, 0.5
DEVICE, BATCH = "benchmark", 1000
BEYOND = 0.05  # of the questions, that no table reaches
WIDTHS = grid(8, 256)
WIDEST = WIDTHS[-1]
ACTIVATIONS: tuple[Activation, ...] = ("none", "silu", "relu")
QUANTITIES: tuple[CostName, ...] = ("latency_ms", "energy_mj")
SHAPES = [
    LayerShape("conv2d", 1, 1, kernel, stride, 1, size, size, norm, activation, residual)
    for kernel, stride, size, norm, activation, residual in product(
        (1, 3, 5), (1, 2), (4, 7, 14, 28, 56, 112), (True, False), ACTIVATIONS, (True, False)
    )
]
SETTINGS = [Setting(batch, threads) for batch in (1, 2, 4, 8, 16, 32) for threads in (1, 2)]


@dataclass(frozen=True, slots=True)
class Result:
    """Milliseconds seen by a client, and answers per second."""

    entries: int
    forms: int
    database: str
    one_client_p50_ms: float
    one_client_p99_ms: float
    clients: int
    p99_ms: float
    per_second: float
    empty_per_second: float
    empty_async_per_second: float
    rate_to_empty: float
    rate_to_empty_async: float
    cpu_ms: float
    cpu_to_empty: float
    refused_p99_ms: float
    batch_first_ms: float
    batch_ms: float
    batch_slowest_ms: float
    batch_cpu_ms: float
    load_average: float
    cpus: int


def main() -> None:
    options = _options()
    if options.empty:
        uvicorn.run(_empty_app(), port=options.empty, log_level="warning", access_log=False, server_header=False)
        return
    console = Console()
    with tempfile.TemporaryDirectory(prefix="wattle-") as folder:
        port, empty_port = free_port(), free_port()
        settings = Settings(data_dir=Path(folder), port=port, broker_url="memory://", log_level="WARNING", database_url=options.database)
        with console.status(f"saving {options.entries} entries"):
            forms = _fill(Database(settings.database), options.entries)
        empty = (sys.executable, "-m", "benchmarks.lookup", "--empty", str(empty_port))
        path = {"PYTHONPATH": os.pathsep.join((os.getcwd(), os.environ.get("PYTHONPATH", "")))}
        with started([SERVER, empty], Path(folder), {**as_environment(settings), **path}) as (server, plain):
            wait_ready(port, server)
            with console.status("asking"):
                result = asyncio.run(_measure((port, empty_port), (server.pid, plain.pid), options, forms))
    show(console, result)
    if options.output:
        options.output.write_text(json.dumps(asdict(result), indent=1))


async def _measure(ports: tuple[int, int], pids: tuple[int, int], options: argparse.Namespace, forms: list[Form]) -> Result:
    (port, empty_port), (pid, empty_pid) = ports, pids
    choice = random.Random(0)
    ask, refuse = (_singles(port, forms, choice, beyond) for beyond in (BEYOND, 1.0))
    plain, plain_async = (_always(request(empty_port, "GET", path)) for path in ("/sync", "/async"))
    cpu = cpu_seconds(pid)
    first, *batches = [(await _batch(port, forms, choice)) for _ in range(options.batches + 1)]
    batch_cpu = 1000 * (cpu_seconds(pid) - cpu) / (options.batches + 1)
    for source, at in ((ask, port), (plain, empty_port), (plain_async, empty_port)):
        await _asked(at, source, 200, options.clients, 0.2)  # warm
    alone, _ = await _asked(port, ask, options.requests, 1, 2 * BEYOND)
    refused, _ = await _asked(port, refuse, options.requests, 1, 1.0)
    latencies, rates, cpu, empty_cpu = [], [], 0.0, 0.0
    for _ in range(options.rounds):
        cpu -= cpu_seconds(pid)
        together, rate = await _asked(port, ask, options.requests, options.clients, 2 * BEYOND)
        cpu += cpu_seconds(pid)
        latencies += together
        empty_cpu -= cpu_seconds(empty_pid)
        _, empty_rate = await _asked(empty_port, plain, options.requests, options.clients)
        empty_cpu += cpu_seconds(empty_pid)
        rates.append((rate, empty_rate, (await _asked(empty_port, plain_async, options.requests, options.clients))[1]))
    own, sync, asynchronous = zip(*rates, strict=True)
    return Result(
        options.entries, len(forms), "postgresql" if options.database else "sqlite", median(alone), _p99(alone), options.clients,
        _p99(latencies), median(own), median(sync), median(asynchronous), median(r[0] / r[1] for r in rates),
        median(r[0] / r[2] for r in rates), 1000 * cpu / len(latencies), cpu / empty_cpu,
        _p99(refused), first, median(batches), max(batches), batch_cpu,
        os.getloadavg()[0], os.cpu_count() or 1,
    )  # fmt: skip


async def _asked(
    port: int, source: Callable[[], bytes], requests: int, clients: int, most_refused: float = 0.0
) -> tuple[list[float], float]:  # fmt: skip
    """Milliseconds of each answer, and answers per second, of so many clients at once; at most that share may be refusals."""
    refused = 0

    async def client(share: int) -> list[float]:
        nonlocal refused
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        latencies = []
        for _ in range(share):
            sent = source()
            begun = time.perf_counter()
            status, content = await exchange(reader, writer, sent)
            latencies.append(1000 * (time.perf_counter() - begun))
            refused += status == 404
            if status not in (200, 404):
                raise RuntimeError(f"the server answered {status}: {content.decode()}")
        writer.close()
        return latencies

    begun = time.perf_counter()
    found = [each for latencies in await asyncio.gather(*(client(requests // clients) for _ in range(clients))) for each in latencies]
    seconds = time.perf_counter() - begun
    if refused > most_refused * len(found):
        raise RuntimeError(f"the server refused {refused} of {len(found)} questions; at most {most_refused:.0%} are beyond its table")
    return found, len(found) / seconds


async def _batch(port: int, forms: list[Form], choice: random.Random) -> float:
    """Milliseconds for a thousand layers in one request."""
    body = json.dumps({"queries": [_question(forms, choice, BEYOND) for _ in range(BATCH)]}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    begun = time.perf_counter()
    status, content = await exchange(reader, writer, request(port, "POST", f"/v1/devices/{DEVICE}/costs:query", body))
    milliseconds = 1000 * (time.perf_counter() - begun)
    writer.close()
    found = sum(answer["entry"] is not None for answer in json.loads(content)["answers"]) if status == 200 else 0
    if found < (1 - 2 * BEYOND) * BATCH:
        raise RuntimeError(f"the server answered {status}: {content[:500].decode()}")
    return milliseconds


def _singles(port: int, forms: list[Form], choice: random.Random, beyond: float) -> Callable[[], bytes]:
    return lambda: request(port, "GET", f"/v1/devices/{DEVICE}/costs?{urlencode(_question(forms, choice, beyond))}")


def _always(sent: bytes) -> Callable[[], bytes]:
    return lambda: sent


Form = tuple[LayerShape, Setting, CostName]


def _question(forms: list[Form], choice: random.Random, beyond: float) -> dict[str, Any]:
    """A layer of a random form and random widths; ``beyond``: the share that no table reaches."""
    shape, setting, quantity = choice.choice(forms)
    largest = 2 * WIDEST if choice.random() < beyond else WIDEST
    widths = {"in_channels": choice.randint(1, WIDEST), "out_channels": choice.randint(largest - WIDEST + 1, largest)}
    where = {"cost": quantity, "batch_size": setting.batch, "threads": setting.threads}
    words = {name: str(value).lower() if isinstance(value, bool) else value for name, value in asdict(shape).items()}
    return {**words, **widths, **where}


def _fill(db: Database, entries: int) -> list[Form]:
    """A table of so many entries, all pairs of widths of as many forms as that takes; those forms."""
    db.migrate()
    devices.register(db, DEVICE, {"cpu": "none: invented numbers"})
    pairs = list(product(WIDTHS, WIDTHS))
    forms = list(product(SHAPES, SETTINGS, QUANTITIES))
    random.Random(0).shuffle(forms)
    forms = forms[: -(-entries // len(pairs))]
    numbers = islice((_entry(form, *pair) for form in forms for pair in pairs), entries)
    while some := list(islice(numbers, 50_000)):
        devices.save_table(db, None, CostTable(DEVICE, some))
    db.close()
    return forms


def _entry(form: Form, i: int, o: int) -> CostEntry:
    shape, setting, quantity = form
    value = 1e-6 * i * o * shape.kernel**2 * shape.height * setting.batch
    sized = replace(shape, in_channels=i, out_channels=o)
    when = "2026-01-01T00:00:00+00:00"
    return CostEntry(sized, setting, quantity, value, UNITS[quantity], "measured", 0.98 * value, 1.02 * value, "wall_clock", 99, 1, when)


def _empty_app() -> FastAPI:
    app = FastAPI()

    @app.get("/sync")
    def sync() -> dict[str, str]:
        return {}

    @app.get("/async")
    async def asynchronous() -> dict[str, str]:
        return {}

    return app


def _p99(milliseconds: list[float]) -> float:
    return quantiles(milliseconds, n=100)[98]


def show(console: Console, result: Result) -> None:
    table = Table("figure", "value", "target", box=None)
    rows: tuple[tuple[str, str, str], ...] = (
        ("one layer, one client, median", f"{result.one_client_p50_ms:.2f} ms", ""),
        ("one layer, one client, p99", f"{result.one_client_p99_ms:.2f} ms", f"< {P99_TARGET_MS:g} ms"),
        (f"one layer, {result.clients} clients, p99", f"{result.p99_ms:.2f} ms", f"< {P99_TARGET_MS:g} ms"),
        ("refused with nearest widths, p99", f"{result.refused_p99_ms:.2f} ms", f"< {P99_TARGET_MS:g} ms"),
        ("answers per second", f"{result.per_second:.0f}", ""),
        ("over an empty route (def)", f"{result.rate_to_empty:.2f} of {result.empty_per_second:.0f}", f">= {RATE_TARGET:g}"),
        ("over an empty route (async def)", f"{result.rate_to_empty_async:.2f} of {result.empty_async_per_second:.0f}", ""),
        ("server CPU per answer, and over an empty route (def)", f"{result.cpu_ms:.2f} ms, {result.cpu_to_empty:.1f}", ""),
        (f"{BATCH} layers in one request, the first", f"{result.batch_first_ms:.0f} ms", ""),
        (f"{BATCH} layers in one request, median", f"{result.batch_ms:.0f} ms", f"< {BATCH_TARGET_MS:g} ms"),
        (f"{BATCH} layers in one request, slowest", f"{result.batch_slowest_ms:.0f} ms", f"< {BATCH_TARGET_MS:g} ms"),
        (f"{BATCH} layers in one request, server CPU", f"{result.batch_cpu_ms:.0f} ms", ""),
    )
    for row in rows:
        table.add_row(*row)
    console.print(
        f"{result.entries} entries in {result.forms} forms, {result.database}, {result.cpus} CPUs, load {result.load_average:.1f}"
    )
    console.print(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=8, help="clients at once where answers per second are counted")
    parser.add_argument("--requests", type=int, default=4000, help="requests of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--database", default="", help="URL of an empty PostgreSQL database to use instead of SQLite")
    parser.add_argument("--empty", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="write the figures here as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
