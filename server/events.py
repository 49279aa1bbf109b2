"""Server-sent events, straight from the store's event table: any server can take up any stream where another left it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from server.deps import Service, TheJob, TheService
from server.problems import RETRY_SECONDS, Refusal, documented
from store import jobs
from store.views import Event, Job, TerminalState

POLL_SECONDS = 0.5
BATCH = 500
MAX_STREAMS = 200
TERMINAL = get_args(TerminalState)

router = APIRouter(prefix="/v1", tags=["events"])


class StreamIsOver(Exception):  # noqa: N818 - an answer, not a fault
    """The job has ended and the watcher has seen all of it: 204, which tells a browser not to connect again."""


async def no_content(_: Request, __: Exception) -> Response:
    return Response(status_code=204)


def start(
    last_event_id: Annotated[int | None, Header(ge=0, le=2**63 - 1, description="sent by browsers when they connect again")] = None,
    after: Annotated[int | None, Query(ge=0, le=2**63 - 1, description="the same, for the first connection")] = None,
) -> int | None:
    """The event after which to begin.  Where both are given, the header is the newer one."""
    return after if last_event_id is None else last_event_id


Start = Annotated[int | None, Depends(start)]


@dataclass(frozen=True, slots=True)
class Watch:
    """A job and the event after which to begin."""

    job: Job
    after: int

    @property
    def over(self) -> bool:
        return self.job.state in TERMINAL


def watch(job: TheJob, service: TheService, after: Start) -> Watch:
    """What to send, unless the job is over and there is nothing more to say."""
    begun = Watch(job, after or 0)
    if begun.over and after and not jobs.events_after(service.db, after, job.id, 1):
        raise StreamIsOver
    return begun


async def one_of_few(service: TheService) -> AsyncIterator[None]:
    """Counts the open streams, and refuses more than a server should hold."""
    if service.streams.open >= MAX_STREAMS:
        detail = f"{MAX_STREAMS} event streams are open, the most this server holds; close one or try again later"
        raise Refusal(503, detail, headers={"Retry-After": str(RETRY_SECONDS)})
    service.streams.open += 1
    try:
        yield
    finally:
        service.streams.open -= 1


@router.get(
    "/jobs/{job_id}/events",
    response_class=EventSourceResponse,
    responses={204: {"description": "The job is over and all its events were seen"}, **documented(404, 422)},
    dependencies=[Depends(one_of_few)],
)
async def job_events(service: TheService, watch: Annotated[Watch, Depends(watch)]) -> AsyncIterable[ServerSentEvent]:
    """What happens to a job: ``state``, ``progress``, ``round``, ``artifact``.  Begins with its whole history, ends when the job ends.

    Of progress, the history keeps the latest only.
    """
    over = watch.over
    async for batch in _batches(service, watch.after, watch.job.id):
        for event in batch:
            yield _sent(event, event.payload)
            over = over or (event.type == "state" and event.payload["state"] in TERMINAL)
        if over and len(batch) < BATCH:
            return


@router.get("/events", response_class=EventSourceResponse, responses=documented(422), dependencies=[Depends(one_of_few)])
async def all_events(service: TheService, after: Start) -> AsyncIterable[ServerSentEvent]:
    """What happens to all jobs, from now on (or from ``after``); the data holds ``job_id`` too."""
    begin = await run_in_threadpool(jobs.last_seq, service.db) if after is None else after
    async for batch in _batches(service, begin, None):
        for event in batch:
            yield _sent(event, {"job_id": event.job_id, **event.payload})


async def _batches(service: Service, after: int, job_id: str | None) -> AsyncIterator[list[Event]]:
    """The events after ``after``, as they come, until the server stops; an empty batch where nothing is new."""
    while not service.streams.ending:
        batch = await run_in_threadpool(jobs.events_after, service.db, after, job_id, BATCH)
        yield batch
        after = batch[-1].seq if batch else after
        if len(batch) < BATCH:
            await asyncio.sleep(POLL_SECONDS)


def _sent(event: Event, data: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(id=str(event.seq), event=event.type, data=data)
