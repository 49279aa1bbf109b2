"""The process that does the work of one attempt: ``python -m worker.child``, started by the supervisor and by nobody else.

Reads its order from stdin, writes its outcome to stdout, logs to stderr.  It is on the supervisor's leash from its first moment, and
SIGTERM asks it to end after a last checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from dataclasses import asdict
from types import FrameType
from typing import Any

from worker.leash import die_with


class _StopFlag:
    """Turns true with SIGTERM."""

    def __init__(self) -> None:
        self._raised = False
        signal.signal(signal.SIGTERM, self._raise)

    def _raise(self, _number: int, _frame: FrameType | None) -> None:
        self._raised = True

    def __call__(self) -> bool:
        return self._raised


def main() -> int:
    """Carry out the order; 0 if there is an outcome to read."""
    asked_to_stop = _StopFlag()
    order = json.loads(sys.stdin.readline())
    die_with(order["supervisor"])
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints belongs into the log
    outcome = _carry_out(order, asked_to_stop)
    if outcome is None:
        return 1
    json.dump(outcome, answer)
    answer.close()
    return 0


def _carry_out(order: dict[str, Any], asked_to_stop: _StopFlag) -> dict[str, Any] | None:
    """The outcome; None if nothing may be said: the lease is lost, or the database that would hear it is away."""
    # imported late: torch takes seconds, and until the leash is on nobody would end this process
    from store import jobs
    from store.database import Database, DatabaseUnavailable
    from store.settings import Settings
    from worker.attempt import Attempt, Stopped
    from worker.causes import disk_full, explain
    from worker.run import run_attempt
    from worker.supervisor import Outcome

    settings = Settings(**order["settings"])
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    db = Database(settings.database)
    try:
        lease = jobs.adopt(db, order["job"], order["token"])
        run_attempt(Attempt(db, settings, lease, order["device"], asked_to_stop))
        outcome = Outcome("succeeded")
    except Stopped:
        outcome = Outcome("stopped")
    except jobs.LeaseLost:
        logging.exception("another attempt may have this job")
        return None
    except Exception as error:
        logging.exception("the attempt failed")
        if isinstance(error, DatabaseUnavailable) and not disk_full(error):
            return None  # another attempt goes on from the last checkpoint
        outcome = Outcome("failed", *explain(error, settings.data_dir))
    return asdict(outcome)


if __name__ == "__main__":
    sys.exit(main())
