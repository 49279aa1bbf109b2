"""The account of one attempt: seconds and joules by phase, kept in a file of its own beside the job's checkpoints.

What was used is counted, also what a crash threw away: accounts are not rewound with checkpoints, and nothing that a run computes depends
on them.  The file is written anew at each change of phase, at the end, and about every 5 seconds between; a process that is killed takes
what came after that with it, and ``worker.used`` says so.  Starting Python and torch comes before, and is not counted.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from profiler.meters import MeterError
from store.database import DatabaseUnavailable
from store.spec import AccountingSpec, CounterName
from worker.attempt import Attempt, Reporter
from worker.comparison import GROWN, RETRAINED
from worker.joules import Joules, open_joules
from worker.used import Document, Factor, used

logger = logging.getLogger(__name__)

# advice: the sizes that a seed is held against.  training: of what is delivered, evaluations included.  scoring: searching and adding
# channels to it.  controls: all of their runs.  profiling: measuring layers or whole networks.
Phase = Literal["loading", "advice", "training", "scoring", "controls", "profiling", "report"]
WRITE_SECONDS = 5.0  # writing takes 3 ms on a busy disk

_PHASES: Mapping[str, Phase] = {
    "loading": "loading",
    "measuring": "profiling",
    "profiling": "profiling",
    "report": "report",
    "done": "report",
}


def phase_of(progress: Mapping[str, Any]) -> Phase:
    """The phase that a job's progress tells of."""
    told = progress["phase"]
    if told not in ("training", "scoring"):
        return _PHASES[told]
    arm = progress["run"].partition(".")[0]
    if arm == GROWN:
        return "scoring" if told == "scoring" else "training"
    return "training" if arm == RETRAINED else "advice" if arm == "size" else "controls"


@dataclass(slots=True)
class Tally:
    """What one phase has used.  ``unknown`` says why its joules lack something."""

    seconds: float = 0.0
    joules: float = 0.0
    unknown: str | None = None

    def document(self, label: Mapping[str, Any]) -> Document:
        energy = {"value": self.joules, "unit": "J", **label} if self.unknown is None else {"reason": self.unknown}
        return {"seconds": self.seconds, "energy": energy}


@dataclass(slots=True)
class Account:
    """The account of attempt ``number`` in ``folder``, which holds those of earlier ones.  It begins when it is made, with loading."""

    folder: Path
    number: int
    joules: Joules
    factor: Factor | None = None
    clock: Callable[[], float] = time.monotonic
    _phase: Phase = "loading"
    _tallies: dict[Phase, Tally] = field(default_factory=dict)
    _booked: float = 0.0
    _written: float = 0.0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._booked = self.clock()
        self._write()

    def enter(self, phase: Phase) -> None:
        """From now on the job is in this phase; called at every step, and cheap where nothing changes."""
        changes = phase != self._phase
        if changes or self.clock() - self._written >= WRITE_SECONDS:
            self._book()
            self._write()
        self._phase = phase

    def close(self) -> None:
        """The attempt is over; nothing of it is missing."""
        self._book()
        self._write(closed=True)

    def used(self) -> Document:
        """What the job has used up to now, over all its attempts."""
        self._book()
        self._write()
        return self.so_far()

    def so_far(self) -> Document:
        """What the files say."""
        return used([_read(self._path(number)) for number in range(1, self.number + 1)], self.factor)

    def _book(self) -> None:
        """Charge the time since the last booking to the phase that it was spent in."""
        now, tally = self.clock(), self._tallies.setdefault(self._phase, Tally())
        seconds, self._booked = now - self._booked, now
        tally.seconds += seconds
        try:
            tally.joules += self.joules.since(seconds)
        except MeterError as error:
            tally.unknown = tally.unknown or str(error)

    def _write(self, closed: bool = False) -> None:
        """Whole or not at all, as far as this process is concerned."""
        phases = {phase: tally.document(self.joules.label) for phase, tally in self._tallies.items()}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        fresh = self._path(self.number).with_suffix(".fresh")
        fresh.write_text(json.dumps({"attempt": self.number, "closed": closed, "written_at": now, "phases": phases}))
        os.replace(fresh, self._path(self.number))
        self._written = self.clock()

    def _path(self, number: int) -> Path:
        return self.folder / f"attempt-{number}.json"


def _read(path: Path) -> Document | None:
    """None where there is none, or where the machine went down before it was on the disk."""
    try:
        account: Document = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return account


@contextmanager
def accounted(attempt: Attempt) -> Iterator[tuple[Reporter, Account]]:
    """A reporter whose every word about phases is booked; at the end, however it comes, the progress says what the job used."""
    asked = _asked(attempt)
    folder = attempt.settings.job_dir(attempt.job_id) / "used"
    account = Account(folder, attempt.lease.attempt, open_joules(asked, attempt.settings), Factor.stated(asked, attempt.settings))
    reporter = Reporter(attempt, listener=lambda progress: account.enter(phase_of(progress)))
    reporter.tell({"phase": "loading"}, at_once=True)
    try:
        yield reporter, account
    finally:
        try:
            account.close()
            reporter.progress["used"] = account.so_far()
            reporter.flush()
        except (DatabaseUnavailable, OSError) as error:  # how the attempt ended matters more
            logger.warning("what the job used can't be written: %s", error)


def _asked(attempt: Attempt) -> AccountingSpec:
    """What the spec says of meters and factors; else a meter that a profile names, and watts that a budget declares of this device."""
    spec = attempt.lease.job.spec
    asked = AccountingSpec.model_validate(spec.get("accounting") or {})
    budgets = (spec.get("budget") or {}, *(spec.get("further_budgets") or ()))
    declared = (each.get("declared_watts") for each in budgets if each.get("device") == attempt.device)
    meter = spec.get("meter") if spec.get("meter") in get_args(CounterName) else None
    return asked.model_copy(
        update={"meter": asked.meter or meter, "declared_watts": asked.declared_watts or next(filter(None, declared), None)}
    )
