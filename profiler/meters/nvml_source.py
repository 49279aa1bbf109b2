"""The state of an NVIDIA GPU and its power, each quantity probed by value before anything is promised.

A device can accept NVML and answer nothing (Jetson), or 0.  What it measures differs, too: field 186 is the power now, field 185 and
the older call a mean over the last second on most parts; scope 0 is the GPU, scope 1 a module with the CPU (Grace Hopper).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType

from profiler.meters.base import MeterUnavailable, Origin
from profiler.meters.nvml import Gpu, library, optional, translated
from profiler.meters.source import DeviceState

SENSOR_ERROR = 0.05  # proportional, either sign, measured on more than 70 GPUs (arXiv 2312.02741)
_HOPPER, _AMPERE = 9, 7
_VGPU, _HOST_VGPU = 2, 3
# (field, scope, what it is, what it covers), best first
_FIELDS = ((186, 0, "instant", "gpu"), (185, 0, "mean of 1 s", "gpu"), (186, 1, "instant", "module"), (185, 1, "mean of 1 s", "module"))
_NOT_AVAILABLE = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Power:
    """A way to read power that gave a value above 0 when it was tried."""

    watts: Callable[[], float]
    detail: str
    scope: str


class NvmlSource:
    """One GPU, with its counter or without; power too where it can be read.  Foreign processes are all but ``own_pids``.

    In a container NVML may name the host's process ids: pass those that are this profiler's.
    """

    def __init__(self, gpu: Gpu, meter: str, counter: bool, power: Power | None, own_pids: frozenset[int] | None = None) -> None:
        self._nvml, self.gpu, self._counter, self._power = library(), gpu, counter, power
        self._own = own_pids if own_pids is not None else frozenset({os.getpid()})
        detail = "total energy counter" if power is None or counter else power.detail
        self.origin = Origin(
            meter,
            "measured",
            _scope(gpu, "gpu" if counter or power is None else power.scope),
            gpu.uuid,
            detail,
            SENSOR_ERROR,
            partly_sampled(gpu),
        )

    def joules(self) -> float | None:
        if not self._counter:
            return None
        with translated(f"{self.gpu.uuid}: energy"):
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self.gpu.handle)) * 1e-3

    def watts(self) -> float | None:
        return self._power.watts() if self._power else None

    def state(self) -> DeviceState:
        nvml, handle = self._nvml, self.gpu.handle
        with translated(f"{self.gpu.uuid}: state"):
            return DeviceState(
                _first(nvml, handle, ("nvmlDeviceGetTemperatureV", 0), ("nvmlDeviceGetTemperature", 0)),
                optional(nvml, "nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_SM),
                optional(nvml, "nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_MEM),
                _first(nvml, handle, ("nvmlDeviceGetCurrentClocksEventReasons",), ("nvmlDeviceGetCurrentClocksThrottleReasons",)),
                frozenset(p.pid for p in optional(nvml, "nvmlDeviceGetComputeRunningProcesses", handle) or ()) - self._own,
            )


def probe_power(gpu: Gpu) -> Power:
    """The best reading of power that works on this GPU.  MeterUnavailable when none gives a value above 0."""
    nvml = library()
    for field, scope, words, covers in _FIELDS:
        read = _field_reader(nvml, gpu, field, scope)
        with suppress(MeterUnavailable):
            if read() > 0:
                return Power(read, f"field {field} ({words})", covers)

    def usage() -> float:
        with translated(f"{gpu.uuid}: power"):
            return float(nvml.nvmlDeviceGetPowerUsage(gpu.handle)) * 1e-3

    if not usage() > 0:
        raise MeterUnavailable(f"{gpu.uuid}: power reads 0 W, so it is not measured; use the meter power_model with declared watts")
    return Power(usage, "nvmlDeviceGetPowerUsage", "gpu")


def refuse_shared(gpu: Gpu) -> None:
    """A virtual GPU's guests share a board, whose power says nothing about one of them."""
    if gpu.virtualisation == _VGPU:
        raise MeterUnavailable(
            f"{gpu.uuid} is a virtual GPU: the board's energy is shared with other guests; measure on a whole GPU (passthrough), "
            "or use the meter power_model with declared watts"
        )


def partly_sampled(gpu: Gpu) -> bool:
    """A100 and H100 sample 25 ms of each 100 ms (arXiv 2312.02741); newer parts of their line are taken to be no better."""
    chips = ("A100", "A800", "A30", "H100", "H200", "H800", "GH200")
    return gpu.architecture in (_AMPERE, _HOPPER) and any(chip in gpu.name.replace("-", " ").split() for chip in chips)


def _scope(gpu: Gpu, covers: str) -> str:
    return "parent_gpu" if gpu.mig or gpu.virtualisation == _HOST_VGPU else covers


def _field_reader(nvml: ModuleType, gpu: Gpu, field: int, scope: int) -> Callable[[], float]:
    """Each field has a return code of its own: the call succeeds even if the field did not."""

    def read() -> float:
        with translated(f"{gpu.uuid}: power field {field}, scope {scope}"):
            (value,) = nvml.nvmlDeviceGetFieldValues(gpu.handle, [(field, scope)])
            if value.nvmlReturn != 0:
                raise nvml.NVMLError(value.nvmlReturn)
            milliwatts = int(value.value.uiVal)
        return 0.0 if milliwatts == _NOT_AVAILABLE else milliwatts * 1e-3

    return read


def _first(nvml: ModuleType, handle: object, *calls: tuple[str | int, ...]) -> int | None:
    """The first call that this device and driver support."""
    for name, *arguments in calls:
        value: int | None = optional(nvml, str(name), handle, *arguments)
        if value is not None:
            return value
    return None
