"""Submissions that arrive together share a transaction, and each still gets its own answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from server.submissions import MOST_AT_ONCE, Submissions
from store import jobs
from store.database import Database, DatabaseUnavailable
from store.views import Job, Submission


def prepared(name: str, key: str | None = None) -> Callable[[], Submission]:
    return lambda: Submission("growth", name, {}, "growth", 3, key)


def refused() -> Submission:
    raise ValueError("no such data")


@pytest.fixture
def transactions(db: Database, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of submissions in each transaction."""
    sizes: list[int] = []
    real = jobs.submit_all

    def counted(database: Database, submissions: list[Submission]) -> list[Job | jobs.IdempotencyConflict]:
        sizes.append(len(submissions))
        return real(database, submissions)

    monkeypatch.setattr(jobs, "submit_all", counted)
    return sizes


def test_those_that_arrive_during_a_transaction_share_the_next(db: Database, transactions: list[int]) -> None:
    count = MOST_AT_ONCE + 5
    entered, go_on = threading.Event(), threading.Event()

    def first() -> Submission:
        entered.set()
        assert go_on.wait(10)
        return prepared("first")()

    async def all_at_once() -> list[Job]:
        submissions = Submissions(db)
        early = asyncio.create_task(submissions.submit(first))
        await asyncio.to_thread(entered.wait, 10)
        late = [asyncio.create_task(submissions.submit(prepared(str(number)))) for number in range(count)]
        await asyncio.sleep(0)
        go_on.set()
        return [await task for task in (early, *late)]

    made = asyncio.run(all_at_once())
    assert [job.name for job in made] == ["first", *map(str, range(count))]
    assert {job.id for job in jobs.find(db, limit=200)} == {job.id for job in made}
    assert transactions == [1, MOST_AT_ONCE, 5]


def test_one_that_is_refused_or_given_up_leaves_the_others_alone(db: Database) -> None:
    async def together() -> list[object]:
        submissions = Submissions(db)
        prepares = (prepared("a", "key"), refused, prepared("other", "key"), prepared("given up"), prepared("last"))
        tasks = [asyncio.create_task(submissions.submit(prepare)) for prepare in prepares]
        await asyncio.sleep(0)
        tasks[3].cancel()
        return [*await asyncio.gather(*tasks, return_exceptions=True)]

    made, invalid, conflict, given_up, last = asyncio.run(together())
    assert isinstance(made, Job)
    assert str(invalid) == "no such data"
    assert isinstance(conflict, jobs.IdempotencyConflict)
    assert isinstance(given_up, asyncio.CancelledError)
    assert isinstance(last, Job)
    assert last.name == "last"


def test_a_database_that_does_not_answer_fails_all_and_the_next_try_succeeds(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async def twice() -> tuple[list[object], Job]:
        submissions = Submissions(db)
        with monkeypatch.context() as patch:
            patch.setattr(jobs, "submit_all", unavailable)
            first = await asyncio.gather(*(submissions.submit(prepared("a")) for _ in range(3)), return_exceptions=True)
        return [*first], await submissions.submit(prepared("b"))

    def unavailable(*_: object) -> None:
        raise DatabaseUnavailable("the database did not answer")

    failed, made = asyncio.run(twice())
    assert all(isinstance(each, DatabaseUnavailable) for each in failed)
    assert [job.id for job in jobs.find(db)] == [made.id]
