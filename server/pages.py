"""The dashboard: pages that are complete as they are sent, and a script that keeps them up to date.

A page is rendered in one place, its template.  The script listens to the event stream, asks for the same page again when something
has happened and takes over what differs, so nothing is formatted twice.  Only curves are drawn in the browser.
"""

from __future__ import annotations

from hashlib import sha256
from itertools import groupby, islice
from pathlib import Path
from typing import Annotated, Any, get_args
from urllib.parse import urlencode, urlsplit

import yaml
from fastapi import APIRouter, Query, Request
from jinja2 import Environment, FileSystemLoader
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from costs.shapes import LayerShape
from costs.table import UNITS, CostEntry, CostTable, Key, of_form
from costs.widths import Widths
from server import shown
from server.deps import TheService
from server.words import FILTERS
from store import devices, jobs
from store.views import JobState, UnknownDevice

JOBS_PER_PAGE = 25
ENTRIES_PER_PAGE = 100
STATES = get_args(JobState)

_FOLDER = Path(__file__).parent
static = StaticFiles(directory=_FOLDER / "static")
router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


def asset(name: str) -> str:
    """URL of a static file; it changes with the file, so that no browser keeps an old one."""
    return f"/static/{name}?v={sha256((_FOLDER / 'static' / name).read_bytes()).hexdigest()[:12]}"


_templates = Environment(loader=FileSystemLoader(_FOLDER / "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
_templates.filters.update(FILTERS)
_templates.globals.update(
    assets={name: asset(name) for name in ("dashboard.css", "dashboard.js", "uPlot.min.css", "uPlot.iife.min.js")},
    states=STATES, units=UNITS, seconds_of=shown.seconds,
)  # fmt: skip


@router.get("/")
def list_page(
    service: TheService, state: Annotated[str, Query()] = "", cursor: Annotated[str | None, Query(max_length=32)] = None
) -> Response:
    """The jobs, newest first, those of one state or all."""
    wanted = next((each for each in STATES if each == state), None)
    if state and wanted is None:
        return error_page(404, f"No job is ever “{state[:40]}”", f"The states are {', '.join(STATES)}.")
    last_event = jobs.last_seq(service.db)
    found = jobs.find(service.db, state=wanted, before=cursor, limit=JOBS_PER_PAGE + 1)
    page = found[:JOBS_PER_PAGE]
    older = urlencode({"state": state, "cursor": page[-1].id} if state else {"cursor": page[-1].id}) if len(found) > len(page) else None
    counts = jobs.count_by_state(service.db)
    budgets = {job.id: shown.budget_of(service, job) for job in page}
    return _page(
        "jobs.html",
        jobs=page,
        budgets=budgets,
        counts=counts,
        total=sum(counts.values()),
        state=state,
        cursor=cursor,
        older=older,
        last_event=last_event,
    )


@router.get("/jobs/{job_id}")
def job_page(service: TheService, job_id: str) -> Response:
    """One job: how it stands, its curves, rounds, report, artifacts, attempts and spec."""
    try:
        view = shown.show(service, job_id)
    except jobs.UnknownJob:
        return error_page(404, "There is no such job", f"No job has the id {job_id[:40]}. It may belong to another server.")
    spec = yaml.safe_dump(view.job.spec, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
    return _page("job.html", view=view, job=view.job, spec=spec)


@router.post("/jobs/{job_id}/cancel")
def cancel(request: Request, service: TheService, job_id: str) -> Response:
    """The cancel button.  Browsers say where a form was sent from; here one that does not is refused (the API is for programs)."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    if site != "same-origin" and (origin is None or urlsplit(origin).netloc != request.headers.get("host")):
        return error_page(403, "The job was not cancelled", "The request did not come from a page of this server.")
    try:
        jobs.cancel(service.db, job_id)
    except jobs.UnknownJob:
        return error_page(404, "There is no such job", f"No job has the id {job_id[:40]}.")
    except jobs.JobIsTerminal:
        pass  # it ended while the button was on its way; its page says how
    return RedirectResponse(f"/jobs/{job_id}", 303)


@router.get("/devices")
def devices_page(service: TheService) -> Response:
    """The devices, and how much of each was measured."""
    return _page("devices.html", devices=devices.all_devices(service.db))


@router.get("/devices/{name}")
def device_page(service: TheService, name: str, page: Annotated[int, Query(ge=1, le=10_000)] = 1) -> Response:
    """One device: what it is, how well sums of its layers predict whole networks, and its cost table."""
    try:
        device = devices.device(service.db, name)
    except UnknownDevice:
        remedy = "A worker registers its device when it starts: wattle worker --device NAME."
        return error_page(404, "There is no such device", f"No worker has registered {name[:80]}. {remedy}")
    table = service.tables.load(service.db, name)
    start = (page - 1) * ENTRIES_PER_PAGE
    pages = max(1, -(-device.entries // ENTRIES_PER_PAGE))
    entries = [entry for entry in table.entries(_keys(table, start, ENTRIES_PER_PAGE)) if isinstance(entry, CostEntry)]
    return _page(
        "device.html", device=device, calibrations=table.calibrations, groups=_by_layer(entries),
        page=page, pages=pages, start=start, shown_entries=len(entries),
    )  # fmt: skip


def error_page(status: int, title: str, detail: str) -> Response:
    return _page("error.html", status, title=title, detail=detail)


def _page(template: str, status: int = 200, **context: Any) -> Response:
    return HTMLResponse(_templates.get_template(template).render(context), status, headers={"Cache-Control": "no-cache"})


def _form(shape: LayerShape) -> str:
    """A layer without its widths, in words."""
    op = {"conv2d": "depthwise conv" if shape.depthwise else "conv"}.get(shape.op, shape.op.replace("_", " "))
    behind = "".join(f" + {part}" for part in (shape.norm and "norm", shape.activation != "none" and shape.activation) if part)
    kernel = f" {shape.kernel}×{shape.kernel}, stride {shape.stride}," if shape.op in ("conv2d", "max_pool") else ""
    residual = " + residual" if shape.residual else ""
    place = "" if shape.op == "linear" else f" at {shape.height}×{shape.width} pixels"
    return f"{op}{kernel}{place}{behind}{residual}"


def _keys(table: CostTable, start: int, count: int) -> list[Key]:
    """Those of one page, in reading order: form by form, by rising widths."""
    forms = sorted(table.forms.items(), key=lambda item: _reading_order(*item))
    keys = (of_form(form, pair) for form, widths in forms for pair in widths)
    return list(islice(keys, start, start + count))


def _reading_order(form: Key, widths: Widths) -> tuple[Any, ...]:
    shape, setting, quantity = of_form(form, widths.largest)
    return (quantity, str(setting), shape.op, -shape.height, _form(shape))


def _by_layer(entries: list[CostEntry]) -> list[tuple[str, list[CostEntry]]]:
    """Entries of one layer form and setting together."""
    title = lambda entry: f"{_form(entry.shape)}, {entry.setting}"  # noqa: E731
    return [(name, list(group)) for name, group in groupby(entries, key=title)]
