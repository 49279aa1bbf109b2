"""What a child says of an attempt that ended: nothing, where nobody may or can hear it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from store import jobs
from store.database import Database, DatabaseUnavailable
from store.settings import Settings
from worker import child, run
from worker.attempt import Stopped
from worker.supervisor import order


@pytest.fixture
def ordered(tmp_path: Path) -> dict[str, Any]:
    settings = Settings(data_dir=tmp_path)
    db = Database(settings.database)
    db.migrate()
    job = jobs.submit(db, "growth", "a", {}, "growth", 3)
    lease = jobs.claim(db, job.id, "test", 600)
    assert lease is not None
    db.close()
    return order(lease, settings, "this-host")


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (None, {"state": "succeeded", "cause": None}),
        (Stopped(), {"state": "stopped", "cause": None}),
        (jobs.LeaseLost("a", 1), None),
        (DatabaseUnavailable("the database did not answer: server closed the connection"), None),
        (DatabaseUnavailable("the database did not answer: database or disk is full"), {"state": "failed", "cause": "disk_full"}),
        (ZeroDivisionError("division by zero"), {"state": "failed", "cause": "internal"}),
    ],
)
def test_an_end_has_an_outcome_unless_another_attempt_goes_on(
    monkeypatch: pytest.MonkeyPatch, ordered: dict[str, Any], end: Exception | None, said: dict[str, Any] | None
) -> None:
    def attempt(_attempt: object) -> None:
        if end is not None:
            raise end

    monkeypatch.setattr(run, "run_attempt", attempt)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    outcome = child._carry_out(ordered, child._StopFlag())
    assert (outcome and {name: outcome[name] for name in ("state", "cause")}) == said
