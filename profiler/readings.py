"""What a session has read so far, sitting by sitting, kept in a file, so that a session that was killed goes on from there."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

KEEP_EVERY_SECONDS = 5.0


@dataclass(slots=True)
class Readings:
    """Valid readings per call, in the meter's unit, sitting by sitting, and the calls that fill a window, by the name of what was read.

    ``seconds`` is the time that they took.  ``interrupted`` until the run that goes on from them has made sure that it may.
    """

    seconds: float = 0.0
    values: dict[str, list[list[float]]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    interrupted: bool = False

    def sittings(self, name: str) -> list[list[float]]:
        """What was read in each sitting, and a last, empty list for the one that begins."""
        before = [sitting for sitting in self.values.get(name, ()) if sitting]
        self.values[name] = [*before, []]
        return self.values[name]

    def forget(self) -> None:
        """As if nothing had been read."""
        self.seconds = 0.0
        for sittings in self.values.values():
            for readings in sittings:
                readings.clear()

    def keep(self) -> None:
        """Called after every round; here they are kept in memory alone."""


@dataclass(slots=True)
class ReadingsFile(Readings):
    """Readings that outlive their process.  ``plan`` says what is measured, and on what machine: readings of another plan are left alone
    until they are overwritten."""

    path: Path = field(kw_only=True)
    plan: Mapping[str, Any] = field(kw_only=True)
    clock: Callable[[], float] = field(default=time.monotonic, kw_only=True)
    _kept: float = field(default=float("-inf"), init=False)

    def __post_init__(self) -> None:
        """Take up what an earlier session left; nothing where the file is missing, damaged, or of another plan."""
        try:
            left = json.loads(self.path.read_text())
            if left["plan"] == json.loads(json.dumps(self.plan)):
                seconds, calls = float(left["seconds"]), {name: int(number) for name, number in left["calls"].items()}
                values = {name: [list(map(float, read)) for read in sittings] for name, sittings in left["values"].items()}
                self.seconds, self.calls, self.values, self.interrupted = seconds, calls, values, True
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            logger.warning("%s holds no readings to go on from (%s): measuring anew", self.path, error)

    def keep(self) -> None:
        """Write them, if that was not done in the last seconds; a reader finds the old file or the new one, never a half."""
        if self.clock() - self._kept < KEEP_EVERY_SECONDS:
            return
        fresh = self.path.with_suffix(".new")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps({"plan": self.plan, "seconds": self.seconds, "values": self.values, "calls": self.calls}))
        os.replace(fresh, self.path)
        self._kept = self.clock()

    def discard(self) -> None:
        """They have served."""
        self.path.unlink(missing_ok=True)
