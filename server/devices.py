"""Devices and what layers and networks cost on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query

from costs.model import EXACT, CostName
from costs.shapes import LayerShape
from costs.table import CostTable, NoCost, Setting
from server.deps import TheDevice, TheService
from server.problems import Refusal, documented
from server.views import (
    CalibrationView,
    CostEntryView,
    DeviceDetail,
    DeviceList,
    DeviceView,
    NetworkCost,
    NetworkCostQuery,
    ShapeQuery,
)  # fmt: skip
from store import devices
from store.admission import calibration_warnings, cost_model, seed_network
from store.images import DataShape
from store.problems import Problem

router = APIRouter(prefix="/v1/devices", tags=["devices"])


NEAREST = 8  # measured widths named when a layer can't be priced


@router.get("", responses=documented())
def list_devices(service: TheService) -> DeviceList:
    """All devices that workers have registered."""
    return DeviceList(devices=[DeviceView.of(device) for device in devices.all_devices(service.db)])


@router.get("/{name}", responses=documented(404, 422))
def get_device(device: TheDevice, service: TheService) -> DeviceDetail:
    """A device, its fingerprint, and what its cost table was calibrated for."""
    table = service.tables.load(service.db, device.name)
    return DeviceDetail(**DeviceView.of(device).model_dump(), calibrated=[CalibrationView.of(each) for each in table.calibrations])


@router.get("/{name}/costs", responses=documented(404, 422))
def get_cost(device: TheDevice, service: TheService, query: Annotated[ShapeQuery, Query()]) -> CostEntryView:
    """What one layer costs on its own: counted, measured, or from the next measured widths.  404 beyond what was measured."""
    table = service.tables.load(service.db, device.name)
    shape, setting = query.shape(), Setting(query.batch_size, query.threads)
    if query.cost in EXACT:
        return CostEntryView.exact(device.name, shape, setting, cost_model(query.cost, table, setting))
    try:
        return CostEntryView.of(device.name, table.entry(shape, setting, query.cost))
    except NoCost as error:
        nearest = _nearest(table, shape, setting, query.cost)
        remedy = "ask for one of the measured widths, or run `wattle profile` for a network that holds this layer"
        raise Refusal(404, str(error), [Problem("in_channels", shape.in_channels, nearest, remedy, str(error))]) from error


@router.post("/{name}/costs:network", responses=documented(400, 403, 404, 413, 422))
def price_network(device: TheDevice, service: TheService, query: NetworkCostQuery) -> NetworkCost:
    """What a network costs on the device, as a whole and layer by layer.  404 where the cost table does not reach it."""
    wiring = seed_network(query.network, DataShape(query.image_size, query.in_channels, query.classes)).wiring()
    setting, table = Setting(query.batch_size, query.threads), service.tables.load(service.db, device.name)
    model = cost_model(query.cost, table, setting)
    try:
        calibration = table.calibration(query.cost, setting) if query.cost not in EXACT else None
        return NetworkCost.of(device.name, wiring, model, setting, calibration, calibration_warnings(device.name, wiring, model))
    except NoCost as error:
        remedy = "run `wattle profile` for this network, image size, batch size and thread count"
        raise Refusal(404, str(error), [Problem("network", query.network.family, None, remedy, str(error))]) from error


def _nearest(table: CostTable, shape: LayerShape, setting: Setting, cost: CostName) -> list[str]:
    """The measured widths of layers like this one, nearest first."""

    def distance(other: LayerShape) -> int:
        return abs(other.in_channels - shape.in_channels) + abs(other.out_channels - shape.out_channels)

    alike = {entry.shape for entry in table if (entry.setting, entry.quantity) == (setting, cost) and _form(entry.shape) == _form(shape)}
    return [f"{each.in_channels}->{each.out_channels}" for each in sorted(alike, key=distance)[:NEAREST]]


def _form(shape: LayerShape) -> LayerShape:
    """What is left of a shape without its widths."""
    return replace(shape, in_channels=0, out_channels=0, groups=0 if shape.depthwise else shape.groups)
