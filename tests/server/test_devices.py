"""Devices, and what layers and networks cost on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from costs.table import CostTable
from store import devices
from store.database import Database

STEM = {
    "op": "conv2d", "in_channels": 1, "out_channels": 4, "kernel": 3, "height": 8, "width": 8, "norm": True, "activation": "silu",
}  # fmt: skip
NETWORK = {"network": {"family": "plain", "widths": [4, 6, 8]}, "image_size": 8, "in_channels": 1, "classes": 10}


def cost(client: TestClient, **changes: Any) -> Any:
    return client.get("/v1/devices/this-host/costs", params={**STEM, **changes})


def test_devices_and_what_was_measured(client: TestClient, measured: CostTable) -> None:
    (listed,) = client.get("/v1/devices").json()["devices"]
    assert (listed["name"], listed["entries"], listed["calibrations"], listed["fingerprint"]) == (
        "this-host",
        len(measured),
        1,
        {"cpu": "test"},
    )
    device = client.get("/v1/devices/this-host").json()
    assert device["calibrated"] == [
        {
            "quantity": "latency_ms", "setting": {"batch_size": 1, "threads": 1, "dtype": "float32", "layout": "contiguous"},
            "scale": 1.5, "error_percent": 2.0, "anchors": 1,
        },
    ]  # fmt: skip


def test_unknown_device(client: TestClient) -> None:
    for response in (client.get("/v1/devices/moon"), client.get("/v1/devices/moon/costs", params=STEM)):
        assert response.status_code == 404
        assert response.json()["errors"][0]["remedy"] == "start a worker on it: wattle worker --device moon"
    assert client.post("/v1/devices/moon/costs:network", json=NETWORK).status_code == 404


@pytest.mark.usefixtures("measured")
def test_measured_layer(client: TestClient) -> None:
    entry = cost(client).json()
    assert (entry["value"], entry["unit"], entry["kind"], entry["meter"]) == (0.04, "ms", "measured", "wall_clock")
    assert entry["low"] < entry["value"] < entry["high"]
    assert entry["shape"]["stride"] == 1
    assert entry["setting"]["batch_size"] == 1
    assert entry["device"] == "this-host"


@pytest.mark.usefixtures("measured")
def test_layer_between_measured_widths(client: TestClient) -> None:
    entry = cost(client, out_channels=5).json()
    assert (entry["value"], entry["kind"]) == (0.16, "interpolated")


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("change", [{"out_channels": 99}, {"kernel": 5}, {"batch_size": 2}, {"cost": "energy_mj"}])
def test_layer_beyond_the_table(change: dict[str, Any], client: TestClient) -> None:
    response = cost(client, **change)
    assert response.status_code == 404
    (error,) = response.json()["errors"]
    assert error["limit"] == (["1->16", "16->24", "1->4", "4->6"] if "out_channels" in change else [])
    assert "wattle profile" in error["message"]


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("change", [{"out_channels": 0}, {"op": "conv9"}, {"heigth": 3}])
def test_wrong_shape(change: dict[str, Any], client: TestClient) -> None:
    response = cost(client, **change)
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == f"query.{next(iter(change))}"


@pytest.mark.usefixtures("measured")
def test_network_by_layer_and_in_total(client: TestClient) -> None:
    answer = client.post("/v1/devices/this-host/costs:network", json=NETWORK).json()
    assert answer["total"]["kind"] == "calibrated_sum"
    assert sum(layer["cost"]["value"] for layer in answer["layers"]) == pytest.approx(answer["total"]["value"])
    assert [layer["name"] for layer in answer["layers"]][:2] == ["blocks.0.conv", "blocks.1.conv"]
    assert answer["calibration"]["scale"] == 1.5


@pytest.mark.usefixtures("measured")
def test_network_by_exact_counts(client: TestClient) -> None:
    answer = client.post("/v1/devices/this-host/costs:network", json={**NETWORK, "cost": "params"}).json()
    assert (answer["total"]["kind"], answer["total"]["unit"], answer["calibration"]) == ("exact", "parameters", None)


@pytest.mark.usefixtures("measured")
def test_a_layer_by_exact_count_needs_no_measurement(client: TestClient) -> None:
    answer = cost(client, in_channels=3, out_channels=11, cost="macs").json()
    assert (answer["kind"], answer["unit"], answer["meter"], answer["low"]) == ("exact", "MACs", None, None)
    assert answer["value"] == 3 * 11 * answer["shape"]["kernel"] ** 2 * answer["shape"]["height"] * answer["shape"]["width"]


@pytest.mark.usefixtures("measured")
def test_a_network_of_another_form_than_was_measured_is_priced_with_a_warning(client: TestClient) -> None:
    assert client.post("/v1/devices/this-host/costs:network", json=NETWORK).json()["warnings"] != []


@pytest.mark.usefixtures("measured")
def test_network_beyond_the_table(client: TestClient) -> None:
    wide = {**NETWORK, "network": {"family": "plain", "widths": [4, 6, 99]}}
    response = client.post("/v1/devices/this-host/costs:network", json=wide)
    assert response.status_code == 404
    assert "wattle profile" in response.json()["errors"][0]["remedy"]
    wrong = {**NETWORK, "network": {"family": "mobilenet_v1", "widths": [4]}}
    assert client.post("/v1/devices/this-host/costs:network", json=wrong).json()["errors"][0]["field"] == "network.widths"


def test_table_is_read_again_when_it_grows(client: TestClient, measured: CostTable, db: Database) -> None:
    assert cost(client, batch_size=2).status_code == 404
    (old,) = [entry for entry in measured if entry.shape.in_channels == 1 and entry.shape.out_channels == 4]
    entry = replace(old, setting=replace(old.setting, batch=2), value=0.07)
    devices.save_table(db, None, CostTable("this-host", [entry]))
    assert cost(client, batch_size=2).json()["value"] == 0.07
