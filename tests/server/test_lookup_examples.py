"""The examples of the lookups in the OpenAPI document are what a server says that holds the example's table."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from server import examples
from wattle.client import Client

PATH = f"/v1/devices/{examples.DEVICE}"


@pytest.fixture
def shown(client: TestClient) -> dict[str, Any]:
    """The operations on devices, by method and the end of the path; the example's table is known."""
    assert client.post(f"{PATH}/table", json=examples.TABLE).json()["entries"] == len(examples.TABLE["entries"])
    paths = client.get("/openapi.json").json()["paths"]
    return {f"{method} {path.rpartition('/')[2]}": each for path, methods in paths.items() for method, each in methods.items()}


def asked(operation: dict[str, Any]) -> Any:
    return operation["requestBody"]["content"]["application/json"]["example"]


def answer(operation: dict[str, Any]) -> Any:
    return operation["responses"]["200"]["content"]["application/json"]["example"]


def rounded(document: Any) -> Any:
    if isinstance(document, dict):
        return {key: rounded(value) for key, value in document.items()}
    if isinstance(document, list):
        return [rounded(value) for value in document]
    return round(document, 6) if isinstance(document, float) else document


def test_one_layer(client: TestClient, shown: dict[str, Any]) -> None:
    parameters = {each["name"]: each["example"] for each in shown["get costs"]["parameters"] if "example" in each}
    assert parameters == examples.LAYER
    assert rounded(client.get(f"{PATH}/costs", params=parameters).json()) == answer(shown["get costs"])


@pytest.mark.parametrize("question", ["costs:query", "costs:network"])
def test_many_layers_and_a_network(question: str, client: TestClient, shown: dict[str, Any]) -> None:
    operation = shown[f"post {question}"]
    assert rounded(client.post(f"{PATH}/{question}", json=asked(operation)).json()) == answer(operation)


def test_a_table_comes_as_it_went(client: TestClient, shown: dict[str, Any]) -> None:
    assert client.get(f"{PATH}/table").json() == answer(shown["get table"]) == asked(shown["post table"])


@pytest.mark.usefixtures("shown")
def test_the_client_asks_the_same(client: TestClient) -> None:
    with Client("http://127.0.0.1:8765") as ours:
        ours._http = client  # the server in this process
        assert rounded(ours.cost(examples.DEVICE, **examples.LAYER)) == examples.LAYER_COST
        assert rounded(ours.costs(examples.DEVICE, examples.LAYERS["queries"])) == examples.LAYER_COSTS["answers"]
        assert rounded(ours.network_cost(examples.DEVICE, examples.NETWORK)) == examples.NETWORK_COST
        assert ours.table(examples.DEVICE) == examples.TABLE
