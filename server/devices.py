"""Devices and what layers and networks cost on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from tempfile import TemporaryFile
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool

from costs.model import EXACT, CostModel, CostName
from costs.shapes import LayerShape, Wiring
from costs.table import CostEntry, Key, NoCost, Setting, TableCost
from server import examples
from server.deps import DeviceName, KnownTable, Service, TheDevice, TheService, TheTable, existing_table, recent_table, service
from server.problems import Refusal, documented
from server.views import (
    CalibrationView,
    CostAnswer,
    CostAnswers,
    CostEntryView,
    DeviceDetail,
    DeviceList,
    DeviceView,
    NetworkCost,
    NetworkCostQuery,
    ShapeQueries,
    ShapeQuery,
    TableImport,
    query_parameters,
)  # fmt: skip
from store import devices
from store.admission import calibration_warnings, cost_model, seed_network, with_watts
from store.images import DataShape
from store.problems import Problem
from store.table_document import TableDocument, as_json
from store.views import MeasuredElsewhere

router = APIRouter(prefix="/v1/devices", tags=["devices"])


BLOCK = 65_536  # bytes of a download
FORMATS = {"json": "application/json", "csv": "text/csv; charset=utf-8"}
Format = Literal["json", "csv"]
_ETAG_SEEN = "the ETag of an answer from the same table"
IfNoneMatch = Annotated[str | None, Header(description=_ETAG_SEEN)]
IF_NONE_MATCH = {"name": "if-none-match", "in": "header", "required": False, "schema": {"type": "string"}, "description": _ETAG_SEEN}
_UNCHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "If-None-Match names the table's present version"}}


@router.get(
    "/{name}/costs",
    response_model=CostEntryView,
    responses={**_UNCHANGED, **documented(404, 422)},
    openapi_extra={"parameters": [*query_parameters(ShapeQuery, examples.LAYER), IF_NONE_MATCH]},
)
async def get_cost(request: Request, name: DeviceName) -> Response:
    """What one layer costs on its own: counted, measured, or from the next measured widths.  404 beyond what was measured."""
    # The first route, for they are tried in order; and it reads the request itself: FastAPI would take as long for that as the rest takes.
    kept_by, query, if_none_match = await service(request), _shape_query(request), request.headers.get("if-none-match")
    if kept_by.db.is_local:  # a thread would take longer to get its turn than the file takes to answer
        return _one_cost(kept_by, name, query, if_none_match)
    return await run_in_threadpool(_one_cost, kept_by, name, query, if_none_match)


def _shape_query(request: Request) -> ShapeQuery:
    """The layer that the query parameters name."""
    try:
        return ShapeQuery.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise RequestValidationError([{**each, "loc": ("query", *each["loc"])} for each in error.errors()]) from error


def _one_cost(service: Service, name: str, query: ShapeQuery, if_none_match: str | None) -> Response:
    known = recent_table(service, name)
    if known.unchanged(if_none_match):
        return Response(status_code=304, headers=known.headers)
    (answer,) = _answers(known, [query])
    if isinstance(answer, Problem):  # of the table as it is now, then
        known = existing_table(service, name)
        (answer,) = _answers(known, [query])
    if isinstance(answer, Problem):
        raise Refusal(404, answer.message, [answer])
    return _json(answer, known.headers)


@router.get("", responses=documented())
def list_devices(service: TheService) -> DeviceList:
    """All devices that workers have registered."""
    return DeviceList(devices=[DeviceView.of(device) for device in devices.all_devices(service.db)])


@router.get("/{name}", responses=documented(404, 422))
def get_device(device: TheDevice, service: TheService) -> DeviceDetail:
    """A device, its fingerprint, and what its cost table was calibrated for."""
    table = service.tables.load(service.db, device.name)
    return DeviceDetail(**DeviceView.of(device).model_dump(), calibrated=[CalibrationView.of(each) for each in table.calibrations])


@router.post("/{name}/costs:query", response_model=CostAnswers, responses=documented(400, 403, 404, 413, 422))
def get_costs(service: TheService, name: DeviceName, queries: ShapeQueries) -> Response:
    """What many layers cost, in one request.  Those beyond what was measured are answered with the reason."""
    known = existing_table(service, name)
    return _json(CostAnswers(device=known.device, answers=[CostAnswer.of(each) for each in _answers(known, queries.queries)]))


@router.get(
    "/{name}/table",
    response_class=Response,
    responses={200: {"content": {media_type: {} for media_type in FORMATS.values()}}, **_UNCHANGED, **documented(404, 422)},
)
def get_table(
    known: TheTable, file_format: Annotated[Format, Query(alias="format")] = "json", if_none_match: IfNoneMatch = None
) -> Response:
    """The whole cost table, to keep or to share: as JSON with its origin and calibrations, or the entries as CSV."""
    if known.unchanged(if_none_match):
        return Response(status_code=304, headers=known.headers)
    lines = as_json(known.origin, known.table) if file_format == "json" else known.table.to_csv()
    name = {"Content-Disposition": f'attachment; filename="{known.device}.{file_format}"'}
    return StreamingResponse(_spooled(lines), media_type=FORMATS[file_format], headers={**known.headers, **name})


@router.post("/{name}/table", responses=documented(400, 403, 409, 413, 422))
def import_table(
    service: TheService,
    name: DeviceName,
    document: TableDocument,
    dry_run: Annotated[bool, Query(description="only check the document, keep nothing")] = False,
) -> TableImport:
    """Add a table that was measured elsewhere, as GET writes it.  All or nothing; 409 where the device's own is of another machine."""
    try:
        device = devices.import_table(service.db, name, document, dry_run)
    except MeasuredElsewhere as error:
        raise Refusal(409, str(error), [Problem("fingerprint", error.changes, None, error.remedy, str(error))]) from error
    counts = {"entries": len(document.entries), "calibrations": len(document.calibrations)}
    return TableImport(**counts, dry_run=dry_run, device=DeviceView.of(device))


