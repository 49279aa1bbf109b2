"""CUDA events: how long a CUDA device worked between two marks in its queue, which the process that fills the queue does not disturb."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from costs.model import CostName
from profiler.meters.base import MeterError, MeterUnavailable, Origin, Reading
from profiler.meters.nvml import find_gpu, torch_uuid
from profiler.meters.nvml_source import NvmlSource
from profiler.meters.source import DeviceState

State = Callable[[], DeviceState]


class CudaEvents:
    """Milliseconds on the current CUDA device.  A window is disturbed when the device was throttled, or other processes were on it.

    ``cuda`` stands for ``torch.cuda``, ``state`` for what NVML says of the device; without NVML the origin says that it was not watched.
    """

    quantity: CostName = "latency_ms"
    window_seconds = 1e-3  # events resolve half a microsecond

    def __init__(self, state: State | None = None, cuda: Any = None) -> None:
        self._cuda = cuda or _torch_cuda()
        if not self._cuda.is_available():
            raise MeterUnavailable(
                "torch finds no CUDA device; see `nvidia-smi`, install a torch built for CUDA, or measure on the CPU (wall_clock)"
            )
        watched, uuid = (state, "") if state else _nvml_state(self._cuda.current_device())
        detail = "events around CUDA graphs" if watched else "events around CUDA graphs; throttling not watched, for want of NVML"
        self._state = watched or DeviceState
        self._before = DeviceState()
        self._origin = Origin("cuda_events", "measured", "gpu", uuid or f"cuda:{self._cuda.current_device()}", detail)
        try:
            self._began, self._ended = (self._cuda.Event(enable_timing=True) for _ in range(2))
        except RuntimeError as error:  # no memory for a context, say
            raise MeterError(f"cuda_events: {error}; see `nvidia-smi` for what is on the device") from error

    def start(self) -> None:
        self._before = self._state()
        self._cuda.synchronize()
        self._began.record()

    def stop(self) -> Reading:
        self._ended.record()
        self._ended.synchronize()
        return Reading(self._began.elapsed_time(self._ended), _disturbed((self._before, self._state())), self._origin)


def _disturbed(states: Sequence[DeviceState]) -> str | None:
    if any(state.foreign for state in states):
        return "other processes on the device"
    return next((f"throttled ({state.throttled_by})" for state in states if state.throttled_by), None)


def _nvml_state(index: int) -> tuple[State | None, str]:
    """What NVML says of the device that CUDA calls so, and its UUID."""
    uuid = torch_uuid(index) or ""
    try:
        return NvmlSource(find_gpu(uuid or None), "cuda_events", counter=False, power=None).state, uuid
    except MeterUnavailable:
        return None, uuid


def _torch_cuda() -> Any:
    import torch

    return torch.cuda
