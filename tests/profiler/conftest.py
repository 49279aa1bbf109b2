"""A machine that does nothing else, on the stub's clock."""

from typing import Any

import pytest

from profiler.meters import Reading
from profiler.windows import Host


class Calm:
    """A stopwatch of a machine that does nothing else; ``disturbed`` gives the reasons of the next windows."""

    quantity = "latency_ms"
    window_seconds = 1e-3
    disturbed: list[str]

    def __init__(self) -> None:
        self.disturbed = []

    def start(self) -> None: ...

    def stop(self) -> Reading:
        return Reading(0.0, self.disturbed.pop(0) if self.disturbed else None)


@pytest.fixture
def calm() -> Calm:
    return Calm()


@pytest.fixture
def host(stub: Any, calm: Calm) -> Host:
    return Host(stub.clock, stub.sleep, stub.every, stopwatch=lambda: calm)
