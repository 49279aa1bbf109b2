"""Readings from a log: ``Recorder`` writes what a meter read, ``Replay`` gives it again, in order, on any machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from costs.model import CostName
from profiler.meters.base import Meter, MeterError, MeterUnavailable, Origin, Reading


class Recorder:
    """A meter that also writes every reading of another to a log: one JSON object a line, the first says what is measured."""

    def __init__(self, meter: Meter, path: Path) -> None:
        self._meter, self._path = meter, path
        self.quantity, self.window_seconds = meter.quantity, meter.window_seconds
        path.write_text(json.dumps({"quantity": self.quantity, "window_seconds": self.window_seconds}) + "\n")

    def start(self) -> None:
        self._meter.start()

    def stop(self) -> Reading:
        reading = self._meter.stop()
        with self._path.open("a") as log:
            log.write(json.dumps(asdict(reading)) + "\n")
        return reading


class Replay:
    """The readings of a log, one a window, whatever the work.  Kind, scope and device stay those of the recording."""

    def __init__(self, path: Path | None = None) -> None:
        """MeterUnavailable without a log that can be read."""
        if path is None:
            raise MeterUnavailable("replay was given no log; give the path of one that Recorder wrote")
        try:
            header, *lines = path.read_text().splitlines()
            head = json.loads(header)
            self.quantity: CostName = head["quantity"]
            self.window_seconds: float = head["window_seconds"]
            self._readings: Iterator[Reading] = iter([_reading(line) for line in lines])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise MeterUnavailable(f"{path} is no log of readings ({type(error).__name__}: {error}); record one with Recorder") from error
        self._path, self._length = path, len(lines)

    def start(self) -> None:
        """Nothing runs."""

    def stop(self) -> Reading:
        """MeterError when the log is used up: it never starts over."""
        try:
            return next(self._readings)
        except StopIteration:
            raise MeterError(f"{self._path} holds {self._length} windows, all used; record a longer log") from None


def _reading(line: str) -> Reading:
    fields = json.loads(line)
    origin = Origin(**fields.pop("origin"))
    return Reading(**fields, origin=replace(origin, meter=f"replay:{origin.meter}"))