@router.post("/{name}/costs:network", responses=documented(400, 403, 404, 413, 422))
def price_network(known: TheTable, query: NetworkCostQuery) -> NetworkCost:
    """What a network costs on the device, as a whole and layer by layer.  404 where the cost table does not reach it."""
    wiring = seed_network(query.network, DataShape(query.image_size, query.in_channels, query.classes)).wiring()
    setting, table = _setting(known, query), with_watts(known.table, query.declared_watts)
    model = cost_model(query.cost, table, setting)
    try:
        calibration = table.calibration(query.cost, setting) if query.cost not in EXACT else None
        warnings = _warnings(known, wiring, model)
        if query.declared_watts is not None and table is known.table:
            warnings.append(f"a meter has measured the energy of {known.device}: declared_watts is not used")
        return NetworkCost.of(known.device, wiring, model, setting, calibration, warnings)
    except NoCost as error:
        remedy = "run `wattle profile` for this network, image size, batch size and thread count"
        if query.cost == "energy_mj":
            remedy += " with --meter METER" + (", or declare watts (declared_watts)" if query.declared_watts is None else "")
        raise Refusal(404, str(error), [Problem("network", query.network.family, None, remedy, str(error))]) from error


def _setting(known: KnownTable, query: ShapeQuery | NetworkCostQuery) -> Setting:
    return Setting(query.batch_size, query.threads or known.origin.threads)


def _warnings(known: KnownTable, wiring: Wiring, model: CostModel) -> list[str]:
    expired = known.origin.expired if isinstance(model, TableCost) else None
    return [*([expired] if expired else []), *calibration_warnings(known.device, wiring, model)]


def _answers(known: KnownTable, queries: Sequence[ShapeQuery]) -> list[CostEntryView | Problem]:
    """The answer to each: counted, or from the table, which is asked once for all."""
    asked = [(query.shape(), _setting(known, query), query.cost) for query in queries]
    found = iter(known.table.entries([key for key in asked if key[2] not in EXACT]))
    expired = known.origin.expired
    return [_counted(known, *key) if key[2] in EXACT else _answer(known, key, next(found), expired) for key in asked]


def _counted(known: KnownTable, shape: LayerShape, setting: Setting, cost: CostName) -> CostEntryView:
    return CostEntryView.exact(known.device, shape, setting, cost_model(cost, known.table, setting))


def _answer(known: KnownTable, key: Key, found: CostEntry | NoCost, expired: str | None) -> CostEntryView | Problem:
    if isinstance(found, CostEntry):
        return CostEntryView.of(known.device, found, expired)
    nearest = [f"{i}->{o}" for i, o in found.nearest]
    remedy = "ask for one of the measured widths, or run `wattle profile` for a network that holds this layer"
    return Problem("in_channels", key[0].in_channels, nearest, remedy, str(found))


def _json(view: BaseModel, headers: Mapping[str, str] | None = None) -> Response:
    """The view as it is: FastAPI would check it against its model once more, which takes longer than to find it."""
    return Response(view.model_dump_json(), media_type="application/json", headers=headers)


def _spooled(lines: Iterable[str]) -> Iterator[bytes]:
    """The lines by way of a file, so that neither memory nor a transaction waits for a slow client."""
    with TemporaryFile() as file:
        for line in lines:
            file.write(line.encode())
        file.seek(0)
        while block := file.read(BLOCK):
            yield block
