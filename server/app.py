"""The application: what it holds while it lives, and what it is put together from."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from server import devices, docs, events, examples, health, jobs, pages, problems, results
from server.deps import Service
from server.guard import Guard
from server.submissions import Submissions
from store.artifacts import ArtifactStore
from store.database import Database
from store.queue import celery_app
from store.relay import Keeper
from store.settings import Settings

_DESCRIPTION = "Grows neural networks for a device: submit a job, watch it, read its report. Errors are problem documents (RFC 9457)."


def create_app(settings: Settings) -> FastAPI:
    """The server.  Nothing is opened before it starts; its database must be at this version's revision."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = await run_in_threadpool(_open, settings)
        app.state.service = service
        gc.collect()
        gc.freeze()  # 150 000 objects that live as long as the process: looking through them took a third of every submission
        service.keeper.start()
        try:
            yield
        finally:
            await run_in_threadpool(_close, service)

    app = FastAPI(
        title="Wattle", version=version("wattle-nas"), description=_DESCRIPTION, lifespan=lifespan,
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    problems.install(app)
    app.add_exception_handler(events.StreamIsOver, events.no_content)
    for router in (devices.router, jobs.specs, jobs.router, results.router, events.router, health.router, docs.router, pages.router):
        app.include_router(router)
    app.mount("/static", pages.static)
    app.add_middleware(Guard)
    _document(app)
    return app


def _open(settings: Settings) -> Service:
    db = Database(settings.database)
    db.check_revision()
    broker = celery_app(settings)
    return Service(settings, db, ArtifactStore(settings.artifact_dir), broker, Keeper(db, broker, settings), Submissions(db))


def _close(service: Service) -> None:
    service.keeper.stop()
    service.db.close()


def _document(app: FastAPI) -> None:
    """Errors are documented under the media type they are sent as (FastAPI knows only the one of successes), lookups with examples."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generate()
            for operation in (each for path in schema["paths"].values() for each in path.values()):
                for response in operation["responses"].values():
                    _rename(response.get("content", {}))
            examples.show(schema["paths"])
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend the schema


def _rename(content: dict[str, Any]) -> None:
    for media_type, body in list(content.items()):
        if body.get("schema", {}).get("$ref", "").endswith("/ProblemDocument"):
            content[problems.MEDIA_TYPE] = content.pop(media_type)
