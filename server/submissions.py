"""Growth jobs as they are submitted: those that arrive while one transaction is being written share the next one (group commit).

A thread per submission would spend more time handing the interpreter lock round than writing: this halves what twenty clients at once
cost, and makes no difference to one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat

from starlette.concurrency import run_in_threadpool

from store import jobs
from store.database import Database
from store.views import Job, Submission

Prepare = Callable[[], Submission]  # checks a spec; raises what is wrong with it
MOST_AT_ONCE = 100  # keeps the transaction short


class Submissions:
    """The way into the store for submissions of one server."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._waiting: list[tuple[Prepare, asyncio.Future[Job]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def submit(self, prepare: Prepare) -> Job:
        """The job, once it is stored.  Raises what ``prepare`` or the store raises; nothing is stored then."""
        future: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        self._waiting.append((prepare, future))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_waiting())
        return await future

    async def _write_waiting(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MOST_AT_ONCE], self._waiting[MOST_AT_ONCE:]
            outcomes = await run_in_threadpool(self._write, [prepare for prepare, _ in batch])
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                if future.done():  # its request was given up
                    continue
                if isinstance(outcome, Job):
                    future.set_result(outcome)
                else:
                    future.set_exception(outcome)

    def _write(self, batch: Sequence[Prepare]) -> list[Job | Exception]:
        prepared = [_prepared(prepare) for prepare in batch]
        written = self._stored([each for each in prepared if isinstance(each, Submission)])
        return [next(written) if isinstance(each, Submission) else each for each in prepared]

    def _stored(self, submissions: Sequence[Submission]) -> Iterator[Job | Exception]:
        try:
            return iter(jobs.submit_all(self._db, submissions))
        except Exception as error:  # for every request of the batch to answer
            return repeat(error)


def _prepared(prepare: Prepare) -> Submission | Exception:
    try:
        return prepare()
    except Exception as error:  # for its own request to answer; the others go on
        return error
