"""Devices and what layers and networks cost on them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Response

from costs.model import EXACT, CostName
from costs.shapes import LayerShape
from costs.table import CostTable, NoCost, Setting
from server.deps import KnownTable, TheDevice, TheService, TheTable
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
    ProblemView,
    ShapeQueries,
    ShapeQuery,
)  # fmt: skip
from store import devices
from store.admission import calibration_warnings, cost_model, seed_network
from store.images import DataShape
from store.problems import Problem

router = APIRouter(prefix="/v1/devices", tags=["devices"])


NEAREST = 8  # measured widths named when a layer can't be priced
FORMATS = {"json": "application/json", "csv": "text/csv; charset=utf-8"}
Format = Literal["json", "csv"]
IfNoneMatch = Annotated[str | None, Header(description="the ETag of an answer from the same table")]
_UNCHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "If-None-Match names the table's present version"}}


@router.get("", responses=documented())
def list_devices(service: TheService) -> DeviceList:
    """All devices that workers have registered."""
    return DeviceList(devices=[DeviceView.of(device) for device in devices.all_devices(service.db)])


@router.get("/{name}", responses=documented(404, 422))
def get_device(device: TheDevice, service: TheService) -> DeviceDetail:
    """A device, its fingerprint, and what its cost table was calibrated for."""
    table = service.tables.load(service.db, device.name)
    return DeviceDetail(**DeviceView.of(device).model_dump(), calibrated=[CalibrationView.of(each) for each in table.calibrations])


@router.get("/{name}/costs", response_model=CostEntryView, responses={**_UNCHANGED, **documented(404, 422)})
def get_cost(known: TheTable, query: Annotated[ShapeQuery, Query()], response: Response, if_none_match: IfNoneMatch = None) -> Any:
    """What one layer costs on its own: counted, measured, or from the next measured widths.  404 beyond what was measured."""
    if known.unchanged(if_none_match):
        return Response(status_code=304, headers=known.headers)
    response.headers.update(known.headers)
    try:
        return _entry(known, query)
    except NoCost as error:
        raise Refusal(404, str(error), [_beyond(known, query, error)]) from error


@router.post("/{name}/costs:query", responses=documented(400, 403, 404, 413, 422))
def get_costs(known: TheTable, queries: ShapeQueries) -> CostAnswers:
    """What many layers cost, in one request.  Those beyond what was measured are answered with the reason."""
    answers = []
    for query in queries.queries:
        try:
            answers.append(CostAnswer(entry=_entry(known, query), problem=None))
        except NoCost as error:
            answers.append(CostAnswer(entry=None, problem=ProblemView.of(_beyond(known, query, error))))
    return CostAnswers(device=known.device, answers=answers)


@router.get(
    "/{name}/table",
    response_class=Response,
    responses={200: {"content": {media_type: {} for media_type in FORMATS.values()}}, **_UNCHANGED, **documented(404, 422)},
)
def get_table(
    known: TheTable, file_format: Annotated[Format, Query(alias="format")] = "json", if_none_match: IfNoneMatch = None
) -> Response:
    """The whole cost table, to keep or to share: as JSON with its calibrations, or the entries as CSV."""
    if known.unchanged(if_none_match):
        return Response(status_code=304, headers=known.headers)
    content = json.dumps(known.table.to_json()) if file_format == "json" else known.table.to_csv()
    name = {"Content-Disposition": f'attachment; filename="{known.device}.{file_format}"'}
    return Response(content, media_type=FORMATS[file_format], headers={**known.headers, **name})


@router.post("/{name}/costs:network", responses=documented(400, 403, 404, 413, 422))
def price_network(known: TheTable, query: NetworkCostQuery) -> NetworkCost:
    """What a network costs on the device, as a whole and layer by layer.  404 where the cost table does not reach it."""
    wiring = seed_network(query.network, DataShape(query.image_size, query.in_channels, query.classes)).wiring()
    setting, table = Setting(query.batch_size, query.threads), known.table
    model = cost_model(query.cost, table, setting)
    try:
        calibration = table.calibration(query.cost, setting) if query.cost not in EXACT else None
        return NetworkCost.of(known.device, wiring, model, setting, calibration, calibration_warnings(known.device, wiring, model))
    except NoCost as error:
        remedy = "run `wattle profile` for this network, image size, batch size and thread count"
        raise Refusal(404, str(error), [Problem("network", query.network.family, None, remedy, str(error))]) from error


def _entry(known: KnownTable, query: ShapeQuery) -> CostEntryView:
    """NoCost beyond what was measured."""
    shape, setting = query.shape(), Setting(query.batch_size, query.threads)
    if query.cost in EXACT:
        return CostEntryView.exact(known.device, shape, setting, cost_model(query.cost, known.table, setting))
    return CostEntryView.of(known.device, known.table.entry(shape, setting, query.cost))


def _beyond(known: KnownTable, query: ShapeQuery, error: NoCost) -> Problem:
    """The refusal of a layer, with the measured widths that are nearest."""
    nearest = _nearest(known.table, query.shape(), Setting(query.batch_size, query.threads), query.cost)
    remedy = "ask for one of the measured widths, or run `wattle profile` for a network that holds this layer"
    return Problem("in_channels", query.in_channels, nearest, remedy, str(error))


def _nearest(table: CostTable, shape: LayerShape, setting: Setting, cost: CostName) -> list[str]:
    """The measured widths of layers like this one, nearest first."""

    def distance(other: LayerShape) -> int:
        return abs(other.in_channels - shape.in_channels) + abs(other.out_channels - shape.out_channels)

    alike = {entry.shape for entry in table if (entry.setting, entry.quantity) == (setting, cost) and _form(entry.shape) == _form(shape)}
    return [f"{each.in_channels}->{each.out_channels}" for each in sorted(alike, key=distance)[:NEAREST]]


def _form(shape: LayerShape) -> LayerShape:
    """What is left of a shape without its widths."""
    return replace(shape, in_channels=0, out_channels=0, groups=0 if shape.depthwise else shape.groups)
