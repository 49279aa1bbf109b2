"""Schemathesis against the API's own description: every answer is documented, of the documented shape, and never a server error."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from costs.table import CostTable
from server.app import create_app
from store import jobs
from store.artifacts import ArtifactStore
from store.database import Database
from store.settings import Settings

BASE_URL = "http://127.0.0.1:8765"
load_all_checks()
# What a spec's schema can't say is refused too, and rightly: a budget below the seed's cost, a device nobody registered.
LEFT_OUT = CHECKS.get_by_names(["positive_data_acceptance"])

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of how requests are handed from one library to the other

api = schemathesis.openapi.from_dict(create_app(Settings(broker_url="memory://")).openapi())
OPERATIONS = {result.ok().label: result.ok() for result in api.get_all_operations()}
del OPERATIONS["GET /v1/events"]  # it never ends
WITH_NAMES = [label for label in OPERATIONS if "{" in label]

bounded = settings(max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


def check(client: TestClient, case: Any) -> None:
    response = client.request(**case.as_transport_kwargs(base_url=BASE_URL))
    case.validate_response(response, excluded_checks=LEFT_OUT)


def takes_anything(operation: Any) -> bool:
    return bool(list(operation.iter_parameters()) or list(operation.body))


@pytest.mark.parametrize("label", OPERATIONS)
def test_generated_requests(label: str, client: TestClient) -> None:
    @bounded
    @given(case=OPERATIONS[label].as_strategy(generation_mode=GenerationMode.POSITIVE))
    def good(case: Any) -> None:
        check(client, case)

    @bounded
    @given(case=OPERATIONS[label].as_strategy(generation_mode=GenerationMode.NEGATIVE))
    def bad(case: Any) -> None:
        check(client, case)

    good()
    if takes_anything(OPERATIONS[label]):
        bad()


@pytest.fixture
def existing(client: TestClient, spec: dict[str, Any], measured: CostTable, db: Database, settings: Settings) -> dict[str, str]:
    """Path parameters that lead somewhere: a job that has succeeded, its artifact, a measured device."""
    lease = jobs.claim(db, client.post("/v1/jobs", json=spec).json()["id"], "w", 30)
    assert lease is not None
    jobs.record(db, lease, {"step": 1}, [jobs.Metric("grown", "loss", 1, 0.5)])
    jobs.add_round(db, lease, "grown", 1, {"widths_after": [5]}, step=1)
    sha256, size = ArtifactStore(settings.artifact_dir).put_bytes(b'{"verdict": {}}')
    jobs.add_artifact(db, lease, "report.json", sha256, size, "application/json")
    jobs.finish(db, lease, "succeeded")
    return {"job_id": lease.job.id, "artifact": "report.json", "device": measured.device}


@pytest.mark.parametrize("label", WITH_NAMES)
def test_generated_requests_for_what_exists(label: str, client: TestClient, existing: dict[str, str]) -> None:
    @bounded
    @given(case=OPERATIONS[label].as_strategy(generation_mode=GenerationMode.POSITIVE))
    def known(case: Any) -> None:
        for name in case.path_parameters:
            kind = name if name == "job_id" else "artifact" if "artifacts" in label else "device"
            case.path_parameters[name] = existing[kind]
        check(client, case)

    known()
