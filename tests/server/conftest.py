"""A server in this process: SQLite in a temporary folder, a broker that lives in memory."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from costs.families import Network
from costs.shapes import LayerShape
from costs.table import Anchor, Calibration, CostEntry, CostTable, Setting
from server.app import create_app
from store import devices
from store.database import Database
from store.settings import Settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the test client prefers a successor of httpx that is not needed for anything else
    from fastapi.testclient import TestClient

SEED = (4, 6, 8)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("empty") / "wattle.sqlite"
    db = Database(f"sqlite:///{path}")
    db.migrate()
    db.close()
    return path


@pytest.fixture
def settings(tmp_path: Path, empty_database: Path) -> Settings:
    state, data = tmp_path / "state", tmp_path / "data"
    state.mkdir()
    data.mkdir()
    shutil.copy(empty_database, state / "wattle.sqlite")
    return Settings(data_dir=state, data_root=data, broker_url="memory://")


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), base_url="http://127.0.0.1:8765", raise_server_exceptions=False) as client:
        client.app.state.service.tables.recent_seconds = 0.0  # type: ignore[attr-defined]  # what a test saves it sees at once
        yield client


@pytest.fixture
def db(settings: Settings, client: TestClient) -> Iterator[Database]:
    db = Database(settings.database)
    yield db
    db.close()


@pytest.fixture
def spec() -> dict[str, Any]:
    return {
        "name": "digits",
        "data": {"name": "digits"},
        "network": {"family": "plain", "widths": list(SEED)},
        "budget": {"cost": "macs", "limit": 40_000},
    }


@pytest.fixture
def measured(db: Database) -> CostTable:
    """``this-host``, registered, with a table of the seed in ``spec`` at one and four times its widths."""
    setting = Setting()
    shapes = [shape for factor in (1, 4) for shape in _shapes(tuple(factor * width for width in SEED))]
    anchors = (Anchor("seed", SEED, 0.7, 0.7, 0.69, 0.71),)
    calibration = Calibration("latency_ms", setting, 1.5, 2.0, anchors)
    table = CostTable("this-host", [_entry(shape, setting) for shape in shapes], [calibration])
    devices.register(db, "this-host", {"cpu": "test"})
    devices.save_table(db, None, table)
    return table


@pytest.fixture
def submit(client: TestClient, spec: dict[str, Any]) -> Callable[..., str]:
    """Submits a job and returns its id."""

    def submit(**changes: Any) -> str:
        response = client.post("/v1/jobs", json={**spec, **changes})
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    return submit


def _shapes(widths: tuple[int, ...]) -> tuple[LayerShape, ...]:
    return Network("plain", widths, 8, 1, 10).wiring().shapes()


def _entry(shape: LayerShape, setting: Setting) -> CostEntry:
    value = 0.01 * shape.out_channels
    return CostEntry(
        shape, setting, "latency_ms", value, "ms", "measured", value * 0.9, value * 1.1, "wall_clock", 9, 1, "2026-01-02T03:04:05Z"
    )
