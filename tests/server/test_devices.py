"""Devices, and what layers and networks cost on them."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from costs.table import CostTable
from server.deps import Tables
from store import devices
from store.database import Database, DatabaseUnavailable

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
            "scale": 1.5, "per_layer": 0.0, "error_percent": 2.0, "anchors": 1,
            "meter": "wall_clock", "scope": "process", "kind": "measured",
        },
    ]  # fmt: skip


def test_threads_are_the_devices_own_unless_the_question_says_otherwise(client: TestClient, db: Database) -> None:
    devices.register(db, "two", {"threads": 2})
    answer = client.get("/v1/devices/two").json()
    assert (answer["threads"], answer["alive"]) == (2, False)
    for given, used in (({}, 2), ({"threads": 1}, 1)):
        refused = client.get("/v1/devices/two/costs", params={**STEM, **given}).json()
        assert f"(batch 1, {used} thread" in refused["detail"]
        assert f"batch 1, {used} thread" in client.post("/v1/devices/two/costs:network", json={**NETWORK, **given}).json()["detail"]


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
def test_energy_of_a_network_by_declared_watts(client: TestClient) -> None:
    def ask(**more: Any) -> Any:
        return client.post("/v1/devices/this-host/costs:network", json={**NETWORK, **more})

    time, energy = ask().json()["total"], ask(cost="energy_mj", declared_watts=10).json()["total"]
    assert (energy["kind"], energy["unit"]) == ("estimated:power_model", "mJ")
    assert energy["value"] == pytest.approx(10 * time["value"])
    assert "declare watts" in ask(cost="energy_mj").json()["errors"][0]["remedy"]
    assert "ask for energy_mj" in ask(declared_watts=10).json()["errors"][0]["message"]


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


@pytest.mark.usefixtures("measured")
def test_many_layers_at_once_each_answered_as_it_is_alone(client: TestClient) -> None:
    asked = [STEM, {**STEM, "out_channels": 5}, {**STEM, "out_channels": 99}, {**STEM, "cost": "macs"}]
    answers = client.post("/v1/devices/this-host/costs:query", json={"queries": asked}).json()["answers"]
    for query, answer in zip(asked, answers, strict=True):
        alone = client.get("/v1/devices/this-host/costs", params=query)
        if alone.status_code == 200:
            assert (answer["entry"], answer["problem"]) == (alone.json(), None)
        else:
            assert (answer["entry"], answer["problem"]) == (None, alone.json()["errors"][0])
    assert [answer["entry"] is None for answer in answers] == [False, False, True, False]
    too_many = client.post("/v1/devices/this-host/costs:query", json={"queries": [STEM] * 1001})
    assert too_many.status_code == 422
    assert "at most 1000" in too_many.json()["detail"]


def test_an_estimated_layer_stays_one_inside_a_network_and_declared_watts_give_way(
    client: TestClient, measured: CostTable, db: Database
) -> None:
    first, *others = (replace(entry, quantity="energy_mj", unit="mJ", meter="rapl_package", scope="package") for entry in measured)
    scale = replace(measured.calibrations[0], quantity="energy_mj", meter="rapl_package", scope="package")
    devices.save_table(db, None, CostTable("this-host", [first, *(replace(e, kind="estimated:power_x_time") for e in others)], [scale]))
    answer = client.post("/v1/devices/this-host/costs:network", json={**NETWORK, "cost": "energy_mj", "declared_watts": 10}).json()
    kinds = [layer["cost"]["kind"] for layer in answer["layers"]]
    assert answer["total"]["kind"] == "calibrated_sum"
    assert set(kinds) <= {"calibrated_sum", "estimated:power_x_time"}
    assert "estimated:power_x_time" in kinds
    assert "a meter has measured the energy of this-host: declared_watts is not used" in answer["warnings"]
    elsewhere = {**NETWORK, "cost": "energy_mj", "declared_watts": 10, "batch_size": 7}
    assert "declare watts" not in client.post("/v1/devices/this-host/costs:network", json=elsewhere).json()["errors"][0]["remedy"]


def test_answers_carry_the_tables_version_and_are_not_sent_twice(client: TestClient, measured: CostTable, db: Database) -> None:
    for path, params in (("costs", STEM), ("table", {}), ("table", {"format": "csv"})):
        first = client.get(f"/v1/devices/this-host/{path}", params=params)
        assert (first.status_code, first.headers["ETag"].rpartition("/")[2]) == (200, '1"')
        again = client.get(f"/v1/devices/this-host/{path}", params=params, headers={"If-None-Match": first.headers["ETag"]})
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", first.headers["ETag"])
    devices.save_table(db, None, measured)
    changed = client.get("/v1/devices/this-host/costs", params=STEM, headers={"If-None-Match": first.headers["ETag"]})
    assert (changed.status_code, changed.headers["ETag"].rpartition("/")[2]) == (200, '2"')


def test_a_device_of_another_store_has_another_version(client: TestClient, measured: CostTable, db: Database) -> None:
    """The data folder was deleted, say, and a client kept an answer of the first table."""
    first = cost(client).headers["ETag"]
    with db.transaction() as session:
        session.execute(text("UPDATE devices SET registered_at = '2020-01-01 00:00:00.000000'"))
    state = client.app.state  # type: ignore[attr-defined]
    state.service = replace(state.service, tables=Tables(0.0))  # of another process
    other = client.get("/v1/devices/this-host/costs", params=STEM, headers={"If-None-Match": first})
    assert (other.status_code, other.headers["ETag"] == first) == (200, False)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"in_channels": 3, "groups": 4, "out_channels": 8}, "groups is 4 with channels 3->8; it must divide both"),
        ({"op": "linear"}, "a linear layer has kernel, stride, height and width 1"),
        ({"op": "max_pool"}, "channels are 1->4; max_pool gives out what it takes in"),
        ({"op": "global_pool", "in_channels": 4, "groups": 4}, "groups is 4; global_pool has 1"),
    ],
)
@pytest.mark.parametrize("quantity", ["macs", "latency_ms"])
def test_a_layer_that_can_not_be_has_no_cost(client: TestClient, shape: dict[str, Any], words: str, quantity: str) -> None:
    refused = cost(client, **shape, cost=quantity)
    assert refused.status_code == 422
    assert words in refused.json()["detail"]


def test_a_device_without_a_table_is_known_as_it_is_now(client: TestClient, db: Database) -> None:
    for threads in (1, 2):
        devices.register(db, "new", {"threads": threads})
        refused = client.get("/v1/devices/new/costs", params=STEM).json()
        assert f"{threads} thread" in refused["detail"]


def test_a_lookup_meets_a_database_that_is_away(client: TestClient, measured: CostTable, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> None:
        raise DatabaseUnavailable("the database did not answer")

    assert cost(client).status_code == 200
    monkeypatch.setattr(Database, "rows", away)
    for response in (cost(client, out_channels=5), client.post("/v1/devices/this-host/costs:query", json={"queries": [STEM]})):
        assert (response.status_code, response.headers["Retry-After"]) == (503, "5")


@pytest.mark.usefixtures("measured")
def test_a_lookup_in_a_database_elsewhere_is_answered_in_a_thread(client: TestClient, db: Database) -> None:
    here = cost(client).json()
    client.app.state.service.db.is_local = False  # type: ignore[attr-defined]
    assert cost(client).json() == here
    assert cost(client, out_channels=99_999).status_code == 404


def test_a_thousand_errors_are_counted_and_the_first_described(client: TestClient) -> None:
    refused = client.post("/v1/devices/this-host/costs:query", json={"queries": 900 * [{}]})
    assert (refused.status_code, len(refused.json()["errors"])) == (422, 50)
    assert "(and 2699 more)" in refused.json()["detail"]


def test_a_table_can_be_taken_away(client: TestClient, measured: CostTable) -> None:
    response = client.get("/v1/devices/this-host/table")
    assert response.headers["Content-Disposition"] == 'attachment; filename="this-host.json"'
    assert set(CostTable.from_json(response.json())) == set(measured)
    assert CostTable.from_json(response.json()).calibrations == measured.calibrations
    assert response.json()["fingerprint"] == {"cpu": "test"}
    rows = list(csv.DictReader(io.StringIO(client.get("/v1/devices/this-host/table", params={"format": "csv"}).text)))
    assert len(rows) == len(measured)
    first = next(iter(measured))
    assert (rows[0]["device"], rows[0]["op"], int(rows[0]["out_channels"])) == ("this-host", first.shape.op, first.shape.out_channels)
    assert (float(rows[0]["value"]), rows[0]["unit"], rows[0]["kind"]) == (first.value, first.unit, first.kind)
    assert client.get("/v1/devices/this-host/table", params={"format": "xml"}).status_code == 422


def test_a_table_can_be_brought_elsewhere(client: TestClient, measured: CostTable) -> None:
    document = client.get("/v1/devices/this-host/table").json()
    tried = client.post("/v1/devices/copy/table", params={"dry_run": True}, json=document)
    assert (tried.status_code, tried.json()["device"]["entries"], tried.json()["dry_run"]) == (200, len(measured), True)
    assert client.get("/v1/devices/copy").status_code == 404
    done = client.post("/v1/devices/copy/table", json=document).json()
    assert (done["entries"], done["calibrations"], done["device"]["table_version"]) == (len(measured), 1, 1)
    assert client.get("/v1/devices/copy/costs", params=STEM).json()["value"] == cost(client).json()["value"]
    assert client.post("/v1/devices/copy/costs:network", json=NETWORK).status_code == 200


def test_an_import_is_all_or_nothing(client: TestClient, measured: CostTable) -> None:
    document = client.get("/v1/devices/this-host/table").json()
    other = client.post("/v1/devices/this-host/table", json={**document, "fingerprint": {"cpu": "another"}})
    assert (other.status_code, other.json()["errors"][0]["field"]) == (409, "fingerprint")
    document["entries"][3]["unit"] = "s"
    wrong = client.post("/v1/devices/copy/table", json=document)
    assert wrong.status_code == 422
    (error,) = wrong.json()["errors"]
    assert error["field"] == "entries.3"
    assert "unit is 's'; latency_ms is in ms" in error["message"]
    assert client.get("/v1/devices/copy").status_code == 404
    assert client.get("/v1/devices/this-host").json()["table_version"] == 1


def test_a_table_may_be_larger_than_a_spec_and_not_endless(client: TestClient) -> None:
    assert client.post("/v1/devices/copy/table", content=b" " * 300_000, headers={"Content-Type": "application/json"}).status_code == 422
    too_large = client.post("/v1/devices/copy/table", content=b" " * 8_400_000, headers={"Content-Type": "application/json"})
    assert too_large.status_code == 413
    assert "in pieces" in too_large.json()["detail"]


@pytest.mark.usefixtures("measured")
def test_numbers_that_may_no_longer_hold_say_so(client: TestClient, db: Database) -> None:
    fresh = cost(client)
    devices.register(db, "this-host", {"cpu": "another"})
    stale = client.get("/v1/devices/this-host/costs", params=STEM, headers={"If-None-Match": fresh.headers["ETag"]})
    assert stale.status_code == 200, "a client that kept the answer hears of it"
    assert (fresh.json()["expired"], stale.json()["value"]) == (None, fresh.json()["value"])
    assert "cpu was 'test', is 'another'" in stale.json()["expired"]
    assert stale.json()["expired"] in client.post("/v1/devices/this-host/costs:network", json=NETWORK).json()["warnings"]
    assert client.get("/v1/devices/this-host").json()["expired"] == stale.json()["expired"]
    assert cost(client, cost="macs").json()["expired"] is None


def test_an_answer_may_be_a_moment_old_and_a_refusal_never(client: TestClient, measured: CostTable, db: Database) -> None:
    client.app.state.service.tables.recent_seconds = 60.0  # type: ignore[attr-defined]
    assert cost(client).json()["value"] == 0.04
    stem = next(entry for entry in measured if (entry.shape.in_channels, entry.shape.out_channels) == (1, 4))
    wide = replace(stem, shape=replace(stem.shape, out_channels=32), value=0.5)
    devices.save_table(db, None, CostTable("this-host", [wide, replace(stem, value=0.07)]))
    assert cost(client).json()["value"] == 0.04
    assert cost(client, out_channels=32).json()["value"] == 0.5
    assert cost(client).json()["value"] == 0.07, "the table that was read for it is known from now on"
