"""The NVML stub (tests/profiler/nvml_stub.c) in this process, under the real pynvml, on a clock that only work and sleep move."""

from __future__ import annotations

import ctypes
import heapq
import itertools
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "tests" / "profiler" / "nvml_stub.c"
IDLE_WATTS = 30.0


def build(folder: Path) -> Path:
    """The library, under the name that pynvml asks the loader for."""
    library = folder / "libnvidia-ml.so.1"
    flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-Wl,-soname,libnvidia-ml.so.1"]
    subprocess.run(["gcc", *flags, "-o", str(library), str(SOURCE), "-lm"], check=True)
    return library


class NvmlStub:
    """One world of GPUs.  ``clock``, ``sleep`` and ``every`` are its time; knobs are named in the C source."""

    def __init__(self, library: Path) -> None:
        import pynvml

        self.library = ctypes.CDLL(str(library))
        self.library.stub_now.restype = self.library.stub_get.restype = ctypes.c_double
        pynvml.nvmlLib = self.library
        pynvml._nvmlGetFunctionPointer_cache.clear()
        self.reset()

    def reset(self, devices: int = 1, seed: int = 1) -> None:
        self.library.stub_reset(devices, ctypes.c_uint64(seed))
        self._timers: list[tuple[float, int, Callable[[], float | None]]] = []
        self._number = itertools.count()

    def clock(self) -> float:
        return float(self.library.stub_now())

    def sleep(self, seconds: float) -> None:
        """Let time pass; what is due in it happens at its moment."""
        end = self.clock() + seconds
        while self._timers and self._timers[0][0] <= end:
            moment, _, call = heapq.heappop(self._timers)
            self._advance(moment - self.clock())
            if (again := call()) is not None:
                heapq.heappush(self._timers, (moment + again, next(self._number), call))
        self._advance(end - self.clock())

    def every(self, seconds: float, call: Callable[[], None]) -> Callable[[], None]:
        active = [True]

        def due() -> float | None:
            if active[0]:
                call()
            return seconds if active[0] else None

        heapq.heappush(self._timers, (self.clock() + seconds, next(self._number), due))
        return lambda: active.__setitem__(0, False)

    def at(self, seconds: float, call: Callable[[], object]) -> None:
        """Something happens at that time of the clock."""
        heapq.heappush(self._timers, (seconds, next(self._number), lambda: (call(), None)[1]))

    def real_time(self) -> None:
        """From now on the world's clock is the machine's, until the next reset."""
        self.library.stub_real_time(1)

    def set(self, knob: str, value: float, device: int = 0) -> None:
        if self.library.stub_set(device, knob.encode(), ctypes.c_double(value)):
            raise KeyError(knob)

    def get(self, knob: str, device: int = 0) -> float:
        return float(self.library.stub_get(device, knob.encode()))

    def name(self, uuid: str, name: str, bus_id: str, device: int = 0) -> None:
        self.library.stub_text(device, uuid.encode(), name.encode(), bus_id.encode())

    def trace(self, points: Sequence[tuple[float, float]], repeat: bool = True, device: int = 0) -> None:
        """Power over time from now on: straight lines between (seconds, watts)."""
        numbers = ctypes.c_double * len(points)
        self.library.stub_trace(device, numbers(*(t for t, _ in points)), numbers(*(w for _, w in points)), len(points), repeat)

    def processes(self, *pids: int, device: int = 0) -> None:
        self.library.stub_processes(device, (ctypes.c_int * len(pids))(*pids), len(pids))

    def fail(self, call: str, code: int, after: int = 0) -> None:
        """``call`` (a symbol, or "field:186:0") returns ``code`` after that many more calls; 0 heals it."""
        self.library.stub_fail(call.encode(), code, ctypes.c_long(after))

    def work(self, *parts: tuple[float, float], idle: float = IDLE_WATTS) -> Callable[[], None]:
        """A piece of work that draws so many watts for so many seconds, part by part; (seconds, watts)."""

        def call() -> None:
            for seconds, watts in parts:
                self.set("watts", watts)
                self.sleep(seconds)
            self.set("watts", idle)

        return call

    def _advance(self, seconds: float) -> None:
        self.library.stub_advance(ctypes.c_double(max(0.0, seconds)))
