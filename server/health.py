"""Is the process alive, and can it do its work?"""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter

from server.deps import TheService
from server.problems import documented
from server.views import Health, Readiness
from store import jobs

router = APIRouter(tags=["health"])


@router.get("/healthz", responses=documented())
def healthz() -> Health:
    """The process answers."""
    return Health(status="ok", version=version("wattle-nas"))


@router.get("/readyz", responses=documented())
def readyz(service: TheService) -> Readiness:
    """200 when jobs are accepted, ``degraded`` while the broker is down: they are kept and start when it is back.  503 without database."""
    jobs.last_seq(service.db)  # any read will do: DatabaseUnavailable is answered with 503
    try:
        with service.broker.connection_for_write() as connection:
            connection.connect()
    except Exception as error:  # every transport has errors of its own, and each means the same here
        detail = f"the broker does not answer ({error}); jobs are kept and start when it is back"
        return Readiness(status="degraded", database="ok", broker="down", detail=detail)
    return Readiness(status="ready", database="ok", broker="ok", detail=None)
