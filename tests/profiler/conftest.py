"""A machine that does nothing else, on the stub's clock."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
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


def _fake_cuda(moments: Iterator[float], devices: int = 1) -> Any:
    """``torch.cuda`` whose events happen at these seconds."""

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.seconds = float("nan")

        def record(self) -> None:
            self.seconds = next(moments)

        def synchronize(self) -> None: ...

        def elapsed_time(self, later: "Event") -> float:
            return 1e3 * (later.seconds - self.seconds)

    return SimpleNamespace(is_available=lambda: devices > 0, current_device=lambda: 0, synchronize=lambda: None, Event=Event)


@pytest.fixture
def fake_cuda() -> Callable[..., Any]:
    return _fake_cuda
