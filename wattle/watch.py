"""Live progress of a job: a display that redraws itself on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from wattle.client import TERMINAL, Client, Document, Event

STATE_STYLES = {"queued": "yellow", "running": "cyan", "succeeded": "bold green", "failed": "bold red", "cancelled": "magenta"}
TRAINING_PHASES = (None, "training", "scoring")  # in the others, run and step are those of the last training
LINE_EVERY_SECONDS = 10.0


class View(Protocol):
    """Shows a job while it runs."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def show(self, job: Document) -> None: ...


def follow(client: Client, job_id: str, console: Console) -> Document:
    """Shows a job until it has ended; returns it."""
    job = client.job(job_id)
    with LiveView(console) if console.is_terminal else LineView(console) as view:
        view.show(job)

        def on_event(event: Event) -> None:
            apply(job, event)
            view.show(job)

        job = client.wait(job_id, on_event) if job["state"] not in TERMINAL else job
        view.show(job)
    return job


def apply(job: Document, event: Event) -> None:
    """Brings the shown job up to date with one event."""
    if event.type == "state":
        job.update(event.payload)
    elif event.type == "progress":
        job["progress"] = event.payload


class LiveView:
    """Redraws in place."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=8, transient=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()

    def show(self, job: Document) -> None:
        self._live.update(picture(job))


class LineView:
    """Prints a line when state, run, phase or round changes, and every ten seconds in between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._printed: tuple[Any, ...] = ()
        self._at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def show(self, job: Document) -> None:
        progress = job.get("progress") or {}
        key = (job["state"], *(progress.get(name) for name in ("phase", "run", "round")))
        now = time.monotonic()
        if key != self._printed or (now - self._at > LINE_EVERY_SECONDS and job["state"] == "running"):
            self._printed, self._at = key, now
            self._console.print(Text(" · ".join(words(job))), soft_wrap=True)


def picture(job: Document) -> RenderableType:
    """The job as a small drawing: name and state, a bar, and the present figures."""
    progress = job.get("progress") or {}
    head = Text.assemble((str(job["name"]), "bold"), "  ", (job["state"], STATE_STYLES.get(job["state"], "")), f"  {job['id']}")
    bar = Table.grid(padding=(0, 2))
    fraction = 1.0 if job["state"] == "succeeded" else float(progress.get("overall_fraction") or 0.0)
    bar.add_row(ProgressBar(total=1.0, completed=fraction, width=40), f"{fraction:4.0%}", _eta(progress))
    figures = Text("  ".join(words(job)[2:]))
    widths = progress.get("widths")
    return Group(head, bar, figures, *([Text(f"widths {' '.join(map(str, widths))}", style="dim")] if widths else []))


def words(job: Document) -> list[str]:
    """The job in words: name, state, then what is known of its progress."""
    progress = job.get("progress") or {}
    found = [str(job["name"]), str(job["state"])]
    if job["state"] in ("failed", "cancelled") and (job.get("message") or job.get("cause")):
        found.append(f"{job.get('cause') or 'because'}: {job.get('message') or ''}")
    if job["state"] == "queued" and job.get("attempt"):
        found.append(f"attempt {job['attempt']} ended early, waiting for a worker")
    if job["state"] == "queued" and job.get("waits_for"):
        found.append(str(job["waits_for"]))
    if progress.get("phase") not in (None, "done"):
        found.append(str(progress["phase"]))
    if (run := progress.get("run")) and progress.get("phase") in TRAINING_PHASES:
        found.append(run_words(run))
        if progress.get("rounds"):
            found.append(f"round {progress.get('round') or 0}/{progress['rounds']}")
        if progress.get("total_steps"):
            found.append(f"step {progress.get('step') or 0}/{progress['total_steps']}")
    if progress.get("message"):
        found.append(str(progress["message"]))
    scores = {"loss": "batch loss", "accuracy": "batch accuracy", "test_loss": "test loss", "test_accuracy": "test accuracy"}
    found += [f"{label} {progress[name]:.4g}" for name, label in scores.items() if progress.get(name) is not None]
    if progress.get("cost") is not None:
        limit = f" of {quantity(progress['limit'], progress.get('unit'))}" if progress.get("limit") is not None else ""
        found.append(f"cost {quantity(progress['cost'], None if limit else progress.get('unit'))}{limit}")
    return found


def run_words(run: str) -> str:
    """A run by its arm and, behind a dot, which further seed it has."""
    arm, _, repeat = run.partition(".")
    words = arm if arm in ("grown", "retrained") else f"control {arm.replace('_', ' ')}"
    return f"{words}, repeat {repeat}" if repeat else words


def quantity(value: float, unit: str | None) -> str:
    """A value with its unit, large counts with separators."""
    number = f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return f"{number} {unit}" if unit else number


def _eta(progress: Document) -> str:
    seconds = progress.get("eta_seconds")
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"about {minutes}:{rest:02d} left"
