"""The demonstration: the whole path on this machine, through the same REST API, queue and worker that a cluster would use.

Starts the embedded service on a free port, measures this machine, submits ``examples/digits.yaml`` with a budget that fits it,
shows progress and report, fetches the artifacts, and stops everything it started.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.text import Text

from store.settings import Settings
from wattle.client import Client, Document, ProblemError, load_spec
from wattle.report import cost_words, render
from wattle.service import running
from wattle.specs import network_of_job, profile_of_job
from wattle.up import Service
from wattle.watch import follow

SPEC = Path(__file__).parents[1] / "examples" / "digits.yaml"
BUDGET_FACTOR = 1.3  # budget over the seed's predicted cost: where vector units are wide, room for several times its MACs
PROFILE_SECONDS = 60.0
KEPT_DATA = Path(".wattle") / "demo"


class DemoFailedError(ProblemError):
    """A step of the demonstration did not do what it should."""

    def __init__(self, detail: str) -> None:
        super().__init__({"type": "urn:wattle:demo-failed", "title": "Demo failed", "status": 500, "detail": detail})


def run_demo(console: Console, output: Path, keep: bool) -> Document:
    """Runs it all; returns job, report and files.  ProblemError when a step fails; nothing is left running unless ``keep``."""
    start = time.monotonic()
    with _service(console, keep) as service, Client(service.url) as client:
        _say(console, f"Service ready at {service.url}; this machine is a device named {service.settings.device}.")
        _measure(client, console)
        job = _grow(client, console)
        report = client.report(job["id"])
        files = [str(path) for path in client.download(job["id"], output)]
        console.print(render(report, where=f"{output}/ ({', '.join(sorted(Path(file).name for file in files))})"))
        seconds = time.monotonic() - start
        _say(console, f"Done in {seconds:.0f} s.")
        if keep:
            _say(
                console,
                f"The service goes on until you press Ctrl-C. Dashboard: {service.url}  Data: {service.settings.data_dir}",
            )
            with suppress(KeyboardInterrupt):
                service.wait()
    return {"job": job, "report": report, "files": files, "seconds": round(seconds, 1)}


@contextmanager
def _service(console: Console, keep: bool) -> Iterator[Service]:
    """The embedded service on a free loopback port and a data folder of its own; afterwards none of its processes is left."""
    with TemporaryDirectory(prefix="wattle-demo-") as folder:
        data_dir = KEPT_DATA if keep else Path(folder)
        _say(console, "Starting the service: broker, server, one worker ...")
        with running(own_settings(data_dir)) as service, _interruptible():
            pids = service.pids
            yield service
        if left := [f"{name} ({pid})" for name, pid in pids.items() if _alive(pid)]:
            raise DemoFailedError(f"still running after the end: {', '.join(left)}")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the demonstration at once, not only its service, which the steps would wait for."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def own_settings(data_dir: Path) -> Settings:
    """Settings that leave the user's own service alone: nothing of WATTLE_DATABASE_URL, WATTLE_BROKER_URL and the like."""
    return Settings(_env_prefix="WATTLE_DEMO_", data_dir=data_dir, port=0)  # type: ignore[call-arg]  # BaseSettings takes it


def _measure(client: Client, console: Console) -> None:
    _say(console, f"\nMeasuring this machine for every layer shape that the job can meet (about {PROFILE_SECONDS:g} s) ...")
    job = client.profile({**profile_of_job(SPEC), "seconds": PROFILE_SECONDS})
    _ended_well(follow(client, job["id"], console))


def _grow(client: Client, console: Console) -> Document:
    """Submits the example with a limit that fits this machine, and follows it."""
    spec = load_spec(SPEC)
    seed = client.network_cost(spec["budget"]["device"], network_of_job(SPEC))["total"]
    spec["budget"]["limit"] = float(f"{BUDGET_FACTOR * seed['value']:.3g}")
    _say(
        console,
        f"\nThe seed is predicted to take {cost_words(seed)} for {spec['budget']['batch_size']} images on this machine. "
        f"The budget is {BUDGET_FACTOR:g} times that: {spec['budget']['limit']:g} {seed['unit']}.\nGrowing, then the controls ...",
    )
    job = client.submit(spec)
    return _ended_well(follow(client, job["id"], console))


def _ended_well(job: Document) -> Document:
    if job["state"] != "succeeded":
        raise DemoFailedError(f"the {job['kind']} job {job['id']} {job['state']}: {job.get('cause')}: {job.get('message')}")
    return job


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _say(console: Console, text: str) -> None:
    console.print(Text(text), soft_wrap=True)
