"""Results as they come: one line of JSON per unit of work in a file of its own part, so that a stopped run goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"
Key = Mapping[str, str | int | float]
Values = dict[str, Any]


class OutOfTime(Exception):  # noqa: N818 - named for what happened
    """The time that this run may take is over; what was done is kept."""


@dataclass(frozen=True, slots=True)
class Clock:
    """``until`` in seconds of ``time.monotonic``."""

    until: float

    @classmethod
    def minutes(cls, minutes: float) -> Clock:
        return cls(time.monotonic() + 60 * minutes)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()

    def check(self) -> None:
        if self.left < 0:
            raise OutOfTime


@dataclass(frozen=True, slots=True)
class Results:
    """The results of one part, by key.  A line that a crash cut off is ignored, and done again."""

    path: Path
    clock: Clock

    def all(self) -> list[Values]:
        """Every result in the order in which they came: key and values together."""
        return list(filter(None, map(_parsed, self.path.read_text().splitlines()))) if self.path.exists() else []

    def get(self, key: Key) -> Values | None:
        return next((row for row in self.all() if all(row.get(name) == value for name, value in key.items())), None)

    def once(self, key: Key, work: Callable[[], Values]) -> Values:
        """The result under ``key``: what is there, or what ``work`` gives, which is written down.  OutOfTime if it is too late to begin."""
        if (known := self.get(key)) is not None:
            return known
        self.clock.check()
        started = time.monotonic()
        row = {**key, **work(), "seconds": round(time.monotonic() - started, 2), "date": datetime.now(UTC).strftime("%Y-%m-%d")}
        self._append(row)
        return row

    def _append(self, row: Values) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = not self.path.exists() or self.path.read_bytes()[-1:] in (b"", b"\n")
        with self.path.open("a") as file:
            file.write(("" if whole else "\n") + json.dumps(row) + "\n")


def _parsed(line: str) -> Values | None:
    try:
        row: Values = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row
