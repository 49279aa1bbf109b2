"""What the page of a job shows: its rows from the store, put in the order in which they are read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, get_args
from urllib.parse import urlencode

from costs.families import Network
from costs.model import EXACT
from costs.table import UNITS
from server.deps import Service
from server.results import REPORT
from store import jobs
from store.history import Curve
from store.spec import ControlName
from store.views import Artifact, Attempt, Job, Round, TerminalState

TABLE_ROWS = 12  # of the table beside a curve
ARMS = ("grown", *get_args(ControlName), "retrained")  # also the names of their runs with the first seed
CURVE_POINTS = 2000  # of each run in the charts
CURVES = ("loss", "accuracy", "cost")


@dataclass(frozen=True, slots=True)
class Budget:
    """What a growth job may cost, and what its network costs now, if that is known yet.  ``kind`` is how ``cost`` was obtained."""

    quantity: str
    limit: float
    unit: str
    cost: float | None
    kind: str | None

    @property
    def share(self) -> float | None:
        return None if self.cost is None else self.cost / self.limit


@dataclass(frozen=True, slots=True)
class CurveTable:
    """A curve per run at a few steps; ``None`` where a run has no point yet, or has ended."""

    runs: list[str]
    rows: list[tuple[int, list[float | None]]]


@dataclass(frozen=True, slots=True)
class WidthTable:
    """Widths per channel group (rows) at the seed and after each round (columns)."""

    columns: list[str]
    rows: list[tuple[str, list[int]]]

    @property
    def widest(self) -> int:
        return max(width for _, widths in self.rows for width in widths)


@dataclass(frozen=True, slots=True)
class Shown:
    """Everything on the page of one job."""

    job: Job
    last_event: int
    over: bool
    budget: Budget | None
    seconds: float | None
    rounds: list[tuple[str, list[Round]]]
    widths: WidthTable | None
    curves: dict[str, CurveTable]
    report: dict[str, Any] | None
    no_report: str
    artifacts: list[Artifact]
    attempts: list[Attempt]

    @property
    def seeds(self) -> int:
        return int(self.job.spec.get("seeds", 1))

    @property
    def metrics_url(self) -> str:
        """Where the charts get their curves: those of the first seed, since 20 seeds of 7 arms would be no picture."""
        query = urlencode([("max_points", CURVE_POINTS), *(("run", arm) for arm in ARMS)])
        return f"/v1/jobs/{self.job.id}/metrics?{query}"


def show(service: Service, job_id: str) -> Shown:
    """Read a job.  UnknownJob if there is none."""
    last_event = jobs.last_seq(service.db)  # first: what comes in between is then seen twice, never missed
    job = jobs.get(service.db, job_id)
    rounds = by_run(jobs.rounds(service.db, job_id))
    curves = jobs.metrics(service.db, job_id, 500, ARMS)
    artifacts = jobs.artifacts(service.db, job_id)
    report, no_report = _report(service, job, artifacts)
    return Shown(
        job=job,
        last_event=last_event,
        over=job.state in get_args(TerminalState),
        budget=budget(job, [each for run, taken in rounds if run == "grown" for each in taken]),
        seconds=seconds(job),
        rounds=rounds,
        widths=_widths(job, dict(rounds).get("grown", [])),
        curves={name: curve_table(curves, name) for name in CURVES if any(name in run for run in curves.values())},
        report=report,
        no_report=no_report,
        artifacts=artifacts,
        attempts=jobs.attempts(service.db, job_id),
    )


def budget_of(service: Service, job: Job) -> Budget | None:
    """The budget of a job in the list."""
    has_rounds = job.kind == "growth" and job.progress.get("run") is not None
    return budget(job, [each for each in jobs.rounds(service.db, job.id) if each.run == "grown"] if has_rounds else ())


def budget(job: Job, rounds: Sequence[Round]) -> Budget | None:
    """None for a job that has no budget, such as a profile."""
    asked = job.spec.get("budget")
    if not isinstance(asked, dict):
        return None
    progress, quantity = job.progress, asked["cost"]
    cost = progress.get("cost") if progress.get("run") == "grown" else None
    kind = "exact" if quantity in EXACT else "predicted"
    if rounds:
        after = rounds[-1].payload.get("cost_after") or {}
        kind = after.get("kind", kind)
        cost = after.get("value") if cost is None else cost
    return Budget(quantity, asked["limit"], UNITS[quantity], cost, kind)


def seconds(job: Job) -> float | None:
    """How long a job has run, or ran; None before it starts."""
    if job.started_at is None:
        return None
    return max(0.0, ((job.finished_at or datetime.now(UTC)) - job.started_at).total_seconds())


def by_run(rounds: Sequence[Round]) -> list[tuple[str, list[Round]]]:
    """The grown network's rounds first."""
    runs = [(run, list(taken)) for run, taken in groupby(rounds, key=lambda each: each.run)]
    return sorted(runs, key=lambda pair: _run_order(pair[0]))


def _run_order(run: str) -> tuple[int, int, str]:
    """The order in which a job carries them out, as far as it is known: seed by seed."""
    arm, _, repeat = run.partition(".")
    return (int(repeat) if repeat.isdecimal() else 0, ARMS.index(arm) if arm in ARMS else len(ARMS), run)


def curve_table(curves: Mapping[str, Mapping[str, Curve]], name: str) -> CurveTable:
    """Each run's last point at or before each of a few evenly spaced steps."""
    found = {run: named[name] for run, named in curves.items() if name in named}
    runs = sorted(found, key=_run_order)
    last = round(max(curve[-1][0] for curve in found.values()))
    steps = sorted({round(last * row / TABLE_ROWS) for row in range(TABLE_ROWS + 1)})
    ends = {run: max(curve[-1][0] for curve in named.values()) for run, named in curves.items() if named}
    return CurveTable(runs, [(step, [_at(found[run], step, ends[run]) for run in runs]) for step in steps])


def _at(curve: Curve, step: int, end: float) -> float | None:
    if step > end:
        return None
    return next((value for at, value in reversed(curve) if at <= step), None)


def _widths(job: Job, rounds: Sequence[Round]) -> WidthTable | None:
    columns = [("seed", rounds[0].payload["widths_before"])] if rounds else []
    columns += [(f"round {each.number}", each.payload["widths_after"]) for each in rounds]
    if not columns and job.progress.get("run") == "grown" and job.progress.get("widths"):
        columns = [("now" if job.state == "running" else "last known", job.progress["widths"])]
    if not columns:
        return None
    names = layer_names(job.spec["network"]["family"], columns[0][1])
    return WidthTable([title for title, _ in columns], [(name, [widths[i] for _, widths in columns]) for i, name in enumerate(names)])


def layer_names(family: Any, widths: Sequence[int]) -> list[str]:
    """The first producer of each channel group.  Names don't depend on the images, so any size will do."""
    names: dict[int, str] = {}
    for unit in Network(family, tuple(widths), 32, 3, 10).wiring().units:
        if unit.output is not None and unit.output != unit.input:
            names.setdefault(unit.output, unit.name)
    return [names[group] for group in range(len(widths))]


def _report(service: Service, job: Job, artifacts: Sequence[Artifact]) -> tuple[dict[str, Any] | None, str]:
    """The report, or why there is none."""
    found = next((artifact for artifact in artifacts if artifact.name == REPORT), None)
    if found is None:
        waiting = job.state in ("queued", "running")
        return None, "it is written when the job ends" if waiting else f"the job {job.state} before it was written"
    try:
        with service.artifacts.open(found.sha256) as file:
            return json.load(file), ""
    except FileNotFoundError as error:
        return None, str(error)
